package identity_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

// Tokens of every known issuer's published shape, as testdata/presets has them, become the same attributes.
func TestPresets(t *testing.T) {
	files, err := filepath.Glob("testdata/presets/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no shapes: %v", err)
	}
	// The issuers sign with RS256, Ona and Kubernetes included.
	issuer := newIssuer(t, oidctest.Options{Algorithm: "RS256"})
	seen := map[string]bool{}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var shape struct {
				Preset, Source, Session string
				Claims                  map[string]any
				Attributes              identity.Attributes
			}
			if err := json.Unmarshal(data, &shape); err != nil {
				t.Fatal(err)
			}
			if shape.Source == "" {
				t.Error("the shape has no source")
			}
			seen[shape.Preset] = true
			// All but its name and the times is the issuer's own.
			claims := maps.Clone(shape.Claims)
			claims["iss"] = issuer.URL()
			a := trust(t, issuer, func(c *identity.Config) { c.Issuers[0].Preset = shape.Preset })
			proof, err := a.Authenticate(bearer(issuer.Token(claims)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(shape.Attributes, proof.Identity.Attributes); diff != "" {
				t.Errorf("attributes (-want +got):\n%s", diff)
			}
			if proof.Identity.Session != shape.Session {
				t.Errorf("session %q, want %q", proof.Identity.Session, shape.Session)
			}
			if proof.Identity.Subject != shape.Claims["sub"] {
				t.Errorf("subject %q", proof.Identity.Subject)
			}
		})
	}
	for _, preset := range identity.Presets() {
		if !seen[preset] {
			t.Errorf("preset %s has no shape in testdata/presets", preset)
		}
	}
}

func TestAttributesOverThePreset(t *testing.T) {
	issuer := newIssuer(t, oidctest.Options{})
	a := trust(t, issuer, func(c *identity.Config) {
		c.Issuers[0].Preset = "github"
		c.Issuers[0].Attributes = map[string]string{
			"project": "repository_owner", "groups": "deep.er.teams", "repository": "https://acme.example/repo", "workspace": "runs.1.id",
		}
	})
	proof, err := a.Authenticate(bearer(issuer.Token(map[string]any{
		"aud": forUs, "repository": "acme/web", "repository_owner": "acme", "actor": "ada", "run_id": "7",
		"deep.er": map[string]any{"teams": []any{"a", 7, nil, "", map[string]any{}, "b"}}, "https://acme.example/repo": "mono",
		"runs": []any{map[string]any{"id": "first"}, map[string]any{"id": "second"}},
	})))
	if err != nil {
		t.Fatal(err)
	}
	want := identity.Attributes{Workspace: "second", Project: "acme", Repository: "mono", User: "ada", Groups: []string{"a", "7", "b"}}
	if diff := cmp.Diff(want, proof.Identity.Attributes); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
}

// docs/identity.md has a row for each preset.
func TestPresetsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/identity.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range identity.PresetTable() {
		if !slices.Contains(lines(string(doc)), row) {
			t.Errorf("docs/identity.md lacks the line\n%s", row)
		}
	}
}
