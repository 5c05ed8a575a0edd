package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// page judges all keys of a listing's page in one evaluation, for policies that the program does not know. Every rule
// that looks at the key, by itself or through another, has become a function of the key; what is left is evaluated once
// for the page, and OPA keeps it. The functions have the rules' own bodies, defaults, elses and conflicts, so a key is
// judged as by itself; only what fails for a key that is hidden anyway may go unnoticed.
type page struct {
	compiler *ast.Compiler
	query    *query
}

var (
	// pagePackage cannot be written in a policy without meaning it, nor can the input's pageKeys.
	pagePackage = ast.Ref{ast.DefaultRootDocument, ast.StringTerm("sluice: page")}
	pageKeys    = ast.StringTerm("sluice: keys")
	pageKey     = ast.VarTerm("__page_key__")
	pageVisible = rule{name: "visible"}
)

// errNotPaged wraps why keys are judged one by one.
var errNotPaged = errors.New("judged key by key")

func notPaged(what string, x any) error { return fmt.Errorf("%w: %s %v", errNotPaged, what, x) }

// newPage needs the modules that c compiled. An error is a policy that it cannot be done for.
func newPage(c *ast.Compiler, modules map[string]*ast.Module, data *data, entry ast.Ref) (*page, error) {
	allow, deny := entry.Append(ast.StringTerm(ruleAllow.name)), entry.Append(ast.StringTerm(ruleDeny.name))
	for _, r := range c.GetRules(deny) {
		if r.Head.RuleKind() != ast.MultiValue {
			return nil, notPaged("rule", deny)
		}
	}
	b := &pageBuilder{compiler: c, deny: deny, functions: map[string]*ast.Term{}}
	module, err := b.build(allow, deny)
	if err != nil {
		return nil, err
	}
	paged := maps.Clone(modules)
	paged[pagePackage.String()] = module
	p := &page{compiler: newCompiler(capabilities(), data)}
	if p.compiler.Compile(paged); p.compiler.Failed() {
		return nil, notPaged("compile", p.compiler.Errors)
	}

	// visible = [i | key = input["sluice: keys"][i]; allow = true; not deny]
	i := ast.VarTerm("__page_index__")
	body := ast.NewBody(
		ast.Equality.Expr(pageKey, ast.RefTerm(ast.InputRootDocument, pageKeys, i)),
		ast.Equality.Expr(b.value(allow), ast.BooleanTerm(true)),
	)
	if f := b.functions[deny.String()]; f != nil {
		body.Append(ast.NewExpr([]*ast.Term{f, pageKey}).Complement())
	} else if len(c.GetRules(deny)) > 0 {
		body.Append(ast.Equality.Expr(ast.NewTerm(deny), ast.SetTerm()))
	}
	p.query = &query{compiler: p.compiler.QueryCompiler(), rules: []*rule{&pageVisible}, listed: []bool{false}}
	p.query.body, err = p.query.compiler.Compile(ast.NewBody(ast.Equality.Expr(ast.VarTerm(pageVisible.name), ast.ArrayComprehensionTerm(i, body))))
	if err != nil {
		return nil, notPaged("query", err)
	}
	return p, nil
}

// visible judges the keys. q has one access, without its key.
func (s *snapshot) visiblePage(e *evaluation, q *Question, keys []string) ([]bool, error) {
	list := make([]*ast.Term, len(keys))
	for i, key := range keys {
		list[i] = stringTerm(key)
	}
	input := accessInput(&q.Accesses[0], stringTerm(q.Operation), q.Subject.term(), requestTerm(q.Request))
	input.Value.(ast.Object).Insert(pageKeys, ast.ArrayTerm(list...))
	visible := make([]bool, len(keys))
	paged := *s
	paged.compiler = s.page.compiler
	err := paged.run(s.page.query, e, input, topdown.NewVirtualCache(), func(_ *rule, v ast.Value) {
		v.(*ast.Array).Foreach(func(t *ast.Term) {
			if i, ok := t.Value.(ast.Number).Int(); ok && keys[i] != "" {
				visible[i] = true
			}
		})
	})
	return visible, err
}

// pageBuilder writes the module of functions.
type pageBuilder struct {
	compiler  *ast.Compiler
	deny      ast.Ref
	functions map[string]*ast.Term // by the path of the rule that it is for: its reference
}

// build makes a function of each rule that allow and deny need and that depends on the key.
func (b *pageBuilder) build(entries ...ast.Ref) (*ast.Module, error) {
	needed := map[*ast.Rule]bool{}
	var need func(r *ast.Rule)
	need = func(r *ast.Rule) {
		if needed[r] {
			return
		}
		needed[r] = true
		for d := range b.compiler.Graph.Dependencies(r) {
			if d, ok := d.(*ast.Rule); ok {
				need(d)
			}
		}
	}
	for _, entry := range entries {
		for _, r := range b.compiler.GetRules(entry) {
			need(r)
		}
	}

	// What depends on the key does so together: all the rules of one path.
	keyed := map[string]bool{}
	for r := range needed {
		if looksAtKey(r) {
			keyed[r.Ref().GroundPrefix().String()] = true
		}
	}
	for changed := true; changed; {
		changed = false
		for r := range needed {
			path := r.Ref().GroundPrefix().String()
			if keyed[path] {
				continue
			}
			for d := range b.compiler.Graph.Dependencies(r) {
				if d, ok := d.(*ast.Rule); ok && keyed[d.Ref().GroundPrefix().String()] {
					keyed[path], changed = true, true
					break
				}
			}
		}
	}

	var rules []*ast.Rule
	for r := range needed {
		if keyed[r.Ref().GroundPrefix().String()] {
			rules = append(rules, r)
		}
	}
	slices.SortFunc(rules, func(a, b *ast.Rule) int { return a.Location.Compare(b.Location) })
	for i, path := range slices.Sorted(maps.Keys(keyed)) {
		b.functions[path] = ast.NewTerm(pagePackage.Append(ast.StringTerm(fmt.Sprintf("f%d", i))))
	}
	module := &ast.Module{Package: &ast.Package{Path: pagePackage, Location: &ast.Location{}}}
	module.SetRegoVersionSpan(ast.RegoVersionSpanOf(ast.RegoV1))
	for _, r := range rules {
		made, err := b.function(r)
		if err != nil {
			return nil, err
		}
		for part := made; part != nil; part = part.Else {
			part.Module = module
		}
		module.Rules = append(module.Rules, made)
	}
	return module, nil
}

// looksAtKey: by itself.
func looksAtKey(r *ast.Rule) (looks bool) {
	eachRef(r, func(ref ast.Ref) { looks = looks || isKey(ref) })
	return looks
}

// isKey: who looks at the whole input, or at a part of it that is known only later, may look at the key.
func isKey(ref ast.Ref) bool {
	if !ref[0].Equal(ast.InputRootDocument) {
		return false
	}
	if len(ref) == 1 {
		return true
	}
	_, isText := ref[1].Value.(ast.String)
	return !isText || ref[1].Equal(keyKey)
}

// eachRef finds all references, those within others too, and input where it stands alone.
func eachRef(x any, found func(ast.Ref)) {
	ast.WalkTerms(x, func(t *ast.Term) bool {
		ref, ok := t.Value.(ast.Ref)
		if !ok {
			if t.Equal(ast.InputRootDocument) {
				found(ast.Ref{t})
			}
			return false
		}
		found(ref)
		for i, part := range ref {
			if _, isVar := part.Value.(ast.Var); i > 0 || !isVar {
				eachRef(part, found)
			}
		}
		return true
	})
}

// function is the rule as a function of the key.
func (b *pageBuilder) function(r *ast.Rule) (*ast.Rule, error) {
	path := r.Ref()
	if !path.IsGround() {
		return nil, notPaged("rule", path)
	}
	if r.Else != nil && len(b.compiler.GetRulesExact(path)) > 1 {
		return nil, notPaged("else beside other rules of", path) // which of them OPA tries, and leaves out, is its own affair
	}
	made := r.Copy()
	name := b.functions[path.String()].Value.(ast.Ref)
	isDeny := path.Equal(b.deny)
	for part := made; part != nil; part = part.Else {
		switch kind := part.Head.RuleKind(); {
		case kind == ast.SingleValue && !isDeny:
		case kind == ast.MultiValue && isDeny && part.Else == nil:
			// Whether there is a reason is all that matters. What it needs to be there the compiler put into the body.
			part.Head.Key, part.Head.Value = nil, ast.BooleanTerm(true)
		default:
			return nil, notPaged("rule", path)
		}
		short := ast.Var(name[len(name)-1].Value.(ast.String))
		part.Head.Name, part.Head.Reference = short, ast.Ref{ast.NewTerm(short)}
		part.Head.Args = append(ast.Args{pageKey}, part.Head.Args...)
		var err error
		if part.Head.Value, err = b.term(part.Head.Value); err != nil {
			return nil, err
		}
		if part.Body, err = b.body(part.Body); err != nil {
			return nil, err
		}
	}
	return made, nil
}

func (b *pageBuilder) body(body ast.Body) (ast.Body, error) {
	var err error
	ast.WalkExprs(body, func(e *ast.Expr) bool {
		if len(e.With) > 0 {
			err = notPaged("with in", e)
		}
		switch terms := e.Terms.(type) {
		case *ast.Term:
			if f := b.functions[terms.String()]; f != nil {
				e.Terms = []*ast.Term{f, pageKey}
			}
		case []*ast.Term:
			if f := b.functions[terms[0].String()]; f != nil {
				e.Terms = append([]*ast.Term{f, pageKey}, terms[1:]...)
			}
		}
		if _, isBody := e.Terms.(*ast.Not); e.Negated && !isBody {
			// The compiler takes calls out of an expression, and out of its negation with it: what is undefined
			// would be so for the whole.
			eachRef(e, func(ref ast.Ref) {
				if b.within(ref) > 0 {
					err = notPaged("negation of", e)
				}
			})
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	done, err := ast.TransformRefs(body, b.ref)
	if err != nil {
		return nil, err
	}
	return done.(ast.Body), b.complete(done)
}

func (b *pageBuilder) term(t *ast.Term) (*ast.Term, error) {
	done, err := ast.TransformRefs(t.Value, b.ref)
	if err != nil {
		return nil, err
	}
	made := ast.NewTerm(done.(ast.Value))
	made.Location = t.Location
	return made, b.complete(made)
}

// within is how much of a reference is the name of a rule that has become a function, 0 where none of it is.
func (b *pageBuilder) within(ref ast.Ref) int {
	for n := 2; n <= len(ref); n++ {
		if b.functions[ref[:n].String()] != nil {
			return n
		}
	}
	return 0
}

// ref is what stands in a reference's place.
func (b *pageBuilder) ref(ref ast.Ref) (ast.Value, error) {
	if ref[0].Equal(ast.InputRootDocument) && len(ref) > 1 && ref[1].Equal(keyKey) {
		if len(ref) == 2 {
			return pageKey.Value, nil
		}
		return append(ast.Ref{pageKey}, ref[2:]...), nil
	}
	n := b.within(ref)
	if n == 0 {
		return ref, nil
	}
	call := ast.Call{b.functions[ref[:n].String()], pageKey}
	if n == len(ref) {
		return call, nil
	}
	return append(ast.Ref{ast.NewTerm(call)}, ref[n:]...), nil
}

// complete refuses where a way to the key is left.
func (b *pageBuilder) complete(x any) (err error) {
	eachRef(x, func(ref ast.Ref) {
		switch {
		case isKey(ref):
			err = notPaged("reference", ref)
		case ref[0].Equal(ast.DefaultRootDocument):
			// A part of the policy that is known only when it is evaluated, or that holds rules.
			ground := ref.GroundPrefix()
			for path := range b.functions {
				if ast.MustParseRef(path).HasPrefix(ground) {
					err = notPaged("reference", ref)
				}
			}
		}
	})
	return err
}

// value is a rule's value for the key, where it depends on it.
func (b *pageBuilder) value(path ast.Ref) *ast.Term {
	if f := b.functions[path.String()]; f != nil {
		return ast.CallTerm(f, pageKey)
	}
	return ast.NewTerm(path)
}
