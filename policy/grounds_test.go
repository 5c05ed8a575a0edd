package policy_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/policy"
)

// TestGrounds: what is allowed at once, and what is not, for it could be denied or fail. OPA has the last word on both.
func TestGrounds(t *testing.T) {
	const (
		atOnce  = "at once"
		allowed = "allowed" // by asking
		refused = "refused"
		fails   = "fails"
	)
	for name, test := range map[string]struct {
		rego string
		keys map[string]string
	}{
		"a prefix":                 {`allow if startswith(input.key, "web/")`, map[string]string{"web/x": atOnce, "web": refused, "api/web/": refused}},
		"a suffix and a part":      {`allow if { endswith(input.key, ".txt"); not contains(input.key, "secret") }`, map[string]string{"a.txt": atOnce, "secret.txt": refused, "a": refused}},
		"one key":                  {"allow if input.key == \"a\"\nallow if { input.key != \"b\"; input.key in {\"b\", \"c\"} }", map[string]string{"a": atOnce, "b": refused, "c": atOnce}},
		"a place whatever the key": {`allow if input.bucket == "artifacts"`, map[string]string{"a": atOnce}},
		"a rule of the starters' kind": {"default may := false\nmay if startswith(place, own)\nplace := input.key\nplace := input.prefix if not input.key\n" +
			"own := concat(\"\", [input.identity.attributes.project, \"/\"])\nallow if { input.action == \"s3:GetObject\"; may }", map[string]string{"web/a": atOnce, "api/a": refused}},
		"a grant": {"allow if data.grants[input.identity.attributes.project][folder(input.key)]\nfolder(path) := name if [name, _] := strings.split_n(path, \"/\", 2)",
			map[string]string{"on/a": atOnce, "on": refused, "off/a": refused, "other/a": refused, "on/a/b": atOnce}},
		"a grant of a kind":                {`allow if data.kinds[split(input.key, "/")[0]] == "write"`, map[string]string{"w/a": atOnce, "r/a": refused, "n/a": refused, "w": atOnce, "x": refused}},
		"no grant of a kind":               {`allow if not data.kinds[split(input.key, "/")[0]] == "write"`, map[string]string{"w/a": refused, "r/a": atOnce, "n": atOnce, "x": atOnce}},
		"no grant":                         {`allow if not data.kinds[split(input.key, "/")[1]]`, map[string]string{"a/w": refused, "a/x": atOnce, "a": refused}},
		"the third part":                   {"allow if { parts := split(input.key, \"/\"); parts[2] == \"c\" }", map[string]string{"a/b/c": atOnce, "a/b/c/d": atOnce, "a/c": refused, "a/b/d": refused}},
		"a part of a part":                 {`allow if split(split(input.key, "/")[0], "-")[1] == "b"`, map[string]string{"a-b/c": allowed, "a/x-b": refused, "a/b": refused}},
		"a grant by a grant":               {"allow if data.kinds[data.kinds[input.key]]", map[string]string{"l": allowed, "w": refused, "x": refused}},
		"a grant of a grant":               {"allow if data.grants[input.key][input.key]", map[string]string{"web": refused, "on": refused, "self": allowed}},
		"a grant by a list":                {`allow if data.kinds[split(input.key, "/")]`, map[string]string{"w": refused}},
		"parts that are cut off":           {`allow if strings.split_n(input.key, "/", 2)[2] == "c"` + "\nallow if { [a, _, c] := strings.split_n(input.key, \"/\", 2); a == \"a\"; c == \"c\" }\nallow if { [a, b] := strings.split_n(input.key, \"/\", 2); a == \"a\"; b == \"a\" }", map[string]string{"a/b/c": refused, "c/b/c": refused, "a/a": atOnce, "a/a/a": atOnce}},
		"a part of none":                   {`allow if strings.split_n(input.key, "/", 0)[0] == "a"`, map[string]string{"a": refused, "": refused}},
		"two parts":                        {`allow if { [a, b] := split(input.key, "/"); a == "a"; b != "b" }`, map[string]string{"a/c": atOnce, "a/b": refused, "a/c/d": refused, "a": refused}},
		"one of a list":                    {"allow if { some p in data.prefixes; startswith(input.key, p) }", map[string]string{"a/x": atOnce, "b/x": atOnce, "c/x": refused}},
		"within a list":                    {"allow if split(input.key, \"/\")[0] in data.names", map[string]string{"a/x": atOnce, "c": refused, "1": refused}},
		"not a rule":                       {"allow if not hidden\nhidden if startswith(input.key, \".\")\nhidden if endswith(input.key, \"~\")", map[string]string{"a": atOnce, ".a": refused, "a~": refused}},
		"not a rule that is not seen":      {"allow if not hidden\nhidden if startswith(input.key, \".\")\nhidden if upper(input.key) == \"AB\"", map[string]string{"a": allowed, "ab": refused, ".a": refused}},
		"not a function that always holds": {"allow if not f(input.key)\nf(_) if input.bucket == \"artifacts\"", map[string]string{"a": refused}},
		"not a rule with else":             {"allow if not hidden\nhidden if startswith(input.key, \".\") else := true if endswith(input.key, \"~\")", map[string]string{"a": allowed, "a~": refused, ".a": refused}},
		"not a function that is not seen":  {"allow if not mine(input.key)\nmine(k) if startswith(k, \"a\")\nmine(k) if upper(k) == \"B\"", map[string]string{"a": refused, "b": refused, "c": allowed}},
		"a function with two values":       {"allow if f(input.key) == \"a\"\nf(k) := \"a\" if startswith(k, \"a\")\nf(k) := \"b\" if endswith(k, \"b\")", map[string]string{"a": allowed, "b": refused, "ab": fails}},
		"not a rule of two tests":          {"allow if not hidden\nhidden if { startswith(input.key, \".\"); endswith(input.key, \"~\") }", map[string]string{"a": allowed, ".a~": refused}},
		"a function of several":            {"allow if mine(input.key)\nmine(k) if startswith(k, \"a\")\nmine(k) if endswith(k, \"z\")", map[string]string{"a": atOnce, "z": atOnce, "b": refused}},
		"denied":                           {"allow if startswith(input.key, \"a\")\ndeny contains sprintf(\"not %s\", [input.key]) if endswith(input.key, \".secret\")", map[string]string{"a": atOnce, "a.secret": refused, "b": refused}},
		"denied by what is not seen":       {"allow if startswith(input.key, \"a\")\ndeny contains \"no\" if upper(input.key) == \"AB\"", map[string]string{"a": allowed, "ab": refused}},
		"denied by what is not seen, for some": {"allow if startswith(input.key, \"a\")\ndeny contains \"no\" if { endswith(input.key, \"b\"); upper(input.key) == \"AB\" }",
			map[string]string{"a": atOnce, "ab": refused, "aab": allowed}},
		"denied by a rule": {"allow if startswith(input.key, \"a\")\ndeny contains \"no\" if secret\nsecret if endswith(input.key, \"b\")\nsecret if upper(input.key) == \"AC\"",
			map[string]string{"ab": refused, "ac": refused, "a": allowed}},
		"denied unless a rule": {"allow if startswith(input.key, \"a\")\ndeny contains \"no\" if not open\nopen if endswith(input.key, \"b\")\nopen if endswith(input.key, \"c\")",
			map[string]string{"ab": atOnce, "ac": atOnce, "a": refused}},
		"denied whatever the key": {"allow if startswith(input.key, \"a\")\ndeny contains \"no\" if input.bucket == \"artifacts\"", map[string]string{"a": refused}},
		"denied by no set":        {"allow if startswith(input.key, \"a\")\ndeny := {\"no\"} if endswith(input.key, \"b\")", map[string]string{"a": allowed, "ab": refused}},
		"one that fails":          {"allow if to_number(input.key) == 2\nallow if startswith(input.key, \"1\")", map[string]string{"1": allowed, "1x": fails, "2": allowed}},
		"one that fails, for some": {"allow if { endswith(input.key, \"x\"); to_number(input.key) == 2 }\nallow if startswith(input.key, \"1\")",
			map[string]string{"1": atOnce, "1x": fails, "x": fails, "2": refused}},
		"one that fails in a rule": {"allow if { endswith(input.key, \"x\"); two }\ntwo if { contains(input.key, \"yx\"); to_number(input.key) == 2 }\nallow if startswith(input.key, \"1\")",
			map[string]string{"1": atOnce, "1x": atOnce, "1yx": fails, "yx": fails}},
		"one that fails after a rule": {"allow if { two; to_number(input.key) == 2 }\ntwo if endswith(input.key, \"x\")\nallow if startswith(input.key, \"1\")",
			map[string]string{"1": atOnce, "1x": fails}},
		"one that fails beside a rule":                      {"allow if h == g\ng := input.key if startswith(input.key, \"a\")\nh := to_number(input.key)\nallow if startswith(input.key, \"1\")", map[string]string{"1": allowed, "1x": fails, "ax": fails}},
		"one that fails beside a rule, the other way round": {"allow if g == h\ng := input.key if startswith(input.key, \"a\")\nh := to_number(input.key)\nallow if startswith(input.key, \"1\")", map[string]string{"1": allowed, "1x": allowed, "ax": fails}},
		"denied by the last of many":                        {"allow if contains(input.key, \"a\")\ndeny contains \"no\" if { some p in data.many; p != \"m\"; startswith(input.key, p) }", map[string]string{"a/x": refused, "xa": allowed}},
		"denied by the last of many, looked for at once":    {"allow if contains(input.key, \"a\")\ndeny contains \"no\" if { data.many[i] == \"a/\"; startswith(input.key, data.many[i]) }", map[string]string{"a/x": refused, "xa": allowed}},
		"a function of one text":                            {"allow if f(input.key)\nf(\"a\")\nf(k) if startswith(k, \"b\")", map[string]string{"a": allowed, "b": allowed, "c": refused}},
		"a list by a rule":                                  {"parts := split(input.key, \"/\")\nallow if parts[1] == \"b\"", map[string]string{"a/b": atOnce, "a": refused, "a/c": refused}},
		"a part by a rule":                                  {"part := split(input.key, \"/\")[1]\nallow if part\nallow if not part == \"b\"", map[string]string{"a/b": allowed, "a": allowed, "a/c": allowed}},
		"not a part by a rule":                              {"part := split(input.key, \"/\")[1]\nallow if not part", map[string]string{"a/b": refused, "a": allowed}},
		"a grant that is only there":                        {"allow if { x := data.kinds[input.key]; startswith(input.key, \"w\") }", map[string]string{"w": atOnce, "wx": refused, "r": refused}},
		"a grant in a set":                                  {"allow if { x := data.kinds[input.key]; x in {\"write\"} }", map[string]string{"w": allowed, "r": refused, "n": refused}},
		"a grant that begins so":                            {"allow if { x := data.kinds[input.key]; startswith(x, \"w\") }", map[string]string{"w": allowed, "r": refused, "n": fails}},
		"a grant of nothing":                                {"allow if data.kinds[input.key] == \"\"", map[string]string{"w": refused, "n": refused}},
		"parts between dashes":                              {"allow if split(input.key, \"-\")[1] == \"b\"", map[string]string{"a-b": atOnce, "a/b": refused, "a-b/c": refused}},
		"denied by two texts":                               {"allow if contains(input.key, \"a\")\ndeny contains \"no\" if { [x, y] := split(input.key, \"/\"); x == y }", map[string]string{"a/b": allowed, "a/a": refused, "a": atOnce}},
		"denied by what nobody has":                         {"allow if contains(input.key, \"a\")\ndeny contains \"no\" if input.key == input.identity.claims.none", map[string]string{"a": atOnce, "b": refused}},
		"a rule asked for twice":                            {"allow if { startswith(input.key, \"a\"); h }\nallow if contains(input.key, \"c\")\ndeny contains \"no\" if h\nh if endswith(input.key, \"b\")", map[string]string{"c": atOnce, "cb": refused, "ab": refused}},
		"one that may fail by its head":                     {"h := to_number(input.key) if endswith(input.key, \"x\")\nallow if h == 2\nallow if startswith(input.key, \"1\")", map[string]string{"1": allowed, "1x": fails}},
		"else":                                              {"allow if startswith(input.key, \"a\") else := false if endswith(input.key, \"b\")", map[string]string{"a": allowed, "b": refused, "ab": allowed}},
		"not always true":                                   {"allow := startswith(input.key, \"a\")", map[string]string{"a": allowed, "b": refused}},
		"true and false":                                    {"allow if startswith(input.key, \"a\")\nallow := false if endswith(input.key, \"b\")", map[string]string{"a": allowed, "b": refused, "ab": fails}},
		"true by default":                                   {"default h := true\nh := false if startswith(input.key, \"a\")\nallow if h", map[string]string{"a": refused, "b": allowed}},
		"denied by default":                                 {"allow if startswith(input.key, \"a\")\ndeny contains \"no\" if h\ndefault h := true\nh := false if endswith(input.key, \"b\")", map[string]string{"a": refused, "ab": allowed, "b": refused}},
		"denied by another default":                         {"allow if contains(input.key, \"c\")\ndeny contains \"no\" if h == \"b\"\ndefault h := \"b\"\nh := input.key if startswith(input.key, \"a\")", map[string]string{"c": refused, "ac": allowed, "a": refused}},
		"not what is true by default":                       {"default h := true\nh := false if startswith(input.key, \"a\")\nallow if not h", map[string]string{"a": allowed, "b": refused}},
		"something else by default":                         {"default h := \"b\"\nh := input.key if startswith(input.key, \"a\")\nallow if h == \"b\"", map[string]string{"a": refused, "b": allowed}},
		"a value that may be another":                       {"h := \"b\" if upper(input.key) == \"AB\"\nh := \"a\" if startswith(input.key, \"a\")\nallow if h == \"a\"", map[string]string{"a": allowed, "ab": fails}},
		"the key, or another value":                         {"h := \"b\" if upper(input.key) == \"AB\"\nh := input.key if startswith(input.key, \"a\")\nallow if startswith(h, \"a\")", map[string]string{"a": allowed, "ab": fails, "b": refused}},
		"values that differ, all true":                      {"h := \"a\" if startswith(input.key, \"a\")\nh := \"b\" if endswith(input.key, \"b\")\nallow if h", map[string]string{"a": allowed, "b": allowed, "ab": fails, "c": refused}},
		"texts that differ":                                 {"h := input.key if startswith(input.key, \"a\")\nh := split(input.key, \"/\")[1] if endswith(input.key, \"b\")\nallow if contains(h, \"a\")", map[string]string{"a": allowed, "a/b": fails, "b": refused, "b/ab": allowed}},
		"a set is no text":                                  {"h contains input.key\nallow if h == input.identity.claims.project_id", map[string]string{"web": refused}},
		"values that differ":                                {"h := \"a\" if startswith(input.key, \"a\")\nh := \"b\" if endswith(input.key, \"b\")\nallow if h == \"a\"", map[string]string{"a": allowed, "b": refused, "ab": fails}},
		"yes is not true":                                   {"allow := \"yes\" if startswith(input.key, \"a\")", map[string]string{"a": refused}},
		"the time":                                          {"allow if { startswith(input.key, \"a\"); time.now_ns() > 0 }\nallow if startswith(input.key, \"b\")", map[string]string{"a": allowed, "b": atOnce}},
		"the request":                                       {"allow if { startswith(input.key, \"a\"); input.request.method == \"GET\" }\nallow if startswith(input.key, \"b\")", map[string]string{"b": atOnce, "c": refused}},
		"terms that vary":                                   {"allow if startswith(input.key, \"a\")\nrole := input.key", map[string]string{"a": allowed, "b": refused}},
		"terms that are not understood":                     {"allow if startswith(input.key, \"a\")\nrole := 1", map[string]string{"a": refused}},
	} {
		t.Run(name, func(t *testing.T) {
			e := openDir(t, dir(t, map[string]string{
				"p.rego": "package s3.authz\n" + test.rego + "\n",
				"d.json": `{"many": [` + strings.Repeat(`"m",`, 2500) + `"a/"], "grants": {"web": {"on": true, "off": false}, "self": {"self": true}}, "kinds": {"w": "write", "r": "read", "n": 1, "l": "w"}, "prefixes": ["a/", "b/"], "names": ["a", "b", 1]}`,
			}))
			first := question()
			for range 3 {
				for key, want := range test.keys {
					q := question(policy.Access{Action: "s3:GetObject", Bucket: "artifacts", Key: key, Backend: "aws"})
					q.Subject = first.Subject
					same(t, e, q, test.rego)
					d, err := e.Decide(context.Background(), q)
					have := refused
					switch {
					case e.AtOnce(q):
						have = atOnce
					case err != nil:
						have = fails
					case d.Allow:
						have = allowed
					}
					if have != want {
						t.Errorf("%q: %s, want %s", key, have, want)
					}
				}
			}
		})
	}
}

// TestGroundsAreShared: what is done with a decision leaves it as it is, for the next has the same.
func TestGroundsAreShared(t *testing.T) {
	policies := dir(t, map[string]string{"p.rego": "package s3.authz\nallow if input.key\nrole := \"r\"\nlimits := {\"in_flight\": 2}\nsession_policy := {\"Statement\": [{\"Effect\": \"Deny\"}]}\n"})
	q := question()
	for name, shadow := range map[string]*policy.Config{"alone": nil, "with a shadow": {Dir: policies}} {
		e, heard := watched(t, policy.Config{Dir: policies, Shadow: shadow})
		if shadow != nil && e.Status().Shadow.Revision == "" {
			heard(func(s policy.Status) bool { return s.Shadow.Revision != "" })
		}
		var first string
		for range 6 {
			d := decide(t, e, q)
			if have := normal(d); first == "" {
				first = have
			} else if have != first {
				t.Errorf("%s: changed from %s to %s", name, first, have)
			}
			if differs := d.Shadow != nil && d.Shadow.Differs; differs || (d.Shadow == nil) != (shadow == nil) {
				t.Errorf("%s: shadow %+v", name, d.Shadow)
			}
			x, err := e.Explain(t.Context(), q)
			if err != nil || !x.Allow {
				t.Fatal(x, err)
			}
			x.Limits.InFlight++ // an explanation is its caller's own
		}
		one, another := decide(t, e, q), decide(t, e, q)
		if !e.AtOnce(q) || shadow == nil && one != another {
			t.Errorf("%s: not what this test is about", name)
		}
	}
}

// TestGroundsRandom: policies made of what grounds are found in, and now and then of what they are not, decide the same
// at once, by asking the program, and by OPA.
func TestGroundsRandom(t *testing.T) {
	policies, seed := draw(t)
	atOnce, allowed := 0, 0
	for i := range policies {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(i)))}
		d := dir(t, map[string]string{"d.json": g.data()})
		rego, e := g.put(t, d, textRules, g.textual())
		for range 20 {
			q := g.asked()
			for range 4 {
				same(t, e, q, rego)
				if decided, err := e.Decide(context.Background(), q); err == nil && decided.Allow {
					allowed++
					if e.AtOnce(q) {
						atOnce++
					}
				}
				q = g.again(q)
			}
		}
	}
	t.Logf("of %d questions that were allowed %d were at once", allowed, atOnce)
	if policies >= 40 && (atOnce < allowed/20 || allowed < policies*5) { // a fifth of them, over many policies
		t.Error("the generator makes too little of use")
	}
}

// FuzzGrounds is TestGroundsRandom for as long as one likes.
func FuzzGrounds(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		g := &generator{Rand: rand.New(rand.NewPCG(a, b))}
		d := dir(t, map[string]string{"d.json": g.data()})
		rego, e := g.put(t, d, textRules, g.textual())
		for range 10 {
			q := g.asked()
			for range 6 {
				same(t, e, q, rego)
				q = g.again(q)
			}
		}
	})
}

// asked is a question about one access, or now and then about several.
func (g *generator) asked() *policy.Question {
	q := g.question()
	if g.IntN(8) != 0 {
		q.Accesses = q.Accesses[:1]
	}
	return q
}

// textRules are there whatever is drawn.
const textRules = `package s3.authz

allow if input.key == "never"

r1 if input.bucket == "a"

r2 if endswith(input.key, "x")

v1 := input.key

v2 := concat("", [input.identity.attributes.project, "/"])

f1(p) := name if [name, _] := strings.split_n(p, "/", 2)

f2(p) if startswith(p, "a")

f3(p, q) := q if startswith(p, "a")

s1 contains "a"

r3 if input.bucket == "none"

`

// textual are rules about texts.
func (g *generator) textual() (list []string) {
	rule := func(head, within string) {
		list = append(list, fmt.Sprintf("%s if {\n%s}\n\n", head, g.tests(within)))
	}
	for range g.IntN(3) {
		rule("r1", "r1")
	}
	for range g.IntN(3) {
		rule("r2", "r2")
	}
	if g.IntN(3) == 0 {
		list = append(list, fmt.Sprintf("default r2 := %s\n\n", g.pick("false", "false", "true")))
	}
	if g.IntN(4) == 0 {
		rule(fmt.Sprintf("v1 := %s", g.pick("input.prefix", "input.version_id", `split(input.key, "/")[1]`)), "r1")
	}
	if g.IntN(3) == 0 {
		list = append(list, fmt.Sprintf("f2(p) if {\n\t%s\n%s}\n\n", strings.ReplaceAll(g.test("r1"), "input.key", "p"), g.tests("r1")))
	}
	if g.IntN(4) == 0 { // another value, which is a conflict where both hold
		rule(fmt.Sprintf("v1 := %s", g.pick(`"a"`, "input.bucket", "v2", "[input.key, 1]", "1")), "r1")
	}
	if g.IntN(3) == 0 {
		rule("s1 contains "+g.pick("input.key", `"web"`, "input.bucket", "1", `split(input.key, "/")[0]`, "data.odd[input.prefix]"), "r1")
	}
	if g.IntN(3) == 0 {
		list = append(list, fmt.Sprintf("f3(p, q) := %s if {\n\t%s\n%s}\n\n", g.pick("p", "q", `"a"`, "true"), strings.ReplaceAll(g.test("r1"), "input.key", "q"), g.tests("r1")))
	}
	if g.IntN(8) == 0 {
		list = append(list, g.pick("default f2(_) := false\n\n", "default f3(_, _) := \"a\"\n\n", "default v1 := \"web\"\n\n", "f3(\"a\", q) := q if startswith(q, \"w\")\n\n"))
	}
	if g.IntN(6) == 0 {
		list = append(list, fmt.Sprintf("%s if {\n%s} else := %s if {\n%s} else := %s\n\n", g.pick("r2", "r3", "allow", `v1 := "a"`), g.tests("r1"), g.pick("true", "false", `"web"`), g.tests("r1"), g.pick("false", "true")))
	}
	for range g.IntN(2) {
		rule("r3", "r3")
	}
	for range 2 + g.IntN(3) {
		rule("allow", "")
	}
	if g.IntN(12) == 0 {
		rule(g.pick("allow := false", `allow := "yes"`, "allow := r2", "allow := f2(input.key)"), "")
	}
	if g.IntN(12) == 0 {
		list = append(list, g.pick("default allow := false\n\n", "default allow := true\n\n"))
	}
	for range g.IntN(3) {
		if g.IntN(2) == 0 {
			rule(g.pick(`deny contains "no"`, "deny contains input.key", `deny contains sprintf("%s", [input.bucket])`, "deny contains data.odd[input.key]", "deny contains v1", "deny contains 1"), "")
		}
	}
	if g.IntN(4) == 0 {
		rule(g.pick(`role := "r"`, "role := input.bucket", "role := input.key", `role := ""`), "")
	}
	if g.IntN(6) == 0 {
		rule(g.pick("filter_listing", `limits := {"in_flight": 2}`, `limits := {"in_flight": 0}`, `session_policy := {"Statement": [{"Resource": "x"}]}`, `reasons contains input.key`), "")
	}
	return list
}

func (g *generator) tests(within string) string { return g.lines(2, g.test, within) }

// test is one expression. Rules do not call those after them.
func (g *generator) test(within string) string {
	g.vars++
	x := fmt.Sprintf("x%d", g.vars)
	text := func() string {
		if within != "r1" && g.IntN(4) == 0 {
			return g.pick("v1", "v1", "f1(input.key)", "f1(v1)", "f3(input.key, input.prefix)", "f3(input.key, v1)", `f3("a", input.key)`)
		}
		return g.pick("input.key", "input.key", "input.key", "input.key", "input.prefix", "input.version_id", "input.delimiter", `split(input.key, "/")[0]`, `split(input.key, "/")[1]`,
			`split(split(input.key, "/")[0], "e")[0]`, `strings.split_n(input.key, "/", 2)[1]`)
	}
	known := func() string {
		if within != "r1" && g.IntN(5) == 0 {
			return "v2"
		}
		return g.pick(`"a"`, `"web"`, `"web/"`, `"x"`, `"/"`, `""`, `"a/b/c"`, "input.bucket", "input.identity.attributes.project", "input.identity.claims.c", "input.action")
	}
	if g.IntN(20) == 0 {
		return g.pick(`input.request.method == "GET"`, "time.now_ns() > 0", fmt.Sprintf("lower(%s) == %s", text(), known()), fmt.Sprintf("to_number(%s) >= 0", text()), g.expr("h1"),
			fmt.Sprintf("data.until[%s] > time.now_ns()", text()), fmt.Sprintf("time.parse_rfc3339_ns(%s) > 0", text()), fmt.Sprintf("to_number(%s) >= 0", known()),
			fmt.Sprintf("some %s in split(%s, \"/\")\n\t%s == %s", x, text(), x, known()))
	}
	if g.IntN(200) == 0 { // the program knows none of these, nor then the rest of the policy
		return g.pick(fmt.Sprintf("count([y | some y in data.list; y == %s]) > 0", text()), fmt.Sprintf("%s == %s with input.key as \"a\"", text(), known()), fmt.Sprintf("every y in data.list { y != %s }", text()))
	}
	switch g.IntN(33) {
	case 0, 1, 2, 3, 4:
		return fmt.Sprintf("%s(%s, %s)", g.pick("startswith", "startswith", "endswith", "contains"), text(), known())
	case 5, 6:
		return fmt.Sprintf("%s %s %s", text(), g.pick("==", "!="), known())
	case 7:
		return fmt.Sprintf("%s %s %s", known(), g.pick("==", "!="), text())
	case 8:
		return fmt.Sprintf("%s in %s", text(), g.pick(`{"a", "web", "x"}`, `{"a", 1, "web/x"}`, "data.list", "input.identity.claims.c", "data.owners", "input.identity.attributes.groups"))
	case 9, 10:
		return "not " + strings.TrimPrefix(g.test(within), "not ")
	case 11:
		return fmt.Sprintf("some %s in %s\n\tstartswith(%s, %s)", x, g.pick("data.list", "input.identity.attributes.groups", "input.identity.claims.c", "data.owners"), text(), x)
	case 12, 13:
		return fmt.Sprintf("data.grants[input.identity.attributes.project][%s][%s]", g.pick(text(), "input.bucket", `"a"`), text())
	case 14:
		return fmt.Sprintf("data.owners[%s] %s %s", text(), g.pick("==", "!="), known())
	case 15:
		return fmt.Sprintf("[%s, %s_] := split(%s, \"/\")\n\t%s == %s", x, x, text(), g.pick(x, x+"_"), known())
	case 16:
		return fmt.Sprintf("[%s, _] := strings.split_n(%s, \"/\", %s)\n\tstartswith(%s, %s)", x, text(), g.pick("2", "2", "1", "3"), x, known())
	case 17:
		return fmt.Sprintf("%s := %s\n\t%s(%s, %s)", x, text(), g.pick("startswith", "endswith"), x, known())
	case 18:
		return fmt.Sprintf("f2(%s)", text())
	case 19, 20:
		switch within {
		case "":
			return g.pick("r1", "r2", "r1", "r2", "r3", "not r3", "r1 == true", "v1", "not v1")
		case "r3":
			return g.pick("r1", "not r1", "r2", "not r2", "v1", "not v1")
		}
		return text()
	case 21:
		return fmt.Sprintf("%s == %s", text(), text())
	case 22:
		return fmt.Sprintf("%s in {\"a\", \"b\", \"s3:GetObject\"}", g.pick("input.action", "input.bucket"))
	case 23, 24:
		return fmt.Sprintf("data.odd[%s]%s", text(), g.pick("", "", " == 1", " == \"one\"", " != \"one\"", " == false", " == null", "[\"\"]", "[input.key]", "[0]"))
	case 25:
		return fmt.Sprintf("%s := data.odd[%s]\n\t%s", x, text(), g.pick(x, x+` == "one"`, "not "+x, "startswith("+x+`, "o")`, x+` in {"one", true}`, "data.odd["+x+"]"))
	case 26:
		return fmt.Sprintf("%s := data.grants.web[%s]\n\t%s[%s]", x, g.pick("input.bucket", `"a"`), x, text())
	case 27:
		return fmt.Sprintf("%s == %s", g.pick("data.list[0]", "1", "input.identity.claims.c[0]", "data.number", "input.identity.expires"), text())
	case 28:
		if within != "r1" {
			return g.pick(fmt.Sprintf("%s in s1", text()), fmt.Sprintf("s1[%s]", text()), fmt.Sprintf("not %s in s1", text()), "count(s1) > 1")
		}
	case 29:
		return g.pick("input.key", "not input.key", "input.version_id", "not input.prefix", "input.key.x", "input.key[0]")
	case 30:
		return fmt.Sprintf("%s := split(%s, %s)\n\t%s[%s] == %s", x, text(), g.pick(`"/"`, `"e"`, `""`, `"//"`), x, g.pick("0", "1", "2", `"0"`, "1.0", "-1"), known())
	case 31:
		return fmt.Sprintf("not f2(%s)", text())
	case 32:
		return fmt.Sprintf("[%s, \"b\"] := split(%s, \"/\")\n\t%s == %s", x, text(), x, known())
	}
	return fmt.Sprintf("startswith(%s, %s)", text(), known())
}

// put puts those rules together that compile.
func (g *generator) put(t *testing.T, d, whole string, rules []string) (string, *policy.Engine) {
	var engine *policy.Engine
	for _, r := range append([]string{""}, rules...) {
		write(t, filepath.Join(d, "p.rego"), whole+r)
		if e, err := policy.Load(t.Context(), d); err == nil {
			engine = e
			whole += r
		}
	}
	return whole, engine
}
