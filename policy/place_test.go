package policy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
)

// TestPlaces asks many times about what is nearly the same. Whatever is remembered of one question MUST NOT be seen in
// the answer to another that differs in anything.
func TestPlaces(t *testing.T) {
	type claims = map[string]any
	type ask struct {
		claims claims
		access policy.Access
		time   string
		want   string // allow, deny, fail
	}
	get := func(key string) policy.Access {
		return policy.Access{Action: "s3:GetObject", Bucket: "b", Key: key, Backend: "aws"}
	}
	list := func(prefix string) policy.Access {
		return policy.Access{Action: "s3:ListBucket", Bucket: "b", Prefix: prefix, Backend: "aws"}
	}
	for name, test := range map[string]struct {
		rego string
		asks []ask
	}{
		"a nested claim": {`allow if { input.action == "s3:GetObject"; input.identity.claims.a.b[0].c == "yes" }`, []ask{
			{claims: claims{"a": claims{"b": []any{claims{"c": "yes"}}}}, access: get("k"), want: "allow"},
			{claims: claims{"a": claims{"b": []any{claims{"c": "no"}}}}, access: get("k"), want: "deny"},
			{claims: claims{"a": claims{"b": []any{claims{"c": []any{"yes"}}}}}, access: get("k"), want: "deny"},
			{claims: claims{"a": claims{"b": claims{"0": claims{"c": "yes"}}}}, access: get("k"), want: "deny"},
			{claims: claims{"a.b": []any{claims{"c": "yes"}}}, access: get("k"), want: "deny"},
		}},
		"a prefix from a claim": {`allow if startswith(input.key, concat("", [input.identity.claims.p, "/"]))`, []ask{
			{claims: claims{"p": "web"}, access: get("web/k"), want: "allow"},
			{claims: claims{"p": "api"}, access: get("web/k"), want: "deny"},
			{claims: claims{"p": "web"}, access: get("api/k"), want: "deny"},
			{claims: claims{"p": "api"}, access: get("api/k"), want: "allow"},
			{claims: claims{}, access: get("web/k"), want: "deny"},
			{claims: claims{"p": 1}, access: get("web/k"), want: "fail"},
		}},
		"claims that are called like the request": {`allow if { input.action == "s3:GetObject"; startswith(input.key, "web/"); not input.identity.claims.blocked }`, []ask{
			{claims: claims{"action": "s3:GetObject", "key": "web/k", "bucket": "b"}, access: get("api/k"), want: "deny"},
			{claims: claims{"action": "s3:PutObject", "key": "api/k", "request": claims{"time": "x"}}, access: get("web/k"), want: "allow"},
			{claims: claims{"action": "s3:GetObject", "key": "web/k"}, access: list("web/k"), want: "deny"},
		}},
		"undefined and false": {`allow if { not input.identity.claims.flag; input.key }`, []ask{
			{claims: claims{}, access: get("k"), want: "allow"},
			{claims: claims{"flag": false}, access: get("k"), want: "allow"},
			{claims: claims{"flag": nil}, access: get("k"), want: "deny"},
			{claims: claims{"flag": ""}, access: get("k"), want: "deny"},
			{claims: claims{"flag": true}, access: get("k"), want: "deny"},
			{claims: claims{}, access: list("k"), want: "deny"},
		}},
		"a default": {"default h := false\nh if input.identity.claims.p == \"web\"\nallow if { h; input.key == \"k\" }\nallow if { h == false; input.key == \"f\" }", []ask{
			{claims: claims{"p": "web"}, access: get("k"), want: "allow"},
			{claims: claims{"p": "api"}, access: get("k"), want: "deny"},
			{claims: claims{"p": "web"}, access: get("f"), want: "deny"},
			{claims: claims{"p": "api"}, access: get("f"), want: "allow"},
		}},
		"else": {"h := \"a\" if input.identity.claims.p == \"web\" else := \"b\" if startswith(input.key, \"b\") else := \"c\"\nallow if { h == \"b\" }", []ask{
			{claims: claims{"p": "web"}, access: get("b"), want: "deny"},
			{claims: claims{"p": "api"}, access: get("b"), want: "allow"},
			{claims: claims{"p": "api"}, access: get("c"), want: "deny"},
		}},
		"with and without a key": {`allow if { not input.key; input.prefix == "" }` + "\nallow if { input.key == \"k\"; input.version_id == \"\" }", []ask{
			{access: get("k"), want: "allow"},
			{access: get(""), want: "allow"},
			{access: get("x"), want: "deny"},
			{access: policy.Access{Action: "s3:GetObject", Bucket: "b", Key: "k", VersionID: "1", Backend: "aws"}, want: "deny"},
			{access: policy.Access{Action: "s3:GetObject", Bucket: "b", Prefix: "p", Backend: "aws"}, want: "deny"},
		}},
		"the place itself": {`allow if { input.bucket == "b"; input.backend == "aws"; input.operation == "GetObject"; input.key }`, []ask{
			{access: get("k"), want: "allow"},
			{access: policy.Access{Action: "s3:GetObject", Bucket: "c", Key: "k", Backend: "aws"}, want: "deny"},
			{access: policy.Access{Action: "s3:GetObject", Bucket: "b", Key: "k", Backend: "other"}, want: "deny"},
		}},
		"until a time": {`allow if { input.action == "s3:GetObject"; time.parse_rfc3339_ns(input.request.time) < time.parse_rfc3339_ns(input.identity.claims.until) }` +
			"\ndeny contains \"late\" if time.now_ns() > time.parse_rfc3339_ns(\"2026-12-24T00:00:00Z\")", []ask{
			{claims: claims{"until": "2026-12-01T00:00:00Z"}, access: get("k"), time: "2026-11-30T23:59:59Z", want: "allow"},
			{claims: claims{"until": "2026-12-01T00:00:00Z"}, access: get("k"), time: "2026-12-01T00:00:00Z", want: "deny"},
			{claims: claims{"until": "2027-12-01T00:00:00Z"}, access: get("k"), time: "2026-12-01T00:00:00Z", want: "allow"},
			{claims: claims{"until": "2027-12-01T00:00:00Z"}, access: get("k"), time: "2026-12-25T00:00:00Z", want: "deny"},
			{claims: claims{"until": "soon"}, access: get("k"), time: "2026-12-01T00:00:00Z", want: "fail"},
		}},
		"until a time, by a rule": {"early if input.request.time < \"2026-12-01\"\nallow if { early; input.key }", []ask{
			{access: get("k"), time: "2026-11-30T23:59:59Z", want: "allow"},
			{access: get("k"), time: "2026-12-01T00:00:00Z", want: "deny"},
		}},
		"what is not found out about": {`allow if { not trim_prefix("ak", "a", input.key); input.bucket == "b" }`, []ask{
			{access: get("x"), want: "allow"},
			{access: get("k"), want: "deny"},
		}},
		"deny that fails": {"allow if input.key\ndeny contains \"no\" if to_number(input.identity.claims.x) > 1", []ask{
			{claims: claims{"x": "1"}, access: get("k"), want: "allow"},
			{claims: claims{"x": "2"}, access: get("k"), want: "deny"},
			{claims: claims{"x": "two"}, access: get("k"), want: "fail"},
			{claims: claims{}, access: get("k"), want: "allow"},
		}},
		"deny that fails for some keys": {"allow if input.action == \"s3:GetObject\"\ndeny contains \"no\" if { input.identity.claims.x; to_number(input.key) > 1 }", []ask{
			{claims: claims{"x": "1"}, access: get("1"), want: "allow"},
			{claims: claims{"x": "1"}, access: get("2"), want: "deny"},
			{claims: claims{"x": "1"}, access: get("two"), want: "fail"},
			{claims: claims{}, access: get("two"), want: "allow"},
		}},
		"allow that fails beside one that is known": {"allow if to_number(input.key) == 1\nallow if input.action == \"s3:GetObject\"", []ask{
			{access: get("1"), want: "allow"},
			{access: get("x"), want: "fail"},
		}},
		"conflicts": {"allow if true\nrole := \"a\" if startswith(input.key, \"a\")\nrole := \"b\" if input.identity.claims.b", []ask{
			{claims: claims{"b": true}, access: get("b"), want: "allow"},
			{claims: claims{"b": true}, access: get("a"), want: "fail"},
			{claims: claims{}, access: get("a"), want: "allow"},
		}},
		"conflicts that are known": {"allow if input.key\nrole := \"a\" if input.bucket == \"b\"\nrole := \"b\" if input.identity.claims.b", []ask{
			{claims: claims{"b": true}, access: get("k"), want: "fail"},
			{claims: claims{}, access: get("k"), want: "allow"},
		}},
		"terms that are not understood": {"allow if input.key\nlimits := {\"in_flight\": input.identity.claims.n}", []ask{
			{claims: claims{"n": 1}, access: get("k"), want: "allow"},
			{claims: claims{"n": 0}, access: get("k"), want: "deny"},
			{claims: claims{"n": 2}, access: get("k"), want: "allow"},
		}},
		"groups": {"allow if { some g in input.identity.claims.groups; startswith(input.key, g) }\nallow if input.key in input.identity.claims.groups", []ask{
			{claims: claims{"groups": []any{"web/", "api/", json.Number("1")}}, access: get("api/k"), want: "allow"},
			{claims: claims{"groups": []any{"web/", "api/", json.Number("1")}}, access: get("k"), want: "fail"},
			{claims: claims{"groups": []any{"web/", "api/"}}, access: get("api/k"), want: "allow"},
			{claims: claims{"groups": []any{"web/", "k"}}, access: get("k"), want: "allow"},
			{claims: claims{"groups": []any{"web/"}}, access: get("api/k"), want: "deny"},
			{claims: claims{"groups": "api/"}, access: get("api/k"), want: "deny"},
			{claims: claims{"groups": claims{"x": "api/"}}, access: get("api/k"), want: "allow"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			e := open(t, "package s3.authz\n"+test.rego+"\n")
			questions := make([]*policy.Question, len(test.asks))
			for i, a := range test.asks {
				q := questionOf(a.claims, a.access)
				if a.time != "" {
					at, err := time.Parse(time.RFC3339, a.time)
					if err != nil {
						t.Fatal(err)
					}
					q.Request.Time = at
				}
				// One identity, one subject, as for the requests of one token; and a hash that tells none apart.
				for j := range i {
					if fmt.Sprint(test.asks[j].claims) == fmt.Sprint(a.claims) {
						q.Subject = questions[j].Subject
					}
				}
				questions[i] = q
				policy.SameHash(questions[0], q)
			}
			known := 0
			for round := range 40 {
				i := round * 7 % len(questions)
				if round < 20 {
					i = round * len(questions) / 20 // some of each in a row
				}
				q, want := questions[i], test.asks[i].want
				if round%3 == 0 { // two accesses, one place
					twice := *q
					twice.Accesses = []policy.Access{q.Accesses[0], q.Accesses[0]}
					q = &twice
				}
				d, err := e.Decide(context.Background(), q)
				if have := map[bool]string{true: "allow", false: "deny"}[err == nil && d.Allow]; err != nil && want != "fail" || err == nil && have != want {
					t.Fatalf("round %d, question %d: %+v, %v, want %s", round, i, d, err, want)
				}
				if k, _ := e.Placed(q); k {
					known++
				}
				sameOnce(t, e, q, test.rego)
			}
			if known < 20 {
				t.Errorf("of 40 questions %d were about places that are known", known)
			}
		})
	}
}

// TestPlacesEnd: what was known by a policy is not by the next.
func TestPlacesEnd(t *testing.T) {
	d := dir(t, map[string]string{"p.rego": "package s3.authz\nallow if { input.bucket in data.buckets; startswith(input.key, `web/`) }\n", "d.json": `{"buckets": ["artifacts"]}`})
	e := openDir(t, d)
	q := question()
	for range 5 {
		if !decide(t, e, q).Allow {
			t.Fatal("refused")
		}
	}
	if known, left := e.Placed(q); !known || left != 1 {
		t.Fatalf("known %t, %d bodies left: not what this test is about", known, left)
	}
	write(t, filepath.Join(d, "d.json"), `{"buckets": []}`)
	if err := e.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if decide(t, e, q).Allow {
			t.Fatal("allowed by the policy before")
		}
	}
}

// TestPlacesBounded: however many places there are, and whatever is in them, few are kept.
func TestPlacesBounded(t *testing.T) {
	big := make([]string, 5_000)
	for i := range big {
		big[i] = fmt.Sprint("web/", i)
	}
	data, err := json.Marshal(map[string]any{"big": big})
	if err != nil {
		t.Fatal(err)
	}
	e := openDir(t, dir(t, map[string]string{
		"p.rego": "package s3.authz\nallow if input.key in s\ns contains x if { input.bucket == `big`; some x in data.big }\nallow if { input.bucket != `big`; startswith(input.key, `web/`) }\n",
		"d.json": string(data),
	}))
	q := question(policy.Access{Action: "s3:GetObject", Bucket: "big", Key: "web/1"})
	for range 4 {
		if !decide(t, e, q).Allow {
			t.Fatal("refused")
		}
	}
	if known, _ := e.Placed(q); known {
		t.Error("a place with 5,000 names in it is kept")
	}
	subject := q.Subject
	for i := range 20_000 {
		q := question(policy.Access{Action: "s3:GetObject", Bucket: fmt.Sprint("b", i), Key: "web/1"})
		q.Subject = subject
		for range 3 {
			if !decide(t, e, q).Allow {
				t.Fatal("refused")
			}
		}
	}
	if kept := e.Places(); kept < 100 || kept > 4096 {
		t.Errorf("%d places are kept", kept)
	}
}

// TestPlacesAtOnce is for the race detector: many ask about one place while it becomes known.
func TestPlacesAtOnce(t *testing.T) {
	e := openDir(t, startersDir(t, grown(5)))
	for range 50 {
		q := question()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 5 {
					mine := *q
					mine.Accesses = []policy.Access{{Action: "s3:GetObject", Bucket: "artifacts", Key: []string{"web/a", "secret/a"}[(i+j)%2], Backend: "aws"}}
					if d, err := e.Decide(context.Background(), &mine); err != nil || d.Allow != ((i+j)%2 == 0) {
						t.Errorf("%s: %+v, %v", mine.Accesses[0].Key, d, err)
					}
				}
			})
		}
		wg.Wait()
	}
}
