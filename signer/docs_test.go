package signer_test

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/sluice-s3/sluice/signer"
)

// The documentation's configurations are ones, and its policies are JSON.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../docs/aws-setup.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, m := range regexp.MustCompile("(?s)```(yaml|json)\n(.*?)```").FindAllSubmatch(text, -1) {
		kinds[string(m[1])]++
		if string(m[1]) == "json" {
			if !json.Valid(m[2]) {
				t.Errorf("not JSON:\n%s", m[2])
			}
			continue
		}
		var c struct{ Credentials signer.Config }
		if err := yaml.UnmarshalWithOptions(m[2], &c, yaml.Strict()); err != nil {
			t.Errorf("%v in\n%s", err, m[2])
		}
		c.Credentials.Check(func(path, problem string) { t.Errorf("%s: %s in\n%s", path, problem, m[2]) })
	}
	if kinds["yaml"] < 4 || kinds["json"] < 4 {
		t.Errorf("found %v", kinds)
	}
}
