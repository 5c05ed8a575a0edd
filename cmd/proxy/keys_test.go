package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// keys are the paths of all keys that a configuration may have, a [0] where there is a list, and their types.
func keys() map[string]reflect.Type {
	all := map[string]reflect.Type{}
	within := map[reflect.Type]bool{} // policy.shadow is a policy
	var walk func(of reflect.Type, at string)
	walk = func(of reflect.Type, at string) {
		whole, path := of, at
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
			if of.Kind() == reflect.Slice {
				at += "[0]"
			}
			of = of.Elem()
		}
		fields := map[string]reflect.StructField{}
		if of.Kind() == reflect.Struct {
			keysOf(of, fields)
		}
		if len(fields) == 0 || within[of] {
			all[path] = whole
			return
		}
		within[of] = true
		defer delete(within, of)
		for name, field := range fields {
			walk(field.Type, strings.TrimPrefix(at+"."+name, "."))
		}
	}
	walk(reflect.TypeFor[Config](), "")
	return all
}

// TestEveryKeyIsDocumented: by its name, on some page of docs/.
func TestEveryKeyIsDocumented(t *testing.T) {
	t.Parallel()
	var pages []byte
	names, _ := filepath.Glob(filepath.Join(moduleRoot, "docs/*.md"))
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, text...)
	}
	all := keys()
	if len(all) < 100 {
		t.Fatalf("found %d keys: %v", len(all), all)
	}
	for key := range all {
		name := key[strings.LastIndexByte(key, '.')+1:]
		if !regexp.MustCompile(`\b` + name + `\b`).Match(pages) {
			t.Errorf("no page of docs/ speaks of %s", key)
		}
	}
}

// anyText are keys of whose text nothing can be said before somebody is asked.
var anyText = []string{
	"issuers[0].session_claim", "backends[0].name", "telemetry.service_name", "listen.tls.acme.profile", "listen.tls.acme.eab.key_id",
	"audit.ship[0].kafka.sasl.username", "policy.git.cache", "listen.tls.acme.storage", // a directory that may have to be made
}

// nonsense is what no key of that name can mean: its last part, or where two are alike, more of it.
var nonsense = map[string]string{
	"address": "127.0.0.1:99999", "domains": "[https://s3.example.com]", "trusted_proxies": "[lb.example.com]",
	"email": "ops", "directory": "authority", "http_port": "99999", "challenges": "[dns-1]", "domain": "a b", "resolvers": "[1.1.1.1]",
	"server": "ns", "key_name": "", "key_algorithm": "md5", "cert": "/nowhere", "key": "/nowhere",
	"issuer": "https://id.example.com/.well-known/openid-configuration", "audiences": "[\"\"]", "algorithms": "[HS256]", "preset": "jenkins",
	"attributes": "{team: x}", "required_claims": "{organization_id: []}", "leeway": "6m",
	"max_duration": "13h", "revocation.store": "redis://127.0.0.1", "revocation.file": "/dev/null/x",
	"policy.dir": "/nowhere", "policy.git.url": "ftp://example.com/policies", "ref": "a b", "git.path": "../policies", "interval": "1ms",
	"entrypoint": "s3.authz", "policy.opa": "{bundle: {}}",
	"buckets": "[\"[\"]", "endpoint": "minio:9000", "region": "eu west", "backends[0].keys": "loose",
	"role_arn": "sluice", "allowed_roles": "[\"*\"]", "external_id": "x", "duration": "5m", "session_tags": "{project: \"{{.Project}}\"}",
	"source_identity": "\"{{.Nobody}}\"", "sts_endpoint": "http://sts.example.com",
	"file.path": ".", "max_size": "1KiB", "keep": "-1", "fsync": "on", "claims": "[\"\"]", "redact.keys": "[\"\"]", "drop": "[\"\"]", "on_failure": "ignore",
	"ship[0].name": "A b", "format": "csv", "brokers": "[kafka]", "topic": "a b", "mechanism": "md5", "stream": "a b", "subject": "a b", "url": "siem",
	"max_in_flight": "-1", "header_timeout": "-1s", "idle_timeout": "-1s", "requests_per_second": "-1", "bytes_per_second": "-1", "limits.in_flight": "-1",
	"shutdown_timeout": "-1s", "propagation_timeout": "-1s", "log.level": "loud", "log.format": "xml",
	// By how they are named: files that are not there, variables that are not set.
	"_file": "/nowhere", "_env": "NOT_SET_ANYWHERE",
}

// toldAt are keys whose mistakes are told of another, as the two go together.
var toldAt = map[string]string{
	"audit.ship[0].otlp.format": "audit.ship[0].format", "audit.ship[0].nats.format": "audit.ship[0].format",
	"audit.ship[0].kafka.format": "audit.ship[0].format", "audit.ship[0].webhook.format": "audit.ship[0].format",
	"audit.ship[0].otlp.key_file": "audit.ship[0].otlp.cert_file", "audit.ship[0].nats.key_file": "audit.ship[0].nats.cert_file",
	"audit.ship[0].kafka.key_file": "audit.ship[0].kafka.cert_file", "audit.ship[0].webhook.key_file": "audit.ship[0].webhook.cert_file",
}

// TestNonsenseIsRefused: of every key that there is, a value of the wrong kind, and one of the right kind that means
// nothing, is told by `proxy check` with the key's path in front and what would do behind.
func TestNonsenseIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "policy.rego"), []byte("package s3.authz\nallow := false\n"))
	write(t, filepath.Join(dir, "creds"), []byte("x"))
	base := func() map[string]any {
		return map[string]any{
			"listen":   map[string]any{"address": "127.0.0.1:8443", "domains": []any{"s3.example.com"}},
			"issuers":  []any{map[string]any{"issuer": "https://id.example.com", "audiences": []any{"https://s3.example.com"}}},
			"policy":   map[string]any{"dir": dir},
			"backends": []any{map[string]any{"name": "aws", "buckets": []any{"*"}, "region": "eu-west-1", "credentials": map[string]any{"default_chain": map[string]any{}}}},
			"audit":    map[string]any{"file": map[string]any{"path": filepath.Join(dir, "audit.jsonl")}},
		}
	}
	// check is what `proxy check` says of the base with one value, in YAML, at a path.
	check := func(t *testing.T, path, value string) string {
		t.Helper()
		var decoded any
		if err := yaml.Unmarshal([]byte(value), &decoded); err != nil {
			t.Fatal(err)
		}
		config := base()
		// What excludes what the path is of, and what that needs beside it, so that it is as far as it can be looked at.
		switch {
		case strings.HasPrefix(path, "policy.git"):
			config["policy"] = map[string]any{"git": map[string]any{"url": "https://git.example.com/policies"}}
			if strings.Contains(path, "ssh_") || strings.Contains(path, "known_") {
				config["policy"] = map[string]any{"git": map[string]any{"url": "ssh://git@git.example.com/policies"}}
			}
		case strings.HasPrefix(path, "policy.opa"):
			config["policy"] = map[string]any{}
		case strings.HasPrefix(path, "backends[0].credentials"):
			config["backends"].([]any)[0].(map[string]any)["credentials"] = map[string]any{}
		}
		place(config, path, decoded)
		for needs, value := range map[string]map[string]any{
			"audit.ship[0].kafka":                      {"brokers": []any{"127.0.0.1:9092"}, "topic": "audit"},
			"audit.ship[0].nats":                       {"url": "nats://127.0.0.1:4222", "stream": "AUDIT"},
			"audit.ship[0].otlp":                       {"endpoint": "http://127.0.0.1:4318"},
			"audit.ship[0].webhook":                    {"url": "http://127.0.0.1:1"},
			"audit.ship[0]":                            {"webhook": map[string]any{"url": "http://127.0.0.1:1"}},
			"audit.ship[0].kafka.sasl":                 {"username": "sluice"},
			"backends[0].credentials.assume_role.base": {"access_key_id_env": "HOME", "secret_access_key_env": "HOME"},
			"backends[0].credentials.assume_role":      {"role_arn": "arn:aws:iam::123456789012:role/sluice"},
			"backends[0].credentials.web_identity":     {"role_arn": "arn:aws:iam::123456789012:role/sluice"},
			"backends[0].credentials.static":           {"access_key_id_env": "HOME", "secret_access_key_env": "HOME"},
		} {
			if rest, ok := strings.CutPrefix(path, needs+"."); ok && (needs != "audit.ship[0]" || !strings.Contains(rest, ".")) {
				for name, value := range value {
					other := strings.TrimSuffix(strings.TrimSuffix(rest, "_env"), "_file")
					if name != rest && !(other != rest && strings.HasPrefix(name, other)) {
						place(config, needs+"."+name, value)
					}
				}
			}
		}
		text, err := yaml.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "sluice.yaml")
		write(t, file, text)
		var out, errs bytes.Buffer
		if status := run([]string{"check", "--config", file}, &out, &errs); status != 1 {
			t.Errorf("%s: %s: status %d", path, value, status)
		}
		return out.String() + errs.String()
	}
	told := func(said, path string) bool {
		return regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(path) + `[\w.\[\]]*: .*\w`).MatchString(said)
	}
	used := map[string]bool{}
	for path, of := range keys() {
		for of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		wrong, want := "{a: [b]}", "needed"
		if of.Kind() == reflect.Map || of.Kind() == reflect.Struct {
			wrong = "[a]"
		}
		if said := check(t, path, wrong); !told(said, path) || !strings.Contains(said, want) {
			t.Errorf("%s: %s: %s", path, wrong, said)
		}
		if of.Kind() == reflect.Bool || len(of.PkgPath()) > 0 && of.Kind() == reflect.Struct || slices.Contains(anyText, path) {
			continue
		}
		key := ""
		for k := range nonsense {
			if (strings.HasSuffix(path, "."+k) || path == k || k[0] == '_' && strings.HasSuffix(path, k)) && len(k) > len(key) {
				key = k
			}
		}
		value, ok := nonsense[key]
		if !ok {
			t.Errorf("no nonsense is known for %s: add some, so that it is seen to be refused", path)
			continue
		}
		used[key] = true
		at := path
		if other := toldAt[path]; other != "" {
			at = other
		}
		if said := check(t, path, value); !told(said, at) {
			t.Errorf("%s: %s: %s", path, value, said)
		}
	}
	for key := range nonsense {
		if !used[key] {
			t.Errorf("nonsense for %s, which is no key", key)
		}
	}
}

// place sets the value at a path such as a.b[0].c, and makes what is missing on the way.
func place(tree map[string]any, path string, value any) {
	name, rest, below := strings.Cut(path, ".")
	name, list := strings.CutSuffix(name, "[0]")
	if !below {
		tree[name] = value
		return
	}
	if list {
		if _, ok := tree[name].([]any); !ok {
			tree[name] = []any{map[string]any{}}
		}
		place(tree[name].([]any)[0].(map[string]any), rest, value)
		return
	}
	if _, ok := tree[name].(map[string]any); !ok {
		tree[name] = map[string]any{}
	}
	place(tree[name].(map[string]any), rest, value)
}

// TestEveryCommandShowsAnExample with its help, and the example is understood.
func TestEveryCommandShowsAnExample(t *testing.T) {
	parser, err := newParser(&bytes.Buffer{}, &bytes.Buffer{}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	leaves := parser.Model.Leaves(false)
	if len(leaves) < 10 {
		t.Fatalf("%d commands", len(leaves))
	}
	for _, leaf := range leaves {
		command := strings.Fields(strings.SplitN(leaf.Path(), " <", 2)[0])
		var out, errs bytes.Buffer
		if status := run(append(command, "--help"), &out, &errs); status != 0 || errs.Len() > 0 {
			t.Errorf("%s --help: status %d, %s", leaf.Path(), status, errs.String())
		}
		_, example, ok := strings.Cut(out.String(), "\nExample:\n")
		if !ok {
			t.Errorf("%s --help shows no example", leaf.Path())
		}
		shown := 0
		for _, m := range regexp.MustCompile(`(?m)(?:^|[|=] *)(?: *)proxy (.*)$`).FindAllStringSubmatch(example, -1) {
			shown++
			if !strings.HasPrefix(m[1], strings.Join(command, " ")) {
				t.Errorf("%s --help: the example is of another command: %s", leaf.Path(), m[1])
			}
			if err := parseShown(m[1], false); err != nil {
				t.Errorf("%s --help: proxy %s: %v", leaf.Path(), m[1], err)
			}
		}
		if shown == 0 {
			t.Errorf("%s --help: the example is of another program: %s", leaf.Path(), example)
		}
	}
}
