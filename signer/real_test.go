package signer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/signer"
)

// A real S3 server takes what we sign, with sessions that an STS minted, for keys as odd as they come.
func TestRealServerTakesOurSignatures(t *testing.T) {
	w := startWorld(t, world.Options{Buckets: []string{"artifacts"}, Region: "eu-west-1"})
	p := &signer.Principal{Issuer: w.Issuer.URL(), Subject: "sub", Session: "env/42", Expires: time.Now().Add(time.Hour),
		Claims: map[string]any{"project_id": "web"}, Token: w.Workspace("env-42", "web", "dev@acme.example")}
	const policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::artifacts/*"}]}`

	assume := assumeIn(t, w)
	assume.SessionTags = map[string]string{"project": "{{.Claims.project_id}}"}
	assume.SourceIdentity = "{{.Subject}}"
	t.Setenv("WORLD_ROOT_ID", w.Root.AccessKeyID)
	t.Setenv("WORLD_ROOT_SECRET", w.Root.SecretAccessKey)
	for name, c := range map[string]struct {
		config signer.Config
		as     signer.As
	}{
		"assume_role":          {signer.Config{AssumeRole: assume}, signer.As{Principal: p}},
		"assume_role narrowed": {signer.Config{AssumeRole: assume}, signer.As{Principal: p, SessionPolicy: policy}},
		"web_identity":         {signer.Config{WebIdentity: &signer.WebIdentity{RoleARN: world.RoleARN("sluice"), STSEndpoint: w.STS.URL}}, signer.As{Principal: p}},
		"static":               {signer.Config{Static: &signer.Static{AccessKeyIDEnv: "WORLD_ROOT_ID", SecretAccessKeyEnv: "WORLD_ROOT_SECRET"}}, signer.As{Principal: p}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t, c.config, signer.Options{Region: w.Region})
			do := func(method, path, query string, body []byte, header map[string]string) (int, string) {
				t.Helper()
				base, _ := url.Parse(w.Backends[0].URL)
				req := &http.Request{Method: method, URL: &url.URL{Scheme: base.Scheme, Host: base.Host, Path: path, RawQuery: query}, Header: http.Header{}}
				if body != nil {
					req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
				}
				for k, v := range header {
					req.Header.Set(k, v)
				}
				if err := s.Sign(context.Background(), req, sum(body), c.as); err != nil {
					t.Fatal(err, unwrap(err))
				}
				resp, err := w.HTTPClient().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, _ := io.ReadAll(resp.Body)
				return resp.StatusCode, string(b)
			}
			for i, key := range []string{"plain", "a b+c/ü%2F.txt", "a+b", "a%20b", "%", "%%41", "$&+,:;=@", "!*'()", "?x=y", "#f", "~-_.", "漢字/😀", "e\u0301",
				`q"<>^{}|\`, "a/b/c/d", " leading", "trailing ", strings.Repeat("k", 200)} {
				body := fmt.Appendf(nil, "object %d", i)
				if status, text := do("PUT", "/artifacts/"+key, "", body, map[string]string{"Content-Type": "text/plain;  charset=utf-8", "X-Amz-Meta-A": "x  y"}); status != 200 {
					t.Errorf("PUT %q: %d %s", key, status, text)
					continue
				}
				if status, text := do("GET", "/artifacts/"+key, "response-content-type=a%2Fb%20c%3Bd", nil, map[string]string{"Range": "bytes=0-"}); status != 206 && status != 200 || text != string(body) {
					t.Errorf("GET %q: %d %s", key, status, text)
				}
			}
			// A posix server does not keep these as keys, but their signature is right.
			for _, path := range []string{"/artifacts//double", "/artifacts/a//b", "/artifacts/./a", "/artifacts/slash/", "/artifacts/"} {
				if status, text := do("GET", path, "", nil, nil); strings.Contains(text, "Signature") || strings.Contains(text, "InvalidAccessKeyId") {
					t.Errorf("GET %q: %d %s", path, status, text)
				}
			}
			if c.as.SessionPolicy != "" {
				if status, text := do("GET", "/artifacts", "list-type=2", nil, nil); status != 403 || !strings.Contains(text, "AccessDenied") {
					t.Errorf("a listing beyond the session policy: %d %s", status, text)
				}
				return
			}
			for _, query := range []string{"list-type=2&prefix=a%20b%2B&delimiter=%2F", "location", "location=", "versioning", "delimiter=%2F&encoding-type=url&max-keys=2&prefix="} {
				if status, text := do("GET", "/artifacts", query, nil, nil); status != 200 && strings.Contains(text, "Signature") {
					t.Errorf("GET ?%s: %d %s", query, status, text)
				}
			}
		})
	}
	for _, call := range w.STS.Calls() {
		if call.Error != "" || call.RoleSessionName == "env/42" {
			t.Errorf("%+v", call)
		}
	}
}

// The doctor, against an STS with trust policies.
func TestDoctorInAWorld(t *testing.T) {
	w := startWorld(t, world.Options{Roles: []world.Role{
		{ARN: world.RoleARN("good")},
		{ARN: world.RoleARN("external"), ExternalID: "ext-1"},
		{ARN: world.RoleARN("no-tags"), NoTags: true},
		{ARN: world.RoleARN("short"), MaxDuration: 30 * time.Minute},
		{ARN: world.RoleARN("other-audience"), Audience: "https://elsewhere.example"},
	}})
	token := w.Workspace("env-42", "web", "dev@acme.example")
	for _, c := range []struct {
		role        string
		conf        func(*signer.AssumeRole)
		web         bool
		fault       world.STSFault
		kind        signer.Kind
		says, hints string
	}{
		{role: "good"},
		{role: "good", web: true},
		{role: "no-such", kind: signer.Denied, says: "does not let the proxy in", hints: "the proxy is arn:aws:iam::123456789012:user/sluice"},
		{role: "external", kind: signer.Denied, says: "does not let the proxy in", hints: "external ID"},
		{role: "external", conf: func(c *signer.AssumeRole) { c.ExternalID = "ext-1" }},
		{role: "no-tags", kind: signer.Denied, says: "session tags", hints: "sts:TagSession"},
		{role: "short", kind: signer.Denied, says: "`duration`", hints: "lower `duration`"},
		{role: "short", conf: func(c *signer.AssumeRole) { c.Duration = 30 * time.Minute }},
		{role: "other-audience", web: true, kind: signer.Denied, says: "InvalidIdentityToken", hints: "audience"},
		{role: "good", fault: world.STSFault{Down: true}, kind: signer.Unavailable, says: "cannot be reached", hints: "sts_endpoint"},
		{role: "good", fault: world.STSFault{Throttle: true}, kind: signer.Unavailable, says: "throttling"},
		{role: "good", fault: world.STSFault{Broken: true}, kind: signer.Unavailable, says: "STS"},
		{role: "good", fault: world.STSFault{Deny: true}, kind: signer.Denied, says: "does not let the proxy in"},
	} {
		t.Run(fmt.Sprint(c.role, " ", c.says), func(t *testing.T) {
			w.STS.Fail(c.fault)
			defer w.STS.Fail(world.STSFault{})
			conf := assumeIn(t, w)
			conf.RoleARN = world.RoleARN(c.role)
			conf.SessionTags = map[string]string{"project": "{{.Claims.project_id}}"}
			if c.conf != nil {
				c.conf(conf)
			}
			config := signer.Config{AssumeRole: conf}
			var p *signer.Principal
			if c.web {
				config = signer.Config{WebIdentity: &signer.WebIdentity{RoleARN: conf.RoleARN, STSEndpoint: w.STS.URL}}
				p = &signer.Principal{Session: "env-42", Token: token, Expires: time.Now().Add(time.Hour)}
			}
			err := newSigner(t, config, signer.Options{Region: w.Region}).Test(context.Background(), signer.As{Principal: p})
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

func startWorld(t *testing.T, o world.Options) *world.World {
	t.Helper()
	o.Dir = t.TempDir()
	w, err := world.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Stop() })
	return w
}

func assumeIn(t *testing.T, w *world.World) *signer.AssumeRole {
	t.Setenv("WORLD_BASE_ID", w.BaseKey.AccessKeyID)
	t.Setenv("WORLD_BASE_SECRET", w.BaseKey.SecretAccessKey)
	return &signer.AssumeRole{RoleARN: world.RoleARN("sluice"), STSEndpoint: w.STS.URL,
		Base: &signer.Static{AccessKeyIDEnv: "WORLD_BASE_ID", SecretAccessKeyEnv: "WORLD_BASE_SECRET"}}
}
