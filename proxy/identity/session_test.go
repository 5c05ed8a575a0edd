package identity_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

const audience = "https://s3.example.com"

// world is an issuer, an Authenticator that trusts it, and a clock that both go by.
type world struct {
	*identity.Authenticator
	t      testing.TB
	issuer *oidctest.Issuer
	config identity.Config
	clock  *time.Time
}

// start makes a world; change may alter its configuration.
func start(t testing.TB, change ...func(*identity.Config)) *world {
	t.Helper()
	clock := time.Now().UTC().Truncate(time.Second)
	w := &world{t: t, clock: &clock}
	w.issuer = oidctest.New(oidctest.Options{Now: w.now})
	t.Cleanup(w.issuer.Close)
	w.config = identity.Config{
		Issuers: []identity.IssuerConfig{{Issuer: w.issuer.URL(), Audiences: []string{audience}}},
		Now:     w.now,
	}
	for _, f := range change {
		f(&w.config)
	}
	w.Authenticator = w.another(w.config)
	return w
}

// another is a further Authenticator.
func (w *world) another(c identity.Config) *identity.Authenticator {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(cancel)
	a, err := identity.New(ctx, c)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) now() time.Time { return *w.clock }

func (w *world) pass(d time.Duration) { *w.clock = w.clock.Add(d) }

// token is an OIDC token; claims are added to the usual.
func (w *world) token(claims map[string]any) string {
	all := map[string]any{"aud": audience, "sub": "dev@acme.com", "environment_id": "env-42"}
	for name, value := range claims {
		all[name] = value
	}
	return w.issuer.Token(all)
}

// session exchanges a token of claims.
func (w *world) session(claims map[string]any) *identity.Session {
	w.t.Helper()
	s, err := w.Issue(context.Background(), w.token(claims), identity.IssueRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func credentials(s *identity.Session) aws.Credentials {
	return aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey, SessionToken: s.SessionToken}
}

// s3Signer signs as S3's clients do. Each signer is used once: the SDK's remembers derived keys by the access key id alone.
func s3Signer() *v4.Signer {
	return v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
}

// signed is a request as it arrives, signed by the Go SDK's signer. hash "" is the body's.
func (w *world) signed(s *identity.Session, method, target, body, hash string, header ...string) *http.Request {
	w.t.Helper()
	r := request(method, target, body, header...)
	if hash == "" {
		hash = sum(body)
	}
	r.Header.Set("X-Amz-Content-Sha256", hash)
	if err := s3Signer().SignHTTP(context.Background(), credentials(s), r, hash, "s3", "eu-west-1", w.now()); err != nil {
		w.t.Fatal(err)
	}
	return r
}

// request is one to be signed; header has names and values by turns.
func request(method, target, body string, header ...string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// presigned is a request for a presigned URL, signed by the Go SDK's signer.
func (w *world) presigned(s *identity.Session, method, target string, expires time.Duration, header ...string) *http.Request {
	w.t.Helper()
	r := request(method, target, "", header...)
	q := r.URL.Query()
	q.Set("X-Amz-Expires", fmt.Sprint(int64(expires/time.Second)))
	r.URL.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	hash := r.Header.Get("X-Amz-Content-Sha256")
	if hash == "" {
		hash = "UNSIGNED-PAYLOAD"
	}
	url, _, err := s3Signer().PresignHTTP(context.Background(), credentials(s), r, hash, "s3", "eu-west-1", w.now())
	if err != nil {
		w.t.Fatal(err)
	}
	return request(method, url, "", header...)
}

func kindOf(err error) identity.Kind {
	if e, ok := errors.AsType[*identity.Error](err); ok {
		return e.Kind
	}
	return 0
}

func wantKind(t testing.TB, what string, err error, want identity.Kind) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: accepted", what)
	} else if kindOf(err) != want {
		t.Errorf("%s: kind %v, want %v: %v", what, kindOf(err), want, err)
	}
}

func keyFile(t testing.TB, keys ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "session.keys")
	writeKeys(t, path, keys...)
	return path
}

func writeKeys(t testing.TB, path string, keys ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(keys, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newKey() string {
	var b [32]byte
	rand.Read(b[:])
	return base64.StdEncoding.EncodeToString(b[:])
}

func TestSessionCarriesTheIdentity(t *testing.T) {
	w := start(t)
	token := w.token(map[string]any{
		"big": 12345678901234567, "nested": map[string]any{"a": []any{"<&>", nil, true, 1.5}}, "quote\"d": "ü \u0000 \\",
	})
	bearer, err := w.Authenticate(request("GET", "http://s3.example.com/b/k", "", "Authorization", "Bearer "+token))
	if err != nil {
		t.Fatal(err)
	}
	session, err := w.Issue(t.Context(), token, identity.IssueRequest{RoleARN: "arn:aws:iam::123456789012:role/dev", SessionName: "ada", Duration: 20 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if want := w.now().Add(20 * time.Minute); !session.Expiration.Equal(want) {
		t.Errorf("expires %s, want %s", session.Expiration, want)
	}
	if len(session.AccessKeyID) != 20 || session.AccessKeyID[0] == 'A' || strings.ToUpper(session.AccessKeyID) != session.AccessKeyID {
		t.Errorf("access key id %q", session.AccessKeyID)
	}
	if len(session.SecretAccessKey) != 40 {
		t.Errorf("secret of %d characters", len(session.SecretAccessKey))
	}
	proof, err := w.Authenticate(w.signed(session, "GET", "http://s3.example.com/b/k", "", ""))
	if err != nil {
		t.Fatal(err)
	}
	ignore := cmp.Options{
		cmpopts.IgnoreUnexported(identity.Identity{}), cmpopts.EquateApproxTime(time.Second),
		cmpopts.IgnoreFields(identity.Identity{}, "Method", "RequestedRole", "Expires"),
	}
	for _, got := range []*identity.Identity{proof.Identity, session.Identity} {
		if diff := cmp.Diff(bearer.Identity, got, ignore); diff != "" {
			t.Error(diff)
		}
		if got.Method != "session" || got.RequestedRole != "arn:aws:iam::123456789012:role/dev" || got.SessionName() != "ada" ||
			!got.Expires.Equal(session.Expiration) || got.Token() != "" {
			t.Errorf("%+v", got)
		}
	}
	if !proof.ExpiresAt.Equal(session.Expiration) || !proof.CheckHash || proof.Chunks != nil {
		t.Errorf("%+v", proof)
	}
	again, err := w.Authenticate(w.signed(session, "PUT", "http://s3.example.com/b/other", "body", ""))
	if err != nil {
		t.Fatal(err)
	}
	if again.Identity != proof.Identity {
		t.Error("two requests of one session have two identities, so nothing derived from them is shared")
	}
	shared, err := w.Authenticate(w.presigned(session, "GET", "http://s3.example.com/b/k", time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(bearer.Identity, shared.Identity, ignore); diff != "" || shared.Identity.Method != "presigned" {
		t.Errorf("method %q %s", shared.Identity.Method, diff)
	}
}

func TestSessionCarriesTheTokenOnlyWhereAsked(t *testing.T) {
	for _, carry := range []bool{false, true} {
		w := start(t, func(c *identity.Config) { c.CarryToken = carry })
		token := w.token(map[string]any{"project_id": "web"})
		session, err := w.Issue(t.Context(), token, identity.IssueRequest{})
		if err != nil {
			t.Fatal(err)
		}
		proof, err := w.Authenticate(w.signed(session, "GET", "http://s3.example.com/b/k", "", ""))
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		if carry {
			want = token
		}
		if proof.Identity.Token() != want || session.Identity.Token() != want {
			t.Errorf("carry %v: token %q and %q", carry, proof.Identity.Token(), session.Identity.Token())
		}
		if proof.Identity.Claims["project_id"] != "web" {
			t.Errorf("carry %v: claims %v", carry, proof.Identity.Claims)
		}
		t.Logf("carry %v: a token of %d bytes makes a session token of %d", carry, len(token), len(session.SessionToken))
	}
}

// Servers and proxies stop at 8 KiB of headers, so what is common must be small; what is not must still work.
func TestSessionTokenSize(t *testing.T) {
	github := map[string]any{
		"actor": "octocat", "actor_id": "583231", "base_ref": "", "event_name": "push", "head_ref": "", "job_workflow_ref": "acme/web/.github/workflows/deploy.yml@refs/heads/main",
		"job_workflow_sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e", "ref": "refs/heads/main", "ref_protected": "true", "ref_type": "branch", "repository": "acme/web",
		"repository_id": "1296269", "repository_owner": "acme", "repository_owner_id": "9919", "repository_visibility": "private", "run_attempt": "1", "run_id": "9876543210",
		"run_number": "42", "runner_environment": "github-hosted", "sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e", "sub": "repo:acme/web:ref:refs/heads/main",
		"workflow": "deploy", "workflow_ref": "acme/web/.github/workflows/deploy.yml@refs/heads/main", "workflow_sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e",
	}
	groups := func(bytes int) map[string]any {
		var all []string
		for n := 0; n < bytes; n += 39 {
			b := make([]byte, 16)
			rand.Read(b)
			all = append(all, fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
		}
		return map[string]any{"groups": all}
	}
	for _, c := range []struct {
		name   string
		claims map[string]any
		carry  bool
		most   int
	}{
		{"a workspace's", map[string]any{"project_id": "web", "organization_id": "acme"}, false, 600},
		{"GitHub's", github, false, 1200},
		{"GitHub's, carried", github, true, 1500},
		{"8 KiB of random groups", groups(8 << 10), false, 8 << 10},
		{"8 KiB of random groups, carried", groups(8 << 10), true, 8 << 10},
	} {
		w := start(t, func(config *identity.Config) { config.CarryToken = c.carry })
		s, err := w.Issue(t.Context(), w.token(c.claims), identity.IssueRequest{RoleARN: "arn:aws:iam::123456789012:role/dev", SessionName: "GitHubActions"})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		t.Logf("%s: %d", c.name, len(s.SessionToken))
		if len(s.SessionToken) > c.most {
			t.Errorf("%s: session token of %d bytes, want at most %d", c.name, len(s.SessionToken), c.most)
		}
		if _, err := w.Authenticate(w.signed(s, "GET", "http://s3.example.com/b/k", "", "")); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestSessionDuration(t *testing.T) {
	cases := []struct {
		max, token, asked time.Duration
		want              time.Duration // 0 = refused
	}{
		{0, 2 * time.Hour, 0, time.Hour},
		{0, 10 * time.Minute, 0, 10 * time.Minute},
		{0, 10 * time.Minute, time.Hour, 10 * time.Minute},
		{0, 12 * time.Hour, 12 * time.Hour, time.Hour},
		{12 * time.Hour, 24 * time.Hour, 12 * time.Hour, 12 * time.Hour},
		{12 * time.Hour, 24 * time.Hour, 15 * time.Minute, 15 * time.Minute},
		{30 * time.Minute, 24 * time.Hour, 0, 30 * time.Minute},
		{2 * time.Second, time.Hour, 0, 2 * time.Second},
		{2 * time.Second, time.Hour, 15 * time.Minute, 2 * time.Second},
		{0, time.Hour, 899 * time.Second, 0},
		{0, time.Hour, 43201 * time.Second, 0},
		{0, time.Hour, -time.Hour, 0},
	}
	for _, c := range cases {
		w := start(t, func(config *identity.Config) { config.Sessions.MaxDuration = c.max })
		s, err := w.Issue(t.Context(), w.token(map[string]any{"exp": w.now().Add(c.token).Unix()}), identity.IssueRequest{Duration: c.asked})
		if c.want == 0 {
			wantKind(t, fmt.Sprint(c), err, identity.Malformed)
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if got := s.Expiration.Sub(w.now()); got != c.want {
			t.Errorf("%+v: lasts %s", c, got)
		}
		// The clock alone ends it, cached or not.
		if _, err := w.Authenticate(w.signed(s, "GET", "http://s3.example.com/b/k", "", "")); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		w.pass(c.want - time.Second)
		if _, err := w.Authenticate(w.signed(s, "GET", "http://s3.example.com/b/k", "", "")); err != nil {
			t.Errorf("%+v, a second before its end: %v", c, err)
		}
		w.pass(time.Second)
		_, err = w.Authenticate(w.signed(s, "GET", "http://s3.example.com/b/k", "", ""))
		wantKind(t, fmt.Sprint(c), err, identity.Expired)
	}
}

func TestReplicasShareNothingButTheKeyFile(t *testing.T) {
	path := keyFile(t, "# made yesterday", newKey(), "", newKey())
	w := start(t, func(c *identity.Config) { c.Sessions.KeyFile = path })
	other := w.another(w.config)
	if _, err := other.Authenticate(w.signed(w.session(nil), "GET", "http://s3.example.com/b/k", "", "")); err != nil {
		t.Error(err)
	}
	config := w.config
	config.Sessions.KeyFile = keyFile(t, newKey())
	_, err := w.another(config).Authenticate(w.signed(w.session(nil), "GET", "http://s3.example.com/b/k", "", ""))
	wantKind(t, "a session of another key", err, identity.BadToken)
	config.Sessions.KeyFile = ""
	_, err = w.another(config).Authenticate(w.signed(w.session(nil), "GET", "http://s3.example.com/b/k", "", ""))
	wantKind(t, "a session of another key", err, identity.BadToken)
}

func TestKeyRotation(t *testing.T) {
	first, second := newKey(), newKey()
	path := keyFile(t, first)
	w := start(t, func(c *identity.Config) { c.Sessions.KeyFile = path })
	get := func(s *identity.Session) error {
		_, err := w.Authenticate(w.signed(s, "GET", "http://s3.example.com/b/k", "", ""))
		return err
	}
	old := w.session(nil)
	if err := get(old); err != nil {
		t.Fatal(err)
	}
	writeKeys(t, path, second, first)
	if err := w.ReloadKeys(); err != nil {
		t.Fatal(err)
	}
	if err := get(old); err != nil {
		t.Errorf("the second key does not open: %v", err)
	}
	fresh := w.session(nil)
	writeKeys(t, path, second)
	if err := w.ReloadKeys(); err != nil {
		t.Fatal(err)
	}
	if err := get(fresh); err != nil {
		t.Errorf("the first key did not seal: %v", err)
	}
	wantKind(t, "a session of a key that is gone, though it was open before", get(old), identity.BadToken)

	for _, bad := range []string{"", "# nothing", second + "\nnot a key", second[:20], base64.StdEncoding.EncodeToString(make([]byte, 32)), strings.Repeat("\n", 70<<10)} {
		writeKeys(t, path, bad)
		err := w.ReloadKeys()
		if err == nil {
			t.Errorf("key file %.40q: no error", bad)
		} else if strings.Contains(err.Error(), second[:16]) {
			t.Errorf("the error has a key in it: %v", err)
		}
		if err := get(fresh); err != nil {
			t.Errorf("key file %.40q: the old keys are gone: %v", bad, err)
		}
	}
}

// A key file is read again by itself.
func TestKeyFileIsWatched(t *testing.T) {
	path := keyFile(t, newKey())
	w := start(t, func(c *identity.Config) { c.Sessions.KeyFile = path })
	session := w.session(nil)
	writeKeys(t, path, newKey())
	eventually(t, "the keys to be read again", func() bool {
		_, err := w.Authenticate(w.signed(session, "GET", "http://s3.example.com/b/k", "", ""))
		return kindOf(err) == identity.BadToken
	})
}

// Without a key file a reload of the configuration makes a new Authenticator, which must know the old one's sessions.
func TestProcessKeyOutlivesAReload(t *testing.T) {
	w := start(t)
	config := w.config
	config.Previous = w.Authenticator
	if _, err := w.another(config).Authenticate(w.signed(w.session(nil), "GET", "http://s3.example.com/b/k", "", "")); err != nil {
		t.Error(err)
	}
}

// A session is worth no more than its token would be today.
func TestSessionUnderAnotherConfiguration(t *testing.T) {
	path := keyFile(t, newKey())
	w := start(t, func(c *identity.Config) { c.Sessions.KeyFile = path })
	for what, change := range map[string]func(*identity.IssuerConfig){
		"issuer":          func(c *identity.IssuerConfig) { c.Issuer = "https://other.example.com" },
		"audience":        func(c *identity.IssuerConfig) { c.Audiences = []string{"https://other.example.com"} },
		"required claims": func(c *identity.IssuerConfig) { c.RequiredClaims = map[string]any{"organization_id": "acme"} },
	} {
		config := w.config
		config.Issuers = []identity.IssuerConfig{{Issuer: w.issuer.URL(), Audiences: []string{audience}}}
		change(&config.Issuers[0])
		_, err := w.another(config).Authenticate(w.signed(w.session(nil), "GET", "http://s3.example.com/b/k", "", ""))
		wantKind(t, what, err, identity.BadToken)
		_, err = w.another(config).Authenticate(w.presigned(w.session(nil), "GET", "http://s3.example.com/b/k", time.Minute))
		wantKind(t, what, err, identity.BadToken)
	}
}

// Every byte of a session token is authenticated, in its one spelling.
func TestAlteredSessionTokens(t *testing.T) {
	w := start(t)
	session := w.session(nil)
	good := session.SessionToken
	try := func(what, token string) {
		t.Helper()
		s := *session
		s.SessionToken = token
		_, err := w.Authenticate(w.signed(&s, "GET", "http://s3.example.com/b/k", "", ""))
		if err == nil {
			t.Errorf("%s: accepted", what)
		} else if k := kindOf(err); k != identity.BadToken && (token != "" || k != identity.UnknownKey) {
			t.Errorf("%s: kind %v: %v", what, k, err)
		}
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for i := range good {
		try(fmt.Sprintf("cut to %d", i), good[:i])
		next := alphabet[(strings.IndexByte(alphabet, good[i])+1)%len(alphabet)]
		try(fmt.Sprintf("byte %d changed", i), good[:i]+string(next)+good[i+1:])
	}
	for _, tail := range []string{"A", "=", "==", "AAAA", ".", "\t", good} {
		try(fmt.Sprintf("with %.10q behind it", tail), good+tail)
	}
	try("without its prefix", strings.TrimPrefix(good, "sluice1_"))
	try("of a version to come", strings.Replace(good, "sluice1_", "sluice2_", 1))
	try("enormous", "sluice1_"+strings.Repeat("A", 1<<20))
	try("nothing but a prefix", "sluice1_")
	try("a made-up one", "FwoGZXIvYXdzEBYaDKexampletoken//")
	// In a URL a line break can be sent, which base64's decoder skips.
	r := w.presigned(&identity.Session{AccessKeyID: session.AccessKeyID, SecretAccessKey: session.SecretAccessKey, SessionToken: good[:40] + "\n" + good[40:]},
		"GET", "http://s3.example.com/b/k", time.Minute)
	_, err := w.Authenticate(r)
	wantKind(t, "with a line break", err, identity.BadToken)
}

func TestCredentialsOfTwoSessions(t *testing.T) {
	w := start(t)
	one, two := w.session(nil), w.session(map[string]any{"sub": "eve"})
	mixed := *one
	mixed.SessionToken = two.SessionToken
	_, err := w.Authenticate(w.signed(&mixed, "GET", "http://s3.example.com/b/k", "", ""))
	wantKind(t, "the token of another session", err, identity.UnknownKey)
	mixed.AccessKeyID = two.AccessKeyID
	_, err = w.Authenticate(w.signed(&mixed, "GET", "http://s3.example.com/b/k", "", ""))
	wantKind(t, "the secret of another session", err, identity.BadSignature)
	for _, id := range []string{"AKIAIOSFODNN7EXAMPLE", one.AccessKeyID} {
		_, err = w.Authenticate(w.signed(&identity.Session{AccessKeyID: id, SecretAccessKey: one.SecretAccessKey}, "GET", "http://s3.example.com/b/k", "", ""))
		wantKind(t, "no session token", err, identity.UnknownKey)
		if err != nil && !strings.Contains(err.Error(), "AWS_SESSION_TOKEN") {
			t.Errorf("the message does not say what to do: %v", err)
		}
	}
}

func TestIssueVerifiesTheToken(t *testing.T) {
	w := start(t)
	for name, token := range map[string]string{
		"audience":      w.token(map[string]any{"aud": "https://elsewhere.example.com"}),
		"unknown key":   w.issuer.Token(map[string]any{"aud": audience}, oidctest.SignWith(oidctest.NewKey("ES256", w.issuer.Key().KeyID))),
		"session token": w.session(nil).SessionToken,
		"nothing":       "",
	} {
		if s, err := w.Issue(t.Context(), token, identity.IssueRequest{}); err == nil {
			t.Errorf("%s: issued %+v", name, s)
		}
	}
	_, err := w.Issue(t.Context(), w.token(map[string]any{"exp": w.now().Add(-time.Hour).Unix(), "iat": w.now().Add(-2 * time.Hour).Unix()}), identity.IssueRequest{})
	wantKind(t, "expired", err, identity.Expired)
	// Within the leeway the token is still taken for a request, but there is no time left to give a session.
	_, err = w.Issue(t.Context(), w.token(map[string]any{"exp": w.now().Add(-time.Second).Unix(), "iat": w.now().Add(-time.Hour).Unix()}), identity.IssueRequest{})
	wantKind(t, "in its leeway", err, identity.Expired)
}

func TestSessionsCheck(t *testing.T) {
	for _, c := range []struct {
		config identity.SessionsConfig
		want   string
	}{
		{identity.SessionsConfig{}, ""},
		{identity.SessionsConfig{KeyFile: keyFile(t, newKey()), MaxDuration: 12 * time.Hour}, ""},
		{identity.SessionsConfig{MaxDuration: time.Second}, ""},
		{identity.SessionsConfig{MaxDuration: time.Millisecond}, "max_duration"},
		{identity.SessionsConfig{MaxDuration: 13 * time.Hour}, "max_duration"},
		{identity.SessionsConfig{MaxDuration: -1}, "max_duration"},
		{identity.SessionsConfig{KeyFile: "/nowhere/session.keys"}, "key_file"},
		{identity.SessionsConfig{KeyFile: keyFile(t, "short"), MaxDuration: 1}, "max_duration key_file"},
	} {
		var paths []string
		c.config.Check(func(path, problem string) { paths = append(paths, path) })
		if got := strings.Join(paths, " "); got != c.want {
			t.Errorf("%+v: problems at %q, want %q", c.config, got, c.want)
		}
	}
}

// What leaves in a session token can be read by nobody without the key.
func TestT07SessionTokenIsSealed(t *testing.T) {
	w := start(t, func(c *identity.Config) { c.CarryToken = true })
	session := w.session(map[string]any{"canary": "CANARYCANARYCANARY"})
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(session.SessionToken, "sluice1_"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"CANARY", "dev@acme.com", session.SecretAccessKey, session.AccessKeyID} {
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("%q is legible", secret)
		}
	}
	if again := w.session(map[string]any{"canary": "CANARYCANARYCANARY"}); again.AccessKeyID == session.AccessKeyID || again.SecretAccessKey == session.SecretAccessKey {
		t.Error("two sessions share their keys")
	}
}

// sum is the SHA-256 of a body, as clients write it.
func sum(body string) string {
	s := sha256.Sum256([]byte(body))
	return hex.EncodeToString(s[:])
}

// All requests of a session share one identity, however many come first.
func TestSessionInParallel(t *testing.T) {
	w := start(t)
	session := w.session(nil)
	var group sync.WaitGroup
	ids := make([][2]*identity.Identity, 16)
	for i := range ids {
		signed := w.signed(session, "GET", fmt.Sprintf("http://s3.example.com/b/%d?prefix=%d", i, i), "", "")
		presigned := w.presigned(session, "GET", fmt.Sprintf("http://s3.example.com/b/%d", i), time.Minute)
		group.Go(func() {
			for j, r := range []*http.Request{signed, presigned} {
				if proof, err := w.Authenticate(r); err != nil {
					t.Error(err)
				} else {
					ids[i][j] = proof.Identity
				}
			}
		})
	}
	group.Wait()
	for i := range ids {
		if ids[i] != ids[0] {
			t.Error("one session has several identities")
		}
	}
}
