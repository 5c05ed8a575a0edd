package identity_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
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

func openRevocations(t testing.TB, c identity.RevocationConfig, now func() time.Time) *identity.Revocations {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	r, err := identity.OpenRevocations(ctx, c, now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRevocation(t *testing.T) {
	clock := newClock()
	issuer := newIssuer(t, oidctest.Options{Now: clock.now})
	other := newIssuer(t, oidctest.Options{Now: clock.now})
	now := clock.now()
	for _, test := range []struct {
		name    string
		revoke  identity.Revocation
		claims  map[string]any
		refused bool
	}{
		{"session", identity.Revocation{Session: "env-42"}, nil, true},
		{"another session", identity.Revocation{Session: "env-4"}, nil, false},
		{"session of a subject's name", identity.Revocation{Session: "me"}, nil, false},
		{"subject", identity.Revocation{Subject: "me"}, nil, true},
		{"another subject", identity.Revocation{Subject: "Me"}, nil, false},
		{"token id", identity.Revocation{TokenID: "j-1"}, nil, true},
		{"another token id", identity.Revocation{TokenID: "j-2"}, nil, false},
		{"another issuer's session", identity.Revocation{Issuer: other.URL(), Session: "env-42"}, nil, false},
		{"sid", identity.Revocation{Session: "s-1"}, map[string]any{"sid": "s-1"}, true},
		{"issued before", identity.Revocation{Subject: "me", IssuedBefore: now.Add(-time.Hour)}, map[string]any{"iat": now.Add(-2 * time.Hour).Unix()}, true},
		{"issued in that second", identity.Revocation{Subject: "me", IssuedBefore: now}, nil, true},
		{"issued after", identity.Revocation{Subject: "me", IssuedBefore: now.Add(-time.Second)}, nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := trust(t, issuer, func(c *identity.Config) {
				c.Now, c.Issuers[0].Preset = clock.now, "ona"
				c.Issuers = append(c.Issuers, identity.IssuerConfig{Issuer: other.URL(), Audiences: []string{forUs}})
			})
			claims := map[string]any{"aud": forUs, "sub": "me", "environment_id": "env-42", "jti": "j-1"}
			maps.Copy(claims, test.claims)
			cached, fresh := issuer.Token(claims), func() string { return issuer.Token(claims) }
			if _, err := a.Authenticate(bearer(cached)); err != nil {
				t.Fatal(err)
			}
			if test.revoke.Issuer == "" {
				test.revoke.Issuer = issuer.URL()
			}
			made, err := a.Revocations().Add(t.Context(), test.revoke)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				for name, token := range map[string]string{"cached": cached, "fresh": fresh()} {
					_, err := a.Authenticate(bearer(token))
					if test.refused {
						said(t, err, identity.Revoked, token)
					} else if err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
			}
			if err := a.Revocations().Delete(t.Context(), made.ID); err != nil {
				t.Fatal(err)
			}
			for _, token := range []string{cached, fresh()} {
				if _, err := a.Authenticate(bearer(token)); err != nil {
					t.Errorf("after it was deleted: %v", err)
				}
			}
		})
	}
}

func TestRevocationsThatAreRefused(t *testing.T) {
	clock := newClock()
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer, func(c *identity.Config) { c.Now = clock.now })
	for name, v := range map[string]identity.Revocation{
		"nothing":        {Issuer: issuer.URL()},
		"two at once":    {Issuer: issuer.URL(), Session: "a", Subject: "b"},
		"no issuer":      {Session: "a"},
		"unknown issuer": {Issuer: issuer.URL() + "/", Session: "a"},
		"past":           {Issuer: issuer.URL(), Session: "a", Until: clock.now()},
		"too long":       {Issuer: issuer.URL(), Session: strings.Repeat("a", 16<<10+1)},
		"no year":        {Issuer: issuer.URL(), Session: "a", Until: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if _, err := a.Revocations().Add(t.Context(), v); !errors.Is(err, identity.ErrBadRevocation) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := a.Revocations().Delete(t.Context(), "none"); !errors.Is(err, identity.ErrNoRevocation) {
		t.Errorf("delete: %v", err)
	}
	if n := len(a.Revocations().List()); n != 0 {
		t.Errorf("%d are in force", n)
	}
}

// A revocation ends by itself, and by default not before all it could refuse has ended.
func TestRevocationsEnd(t *testing.T) {
	clock := newClock()
	issuer := newIssuer(t, oidctest.Options{Now: clock.now})
	a := trust(t, issuer, func(c *identity.Config) { c.Now = clock.now })
	year := clock.now().Add(365 * 24 * time.Hour).Unix()
	early := issuer.Token(map[string]any{"aud": forUs, "sub": "early", "exp": year})
	short, err := a.Revocations().Add(t.Context(), identity.Revocation{Issuer: issuer.URL(), Subject: "short", Until: clock.now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	long, err := a.Revocations().Add(t.Context(), identity.Revocation{Issuer: issuer.URL(), Subject: "early"})
	if err != nil {
		t.Fatal(err)
	}
	if list := a.Revocations().List(); len(list) != 2 {
		t.Errorf("list %+v", list)
	}
	if !long.Until.Equal(clock.now().Add(identity.RevocationLife)) || identity.RevocationLife < identity.MaxTokenAge {
		t.Errorf("until %v", long.Until)
	}
	_, err = a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs, "sub": "short"})))
	said(t, err, identity.Revoked, "", "revoked at")
	clock.pass(time.Minute)
	if _, err := a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs, "sub": "short"}))); err != nil {
		t.Errorf("after its end: %v", err)
	}
	if list := a.Revocations().List(); len(list) != 1 || list[0].ID == short.ID {
		t.Errorf("list %+v", list)
	}
	if n := a.Revocations().ForgetEnded(); n != 1 || a.Revocations().Status().Count != 1 {
		t.Errorf("%d forgotten, %d left", n, a.Revocations().Status().Count)
	}
	// Up to the last second at which the token could be good, the revocation is in force.
	clock.pass(identity.MaxTokenAge - 2*time.Minute)
	_, err = a.Authenticate(bearer(early))
	said(t, err, identity.Revoked, "")
	clock.pass(identity.RevocationLife - identity.MaxTokenAge + 2*time.Minute)
	_, err = a.Authenticate(bearer(early))
	said(t, err, identity.Expired, "")
}

func TestRevokingTwiceExtends(t *testing.T) {
	r := openRevocations(t, identity.RevocationConfig{}, nil)
	day := time.Now().Add(24 * time.Hour)
	first, err := r.Add(t.Context(), identity.Revocation{Issuer: "i", Session: "s", Until: day})
	if err != nil {
		t.Fatal(err)
	}
	for _, until := range []time.Time{day.Add(-time.Hour), day.Add(time.Hour)} {
		again, err := r.Add(t.Context(), identity.Revocation{Issuer: "i", Session: "s", Until: until})
		if err != nil {
			t.Fatal(err)
		}
		if again.ID != first.ID || again.Until.Before(day) || !again.Created.Equal(first.Created) {
			t.Errorf("%+v, then %+v", first, again)
		}
	}
	if list := r.List(); len(list) != 1 || !list[0].Until.After(day) {
		t.Errorf("list %+v", list)
	}
	// One that spares later tokens takes nothing from one that does not.
	if _, err := r.Add(t.Context(), identity.Revocation{Issuer: "i", Session: "s", IssuedBefore: time.Now().Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(&identity.Identity{Issuer: "i", Session: "s", IssuedAt: time.Now()}); kind(err) != identity.Revoked {
		t.Errorf("%v", err)
	}
}

func TestRevocationCutsTransfers(t *testing.T) {
	r := openRevocations(t, identity.RevocationConfig{}, nil)
	mine := &identity.Identity{Issuer: "i", Session: "mine"}
	others := &identity.Identity{Issuer: "i", Session: "others"}
	var cut, cutOthers, cutDone atomic.Int32
	for range 10 {
		track(r, mine, func() { cut.Add(1) })
		track(r, others, func() { cutOthers.Add(1) })
		track(r, mine, func() { cutDone.Add(1) }).Untrack()
	}
	tracked := track(r, mine, func() { cut.Add(1) })
	if _, err := r.Add(t.Context(), identity.Revocation{Issuer: "i", Session: "mine"}); err != nil {
		t.Fatal(err)
	}
	tracked.Untrack() // after it was cut: nothing
	if cut.Load() != 11 || cutOthers.Load() != 0 || cutDone.Load() != 0 {
		t.Errorf("%d cut, %d of others, %d that were done", cut.Load(), cutOthers.Load(), cutDone.Load())
	}
	if track(r, mine, func() { cut.Add(1) }); cut.Load() != 12 {
		t.Error("one that comes after the revocation is not cut")
	}
	if _, err := r.Add(t.Context(), identity.Revocation{Issuer: "i", Session: "mine", Until: time.Now().Add(100 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if cut.Load() != 12 {
		t.Error("cut twice")
	}
}

// Whenever the revocation comes, between a check of the credentials and the tracking of the transfer there is no gap.
func TestRevocationLeavesNoGap(t *testing.T) {
	for n := range 200 {
		r := openRevocations(t, identity.RevocationConfig{}, nil)
		id := &identity.Identity{Issuer: "i", Session: "s"}
		if n%2 == 0 {
			if err := r.Check(id); err != nil { // so that it counts as clean
				t.Fatal(err)
			}
		}
		cut := make(chan struct{})
		start := make(chan struct{})
		refused := make(chan bool, 1)
		go func() {
			<-start
			if r.Check(id) != nil {
				refused <- true
				return
			}
			track(r, id, func() { close(cut) })
			refused <- false
		}()
		go func() {
			<-start
			if _, err := r.Add(context.Background(), identity.Revocation{Issuer: "i", Session: "s"}); err != nil {
				t.Error(err)
			}
		}()
		close(start)
		if <-refused {
			continue
		}
		select {
		case <-cut:
		case <-time.After(machine.Patience):
			t.Fatal("neither refused nor cut")
		}
	}
}

func TestRevocationsSurviveARestart(t *testing.T) {
	clock := newClock()
	c := identity.RevocationConfig{File: filepath.Join(t.TempDir(), "revocations")}
	r := openRevocations(t, c, clock.now)
	var wg sync.WaitGroup
	for n := range 100 {
		wg.Go(func() {
			if _, err := r.Add(t.Context(), identity.Revocation{Issuer: "i", Session: fmt.Sprint("s-", n)}); err != nil {
				t.Error(err)
			}
			// What was acknowledged is on disk, whatever else is under way.
			if known := openRevocations(t, c, clock.now); kind(known.Check(&identity.Identity{Issuer: "i", Session: fmt.Sprint("s-", n)})) != identity.Revoked {
				t.Errorf("s-%d was acknowledged and is not in the file", n)
			}
		})
	}
	wg.Wait()
	subject, err := r.Add(t.Context(), identity.Revocation{Issuer: "i", Subject: "me", IssuedBefore: clock.now(), Until: clock.now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), r.List()[1].ID); err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(r.List())
	if err != nil {
		t.Fatal(err)
	}
	again := openRevocations(t, c, clock.now)
	after, err := json.Marshal(again.List())
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) || len(again.List()) != 100 {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if info, err := os.Stat(c.File); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	clock.pass(time.Minute)
	for _, v := range openRevocations(t, c, clock.now).List() {
		if v.ID == subject.ID {
			t.Error("one that ended is back")
		}
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(c.File), "*.tmp")); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// Starting without knowing who was shut out would let them back in.
func TestRevocationFileThatIsNotUnderstood(t *testing.T) {
	for name, content := range map[string]string{
		"empty":          "",
		"half":           `{"schema": "sluice.revocations/1", "revoc`,
		"another schema": `{"schema": "sluice.revocations/2", "revocations": []}`,
		"unknown field":  `{"schema": "sluice.revocations/1", "revocations": [], "more": 1}`,
		"altered":        `{"schema": "sluice.revocations/1", "revocations": [{"id": "x", "issuer": "i", "session": "s"}]}`,
		"followed":       `{"schema": "sluice.revocations/1", "revocations": []} {}`,
	} {
		c := identity.RevocationConfig{File: filepath.Join(t.TempDir(), "revocations")}
		if err := os.WriteFile(c.File, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := identity.OpenRevocations(t.Context(), c, nil); err == nil || !strings.Contains(err.Error(), "repair") {
			t.Errorf("%s: %v", name, err)
		}
	}
	missing := identity.RevocationConfig{File: filepath.Join(t.TempDir(), "none", "revocations")}
	if _, err := identity.OpenRevocations(t.Context(), missing, nil); err == nil {
		t.Error("a directory that is not there is taken")
	}
}

func TestRevocationJSON(t *testing.T) {
	r := openRevocations(t, identity.RevocationConfig{}, func() time.Time { return time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC) })
	var v identity.Revocation
	if err := json.Unmarshal([]byte(`{"issuer": "https://app.gitpod.io", "session": "env-42", "until": "2026-11-24T00:00:00Z"}`), &v); err != nil {
		t.Fatal(err)
	}
	v, err := r.Add(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{"id":%q,"issuer":"https://app.gitpod.io","session":"env-42","until":"2026-11-24T00:00:00Z","created":"2026-11-23T00:00:00Z"}`, v.ID)
	if string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A reload ends the context under which the revocations were opened, and they go on.
func TestRevocationsOutliveAReload(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	first, endFirst := context.WithCancel(context.Background())
	c := identity.Config{Issuers: []identity.IssuerConfig{{Issuer: issuer.URL(), Audiences: []string{forUs}}}}
	old, err := identity.New(first, c)
	if err != nil {
		t.Fatal(err)
	}
	var cut atomic.Bool
	token := issuer.Token(map[string]any{"aud": forUs, "sub": "me"})
	proof, err := old.Authenticate(bearer(token))
	if err != nil {
		t.Fatal(err)
	}
	track(old, proof.Identity, func() { cut.Store(true) })
	a := trust(t, issuer, func(c *identity.Config) { c.Previous, c.Revocations = old, old.Revocations() })
	endFirst()
	if _, err := a.Revocations().Add(t.Context(), identity.Revocation{Issuer: issuer.URL(), Subject: "me"}); err != nil {
		t.Fatal(err)
	}
	if !cut.Load() {
		t.Error("a transfer from before the reload goes on")
	}
	_, err = a.Authenticate(bearer(token))
	said(t, err, identity.Revoked, token)
}

// hmacToken is signed with HS256 and the bytes of a public key: what a verifier takes that goes by the token's word.
func hmacToken(t *testing.T, issuer *oidctest.Issuer, payload string) string {
	t.Helper()
	key := issuer.Key()
	public, err := x509.MarshalPKIXPublicKey(key.Public().Key)
	if err != nil {
		t.Fatal(err)
	}
	head := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"logout+jwt","kid":"` + issuer.Key().KeyID + `"}`))
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	mac.Write([]byte(head + "." + payload))
	return head + "." + payload + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// A logout token counts once: not again after a restart, nor at another replica, nor after an operator has let the session
// in again.
func TestLogoutTokensCountOnce(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	store := startNATS(t).url()
	replica := func() *identity.Authenticator {
		a := trust(t, issuer, func(c *identity.Config) { c.Revocation.Store = store })
		eventually(t, "it to share", shared(a.Revocations()))
		return a
	}
	a, b := replica(), replica()
	logout := issuer.LogoutToken(map[string]any{"aud": forUs, "sid": "s-1"})
	eventually(t, "the session and the token to be taken note of", func() bool { // the issuer tries again where the store is not told
		if err := a.Logout(t.Context(), logout); err != nil && !errors.Is(err, identity.ErrNotShared) {
			t.Fatal(err)
		}
		return len(a.Revocations().List()) == 2
	})
	refused := func(r *identity.Authenticator) bool {
		return r.Revocations().Check(&identity.Identity{Issuer: issuer.URL(), Session: "s-1"}) != nil
	}
	eventually(t, "the other replica to know of both", func() bool { return refused(b) && len(b.Revocations().List()) == 2 })
	for _, v := range b.Revocations().List() {
		if v.Session != "" {
			remove(t, b.Revocations(), v.ID)
		}
	}
	eventually(t, "the session to be let in again", func() bool { return !refused(a) && !refused(b) })
	for name, r := range map[string]*identity.Authenticator{"here": a, "at another replica": b, "at a new one": replica()} {
		if err := r.Logout(t.Context(), logout); err == nil || !strings.Contains(err.Error(), "used before") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if refused(a) || refused(b) {
		t.Error("the session was logged out by a token that had been used")
	}
}

// Replicas' clocks differ by minutes: what nobody gave an end refuses at all of them for as long as anything from before it
// is good.
func TestRevocationsWithSkewedClocks(t *testing.T) {
	store := startNATS(t).url()
	for _, skew := range []time.Duration{-4 * time.Minute, 4 * time.Minute} {
		clock := newClock()
		issuer := newIssuer(t, oidctest.Options{Now: clock.now})
		replica := func(off time.Duration) *identity.Authenticator {
			a := trust(t, issuer, func(c *identity.Config) {
				c.Revocation.Store = store
				c.Now = func() time.Time { return clock.now().Add(off) }
				c.Issuers[0].Leeway = new(5 * time.Minute)
			})
			eventually(t, "it to share", shared(a.Revocations()))
			return a
		}
		a, b := replica(0), replica(skew)
		token := issuer.Token(map[string]any{"aud": forUs, "sub": "me", "exp": clock.now().Add(100 * time.Hour).Unix()})
		if _, err := b.Authenticate(bearer(token)); err != nil {
			t.Fatal(err)
		}
		add(t, a.Revocations(), identity.Revocation{Issuer: issuer.URL(), Subject: "me"})
		eventually(t, "the other replica to know", func() bool { return len(b.Revocations().List()) > 0 })
		for range 27 {
			for who, r := range map[string]*identity.Authenticator{"it": a, "the other": b} {
				if _, err := r.Authenticate(bearer(token)); err == nil {
					t.Errorf("clocks %v apart, %v later: %s lets it in", skew, clock.now().Sub(newClock().now()), who)
				}
			}
			clock.pass(time.Hour)
			a.Revocations().ForgetEnded()
			b.Revocations().ForgetEnded()
		}
	}
}

func TestLogout(t *testing.T) {
	clock := newClock()
	issuer := newIssuer(t, oidctest.Options{Now: clock.now})
	now := clock.now().Unix()
	stranger := oidctest.NewKey("ES256", "stranger")
	event := "http://schemas.openid.net/event/backchannel-logout"
	a := trust(t, issuer, func(c *identity.Config) { c.Now = clock.now })
	for _, test := range []struct {
		name    string
		claims  map[string]any
		options []oidctest.TokenOption
		says    string
	}{
		{"no events", map[string]any{"events": nil}, nil, "not a logout token"},
		{"another event", map[string]any{"events": map[string]any{event + "s": map[string]any{}}}, nil, "not a logout token"},
		{"event that is no object", map[string]any{"events": map[string]any{event: true}}, nil, "not a logout token"},
		{"nonce", map[string]any{"nonce": "n"}, nil, "nonce"},
		{"null nonce", map[string]any{"nonce": json.RawMessage("null")}, nil, "nonce"},
		{"neither sub nor sid", map[string]any{"sub": nil, "sid": nil}, nil, "neither"},
		{"sid of another type", map[string]any{"sid": 7}, nil, "sid"},
		{"no jti", map[string]any{"jti": nil}, nil, "jti"},
		{"no exp", map[string]any{"exp": nil}, nil, "exp"},
		{"no iat", map[string]any{"iat": nil}, nil, "iat"},
		{"expired", map[string]any{"iat": now - 600, "exp": now - 300}, nil, "expired"},
		{"another audience", map[string]any{"aud": "other"}, nil, "audience"},
		{"another issuer", map[string]any{"iss": "https://evil.example"}, nil, "not configured"},
		{"another key", nil, []oidctest.TokenOption{oidctest.SignWith(stranger)}, "does not publish"},
		{"another typ", nil, []oidctest.TokenOption{oidctest.Header("typ", "secevent+jwt")}, "typ"},
	} {
		claims := map[string]any{"aud": forUs, "sub": "me", "sid": "s-1"}
		maps.Copy(claims, test.claims)
		token := issuer.LogoutToken(claims, test.options...)
		err := a.Logout(t.Context(), token)
		if err == nil {
			t.Errorf("%s: accepted", test.name)
			continue
		}
		if !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), token[len(token)-20:]) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	signed := issuer.LogoutToken(map[string]any{"aud": forUs, "sub": "me", "sid": "s-1"})
	parts := strings.Split(signed, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"logout+jwt"}`))
	for name, token := range map[string]string{
		"alg none":               none + "." + parts[1] + ".",
		"alg none, signed":       none + "." + parts[1] + "." + parts[2],
		"no signature":           parts[0] + "." + parts[1] + ".",
		"two parts":              parts[0] + "." + parts[1],
		"another's signature":    parts[0] + "." + parts[1] + "." + strings.Split(issuer.LogoutToken(map[string]any{"aud": forUs, "sub": "me"}), ".")[2],
		"HMAC by the public key": hmacToken(t, issuer, parts[1]),
	} {
		if err := a.Logout(t.Context(), token); err == nil || kind(err) != identity.BadToken {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(a.Revocations().List()); n != 0 {
		t.Fatalf("%d revocations by tokens that were refused", n)
	}

	bySession := issuer.Token(map[string]any{"aud": forUs, "sub": "me", "sid": "s-1"})
	bySubject := issuer.Token(map[string]any{"aud": forUs, "sub": "you"})
	for _, token := range []string{bySession, bySubject} {
		if _, err := a.Authenticate(bearer(token)); err != nil {
			t.Fatal(err)
		}
	}
	logout := issuer.LogoutToken(map[string]any{"aud": forUs, "sid": "s-1"}, oidctest.Header("typ", "JWT"))
	if err := a.Logout(t.Context(), logout); err != nil {
		t.Fatal(err)
	}
	_, err := a.Authenticate(bearer(bySession))
	said(t, err, identity.Revoked, bySession)
	if _, err := a.Authenticate(bearer(bySubject)); err != nil {
		t.Errorf("another session: %v", err)
	}
	if err := a.Logout(t.Context(), logout); err == nil || !strings.Contains(err.Error(), "used before") {
		t.Errorf("the same jti again: %v", err)
	}
	if _, err := a.Authenticate(bearer(logout)); kind(err) != identity.BadToken {
		t.Errorf("a logout token as bearer: %v", err)
	}

	if err := a.Logout(t.Context(), issuer.LogoutToken(map[string]any{"aud": forUs, "sub": "you"})); err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(bearer(bySubject))
	said(t, err, identity.Revoked, bySubject, "log in again")
	clock.pass(time.Second)
	if _, err := a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs, "sub": "you"}))); err != nil {
		t.Errorf("after a new login: %v", err)
	}

	// Tokens that carry no sid: with both in the logout token, the subject's are refused.
	noSID := issuer.Token(map[string]any{"aud": forUs, "sub": "them"})
	if err := a.Logout(t.Context(), issuer.LogoutToken(map[string]any{"aud": forUs, "sub": "them", "sid": "s-3"})); err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(bearer(noSID))
	said(t, err, identity.Revoked, noSID)

	// Tokens that are known to carry it: only that session's.
	exact := trust(t, issuer, func(c *identity.Config) { c.Now, c.Issuers[0].SessionClaim = clock.now, "sid" })
	if err := exact.Logout(t.Context(), issuer.LogoutToken(map[string]any{"aud": forUs, "sub": "me", "sid": "s-4"})); err != nil {
		t.Fatal(err)
	}
	if _, err := exact.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs, "sub": "me", "sid": "s-4"}))); kind(err) != identity.Revoked {
		t.Errorf("the session: %v", err)
	}
	if _, err := exact.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs, "sub": "me", "sid": "s-5"}))); err != nil {
		t.Errorf("another session of the subject: %v", err)
	}
}

// told is who wants to know of a revocation.
type told func()

func (f told) Revoked() { f() }

// track has f called when id is revoked.
func track(to interface {
	Track(*identity.Transfer, *identity.Identity, identity.Revocable)
}, id *identity.Identity, f func()) *identity.Transfer {
	t := new(identity.Transfer)
	to.Track(t, id, told(f))
	return t
}
