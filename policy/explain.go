package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Explanation is why a question is decided as it is.
type Explanation struct {
	Revision      string          `json:"policy_revision"`
	Allow         bool            `json:"allow"`
	Reasons       []string        `json:"reasons,omitempty"`
	Role          string          `json:"role,omitempty"`
	SessionPolicy json.RawMessage `json:"session_policy,omitempty"`
	Limits        *Limits         `json:"limits,omitempty"`
	FilterListing bool            `json:"filter_listing,omitempty"`
	Shadow        *ShadowDecision `json:"shadow,omitempty"`
	// Error is why nothing was decided.
	Error    string              `json:"error,omitempty"`
	Accesses []AccessExplanation `json:"accesses"`
}

// AccessExplanation is what the rules made of one access.
type AccessExplanation struct {
	Action    string            `json:"action"`
	Bucket    string            `json:"bucket,omitempty"`
	Key       string            `json:"key,omitempty"`
	VersionID string            `json:"version_id,omitempty"`
	Prefix    string            `json:"prefix,omitempty"`
	Backend   string            `json:"backend,omitempty"`
	Allow     bool              `json:"allow"`
	Reasons   []string          `json:"reasons,omitempty"`
	Rules     []RuleExplanation `json:"rules"` // as they were tried
}

// RuleExplanation is one rule that was tried.
type RuleExplanation struct {
	Rule  string `json:"rule"` // its name, without the entrypoint's package
	File  string `json:"file"`
	Line  int    `json:"line"`
	Depth int    `json:"depth"` // 0 for those that the engine asks for, 1 for those that these ask for, …
	Holds bool   `json:"holds"`
	// Failed is the expression that the rule got no further than.
	Failed *FailedExpression `json:"failed,omitempty"`
	// Elsewhere: it is about other actions or operations than this one.
	Elsewhere bool `json:"elsewhere,omitempty"`
}

// FailedExpression is an expression of a rule that did not hold, and what was in it.
type FailedExpression struct {
	Text   string            `json:"text"`
	Line   int               `json:"line"`
	Values map[string]string `json:"values,omitempty"` // as Rego writes them; "undefined" where there is none
}

// Explain decides the question, and tells why: for people, so it is slow.
func (e *Engine) Explain(ctx context.Context, q *Question) (*Explanation, error) {
	s := e.current.Load()
	if s == nil {
		return nil, errNoPolicy
	}
	if err := q.check(); err != nil {
		return nil, err
	}
	x := &Explanation{Revision: s.revision}
	d, err := e.Decide(ctx, q)
	if err != nil {
		x.Error = err.Error()
		d = &Decision{Verdicts: make([]Verdict, len(q.Accesses))}
	}
	x.Allow, x.Reasons, x.Role, x.SessionPolicy, x.FilterListing, x.Shadow = d.Allow, d.Reasons, d.Role, d.SessionPolicy, d.FilterListing, d.Shadow
	if limits := d.Limits; limits != (Limits{}) {
		x.Limits = &limits
	}
	operation, request := stringTerm(q.Operation), requestTerm(q.Request)
	for i := range q.Accesses {
		a := &q.Accesses[i]
		t := &tracer{snapshot: s, input: accessInput(a, operation, q.Subject.term(), request), queries: map[uint64]int{}}
		ev := e.evaluation(ctx, q)
		t.run(&ev, d.Verdicts[i].Allow)
		x.Accesses = append(x.Accesses, AccessExplanation{
			Action: a.Action, Bucket: a.Bucket, Key: a.Key, VersionID: a.VersionID, Prefix: a.Prefix, Backend: a.Backend,
			Allow: d.Verdicts[i].Allow, Reasons: d.Verdicts[i].Reasons, Rules: t.rules,
		})
	}
	return x, nil
}

// tracer turns OPA's trace, an event for each step, into what became of each rule.
type tracer struct {
	snapshot *snapshot
	input    *ast.Term
	rules    []RuleExplanation
	nodes    []*ast.Rule
	queries  map[uint64]int // OPA's number of an evaluation → the rule it is of, here; those of no rule have their parent's
}

func (t *tracer) Enabled() bool               { return true }
func (t *tracer) Config() topdown.TraceConfig { return topdown.TraceConfig{PlugLocalVars: true} }

// run tries all rules, those too that an index or an early exit would pass over.
func (t *tracer) run(e *evaluation, allowed bool) {
	e.tracer = t
	then := stageReasons
	if allowed {
		then = stageTerms
	}
	cache := topdown.NewVirtualCache()
	for _, stage := range []int{stageAllow, then} {
		if q := t.snapshot.queries[stage]; q != nil {
			clear(t.queries) // OPA counts each query's from the beginning
			// What it fails with is in the decision.
			t.snapshot.run(q, e, t.input, cache, func(*rule, ast.Value) {})
		}
	}
}

func (t *tracer) TraceEvent(ev topdown.Event) {
	switch ev.Op {
	case topdown.EnterOp:
		parent, nested := t.queries[ev.ParentID]
		rule, ok := ev.Node.(*ast.Rule)
		if !ok || rule.Default {
			if nested {
				t.queries[ev.QueryID] = parent
			}
			return
		}
		depth := 0
		if nested {
			depth = t.rules[parent].Depth + 1
		}
		t.queries[ev.QueryID] = len(t.rules)
		t.nodes = append(t.nodes, rule)
		t.rules = append(t.rules, RuleExplanation{
			Rule: t.name(rule.Ref().GroundPrefix()), File: rule.Location.File, Line: rule.Location.Row, Depth: depth,
		})
	case topdown.ExitOp:
		if i, ok := t.queries[ev.QueryID]; ok && ev.Node == ast.Node(t.nodes[i]) {
			t.rules[i].Holds, t.rules[i].Failed, t.rules[i].Elsewhere = true, nil, false
		}
	case topdown.FailOp:
		i, ok := t.queries[ev.QueryID]
		expr, isExpr := ev.Node.(*ast.Expr)
		if !ok || !isExpr || t.rules[i].Holds || !t.owns(i, expr) {
			return
		}
		t.rules[i].Failed, t.rules[i].Elsewhere = t.failed(t.nodes[i], expr, &ev)
	}
}

// owns: the expression stands in the rule's own body, not in one nested in it.
func (t *tracer) owns(i int, e *ast.Expr) bool {
	return slices.ContainsFunc(t.nodes[i].Body, func(own *ast.Expr) bool { return own == e || own.Location == e.Location })
}

// name leaves out the root, and the entrypoint's own package.
func (t *tracer) name(ref ast.Ref) string {
	s := strings.TrimPrefix(ref.String(), t.snapshot.entry.String()+".")
	return strings.TrimPrefix(s, "data.")
}

// failed describes the expression by what its author wrote. The compiler gives names of its own to what is nested
// in an expression; those are traced back.
func (t *tracer) failed(rule *ast.Rule, e *ast.Expr, ev *topdown.Event) (f *FailedExpression, elsewhere bool) {
	f = &FailedExpression{Values: map[string]string{}}
	loc := e.Location
	if loc == nil {
		loc = rule.Location
	}
	f.Text, f.Line = oneLine(string(loc.Text)), loc.Row
	if e.Generated && len(loc.Text) == 0 {
		f.Text = e.String()
	}
	made := map[ast.Var]*ast.Term{} // by the compiler, of what
	for _, b := range rule.Body {
		if terms, ok := b.Terms.([]*ast.Term); ok && b.Generated && b.IsEquality() {
			if v, ok := terms[1].Value.(ast.Var); ok && v.IsGenerated() {
				made[v] = terms[2]
			}
		}
	}
	about := 0
	var note func(x *ast.Term)
	note = func(x *ast.Term) {
		switch v := x.Value.(type) {
		case ast.Ref:
			if v[0].Equal(ast.InputRootDocument) && len(v) == 2 && (v[1].Equal(keyAction) || v[1].Equal(keyOperation)) {
				about++
			} else {
				about = -100
			}
			// Of a reference that looks through something, what it looks through.
			if ground := v.GroundPrefix(); len(ground) > 1 && (v.IsGround() || ground[0].Equal(ast.InputRootDocument)) {
				if value := t.valueOf(ground); value != "" {
					f.Values[t.name(ground)] = value
				}
			}
			for _, part := range v[1:] {
				if p, ok := part.Value.(ast.Var); ok {
					note(ast.NewTerm(p))
				}
			}
		case ast.Var:
			if of, ok := made[v]; ok {
				if ref, isRef := of.Value.(ast.Ref); isRef {
					if value := ev.Plug(x); value != nil && value.IsGround() && ref[0].Equal(ast.DefaultRootDocument) && ref.IsGround() {
						about = -100
						f.Values[t.name(ref)] = short(value.String())
						return
					}
					note(of)
					return
				}
			}
			meta, ok := ev.LocalMetadata[v]
			if value := ev.Plug(x); ok && value != nil && value.IsGround() && !meta.Name.IsGenerated() {
				about = -100
				f.Values[string(meta.Name)] = short(value.String())
			}
		}
	}
	switch terms := e.Terms.(type) {
	case *ast.Term:
		note(terms)
	case []*ast.Term:
		for _, term := range terms[1:] {
			note(term)
			ast.WalkTerms(term, func(x *ast.Term) bool {
				if _, isVar := x.Value.(ast.Var); isVar && x != term {
					note(x)
				}
				_, isRef := x.Value.(ast.Ref)
				return isRef
			})
		}
	}
	if len(f.Values) == 0 {
		f.Values = nil
	}
	return f, about > 0
}

// valueOf is what a reference stands for; "" for rules, which speak for themselves.
func (t *tracer) valueOf(ref ast.Ref) string {
	if ref[0].Equal(ast.InputRootDocument) {
		if v, err := t.input.Value.Find(ref[1:]); err == nil {
			return short(v.String())
		}
		return "undefined"
	}
	if len(t.snapshot.compiler.GetRules(ref)) > 0 || !ref[0].Equal(ast.DefaultRootDocument) {
		return ""
	}
	if v := t.snapshot.data.Get(ref); v != nil {
		return short(v.String())
	}
	return "undefined"
}

func oneLine(s string) string { return short(strings.Join(strings.Fields(s), " ")) }

func short(s string) string {
	const most = 200
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// WriteAccesses tells people of each access what its rules made of it. Rules about other actions are left out, unless
// that is why it is refused: that no allow is about this one.
func (x *Explanation) WriteAccesses(w io.Writer) error {
	p := &printer{w: w}
	verdict := map[bool]string{true: "allowed", false: "refused"}
	for _, a := range x.Accesses {
		p.printf("\n%s on %s: %s\n", a.Action, a.where(), verdict[a.Allow])
		for _, reason := range a.Reasons {
			p.printf("  because %s\n", reason)
		}
		unheard := !a.Allow && !slices.ContainsFunc(a.Rules, func(r RuleExplanation) bool { return r.allows() && !r.Elsewhere })
		if unheard {
			p.printf("  no allow rule is about %s in this operation\n", a.Action)
		}
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		rows := &printer{w: table, err: p.err}
		for _, r := range a.Rules {
			// A helper that is about another action may be what an allow fails for.
			if !r.Elsewhere || !a.Allow && r.Depth > 0 || unheard && r.allows() {
				rows.printf("  %s%s\t%s:%d\t%s\n", strings.Repeat("  ", r.Depth), r.Rule, r.File, r.Line, r.outcome())
			}
		}
		if p.err = rows.err; p.err == nil {
			p.err = table.Flush()
		}
	}
	return p.err
}

func (a *AccessExplanation) where() string {
	switch {
	case a.Bucket == "":
		return "all buckets"
	case a.Key != "":
		return a.Bucket + "/" + a.Key
	case a.Prefix != "":
		return a.Bucket + "/" + a.Prefix + "*"
	}
	return a.Bucket
}

// allows: it is one of the rules that the engine asks for first, and not a helper of that name.
func (r *RuleExplanation) allows() bool { return r.Rule == ruleAllow.name && r.Depth == 0 }

func (r *RuleExplanation) outcome() string {
	switch {
	case r.Holds:
		return "holds"
	case r.Failed == nil:
		return "fails"
	}
	text := fmt.Sprintf("fails at line %d: %s", r.Failed.Line, r.Failed.Text)
	for i, name := range sortedKeys(r.Failed.Values) {
		text += map[bool]string{true: "  (", false: ", "}[i == 0] + name + " = " + r.Failed.Values[name]
	}
	if len(r.Failed.Values) > 0 {
		text += ")"
	}
	return text
}

// printer keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}
