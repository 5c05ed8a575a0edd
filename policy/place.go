package policy

import (
	"cmp"
	"hash/maphash"
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
)

// A place is where requests come from and go to: one identity that does one action by one operation in one bucket. It
// is what a client does a thousand times, with another key each time. Of the rules of a policy most have nothing to say
// there, and many that do say the same to every request; so a program is run once with the key and the request kept
// from it, and what that could not settle is all that later requests have to run. That is partial evaluation, with the
// program's own machine: it does for a place what it would do for each request, up to where it would read something
// that it may not, and there it stops.
//
// A place belongs to one program, and ends with it: nothing of a policy that was replaced is ever used.
type place struct {
	placeKey
	used    atomic.Bool
	tests   []test    // that are enough to allow; see grounds.go
	allowed *Decision // what is decided then; nil where the terms vary
	terms   *answer   // to what an allowed access is subject; nil = it varies, or is not understood
	rules   []placed  // by number; nil where nothing is kept, for there would be too much of it
	sought  bool      // tests and allowed are known, if there are any
}

// placeKey is all that a place depends on. The subject is the one itself, not a name of it: two identities are never
// taken for one, whatever they look like, and one that lives has an address that no other can have.
type placeKey struct {
	subject                            *Subject
	action, operation, bucket, backend string
	has                                uint8 // which of the access's other fields are not empty
}

// placed is what is known of a rule set in a place.
type placed struct {
	known bool
	value value
	left  []leftBody // where it is not known
}

// leftBody is a body that may have a value: from the expression that could not be settled on.
type leftBody struct {
	*body
	at    int
	bound []value // by the expressions before
}

// places is a table of the places that are asked about more than once. It has a fixed size: each place can be kept in
// one slot alone.
type places struct {
	seed  maphash.Seed
	slots []placeSlot // a power of two
	most  int         // values in a place
}

type placeSlot struct {
	place atomic.Pointer[place]
	asked atomic.Uint64 // hash of the last place that was asked about and is not kept
}

// placesBytes is about what a table may come to hold.
const placesBytes = 16 << 20

func newPlaces(rules int) *places {
	const valueBytes = 64 // with what it points to
	most := 128 + 3*rules
	slots := min(max(placesBytes/(most*valueBytes), 16), 4096)
	return &places{seed: maphash.MakeSeed(), slots: make([]placeSlot, 1<<(bits.Len(uint(slots))-1)), most: most}
}

// placeOf is the place of one access of a question.
func placeOf(q *Question, a *Access) placeKey {
	key := placeKey{subject: q.Subject, action: a.Action, operation: q.Operation, bucket: a.Bucket, backend: a.Backend}
	for i, s := range [...]string{a.Key, a.VersionID, a.Prefix, a.Delimiter} {
		if s != "" {
			key.has |= 1 << i
		}
	}
	return key
}

// known is the place where it is known already.
func (p *places) known(key *placeKey) *place {
	slot, _ := p.slotOf(key)
	return slot.known(key)
}

func (p *places) slotOf(key *placeKey) (slot *placeSlot, hash uint64) {
	hash = key.subject.hash ^ maphash.String(p.seed, key.bucket)
	hash = bits.RotateLeft64(hash, 17) ^ maphash.String(p.seed, key.action)
	hash = bits.RotateLeft64(hash, 17) ^ uint64(len(key.operation)) ^ uint64(key.has)<<8
	hash ^= hash >> 32
	return &p.slots[hash&uint64(len(p.slots)-1)], hash
}

func (s *placeSlot) known(key *placeKey) *place {
	at := s.place.Load()
	if at == nil || at.placeKey != *key {
		return nil
	}
	if !at.used.Load() {
		at.used.Store(true)
	}
	return at
}

// find is the place of the machine's access, or nil. What is asked for the first time is evaluated as it is; the
// second time is the time to find out about it, and the third to look for grounds: each costs more than it saves who
// never comes back.
func (p *places) find(m *machine) *place {
	key := placeOf(m.question, m.access)
	if at := m.place; at != nil && at.placeKey == key { // the access before
		return at
	}
	slot, hash := p.slotOf(&key)
	if at := slot.known(&key); at != nil {
		if at.rules != nil && !at.sought {
			known := at
			at = m.seek(known)
			slot.place.CompareAndSwap(known, at)
		}
		return at.orNil()
	}
	at := slot.place.Load()
	if slot.asked.Swap(hash) != hash {
		return nil
	}
	if at != nil && at.used.CompareAndSwap(true, false) {
		return nil // it was wanted meanwhile: one more chance
	}
	at = m.findOut(key)
	slot.place.Store(at)
	return at.orNil()
}

func (at *place) orNil() *place {
	if at.rules == nil {
		return nil
	}
	return at
}

// unplaced ends the evaluation of a body: what it is about to read differs from one request to the next.
func (m *machine) unplaced() value { return m.giveUp() }

// findOut runs the program for all requests of a place.
func (m *machine) findOut(key placeKey) (at *place) {
	defer m.leave(m.fields)
	defer func() {
		if recover() != nil {
			at.rules, at.terms = nil, nil // requests give up in the same way, or do not come there
		}
	}()
	// Strings of a request are parts of its header, which nobody wants to keep. These are kept side by side.
	all := key.action + key.operation + key.bucket + key.backend
	for _, s := range []*string{&key.action, &key.operation, &key.bucket, &key.backend} {
		*s, all = all[:len(*s)], all[len(*s):]
	}
	at = &place{placeKey: key, rules: make([]placed, len(m.program.order))}
	m.enter(at)
	weight := len(at.rules)
	for _, rs := range m.program.order {
		r := m.findOutRule(rs)
		at.rules[rs.number] = r
		weight += r.value.weight()
		for _, l := range r.left {
			weight += 1 + len(l.bound)
			for _, v := range l.bound {
				weight += v.weight()
			}
		}
		if weight > m.program.places.most || m.steps > maxSteps/10 {
			at.rules = nil
			return at
		}
	}
	at.terms = at.knownTerms(m.program)
	return at
}

// enter has the machine evaluate for all requests of a place.
func (m *machine) enter(at *place) {
	m.fields[0], m.fields[1], m.fields[2], m.fields[3] = at.action, at.operation, at.bucket, at.backend
	m.placing, m.place, m.steps = true, at, 0
}

// leave has it evaluate for one again.
func (m *machine) leave(fields [len(accessFields)]string) {
	m.placing, m.place, m.fields = false, nil, fields
}

// seek is a place that is known already, with its grounds.
func (m *machine) seek(known *place) (at *place) {
	defer m.leave(m.fields)
	at = &place{placeKey: known.placeKey, terms: known.terms, rules: known.rules, sought: true}
	at.used.Store(true)
	defer func() {
		if recover() != nil {
			at.tests, at.allowed = nil, nil
		}
	}()
	m.enter(at)
	at.tests = m.grounds(at)
	if at.terms != nil && at.tests != nil {
		if d := join(m.program.revision, []answer{*at.terms}); d.Allow {
			at.allowed = d
		}
	}
	return at
}

// weight is how many values are kept alive by one.
func (a value) weight() int {
	switch v := a.v.(type) {
	case *texts:
		return len(v.list)
	case ast.Set:
		return v.Len() // of objects and lists, few are made by rules
	}
	return len(a.s) / 64
}

// findOutRule tries every body by itself. Those that have no value, whatever the request, are left out.
func (m *machine) findOutRule(rs *ruleSet) placed {
	var left []leftBody
	all := yield{}
	known := true // all that could change the value
	for i := range rs.bodies {
		b := &rs.bodies[i]
		l, y, settled := m.findOutBody(b)
		if settled && !y.produced {
			continue
		}
		left = append(left, l)
		switch {
		case !settled:
			known = false
		case rs.set:
			if all.set == nil {
				all.set = ast.NewSet()
			}
			y.set.Foreach(all.set.Add)
		case all.value.defined() && !all.value.equal(y.value):
			known = false // a conflict: requests find out, and say so
		default:
			all.value = y.value
		}
	}
	if !known && rs.constant && all.value.defined() {
		// One true rule is enough, where no other can fail.
		known = !slices.ContainsFunc(left, func(l leftBody) bool { return l.fallible })
	}
	if !known {
		if rs.constant { // the cheapest true rule is enough
			slices.SortStableFunc(left, func(a, b leftBody) int { return cmp.Compare(a.cost, b.cost) })
		}
		return placed{left: slices.Clip(left)}
	}
	m.yields = append(m.yields[:0], all)
	m.gaveUp = false
	return placed{known: true, value: m.collect(rs)}
}

// findOutBody runs one body. settled: it got to its end without reading what it may not, nor failing.
func (m *machine) findOutBody(b *body) (l leftBody, y yield, settled bool) {
	m.gaveUp, m.reached, m.stack, m.yields = false, 0, m.stack[:0], append(m.yields[:0], yield{})
	l.body = b
	if b.orElse != nil {
		m.try(b, nil)
		y = m.yields[0]
		y.produced = y.value.defined()
		return l, y, !m.gaveUp
	}
	base := m.push(b.slots)
	clear(m.stack[base:])
	b.noting(m, base)
	if y = m.yields[0]; m.gaveUp || y.produced {
		l.at = m.reached
		l.bound = slices.Clone(m.stack[base : base+b.bound[l.at]])
	}
	return l, y, !m.gaveUp
}

// note tells, while placing, that a body has come to its nth expression. Up to the last that is come to but once: what
// is left of a body that iterates begins with the iteration.
func note(n, last int, next node) node {
	if n > last {
		return next
	}
	return func(m *machine, base int) bool {
		if m.gaveUp {
			return true
		}
		m.reached = n
		return next(m, base)
	}
}

// knownTerms reads the rules about what is allowed, where all of them are known.
func (at *place) knownTerms(p *program) *answer {
	a := &answer{allow: true}
	for _, r := range p.stages[stageTerms] {
		rs := &at.rules[r.rules.number]
		if !rs.known {
			return nil
		}
		if rs.value.defined() {
			a.take(r.rule, rs.value)
		}
	}
	if p.stages[stageTerms] == nil || !a.allow {
		return nil
	}
	return a
}
