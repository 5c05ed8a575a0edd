package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/policy"
)

func explain(t *testing.T, e *policy.Engine, q *policy.Question) (*policy.Explanation, string) {
	t.Helper()
	x, err := e.Explain(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := x.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if _, err := json.Marshal(x); err != nil {
		t.Fatal(err)
	}
	return x, text.String()
}

func TestExplain(t *testing.T) {
	e := open(t, `package s3.authz

allow if {
	input.action == "s3:GetObject"
	own
}

allow if {
	input.action == "s3:PutObject"
	own
}

own if startswith(input.key, own_prefix)

own_prefix := concat("", [input.identity.attributes.project, "/"])

deny contains "no secrets" if {
	endswith(input.key, ".secret")
}

reasons contains "not yours" if not own

role := "reader"
`)
	x, text := explain(t, e, question(policy.Access{Action: "s3:GetObject", Bucket: "b", Key: "api/x"}))
	if x.Allow || x.Accesses[0].Allow || x.Revision != e.Status().Revision {
		t.Errorf("%+v", x)
	}
	for _, want := range []string{
		"refused by policy", "because: not yours", "s3:GetObject b/api/x: refused",
		"- allow  (policy.rego:3)\n      line 5: own\n", "- own  (policy.rego:13)",
		`own_prefix is "web/"`, `input.key is "api/x"`, "line 13: startswith(input.key, own_prefix)",
		"- deny  (policy.rego:17)", "+ reasons  (policy.rego:21)", "+ own_prefix  (policy.rego:15)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, other := range []string{"policy.rego:8", "role", "__local"} {
		if strings.Contains(text, other) {
			t.Errorf("%q in\n%s", other, text)
		}
	}

	x, text = explain(t, e, question(policy.Access{Action: "s3:GetObject", Bucket: "b", Key: "web/x"}, policy.Access{Action: "s3:PutObject", Bucket: "b", Key: "web/x.secret"}))
	if x.Allow || !x.Accesses[0].Allow || x.Accesses[1].Allow {
		t.Errorf("%+v", x)
	}
	for _, want := range []string{"s3:GetObject b/web/x: allowed\n", "+ allow  (policy.rego:3)", "+ allow  (policy.rego:8)", "+ deny  (policy.rego:17)", "+ role  (policy.rego:23)", "because: no secrets"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}

	// A policy that fails is explained too.
	e = open(t, "package s3.authz\nallow if to_number(input.key) == 1\n")
	x, text = explain(t, e, question())
	if x.Allow || !strings.Contains(x.Error, "to_number") || !strings.Contains(text, "nothing decided: ") {
		t.Errorf("%s", text)
	}

	// So are all the starters, whatever is asked.
	e = openDir(t, startersDir(t, grown(2)))
	_, text = explain(t, e, question(policy.Access{Action: "s3:GetObject", Bucket: "artifacts", Key: "api2/x", Backend: "aws"}))
	for _, want := range []string{`own_prefix is "web/"`, "- own_bucket  (buckets.rego:14)", "input.identity.attributes.groups is []"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
