package policy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/policy"
)

// TestInput holds the input to the contract, field for field.
func TestInput(t *testing.T) {
	e := open(t, `package s3.authz
allow := true
reasons contains json.marshal(input)
deny contains "shown"
`)
	q := question(policy.Access{Action: "s3:GetObjectVersion", Bucket: "artifacts", Key: "acme/web/build.tgz", VersionID: "v1", Backend: "aws"})
	q.Operation = "CopyObject"
	q.Request.Headers = map[string]string{"x-amz-acl": "private"}
	q.Request.Query = map[string]string{"partNumber": "1"}
	q.Request.ContentLength = 12
	d := decide(t, e, q)
	var have, want map[string]any
	if err := json.Unmarshal([]byte(strings.Join(d.Reasons[1:], "")), &have); err != nil {
		t.Fatalf("%v: %q", err, d.Reasons)
	}
	const contract = `{"action": "s3:GetObjectVersion", "operation": "CopyObject",
 "bucket": "artifacts", "key": "acme/web/build.tgz", "version_id": "v1",
 "prefix": "", "delimiter": "", "backend": "aws",
 "identity": {"issuer": "https://app.gitpod.io", "subject": "user-1", "audience": ["https://s3.example.com"], "session": "env-42",
              "method": "bearer", "requested_role": "", "expires": 1795420800, "claims": {"project_id": "web"},
              "attributes": {"workspace": "env-42", "project": "web", "repository": "", "user": "dev@acme.com", "groups": []}},
 "request": {"id": "01J", "time": "2026-11-23T00:00:00Z", "method": "GET", "host": "s3.example.com", "source_ip": "10.1.2.3",
             "secure": true, "user_agent": "aws-cli/1.45", "content_length": 12, "headers": {"x-amz-acl": "private"}, "query": {"partNumber": "1"}}}`
	if err := json.Unmarshal([]byte(contract), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(have, want) {
		t.Errorf("have %v\nwant %v", have, want)
	}

	// A listing has a prefix and a delimiter, and no key at all.
	e = open(t, `package s3.authz
allow if { input.prefix == "web/"; input.delimiter == "/"; object.get(input, "key", "none") == "none" }
`)
	if d := decide(t, e, question(policy.Access{Action: "s3:ListBucket", Bucket: "b", Prefix: "web/", Delimiter: "/"})); !d.Allow {
		t.Errorf("listing: %+v", d)
	}
	// Time is the request's.
	e = open(t, `package s3.authz
allow if time.now_ns() == time.parse_rfc3339_ns(input.request.time)
`)
	if d := decide(t, e, question()); !d.Allow {
		t.Errorf("time: %+v", d)
	}
}

// terms is a policy whose rules come from the key of the access, written as JSON.
const terms = `package s3.authz
ask := json.unmarshal(input.key)
allow := ask.allow
deny contains ask.deny
reasons contains ask.reason
role := ask.role
session_policy := ask.session_policy
limits := ask.limits
filter_listing := ask.filter
`

func TestJoin(t *testing.T) {
	e := open(t, terms)
	statement := func(n int) string {
		return fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/%d<&>"}]}`, n)
	}
	for _, test := range []struct {
		name string
		asks []string
		want policy.Decision
	}{
		{"all of it", []string{
			`{"allow": true, "role": "r", "session_policy": ` + statement(1) + `, "limits": {"requests_per_second": 0.5, "bytes_per_second": 2, "in_flight": 4, "max_object_bytes": 3}, "filter": true}`,
		}, policy.Decision{
			Allow: true, Role: "r", SessionPolicy: json.RawMessage(`{"Statement":[{"Action":"s3:GetObject","Effect":"Allow","Resource":"arn:aws:s3:::b/1<&>"}],"Version":"2012-10-17"}`),
			Limits: policy.Limits{RequestsPerSecond: 0.5, BytesPerSecond: 2, InFlight: 4, MaxObjectBytes: 3}, FilterListing: true,
		}},
		{"one refused", []string{`{"allow": true, "role": "a"}`, `{"allow": false, "reason": "z", "role": "b"}`, `{"allow": true, "deny": "a"}`},
			policy.Decision{Role: "a", Reasons: []string{"a", "z"}}},
		{"deny and reason are the same", []string{`{"allow": true, "deny": "a", "reason": "a"}`, `{"deny": "a"}`}, policy.Decision{Reasons: []string{"a"}}},
		{"same role", []string{`{"allow": true, "role": "a"}`, `{"allow": true, "role": "a"}`}, policy.Decision{Allow: true, Role: "a"}},
		{"one names a role", []string{`{"allow": true}`, `{"allow": true, "role": "a"}`}, policy.Decision{Allow: true, Role: "a"}},
		{"different roles", []string{`{"allow": true, "role": "a"}`, `{"allow": true, "role": "b"}`},
			policy.Decision{Reasons: []string{"policy names different roles for one request: a and b"}}},
		{"smallest limits", []string{`{"allow": true, "limits": {"bytes_per_second": 9, "requests_per_second": 1}}`, `{"allow": true, "limits": {"bytes_per_second": 5, "max_object_bytes": 7}}`},
			policy.Decision{Allow: true, Limits: policy.Limits{RequestsPerSecond: 1, BytesPerSecond: 5, MaxObjectBytes: 7}}},
		{"same session policy", []string{`{"allow": true, "session_policy": ` + statement(1) + `}`, `{"allow": true, "session_policy": ` + statement(1) + `}`},
			policy.Decision{Allow: true, SessionPolicy: json.RawMessage(`{"Statement":[{"Action":"s3:GetObject","Effect":"Allow","Resource":"arn:aws:s3:::b/1<&>"}],"Version":"2012-10-17"}`)}},
		{"union of session policies", []string{`{"allow": true, "session_policy": ` + statement(1) + `}`, `{"allow": true, "session_policy": {"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":"s3:*","Resource":"*"}}}`},
			policy.Decision{Allow: true, SessionPolicy: json.RawMessage(`{"Statement":[{"Action":"s3:GetObject","Effect":"Allow","Resource":"arn:aws:s3:::b/1<&>"},{"Action":"s3:*","Effect":"Deny","Resource":"*"}],"Version":"2012-10-17"}`)}},
		{"versions differ", []string{`{"allow": true, "session_policy": ` + statement(1) + `}`, `{"allow": true, "session_policy": {"Version":"2008-10-17","Statement":[{}]}}`},
			policy.Decision{Reasons: []string{"policy: session_policy: accesses of one request have policies of different versions: 2012-10-17 and 2008-10-17"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			accesses := make([]policy.Access, len(test.asks))
			for i, ask := range test.asks {
				accesses[i] = policy.Access{Action: "s3:GetObject", Bucket: "b", Key: ask}
			}
			d := decide(t, e, question(accesses...))
			if len(d.Verdicts) != len(accesses) {
				t.Errorf("%d verdicts", len(d.Verdicts))
			}
			own := *d // others have it too
			own.Verdicts, own.Revision = nil, ""
			if !reflect.DeepEqual(own, test.want) {
				t.Errorf("have %+v\nwant %+v", own, test.want)
			}
		})
	}
}

// TestDeleteMany: each key has its own verdict, and those allowed are joined.
func TestDeleteMany(t *testing.T) {
	e := open(t, "package s3.authz\nallow if startswith(input.key, `web/`)\nrole := \"deleter\"\nreasons contains concat(\" \", [\"not\", input.key])\n")
	var accesses []policy.Access
	for i := range 1000 {
		accesses = append(accesses, policy.Access{Action: "s3:DeleteObject", Bucket: "b", Key: []string{"web/", "api/"}[i%2] + fmt.Sprint(i)})
	}
	d := decide(t, e, question(accesses...))
	allowed, err := e.Allowed(context.Background(), question(accesses...))
	if err != nil {
		t.Fatal(err)
	}
	if d.Allow || d.Role != "deleter" || len(d.Reasons) != 500 {
		t.Errorf("allow %t, role %q, %d reasons", d.Allow, d.Role, len(d.Reasons))
	}
	for i, v := range d.Verdicts {
		if want := i%2 == 0; v.Allow != want || allowed[i] != want || (len(v.Reasons) == 0) != want {
			t.Errorf("%s: %+v, %t", accesses[i].Key, v, allowed[i])
		}
	}
}

func TestVisibleKeys(t *testing.T) {
	for name, rego := range map[string]string{
		"fast": "package s3.authz\nallow if { input.operation == `GetObject`; input.bucket == `b`; startswith(input.key, `web/`) }\ndeny contains `x` if endswith(input.key, `.secret`)\n",
		"OPA":  "package s3.authz\nallow if { input.operation == `GetObject`; input.bucket == `b`; some p in [x | x := `web/`]; startswith(input.key, p) }\ndeny contains `x` if endswith(input.key, `.secret`)\n",
	} {
		e := open(t, rego)
		q := question(policy.Access{Action: "s3:ListBucket", Bucket: "b", Prefix: "", Delimiter: "/"})
		q.Operation = "ListObjectsV2"
		have, err := e.VisibleKeys(context.Background(), q, []string{"web/a", "web/a.secret", "api/a", "", "web/", "web"})
		if err != nil || !reflect.DeepEqual(have, []bool{true, false, false, false, true, false}) {
			t.Errorf("%s: %v, %v", name, have, err)
		}
	}
	e := open(t, "package s3.authz\nallow if to_number(input.key) == 1\n")
	if have, err := e.VisibleKeys(context.Background(), question(), []string{"1", "x"}); err == nil {
		t.Errorf("a failing policy shows %v", have)
	}
	if _, err := new(policy.Engine).VisibleKeys(context.Background(), question(), nil); err == nil {
		t.Error("an engine without policy shows keys")
	}
}
