package policy

import (
	"context"

	"github.com/open-policy-agent/opa/v1/ast"
)

type astValue = ast.Value

// Load opens a directory without watching it.
func Load(ctx context.Context, dir string) (*Engine, error) {
	e, err := newEngine(Config{Dir: dir}, nil)
	if err == nil {
		err = e.reload(ctx)
	}
	return e, err
}

// DecidePlain decides by OPA alone.
func (e *Engine) DecidePlain(ctx context.Context, q *Question) (*Decision, error) {
	ev := e.evaluation(ctx, q)
	ev.plain = true
	return e.current.Load().decide(ev, q)
}

// AllowedPlain is Allowed by OPA alone.
func (e *Engine) AllowedPlain(ctx context.Context, q *Question) ([]bool, error) {
	ev := e.evaluation(ctx, q)
	ev.plain = true
	return e.current.Load().allowed(ev, q)
}

// Fast tells which of the questions about allow, terms and reasons the program answers without OPA.
func (e *Engine) Fast(q *Question) (fast [3]bool) {
	s := e.current.Load()
	m := s.program.machine(e.evaluation(context.Background(), q), q, 0)
	if m == nil {
		return fast
	}
	defer m.release()
	m.begin(&q.Accesses[0])
	for stage := range fast {
		fast[stage] = m.answer(stage, func(string, astValue) {})
	}
	return fast
}

// Unknown says why OPA must answer for a rule.
func (e *Engine) Unknown() map[string]string {
	list := map[string]string{}
	for name, rs := range e.current.Load().program.rules {
		if rs.unknown != nil {
			list[name] = rs.unknown.Error()
		}
	}
	return list
}
