package policy_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
)

// dir writes the files of a policy and returns their directory.
func dir(t testing.TB, files map[string]string) string {
	t.Helper()
	d := t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(d, name), content)
	}
	return d
}

// write makes or replaces a file at once: who reads it meanwhile finds all of it, or what was there before.
func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, rego string) *policy.Engine {
	t.Helper()
	return openDir(t, dir(t, map[string]string{"policy.rego": rego}))
}

func openDir(t testing.TB, d string) *policy.Engine {
	t.Helper()
	e, err := policy.Open(t.Context(), policy.Config{Dir: d}, nil)
	if err != nil {
		t.Fatal(err)
	}
	policy.Patient(e)
	return e
}

// question asks one GetObject by a developer of project web.
func question(accesses ...policy.Access) *policy.Question {
	return questionOf(map[string]any{"project_id": "web"}, accesses...)
}

func questionOf(claims map[string]any, accesses ...policy.Access) *policy.Question {
	if len(accesses) == 0 {
		accesses = []policy.Access{{Action: "s3:GetObject", Bucket: "artifacts", Key: "web/a.txt", Backend: "aws"}}
	}
	return &policy.Question{
		Subject: policy.NewSubject(&policy.Identity{
			Issuer: "https://app.gitpod.io", Subject: "user-1", Audience: []string{"https://s3.example.com"},
			Session: "env-42", Method: "bearer", Expires: 1795420800,
			Claims:     claims,
			Attributes: policy.Attributes{Workspace: "env-42", Project: "web", User: "dev@acme.com"},
		}),
		Operation: "GetObject",
		Request: &policy.Request{
			ID: "01J", Time: time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC), Method: "GET", Host: "s3.example.com",
			SourceIP: "10.1.2.3", Secure: true, UserAgent: "aws-cli/1.45",
		},
		Accesses: accesses,
	}
}

func decide(t testing.TB, e *policy.Engine, q *policy.Question) *policy.Decision {
	t.Helper()
	d, err := e.Decide(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDecide(t *testing.T) {
	e := open(t, `package s3.authz

allow if startswith(input.key, sprintf("%s/", [input.identity.attributes.project]))

reasons contains sprintf("%s is not below %s/", [input.key, input.identity.attributes.project]) if not allow
`)
	if d := decide(t, e, question()); !d.Allow || len(d.Reasons) != 0 || d.Revision != e.Status().Revision {
		t.Errorf("own prefix: %+v", d)
	}
	d := decide(t, e, question(
		policy.Access{Action: "s3:GetObject", Bucket: "artifacts", Key: "web/a"},
		policy.Access{Action: "s3:PutObject", Bucket: "artifacts", Key: "api/a"},
	))
	if d.Allow || !d.Verdicts[0].Allow || d.Verdicts[1].Allow || len(d.Reasons) != 1 || d.Reasons[0] != "api/a is not below web/" {
		t.Errorf("other prefix: %+v", d)
	}
}
