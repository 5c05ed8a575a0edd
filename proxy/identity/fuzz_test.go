package identity_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

// FuzzToken: one token is good, and nothing that is made of it. No error repeats what was sent.
func FuzzToken(f *testing.F) {
	issuer := newIssuer(f, oidctest.Options{})
	a := trust(f, issuer, func(c *identity.Config) { c.Issuers[0].RequiredClaims = map[string]any{"a.b": "c"} })
	good := issuer.Token(map[string]any{"aud": forUs, "a": map[string]any{"b": "c"}})
	parts := strings.Split(good, ".")
	f.Add(good)
	f.Add(parts[0] + "." + parts[1] + ".")
	f.Add("eyJhbGciOiJub25lIn0." + parts[1] + ".")
	f.Add(parts[0] + ".e30." + parts[2])
	f.Add(good + "=")
	f.Add(" " + good)
	f.Add(issuer.Token(map[string]any{"aud": 7}))
	f.Add(issuer.Token(map[string]any{"aud": forUs, "exp": 1}))
	f.Fuzz(func(t *testing.T, token string) {
		id, err := a.VerifyToken(t.Context(), token)
		if err == nil {
			if token != good {
				t.Fatalf("%q is accepted as %+v", token, id)
			}
			return
		}
		if kind(err) == 0 {
			t.Fatalf("%T: %v", err, err)
		}
		if message := err.Error(); strings.Contains(message, parts[2]) || len(message) > 2000 {
			t.Fatalf("message %q", message)
		}
	})
}

// FuzzKeySet: no key set makes a panic, and what is said of a bad one is short.
func FuzzKeySet(f *testing.F) {
	issuer := oidctest.New(oidctest.Options{})
	defer issuer.Close()
	f.Add(issuer.JWKS())
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","alg":"RS256","use":"sig","key_ops":["verify"]}]}`))
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA","x5c":["AA"]}]}`))
	path := filepath.Join(f.TempDir(), "keys.json")
	f.Fuzz(func(t *testing.T, set []byte) {
		if err := os.WriteFile(path, set, 0o600); err != nil {
			t.Fatal(err)
		}
		c := identity.IssuerConfig{Issuer: "i", Audiences: []string{"a"}, JWKSFile: path}
		c.Check(func(at, problem string) {
			if at != "jwks_file" || len(problem) > 1000 {
				t.Errorf("%s: %s", at, problem)
			}
		})
	})
}

// While an issuer answers slowly, tokens that nobody knows do not fill the house.
func TestT11FewWaitForASlowIssuer(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer)
	if _, err := a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs}))); err != nil {
		t.Fatal(err)
	}
	issuer.Fail(oidctest.Fault{Delay: time.Hour})
	answers := make(chan error, 400)
	for range cap(answers) {
		token := issuer.Token(map[string]any{"aud": forUs}, oidctest.KeyID("unknown"))
		go func() {
			_, err := a.Authenticate(bearer(token))
			answers <- err
		}()
	}
	atOnce := 0
	for range cap(answers) {
		err := <-answers
		if kind(err) != identity.Unavailable {
			t.Error(err)
		}
		if strings.Contains(err.Error(), "slow") {
			atOnce++
		}
	}
	if atOnce < cap(answers)-256 {
		t.Errorf("only %d were told at once", atOnce)
	}
}
