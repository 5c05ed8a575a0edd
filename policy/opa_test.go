package policy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/sluice-s3/sluice/policy"
)

// bundles is a server of bundles, as any web server or object store is: with ETags.
type bundles struct {
	*httptest.Server
	t       *testing.T
	private string // PEM
	public  string

	mu       sync.Mutex
	content  map[string][]byte
	changed  chan struct{} // closed when content changes
	down     bool
	longPoll bool
	waiting  int // long polls begun
	notAgain int // answers 304
}

func newBundles(t *testing.T) *bundles {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	b := &bundles{
		t: t, content: map[string][]byte{}, changed: make(chan struct{}),
		private: string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		public:  string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
	}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		content, ok := b.content[r.URL.Path]
		if b.down || !ok {
			http.Error(w, "gone", http.StatusServiceUnavailable)
			return
		}
		for b.longPoll && r.Header.Get("If-None-Match") == etagOf(content) && strings.Contains(r.Header.Get("Prefer"), "wait=") {
			b.waiting++
			changed := b.changed
			b.mu.Unlock()
			select {
			case <-changed:
			case <-r.Context().Done():
			}
			b.mu.Lock()
			if content = b.content[r.URL.Path]; r.Context().Err() != nil {
				return
			}
		}
		etag := etagOf(content)
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			b.notAgain++
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Type", "application/gzip")
		if b.longPoll {
			w.Header().Set("Content-Type", "application/vnd.openpolicyagent.bundles") // says that it can
		}
		w.Write(content)
	}))
	t.Cleanup(b.Close)
	return b
}

func etagOf(content []byte) string {
	sum := sha256.Sum256(content)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

// publish puts a bundle there; how may spoil it first.
func (b *bundles) publish(path, revision, rego string, data map[string]any, how ...func(*bundle.Bundle)) {
	b.t.Helper()
	b.put(path, b.build(revision, rego, data, how...))
}

func (b *bundles) put(path string, content []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.content[path] = content
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *bundles) build(revision, rego string, data map[string]any, how ...func(*bundle.Bundle)) []byte {
	b.t.Helper()
	made := bundle.Bundle{Manifest: bundle.Manifest{Revision: revision}, Data: data}
	if data == nil {
		made.Data = map[string]any{}
	}
	var roots []string
	for key := range data {
		roots = append(roots, key)
	}
	if rego != "" {
		roots = append(roots, "s3/authz")
		made.Modules = []bundle.ModuleFile{
			{URL: "/a.rego", Path: "/a.rego", Raw: []byte(rego), Parsed: ast.MustParseModule(rego)},
			{URL: "/a_test.rego", Path: "/a_test.rego", Raw: []byte("package s3.authz\ntest_x := true\n"), Parsed: ast.MustParseModule("package s3.authz\ntest_x := true\n")},
		}
	}
	made.Manifest.Roots = &roots
	made.Manifest.Init()
	if err := made.GenerateSignature(bundle.NewSigningConfig(b.private, "RS256", ""), "ci", false); err != nil {
		b.t.Fatal(err)
	}
	for _, f := range how {
		f(&made)
	}
	var out bytes.Buffer
	if err := bundle.Write(&out, made); err != nil {
		b.t.Fatal(err)
	}
	return out.Bytes()
}

func (b *bundles) setDown(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

func (b *bundles) config(persist string, paths ...string) policy.Config {
	list := map[string]any{}
	for _, path := range paths {
		list[strings.Trim(path, "/")] = map[string]any{
			"service": "ci", "resource": path, "persist": true,
			"signing": map[string]any{"keyid": "ci"},
			"polling": map[string]any{"min_delay_seconds": 1, "max_delay_seconds": 1},
		}
	}
	return policy.Config{OPA: map[string]any{
		"services":              map[string]any{"ci": map[string]any{"url": b.URL}},
		"keys":                  map[string]any{"ci": map[string]any{"algorithm": "RS256", "key": b.public}},
		"bundles":               list,
		"persistence_directory": persist,
	}}
}

func unsigned(b *bundle.Bundle) { b.Signatures = bundle.SignaturesConfig{} }

func TestOPA(t *testing.T) {
	t.Parallel()
	b := newBundles(t)
	b.publish("/authz", "r1", "package s3.authz\nallow := data.on\n", map[string]any{"on": true})
	config := b.config(t.TempDir(), "/authz")
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != "r1" || s.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}
	b.publish("/authz", "r2", "package s3.authz\nallow := data.on\n", map[string]any{"on": false})
	heard(func(s policy.Status) bool { return s.Revision == "r2" && s.Err == nil })
	if d := decide(t, e, question()); d.Allow || d.Revision != "r2" {
		t.Errorf("%+v", d)
	}

	// None of these takes force; the next good one does.
	for _, bad := range []struct {
		name, want string
		content    []byte
	}{
		{"unsigned", "signature", b.build("bad", allowAll, nil, unsigned)},
		{"changed", "digest", b.build("bad", allowNone, nil, func(b *bundle.Bundle) { b.Modules[0].Raw = []byte(allowAll) })},
		{"signed by another", "verif", newBundles(t).build("bad", allowAll, nil)},
		{"forbidden function", "http.send is not available", b.build("bad", "package s3.authz\nallow if http.send({}).x\n", nil)},
		{"no allow", "no rule `allow`", b.build("bad", "package s3.authz\nx := 1\n", nil)},
		{"does not compile", "a.rego", b.build("bad", "package s3.authz\nallow if x == 1\n", nil)},
		{"no bundle", "", []byte("nonsense")},
	} {
		b.put("/authz", bad.content)
		s := heard(func(s policy.Status) bool { return s.Err != nil && strings.Contains(s.Err.Error(), bad.want) })
		if d := decide(t, e, question()); s.Revision != "r2" || d.Allow || d.Revision != "r2" {
			t.Errorf("%s: %+v, %+v", bad.name, s, d)
		}
		b.publish("/authz", "r2", "package s3.authz\nallow := data.on\n", map[string]any{"on": false})
		heard(func(s policy.Status) bool { return s.Err == nil })
	}

	// The same revision with another content is another policy.
	b.publish("/authz", "r2", allowAll, nil)
	heard(func(policy.Status) bool { return decide(t, e, question()).Allow })

	// What is there already does not come again.
	for before := b.count(); b.count() == before; {
		runtime.Gosched()
	}

	// The server's death changes nothing, nor does a restart meanwhile.
	b.setDown(true)
	heard(func(s policy.Status) bool { return s.Err != nil })
	if !decide(t, e, question()).Allow {
		t.Error("not in force any more")
	}
	later, heardLater := watched(t, config)
	if s := later.Status(); s.Revision != "r2" || s.Err == nil || !decide(t, later, question()).Allow {
		t.Errorf("%+v", s)
	}
	b.setDown(false)
	b.publish("/authz", "r3", allowNone, nil)
	heardLater(func(s policy.Status) bool { return s.Revision == "r3" && s.Err == nil })

	// Reload does not wait.
	b.publish("/authz", "r4", allowNone, nil)
	if err := later.Reload(context.Background()); err != nil || later.Status().Revision != "r4" {
		t.Errorf("%v, %+v", err, later.Status())
	}

	// Without a good bundle, and none kept, nothing begins.
	b.put("/authz", b.build("bad", "package s3.authz\nx := 1\n", nil))
	if e, err := policy.Open(t.Context(), b.config(t.TempDir(), "/authz"), nil); err == nil {
		t.Errorf("began: %+v", e.Status())
	}
}

func (b *bundles) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.notAgain
}

// TestOPALongPoll: a server that answers when there is something new is heard at once; and a poll that a reload breaks
// off is no failure.
func TestOPALongPoll(t *testing.T) {
	t.Parallel()
	b := newBundles(t)
	b.longPoll = true
	b.publish("/authz", "r1", allowAll, nil)
	config := b.config(t.TempDir(), "/authz")
	config.OPA["bundles"].(map[string]any)["authz"].(map[string]any)["polling"] = map[string]any{"long_polling_timeout_seconds": 600}
	heard := make(chan policy.Status, 100)
	ctx, stop := context.WithCancel(context.Background())
	e, err := policy.Open(ctx, config, func(s policy.Status) { heard <- s })
	if err != nil {
		stop()
		t.Fatal(err)
	}
	next := func(revision string) {
		t.Helper()
		select {
		case s := <-heard:
			if s.Revision != revision || s.Err != nil {
				t.Errorf("%+v, want %s", s, revision)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s not heard of in time; %+v", revision, e.Status())
		}
	}
	next("r1")
	for begun, revision := range []string{"r2", "r3"} {
		for b.begun() <= begun {
			runtime.Gosched()
		}
		b.publish("/authz", revision, allowAll, nil)
		next(revision)
	}
	for b.begun() < 3 {
		runtime.Gosched()
	}
	b.mu.Lock()
	b.longPoll = false
	b.content["/authz"] = b.build("r4", allowAll, nil) // and nobody that waits is told
	b.mu.Unlock()
	if err := e.Reload(context.Background()); err != nil {
		t.Error(err)
	}
	next("r4")
	stop()
	e.Wait()
	select {
	case s := <-heard:
		t.Errorf("to end is no failure either: %+v", s)
	default:
	}
}

func (b *bundles) begun() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting
}

// TestOPAManyBundles: policy from one team, data from another.
func TestOPAManyBundles(t *testing.T) {
	t.Parallel()
	b := newBundles(t)
	b.publish("/authz", "p1", "package s3.authz\nallow if data.grants[input.identity.attributes.project]\n", nil)
	b.publish("/grants", "g1", "", map[string]any{"grants": map[string]any{"web": true}})
	e, heard := watched(t, b.config(t.TempDir(), "/authz", "/grants"))
	if s := e.Status(); s.Revision != "authz@p1,grants@g1" || s.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}
	b.publish("/grants", "g2", "", map[string]any{"grants": map[string]any{}})
	heard(func(s policy.Status) bool { return s.Revision == "authz@p1,grants@g2" })
	if decide(t, e, question()).Allow {
		t.Error("old grants")
	}
}

// TestOPADiscovery: even the configuration comes as a bundle.
func TestOPADiscovery(t *testing.T) {
	t.Parallel()
	b := newBundles(t)
	b.publish("/authz", "r1", allowAll, nil)
	bundleConfig := b.config("", "/authz").OPA["bundles"]
	b.publish("/discovery", "d1", "", map[string]any{"config": map[string]any{"bundles": bundleConfig}})
	config := b.config(t.TempDir())
	delete(config.OPA, "bundles")
	config.OPA["discovery"] = map[string]any{"service": "ci", "resource": "/discovery", "decision": "config", "signing": map[string]any{"keyid": "ci"}}
	e, _ := watched(t, config)
	if s := e.Status(); s.Revision != "r1" || s.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}
}

// TestOPAFile: a bundle in a file is taken up when the file changes.
func TestOPAFile(t *testing.T) {
	t.Parallel()
	b := newBundles(t)
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	write(t, file, string(b.build("r1", allowAll, nil)))
	config := b.config(t.TempDir(), "/authz")
	source := config.OPA["bundles"].(map[string]any)["authz"].(map[string]any)
	source["resource"], source["persist"] = "file://"+file, false // it is a file already
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != "r1" || s.Err != nil {
		t.Fatalf("%+v", s)
	}
	write(t, file, string(b.build("r2", allowNone, nil)))
	heard(func(s policy.Status) bool { return s.Revision == "r2" })
	if decide(t, e, question()).Allow {
		t.Error("the old one is in force")
	}
}

func TestConfigCheck(t *testing.T) {
	for _, test := range []struct {
		name   string
		config policy.Config
		want   []string // path: beginning of the problem
	}{
		{"none", policy.Config{}, []string{": no source"}},
		{"two", policy.Config{Dir: ".", Git: &policy.Git{URL: "https://github.com/acme/p"}}, []string{": more than one source"}},
		{"entrypoint", policy.Config{Dir: ".", Entrypoint: "/s3//authz"}, []string{"entrypoint: entrypoint \"/s3//authz\""}},
		{"git", policy.Config{Git: &policy.Git{URL: "http://u:secret@example.com/p", Interval: 1, Path: "../x", TokenEnv: "NO_SUCH_VARIABLE", CAFile: "/no/such/file"}}, []string{
			"git.url: http can be changed", "git.url: holds a password", "git.token_env: environment variable", "git.ca_file: open", "git.interval: 1ns", "git.path: leads out",
		}},
		{"git without url", policy.Config{Git: &policy.Git{}}, []string{"git.url: missing"}},
		{"git protocol", policy.Config{Git: &policy.Git{URL: "git://example.com/p"}}, []string{"git.url: git is not supported"}},
		{"ssh", policy.Config{Git: &policy.Git{URL: "git@github.com:acme/p.git", TokenEnv: "HOME"}}, []string{"git.url: token_file"}},
		{"opa", policy.Config{OPA: map[string]any{"decision_logs": map[string]any{}, "bundels": map[string]any{}}}, []string{
			"opa.bundels: has no meaning", "opa.decision_logs: has no meaning", "opa.bundles: missing",
		}},
		{"opa service", policy.Config{OPA: map[string]any{"bundles": map[string]any{"a": map[string]any{"service": "none"}}}}, []string{"opa: "}},
		{"shadow", policy.Config{Dir: ".", Shadow: &policy.Config{Shadow: &policy.Config{}}}, []string{"shadow.shadow: a shadow has no shadow"}},
		{"shadow's source", policy.Config{Dir: ".", Shadow: &policy.Config{Git: &policy.Git{}}}, []string{"shadow.git.url: missing"}},
		{"good", policy.Config{Dir: "."}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var have []string
			test.config.Check(func(path, problem string) { have = append(have, path+": "+problem) })
			if len(have) != len(test.want) {
				t.Fatalf("have %q, want %q", have, test.want)
			}
			for i, want := range test.want {
				if !strings.HasPrefix(have[i], want) || strings.Contains(have[i], "secret") {
					t.Errorf("have %q, want %q", have[i], want)
				}
			}
		})
	}
}
