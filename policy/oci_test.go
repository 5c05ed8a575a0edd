package policy_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/policy/policytest"
)

// A death may leave what OPA keeps of artifacts unreadable; its downloader panics at it. The proxy starts all the same, from
// the registry, or without it from the bundle that it keeps besides.
func TestOCIAfterADeathInTheMiddleOfAWrite(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"index.json", "oci-layout"} {
		for _, left := range []string{"", `{"schemaVersion":`} {
			o := policytest.NewRegistry(t)
			dir := t.TempDir()
			o.Push("live", o.Build("r1", allowAll, nil))
			config := policy.Config{OPA: o.OPA(dir, ":live")}
			t.Run("before", func(t *testing.T) { watched(t, config) })
			for _, down := range []bool{true, false} {
				if err := os.WriteFile(filepath.Join(dir, "oci", file), []byte(left), 0o600); err != nil {
					t.Fatal(err)
				}
				o.Down.Store(down)
				t.Run(fmt.Sprintf("%s holds %q, registry down: %v", file, left, down), func(t *testing.T) {
					e, _ := watched(t, config)
					if s := e.Status(); s.Revision != "r1" || (s.Err != nil) != down || !decide(t, e, question()).Allow {
						t.Errorf("%+v", s)
					}
				})
			}
		}
	}
}

func TestOCI(t *testing.T) {
	t.Parallel()
	o := policytest.NewRegistry(t)
	const rego = "package s3.authz\nallow := data.on\n"
	o.Push("live", o.Build("r1", rego, map[string]any{"on": true}))
	config := policy.Config{OPA: o.OPA(t.TempDir(), ":live")}
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != "r1" || s.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}

	// The tag moves, and with it what is enforced.
	o.Push("live", o.Build("r2", rego, map[string]any{"on": false}))
	heard(func(s policy.Status) bool { return s.Revision == "r2" && s.Err == nil })
	if d := decide(t, e, question()); d.Allow || d.Revision != "r2" {
		t.Errorf("%+v", d)
	}

	// None of these takes force; the next good one does, were it the one in force.
	good := o.Build("r2", rego, map[string]any{"on": false})
	for _, bad := range []struct {
		name, want string
		content    []byte
	}{
		{"unsigned", "signature", o.Build("bad", allowAll, nil, policytest.Unsigned)},
		{"changed", "digest", o.Build("bad", allowNone, nil, policytest.Changed(allowAll))},
		{"signed by another", "verif", policytest.NewSigner(t).Build("bad", allowAll, nil)},
		{"forbidden function", "http.send is not available", o.Build("bad", "package s3.authz\nallow if http.send({}).x\n", nil)},
		{"no allow", "no rule `allow`", o.Build("bad", "package s3.authz\nx := 1\n", nil)},
		{"no bundle", "", []byte("nonsense")},
	} {
		o.Push("live", bad.content)
		s := heard(func(s policy.Status) bool { return s.Err != nil && strings.Contains(s.Err.Error(), bad.want) })
		if d := decide(t, e, question()); s.Revision != "r2" || d.Allow || d.Revision != "r2" || strings.Contains(s.Err.Error(), policytest.RegistryPassword) {
			t.Errorf("%s: %+v, %+v", bad.name, s, d)
		}
		o.Push("live", good)
		heard(func(s policy.Status) bool { return s.Err == nil })
	}

	// What is large is kept whole, too: enough of it that no buffer holds it all.
	var grants bytes.Buffer
	for i := range 1 << 15 {
		grants.WriteString(base64.StdEncoding.EncodeToString([]byte{byte(i), byte(i >> 8), byte(i * 7), byte(i * 31)}))
	}
	o.Push("live", o.Build("r3", rego, map[string]any{"on": true, "large": grants.String()}))
	heard(func(s policy.Status) bool { return s.Revision == "r3" && s.Err == nil })

	// The registry's death changes nothing, nor does a restart meanwhile.
	o.Down.Store(true)
	heard(func(s policy.Status) bool { return s.Err != nil })
	if !decide(t, e, question()).Allow {
		t.Error("not in force any more")
	}
	later, heardLater := watched(t, config)
	if s := later.Status(); s.Revision != "r3" || s.Err == nil || !s.Checked.IsZero() || !decide(t, later, question()).Allow {
		t.Errorf("%+v", s)
	}
	o.Down.Store(false)
	pinned := o.Push("live", o.Build("r4", allowNone, nil))
	heardLater(func(s policy.Status) bool { return s.Revision == "r4" && s.Err == nil })

	// Reload does not wait for the poll, and is no failure on the way.
	o.Push("live", o.Build("r5", allowAll, nil))
	if err := later.Reload(context.Background()); err != nil || later.Status().Revision != "r5" {
		t.Errorf("%v, %+v", err, later.Status())
	}

	// A digest is what it is, whatever becomes of the tag.
	fixed, _ := watched(t, policy.Config{OPA: o.OPA(t.TempDir(), "@"+pinned)})
	if s := fixed.Status(); s.Revision != "r4" || s.Err != nil {
		t.Errorf("%+v", s)
	}

	// Nothing begins without a bundle, nor without the right to have it.
	for name, c := range map[string]policy.Config{"no such tag": policy.Config{OPA: o.OPA(t.TempDir(), ":nonsense")}, "no login": func() policy.Config {
		c := policy.Config{OPA: o.OPA(t.TempDir(), ":live")}
		delete(c.OPA["services"].(map[string]any)["ci"].(map[string]any), "credentials")
		return c
	}(), "unknown CA": func() policy.Config {
		c := policy.Config{OPA: o.OPA(t.TempDir(), ":live")}
		delete(c.OPA["services"].(map[string]any)["ci"].(map[string]any), "tls")
		return c
	}()} {
		if e, err := policy.Open(t.Context(), c, nil); err == nil {
			t.Errorf("%s: began: %+v", name, e.Status())
		} else if strings.Contains(err.Error(), policytest.RegistryPassword) || strings.Contains(err.Error(), policytest.RegistryToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOPADirectory: where OPA cannot keep what it must, it says so instead of dying.
func TestOPADirectory(t *testing.T) {
	t.Parallel()
	o := policytest.NewRegistry(t)
	o.Push("live", o.Build("r1", allowAll, nil))
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := policy.Open(t.Context(), policy.Config{OPA: o.OPA(filepath.Join(file, "below"), ":live")}, nil)
	if err == nil || !strings.Contains(err.Error(), "persistence_directory cannot be written") {
		t.Errorf("%+v, %v", e, err)
	}
}
