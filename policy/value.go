package policy

import (
	"encoding/json"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
)

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

func boolean(b bool) value {
	if b {
		return value{v: ast.Boolean(true)}
	}
	return value{v: ast.Boolean(false)}
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
	switch v := a.v.(type) {
	case *texts:
		return stringsTerm(v.list).Value
	case *indexed:
		return v.object
	case *facts:
		return v.of.term().Get(keyAttributes).Value
	case *claim:
		made, err := ast.InterfaceToValue(v.of)
		if err != nil {
			panic(err) // NewSubject has looked
		}
		return made
	}
	return a.v
}

func (a value) equal(b value) bool {
	if a.str || b.str {
		return a.str && b.str && a.s == b.s
	}
	return a.document().Compare(b.document()) == 0
}

// texts is a list of strings before anybody needs it as an array. It is only ever found in a value: as an ast.Value
// it is nil.
type texts struct {
	ast.Value
	list []string
}

// claim is an object or a list in a token's claims, as they were decoded, before anybody needs it as a document. Like
// texts, it is only ever found in a value.
type claim struct {
	ast.Value
	of any
}

// indexed is an object of the data, found by strings without making terms of them. Like texts, it is only ever found in a
// value.
type indexed struct {
	ast.Value
	object  ast.Object
	members atomic.Pointer[map[string]value]
}

// mostIndexed is how many members an object may have to be indexed while a request waits for it. Those that rules look
// up in by a path of constants are indexed when the policy is loaded, however large.
const mostIndexed = 64

// indexedValue makes an object one that is found by strings.
func indexedValue(v ast.Value) value {
	if object, ok := v.(ast.Object); ok {
		return value{v: &indexed{object: object}}
	}
	return valueOf(v)
}

func (x *indexed) index() map[string]value {
	members := make(map[string]value, x.object.Len())
	x.object.Foreach(func(k, v *ast.Term) {
		if s, ok := k.Value.(ast.String); ok {
			members[string(s)] = indexedValue(v.Value)
		}
	})
	x.members.Store(&members)
	return members
}

// get is the member of that name.
func (x *indexed) get(name string) value {
	if members := x.members.Load(); members != nil {
		return (*members)[name]
	}
	if x.object.Len() <= mostIndexed {
		return x.index()[name]
	}
	if found := x.object.Get(ast.StringTerm(name)); found != nil {
		return indexedValue(found.Value)
	}
	return value{}
}

// facts are `input.identity.attributes` before anybody needs them as a document. Like texts, they are only ever found in
// a value.
type facts struct {
	ast.Value
	of *Subject
}

// get is the fact of that name.
func (f *facts) get(name string) value {
	a := &f.of.id.Attributes
	switch name {
	case "workspace":
		return stringValue(a.Workspace)
	case "project":
		return stringValue(a.Project)
	case "repository":
		return stringValue(a.Repository)
	case "user":
		return stringValue(a.User)
	case "groups":
		return value{v: &f.of.groups}
	}
	return value{}
}

// claimValue is a value of the claims.
func claimValue(x any) value {
	switch x := x.(type) {
	case string:
		return stringValue(x)
	case map[string]any, []any:
		return value{v: &claim{of: x}}
	}
	v, err := ast.InterfaceToValue(x)
	if err != nil {
		panic(err) // NewSubject has looked
	}
	return valueOf(v)
}

// checkClaims finds what cannot be made a document.
func checkClaims(x any) (err error) {
	switch x := x.(type) {
	case nil, bool, string:
	case json.Number:
		_, err = ast.NumberChecked(string(x))
	case map[string]any:
		for _, member := range x {
			if err = checkClaims(member); err != nil {
				break
			}
		}
	case []any:
		for _, member := range x {
			if err = checkClaims(member); err != nil {
				break
			}
		}
	default:
		_, err = ast.InterfaceToValue(x)
	}
	return err
}
