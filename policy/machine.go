package policy

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/builtins"
)

// maxSteps bounds what a machine tries: what takes longer is OPA's, which has a deadline.
const maxSteps = 100_000

// machine runs a program for one question at a time.
type machine struct {
	program  *program
	subject  *Subject
	question *Question
	eval     *evaluation

	fields  [len(accessFields)]string // of the access
	access  *Access
	whole   value  // `input`, where it is asked for as a whole
	request value  // `input.request`, once it is asked for
	time    string // `input.request.time`, the same

	place   *place // where the access is; nil = nothing is known of it
	placing bool   // the place is being found out about: what varies within it MUST NOT be read
	reached int    // the expression that the body has come to, while placing

	stack   []value
	yields  []yield
	results []result // by rule set
	turn    uint64   // which access the results are of
	since   uint64   // the question's first
	gaveUp  bool
	steps   int
	text    []byte
	parts   []string // of what was split
	lists   [8]texts // that hold them
	used    [2]int   // how many of parts and lists are
	kept    [2]int   // how many of these are kept for the question's other accesses
	key     ast.Term
	builtin topdown.BuiltinContext // for functions that know neither the time nor a limit
}

// result is the value of a rule set, once it is known.
type result struct {
	value value
	turn  uint64
}

// noMembers is the empty set: nobody adds to a value.
var noMembers = value{v: ast.NewSet()}

// yield collects what the bodies of one rule set produce.
type yield struct {
	value    value
	set      ast.Set
	produced bool // by the body that runs
}

// decides tells whether there is anything that OPA need not answer.
func (p *program) decides() bool { return p != nil && p.stages[stageAllow] != nil }

// start turns to another question. It reports whether the program can answer any of it.
func (m *machine) start(p *program, e *evaluation, q *Question) bool {
	if !p.decides() {
		return false
	}
	if m.builtin.Context == nil {
		m.builtin = topdown.BuiltinContext{
			Context: context.Background(), Metrics: metrics.NoOp(), Cancel: topdown.NewCancel(), Cache: builtins.Cache{}, Location: &ast.Location{},
		}
	}
	m.program, m.subject, m.question, m.eval = p, q.Subject, q, e
	if len(m.results) < len(p.order) {
		m.results = make([]result, len(p.order))
	}
	m.kept = [2]int{}
	m.since = m.turn + 1 // results of the question before are never read again
	return true
}

// end lets go of the question. What is left in slots and results is kept no longer than the machine itself.
func (m *machine) end() {
	m.program, m.subject, m.question, m.eval, m.access, m.place = nil, nil, nil, nil, nil, nil
	m.whole, m.request, m.time = value{}, value{}, ""
}

// begin turns to another access.
func (m *machine) begin(a *Access) {
	m.turn++
	m.used = m.kept
	m.access, m.whole = a, value{}
	m.fields = [...]string{a.Action, m.question.Operation, a.Bucket, a.Backend, a.Key, a.VersionID, a.Prefix, a.Delimiter}
	m.place = m.program.places.find(m)
	m.steps = 0
}

// answer has a take each defined rule of a stage, or reports that OPA must answer.
func (m *machine) answer(stage int, a *answer) bool {
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
			a.take(r.rule, values[i])
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

// ruleValue is the value of a rule set without arguments, evaluated once for each access, or for each question.
func (m *machine) ruleValue(rs *ruleSet) value {
	var at *placed
	if m.place != nil {
		at = &m.place.rules[rs.number]
		if at.known {
			return at.value
		}
		if m.placing {
			return m.unplaced()
		}
	}
	r, since := &m.results[rs.number], m.turn
	if rs.deps&onAccess == 0 {
		since = m.since
	}
	if r.turn >= since {
		return r.value
	}
	var v value
	if at != nil {
		v = m.evaluateLeft(rs, at.left)
	} else {
		v = m.evaluate(rs, nil)
	}
	if m.gaveUp {
		return value{}
	}
	*r = result{v, m.turn}
	if rs.deps&onAccess == 0 {
		m.kept = m.used // it may be made of them
	}
	return v
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
		m.try(b, args)
		if m.gaveUp {
			break
		}
	}
	return m.collect(rs)
}

// evaluateLeft tries what is left of the bodies of a rule set in a place.
func (m *machine) evaluateLeft(rs *ruleSet, left []leftBody) value {
	if m.steps++; m.steps > maxSteps {
		return m.giveUp()
	}
	n := len(m.yields)
	m.yields = append(m.yields, yield{})
	for i := range left {
		l := &left[i]
		if rs.constant && m.yields[n].value.defined() && !l.fallible {
			continue
		}
		if l.at == 0 {
			m.try(l.body, nil)
		} else {
			m.resume(l)
		}
		if m.gaveUp {
			break
		}
	}
	return m.collect(rs)
}

// try runs a body, or where that has no value, its `else`.
func (m *machine) try(b *body, args []value) {
	y := len(m.yields) - 1
	for ; b != nil; b = b.orElse {
		m.yields[y].produced = false
		m.runBody(b, args)
		if m.gaveUp || m.yields[y].produced {
			return
		}
	}
}

// collect is the value that the bodies have yielded.
func (m *machine) collect(rs *ruleSet) value {
	n := len(m.yields) - 1
	y := m.yields[n]
	m.yields = m.yields[:n]
	switch {
	case m.gaveUp:
		return value{}
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
	base := m.push(b.slots)
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

// resume runs a body from where a place leaves it.
func (m *machine) resume(l *leftBody) {
	base := m.push(l.body.slots)
	copy(m.stack[base:], l.bound)
	l.body.from[l.at](m, base)
	m.stack = m.stack[:base]
}

// push makes room for slots. What is in them is never read: a slot is always written first.
func (m *machine) push(slots int) (base int) {
	base = len(m.stack)
	if need := base + slots; need <= cap(m.stack) {
		m.stack = m.stack[:need]
	} else {
		m.stack = append(m.stack, make([]value, slots)...)
	}
	return base
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
	if key.str {
		switch of := v.v.(type) {
		case *indexed:
			return of.get(key.s)
		case *facts:
			return of.get(key.s)
		case *claim:
			if object, ok := of.of.(map[string]any); ok {
				member, ok := object[key.s]
				if !ok {
					return value{}
				}
				return claimValue(member)
			}
		}
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
		if parts, ok := v.v.(*texts); ok {
			for n, s := range parts.list {
				if visit(position(n), stringValue(s)) {
					return true
				}
			}
			return false
		}
		switch of := v.document().(type) {
		case ast.Object:
			return of.Until(func(k, elem *ast.Term) bool { return visit(valueOf(k.Value), valueOf(elem.Value)) })
		case *ast.Array:
			for n := range of.Len() {
				if visit(position(n), valueOf(of.Elem(n).Value)) {
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

// position is the key of a list's nth element.
func position(n int) value { return value{v: ast.InternedTerm(n).Value} }

// claimAt is the claim at a path of names.
func (m *machine) claimAt(path []string) value {
	var at any = m.subject.id.Claims
	for i, name := range path {
		object, ok := at.(map[string]any)
		if !ok {
			v := claimValue(at)
			for _, name := range path[i:] {
				if !v.defined() {
					break
				}
				v = m.child(v, stringValue(name), nil)
			}
			return v
		}
		if at, ok = object[name]; !ok {
			return value{}
		}
	}
	return claimValue(at)
}

// field is one of the access's strings; a key that there is none of is undefined.
func (m *machine) field(n int) value {
	s := m.fields[n]
	if n >= fieldsOfPlace {
		if m.placing && s != "" {
			return m.unplaced()
		}
		if n == fieldKey && s == "" {
			return value{}
		}
	}
	return stringValue(s)
}

// splitText is s in parts, of which the first most are kept; -1 = all. What an access splits is in the machine as far as
// there is room, and not in what is known of a place, which outlives the question.
func (m *machine) splitText(s, separator string, most int) value {
	n, lists := m.used[0], m.used[1]
	if m.placing || lists == len(m.lists) || n > 256 {
		return value{v: &texts{list: appendParts(nil, s, separator, most)}}
	}
	m.parts = appendParts(m.parts[:n], s, separator, most)
	m.used = [2]int{len(m.parts), lists + 1}
	m.lists[lists].list = slices.Clip(m.parts[n:])
	return value{v: &m.lists[lists]}
}

func appendParts(list []string, s, separator string, most int) []string {
	for ; most != 0; most-- {
		part, rest, more := strings.Cut(s, separator)
		list = append(list, part)
		if !more {
			break
		}
		s = rest
	}
	return list
}

func (m *machine) requestTime() string {
	if m.time == "" {
		m.time = m.question.Request.Time.UTC().Format(time.RFC3339)
	}
	return m.time
}

func (m *machine) requestValue() value {
	if m.placing {
		return m.unplaced()
	}
	if !m.request.defined() {
		m.request = value{v: requestTerm(m.question.Request).Value}
	}
	return m.request
}

func (m *machine) input() value {
	if m.placing {
		return m.unplaced()
	}
	if !m.whole.defined() {
		request := ast.NewTerm(m.requestValue().v)
		m.whole = value{v: accessInput(m.access, stringTerm(m.question.Operation), m.subject.term(), request).Value}
	}
	return m.whole
}
