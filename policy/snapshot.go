package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
	"github.com/open-policy-agent/opa/v1/util"
)

// forbidden are the built-in functions that no policy may call, and why. A decision must depend on the input and
// the policy's own data alone: else it can leak what it is given, hang, or differ between replicas and replays.
var forbidden = map[string]string{
	"http.send":          "policies may not reach the network",
	"net.lookup_ip_addr": "policies may not reach the network",
	"opa.runtime":        "policies may not read the environment",
	// Both follow a schema's "$ref" to files and hosts.
	"json.match_schema":  "policies may not read files",
	"json.verify_schema": "policies may not read files",
	"rego.parse_module":  "policies may not compile policies",
}

// capabilities is what the language offers to policies here.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return forbidden[b.Name] != "" })
	c.AllowNet = []string{} // no host; nil would be any
	return c
}

// files is a policy as its source has it.
type files struct {
	rego     map[string][]byte // modules, by path
	docs     map[string][]byte // JSON and YAML, by path: data below their directory
	data     map[string]any    // data that is read already (bundles)
	revision string
	fresh    bool // the revision is somebody's word: another policy may have the same
	kept     bool // from before a restart: its source may have another by now
}

// same tells whether two policies with one revision are one.
func (f *files) same(o *files) bool {
	return maps.EqualFunc(f.rego, o.rego, bytes.Equal) && reflect.DeepEqual(f.data, o.data)
}

// parse reads the texts, and reports every one that cannot be read.
func (f *files) parse(caps *ast.Capabilities) (map[string]*ast.Module, map[string]any, error) {
	var errs []error
	modules := make(map[string]*ast.Module, len(f.rego))
	for _, name := range sortedKeys(f.rego) {
		m, err := ast.ParseModuleWithOpts(name, string(f.rego[name]), ast.ParserOptions{
			RegoVersion: ast.RegoV1, ProcessAnnotation: true, Capabilities: caps,
		})
		switch {
		case err != nil:
			errs = append(errs, parseError(err))
		case m == nil:
			errs = append(errs, fmt.Errorf("%s: empty file", name))
		default:
			modules[name] = m
		}
	}
	data := nonNil(f.data)
	for _, name := range sortedKeys(f.docs) {
		if err := addDocument(data, name, f.docs[name]); err != nil {
			errs = append(errs, err)
		}
	}
	return modules, data, errors.Join(errs...)
}

func parseError(err error) error {
	var list ast.Errors
	if errors.As(err, &list) {
		return compileError(list)
	}
	return err
}

// addDocument reads a data file into data, below the path of its directory.
func addDocument(data map[string]any, name string, content []byte) error {
	var value any
	if err := util.Unmarshal(content, &value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	doc, ok := value.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: a data file holds an object (name: value), not %T", name, value)
	}
	var at []string
	if d := path.Dir(name); d != "." {
		at = strings.Split(d, "/")
	}
	return mergeData(data, at, doc, name)
}

// mergeData puts doc into data below the path at. Two files may add to one object, not to one value.
func mergeData(data map[string]any, at []string, doc map[string]any, name string) error {
	for _, key := range at {
		next, ok := data[key]
		if !ok {
			next = map[string]any{}
			data[key] = next
		}
		if data, ok = next.(map[string]any); !ok {
			return fmt.Errorf("%s: another data file has a value at %q", name, key)
		}
	}
	for key, value := range doc {
		old, ok := data[key]
		if !ok {
			data[key] = value
			continue
		}
		into, isObject := old.(map[string]any)
		from, alsoObject := value.(map[string]any)
		if !isObject || !alsoObject {
			return fmt.Errorf("%s: another data file has a value for %q too", name, key)
		}
		if err := mergeData(into, nil, from, name); err != nil {
			return err
		}
	}
	return nil
}

// snapshot is one revision of the policy, ready to be asked. It never changes.
type snapshot struct {
	revision string
	loaded   time.Time
	entry    ast.Ref
	files    *files
	compiler *ast.Compiler
	data     *data

	// queries by stage. Those whose rules the policy does not have are nil, and cost nothing.
	queries [len(stages)]*query

	// mistyped are rules of which a value is never understood. What that is about is refused when it is asked.
	mistyped []Finding

	// program answers most questions faster; nil = never.
	program *program

	// page judges listings where the program does not; nil = key by key, and noPage says why.
	page   *page
	noPage error
}

// rule is what the engine knows about one rule of the contract.
type rule struct {
	name string
	is   func(types.Type) bool // whether a value of the static type could ever be right
	want string
}

var (
	ruleAllow         = &rule{"allow", isBoolean, "a boolean"}
	ruleDeny          = &rule{"deny", isStringSet, "a set of strings (`deny contains \"why\" if …`)"}
	ruleReasons       = &rule{"reasons", isStringSet, "a set of strings (`reasons contains \"why\" if …`)"}
	ruleRole          = &rule{"role", isString, "a string"}
	ruleSessionPolicy = &rule{"session_policy", isObject, "an object"}
	ruleLimits        = &rule{"limits", isObject, "an object"}
	ruleFilterListing = &rule{"filter_listing", isBoolean, "a boolean"}
)

// A stage is the rules that are asked for at once.
const (
	stageAllow   = iota
	stageTerms   // of what is allowed
	stageReasons // for what is not
)

var stages = [3][]*rule{
	stageAllow:   {ruleAllow, ruleDeny},
	stageTerms:   {ruleRole, ruleSessionPolicy, ruleLimits, ruleFilterListing},
	stageReasons: {ruleReasons},
}

// newSnapshot compiles the policy and checks that it can answer what it will be asked.
func newSnapshot(f *files, entrypoint string, now time.Time) (*snapshot, error) {
	entry, err := entrypointRef(entrypoint)
	if err != nil {
		return nil, err
	}
	caps := capabilities()
	modules, values, err := f.parse(caps)
	if err != nil {
		return nil, err
	}
	data, err := newData(values)
	if err != nil {
		return nil, err
	}
	c := newCompiler(caps, data)
	if c.Compile(modules); c.Failed() {
		return nil, compileError(c.Errors)
	}

	s := &snapshot{revision: f.revision, loaded: now, entry: entry, files: f, compiler: c, data: data}
	if err := s.check(entry); err != nil {
		return nil, err
	}
	for stage, rules := range stages {
		if s.queries[stage], err = newQuery(c, entry, rules); err != nil {
			return nil, err
		}
	}
	s.program = newProgram(c, data, entry, s.revision)
	if len(c.GetRules(entry.Append(ast.StringTerm(ruleFilterListing.name)))) > 0 && !s.program.decides() {
		s.page, s.noPage = newPage(c, modules, data, entry)
	}
	return s, nil
}

func newCompiler(caps *ast.Capabilities, data *data) *ast.Compiler {
	return ast.NewCompiler().
		WithCapabilities(caps).
		WithDefaultRegoVersion(ast.RegoV1).
		WithPathConflictsCheck(storage.NonEmpty(context.Background(), data.store, data.txn)).
		SetErrorLimit(50)
}

var packageName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// entrypointRef turns "s3/authz" into data.s3.authz.
func entrypointRef(entrypoint string) (ast.Ref, error) {
	ref := ast.Ref{ast.DefaultRootDocument}
	for part := range strings.SplitSeq(entrypoint, "/") {
		if !packageName.MatchString(part) {
			return nil, fmt.Errorf("%q: want the package's path, names with slashes between, such as s3/authz", entrypoint)
		}
		ref = append(ref, ast.StringTerm(part))
	}
	return ref, nil
}

// check refuses a policy without the rule that allows, or with a function in the place of a rule, which would be passed
// over. A rule of a type that is never understood is noted: it refuses when it is asked, as if its value had turned out
// so, and its author had better know before.
func (s *snapshot) check(entry ast.Ref) error {
	if len(s.compiler.GetRulesWithPrefix(entry)) == 0 {
		return fmt.Errorf("no package %s: it is the policy's entrypoint; write `package %[1]s`, or set policy.entrypoint", pathString(entry))
	}
	if len(s.compiler.GetRulesExact(entry.Append(ast.StringTerm(ruleAllow.name)))) == 0 {
		return fmt.Errorf("package %s has no rule `allow`: nothing could ever be allowed", pathString(entry))
	}
	var errs []error
	for _, r := range slices.Concat(stages[:]...) {
		ref := entry.Append(ast.StringTerm(r.name))
		rules := s.compiler.GetRules(ref)
		if len(rules) == 0 {
			continue
		}
		if len(rules[0].Head.Args) > 0 {
			errs = append(errs, fmt.Errorf("%s: `%s` is a function, want %s", rules[0].Location, r.name, r.want))
		} else if t := s.compiler.TypeEnv.GetByRef(ref); t != nil && !couldBe(t, r.is) {
			s.mistyped = append(s.mistyped, Finding{
				Kind: "type", File: rules[0].Location.File, Line: rules[0].Location.Row,
				Message: fmt.Sprintf("`%s` is always %s, want %s: it refuses", r.name, types.Sprint(t), r.want),
			})
		} else if t != nil && r == ruleLimits {
			for _, name := range unknownLimits(t) {
				s.mistyped = append(s.mistyped, Finding{
					Kind: "type", File: rules[0].Location.File, Line: rules[0].Location.Row,
					Message: fmt.Sprintf("`limits` has the %v: it refuses", errUnknownLimit(name)),
				})
			}
		}
	}
	return errors.Join(errs...)
}

func pathString(entry ast.Ref) string { return strings.TrimPrefix(entry.String(), "data.") }

func couldBe(t types.Type, is func(types.Type) bool) bool {
	switch t := t.(type) {
	case *types.NamedType:
		return couldBe(t.Type, is)
	case types.Any:
		return len(t) == 0 || slices.ContainsFunc(t, func(t types.Type) bool { return couldBe(t, is) })
	}
	return is(t)
}

// unknownLimits are the names in a static type of `limits` that no limit has. Those that are computed show when they are.
func unknownLimits(t types.Type) (unknown []string) {
	switch t := t.(type) {
	case *types.NamedType:
		return unknownLimits(t.Type)
	case types.Any:
		for _, t := range t {
			unknown = append(unknown, unknownLimits(t)...)
		}
	case *types.Object:
		for _, key := range t.Keys() {
			if name, ok := key.(string); !ok || !slices.Contains(limitNames, name) {
				unknown = append(unknown, fmt.Sprintf("%#v", key))
			}
		}
	}
	return sortedOnce(unknown)
}

func isBoolean(t types.Type) bool { _, ok := t.(types.Boolean); return ok }
func isString(t types.Type) bool  { _, ok := t.(types.String); return ok }
func isObject(t types.Type) bool  { _, ok := t.(*types.Object); return ok }
func isStringSet(t types.Type) bool {
	set, ok := t.(*types.Set)
	return ok && (set.Of() == nil || couldBe(set.Of(), isString))
}

// compileError says each error on a line of its own, and why where a built-in function was taken away.
func compileError(list ast.Errors) error {
	errs := make([]error, len(list))
	for i, e := range list {
		errs[i] = errors.New(inOneLine(e))
		if name, ok := strings.CutPrefix(e.Message, "undefined function "); ok && forbidden[name] != "" {
			errs[i] = fmt.Errorf("%s: %s is not available: %s", e.Location, name, forbidden[name])
		}
	}
	return errors.Join(errs...)
}

// inOneLine is an error without the picture that OPA draws of where in the line it is.
func inOneLine(e *ast.Error) string {
	text := fmt.Sprintf("%s: %s", e.Code, e.Message)
	if e.Location != nil {
		text = fmt.Sprintf("%s: %s", e.Location, text)
	}
	if e.Details != nil {
		for _, line := range e.Details.Lines() {
			if line = strings.TrimSpace(line); line != "" && line != "^" {
				text += ": " + line
			}
		}
	}
	return strings.Join(strings.Fields(text), " ")
}

// query asks for some rules of the package, and for no other: evaluating the package whole would evaluate every
// helper in it.
type query struct {
	body     ast.Body
	compiler ast.QueryCompiler
	rules    []*rule
	listed   []bool // the rule's value comes in an array, empty where the rule is undefined
}

// newQuery is nil where the policy has none of the rules.
func newQuery(c *ast.Compiler, entry ast.Ref, rules []*rule) (*query, error) {
	q := &query{}
	var body ast.Body
	for _, r := range rules {
		ref := entry.Append(ast.StringTerm(r.name))
		if len(c.GetRules(ref)) == 0 {
			continue
		}
		value := ast.NewTerm(ref)
		listed := !alwaysDefined(c.GetRulesExact(ref))
		if listed {
			x := ast.VarTerm("x_" + r.name)
			value = ast.ArrayComprehensionTerm(x, ast.NewBody(ast.Equality.Expr(x, value)))
		}
		body.Append(ast.Equality.Expr(ast.VarTerm(r.name), value))
		q.rules = append(q.rules, r)
		q.listed = append(q.listed, listed)
	}
	if len(body) == 0 {
		return nil, nil
	}
	q.compiler = c.QueryCompiler()
	var err error
	q.body, err = q.compiler.Compile(body)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	return q, nil
}

// alwaysDefined: a set with `contains` is at least empty, and a default stands in where no other rule holds.
func alwaysDefined(rules []*ast.Rule) bool {
	return slices.ContainsFunc(rules, func(r *ast.Rule) bool {
		return r.Default || r.Head.RuleKind() == ast.MultiValue
	})
}

// run evaluates the query for one input and gives each defined rule's value to found.
func (s *snapshot) run(q *query, e *evaluation, input *ast.Term, cache topdown.VirtualCache, found func(*rule, ast.Value)) error {
	t := topdown.NewQuery(q.body).
		WithQueryCompiler(q.compiler).
		WithCompiler(s.compiler).
		WithStore(s.data.store).
		WithTransaction(s.data.txn).
		WithBaseCache(s.data).
		WithVirtualCache(cache).
		WithInput(input).
		WithTime(e.now).
		WithCancel(e).
		WithMetrics(metrics.NoOp()).
		WithStrictBuiltinErrors(true)
	if e.tracer != nil {
		t = t.WithQueryTracer(e.tracer).WithIndexing(false).WithEarlyExit(false)
	}
	answers := 0
	err := t.Iter(e.ctx, func(result topdown.QueryResult) error {
		answers++
		for i, r := range q.rules {
			term, ok := result[ast.Var(r.name)]
			if !ok {
				return fmt.Errorf("rule %s has no value", r.name)
			}
			value := term.Value
			if q.listed[i] {
				list := value.(*ast.Array)
				if list.Len() == 0 {
					continue
				}
				value = list.Elem(0).Value
			}
			found(r, value)
		}
		return nil
	})
	switch {
	case topdown.IsCancel(err) && e.ctx.Err() != nil:
		return e.ctx.Err()
	case topdown.IsCancel(err):
		return fmt.Errorf("policy took longer than %v to decide", e.deadline)
	case err != nil:
		return err
	case answers != 1:
		return fmt.Errorf("query has %d answers, want 1", answers)
	}
	return nil
}

// Deadlines bound the evaluation of one question. Starter policies take microseconds: what takes this long does not
// end. A shadow has less, for its time is the request's.
const (
	evalDeadline   = time.Second
	shadowDeadline = 50 * time.Millisecond
)

// evaluation is what the queries of one question share. It is their topdown.Cancel: evaluation asks it at every
// step, so neither a timer nor a goroutine is needed to end one.
type evaluation struct {
	ctx      context.Context
	now      time.Time // what time.now_ns() says: the request's time, so that a replay decides the same
	deadline time.Duration
	ends     time.Time // from when it is first asked for: the program alone is done before one could look at a clock
	steps    uint
	ended    bool
	plain    bool // ask OPA alone
	tracer   topdown.QueryTracer
}

func newEvaluation(ctx context.Context, q *Question, deadline time.Duration) evaluation {
	e := evaluation{ctx: ctx, deadline: deadline}
	if q.Request != nil {
		e.now = q.Request.Time
	}
	if e.now.IsZero() {
		e.now = time.Now()
	}
	return e
}

func (e *evaluation) Cancel() { e.ended = true }

func (e *evaluation) Cancelled() bool {
	if e.ends.IsZero() {
		e.ends = time.Now().Add(e.deadline)
	}
	if e.steps++; e.steps%32 == 0 && !e.ended {
		e.ended = time.Now().After(e.ends) || e.ctx.Err() != nil
	}
	return e.ended
}

// data is the policy's data: read by all evaluations at once, written by none, so one transaction serves for ever.
// As topdown.BaseCache it answers references without going through the store's paths.
type data struct {
	root  ast.Object
	store storage.Store
	txn   storage.Transaction
}

func newData(m map[string]any) (*data, error) {
	v, err := ast.InterfaceToValue(nonNil(m))
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	d := &data{root: v.(ast.Object)}
	d.store = inmem.NewFromASTObject(d.root)
	d.txn, err = d.store.NewTransaction(context.Background())
	return d, err
}

func (d *data) Get(ref ast.Ref) ast.Value {
	if len(ref) < 2 {
		return nil // the store knows what to leave out of the root
	}
	v, err := d.root.Find(ref[1:])
	if err != nil {
		return nil
	}
	return v
}

func (d *data) Put(ast.Ref, ast.Value) {}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
