// Package audit holds the audit log of the built proxy against programs that others wrote: the OpenTelemetry
// collector's receiver, DuckDB and jq. It is a module of its own, for what they weigh.
package audit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// build is the proxy's binary, built once.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sluice-ci-audit-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "proxy")
	cmd := exec.Command("go", "build", "-o", binary, "./cmd/proxy")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the proxy: %w\n%s", err, out)
	}
	return binary, nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if binary, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(binary))
	}
	os.Exit(status)
}

// rig is the proxy as it is shipped, with an issuer, a policy and a backend. It may be killed and started again.
type rig struct {
	t              *testing.T
	dir, log       string
	address, admin string
	token          string
	process        *exec.Cmd
}

// newRig prepares a proxy; audit is what the configuration says below audit, beside file.
func newRig(t *testing.T, file, audit string) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), address: free(t), admin: free(t)}
	r.log = filepath.Join(r.dir, "audit.jsonl")
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		io.Copy(io.Discard, in.Body)
		w.Header().Set("X-Amz-Request-Id", "17A5F3B6D1C0E2F4")
		io.WriteString(w, "the object")
	}))
	t.Cleanup(backend.Close)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r.token = r.issue(key)
	r.write("policy/p.rego", "package s3.authz\nallow if startswith(input.key, \"web/\")\nreasons contains \"only web/ is yours\" if not allow\n")
	r.write("config.yaml", fmt.Sprintf(`listen: {address: %q}
admin: {address: %q}
issuers:
  - {issuer: "https://issuer.example.com", audiences: ["https://s3.example.com"], preset: ona, jwks_file: jwks.json}
policy: {dir: policy}
backends:
  - {name: main, buckets: ["*"], endpoint: %q, region: us-east-1, path_style: true, credentials: {static: {access_key_id_env: RIG_ID, secret_access_key_env: RIG_SECRET}}}
audit:
  file: {path: audit.jsonl%s}
  claims: [organization_id]
%s
log: {level: warn}
`, r.address, r.admin, backend.URL, file, audit))
	return r
}

// issue writes the issuer's keys, and signs a token.
func (r *rig) issue(key *ecdsa.PrivateKey) string {
	encode := base64.RawURLEncoding.EncodeToString
	point, err := key.PublicKey.Bytes()
	if err != nil {
		r.t.Fatal(err)
	}
	r.write("jwks.json", fmt.Sprintf(`{"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k", "x": %q, "y": %q}]}`, encode(point[1:33]), encode(point[33:])))
	now := time.Now()
	claims, _ := json.Marshal(map[string]any{
		"iss": "https://issuer.example.com", "aud": "https://s3.example.com", "sub": "environment/env-42", "environment_id": "env-42",
		"project_id": "web", "creator_email": "dev@acme.com", "organization_id": "acme", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	signed := encode([]byte(`{"alg":"ES256","kid":"k","typ":"JWT"}`)) + "." + encode(claims)
	sum := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		r.t.Fatal(err)
	}
	return signed + "." + encode(append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...))
}

func (r *rig) write(name, content string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// free is a loopback address nobody listens on, and below those that the system hands out: one of these might be the next client's
// before it is listened on, or while what listened there is away.
func free(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 15_000+mathrand.IntN(17_000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (r *rig) start() {
	r.t.Helper()
	binary, err := build()
	if err != nil {
		r.t.Fatal(err)
	}
	r.process = exec.Command(binary, "serve", "--config", "config.yaml")
	r.process.Dir = r.dir
	r.process.Env = append(os.Environ(), "RIG_ID=AKIDEXAMPLE", "RIG_SECRET=wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
	output := &strings.Builder{}
	r.process.Stderr = output
	if err := r.process.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.kill)
	eventually(r.t, "the proxy is ready", func() bool {
		answer, err := http.Get("http://" + r.admin + "/readyz")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == 200
	}, func() any { return output })
}

// kill ends the proxy as a crash would.
func (r *rig) kill() {
	if r.process != nil {
		r.process.Process.Kill()
		r.process.Wait()
		r.process = nil
	}
}

// stop ends the proxy as an operator would.
func (r *rig) stop() {
	r.t.Helper()
	r.process.Process.Signal(os.Interrupt)
	if err := r.process.Wait(); err != nil {
		r.t.Errorf("the proxy ends with %v", err)
	}
	r.process = nil
}

// get asks for an object, and returns the status and how long it took.
func (r *rig) get(path string) (int, time.Duration) {
	r.t.Helper()
	request, err := http.NewRequest("GET", "http://"+r.address+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+r.token)
	began := time.Now()
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, time.Since(began)
}

// metric is the value of one series of /metrics.
func (r *rig) metric(series string) string {
	answer, err := http.Get("http://" + r.admin + "/metrics")
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	raw, _ := io.ReadAll(answer.Body)
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && plainSeries(name) == series {
			return value
		}
	}
	return "none"
}

// plainSeries leaves out the labels that every series has.
func plainSeries(name string) string {
	metric, labels, ok := strings.Cut(strings.TrimSuffix(name, "}"), "{")
	if !ok {
		return name
	}
	var kept []string
	for label := range strings.SplitSeq(labels, ",") {
		if !strings.HasPrefix(label, "otel_scope_") {
			kept = append(kept, label)
		}
	}
	if len(kept) == 0 {
		return metric
	}
	return metric + "{" + strings.Join(kept, ",") + "}"
}

func eventually(t *testing.T, what string, ok func() bool, why ...func() any) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, w := range why {
				t.Log(w())
			}
			t.Fatalf("never: %s", what)
		}
	}
}

// proxy runs a command of the binary, and returns what it prints.
func proxy(t *testing.T, args ...string) string {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(binary, args...).CombinedOutput()
	if err != nil {
		t.Errorf("proxy %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}
