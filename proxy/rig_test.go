package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy"
	"github.com/sluice-s3/sluice/proxy/http1"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
	"github.com/sluice-s3/sluice/proxy/s3test"
	"github.com/sluice-s3/sluice/signer"
	"github.com/sluice-s3/sluice/test/machine"
)

func TestMain(m *testing.M) {
	os.Unsetenv("AWS_CA_BUNDLE") // it breaks SDK clients that are given an HTTP client
	// Everything holds on either side of net/http's switch.
	status := m.Run()
	if status == 0 {
		netHTTP = true
		status = m.Run()
	}
	os.Exit(status)
}

// netHTTP has rigs use net/http's server and transport instead of http1's.
var netHTTP bool

const audience = "https://s3.example.com"

// ownPrefix is the policy of most tests: a project may do anything below its own prefix of any bucket.
const ownPrefix = `package s3.authz
own := concat("", [input.identity.attributes.project, "/"])
allow if startswith(input.key, own)
allow if { input.action == "s3:ListBucket"; startswith(input.prefix, own) }
allow if input.action == "s3:ListAllMyBuckets"
allow if { input.action == "s3:ListBucket"; startswith(input.bucket, "seen-") }
reasons contains sprintf("project %s works below %s", [input.identity.attributes.project, own]) if not allow
`

// rig is a proxy in this process, between a client and backends that record what reaches them.
type rig struct {
	t       testing.TB
	URL     string
	issuer  *oidctest.Issuer
	backend *s3test.Backend
	proxy   *proxy.Proxy
	auth    *identity.Authenticator
	audit   *audit.Log
	log     *syncBuffer
	path    string // of the audit log
	seen    int
	policy  *policy.Engine
	server  *front
}

type rigOptions struct {
	policy    string
	configure func(*proxy.Config)
	audit     func(*audit.Config)
}

func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	dir := t.TempDir()
	r := &rig{t: t, backend: s3test.New(t), issuer: oidctest.New(oidctest.Options{}), log: &syncBuffer{}, path: filepath.Join(dir, "audit.jsonl")}
	t.Cleanup(r.issuer.Close)
	if o.policy == "" {
		o.policy = ownPrefix
	}
	policies := filepath.Join(dir, "policy")
	must(t, os.Mkdir(policies, 0o755))
	must(t, os.WriteFile(filepath.Join(policies, "authz.rego"), []byte(o.policy), 0o644))

	var err error
	r.auth, err = identity.New(ctx, identity.Config{Issuers: []identity.IssuerConfig{{
		Issuer: r.issuer.URL(), Audiences: []string{audience}, Preset: "ona",
	}}})
	must(t, err)
	r.policy, err = policy.Open(ctx, policy.Config{Dir: policies}, nil)
	must(t, err)
	recording := audit.Config{File: &audit.File{Path: r.path}}
	if o.audit != nil {
		o.audit(&recording)
	}
	r.audit, err = audit.Open(ctx, recording)
	must(t, err)
	t.Cleanup(func() { r.audit.Close(context.Background()) })

	c := proxy.Config{
		Auth: r.auth, Policy: r.policy, Audit: r.audit,
		Backends: []proxy.Backend{backendFor(t, "main", r.backend.URL, "*")},
		Log:      slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if o.configure != nil {
		o.configure(&c)
	}
	r.proxy, err = proxy.New(c)
	must(t, err)
	r.server = serve(t, r.proxy, slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug))
	t.Cleanup(r.server.Close)
	r.URL = "http://" + r.server.Listener.Addr().String()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the proxy logged:\n%s", r.log)
		}
	})
	return r
}

// front is a server of either kind.
type front struct {
	Listener                      net.Listener
	Close, CloseClientConnections func()
	Shutdown                      func(context.Context) error
}

func serve(t testing.TB, h *proxy.Proxy, errorLog *log.Logger) *front {
	t.Helper()
	if netHTTP {
		s := httptest.NewUnstartedServer(h)
		s.Config.ErrorLog = errorLog
		s.Config.DisableGeneralOptionsHandler = true
		s.Start()
		return &front{s.Listener, s.Close, s.CloseClientConnections, s.Config.Shutdown}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &http1.Server{Handler: h, Malformed: h.Malformed, ErrorLog: errorLog}
	go s.Serve(l)
	stop := func() { s.Close() }
	return &front{l, stop, s.CloseConnections, s.Shutdown}
}

// backendFor signs with the key that s3test knows.
func backendFor(t testing.TB, name, endpoint string, buckets ...string) proxy.Backend {
	t.Helper()
	id, secret := filepath.Join(t.TempDir(), "id"), filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(id, []byte(s3test.Key.AccessKeyID), 0o600))
	must(t, os.WriteFile(secret, []byte(s3test.Key.SecretAccessKey), 0o600))
	s, err := signer.New(t.Context(), signer.Config{Static: &signer.Static{AccessKeyIDFile: id, SecretAccessKeyFile: secret}}, signer.Options{Region: "us-east-1"})
	must(t, err)
	u, err := url.Parse(endpoint)
	must(t, err)
	var transport interface {
		http.RoundTripper
		CloseIdleConnections()
	} = &http1.Transport{}
	if netHTTP {
		transport = &http.Transport{DisableCompression: true, ExpectContinueTimeout: machine.Patience}
	}
	t.Cleanup(transport.CloseIdleConnections)
	return proxy.Backend{Name: name, Buckets: buckets, Endpoint: u, PathStyle: true, Signer: s, Transport: transport}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// token is that of a workspace of project web.
func (r *rig) token(claims ...map[string]any) string {
	all := map[string]any{"aud": audience, "sub": "environment/env-1", "environment_id": "env-1", "project_id": "web", "creator_email": "dev@acme.com"}
	for _, more := range claims {
		for name, value := range more {
			all[name] = value
		}
	}
	return r.issuer.Token(all)
}

// request is one with a workspace's token.
func (r *rig) request(method, target string, body io.Reader) *http.Request {
	r.t.Helper()
	request, err := http.NewRequest(method, r.URL+target, body)
	must(r.t, err)
	request.Header.Set("Authorization", "Bearer "+r.token())
	return request
}

// do sends a request and reads the answer whole.
func (r *rig) do(request *http.Request) (*http.Response, string) {
	r.t.Helper()
	response, err := noRedirects.Do(request)
	must(r.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(r.t, err)
	return response, string(body)
}

// readAll gets an object, and fails where it did not come whole.
func (r *rig) readAll(target string) ([]byte, error) {
	response, err := noRedirects.Do(r.request("GET", target, nil))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

var noRedirects = &http.Client{
	Transport:     &http.Transport{DisableCompression: true, ExpectContinueTimeout: machine.Patience},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// raw sends bytes as they are, and reads one answer.
func (r *rig) raw(bytes string) (*http.Response, string) {
	r.t.Helper()
	c, err := net.Dial("tcp", r.server.Listener.Addr().String())
	must(r.t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(machine.Patience))
	_, err = io.WriteString(c, bytes)
	must(r.t, err)
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(r.t, err)
	body, _ := io.ReadAll(response.Body)
	return response, string(body)
}

// events waits until n more events than were looked at are written, and returns them. Each test ends with it, so that
// none leaves an event too many.
func (r *rig) events(n int) []audit.Event {
	r.t.Helper()
	var all []audit.Event
	machine.Until(r.t, fmt.Sprintf("%d more events", n), func() bool {
		all = r.read()
		return len(all) >= r.seen+n
	})
	if len(all) > r.seen+n {
		r.t.Fatalf("%d events, want %d: %+v", len(all)-r.seen, n, all[r.seen:])
	}
	events := all[r.seen:]
	r.seen += n
	return events
}

func (r *rig) event() audit.Event {
	r.t.Helper()
	return r.events(1)[0]
}

func (r *rig) read() []audit.Event {
	r.t.Helper()
	text, err := os.ReadFile(r.path)
	must(r.t, err)
	var events []audit.Event
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		var e audit.Event
		if err := json.Unmarshal(line, &e); err != nil {
			r.t.Fatalf("%v in %s", err, line)
		}
		events = append(events, e)
	}
	return events
}

type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// check holds an event to what is expected of it, field by field.
func check(t testing.TB, e audit.Event, want map[string]any) {
	t.Helper()
	text, err := json.Marshal(e)
	must(t, err)
	var got map[string]any
	must(t, json.Unmarshal(text, &got))
	for name, value := range want {
		if fmt.Sprint(got[name]) != fmt.Sprint(value) {
			t.Errorf("event's %s is %v, want %v", name, got[name], value)
		}
	}
}
func md5Of(s string) string {
	sum := md5.Sum([]byte(s))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func trust(cidrs ...string) func(*proxy.Config) {
	return func(c *proxy.Config) {
		for _, cidr := range cidrs {
			c.TrustedProxies = append(c.TrustedProxies, netip.MustParsePrefix(cidr))
		}
	}
}

func revoke(t testing.TB, r *rig, session string) {
	t.Helper()
	_, err := r.auth.Revocations().Add(t.Context(), identity.Revocation{Issuer: r.issuer.URL(), Session: session})
	must(t, err)
}
