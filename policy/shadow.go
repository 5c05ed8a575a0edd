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
		*s = ShadowDecision{Differs: decided.Allow, Revision: s.Revision, Error: fmt.Sprint(err)}
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
	d, err := current.decide(e.evaluation(ctx, q), q)
	if err != nil {
		fail(err)
		return s
	}
	s.Allow, s.Reasons, s.Role = d.Allow, d.Reasons, d.Role
	s.Differs = d.differs(decided)
	return s
}

// differs: some access would be decided otherwise, or what is allowed would be on other terms.
func (d *Decision) differs(o *Decision) bool {
	same := slices.EqualFunc(d.Verdicts, o.Verdicts, func(a, b Verdict) bool { return a.Allow == b.Allow })
	return !same || d.Allow != o.Allow || d.Role != o.Role || !bytes.Equal(d.SessionPolicy, o.SessionPolicy) ||
		d.Limits != o.Limits || d.FilterListing != o.FilterListing
}
