package policy_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	var deploy string
	published := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		content, err := io.ReadAll(req.Body)
		if err != nil || req.Method != http.MethodPut || req.Header.Get("JOB-TOKEN") != "of the job" || req.URL.Path != "/projects/7/packages/generic/sluice/latest/bundle.tar.gz" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		b.Put("/sluice/bundle.tar.gz", content)
	}))
	defer published.Close()
	key := filepath.Join(t.TempDir(), "key.pem")
	write(t, key, b.Private)
	// ci is the pipeline: test, build, sign, publish. By its own commands where there is OPA's program.
	ci := func(commit string) {
		t.Helper()
		var out bytes.Buffer
		if ok, err := policy.Test(context.Background(), []string{filepath.Join(r.Dir, "policies")}, &out, false); !ok || err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		if _, err := exec.LookPath("opa"); err == nil {
			for _, script := range scripts(t, deploy) {
				cmd := exec.Command("sh", "-ec", script)
				cmd.Dir = r.Dir
				cmd.Env = append(os.Environ(),
					"CI_COMMIT_SHA="+commit, "POLICY_SIGNING_KEY="+key, "CI_JOB_TOKEN=of the job", "CI_API_V4_URL="+published.URL, "CI_PROJECT_ID=7",
					"GITHUB_SHA="+commit, "SIGNING_KEY="+b.Private, "RUNNER_TEMP="+t.TempDir())
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%s: %s: %v\n%s", deploy, script, err, out)
				}
			}
			if deploy == github { // to S3
				tarball, err := os.ReadFile(filepath.Join(r.Dir, "bundle.tar.gz"))
				if err != nil {
					t.Fatal(err)
				}
				b.Put("/sluice/bundle.tar.gz", tarball)
			}
			return
		}
		t.Log("SKIPPED: the pipelines' own commands, for there is no opa on this machine")
		var tarball bytes.Buffer
		err := compile.New().
			WithPaths(filepath.Join(r.Dir, "policies")).WithRevision(commit).WithAsBundle(true).
			WithBundleSigningConfig(bundle.NewSigningConfig(b.Private, "RS256", "")).
			WithOutput(&tarball).Build(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		b.Put("/sluice/bundle.tar.gz", tarball.Bytes())
	}
	config := policy.Config{OPA: b.OPA(t.TempDir(), "/sluice/bundle.tar.gz")}

	deploy = gitlab
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
	deploy = github
	second := r.Commit(map[string]string{"policies/releases/data.yaml": "acme-releases: true\nacme-docs: true\n"})
	ci(second)
	heard(func(s policy.Status) bool { return s.Revision == second && s.Err == nil })
	if d := decide(t, e, q); !d.Allow || d.Revision != second {
		t.Errorf("%+v", d)
	}
}

const (
	gitlab = ".gitlab-ci.yml"
	github = ".github/workflows/policy.yml"
)

// scripts are a pipeline's own commands, but for what puts the bundle on AWS.
func scripts(t *testing.T, file string) (list []string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(policyRepo, file))
	if err != nil {
		t.Fatal(err)
	}
	var pipeline struct {
		Test, Build, Publish struct{ Script []string }
		Jobs                 struct {
			Publish struct{ Steps []struct{ Run string } }
		}
	}
	if err := yaml.Unmarshal(content, &pipeline); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	list = slices.Concat(pipeline.Test.Script, pipeline.Build.Script, pipeline.Publish.Script)
	for _, step := range pipeline.Jobs.Publish.Steps {
		if step.Run != "" && !strings.HasPrefix(step.Run, "aws ") {
			list = append(list, step.Run)
		}
	}
	if len(list) < 4 {
		t.Fatalf("%s: only %q", file, list)
	}
	return list
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
	for _, name := range []string{github, gitlab} {
		content := strings.Join(scripts(t, name), "\n")
		for _, part := range []string{"opa test policies", "opa check --strict policies", "opa fmt --fail policies", "opa build --bundle --ignore '*_test.rego' --revision", "--signing-alg RS256"} {
			if !strings.Contains(content, part) {
				t.Errorf("%s: no %q", name, part)
			}
		}
	}
}
