package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"regexp"
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
	if err := x.WriteAccesses(&text); err != nil {
		t.Fatal(err)
	}
	if _, err := json.Marshal(x); err != nil {
		t.Fatal(err)
	}
	return x, columns.ReplaceAllString(text.String(), "$1 ")
}

// columns are as wide as what is in them; what they say is not in how wide.
var columns = regexp.MustCompile(`(\S) {2,}`)

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
		"s3:GetObject on b/api/x: refused", "because not yours",
		"  allow policy.rego:3 fails at line 5: own\n", "    own policy.rego:13 fails at line 13: startswith(input.key, own_prefix)",
		`(input.key = "api/x", own_prefix = "web/")`,
		"  deny policy.rego:17 fails", "  reasons policy.rego:21 holds", "      own_prefix policy.rego:15 holds",
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
	for _, want := range []string{"s3:GetObject on b/web/x: allowed\n", "allow policy.rego:3 holds", "allow policy.rego:8 holds", "deny policy.rego:17 holds", "role policy.rego:23 holds", "because no secrets"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}

	// A policy that fails is explained too.
	e = open(t, "package s3.authz\nallow if to_number(input.key) == 1\n")
	x, text = explain(t, e, question())
	if x.Allow || !strings.Contains(x.Error, "to_number") || !strings.Contains(text, ": refused") {
		t.Errorf("%s", text)
	}

	// So are all the starters, whatever is asked.
	e = openDir(t, startersDir(t, grown(2)))
	_, text = explain(t, e, question(policy.Access{Action: "s3:GetObject", Bucket: "artifacts", Key: "api2/x", Backend: "aws"}))
	for _, want := range []string{`own_prefix = "web/"`, "own_bucket buckets.rego:14 fails", "input.identity.attributes.groups = []"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
