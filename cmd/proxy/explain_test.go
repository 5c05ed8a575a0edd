package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/examples/world/worldtest"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, r.Workspace("env-1", "web", "dev@acme.com"))
	log := filepath.Join(t.TempDir(), "log")
	write(t, log, "{}\n{}\n")
	base := []string{"explain", "--config", r.proxy.ConfigFile}

	for name, c := range map[string]struct {
		args []string
		want []string
		fail bool
	}{
		"allowed": {
			args: []string{"--token-file", token, "GET", "/artifacts/web/x"},
			want: []string{"GetObject by ", "session env-1", "s3:GetObject on artifacts/web/x: allowed", "authz.rego:", "holds", "decision: allowed", "backend: s3-1", "role: " + world.RoleARN("sluice-default")},
		},
		"refused": {
			args: []string{"--token-file", token, "get", r.proxy.URL + "/artifacts/api/x"},
			want: []string{"s3:GetObject on artifacts/api/x: refused", "because project web works below web/", "fails at line", "decision: refused, by policy"},
		},
		"headers count": {
			args: []string{"--token-file", token, "PUT", "s3://artifacts/web/x", "-H", "x-amz-copy-source: /artifacts/api/y"},
			want: []string{"CopyObject", "s3:GetObject on artifacts/api/y: refused", "s3:PutObject on artifacts/web/x: allowed", "decision: refused"},
		},
		"no operation": {
			args: []string{"--token-file", token, "GET", "/artifacts/web/x?frobnicate"},
			want: []string{"refused before policy is asked: Invalid"}, fail: true,
		},
		"table": {
			args: []string{"--token-file", token, "--access", "artifacts/web/x"},
			want: []string{"s3:GetObject ", "allowed", "s3:ListBucket "},
		},
		"keys in a body": {args: []string{"--token-file", token, "POST", "/artifacts?delete"}, want: []string{"ask about a key with DELETE /BUCKET/KEY"}, fail: true},
		"two questions":  {args: []string{"--event", token, "--access", "artifacts"}, want: []string{"give one of them"}, fail: true},
		"two persons":    {args: []string{"--event", token, "--token-file", token}, want: []string{"leave out --token-file"}, fail: true},
		"many events":    {args: []string{"--event", log}, want: []string{"give one line of the log"}, fail: true},
		"nobody":         {args: []string{"GET", "/artifacts/web/x"}, want: []string{"--token-file"}, fail: true},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := runProxy(t, r.World, append(base[:len(base):len(base)], c.args...)...)
			if (err != nil) != c.fail {
				t.Errorf("%v\n%s", err, out)
			}
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("want %q in\n%s", want, out)
				}
			}
		})
	}

	t.Run("json", func(t *testing.T) {
		out, err := runProxy(t, r.World, append(base, "--token-file", token, "--json", "GET", "/artifacts/api/x")...)
		var x struct {
			Operation, Backend string
			Allow              bool
			Accesses           []struct{ Action string }
		}
		if err != nil || json.Unmarshal([]byte(out), &x) != nil || x.Allow || x.Operation != "GetObject" || len(x.Accesses) != 1 {
			t.Errorf("%v\n%s", err, out)
		}
	})

	// What an operation needs is asked as that operation: policies tell by it, too.
	t.Run("operations", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "a.rego"), "package s3.authz\nallow if input.operation in {\"GetObject\", \"ListObjectsV2\"}\nallow if {\ninput.operation == \"DeleteObject\"\ninput.key\n}\n")
		config, err := r.ProxyConfig(world.ProxyOptions{PolicyDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "sluice.yaml")
		write(t, file, config)
		out, err := runProxy(t, r.World, "explain", "--config", file, "--token-file", token, "--access", "artifacts/web/x", "--json")
		var rows []struct {
			Action string
			Allow  bool
		}
		if err != nil || json.Unmarshal([]byte(out), &rows) != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var allowed []string
		for _, row := range rows {
			if row.Allow {
				allowed = append(allowed, row.Action)
			}
		}
		if fmt.Sprint(allowed) != "[s3:DeleteObject s3:GetObject]" {
			t.Errorf("%v", allowed)
		}
	})

	t.Run("event", func(t *testing.T) {
		r.get(t, "/artifacts/api/x")
		r.event(t)
		out, err := runProxy(t, r.World, append(base, "--event", r.proxy.AuditFile)...)
		if err != nil || !strings.Contains(out, "s3:GetObject on artifacts/api/x: refused") || !strings.Contains(out, "because project web works below web/") {
			t.Errorf("%v\n%s", err, out)
		}
		// What became of it then is told besides: policy is not all that refuses.
		if !strings.Contains(out, "recorded: refused with 403 AccessDenied, by policy ") {
			t.Errorf("not what was recorded:\n%s", out)
		}
	})
	t.Run("replay", func(t *testing.T) {
		same, err := filepath.Abs("testdata/policy")
		if err != nil {
			t.Fatal(err)
		}
		out, err := runProxy(t, r.World, "policy", "replay", "--config", r.proxy.ConfigFile, "--policy", same, r.proxy.AuditFile)
		if err != nil || !strings.Contains(out, "nothing would change") {
			t.Errorf("%v\n%s", err, out)
		}
		candidate := t.TempDir()
		write(t, filepath.Join(candidate, "authz.rego"), "package s3.authz\nallow if input.action == \"s3:GetObject\"\n")
		out, err = runProxy(t, r.World, "policy", "replay", "--config", r.proxy.ConfigFile, "--policy", candidate, r.proxy.AuditFile)
		if err == nil || !strings.Contains(out, "newly allowed: 1") || !strings.Contains(out, "artifacts/api/x") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// TestExplainRefusedBesides: policy is not all that refuses. What explain says of a request is what the proxy does with it.
func TestExplainRefusedBesides(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.rego"), "package s3.authz\nallow := true\nrole := \"arn:aws:iam::123456789012:role/x\" if startswith(input.key, \"role/\")\n")
	r := newRig(t, world.Options{}, world.ProxyOptions{PolicyDir: dir, Credentials: "static", Set: map[string]any{"backends[0].buckets": []string{worldtest.Bucket}}})
	r.store(t, "x", []byte("x"))
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, r.Workspace("env-1", "web", "dev@acme.com"))
	for _, c := range []struct {
		path, headline, why string
		status              int
	}{
		{"/artifacts/x", "decision: allowed, by policy ", "backend: s3-1", 200},
		{"/", "decision: allowed, by policy ", "backend: each is asked for its buckets", 200},
		{"/artifacts/role/x", "decision: refused, though allowed by policy ", "role: refused: policy asks for role arn:aws:iam::123456789012:role/x, but", 403},
		{"/elsewhere/x", "decision: refused, though allowed by policy ", "backend: none has this bucket", 404},
	} {
		got := r.get(t, c.path)
		r.event(t)
		if got.StatusCode != c.status {
			t.Errorf("%s: %s", c.path, got.Status)
		}
		out, err := runProxy(t, r.World, "explain", "--config", r.proxy.ConfigFile, "--token-file", token, "GET", c.path)
		if err != nil || !strings.Contains(out, c.headline) || !strings.Contains(out, c.why) {
			t.Errorf("%s, which gets %d: %v\n%s", c.path, c.status, err, out)
		}
		out, err = runProxy(t, r.World, "explain", "--config", r.proxy.ConfigFile, "--token-file", token, "--json", "GET", c.path)
		var x struct {
			Allow    bool
			Accesses []struct{ Allow bool }
		}
		if err != nil || json.Unmarshal([]byte(out), &x) != nil || x.Allow != (c.status == 200) || len(x.Accesses) != 1 || !x.Accesses[0].Allow {
			t.Errorf("%s, which gets %d: %v\n%s", c.path, c.status, err, out)
		}
	}
}

// TestExplainBuckets: who may not list all buckets is shown those that he may list, and which they are only backends know.
func TestExplainBuckets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.rego"), "package s3.authz\nallow if input.action == \"s3:ListBucket\"\n")
	r := newRig(t, world.Options{}, world.ProxyOptions{PolicyDir: dir, Credentials: "static"})
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, r.Workspace("env-1", "web", "dev@acme.com"))
	got := r.get(t, "/")
	r.event(t)
	if got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	out, err := runProxy(t, r.World, "explain", "--config", r.proxy.ConfigFile, "--token-file", token, "GET", "/")
	if err != nil || !strings.Contains(out, "but the buckets on which s3:ListBucket is allowed are listed") || strings.Contains(out, "none has") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestShadow: what the candidate would do otherwise is in the event, in a metric and in the log for people; that it
// cannot be loaded is told, and stops nobody.
func TestShadow(t *testing.T) {
	t.Parallel()
	candidate := t.TempDir()
	rego := filepath.Join(candidate, "a.rego")
	write(t, rego, "package s3.authz\nallow if input.key != \"web/x\"\nreasons contains \"not x\"\n")
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"policy.shadow.dir": candidate}})
	r.store(t, "web/x", []byte("x"))
	until(t, "the shadow loaded", func() bool { return strings.Contains(r.proxy.Log(), "shadow policy loaded") })
	if got := r.get(t, "/artifacts/web/x"); got.StatusCode != 200 {
		t.Errorf("the shadow was obeyed: %s", got.Status)
	}
	e := r.event(t)
	var shadow struct {
		Allow, Differs bool
		Reasons        []string
	}
	if err := json.Unmarshal(e.Decision.Shadow, &shadow); err != nil || !e.Decision.Allow || shadow.Allow || !shadow.Differs || fmt.Sprint(shadow.Reasons) != "[not x]" {
		t.Errorf("%s", e.Decision.Shadow)
	}
	if text := r.scrape(t); !regexp.MustCompile(`(?m)^sluice_policy_decisions_total\{.*shadow_differs="true".*\} 1$`).MatchString(text) {
		t.Errorf("no difference is counted:\n%s", text)
	}
	out, err := runProxy(t, r.World, "audit", "tail", "--no-follow", "--shadow-differs", r.proxy.AuditFile)
	if err != nil || !strings.Contains(out, "allow") || !strings.Contains(out, "shadow policy would refuse: not x") {
		t.Errorf("%v\n%s", err, out)
	}

	write(t, rego, "package s3.authz\nallow if")
	until(t, "the shadow's failure noticed", func() bool { return strings.Contains(r.proxy.Log(), "shadow policy not loaded") })
	if got := r.get(t, "/artifacts/web/x"); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	r.event(t)
	if n := strings.Count(r.proxy.Log(), `"policy loaded"`); n != 1 {
		t.Errorf("the policy's loading is told %d times", n)
	}
	out, err = runProxy(t, r.World, "explain", "--config", r.proxy.ConfigFile, "--event", eventFile(t, e))
	if err != nil || !strings.Contains(out, "decision: allowed") || !strings.Contains(out, "shadow: a.rego:2") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestShadowRefusedEitherWay: who is refused by both policies sees no difference, whatever each refuses it for; nor does
// a replay of what was refused.
func TestShadowRefusedEitherWay(t *testing.T) {
	t.Parallel()
	inForce, candidate := t.TempDir(), t.TempDir()
	write(t, filepath.Join(inForce, "a.rego"), "package s3.authz\nallow if input.action == \"s3:PutObject\"\nlimits := {\"max_object_bytes\": 4}\n")
	write(t, filepath.Join(candidate, "a.rego"), "package s3.authz\nallow if {\ninput.action == \"s3:PutObject\"\nstartswith(input.key, \"small/\")\n}\nlimits := {\"max_object_bytes\": 2}\n")
	r := newRig(t, world.Options{}, world.ProxyOptions{PolicyDir: inForce, Set: map[string]any{"policy.shadow.dir": candidate}})
	until(t, "the shadow loaded", func() bool { return strings.Contains(r.proxy.Log(), "shadow policy loaded") })
	client := bearer{r.Workspace("env-1", "web", "dev@acme.com"), http.DefaultTransport}
	for _, c := range []struct {
		path, acl, content string
		status             int
		differs            bool
		verdict            string
	}{
		{"/artifacts/x", "private", "1", 403, false, "DENY"},
		{"/artifacts/x", "", "12345", 400, false, "DENY"},
		{"/artifacts/small/x", "", "12345", 400, false, "DENY"},
		{"/artifacts/small/x", "", "123", 200, true, "allow"},
		{"/artifacts/x", "", "1", 200, true, "allow"},
	} {
		request, err := http.NewRequest("PUT", r.proxy.URL+c.path, strings.NewReader(c.content))
		if err != nil {
			t.Fatal(err)
		}
		if c.acl != "" {
			request.Header.Set("X-Amz-Acl", c.acl)
		}
		got, err := client.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		got.Body.Close()
		var shadow struct{ Differs bool }
		if err := json.Unmarshal(r.event(t).Decision.Shadow, &shadow); err != nil || got.StatusCode != c.status || shadow.Differs != c.differs {
			t.Errorf("%+v: %s, differs is %t, %v", c, got.Status, shadow.Differs, err)
		}
		out, err := runProxy(t, r.World, "audit", "tail", "--no-follow", "--last", "1", r.proxy.AuditFile)
		if err != nil || !strings.Contains(out, "  "+c.verdict+"  ") || strings.Contains(out, "shadow policy would") != c.differs {
			t.Errorf("%+v: %v\n%s", c, err, out)
		}
	}
	if text := r.scrape(t); !regexp.MustCompile(`(?m)^sluice_policy_decisions_total\{.*shadow_differs="true".*\} 2$`).MatchString(text) {
		t.Errorf("want two differences in\n%s", text)
	}
	out, err := runProxy(t, r.World, "policy", "replay", "--config", r.proxy.ConfigFile, "--policy", candidate, r.proxy.AuditFile)
	if err == nil || !strings.Contains(out, "newly refused: 1\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func eventFile(t *testing.T, e any) string {
	t.Helper()
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "event.json")
	write(t, file, string(text))
	return file
}
