package main_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/examples/world"
)

func TestExplain(t *testing.T) {
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, r.Workspace("env-1", "web", "dev@acme.com"))
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
			want: []string{"s3:GetObject on artifacts/api/x: refused", "because project web works below web/", "fails at line", "decision: refused"},
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
		"nobody": {args: []string{"GET", "/artifacts/web/x"}, want: []string{"--token-file"}, fail: true},
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

	t.Run("event", func(t *testing.T) {
		r.get(t, "/artifacts/api/x")
		r.event(t)
		out, err := runProxy(t, r.World, append(base, "--event", r.proxy.AuditFile)...)
		if err != nil || !strings.Contains(out, "s3:GetObject on artifacts/api/x: refused") || !strings.Contains(out, "because project web works below web/") {
			t.Errorf("%v\n%s", err, out)
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
