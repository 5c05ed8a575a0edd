package policy_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/policy"
)

const starters = "../policies"

func TestStarters(t *testing.T) {
	var out bytes.Buffer
	ok, err := policy.Test(context.Background(), []string{starters}, &out, testing.Verbose())
	if !ok || err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	t.Log(out.String())
}

// TestStartersAlone: each idea stands with the frame alone, so that it can be copied without the others, and opens
// nothing as it is shipped.
func TestStartersAlone(t *testing.T) {
	ideas, err := filepath.Glob(filepath.Join(starters, "*.yaml"))
	if err != nil || len(ideas) < 11 {
		t.Fatal(ideas, err)
	}
	needs := map[string][]string{"agents": {"buckets.rego"}} // its tests speak of a developer's rights
	for _, idea := range ideas {
		name := strings.TrimSuffix(filepath.Base(idea), ".yaml")
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			for _, file := range append(needs[name], "authz.rego", "fixtures_test.rego", name+".rego", name+".yaml", name+"_test.rego") {
				content, err := os.ReadFile(filepath.Join(starters, file))
				if err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(d, file), string(content))
			}
			var out bytes.Buffer
			if ok, err := policy.Test(context.Background(), []string{d}, &out, false); !ok || err != nil {
				t.Errorf("%v\n%s", err, out.String())
			}
			e := openDir(t, d)
			if unknown := e.Unknown(); len(unknown) > 0 {
				t.Errorf("left to OPA: %v", unknown)
			}
			if d := decide(t, e, question()); d.Allow {
				t.Error("open as shipped")
			}
		})
	}
}

// TestStartersFilledIn: their tests hold whatever an operator has written into the data, or nobody would run them.
func TestStartersFilledIn(t *testing.T) {
	d := t.TempDir()
	if err := os.CopyFS(d, os.DirFS(starters)); err != nil {
		t.Fatal(err)
	}
	filled := map[string]string{
		"admins":     "admins: {https://login.acme.com: {platform-admins: true}}",
		"agents":     "agents: {known_by: {https://app.gitpod.io: {actor_type: [agent]}}, limits: {requests_per_second: 5}}",
		"breakglass": "breakglass: {reason: ^INC-, users: {https://login.acme.com: {oncall@acme.com: true}}}",
		"buckets":    "buckets: {web-cache: web, api-cache: api, artifacts: api}",
		"ci":         "ci: {https://token.actions.githubusercontent.com: {acme/web: {artifacts: true}}}",
		"grants":     "grants: {web: {artifacts: {api: read, shared: write}, secrets: {web: write}}}",
		"listings":   "listings: {buckets: {artifacts: true, other: true}}",
		"prefixes":   "prefixes: {buckets: {artifacts: project, home: user}}",
		"residency":  "residency: {buckets: {artifacts: {region: us-east-1}}, projects: {clinic: {regions: [eu-west-1], kinds: [health]}}}",
		"roles":      "roles: {aws: {narrow: true, projects: {web: arn:aws:iam::123456789012:role/sluice-web}}}",
		"timeboxed":  `timeboxed: {dev@acme.com: {incident-4711: {may: read, until: "2026-12-01T00:00:00Z"}}}`,
	}
	ideas, _ := filepath.Glob(filepath.Join(d, "*.yaml"))
	if len(ideas) != len(filled) {
		t.Fatalf("%d ideas, %d filled in", len(ideas), len(filled))
	}
	for name, data := range filled {
		write(t, filepath.Join(d, name+".yaml"), data+"\n")
	}
	var out bytes.Buffer
	if ok, err := policy.Test(context.Background(), []string{d}, &out, false); !ok || err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestTest: what `proxy policy test` says and how it ends.
func TestTest(t *testing.T) {
	for _, test := range []struct {
		name, tests string
		ok          bool
		fails       string
		says        string
	}{
		{"passes", "test_a if authz.allow", true, "", "PASS: 1/1"},
		{"fails", "test_a if not authz.allow", false, "", "FAIL: 1/1"},
		{"function fails", "test_a if to_number(`x`) == 1", false, "", "ERROR: 1/1"},
		{"no tests", "x := 1", false, "no tests", ""},
		{"does not compile", "test_a if x == 1", false, "unsafe", ""},
		{"forbidden", "test_a if http.send({}).x", false, "http.send is not available", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := dir(t, map[string]string{"p.rego": allowAll, "p_test.rego": "package s3.authz_test\nimport data.s3.authz\n" + test.tests + "\n"})
			var out bytes.Buffer
			ok, err := policy.Test(context.Background(), []string{d}, &out, false)
			if ok != test.ok || (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) || !strings.Contains(out.String(), test.says) {
				t.Errorf("%t, %v\n%s", ok, err, out.String())
			}
		})
	}
}
