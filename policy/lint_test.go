package policy_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/format"
	"github.com/sluice-s3/sluice/policy"
)

func TestLint(t *testing.T) {
	data := `{"grants": [{"project": "web", "bucket": "a"}], "owners": {"a": "web"}, "admins": ["x"]}`
	for _, test := range []struct {
		name, rego string
		want       []string // beginnings of messages with their kind; other kinds than speed
	}{
		{"look-up", `allow if data.owners[input.bucket] == input.identity.attributes.project`, nil},
		{"misspelt", `allow if input.identity.atributes.project == "web"`, []string{"schema: undefined ref: input.identity.atributes"}},
		{"misspelt at the top", `allow if input.acton == "s3:GetObject"`, []string{"schema: undefined ref: input.acton"}},
		{"wrong type", `allow if input.request.content_length == "12"`, []string{"schema: match error"}},
		{"claims are free", `allow if input.identity.claims["https://acme.com/x"].y == 1`, nil},
		{"unused variable", "allow if {\n\tx := input.key\n\tinput.bucket\n}", []string{"strict: assigned var x unused"}},
		{"searches", "allow if {\n\tsome grant in data.grants\n\tgrant.project == input.identity.attributes.project\n\tgrant.bucket == input.bucket\n}", []string{"cost: looks through data.grants"}},
		{"searches by key", "allow if {\n\tsome bucket\n\tdata.owners[bucket] == input.identity.attributes.project\n\tbucket == input.bucket\n}", []string{"cost: looks through data.owners"}},
		{"member of a list", `allow if input.identity.attributes.user in data.admins`, []string{"cost: looks through data.admins"}},
		{"comprehension", `allow if count([g | some g in data.grants; g.bucket == input.bucket]) > 0`, []string{"cost: looks through data.grants"}},
		{"every", `allow if every g in data.grants { g.bucket != input.bucket }`, []string{"cost: looks through data.grants"}},
		{"limits", "allow if input.bucket\n\nlimits := {\"in_flight\": 5, \"requests_per_second\": count(data.admins)}", nil},
		{"unknown limit", "allow if input.bucket\n\nlimits := {\"max_bytes\": 5}", []string{"type: `limits` has the unknown limit \"max_bytes\": want requests_per_second, "}},
		{"unknown limit of some", "allow if input.bucket\n\ndefault limits := {}\n\nlimits := {\"in_flight\": 5, \"max_bytes\": 5} if input.key", []string{"type: `limits` has the unknown limit \"max_bytes\": want"}},
		{"computed limit", "allow if input.bucket\n\nlimits := {input.bucket: 5}", nil},
		{"own groups", `allow if "admins" in input.identity.attributes.groups`, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := openDir(t, dir(t, map[string]string{"p.rego": "package s3.authz\n\n" + test.rego + "\n", "d.json": data}))
			var have []string
			for _, f := range e.Lint() {
				if f.Kind != "speed" {
					have = append(have, f.Kind+": "+f.Message)
				}
				if f.File != "p.rego" || f.Line < 3 {
					t.Errorf("%v", f)
				}
			}
			if len(have) != len(test.want) {
				t.Fatalf("have %q, want %q", have, test.want)
			}
			for i, want := range test.want {
				if !strings.HasPrefix(have[i], want) {
					t.Errorf("have %q, want %q", have[i], want)
				}
			}
		})
	}
}

// TestLintListing: who filters listings hears where they cannot be judged a page at a time.
func TestLintListing(t *testing.T) {
	for rego, want := range map[string]string{
		"allow if startswith(input.key, \"web/\")":                           "", // not even by OPA
		"allow if every p in split(input.key, \"/\") { p != \"x\" }":         "",
		"allow if own with input.key as \"a\"\nown if input.key == \"web/\"": "listings are judged key by key: with in",
	} {
		e := openDir(t, dir(t, map[string]string{"p.rego": "package s3.authz\n\nfilter_listing := true\n\n" + rego + "\n"}))
		found := ""
		for _, f := range e.Lint() {
			if strings.Contains(f.Message, "listings") && f.Kind == "speed" && f.Line == 3 {
				found = f.Message
			}
		}
		if !strings.HasPrefix(found, want) || (found == "") != (want == "") {
			t.Errorf("%s: have %q, want %q", rego, found, want)
		}
	}
}

// TestStartersAreClean: no finding of any kind, formatted as `opa fmt` would, and of the schema that is published.
func TestStartersAreClean(t *testing.T) {
	for _, f := range openDir(t, startersDir(t, grown(5))).Lint() {
		t.Error(f)
	}
	names, err := filepath.Glob(filepath.Join(starters, "*.rego"))
	if err != nil || len(names) == 0 {
		t.Fatal("no starter policies", err)
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		formatted, err := format.Source(name, content)
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(content, formatted) {
			t.Errorf("%s is not formatted: want\n%s", name, formatted)
			if os.Getenv("UPDATE") != "" {
				os.WriteFile(name, formatted, 0o666)
			}
		}
	}
	published, err := os.ReadFile(filepath.Join(starters, "schema", "input.json"))
	if err != nil || !bytes.Equal(published, policy.InputSchema) {
		t.Errorf("policies/schema/input.json is not input.schema.json: %v", err)
	}
}
