package policy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// A program is the part of a policy that most of its decisions need, compiled further than OPA compiles it: rule
// bodies are chains of closures over numbered slots, and references to data are resolved. It is a short cut, never an
// authority: it knows a part of Rego, and whenever it meets anything else (an error, a conflict, a kind of expression
// that it does not know) it gives up, and OPA answers. A differential test holds it to OPA.
//
// Giving up must not depend on the order in which rules are tried, for OPA has its own. So where one true rule
// would be enough, those after it that could fail are still tried.
//
// In the order in which it happens: this file compiles rules, expressions.go their expressions, builtins.go the
// functions that are called there; what the program does not know is an errUnknown of these three. machine.go runs
// it, place.go cuts it down to what is left where the same identity asks again, and grounds.go tells what of that is
// enough to allow a request.
type program struct {
	compiler *ast.Compiler
	data     *data
	revision string

	rules map[string]*ruleSet // by reference
	order []*ruleSet          // those without arguments, by number, after those they depend on
	maps  map[ast.Object]value

	stages [3][]namedRules // allow, terms, reasons; nil where OPA must answer
	places *places
}

type namedRules struct {
	rule  *rule
	rules *ruleSet
}

// ruleSet is all the rules of one name.
type ruleSet struct {
	number   int // -1 for functions
	path     string
	texts    []bool // arguments that are strings
	unknown  error  // why OPA must answer
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
	cost     int // an estimate, to try the cheapest first

	// For places: run, noting in machine.reached which expression it has come to; what is left from each expression
	// on; and how many slots are bound before it.
	noting node
	from   []node
	bound  []int

	// For grounds: the expressions by themselves, and how many there are up to the last that can fail.
	exprs    []expression
	argSlots []int // of arguments that are variables; -1 for others
	head     *operand
	risky    int
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
func newProgram(c *ast.Compiler, d *data, entry ast.Ref, revision string) (p *program) {
	defer func() {
		if recover() != nil {
			p = nil
		}
	}()
	p = &program{compiler: c, data: d, revision: revision, rules: map[string]*ruleSet{}, maps: map[ast.Object]value{}}
	for stage, rules := range stages {
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
			named = append(named, namedRules{r, rs})
		}
		p.stages[stage] = named
	}
	p.places = newPlaces(len(p.order))
	return p
}

func (p *program) allRules() map[string]*ruleSet {
	if p == nil {
		return nil
	}
	return p.rules
}

// ruleSet is nil where the reference does not name rules exactly. A function is compiled for each way in which it is
// called: texts are the arguments that are strings whatever the input, of which more is known to be free of errors.
func (p *program) ruleSet(ref ast.Ref, texts ...bool) *ruleSet {
	path := ref.String()
	name := path
	if slices.Contains(texts, true) {
		name = fmt.Sprint(path, texts)
	}
	if rs, ok := p.rules[name]; ok {
		return rs
	}
	rules := p.compiler.GetRulesExact(ref)
	if len(rules) == 0 {
		return nil
	}
	rs := &ruleSet{number: -1, path: path, texts: texts, constant: true, first: rules[0].Location}
	p.rules[name] = rs // Rego has no recursion
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
	for i, arg := range r.Head.Args {
		if v, ok := arg.Value.(ast.Var); ok && i < len(rs.texts) && rs.texts[i] {
			c.texts[v] = true
		}
		slot := -1
		if c.isNew(arg) {
			slot = c.slot(arg.Value.(ast.Var))
		}
		pat, err := c.pattern(arg)
		if err != nil {
			return nil, false, err
		}
		b.args, b.argSlots = append(b.args, pat), append(b.argSlots, slot)
	}
	b.exprs = make([]expression, len(r.Body))
	b.bound = make([]int, len(r.Body)+1)
	last := len(r.Body) // the last expression that is come to but once
	for i, e := range r.Body {
		b.bound[i] = len(c.slots)
		failing := c.fallible
		c.fallible, c.shape = false, nil
		part := &b.exprs[i]
		part.reads = c.reads(e)
		if part.link, err = c.expr(e); err != nil {
			return nil, false, err
		}
		part.shape = c.shape
		if c.fallible {
			b.risky = i + 1
		}
		c.fallible = c.fallible || failing
		if c.iterates {
			last = min(last, i)
		}
	}
	b.bound[len(r.Body)] = len(c.slots)
	head := r.Head.Value
	if rs.set {
		head = r.Head.Key
	}
	get, err := c.get(head)
	if err != nil {
		return nil, false, err
	}
	b.head = c.operand(head)
	tail := yieldValue(get, rs.constant)
	if rs.set {
		tail = yieldMember(get)
	}
	b.from = make([]node, len(b.exprs)+1)
	b.from[len(b.exprs)], b.noting = tail, note(len(b.exprs), last, tail)
	for i, e := range slices.Backward(b.exprs) {
		b.from[i] = e.link(b.from[i+1])
		b.noting = note(i, last, e.link(b.noting))
	}
	b.run, b.slots, b.fallible, b.cost = b.from[0], len(c.slots), c.fallible, c.cost+len(b.exprs)
	rs.deps |= c.deps
	if r.Else != nil {
		b.cost *= 2
		var more bool
		if b.orElse, more, err = p.compileRule(rs, r.Else); err != nil {
			return nil, false, err
		}
		c.iterates = c.iterates || more
		b.fallible = b.fallible || b.orElse.fallible
	}
	return b, c.iterates, nil
}
