package proxy

import (
	"sync"
	"time"
)

// calls are the requests in progress, and who looks after them: a round every so often costs a request a place in a
// list, where a timer of its own would cost ten times that.
type calls struct {
	idle time.Duration // how long neither side may move a byte

	mu     sync.Mutex // guards what follows, and each call's place
	head   place      // of a list
	rounds *time.Timer
	going  bool // a round is to come
}

// place is a call's in the list, and what its last round saw.
type place struct {
	previous, next *place
	call           *call
	seen           int64 // its progress then
	quiet          int   // rounds since there was any
}

// idleRounds is how many rounds see no progress before a call is cut: it may be up to a round late.
const idleRounds = 8

func newCalls(idle time.Duration) *calls {
	all := &calls{idle: idle}
	all.head.next, all.head.previous = &all.head, &all.head
	all.rounds = time.AfterFunc(time.Hour, all.round)
	all.rounds.Stop()
	return all
}

func (all *calls) enter(c *call) {
	p := &c.place
	p.call, p.seen, p.quiet = c, 0, 0
	all.mu.Lock()
	defer all.mu.Unlock()
	p.previous, p.next = all.head.previous, &all.head
	p.previous.next, p.next.previous = p, p
	if !all.going {
		all.going = true
		all.rounds.Reset(all.idle / idleRounds)
	}
}

func (all *calls) leave(c *call) {
	p := &c.place
	all.mu.Lock()
	defer all.mu.Unlock()
	p.previous.next, p.next.previous = p.next, p.previous
	p.previous, p.next = nil, nil
}

// round cuts the calls that have been quiet for too long. There is another as long as there are calls.
func (all *calls) round() {
	all.mu.Lock()
	defer all.mu.Unlock()
	for p := all.head.next; p != &all.head; p = p.next {
		c := p.call
		if now := c.progress.Load(); now != p.seen || c.paced.Load() > 0 {
			p.seen, p.quiet = now, 0
		} else if p.quiet++; p.quiet == idleRounds {
			c.cut(cutIdle) // takes a lock of the call's own, and none that waits for this one
		}
	}
	if all.going = all.head.next != &all.head; all.going {
		all.rounds.Reset(all.idle / idleRounds)
	}
}
