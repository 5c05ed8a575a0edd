package policytest

import (
	"context"
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
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// discard is for servers that clients give up on in mid-handshake, as they should.
var discard = log.New(io.Discard, "", 0)

// Registry is an OCI registry as they are: over TLS, and giving out its tokens for a user and a password.
type Registry struct {
	*Signer
	CAFile string
	Down   atomic.Bool

	server *httptest.Server
}

// What the registry asks for, and what it gives for it.
const (
	RegistryPassword = "hunter2"
	RegistryToken    = "token-of-the-day"

	registryUser = "puller"
	repository   = "acme/policy"
)

// NewRegistry is empty.
func NewRegistry(t testing.TB) *Registry {
	t.Helper()
	o := &Registry{Signer: NewSigner(t)}
	store := registry.New(registry.Logger(discard))
	o.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case o.Down.Load():
			http.Error(w, "down", http.StatusServiceUnavailable)
		case r.URL.Path == "/token":
			if user, password, _ := r.BasicAuth(); user != registryUser || password != RegistryPassword {
				http.Error(w, "who?", http.StatusUnauthorized)
				return
			}
			json.NewEncoder(w).Encode(map[string]string{"token": RegistryToken})
		case r.Header.Get("Authorization") != "Bearer "+RegistryToken:
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+o.server.URL+`/token",service="registry",scope="repository:`+repository+`:pull"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
		default:
			store.ServeHTTP(w, r)
		}
	}))
	o.server.Config.ErrorLog = discard
	o.server.StartTLS()
	t.Cleanup(o.server.Close)
	o.CAFile = caFile(t, o.server)
	return o
}

func caFile(t testing.TB, server *httptest.Server) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(name, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Push does what `oras push REGISTRY/acme/policy:TAG bundle.tar.gz:application/vnd.oci.image.layer.v1.tar+gzip` does.
func (o *Registry) Push(tag string, tarball []byte) (digest string) {
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
	repo, err := remote.NewRepository(o.host() + "/" + repository)
	if err != nil {
		o.t.Fatal(err)
	}
	repo.Client = &auth.Client{Client: o.server.Client(), Credential: auth.StaticCredential(o.host(), auth.Credential{Username: registryUser, Password: RegistryPassword})}
	if _, err := oras.Copy(ctx, local, tag, repo, tag, oras.DefaultCopyOptions); err != nil {
		o.t.Fatal(err)
	}
	return manifest.Digest.String()
}

func (o *Registry) host() string { return strings.TrimPrefix(o.server.URL, "https://") }

// OPA is `policy.opa` for the bundle with a reference, such as ":live".
func (o *Registry) OPA(persist, reference string) map[string]any {
	o.t.Helper()
	login := filepath.Join(o.t.TempDir(), "login")
	if err := os.WriteFile(login, []byte(registryUser+":"+RegistryPassword+"\n"), 0o600); err != nil {
		o.t.Fatal(err)
	}
	return o.config(persist, map[string]any{
		"url": o.server.URL, "type": "oci", "tls": map[string]any{"ca_cert": o.CAFile},
		"credentials": map[string]any{"bearer": map[string]any{"scheme": "Basic", "token_path": login}},
	}, map[string]string{"policy": o.host() + "/" + repository + reference})
}
