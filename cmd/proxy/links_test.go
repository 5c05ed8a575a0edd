package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	external = regexp.MustCompile(`^[a-z]+:`)
	heading  = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fenced   = regexp.MustCompile("(?ms)^```.*?^```")
	inCode   = regexp.MustCompile("`((?:docs|examples|policies|cmd|proxy|policy|signer|audit|test|bench|\\.ci)/[\\w./-]+)`")
	named    = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w+`)
	declared = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
)

// TestLinksInTheDocs lead to files that are there and headings that they have; so do paths in code, and tests that are
// named as proof.
func TestLinksInTheDocs(t *testing.T) {
	var pages []string
	var tests strings.Builder
	err := filepath.WalkDir(moduleRoot, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules"):
			if err == nil {
				err = filepath.SkipDir
			}
			return err
		case strings.HasSuffix(path, ".md"):
			pages = append(pages, path)
		case strings.HasSuffix(path, "_test.go"):
			text, err := os.ReadFile(path)
			for _, m := range declared.FindAllSubmatch(text, -1) {
				tests.WriteString(" " + string(m[1]))
			}
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	links := 0
	for _, page := range pages {
		text := read(page)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if external.MatchString(m[1]) {
				continue
			}
			links++
			file, anchor, _ := strings.Cut(m[1], "#")
			to := page
			if file != "" {
				to = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %s is not there", page, m[1])
			} else if anchor != "" && !hasHeading(read(to), anchor) {
				t.Errorf("%s: %s has no heading of that name", page, m[1])
			}
		}
		for _, m := range inCode.FindAllStringSubmatch(text, -1) {
			_, fromRoot := os.Stat(filepath.Join(moduleRoot, m[1]))
			_, fromHere := os.Stat(filepath.Join(filepath.Dir(page), m[1]))
			if fromRoot != nil && fromHere != nil {
				t.Errorf("%s: `%s` is not there", page, m[1])
			}
		}
		for _, name := range named.FindAllString(text, -1) {
			if !strings.Contains(tests.String(), " "+name) { // or the beginning of names: TestT01
				t.Errorf("%s: there is no %s", page, name)
			}
		}
	}
	if len(pages) < 20 || links < 50 {
		t.Errorf("found %d pages with %d links", len(pages), links)
	}
}

// hasHeading tells whether a page has the heading that GitHub and GitLab give this anchor.
func hasHeading(page, anchor string) bool {
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(page, ""), -1) {
		words := regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "")
		if strings.ReplaceAll(words, " ", "-") == anchor {
			return true
		}
	}
	return false
}
