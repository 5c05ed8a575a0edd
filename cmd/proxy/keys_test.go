package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// keys are the paths of all keys that a configuration may have.
func keys() (all []string) {
	within := map[reflect.Type]bool{} // policy.shadow is a policy
	var walk func(of reflect.Type, at string)
	walk = func(of reflect.Type, at string) {
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
			of = of.Elem()
		}
		fields := map[string]reflect.StructField{}
		if of.Kind() == reflect.Struct {
			keysOf(of, fields)
		}
		if len(fields) == 0 || within[of] {
			all = append(all, at)
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
		t.Fatalf("found %d keys: %q", len(all), all)
	}
	for _, key := range all {
		name := key[strings.LastIndexByte(key, '.')+1:]
		if !regexp.MustCompile(`\b` + name + `\b`).Match(pages) {
			t.Errorf("no page of docs/ speaks of %s", key)
		}
	}
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
