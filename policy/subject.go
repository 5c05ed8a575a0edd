package policy

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Subject is an Identity made ready for evaluation once, and used for every request of its token. Of the thousands
// that there are most ask little, so it holds next to nothing of its own: compiled policy reads the identity as it is.
type Subject struct {
	id               Identity
	attributes       facts
	groups, audience texts
	err              error // why the identity cannot be evaluated: every decision about it fails
	hash             uint64
	made             atomic.Pointer[ast.Term] // `input.identity` for OPA, once it is asked for
}

// NewSubject makes id ready. What id holds MUST NOT change afterwards.
func NewSubject(id *Identity) *Subject {
	s := &Subject{id: *id, hash: rand.Uint64()}
	s.attributes.of = s
	s.groups.list, s.audience.list = id.Attributes.Groups, id.Audience
	if err := checkClaims(s.id.Claims); err != nil {
		s.err = fmt.Errorf("claims of %q: %w", id.Subject, err)
	}
	return s
}

// term is `input.identity`.
func (s *Subject) term() *ast.Term {
	if t := s.made.Load(); t != nil {
		return t
	}
	// The claims go in as they are, below a name of their own: none of them can be taken for a fact of the
	// request, whatever an issuer calls it.
	claims, err := ast.InterfaceToValue(nonNil(s.id.Claims))
	if err != nil {
		panic(err) // NewSubject has looked
	}
	id, a := &s.id, &s.id.Attributes
	t := ast.ObjectTerm(
		ast.Item(ast.StringTerm("issuer"), ast.StringTerm(id.Issuer)),
		ast.Item(ast.StringTerm("subject"), ast.StringTerm(id.Subject)),
		ast.Item(ast.StringTerm("audience"), stringsTerm(id.Audience)),
		ast.Item(ast.StringTerm("session"), ast.StringTerm(id.Session)),
		ast.Item(keyMethod, ast.StringTerm(id.Method)),
		ast.Item(ast.StringTerm("requested_role"), ast.StringTerm(id.RequestedRole)),
		ast.Item(ast.StringTerm("expires"), numberTerm(id.Expires)),
		ast.Item(ast.StringTerm("claims"), ast.NewTerm(claims)),
		ast.Item(keyAttributes, ast.ObjectTerm(
			ast.Item(ast.StringTerm("workspace"), ast.StringTerm(a.Workspace)),
			ast.Item(ast.StringTerm("project"), ast.StringTerm(a.Project)),
			ast.Item(ast.StringTerm("repository"), ast.StringTerm(a.Repository)),
			ast.Item(ast.StringTerm("user"), ast.StringTerm(a.User)),
			ast.Item(ast.StringTerm("groups"), stringsTerm(a.Groups)),
		)),
	)
	s.made.CompareAndSwap(nil, t)
	return s.made.Load()
}

// identityText reads a text of the identity without making a document of it; n is how many steps of path lead there.
// get is nil for what is no text.
func identityText(path ast.Ref) (get func(*Subject) string, n int) {
	names := [2]ast.String{}
	for i := range min(len(path), 2) {
		names[i], _ = path[i].Value.(ast.String)
	}
	switch names[0] {
	case "issuer":
		return func(s *Subject) string { return s.id.Issuer }, 1
	case "subject":
		return func(s *Subject) string { return s.id.Subject }, 1
	case "session":
		return func(s *Subject) string { return s.id.Session }, 1
	case "method":
		return func(s *Subject) string { return s.id.Method }, 1
	case "requested_role":
		return func(s *Subject) string { return s.id.RequestedRole }, 1
	case "attributes":
		switch names[1] {
		case "workspace":
			return func(s *Subject) string { return s.id.Attributes.Workspace }, 2
		case "project":
			return func(s *Subject) string { return s.id.Attributes.Project }, 2
		case "repository":
			return func(s *Subject) string { return s.id.Attributes.Repository }, 2
		case "user":
			return func(s *Subject) string { return s.id.Attributes.User }, 2
		}
	}
	return nil, 0
}
