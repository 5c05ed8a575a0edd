package policy

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
)

// newShadow makes the engine of e's candidate. Whatever becomes of it is told by Status and by each ShadowDecision,
// and nothing else: a candidate that cannot be loaded keeps nobody from starting.
func newShadow(e *Engine, c Config) *Engine {
	if c.Entrypoint == "" {
		c.Entrypoint = e.entrypoint
	}
	// It is news of the policy: whoever listens hears the Status of both.
	shadow, err := newEngine(c, func(Status) {
		if e.onReload != nil {
			e.onReload(e.Status())
		}
	})
	shadow.deadline = shadowDeadline
	if err != nil {
		shadow.source, shadow.err = nil, err
	}
	return shadow
}

// shadowOf compares what the candidate says with what was decided. Nothing that happens to the candidate gets out.
func (e *Engine) shadowOf(ctx context.Context, q *Question, decided *Decision) (s *ShadowDecision) {
	s = &ShadowDecision{}
	fail := func(err any) {
		nothing := &Decision{Verdicts: make([]Verdict, len(decided.Verdicts))}
		*s = ShadowDecision{Differs: nothing.differs(decided, q), Revision: s.Revision, Error: fmt.Sprint(err)}
	}
	defer func() {
		if p := recover(); p != nil {
			fail(p)
		}
	}()
	current := e.current.Load()
	if current == nil {
		fail(cmp.Or(e.Status().Err, errNoPolicy))
		s.Differs = false // there is no candidate yet
		return s
	}
	s.Revision = current.revision
	d, err := e.decideBy(ctx, current, q)
	if err != nil {
		fail(err)
		return s
	}
	s.Allow, s.Reasons, s.Role, s.Limits = d.Allow, d.Reasons, d.Role, d.Limits
	s.Differs = d.differs(decided, q)
	return s
}

// differs: the caller would get something else, or get it on other terms.
func (d *Decision) differs(o *Decision, q *Question) bool {
	gets := q.granted(func(i int) bool { return d.Verdicts[i].Allow })
	got := q.granted(func(i int) bool { return o.Verdicts[i].Allow })
	return !slices.Equal(gets, got) || slices.Contains(gets, true) &&
		(d.Role != o.Role || !bytes.Equal(d.SessionPolicy, o.SessionPolicy) || d.Limits != o.Limits || d.FilterListing != o.FilterListing)
}

// granted tells of each access whether the caller gets what it is for, when policy answers so. A request is granted
// as a whole, and one access that is refused refuses it: which, is the same to the caller. Only DeleteObjects is
// granted in part, an entry by all that it needs.
func (q *Question) granted(allow func(i int) bool) []bool {
	type entry struct{ key, version string }
	refused := map[entry]bool{}
	entryOf := func(i int) (e entry) {
		if q.Operation == "DeleteObjects" {
			e = entry{q.Accesses[i].Key, q.Accesses[i].VersionID}
		}
		return e
	}
	for i := range q.Accesses {
		if !allow(i) {
			refused[entryOf(i)] = true
		}
	}
	granted := make([]bool, len(q.Accesses))
	for i := range granted {
		granted[i] = !refused[entryOf(i)]
	}
	return granted
}
