package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// maxSessionPolicy is how many characters AWS takes as the policy of an assumed role's session.
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
const maxSessionPolicy = 2048

// answer is what the rules say of one access.
type answer struct {
	allow         bool
	denied        bool     // whatever allow says
	reasons       []string // why not: of `deny` and `reasons`, sorted, each once
	role          string
	sessionPolicy json.RawMessage
	limits        Limits
	filter        bool
}

// atOnce is the decision about a question that the place of its only access has grounds to allow; nil = ask.
func (s *snapshot) atOnce(q *Question) *Decision {
	if len(q.Accesses) != 1 || q.check() != nil || !s.program.decides() {
		return nil
	}
	a := &q.Accesses[0]
	key := placeOf(q, a)
	at := s.program.places.known(&key)
	if at == nil || at.allowed == nil || !at.allows(a) {
		return nil
	}
	return at.allowed
}

// decide asks about every access and joins the answers.
func (s *snapshot) decide(e evaluation, q *Question) (*Decision, error) {
	in := s.asking(e, q)
	defer in.end()
	if cap(in.answers) < len(q.Accesses) {
		in.answers = make([]answer, len(q.Accesses))
	}
	answers := in.answers[:len(q.Accesses)]
	if err := in.each((*asking).ask, answers); err != nil {
		return nil, err
	}
	return join(s.revision, answers), nil
}

// allowed asks about every access by itself.
func (s *snapshot) allowed(e evaluation, q *Question) ([]bool, error) {
	in := s.asking(e, q)
	defer in.end()
	answers := make([]answer, len(q.Accesses))
	if err := in.each((*asking).askAllow, answers); err != nil {
		return nil, err
	}
	allowed := make([]bool, len(answers))
	for i := range answers {
		allowed[i] = answers[i].allow
	}
	return allowed, nil
}

// visible asks of each key whether it could be read.
func (s *snapshot) visible(e evaluation, q *Question, keys []string) ([]bool, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	read := readOf(q)
	if s.page != nil && !e.plain && len(keys) > 1 {
		if visible, err := s.visiblePage(&e, &read, keys); err == nil {
			return visible, nil
		}
		// One of the keys cannot be judged: find out which, and say so.
	}
	in := s.asking(e, &read)
	defer in.end()
	visible := make([]bool, len(keys))
	for i, key := range keys {
		if key == "" {
			continue // no object is called that
		}
		read.Accesses[0].Key = key
		in.begin(&read.Accesses[0])
		var a answer
		if err := in.askAllow(&a); err != nil {
			return nil, s.undecided("s3:GetObject", err)
		}
		visible[i] = a.allow
	}
	return visible, nil
}

// readOf asks, for a listing's question, to read an object of its bucket. The key is still to come.
func readOf(q *Question) Question {
	read := *q
	read.Operation = "GetObject"
	read.Accesses = []Access{{Action: "s3:GetObject", Bucket: q.Accesses[0].Bucket, Backend: q.Accesses[0].Backend}}
	return read
}

// Undecided is a policy that failed on a question: a built-in function did, rules contradict each other, or evaluation
// did not end. It allows nothing: refuse, as what is undefined is refused.
type Undecided struct {
	Action, Revision string
	Err              error
}

func (e *Undecided) Error() string {
	return fmt.Sprintf("decide %s by policy %s: %v", e.Action, e.Revision, e.Err)
}
func (e *Undecided) Unwrap() error { return e.Err }

// undecided leaves apart who is no longer there to be answered.
func (s *snapshot) undecided(action string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("decide %s by policy %s: %w", action, s.revision, err)
	}
	return &Undecided{action, s.revision, err}
}

// asking is one question being asked, an access at a time.
type asking struct {
	snapshot *snapshot
	evaluation
	question *Question
	machine  machine
	fast     bool // the machine answers what it can
	answers  []answer

	operation, request *ast.Term // for OPA, made when it is first asked
	access             *Access
	input              *ast.Term
	cache              topdown.VirtualCache // what OPA evaluated for this access
}

// askings are used again: with their machine they are most of what a decision would have to allocate.
var askings = sync.Pool{New: func() any { return new(asking) }}

// asking begins to ask. Whoever is given one ends it.
func (s *snapshot) asking(e evaluation, q *Question) *asking {
	in := askings.Get().(*asking)
	in.snapshot, in.evaluation, in.question = s, e, q
	in.fast = !e.plain && q.check() == nil && in.machine.start(s.program, &in.evaluation, q)
	return in
}

func (in *asking) end() {
	in.machine.end()
	clear(in.answers)
	if cap(in.answers) > 16 {
		in.answers = nil
	}
	in.snapshot, in.evaluation, in.question = nil, evaluation{}, nil
	in.operation, in.request, in.access, in.input, in.cache = nil, nil, nil, nil, nil
	askings.Put(in)
}

// each asks about one access after the other.
func (in *asking) each(ask func(*asking, *answer) error, answers []answer) error {
	q := in.question
	if err := q.check(); err != nil {
		return err
	}
	for i := range q.Accesses {
		in.begin(&q.Accesses[i])
		if err := ask(in, &answers[i]); err != nil {
			return in.snapshot.undecided(q.Accesses[i].Action, err)
		}
	}
	return nil
}

func (in *asking) begin(a *Access) {
	in.access, in.input = a, nil
	if in.fast {
		in.machine.begin(a)
	}
}

// run has a take each defined rule of a stage.
func (in *asking) run(stage int, a *answer) error {
	q := in.snapshot.queries[stage]
	if q == nil || in.fast && in.machine.answer(stage, a) {
		return nil
	}
	if in.operation == nil {
		in.operation, in.request = stringTerm(in.question.Operation), requestTerm(in.question.Request)
	}
	if in.input == nil {
		in.input = accessInput(in.access, in.operation, in.question.Subject.term(), in.request)
		in.cache = topdown.NewVirtualCache()
	}
	return in.snapshot.run(q, &in.evaluation, in.input, in.cache, func(r *rule, v ast.Value) { a.take(r, valueOf(v)) })
}

var errNoAccess = errors.New("a question without an access: nothing is allowed by asking nothing")

func (q *Question) check() error {
	switch {
	case len(q.Accesses) == 0:
		return errNoAccess
	case q.Subject == nil || q.Request == nil:
		return errors.New("a question without a subject or a request")
	case q.Subject.err != nil:
		return q.Subject.err
	}
	return nil
}

// ask evaluates the rules for one access. The stages share what they evaluate of the policy's helpers.
func (in *asking) ask(a *answer) error {
	if err := in.askAllow(a); err != nil {
		return err
	}
	if a.allow {
		if at := in.machine.place; in.fast && at != nil && at.terms != nil {
			*a = *at.terms
			return nil
		}
		if err := in.run(stageTerms, a); err != nil {
			return err
		}
	}
	// After the terms: those that are not understood refuse too.
	if !a.allow {
		if err := in.run(stageReasons, a); err != nil {
			return err
		}
	}
	a.reasons = sortedOnce(a.reasons)
	return nil
}

// askAllow sets a.allow, and with it the reasons that `deny` gives.
func (in *asking) askAllow(a *answer) error {
	if in.fast && in.machine.place != nil && in.machine.place.allows(in.access) {
		a.allow = true
		return nil
	}
	err := in.run(stageAllow, a)
	a.allow = err == nil && a.allow && !a.denied
	return err
}

// take reads the value of one rule. Of `allow`, what is not literally true does not allow; of the other rules, what
// cannot be understood refuses.
func (a *answer) take(r *rule, v value) {
	var err error
	switch r {
	case ruleAllow:
		// Not "true", not 1, not a set that happens to have members.
		b, ok := v.v.(ast.Boolean)
		a.allow = ok && bool(b)
		return
	case ruleDeny, ruleReasons:
		list, err := stringSet(v.ast())
		if err != nil {
			list = []string{"policy: " + r.name + ": " + err.Error()}
		}
		a.denied = r == ruleDeny && len(list) > 0
		a.reasons = append(a.reasons, list...)
		return
	case ruleRole:
		if a.role = v.s; !v.str {
			err = fmt.Errorf("want a string with the role's name, have %s", ast.ValueName(v.ast()))
		} else if a.role == "" {
			err = errors.New("want a string with the role's name, have an empty one: leave the rule undefined for the backend's own")
		}
	case ruleSessionPolicy:
		a.sessionPolicy, err = sessionPolicy(v.ast())
	case ruleLimits:
		a.limits, err = limits(v.ast())
	case ruleFilterListing:
		filter, ok := v.v.(ast.Boolean)
		if a.filter = bool(filter); !ok {
			err = fmt.Errorf("want a boolean, have %s", ast.ValueName(v.ast()))
		}
	}
	if err != nil {
		a.allow, a.denied = false, true
		a.reasons = append(a.reasons, "policy: "+r.name+": "+err.Error())
	}
}

func stringSet(v ast.Value) ([]string, error) {
	set, ok := v.(ast.Set)
	if !ok {
		return nil, fmt.Errorf("want a set of strings, have %s", ast.ValueName(v))
	}
	if set.Len() == 0 {
		return nil, nil
	}
	list := make([]string, 0, set.Len())
	err := set.Iter(func(t *ast.Term) error {
		s, ok := t.Value.(ast.String)
		if !ok {
			return fmt.Errorf("want a set of strings, have %s in it", ast.ValueName(t.Value))
		}
		list = append(list, string(s))
		return nil
	})
	return list, err
}

// sessionPolicy is an IAM policy document. Rego builds it as an object, and here it becomes text: no claim can
// break out of the string it is in.
func sessionPolicy(v ast.Value) (json.RawMessage, error) {
	if _, ok := v.(ast.Object); !ok {
		return nil, fmt.Errorf("want an object, an IAM policy document, have %s", ast.ValueName(v))
	}
	doc, err := ast.JSON(v)
	if err != nil {
		return nil, err
	}
	if _, err := statementsOf(doc.(map[string]any)); err != nil {
		return nil, err
	}
	return compactJSON(doc)
}

func statementsOf(doc map[string]any) ([]any, error) {
	switch s := doc["Statement"].(type) {
	case []any:
		if len(s) > 0 {
			return s, nil
		}
	case map[string]any:
		return []any{s}, nil
	}
	return nil, errors.New(`want a list of statements below "Statement"`)
}

// compactJSON leaves <, > and & as they are: AWS counts characters, and an escape is six.
func compactJSON(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// limitNames are what `limits` may have.
var limitNames = []string{"requests_per_second", "bytes_per_second", "in_flight", "max_object_bytes"}

func errUnknownLimit(name string) error {
	last := len(limitNames) - 1
	return fmt.Errorf("unknown limit %s: want %s or %s", name, strings.Join(limitNames[:last], ", "), limitNames[last])
}

func limits(v ast.Value) (l Limits, err error) {
	object, ok := v.(ast.Object)
	if !ok {
		return l, fmt.Errorf("want an object, have %s", ast.ValueName(v))
	}
	err = object.Iter(func(k, v *ast.Term) error {
		n, isNumber := v.Value.(ast.Number)
		f, isFloat := n.Float64()
		if !isNumber || !isFloat || f <= 0 {
			return fmt.Errorf("%s: want a number above 0, have %s", k, v)
		}
		whole, isWhole := n.Int64()
		switch key := k.Value; {
		case key.Compare(ast.String("requests_per_second")) == 0:
			l.RequestsPerSecond = f
		case key.Compare(ast.String("bytes_per_second")) == 0 && isWhole:
			l.BytesPerSecond = whole
		case key.Compare(ast.String("in_flight")) == 0 && isWhole:
			l.InFlight = whole
		case key.Compare(ast.String("max_object_bytes")) == 0 && isWhole:
			l.MaxObjectBytes = whole
		case isWhole:
			return errUnknownLimit(k.String())
		default:
			return fmt.Errorf("%s: want a whole number, have %s", k, v)
		}
		return nil
	})
	return l, err
}

// join makes one decision of the answers. The request acts as one role under one session policy, so those of all
// its allowed accesses must go together.
func join(revision string, answers []answer) *Decision {
	d := newDecision(len(answers))
	d.Allow, d.Revision = true, revision
	var refusals []string
	var policies []json.RawMessage
	for i := range answers {
		a := &answers[i]
		d.Verdicts[i] = Verdict{Allow: a.allow, Denied: a.denied, Reasons: a.reasons}
		if !a.allow {
			d.Allow = false
			refusals = append(refusals, a.reasons...)
			continue
		}
		if a.role != "" && d.Role != "" && a.role != d.Role {
			return d.refuseAll(fmt.Sprintf("policy names different roles for one request: %s and %s", d.Role, a.role))
		}
		if d.Role == "" {
			d.Role = a.role
		}
		if a.sessionPolicy != nil && !slices.ContainsFunc(policies, func(p json.RawMessage) bool { return bytes.Equal(p, a.sessionPolicy) }) {
			policies = append(policies, a.sessionPolicy)
		}
		d.Limits.lower(a.limits)
		d.FilterListing = d.FilterListing || a.filter
	}
	d.Reasons = sortedOnce(refusals)
	policy, err := unionPolicy(policies)
	if err != nil {
		return d.refuseAll("policy: session_policy: " + err.Error())
	}
	d.SessionPolicy = policy
	return d
}

// newDecision allocates once for a request with one access, as nearly all are.
func newDecision(accesses int) *Decision {
	if accesses == 1 {
		one := &struct {
			Decision
			verdict [1]Verdict
		}{}
		one.Verdicts = one.verdict[:]
		return &one.Decision
	}
	return &Decision{Verdicts: make([]Verdict, accesses)}
}

// refuseAll is for what is wrong with the request as a whole, though each access by itself may be allowed.
func (d *Decision) refuseAll(reason string) *Decision {
	refused := &Decision{Revision: d.Revision, Reasons: []string{reason}, Verdicts: make([]Verdict, len(d.Verdicts))}
	for i := range refused.Verdicts {
		refused.Verdicts[i] = Verdict{Denied: true, Reasons: refused.Reasons}
	}
	return refused
}

// unionPolicy allows what any of the session policies allows and denies what any denies.
func unionPolicy(policies []json.RawMessage) (json.RawMessage, error) {
	var policy json.RawMessage
	switch len(policies) {
	case 0:
		return nil, nil
	case 1:
		policy = policies[0]
	default:
		var err error
		if policy, err = joinStatements(policies); err != nil {
			return nil, err
		}
	}
	if n := utf8.RuneCount(policy); n > maxSessionPolicy {
		return nil, fmt.Errorf("%d characters, AWS takes %d: write fewer or wider statements", n, maxSessionPolicy)
	}
	return policy, nil
}

func joinStatements(policies []json.RawMessage) (json.RawMessage, error) {
	var version any
	var statements []any
	seen := map[string]bool{}
	for i, p := range policies {
		var doc map[string]any
		d := json.NewDecoder(bytes.NewReader(p))
		d.UseNumber()
		if err := d.Decode(&doc); err != nil {
			return nil, err
		}
		if i == 0 {
			version = doc["Version"]
		} else if doc["Version"] != version {
			return nil, fmt.Errorf("accesses of one request have policies of different versions: %v and %v", version, doc["Version"])
		}
		list, err := statementsOf(doc)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			text, err := compactJSON(s)
			if err != nil {
				return nil, err
			}
			if !seen[string(text)] {
				seen[string(text)] = true
				statements = append(statements, s)
			}
		}
	}
	doc := map[string]any{"Statement": statements}
	if version != nil {
		doc["Version"] = version
	}
	return compactJSON(doc)
}

// lower takes the smaller of each limit; 0 is no opinion.
func (l *Limits) lower(o Limits) {
	l.RequestsPerSecond = smaller(l.RequestsPerSecond, o.RequestsPerSecond)
	l.BytesPerSecond = smaller(l.BytesPerSecond, o.BytesPerSecond)
	l.InFlight = smaller(l.InFlight, o.InFlight)
	l.MaxObjectBytes = smaller(l.MaxObjectBytes, o.MaxObjectBytes)
}

func smaller[T int64 | float64](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func sortedOnce(list []string) []string {
	if len(list) < 2 {
		return list
	}
	slices.SortFunc(list, strings.Compare)
	return slices.Compact(list)
}
