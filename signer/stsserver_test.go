package signer_test

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/signer"
)

// What this machine's environment says of AWS is none of the tests' business.
func TestMain(m *testing.M) {
	world.Main()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	os.Setenv("AWS_CONFIG_FILE", os.DevNull)
	os.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	os.Exit(m.Run())
}

const (
	baseKey    = "AKIDBASE"
	baseSecret = "base-secret-canary"
	role       = "arn:aws:iam::123456789012:role/sluice-default"
	otherRole  = "arn:aws:iam::123456789012:role/sluice-other"
)

// clock is a time that moves when it is told to.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now().UTC().Truncate(time.Second)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// stsServer is an STS: it checks the signature of every call with the SDK's own signer, and mints a session a call.
type stsServer struct {
	*httptest.Server
	clock *clock

	mu       sync.Mutex
	calls    []url.Values                                         // of AssumeRole…, in order
	minted   map[string]string                                    // access key → secret
	refuse   func(form url.Values) (status int, code, msg string) // status 0 = do not
	gate     chan struct{}                                        // where not nil, a call waits for it
	arrived  chan struct{}                                        // hears of each call
	lifetime time.Duration                                        // where not 0, whatever was asked for
}

func newSTS(t testing.TB) *stsServer {
	s := &stsServer{clock: newClock(), minted: map[string]string{baseKey: baseSecret}, arrived: make(chan struct{}, 10000)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *stsServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func (s *stsServer) last() url.Values {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[len(s.calls)-1]
}

func (s *stsServer) refusing(f func(form url.Values) (int, string, string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

func (s *stsServer) always(status int, code, msg string) {
	s.refusing(func(url.Values) (int, string, string) { return status, code, msg })
}

func (s *stsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("Version") != "2011-06-15" {
		s.error(w, 400, "ValidationError", "not a call of STS")
		return
	}
	action := form.Get("Action")
	who := ""
	if action != "AssumeRoleWithWebIdentity" {
		if who, err = s.verify(r, body); err != nil {
			s.error(w, 403, "SignatureDoesNotMatch", err.Error())
			return
		}
	} else if r.Header.Get("Authorization") != "" {
		s.error(w, 400, "ValidationError", "web identity calls are not signed")
		return
	}

	s.mu.Lock()
	gate, refuse := s.gate, s.refuse
	if action != "GetCallerIdentity" {
		s.calls = append(s.calls, form)
	}
	n := len(s.calls)
	s.mu.Unlock()
	select {
	case s.arrived <- struct{}{}:
	default:
	}
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
	}
	if refuse != nil {
		if status, code, msg := refuse(form); status != 0 {
			s.error(w, status, code, msg)
			return
		}
	}

	switch action {
	case "GetCallerIdentity":
		fmt.Fprintf(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/%s</Arn><UserId>U</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`, who)
	case "AssumeRole", "AssumeRoleWithWebIdentity":
		seconds, _ := strconv.Atoi(form.Get("DurationSeconds"))
		life := time.Duration(seconds) * time.Second
		s.mu.Lock()
		if s.lifetime != 0 {
			life = s.lifetime
		}
		id := fmt.Sprintf("ASIA%06d", n)
		secret := fmt.Sprintf("minted-secret-canary-%d", n)
		s.minted[id] = secret
		s.mu.Unlock()
		fmt.Fprintf(w, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult><Credentials><AccessKeyId>%[2]s</AccessKeyId><SecretAccessKey>%[3]s</SecretAccessKey><SessionToken>%[4]s</SessionToken><Expiration>%[5]s</Expiration></Credentials></%[1]sResult></%[1]sResponse>`,
			action, id, secret, sessionToken(id), s.clock.Now().Add(life).Format(time.RFC3339))
	default:
		s.error(w, 400, "InvalidAction", "no such action")
	}
}

func sessionToken(accessKey string) string { return "session-token-canary-" + accessKey + "==" }

func (s *stsServer) error(w http.ResponseWriter, status int, code, msg string) {
	var esc bytes.Buffer
	xml.EscapeText(&esc, []byte(msg))
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>r-1</RequestId></ErrorResponse>`, code, esc.String())
}

// verify signs again what the client says it signed, and compares.
func (s *stsServer) verify(r *http.Request, body []byte) (accessKey string, err error) {
	auth := r.Header.Get("Authorization")
	_, cred, _ := strings.Cut(auth, "Credential=")
	cred, _, _ = strings.Cut(cred, ",")
	scope := strings.Split(cred, "/")
	_, names, _ := strings.Cut(auth, "SignedHeaders=")
	names, _, _ = strings.Cut(names, ",")
	if len(scope) != 5 || names == "" {
		return "", fmt.Errorf("no signature in %q", auth)
	}
	s.mu.Lock()
	secret := s.minted[scope[0]]
	s.mu.Unlock()
	again := &http.Request{Method: r.Method, URL: &url.URL{Scheme: "http", Host: r.Host, Path: r.URL.Path, RawQuery: r.URL.RawQuery},
		Host: r.Host, Header: http.Header{}}
	creds := aws.Credentials{AccessKeyID: scope[0], SecretAccessKey: secret}
	for _, name := range strings.Split(names, ";") {
		switch name {
		case "host":
		case "content-length":
			again.ContentLength = r.ContentLength
		case "x-amz-security-token":
			creds.SessionToken = r.Header.Get(name)
			if creds.SessionToken != sessionToken(scope[0]) {
				return "", fmt.Errorf("no such session")
			}
		default:
			again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return "", err
	}
	if err := v4.NewSigner().SignHTTP(r.Context(), creds, again, sum(body), scope[3], scope[2], at); err != nil {
		return "", err
	}
	if strings.HasPrefix(scope[0], "ASIA") && creds.SessionToken == "" { // a session's key, which is one with its token alone
		return "", fmt.Errorf("no session token")
	}
	if again.Header.Get("Authorization") != auth {
		return "", fmt.Errorf("the canonical request was another; x-amz-security-token:%s", r.Header.Get("X-Amz-Security-Token"))
	}
	return scope[0], nil
}

// assume is a configuration that assumes roles at s.
func (s *stsServer) assume(t testing.TB) *signer.AssumeRole {
	t.Setenv("SLUICE_TEST_ID", baseKey)
	t.Setenv("SLUICE_TEST_SECRET", baseSecret)
	return &signer.AssumeRole{
		RoleARN:      role,
		AllowedRoles: []string{"arn:aws:iam::123456789012:role/sluice-*"},
		STSEndpoint:  s.URL,
		Base:         &signer.Static{AccessKeyIDEnv: "SLUICE_TEST_ID", SecretAccessKeyEnv: "SLUICE_TEST_SECRET"},
	}
}

// refreshes hears of calls that ended.
type refreshes chan error

func (r refreshes) hook(_ string, err error, _ time.Duration) { r <- err }

func (s *stsServer) signer(t testing.TB, c *signer.AssumeRole, o signer.Options) *signer.Signer {
	o.Now = s.clock.Now
	return newSigner(t, signer.Config{AssumeRole: c}, o)
}

func newSigner(t testing.TB, c signer.Config, o signer.Options) *signer.Signer {
	t.Helper()
	if o.Region == "" {
		o.Region = "eu-west-1"
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s, err := signer.New(ctx, c, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// workspace is an identity with a token good for an hour more.
func (s *stsServer) workspace(session string) *signer.Principal {
	return &signer.Principal{
		Issuer: "https://issuer.example", Subject: "sub:" + session, Session: session,
		Claims:     map[string]any{"project_id": "web"},
		Attributes: map[string]any{"project": "web"},
		Token:      "token-canary-of-" + session,
		Expires:    s.clock.Now().Add(time.Hour),
	}
}

func get(t testing.TB) *http.Request {
	t.Helper()
	req, err := http.NewRequest("GET", "https://bucket.s3.example/key", nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// accessKey signs a request and tells with which key.
func accessKey(t testing.TB, s *signer.Signer, as signer.As) string {
	t.Helper()
	req := get(t)
	if err := s.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", as); err != nil {
		t.Fatalf("sign: %v (%v)", err, unwrap(err))
	}
	return keyOf(req)
}

func keyOf(req *http.Request) string {
	_, cred, _ := strings.Cut(req.Header.Get("Authorization"), "Credential=")
	key, _, _ := strings.Cut(cred, "/")
	return key
}
