package http1

import (
	"context"
	"sync"
	"time"
)

// Scope is a context of one request in progress, at the price of a lock: package context's costs a handful of
// allocations for each, a map among them where it has children, and a request needs three. Its zero value MUST be begun
// first, and it MUST NOT be used for another request unless it is Over.
//
// Whoever takes it for a plain context.Context gets one: package context knows AfterFunc.
type Scope struct {
	parent context.Context
	self   watch // of the parent's end, where that is a Scope
	leave  func() bool

	mu      sync.Mutex // guards what follows
	err     error      // why it has ended; nil = it has not
	left    bool       // the parent will not tell of its end
	done    chan struct{}
	hung    bool  // something of package context's was hung on it
	watches watch // the head of a list
}

// watch is one who wants to know of a Scope's end.
type watch struct {
	previous, next *watch // nil next: not in the list
	of             ender
}

// ender is told, once and without a lock being held, and MUST NOT block.
type ender interface{ scopeEnded(err error) }

// Begin makes s a scope that ends with its parent at the latest.
func (s *Scope) Begin(parent context.Context) {
	s.parent = parent
	s.watches.next, s.watches.previous = &s.watches, &s.watches
	switch parent := parent.(type) {
	case *Scope:
		if err := parent.join(&s.self, s); err != nil {
			s.scopeEnded(err)
		}
	default:
		if parent.Done() != nil {
			s.leave = context.AfterFunc(parent, func() { s.scopeEnded(parent.Err()) })
		}
	}
}

// End ends s and all that came of it. Only the first call does anything.
func (s *Scope) End() {
	left := false
	switch parent := s.parent.(type) {
	case *Scope:
		left = parent.drop(&s.self)
	default:
		left = s.leave == nil || s.leave()
	}
	s.mu.Lock()
	s.left = s.left || left
	s.mu.Unlock()
	s.scopeEnded(context.Canceled)
}

// Over tells, to who has called End, that nobody has s any more: neither its parent nor a context that came of it.
func (s *Scope) Over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left && s.err != nil && s.done == nil && !s.hung
}

func (s *Scope) scopeEnded(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	if s.done != nil {
		close(s.done)
	}
	for s.watches.next != &s.watches {
		w := s.watches.next
		w.unlink()
		s.mu.Unlock()
		w.of.scopeEnded(err)
		s.mu.Lock()
	}
	s.mu.Unlock()
}

// join has of told of the end, unless drop is called before. An error is that it has come already.
func (s *Scope) join(w *watch, of ender) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	w.of = of
	w.previous, w.next = s.watches.previous, &s.watches
	w.previous.next, w.next.previous = w, w
	return nil
}

// drop tells whether w was still waiting: if not, who joined has been or is being told.
func (s *Scope) drop(w *watch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.next == nil {
		return false
	}
	w.unlink()
	return true
}

func (w *watch) unlink() {
	w.previous.next, w.next.previous = w.next, w.previous
	w.previous, w.next = nil, nil
}

// called is a function of package context's, run as its contract says.
type called func()

func (f called) scopeEnded(error) { go f() }

// AfterFunc is how package context hangs its own contexts on this one: see context.AfterFunc.
func (s *Scope) AfterFunc(f func()) (stop func() bool) {
	s.mu.Lock()
	s.hung = true
	s.mu.Unlock()
	w := new(watch)
	if s.join(w, called(f)) != nil {
		go f()
		return func() bool { return false }
	}
	return func() bool { return s.drop(w) }
}

func (s *Scope) Deadline() (time.Time, bool) { return s.parent.Deadline() }
func (s *Scope) Value(key any) any           { return s.parent.Value(key) }

func (s *Scope) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.err != nil {
			close(s.done)
		}
	}
	return s.done
}

func (s *Scope) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
