package policy_test

import (
	"context"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
)

// repository is a git repository with a policy in its directory policies.
type repository struct {
	t    *testing.T
	dir  string
	root string // what is served
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("SKIPPED: no git on this machine")
	}
	root := t.TempDir()
	r := &repository{t: t, dir: filepath.Join(root, "repo"), root: root}
	r.git("init", "--quiet", "--initial-branch=main", r.dir)
	return r
}

func (r *repository) git(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@acme.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@acme.com")
	if info, err := os.Stat(r.dir); err == nil && info.IsDir() {
		cmd.Dir = r.dir
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit commits files and returns the commit.
func (r *repository) commit(files map[string]string) string {
	r.t.Helper()
	for name, content := range files {
		write(r.t, filepath.Join(r.dir, name), content)
	}
	r.git("add", ".")
	r.git("commit", "--quiet", "-m", "change")
	return r.git("rev-parse", "HEAD")
}

// serve serves the repository as any git server does, to those that have the token.
func (r *repository) serve(token string) (url string, down *atomic.Bool) {
	r.t.Helper()
	exec := r.git("--exec-path")
	down = new(atomic.Bool)
	handler := &cgi.Handler{
		Path: filepath.Join(exec, "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + r.root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, password, _ := req.BasicAuth()
		switch {
		case down.Load():
			http.Error(w, "down", http.StatusServiceUnavailable)
		case password != token:
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who?", http.StatusUnauthorized)
		default:
			handler.ServeHTTP(w, req)
		}
	}))
	r.t.Cleanup(server.Close)
	return server.URL + "/repo/.git", down
}

func TestGit(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	first := r.commit(map[string]string{
		"policies/a.rego": "package s3.authz\nallow := data.on\n", "policies/a.yaml": "on: true\n",
		"policies/a_test.rego": "package s3.authz\nallow := 1\n", "policies/.x/b.rego": "nonsense", "other/c.rego": "nonsense",
	})
	url, down := r.serve("hunter2")
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, "hunter2\n")
	config := policy.Config{Git: &policy.Git{URL: url, Path: "policies", Interval: time.Second, Cache: t.TempDir(), TokenFile: token}}
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != first || s.Err != nil || s.Checked.IsZero() || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}

	// A change is taken up by the poll.
	second := r.commit(map[string]string{"policies/a.yaml": "on: false\n"})
	heard(func(s policy.Status) bool { return s.Revision == second })
	if d := decide(t, e, question()); d.Allow || d.Revision != second {
		t.Errorf("%+v", d)
	}

	// A bad one is not, and says why.
	bad := r.commit(map[string]string{"policies/a.rego": "package s3.authz\nallow if http.send({})\n"})
	s := heard(func(s policy.Status) bool { return s.Err != nil })
	if s.Revision != second || !strings.Contains(s.Err.Error(), bad) || !strings.Contains(s.Err.Error(), "http.send") {
		t.Errorf("%+v", s)
	}

	// Reload does not wait for the poll.
	third := r.commit(map[string]string{"policies/a.rego": allowAll})
	if err := e.Reload(context.Background()); err != nil || e.Status().Revision != third {
		t.Errorf("%v, %+v", err, e.Status())
	}

	// Nothing of the secret is told, not even by a failure.
	down.Store(true)
	if err := e.Reload(context.Background()); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("down: %v", err)
	}
	if d := decide(t, e, question()); !d.Allow || d.Revision != third {
		t.Errorf("%+v", d)
	}

	// A process that begins while the repository is down goes on with the last good policy.
	later, _ := watched(t, config)
	if s := later.Status(); s.Revision != third || s.Err == nil {
		t.Errorf("%+v", s)
	}
	// So does one that finds a bad policy.
	down.Store(false)
	r.commit(map[string]string{"policies/a.rego": "package s3.authz\n"})
	later, _ = watched(t, config)
	if s := later.Status(); s.Revision != third || s.Err == nil || !strings.Contains(s.Err.Error(), "s3.authz") {
		t.Errorf("%+v", s)
	}
	// But one that never had any does not begin.
	fresh := *config.Git
	fresh.Cache = t.TempDir()
	if _, err := policy.Open(t.Context(), policy.Config{Git: &fresh}, nil); err == nil {
		t.Error("began without a good policy")
	}
	write(t, token, "wrong")
	if _, err := policy.Open(t.Context(), policy.Config{Git: &fresh}, nil); err == nil || !strings.Contains(err.Error(), "auth") {
		t.Errorf("wrong token: %v", err)
	}
}

func TestGitRefs(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	first := r.commit(map[string]string{"a.rego": allowAll})
	r.git("tag", "v1")
	r.git("tag", "-a", "v1.1", "-m", "annotated")
	r.git("checkout", "--quiet", "-b", "feature/x")
	second := r.commit(map[string]string{"a.rego": allowNone})
	r.git("checkout", "--quiet", "main")
	url := "file://" + r.dir
	for ref, want := range map[string]string{
		"": first, "main": first, "v1": first, "v1.1": first, "refs/tags/v1": first, "feature/x": second, first: first,
	} {
		e, err := policy.Open(t.Context(), policy.Config{Git: &policy.Git{URL: url, Ref: ref, Cache: t.TempDir()}}, nil)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		} else if s := e.Status(); s.Revision != want {
			t.Errorf("%s: %+v, want %s", ref, s, want)
		}
	}
	for ref, want := range map[string]string{"nonsense": `no branch or tag "nonsense"`, strings.Repeat("1", 40): ""} {
		_, err := policy.Open(t.Context(), policy.Config{Git: &policy.Git{URL: url, Ref: ref, Cache: t.TempDir()}}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}
