// Package machine keeps tests right on whatever machine they run, however slow it is and whoever else is at work on it.
package machine

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Patience is for what comes to pass sooner or later: far longer than it takes anywhere, for no test that passes waits for
// its end.
const Patience = 2 * time.Minute

// Until waits for something that happens elsewhere. Only a second of what passes between two looks counts: who was stopped,
// or not let run, has not been waiting, and neither has what it waits for been at work.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	left := Patience
	for last := time.Now(); !ok(); {
		if left <= 0 {
			t.Fatalf("not within %v: %s", Patience, what)
		}
		time.Sleep(time.Millisecond)
		now := time.Now()
		left -= min(now.Sub(last), time.Second)
		last = now
	}
}

// FreePort is FreeAddress's port.
func FreePort(t testing.TB) int {
	t.Helper()
	address, err := FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return int(netip.MustParseAddrPort(address).Port())
}

// FreeAddress is a loopback address that nobody listens on, for a server that cannot choose by itself, or that comes back at
// the same place. Its port is below those that the system hands out: one of these would be the next client's before the
// server has it. Nor does anybody else get it from here, in whatever process, while this one runs.
func FreeAddress() (string, error) {
	var err error
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 15_000+rand.IntN(17_000))
		var sign net.PacketConn // that it is taken: UDP's ports are not TCP's
		if sign, err = net.ListenPacket("udp", address); err != nil {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", address); err != nil {
			sign.Close()
			continue
		}
		taken.Lock()
		taken.signs = append(taken.signs, sign)
		taken.Unlock()
		return address, l.Close()
	}
	return "", err
}

// taken keeps signs from being closed with the garbage.
var taken struct {
	sync.Mutex
	signs []net.PacketConn
}

// A Stopwatch tells what is slow from a machine that is. Where a promise is of time, the time that is the machine's own does
// not count: a second is kept by nobody who is not let run.
type Stopwatch struct {
	began time.Time
	late  atomic.Int64 // by how much this process has been kept from running since, in nanoseconds
	last  atomic.Int64 // until when that is known, in nanoseconds since began
}

const tick = 5 * time.Millisecond

// Watch starts a Stopwatch, which runs until the test ends.
func Watch(t testing.TB) *Stopwatch {
	s := &Stopwatch{began: time.Now()}
	ended := t.Context().Done()
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(tick):
			}
			s.late.Add(int64(s.overdue()))
			s.last.Store(int64(s.Took()))
		}
	}()
	return s
}

// overdue is by how much this process has been kept from running and does not know it yet: who stood still until now has had
// no time to look.
func (s *Stopwatch) overdue() time.Duration {
	late := s.Took() - time.Duration(s.last.Load()) - tick
	if late <= tick/2 { // timers are not exact
		return 0
	}
	return late
}

// Took is the time since Watch.
func (s *Stopwatch) Took() time.Duration { return time.Since(s.began) }

// Excuse is how much of that may be the machine's. It is ten times what this process was kept from running, since what is
// timed is a chain of processes that wait for each other, and each of them is kept so. On a machine that has nothing else to
// do it is as good as nothing.
func (s *Stopwatch) Excuse() time.Duration { return 10 * (time.Duration(s.late.Load()) + s.overdue()) }

// Within fails the test if what has been done since Watch took longer than promised, and the machine is no excuse.
func (s *Stopwatch) Within(t testing.TB, promised time.Duration, what string) {
	t.Helper()
	took, excuse := s.Took(), s.Excuse()
	switch {
	case took <= promised:
		t.Logf("%s: %v", what, took.Round(time.Millisecond))
	case took <= promised+excuse:
		t.Logf("SKIPPED: this machine is too busy to tell whether it is within %v: %s: %v", promised, what, took.Round(time.Millisecond))
	default:
		t.Errorf("not within %v: %s: %v, of which the machine may have cost %v", promised, what, took, excuse)
	}
}
