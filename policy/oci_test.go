package policy_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/open-policy-agent/opa/v1/bundle"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/sluice-s3/sluice/policy"
)

// ociRegistry is an OCI registry as they are: over TLS, and giving out its tokens for a user and a password. Bundles
// are signed by the keys of bundles, whose own server has no part in it.
type ociRegistry struct {
	*httptest.Server
	*bundles
	caFile string
	down   atomic.Bool
}

const (
	registryLogin = "puller:hunter2"
	registryToken = "token-of-the-day"
)

func newRegistry(t *testing.T) *ociRegistry {
	t.Helper()
	o := &ociRegistry{bundles: newBundles(t)}
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	o.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case o.down.Load():
			http.Error(w, "down", http.StatusServiceUnavailable)
		case r.URL.Path == "/token":
			if user, password, _ := r.BasicAuth(); user+":"+password != registryLogin {
				http.Error(w, "who?", http.StatusUnauthorized)
				return
			}
			json.NewEncoder(w).Encode(map[string]string{"token": registryToken})
		case r.Header.Get("Authorization") != "Bearer "+registryToken:
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+o.URL()+`/token",service="registry",scope="repository:acme/policy:pull"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
		default:
			store.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(o.Server.Close)
	o.caFile = filepath.Join(t.TempDir(), "ca.pem")
	write(t, o.caFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.Certificate().Raw})))
	return o
}

func (o *ociRegistry) URL() string { return o.Server.URL }

func (o *ociRegistry) host() string { return strings.TrimPrefix(o.URL(), "https://") }

// push does what `oras push HOST/acme/policy:TAG bundle.tar.gz:application/vnd.oci.image.layer.v1.tar+gzip` does.
func (o *ociRegistry) push(tag string, tarball []byte) (digest string) {
	o.t.Helper()
	ctx := context.Background()
	local := memory.New()
	layer, err := oras.PushBytes(ctx, local, ocispec.MediaTypeImageLayerGzip, tarball)
	if err != nil {
		o.t.Fatal(err)
	}
	manifest, err := oras.PackManifest(ctx, local, oras.PackManifestVersion1_1, "application/vnd.oci.image.config.v1+json",
		oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		o.t.Fatal(err)
	}
	if err := local.Tag(ctx, manifest, tag); err != nil {
		o.t.Fatal(err)
	}
	repo, err := remote.NewRepository(o.host() + "/acme/policy")
	if err != nil {
		o.t.Fatal(err)
	}
	user, password, _ := strings.Cut(registryLogin, ":")
	repo.Client = &auth.Client{Client: o.Client(), Credential: auth.StaticCredential(o.host(), auth.Credential{Username: user, Password: password})}
	if _, err := oras.Copy(ctx, local, tag, repo, tag, oras.DefaultCopyOptions); err != nil {
		o.t.Fatal(err)
	}
	return manifest.Digest.String()
}

// config reads the bundle that has the tag, or the digest.
func (o *ociRegistry) config(persist, reference string) policy.Config {
	c := o.bundles.config(persist, "/policy")
	c.OPA["services"] = map[string]any{"ci": map[string]any{
		"url": o.URL(), "type": "oci", "tls": map[string]any{"ca_cert": o.caFile},
		"credentials": map[string]any{"bearer": map[string]any{"scheme": "Basic", "token": registryLogin}},
	}}
	c.OPA["bundles"].(map[string]any)["policy"].(map[string]any)["resource"] = o.host() + "/acme/policy" + reference
	return c
}

func TestOCI(t *testing.T) {
	t.Parallel()
	o := newRegistry(t)
	const rego = "package s3.authz\nallow := data.on\n"
	o.push("live", o.build("r1", rego, map[string]any{"on": true}))
	config := o.config(t.TempDir(), ":live")
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != "r1" || s.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}

	// The tag moves, and with it what is enforced.
	o.push("live", o.build("r2", rego, map[string]any{"on": false}))
	heard(func(s policy.Status) bool { return s.Revision == "r2" && s.Err == nil })
	if d := decide(t, e, question()); d.Allow || d.Revision != "r2" {
		t.Errorf("%+v", d)
	}

	// None of these takes force; the next good one does, were it the one in force.
	good := o.build("r2", rego, map[string]any{"on": false})
	for _, bad := range []struct {
		name, want string
		content    []byte
	}{
		{"unsigned", "signature", o.build("bad", allowAll, nil, unsigned)},
		{"changed", "digest", o.build("bad", allowNone, nil, func(b *bundle.Bundle) { b.Modules[0].Raw = []byte(allowAll) })},
		{"signed by another", "verif", newBundles(t).build("bad", allowAll, nil)},
		{"forbidden function", "http.send is not available", o.build("bad", "package s3.authz\nallow if http.send({}).x\n", nil)},
		{"no allow", "no rule `allow`", o.build("bad", "package s3.authz\nx := 1\n", nil)},
		{"no bundle", "", []byte("nonsense")},
	} {
		o.push("live", bad.content)
		s := heard(func(s policy.Status) bool { return s.Err != nil && strings.Contains(s.Err.Error(), bad.want) })
		if d := decide(t, e, question()); s.Revision != "r2" || d.Allow || d.Revision != "r2" || strings.Contains(s.Err.Error(), "hunter2") {
			t.Errorf("%s: %+v, %+v", bad.name, s, d)
		}
		o.push("live", good)
		heard(func(s policy.Status) bool { return s.Err == nil })
	}

	// What is large is kept whole, too: enough of it that no buffer holds it all.
	var grants bytes.Buffer
	for i := range 1 << 15 {
		grants.WriteString(base64.StdEncoding.EncodeToString([]byte{byte(i), byte(i >> 8), byte(i * 7), byte(i * 31)}))
	}
	o.push("live", o.build("r3", rego, map[string]any{"on": true, "large": grants.String()}))
	heard(func(s policy.Status) bool { return s.Revision == "r3" && s.Err == nil })

	// The registry's death changes nothing, nor does a restart meanwhile.
	o.down.Store(true)
	heard(func(s policy.Status) bool { return s.Err != nil })
	if !decide(t, e, question()).Allow {
		t.Error("not in force any more")
	}
	later, heardLater := watched(t, config)
	if s := later.Status(); s.Revision != "r3" || s.Err == nil || !decide(t, later, question()).Allow {
		t.Errorf("%+v", s)
	}
	o.down.Store(false)
	pinned := o.push("live", o.build("r4", allowNone, nil))
	heardLater(func(s policy.Status) bool { return s.Revision == "r4" && s.Err == nil })

	// Reload does not wait for the poll, and is no failure on the way.
	o.push("live", o.build("r5", allowAll, nil))
	if err := later.Reload(context.Background()); err != nil || later.Status().Revision != "r5" {
		t.Errorf("%v, %+v", err, later.Status())
	}

	// A digest is what it is, whatever becomes of the tag.
	fixed, _ := watched(t, o.config(t.TempDir(), "@"+pinned))
	if s := fixed.Status(); s.Revision != "r4" || s.Err != nil {
		t.Errorf("%+v", s)
	}

	// Nothing begins without a bundle, nor without the right to have it.
	for name, c := range map[string]policy.Config{"no such tag": o.config(t.TempDir(), ":nonsense"), "no login": func() policy.Config {
		c := o.config(t.TempDir(), ":live")
		delete(c.OPA["services"].(map[string]any)["ci"].(map[string]any), "credentials")
		return c
	}(), "unknown CA": func() policy.Config {
		c := o.config(t.TempDir(), ":live")
		delete(c.OPA["services"].(map[string]any)["ci"].(map[string]any), "tls")
		return c
	}()} {
		if e, err := policy.Open(t.Context(), c, nil); err == nil {
			t.Errorf("%s: began: %+v", name, e.Status())
		} else if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), registryToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOPADirectory: where OPA cannot keep what it must, it says so instead of dying.
func TestOPADirectory(t *testing.T) {
	t.Parallel()
	o := newRegistry(t)
	o.push("live", o.build("r1", allowAll, nil))
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := policy.Open(t.Context(), o.config(filepath.Join(file, "below"), ":live"), nil)
	if err == nil || !strings.Contains(err.Error(), "persistence_directory cannot be written") {
		t.Errorf("%+v, %v", e, err)
	}
}
