package policy

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Engine decides by the policy in force.
type Engine struct {
	entrypoint string
	source     source
	deadline   time.Duration // of one question's evaluation
	shadow     *Engine       // nil where none is configured
	onReload   func(Status)
	current    atomic.Pointer[snapshot]
	watching   sync.WaitGroup

	// loading lets one load run at a time. It is held while the source reads, which may take as long as a network does.
	loading sync.Mutex

	// mu guards what Status tells. current is written under it too.
	mu      sync.Mutex
	err     error
	checked time.Time
}

// source is where policy comes from. Whatever it reads it gives to Engine.offer.
type source interface {
	// load reads the policy now.
	load(ctx context.Context) error
	// watch calls reload whenever the policy may have changed, until ctx ends.
	watch(ctx context.Context, reload func())
}

// Open loads the policy and keeps it current until ctx ends. It fails where there is no good policy to start with.
// onReload, which may be nil, hears of every new revision and of every failure to load one, in order; it MUST NOT
// call Reload.
func Open(ctx context.Context, c Config, onReload func(Status)) (*Engine, error) {
	if err := c.problems(); err != nil {
		return nil, err
	}
	e, err := newEngine(c, onReload)
	if err != nil {
		return nil, err
	}
	if c.Shadow != nil {
		e.shadow = newShadow(e, *c.Shadow)
	}
	if err := e.reload(ctx); err != nil && e.current.Load() == nil {
		return nil, err
	}
	e.watching.Go(func() { e.source.watch(ctx, func() { e.reload(ctx) }) })
	if e.shadow != nil && e.shadow.source != nil {
		e.watching.Go(func() {
			e.shadow.reload(ctx)
			e.shadow.source.watch(ctx, func() { e.shadow.reload(ctx) })
		})
	}
	return e, nil
}

// Wait returns when all that Open started has ended, once its ctx has.
func (e *Engine) Wait() { e.watching.Wait() }

func newEngine(c Config, onReload func(Status)) (*Engine, error) {
	e := &Engine{entrypoint: c.entrypoint(), onReload: onReload, deadline: evalDeadline}
	switch {
	case c.Dir != "":
		e.source = &dirSource{dir: c.Dir, offer: e.offer}
		return e, nil
	case c.Git != nil:
		s, err := newGitSource(*c.Git, e.offer)
		e.source = s
		return e, err
	}
	s, err := newOPASource(c.OPA, e.offer, func(err error) { e.report(nil, err, err == nil) }, func() bool { return e.current.Load() != nil })
	e.source = s
	return e, err
}

func (e *Engine) evaluation(ctx context.Context, q *Question) evaluation {
	return newEvaluation(ctx, q, e.deadline)
}

var errNoPolicy = errors.New("no policy is loaded")

// Decide asks policy about every access. An error means that nothing was decided: refuse. The decision MUST NOT be
// changed: another question may get the same.
func (e *Engine) Decide(ctx context.Context, q *Question) (*Decision, error) {
	s := e.current.Load()
	if s == nil {
		return nil, errNoPolicy
	}
	d, err := e.decideBy(ctx, s, q)
	if err == nil && e.shadow != nil {
		mine := *d
		mine.Shadow = e.shadow.shadowOf(ctx, q, d)
		return &mine, nil
	}
	return d, err
}

func (e *Engine) decideBy(ctx context.Context, s *snapshot, q *Question) (*Decision, error) {
	if d := s.atOnce(q); d != nil {
		return d, nil
	}
	return s.decide(e.evaluation(ctx, q), q)
}

// Allowed reports for each of the accesses by itself whether it is allowed (ListBuckets, listings).
func (e *Engine) Allowed(ctx context.Context, q *Question) ([]bool, error) {
	s := e.current.Load()
	if s == nil {
		return nil, errNoPolicy
	}
	return s.allowed(e.evaluation(ctx, q), q)
}

// VisibleKeys tells for each key, or common prefix, of a listing whether s3:GetObject on it would be allowed. q is
// the listing's question: its first access names the bucket and the backend.
func (e *Engine) VisibleKeys(ctx context.Context, q *Question, keys []string) ([]bool, error) {
	s := e.current.Load()
	if s == nil {
		return nil, errNoPolicy
	}
	return s.visible(e.evaluation(ctx, q), q, keys)
}

// Status is the health of the policy.
type Status struct {
	Revision string
	Loaded   time.Time // when the policy in force was loaded
	Checked  time.Time // when its source last had no other: how old the policy may be
	Err      error     // why the newest could not be loaded; nil = in force
	Mistyped []Finding // rules of which a value is never understood, so that they refuse
	Shadow   *Status   // nil where no shadow policy is configured
}

// Status tells what is in force now.
func (e *Engine) Status() Status {
	e.mu.Lock()
	st := e.status()
	e.mu.Unlock()
	if e.shadow != nil {
		shadow := e.shadow.Status()
		st.Shadow = &shadow
	}
	return st
}

func (e *Engine) status() Status {
	st := Status{Err: e.err, Checked: e.checked}
	if s := e.current.Load(); s != nil {
		st.Revision, st.Loaded, st.Mistyped = s.revision, s.loaded, s.mistyped
	}
	return st
}

// Revision is that of the policy in force, "" where there is none.
func (e *Engine) Revision() string {
	if s := e.current.Load(); s != nil {
		return s.revision
	}
	return ""
}

// Reload loads the policy again now; the old one stays in force where that fails. The shadow is loaded too, but
// what becomes of it is told by Status alone.
func (e *Engine) Reload(ctx context.Context) error {
	err := e.reload(ctx)
	if e.shadow != nil {
		e.shadow.reload(ctx)
	}
	return err
}

func (e *Engine) reload(ctx context.Context) error {
	if e.source == nil {
		return errNoPolicy
	}
	e.loading.Lock()
	defer e.loading.Unlock()
	err := e.source.load(ctx)
	if err != nil && ctx.Err() == nil {
		e.report(nil, err, false)
	}
	return err
}

// offer puts a policy in force, or says why it cannot be.
func (e *Engine) offer(f *files) error {
	if s := e.current.Load(); s != nil && s.revision == f.revision && (!f.fresh || f.same(s.files)) {
		e.report(s, nil, !f.kept)
		return nil
	}
	s, err := newSnapshot(f, e.entrypoint, time.Now())
	if err == nil {
		e.report(s, nil, !f.kept)
	}
	return err
}

// report notes what came of a load: s, if not nil, is in force from now on, and checked tells that it is the newest there
// is. onReload hears of it where it is news.
func (e *Engine) report(s *snapshot, err error, checked bool) {
	e.mu.Lock()
	news := s != nil && s != e.current.Load() || errorText(err) != errorText(e.err)
	if s != nil {
		e.current.Store(s)
	}
	e.err = err
	if checked {
		e.checked = time.Now()
	}
	e.mu.Unlock()
	if news && e.onReload != nil {
		e.onReload(e.Status())
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
