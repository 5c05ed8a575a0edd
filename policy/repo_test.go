package policy_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/compile"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/policy/policytest"
)

const policyRepo = "../examples/policy-repo"

// TestPolicyRepo follows a change of the example's repository from its commit to what is enforced, doing what its CI
// does.
func TestPolicyRepo(t *testing.T) {
	t.Parallel()
	r := policytest.NewRepository(t)
	if err := os.CopyFS(r.Dir, os.DirFS(policyRepo)); err != nil {
		t.Fatal(err)
	}
	b := policytest.NewBundles(t)
	// ci is the job: test, build, sign, publish.
	ci := func(commit string) {
		t.Helper()
		var out bytes.Buffer
		if ok, err := policy.Test(context.Background(), []string{filepath.Join(r.Dir, "policies")}, &out, false); !ok || err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		var tarball bytes.Buffer
		err := compile.New().
			WithPaths(filepath.Join(r.Dir, "policies")).WithRevision(commit).
			WithBundleSigningConfig(bundle.NewSigningConfig(b.Private, "RS256", "")).
			WithBundleVerificationKeyID("ci").
			WithOutput(&tarball).Build(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		b.Put("/sluice/bundle.tar.gz", tarball.Bytes())
	}
	config := policy.Config{OPA: b.OPA(t.TempDir(), "/sluice/bundle.tar.gz")}

	first := r.Commit(nil)
	ci(first)
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != first {
		t.Fatalf("%+v", s)
	}
	q := question(policy.Access{Action: "s3:GetObject", Bucket: "acme-docs", Key: "handbook"})
	if d := decide(t, e, q); d.Allow || len(d.Reasons) != 1 || d.Reasons[0] != "handbook is not below web/" {
		t.Errorf("%+v", d)
	}
	second := r.Commit(map[string]string{"policies/releases.yaml": "releases: {acme-releases: true, acme-docs: true}\n"})
	ci(second)
	heard(func(s policy.Status) bool { return s.Revision == second && s.Err == nil })
	if d := decide(t, e, q); !d.Allow || d.Revision != second {
		t.Errorf("%+v", d)
	}
}

// TestPolicyRepoFiles: the example's configuration is one, and its CI files build as the test above does.
func TestPolicyRepoFiles(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(policyRepo, "sluice-policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var section struct{ Policy policy.Config }
	if err := yaml.UnmarshalWithOptions(content, &section, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	section.Policy.Check(func(path, problem string) { t.Errorf("%s: %s", path, problem) })
	for _, name := range []string{".github/workflows/policy.yml", ".gitlab-ci.yml"} {
		content, err := os.ReadFile(filepath.Join(policyRepo, name))
		if err != nil {
			t.Fatal(err)
		}
		var any map[string]any
		if err := yaml.Unmarshal(content, &any); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, part := range []string{"opa test policies", "opa check --strict policies", "opa fmt --fail policies", "opa build --ignore '*_test.rego' --revision", "--signing-alg RS256", " policies\n"} {
			if !strings.Contains(string(content), part) {
				t.Errorf("%s: no %q", name, part)
			}
		}
	}
}
