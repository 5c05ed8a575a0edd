package proxy

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/identity"
)

// maxLimitedSessions bounds the sessions whose use is remembered. A session pushed out starts afresh, so the
// bound is far above what one proxy serves at a time.
const maxLimitedSessions = 100_000

// sessionLimits holds each session to its rates. Configuration sets them; policy may lower them, from the
// session's next request on.
type sessionLimits struct {
	configured Limits
	now        func() time.Time

	inUse  atomic.Bool // false until a limit exists: unlimited sessions cost nothing
	mu     sync.Mutex  // guards creation in states
	states *lru.Cache[sessionKey, *sessionState]
}

type sessionKey struct{ issuer, session string }

type sessionState struct {
	requests *rate.Limiter
	bytes    *rate.Limiter
	inFlight atomic.Int64
}

func newSessionLimits(configured Limits, now func() time.Time) *sessionLimits {
	states, err := lru.New[sessionKey, *sessionState](maxLimitedSessions)
	if err != nil {
		panic(err) // only a size below 1 fails
	}
	s := &sessionLimits{configured: configured, now: now, states: states}
	s.inUse.Store(configured.RequestsPerSecond > 0 || configured.BytesPerSecond > 0 || configured.InFlight > 0)
	return s
}

func (s *sessionLimits) state(key sessionKey) *sessionState {
	if state, ok := s.states.Get(key); ok {
		return state
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if state, ok := s.states.Get(key); ok {
		return state
	}
	state := &sessionState{
		requests: rate.NewLimiter(rate.Inf, 0),
		bytes:    rate.NewLimiter(rate.Inf, 0),
	}
	setRate(state.requests, s.configured.RequestsPerSecond, 1)
	setRate(state.bytes, float64(s.configured.BytesPerSecond), copySize)
	s.states.Add(key, state)
	return state
}

// setRate allows bursts of one second's worth, and never less than least.
func setRate(l *rate.Limiter, perSecond float64, least int) {
	if perSecond <= 0 || rate.Limit(perSecond) >= l.Limit() {
		return
	}
	l.SetBurst(max(least, int(math.Ceil(perSecond))))
	l.SetLimit(rate.Limit(perSecond))
}

// lease is one request's place under its session's limits.
type lease struct {
	limits *sessionLimits
	key    sessionKey
	state  *sessionState
}

// admit takes a place for one request of id, or says how long to wait for one.
func (s *sessionLimits) admit(l *lease, id *identity.Identity) error {
	l.limits, l.key = s, sessionKey{id.Issuer, id.Session}
	if !s.inUse.Load() {
		return nil
	}
	return l.enter()
}

func (l *lease) enter() error {
	s, now := l.limits, l.limits.now()
	state := s.state(l.key)
	if most := s.configured.InFlight; most > 0 && state.inFlight.Load() >= int64(most) {
		return &slowDown{message: fmt.Sprintf("this session has %d requests in flight, its limit; retry when one ends", most), retryAfter: time.Second}
	}
	if state.bytes.Limit() != rate.Inf {
		// Transfers are paced as they go; a session a whole second in debt starts no more of them.
		if debt := -state.bytes.TokensAt(now) / float64(state.bytes.Limit()); debt > 1 {
			return &slowDown{message: fmt.Sprintf("this session is over its %.0f bytes a second; retry in %.0f s", float64(state.bytes.Limit()), math.Ceil(debt)), retryAfter: seconds(debt)}
		}
	}
	if !state.requests.AllowN(now, 1) {
		wait := (1 - state.requests.TokensAt(now)) / float64(state.requests.Limit())
		return &slowDown{message: fmt.Sprintf("this session is over its %g requests a second", float64(state.requests.Limit())), retryAfter: seconds(wait)}
	}
	state.inFlight.Add(1)
	l.state = state
	return nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// narrow applies the limits that policy set for this request's session.
func (l *lease) narrow(p policy.Limits) error {
	if p.RequestsPerSecond <= 0 && p.BytesPerSecond <= 0 {
		return nil
	}
	l.limits.inUse.Store(true)
	state := l.limits.state(l.key)
	setRate(state.requests, p.RequestsPerSecond, 1)
	setRate(state.bytes, float64(p.BytesPerSecond), copySize)
	if l.state == nil {
		return l.enter()
	}
	return nil
}

// spend counts n bytes of a transfer, waiting where the session is ahead of its rate.
func (l *lease) spend(ctx context.Context, n int) error {
	if l.state == nil || l.state.bytes.Limit() == rate.Inf {
		return nil
	}
	for n > 0 {
		piece := min(n, l.state.bytes.Burst())
		if err := l.state.bytes.WaitN(ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}

func (l *lease) release() {
	if l.state != nil {
		l.state.inFlight.Add(-1)
		l.state = nil
	}
}
