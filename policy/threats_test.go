package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/test/machine"
)

// TestT19ClaimsAsCode: a claim is data wherever it goes. It cannot end the string that it is put in, add a
// statement to a session policy, or become Rego.
func TestT19ClaimsAsCode(t *testing.T) {
	e := open(t, `package s3.authz

allow if input.key == concat("/", [input.identity.claims.project, "a"])

session_policy := {"Version": "2012-10-17", "Statement": [{
	"Effect": "Allow",
	"Action": "s3:GetObject",
	"Resource": concat("", ["arn:aws:s3:::artifacts/", input.identity.claims.project, "/a"]),
}]}

reasons contains concat("", ["not yours: ", input.identity.claims.project])
`)
	for _, claim := range []string{
		`web"]},{"Effect":"Allow","Action":"*","Resource":"*"}]}`,
		"`; allow := true", `"} allow if true #`, `{{.Subject}}`, `${aws:username}`, `\u0022`, `\`, "a\nb", "a\x00b",
		`..`, `/`, `*`, `ü%2F"`, "\u2028", strings.Repeat(`"`, 8<<10),
	} {
		q := questionOf(map[string]any{"project": claim}, policy.Access{Action: "s3:GetObject", Bucket: "b", Key: claim + "/a"})
		d, err := e.Decide(context.Background(), q)
		if err != nil {
			t.Errorf("%.40q: %v", claim, err)
			continue
		}
		if len(claim) > 2000 {
			if d.Allow || !strings.Contains(d.Reasons[0], "AWS takes 2048") {
				t.Errorf("too long a session policy: %+v", d)
			}
			continue
		}
		var doc struct {
			Statement []struct{ Effect, Action, Resource string }
		}
		if err := json.Unmarshal(d.SessionPolicy, &doc); err != nil {
			t.Errorf("%q: %s: %v", claim, d.SessionPolicy, err)
			continue
		}
		if len(doc.Statement) != 1 || doc.Statement[0].Resource != "arn:aws:s3:::artifacts/"+claim+"/a" || doc.Statement[0].Action != "s3:GetObject" {
			t.Errorf("%q: %s", claim, d.SessionPolicy)
		}
		q.Accesses[0].Key = "other"
		if d := decide(t, e, q); d.Allow || len(d.Reasons) != 1 || d.Reasons[0] != "not yours: "+claim {
			t.Errorf("%q: %+v", claim, d)
		}
	}

	// Claims of every shape, and a session policy that is text rather than an object.
	nested := map[string]any{"project": map[string]any{"deep": []any{json.Number("1"), nil, true, map[string]any{"x": "y"}}}}
	if d, err := e.Decide(context.Background(), questionOf(nested)); err == nil {
		t.Errorf("nested claim: %+v", d)
	}
	e = open(t, `package s3.authz
allow := true
session_policy := object.get(input.identity.claims, "policy", {})
`)
	d := decide(t, e, questionOf(map[string]any{"policy": `{"Version": "2012-10-17", "Statement": []}`}))
	if d.Allow || d.SessionPolicy != nil || len(d.Reasons) != 1 || !strings.Contains(d.Reasons[0], "session_policy") {
		t.Errorf("session policy as text: %+v", d)
	}
}

// TestT20Namespaces: claims named like facts of the request stay claims.
func TestT20Namespaces(t *testing.T) {
	e := open(t, `package s3.authz
allow if {
	input.action == "s3:GetObject"
	input.bucket == "public"
	not input.key
	input.prefix == "p"
	input.identity.issuer == "https://app.gitpod.io"
	input.identity.method == "bearer"
	input.identity.attributes.project == "web"
	input.request.method == "GET"
	not input["s3:prefix"]
	not input.identity["s3:prefix"]
}
`)
	claims := map[string]any{}
	for _, name := range []string{"action", "bucket", "key", "prefix", "s3:prefix", "identity", "request", "issuer", "method", "attributes", "claims", "input", "data", "admin"} {
		claims[name] = map[string]any{"project": "api", "issuer": "evil", "method": "evil", "action": "evil"}
	}
	access := policy.Access{Action: "s3:GetObject", Bucket: "public", Prefix: "p"}
	if d := decide(t, e, questionOf(claims, access)); !d.Allow {
		t.Errorf("claims took the place of facts: %+v", d)
	}
	for _, wrong := range []policy.Access{
		{Action: "s3:PutObject", Bucket: "public", Prefix: "p"},
		{Action: "s3:GetObject", Bucket: "private", Prefix: "p"},
		{Action: "s3:GetObject", Bucket: "public", Prefix: "p", Key: "k"},
	} {
		right := map[string]any{"action": "s3:GetObject", "bucket": "public", "prefix": "p", "key": nil}
		if d := decide(t, e, questionOf(right, wrong)); d.Allow {
			t.Errorf("%+v: claims stood in for facts", wrong)
		}
	}
}

// TestT21DefaultAllow: nothing but a literal true allows.
func TestT21DefaultAllow(t *testing.T) {
	const unknown = "object.get(input.identity.claims, \"x\", null)" // of any type to the compiler
	for _, test := range []struct {
		name, rego string
		x          any // the claim
		reason     string
		fails      string // Decide's error
	}{
		{name: "undefined", rego: `allow if input.key == "no such key"`},
		{name: "false", rego: `allow := false`},
		{name: "default false", rego: "default allow := false\nallow if input.nonsense"},
		{name: "missing claim", rego: `allow if input.identity.claims.admin`},
		{name: "string", rego: `allow := ` + unknown, x: "true"},
		{name: "number", rego: `allow := ` + unknown, x: json.Number("1")},
		{name: "null", rego: `allow := ` + unknown},
		{name: "list", rego: `allow := ` + unknown, x: []any{true}},
		{name: "object", rego: `allow := ` + unknown, x: map[string]any{"allow": true}},
		{name: "always a string", rego: "allow := `true`"},
		{name: "always a number", rego: "allow := 1"},
		{name: "always a set", rego: "allow contains `x`"},
		{name: "always an object", rego: "allow := {`allow`: true}"},
		{name: "deny always a boolean", rego: "allow := true\ndeny if input.key", reason: "policy: deny: want a set of strings, have boolean"},
		{name: "deny always a string", rego: "allow := true\ndeny := `no`", reason: "policy: deny: want a set of strings, have string"},
		{name: "role always a number", rego: "allow := true\nrole := 1", reason: "policy: role: want a string with the role's name, have number"},
		{name: "limits always a list", rego: "allow := true\nlimits := [1]", reason: "policy: limits: want an object, have array"},
		{name: "denied", rego: "allow := true\ndeny contains \"no\"", reason: "no"},
		{name: "deny of another type", rego: "allow := true\ndeny := " + unknown, x: "no", reason: "policy: deny: want a set of strings, have string"},
		{name: "deny as list", rego: "allow := true\ndeny := " + unknown, x: []any{}, reason: "policy: deny: want a set of strings, have array"},
		{name: "deny of numbers", rego: "allow := true\ndeny contains " + unknown, x: json.Number("1"), reason: "policy: deny: want a set of strings, have number in it"},
		{name: "empty role", rego: "allow := true\nrole := " + unknown, x: "", reason: "policy: role: want a string with the role's name, have an empty one: leave the rule undefined for the backend's own"},
		{name: "role of another type", rego: "allow := true\nrole := " + unknown, x: []any{"r"}, reason: "policy: role: want a string with the role's name, have array"},
		{name: "session policy of another type", rego: "allow := true\nsession_policy := " + unknown, x: []any{}, reason: "policy: session_policy: want an object, an IAM policy document, have array"},
		{name: "session policy without statements", rego: "allow := true\nsession_policy := " + unknown, x: map[string]any{"Statement": []any{}}, reason: `policy: session_policy: want a list of statements below "Statement"`},
		{name: "unknown limit", rego: "allow := true\nlimits := " + unknown, x: map[string]any{"rps": json.Number("1")}, reason: `policy: limits: unknown limit "rps": want requests_per_second, bytes_per_second, in_flight or max_object_bytes`},
		{name: "limit of nothing", rego: "allow := true\nlimits := " + unknown, x: map[string]any{"bytes_per_second": json.Number("0")}, reason: `policy: limits: "bytes_per_second": want a number above 0, have 0`},
		{name: "limit as text", rego: "allow := true\nlimits := " + unknown, x: map[string]any{"bytes_per_second": "1"}, reason: `policy: limits: "bytes_per_second": want a number above 0, have "1"`},
		{name: "filter of another type", rego: "allow := true\nfilter_listing := " + unknown, x: "yes", reason: "policy: filter_listing: want a boolean, have string"},
		{name: "reasons of another type", rego: "allow := false\nreasons := " + unknown, x: "why", reason: "policy: reasons: want a set of strings, have string"},
		{name: "function fails in allow", rego: "allow if { to_number(input.identity.claims.x) == 1 }\nallow if true", x: "one", fails: "to_number"},
		{name: "function fails in deny", rego: "allow := true\ndeny contains \"no\" if to_number(input.identity.claims.x) > 1", x: "two", fails: "to_number"},
		{name: "function fails in role", rego: "allow := true\nrole := sprintf(\"%d\", [to_number(input.identity.claims.x)])", x: "two", fails: "to_number"},
		{name: "conflict", rego: "allow := true if input.bucket\nallow := false if input.key", fails: "conflict"},
		{name: "never ends", rego: "allow if { some i in numbers.range(1, 1000); some j in numbers.range(1, 1000); some k in numbers.range(1, 1000); i * j * k == -1 }", fails: "longer than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := open(t, "package s3.authz\n"+test.rego+"\n")
			if test.fails == "longer than" {
				policy.Impatient(e)
			}
			q := questionOf(map[string]any{"x": test.x})
			watch := machine.Watch(t)
			d, err := e.Decide(context.Background(), q)
			watch.Within(t, 5*time.Second, "decided")
			switch {
			case test.fails != "":
				if _, undecided := errors.AsType[*policy.Undecided](err); !undecided || d != nil || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("have %+v, %v", d, err)
				}
				if allowed, err := e.Allowed(context.Background(), q); err == nil && allowed[0] && test.name != "function fails in role" {
					t.Error("Allowed allows it")
				}
			case err != nil:
				t.Error(err)
			case d.Allow || d.Verdicts[0].Allow || d.Role != "" || d.SessionPolicy != nil:
				t.Errorf("allowed: %+v", d)
			case strings.Join(d.Reasons, "; ") != test.reason:
				t.Errorf("reasons %q, want %q", d.Reasons, test.reason)
			}
		})
	}

	t.Run("nothing asked", func(t *testing.T) {
		e := open(t, "package s3.authz\nallow := true\n")
		q := question()
		q.Accesses = nil
		if d, err := e.Decide(context.Background(), q); err == nil {
			t.Errorf("%+v", d)
		}
		if _, err := e.Decide(context.Background(), &policy.Question{Accesses: []policy.Access{{}}}); err == nil {
			t.Error("decided about nobody")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		e := open(t, "package s3.authz\nallow if { some i in numbers.range(1, 1000); some j in numbers.range(1, 1000); i * j < 0 }\n")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if d, err := e.Decide(ctx, question()); !errors.Is(err, context.Canceled) {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("zero values", func(t *testing.T) {
		if (policy.Decision{}).Allow || (policy.Verdict{}).Allow {
			t.Error("the zero value allows")
		}
		if d, err := new(policy.Engine).Decide(context.Background(), question()); err == nil {
			t.Errorf("an engine without policy decided: %+v", d)
		}
		if _, err := new(policy.Engine).Allowed(context.Background(), question()); err == nil {
			t.Error("an engine without policy decided")
		}
	})
}

// TestT21NoStartWithoutPolicy: what could never decide is refused when it is loaded.
func TestT21NoStartWithoutPolicy(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"empty directory", map[string]string{"README.md": "#"}, "no *.rego file"},
		{"only tests", map[string]string{"a_test.rego": "package s3.authz\nallow := true"}, "no *.rego file"},
		{"empty file", map[string]string{"a.rego": ""}, "a.rego"},
		{"another package", map[string]string{"a.rego": "package authz\nallow := true"}, "no package s3.authz"},
		{"no allow", map[string]string{"a.rego": "package s3.authz\nallowed := true"}, "no rule `allow`"},
		{"rules below allow", map[string]string{"a.rego": "package s3.authz\nallow.x := true"}, "no rule `allow`"},
		{"allow as data", map[string]string{"a.rego": "package s3.authz\nx := 1", "s3/authz/data.json": `{"allow": true}`}, "no rule `allow`"},
		{"data in the place of a rule", map[string]string{"a.rego": "package s3.authz\nallow := true if false", "s3/authz/data.json": `{"allow": true}`}, "conflicting rule"},
		{"syntax", map[string]string{"a.rego": "package s3.authz\nallow {"}, "a.rego:2"},
		{"rego of before 1.0", map[string]string{"a.rego": "package s3.authz\nallow { true }"}, "a.rego:2"},
		{"unknown function", map[string]string{"a.rego": "package s3.authz\nallow if startwith(input.key, `a`)"}, "startwith"},
		{"unsafe variable", map[string]string{"a.rego": "package s3.authz\nallow if x == 1"}, "a.rego:2"},
		{"network", map[string]string{"a.rego": "package s3.authz\nallow if http.send({`url`: `http://127.0.0.1`, `method`: `get`}).status_code == 200"}, "a.rego:2: http.send is not available: policies may not reach the network"},
		{"network by replacement", map[string]string{"a.rego": "package s3.authz\nf(x) := x\nallow if f({}) with f as http.send"}, "a.rego:3: rego_unsafe_var_error: var http"},
		{"names", map[string]string{"a.rego": "package s3.authz\nallow if net.lookup_ip_addr(`localhost`)"}, "net.lookup_ip_addr is not available: policies may not reach the network"},
		{"environment", map[string]string{"a.rego": "package s3.authz\nallow if opa.runtime().env.HOME"}, "opa.runtime is not available: policies may not read the environment"},
		{"files by schema", map[string]string{"a.rego": "package s3.authz\nallow if json.match_schema({}, {`$ref`: `file:///etc/hostname`})"}, "json.match_schema is not available"},
		{"deny as a function", map[string]string{"a.rego": "package s3.authz\nallow := true\ndeny(x) if x"}, "`deny` is a function"},
		{"allow as a function", map[string]string{"a.rego": "package s3.authz\nallow(x) if x"}, "`allow` is a function"},
		{"data that is no object", map[string]string{"a.rego": "package s3.authz\nallow := true", "d.json": "[]"}, "d.json: a data file holds an object"},
		{"data twice", map[string]string{"a.rego": "package s3.authz\nallow := true", "d.json": `{"x": {"y": 1}}`, "x/e.yaml": "y: 2"}, "another data file has a value"},
		{"data cut short", map[string]string{"a.rego": "package s3.authz\nallow := true", "d.json": `{"x": `}, "d.json"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := policy.Open(t.Context(), policy.Config{Dir: dir(t, test.files)}, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("have %v, want %q in it", err, test.want)
			}
		})
	}
	if _, err := policy.Open(t.Context(), policy.Config{}, nil); err == nil {
		t.Error("opened without a source")
	}
	if _, err := policy.Open(t.Context(), policy.Config{Dir: "/no/such/directory"}, nil); err == nil {
		t.Error("opened without a directory")
	}
}

// TestT22StaleAfterPolicyChange: what is kept ready of an identity is one identity's and one policy's. (The signer's
// cache is held to the role and session policy that come from here.)
func TestT22StaleAfterPolicyChange(t *testing.T) {
	rule := "package s3.authz\nallow if input.identity.attributes.project == data.project\nrole := concat(\"-\", [data.version, input.identity.subject])\n"
	d := dir(t, map[string]string{"p.rego": rule, "d.json": `{"version": "v1", "project": "web"}`})
	e := openDir(t, d)
	subjects := []*policy.Subject{
		policy.NewSubject(&policy.Identity{Subject: "a", Attributes: policy.Attributes{Project: "web"}}),
		policy.NewSubject(&policy.Identity{Subject: "b", Attributes: policy.Attributes{Project: "web"}}),
		policy.NewSubject(&policy.Identity{Subject: "a", Attributes: policy.Attributes{Project: "api"}}),
	}
	roles := func() (list []string) {
		for _, s := range subjects {
			q := question()
			q.Subject = s
			list = append(list, decide(t, e, q).Role)
		}
		return list
	}
	if have := strings.Join(roles(), ","); have != "v1-a,v1-b," {
		t.Errorf("roles %s", have)
	}
	write(t, d+"/d.json", `{"version": "v2", "project": "api"}`)
	if err := e.Reload(context.Background()); err != nil {
		t.Fatal(err)
	}
	if have := strings.Join(roles(), ","); have != ",,v2-a" {
		t.Errorf("roles after the change %s", have)
	}
}
