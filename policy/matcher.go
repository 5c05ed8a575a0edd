package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// A program is the part of a policy that most of its decisions need, compiled further than OPA compiles it: rule
// bodies are chains of closures over numbered slots, references to data are resolved, and what depends on the
// identity alone is evaluated once for each. It is a short cut, never an authority: it knows a part of Rego, and
// whenever it meets anything else (an error, a conflict, a kind of expression that it does not know) it gives up,
// and OPA answers. A differential test holds it to OPA.
//
// Giving up must not depend on the order in which rules are tried, for OPA has its own. So where one true rule
// would be enough, those after it that could fail are still tried.
type program struct {
	token    *token
	compiler *ast.Compiler
	data     *data

	rules   map[string]*ruleSet // by reference
	order   []*ruleSet          // those without arguments, by number, after those they depend on
	idPaths []ast.Ref           // paths below input.identity that do not vary, by number
	maps    map[ast.Object]map[string]value

	stages [3][]namedRules // allow, terms, reasons; nil where OPA must answer
}

const (
	stageAllow = iota
	stageTerms
	stageReasons
)

type namedRules struct {
	name  string
	rules *ruleSet
}

// value is a Rego value; strings are kept apart, so that most of them need no box. The zero value is undefined.
type value struct {
	v   ast.Value
	s   string
	str bool
}

func stringValue(s string) value { return value{s: s, str: true} }

func valueOf(v ast.Value) value {
	if s, ok := v.(ast.String); ok {
		return value{s: string(s), str: true}
	}
	return value{v: v}
}

func (a value) defined() bool { return a.str || a.v != nil }

func (a value) isFalse() bool { b, ok := a.v.(ast.Boolean); return ok && !bool(b) }

// ast boxes a string.
func (a value) ast() ast.Value {
	if a.str {
		return ast.String(a.s)
	}
	return a.document()
}

// document is the value where it is no string.
func (a value) document() ast.Value {
	if parts, ok := a.v.(*texts); ok {
		terms := make([]*ast.Term, len(parts.list))
		for i, s := range parts.list {
			terms[i] = ast.StringTerm(s)
		}
		return ast.NewArray(terms...)
	}
	return a.v
}

func (a value) equal(b value) bool {
	if a.str || b.str {
		return a.str && b.str && a.s == b.s
	}
	return a.document().Compare(b.document()) == 0
}

// texts are the parts of a string, before anybody needs them as an array. It is only ever found in a value: as an
// ast.Value it is nil.
type texts struct {
	ast.Value
	list []string
}

// ruleSet is all the rules of one name.
type ruleSet struct {
	number   int // -1 for functions
	path     string
	unknown  error // why OPA must answer
	first    *ast.Location
	set      bool  // `contains`
	constant bool  // all values are the same: one true rule is enough
	fallback value // of `default`
	bodies   []body
	deps     deps
	fallible bool // evaluating it can end in an error
}

// body is one rule. With `else` it has another that is tried where it has no value.
type body struct {
	slots    int
	args     []pattern
	run      node
	fallible bool
	orElse   *body
}

// node evaluates an expression and all that come after it, for every solution. It returns true to stop: enough is
// known, or the machine gave up.
type node func(m *machine, base int) bool

// getter evaluates a term whose variables are all bound.
type getter func(m *machine, base int) value

// deps tells what beside identity and data a value depends on.
type deps uint8

const (
	onAccess deps = 1 << iota
	onRequest
)

// errUnknown wraps what the program does not know.
var errUnknown = errors.New("evaluated by OPA")

func unknown(what string, x any) error { return fmt.Errorf("%w: %s %v", errUnknown, what, x) }

// newProgram compiles what it can of the rules of the contract. It is nil where compiling fails in a way that nobody
// thought of: then OPA answers everything.
func newProgram(c *ast.Compiler, d *data, entry ast.Ref) (p *program) {
	defer func() {
		if recover() != nil {
			p = nil
		}
	}()
	p = &program{token: &token{}, compiler: c, data: d, rules: map[string]*ruleSet{}, maps: map[ast.Object]map[string]value{}}
	for stage, rules := range [][]rule{
		{ruleAllow, ruleDeny}, {ruleRole, ruleSessionPolicy, ruleLimits, ruleFilterListing}, {ruleReasons},
	} {
		named := []namedRules{}
		for _, r := range rules {
			ref := entry.Append(ast.StringTerm(r.name))
			if len(c.GetRules(ref)) == 0 {
				continue
			}
			rs := p.ruleSet(ref)
			if rs == nil || rs.unknown != nil {
				named = nil
				break
			}
			named = append(named, namedRules{r.name, rs})
		}
		p.stages[stage] = named
	}
	return p
}

func (p *program) allRules() map[string]*ruleSet {
	if p == nil {
		return nil
	}
	return p.rules
}

// ruleSet is nil where the reference does not name rules exactly.
func (p *program) ruleSet(ref ast.Ref) *ruleSet {
	path := ref.String()
	if rs, ok := p.rules[path]; ok {
		return rs
	}
	rules := p.compiler.GetRulesExact(ref)
	if len(rules) == 0 {
		return nil
	}
	rs := &ruleSet{number: -1, path: path, constant: true, first: rules[0].Location}
	p.rules[path] = rs // Rego has no recursion
	if rs.unknown = p.compileRules(rs, ref, rules); rs.unknown == nil && len(rules[0].Head.Args) == 0 {
		rs.number = len(p.order)
		p.order = append(p.order, rs)
	}
	return rs
}

func (p *program) compileRules(rs *ruleSet, ref ast.Ref, rules []*ast.Rule) error {
	if len(p.compiler.GetRulesWithPrefix(ref)) != len(rules) {
		return unknown("rules below", ref)
	}
	rs.set = rules[0].Head.RuleKind() == ast.MultiValue
	var constant *ast.Term
	values := 0 // how many values there may be
	for _, r := range rules {
		if r.Head.HasDynamicRef() || (r.Head.RuleKind() == ast.MultiValue) != rs.set || len(r.Head.Args) != len(rules[0].Head.Args) {
			return unknown("rule", r.Head)
		}
		if r.Head.RuleKind() == ast.SingleValue && r.Head.Key != nil {
			return unknown("object rule", r.Head)
		}
		if r.Default {
			if !r.Head.Value.IsGround() {
				return unknown("default", r.Head)
			}
			rs.fallback = valueOf(r.Head.Value.Value)
			continue
		}
		for e := r; e != nil; e = e.Else {
			if rs.set || !e.Head.Value.IsGround() || constant != nil && constant.Value.Compare(e.Head.Value.Value) != 0 {
				rs.constant = false
			} else {
				constant = e.Head.Value
			}
		}
	}
	for _, r := range rules {
		if r.Default {
			continue
		}
		b, iterates, err := p.compileRule(rs, r)
		if err != nil {
			return err
		}
		rs.bodies = append(rs.bodies, *b)
		rs.fallible = rs.fallible || b.fallible
		if values++; iterates {
			values++
		}
	}
	if !rs.constant && !rs.set && values > 1 {
		rs.fallible = true // by conflict
	}
	return nil
}

func (p *program) compileRule(rs *ruleSet, r *ast.Rule) (b *body, iterates bool, err error) {
	c := &bodyCompiler{p: p, slots: map[ast.Var]int{}, bound: map[ast.Var]bool{}, texts: map[ast.Var]bool{}}
	b = &body{}
	for _, arg := range r.Head.Args {
		pat, err := c.pattern(arg)
		if err != nil {
			return nil, false, err
		}
		b.args = append(b.args, pat)
	}
	links := make([]func(node) node, len(r.Body))
	for i, e := range r.Body {
		if links[i], err = c.expr(e); err != nil {
			return nil, false, err
		}
	}
	head := r.Head.Value
	if rs.set {
		head = r.Head.Key
	}
	get, err := c.get(head)
	if err != nil {
		return nil, false, err
	}
	tail := yieldValue(get, rs.constant)
	if rs.set {
		tail = yieldMember(get)
	}
	for _, link := range slices.Backward(links) {
		tail = link(tail)
	}
	b.run, b.slots, b.fallible = tail, len(c.slots), c.fallible
	rs.deps |= c.deps
	if r.Else != nil {
		var more bool
		if b.orElse, more, err = p.compileRule(rs, r.Else); err != nil {
			return nil, false, err
		}
		c.iterates = c.iterates || more
		b.fallible = b.fallible || b.orElse.fallible
	}
	return b, c.iterates, nil
}

// bodyCompiler compiles the expressions of one body in order: what is bound at each is known.
type bodyCompiler struct {
	p        *program
	slots    map[ast.Var]int
	bound    map[ast.Var]bool
	texts    map[ast.Var]bool // bound to a string, whatever the input
	deps     deps
	fallible bool
	iterates bool
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
	get, err := c.get(t)
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
		slot := c.bind(v)
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
	pat, err := c.pattern(a)
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
		if len(v) != 2 || !v[0].Equal(ast.InputRootDocument) {
			return false
		}
		name, ok := v[1].Value.(ast.String)
		return ok && slices.Contains(accessFields[:], string(name))
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
				list, ok := v.v.(*ast.Array)
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

// accessFields are the strings of the input that each access has, by number.
var accessFields = [...]string{"action", "operation", "bucket", "key", "version_id", "prefix", "delimiter", "backend"}

const fieldKey = 3

func (c *bodyCompiler) input(ref ast.Ref) (getter, ast.Ref, error) {
	if len(ref) == 1 {
		c.deps |= onAccess | onRequest
		return func(m *machine, _ int) value { return value{v: m.input().Value} }, nil, nil
	}
	name, ok := ref[1].Value.(ast.String)
	if !ok {
		return nil, nil, unknown("reference", ref)
	}
	switch field := slices.Index(accessFields[:], string(name)); {
	case field == fieldKey:
		c.deps |= onAccess
		return func(m *machine, _ int) value {
			return value{s: m.fields[fieldKey], str: m.fields[fieldKey] != ""}
		}, ref[2:], nil
	case field >= 0:
		c.deps |= onAccess
		return func(m *machine, _ int) value { return value{s: m.fields[field], str: true} }, ref[2:], nil
	case name == "identity":
		path := ref[2:]
		n := 0
		for n < len(path) && plainGround(path[n]) {
			n++
		}
		number := c.p.identityPath(path[:n])
		return func(m *machine, _ int) value { return m.known.paths[number] }, path[n:], nil
	case name == "request":
		c.deps |= onRequest
		return func(m *machine, _ int) value { return value{v: m.requestTerm().Value} }, ref[2:], nil
	}
	// The input has nothing of that name.
	return func(*machine, int) value { return value{} }, ref[2:], nil
}

func (p *program) identityPath(path ast.Ref) int {
	for i, have := range p.idPaths {
		if have.Equal(path) {
			return i
		}
	}
	p.idPaths = append(p.idPaths, path.Copy())
	return len(p.idPaths) - 1
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
	if object, ok := base.(ast.Object); ok && n < len(ref) && !c.open(ast.NewTerm(ref[:n+1])) {
		// The usual case: a look-up by a string that comes from the input.
		index := c.p.index(object)
		key, err := c.get(ref[n])
		return func(m *machine, base int) value {
			k := key(m, base)
			if !k.str {
				return m.child(value{v: object}, k, nil)
			}
			return index[k.s]
		}, ref[n+1:], err
	}
	k := valueOf(base)
	return func(*machine, int) value { return k }, ref[n:], nil
}

// index is the object's members with string keys.
func (p *program) index(object ast.Object) map[string]value {
	index, ok := p.maps[object]
	if !ok {
		index = make(map[string]value, object.Len())
		object.Foreach(func(k, v *ast.Term) {
			if s, ok := k.Value.(ast.String); ok {
				index[string(s)] = valueOf(v.Value)
			}
		})
		p.maps[object] = index
	}
	return index
}

// call compiles a call of a function of the policy.
func (c *bodyCompiler) call(operator ast.Ref, terms []*ast.Term) (func(node) node, error) {
	rs := c.p.ruleSet(operator)
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
	args, out, err := c.operands(terms, len(rs.bodies[0].args))
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

// builtin compiles a call of a function of Rego's own. Those that starter policies are made of have a fast form,
// which gives up wherever the real one might fail; the others are called.
func (c *bodyCompiler) builtin(b *ast.Builtin, terms []*ast.Term) (func(node) node, error) {
	switch {
	case b.Relation, b.Decl.Result() == nil, b.Nondeterministic && b.Name != ast.NowNanos.Name, strings.HasPrefix(b.Name, "rego."),
		slices.Contains(heavy, b.Name):
		return nil, unknown("function", b.Name)
	}
	if b.Name == ast.NowNanos.Name {
		c.deps |= onRequest
	}
	arity := b.Decl.Arity()
	if b.Name == ast.Concat.Name && arity < len(terms) {
		if link, err := c.concat(terms); link != nil || err != nil {
			return link, err
		}
	}
	args, out, err := c.operands(terms, arity)
	if err != nil {
		return nil, err
	}
	areTexts := !slices.ContainsFunc(terms[:arity], func(t *ast.Term) bool { return !c.isText(t) })
	apply, infallible := fast(b, args, terms, areTexts, arity > 0 && c.isText(terms[0]))
	if apply == nil {
		apply = slow(b, args)
	}
	c.fallible = c.fallible || !infallible
	if areTexts && len(terms) > arity && textResults[b.Name] {
		if v, ok := terms[arity].Value.(ast.Var); ok {
			c.texts[v] = true
		}
	}
	return func(next node) node {
		return func(m *machine, base int) bool {
			v := apply(m, base)
			if m.gaveUp {
				return true
			}
			return v.defined() && out(m, base, v) && next(m, base)
		}
	}, nil
}

// concat joins the strings of a list that is written where it is used, without making the list. It is nil for
// others.
func (c *bodyCompiler) concat(terms []*ast.Term) (func(node) node, error) {
	separator, ok := terms[0].Value.(ast.String)
	list, isArray := terms[1].Value.(*ast.Array)
	if !ok || !isArray || list.Len() == 0 {
		return nil, nil
	}
	elems := make([]getter, list.Len())
	texts := true
	for i := range elems {
		var err error
		if elems[i], err = c.get(list.Elem(i)); err != nil {
			return nil, err
		}
		texts = texts && c.isText(list.Elem(i))
	}
	c.fallible = c.fallible || !texts
	if v, ok := terms[2].Value.(ast.Var); ok && !c.bound[v] {
		c.texts[v] = true
	}
	out, err := c.pattern(terms[2])
	return func(next node) node {
		return func(m *machine, base int) bool {
			buf := m.text[:0]
			for i, elem := range elems {
				v := elem(m, base)
				switch {
				case m.gaveUp:
					return true
				case !v.defined():
					return false
				case !v.str:
					m.giveUp()
					return true
				}
				if i > 0 {
					buf = append(buf, separator...)
				}
				buf = append(buf, v.s...)
			}
			m.text = buf
			return out(m, base, stringValue(string(buf))) && next(m, base)
		}
	}, err
}

// heavy are functions that are not worth beginning where OPA may have to do it all again, that say something, or that
// look at the clock unasked: what was known of a subject would outlive a certificate.
var heavy = []string{
	ast.NumbersRange.Name, ast.NumbersRangeStep.Name, ast.NetCIDRExpand.Name, ast.ReachableBuiltin.Name, ast.ReachablePathsBuiltin.Name, ast.Trace.Name,
	ast.CryptoX509ParseAndVerifyCertificates.Name, ast.CryptoX509ParseAndVerifyCertificatesWithOptions.Name,
}

// textResults make a string of strings.
var textResults = map[string]bool{
	ast.TrimPrefix.Name: true, ast.TrimSuffix.Name: true, ast.Lower.Name: true, ast.Upper.Name: true,
}

// fast is nil for functions that have no form of their own. infallible tells that no argument can make it fail.
func fast(b *ast.Builtin, args []getter, terms []*ast.Term, areTexts, isText bool) (apply getter, infallible bool) {
	onStrings := func(f func(a, b string) bool) getter {
		return func(m *machine, base int) value {
			a, b := args[0](m, base), args[1](m, base)
			if !a.defined() || !b.defined() {
				return value{}
			}
			if !a.str || !b.str {
				return m.giveUp()
			}
			return boolean(f(a.s, b.s))
		}
	}
	compare := func(f func(order int) bool) getter {
		return func(m *machine, base int) value {
			a, b := args[0](m, base), args[1](m, base)
			if !a.defined() || !b.defined() {
				return value{}
			}
			if a.str && b.str {
				return boolean(f(strings.Compare(a.s, b.s)))
			}
			return boolean(f(a.ast().Compare(b.ast())))
		}
	}
	switch b.Name {
	case ast.StartsWith.Name:
		return onStrings(strings.HasPrefix), areTexts
	case ast.EndsWith.Name:
		return onStrings(strings.HasSuffix), areTexts
	case ast.Contains.Name:
		return onStrings(strings.Contains), areTexts
	case ast.Equal.Name:
		return compare(func(o int) bool { return o == 0 }), true
	case ast.NotEqual.Name:
		return compare(func(o int) bool { return o != 0 }), true
	case ast.LessThan.Name:
		return compare(func(o int) bool { return o < 0 }), true
	case ast.LessThanEq.Name:
		return compare(func(o int) bool { return o <= 0 }), true
	case ast.GreaterThan.Name:
		return compare(func(o int) bool { return o > 0 }), true
	case ast.GreaterThanEq.Name:
		return compare(func(o int) bool { return o >= 0 }), true
	case ast.Member.Name:
		return member(args, terms), true
	case ast.NowNanos.Name:
		return func(m *machine, _ int) value {
			return value{v: ast.Number(json.Number(strconv.FormatInt(m.eval.now.UnixNano(), 10)))}
		}, true
	case ast.IsString.Name:
		return func(m *machine, base int) value {
			v := args[0](m, base)
			if !v.defined() {
				return value{}
			}
			return boolean(v.str)
		}, true
	case ast.RegexMatch.Name:
		pattern, ok := terms[0].Value.(ast.String)
		if !ok {
			return nil, false
		}
		re, err := regexp.Compile(string(pattern))
		if err != nil {
			return nil, false
		}
		return func(m *machine, base int) value {
			v := args[1](m, base)
			if !v.defined() {
				return value{}
			}
			if !v.str {
				return m.giveUp()
			}
			return boolean(re.MatchString(v.s))
		}, areTexts
	case ast.Split.Name, ast.SplitN.Name:
		delimiter, ok := terms[1].Value.(ast.String)
		if !ok || delimiter == "" {
			return nil, false
		}
		limit := -1
		if b.Name == ast.SplitN.Name {
			n, _ := terms[2].Value.(ast.Number) // "" is no integer either
			if limit, ok = n.Int(); !ok || limit < 0 || limit > 1000 {
				return nil, false
			}
		}
		return func(m *machine, base int) value {
			v := args[0](m, base)
			switch {
			case !v.defined():
				return value{}
			case !v.str:
				return m.giveUp()
			case limit < 0:
				return value{v: &texts{list: strings.Split(v.s, string(delimiter))}}
			}
			list := strings.SplitN(v.s, string(delimiter), limit+1)
			return value{v: &texts{list: list[:min(limit, len(list))]}}
		}, isText
	case ast.TrimPrefix.Name:
		return func(m *machine, base int) value {
			a, b := args[0](m, base), args[1](m, base)
			if !a.defined() || !b.defined() {
				return value{}
			}
			if !a.str || !b.str {
				return m.giveUp()
			}
			return stringValue(strings.TrimPrefix(a.s, b.s))
		}, areTexts
	}
	switch b.Name {
	case ast.TrimSuffix.Name, ast.Lower.Name, ast.Upper.Name:
		return nil, areTexts
	case ast.TypeNameBuiltin.Name, ast.IsArray.Name, ast.IsBoolean.Name, ast.IsNumber.Name, ast.IsObject.Name, ast.IsSet.Name, ast.IsNull.Name:
		return nil, true
	}
	return nil, false
}

func boolean(b bool) value {
	if b {
		return value{v: ast.Boolean(true)}
	}
	return value{v: ast.Boolean(false)}
}

// member is `x in collection`.
func member(args []getter, terms []*ast.Term) getter {
	// A literal set of strings, as policies compare actions with, is made a map.
	if set, ok := terms[1].Value.(ast.Set); ok && plainGround(terms[1]) {
		names := make(map[string]bool, set.Len())
		texts := true
		set.Foreach(func(t *ast.Term) {
			s, ok := t.Value.(ast.String)
			texts = texts && ok
			names[string(s)] = true
		})
		if texts {
			return func(m *machine, base int) value {
				v := args[0](m, base)
				if !v.defined() {
					return value{}
				}
				return boolean(v.str && names[v.s])
			}
		}
	}
	return func(m *machine, base int) value {
		v, in := args[0](m, base), args[1](m, base)
		if !v.defined() || !in.defined() {
			return value{}
		}
		switch list := in.document().(type) {
		case ast.Set:
			return boolean(list.Contains(ast.NewTerm(v.ast())))
		case *ast.Array:
			for i := range list.Len() {
				if v.equal(valueOf(list.Elem(i).Value)) {
					return boolean(true)
				}
			}
		case ast.Object:
			return boolean(list.Until(func(_, elem *ast.Term) bool { return v.equal(valueOf(elem.Value)) }))
		}
		return boolean(false)
	}
}

// slow calls the function itself.
func slow(b *ast.Builtin, args []getter) getter {
	f := topdown.GetBuiltin(b.Name)
	return func(m *machine, base int) value {
		operands := make([]*ast.Term, len(args))
		for i, arg := range args {
			v := arg(m, base)
			if !v.defined() || m.gaveUp {
				return value{}
			}
			operands[i] = ast.NewTerm(v.ast())
		}
		if m.eval != nil && m.eval.Cancelled() {
			return m.giveUp() // OPA finds the same, and says so
		}
		var result value
		n := 0
		err := f(m.builtin, operands, func(t *ast.Term) error {
			result = valueOf(t.Value)
			n++
			return nil
		})
		if err != nil || n > 1 {
			return m.giveUp()
		}
		return result
	}
}
