package policy

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

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
	to := c.newOut(terms, arity)
	args, out, err := c.operands(terms, arity)
	if err != nil {
		return nil, err
	}
	c.shape = c.builtinShape(b, terms, arity, to)
	areTexts := !slices.ContainsFunc(terms[:arity], func(t *ast.Term) bool { return !c.isText(t) })
	apply, infallible := fast(b, args, terms, areTexts, arity > 0 && c.isText(terms[0]))
	if apply == nil {
		apply = slow(b, args)
		c.cost += 10
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
// look at the clock unasked: what is known of a place would outlive a certificate.
var heavy = []string{
	ast.NumbersRange.Name, ast.NumbersRangeStep.Name, ast.NetCIDRExpand.Name, ast.ReachableBuiltin.Name, ast.ReachablePathsBuiltin.Name, ast.Trace.Name,
	ast.CryptoX509ParseAndVerifyCertificates.Name, ast.CryptoX509ParseAndVerifyCertificatesWithOptions.Name, ast.JWTDecodeVerify.Name,
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
			if m.placing {
				return m.unplaced()
			}
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
		delimiter, limit, ok := splitBy(b, terms)
		if !ok {
			return nil, false
		}
		return func(m *machine, base int) value {
			v := args[0](m, base)
			switch {
			case !v.defined():
				return value{}
			case !v.str:
				return m.giveUp()
			}
			return m.splitText(v.s, delimiter, limit)
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

// splitBy is at what a call of split or strings.split_n splits, and in how many parts, where both are written in it.
func splitBy(b *ast.Builtin, terms []*ast.Term) (separator string, most int, ok bool) {
	delimiter, _ := terms[1].Value.(ast.String)
	if most = -1; b.Name == ast.SplitN.Name {
		n, _ := terms[2].Value.(ast.Number) // "" is no integer either
		if most, ok = n.Int(); !ok || most < 0 || most > 1000 {
			return "", 0, false
		}
	}
	return string(delimiter), most, delimiter != ""
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
		switch list := in.v.(type) {
		case *texts:
			return boolean(v.str && slices.Contains(list.list, v.s))
		case *claim:
			if list, ok := list.of.([]any); ok {
				return boolean(slices.ContainsFunc(list, func(elem any) bool { return v.equal(claimValue(elem)) }))
			}
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
		if !m.placing && m.eval.Cancelled() {
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
