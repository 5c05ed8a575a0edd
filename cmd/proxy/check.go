package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/signer"
)

type checkCommand struct {
	Config    string        `required:"" placeholder:"FILE" help:"Configuration file."`
	Online    bool          `help:"Also ask issuers, STS and backends."`
	TokenFile string        `placeholder:"F" help:"A workspace's OIDC token to try, with --online."`
	Timeout   time.Duration `default:"15s" help:"For each thing that is asked."`
}

func (checkCommand) Example() string {
	return `proxy check --config sluice.yaml
proxy check --config sluice.yaml --online --token-file /run/token`
}

// Run prints every problem of the file, each with its path; and online, what came of asking everybody.
func (cmd checkCommand) Run(out io.Writer) error {
	c, problems, err := readConfig(cmd.Config)
	if err != nil {
		return err
	}
	for _, p := range problems {
		fmt.Fprintln(out, p)
	}
	if len(problems) > 0 || !cmd.Online {
		if c != nil {
			err = checkParts(out, c, problems)
		}
		if err != nil || len(problems) > 0 {
			return &exitError{exitFailed}
		}
		fmt.Fprintf(out, "%s: ok\n", cmd.Config)
		return nil
	}
	for _, p := range c.looseFiles() {
		fmt.Fprintln(out, Problem{p.Path, "warning: " + p.Text})
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // what a part would log is told in its line of the table
	d := &doctor{config: c, timeout: cmd.Timeout, tokenFile: cmd.TokenFile}
	d.examine(context.Background())
	d.print(out)
	if d.failed() {
		return &exitError{exitFailed}
	}
	return nil
}

// checkParts makes what can be made of the configuration without asking anybody: credentials from files and variables,
// and the policy. What has problems already is not made of.
func checkParts(out io.Writer, c *Config, already []Problem) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	good := func(paths ...string) bool {
		return !slices.ContainsFunc(already, func(p Problem) bool {
			return slices.ContainsFunc(paths, func(path string) bool { return within(p.Path, path) || within(path, p.Path) })
		})
	}
	var failed error
	for _, p := range c.idleBackends() {
		if good(p.Path) {
			fmt.Fprintln(out, p)
			failed = &exitError{exitFailed}
		}
	}
	for _, p := range c.looseFiles() {
		if good(p.Path) {
			fmt.Fprintln(out, Problem{p.Path, "warning: " + p.Text})
		}
	}
	for i := range c.Audit.Ship {
		if !good(fmt.Sprintf("audit.ship[%d]", i)) {
			continue
		}
		c.Audit.Ship[i].CheckSecrets(func(path, problem string) {
			fmt.Fprintln(out, Problem{fmt.Sprintf("audit.ship[%d].%s", i, path), problem})
			failed = &exitError{exitFailed}
		})
	}
	for i := range c.Backends {
		b, at := &c.Backends[i], fmt.Sprintf("backends[%d].", i)
		if !good(at+"credentials", at+"region", at+"ca_file") {
			continue
		}
		if _, err := signer.New(ctx, b.Credentials, signer.Options{Region: b.Region, CAFile: b.CAFile}); err != nil {
			for _, p := range credentialProblems(i, err) {
				fmt.Fprintln(out, p)
			}
			failed = &exitError{exitFailed}
		}
	}
	return cmp.Or(failed, checkPolicy(out, c, good))
}

// idleBackends are those that no request comes to, since the first whose globs match takes it. They are served with, as they
// always were: nothing goes where it should not.
func (c *Config) idleBackends() []Problem {
	var problems []Problem
	for i, b := range c.Backends {
		before := map[string]string{}
		for _, other := range c.Backends[:i] {
			for _, glob := range other.Buckets {
				before[glob] = other.Name
			}
		}
		for j, glob := range b.Buckets {
			taker := cmp.Or(before["*"], before[glob])
			if taker != "" {
				problems = append(problems, Problem{fmt.Sprintf("backends[%d].buckets[%d]", i, j),
					fmt.Sprintf("%q is never asked here: backend %q comes first and takes these buckets", glob, taker)})
			}
		}
	}
	return problems
}

// credentialProblems are those that making a backend's signer found, each with its path.
func credentialProblems(backend int, err error) []Problem {
	at := fmt.Sprintf("backends[%d].credentials", backend)
	var problems []Problem
	for _, e := range flatten(err) {
		if field, ok := errors.AsType[*signer.FieldError](e); ok {
			problems = append(problems, Problem{at + "." + field.Path, field.Text})
		} else {
			problems = append(problems, Problem{at, oneLine(e)})
		}
	}
	return problems
}

// checkPolicy loads the policy where that asks nobody, and says what of it works but perhaps not as meant: fields that
// the input does not have are mistakes, what grows with its data or leaves the fast path is worth knowing.
func checkPolicy(out io.Writer, c *Config, good func(paths ...string) bool) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sources := map[string]policy.Config{"policy": {Dir: c.Policy.Dir, Entrypoint: c.Policy.Entrypoint}}
	if s := c.Policy.Shadow; s != nil {
		sources["policy.shadow"] = policy.Config{Dir: s.Dir, Entrypoint: cmp.Or(s.Entrypoint, c.Policy.Entrypoint)}
	}
	failed := false
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		if sources[name].Dir == "" || !good(name+".dir") {
			continue
		}
		if !good(name + ".entrypoint") { // what is to be asked is not known: whether there is something is
			checkFile(sources[name].Dir, name+".dir", func(path, text string) {
				fmt.Fprintln(out, Problem{path, text})
				failed = true
			})
			continue
		}
		engine, err := policy.Open(ctx, sources[name], nil)
		if err != nil {
			failed = true
			for _, problem := range problems(fmt.Errorf("%s.dir: %w", name, err)) {
				fmt.Fprintln(out, problem)
			}
			continue
		}
		for _, found := range engine.Lint() {
			fmt.Fprintf(out, "%s: %s\n", name, found)
			failed = failed || found.Mistake()
		}
	}
	if failed {
		return &exitError{exitFailed}
	}
	return nil
}

// finding is one line of the doctor's table.
type finding struct {
	what  string
	state string // ok, failed, skipped
	say   string
	mend  string
}

// doctor asks everybody that the proxy would, changing nothing.
type doctor struct {
	config    *Config
	timeout   time.Duration
	tokenFile string

	findings []finding
	clocks   []clock
	identity *identity.Identity // of the token, where it is good
}

// clock is what another machine's Date header says.
type clock struct {
	whose string
	skew  time.Duration
}

func (d *doctor) ok(what, format string, args ...any) {
	d.findings = append(d.findings, finding{what: what, state: "ok", say: fmt.Sprintf(format, args...)})
}

func (d *doctor) fail(what, mend, format string, args ...any) {
	d.findings = append(d.findings, finding{what: what, state: "failed", say: fmt.Sprintf(format, args...), mend: mend})
}

func (d *doctor) skip(what, format string, args ...any) {
	d.findings = append(d.findings, finding{what: what, state: "skipped", say: fmt.Sprintf(format, args...)})
}

func (d *doctor) failed() bool {
	for _, f := range d.findings {
		if f.state == "failed" {
			return true
		}
	}
	return false
}

func (d *doctor) print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range d.findings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.state, f.what, oneLine(errors.New(f.say)))
		if f.mend != "" {
			fmt.Fprintf(table, "\t\tmend: %s\n", oneLine(errors.New(f.mend)))
		}
	}
	table.Flush()
}

func (d *doctor) examine(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	auth := d.issuers(ctx)
	if auth != nil {
		d.token(ctx, auth)
		d.revocations(auth)
	}
	d.policy(ctx)
	d.audit()
	for _, p := range d.config.idleBackends() {
		d.fail("backends", "the first backend whose globs match takes a request: put the wider ones last", "%s", p)
	}
	for i := range d.config.Backends {
		d.backend(ctx, &d.config.Backends[i])
	}
	d.clock()
}

func (d *doctor) issuers(ctx context.Context) *identity.Authenticator {
	c := d.config
	auth, err := identity.New(ctx, identity.Config{Issuers: c.Issuers, Sessions: c.Sessions, Revocation: identity.RevocationConfig{Store: c.Revocation.Store}})
	if err != nil {
		d.fail("identity", "mend the file that the message names", "%v", err)
		return nil
	}
	if c.Sessions.KeyFile == "" {
		d.ok("sessions", "random keys: sessions end with the process, and replicas do not share them (sessions.key_file)")
	} else {
		d.ok("sessions", "keys read from %s", c.Sessions.KeyFile)
	}
	asking, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	for _, fetched := range auth.FetchKeys(asking) {
		what := "issuer " + fetched.Issuer
		if fetched.Err != nil {
			d.fail(what, "compare the issuer with the iss of a token, letter by letter; this machine must reach it (ca_file for a private CA, jwks_file where it cannot)", "%v", fetched.Err)
			continue
		}
		d.ok(what, "keys known: %d", fetched.Keys)
	}
	for _, issuer := range c.Issuers {
		if issuer.JWKSFile == "" {
			d.readClock(ctx, issuer.Issuer, issuer.CAFile, strings.TrimSuffix(issuer.Issuer, "/")+"/.well-known/openid-configuration")
		}
	}
	return auth
}

func (d *doctor) token(ctx context.Context, auth *identity.Authenticator) {
	if d.tokenFile == "" {
		d.skip("token", "give --token-file to try a workspace's token")
		return
	}
	text, err := os.ReadFile(d.tokenFile)
	if err != nil {
		d.fail("token", "name a file that holds the token alone", "%v", err)
		return
	}
	asking, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	id, err := auth.VerifyToken(asking, strings.TrimSpace(string(text)))
	if e, ok := errors.AsType[*identity.Error](err); ok && e.Kind == identity.Unavailable {
		d.skip("token", "%v", err) // what keeps it from being verified has a line of its own
		return
	}
	if err != nil {
		mend := "ask the workspace's issuer for a token with one of the configured audiences, or add its audience to issuers[].audiences"
		if e, ok := errors.AsType[*identity.Error](err); ok && e.Kind == identity.Expired {
			mend = "fetch a new token; if it is new, compare the clocks"
		}
		d.fail("token", mend, "%v", err)
		return
	}
	d.identity = id
	d.ok("token", "%s, session %s, project %q, audience %s, expires in %s", id.Subject, id.Session, id.Attributes.Project,
		strings.Join(id.Audience, " "), time.Until(id.Expires).Round(time.Second))
}

func (d *doctor) revocations(auth *identity.Authenticator) {
	status := auth.Revocations().Status()
	for deadline := time.Now().Add(d.timeout); !status.Ready && time.Now().Before(deadline); status = auth.Revocations().Status() {
		time.Sleep(10 * time.Millisecond)
	}
	if !status.Ready || !status.Shared {
		d.fail("revocations", "this machine must reach revocation.store, which needs JetStream enabled", "%s: %s", d.config.Revocation.Store, status.Error)
		return
	}
	d.ok("revocations", "%s, %d in force", status.Store, status.Count)
}

func (d *doctor) policy(ctx context.Context) {
	asking, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	engine, err := policy.Open(asking, d.config.Policy, nil)
	if err != nil {
		mend := "proxy policy test runs the policies' own tests; docs/policy.md tells what is refused at load"
		if d.config.Policy.Dir == "" {
			mend = "this machine must reach the policy's source, and find there what the configuration names; " + mend
		}
		d.fail("policy", mend, "%v", err)
		return
	}
	d.ok("policy", "revision %s", engine.Status().Revision)
	for _, found := range engine.Lint() {
		if found.Mistake() {
			d.fail("policy", "mend the rule: as it is, it never holds as its author thinks", "%s", found)
		} else {
			d.ok("policy", "%s", found)
		}
	}
}

// audit tries the log's directory and file, and leaves both as they were: another process may be writing there.
func (d *doctor) audit() {
	file := d.config.Audit.File
	if file == nil {
		d.ok("audit", "standard output")
		return
	}
	mend := "give the proxy's user a directory that it may write to; on_failure: refuse serves nothing that cannot be recorded"
	dir, note := filepath.Dir(file.Path), ""
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
			break
		}
		dir, note = filepath.Dir(dir), "; its directory will be made" // as serve does
	}
	probe, err := os.CreateTemp(dir, ".sluice-check-*")
	if err != nil {
		d.fail("audit", mend, "%v", err)
		return
	}
	probe.Close()
	os.Remove(probe.Name())
	if _, err := os.Stat(file.Path); err == nil {
		log, err := os.OpenFile(file.Path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			d.fail("audit", mend, "%v", err)
			return
		}
		log.Close()
	}
	d.ok("audit", "%s can be written%s", file.Path, note)
}

func (d *doctor) backend(ctx context.Context, b *Backend) {
	what := "backend " + b.Name
	if !d.reach(ctx, what, b) {
		return
	}
	s, err := signer.New(ctx, b.Credentials, signer.Options{Region: b.Region, CAFile: b.CAFile})
	if err != nil {
		d.fail(what+" credentials", "mend the variable or file that the message names", "%v", err)
		return
	}
	roles := s.Roles()
	if len(roles) == 0 {
		roles = []string{""}
	}
	for _, role := range roles {
		name := what + " credentials"
		if role != "" {
			name = "role " + role
		}
		as := signer.As{Role: role}
		if d.identity != nil {
			// As long as the configuration asks for, not as long as this token happens to last.
			principal := *proxy.Principal(d.identity)
			principal.Expires = time.Now().Add(13 * time.Hour)
			as.Principal = &principal
		} else if b.Credentials.WebIdentity != nil {
			d.skip(name, "give --token-file: AWS verifies the workspace's own token")
			continue
		}
		asking, cancel := context.WithTimeout(ctx, d.timeout)
		err := s.Test(asking, as)
		cancel()
		if e, bad := errors.AsType[*signer.Error](err); bad {
			d.failSigner(name, e)
			continue
		}
		if role == "" && as.Principal == nil { // no role's credentials differ from one identity to the next
			as.Principal = &signer.Principal{Expires: time.Now().Add(time.Hour)}
		}
		if as.Principal == nil || d.taken(ctx, name, what, b, s, as) {
			d.ok(name, "can be acted as")
		}
	}
}

func (d *doctor) failSigner(name string, e *signer.Error) {
	say := e.Message
	if e.Err != nil {
		say += ": " + e.Err.Error()
	}
	d.fail(name, e.Hint, "%s", say)
}

// taken asks the backend for its buckets, as requests are signed: fixed keys, the region and whether this is S3 at all are
// tried by nothing else. That the credentials may not list them is an answer; nothing but the code is told, since S3
// explains a bad signature by what was signed.
func (d *doctor) taken(ctx context.Context, name, backend string, b *Backend, s *signer.Signer, as signer.As) bool {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	const mend = "this machine must reach the endpoint; a private CA goes into ca_file"
	endpoint, err := b.url()
	if err != nil {
		d.fail(backend, "", "%v", err)
		return false
	}
	transport, err := b.transport(Limits{})
	if err != nil {
		d.fail(backend, mend, "%v", err)
		return false
	}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint.String()+"/", nil)
	if err != nil {
		d.fail(backend, "", "%v", err)
		return false
	}
	const nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // SHA-256 of no bytes
	if e, bad := errors.AsType[*signer.Error](s.Sign(ctx, request, nothing, as)); bad {
		d.failSigner(name, e)
		return false
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		d.fail(backend, mend, "%v", err)
		return false
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10)) // an error is shorter, and of a list the start will do
	if err != nil {
		d.fail(backend, mend, "%v", err)
		return false
	}
	_, rest, isError := strings.Cut(string(text), "<Code>")
	code, _, _ := strings.Cut(rest, "<")
	switch {
	case proxy.RefusesProxy(code):
		d.fail(name, mendCredentials(code), "the backend does not accept them: %s", code)
	case !isError && !strings.Contains(string(text), "<ListAllMyBucketsResult"):
		d.fail(backend, "endpoint must be that of an S3 service, without a bucket or a path", "%s answers %s, and not as S3 does", endpoint, answer.Status)
	case answer.StatusCode >= 500 && answer.StatusCode != http.StatusNotImplemented:
		d.fail(backend, "see what the backend itself says", "%s answers %s", endpoint, answer.Status)
	default:
		return true
	}
	return false
}

// mendCredentials says what is wrong about what a request was signed with, by the code that it was refused with.
func mendCredentials(code string) string {
	switch code {
	case "InvalidAccessKeyId":
		return "no such access key ID is known there: compare it, and the endpoint"
	case "SignatureDoesNotMatch":
		return "the secret key is not this access key ID's, or the region is not the backend's"
	case "AuthorizationHeaderMalformed":
		return "set region to the backend's own"
	case "RequestTimeTooSkewed":
		return "synchronise this machine's clock (NTP)"
	}
	return "renew the credentials"
}

// reach asks the backend anything at all: an S3 error is an answer.
func (d *doctor) reach(ctx context.Context, what string, b *Backend) bool {
	endpoint, err := b.url()
	if err != nil {
		d.fail(what, "", "%v", err)
		return false
	}
	if err := d.readClock(ctx, what, b.CAFile, endpoint.String()+"/"); err != nil {
		d.fail(what, "this machine must reach the endpoint; a private CA goes into ca_file", "%v", err)
		return false
	}
	d.ok(what, "%s answers", endpoint)
	return true
}

// readClock asks url for its Date.
func (d *doctor) readClock(ctx context.Context, whose, caFile, url string) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	transport, err := (&Backend{CAFile: caFile}).transport(Limits{})
	if err != nil {
		return err
	}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	answer.Body.Close()
	if theirs, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		d.clocks = append(d.clocks, clock{whose, time.Since(theirs)})
	}
	return nil
}

// maxSkew is where trouble begins: S3 refuses signatures from 15 minutes on, and tokens have a leeway of seconds.
const maxSkew = 30 * time.Second

func (d *doctor) clock() {
	if len(d.clocks) == 0 {
		d.skip("clock", "no issuer or backend told its time")
		return
	}
	for _, c := range d.clocks {
		if c.skew.Abs() > maxSkew {
			d.fail("clock", "synchronise this machine's clock (NTP)", "differs by %s from that of %s", c.skew.Abs().Round(time.Second), c.whose)
			return
		}
	}
	d.ok("clock", "agrees with all that told theirs: %d", len(d.clocks))
}
