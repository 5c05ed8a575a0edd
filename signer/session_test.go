package signer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/signer"
)

func TestAssumeRoleAsksForTheIdentity(t *testing.T) {
	s := newSTS(t)
	c := s.assume(t)
	c.ExternalID = "ext-1"
	c.Duration = 30 * time.Minute
	c.SessionTags = map[string]string{"project": "{{.Claims.project_id}}", "who": "{{.Subject}}", "fixed": "x"}
	c.SourceIdentity = "{{.Session}}"
	sig := s.signer(t, c, signer.Options{})

	const policy = `{"Version":"2012-10-17","Statement":[]}`
	req := get(t)
	if err := sig.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", signer.As{Principal: s.workspace("env-42"), Role: otherRole, SessionPolicy: policy}); err != nil {
		t.Fatal(err, unwrap(err))
	}
	if keyOf(req) != "ASIA000001" || req.Header.Get("X-Amz-Security-Token") != sessionToken("ASIA000001") {
		t.Errorf("signed as %s with token %q", keyOf(req), req.Header.Get("X-Amz-Security-Token"))
	}
	want := url.Values{"Action": {"AssumeRole"}, "Version": {"2011-06-15"}, "RoleArn": {otherRole}, "RoleSessionName": {"env-42"},
		"DurationSeconds": {"1800"}, "ExternalId": {"ext-1"}, "Policy": {policy}, "SourceIdentity": {"env-42"},
		"Tags.member.1.Key": {"fixed"}, "Tags.member.1.Value": {"x"},
		"Tags.member.2.Key": {"project"}, "Tags.member.2.Value": {"web"},
		"Tags.member.3.Key": {"who"}, "Tags.member.3.Value": {"sub:env-42"}}
	if got := s.last(); got.Encode() != want.Encode() {
		t.Errorf("asked STS for\n%v\nwant\n%v", got, want)
	}
}

func TestWebIdentityPassesTheToken(t *testing.T) {
	s := newSTS(t)
	sig := newSigner(t, signer.Config{WebIdentity: &signer.WebIdentity{RoleARN: role, STSEndpoint: s.URL}}, signer.Options{Now: s.clock.Now})
	p := s.workspace("env-42")
	if got := accessKey(t, sig, signer.As{Principal: p}); got != "ASIA000001" {
		t.Errorf("signed as %s", got)
	}
	want := url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {role},
		"RoleSessionName": {"env-42"}, "DurationSeconds": {"3600"}, "WebIdentityToken": {p.Token}}
	if got := s.last(); got.Encode() != want.Encode() {
		t.Errorf("asked STS for\n%v\nwant\n%v", got, want)
	}

	renewed := s.workspace("env-42")
	renewed.Token += "-2"
	if got := accessKey(t, sig, signer.As{Principal: renewed}); got != "ASIA000002" {
		t.Errorf("a new token signed as %s, with the session of the old one", got)
	}
	other := signer.As{Principal: p, Role: otherRole}
	wantKind(t, sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", other), signer.RoleNotAllowed)
	wider := newSigner(t, signer.Config{WebIdentity: &signer.WebIdentity{RoleARN: role, STSEndpoint: s.URL, Duration: 20 * time.Minute,
		AllowedRoles: []string{"arn:aws:iam::123456789012:role/sluice-*"}}}, signer.Options{Now: s.clock.Now})
	accessKey(t, wider, other)
	if got := s.last(); got.Get("RoleArn") != otherRole || got.Get("DurationSeconds") != "1200" {
		t.Errorf("asked STS for %v", got)
	}
	none := s.workspace("env-42")
	none.Token = ""
	wantKind(t, sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: none}), signer.NoToken)
}

func TestDefaultChain(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDCHAIN")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_SESSION_TOKEN", "token")
	sig := newSigner(t, signer.Config{DefaultChain: &signer.DefaultChain{}}, signer.Options{})
	if got := accessKey(t, sig, forever()); got != "AKIDCHAIN" {
		t.Errorf("signed as %s", got)
	}
	if got := accessKey(t, sig, forever()); got != "AKIDCHAIN" || sig.Stats() != (signer.Stats{Sessions: 1, Refreshes: 1}) {
		t.Errorf("signed as %s, %+v", got, sig.Stats())
	}
}

// The chain's credentials that expire are asked for again before they do, past the SDK's own cache.
func TestDefaultChainRenews(t *testing.T) {
	clock := newClock()
	n := 0
	container := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n++
		json.NewEncoder(w).Encode(map[string]any{"AccessKeyId": fmt.Sprintf("ASIACHAIN%d", n), "SecretAccessKey": "s", "Token": "t",
			"Expiration": clock.Now().Add(time.Hour).Format(time.RFC3339)})
	})
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", container)
	done := make(refreshes, 10)
	sig := newSigner(t, signer.Config{DefaultChain: &signer.DefaultChain{}}, signer.Options{Now: clock.Now, OnRefresh: done.hook})
	if got := accessKey(t, sig, forever()); got != "ASIACHAIN1" {
		t.Errorf("signed as %s", got)
	}
	<-done
	clock.Add(50 * time.Minute)
	if got := accessKey(t, sig, forever()); got != "ASIACHAIN1" {
		t.Errorf("signed as %s while the old key was good", got)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := accessKey(t, sig, forever()); got != "ASIACHAIN2" {
		t.Errorf("signed as %s after renewal", got)
	}
}

// A bundle in the environment must neither break the calls nor be ignored.
func TestCABundleOfTheEnvironment(t *testing.T) {
	s := newSTS(t)
	c := s.assume(t)
	bundle := writeFile(t, "bundle.pem", somePEM)
	t.Setenv("AWS_CA_BUNDLE", bundle)
	sig := s.signer(t, c, signer.Options{})
	if got := accessKey(t, sig, signer.As{Principal: s.workspace("w")}); got != "ASIA000001" {
		t.Errorf("signed as %s", got)
	}
	web := newSigner(t, signer.Config{WebIdentity: &signer.WebIdentity{RoleARN: role, STSEndpoint: s.URL}}, signer.Options{Now: s.clock.Now})
	if got := accessKey(t, web, signer.As{Principal: s.workspace("w")}); got != "ASIA000002" {
		t.Errorf("signed as %s", got)
	}
	t.Setenv("AWS_CA_BUNDLE", bundle+".none")
	if _, err := signer.New(context.Background(), signer.Config{AssumeRole: c}, signer.Options{}); err == nil || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
		t.Errorf("a bundle that is not there: %v", err)
	}
}

func TestOneCallForAllWhoWait(t *testing.T) {
	s := newSTS(t)
	s.gate = make(chan struct{})
	sig := s.signer(t, s.assume(t), signer.Options{})
	p := s.workspace("w")

	// The first request starts the call and goes away while it is under way.
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error)
	go func() { gone <- sig.Sign(ctx, get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p}) }()
	<-s.arrived
	cancel()
	err := <-gone
	wantKind(t, err, signer.Unavailable)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled request ended with %v", unwrap(err))
	}

	var wg sync.WaitGroup
	var started sync.WaitGroup
	errs := make(chan error, 200)
	for range 200 {
		wg.Add(1)
		started.Add(1)
		go func() {
			defer wg.Done()
			req := get(t)
			started.Done()
			err := sig.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", signer.As{Principal: p})
			if err == nil && keyOf(req) != "ASIA000001" {
				err = fmt.Errorf("signed as %s", keyOf(req))
			}
			errs <- err
		}()
	}
	started.Wait()
	close(s.gate)
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err, unwrap(err))
		}
	}
	if n := s.count(); n != 1 {
		t.Errorf("%d calls of STS for 201 requests", n)
	}
}

func TestRenewedBeforeItExpires(t *testing.T) {
	s := newSTS(t)
	done := make(refreshes, 100)
	sig := s.signer(t, s.assume(t), signer.Options{OnRefresh: done.hook})
	p := s.workspace("w")
	p.Expires = s.clock.Now().Add(24 * time.Hour)
	as := signer.As{Principal: p}
	wantKey := func(when, want string) {
		t.Helper()
		if got := accessKey(t, sig, as); got != want {
			t.Errorf("%s: signed as %s, want %s", when, got, want)
		}
	}
	wantKey("at first", "ASIA000001")
	<-done
	s.clock.Add(35 * time.Minute)
	wantKey("after 35m", "ASIA000001")
	if n := s.count(); n != 1 {
		t.Errorf("%d calls after 35m", n)
	}

	// In the last quarter, requests go on with the old session while one call fetches the next.
	s.mu.Lock()
	s.gate = make(chan struct{})
	s.mu.Unlock()
	s.clock.Add(11 * time.Minute)
	for range 50 {
		wantKey("while renewing", "ASIA000001")
	}
	close(s.gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantKey("renewed", "ASIA000002")
	if n := s.count(); n != 2 {
		t.Errorf("%d calls after renewal", n)
	}

	// A failed renewal costs no request, and is tried again, ever more slowly.
	s.always(403, "AccessDenied", "not today")
	s.clock.Add(50 * time.Minute)
	wantKey("STS is down", "ASIA000002")
	if err := <-done; err == nil {
		t.Error("a failed renewal was not told")
	}
	n := s.count()
	s.clock.Add(900 * time.Millisecond)
	wantKey("backing off", "ASIA000002")
	s.clock.Add(1200 * time.Millisecond)
	wantKey("tried again", "ASIA000002")
	<-done
	if s.count() == n {
		t.Error("a failed renewal was not tried again")
	}
	n = s.count()
	s.clock.Add(1950 * time.Millisecond)
	wantKey("backing off longer", "ASIA000002")
	settle(t, s, sig)
	if s.count() != n+settling {
		t.Error("the second failure waited no longer than the first")
	}
	for range settling {
		<-done
	}

	// Down to the last second.
	s.clock.Add(9*time.Minute + 50*time.Second)
	wantKey("in the last seconds", "ASIA000002")
	<-done
	s.clock.Add(10 * time.Second)
	wantKind(t, sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", as), signer.Denied)
	<-done
	s.refusing(nil)
	s.clock.Add(2 * time.Second)
	if got := accessKey(t, sig, as); got <= "ASIA000002" {
		t.Errorf("STS is back: signed as %s", got)
	}
}

// Once nobody uses a session, nobody renews it.
func TestIdleSessionsAreNotRenewed(t *testing.T) {
	s := newSTS(t)
	done := make(refreshes, 100)
	sig := s.signer(t, s.assume(t), signer.Options{OnRefresh: done.hook})
	busy, idle := s.workspace("busy"), s.workspace("idle")
	busy.Expires = s.clock.Now().Add(10 * time.Hour)
	accessKey(t, sig, signer.As{Principal: busy})
	accessKey(t, sig, signer.As{Principal: idle})
	<-done
	<-done
	for range 5 {
		s.clock.Add(50 * time.Minute)
		accessKey(t, sig, signer.As{Principal: busy})
		<-done
	}
	for i, call := range s.calls[2:] {
		if call.Get("RoleSessionName") != "busy" {
			t.Errorf("call %d was for %s", i+2, call.Get("RoleSessionName"))
		}
	}
	// and it is forgotten
	accessKey(t, sig, signer.As{Principal: &signer.Principal{Session: "new", Expires: busy.Expires}})
	if n := sig.Stats().Sessions; n != 2 {
		t.Errorf("%d sessions kept, want busy and new", n)
	}
}

func TestFailureIsRememberedBriefly(t *testing.T) {
	s := newSTS(t)
	s.always(403, "AccessDenied", "User: arn:aws:iam::1:user/x is not authorized to perform: sts:AssumeRole on resource: y")
	sig := s.signer(t, s.assume(t), signer.Options{})
	as := signer.As{Principal: s.workspace("w")}
	for range 20 {
		wantKind(t, sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", as), signer.Denied)
		s.clock.Add(40 * time.Millisecond)
	}
	if n := s.count(); n != 1 {
		t.Errorf("%d calls within a second", n)
	}
	s.refusing(nil)
	s.clock.Add(1300 * time.Millisecond)
	if got := accessKey(t, sig, as); got != "ASIA000002" {
		t.Errorf("mended, and signed as %s", got)
	}
}

// A session is asked for as long as the identity lives, but for STS's least, and used no longer than that.
func TestSessionsEndWithTheIdentity(t *testing.T) {
	for _, c := range []struct {
		left, duration time.Duration
		asked          string
	}{
		{3 * time.Hour, 0, "3600"},
		{3 * time.Hour, 2 * time.Hour, "7200"},
		{20 * time.Minute, 0, "1200"},
		{20*time.Minute + time.Millisecond, 0, "1201"},
		{time.Minute, 0, "900"},
	} {
		t.Run(fmt.Sprint(c.left, c.duration), func(t *testing.T) {
			s := newSTS(t)
			done := make(refreshes, 100)
			conf := s.assume(t)
			conf.Duration = c.duration
			sig := s.signer(t, conf, signer.Options{OnRefresh: done.hook})
			p := s.workspace("w")
			p.Expires = s.clock.Now().Add(c.left)
			accessKey(t, sig, signer.As{Principal: p})
			<-done
			if got := s.last().Get("DurationSeconds"); got != c.asked {
				t.Errorf("asked for %s s, want %s", got, c.asked)
			}
			if c.left < time.Hour {
				s.clock.Add(c.left - time.Millisecond)
				accessKey(t, sig, signer.As{Principal: p})
				settle(t, s, sig)
				if n := s.count(); n != 1+settling {
					t.Errorf("%d calls: what could the second bring?", n-settling)
				}
				s.clock.Add(time.Millisecond)
				wantKind(t, sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p}), signer.Expired)
			}
		})
	}

	// An STS that gives more than was asked for changes nothing.
	s := newSTS(t)
	s.lifetime = 100 * time.Hour
	sig := s.signer(t, s.assume(t), signer.Options{})
	p := s.workspace("w")
	p.Expires = s.clock.Now().Add(50 * time.Hour)
	accessKey(t, sig, signer.As{Principal: p})
	s.clock.Add(time.Hour)
	if got := accessKey(t, sig, signer.As{Principal: p}); got != "ASIA000002" {
		t.Errorf("after the hour asked for: signed as %s", got)
	}
}

// The identity may expire while its request waits for STS.
func TestIdentityThatExpiresWhileWaiting(t *testing.T) {
	s := newSTS(t)
	s.gate = make(chan struct{})
	sig := s.signer(t, s.assume(t), signer.Options{})
	p := s.workspace("w")
	p.Expires = s.clock.Now().Add(5 * time.Minute) // the session that comes is good for 15
	ended := make(chan error)
	go func() { ended <- sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p}) }()
	<-s.arrived
	s.clock.Add(5 * time.Minute)
	close(s.gate)
	wantKind(t, <-ended, signer.Expired)
}

func TestCredentialsThatHaveExpiredAlready(t *testing.T) {
	s := newSTS(t)
	s.lifetime = -time.Minute
	sig := s.signer(t, s.assume(t), signer.Options{})
	err := sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: s.workspace("w")})
	wantKind(t, err, signer.Unavailable)
	if !strings.Contains(hint(err), "clocks") {
		t.Errorf("hint %q", hint(err))
	}
}

func TestSessionsAreBounded(t *testing.T) {
	s := newSTS(t)
	sig := s.signer(t, s.assume(t), signer.Options{MaxSessions: 8})
	hot := s.workspace("hot")
	key := accessKey(t, sig, signer.As{Principal: hot})
	for i := range 40 {
		s.clock.Add(2 * time.Second)
		accessKey(t, sig, signer.As{Principal: s.workspace(fmt.Sprint("w", i))})
		if got := accessKey(t, sig, signer.As{Principal: hot}); got != key {
			t.Fatalf("the session in use was let go after %d others", i)
		}
		if n := sig.Stats().Sessions; n > 8 {
			t.Fatalf("%d sessions kept", n)
		}
	}
	if got := sig.Stats(); got.Refreshes != 41 || got.Failures != 0 {
		t.Errorf("%+v", got)
	}
}

func TestSessionNames(t *testing.T) {
	s := newSTS(t)
	sig := s.signer(t, s.assume(t), signer.Options{})
	name := func(p *signer.Principal) string {
		p.Expires = s.clock.Now().Add(time.Hour)
		accessKey(t, sig, signer.As{Principal: p})
		return s.last().Get("RoleSessionName")
	}
	for session, want := range map[string]string{
		"env-42":                "env-42",
		"dev+x=a,b.c@acme_1":    "dev+x=a,b.c@acme_1",
		strings.Repeat("n", 64): strings.Repeat("n", 64),
	} {
		if got := name(&signer.Principal{Session: session}); got != want {
			t.Errorf("session %q is named %q", session, got)
		}
	}
	seen := map[string]string{}
	long := strings.Repeat("project/", 20)
	crafted := name(&signer.Principal{Session: "a/b"})
	for _, session := range []string{"a/b", "a:b", "a b", "a_b", "x", "ü", long + "1", long + "2", strings.Repeat("n", 65), strings.Repeat("n", 66),
		"a\nb", "a\x00b", "\xff", crafted} {
		got := name(&signer.Principal{Session: session})
		if len(got) < 2 || len(got) > 64 || strings.ContainsFunc(got, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+=,.@-", r)
		}) {
			t.Errorf("session %q is named %q, which STS does not take", session, got)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("sessions %q and %q are both named %q", session, other, got)
		}
		seen[got] = session
	}
	if a, b := name(&signer.Principal{Issuer: "i", Session: "a/b"}), name(&signer.Principal{Issuer: "j", Session: "a/b"}); a == b {
		t.Errorf("two issuers' sessions are both named %q", a)
	}
	if got := name(&signer.Principal{Subject: "only-a-subject"}); got != "only-a-subject" {
		t.Errorf("no session: named %q", got)
	}
}

func TestRole(t *testing.T) {
	s := newSTS(t)
	c := s.assume(t)
	c.AllowedRoles = []string{"arn:aws:iam::123456789012:role/sluice-*", "arn:aws:iam::123456789012:role/team/r?", "arn:aws:iam::999999999999:role/one"}
	sig := s.signer(t, c, signer.Options{})
	for in, want := range map[string]string{
		"":                                       role,
		role:                                     role,
		otherRole:                                otherRole,
		otherRole + "/admin":                     "",
		"arn:aws:iam::123456789012:role/team/r1": "arn:aws:iam::123456789012:role/team/r1",
		"arn:aws:iam::123456789012:role/team/r12":            "",
		"arn:aws:iam::123456789012:role/team/r/":             "",
		"arn:aws:iam::999999999999:role/one":                 "arn:aws:iam::999999999999:role/one",
		"arn:aws:iam::999999999999:role/sluice-x":            "",
		"arn:aws:iam::123456789012:role/sluice-x:y":          "",
		"arn:aws:iam::123456789012:role/sluice-x\n":          "",
		"arn:aws:iam::123456789012:role/sluice-*":            "",
		"arn:aws:iam::123456789012:role/Sluice-x":            "",
		"xarn:aws:iam::123456789012:role/sluice-x":           "",
		"arn:aws:iam::123456789012:user/sluice-x":            "",
		"arn:aws:sts::123456789012:assumed-role/sluice-x/ab": "",
		"sluice-x": "",
	} {
		got, err := sig.Role(signer.As{Role: in})
		if got != want || (err == nil) != (want != "") {
			t.Errorf("role %q: %q, %v; want %q", in, got, err, want)
		}
		if err != nil {
			wantKind(t, err, signer.RoleNotAllowed)
			wantKind(t, sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: s.workspace("w"), Role: in}), signer.RoleNotAllowed)
		}
	}
	if s.count() != 0 {
		t.Error("STS was asked")
	}
	if got, want := fmt.Sprint(sig.Roles()), fmt.Sprint([]string{role, "arn:aws:iam::999999999999:role/one"}); got != want {
		t.Errorf("Roles() = %s, want %s", got, want)
	}
}

// A backend that knows no roles must not leave out what policy asked for.
func TestFixedCredentialsCannotNarrow(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDCHAIN")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	for name, sig := range map[string]*signer.Signer{
		"static":        static(t, "AKID", "secret", "", "", time.Now),
		"default_chain": newSigner(t, signer.Config{DefaultChain: &signer.DefaultChain{}}, signer.Options{}),
	} {
		if got, err := sig.Role(signer.As{}); got != "" || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		p := forever().Principal
		for _, as := range []signer.As{{Principal: p, Role: role}, {Principal: p, SessionPolicy: "{}"}} {
			_, err := sig.Role(as)
			wantKind(t, err, signer.RoleNotAllowed)
			wantKind(t, sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", as), signer.RoleNotAllowed)
		}
	}
}

func TestNobodyIsSignedFor(t *testing.T) {
	s := newSTS(t)
	for name, sig := range map[string]*signer.Signer{
		"static":      static(t, "AKID", "secret", "", "", time.Now),
		"assume_role": s.signer(t, s.assume(t), signer.Options{}),
	} {
		for who, as := range map[string]signer.As{"nobody": {}, "zero": {Principal: &signer.Principal{}}} {
			if err := sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", as); err == nil {
				t.Errorf("%s signed for %s", name, who)
			}
		}
	}
}

// A reload ends a Signer's context while requests are still in flight.
func TestSignAfterContextEnds(t *testing.T) {
	s := newSTS(t)
	ctx, cancel := context.WithCancel(context.Background())
	sig, err := signer.New(ctx, signer.Config{AssumeRole: s.assume(t)}, signer.Options{Now: s.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	p := s.workspace("w")
	p.Expires = s.clock.Now().Add(5 * time.Hour)
	accessKey(t, sig, signer.As{Principal: p})
	s.clock.Add(50 * time.Minute)
	accessKey(t, sig, signer.As{Principal: p})
	if n := s.count(); n != 1 {
		t.Errorf("%d calls: renewed in the background after the end", n)
	}
}

// settle gives a call that should not have been begun in the background the time to arrive.
func settle(t testing.TB, s *stsServer, sig *signer.Signer) {
	for i := range settling {
		p := s.workspace(fmt.Sprint("settle-", i))
		p.Expires = s.clock.Now().Add(time.Hour)
		sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: p})
	}
}

const settling = 5

func kindOf(err error) signer.Kind {
	var e *signer.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

func hint(err error) string {
	var e *signer.Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

func wantKind(t testing.TB, err error, want signer.Kind) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want kind %d", want)
	}
	if kindOf(err) != want {
		t.Errorf("kind %d, want %d: %v (%v)", kindOf(err), want, err, unwrap(err))
	}
}

func BenchmarkSignAssumed(b *testing.B) {
	s := newSTS(b)
	c := s.assume(b)
	c.SessionTags = map[string]string{"project": "{{.Claims.project_id}}"}
	sig := s.signer(b, c, signer.Options{})
	as := signer.As{Principal: s.workspace("w")}
	req := benchRequest()
	ctx := context.Background()
	if err := sig.Sign(ctx, req, emptySum, as); err != nil {
		b.Fatal(err, unwrap(err))
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := sig.Sign(ctx, req, emptySum, as); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSignAssumedParallel(b *testing.B) {
	s := newSTS(b)
	sig := s.signer(b, s.assume(b), signer.Options{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		as := signer.As{Principal: s.workspace("w")}
		req := benchRequest()
		for pb.Next() {
			if err := sig.Sign(context.Background(), req, emptySum, as); err != nil {
				b.Fatal(err)
			}
		}
	})
}
