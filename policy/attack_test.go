package policy_test

import (
	"fmt"
	"testing"

	"github.com/sluice-s3/sluice/policy"
)

// Policies that are made so that grounds could mistake them are decided as OPA decides them, whatever the access has.
func TestGroundsThatMislead(t *testing.T) {
	for i, rego := range []string{
		"allow if not f(input.key)\nf(k) if { k == \"a\" }\nf(k) if not startswith(k, \"b\")",
		"allow if not data.kinds[input.key] == \"write\"\ndeny contains \"no\" if data.kinds[input.key] == 1",
		"allow if data.flags[input.key]\nallow if not data.flags[input.prefix]",
		"allow if { x := data.kinds[input.key]; x != \"write\" }",
		"allow if { x := data.kinds[input.key]; x }",
		"allow if { x := data.kinds[input.key]; not x }",
		"allow if { x := data.kinds[input.key]; startswith(x, \"w\") }",
		"allow if { x := data.kinds[input.key]; x in {\"write\", \"read\"} }",
		"allow if { x := data.kinds[input.key]; [x] == [\"write\"] }",
		"allow if data.nested.a[input.key].b",
		"allow if data.nested[input.key].b.c",
		"allow if data.nested[input.key][input.prefix]",
		"allow if data.nested.a[split(input.key, \"/\")[0]][input.prefix]",
		"allow if input.key == input.prefix",
		"allow if startswith(input.key, input.prefix)",
		"allow if startswith(input.prefix, input.version_id)",
		"allow if startswith(\"web/a\", input.key)",
		"allow if { some i; split(input.key, \"/\")[i] == \"b\" }",
		"allow if { some p in split(input.key, \"/\"); p == \"b\" }",
		"allow if \"b\" in split(input.key, \"/\")",
		"allow if not \"b\" in split(input.key, \"/\")",
		"allow if split(input.key, \"/\")[1]",
		"allow if not split(input.key, \"/\")[1]",
		"allow if { parts := split(input.key, \"/\"); not parts[1] }",
		"allow if { parts := split(input.key, \"/\"); parts[1] != \"b\"; not parts[2] }",
		"allow if { [a, b] = split(input.key, \"/\"); a == b }",
		"allow if { [a, a] = split(input.key, \"/\") }",
		"allow if { [a, \"b\"] = split(input.key, \"/\"); a == \"a\" }",
		"allow if { [_, _] := split(input.key, \"/\") }",
		"allow if { [] = split(input.key, \"/\") }",
		"allow if not g(input.key)\ng(k) if { [_, _] := split(k, \"/\") }",
		"allow if not g(input.key)\ng(k) if { [_, b] := strings.split_n(k, \"/\", 2); b == \"b\" }",
		"allow if not g(input.key)\ng(k) := v if { [_, v] := strings.split_n(k, \"/\", 2) }",
		"allow if g(input.key) == \"b\"\ng(k) := v if { [_, v] := strings.split_n(k, \"/\", 2) }",
		"allow if g(input.key, input.prefix)\ng(k, p) if startswith(k, p)\ng(k, _) if k == \"a\"",
		"allow if g(input.key, \"x\")\ng(k, k) if true\ng(_, \"y\") if true",
		"allow if g(input.key, input.key)\ng(k, k) if true",
		"allow if not g(input.key, \"a\")\ng(k, k) if true",
		"allow if g(input.key)\ng(\"a\") if true\ng(\"b/c\") := false",
		"allow if g(input.key)\ng(\"a\") := false\ng(k) := false if startswith(k, \"b\")",
		"allow if not g(input.key)\ng(\"a\") := false\ng(k) := false if startswith(k, \"b\")",
		"allow if g(input.key)\ndefault g(_) := true\ng(k) := false if startswith(k, \"b\")",
		"allow if not g(input.key)\ndefault g(_) := true\ng(k) := false if startswith(k, \"b\")",
		"allow if h\ndefault h := false\nh if not input.key == \"a\"",
		"allow if not h\ndefault h := false\nh if not input.key == \"a\"",
		"allow if h == false\ndefault h := false\nh if startswith(input.key, \"a\")",
		"allow if h != true\ndefault h := false\nh if startswith(input.key, \"a\")",
		"allow if not h == \"x\"\nh := \"x\" if startswith(input.key, \"a\")",
		"allow if not h == \"y\"\nh := \"x\" if startswith(input.key, \"a\")",
		"allow if h == \"a\"\nh := input.key if endswith(input.key, \"a\")",
		"allow if h\nh := input.key",
		"allow if h\nh := input.prefix",
		"allow if not h\nh := input.prefix",
		"allow if h.b\nh := {\"b\": true} if startswith(input.key, \"a\")",
		"allow if h[input.key]\nh contains \"a\"\nh contains \"b/c\" if input.prefix == \"p\"",
		"allow if input.key in h\nh := {\"a\"} if input.prefix == \"p\"",
		"allow if input.key in h\nh := data.names",
		"allow if not input.key in h\nh := data.names",
		"allow if not input.key in data.nothing",
		"allow if input.key != data.nothing",
		"allow if not input.key == data.nothing",
		"allow if not startswith(input.key, data.nothing)",
		"allow if not startswith(input.key, data.number)",
		"allow if startswith(input.key, data.number)\nallow if input.key == \"a\"",
		"allow if { input.key == \"a\"; startswith(input.key, data.number) }\nallow if startswith(input.key, \"a\")",
		"allow if { startswith(input.key, data.number); input.key == \"b/c\" }\nallow if startswith(input.key, \"a\")",
		"allow if { some p in data.names; startswith(input.key, p) }\nallow if input.key == \"a\"",
		"allow if { every p in data.names { input.key != p } }",
		"allow if count([1 | startswith(input.key, \"a\")]) == 1",
		"allow if { x := input.key; y := x; startswith(y, \"a\"); not endswith(x, \"c\") }",
		"allow if { x := split(input.key, \"/\"); y := x; y[0] == \"a\" }",
		"allow if { x := split(split(input.key, \"/\")[1], \".\"); x[0] == \"b\" }",
		"allow if startswith(input.key, \"\")",
		"allow if contains(input.key, \"\")\ndeny contains input.key if contains(input.key, \"b\")",
		"allow if true\ndeny contains data.kinds[input.key]",
		"allow if true\ndeny contains x if { x := data.flags[input.key] }",
		"allow if true\ndeny contains x if { some x in data.names; x == input.key }",
		"allow if true\ndeny contains \"no\" if not allowed\nallowed if input.key == \"a\"\nallowed if { input.key == \"b/c\"; input.prefix == \"p\" }",
		"allow if true\ndeny contains \"no\" if { not input.prefix == \"p\"; not input.key == \"a\" }",
		"allow if true\ndeny contains \"no\" if { input.version_id != \"\"; input.key == \"a\" }",
		"allow if true\ndeny contains \"no\" if input.delimiter",
		"allow if not input.key",
		"allow if not input.prefix",
		"allow if input.prefix == \"\"",
		"allow if input.key == \"\"",
		"allow if not input.key == \"\"",
		"allow if input.request.method == \"GET\"\nallow if not input.request.user_agent == \"x\"",
		"allow if { startswith(input.key, \"a\"); input.identity.claims.c == 1 }\nallow if input.identity.claims[input.key]",
		"allow if not input.identity.claims[input.key]",
		"allow if input.identity.attributes.groups[_] == input.key",
		"allow if input.identity.attributes[input.key] == \"web\"",
		"allow if lower(input.key) == \"a\"\nallow if not lower(input.key) == \"a\"",
		"allow if regex.match(\"^a\", input.key)\nallow if input.key == \"b/c\"",
		"role := \"r\" if startswith(input.key, \"a\")\nallow if true",
		"role := \"r\"\nrole := \"s\" if input.key == \"a\"\nallow if true",
		"role := \"r\"\nallow if startswith(input.key, \"a\")\nreasons contains input.key",
		"limits := {\"max_object_bytes\": 5} if input.prefix\nallow if true",
		"filter_listing if input.prefix == \"p\"\nallow if true",
		"allow if { x := h; x == \"a\" }\nh := \"a\" if startswith(input.key, \"a\")\nh := \"b\" if startswith(input.key, \"b\")",
		"allow if { not startswith(input.key, \"a\"); not startswith(input.key, \"b\"); h }\nh if not endswith(input.key, \"c\")",
		"allow if { k := input.key; some p in data.names; k == p; data.flags[k] }",
		"allow if { some p, v in data.kinds; v == \"write\"; startswith(input.key, p) }",
		"allow if { some p, _ in data.flags; not startswith(input.key, p) }",
		"allow if { some p; data.flags[p]; input.key == p }",
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			e := openDir(t, dir(t, map[string]string{
				"p.rego": "package s3.authz\n" + rego + "\n",
				"d.json": `{"number": 1, "kinds": {"a": "write", "b": "read", "b/c": 1, "n": null, "": "write"}, "flags": {"a": true, "b/c": false, "n": null, "p": false}, "names": ["a", "b/c", 1, "p"],
					"nested": {"a": {"a": {"b": true, "p": true}, "b/c": false}, "b/c": {"b": {"c": false}}}}`,
			}))
			first := question()
			for range 3 {
				for _, key := range []string{"", "a", "b/c", "a/b", "a/b/c", "b", "n", "web", "/", "a/a", "//", "\xff", "A", "1"} {
					for prefix, version := range map[string]string{"": "", "p": "a", "a": ""} {
						q := question(policy.Access{Action: "s3:GetObject", Bucket: "artifacts", Key: key, Prefix: prefix, VersionID: version, Backend: "aws"})
						q.Subject = first.Subject
						same(t, e, q, rego)
					}
				}
			}
		})
	}
}
