package identity_test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
	"github.com/sluice-s3/sluice/test/machine"
)

// eventually waits for what happens in the background.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	machine.Until(t, what, done)
}

func kind(err error) identity.Kind {
	var e *identity.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

func TestT11TenThousandUnknownKids(t *testing.T) {
	clock := newClock()
	issuer := newIssuer(t, oidctest.Options{Now: clock.now})
	a := trust(t, issuer, func(c *identity.Config) { c.Now = clock.now })
	good := issuer.Token(map[string]any{"aud": forUs})
	if _, err := a.Authenticate(bearer(good)); err != nil {
		t.Fatal(err)
	}
	stranger := oidctest.NewKey("ES256", "stranger")
	flood := func(n int, options ...oidctest.TokenOption) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range n / 8 {
					kid := append([]oidctest.TokenOption{oidctest.SignWith(stranger), oidctest.KeyID(rand.Text())}, options...)
					token := issuer.Token(map[string]any{"aud": forUs}, kid...)
					if _, err := a.Authenticate(bearer(token)); kind(err) != identity.BadToken {
						t.Errorf("%v", err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	before := issuer.Fetches()
	flood(10_000)
	if n := issuer.Fetches() - before; n != 1 {
		t.Errorf("10,000 unknown kids cost %d fetches", n)
	}
	before = issuer.Fetches()
	flood(1_000)
	flood(1_000, oidctest.KeyID(issuer.Key().KeyID)) // a known one: bad signatures
	flood(1_000, oidctest.NoKeyID())
	if n := issuer.Fetches() - before; n != 0 {
		t.Errorf("%d fetches within the cool-down", n)
	}
	clock.pass(identity.KeyCooldown)
	flood(1_000)
	if n := issuer.Fetches() - before; n != 1 {
		t.Errorf("%d fetches in the next cool-down", n)
	}
	if issuer.Discoveries() != 1 {
		t.Errorf("%d discoveries", issuer.Discoveries())
	}
	if _, err := a.Authenticate(bearer(good)); err != nil {
		t.Errorf("a good token after all that: %v", err)
	}
}

// One kid that nobody publishes costs a fetch each half minute, not one each cool-down.
func TestT11AKidThatIsNotThereIsRemembered(t *testing.T) {
	clock := newClock()
	issuer := newIssuer(t, oidctest.Options{Now: clock.now})
	a := trust(t, issuer, func(c *identity.Config) { c.Now = clock.now })
	token := issuer.Token(map[string]any{"aud": forUs}, oidctest.KeyID("gone"))
	eventually(t, "first keys", func() bool { return a.Status().Issuers[0].Keys == 1 })
	before := issuer.Fetches()
	for range 10 {
		_, err := a.Authenticate(bearer(token))
		said(t, err, identity.BadToken, token, "does not publish")
		clock.pass(identity.KeyCooldown)
	}
	if n := issuer.Fetches() - before; n != 4 {
		t.Errorf("%d fetches in 100 s", n)
	}
}

// What an issuer does wrong, never having answered before and while its keys are known.
func TestT11FailingIssuer(t *testing.T) {
	elsewhere := newIssuer(t, oidctest.Options{})
	for name, fault := range map[string]oidctest.Fault{
		"500":                   {Status: 500},
		"404":                   {Status: 404},
		"slow":                  {Delay: time.Hour},
		"huge":                  {Huge: true},
		"redirecting":           {Redirect: elsewhere.KeysURL()},
		"redirecting to itself": {Redirect: "?again"},
		"cutting":               {Drop: true},
		"answering HTML":        {Body: "<html>" + strings.Repeat("<p>down</p>", 1000)},
		"answering other JSON":  {Body: `{"error":"down"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			issuer := newIssuer(t, oidctest.Options{})
			token := issuer.Token(map[string]any{"aud": forUs})
			timing := identity.Timing{Timeout: machine.Patience, Retry: 20 * time.Millisecond, Cooldown: time.Hour}
			if name == "slow" {
				timing.Timeout = 200 * time.Millisecond
			}
			reached := elsewhere.Fetches()

			issuer.Fail(fault)
			a := trust(t, issuer, func(c *identity.Config) { identity.SetTiming(c, timing) })
			_, err := a.Authenticate(bearer(token))
			said(t, err, identity.Unavailable, token, "cannot be fetched now")
			status := a.Status().Issuers[0]
			if name == "huge" && !strings.Contains(status.Error, "larger than 1 MiB") {
				t.Errorf("error %q", status.Error)
			}
			if status.Error == "" || len(status.Error) > 600 || strings.ContainsAny(status.Error, "\n\r") || status.Ready || status.Keys != 0 {
				t.Errorf("status %+v", status)
			}

			issuer.Fail(oidctest.Fault{})
			eventually(t, "recovery", func() bool { _, err := a.Authenticate(bearer(token)); return err == nil })

			// The keys are known now. They stay good; tokens by unknown ones cannot be told from new ones.
			issuer.Fail(fault)
			timing.Refresh = 50 * time.Millisecond
			a = trust(t, issuer, func(c *identity.Config) { identity.SetTiming(c, timing); c.Previous = a })
			eventually(t, "the failure", func() bool { return a.Status().Issuers[0].Error != "" })
			if _, err := a.Authenticate(bearer(token)); err != nil {
				t.Errorf("a known key while the issuer is down: %v", err)
			}
			if !a.Status().Issuers[0].Ready {
				t.Error("not ready, though it has keys")
			}
			fresh := issuer.Token(map[string]any{"aud": forUs, "sub": "first seen now"})
			if _, err := a.Authenticate(bearer(fresh)); err != nil {
				t.Errorf("a new token by a known key: %v", err)
			}
			_, err = a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs}, oidctest.KeyID("rotated"))))
			said(t, err, identity.Unavailable, "", "cannot be fetched now")
			forged := issuer.Token(map[string]any{"aud": forUs}, oidctest.SignWith(oidctest.NewKey("ES256", issuer.Key().KeyID)))
			_, err = a.Authenticate(bearer(forged))
			said(t, err, identity.BadToken, forged, "does not match")

			issuer.Rotate()
			rotated := issuer.Token(map[string]any{"aud": forUs})
			issuer.Fail(oidctest.Fault{})
			eventually(t, "the new key", func() bool { _, err := a.Authenticate(bearer(rotated)); return err == nil })
			if n := elsewhere.Fetches() - reached; n != 0 {
				t.Errorf("the redirect to another host was followed %d times", n)
			}
		})
	}
}

// Keys change while everybody is served: new tokens work at once, old ones as long as their key is published.
func TestT11RotationUnderLoad(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer, func(c *identity.Config) {
		identity.SetTiming(c, identity.Timing{Cooldown: time.Nanosecond, Refresh: 20 * time.Millisecond})
	})
	var current atomic.Pointer[string]
	set := func() {
		token := issuer.Token(map[string]any{"aud": forUs})
		current.Store(&token)
	}
	set()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var served atomic.Int64
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := a.Authenticate(bearer(*current.Load())); err != nil {
					t.Error(err)
					return
				}
				served.Add(1)
			}
		})
	}
	for range 10 {
		before := served.Load()
		issuer.Rotate()
		set()
		eventually(t, "requests with the new token", func() bool { return served.Load() > before+100 })
	}
	close(stop)
	wg.Wait()
}

func TestWithdrawnKeyStopsWorking(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer, func(c *identity.Config) { identity.SetTiming(c, identity.Timing{Refresh: 20 * time.Millisecond}) })
	old := issuer.Token(map[string]any{"aud": forUs})
	first, err := a.Authenticate(bearer(old))
	if err != nil {
		t.Fatal(err)
	}
	issuer.Rotate()
	eventually(t, "two keys", func() bool { return a.Status().Issuers[0].Keys == 2 })
	again, err := a.Authenticate(bearer(old))
	if err != nil {
		t.Fatal(err)
	}
	if again.Identity != first.Identity {
		t.Error("the identity was verified anew, though its key is still there")
	}
	issuer.Withdraw()
	eventually(t, "the old key to go", func() bool { _, err := a.Authenticate(bearer(old)); return kind(err) == identity.BadToken })
	if _, err := a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs}))); err != nil {
		t.Errorf("the new key: %v", err)
	}
}

func TestStaleKeysEnd(t *testing.T) {
	clock := newClock()
	issuer := newIssuer(t, oidctest.Options{Now: clock.now})
	a := trust(t, issuer, func(c *identity.Config) {
		c.Now = clock.now
		identity.SetTiming(c, identity.Timing{Refresh: 10 * time.Millisecond, Retry: 10 * time.Millisecond})
	})
	token := func() string { return issuer.Token(map[string]any{"aud": forUs}) }
	if _, err := a.Authenticate(bearer(token())); err != nil {
		t.Fatal(err)
	}
	issuer.Fail(oidctest.Fault{Status: 503})
	eventually(t, "the failure", func() bool { return a.Status().Issuers[0].Error != "" })
	clock.pass(23 * time.Hour)
	if _, err := a.Authenticate(bearer(token())); err != nil {
		t.Errorf("after 23 hours: %v", err)
	}
	clock.pass(2 * time.Hour)
	eventually(t, "the keys to be dropped", func() bool {
		_, err := a.Authenticate(bearer(token()))
		return kind(err) == identity.Unavailable
	})
}

// New does not wait, and what comes meanwhile does.
func TestStartWhileTheIssuerIsSlow(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	issuer.Fail(oidctest.Fault{Delay: time.Hour})
	a := trust(t, issuer, func(c *identity.Config) { identity.SetTiming(c, identity.Timing{Timeout: time.Hour}) })
	if a.Status().Issuers[0].Ready {
		t.Error("ready before the issuer has said anything")
	}
	eventually(t, "it to ask", func() bool { return issuer.Discoveries() == 1 })
	time.AfterFunc(50*time.Millisecond, func() { issuer.Fail(oidctest.Fault{}) }) // when what comes below waits for it, or before
	// The doctor's question is answered by the same fetch.
	if fetches := a.FetchKeys(t.Context()); len(fetches) != 1 || fetches[0].Err != nil || fetches[0].Keys != 1 {
		t.Errorf("%+v", fetches)
	}
	if _, err := a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs}))); err != nil {
		t.Error(err)
	}
	if issuer.Fetches() != 1 || issuer.Discoveries() != 1 {
		t.Errorf("%d fetches, %d discoveries", issuer.Fetches(), issuer.Discoveries())
	}
}

func TestDiscoveryOfAnother(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	for name, document := range map[string]string{
		"another issuer":    `{"issuer": "https://evil.example", "jwks_uri": "` + issuer.KeysURL() + `"}`,
		"plain HTTP keys":   `{"issuer": "` + issuer.URL() + `", "jwks_uri": "http://192.0.2.1/keys"}`,
		"keys in a file":    `{"issuer": "` + issuer.URL() + `", "jwks_uri": "file:///etc/passwd"}`,
		"no keys":           `{"issuer": "` + issuer.URL() + `"}`,
		"keys of no number": `{"issuer": "` + issuer.URL() + `", "jwks_uri": 7}`,
	} {
		issuer.Fail(oidctest.Fault{Body: document})
		a := trust(t, issuer)
		_, err := a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs})))
		said(t, err, identity.Unavailable, "")
		if errors := a.FetchKeys(t.Context()); len(errors) != 1 || errors[0].Err == nil || !strings.Contains(errors[0].Err.Error(), "discover") {
			t.Errorf("%s: %v", name, errors)
		}
	}
}

func TestCAFile(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{TLS: true})
	other := newIssuer(t, oidctest.Options{TLS: true})
	write := func(pem []byte) string {
		path := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(path, pem, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	token := issuer.Token(map[string]any{"aud": forUs})
	a := trust(t, issuer, func(c *identity.Config) { c.Issuers[0].CAFile = write(issuer.CertificatePEM()) })
	if _, err := a.Authenticate(bearer(token)); err != nil {
		t.Error(err)
	}
	for _, file := range []string{"", write(other.CertificatePEM())} {
		a := trust(t, issuer, func(c *identity.Config) { c.Issuers[0].CAFile = file })
		_, err := a.Authenticate(bearer(token))
		said(t, err, identity.Unavailable, token)
	}
}

func TestKeysFromAFile(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	issuer.Fail(oidctest.Fault{Drop: true})
	path := filepath.Join(t.TempDir(), "keys.json")
	write := func(data []byte) {
		t.Helper()
		// As Kubernetes and editors do: another file in its place.
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(issuer.JWKS())
	a := trust(t, issuer, func(c *identity.Config) {
		c.Issuers[0].JWKSFile = path
		identity.SetTiming(c, identity.Timing{File: 10 * time.Millisecond})
	})
	old := issuer.Token(map[string]any{"aud": forUs})
	if _, err := a.Authenticate(bearer(old)); err != nil {
		t.Fatal(err)
	}
	write([]byte("{"))
	eventually(t, "the error", func() bool { return a.Status().Issuers[0].Error != "" })
	if _, err := a.Authenticate(bearer(old)); err != nil {
		t.Errorf("a bad file took the old keys away: %v", err)
	}
	issuer.Rotate()
	issuer.Withdraw()
	write(issuer.JWKS())
	fresh := issuer.Token(map[string]any{"aud": forUs})
	eventually(t, "the new key", func() bool { _, err := a.Authenticate(bearer(fresh)); return err == nil })
	_, err := a.Authenticate(bearer(old))
	said(t, err, identity.BadToken, old, "does not publish")
	if issuer.Fetches()+issuer.Discoveries() != 0 {
		t.Error("the issuer was asked")
	}
}

func TestKeySetsThatAreNotTakenWhole(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	weak := `{"kty":"RSA","kid":"weak","n":"` + strings.Repeat("x", 171) + `","e":"AQAB"}`
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(issuer.JWKS(), &set); err != nil {
		t.Fatal(err)
	}
	private, err := json.Marshal(oidctest.NewKey("ES256", "private"))
	if err != nil {
		t.Fatal(err)
	}
	odd := []string{
		weak, string(private), `{"kty":"oct","k":"AAAA"}`, `{"kty":"OKP","crv":"X448","x":"AA"}`, `{"kty":"EC","crv":"secp256k1","alg":"ES256K"}`,
		`{}`, `7`, `"x"`, `{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`, `{"kty":"RSA","alg":"ES256","n":"AQAB","e":"AQAB"}`,
	}
	server := httptest.NewUnstartedServer(nil)
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			fmt.Fprintf(w, `{"keys":[%s,%s]}`, strings.Join(odd, ","), set.Keys[0])
			return
		}
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, server.URL, server.URL+"/keys")
	})
	server.Start()
	defer server.Close()
	a := trust(t, issuer, func(c *identity.Config) { c.Issuers[0].Issuer = server.URL })
	if _, err := a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs, "iss": server.URL}))); err != nil {
		t.Error(err)
	}
	if n := a.Status().Issuers[0].Keys; n != 1 {
		t.Errorf("%d keys are used", n)
	}
}

// A reload keeps what an unreachable issuer's keys are, and forgets issuers that are gone.
func TestReloadKeepsKeys(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	old := trust(t, issuer)
	token := issuer.Token(map[string]any{"aud": forUs})
	if _, err := old.Authenticate(bearer(token)); err != nil {
		t.Fatal(err)
	}
	issuer.Fail(oidctest.Fault{Drop: true})
	a := trust(t, issuer, func(c *identity.Config) { c.Previous = old })
	if _, err := a.Authenticate(bearer(token)); err != nil {
		t.Error(err)
	}
	a = trust(t, issuer, func(c *identity.Config) { c.Previous = old; c.Issuers[0].Audiences = []string{"other"} })
	_, err := a.Authenticate(bearer(token))
	said(t, err, identity.BadToken, token, "audience")
}
