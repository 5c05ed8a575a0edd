package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3wire"
	"github.com/sluice-s3/sluice/signer"
)

type explainCommand struct {
	Config    string        `required:"" placeholder:"FILE" help:"Configuration file."`
	TokenFile string        `placeholder:"T" help:"The workspace's OIDC token."`
	Event     string        `placeholder:"FILE" help:"An audit event instead of a token and a request; - reads standard input."`
	Access    string        `placeholder:"BUCKET[/KEY]" help:"Instead of one request: every action, and whether it is allowed there."`
	JSON      bool          `name:"json" help:"For programs."`
	Header    []string      `short:"H" sep:"none" placeholder:"NAME: VALUE" help:"A header of the request."`
	Timeout   time.Duration `default:"15s" help:"For the issuer's keys."`
	Method    string        `arg:"" optional:"" help:"GET, PUT, …"`
	URL       string        `arg:"" optional:"" help:"The request's URL or path: https://s3.example.com/bucket/key, /bucket/key, s3://bucket/key"`
}

func (explainCommand) Example() string {
	return `proxy explain --config sluice.yaml --token-file /run/token PUT /artifacts/web/x -H "x-amz-acl: public-read"
proxy explain --config sluice.yaml --token-file /run/token --access artifacts/web/
grep 01M83JG7R5 audit.jsonl | proxy explain --config sluice.yaml --event -`
}

// explained is the whole answer, as JSON has it.
type explained struct {
	Operation string `json:"operation"`
	Identity  struct {
		Issuer     string            `json:"issuer"`
		Subject    string            `json:"subject"`
		Session    string            `json:"session"`
		Attributes policy.Attributes `json:"attributes"`
	} `json:"identity"`
	*policy.Explanation
	Recorded  *happened `json:"recorded,omitempty"` // of an event
	Backend   string    `json:"backend"`
	ActAs     string    `json:"act_as,omitempty"` // the role that the backend would see
	RoleError string    `json:"role_error,omitempty"`

	overruled bool // policy allows it, and it is refused all the same: Allow is what the client would see
}

// happened is what became of a request then. That is more than policy's answer: limits and backends refuse, too.
type happened struct {
	Allow    bool          `json:"allow"` // by policy
	Reasons  []string      `json:"reasons"`
	Revision string        `json:"policy_revision"`
	Outcome  audit.Outcome `json:"outcome"`
	Status   int           `json:"status"`
	Error    string        `json:"error"`
}

// misused refuses what would be passed over, and what is no question.
func (cmd explainCommand) misused() error {
	ways := 0
	for _, given := range []bool{cmd.Event != "", cmd.Access != "", cmd.Method != ""} {
		if given {
			ways++
		}
	}
	if ways > 1 {
		return errors.New("METHOD URL, --access and --event: give one of them")
	}
	switch {
	case cmd.Event != "" && cmd.TokenFile != "":
		return errors.New("--event says whose request it was: leave out --token-file")
	case cmd.Event != "":
		return nil
	case cmd.TokenFile == "":
		return errors.New("whose request? give --token-file, or an audit event with --event")
	case cmd.Access == "" && (cmd.Method == "" || cmd.URL == ""):
		return errors.New("which request? give METHOD URL, or --access BUCKET")
	}
	return nil
}

// Run answers why a request would be, or was, allowed or refused. Nothing is sent to a backend or to STS.
func (cmd explainCommand) Run(out io.Writer) error {
	if err := cmd.misused(); err != nil {
		return misuse{err}
	}
	c, err := loadConfig(cmd.Config)
	if err != nil {
		return err
	}
	var r *http.Request
	if cmd.Method != "" {
		if r, err = cmd.request(c); err != nil {
			return misuse{err}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	engine, err := openPolicy(ctx, c.Policy, nil)
	if err != nil {
		return err
	}
	if c.Policy.Shadow != nil {
		// It loads by itself, and in its own time. What becomes of it is told with its answer.
		_ = engine.Reload(ctx)
	}
	if cmd.Event != "" {
		return cmd.event(ctx, out, engine)
	}
	id, err := cmd.identity(ctx, c)
	if err != nil {
		return err
	}
	parts, err := askConfig(ctx, c)
	if err != nil {
		return err
	}
	if cmd.Access != "" {
		return cmd.access(ctx, out, engine, parts, id)
	}
	asked, err := proxy.Ask(parts, id, r, time.Now())
	if wire, refused := errors.AsType[*s3wire.Error](err); refused {
		return fmt.Errorf("refused before policy is asked: %s: %s", wire.Code, wire.Message)
	}
	if err != nil {
		return err
	}
	if asked.Operation.Name == "DeleteObjects" {
		return errors.New("DeleteObjects needs what each key in its body needs: ask about a key with DELETE /BUCKET/KEY, or give an event of it with --event")
	}
	explanation, err := engine.Explain(ctx, asked.Question)
	if err != nil {
		return err
	}
	answer := explained{Operation: asked.Operation.Name, Explanation: explanation}
	answer.Identity.Issuer, answer.Identity.Subject, answer.Identity.Session = id.Issuer, id.Subject, id.Session
	answer.Identity.Attributes = policy.Attributes(id.Attributes)
	if asked.Backend != nil {
		answer.Backend = asked.Backend.Name
		role, err := asked.Role(&policy.Decision{Role: explanation.Role, SessionPolicy: explanation.SessionPolicy})
		if answer.ActAs = role; err != nil {
			answer.RoleError = err.Error()
		}
	}
	// What policy allows goes no further without a backend, or as a role that this one cannot be. ListBuckets is no
	// one backend's.
	if explanation.Allow && (answer.RoleError != "" || answer.Backend == "" && asked.Operation.Bucket != "") {
		answer.Allow, answer.overruled = false, true
	}
	return cmd.print(out, &answer)
}

func (cmd explainCommand) identity(ctx context.Context, c *Config) (*identity.Identity, error) {
	text, err := os.ReadFile(cmd.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("--token-file: %w", err)
	}
	auth, err := identity.New(ctx, identity.Config{Issuers: c.Issuers})
	if err != nil {
		return nil, err
	}
	id, err := auth.VerifyToken(ctx, strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("refused before policy is asked: the token: %w", err)
	}
	return id, nil
}

// askConfig is what proxy.Ask needs of the configuration.
func askConfig(ctx context.Context, c *Config) (proxy.Config, error) {
	trusted, err := parsePrefixes(c.Listen.TrustedProxies)
	if err != nil {
		return proxy.Config{}, err
	}
	parts := proxy.Config{Domains: c.Listen.Domains, TrustedProxies: trusted}
	for i := range c.Backends {
		b := &c.Backends[i]
		s, err := signer.New(ctx, b.Credentials, signer.Options{Region: b.Region, CAFile: b.CAFile})
		if err != nil {
			return proxy.Config{}, fmt.Errorf("backends[%d].credentials: %w", i, err)
		}
		parts.Backends = append(parts.Backends, proxy.Backend{Name: b.Name, Buckets: b.Buckets, StrictKeys: b.Keys == "strict", Signer: s})
	}
	return parts, nil
}

func (cmd explainCommand) request(c *Config) (*http.Request, error) {
	target := cmd.URL
	host := "localhost"
	if len(c.Listen.Domains) > 0 {
		host = c.Listen.Domains[0]
	}
	if rest, ok := strings.CutPrefix(target, "s3://"); ok {
		target = "/" + rest
	}
	if strings.HasPrefix(target, "/") {
		target = "https://" + host + target
	}
	r, err := http.NewRequest(strings.ToUpper(cmd.Method), target, nil)
	if err != nil {
		return nil, fmt.Errorf("METHOD URL: %w", err)
	}
	r.RemoteAddr = "127.0.0.1:0"
	for _, h := range cmd.Header {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return nil, fmt.Errorf("-H %q is not \"Name: value\"", h)
		}
		r.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return r, nil
}

// event explains what the policy in force says today of a request that was recorded. What the event does not hold
// (headers, claims that are not recorded) is absent from the input.
func (cmd explainCommand) event(ctx context.Context, out io.Writer, engine *policy.Engine) error {
	var text []byte
	var err error
	if cmd.Event == "-" {
		text, err = io.ReadAll(os.Stdin)
	} else {
		text, err = os.ReadFile(cmd.Event)
	}
	if err != nil {
		return fmt.Errorf("--event: %w", err)
	}
	var e audit.Event
	if err := json.Unmarshal(text, &e); err != nil {
		return fmt.Errorf("--event: not one audit event (give one line of the log: grep ID audit.jsonl | proxy explain --event -): %w", err)
	}
	if e.Schema != audit.Schema {
		return fmt.Errorf("--event: not an audit event: its schema is %q and not %q", e.Schema, audit.Schema)
	}
	if len(e.Accesses) == 0 {
		return fmt.Errorf("policy was not asked: the event of %s has no accesses, and says %s with %d %s", cmp.Or(e.Operation, "the request"), e.Outcome, e.Status, e.Error)
	}
	event, err := recordedEvent(&e)
	if err != nil {
		return err
	}
	question, err := event.Question()
	if err != nil {
		return err
	}
	explanation, err := engine.Explain(ctx, question)
	if err != nil {
		return err
	}
	answer := explained{Operation: e.Operation, Explanation: explanation, Backend: e.Backend.Name}
	if explanation.Allow {
		answer.ActAs = cmp.Or(explanation.Role, e.Decision.Role) // where policy names none, the backend's own, which was taken then
	}
	answer.Identity.Issuer, answer.Identity.Subject, answer.Identity.Session = e.Identity.Issuer, e.Identity.Subject, e.Identity.Session
	answer.Identity.Attributes = policy.Attributes(e.Identity.Attributes)
	answer.Recorded = &happened{e.Decision.Allow, e.Decision.Reasons, e.Decision.PolicyRevision, e.Outcome, e.Status, e.Error}
	return cmd.print(out, &answer)
}

func (cmd explainCommand) print(out io.Writer, x *explained) error {
	if cmd.JSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(x)
	}
	fmt.Fprintf(out, "%s by %s, session %s, project %q (%s)\n", x.Operation, x.Identity.Subject, x.Identity.Session, x.Identity.Attributes.Project, x.Identity.Issuer)
	by := ", by"
	if x.overruled {
		by = ", though allowed by"
	}
	fmt.Fprintf(out, "decision: %s%s policy %s\n", said(x.Allow), by, x.Revision)
	if x.Error != "" {
		fmt.Fprintf(out, "  error: %s\n", x.Error)
	}
	for _, reason := range x.Reasons {
		fmt.Fprintf(out, "  because %s\n", reason)
	}
	if x.Operation == "ListBuckets" && !x.Allow {
		fmt.Fprintln(out, "  but the buckets on which s3:ListBucket is allowed are listed, unless policy denies s3:ListAllMyBuckets")
	}
	if r := x.Recorded; r != nil {
		fmt.Fprintf(out, "recorded: %s, by policy %s\n", strings.TrimSpace(fmt.Sprintf("%s with %d %s", r.Outcome, r.Status, r.Error)), r.Revision)
		for _, reason := range r.Reasons {
			fmt.Fprintf(out, "  because %s\n", reason)
		}
	}
	switch {
	case x.Backend != "":
		fmt.Fprintf(out, "backend: %s\n", x.Backend)
	case x.Operation == "ListBuckets":
		fmt.Fprintln(out, "backend: each is asked for its buckets")
	default:
		fmt.Fprintln(out, "backend: none has this bucket")
	}
	switch {
	case x.overruled && x.RoleError != "":
		fmt.Fprintf(out, "role: refused: %s\n", x.RoleError)
	case !x.Allow:
	case x.ActAs != "":
		fmt.Fprintf(out, "role: %s\n", x.ActAs)
	}
	if len(x.SessionPolicy) > 0 {
		fmt.Fprintf(out, "session policy: %s\n", x.SessionPolicy)
	}
	if l := x.Limits; l != nil {
		for _, limit := range []struct {
			name  string
			value float64
		}{
			{"requests_per_second", l.RequestsPerSecond}, {"bytes_per_second", float64(l.BytesPerSecond)},
			{"in_flight", float64(l.InFlight)}, {"max_object_bytes", float64(l.MaxObjectBytes)},
		} {
			if limit.value > 0 {
				fmt.Fprintf(out, "limit: %s %s\n", limit.name, strconv.FormatFloat(limit.value, 'f', -1, 64))
			}
		}
	}
	if x.FilterListing {
		fmt.Fprintln(out, "listing: shows only what may be read")
	}
	if s := x.Shadow; s != nil {
		as := ""
		if s.Role != "" {
			as = " as " + s.Role
		}
		fmt.Fprintf(out, "shadow: %s%s, by policy %s%s\n", cmp.Or(s.Error, said(s.Allow)), as, s.Revision, map[bool]string{true: ": differs"}[s.Differs])
	}
	return x.WriteAccesses(out)
}

func said(allow bool) string {
	if allow {
		return "allowed"
	}
	return "refused"
}

// access prints what the identity may do in one place: every action that an operation of Sluice's needs.
func (cmd explainCommand) access(ctx context.Context, out io.Writer, engine *policy.Engine, parts proxy.Config, id *identity.Identity) error {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(cmd.Access, "s3://"), "/")
	r, err := http.NewRequest(http.MethodHead, "https://localhost/"+bucket, nil)
	if err != nil {
		return fmt.Errorf("--access: %w", err)
	}
	parts.Domains = nil
	asked, err := proxy.Ask(parts, id, r, time.Now())
	if err != nil {
		return err
	}
	template := asked.Question.Accesses[0]
	type row struct {
		Action string `json:"action"`
		Bucket string `json:"bucket"`
		Key    string `json:"key,omitempty"`
		Prefix string `json:"prefix,omitempty"`
		Allow  bool   `json:"allow"`
	}
	var rows []row
	for _, action := range actions() {
		access := template
		access.Action = action.name
		switch {
		case action.object && key == "":
			continue // no key was asked about
		case action.object:
			access.Key = key
		default:
			access.Prefix = key
		}
		q := *asked.Question
		q.Operation, q.Accesses = action.operation, []policy.Access{access}
		allowed, err := engine.Allowed(ctx, &q)
		if err != nil {
			return err
		}
		rows = append(rows, row{action.name, access.Bucket, access.Key, access.Prefix, allowed[0]})
	}
	slices.SortStableFunc(rows, func(a, b row) int { // what one may, first
		switch {
		case a.Allow == b.Allow:
			return 0
		case a.Allow:
			return -1
		}
		return 1
	})
	if cmd.JSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(rows)
	}
	fmt.Fprintf(out, "%s, session %s, project %q on %s:\n", id.Subject, id.Session, id.Attributes.Project, cmd.Access)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(table, "  %s\t%s\n", r.Action, said(r.Allow))
	}
	if key == "" {
		fmt.Fprintln(table, "  (for objects give a key: --access "+bucket+"/key)")
	}
	return table.Flush()
}

type action struct {
	name      string
	operation string // the first that needs it
	object    bool
}

// actions are all that operations need, by name.
func actions() []action {
	seen := map[string]bool{}
	var all []action
	for _, op := range s3wire.Operations() {
		if op.Level == "service" || op.Name == "DeleteObjects" { // its keys need what DeleteObject does
			continue
		}
		for _, name := range op.Actions {
			if !seen[name] {
				seen[name] = true
				all = append(all, action{name, op.Name, op.Level == "object"})
			}
		}
	}
	slices.SortFunc(all, func(a, b action) int { return strings.Compare(a.name, b.name) })
	return all
}
