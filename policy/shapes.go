package policy

import (
	"github.com/open-policy-agent/opa/v1/ast"
)

// expression is one of a body's by itself, for grounds.
type expression struct {
	link  func(next node) node
	reads []int  // slots that are bound before it
	shape *shape // nil = none of those that are known
}

// shape is what an expression says, where it is of a kind that can be told by the texts of an access.
type shape struct {
	says    saying
	negated bool
	of      *operand
	with    *operand
	to      []int // slots for what comes of it
	// splits
	separator string
	most      int
	// calls
	rules *ruleSet
	args  []*operand
}

type saying uint8

const (
	isTrue saying = iota
	binds
	equals
	differs
	startsWith
	endsWith
	contains
	isIn
	splits
	takesApart // a list
	calls      // a function of the policy

	// What grounds say besides.
	always
	isDefined
)

// operand is a term of an expression. What varies within a place is read by one of the other ways.
type operand struct {
	get   getter
	reads []int
	field int // of the access; -1 = it is none
	slot  int // -1 = it is no variable
	rules *ruleSet
	in    *operand // and key: it is a member
	key   *operand
}

// negation is nil where it says nothing that can be negated.
func (s *shape) negation() *shape {
	if s == nil || s.negated || s.to != nil {
		return nil
	}
	not := *s
	not.negated = true
	return &not
}

// operand is nil for what does not compile.
func (c *bodyCompiler) operand(t *ast.Term) *operand {
	cost := c.cost
	get, err := c.get(t)
	c.cost = cost // once is enough
	if err != nil {
		return nil
	}
	o := &operand{get: get, reads: c.reads(t), field: -1, slot: -1}
	switch v := t.Value.(type) {
	case ast.Var:
		o.slot = c.slot(v)
	case ast.Ref:
		if field := accessField(v); field >= fieldsOfPlace {
			o.field = field
		} else if rs := c.p.rules[v.String()]; rs != nil && !rs.set {
			o.rules = rs
		} else if last := len(v) - 1; last > 1 {
			o.in, o.key = c.operand(ast.NewTerm(v[:last])), c.operand(v[last])
		} else if last == 1 && len(o.reads) > 0 {
			o.in, o.key = c.operand(v[0]), c.operand(v[last])
		}
		if o.in == nil || o.key == nil {
			o.in, o.key = nil, nil
		}
	}
	return o
}

// reads are the slots that are bound and that x, a term or an expression, reads.
func (c *bodyCompiler) reads(x any) (slots []int) {
	ast.WalkVars(x, func(v ast.Var) bool {
		if c.bound[v] {
			slots = append(slots, c.slot(v))
		}
		return false
	})
	return slots
}

// isNew: the term is a variable that is not bound yet.
func (c *bodyCompiler) isNew(t *ast.Term) bool {
	v, ok := t.Value.(ast.Var)
	return ok && !c.bound[v] && !ast.RootDocumentNames.Contains(t)
}

// newList is the slots of a list of new variables; nil for any other term.
func (c *bodyCompiler) newList(t *ast.Term) (slots []int) {
	list, ok := t.Value.(*ast.Array)
	if !ok {
		return nil
	}
	seen := map[int]bool{}
	for i := range list.Len() {
		if !c.isNew(list.Elem(i)) {
			return nil
		}
		slot := c.slot(list.Elem(i).Value.(ast.Var))
		if seen[slot] {
			return nil
		}
		seen[slot], slots = true, append(slots, slot)
	}
	return slots
}

// newOut is the slot for the result of a call, where that is a new variable.
func (c *bodyCompiler) newOut(terms []*ast.Term, arity int) []int {
	if len(terms) != arity+1 || !c.isNew(terms[arity]) {
		return nil
	}
	return []int{c.slot(terms[arity].Value.(ast.Var))}
}

// tests are the functions that are tests of a text.
var tests = map[string]saying{
	ast.StartsWith.Name: startsWith, ast.EndsWith.Name: endsWith, ast.Contains.Name: contains,
	ast.Equal.Name: equals, ast.NotEqual.Name: differs, ast.Member.Name: isIn,
}

func (c *bodyCompiler) builtinShape(b *ast.Builtin, terms []*ast.Term, arity int, to []int) *shape {
	if says, ok := tests[b.Name]; ok && len(terms) == arity {
		return &shape{says: says, of: c.operand(terms[0]), with: c.operand(terms[1])}
	}
	if b.Name == ast.Split.Name || b.Name == ast.SplitN.Name {
		if separator, most, ok := splitBy(b, terms); ok && to != nil {
			return &shape{says: splits, of: c.operand(terms[0]), to: to, separator: separator, most: most}
		}
	}
	return nil
}
