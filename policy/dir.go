package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"
)

// readDir reads the policy below dir as `opa eval --data dir` would: every *.rego file, and every JSON and YAML
// file as data below the path of its directory. Left out are the tests (*_test.*), and what begins with a dot: a
// Kubernetes ConfigMap keeps its versions in such directories, editors their half-written files.
func readDir(dir string) (*files, error) { return readTree(dir, false) }

func readTree(dir string, tests bool) (*files, error) {
	// The root is resolved once, so that a link that is swapped meanwhile cannot mix two versions.
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("policy directory: %w", err)
	}
	f := &files{modules: map[string]*ast.Module{}, data: map[string]any{}}
	hash := sha256.New()
	var errs []error
	err = walk(root, "", 0, func(name string) {
		if isTest(name) && !tests {
			return
		}
		content, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		if err != nil {
			errs = append(errs, err)
			return
		}
		hashPart(hash, name)
		hashPart(hash, string(content))
		if err := f.add(name, content); err != nil {
			errs = append(errs, err)
		}
	})
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	if len(f.modules) == 0 {
		return nil, fmt.Errorf("policy directory %s: no *.rego file in it", dir)
	}
	f.revision = hex.EncodeToString(hash.Sum(nil))[:16]
	return f, nil
}

// hashPart tells "ab","c" from "a","bc".
func hashPart(h io.Writer, s string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(s)))
	h.Write(n[:])
	io.WriteString(h, s)
}

// walk visits the policy's files below root in order, by their path with slashes. It follows links to files and
// directories; depth ends those that go round.
func walk(root, name string, depth int, visit func(name string)) error {
	if depth > 32 {
		return fmt.Errorf("%s: directories nested too deep; does a link lead round in a circle?", name)
	}
	entries, err := os.ReadDir(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		child := path.Join(name, entry.Name())
		info, err := os.Stat(filepath.Join(root, filepath.FromSlash(child)))
		switch {
		case err != nil:
			return err
		case info.IsDir():
			if err := walk(root, child, depth+1, visit); err != nil {
				return err
			}
		case info.Mode().IsRegular() && isPolicyFile(child):
			visit(child)
		}
	}
	return nil
}

func isPolicyFile(name string) bool {
	return slices.Contains([]string{".rego", ".json", ".yaml", ".yml"}, path.Ext(name))
}

func isTest(name string) bool {
	return strings.HasSuffix(strings.TrimSuffix(name, path.Ext(name)), "_test")
}

// add parses one file.
func (f *files) add(name string, content []byte) error {
	if path.Ext(name) == ".rego" {
		m, err := ast.ParseModuleWithOpts(name, string(content), ast.ParserOptions{
			RegoVersion: ast.RegoV1, ProcessAnnotation: true, Capabilities: capabilities(),
		})
		if err != nil {
			return err
		}
		if m == nil {
			return fmt.Errorf("%s: empty file", name)
		}
		f.modules[name] = m
		return nil
	}
	var value any
	if err := util.Unmarshal(content, &value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	doc, ok := value.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: data files hold an object (name: value), not %T", name, value)
	}
	var at []string
	if d := path.Dir(name); d != "." {
		at = strings.Split(d, "/")
	}
	return mergeData(f.data, at, doc, name)
}

// mergeData puts doc into data below the path at. Two files may add to one object, not to one value.
func mergeData(data map[string]any, at []string, doc map[string]any, name string) error {
	for _, key := range at {
		next, ok := data[key]
		if !ok {
			next = map[string]any{}
			data[key] = next
		}
		if data, ok = next.(map[string]any); !ok {
			return fmt.Errorf("%s: another data file has a value at %q", name, key)
		}
	}
	for key, value := range doc {
		old, ok := data[key]
		if !ok {
			data[key] = value
			continue
		}
		into, isObject := old.(map[string]any)
		from, alsoObject := value.(map[string]any)
		if !isObject || !alsoObject {
			return fmt.Errorf("%s: another data file has a value for %q too", name, key)
		}
		if err := mergeData(into, nil, from, name); err != nil {
			return err
		}
	}
	return nil
}
