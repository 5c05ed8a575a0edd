// Package policytest stands up what policy comes from, for tests: servers of signed bundles, OCI registries and git
// repositories, as real as they can be had in a process.
package policytest

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
)

// Signer makes bundles and signs them.
type Signer struct {
	t       testing.TB
	Private string // PEM
	Public  string
}

// NewSigner has a key of its own.
func NewSigner(t testing.TB) *Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return &Signer{
		t:       t,
		Private: string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		Public:  string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
	}
}

// Build is a bundle's tarball: rego, where there is any, is all of the package s3.authz. spoil changes what is signed
// already.
func (s *Signer) Build(revision, rego string, data map[string]any, spoil ...func(*bundle.Bundle)) []byte {
	s.t.Helper()
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
		for name, text := range map[string]string{"/a.rego": rego, "/a_test.rego": "package s3.authz\ntest_x := true\n"} {
			made.Modules = append(made.Modules, bundle.ModuleFile{URL: name, Path: name, Raw: []byte(text), Parsed: ast.MustParseModule(text)})
		}
	}
	made.Manifest.Roots = &roots
	made.Manifest.Init()
	if err := made.GenerateSignature(bundle.NewSigningConfig(s.Private, "RS256", ""), "ci", false); err != nil {
		s.t.Fatal(err)
	}
	for _, f := range spoil {
		f(&made)
	}
	var out bytes.Buffer
	if err := bundle.Write(&out, made); err != nil {
		s.t.Fatal(err)
	}
	return out.Bytes()
}

// Unsigned takes a bundle's signature away.
func Unsigned(b *bundle.Bundle) { b.Signatures = bundle.SignaturesConfig{} }

// Changed puts another module into a bundle that is signed.
func Changed(rego string) func(*bundle.Bundle) {
	return func(b *bundle.Bundle) {
		for i := range b.Modules {
			if b.Modules[i].Path == "/a.rego" {
				b.Modules[i].Raw = []byte(rego)
			}
		}
	}
}

// config is `policy.opa` with a bundle for each resource, from one service.
func (s *Signer) config(persist string, service map[string]any, resources map[string]string) map[string]any {
	bundles := map[string]any{}
	for name, resource := range resources {
		bundles[name] = map[string]any{
			"service": "ci", "resource": resource, "persist": true,
			"signing": map[string]any{"keyid": "ci"},
			"polling": map[string]any{"min_delay_seconds": 1, "max_delay_seconds": 1},
		}
	}
	return map[string]any{
		"services":              map[string]any{"ci": service},
		"keys":                  map[string]any{"ci": map[string]any{"algorithm": "RS256", "key": s.Public}},
		"bundles":               bundles,
		"persistence_directory": persist,
	}
}

// Bundles is a server of bundles, as any web server or object store is: with ETags.
type Bundles struct {
	*httptest.Server
	*Signer

	mu       sync.Mutex
	content  map[string][]byte
	changed  chan struct{} // closed when content changes
	down     bool
	longPoll bool
	waited   int // long polls begun
	notAgain int // answers 304
}

// NewBundles has nothing yet.
func NewBundles(t testing.TB) *Bundles {
	t.Helper()
	b := &Bundles{Signer: NewSigner(t), content: map[string][]byte{}, changed: make(chan struct{})}
	b.Server = httptest.NewServer(http.HandlerFunc(b.serve))
	t.Cleanup(b.Close)
	return b
}

func (b *Bundles) serve(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	content, ok := b.content[r.URL.Path]
	if b.down || !ok {
		http.Error(w, "gone", http.StatusServiceUnavailable)
		return
	}
	for b.longPoll && r.Header.Get("If-None-Match") == etag(content) && strings.Contains(r.Header.Get("Prefer"), "wait=") {
		b.waited++
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
	w.Header().Set("ETag", etag(content))
	if r.Header.Get("If-None-Match") == etag(content) {
		b.notAgain++
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "application/gzip")
	if b.longPoll {
		w.Header().Set("Content-Type", "application/vnd.openpolicyagent.bundles") // says that it can
	}
	w.Write(content)
}

func etag(content []byte) string {
	sum := sha256.Sum256(content)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

// Publish builds a bundle and puts it there.
func (b *Bundles) Publish(path, revision, rego string, data map[string]any) {
	b.t.Helper()
	b.Put(path, b.Build(revision, rego, data))
}

// Put tells those that wait.
func (b *Bundles) Put(path string, content []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.content[path] = content
	close(b.changed)
	b.changed = make(chan struct{})
}

// SetDown has everything answered with 503.
func (b *Bundles) SetDown(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

// SetLongPoll has polls answered when there is something new.
func (b *Bundles) SetLongPoll(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.longPoll = on
}

// Waited counts the long polls begun, NotAgain the polls that found nothing new.
func (b *Bundles) Waited() int   { b.mu.Lock(); defer b.mu.Unlock(); return b.waited }
func (b *Bundles) NotAgain() int { b.mu.Lock(); defer b.mu.Unlock(); return b.notAgain }

// OPA is `policy.opa` for the bundles at these paths.
func (b *Bundles) OPA(persist string, paths ...string) map[string]any {
	resources := map[string]string{}
	for _, path := range paths {
		resources[strings.Trim(path, "/")] = path
	}
	return b.config(persist, map[string]any{"url": b.URL}, resources)
}
