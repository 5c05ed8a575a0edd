package policy

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// InputSchema is the JSON schema of the input, which `opa check --schema` and editors read.
//
//go:embed input.schema.json
var InputSchema []byte

// Finding is something in a policy that works, but probably not as its author thinks.
type Finding struct {
	Kind    string `json:"kind"` // type, schema, strict, cost or speed
	File    string `json:"file"`
	Line    int    `json:"line"`
	Message string `json:"message"`
}

func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", f.File, f.Line, f.Kind, f.Message)
}

// Mistake tells whether the rule never does what its author thinks, rather than doing it slowly.
func (f Finding) Mistake() bool { return f.Kind == "type" || f.Kind == "schema" || f.Kind == "strict" }

// Lint looks through the policy in force: for rules of a type, or limits of a name, that is never understood (type), for
// fields that the input does not have (schema), for what `opa check --strict` finds (strict), for rules whose cost grows
// with the data (cost), and for those that the fast path leaves to OPA (speed).
func (e *Engine) Lint() []Finding {
	s := e.current.Load()
	if s == nil {
		return nil
	}
	findings := slices.Concat(s.mistyped, s.lintTypes(), s.lintCost())
	for _, name := range sortedKeys(s.program.allRules()) {
		if rs := s.program.rules[name]; rs.unknown != nil && rs.first != nil {
			findings = append(findings, Finding{
				Kind: "speed", File: rs.first.File, Line: rs.first.Row,
				Message: fmt.Sprintf("%s is %v: slower than the rest, but right", strings.TrimPrefix(rs.path, "data."), rs.unknown),
			})
		}
	}
	if s.noPage != nil {
		at := s.compiler.GetRules(s.entry.Append(ast.StringTerm(ruleFilterListing.name)))[0].Location
		findings = append(findings, Finding{Kind: "speed", File: at.File, Line: at.Row, Message: fmt.Sprintf("listings are %v", s.noPage)})
	}
	slices.SortStableFunc(findings, func(a, b Finding) int {
		if a.File != b.File {
			return strings.Compare(a.File, b.File)
		}
		return a.Line - b.Line
	})
	return slices.Compact(findings)
}

// lintTypes compiles the policy again, knowing what the input looks like.
func (s *snapshot) lintTypes() []Finding {
	var schema any
	if err := json.Unmarshal(InputSchema, &schema); err != nil {
		return []Finding{{Kind: "schema", Message: err.Error()}}
	}
	caps := capabilities()
	modules, _, err := s.files.parse(caps)
	if err != nil {
		return []Finding{{Kind: "schema", Message: err.Error()}}
	}
	set := ast.NewSchemaSet()
	set.Put(ast.SchemaRootRef, schema)
	var findings []Finding
	note := func(kind string, c *ast.Compiler) {
		for _, e := range c.Errors {
			findings = append(findings, Finding{Kind: kind, File: e.Location.File, Line: e.Location.Row, Message: e.Message})
		}
	}
	c := newCompiler(caps, s.data).WithSchemas(set)
	c.Compile(modules)
	note("schema", c)
	modules, _, _ = s.files.parse(caps)
	c = newCompiler(caps, s.data).WithStrict(true)
	c.Compile(modules)
	note("strict", c)
	return findings
}

// lintCost finds what looks through base data.
func (s *snapshot) lintCost() []Finding {
	l := &costs{snapshot: s}
	for _, name := range sortedKeys(s.compiler.Modules) {
		for _, r := range s.compiler.Modules[name].Rules {
			for ; r != nil; r = r.Else {
				bound := map[ast.Var]bool{}
				for _, arg := range r.Head.Args {
					l.bind(arg, bound)
				}
				l.body(r.Body, bound, map[ast.Var]ast.Ref{})
			}
		}
	}
	return l.findings
}

type costs struct {
	*snapshot
	findings []Finding
}

func (l *costs) bind(x any, bound map[ast.Var]bool) {
	ast.WalkVars(x, func(v ast.Var) bool { bound[v] = true; return false })
}

// body goes through the expressions in order, as evaluation does: a variable is looked for where it appears first,
// and looked up with everywhere after.
func (l *costs) body(body ast.Body, bound map[ast.Var]bool, stands map[ast.Var]ast.Ref) {
	for _, e := range body {
		l.expr(e, bound, stands)
	}
}

func (l *costs) expr(e *ast.Expr, bound map[ast.Var]bool, stands map[ast.Var]ast.Ref) {
	if terms, ok := e.Terms.([]*ast.Term); ok {
		if e.IsEquality() {
			if v, ok := terms[1].Value.(ast.Var); ok {
				if ref, ok := terms[2].Value.(ast.Ref); ok && l.collection(ref) {
					stands[v] = ref
				}
			}
		} else if name := terms[0].Value.String(); ast.BuiltinMap[name] != nil && !slices.Contains(cheap, name) {
			for _, arg := range terms[1:] {
				ref, ok := arg.Value.(ast.Ref)
				if v, isVar := arg.Value.(ast.Var); isVar {
					ref, ok = stands[v], stands[v] != nil
				}
				if ok && l.collection(ref) {
					l.found(e, ref)
				}
			}
		}
	}
	within := map[ast.Var]bool{}
	for v := range bound {
		within[v] = true
	}
	vis := ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case ast.Ref:
			for i, part := range x[1:] {
				if v, ok := part.Value.(ast.Var); ok && !bound[v] && l.collection(x[:i+1]) {
					l.found(e, x[:i+1])
					break
				}
			}
		case *ast.ArrayComprehension:
			l.nested(x.Body, e, within, stands)
			return true
		case *ast.SetComprehension:
			l.nested(x.Body, e, within, stands)
			return true
		case *ast.ObjectComprehension:
			l.nested(x.Body, e, within, stands)
			return true
		case *ast.Every:
			domain := ast.NewBody(ast.NewExpr(x.Domain))
			l.body(domain, within, stands)
			if ref, ok := x.Domain.Value.(ast.Ref); ok && l.collection(ref) {
				l.found(e, ref)
			}
			if v, ok := x.Domain.Value.(ast.Var); ok && stands[v] != nil {
				l.found(e, stands[v])
			}
			l.nested(x.Body, e, within, stands)
			return true
		}
		return false
	})
	vis.Walk(e)
	if !e.Negated {
		l.bind(e, bound)
	}
}

func (l *costs) nested(body ast.Body, _ *ast.Expr, bound map[ast.Var]bool, stands map[ast.Var]ast.Ref) {
	inner := map[ast.Var]bool{}
	for v := range bound {
		inner[v] = true
	}
	l.body(body, inner, stands)
}

// cheap do not look at every element of what they are given.
var cheap = []string{
	ast.Equality.Name, ast.ObjectGet.Name, ast.Count.Name, ast.IsArray.Name, ast.IsObject.Name, ast.TypeNameBuiltin.Name,
	ast.IsString.Name, ast.IsBoolean.Name, ast.IsNumber.Name, ast.IsNull.Name, ast.IsSet.Name,
}

// collection: the reference names data that is no rule's, an array or an object, by constants alone.
func (l *costs) collection(ref ast.Ref) bool {
	if len(ref) < 2 || !ref[0].Equal(ast.DefaultRootDocument) || !ref.IsGround() || len(l.compiler.GetRules(ref)) > 0 {
		return false
	}
	switch l.data.Get(ref).(type) {
	case *ast.Array, ast.Object:
		return true
	}
	return false
}

func (l *costs) found(e *ast.Expr, ref ast.Ref) {
	loc := e.Location
	l.findings = append(l.findings, Finding{
		Kind: "cost", File: loc.File, Line: loc.Row,
		Message: fmt.Sprintf("looks through %s: the more there is in it, the longer each decision takes. Key it by what you look for, and look that up: %[1]s[input.…]", ref),
	})
}
