package policy

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// bodyCompiler compiles the expressions of one body in order: what is bound at each is known.
type bodyCompiler struct {
	p        *program
	slots    map[ast.Var]int
	bound    map[ast.Var]bool
	texts    map[ast.Var]bool // bound to a string, whatever the input
	deps     deps
	fallible bool
	iterates bool
	cost     int
	shape    *shape // of the expression that was compiled last; nil = of none that is known
}

func (c *bodyCompiler) slot(v ast.Var) int {
	n, ok := c.slots[v]
	if !ok {
		n = len(c.slots)
		c.slots[v] = n
	}
	return n
}

func (c *bodyCompiler) bind(v ast.Var) int {
	c.bound[v] = true
	return c.slot(v)
}

// expr compiles one expression; the result is linked to what comes after it.
func (c *bodyCompiler) expr(e *ast.Expr) (func(next node) node, error) {
	if len(e.With) > 0 {
		return nil, unknown("with", e)
	}
	if e.Negated {
		// What is bound within stays within.
		bound, texts := c.bound, c.texts
		c.bound, c.texts = maps.Clone(bound), maps.Clone(texts)
		positive := e.Copy()
		positive.Negated = false
		link, err := c.expr(positive)
		c.bound, c.texts = bound, texts
		if err != nil {
			return nil, err
		}
		c.shape = c.shape.negation()
		inner := link(func(*machine, int) bool { return true })
		return func(next node) node {
			return func(m *machine, base int) bool {
				if inner(m, base) {
					return m.gaveUp
				}
				return next(m, base)
			}
		}, nil
	}
	switch terms := e.Terms.(type) {
	case *ast.Term:
		return c.truth(terms)
	case []*ast.Term:
		operator, ok := terms[0].Value.(ast.Ref)
		if !ok {
			return nil, unknown("call", e)
		}
		name := operator.String()
		switch name {
		case "eq", "assign":
			return c.unify(terms[1], terms[2])
		}
		if b, ok := ast.BuiltinMap[name]; ok {
			return c.builtin(b, terms[1:])
		}
		return c.call(operator, terms[1:])
	}
	return nil, unknown("expression", e)
}

// truth: the term has a value other than false.
func (c *bodyCompiler) truth(t *ast.Term) (func(node) node, error) {
	if c.open(t) {
		return c.iterate(t, func(next node) func(*machine, int, value) bool {
			return func(m *machine, base int, v value) bool { return !v.isFalse() && next(m, base) }
		})
	}
	if ref, ok := t.Value.(ast.Ref); ok && accessField(ref) == fieldKey {
		// Whether there is a key is known where its text is not.
		c.deps |= onAccess
		return func(next node) node {
			return func(m *machine, base int) bool { return m.fields[fieldKey] != "" && next(m, base) }
		}, nil
	}
	get, err := c.get(t)
	c.shape = &shape{says: isTrue, of: c.operand(t)}
	return func(next node) node {
		return func(m *machine, base int) bool {
			v := get(m, base)
			if m.gaveUp {
				return true
			}
			return v.defined() && !v.isFalse() && next(m, base)
		}
	}, err
}

// open: the term is a reference with variables that are not bound yet, so that it has many values.
func (c *bodyCompiler) open(t *ast.Term) bool {
	ref, ok := t.Value.(ast.Ref)
	return ok && slices.ContainsFunc(ref[1:], func(t *ast.Term) bool {
		v, ok := t.Value.(ast.Var)
		return ok && !c.bound[v]
	})
}

// unify: both terms have the same value, which binds the variables that are not bound yet.
func (c *bodyCompiler) unify(a, b *ast.Term) (func(node) node, error) {
	if c.open(a) || c.isPattern(b) && !c.isPattern(a) {
		a, b = b, a
	}
	if c.open(a) || c.isPattern(a) && c.isPattern(b) {
		return nil, unknown("unification", ast.Equality.Expr(a, b))
	}
	if c.open(b) {
		// The getters of a bound term must be compiled before the iteration binds more.
		var pat pattern
		late := func() (err error) { pat, err = c.pattern(a); return err }
		if !c.isPattern(a) {
			if err := late(); err != nil {
				return nil, err
			}
			late = func() error { return nil }
		}
		link, err := c.iterate(b, func(next node) func(*machine, int, value) bool {
			return func(m *machine, base int, v value) bool {
				if !pat(m, base, v) {
					return m.gaveUp
				}
				return next(m, base)
			}
		})
		if err != nil {
			return nil, err
		}
		return link, late()
	}
	get, err := c.get(b)
	if err != nil {
		return nil, err
	}
	if v, ok := a.Value.(ast.Var); ok && !c.bound[v] {
		if c.isText(b) {
			c.texts[v] = true
		}
		is := c.operand(b)
		slot := c.bind(v)
		c.shape = &shape{says: binds, of: is, to: []int{slot}}
		return func(next node) node {
			return func(m *machine, base int) bool {
				v := get(m, base)
				if m.gaveUp {
					return true
				}
				if !v.defined() {
					return false
				}
				m.stack[base+slot] = v
				return next(m, base)
			}
		}, nil
	}
	if !c.isPattern(a) {
		// Both are evaluated, whatever the first is: either may fail, and OPA has its own order.
		other, err := c.get(a)
		c.shape = &shape{says: equals, of: c.operand(b), with: c.operand(a)}
		return func(next node) node {
			return func(m *machine, base int) bool {
				v, w := get(m, base), other(m, base)
				if m.gaveUp {
					return true
				}
				return v.defined() && w.defined() && v.equal(w) && next(m, base)
			}
		}, err
	}
	whole, list := c.operand(b), c.newList(a)
	pat, err := c.pattern(a)
	if list != nil {
		c.shape = &shape{says: takesApart, of: whole, to: list}
	}
	return func(next node) node {
		return func(m *machine, base int) bool {
			v := get(m, base)
			if m.gaveUp {
				return true
			}
			if !v.defined() || !pat(m, base, v) {
				return m.gaveUp
			}
			return next(m, base)
		}
	}, err
}

// isPattern: the term binds variables.
func (c *bodyCompiler) isPattern(t *ast.Term) bool {
	found := false
	if _, ok := t.Value.(ast.Ref); ok {
		return false
	}
	ast.WalkVars(t, func(v ast.Var) bool {
		found = found || !c.bound[v] && !ast.RootDocumentNames.Contains(ast.NewTerm(v))
		return found
	})
	return found
}

// isText: the term is a string, or undefined, whatever the input.
func (c *bodyCompiler) isText(t *ast.Term) bool {
	switch v := t.Value.(type) {
	case ast.String:
		return true
	case ast.Var:
		return c.texts[v]
	case ast.Ref:
		if accessField(v) >= 0 {
			return true
		}
		if len(v) < 3 || !v[0].Equal(ast.InputRootDocument) {
			return false
		}
		switch name := v[1].Value; {
		case name.Compare(ast.String("identity")) == 0:
			_, n := identityText(v[2:])
			return n == len(v)-2
		case name.Compare(ast.String("request")) == 0:
			_, n := requestText(v[2:])
			return n == len(v)-2
		}
	}
	return false
}

// pattern takes a value apart.
type pattern func(m *machine, base int, v value) bool

func (c *bodyCompiler) pattern(t *ast.Term) (pattern, error) {
	switch v := t.Value.(type) {
	case ast.Var:
		if !c.bound[v] {
			slot := c.bind(v)
			return func(m *machine, base int, v value) bool { m.stack[base+slot] = v; return true }, nil
		}
	case *ast.Array:
		if c.isPattern(t) {
			elems := make([]pattern, v.Len())
			for i := range elems {
				var err error
				if elems[i], err = c.pattern(v.Elem(i)); err != nil {
					return nil, err
				}
			}
			return func(m *machine, base int, v value) bool {
				if parts, ok := v.v.(*texts); ok {
					if len(parts.list) != len(elems) {
						return false
					}
					for i, elem := range elems {
						if !elem(m, base, stringValue(parts.list[i])) {
							return false
						}
					}
					return true
				}
				list, ok := v.document().(*ast.Array)
				if !ok || list.Len() != len(elems) {
					return false
				}
				for i, elem := range elems {
					if !elem(m, base, valueOf(list.Elem(i).Value)) {
						return false
					}
				}
				return true
			}, nil
		}
	default:
		if c.isPattern(t) {
			return nil, unknown("pattern", t)
		}
	}
	get, err := c.get(t)
	return func(m *machine, base int, v value) bool {
		w := get(m, base)
		return !m.gaveUp && w.defined() && w.equal(v)
	}, err
}

// get compiles a term whose variables are all bound.
func (c *bodyCompiler) get(t *ast.Term) (getter, error) {
	switch v := t.Value.(type) {
	case ast.Var:
		if !c.bound[v] {
			return nil, unknown("variable", v)
		}
		slot := c.slot(v)
		return func(m *machine, base int) value { return m.stack[base+slot] }, nil
	case ast.Ref:
		return c.ref(v)
	case ast.Null, ast.Boolean, ast.Number, ast.String:
		k := valueOf(v)
		return func(*machine, int) value { return k }, nil
	case *ast.Array:
		if plainGround(t) {
			k := value{v: v}
			return func(*machine, int) value { return k }, nil
		}
		elems := make([]getter, v.Len())
		for i := range elems {
			var err error
			if elems[i], err = c.get(v.Elem(i)); err != nil {
				return nil, err
			}
		}
		return func(m *machine, base int) value {
			list := make([]*ast.Term, len(elems))
			for i, elem := range elems {
				v := elem(m, base)
				if !v.defined() {
					return value{}
				}
				list[i] = ast.NewTerm(v.ast())
			}
			return value{v: ast.NewArray(list...)}
		}, nil
	case ast.Set:
		if plainGround(t) {
			k := value{v: v}
			return func(*machine, int) value { return k }, nil
		}
	case ast.Object:
		if plainGround(t) {
			k := value{v: v}
			return func(*machine, int) value { return k }, nil
		}
		var keys []*ast.Term
		var elems []getter
		err := v.Iter(func(k, elem *ast.Term) error {
			if !plainGround(k) {
				return unknown("key", k)
			}
			get, err := c.get(elem)
			keys, elems = append(keys, k), append(elems, get)
			return err
		})
		return func(m *machine, base int) value {
			items := make([][2]*ast.Term, len(keys))
			for i, elem := range elems {
				v := elem(m, base)
				if !v.defined() {
					return value{}
				}
				items[i] = ast.Item(keys[i], ast.NewTerm(v.ast()))
			}
			return value{v: ast.NewObject(items...)}
		}, err
	}
	return nil, unknown("term", t)
}

// plainGround: nothing in the term is to be evaluated.
func plainGround(t *ast.Term) bool {
	plain := t.IsGround()
	ast.WalkTerms(t, func(t *ast.Term) bool {
		switch t.Value.(type) {
		case ast.Null, ast.Boolean, ast.Number, ast.String, *ast.Array, ast.Object, ast.Set:
		default:
			plain = false
		}
		return !plain
	})
	return plain
}

// step is one part of a reference after its root.
type step struct {
	key *ast.Term // constant
	get getter    // or bound
	to  int       // or a slot that is bound to each key in turn; -1 = none
}

func (c *bodyCompiler) steps(ref ast.Ref) ([]step, error) {
	list := make([]step, len(ref))
	for i, t := range ref {
		list[i].to = -1
		if v, ok := t.Value.(ast.Var); ok && !c.bound[v] {
			list[i].to = c.bind(v)
		} else if plainGround(t) {
			list[i].key = t
		} else {
			var err error
			if list[i].get, err = c.get(t); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// ref compiles a reference whose variables are all bound.
func (c *bodyCompiler) ref(ref ast.Ref) (getter, error) {
	root, rest, err := c.root(ref)
	if err != nil || len(rest) == 0 {
		return root, err
	}
	steps, err := c.steps(rest)
	if err != nil {
		return nil, err
	}
	return func(m *machine, base int) value {
		v := root(m, base)
		for i := range steps {
			if !v.defined() || m.gaveUp {
				return value{}
			}
			v = m.child(v, m.stepKey(&steps[i], base), steps[i].key)
		}
		return v
	}, nil
}

// iterate compiles a reference with variables that it binds.
func (c *bodyCompiler) iterate(t *ast.Term, then func(next node) func(*machine, int, value) bool) (func(node) node, error) {
	c.iterates = true
	c.cost += 20
	root, rest, err := c.root(t.Value.(ast.Ref))
	if err != nil {
		return nil, err
	}
	steps, err := c.steps(rest)
	return func(next node) node {
		each := then(next)
		return func(m *machine, base int) bool {
			v := root(m, base)
			if m.gaveUp {
				return true
			}
			return v.defined() && m.each(v, steps, base, each)
		}
	}, err
}

// root compiles the longest part of a reference that is resolved in one go.
func (c *bodyCompiler) root(ref ast.Ref) (getter, ast.Ref, error) {
	switch head := ref[0].Value.(type) {
	case ast.Var:
		switch {
		case ref[0].Equal(ast.InputRootDocument):
			return c.input(ref)
		case ref[0].Equal(ast.DefaultRootDocument):
			return c.document(ref)
		case c.bound[head]:
			get, err := c.get(ref[0])
			return get, ref[1:], err
		}
	}
	return nil, nil, unknown("reference", ref)
}

// accessFields are the strings of the input that each access has, by number. The first four tell the place that is
// asked about; the others vary within it, as long as they are not empty.
var accessFields = [...]string{"action", "operation", "bucket", "backend", "key", "version_id", "prefix", "delimiter"}

const (
	fieldsOfPlace = 4
	fieldKey      = 4
)

// accessField is the number of the field that ref names, whole; -1 = none.
func accessField(ref ast.Ref) int {
	if len(ref) != 2 || !ref[0].Equal(ast.InputRootDocument) {
		return -1
	}
	name, _ := ref[1].Value.(ast.String)
	return slices.Index(accessFields[:], string(name))
}

// input compiles the part of an input reference that is read without making a document, as far as that goes.
func (c *bodyCompiler) input(ref ast.Ref) (getter, ast.Ref, error) {
	if len(ref) == 1 {
		c.deps |= onAccess | onRequest
		return func(m *machine, _ int) value { return m.input() }, nil, nil
	}
	name, ok := ref[1].Value.(ast.String)
	if !ok {
		return nil, nil, unknown("reference", ref)
	}
	if field := accessField(ref[:2]); field >= 0 {
		c.deps |= onAccess
		return func(m *machine, _ int) value { return m.field(field) }, ref[2:], nil
	}
	switch name {
	case "identity":
		get, n := identity(ref[2:])
		return get, ref[2+n:], nil
	case "request":
		c.deps |= onRequest
		if get, n := requestText(ref[2:]); get != nil {
			return func(m *machine, _ int) value {
				if m.placing {
					return m.unplaced()
				}
				return get(m)
			}, ref[2+n:], nil
		}
		return func(m *machine, _ int) value { return m.requestValue() }, ref[2:], nil
	}
	// The input has nothing of that name.
	return func(*machine, int) value { return value{} }, ref[2:], nil
}

// identity reads the identity at path; n is how many of its steps that takes.
func identity(path ast.Ref) (get getter, n int) {
	if len(path) == 0 || !plainGround(path[0]) {
		return func(m *machine, _ int) value { return value{v: m.subject.term().Value} }, 0
	}
	if text, n := identityText(path); text != nil {
		return func(m *machine, _ int) value { return stringValue(text(m.subject)) }, n
	}
	second := ast.Value(ast.Null{})
	if len(path) > 1 {
		second = path[1].Value
	}
	switch name, _ := path[0].Value.(ast.String); {
	case name == "audience":
		return func(m *machine, _ int) value { return value{v: &m.subject.audience} }, 1
	case name == "attributes" && second.Compare(ast.String("groups")) == 0:
		return func(m *machine, _ int) value { return value{v: &m.subject.groups} }, 2
	case name == "attributes":
		return func(m *machine, _ int) value { return value{v: &m.subject.attributes} }, 1
	case name == "claims":
		var names []string
		for _, t := range path[1:] {
			name, ok := t.Value.(ast.String)
			if !ok {
				break
			}
			names = append(names, string(name))
		}
		return func(m *machine, _ int) value { return m.claimAt(names) }, 1 + len(names)
	}
	key := path[0]
	return func(m *machine, _ int) value {
		return m.child(value{v: m.subject.term().Value}, valueOf(key.Value), key)
	}, 1
}

// requestText reads a text of the request; n is how many steps of path lead there. get is nil for what is no text.
func requestText(path ast.Ref) (get func(*machine) value, n int) {
	names := [2]ast.String{}
	ok := [2]bool{}
	for i := range min(len(path), 2) {
		names[i], ok[i] = path[i].Value.(ast.String)
	}
	switch names[0] {
	case "id":
		return func(m *machine) value { return stringValue(m.question.Request.ID) }, 1
	case "time":
		return func(m *machine) value { return stringValue(m.requestTime()) }, 1
	case "method":
		return func(m *machine) value { return stringValue(m.question.Request.Method) }, 1
	case "host":
		return func(m *machine) value { return stringValue(m.question.Request.Host) }, 1
	case "source_ip":
		return func(m *machine) value { return stringValue(m.question.Request.SourceIP) }, 1
	case "user_agent":
		return func(m *machine) value { return stringValue(m.question.Request.UserAgent) }, 1
	case "headers":
		if ok[1] {
			return func(m *machine) value { return fromMap(m.question.Request.Headers, string(names[1])) }, 2
		}
	case "query":
		if ok[1] {
			return func(m *machine) value { return fromMap(m.question.Request.Query, string(names[1])) }, 2
		}
	}
	return nil, 0
}

func fromMap(from map[string]string, name string) value {
	s, ok := from[name]
	return value{s: s, str: ok}
}

// document compiles the part of a data reference that names rules, or base data that is the same for everyone.
func (c *bodyCompiler) document(ref ast.Ref) (getter, ast.Ref, error) {
	n := 1
	for n < len(ref) {
		if _, ok := ref[n].Value.(ast.String); !ok {
			break
		}
		n++
		if rs := c.p.ruleSet(ref[:n]); rs != nil {
			if rs.unknown != nil {
				return nil, nil, rs.unknown
			}
			if rs.number < 0 {
				return nil, nil, unknown("function as value", ref)
			}
			c.deps |= rs.deps
			c.fallible = c.fallible || rs.fallible
			c.cost += 2
			return func(m *machine, _ int) value { return m.ruleValue(rs) }, ref[n:], nil
		}
	}
	if n == 1 || len(c.p.compiler.GetRulesWithPrefix(ref[:n])) > 0 || len(c.p.compiler.GetRulesForVirtualDocument(ref[:n])) > 0 {
		return nil, nil, unknown("documents below", ref[:n])
	}
	base := c.p.data.Get(ref[:n])
	if base == nil {
		return func(*machine, int) value { return value{} }, ref[n:], nil
	}
	k := valueOf(base)
	if object, ok := base.(ast.Object); ok && n < len(ref) {
		if k, ok = c.p.maps[object]; !ok {
			x := &indexed{object: object}
			x.index()
			k = value{v: x}
			c.p.maps[object] = k
		}
	}
	return func(*machine, int) value { return k }, ref[n:], nil
}

// call compiles a call of a function of the policy.
func (c *bodyCompiler) call(operator ast.Ref, terms []*ast.Term) (func(node) node, error) {
	texts := make([]bool, len(terms))
	for i, t := range terms {
		texts[i] = c.isText(t)
	}
	rs := c.p.ruleSet(operator, texts[:min(len(texts), c.p.arity(operator))]...)
	if rs == nil {
		return nil, unknown("function", operator)
	}
	if rs.unknown != nil {
		return nil, rs.unknown
	}
	c.deps |= rs.deps
	c.fallible = c.fallible || rs.fallible
	if len(rs.bodies) == 0 {
		return nil, unknown("function", operator)
	}
	c.cost += 10
	arity := len(rs.bodies[0].args)
	s := &shape{says: calls, rules: rs, to: c.newOut(terms, arity)}
	args, out, err := c.operands(terms, arity)
	if err == nil && (len(terms) == arity || s.to != nil) {
		for _, t := range terms[:arity] {
			s.args = append(s.args, c.operand(t))
		}
		c.shape = s
	}
	return func(next node) node {
		return func(m *machine, base int) bool {
			v := m.callRules(rs, args, base)
			if m.gaveUp {
				return true
			}
			return v.defined() && out(m, base, v) && next(m, base)
		}
	}, err
}

// arity is how many arguments a function of the policy takes.
func (p *program) arity(operator ast.Ref) int {
	if rules := p.compiler.GetRulesExact(operator); len(rules) > 0 {
		return len(rules[0].Head.Args)
	}
	return 0
}

// operands compiles the arguments of a call, and what is done with its result: without an output, a result of
// false fails.
func (c *bodyCompiler) operands(terms []*ast.Term, arity int) (args []getter, out pattern, err error) {
	if len(terms) < arity || len(terms) > arity+1 {
		return nil, nil, unknown("call with", terms)
	}
	args = make([]getter, arity)
	for i := range args {
		if c.open(terms[i]) {
			return nil, nil, unknown("argument", terms[i])
		}
		if args[i], err = c.get(terms[i]); err != nil {
			return nil, nil, err
		}
	}
	if len(terms) == arity {
		return args, func(_ *machine, _ int, v value) bool { return !v.isFalse() }, nil
	}
	out, err = c.pattern(terms[arity])
	return args, out, err
}
