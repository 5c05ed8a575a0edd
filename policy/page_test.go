package policy_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sluice-s3/sluice/policy"
)

const grouped = `package s3.authz

allow if {
	input.action == "s3:GetObject"
	some prefix in prefixes
	startswith(input.key, prefix)
}

allow if input.action == "s3:ListBucket"

prefixes := {concat("", [group, "/"]) | some group in [input.identity.attributes.project]}

deny contains "secret" if endswith(input.key, ".secret")

filter_listing if input.action == "s3:ListBucket"
`

// samePage holds the three ways to judge a page to each other: all keys in one evaluation (paged), key by key as they
// are served (e), and each key by itself by OPA.
func samePage(t testing.TB, e, paged *policy.Engine, q *policy.Question, keys []string, rego string) (judged bool) {
	t.Helper()
	ctx := context.Background()
	want, failed := make([]bool, len(keys)), 0
	for i, key := range keys {
		v, err := e.VisibleKeysPlain(ctx, q, []string{key})
		if err != nil {
			failed++
			continue
		}
		want[i] = v[0]
	}
	check := func(way string, got []bool, err error) {
		t.Helper()
		switch {
		case err != nil && failed == 0:
			t.Fatalf("%s: %v\n%+v\n%s", way, err, q.Accesses, rego)
		case err == nil && !slices.Equal(got, want):
			t.Fatalf("%s:\nhave %v\nwant %v (%d failed)\n%q %+v\n%s", way, got, want, failed, keys, q.Accesses, rego)
		}
	}
	got, err := e.VisibleKeys(ctx, q, keys)
	check("as served", got, err)
	if paged == nil {
		return false
	}
	// It may fail where keys by themselves do not, for it tries expressions in another order: then it is not used.
	got, err = paged.VisiblePage(ctx, q, keys)
	if err == nil {
		check("paged", got, nil)
	}
	got, served := paged.VisibleKeys(ctx, q, keys)
	check("paged as served", got, served)
	return err == nil
}

// TestPage: each way in which a rule can depend on the key.
func TestPage(t *testing.T) {
	keys := []string{"web/a", "api/a", "", "web/b.secret", "web", "1", "x/y/z", "shared/web", "web/a"}
	for name, c := range map[string]struct {
		rego   string
		byKey  bool // it cannot be judged in one
		hidden bool // nothing is visible
		more   string
	}{
		"direct":                {rego: `allow if startswith(input.key, "web/")`},
		"not at all":            {rego: `allow if input.bucket == "artifacts"`},
		"not at all, refused":   {rego: "allow if input.bucket == \"other\"", hidden: true},
		"through a rule":        {rego: "allow if own\nown if startswith(input.key, \"web/\")"},
		"through its value":     {rego: "allow if folder == \"web\"\nfolder := split(input.key, \"/\")[0]"},
		"into its value":        {rego: "allow if parts[1] == \"a\"\nparts := split(input.key, \"/\")"},
		"not into its value":    {rego: "allow if not parts[1]\nparts := split(input.key, \"/\")", byKey: true},
		"default":               {rego: "default allow := false\nallow if not secret\ndefault secret := false\nsecret if endswith(input.key, \".secret\")"},
		"default that allows":   {rego: "default allow := true\nallow := false if endswith(input.key, \".secret\")"},
		"else":                  {rego: "allow if {\nendswith(input.key, \".secret\")\nfalse\n} else if startswith(input.key, \"web/\")"},
		"else with a value":     {rego: "allow if kind == \"web\"\nkind := \"secret\" if endswith(input.key, \".secret\")\nelse := \"web\" if startswith(input.key, \"web/\")"},
		"else of several":       {rego: "allow if startswith(input.key, \"web/\")\nallow if input.key == \"1\"\nelse := false", byKey: true},
		"negation":              {rego: "allow if not startswith(input.key, \"web/\")"},
		"negated rule":          {rego: "allow if not own\nown if startswith(input.key, \"web/\")"},
		"negation of a value":   {rego: "allow if not startswith(input.key, first)\nfirst := \"web\" if startswith(input.key, \"web/\")", hidden: true},
		"negated function":      {rego: "allow if not below(\"web\")\nbelow(x) if startswith(input.key, x)"},
		"function of the key":   {rego: "allow if below(input.key, \"web/\")\nbelow(k, x) if startswith(k, x)"},
		"function about it":     {rego: "allow if below(\"web/\")\nbelow(x) if startswith(input.key, x)\nbelow(x) if endswith(input.key, trim_suffix(x, \"/\"))"},
		"function with else":    {rego: "allow if f(\"a\") == 2\nf(x) := 1 if endswith(input.key, x) else := 2"},
		"deny":                  {rego: "allow := true\ndeny contains \"secret\" if endswith(input.key, \".secret\")\ndeny contains input.key if input.key == \"1\""},
		"deny without a word":   {rego: "allow := true\ndeny contains input.identity.claims.none if endswith(input.key, \".secret\")"},
		"deny all":              {rego: "allow if startswith(input.key, \"web/\")\ndeny contains \"no\" if input.bucket == \"artifacts\"", hidden: true},
		"deny nobody":           {rego: "allow if startswith(input.key, \"web/\")\ndeny contains \"no\" if input.bucket == \"other\""},
		"deny as a value":       {rego: "allow if startswith(input.key, \"web/\")\ndeny := {\"no\"} if endswith(input.key, \".secret\")", byKey: true},
		"deny no value":         {rego: "allow if startswith(input.key, \"web/\")\ndeny := {\"no\"} if input.bucket == \"other\"", byKey: true},
		"comprehension":         {rego: "allow if count([p | some p in split(input.key, \"/\"); p == \"web\"]) > 0"},
		"in a comprehension":    {rego: "allow if count([p | some p in [\"web\", \"x\"]; p == first]) > 0\nfirst := split(input.key, \"/\")[0]"},
		"every":                 {rego: "allow if every p in split(input.key, \"/\") { p != \"web\" }"},
		"some":                  {rego: "allow if {\nsome p in {\"web/\", \"api/\"}\nstartswith(input.key, p)\n}"},
		"look-up":               {rego: "allow if {\"web/a\": true, \"1\": false}[input.key]"},
		"set of rules":          {rego: "allow if \"web\" in parts\nparts contains p if some p in split(input.key, \"/\")", byKey: true},
		"object of rules":       {rego: "allow if of.web\nof[p] := true if some p in split(input.key, \"/\")", byKey: true},
		"named at run time":     {rego: "allow if data.s3.other[name]\nname := \"own\"", more: "package s3.other\nown if startswith(input.key, \"web/\")\n", byKey: true},
		"whole input":           {rego: "allow if startswith(object.get(input, \"key\", \"\"), \"web/\")", byKey: true},
		"input by a variable":   {rego: "allow if {\nsome k\nstartswith(input[k], \"web/\")\n}", byKey: true},
		"whole input in one":    {rego: "allow if f(input)\nf(x) if startswith(x.key, \"web/\")", byKey: true},
		"with":                  {rego: "allow if own with input.key as \"web/x\"\nown if startswith(input.key, \"web/\")", byKey: true},
		"no such field":         {rego: "allow if input.keys[0] == \"web/a\"", hidden: true},
		"below the key":         {rego: "allow if input.key[0] == \"w\"", hidden: true},
		"conflict":              {rego: "allow if kind == 1\nkind := 1 if startswith(input.key, \"web\")\nkind := 2 if endswith(input.key, \".secret\")"},
		"failure":               {rego: "allow if startswith(input.key, \"web\")\nallow if to_number(input.key) == 1"},
		"failure of deny":       {rego: "allow if startswith(input.key, \"web\")\ndeny contains \"one\" if to_number(input.key) == 1"},
		"allow of another type": {rego: "allow := input.key", hidden: true},
	} {
		t.Run(name, func(t *testing.T) {
			rego := "package s3.authz\n\nfilter_listing := true\n\n" + c.rego + "\n"
			files := map[string]string{"a.rego": rego}
			if c.more != "" {
				files["b.rego"] = c.more
			}
			e := openDir(t, dir(t, files))
			paged, err := e.Paged()
			if (err != nil) != c.byKey {
				t.Errorf("one by one: %v", err)
			}
			q := question(policy.Access{Action: "s3:ListBucket", Bucket: "artifacts", Backend: "aws"})
			samePage(t, e, paged, q, keys, rego)
			if got, err := e.VisibleKeys(context.Background(), q, keys); err == nil && slices.Contains(got, true) == c.hidden {
				t.Errorf("visible: %v", got)
			}
		})
	}
}

// TestPageRandom is TestMatcherRandom's for listings.
func TestPageRandom(t *testing.T) {
	policies, seed := draw(t)
	paged, pages, judged := 0, 0, 0
	for i := range policies {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(i)))}
		d := dir(t, map[string]string{"d.json": g.data()})
		rego, e := g.policy(t, d)
		forced, err := e.Paged()
		if err == nil {
			paged++
		}
		for range 10 {
			ok := samePage(t, e, forced, g.question(), g.keys(), rego)
			if forced != nil {
				pages++
			}
			if ok {
				judged++
			}
		}
	}
	t.Logf("%d of %d policies judge pages whole, and did so for %d of %d pages", paged, policies, judged, pages)
	if paged < policies/10 || judged < pages/2 {
		t.Error("the generator makes too little of use")
	}
}

func (g *generator) keys() []string {
	list := make([]string, 2+g.IntN(20))
	for i := range list {
		list[i] = g.pick("", "a", "web/x", "a/b/c", "x", "web", "web/", "1", "a/", "b", "c", "z", "/", "a", "Ü/x")
	}
	return list
}

// FuzzPage is TestPageRandom for as long as one likes.
func FuzzPage(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		g := &generator{Rand: rand.New(rand.NewPCG(a, b))}
		d := dir(t, map[string]string{"d.json": g.data()})
		rego, e := g.policy(t, d)
		paged, _ := e.Paged()
		for range 10 {
			samePage(t, e, paged, g.question(), g.keys(), rego)
		}
	})
}

func BenchmarkPage(b *testing.B) {
	e := openDir(b, dir(b, map[string]string{"a.rego": grouped}))
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s/2026/build-%d.tgz", []string{"web", "api", "secret", "shared"}[i%4], i)
	}
	q := question(policy.Access{Action: "s3:ListBucket", Bucket: "artifacts", Backend: "aws"})
	b.ReportAllocs()
	before := cpuTime()
	for b.Loop() {
		if v, err := e.VisibleKeys(context.Background(), q, keys); err != nil || !v[0] || v[1] {
			b.Fatal(err, v[:4])
		}
	}
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
}
