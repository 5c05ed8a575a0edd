package proxy

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/sluice-s3/sluice/proxy/identity"
)

// Replicas hold a session to its limits together, by telling each other every shareInterval what it used. What others
// tell is taken from the session's own buckets here, into debt if need be. So each replica admits what is left of the one
// limit, and in the long run all of them together admit just that.
//
// It is not exact at once: in the time that news takes, each replica may hand out the whole burst by itself. N replicas
// that all see a session for the first time in the same quarter of a second admit N bursts (a burst is one second's worth)
// and pay them back: no request is admitted until the debt is. Nothing waits for the others, and what is lost on the
// way, or while the store is away, is not made up for: then each replica holds the whole limit by itself.
const (
	shareInterval = 250 * time.Millisecond
	// peerSilence is after how long a replica that was not heard from has nothing in flight.
	peerSilence = 4 * shareInterval
	// maxPeerMessage keeps messages well below NATS's megabyte.
	maxPeerMessage = 256 << 10
	// maxPeerBursts bounds the debt that one message makes. A replica cannot admit more in an interval.
	maxPeerBursts = 4
)

// peers is what sessions use at the other replicas.
type peers struct {
	limits *sessionLimits
	self   string
	over   *identity.Channel
	end    func()

	mu     sync.Mutex // guards all below
	untold []*meter   // used since the others were told, or in flight
	flying map[*meter]map[string]flight
	ended  bool
}

// flight is what one peer has in flight of a session.
type flight struct {
	n    int64
	told time.Time
}

// peerMessage is what one replica used since its last.
type peerMessage struct {
	From string     `json:"from"`
	Used []peerUsed `json:"used"`
}

type peerUsed struct {
	Issuer  string `json:"issuer"`
	Session string `json:"session"`
	// The limit that it counts against, where policy named one; else it is the configured, which each replica has its own of.
	PolicyRequests float64 `json:"policy_requests,omitempty"`
	PolicyBytes    int64   `json:"policy_bytes,omitempty"`
	PolicyInFlight int     `json:"policy_in_flight,omitempty"`

	Requests int64 `json:"requests,omitempty"`
	Bytes    int64 `json:"bytes,omitempty"`
	InFlight int64 `json:"in_flight,omitempty"`
}

// ShareLimits counts what sessions use together with the other replicas on over, until ctx ends or it is called again, after
// a reload, with another channel. With a nil channel the limits are this process's alone.
func (p *Proxy) ShareLimits(ctx context.Context, over *identity.Channel) error {
	s := p.sessions
	s.sharing.Lock()
	defer s.sharing.Unlock()
	before := s.peers.Load()
	if before != nil && over != nil && *before.over == *over {
		return nil
	}
	if over == nil {
		s.peers.Store(nil)
	} else {
		peers := newPeers(s)
		stop, err := over.Subscribe(peers.receive)
		if err != nil {
			return fmt.Errorf("share limits: %w", err)
		}
		ctx, cancel := context.WithCancel(ctx)
		peers.over, peers.end = over, cancel
		context.AfterFunc(ctx, stop)
		go peers.run(ctx, over.Publish, p.Log)
		s.peers.Store(peers)
	}
	if before != nil {
		before.end()
		before.forget()
	}
	return nil
}

// run tells the others until ctx ends.
func (p *peers) run(ctx context.Context, publish func([]byte) error, log *slog.Logger) {
	ticker := time.NewTicker(shareInterval)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := p.tell(publish)
		if (err != nil) != failing {
			failing = err != nil
			if failing {
				log.Warn("limits are not shared for now; each replica holds them by itself", slog.Any("error", err))
			} else {
				log.Info("limits are shared")
			}
		}
	}
}

func newPeers(s *sessionLimits) *peers {
	return &peers{limits: s, self: rand.Text(), flying: map[*meter]map[string]flight{}}
}

// forget is when nothing more is heard.
func (p *peers) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for m := range p.flying {
		p.countLocked(m, nil)
	}
}

// touch has the next tell speak of m.
func (p *peers) touch(m *meter) {
	if m.untold.CompareAndSwap(false, true) {
		p.mu.Lock()
		p.untold = append(p.untold, m)
		p.mu.Unlock()
	}
}

// tell tells the others what was used since the last time, and forgets those that fell silent.
func (p *peers) tell(publish func([]byte) error) error {
	p.mu.Lock()
	untold := p.untold
	p.untold = nil
	p.forgetSilentLocked()
	p.mu.Unlock()

	var failed error
	var used []peerUsed
	size := 0
	flush := func() {
		if len(used) == 0 {
			return
		}
		data, err := json.Marshal(peerMessage{p.self, used})
		if err == nil {
			err = publish(data)
		}
		if err != nil {
			failed = err
		}
		used, size = nil, 0
	}
	for _, m := range untold {
		m.untold.Store(false) // before the look, or else a use right after it would never be told
		u := peerUsed{
			Issuer: m.key.issuer, Session: m.key.session,
			PolicyRequests: m.key.policy.requests, PolicyBytes: m.key.policy.bytes, PolicyInFlight: m.key.policy.inFlight,
			Requests: m.usedRequests.Swap(0), Bytes: m.usedBytes.Swap(0), InFlight: m.inFlight.Load(),
		}
		if u.InFlight > 0 {
			p.touch(m) // the others forget what they do not hear of
		}
		used = append(used, u)
		if size += 200 + len(u.Issuer) + len(u.Session); size > maxPeerMessage {
			flush()
		}
	}
	flush()
	return failed
}

func (p *peers) forgetSilentLocked() {
	now := p.limits.now()
	for m, from := range p.flying {
		for peer, f := range from {
			if now.Sub(f.told) > peerSilence {
				delete(from, peer)
			}
		}
		p.countLocked(m, from)
	}
}

func (p *peers) countLocked(m *meter, from map[string]flight) {
	sum := int64(0)
	for _, f := range from {
		sum += f.n
	}
	m.elsewhere.Store(sum)
	if len(from) == 0 {
		delete(p.flying, m)
	} else {
		p.flying[m] = from
	}
}

// receive takes what another replica used off the session's buckets here.
func (p *peers) receive(data []byte) {
	var message peerMessage
	if err := json.Unmarshal(data, &message); err != nil || message.From == p.self || message.From == "" {
		return
	}
	now := p.limits.now()
	for _, u := range message.Used {
		policy := terms{u.PolicyRequests, u.PolicyBytes, u.PolicyInFlight}
		if !(policy.requests >= 0) || math.IsInf(policy.requests, 0) || policy.bytes < 0 || policy.inFlight < 0 || u.InFlight < 0 {
			continue
		}
		held := policy
		if policy == (terms{}) {
			held = *p.limits.configured.Load()
		}
		if held == (terms{}) {
			continue // those who tell have limits, and this replica has none
		}
		m := p.limits.of(meterKey{u.Issuer, u.Session, policy}, held)
		charge(m.rates.Load().requests, now, u.Requests)
		charge(m.rates.Load().bytes, now, u.Bytes)

		p.mu.Lock()
		if p.ended {
			p.mu.Unlock()
			return
		}
		from := p.flying[m]
		if u.InFlight > 0 {
			if from == nil {
				from = map[string]flight{}
			}
			from[message.From] = flight{u.InFlight, now}
		} else {
			delete(from, message.From)
		}
		p.countLocked(m, from)
		p.mu.Unlock()
	}
}

// charge takes n from l, into debt if need be.
func charge(l *rate.Limiter, now time.Time, n int64) {
	if l == nil {
		return
	}
	burst := int64(l.Burst())
	for n = min(n, maxPeerBursts*burst); n > 0; n -= burst {
		l.ReserveN(now, int(min(n, burst)))
	}
}
