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
//
// It outlives reloads: what a session has used is used, whatever it may use from now on.
type sessionLimits struct {
	now        func() time.Time
	configured atomic.Pointer[terms] // a reload changes them

	mu    sync.Mutex // guards creation in meters, and changes of their terms
	meter *lru.Cache[meterKey, *meter]

	sharing sync.Mutex            // guards changes of peers
	peers   atomic.Pointer[peers] // nil where limits are this process's alone
}

// terms are what a session is held to; 0 = not.
type terms struct {
	requests float64 // a second
	bytes    int64   // a second
	inFlight int
}

type meterKey struct {
	issuer, session string
	policy          terms // zero = the configured limit, whatever that is just now
}

// meter is the use that one session makes of one limit.
type meter struct {
	key      meterKey
	rates    atomic.Pointer[rates]
	inFlight atomic.Int64

	// For the peers.
	elsewhere    atomic.Int64 // in flight at others
	usedRequests atomic.Int64 // since they were told
	usedBytes    atomic.Int64
	untold       atomic.Bool
}

// rates are a meter's terms, and what is left under them.
type rates struct {
	terms    terms
	requests *rate.Limiter // nil = no limit
	bytes    *rate.Limiter // nil = no limit
}

func newSessionLimits(configured Limits, now func() time.Time) *sessionLimits {
	meters, err := lru.New[meterKey, *meter](maxLimitedSessions)
	if err != nil {
		panic(err) // only a size below 1 fails
	}
	s := &sessionLimits{now: now, meter: meters}
	s.configure(configured)
	return s
}

func (s *sessionLimits) configure(l Limits) {
	s.configured.Store(&terms{l.RequestsPerSecond, l.BytesPerSecond, l.InFlight})
}

// of is the meter of key, held to t.
func (s *sessionLimits) of(key meterKey, t terms) *meter {
	if m, ok := s.meter.Get(key); ok && m.rates.Load().terms == t {
		return m
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.meter.Get(key)
	if !ok {
		m = &meter{key: key}
		m.rates.Store(new(rates))
		defer s.meter.Add(key, m)
	}
	if old := m.rates.Load(); old.terms != t {
		now := s.now()
		m.rates.Store(&rates{
			terms: t,
			// Bursts of one second's worth, and never less than what moves at once.
			requests: limiter(old.requests, now, t.requests, int(math.Ceil(t.requests))),
			bytes:    limiter(old.bytes, now, float64(t.bytes), max(int(t.bytes), copySize)),
		})
	}
	return m
}

// limiter is one of so much a second. It goes on where an earlier one stands: other terms are no fresh start.
func limiter(old *rate.Limiter, now time.Time, perSecond float64, burst int) *rate.Limiter {
	switch {
	case perSecond <= 0:
		return nil
	case old == nil:
		return rate.NewLimiter(rate.Limit(perSecond), burst)
	}
	old.SetLimitAt(now, rate.Limit(perSecond))
	old.SetBurstAt(now, burst)
	return old
}

// lease is one request's place under its session's limits: the configured ones and policy's.
type lease struct {
	limits *sessionLimits
	who    *identity.Identity
	held   [2]*meter
}

// admit takes a place for one request of id under the configured limits, or says how long to wait for one.
func (s *sessionLimits) admit(l *lease, id *identity.Identity) error {
	l.limits, l.who = s, id
	return l.enter(0, terms{}, *s.configured.Load())
}

// narrow holds the request to the limits that policy named for it.
func (l *lease) narrow(p policy.Limits) error {
	t := terms{p.RequestsPerSecond, p.BytesPerSecond, int(min(p.InFlight, math.MaxInt32))}
	return l.enter(1, t, t)
}

func (l *lease) enter(place int, policy, t terms) error {
	if t == (terms{}) || l.held[place] != nil {
		return nil // nothing is counted where there is no limit
	}
	s := l.limits
	m := s.of(meterKey{l.who.Issuer, l.who.Session, policy}, t)
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
	r := m.rates.Load()
	if most := int64(r.terms.inFlight); most > 0 && here+m.elsewhere.Load() > most {
		return &slowDown{message: fmt.Sprintf("this session has %d requests in flight, its limit; retry when one ends", most), retryAfter: time.Second}
	}
	if r.bytes != nil {
		// Transfers are paced as they go; a session a whole second in debt starts no more of them.
		if debt := -r.bytes.TokensAt(now) / float64(r.bytes.Limit()); debt > 1 {
			return &slowDown{message: fmt.Sprintf("this session is over its %d bytes a second; retry in %.0f s", r.terms.bytes, math.Ceil(debt)), retryAfter: seconds(debt)}
		}
	}
	if r.requests != nil && !r.requests.AllowN(now, 1) {
		wait := (1 - r.requests.TokensAt(now)) / r.terms.requests
		return &slowDown{message: fmt.Sprintf("this session is over its %g requests a second", r.terms.requests), retryAfter: seconds(wait)}
	}
	return nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// spend counts n bytes of a transfer, waiting where the session is ahead of its rate.
func (l *lease) spend(ctx context.Context, n int) error {
	for _, m := range l.held {
		if m == nil {
			continue
		}
		bytes := m.rates.Load().bytes
		if bytes == nil {
			continue
		}
		if l.limits.peers.Load() != nil {
			m.usedBytes.Add(int64(n)) // told while the request is in flight, and when it ends
		}
		for left := n; left > 0; {
			piece := min(left, bytes.Burst())
			if err := bytes.WaitN(ctx, piece); err != nil {
				return err
			}
			left -= piece
		}
	}
	return nil
}

// release gives the places back, once. What is held stays to be read: an upload's goroutine may count bytes yet.
func (l *lease) release() {
	for _, m := range l.held {
		if m == nil {
			continue
		}
		m.inFlight.Add(-1)
		if p := l.limits.peers.Load(); p != nil {
			p.touch(m)
		}
	}
}
