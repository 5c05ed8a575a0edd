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

// TestExplainNoAllow: that no allow is about an action is why it is refused, and not what is left out. What the rules
// that there are wanted is told with it.
func TestExplainNoAllow(t *testing.T) {
	for name, test := range map[string]struct {
		rego       string
		want, lack []string
	}{
		"another action": {
			`allow if {
	input.action in {"s3:GetObject", "s3:PutObject"}
	input.bucket == "artifacts"
}

deny contains "no secrets" if endswith(input.key, ".secret")

reasons contains "write to us" if input.action == "s3:PutObject"
`,
			[]string{"s3:ListBucket on b/web/*: refused\n  no allow rule is about s3:ListBucket in this operation\n  allow policy.rego:2 fails at line 3: input.action in {\"s3:GetObject\", \"s3:PutObject\"} (input.action = \"s3:ListBucket\")\n"},
			[]string{"reasons"},
		},
		"another operation": {
			"default allow := false\nallow if {\ninput.operation == \"HeadBucket\"\ninput.action == \"s3:ListBucket\"\n}\n",
			[]string{"no allow rule is about s3:ListBucket in this operation", "policy.rego:3 fails at line 4: input.operation == \"HeadBucket\" (input.operation = \"ListObjectsV2\")"}, nil,
		},
		"denied besides": {
			"allow if input.action == \"s3:GetObject\"\ndeny contains \"closed\"\n",
			[]string{"because closed\n  no allow rule is about s3:ListBucket", "deny policy.rego:3 holds"}, nil,
		},
		"one is about it": {
			"allow if input.action == \"s3:GetObject\"\nallow if {\ninput.action == \"s3:ListBucket\"\ninput.prefix == \"\"\n}\n",
			[]string{"allow policy.rego:3 fails at line 5"}, []string{"no allow rule", "policy.rego:2"},
		},
		"a helper": {
			"allow if reads\nreads if input.action == \"s3:GetObject\"\n",
			[]string{"allow policy.rego:2 fails at line 2: reads\n    reads policy.rego:3 fails at line 3: input.action == \"s3:GetObject\" (input.action = \"s3:ListBucket\")"}, []string{"no allow rule"},
		},
		"denied alone": {
			"allow if input.action == \"s3:ListBucket\"\ndeny contains \"closed\"\n",
			[]string{"because closed\n  allow policy.rego:2 holds"}, []string{"no allow rule"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := question(policy.Access{Action: "s3:ListBucket", Bucket: "b", Prefix: "web/"})
			q.Operation = "ListObjectsV2"
			_, text := explain(t, open(t, "package s3.authz\n"+test.rego), q)
			for _, want := range test.want {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
			for _, lack := range test.lack {
				if strings.Contains(text, lack) {
					t.Errorf("%q in\n%s", lack, text)
				}
			}
		})
	}
}
