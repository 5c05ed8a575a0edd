package signer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/signer"
)

// What STS and the network can answer, as whom that concerns and what to do about it.
func TestRefusals(t *testing.T) {
	const (
		trust  = "User: arn:aws:iam::1:user/x is not authorized to perform: sts:AssumeRole on resource: " + role
		tags   = "User: arn:aws:iam::1:user/x is not authorized to perform: sts:TagSession on resource: " + role
		source = "User: arn:aws:iam::1:user/x is not authorized to perform: sts:SetSourceIdentity on resource: " + role
	)
	for _, c := range []struct {
		status        int
		code, message string
		kind          signer.Kind // for assume_role
		web           signer.Kind // for web_identity
		says, hints   string
	}{
		{403, "AccessDenied", trust, signer.Denied, signer.Denied, "AccessDenied on sts:AssumeRole", "trust policy"},
		{403, "AccessDenied", tags, signer.Denied, signer.Denied, "session tags", "sts:TagSession"},
		{403, "AccessDenied", source, signer.Denied, signer.Denied, "source identity", "sts:SetSourceIdentity"},
		{403, "AccessDenied", "no", signer.Denied, signer.Denied, "AccessDenied", "trust policy"},
		{400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.", signer.Denied, signer.Denied, "`duration`", "maximum session duration"},
		{400, "ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.", signer.Denied, signer.Denied, "`duration`", "1h"},
		{400, "ValidationError", "1 validation error detected: Value at 'externalId'", signer.Denied, signer.Denied, "ValidationError", "externalId"},
		{400, "PackedPolicyTooLarge", "Packed policy consumes 130% of allotted space", signer.Denied, signer.Denied, "too large", "session_policy"},
		{400, "MalformedPolicyDocument", "syntax errors in policy", signer.Denied, signer.Denied, "session_policy", "syntax errors"},
		{400, "ExpiredTokenException", "Token expired: current date/time must be before the expiration date/time", signer.Unavailable, signer.Expired, "", ""},
		{400, "ExpiredToken", "The security token included in the request is expired", signer.Unavailable, signer.Expired, "", ""},
		{400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account", signer.Denied, signer.Denied, "InvalidIdentityToken", "OIDC provider"},
		{403, "IDPRejectedClaim", "no", signer.Denied, signer.Denied, "IDPRejectedClaim", ""},
		{400, "IDPCommunicationError", "no", signer.Unavailable, signer.Unavailable, "issuer", "public"},
		{403, "InvalidClientTokenId", "The security token included in the request is invalid.", signer.Unavailable, signer.Unavailable, "own credentials", "renew"},
		{403, "SignatureDoesNotMatch", "The Canonical String was x-amz-security-token:canary", signer.Unavailable, signer.Unavailable, "own credentials", "clock"},
		{403, "RegionDisabledException", "STS is not activated in this region", signer.Unavailable, signer.Unavailable, "region", "activate"},
		{400, "Throttling", "Rate exceeded", signer.Unavailable, signer.Unavailable, "throttling", "docs/aws-setup.md"},
		{429, "TooManyRequestsException", "Rate exceeded", signer.Unavailable, signer.Unavailable, "throttling", ""},
		{503, "ServiceUnavailable", "", signer.Unavailable, signer.Unavailable, "try again", ""},
		{500, "InternalFailure", "", signer.Unavailable, signer.Unavailable, "try again", ""},
		{500, "Surprise", "", signer.Unavailable, signer.Unavailable, "try again", ""},
		{400, "Surprise", "something new", signer.Denied, signer.Denied, "Surprise", "something new"},
	} {
		t.Run(c.code, func(t *testing.T) {
			s := newSTS(t)
			s.always(c.status, c.code, c.message)
			for name, sig := range map[string]*signer.Signer{
				"assume_role": s.signer(t, s.assume(t), signer.Options{}),
				"web_identity": newSigner(t, signer.Config{WebIdentity: &signer.WebIdentity{RoleARN: role, STSEndpoint: s.URL}},
					signer.Options{Now: s.clock.Now}),
			} {
				want := c.kind
				if name == "web_identity" {
					want = c.web
				}
				err := sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: s.workspace("w")})
				wantKind(t, err, want)
				if !strings.Contains(err.Error(), c.says) || !strings.Contains(hint(err), c.hints) {
					t.Errorf("%s: says %q, hints %q; want %q, %q", name, err, hint(err), c.says, c.hints)
				}
				if unwrap(err) == nil || !strings.Contains(unwrap(err).Error(), c.code) || strings.Contains(unwrap(err).Error(), "canary") {
					t.Errorf("%s: logs have %v", name, unwrap(err))
				}
			}
		})
	}
}

func TestOddAnswersOfSTS(t *testing.T) {
	answer := func(credentials string) string {
		return `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>` + credentials + `</AssumeRoleResult></AssumeRoleResponse>`
	}
	s := newSTS(t)
	elsewhere := false
	far := serve(t, func(http.ResponseWriter, *http.Request) { elsewhere = true })
	for name, c := range map[string]struct {
		status int
		body   string
	}{
		"empty":          {200, ""},
		"not XML":        {200, "hello"},
		"html":           {404, "<html>not here</html>"},
		"redirect":       {302, ""},
		"see other":      {303, ""},
		"redirect 307":   {307, ""},
		"redirect 308":   {308, ""},
		"no credentials": {200, answer("")},
		"no expiry":      {200, answer("<Credentials><AccessKeyId>A</AccessKeyId><SecretAccessKey>s</SecretAccessKey></Credentials>")},
		"no secret":      {200, answer("<Credentials><AccessKeyId>A</AccessKeyId><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>")},
		"odd key": {200, answer("<Credentials><AccessKeyId>A\nX: y</AccessKeyId><SecretAccessKey>s</SecretAccessKey>" +
			"<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>")},
		"odd token": {200, answer("<Credentials><AccessKeyId>A</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>a b</SessionToken>" +
			"<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>")},
	} {
		t.Run(name, func(t *testing.T) {
			conf := s.assume(t)
			conf.STSEndpoint = serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", far)
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			})
			err := s.signer(t, conf, signer.Options{}).Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: s.workspace("w")})
			wantKind(t, err, signer.Unavailable)
			if hint(err) == "" {
				t.Errorf("no hint: %v", err)
			}
		})
	}
	if elsewhere {
		t.Error("a call for credentials followed a redirect")
	}
}

func TestBadSessionPolicyIsNotSent(t *testing.T) {
	s := newSTS(t)
	sig := s.signer(t, s.assume(t), signer.Options{})
	for _, policy := range []string{"{", "[]", "null", "null x", `"s"`, "{\"a\":\"\xff\"}", `{"a":"` + strings.Repeat("x", 2048) + `"}`, `{"a":"` + strings.Repeat("ü", 400) + `"}`} {
		err := sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: s.workspace("w"), SessionPolicy: policy})
		wantKind(t, err, signer.Denied)
	}
	if s.count() != 0 {
		t.Error("STS was asked")
	}

	// STS takes Latin-1 only; JSON can say the rest.
	const policy = `{"Resource":"arn:aws:s3:::b/漢字/ü/😀/*"}`
	accessKey(t, sig, signer.As{Principal: s.workspace("w"), SessionPolicy: policy})
	sent := s.last().Get("Policy")
	var got, want any
	if err := errors.Join(json.Unmarshal([]byte(sent), &got), json.Unmarshal([]byte(policy), &want)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("sent %s, %v", sent, err)
	}
	if !plain(sent) {
		t.Errorf("sent %s", sent)
	}
}

func TestNoBaseCredentials(t *testing.T) {
	s := newSTS(t)
	conf := s.assume(t)
	conf.Base = nil
	err := s.signer(t, conf, signer.Options{}).Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: s.workspace("w")})
	wantKind(t, err, signer.Unavailable)
	if !strings.Contains(err.Error(), "no AWS credentials of its own") || !strings.Contains(hint(err), "AWS_ACCESS_KEY_ID") {
		t.Errorf("%v, hint %q", err, hint(err))
	}

	// They may come later: nothing is remembered but the brief failure.
	t.Setenv("AWS_ACCESS_KEY_ID", baseKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", baseSecret)
	if got := accessKey(t, s.signer(t, conf, signer.Options{}), signer.As{Principal: s.workspace("w")}); got != "ASIA000001" {
		t.Errorf("signed as %s", got)
	}
}

// Without sts_endpoint, STS is where the SDK's own settings have it.
func TestEndpointOfTheEnvironment(t *testing.T) {
	s := newSTS(t)
	conf := s.assume(t)
	conf.STSEndpoint = ""
	t.Setenv("AWS_ENDPOINT_URL_STS", s.URL)
	if got := accessKey(t, s.signer(t, conf, signer.Options{}), signer.As{Principal: s.workspace("w")}); got != "ASIA000001" {
		t.Errorf("signed as %s", got)
	}
}

func TestOnRefreshAndStats(t *testing.T) {
	s := newSTS(t)
	type told struct {
		role string
		err  error
	}
	heard := make(chan told, 10)
	sig := s.signer(t, s.assume(t), signer.Options{OnRefresh: func(role string, err error, took time.Duration) {
		if took <= 0 {
			t.Errorf("took %s", took)
		}
		heard <- told{role, err}
	}})
	accessKey(t, sig, signer.As{Principal: s.workspace("w"), Role: otherRole})
	if got := <-heard; got.role != otherRole || got.err != nil {
		t.Errorf("told %+v", got)
	}
	s.always(403, "AccessDenied", "no")
	sig.Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", signer.As{Principal: s.workspace("w")})
	if got := <-heard; got.role != role || kindOf(got.err) != signer.Denied {
		t.Errorf("told %+v", got)
	}
	if got := sig.Stats(); got != (signer.Stats{Sessions: 2, Refreshes: 1, Failures: 1}) {
		t.Errorf("%+v", got)
	}
}

// The doctor names each thing that can be wrong with a role, and how to mend it.
func TestDoctor(t *testing.T) {
	for _, c := range []struct {
		name        string
		refuse      func(form url.Values) (int, string, string)
		conf        func(*signer.AssumeRole)
		kind        signer.Kind
		says, hints string
	}{
		{name: "all is well"},
		{name: "trust", refuse: func(f url.Values) (int, string, string) {
			if f.Get("Action") == "AssumeRole" {
				return 403, "AccessDenied", "no"
			}
			return 0, "", ""
		}, kind: signer.Denied, says: "does not let the proxy in", hints: "the proxy is arn:aws:iam::123456789012:user/AKIDBASE"},
		{name: "tags, by an STS that does not say", refuse: func(f url.Values) (int, string, string) {
			if f.Has("Tags.member.1.Key") {
				return 403, "AccessDenied", "no"
			}
			return 0, "", ""
		}, kind: signer.Denied, says: "session tags", hints: "sts:TagSession"},
		{name: "source identity, by an STS that does not say", refuse: func(f url.Values) (int, string, string) {
			if f.Has("SourceIdentity") {
				return 403, "AccessDenied", "no"
			}
			return 0, "", ""
		}, kind: signer.Denied, says: "source identity", hints: "sts:SetSourceIdentity"},
		{name: "duration", refuse: func(f url.Values) (int, string, string) {
			if f.Get("DurationSeconds") == "7200" {
				return 400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
			}
			return 0, "", ""
		}, conf: func(c *signer.AssumeRole) { c.Duration = 2 * time.Hour }, kind: signer.Denied, says: "`duration`", hints: "raise"},
		{name: "network", conf: func(c *signer.AssumeRole) { c.STSEndpoint = "http://127.0.0.1:1" }, kind: signer.Unavailable,
			says: "cannot be reached", hints: "ca_file"},
		{name: "own credentials", conf: func(c *signer.AssumeRole) { c.Base.SecretAccessKeyEnv = "SLUICE_TEST_ID" }, kind: signer.Unavailable,
			says: "own credentials", hints: "renew"},
		{name: "session that does not work", refuse: func(f url.Values) (int, string, string) {
			if f.Get("Action") == "GetCallerIdentity" {
				return 403, "InvalidClientTokenId", "no"
			}
			return 0, "", ""
		}, kind: signer.Unavailable, says: "does not accept it", hints: "clock"},
		{name: "an STS that only gives sessions", refuse: func(f url.Values) (int, string, string) {
			if f.Get("Action") == "GetCallerIdentity" {
				return 400, "InvalidAction", "no"
			}
			return 0, "", ""
		}},
	} {
		for who, principal := range map[string]func(*stsServer) *signer.Principal{
			"stand-in": func(*stsServer) *signer.Principal { return nil },
			"identity": func(s *stsServer) *signer.Principal { return s.workspace("w") },
		} {
			t.Run(c.name+" "+who, func(t *testing.T) {
				s := newSTS(t)
				s.refusing(c.refuse)
				conf := s.assume(t)
				conf.SessionTags = map[string]string{"project": "{{.Claims.project_id}}"}
				conf.SourceIdentity = "{{.Session}}-x"
				if c.conf != nil {
					c.conf(conf)
				}
				p := principal(s)
				if p != nil {
					p.Expires = s.clock.Now().Add(5 * time.Hour)
				}
				err := s.signer(t, conf, signer.Options{}).Test(context.Background(), signer.As{Principal: p})
				if c.kind == 0 {
					if err != nil {
						t.Errorf("%v, %q, %v", err, hint(err), unwrap(err))
					}
					return
				}
				wantKind(t, err, c.kind)
				if !strings.Contains(err.Error(), c.says) || !strings.Contains(hint(err), c.hints) {
					t.Errorf("says %q, hints %q; want %q, %q", err, hint(err), c.says, c.hints)
				}
			})
		}
	}

	s := newSTS(t)
	web := newSigner(t, signer.Config{WebIdentity: &signer.WebIdentity{RoleARN: role, STSEndpoint: s.URL}}, signer.Options{Now: s.clock.Now})
	err := web.Test(context.Background(), signer.As{})
	wantKind(t, err, signer.NoToken)
	if !strings.Contains(hint(err), "--token-file") {
		t.Errorf("hint %q", hint(err))
	}
	if err := web.Test(context.Background(), signer.As{Principal: s.workspace("w")}); err != nil {
		t.Error(err, unwrap(err))
	}
	if err := web.Test(context.Background(), signer.As{Principal: s.workspace("w"), Role: otherRole}); kindOf(err) != signer.RoleNotAllowed {
		t.Error(err)
	}
	chain := newSigner(t, signer.Config{DefaultChain: &signer.DefaultChain{}}, signer.Options{})
	wantKind(t, chain.Test(context.Background(), signer.As{}), signer.Unavailable)
	if err := static(t, "A", "s", "", "", time.Now).Test(context.Background(), signer.As{}); err != nil {
		t.Error(err)
	}
}
