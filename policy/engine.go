package policy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Engine decides by the policy in force.
type Engine struct {
	config   Config
	onReload func(Status)
	current  atomic.Pointer[snapshot]

	// mu guards the loading, one at a time, and err.
	mu  sync.Mutex
	err error
}

// Open loads the policy and keeps it current until ctx ends. It fails where there is no good policy to start with.
func Open(ctx context.Context, c Config, onReload func(Status)) (*Engine, error) {
	if c.Entrypoint == "" {
		c.Entrypoint = "s3/authz"
	}
	e := &Engine{config: c, onReload: onReload}
	if err := e.Reload(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// Decide asks policy about every access. An error means that nothing was decided: refuse.
func (e *Engine) Decide(ctx context.Context, q *Question) (*Decision, error) {
	return e.current.Load().decide(ctx, q)
}

// Allowed reports for each of the accesses by itself whether it is allowed (ListBuckets, listings).
func (e *Engine) Allowed(ctx context.Context, q *Question) ([]bool, error) {
	return e.current.Load().allowed(ctx, q)
}

// Status is the health of the policy.
type Status struct {
	Revision string
	Loaded   time.Time // when the policy in force was loaded
	Err      error     // why the newest could not be loaded; nil = in force
}

// Status tells what is in force now.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status()
}

func (e *Engine) status() Status {
	s := e.current.Load()
	return Status{Revision: s.revision, Loaded: s.loaded, Err: e.err}
}

// Reload loads the policy again now; the old one stays in force where that fails.
func (e *Engine) Reload(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	f, err := readDir(e.config.Dir)
	if err != nil {
		e.err = err
		return err
	}
	s, err := newSnapshot(f, e.config.Entrypoint, time.Now())
	if err != nil {
		e.err = err
		return err
	}
	e.err = nil
	e.current.Store(s)
	return nil
}
