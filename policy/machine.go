package policy

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/builtins"
)

// maxSteps bounds what a machine tries: what takes longer is OPA's, which has a deadline.
const maxSteps = 100_000

// known is what of a program depends on the identity alone.
type known struct {
	of    *token
	paths []value // by number
	rules []result
}

// token tells programs apart. A subject that is not heard of again must not keep an old policy, and all its data, in
// memory, so it holds this rather than the program.
type token struct{ _ byte }

// result is the value of a rule set, once it is known.
type result struct {
	value  value
	known  bool
	gaveUp bool
	turn   uint64 // for those of one access: which
}

// subjectCache holds what is known of a subject: for the policy in force, and for its shadow.
type subjectCache [2]atomic.Pointer[known]

// know evaluates what depends on the identity alone.
func (p *program) know(subject *Subject, slot int) *known {
	if k := subject.known[slot].Load(); k != nil && k.of == p.token {
		return k
	}
	k := &known{of: p.token, paths: make([]value, len(p.idPaths)), rules: make([]result, len(p.order))}
	for i, path := range p.idPaths {
		if v, err := subject.identity.Value.Find(path); err == nil {
			k.paths[i] = valueOf(v)
		}
	}
	m := newMachine()
	m.program, m.known, m.results, m.turn = p, k, make([]result, len(p.order)), 1
	for _, rs := range p.order {
		if rs.deps == 0 {
			k.rules[rs.number] = m.knowOne(rs)
		}
	}
	subject.known[slot].Store(k)
	return k
}

func (m *machine) knowOne(rs *ruleSet) (r result) {
	defer func() {
		if recover() != nil {
			r = result{known: true, gaveUp: true}
		}
	}()
	m.gaveUp, m.steps, m.stack, m.yields = false, 0, m.stack[:0], m.yields[:0]
	v := m.evaluate(rs, nil)
	return result{value: v, known: true, gaveUp: m.gaveUp}
}

// machine runs a program for one question at a time.
type machine struct {
	program  *program
	known    *known
	question *Question
	eval     *evaluation
	identity *ast.Term

	fields  [len(accessFields)]string // of the access
	access  *Access
	whole   *ast.Term // `input`, where it is asked for as a whole
	request *ast.Term // `input.request`, once it is asked for

	stack   []value
	yields  []yield
	results []result // by rule set
	turn    uint64   // which access the results are of
	gaveUp  bool
	steps   int
	text    []byte
	key     ast.Term
	builtin topdown.BuiltinContext // for functions that know neither the time nor a limit
}

func newMachine() *machine {
	return &machine{builtin: topdown.BuiltinContext{
		Context: context.Background(), Metrics: metrics.NoOp(), Cancel: topdown.NewCancel(), Cache: builtins.Cache{}, Location: &ast.Location{},
	}}
}

// noMembers is the empty set: nobody adds to a value.
var noMembers = value{v: ast.NewSet()}

// yield collects what the bodies of one rule set produce.
type yield struct {
	value    value
	set      ast.Set
	produced bool // by the body that runs
}

var machines = sync.Pool{New: func() any { return newMachine() }}

// machine is nil where OPA must answer.
func (p *program) machine(e *evaluation, q *Question, slot int) *machine {
	if p == nil || p.stages[stageAllow] == nil {
		return nil
	}
	m := machines.Get().(*machine)
	m.program, m.question, m.eval, m.identity = p, q, e, q.Subject.identity
	m.known = p.know(q.Subject, slot)
	if len(m.results) < len(p.order) {
		m.results = make([]result, len(p.order))
	}
	return m
}

// release gives the machine back. Its results are never read again, for the turn ends here; what they hold is kept
// no longer than the pool keeps the machine.
func (m *machine) release() {
	m.program, m.known, m.question, m.eval, m.identity, m.access, m.whole, m.request = nil, nil, nil, nil, nil, nil, nil, nil
	machines.Put(m)
}

// begin turns to another access.
func (m *machine) begin(a *Access) {
	m.turn++
	m.access, m.whole = a, nil
	m.fields = [...]string{a.Action, m.question.Operation, a.Bucket, a.Key, a.VersionID, a.Prefix, a.Delimiter, a.Backend}
	m.steps = 0
}

// answer gives each defined rule of a stage to found, or reports that OPA must answer.
func (m *machine) answer(stage int, found func(name string, v ast.Value)) bool {
	rules := m.program.stages[stage]
	if rules == nil {
		return false
	}
	var values [4]value
	if !m.evaluateAll(rules, values[:]) {
		return false
	}
	for i, r := range rules {
		if values[i].defined() {
			found(r.name, values[i].ast())
		}
	}
	return true
}

// evaluateAll reports whether it could. A panic is only one more way of giving up.
func (m *machine) evaluateAll(rules []namedRules, values []value) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	m.gaveUp, m.stack, m.yields = false, m.stack[:0], m.yields[:0]
	for i, r := range rules {
		values[i] = m.ruleValue(r.rules)
		if m.gaveUp {
			return false
		}
	}
	return true
}

func (m *machine) giveUp() value {
	m.gaveUp = true
	return value{}
}

// ruleValue is the value of a rule set without arguments, evaluated once for each access, or for each identity.
func (m *machine) ruleValue(rs *ruleSet) value {
	r := &m.results[rs.number]
	if rs.deps == 0 {
		r = &m.known.rules[rs.number]
		if !r.known { // while know works its way up
			v := m.evaluate(rs, nil)
			return v
		}
	} else if r.turn != m.turn {
		v := m.evaluate(rs, nil)
		if m.gaveUp {
			return value{}
		}
		m.results[rs.number] = result{value: v, turn: m.turn}
		return v
	}
	if r.gaveUp {
		return m.giveUp()
	}
	return r.value
}

// callRules is the value of a function for its arguments.
func (m *machine) callRules(rs *ruleSet, args []getter, base int) value {
	var few [4]value
	values := few[:0]
	for _, arg := range args {
		v := arg(m, base)
		if !v.defined() || m.gaveUp {
			return value{}
		}
		values = append(values, v)
	}
	return m.evaluate(rs, values)
}

// evaluate tries the bodies of a rule set.
func (m *machine) evaluate(rs *ruleSet, args []value) value {
	if m.steps++; m.steps > maxSteps {
		return m.giveUp()
	}
	n := len(m.yields)
	m.yields = append(m.yields, yield{})
	for i := range rs.bodies {
		b := &rs.bodies[i]
		if rs.constant && m.yields[n].value.defined() && !b.fallible {
			continue
		}
		for ; b != nil; b = b.orElse {
			m.yields[n].produced = false
			m.runBody(b, args)
			if m.gaveUp {
				m.yields = m.yields[:n]
				return value{}
			}
			if m.yields[n].produced {
				break
			}
		}
	}
	y := m.yields[n]
	m.yields = m.yields[:n]
	switch {
	case rs.set && y.set == nil:
		return noMembers
	case rs.set:
		return value{v: y.set}
	case y.value.defined():
		return y.value
	}
	return rs.fallback
}

func (m *machine) runBody(b *body, args []value) {
	base := len(m.stack)
	if need := base + b.slots; need <= cap(m.stack) {
		m.stack = m.stack[:need] // a slot is always written before it is read
	} else {
		m.stack = append(m.stack, make([]value, b.slots)...)
	}
	matched := true
	for i, arg := range b.args {
		if matched = arg(m, base, args[i]); !matched {
			break
		}
	}
	if matched {
		b.run(m, base)
	}
	m.stack = m.stack[:base]
}

// yieldValue ends a body of a rule with one value. Two different ones are a conflict.
func yieldValue(get getter, constant bool) node {
	return func(m *machine, base int) bool {
		v := get(m, base)
		if m.gaveUp {
			return true
		}
		if !v.defined() {
			return false
		}
		y := &m.yields[len(m.yields)-1]
		if y.value.defined() && !y.value.equal(v) {
			m.giveUp()
			return true
		}
		y.value, y.produced = v, true
		return constant
	}
}

// yieldMember ends a body of a set.
func yieldMember(get getter) node {
	return func(m *machine, base int) bool {
		v := get(m, base)
		if m.gaveUp {
			return true
		}
		if !v.defined() {
			return false
		}
		y := &m.yields[len(m.yields)-1]
		if y.set == nil {
			y.set = ast.NewSet()
		}
		y.set.Add(ast.NewTerm(v.ast()))
		y.produced = true
		return false
	}
}

func (m *machine) stepKey(s *step, base int) value {
	switch {
	case s.key != nil:
		return valueOf(s.key.Value)
	case s.get != nil:
		return s.get(m, base)
	}
	return m.stack[base+s.to]
}

// child is the value below key; term is the key's where there is one.
func (m *machine) child(v, key value, term *ast.Term) value {
	if !key.defined() {
		return value{}
	}
	if term == nil {
		term = &m.key // nobody keeps it
		term.Value = key.ast()
	}
	switch of := v.document().(type) {
	case ast.Object:
		// OPA finds data["1"] by data[1].
		if _, isNumber := key.v.(ast.Number); isNumber {
			return m.giveUp()
		}
		if found := of.Get(term); found != nil {
			return valueOf(found.Value)
		}
	case *ast.Array:
		if key.str {
			return m.giveUp() // and data[0] by data["0"]
		}
		if found := of.Get(term); found != nil {
			return valueOf(found.Value)
		}
	case ast.Set:
		if of.Contains(term) {
			return key
		}
	}
	return value{}
}

// each follows the steps of a reference, binding variables to every key, and calls then for each value it finds.
func (m *machine) each(v value, steps []step, base int, then func(*machine, int, value) bool) bool {
	for i := range steps {
		s := &steps[i]
		if s.to < 0 {
			if v = m.child(v, m.stepKey(s, base), s.key); !v.defined() {
				return m.gaveUp
			}
			continue
		}
		rest := steps[i+1:]
		visit := func(key, elem value) bool {
			if m.steps++; m.steps > maxSteps {
				m.giveUp()
				return true
			}
			m.stack[base+s.to] = key
			return m.each(elem, rest, base, then) || m.gaveUp
		}
		switch of := v.document().(type) {
		case ast.Object:
			return of.Until(func(k, elem *ast.Term) bool { return visit(valueOf(k.Value), valueOf(elem.Value)) })
		case *ast.Array:
			for n := range of.Len() {
				if visit(value{v: ast.Number(json.Number(strconv.Itoa(n)))}, valueOf(of.Elem(n).Value)) {
					return true
				}
			}
		case ast.Set:
			return of.Until(func(elem *ast.Term) bool { return visit(valueOf(elem.Value), valueOf(elem.Value)) })
		}
		return false
	}
	return then(m, base, v) || m.gaveUp
}

func (m *machine) requestTerm() *ast.Term {
	if m.request == nil {
		m.request = requestTerm(m.question.Request)
	}
	return m.request
}

func (m *machine) input() *ast.Term {
	if m.whole == nil {
		m.whole = accessInput(m.access, stringTerm(m.question.Operation), m.identity, m.requestTerm())
	}
	return m.whole
}
