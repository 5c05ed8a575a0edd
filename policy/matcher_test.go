package policy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
)

// same holds the program to OPA for one question.
func same(t testing.TB, e *policy.Engine, q *policy.Question, rego string) {
	t.Helper()
	for range 3 { // as it is, then finding out about its place, then knowing
		sameOnce(t, e, q, rego)
	}
}

func sameOnce(t testing.TB, e *policy.Engine, q *policy.Question, rego string) {
	t.Helper()
	policy.Patient(e)
	fast, fastErr := e.Decide(context.Background(), q)
	plain, plainErr := e.DecidePlain(context.Background(), q)
	if (fastErr == nil) != (plainErr == nil) {
		t.Fatalf("%+v\n%s\nfast %+v, %v\nOPA  %+v, %v", q.Accesses, rego, fast, fastErr, plain, plainErr)
	}
	if fastErr == nil {
		if !reflect.DeepEqual(normal(fast), normal(plain)) {
			t.Fatalf("%+v\n%s\nfast %+v\nOPA  %+v", q.Accesses, rego, fast, plain)
		}
		allowed, err := e.Allowed(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range fast.Verdicts {
			// Terms that are not understood refuse too, and of those Allowed knows nothing.
			if v.Allow && !allowed[i] {
				t.Fatalf("%+v\n%s\nDecide allows, Allowed does not", q.Accesses[i], rego)
			}
		}
	}
}

// normal takes nil and empty for the same.
func normal(d *policy.Decision) string {
	own := *d // others have it too
	own.Shadow = nil
	text, err := json.Marshal(own)
	if err != nil {
		panic(err)
	}
	return strings.ReplaceAll(string(text), "null", "[]")
}

// TestMatcherStarters: every starter policy, alone and with the others, decides the same either way, and without OPA
// for all that clients usually do.
func TestMatcherStarters(t *testing.T) {
	e := openDir(t, startersDir(t, grown(20)))
	if list := e.Unknown(); len(list) > 0 {
		t.Errorf("rules that OPA must answer: %v", list)
	}
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	allowed, fast, atOnce := 0, 0, 0
	const n = 3000
	for range n {
		identity := &policy.Identity{
			Issuer:        pick("https://app.gitpod.io", "https://login.acme.com", "https://token.actions.githubusercontent.com"),
			Subject:       "s",
			RequestedRole: pick("", "", "arn:aws:iam::000000000000:role/break-glass/INC-1", "arn:aws:iam::000000000000:role/break-glass/no"),
			Claims:        map[string]any{"actor_type": pick("agent", "person")},
			Attributes: policy.Attributes{
				Project: pick("web", "project-1", "project-2", "", "../x"), User: pick("dev@acme.com", "oncall@acme.com", "project-3@acme.com", ""),
				Repository: pick("acme/project-1", "acme/web"), Groups: []string{pick("staff", "platform-admins"), "x"},
			},
		}
		action, operation := pick("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:ListAllMyBuckets", "s3:GetBucketLocation", "s3:DeleteBucket"), "X"
		access := policy.Access{Action: action, Bucket: pick("artifacts", "home", "web-cache", "bucket-1", "bucket-2", "bucket-3", "nowhere"), Backend: "aws"}
		switch place := pick("web/x", "shared/y/z", "api/1", "dev@acme.com/x", "", "flat", "web", "a//b"); action {
		case "s3:GetObject", "s3:PutObject", "s3:DeleteObject":
			access.Key = place + "k"
		case "s3:ListBucket":
			access.Prefix, operation = place, pick("ListObjectsV2", "HeadBucket", "ListBuckets")
		}
		q := &policy.Question{
			Subject: policy.NewSubject(identity), Operation: operation, Accesses: []policy.Access{access},
			Request: &policy.Request{Time: time.Date(2026, 11, 20+r.IntN(20), 0, 0, 0, 0, time.UTC)},
		}
		same(t, e, q, "starters")
		if decide(t, e, q).Allow {
			allowed++
		}
		if f := e.Fast(q); f[0] && f[1] {
			fast++
		}
		if e.AtOnce(q) {
			atOnce++
		}
	}
	if allowed < n/20 || allowed > n*19/20 || fast < n*9/10 || atOnce < allowed*9/10 {
		t.Errorf("of %d questions %d are allowed, %d of them at once, and %d answered fast", n, allowed, atOnce, fast)
	}
}

// TestMatcherRandom: random policies over random data, with everything that the program knows and much that it does
// not, decide the same either way, failures included.
func TestMatcherRandom(t *testing.T) {
	policies, seed := draw(t)
	fast, questions, placed, cut, atOnce := 0, 0, 0, 0, 0
	for i := range policies {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(i)))}
		d := dir(t, map[string]string{"d.json": g.data()})
		rego, e := g.policy(t, d)
		for range 50 {
			q := g.question()
			for range 5 {
				questions++
				same(t, e, q, rego)
				if e.Fast(q)[0] {
					fast++
				}
				if e.AtOnce(q) {
					atOnce++
				}
				if known, left := e.Placed(q); known {
					placed++
					cut += left
				}
				q = g.again(q)
			}
		}
	}
	t.Logf("%d of %d questions answered fast, %d in places of which %d rule bodies were left, %d at once", fast, questions, placed, cut, atOnce)
	if fast < questions/5 || placed < questions/5 { // which policies are drawn decides: of 40, a half to a third are placed
		t.Error("the generator makes too little of use")
	}
}

// draw is how many policies to make, and from what seed: that of a run that failed, by POLICY_SEED, or another each time.
func draw(t *testing.T) (policies int, seed uint64) {
	t.Helper()
	policies, seed = 40, uint64(time.Now().UnixNano())
	if n := os.Getenv("POLICY_COUNT"); n != "" {
		fmt.Sscan(n, &policies)
	}
	if s := os.Getenv("POLICY_SEED"); s != "" {
		fmt.Sscan(s, &seed)
	}
	t.Logf("POLICY_SEED=%d", seed)
	return policies, seed
}

// generator makes policies.
type generator struct {
	*rand.Rand
	vars int
}

func (g *generator) pick(list ...string) string { return list[g.IntN(len(list))] }

func (g *generator) data() string {
	return fmt.Sprintf(`{"owners": {"a": "web", "b": "api", "c": %s}, "grants": {"web": {"a": {"x": "read", "y": ["read", "write"]}, "b": {}}, "api": {"a": {"x": 1}}},
		"list": ["web", "a", %s], "flags": {"on": true, "off": false, "null": null}, "number": %d, "nested": {"a": {"b": {"a": ["a", "b"]}}},
		"odd": {"": {"": true, "a": false}, "/": "one", "1": 1, "a": "one", "web": false, "x": null, "\u0000": true, "\u00e9": "a", "b": ["a"], "a/b/c": {"a/b/c": 1}}, "until": {"a": -1, "web": 0, "x": 4000000000000000000}}`,
		g.pick(`"web"`, `7`, `null`, `["web"]`), g.pick(`"x"`, `3`, `{"k": "a"}`), g.IntN(5))
}

func (g *generator) question() *policy.Question {
	claim := []any{"a", "web", json.Number("1"), true, false, nil, []any{"a", "web"}, map[string]any{"a": "x", "web": true}}
	claims := map[string]any{"c": claim[g.IntN(len(claim))]}
	if g.IntN(2) == 0 {
		claims["d"] = claim[g.IntN(len(claim))]
	}
	q := &policy.Question{
		Subject: policy.NewSubject(&policy.Identity{
			Issuer: g.pick("i", "a"), Subject: "s", Claims: claims,
			Attributes: policy.Attributes{Project: g.pick("web", "api", "", "a"), User: g.pick("a", "b"), Groups: []string{"a", "g"}[:g.IntN(3)]},
		}),
		Operation: g.pick("GetObject", "X"),
		Request: &policy.Request{
			ID: "a", Time: time.Unix(1795420800+int64(g.IntN(2)), 0), Method: g.pick("GET", "a"), Host: g.pick("a", "b"), SourceIP: g.pick("a", ""), UserAgent: g.pick("web", ""),
			Secure: g.IntN(2) == 0, ContentLength: int64(g.IntN(3)), Headers: map[string]string{"x-amz-acl": g.pick("a", "private")}, Query: map[string]string{g.pick("a", "b"): "a"},
		},
	}
	for range 1 + g.IntN(3) {
		key := g.pick("", "a", "web/x", "a/b/c", "x")
		if g.IntN(4) == 0 {
			key = g.pick("/", "//", "a/", "web/", "web//x", "a/b", "1", "1.0", "\x00", "a\x00/b", "\xff", "a/\xff", "\u00e9", "e\u0301", "true", "b/0", strings.Repeat("a/", 600), "2026-01-01T00:00:00Z")
		}
		q.Accesses = append(q.Accesses, policy.Access{
			Action: g.pick("a", "b", "s3:GetObject"), Bucket: g.pick("a", "b", "c", "web", ""), Key: key,
			Prefix: g.pick("", "", "a", "web/"), Backend: g.pick("a", "aws"), VersionID: g.pick("", "", "a"), Delimiter: g.pick("", "/"),
		})
	}
	return q
}

// again is another question about the same places: what differs is what varies within one.
func (g *generator) again(q *policy.Question) *policy.Question {
	next := *q
	other := g.question()
	next.Request = other.Request
	next.Accesses = nil
	for _, a := range q.Accesses {
		b := other.Accesses[g.IntN(len(other.Accesses))]
		b.Action, b.Bucket, b.Backend = a.Action, a.Bucket, a.Backend
		next.Accesses = append(next.Accesses, b)
	}
	return &next
}

// policy puts rules together that compile: not every text does.
func (g *generator) policy(t *testing.T, d string) (string, *policy.Engine) {
	return g.put(t, d, "package s3.authz\n\nallow if input.key == \"never\"\n\nh1 if input.bucket == \"a\"\n\nh2 := \"a\"\n\nh3 if false\n\nset contains 1\n\nf(x) if x == \"z\"\n\n", g.rules())
}

func (g *generator) rules() []string {
	var list []string
	for _, name := range []string{"h1", "h2", "h3"} {
		if g.IntN(4) == 0 {
			list = append(list, fmt.Sprintf("default %s := %s\n\n", name, g.pick("false", "true", `"a"`)))
		}
		for range 1 + g.IntN(3) {
			list = append(list, fmt.Sprintf("%s := %s if {\n%s}\n\n", name, g.pick("true", "true", "true", `"a"`, `input.bucket`, `data.owners[input.bucket]`), g.body(name)))
		}
	}
	for range 1 + g.IntN(2) {
		list = append(list, fmt.Sprintf("set contains %s if {\n%s}\n\n", g.pick(`"a"`, "input.key", "1", "input.identity.claims.c"), g.body("set")))
	}
	for range 1 + g.IntN(2) {
		g.vars++
		list = append(list, fmt.Sprintf("f(%s) := %s if {\n%s}\n\n", g.pick("x", "x", `"a"`, "[x, _]"), g.pick("true", `"a"`, "input.bucket"), g.body("f")))
	}
	for _, name := range []string{"allow", "allow", "allow"} {
		list = append(list, fmt.Sprintf("%s if {\n%s}%s\n\n", name, g.body(""), g.pick("", "", "", fmt.Sprintf(" else := %s if {\n%s}", g.pick("false", "true"), g.body("")))))
	}
	if g.IntN(3) == 0 {
		list = append(list, "default allow := false\n\n")
	}
	for _, rule := range []string{`deny contains "no"`, `deny contains input.bucket`, `deny contains input.identity.claims.c`, `reasons contains concat("-", [input.bucket, input.action])`, `role := "r"`, `role := input.bucket`,
		`limits := {"bytes_per_second": data.number}`, `filter_listing`, `session_policy := {"Statement": [{"Resource": input.key}]}`} {
		if g.IntN(3) == 0 {
			list = append(list, fmt.Sprintf("%s if {\n%s}\n\n", rule, g.body("")))
		}
	}
	return list
}

func (g *generator) body(within string) string { return g.lines(3, g.expr, within) }

// lines is a rule's body of at most so many expressions.
func (g *generator) lines(most int, expression func(within string) string, within string) string {
	var b strings.Builder
	for range 1 + g.IntN(most) {
		fmt.Fprintf(&b, "\t%s\n", expression(within))
	}
	return b.String()
}

// term has any type; text is a string or undefined.
func (g *generator) term(within string) string {
	if within != "h1" && within != "f" && g.IntN(6) == 0 {
		if within == "" {
			return g.pick("h1", "h2", "h3", "set", "f(input.key)", "f(input.identity.claims.c)", "f([input.bucket, 1])")
		}
		if within != "h1" {
			return "h1"
		}
	}
	return g.pick(g.text(), g.text(), "input.identity.claims.c", "input.identity.claims.d", "input.identity.claims[input.bucket]", "data.owners[input.bucket]",
		"data.grants[input.identity.attributes.project][input.bucket]", "data.grants.web[input.bucket][input.key]", "data.flags.on", "data.flags.off", "data.number", "data.list",
		"data.nested[input.bucket].b[input.bucket]", "input.nonsense", "1", "true", "[input.bucket, 1]", `{"a", "b"}`, "null", "data.list[0]", "input.identity.attributes.groups", "count(data.list)",
		"input.request.method", `input.request.headers["x-amz-acl"]`, "input.request.headers[input.bucket]", "input.request.query.a", "input.request.secure", "input.request.content_length", "input.request[input.bucket]",
		"input.request.time", "input.request", "input", "time.now_ns()", "time.parse_rfc3339_ns(input.request.time)", "input.identity", "input.identity.attributes", "input.identity.claims", "input.identity.audience", "input.identity.expires",
		"input.identity.nonsense", "input.identity[input.bucket]", "input.identity.attributes[input.bucket]", "input.identity.claims.c.a", "input.identity.claims.c[0]", `input.identity.claims.c["0"]`, "input.identity.claims.c.a.b", "input.identity.issuer.x", "input.identity.attributes.groups[0]", `split(input.key, "/")`, "data.nowhere.x")
}

func (g *generator) text() string {
	return g.pick("input.action", "input.bucket", "input.key", "input.key", "input.prefix", "input.delimiter", "input.version_id", "input.backend", "input.operation", "input.request.host", "input.request.method", "input.identity.subject", `"a"`, `"web"`, "input.identity.issuer", "input.identity.attributes.project", "input.identity.attributes.user")
}

func (g *generator) expr(within string) string {
	g.vars++
	x := fmt.Sprintf("x%d", g.vars)
	switch g.IntN(40) {
	case 0, 1, 2:
		return fmt.Sprintf("%s == %s", g.term(within), g.term(within))
	case 3:
		return fmt.Sprintf("%s %s %s", g.term(within), g.pick("!=", "<", ">", "<=", ">="), g.term(within))
	case 4, 5:
		return fmt.Sprintf("%s(%s, %s)", g.pick("startswith", "endswith", "contains"), g.text(), g.text())
	case 6:
		return fmt.Sprintf("startswith(%s, %s)", g.term(within), g.text())
	case 7, 8:
		return fmt.Sprintf("%s in {%s, %s}", g.term(within), `"a"`, g.pick(`"b"`, `"web"`, "1", "true"))
	case 9:
		return fmt.Sprintf("%s in %s", g.term(within), g.term(within))
	case 10:
		return fmt.Sprintf("not %s", strings.TrimPrefix(g.expr(within), "not "))
	case 11:
		return g.term(within)
	case 12:
		return fmt.Sprintf("some %s in %s\n\t%s == %s", x, g.pick("data.list", "input.identity.attributes.groups", "data.owners", "input.identity.claims.c"), x, g.term(within))
	case 13:
		return fmt.Sprintf("some %s, %sv in %s\n\t%s == %s\n\t%sv != %s", x, x, g.pick("data.owners", "data.list", "data.grants.web", "input.identity.claims"), x, g.text(), x, g.term(within))
	case 14:
		return fmt.Sprintf("%s := concat(%s, [%s, %s])\n\tstartswith(%s, %s)", x, g.pick(`""`, `"/"`), g.term(within), g.text(), x, g.text())
	case 15:
		return fmt.Sprintf("[%s, %s_] := split(%s, \"/\")\n\t%s == %s", x, x, g.text(), x, g.text())
	case 16:
		return fmt.Sprintf("regex.match(%s, %s)", g.pick("`^[a-z]+$`", "`a`", "input.bucket"), g.term(within))
	case 17:
		return fmt.Sprintf("to_number(%s) >= 0", g.term(within))
	case 18:
		return fmt.Sprintf("%s := data.grants[%s][%s]\n\t%s == %s", x, g.pick(x+"k", g.text()), g.pick(x+"j", g.text()), x, g.term(within))
	case 19:
		return fmt.Sprintf("count([y | some y in data.list; y == %s]) > 0", g.term(within))
	case 20:
		return fmt.Sprintf("every y in data.list { y != %s }", g.term(within))
	case 21:
		return fmt.Sprintf("%s == %s", g.text(), g.text())
	case 22, 23, 24, 25:
		return fmt.Sprintf("%s in {\"a\", \"web\"}", g.text())
	case 26, 27:
		return fmt.Sprintf("startswith(%s, %s)", g.text(), g.text())
	case 28, 29:
		return fmt.Sprintf("data.grants[input.identity.attributes.project][%s]", g.text())
	case 30, 31:
		return fmt.Sprintf("not data.owners[%s]", g.text())
	case 32, 33:
		return fmt.Sprintf("data.owners[%s] == %s", g.text(), g.text())
	case 34, 35:
		return fmt.Sprintf("%s := %s\n\t%s != %s", x, g.text(), x, g.text())
	}
	return fmt.Sprintf("object.get(%s, %s, %s) == %s", g.pick("input", "input.identity.claims", "data.owners"), g.text(), g.text(), g.term(within))
}

// FuzzMatcher is TestMatcherRandom for as long as one likes.
func FuzzMatcher(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		g := &generator{Rand: rand.New(rand.NewPCG(a, b))}
		d := dir(t, map[string]string{"d.json": g.data()})
		rego, e := g.policy(t, d)
		for range 20 {
			q := g.question()
			for range 4 {
				same(t, e, q, rego)
				q = g.again(q)
			}
		}
	})
}
