package policy

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Grounds are what is enough to allow a request to a place, as far as that can be told by a few tests of the texts that
// vary there: the key, the prefix. They are found once, when the place is, by going through what is left of the rules
// `allow` and `deny` with these texts unknown: each expression is either settled by the program itself, or becomes a
// test on the way, or is not understood, and then the way ends there.
//
// They never say no. Where none of them holds, or where a rule could deny or fail for all that is known, the program is
// asked, and where that gives up, OPA. So what is not understood here costs time and nothing else, except where it
// could deny or fail: then the tests that lead there become a veto, and what passes them is not allowed by grounds.

// reading is how a text of the access is read.
type reading struct {
	field     uint8
	part      int16 // of the field split at separator, in most parts; or one of these
	most      int16
	separator string
	in        *indexed // what the text is looked up in; nil = it is what is wanted itself
}

const (
	whole    = -1 // not split
	allParts = -2 // the list
)

// test is one test of a text. Where it holds, the next is the one after it, or none, for it is the last of its ground or
// veto; where it does not, the next is the first of another.
type test struct {
	reading
	says      saying
	negated   bool
	last      bool
	allows    bool // the last of a ground, not of a veto
	otherwise uint16
	text      string
	names     map[string]bool
}

// Bounds of what is kept, and of how long is looked for it.
const (
	mostTests   = 64
	mostNames   = 256
	findingWork = 400
)

// allows is sure that the access is allowed; false says nothing.
func (at *place) allows(a *Access) bool {
	for i := 0; i < len(at.tests); {
		t := &at.tests[i]
		switch {
		case !t.holds(a):
			i = int(t.otherwise)
		case t.last:
			return t.allows
		default:
			i++
		}
	}
	return false
}

func (t *test) holds(a *Access) bool {
	if t.says == always {
		return true
	}
	s := a.text(t.field)
	if t.part >= 0 {
		var ok bool
		if s, ok = partOf(s, t.separator, int(t.most), int(t.part)); !ok {
			return t.negated
		}
	}
	if t.in != nil {
		v := t.in.get(s)
		switch {
		case !v.defined():
			return t.negated
		case t.says == equals:
			return (v.str && v.s == t.text) != t.negated
		case t.says == isTrue:
			return v.isFalse() == t.negated
		}
		return !t.negated // isDefined
	}
	holds := true // isDefined, isTrue
	switch t.says {
	case equals:
		holds = s == t.text
	case differs:
		holds = s != t.text
	case startsWith:
		holds = strings.HasPrefix(s, t.text)
	case endsWith:
		holds = strings.HasSuffix(s, t.text)
	case contains:
		holds = strings.Contains(s, t.text)
	case isIn:
		holds = t.names[s]
	}
	return holds != t.negated
}

// text is one of the fields that vary within a place, by number.
func (a *Access) text(field uint8) string {
	switch field {
	case fieldKey:
		return a.Key
	case fieldKey + 1:
		return a.VersionID
	case fieldKey + 2:
		return a.Prefix
	}
	return a.Delimiter
}

// partOf is the nth part of s split, of which the first most are kept; -1 = all.
func partOf(s, separator string, most, n int) (string, bool) {
	for i := 0; i != most; i++ {
		part, rest, more := strings.Cut(s, separator)
		switch {
		case i == n:
			return part, true
		case !more:
			return "", false
		}
		s = rest
	}
	return "", false
}

// finder finds the grounds of a place, by the machine that has found out about it.
type finder struct {
	m     *machine
	at    *place
	found []*found // by rule set
	path  []test   // that lead to where it is
	work  int      // that is left to do; below 0 = nothing is found
}

// found is what is found out of a rule set.
type found struct {
	ways  []way
	stops []stop // where more than the ways may lead to a value; none = it has those of the ways and no other
}

// way leads to a value.
type way struct {
	tests []test
	value term
}

// stop is where a way was lost. fails: what comes after may fail.
type stop struct {
	tests []test
	fails bool
}

// term is a value, or how to read it where it varies.
type term struct {
	value  value
	varies bool
	reading
}

// frame is one body being gone through.
type frame struct {
	*body
	base  int
	terms []term // by slot, of those that vary
	found *found
}

// grounds are the tests that are enough. The rules of the place are known, or what is left of them is.
func (m *machine) grounds(at *place) []test {
	m.gaveUp, m.stack, m.yields, m.steps = false, m.stack[:0], m.yields[:0], maxSteps-10*findingWork
	f := &finder{m: m, at: at, found: make([]*found, len(m.program.order)), work: findingWork}
	var grounds, vetoes [][]test
	for _, r := range m.program.stages[stageAllow] {
		known := &at.rules[r.rules.number]
		if known.known {
			var a answer
			if known.value.defined() {
				a.take(r.rule, known.value)
			}
			switch {
			case r.rule == ruleAllow && a.allow:
				grounds = append(grounds, nil)
			case r.rule == ruleAllow || a.denied:
				return nil
			}
			continue
		}
		of := f.rules(r.rules)
		if r.rule == ruleDeny {
			if !r.rules.set {
				return nil
			}
			for _, w := range of.ways {
				vetoes = append(vetoes, w.tests)
			}
		}
		for _, s := range of.stops {
			if s.fails || r.rule == ruleDeny {
				vetoes = append(vetoes, s.tests)
			}
		}
		if r.rule == ruleAllow {
			if !r.rules.constant {
				return nil
			}
			for _, w := range of.ways {
				var a answer
				if a.take(r.rule, w.value.value); a.allow {
					grounds = append(grounds, w.tests)
				}
			}
		}
	}
	if f.work < 0 || len(grounds) == 0 {
		return nil
	}
	return inOrder(vetoes, grounds)
}

// inOrder makes one list of them. It is nil where there are too many.
func inOrder(vetoes, grounds [][]test) []test {
	var list []test
	for i, tests := range slices.Concat(vetoes, grounds) {
		if len(tests) == 0 {
			tests = []test{{says: always}}
		}
		n := len(list)
		list = append(list, tests...)
		for j := n; j < len(list); j++ {
			list[j].otherwise = uint16(len(list))
		}
		list[len(list)-1].last, list[len(list)-1].allows = true, i >= len(vetoes)
		if len(list) > mostTests {
			return nil
		}
	}
	return slices.Clip(list)
}

// rules is what is found out of a rule set without arguments.
func (f *finder) rules(rs *ruleSet) *found {
	if of := f.found[rs.number]; of != nil {
		return of
	}
	of := &found{}
	at := &f.at.rules[rs.number]
	if at.known && at.value.defined() {
		of.ways = []way{{value: term{value: at.value}}}
	}
	for i := range at.left {
		f.body(of, &at.left[i], nil)
	}
	f.found[rs.number] = of
	return of
}

// body goes through what is left of a body.
func (f *finder) body(of *found, l *leftBody, args []term) {
	path := f.path
	f.path = nil
	defer func() { f.path = path }()
	if l.orElse != nil {
		of.stops = append(of.stops, stop{fails: l.fallible})
		return
	}
	m := f.m
	at := &frame{body: l.body, base: m.push(l.slots), terms: make([]term, l.slots), found: of}
	clear(m.stack[at.base:])
	copy(m.stack[at.base:], l.bound)
	for i, arg := range args {
		if l.argSlots[i] < 0 {
			of.stops = append(of.stops, stop{fails: l.fallible})
			m.stack = m.stack[:at.base]
			return
		}
		f.bind(at, l.argSlots[i], arg)
	}
	f.from(at, l.at)
	m.stack = m.stack[:at.base]
}

// from goes on with the nth expression of a body, by the path that leads there.
func (f *finder) from(at *frame, n int) {
	if f.work--; f.work < 0 {
		return
	}
	length := len(f.path)
	defer func() { f.path = f.path[:length] }()
	if n == len(at.exprs) {
		// What a head could fail of, OPA's compiler has moved to the body.
		v, ok := f.term(at, at.head)
		switch {
		case !ok:
			f.path = f.path[:length]
			f.stop(at, n)
		case v.varies || v.value.defined():
			at.found.ways = append(at.found.ways, way{slices.Clone(f.path), v})
		}
		return
	}
	then := func() { f.from(at, n+1) }
	if !f.settled(at, &at.exprs[n], then) && !f.understood(at, n, then) {
		f.path = f.path[:length]
		f.stop(at, n)
	}
}

// stop notes that the nth expression and those after it are not understood; the head comes after them all.
func (f *finder) stop(at *frame, n int) {
	at.found.stops = append(at.found.stops, stop{slices.Clone(f.path), n < at.risky})
}

// settled has the program evaluate an expression, and goes on from each of its solutions. It is false where it reads what
// varies.
func (f *finder) settled(at *frame, e *expression, then func()) bool {
	if f.varies(at, e.reads) {
		return false
	}
	m := f.m
	m.gaveUp = false
	if e.link(func(*machine, int) bool { return false })(m, at.base); m.gaveUp {
		m.gaveUp = false
		return false
	}
	e.link(func(*machine, int) bool {
		then()
		m.gaveUp = false
		return f.work < 0
	})(m, at.base)
	if m.gaveUp { // it did not a moment ago: it took too many steps, and solutions are missing
		m.gaveUp, f.work = false, -1
	}
	return true
}

func (f *finder) varies(at *frame, slots []int) bool {
	return slices.ContainsFunc(slots, func(slot int) bool { return at.terms[slot].varies })
}

// term is what an operand is. Tests that this depends on are added to the path.
func (f *finder) term(at *frame, o *operand) (t term, ok bool) {
	if o == nil {
		return t, false
	}
	m := f.m
	if !f.varies(at, o.reads) {
		m.gaveUp = false
		if t.value = o.get(m, at.base); !m.gaveUp {
			return t, true
		}
		m.gaveUp = false
	}
	switch {
	case o.field >= 0:
		return term{varies: true, reading: reading{field: uint8(o.field), part: whole}}, true
	case o.slot >= 0:
		return at.terms[o.slot], true
	case o.rules != nil:
		of := f.rules(o.rules)
		if len(of.ways) != 1 || len(of.stops) > 0 || o.rules.fallback.defined() {
			return t, false
		}
		f.path = append(f.path, of.ways[0].tests...)
		return of.ways[0].value, true
	case o.in != nil:
		in, ok := f.term(at, o.in)
		if !ok {
			return t, false
		}
		key, ok := f.term(at, o.key)
		switch {
		case !ok:
		case in.varies && in.part == allParts && !key.varies:
			n, isNumber := key.value.v.(ast.Number)
			nth, isWhole := n.Int()
			if !isNumber || !isWhole || nth < 0 || nth > 1000 {
				return t, false
			}
			in.part = int16(nth)
			return in, true
		case key.isText():
			if key.in = f.indexed(in.value); key.in != nil {
				return key, true
			}
		}
	}
	return t, false
}

// indexed is the object of the data that v is; nil = it is none, or it varies.
func (f *finder) indexed(v value) *indexed {
	if object, ok := v.v.(ast.Object); ok {
		v = f.m.program.maps[object]
	}
	x, _ := v.v.(*indexed)
	return x
}

// isText: it is a text where it has a value.
func (t *term) isText() bool { return t.varies && t.part != allParts && t.in == nil }

// add adds a test to the path.
func (f *finder) add(of term, t test) {
	t.reading = of.reading
	f.path = append(f.path, t)
}

// defined adds the test that t has a value, where it may have none.
func (f *finder) defined(t term) {
	if t.varies && (t.part >= 0 || t.in != nil) {
		f.add(t, test{says: isDefined})
	}
}

// bind binds a slot.
func (f *finder) bind(at *frame, slot int, t term) {
	at.terms[slot] = t
	f.m.stack[at.base+slot] = t.value
}

// understood goes on from each solution of an expression by its shape. It is false where that is not known.
func (f *finder) understood(at *frame, n int, then func()) bool {
	s := at.exprs[n].shape
	switch {
	case s == nil:
		return false
	case s.negated:
		return f.refuted(at, n, then)
	}
	return f.affirmed(at, n, then)
}

func (f *finder) affirmed(at *frame, n int, then func()) bool {
	s := at.exprs[n].shape
	switch s.says {
	case calls:
		return f.called(at, s, then)
	case isTrue:
		if s.of != nil && s.of.rules != nil {
			return f.ruled(at, n, s.of.rules, then)
		}
	}
	of, ok := f.term(at, s.of)
	if !ok {
		return false
	}
	switch s.says {
	case binds:
		if !of.varies && !of.value.defined() {
			return true
		}
		f.defined(of)
		f.bind(at, s.to[0], of)
		then()
		f.bind(at, s.to[0], term{})
		return true
	case isTrue:
		return f.truth(of, then)
	case splits:
		if !of.isText() || of.part != whole {
			return false
		}
		of.part, of.separator, of.most = allParts, s.separator, int16(s.most)
		f.bind(at, s.to[0], of)
		then()
		f.bind(at, s.to[0], term{})
		return true
	case takesApart:
		if !of.varies || of.part != allParts {
			return false
		}
		last, more := of, of
		last.part, more.part = int16(len(s.to)-1), int16(len(s.to))
		f.defined(last)
		if int(of.most) != len(s.to) { // there may be more
			f.add(more, test{says: isDefined, negated: true})
		}
		for i, slot := range s.to {
			of.part = int16(i)
			f.bind(at, slot, of)
		}
		then()
		for _, slot := range s.to {
			f.bind(at, slot, term{})
		}
		return true
	}
	with, ok := f.term(at, s.with)
	if !ok {
		return false
	}
	return f.tested(s.says, of, with, then)
}

// tested is a test of one term by another.
func (f *finder) tested(says saying, of, with term, then func()) bool {
	if with.varies && !of.varies && (says == equals || says == differs) {
		of, with = with, of
	}
	switch {
	case !of.varies || with.varies:
		return false
	case !with.value.defined():
		return true
	case says == isIn:
		names := f.names(with.value)
		if !of.isText() || names == nil {
			return false
		}
		f.add(of, test{says: says, names: names})
	case !with.value.str || !of.isText() && (says != equals || of.in == nil):
		return false
	default:
		f.add(of, test{says: says, text: with.value.s})
	}
	then()
	return true
}

// names are the texts in a collection; nil = it is none, or too large.
func (f *finder) names(of value) map[string]bool {
	names := map[string]bool{}
	add := func(t *ast.Term) {
		if s, ok := t.Value.(ast.String); ok {
			names[string(s)] = true
		}
	}
	switch of := of.document().(type) {
	case ast.Set:
		if of.Len() > mostNames {
			return nil
		}
		of.Foreach(add)
	case *ast.Array:
		if of.Len() > mostNames {
			return nil
		}
		of.Foreach(add)
	default:
		return nil
	}
	return names
}

// truth: the term has a value other than false.
func (f *finder) truth(t term, then func()) bool {
	switch {
	case !t.varies:
		if !t.value.defined() || t.value.isFalse() {
			return true
		}
	case t.in != nil:
		f.add(t, test{says: isTrue})
	default:
		f.defined(t)
	}
	then()
	return true
}

// ruled: a rule is true.
func (f *finder) ruled(at *frame, n int, rs *ruleSet, then func()) bool {
	if !rs.constant || rs.fallback.defined() && !rs.fallback.isFalse() {
		return false
	}
	of := f.rules(rs)
	for _, s := range of.stops {
		if s.fails {
			at.found.stops = append(at.found.stops, stop{slices.Concat(f.path, s.tests), true})
		}
	}
	if len(of.stops) > 0 {
		f.stop(at, n+1) // it may be true in other ways
	}
	f.ways(of, func(t term) { f.truth(t, then) })
	return true
}

// called goes on from each value that a function has.
func (f *finder) called(at *frame, s *shape, then func()) bool {
	args := make([]term, len(s.args))
	for i, arg := range s.args {
		var ok bool
		if args[i], ok = f.term(at, arg); !ok {
			return false
		}
		if !args[i].varies && !args[i].value.defined() {
			return true
		}
		f.defined(args[i])
	}
	rs := s.rules
	of := &found{}
	for i := range rs.bodies {
		f.body(of, &leftBody{body: &rs.bodies[i]}, args)
	}
	if len(of.stops) > 0 || rs.fallback.defined() || !rs.constant && len(of.ways) > 1 {
		return false
	}
	f.ways(of, func(t term) {
		if s.to == nil {
			f.truth(t, then)
			return
		}
		f.bind(at, s.to[0], t)
		then()
		f.bind(at, s.to[0], term{})
	})
	return true
}

// ways goes each of them.
func (f *finder) ways(of *found, then func(term)) {
	length := len(f.path)
	for _, w := range of.ways {
		f.path = append(f.path[:length], w.tests...)
		then(w.value)
	}
	f.path = f.path[:length]
}

// refuted goes on where what is negated does not hold. It is false where that takes more than that some tests do not.
func (f *finder) refuted(at *frame, n int, then func()) bool {
	path := f.path
	f.path = nil
	inner := *at
	inner.found = &found{}
	var ways [][]test
	ok := f.affirmed(&inner, n, func() { ways = append(ways, slices.Clone(f.path)) })
	f.path = path
	if !ok || len(inner.found.stops) > 0 || slices.ContainsFunc(ways, func(tests []test) bool { return len(tests) > 1 }) {
		return false
	}
	for _, tests := range ways {
		if len(tests) == 0 {
			return true // it always holds
		}
		tests[0].negated = !tests[0].negated
		f.path = append(f.path, tests[0])
	}
	then()
	return true
}
