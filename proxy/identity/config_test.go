package identity_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

func lines(s string) []string { return strings.Split(s, "\n") }

func TestIssuerCheck(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	issuer := newIssuer(t, oidctest.Options{TLS: true})
	keys, ca := write("keys.json", issuer.JWKS()), write("ca.pem", issuer.CertificatePEM())
	private, err := oidctest.NewKey("ES256", "k").MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	duration := func(d time.Duration) *time.Duration { return &d }
	good := func(change func(*identity.IssuerConfig)) identity.IssuerConfig {
		c := identity.IssuerConfig{Issuer: "https://app.gitpod.io", Audiences: []string{forUs}}
		change(&c)
		return c
	}
	for _, test := range []struct {
		name   string
		config identity.IssuerConfig
		want   []string // path: a part of the problem
	}{
		{"least", good(func(c *identity.IssuerConfig) {}), nil},
		{"most", good(func(c *identity.IssuerConfig) {
			c.Algorithms, c.CAFile, c.Preset, c.SessionClaim = []string{"RS256", "EdDSA"}, ca, "kubernetes", "kubernetes.io.pod.name"
			c.Attributes = map[string]string{"project": "project_id"}
			c.RequiredClaims = map[string]any{"a": "x", "b": []any{"x", 7, true, 1.5, uint64(3), int64(-1)}, "c": []string{"x"}}
			c.Leeway = duration(0)
		}), nil},
		{"static keys", good(func(c *identity.IssuerConfig) { c.Issuer, c.JWKSFile = "acme-workspaces", keys }), nil},
		{"loopback", good(func(c *identity.IssuerConfig) { c.Issuer = "http://127.0.0.1:8080/realm" }), nil},
		{"nothing", identity.IssuerConfig{}, []string{"issuer: is missing", "audiences: at least one"}},
		{"plain HTTP", good(func(c *identity.IssuerConfig) { c.Issuer = "http://sso.acme.example" }), []string{"issuer: not https"}},
		{"another scheme", good(func(c *identity.IssuerConfig) { c.Issuer = "ftp://localhost" }), []string{"issuer: not https"}},
		{"no URL", good(func(c *identity.IssuerConfig) { c.Issuer = "app.gitpod.io" }), []string{"issuer: not a URL"}},
		{"query", good(func(c *identity.IssuerConfig) { c.Issuer = "https://app.gitpod.io/?x" }), []string{"issuer: query"}},
		{"everything at once", identity.IssuerConfig{
			Issuer: "https://u:p@h/", Audiences: []string{"a", "", "a"}, Algorithms: []string{"HS256", "none", "RS257"}, CAFile: keys, Preset: "jenkins",
			Attributes: map[string]string{"projekt": "p", "user": "", "groups": "a."}, SessionClaim: " x",
			RequiredClaims: map[string]any{"": "x", "empty": "", "list": []any{}, "map": map[string]any{}, "nil": nil, "inner": []any{"x", ""}},
			Leeway:         duration(time.Hour),
		}, []string{
			"issuer: user information", "audiences[1]: empty", "audiences[2]: twice", "algorithms[0]: not safe", "algorithms[1]: not safe", "algorithms[2]: not known",
			"ca_file: no PEM", "preset: \"kubernetes\"", "attributes.groups: not the name", "attributes.projekt: not an attribute", "attributes.user: not the name", "session_claim: not the name",
			"required_claims.: not the name", "required_claims.empty: empty", "required_claims.inner: empty", "required_claims.list: empty list", "required_claims.map: has to be", "required_claims.nil: has to be",
			"leeway: between 0s and 5m0s",
		}},
		{"no key file", good(func(c *identity.IssuerConfig) { c.JWKSFile = dir + "/none" }), []string{"jwks_file: no such file"}},
		{"key file of another kind", good(func(c *identity.IssuerConfig) { c.JWKSFile = ca }), []string{"jwks_file: not a JWK set"}},
		{"key file without keys", good(func(c *identity.IssuerConfig) { c.JWKSFile = write("none.json", []byte(`{"keys":[]}`)) }), []string{"jwks_file: no public key"}},
		{"private keys", good(func(c *identity.IssuerConfig) {
			c.JWKSFile = write("private.json", []byte(`{"keys":[`+string(private)+`]}`))
		}), []string{"jwks_file: private"}},
		{"CA beside keys", good(func(c *identity.IssuerConfig) { c.JWKSFile, c.CAFile = keys, ca }), []string{"ca_file: no use"}},
		{"no CA file", good(func(c *identity.IssuerConfig) { c.CAFile = dir + "/none" }), []string{"ca_file: no such file"}},
	} {
		t.Run(test.name, func(t *testing.T) { wantProblems(t, test.config.Check, test.want) })
	}

	t.Run("the list", func(t *testing.T) {
		wantProblems(t, func(report func(path, problem string)) { identity.CheckIssuers(nil, report) }, []string{": there is none"})
		same := good(func(c *identity.IssuerConfig) {})
		wantProblems(t, func(report func(path, problem string)) {
			identity.CheckIssuers([]identity.IssuerConfig{same, {Issuer: "https://x.example"}, same}, report)
		}, []string{"[1].audiences: at least one", "[2].issuer: same as that of issuers[0]"})
		if _, err := identity.New(t.Context(), identity.Config{Issuers: []identity.IssuerConfig{same, same}}); err == nil || !strings.Contains(err.Error(), "issuers[1].issuer") {
			t.Errorf("New: %v", err)
		}
	})
}

func TestRevocationCheck(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		config identity.RevocationConfig
		want   []string
	}{
		{identity.RevocationConfig{}, nil},
		{identity.RevocationConfig{Store: "memory", File: dir + "/revocations"}, nil},
		{identity.RevocationConfig{Store: "nats://n1:4222,nats://n2:4222"}, nil},
		{identity.RevocationConfig{Store: "tls://n1:4222?bucket=b_1"}, nil},
		{identity.RevocationConfig{Store: "nats://token@n1:4222"}, []string{"store: token"}},
		{identity.RevocationConfig{Store: "nats://n1:4222?credentials=/none/x.creds"}, []string{"store: no such file"}},
		{identity.RevocationConfig{Store: "nats://n1:4222?ca=/none/ca.pem"}, []string{"store: no such file"}},
		{identity.RevocationConfig{Store: "nats://n1:4222?bucket=a.b"}, []string{"store: letters"}},
		{identity.RevocationConfig{Store: "nats://n1:4222?password=x"}, []string{"store: not known"}},
		{identity.RevocationConfig{Store: "nats://n1:4222,http://n2"}, []string{"store: not a list"}},
		{identity.RevocationConfig{Store: "redis"}, []string{"store: neither"}},
		{identity.RevocationConfig{Store: "http://x"}, []string{"store: neither"}},
		{identity.RevocationConfig{Store: "nats://"}, []string{"store: no host"}},
		{identity.RevocationConfig{Store: "nats://u:secret@h:4222"}, []string{"store: password"}},
		{identity.RevocationConfig{Store: "x", File: dir + "/none/revocations"}, []string{"store: neither", "file: directory"}},
		{identity.RevocationConfig{File: broken + "/revocations"}, []string{"file: directory"}},
		{identity.RevocationConfig{File: broken}, []string{"file: repair it"}},
	} {
		wantProblems(t, test.config.Check, test.want)
	}
}

// wantProblems holds what check reports against "path: a part of the problem", in order.
func wantProblems(t *testing.T, check func(report func(path, problem string)), want []string) {
	t.Helper()
	var got []string
	check(func(path, problem string) {
		line := path + ": " + problem
		n := slices.IndexFunc(want, func(w string) bool {
			p, part, _ := strings.Cut(w, ": ")
			return p == path && strings.Contains(problem, part)
		})
		if n >= 0 {
			line = want[n]
		}
		got = append(got, line)
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}
