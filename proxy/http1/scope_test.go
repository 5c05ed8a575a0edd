package http1_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-s3/sluice/proxy/http1"
)

func TestScopeIsAContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		root, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "v"), time.Minute)
		defer cancel()
		var outer, inner, other http1.Scope
		outer.Begin(root)
		inner.Begin(&outer)
		other.Begin(&outer)
		if inner.Value(key{}) != "v" {
			t.Error("the parent's values are not there")
		}
		if until, ok := inner.Deadline(); !ok || until.IsZero() {
			t.Error("the parent's deadline is not there")
		}
		derived, cancelDerived := context.WithCancel(&inner)
		defer cancelDerived()
		called, stopped := 0, 0
		context.AfterFunc(&inner, func() { called++ })
		stop := context.AfterFunc(&inner, func() { stopped++ })
		if inner.Err() != nil || derived.Err() != nil || !stop() || stop() {
			t.Fatal("ended before its end")
		}

		inner.End()
		inner.End()
		synctest.Wait()
		if !errors.Is(inner.Err(), context.Canceled) || derived.Err() == nil || called != 1 || stopped != 0 {
			t.Errorf("after its end: %v, %v, called %d and %d times", inner.Err(), derived.Err(), called, stopped)
		}
		<-inner.Done()
		if outer.Err() != nil || other.Err() != nil {
			t.Error("a child's end ended its parent or its sibling")
		}
		context.AfterFunc(&inner, func() { called++ })
		synctest.Wait()
		if called != 2 {
			t.Error("a function hung on an ended scope was not called")
		}
		done := other.Done()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		<-done
		if !errors.Is(other.Err(), context.DeadlineExceeded) || !errors.Is(outer.Err(), context.DeadlineExceeded) {
			t.Errorf("after the root's deadline: %v, %v", other.Err(), outer.Err())
		}
		var late http1.Scope
		late.Begin(&outer)
		if late.Err() == nil {
			t.Error("began in a scope that has ended")
		}
	})
}

// TestScopesEndTogether has parents and children end at once, for -race.
func TestScopesEndTogether(t *testing.T) {
	for range 200 {
		var outer http1.Scope
		outer.Begin(context.Background())
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				var inner http1.Scope
				inner.Begin(&outer)
				stop := context.AfterFunc(&inner, func() {})
				inner.Done()
				inner.End()
				stop()
			})
		}
		all.Go(outer.End)
		all.Wait()
		if outer.Err() == nil {
			t.Fatal("not ended")
		}
	}
}

// A scope may be used for another request only when nobody can have it any more.
func TestScopeIsOver(t *testing.T) {
	root, cancel := context.WithCancel(t.Context())
	defer cancel()
	for name, c := range map[string]struct {
		use  func(s *http1.Scope)
		over bool
	}{
		"unused":       {func(*http1.Scope) {}, true},
		"asked":        {func(s *http1.Scope) { s.Err(); s.Value("x"); s.Deadline() }, true},
		"waited for":   {func(s *http1.Scope) { s.Done() }, false},
		"derived from": {func(s *http1.Scope) { _, cancel := context.WithCancel(s); cancel() }, false},
		"hung on":      {func(s *http1.Scope) { context.AfterFunc(s, func() {})() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, parent := range []context.Context{context.Background(), root, begun(root)} {
				var s http1.Scope
				s.Begin(parent)
				c.use(&s)
				if s.Over() {
					t.Error("over before its end")
				}
				s.End()
				s.End()
				if s.Over() != c.over {
					t.Errorf("over: %v", s.Over())
				}
			}
		})
	}
	for _, parent := range []context.Context{root, begun(root)} {
		var s http1.Scope
		s.Begin(parent)
		cancel()
		<-parent.Done()
		s.End()
		if s.Over() {
			t.Error("over, though its parent tells, or has told, of its end")
		}
	}
}

func begun(parent context.Context) *http1.Scope {
	s := new(http1.Scope)
	s.Begin(parent)
	return s
}
