package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// example is a piece of YAML that people copy.
type exampleText struct{ where, text string }

// examplesOf finds the files below examples/.
func examplesOf(t *testing.T) (files []exampleText) {
	t.Helper()
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(filepath.Join(root, "examples"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || (filepath.Ext(path) != ".yaml" && filepath.Ext(path) != ".yml") {
			return err
		}
		text, err := os.ReadFile(path)
		files = append(files, exampleText{strings.TrimPrefix(path, root+"/"), string(text)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func jsonOf(v any) string { text, _ := json.Marshal(v); return string(text) }

// TestExamplesLoad: what people copy must be understood. What is not there on this machine, files and variables, is all
// that may be missing.
func TestExamplesLoad(t *testing.T) {
	known := sections()
	loaded, parts := 0, 0
	var configs []exampleText
	for _, f := range examplesOf(t) {
		for _, document := range strings.Split(f.text, "\n---\n") {
			var tree map[string]any
			if err := yaml.Unmarshal([]byte(document), &tree); err != nil {
				t.Errorf("%s: not YAML: %v", f.where, err)
				continue
			}
			switch data, _ := tree["data"].(map[string]any); {
			case tree["backends"] != nil:
				configs = append(configs, exampleText{f.where, document})
			case tree["kind"] == "ConfigMap":
				for name, text := range data {
					if text, ok := text.(string); ok && strings.Contains(text, "backends:") && !strings.Contains(text, "{{") {
						configs = append(configs, exampleText{f.where + " " + name, text})
					}
				}
			case len(tree) > 0 && !slices.ContainsFunc(slices.Collect(maps.Keys(tree)), func(key string) bool { return !known[key] }):
				parts++
				t.Run(f.where, func(t *testing.T) { loadExample(t, document, true) })
			}
		}
	}
	for _, c := range configs {
		loaded++
		t.Run(c.where, func(t *testing.T) { loadExample(t, c.text, false) })
	}
	if loaded < 12 || parts < 1 {
		t.Errorf("found %d configurations and %d pieces of one: fewer than there are", loaded, parts)
	}
}

// sections are the top-level keys of a configuration.
func sections() map[string]bool {
	all := map[string]bool{}
	for field := range reflect.TypeFor[Config]().Fields() {
		all[field.Tag.Get("yaml")] = true
	}
	return all
}

// base is what a piece of a configuration is tried in.
const base = `
listen: {address: "127.0.0.1:8443", domains: [s3.example.com]}
issuers: [{issuer: https://app.gitpod.io, audiences: [https://s3.example.com], preset: ona}]
policy: {dir: ./policies}
backends: [{name: aws, buckets: ["*"], region: eu-west-1, credentials: {assume_role: {role_arn: "arn:aws:iam::123456789012:role/sluice"}}}]
audit: {file: {path: ./audit.jsonl}}
`

func loadExample(t *testing.T, text string, piece bool) {
	if strings.Contains(text, "…") {
		t.Skip("has gaps, and says so")
	}
	for _, m := range regexp.MustCompile(`_env: "?([A-Z_]+)`).FindAllStringSubmatch(text, -1) {
		t.Setenv(m[1], "c2x1aWNlc2x1aWNlc2x1aWNlc2x1aWNlc2x1aWNlMTI=")
	}
	if piece {
		var whole, own map[string]any
		if yaml.Unmarshal([]byte(base), &whole) != nil || yaml.Unmarshal([]byte(text), &own) != nil {
			t.Fatal("not YAML")
		}
		for name, section := range own {
			if in, ok := whole[name].(map[string]any); ok && name != "policy" { // which has exactly one source
				if more, ok := section.(map[string]any); ok {
					maps.Copy(in, more)
					continue
				}
			}
			whole[name] = section
		}
		text = jsonOf(whole) // which is YAML
	}
	_, problems := parseConfig([]byte(text), func(string) (string, bool) { return "example.com", true })
	for _, p := range problems {
		if !strings.Contains(p.Text, "no such file") {
			t.Errorf("%s in\n%s", p, text)
		}
	}
}

// TestExampleCredentials runs the shell script that stands in for `proxy credentials` where only a shell is at hand.
func TestExampleCredentials(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"ona", "gitpod", "gp"} {
		write(t, filepath.Join(bin, name), []byte("#!/bin/sh\n[ \"$1 $2 $3 $4\" = 'idp token --audience https://s3.example.com' ] && echo header.payload.signature\n"))
		if err := os.Chmod(filepath.Join(bin, name), 0o755); err != nil {
			t.Fatal(err)
		}
		c := exec.Command("sh", "../../examples/gitpod/sluice-credentials", "https://s3.example.com")
		c.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		var errs bytes.Buffer
		c.Stderr = &errs
		out, err := c.Output()
		if err != nil {
			t.Fatalf("with %s: %v: %s", name, err, errs.String())
		}
		var got struct {
			Version                                                int
			AccessKeyId, SecretAccessKey, SessionToken, Expiration string
		}
		if err := json.Unmarshal(out, &got); err != nil || got.Version != 1 || got.SessionToken != "header.payload.signature" || got.AccessKeyId == "" || got.SecretAccessKey == "" || got.Expiration == "" {
			t.Errorf("with %s: %s, %v", name, out, err)
		}
		os.Remove(filepath.Join(bin, name))
	}
}

// TestExampleScripts parses what the examples have in other languages.
func TestExampleScripts(t *testing.T) {
	found := 0
	for _, pattern := range []string{"*/*.json", "*/.devcontainer/*.json"} {
		names, _ := filepath.Glob(filepath.Join("..", "..", "examples", pattern))
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil || !json.Valid(text) {
				t.Errorf("%s is not JSON, %v", name, err)
			}
			found++
		}
	}
	for _, pattern := range []string{"*/*.sh", "*/sluice-credentials"} {
		names, _ := filepath.Glob(filepath.Join("..", "..", "examples", pattern))
		for _, name := range names {
			if out, err := exec.Command("bash", "-n", name).CombinedOutput(); err != nil {
				t.Errorf("%s: %s", name, out)
			}
			found++
		}
	}
	if found < 5 {
		t.Errorf("found %d", found)
	}
}
