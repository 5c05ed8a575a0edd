package world

import (
	"encoding/json"
	"fmt"
	"strings"
)

// verdict is what an IAM policy says of one action on one resource. The numbers are versitygw's.
type verdict int

const (
	silent verdict = iota
	allowed
	denied
)

// iamPolicy is the part of IAM's policy language that is needed to narrow a session: effects, actions and resources with
// wildcards. What it does not know it does not guess at: a policy with more is malformed.
type iamPolicy struct {
	Version   string
	ID        string `json:"Id"`
	Statement statements
}

type statement struct {
	Sid               string
	Effect            string
	Action, NotAction oneOrMore
	Resource          oneOrMore
	NotResource       oneOrMore
	Condition         map[string]map[string]oneOrMore
}

func parseIAMPolicy(document string) (*iamPolicy, error) {
	d := json.NewDecoder(strings.NewReader(document))
	d.DisallowUnknownFields()
	p := new(iamPolicy)
	if err := d.Decode(p); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, fmt.Errorf("more than one document")
	}
	if len(p.Statement) == 0 {
		return nil, fmt.Errorf("no statement")
	}
	for i, s := range p.Statement {
		switch {
		case s.Effect != "Allow" && s.Effect != "Deny":
			return nil, fmt.Errorf("statement %d: effect %q", i, s.Effect)
		case (len(s.Action) == 0) == (len(s.NotAction) == 0):
			return nil, fmt.Errorf("statement %d: one of Action and NotAction", i)
		case (len(s.Resource) == 0) == (len(s.NotResource) == 0):
			return nil, fmt.Errorf("statement %d: one of Resource and NotResource", i)
		}
		for operator := range s.Condition {
			if operator != "StringEquals" && operator != "StringLike" {
				return nil, fmt.Errorf("statement %d: condition operator %q is not known here", i, operator)
			}
		}
	}
	return p, nil
}

func (p *iamPolicy) decide(action, resource string, conditions map[string][]string) verdict {
	v := silent
	for _, s := range p.Statement {
		if !s.applies(action, resource, conditions) {
			continue
		}
		if s.Effect == "Deny" {
			return denied
		}
		v = allowed
	}
	return v
}

func (s *statement) applies(action, resource string, conditions map[string][]string) bool {
	lower := strings.ToLower(action) // IAM's actions are the same in any case; its resources are not
	matchAction := func(pattern string) bool { return like(strings.ToLower(pattern), lower) }
	matchResource := func(pattern string) bool { return like(pattern, resource) }
	if !s.Action.any(matchAction) && len(s.Action) > 0 || s.NotAction.any(matchAction) {
		return false
	}
	if !s.Resource.any(matchResource) && len(s.Resource) > 0 || s.NotResource.any(matchResource) {
		return false
	}
	for operator, keys := range s.Condition {
		for key, wanted := range keys {
			holds := false
			for name, values := range conditions {
				if !strings.EqualFold(name, key) {
					continue
				}
				for _, value := range values {
					holds = holds || wanted.any(func(pattern string) bool {
						return pattern == value || operator == "StringLike" && like(pattern, value)
					})
				}
			}
			if !holds {
				return false
			}
		}
	}
	return true
}

// like matches IAM's wildcards: * is any text, slashes too, and ? is one character.
func like(pattern, s string) bool {
	for pattern != "" {
		switch pattern[0] {
		case '*':
			for i := 0; i <= len(s); i++ {
				if like(pattern[1:], s[i:]) {
					return true
				}
			}
			return false
		case '?':
			if s == "" {
				return false
			}
		default:
			if s == "" || s[0] != pattern[0] {
				return false
			}
		}
		pattern, s = pattern[1:], s[1:]
	}
	return s == ""
}

type oneOrMore []string

func (o oneOrMore) any(f func(string) bool) bool {
	for _, s := range o {
		if f(s) {
			return true
		}
	}
	return false
}

func (o *oneOrMore) UnmarshalJSON(data []byte) error {
	if strings.HasPrefix(string(data), "[") {
		return json.Unmarshal(data, (*[]string)(o))
	}
	var one string
	if err := json.Unmarshal(data, &one); err != nil {
		return err
	}
	*o = oneOrMore{one}
	return nil
}

type statements []statement

func (s *statements) UnmarshalJSON(data []byte) error {
	strict := func(v any) error {
		d := json.NewDecoder(strings.NewReader(string(data)))
		d.DisallowUnknownFields()
		return d.Decode(v)
	}
	if strings.HasPrefix(string(data), "[") {
		return strict((*[]statement)(s))
	}
	*s = make(statements, 1)
	return strict(&(*s)[0])
}
