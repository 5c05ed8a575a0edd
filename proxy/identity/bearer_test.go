package identity_test

import (
	"context"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

// forUs is the audience that is accepted.
const forUs = "https://s3.example.com"

// clock is a time that tests move, while fetches in the background read it.
type clock struct{ nanoseconds atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.nanoseconds.Store(time.Now().Truncate(time.Second).UnixNano())
	return c
}

func (c *clock) now() time.Time       { return time.Unix(0, c.nanoseconds.Load()) }
func (c *clock) pass(d time.Duration) { c.nanoseconds.Add(int64(d)) }

// trust makes an Authenticator that trusts issuer for audience; change alters its configuration.
func trust(t testing.TB, issuer *oidctest.Issuer, change ...func(*identity.Config)) *identity.Authenticator {
	t.Helper()
	c := identity.Config{Issuers: []identity.IssuerConfig{{Issuer: issuer.URL(), Audiences: []string{forUs}}}}
	for _, f := range change {
		f(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	a, err := identity.New(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newIssuer(t testing.TB, o oidctest.Options) *oidctest.Issuer {
	issuer := oidctest.New(o)
	t.Cleanup(issuer.Close)
	return issuer
}

// bearer is a request with a token.
func bearer(token string) *http.Request {
	r := httptest.NewRequest("GET", "https://s3.example.com/artifacts/a.txt", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// said fails the test unless err is of kind want, says all of parts and does not repeat the token.
func said(t *testing.T, err error, want identity.Kind, token string, parts ...string) {
	t.Helper()
	var e *identity.Error
	if !errors.As(err, &e) {
		t.Errorf("error %v is not an identity.Error", err)
		return
	}
	if e.Kind != want {
		t.Errorf("kind %d, want %d: %s", e.Kind, want, e.Message)
	}
	for _, part := range parts {
		if !strings.Contains(e.Message, part) {
			t.Errorf("message %q does not say %q", e.Message, part)
		}
	}
	for _, piece := range strings.Split(token, ".") {
		if len(piece) > 16 && (strings.Contains(e.Message, piece) || strings.Contains(fmt.Sprint(e.Err), piece)) {
			t.Errorf("the error repeats a part of the token: %q, %v", e.Message, e.Err)
		}
	}
}

func TestBearer(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer, func(c *identity.Config) {
		c.Issuers[0].Preset = "ona"
		c.Issuers[0].RequiredClaims = map[string]any{"organization_id": "acme"}
	})
	r := bearer(issuer.Token(map[string]any{
		"aud": forUs, "sub": "organization_id:acme:project_id:web", "organization_id": "acme",
		"environment_id": "env-42", "project_id": "web", "creator_email": "dev@acme.com", "jti": "j-1", "n": 12345678901234567,
	}))
	proof, err := a.Authenticate(r)
	if err != nil {
		t.Fatal(err)
	}
	id := proof.Identity
	if id.Issuer != issuer.URL() || id.Subject != "organization_id:acme:project_id:web" || id.Session != "env-42" ||
		id.TokenID != "j-1" || id.Method != "bearer" || len(id.Audience) != 1 || id.Audience[0] != forUs {
		t.Errorf("identity %+v", id)
	}
	if id.Attributes.Workspace != "env-42" || id.Attributes.Project != "web" || id.Attributes.User != "dev@acme.com" || id.Attributes.Groups == nil {
		t.Errorf("attributes %+v", id.Attributes)
	}
	if n, ok := id.Claims["n"].(json.Number); !ok || n != "12345678901234567" {
		t.Errorf("claim n is %v: numbers are to keep all their digits", id.Claims["n"])
	}
	if proof.ExpiresAt != id.Expires || time.Until(id.Expires) > time.Hour || proof.CheckHash || proof.Chunks != nil {
		t.Errorf("proof %+v", proof)
	}
	if len(r.Header) != 0 {
		t.Errorf("headers left: %v", r.Header)
	}
}

// A request is judged by the one credential it has, spelt as the RFC has it.
func TestDoors(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer)
	token := issuer.Token(map[string]any{"aud": forUs})
	signature := "AWS4-HMAC-SHA256 Credential=x/20261123/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=00"

	for _, test := range []struct {
		name          string
		query         string
		authorization []string
		securityToken []string
		kind          identity.Kind // 0 = accepted
		message       string
	}{
		{name: "bearer", authorization: []string{"Bearer " + token}},
		{name: "case of the scheme", authorization: []string{"bEARER " + token}},
		{name: "as session token", authorization: []string{signature}, securityToken: []string{token}},
		{name: "none", kind: identity.Missing, message: "Authorization: Bearer <token>"},
		{name: "empty", authorization: []string{""}, kind: identity.Missing},
		{name: "bare token", authorization: []string{token}, kind: identity.Malformed},
		{name: "two blanks", authorization: []string{"Bearer  " + token}, kind: identity.BadToken, message: "blank"},
		{name: "tab", authorization: []string{"Bearer\t" + token}, kind: identity.Malformed},
		{name: "blank behind", authorization: []string{"Bearer " + token + " "}, kind: identity.BadToken, message: "blank"},
		{name: "nothing behind", authorization: []string{"Bearer"}, kind: identity.BadToken, message: "empty"},
		{name: "comma", authorization: []string{"Bearer " + token + ",Bearer " + token}, kind: identity.BadToken},
		{name: "two with a comma", authorization: []string{"Bearer " + token + "," + token}, kind: identity.BadToken, message: "comma"},
		{name: "twice", authorization: []string{"Bearer " + token, "Bearer " + token}, kind: identity.Malformed, message: "repeated"},
		{name: "bearer and signature", authorization: []string{"Bearer " + token, signature}, kind: identity.Malformed},
		{name: "bearer and session token", authorization: []string{"Bearer " + token}, securityToken: []string{"x"}, kind: identity.Malformed, message: "both"},
		{name: "bearer and empty session token", authorization: []string{"Bearer " + token}, securityToken: []string{""}, kind: identity.Malformed},
		{name: "session token twice", authorization: []string{signature}, securityToken: []string{token, token}, kind: identity.Malformed},
		{name: "session token alone", securityToken: []string{token}, kind: identity.Malformed, message: "without a signature"},
		{name: "basic", authorization: []string{"Basic eDp5"}, kind: identity.Malformed},
		{name: "signature 2", authorization: []string{"AWS AKIA:sig"}, kind: identity.Malformed, message: "version 2"},
		{name: "signature 4a", authorization: []string{"AWS4-ECDSA-P256-SHA256 Credential=x"}, kind: identity.Malformed, message: "AWS4-HMAC-SHA256"},
		{name: "bearer and presigned", query: "X-Amz-Signature=00", authorization: []string{"Bearer " + token}, kind: identity.Malformed, message: "query"},
		{name: "bearer and presigned, escaped", query: "x=1&%58-amz-%53ignature=00", authorization: []string{"Bearer " + token}, kind: identity.Malformed, message: "query"},
		{name: "bearer and presigned, lower case", query: "x-amz-credential=00", authorization: []string{"Bearer " + token}, kind: identity.Malformed, message: "query"},
		{name: "bearer and token in the query", query: "X-Amz-Security-Token=" + token, authorization: []string{"Bearer " + token}, kind: identity.Malformed, message: "query"},
		{name: "bearer and presigned of version 2", query: "AWSAccessKeyId=a&Signature=b&Expires=1", authorization: []string{"Bearer " + token}, kind: identity.Malformed},
		{name: "session token and presigned", query: "X-Amz-Algorithm=AWS4-HMAC-SHA256", securityToken: []string{token}, kind: identity.Malformed},
		{name: "bad escape", query: "%zz=1", authorization: []string{"Bearer " + token}, kind: identity.Malformed, message: "escape"},
		{name: "others' parameters", query: "prefix=X-Amz-Signature&x-id=GetObject&signatures=1", authorization: []string{"Bearer " + token}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "https://s3.example.com/artifacts/a.txt", nil)
			r.URL.RawQuery = test.query
			if test.authorization != nil {
				r.Header["Authorization"] = test.authorization
			}
			if test.securityToken != nil {
				r.Header["X-Amz-Security-Token"] = test.securityToken
			}
			proof, err := a.Authenticate(r)
			if len(r.Header) != 0 {
				t.Errorf("headers left: %v", r.Header)
			}
			if test.kind == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if proof.Identity.Method != "bearer" {
					t.Errorf("method %q", proof.Identity.Method)
				}
				return
			}
			said(t, err, test.kind, token, test.message)
		})
	}
}

// forge makes a token by hand: with any header, under any signature.
func forge(header, claims map[string]any, sign func(input string) []byte) string {
	encode := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	input := encode(header) + "." + encode(claims)
	return input + "." + base64.RawURLEncoding.EncodeToString(sign(input))
}

func TestT08Algorithms(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{Algorithm: "RS256"})
	strict := newIssuer(t, oidctest.Options{Algorithm: "RS256"})
	a := trust(t, issuer, func(c *identity.Config) {
		c.Issuers = append(c.Issuers, identity.IssuerConfig{Issuer: strict.URL(), Audiences: []string{forUs}, Algorithms: []string{"ES256"}})
	})
	claims := map[string]any{"iss": issuer.URL(), "sub": "x", "aud": forUs, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()}
	key := issuer.Key()
	public := key.Public().Key.(*rsa.PublicKey)
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	jwk, err := json.Marshal(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	mac := func(secret []byte) func(string) []byte {
		return func(input string) []byte {
			h := hmac.New(sha256.New, secret)
			h.Write([]byte(input))
			return h.Sum(nil)
		}
	}
	good := issuer.Token(claims)
	if _, err := a.Authenticate(bearer(good)); err != nil {
		t.Fatalf("the good token: %v", err)
	}
	own := oidctest.NewKey("RS256", key.KeyID)
	ec := oidctest.NewKey("ES256", key.KeyID)

	for _, test := range []struct {
		name, token, says string
	}{
		{"none", forge(map[string]any{"alg": "none"}, claims, func(string) []byte { return []byte("x") }), "asymmetric"},
		{"none without a signature", forge(map[string]any{"alg": "none"}, claims, func(string) []byte { return nil }), "no signature"},
		{"None", forge(map[string]any{"alg": "None"}, claims, func(string) []byte { return []byte("x") }), "asymmetric"},
		{"no alg", forge(map[string]any{"kid": key.KeyID}, claims, mac(publicPEM)), "asymmetric"},
		{"HS256 by the public key", forge(map[string]any{"alg": "HS256", "kid": key.KeyID}, claims, mac(publicPEM)), "asymmetric"},
		{"HS256 by the JWK", forge(map[string]any{"alg": "HS256", "kid": key.KeyID}, claims, mac(jwk)), "asymmetric"},
		{"HS256 by the modulus", forge(map[string]any{"alg": "HS512", "kid": key.KeyID}, claims, mac(public.N.Bytes())), "asymmetric"},
		{"RS256 by a MAC", forge(map[string]any{"alg": "RS256", "kid": key.KeyID}, claims, mac(publicPEM)), "does not match"},
		{"unsupported", forge(map[string]any{"alg": "ES256K", "kid": key.KeyID}, claims, mac(nil)), "asymmetric"},
		{"encrypted", "eyJhbGciOiJSU0EtT0FFUCJ9.a.b.c.d", "5 parts"},
		{"opaque", "gho_16C7e42F292c6912E7710c838347Ae178B4a", "single part without dots, where header, payload and signature are needed"},
		{"crit", issuer.Token(claims, oidctest.Header("crit", []string{"exp"})), `"crit"`},
		{"b64", issuer.Token(claims, oidctest.Header("b64", true)), `"b64"`},
		{"jku", issuer.Token(claims, oidctest.Header("jku", "https://evil.example/keys"), oidctest.SignWith(own)), `"jku"`},
		{"x5u", issuer.Token(claims, oidctest.Header("x5u", "https://evil.example/cert"), oidctest.SignWith(own)), `"x5u"`},
		{"jwk", issuer.Token(claims, oidctest.Header("jwk", own.Public()), oidctest.SignWith(own)), `"jwk"`},
		{"the issuer's own jwk", issuer.Token(claims, oidctest.Header("jwk", key.Public())), `"jwk"`},
		{"another key under the kid", issuer.Token(claims, oidctest.SignWith(own)), "does not match"},
		{"another kind of key under the kid", issuer.Token(claims, oidctest.SignWith(ec)), "does not match"},
		{"kid of a path", issuer.Token(claims, oidctest.KeyID("../../dev/null")), "does not publish"},
		{"endless kid", issuer.Token(claims, oidctest.KeyID(strings.Repeat("k", 257))), "kid"},
		{"kid that is no string", forge(map[string]any{"alg": "RS256", "kid": 7}, claims, mac(nil)), "kid is not a string"},
		{"typ", issuer.Token(claims, oidctest.Header("typ", "dpop+jwt")), "dpop+jwt"},
		{"not the issuer's choice", strict.Token(map[string]any{"aud": forUs}), `accepts "ES256"`},
		{"alg twice", forgeRaw(`{"alg":"RS256","alg":"none"}`, claims), "cannot be read"},
		{"signature cut", good[:len(good)-4], "does not match"},
		{"payload of another", swapPayload(good, issuer.Token(map[string]any{"aud": forUs, "sub": "admin"})), "does not match"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := a.Authenticate(bearer(test.token))
			said(t, err, identity.BadToken, test.token, test.says)
		})
	}

	t.Run("key bound to its algorithm", func(t *testing.T) {
		// The key says RS256 of itself; RS512 and PS256 by the same key verify as signatures, and are still refused.
		for _, algorithm := range []string{"RS512", "PS256"} {
			other := key
			other.Algorithm = algorithm
			_, err := a.Authenticate(bearer(issuer.Token(claims, oidctest.SignWith(other))))
			said(t, err, identity.BadToken, "", "does not match")
		}
	})
	t.Run("key for encryption", func(t *testing.T) {
		encryption := oidctest.NewKey("RS256", "enc-1")
		encryption.Use = "enc"
		issuer.Publish(encryption)
		_, err := trust(t, issuer).Authenticate(bearer(issuer.Token(claims, oidctest.SignWith(encryption))))
		said(t, err, identity.BadToken, "", "does not publish")
	})
	t.Run("two keys with one kid", func(t *testing.T) {
		// Either may have signed, and neither being first may hide the other.
		twin := oidctest.NewKey("RS256", key.KeyID)
		issuer.Publish(twin)
		a := trust(t, issuer)
		for _, token := range []string{issuer.Token(claims), issuer.Token(claims, oidctest.SignWith(twin))} {
			if _, err := a.Authenticate(bearer(token)); err != nil {
				t.Error(err)
			}
		}
		_, err := a.Authenticate(bearer(issuer.Token(claims, oidctest.SignWith(own))))
		said(t, err, identity.BadToken, "", "does not match")
	})
	t.Run("symmetric key in the set", func(t *testing.T) {
		// A key set that leaks a secret does not make HS256 acceptable.
		secret := jose.JSONWebKey{Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: "mac-1", Algorithm: "HS256"}
		file := filepath.Join(t.TempDir(), "keys.json")
		data, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{secret, key.Public()}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		a := trust(t, issuer, func(c *identity.Config) { c.Issuers[0].JWKSFile = file })
		_, err = a.Authenticate(bearer(forge(map[string]any{"alg": "HS256", "kid": "mac-1"}, claims, mac(secret.Key.([]byte)))))
		said(t, err, identity.BadToken, "", "asymmetric")
		if _, err := a.Authenticate(bearer(issuer.Token(claims))); err != nil {
			t.Error(err)
		}
	})
	t.Run("no kid", func(t *testing.T) {
		if _, err := a.Authenticate(bearer(issuer.Token(claims, oidctest.NoKeyID()))); err != nil {
			t.Error(err)
		}
	})
}

func forgeRaw(header string, claims map[string]any) string {
	token := forge(nil, claims, func(string) []byte { return []byte("x") })
	_, rest, _ := strings.Cut(token, ".")
	return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + rest
}

func swapPayload(token, other string) string {
	parts, others := strings.Split(token, "."), strings.Split(other, ".")
	return parts[0] + "." + others[1] + "." + parts[2]
}

func TestEveryAlgorithmVerifies(t *testing.T) {
	for _, algorithm := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"} {
		issuer := newIssuer(t, oidctest.Options{Algorithm: algorithm})
		if _, err := trust(t, issuer).Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs}))); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
}

func TestT09AudienceIssuerAndTime(t *testing.T) {
	clock := newClock()
	issuer := newIssuer(t, oidctest.Options{Now: clock.now})
	slashed := newIssuer(t, oidctest.Options{Path: "/realm"})
	a := trust(t, issuer, func(c *identity.Config) {
		c.Now = clock.now
		c.Issuers[0].Audiences = []string{forUs, "sluice"}
		c.Issuers[0].RequiredClaims = map[string]any{"organization_id": []any{"acme", "acme-test"}, "tier": 2, "teams": "storage"}
		c.Issuers = append(c.Issuers, identity.IssuerConfig{Issuer: slashed.URL(), Audiences: []string{forUs}})
	})
	now := clock.now().Unix()
	for _, test := range []struct {
		name   string
		claims map[string]any
		kind   identity.Kind // 0 = accepted
		says   string
	}{
		{"good", nil, 0, ""},
		{"second audience", map[string]any{"aud": []string{"sluice"}}, 0, ""},
		{"both audiences", map[string]any{"aud": []string{"sluice", forUs}}, 0, ""},
		{"audience of several, made for us", map[string]any{"aud": []string{"other", forUs}, "azp": "sluice"}, 0, ""},
		{"audience of several, made for another", map[string]any{"aud": []string{"other", forUs}, "azp": "other"}, identity.BadToken, "azp"},
		{"audience of several, made for nobody", map[string]any{"aud": []string{"other", forUs}}, identity.BadToken, "azp"},
		{"no audience", map[string]any{"aud": nil}, identity.BadToken, "no aud"},
		{"empty audiences", map[string]any{"aud": []string{}}, identity.BadToken, "no aud"},
		{"empty audience", map[string]any{"aud": ""}, identity.BadToken, `this proxy accepts "https://s3.example.com", "sluice"`},
		{"another audience", map[string]any{"aud": "sts.amazonaws.com"}, identity.BadToken, `for audience "sts.amazonaws.com"`},
		{"prefix of the audience", map[string]any{"aud": forUs + "/"}, identity.BadToken, "audience"},
		{"audience of another type", map[string]any{"aud": 7}, identity.BadToken, "aud"},
		{"audiences of another type", map[string]any{"aud": []any{forUs, 7}}, identity.BadToken, "aud"},
		{"another issuer", map[string]any{"iss": "https://evil.example"}, identity.BadToken, "not configured"},
		{"no issuer", map[string]any{"iss": nil}, identity.BadToken, "no iss"},
		{"issuer with a slash", map[string]any{"iss": issuer.URL() + "/"}, identity.BadToken, "trailing slash"},
		{"issuer in capitals", map[string]any{"iss": strings.ToUpper(issuer.URL())}, identity.BadToken, "not configured"},
		{"the other issuer's name", map[string]any{"iss": slashed.URL()}, identity.BadToken, "does not match"},
		{"no subject", map[string]any{"sub": nil}, identity.BadToken, "no sub"},
		{"empty subject", map[string]any{"sub": ""}, identity.BadToken, "no sub"},
		{"subject of another type", map[string]any{"sub": 7}, identity.BadToken, "sub"},
		{"no exp", map[string]any{"exp": nil}, identity.BadToken, "no exp"},
		{"exp of another type", map[string]any{"exp": fmt.Sprint(now + 60)}, identity.BadToken, "exp"},
		{"exp beyond all time", map[string]any{"exp": 1e300}, identity.BadToken, "exp"},
		{"negative exp", map[string]any{"exp": -1}, identity.BadToken, "exp"},
		{"expired", map[string]any{"exp": now - 180, "iat": now - 600}, identity.Expired, "expired 3m0s ago: fetch a new one"},
		{"expired within the leeway", map[string]any{"exp": now - 29, "iat": now - 600}, 0, ""},
		{"expired at the leeway's end", map[string]any{"exp": now - 30, "iat": now - 600}, identity.Expired, "expired 30s ago"},
		{"no iat", map[string]any{"iat": nil}, identity.BadToken, "no iat claim, which every ID token has: send that one, or have its issuer add the claim"},
		{"from the near future", map[string]any{"iat": now + 29}, 0, ""},
		{"from the future", map[string]any{"iat": now + 31}, identity.BadToken, "clocks"},
		{"too old", map[string]any{"iat": now - int64(identity.MaxTokenAge.Seconds()) - 31}, identity.Expired, "25h0m0s"},
		{"ends before it begins", map[string]any{"iat": now + 20, "exp": now + 10}, identity.BadToken, "before it was issued"},
		{"not yet", map[string]any{"nbf": now + 60}, identity.BadToken, "not valid before 1m0s"},
		{"nbf within the leeway", map[string]any{"nbf": now + 29}, 0, ""},
		{"nbf of another type", map[string]any{"nbf": "soon"}, identity.BadToken, "nbf"},
		{"with a fraction", map[string]any{"exp": float64(now) + 60.5}, 0, ""},
		{"required claim missing", map[string]any{"organization_id": nil}, identity.BadToken, "no claim organization_id"},
		{"required claim, the other of a list", map[string]any{"organization_id": "acme-test"}, 0, ""},
		{"required claim wrong", map[string]any{"organization_id": "evil"}, identity.BadToken, `organization_id is not "acme" or "acme-test"`},
		{"required claim, longer", map[string]any{"organization_id": "acme2"}, identity.BadToken, "organization_id"},
		{"required claim empty", map[string]any{"organization_id": ""}, identity.BadToken, "organization_id"},
		{"required claim an object", map[string]any{"organization_id": map[string]any{"acme": true}}, identity.BadToken, "organization_id"},
		{"required number", map[string]any{"tier": 3}, identity.BadToken, "tier"},
		{"required number as text", map[string]any{"tier": "2"}, 0, ""},
		{"required among a list", map[string]any{"teams": []string{"web"}}, identity.BadToken, "teams"},
		{"logout token", map[string]any{"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}, identity.BadToken, "logout token"},
		{"jti of another type", map[string]any{"jti": 7}, identity.BadToken, "jti"},
		{"16 KiB", map[string]any{"filler": strings.Repeat("x", 16<<10)}, identity.BadToken, "16 KiB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			claims := map[string]any{"aud": forUs, "organization_id": "acme", "tier": 2, "teams": []string{"web", "storage"}}
			maps.Copy(claims, test.claims)
			token := issuer.Token(claims)
			_, err := a.Authenticate(bearer(token))
			if test.kind == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			said(t, err, test.kind, token, test.says)
		})
	}

	t.Run("life is capped by age", func(t *testing.T) {
		proof, err := a.Authenticate(bearer(issuer.Token(map[string]any{
			"aud": forUs, "organization_id": "acme", "tier": 2, "teams": "storage", "exp": now + 365*24*3600,
		})))
		if err != nil {
			t.Fatal(err)
		}
		if want := clock.now().Add(identity.MaxTokenAge); !proof.Identity.Expires.Equal(want) {
			t.Errorf("expires %v, want %v", proof.Identity.Expires, want)
		}
	})
	t.Run("the operator's azp", func(t *testing.T) {
		a := trust(t, slashed, func(c *identity.Config) { c.Issuers[0].RequiredClaims = map[string]any{"azp": "cli"} })
		if _, err := a.Authenticate(bearer(slashed.Token(map[string]any{"aud": []string{"account", forUs}, "azp": "cli"}))); err != nil {
			t.Error(err)
		}
		_, err := a.Authenticate(bearer(slashed.Token(map[string]any{"aud": []string{"account", forUs}, "azp": "web"})))
		said(t, err, identity.BadToken, "", "azp")
	})
	t.Run("claims twice", func(t *testing.T) {
		token := signRaw(t, issuer, fmt.Sprintf(`{"iss":%q,"sub":"x","sub":"admin","aud":%q,"iat":%d,"exp":%d}`, issuer.URL(), forUs, now, now+60))
		_, err := a.Authenticate(bearer(token))
		said(t, err, identity.BadToken, token, "repeated")
	})
	t.Run("a claim again in another case", func(t *testing.T) {
		// Go's decoder, and so go-oidc, takes the last of these for sub.
		token := signRaw(t, issuer, fmt.Sprintf(`{"iss":%q,"sub":"x","Sub":"admin","aud":%q,"iat":%d,"exp":%d}`, issuer.URL(), forUs, now, now+60))
		_, err := a.Authenticate(bearer(token))
		said(t, err, identity.BadToken, token, "spellings")
	})
	t.Run("claims that are no object", func(t *testing.T) {
		for _, payload := range []string{`[]`, `null`, `"x"`, `{}{}`, ``, `{"iss":`} {
			token := signRaw(t, issuer, payload)
			_, err := a.Authenticate(bearer(token))
			said(t, err, identity.BadToken, "")
		}
	})
}

// signRaw signs a payload that need not be JSON.
func signRaw(t *testing.T, issuer *oidctest.Issuer, payload string) string {
	t.Helper()
	key := issuer.Key()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// The doors that take an OIDC token give one answer to each token.
func TestT10OneAnswerAtEveryDoor(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer)
	if _, err := a.Revocations().Add(t.Context(), identity.Revocation{Issuer: issuer.URL(), Session: "closed"}); err != nil {
		t.Fatal(err)
	}
	stranger := oidctest.NewKey("ES256", "stranger")
	for name, token := range map[string]string{
		"good":             issuer.Token(map[string]any{"aud": forUs}),
		"revoked":          issuer.Token(map[string]any{"aud": forUs, "sub": "closed"}),
		"expired":          issuer.Token(map[string]any{"aud": forUs, "exp": time.Now().Add(-time.Hour).Unix(), "iat": time.Now().Add(-2 * time.Hour).Unix()}),
		"another audience": issuer.Token(map[string]any{"aud": "other"}),
		"another issuer":   issuer.Token(map[string]any{"aud": forUs, "iss": "https://evil.example"}),
		"another key":      issuer.Token(map[string]any{"aud": forUs}, oidctest.SignWith(stranger)),
		"no subject":       issuer.Token(map[string]any{"aud": forUs, "sub": nil}),
		"crit":             issuer.Token(map[string]any{"aud": forUs}, oidctest.Header("crit", []string{"exp"})),
	} {
		t.Run(name, func(t *testing.T) {
			sessionToken := httptest.NewRequest("GET", "https://s3.example.com/artifacts/a.txt", nil)
			sessionToken.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=any/20261123/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=00")
			sessionToken.Header.Set("X-Amz-Security-Token", token)
			answers := map[string]string{}
			for door, try := range map[string]func() error{
				"bearer":        func() error { _, err := a.Authenticate(bearer(token)); return err },
				"session token": func() error { _, err := a.Authenticate(sessionToken); return err },
				"exchange":      func() error { _, err := a.VerifyToken(t.Context(), token); return err },
			} {
				answers[door] = fmt.Sprint(try())
			}
			if answers["bearer"] != answers["session token"] || answers["bearer"] != answers["exchange"] {
				t.Errorf("the doors differ: %v", answers)
			}
			if accepted := answers["bearer"] == "<nil>"; accepted != (name == "good") {
				t.Errorf("answer %s", answers["bearer"])
			}
		})
	}
}

// Whatever is wrong with a token, no error repeats it.
func TestT07NoErrorRepeatsTheToken(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer)
	const canary = "canary-3f9a2c7d-secret"
	good := issuer.Token(map[string]any{"aud": forUs, "secret": canary})
	parts := strings.Split(good, ".")
	tokens := []string{
		canary, canary + "." + canary, canary + "." + canary + "." + canary, "eyJ" + canary + "." + parts[1] + "." + parts[2],
		parts[0] + "." + canary + "." + parts[2], parts[0] + "." + parts[1] + "." + canary, good + canary, canary + good, good + "," + canary,
		good + "\x00" + canary, good + "%" + canary, "{\"payload\":\"" + canary + "\"}",
		issuer.Token(map[string]any{"aud": "x", "secret": canary}), issuer.Token(map[string]any{"aud": forUs, "secret": canary}, oidctest.KeyID("unknown")),
		signRaw(t, issuer, `{"secret":"`+canary+`","secret":1}`), signRaw(t, issuer, canary),
		base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","`+canary+`":1`)) + "." + parts[1] + "." + parts[2],
	}
	for _, token := range tokens {
		for _, authorization := range []string{"Bearer " + token, token, "AWS " + token, "Bearer\t" + token, "AWS4-HMAC-SHA256 " + token, "Basic " + token} {
			r := httptest.NewRequest("GET", "https://s3.example.com/artifacts/a.txt", nil)
			r.Header["Authorization"] = []string{authorization}
			_, err := a.Authenticate(r)
			if err == nil {
				t.Errorf("%q is accepted", authorization)
				continue
			}
			for e := err; e != nil; e = errors.Unwrap(e) {
				if strings.Contains(e.Error(), canary) || strings.Contains(e.Error(), parts[1]) || strings.Contains(e.Error(), parts[2]) {
					t.Errorf("%q: error repeats it: %v", authorization, e)
				}
			}
		}
	}
}

// T25: this package makes no exception for any path or client.
func TestT25NoSideDoor(t *testing.T) {
	a := trust(t, newIssuer(t, oidctest.Options{}))
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/favicon.ico", "/-/credentials", "/robots.txt", "/minio/health/live"} {
		for _, agent := range []string{"kube-probe/1.31", "ELB-HealthChecker/2.0", "curl/8"} {
			for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
				r := httptest.NewRequest(method, "https://s3.example.com"+path, nil)
				r.Header.Set("User-Agent", agent)
				_, err := a.Authenticate(r)
				said(t, err, identity.Missing, "")
			}
		}
	}
}

// Claims are data: whatever is in them comes out as it was, and changes nothing else.
func TestT19T20ClaimsAreData(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer, func(c *identity.Config) { c.Issuers[0].Preset = "ona" })
	odd := []string{`"`, `"}],"Statement":[{"Effect":"Allow`, `{{.Subject}}`, `../..`, `*`, `${aws:username}`, "ü\u202e\x00", strings.Repeat("y", 3<<10), `</Message>`}
	for _, value := range odd {
		proof, err := a.Authenticate(bearer(issuer.Token(map[string]any{
			"aud": forUs, "environment_id": value, "project_id": value,
			"action": "s3:*", "bucket": "secret", "s3:prefix": "", "method": "session", "attributes": map[string]any{"project": "admin"},
			"nested": map[string]any{"deep": []any{value}},
		})))
		if err != nil {
			t.Fatalf("%.40q: %v", value, err)
		}
		id := proof.Identity
		if id.Session != value || id.Attributes.Project != value || id.Method != "bearer" {
			t.Errorf("%.40q became session %.40q, project %.40q, method %q", value, id.Session, id.Attributes.Project, id.Method)
		}
		if id.Claims["nested"].(map[string]any)["deep"].([]any)[0] != value || id.Claims["action"] != "s3:*" {
			t.Errorf("claims %.200v", id.Claims)
		}
	}
}

func TestALongClaim(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	long := strings.Repeat("y", 8<<10)
	proof, err := trust(t, issuer).Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs, "workspace": long})))
	if err != nil {
		t.Fatal(err)
	}
	if proof.Identity.Session != long {
		t.Errorf("session of %d bytes", len(proof.Identity.Session))
	}
}

func TestSessionClaim(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	for _, test := range []struct {
		name, preset, claim string
		attributes          map[string]string
		claims              map[string]any
		session             string // "" = refused
	}{
		{"the workspace", "ona", "", nil, map[string]any{"environment_id": "env-42"}, "env-42"},
		{"else the subject", "ona", "", nil, nil, "me"},
		{"as configured", "ona", "run", nil, map[string]any{"environment_id": "env-42", "run": 7}, "7"},
		{"as configured, but absent", "ona", "run", nil, map[string]any{"environment_id": "env-42"}, ""},
		{"as configured, but no name", "ona", "run", nil, map[string]any{"run": []string{"a"}}, ""},
		{"within another", "", "ctx.run", nil, map[string]any{"ctx": map[string]any{"run": "r"}}, "r"},
		{"of an attribute", "ona", "", map[string]string{"workspace": "box"}, map[string]any{"environment_id": "env-42", "box": "b"}, "b"},
	} {
		a := trust(t, issuer, func(c *identity.Config) {
			c.Issuers[0].Preset, c.Issuers[0].SessionClaim, c.Issuers[0].Attributes = test.preset, test.claim, test.attributes
		})
		claims := map[string]any{"aud": forUs, "sub": "me"}
		maps.Copy(claims, test.claims)
		proof, err := a.Authenticate(bearer(issuer.Token(claims)))
		if test.session == "" {
			said(t, err, identity.BadToken, "", "no claim "+test.claim)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		} else if proof.Identity.Session != test.session {
			t.Errorf("%s: session %q, want %q", test.name, proof.Identity.Session, test.session)
		}
	}
}

// One identity for all who bring a token, verified once however many bring it first.
func TestCacheSharesOneIdentity(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer)
	token := issuer.Token(map[string]any{"aud": forUs})
	identities := make([]*identity.Identity, 64)
	var wg sync.WaitGroup
	for n := range identities {
		wg.Go(func() {
			proof, err := a.Authenticate(bearer(token))
			if err != nil {
				t.Error(err)
				return
			}
			identities[n] = proof.Identity
		})
	}
	wg.Wait()
	for _, id := range identities {
		if id != identities[0] {
			t.Fatal("two identities of one token")
		}
	}
	made := 0
	for range 3 {
		identities[0].Derived("key", func() any { made++; return made })
	}
	if made != 1 {
		t.Errorf("derived %d times", made)
	}
	if issuer.Fetches() != 1 || issuer.Discoveries() != 1 {
		t.Errorf("%d fetches, %d discoveries", issuer.Fetches(), issuer.Discoveries())
	}
	other, err := a.Authenticate(bearer(issuer.Token(map[string]any{"aud": forUs})))
	if err != nil {
		t.Fatal(err)
	}
	if other.Identity == identities[0] {
		t.Error("another token has the same identity")
	}
}

func TestCacheEndsWithTheToken(t *testing.T) {
	clock := newClock()
	issuer := newIssuer(t, oidctest.Options{Now: clock.now})
	a := trust(t, issuer, func(c *identity.Config) { c.Now = clock.now })
	token := issuer.Token(map[string]any{"aud": forUs, "exp": clock.now().Add(10 * time.Minute).Unix()})
	for _, step := range []struct {
		pass time.Duration
		good bool
	}{{0, true}, {10 * time.Minute, true}, {29 * time.Second, true}, {time.Second, false}, {time.Hour, false}} {
		clock.pass(step.pass)
		_, err := a.Authenticate(bearer(token))
		if step.good != (err == nil) {
			t.Errorf("after %v: %v", step.pass, err)
		}
		if err != nil {
			said(t, err, identity.Expired, token, "fetch a new one")
		}
	}
}
