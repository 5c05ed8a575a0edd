package main_test

import (
	"cmp"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

// Every failure that the doctor can name, with just that broken.
func TestDoctor(t *testing.T) {
	t.Parallel()
	external := []world.Role{{ARN: world.RoleARN("sluice-default"), ExternalID: "known"}}
	late := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		_, _ = io.WriteString(w, "<ListAllMyBucketsResult/>")
	}))
	t.Cleanup(late.Close)
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	// Fixed keys of the S3 server's own, and then one thing about them wrong.
	static := func(t *testing.T, w *world.World, dir, id, secret string) map[string]any {
		write(t, filepath.Join(dir, "id"), cmp.Or(id, w.Root.AccessKeyID))
		write(t, filepath.Join(dir, "secret"), cmp.Or(secret, w.Root.SecretAccessKey))
		return map[string]any{"backends[0].credentials": map[string]any{"static": map[string]any{
			"access_key_id_file": filepath.Join(dir, "id"), "secret_access_key_file": filepath.Join(dir, "secret"),
		}}}
	}
	cases := map[string]struct {
		world    world.Options
		set      map[string]any
		keys     *[2]string // static ones in the place of roles: ID and secret, the right ones where empty
		sabotage func(t *testing.T, w *world.World, dir string)
		token    map[string]any
		want     string // of the one line that fails, and its mend
		offline  bool   // seen before anything is asked
		warns    string // where nothing fails
	}{
		"all is well": {want: ``},
		"loose files": {sabotage: func(t *testing.T, w *world.World, dir string) {
			if err := os.Chmod(filepath.Join(dir, "session.keys"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, warns: "sessions.key_file: warning: "},
		"issuer down":  {sabotage: func(t *testing.T, w *world.World, dir string) { w.Issuer.Fail(oidctest.Fault{Status: 500}) }, want: `failed +issuer .*\n.*mend: compare the issuer`},
		"audience":     {token: map[string]any{"aud": "https://elsewhere.example.com"}, want: `failed +token .*elsewhere.*\n.*mend: .*audiences`},
		"expired":      {token: map[string]any{"exp": time.Now().Add(-time.Hour).Unix(), "iat": time.Now().Add(-2 * time.Hour).Unix()}, want: `failed +token .*expired`},
		"trust":        {world: world.Options{Roles: []world.Role{{ARN: world.RoleARN("another")}}}, want: `failed +role .*sluice-default.*\n.*mend: .*trust`},
		"external id":  {world: world.Options{Roles: external}, want: `failed +role .*\n.*mend: .*(external|trust)`},
		"tags":         {world: world.Options{Roles: []world.Role{{ARN: world.RoleARN("sluice-default"), NoTags: true}}}, want: `failed +role .*\n.*mend: .*sts:TagSession`},
		"duration":     {set: map[string]any{"backends[0].credentials.assume_role.duration": "2h"}, want: `failed +role .*\n.*mend: .*(duration|Duration)`},
		"sts down":     {set: map[string]any{"backends[0].credentials.assume_role.sts_endpoint": "http://127.0.0.1:1"}, want: `failed +role .*\n.*mend: `},
		"backend down": {set: map[string]any{"backends[0].endpoint": "http://127.0.0.1:1"}, want: `failed +backend .*\n.*mend: this machine must reach`},
		"no S3":        {set: map[string]any{"backends[0].endpoint": web.URL}, want: `failed +backend .*404 Not Found, and not as S3 does\n.*mend: endpoint must be`},
		"static keys":  {keys: &[2]string{}, want: ``},
		"static ID":    {keys: &[2]string{"AKIANOBODY", ""}, want: `failed +backend s3-1 credentials .*InvalidAccessKeyId\n.*mend: no such access key ID`},
		"secret":       {keys: &[2]string{"", "of-another"}, want: `failed +backend s3-1 credentials .*SignatureDoesNotMatch\n.*mend: the secret key`},
		"no git":       {set: map[string]any{"policy": map[string]any{"git": map[string]any{"url": "file:///nowhere"}}}, want: `failed +policy .*\n.*mend: .*policy.s source`},
		"policy": {sabotage: func(t *testing.T, w *world.World, dir string) {
			write(t, filepath.Join(dir, "policy", "authz.rego"), "package s3.authz\nallow if")
		}, want: `failed +policy .*authz.rego`},
		"forbidden policy": {sabotage: func(t *testing.T, w *world.World, dir string) {
			write(t, filepath.Join(dir, "policy", "authz.rego"), "package s3.authz\nallow if http.send({\"url\": \"http://x\", \"method\": \"get\"}).status_code == 200")
		}, want: `failed +policy .*http.send`},
		"audit":        {set: map[string]any{"audit.file.path": "/dev/null/audit.jsonl"}, want: `failed +audit .*\n.*mend: `},
		"clock":        {set: map[string]any{"backends[0].endpoint": late.URL}, want: `failed +clock +differs by (1h0m\d+s|59m\d+s) .*backend s3-1\n.*mend: synchronise`},
		"session keys": {sabotage: func(t *testing.T, w *world.World, dir string) { write(t, filepath.Join(dir, "session.keys"), "short") }, want: `session\.keys`, offline: true},
		"revocations":  {set: map[string]any{"revocation": map[string]any{"store": "nats://127.0.0.1:1"}}, want: `failed +revocations .*\n.*mend: .*JetStream`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, err := world.Start(t.Context(), c.world)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			dir := t.TempDir()
			policy, err := os.ReadFile("testdata/policy/authz.rego")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(dir, "policy"), 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "policy", "authz.rego"), string(policy))
			set := maps.Clone(c.set)
			if c.keys != nil {
				set = static(t, w, dir, c.keys[0], c.keys[1])
			}
			config, err := w.ProxyConfig(world.ProxyOptions{Dir: dir, PolicyDir: filepath.Join(dir, "policy"), Set: set})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "sluice.yaml")
			write(t, file, config)
			claims := map[string]any{"sub": "environment/env-1", "environment_id": "env-1", "project_id": "web", "creator_email": "dev@acme.com"}
			for name, value := range c.token {
				claims[name] = value
			}
			write(t, filepath.Join(dir, "token"), w.Token(claims))
			if c.sabotage != nil {
				c.sabotage(t, w, dir)
			}

			timeout := "1m" // one that a slow machine reaches would be another failure
			if name == "revocations" {
				timeout = "5s" // it is waited for
			}
			out, err := runProxy(t, w, "check", "--config", file, "--online", "--token-file", filepath.Join(dir, "token"), "--timeout", timeout)
			if c.want == "" {
				if err != nil || strings.Contains(out, "failed") || !strings.Contains(out, c.warns) || c.warns == "" && strings.Contains(out, "warning") {
					t.Errorf("%v\n%s", err, out)
				}
				return
			}
			if err == nil {
				t.Errorf("exit status 0\n%s", out)
			}
			if !regexp.MustCompile(c.want).MatchString(out) {
				t.Errorf("want %s in\n%s", c.want, out)
			}
			if c.offline {
				return
			}
			if n := len(regexp.MustCompile(`(?m)^failed`).FindAllString(out, -1)); n != 1 {
				t.Errorf("%d things failed, want one\n%s", n, out)
			}
		})
	}
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
