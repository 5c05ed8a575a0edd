package signer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/signer"
)

// T07: an STS that repeats all it was sent in its errors, and every other way to fail, gives no secret away.
func TestT07ErrorsHoldNoSecrets(t *testing.T) {
	const jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeS1jYW5hcnk"
	s := newSTS(t)
	secrets := []string{baseSecret, "token-canary", "session-token-canary", "minted-secret-canary", "claim-canary", jwt, jwt[:30], "signature-canary"}
	p := func() *signer.Principal {
		p := s.workspace("w")
		p.Token = jwt
		p.Claims["odd"] = "claim-canary {}"
		return p
	}
	logged := func(v any) string {
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v)
		return b.String()
	}
	seen := 0
	check := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: no error", what)
			return
		}
		seen++
		text := fmt.Sprintf("%v %+v %#v %s", err, err, err, hint(err)) + logged(err)
		for e := err; e != nil; e = errors.Unwrap(e) {
			text += fmt.Sprintf(" %v %+v %#v", e, e, e)
		}
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s: %q is in %.300s", what, secret, text)
			}
		}
	}

	for _, code := range []string{"AccessDenied", "SignatureDoesNotMatch", "InvalidClientTokenId", "ExpiredTokenException", "InvalidIdentityToken",
		"ValidationError", "MalformedPolicyDocument", "Whatever", "Throttling", "InternalFailure"} {
		echo := func(form url.Values) (int, string, string) {
			msg := fmt.Sprintf("you sent %v, in part %.40s, escaped %s, with session %s", form, form.Get("WebIdentityToken"), form.Encode(),
				sessionToken(baseKey)+strings.Repeat("x", 80))
			if form.Get("Action") == "AssumeRole" {
				msg += " signed with " + baseSecret
			}
			return 400, code, msg
		}
		s.refusing(echo)
		assume := s.signer(t, s.assume(t), signer.Options{})
		web := newSigner(t, signer.Config{WebIdentity: &signer.WebIdentity{RoleARN: role, STSEndpoint: s.URL}}, signer.Options{Now: s.clock.Now})
		for name, sig := range map[string]*signer.Signer{"assume_role": assume, "web_identity": web} {
			check(name+" "+code, sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p()}))
			check(name+" test "+code, sig.Test(context.Background(), signer.As{Principal: p()}))
		}
	}
	s.refusing(nil)

	c := s.assume(t)
	c.SessionTags = map[string]string{"a": "{{.Claims.odd}}", "b": "{{index .Claims.odd 100}}"}
	check("claim in a tag", s.signer(t, c, signer.Options{}).Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p()}))
	c = s.assume(t)
	c.SessionTags = map[string]string{"b": "{{index .Claims.odd 100}}"}
	check("template that fails", s.signer(t, c, signer.Options{}).Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p()}))

	down := s.assume(t)
	down.STSEndpoint = "http://127.0.0.1:1"
	check("unreachable", s.signer(t, down, signer.Options{}).Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p()}))

	t.Setenv("SLUICE_TEST_SECRET", baseSecret+" with a space")
	_, err := signer.New(context.Background(), signer.Config{AssumeRole: &signer.AssumeRole{RoleARN: role,
		Base: &signer.Static{AccessKeyIDEnv: "SLUICE_TEST_ID", SecretAccessKeyEnv: "SLUICE_TEST_SECRET"}}}, signer.Options{})
	check("odd secret", err)

	who := p()
	for _, v := range []any{who, signer.As{Principal: who}, static(t, "AKID", baseSecret, "session-token-canary", "", time.Now)} {
		text := fmt.Sprintf("%v %+v %#v %s", v, v, v, v)
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%q is in %s", secret, text)
			}
		}
	}
	if seen < 40 {
		t.Errorf("only %d errors seen", seen)
	}
}

// T07: the client's own session token never goes on to the backend, whichever credentials are used.
func TestT07ClientsTokenIsReplaced(t *testing.T) {
	s := newSTS(t)
	for name, sig := range map[string]*signer.Signer{
		"static":      static(t, "AKID", "secret", "", "", time.Now),
		"assume_role": s.signer(t, s.assume(t), signer.Options{}),
	} {
		req := get(t)
		req.Header["X-Amz-Security-Token"] = []string{"client-canary", "client-canary"}
		req.Header.Set("Authorization", "Bearer client-canary")
		if err := sig.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", signer.As{Principal: s.workspace("w")}); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(fmt.Sprint(req.Header), "client-canary") {
			t.Errorf("%s: %v", name, req.Header)
		}
	}
}

// T19: what a claim holds arrives as it is or is refused; it is never read as a template, a wildcard or a policy.
func TestT19ClaimsAreData(t *testing.T) {
	for name, c := range map[string]struct {
		claim any
		want  string // "" = refused
	}{
		"plain":          {"web", "web"},
		"path":           {"a/b.c:d=e+f@g-h_i", "a/b.c:d=e+f@g-h_i"},
		"dots":           {"../..", "../.."},
		"unicode":        {"üñï 漢", "üñï 漢"},
		"number":         {42, "42"},
		"template":       {"{{.Subject}}", ""},
		"wildcard":       {"*", ""},
		"question mark":  {"a?", ""},
		"policy":         {`"],"Effect":"Allow","Resource":"*`, ""},
		"variable":       {"${aws:username}", ""},
		"ampersand":      {"a&Tags.member.2.Key=admin", ""},
		"line break":     {"a\nb", ""},
		"control":        {"a\x00", ""},
		"not UTF-8":      {"a\xff", ""},
		"empty":          {"", ""},
		"null":           {nil, ""},
		"256 characters": {strings.Repeat("ü", 256), strings.Repeat("ü", 256)},
		"257 characters": {strings.Repeat("x", 257), ""},
		"8 KiB":          {strings.Repeat("x", 8192), ""},
		"list":           {[]any{"a", "b"}, ""},
		"nested":         {map[string]any{"a": map[string]any{"b": "c"}}, ""},
		"no value":       {"<no value>", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSTS(t)
			conf := s.assume(t)
			conf.SessionTags = map[string]string{"project": "{{.Claims.project_id}}"}
			sig := s.signer(t, conf, signer.Options{})
			p := s.workspace("w")
			p.Claims["project_id"] = c.claim
			err := sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p})
			if c.want == "" {
				wantKind(t, err, signer.Denied)
				if s.count() != 0 {
					t.Errorf("STS was asked: %v", s.last())
				}
				return
			}
			if err != nil {
				t.Fatal(err, unwrap(err))
			}
			if got := s.last(); got.Get("Tags.member.1.Value") != c.want || got.Has("Tags.member.2.Key") {
				t.Errorf("tags %v, want %q", got, c.want)
			}
		})
	}
}

// T19: an identity without the claim is refused, not tagged with nothing.
func TestT19MissingClaimIsRefused(t *testing.T) {
	for _, text := range []string{"{{.Claims.project_id}}", "{{.Claims.a.b}}", "x-{{.Claims.project_id}}", "{{.Attributes.project}}", "{{with .Claims}}{{.project_id}}{{end}}",
		"{{.Claims.project_id.deeper}}", "{{if .Claims.nothing}}aa{{end}}", "{{if .Claims.nothing}}aa{{else}}bb{{end}}", `{{index .Claims "nothing"}}`} {
		for _, field := range []string{"tag", "source identity"} {
			s := newSTS(t)
			conf := s.assume(t)
			if field == "tag" {
				conf.SessionTags = map[string]string{"project": text}
			} else {
				conf.SourceIdentity = text
			}
			sig := s.signer(t, conf, signer.Options{})
			p := s.workspace("w")
			p.Claims, p.Attributes = map[string]any{"a": map[string]any{}}, map[string]any{"project": ""}
			err := sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p})
			wantKind(t, err, signer.Denied)
			if !strings.Contains(err.Error(), field) {
				t.Errorf("%s %s: the message does not say what is missing: %v", field, text, err)
			}
			if s.count() != 0 {
				t.Errorf("%s %s: STS was asked: %v", field, text, s.last())
			}
		}
	}
}

// The subjects of most issuers have characters that AWS does not take in a source identity. They act all the same, each
// under a name of its own, and none can take another's.
func TestT19SourceIdentitiesDoNotFallTogether(t *testing.T) {
	s := newSTS(t)
	conf := s.assume(t)
	conf.SourceIdentity = "{{.Subject}}"
	sig := s.signer(t, conf, signer.Options{})
	named := map[string]string{}
	name := func(subject string) string {
		p := s.workspace("w")
		p.Subject = subject
		if err := sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p}); err != nil {
			t.Fatalf("%q: %v", subject, err)
		}
		got := s.last().Get("SourceIdentity")
		if !regexp.MustCompile(`^[\w+=,.@-]{2,64}$`).MatchString(got) {
			t.Errorf("%q: AWS does not take %q", subject, got)
		}
		if other, ok := named[got]; ok {
			t.Errorf("%q and %q are both %q", subject, other, got)
		}
		named[got] = subject
		return got
	}
	if got := name("dev@acme.com"); got != "dev@acme.com" {
		t.Errorf("what AWS takes is %q", got)
	}
	mended := name("environment/env-1")
	if !strings.HasPrefix(mended, "environment_env-1=") {
		t.Errorf("the name is not readable: %q", mended)
	}
	for _, subject := range []string{"environment:env-1", "environment_env-1", mended, "a", "aws:x", strings.Repeat("s", 65), strings.Repeat("s", 66), "wéb", "repo:acme/web:ref:refs/heads/main"} {
		name(subject)
	}
}

// T22: whatever makes two requests another session to AWS makes them another session here.
func TestT22SessionsAreNotShared(t *testing.T) {
	s := newSTS(t)
	conf := s.assume(t)
	conf.SessionTags = map[string]string{"project": "{{.Claims.project_id}}"}
	conf.SourceIdentity = "{{.Claims.user}}"
	sig := s.signer(t, conf, signer.Options{})

	who := func(change func(*signer.Principal)) *signer.Principal {
		p := s.workspace("env-42") // a name that STS takes as it is: it must not be what makes the difference
		p.Claims["user"] = "dev"
		if change != nil {
			change(p)
		}
		return p
	}
	cases := map[string]signer.As{
		"as it is":       {Principal: who(nil)},
		"issuer":         {Principal: who(func(p *signer.Principal) { p.Issuer += "/2" })},
		"subject":        {Principal: who(func(p *signer.Principal) { p.Subject += "2" })},
		"session":        {Principal: who(func(p *signer.Principal) { p.Session += "2" })},
		"tag":            {Principal: who(func(p *signer.Principal) { p.Claims["project_id"] = "api" })},
		"source":         {Principal: who(func(p *signer.Principal) { p.Claims["user"] = "ops" })},
		"shifted":        {Principal: who(func(p *signer.Principal) { p.Issuer, p.Subject = p.Issuer+p.Subject[:1], p.Subject[1:] })},
		"role":           {Principal: who(nil), Role: otherRole},
		"session policy": {Principal: who(nil), SessionPolicy: `{"Version":"2012-10-17"}`},
		"other policy":   {Principal: who(nil), SessionPolicy: `{"Version":"2012-10-17" }`},
		"both":           {Principal: who(nil), Role: otherRole, SessionPolicy: `{"Version":"2012-10-17"}`},
	}
	keys := map[string]string{}
	for name, as := range cases {
		got := accessKey(t, sig, as)
		if other, ok := keys[got]; ok {
			t.Errorf("%q and %q share session %s", name, other, got)
		}
		keys[got] = name
	}
	for name, as := range cases {
		if got := accessKey(t, sig, as); keys[got] != name {
			t.Errorf("%q signed with the session of %q", name, keys[got])
		}
		again := as
		p := as.Principal
		again.Principal = &signer.Principal{Issuer: p.Issuer, Subject: p.Subject, Session: p.Session, Claims: p.Claims, Expires: p.Expires.Add(time.Minute)}
		if got := accessKey(t, sig, again); keys[got] != name {
			t.Errorf("%q with a newer token does not share its own session", name)
		}
	}
	if n := s.count(); n != len(cases) {
		t.Errorf("%d calls for %d sessions", n, len(cases))
	}

	// External IDs are a Signer's own.
	other := s.assume(t)
	other.ExternalID = "ext"
	if got := accessKey(t, s.signer(t, other, signer.Options{}), signer.As{Principal: cases["as it is"].Principal}); keys[got] != "" {
		t.Errorf("two backends share session %s", got)
	}
}

// T22: what policy says now is what is used now, whatever is kept.
func TestT22NewPolicyNewSession(t *testing.T) {
	s := newSTS(t)
	sig := s.signer(t, s.assume(t), signer.Options{})
	p := s.workspace("w")
	wide := accessKey(t, sig, signer.As{Principal: p})
	narrow := accessKey(t, sig, signer.As{Principal: p, SessionPolicy: `{"Statement":[]}`})
	if s.last().Get("Policy") != `{"Statement":[]}` || wide == narrow {
		t.Errorf("narrowed policy: session %s, then %s, asked with %q", wide, narrow, s.last().Get("Policy"))
	}
	moved := accessKey(t, sig, signer.As{Principal: p, Role: otherRole})
	if s.last().Get("RoleArn") != otherRole || moved == wide || moved == narrow {
		t.Errorf("other role: session %s, asked for %s", moved, s.last().Get("RoleArn"))
	}
}

// T22: a session that expires while parts are uploaded signs no further part; neither does any for an identity that did.
func TestT22ExpiryDuringUpload(t *testing.T) {
	s := newSTS(t)
	sig := s.signer(t, s.assume(t), signer.Options{})
	p := s.workspace("w")
	p.Expires = s.clock.Now().Add(90 * time.Minute)
	part := func(n int) (*http.Request, error) {
		req, _ := http.NewRequest("PUT", fmt.Sprintf("https://s3.example/b/k?partNumber=%d&uploadId=u", n), strings.NewReader("part"))
		return req, sig.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", signer.As{Principal: p})
	}
	first, err := part(1)
	if err != nil {
		t.Fatal(err)
	}
	before := first.Header.Clone()

	s.clock.Add(61 * time.Minute)
	second, err := part(2)
	if err != nil {
		t.Fatal(err)
	}
	if keyOf(second) != "ASIA000002" {
		t.Errorf("part 2 signed as %s, after %s had expired", keyOf(second), keyOf(first))
	}
	if fmt.Sprint(first.Header) != fmt.Sprint(before) {
		t.Error("the part under way was changed")
	}

	s.clock.Add(29 * time.Minute)
	third, err := part(3)
	wantKind(t, err, signer.Expired)
	if third.Header.Get("Authorization") != "" {
		t.Error("a refused part has a signature")
	}
}

// T23: many kinds of request at once, through Signers that share principals, each signed as if it were alone.
func TestT23SigningIsStateless(t *testing.T) {
	s := newSTS(t)
	conf := s.assume(t)
	conf.SessionTags = map[string]string{"project": "{{.Claims.project_id}}"}
	done := make(refreshes, 10000)
	signers := []*signer.Signer{s.signer(t, conf, signer.Options{OnRefresh: done.hook}), s.signer(t, s.assume(t), signer.Options{MaxSessions: 10})}
	var people []*signer.Principal
	for i := range 5 {
		p := s.workspace(fmt.Sprint("w", i))
		p.Expires = s.clock.Now().Add(100 * time.Hour)
		people = append(people, p)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 60 {
				if g == 0 && i%20 == 10 {
					s.clock.Add(50 * time.Minute)
				}
				as := signer.As{Principal: people[(g+i)%len(people)]}
				if i%3 == 0 {
					as.Role = otherRole
				}
				if i%5 == 0 {
					as.SessionPolicy = `{"Statement":[]}`
				}
				req, _ := http.NewRequest([]string{"GET", "PUT", "DELETE"}[i%3], fmt.Sprintf("https://b.s3.example/k%d?x=%d", g, i), nil)
				req.Header.Set("X-Amz-Meta-G", fmt.Sprint(g, i))
				err := signers[i%2].Sign(context.Background(), req, "UNSIGNED-PAYLOAD", as)
				if err != nil && strings.Contains(err.Error(), "have expired already") {
					continue // the clock leapt twice while STS was asked
				}
				if err != nil {
					t.Error(err, unwrap(err))
					return
				}
				s.mu.Lock()
				secret := s.minted[keyOf(req)]
				s.mu.Unlock()
				if got := req.Header.Get("X-Amz-Security-Token"); got != sessionToken(keyOf(req)) {
					t.Errorf("key %s with token %s", keyOf(req), got)
				}
				head := []string{req.Method + " " + req.URL.RequestURI() + " HTTP/1.1", "Host: " + req.Host}
				for name, values := range req.Header {
					for _, v := range values {
						head = append(head, name+": "+v)
					}
				}
				if err := (&wireVerifier{secret: secret}).verify(head); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
}
