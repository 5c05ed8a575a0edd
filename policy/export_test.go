package policy

import (
	"context"
	"time"
)

// Load opens a directory without watching it.
func Load(ctx context.Context, dir string) (*Engine, error) {
	e, err := newEngine(Config{Dir: dir}, nil)
	if err == nil {
		err = e.reload(ctx)
	}
	return e, err
}

// Patient has e, and its shadow, take an hour to decide: an answer that was late because the machine is busy, or stood still,
// is another.
func Patient(e *Engine) {
	e.deadline = time.Hour
	if e.shadow != nil {
		e.shadow.deadline = time.Hour
	}
}

// Impatient has them take no longer than they do, once tests have made them patient.
func Impatient(e *Engine) {
	e.deadline = evalDeadline
	if e.shadow != nil {
		e.shadow.deadline = shadowDeadline
	}
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
	in := s.asking(e.evaluation(context.Background(), q), q)
	defer in.end()
	if !in.fast {
		return fast
	}
	in.begin(&q.Accesses[0])
	for stage := range fast {
		fast[stage] = in.machine.answer(stage, &answer{})
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

// Placed tells whether the place of the question's first access is known, and how many rule bodies are left there.
func (e *Engine) Placed(q *Question) (known bool, left int) {
	in := e.current.Load().asking(e.evaluation(context.Background(), q), q)
	defer in.end()
	if !in.fast {
		return false, 0
	}
	in.begin(&q.Accesses[0])
	if in.machine.place == nil {
		return false, 0
	}
	for _, r := range in.machine.place.rules {
		left += len(r.left)
	}
	return true, left
}

// SameHash lets two subjects meet in one slot.
func SameHash(a, b *Question) { b.Subject.hash = a.Subject.hash }

// Places is how many places are kept.
func (e *Engine) Places() (kept int) {
	places := e.current.Load().program.places
	for i := range places.slots {
		if places.slots[i].place.Load() != nil {
			kept++
		}
	}
	return kept
}

// Paged is the engine with a page for listings, whether it would have one or not. An error says why none can be.
func (e *Engine) Paged() (*Engine, error) {
	s := *e.current.Load()
	modules, _, err := s.files.parse(capabilities())
	if err == nil {
		s.page, err = newPage(s.compiler, modules, s.data, s.entry)
	}
	if err != nil {
		return nil, err
	}
	paged := &Engine{entrypoint: e.entrypoint, deadline: e.deadline}
	paged.current.Store(&s)
	return paged, nil
}

// VisiblePage judges keys by the page alone.
func (e *Engine) VisiblePage(ctx context.Context, q *Question, keys []string) ([]bool, error) {
	s := e.current.Load()
	read := readOf(q)
	ev := e.evaluation(ctx, q)
	return s.visiblePage(&ev, &read, keys)
}

// VisibleKeysPlain is VisibleKeys by OPA alone, key by key.
func (e *Engine) VisibleKeysPlain(ctx context.Context, q *Question, keys []string) ([]bool, error) {
	ev := e.evaluation(ctx, q)
	ev.plain = true
	return e.current.Load().visible(ev, q, keys)
}

// AtOnce tells whether the question is allowed by grounds alone.
func (e *Engine) AtOnce(q *Question) bool { return e.current.Load().atOnce(q) != nil }
