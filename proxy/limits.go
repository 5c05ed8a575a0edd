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

// sessionLimits holds each session to its limits. The configured ones count all of its requests. Those that policy
// names count the requests for which it names them, beside the configured ones: so policy can only lower, a session has
// its limit from its first request on, and is rid of it with the first for which policy says nothing of it.
type sessionLimits struct {
	configured terms
	now        func() time.Time

	mu    sync.Mutex // guards creation in meters
	meter *lru.Cache[meterKey, *meter]

	peers atomic.Pointer[peers] // nil where limits are this process's alone
}

// terms are what a session is held to; 0 = not.
type terms struct {
	requests float64 // a second
	bytes    int64   // a second
	inFlight int
}

type meterKey struct {
	issuer, session string
	terms           terms
}

// meter is the use that one session makes of one limit.
type meter struct {
	key      meterKey
	requests *rate.Limiter // nil = no limit
	bytes    *rate.Limiter // nil = no limit
	inFlight atomic.Int64

	// For the peers.
	elsewhere    atomic.Int64 // in flight at others
	usedRequests atomic.Int64 // since they were told
	usedBytes    atomic.Int64
	untold       atomic.Bool
}

func newSessionLimits(configured Limits, now func() time.Time) *sessionLimits {
	meters, err := lru.New[meterKey, *meter](maxLimitedSessions)
	if err != nil {
		panic(err) // only a size below 1 fails
	}
	return &sessionLimits{
		configured: terms{configured.RequestsPerSecond, configured.BytesPerSecond, configured.InFlight},
		now:        now, meter: meters,
	}
}

func (s *sessionLimits) of(key meterKey) *meter {
	if m, ok := s.meter.Get(key); ok {
		return m
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.meter.Get(key); ok {
		return m
	}
	// Bursts of one second's worth, and never less than what moves at once.
	m := &meter{key: key}
	if perSecond := key.terms.requests; perSecond > 0 {
		m.requests = rate.NewLimiter(rate.Limit(perSecond), int(math.Ceil(perSecond)))
	}
	if perSecond := key.terms.bytes; perSecond > 0 {
		m.bytes = rate.NewLimiter(rate.Limit(perSecond), max(int(perSecond), copySize))
	}
	s.meter.Add(key, m)
	return m
}

// lease is one request's place under its session's limits: the configured ones and policy's.
type lease struct {
	limits *sessionLimits
	who    *identity.Identity
	held   [2]*meter
}

// admit takes a place for one request of id, or says how long to wait for one.
func (s *sessionLimits) admit(l *lease, id *identity.Identity) error {
	l.limits, l.who = s, id
	return l.enter(0, s.configured)
}

// narrow holds the request to the limits that policy named for it.
func (l *lease) narrow(p policy.Limits) error {
	return l.enter(1, terms{p.RequestsPerSecond, p.BytesPerSecond, int(min(p.InFlight, math.MaxInt32))})
}

func (l *lease) enter(place int, t terms) error {
	if t == (terms{}) || l.held[place] != nil {
		return nil // nothing is counted where there is no limit
	}
	s := l.limits
	m := s.of(meterKey{l.who.Issuer, l.who.Session, t})
	if err := m.enter(s.now()); err != nil {
		return err
	}
	if p := s.peers.Load(); p != nil {
		m.usedRequests.Add(1)
		p.touch(m)
	}
	l.held[place] = m
	return nil
}

func (m *meter) enter(now time.Time) error {
	here := m.inFlight.Add(1)
	err := m.refusal(here, now)
	if err != nil {
		m.inFlight.Add(-1)
	}
	return err
}

func (m *meter) refusal(here int64, now time.Time) error {
	if most := int64(m.key.terms.inFlight); most > 0 && here+m.elsewhere.Load() > most {
		return &slowDown{message: fmt.Sprintf("this session has %d requests in flight, its limit; retry when one ends", most), retryAfter: time.Second}
	}
	if m.bytes != nil {
		// Transfers are paced as they go; a session a whole second in debt starts no more of them.
		if debt := -m.bytes.TokensAt(now) / float64(m.bytes.Limit()); debt > 1 {
			return &slowDown{message: fmt.Sprintf("this session is over its %d bytes a second; retry in %.0f s", m.key.terms.bytes, math.Ceil(debt)), retryAfter: seconds(debt)}
		}
	}
	if m.requests != nil && !m.requests.AllowN(now, 1) {
		wait := (1 - m.requests.TokensAt(now)) / m.key.terms.requests
		return &slowDown{message: fmt.Sprintf("this session is over its %g requests a second", m.key.terms.requests), retryAfter: seconds(wait)}
	}
	return nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// spend counts n bytes of a transfer, waiting where the session is ahead of its rate.
func (l *lease) spend(ctx context.Context, n int) error {
	for _, m := range l.held {
		if m == nil || m.bytes == nil {
			continue
		}
		if l.limits.peers.Load() != nil {
			m.usedBytes.Add(int64(n)) // told while the request is in flight, and when it ends
		}
		for left := n; left > 0; {
			piece := min(left, m.bytes.Burst())
			if err := m.bytes.WaitN(ctx, piece); err != nil {
				return err
			}
			left -= piece
		}
	}
	return nil
}

func (l *lease) release() {
	for i, m := range l.held {
		if m == nil {
			continue
		}
		m.inFlight.Add(-1)
		if p := l.limits.peers.Load(); p != nil {
			p.touch(m)
		}
		l.held[i] = nil
	}
}
