package proxy

import (
	"encoding/json"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/identity"
)

// fleet is replicas that share limits, on one clock.
type fleet struct {
	now      time.Time
	replicas []*sessionLimits
	lost     func(from, to int) bool // messages that do not arrive; nil = none
}

func newFleet(n int, l Limits) *fleet {
	f := &fleet{now: time.Unix(1e9, 0)}
	for range n {
		s := newSessionLimits(l, func() time.Time { return f.now })
		share(s)
		f.replicas = append(f.replicas, s)
	}
	return f
}

// run passes time in steps, calling each for every replica at every step.
func (f *fleet) run(d, step time.Duration, each func(i int, s *sessionLimits)) {
	for end := f.now.Add(d); f.now.Before(end); {
		f.now = f.now.Add(step)
		for i, s := range f.replicas {
			each(i, s)
		}
		if f.now.UnixNano()%int64(shareInterval) == 0 {
			for i, s := range f.replicas {
				s.peers.Load().tell(func(data []byte) error {
					for j, other := range f.replicas { // at the sender too, as NATS does
						if f.lost == nil || !f.lost(i, j) {
							other.peers.Load().receive(data)
						}
					}
					return nil
				})
			}
		}
	}
}

func share(s *sessionLimits) { s.peers.Store(newPeers(s)) }

var (
	greedy   = &identity.Identity{Issuer: "https://issuer", Session: "env-1"}
	ofGreedy = meterKey{issuer: greedy.Issuer, session: greedy.Session}
)

// Whatever session asks of however many replicas, together they admit its limit, and at most a burst and a quarter each
// before they have heard of each other.
func TestReplicasShareTheRate(t *testing.T) {
	const perSecond = 20
	for _, n := range []int{1, 2, 3, 10} {
		f := newFleet(n, Limits{RequestsPerSecond: perSecond})
		admitted, first := 0, 0
		ask := func(_ int, s *sessionLimits) {
			l := new(lease)
			if s.admit(l, greedy) == nil {
				admitted++
				l.release()
			}
		}
		f.run(time.Second, 5*time.Millisecond, ask)
		first = admitted
		f.run(59*time.Second, 5*time.Millisecond, ask)
		if most := int(math.Ceil(float64(n) * perSecond * 1.25)); first > max(most, 2*perSecond) {
			t.Errorf("%d replicas admitted %d in the first second; bursts and news make %d", n, first, most)
		}
		if want := 60 * perSecond; admitted < want || admitted > want+n*perSecond*5/4 {
			t.Errorf("%d replicas admitted %d in a minute; the limit is %d", n, admitted, want)
		}
		t.Logf("%2d replicas: %3d in the first second, %d in a minute; the limit is %d and a burst of %d", n, first, admitted, 60*perSecond, perSecond)
	}
}

func TestReplicasShareWhatIsInFlight(t *testing.T) {
	f := newFleet(3, Limits{InFlight: 4})
	step := shareInterval
	quiet := func(int, *sessionLimits) {}
	open := make([]*lease, 4)
	for i := range open {
		open[i] = new(lease)
		if err := f.replicas[0].admit(open[i], greedy); err != nil {
			t.Fatal(err)
		}
	}
	f.run(10*step, step, quiet) // it is told for as long as it lasts
	for i, s := range f.replicas {
		if s.admit(new(lease), greedy) == nil {
			t.Errorf("replica %d admits a fifth", i)
		}
		if err := s.admit(new(lease), &identity.Identity{Issuer: "https://issuer", Session: "env-2"}); err != nil {
			t.Errorf("another session: %v", err)
		}
	}
	for _, l := range open {
		l.release()
	}
	f.run(step, step, quiet)
	last := new(lease)
	if err := f.replicas[2].admit(last, greedy); err != nil {
		t.Errorf("after all have ended: %v", err)
	}
	f.run(step, step, quiet)
	if got := f.replicas[1].of(ofGreedy, terms{inFlight: 4}).elsewhere.Load(); got != 1 {
		t.Errorf("%d in flight elsewhere, want 1", got)
	}
	f.lost = func(from, to int) bool { return from == 2 } // it died
	f.run(2*peerSilence, step, quiet)
	if got := f.replicas[1].of(ofGreedy, terms{inFlight: 4}).elsewhere.Load(); got != 0 {
		t.Errorf("%d in flight at a replica that is silent", got)
	}
}

// Bytes that went through one replica are owed at the others.
func TestReplicasShareBytes(t *testing.T) {
	f := newFleet(2, Limits{BytesPerSecond: 1 << 20})
	l := new(lease)
	if err := f.replicas[0].admit(l, greedy); err != nil {
		t.Fatal(err)
	}
	if err := l.spend(t.Context(), 1<<20); err != nil { // the burst
		t.Fatal(err)
	}
	f.run(shareInterval, shareInterval, func(int, *sessionLimits) {})
	other := f.replicas[1].of(ofGreedy, terms{bytes: 1 << 20}).rates.Load()
	if left := other.bytes.TokensAt(f.now); left > 1<<18 {
		t.Errorf("%.0f bytes are left elsewhere", left)
	}
	// So much that nothing is admitted for a while.
	other.bytes.ReserveN(f.now, 1<<20)
	other.bytes.ReserveN(f.now, 1<<20)
	if err := f.replicas[1].admit(new(lease), greedy); err == nil {
		t.Error("a session in debt is admitted")
	}
}

// A replica that is cut off holds the whole limit by itself.
func TestLimitsWithoutNews(t *testing.T) {
	f := newFleet(2, Limits{RequestsPerSecond: 10})
	f.lost = func(int, int) bool { return true }
	admitted := 0
	f.run(10*time.Second, 10*time.Millisecond, func(_ int, s *sessionLimits) {
		if l := new(lease); s.admit(l, greedy) == nil {
			admitted++
			l.release()
		}
	})
	if admitted < 2*100 || admitted > 2*110 {
		t.Errorf("%d in 10 s, want 100 and a burst of 10 from each", admitted)
	}
}

// What arrives is from a replica of some other version, or from nobody we know.
func TestMessagesNotUnderstood(t *testing.T) {
	f := newFleet(1, Limits{RequestsPerSecond: 10})
	p := f.replicas[0].peers.Load()
	used := func(u peerUsed) []byte {
		data, _ := json.Marshal(peerMessage{"other", []peerUsed{u}})
		return data
	}
	base := peerUsed{Issuer: greedy.Issuer, Session: greedy.Session}
	for _, change := range []func(*peerUsed){
		func(u *peerUsed) { u.Requests = -5 },
		func(u *peerUsed) { u.PolicyRequests = -1; u.Requests = 5 },
		func(u *peerUsed) { u.InFlight = -5 },
		func(u *peerUsed) { u.PolicyRequests = 9; u.Requests = 5 }, // another limit
		func(u *peerUsed) { u.Session = "env-2"; u.Requests = 5 },
	} {
		u := base
		change(&u)
		p.receive(used(u))
	}
	p.receive(nil)
	p.receive([]byte(`{"from": "", "used": [{"issuer": "https://issuer", "session": "env-1", "requests": 10}]}`))
	for i := range 10 {
		if err := f.replicas[0].admit(new(lease), greedy); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	huge := base
	huge.Requests = math.MaxInt64 // is paid back in seconds, not in centuries
	p.receive(used(huge))
	f.now = f.now.Add(10 * time.Second)
	if err := f.replicas[0].admit(new(lease), greedy); err != nil {
		t.Error(err)
	}
}

// What policy names counts the requests it names it for, beside what is configured, from the first to the last.
func TestPolicyLowersLimits(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := newSessionLimits(Limits{RequestsPerSecond: 10}, func() time.Time { return now })
	count := func(p policy.Limits) (n int) {
		for range 20 {
			l := new(lease)
			if s.admit(l, greedy) == nil && l.narrow(p) == nil {
				n++
			}
			l.release()
		}
		return n
	}
	if got := count(policy.Limits{RequestsPerSecond: 3}); got != 3 {
		t.Errorf("%d, policy allows 3", got)
	}
	now = now.Add(time.Second)
	if got := count(policy.Limits{}); got != 10 {
		t.Errorf("%d once policy says nothing: 10 are configured", got)
	}
	now = now.Add(time.Second)
	if got := count(policy.Limits{RequestsPerSecond: 100}); got != 10 {
		t.Errorf("%d: policy can only lower", got)
	}
	now = now.Add(time.Second)
	var a, b lease
	if s.admit(&a, greedy) != nil || a.narrow(policy.Limits{InFlight: 1}) != nil {
		t.Error("the first in flight is refused")
	}
	if s.admit(&b, greedy) != nil || b.narrow(policy.Limits{InFlight: 1}) == nil {
		t.Error("a second is in flight, and policy allows one")
	}
}

// A reload takes nothing from a session that it has, and gives it nothing back that it used, whatever it may from then on.
func TestLimitsOutliveAReload(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := newSessionLimits(Limits{RequestsPerSecond: 10, BytesPerSecond: 1 << 20, InFlight: 2}, func() time.Time { return now })
	admitted := func(n int) (count int) {
		for range n {
			l := new(lease)
			if s.admit(l, greedy) == nil {
				count++
			}
			l.release()
		}
		return count
	}
	open := []*lease{new(lease), new(lease)}
	for _, l := range open {
		if err := s.admit(l, greedy); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := open[0].spend(t.Context(), 1<<19); err != nil {
			t.Fatal(err)
		}
	}
	s.configure(Limits{RequestsPerSecond: 10, BytesPerSecond: 2 << 20, InFlight: 2}) // bytes alone
	if admitted(1) != 0 {
		t.Error("a third in flight")
	}
	open[1].release()
	if n := admitted(20); n != 8 {
		t.Errorf("%d admitted after two, of ten", n)
	}
	if left := s.of(ofGreedy, *s.configured.Load()).rates.Load().bytes.TokensAt(now); left > 1<<19 {
		t.Errorf("%.0f bytes are left, and all were used", left)
	}
	now = now.Add(time.Second)
	s.configure(Limits{RequestsPerSecond: 1000, InFlight: 1})
	if admitted(1) != 0 {
		t.Error("two in flight, and one may be")
	}
	open[0].release()
	if n := admitted(1000); n > 20 {
		t.Errorf("%d admitted at once: a higher limit is no burst", n)
	}
	now = now.Add(time.Second)
	if n := admitted(2000); n != 1000 {
		t.Errorf("%d admitted a second later", n)
	}
	s.configure(Limits{})
	if n := admitted(2000); n != 2000 {
		t.Errorf("%d admitted without a limit", n)
	}
}

// Unlimited sessions cost nothing, and limited ones little.
func BenchmarkLimits(b *testing.B) {
	for name, l := range map[string]Limits{"none": {}, "all": {RequestsPerSecond: 1e12, BytesPerSecond: 1 << 50, InFlight: 1 << 30}} {
		for _, shared := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/shared=%v", name, shared), func(b *testing.B) {
				s := newSessionLimits(l, time.Now)
				if shared {
					share(s)
				}
				b.ReportAllocs()
				var l lease
				for b.Loop() {
					if err := s.admit(&l, greedy); err != nil {
						b.Fatal(err)
					}
					if err := l.narrow(policy.Limits{}); err != nil {
						b.Fatal(err)
					}
					l.release()
				}
			})
		}
	}
}

// A backend may answer before the upload has ended: its bytes are counted by a goroutine that may be at it while the request
// ends. It is the race detector that sees whether they get along.
func TestBytesCountedWhileTheRequestEnds(t *testing.T) {
	s := newSessionLimits(Limits{InFlight: 1, BytesPerSecond: 1 << 40}, time.Now)
	for range 100 {
		c := &call{ctx: t.Context()}
		if err := s.admit(&c.lease, greedy); err != nil {
			t.Fatal(err) // the place of the one before was not given back
		}
		var upload sync.WaitGroup
		upload.Go(func() {
			if err := c.pace(1); err != nil {
				t.Error(err)
			}
		})
		c.lease.release()
		upload.Wait()
	}
}
