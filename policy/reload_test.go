package policy_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/test/machine"
)

// watched opens the configuration and gives what onReload hears.
func watched(t *testing.T, c policy.Config) (*policy.Engine, func(until func(policy.Status) bool) policy.Status) {
	t.Helper()
	heard := make(chan policy.Status, 100)
	ctx, stop := context.WithCancel(context.Background())
	e, err := policy.Open(ctx, c, func(s policy.Status) { heard <- s })
	if err != nil {
		stop()
		t.Fatal(err)
	}
	policy.Patient(e)
	t.Cleanup(func() {
		stop()
		e.Wait()
	})
	return e, func(until func(policy.Status) bool) policy.Status {
		t.Helper()
		deadline := time.After(machine.Patience)
		for {
			select {
			case s := <-heard:
				if until(s) {
					return s
				}
			case <-deadline:
				t.Fatalf("not heard in time; status %+v", e.Status())
			}
		}
	}
}

const (
	allowAll  = "package s3.authz\nallow := true\n"
	allowNone = "package s3.authz\nallow := false\n"
)

func TestReload(t *testing.T) {
	t.Parallel()
	d := dir(t, map[string]string{"policy.rego": allowAll})
	e, heard := watched(t, policy.Config{Dir: d})
	first := e.Status()
	if first.Revision == "" || first.Loaded.IsZero() || first.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", first)
	}

	write(t, filepath.Join(d, "policy.rego"), allowNone)
	changed := heard(func(s policy.Status) bool { return s.Err == nil && s.Revision != first.Revision })
	if got := decide(t, e, question()); got.Allow || got.Revision != changed.Revision {
		t.Errorf("after the change: %+v", got)
	}

	write(t, filepath.Join(d, "policy.rego"), "package s3.authz\nallow if")
	bad := heard(func(s policy.Status) bool { return s.Err != nil })
	if !strings.Contains(bad.Err.Error(), "policy.rego:2") || bad.Revision != changed.Revision {
		t.Errorf("bad policy: %+v", bad)
	}
	if got := decide(t, e, question()); got.Revision != changed.Revision {
		t.Errorf("the old one is not in force: %+v", got)
	}
	if err := e.Reload(context.Background()); err == nil {
		t.Error("a bad policy was reloaded without an error")
	}

	// Back to what is in force: well again.
	write(t, filepath.Join(d, "policy.rego"), allowNone)
	heard(func(s policy.Status) bool { return s.Err == nil && s.Revision == changed.Revision })

	// New directories are watched too.
	write(t, filepath.Join(d, "sub/dir/data.yaml"), "x: 1\n")
	grown := heard(func(s policy.Status) bool { return s.Err == nil && s.Revision != changed.Revision })
	if err := os.WriteFile(filepath.Join(d, "sub/dir/data.yaml"), []byte("x: 2\n"), 0o666); err != nil { // in its place
		t.Fatal(err)
	}
	heard(func(s policy.Status) bool { return s.Err == nil && s.Revision != grown.Revision })

	if err := os.RemoveAll(d); err != nil {
		t.Fatal(err)
	}
	heard(func(s policy.Status) bool { return s.Err != nil })
	decide(t, e, question())
	write(t, filepath.Join(d, "policy.rego"), allowAll)
	heard(func(s policy.Status) bool { return s.Err == nil && s.Revision == first.Revision })
}

// TestReloadReplaced puts another directory in the place of the policy's, whose neighbours are not watched.
func TestReloadReplaced(t *testing.T) {
	t.Parallel()
	d := filepath.Join(t.TempDir(), "policy")
	write(t, filepath.Join(d, "policy.rego"), allowAll)
	write(t, filepath.Join(d+".new", "policy.rego"), allowNone)
	e, heard := watched(t, policy.Config{Dir: d})
	first := e.Status()
	if err := os.Rename(d, d+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d+".new", d); err != nil {
		t.Fatal(err)
	}
	second := heard(func(s policy.Status) bool { return s.Err == nil && s.Revision != first.Revision })
	write(t, filepath.Join(d, "policy.rego"), "package s3.authz\nallow := input.key == `x`\n")
	heard(func(s policy.Status) bool { return s.Err == nil && s.Revision != second.Revision })
}

// TestReloadConfigMap swaps versions as a Kubernetes volume does: a link that another link goes through.
func TestReloadConfigMap(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	write(t, filepath.Join(d, "..v1/policy.rego"), allowAll)
	write(t, filepath.Join(d, "..v2/policy.rego"), allowNone)
	link(t, "..v1", filepath.Join(d, "..data"))
	link(t, "..data/policy.rego", filepath.Join(d, "policy.rego"))
	e, heard := watched(t, policy.Config{Dir: d})
	first := e.Status().Revision
	link(t, "..v2", filepath.Join(d, "..data"))
	heard(func(s policy.Status) bool { return s.Err == nil && s.Revision != first })
	if decide(t, e, question()).Allow {
		t.Error("the old version is in force")
	}
}

// TestReloadLink swaps the directory itself, as git-sync does.
func TestReloadLink(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	write(t, filepath.Join(d, "v1/policy.rego"), allowAll)
	write(t, filepath.Join(d, "v2/policy.rego"), allowNone)
	link(t, "v1", filepath.Join(d, "current"))
	e, heard := watched(t, policy.Config{Dir: filepath.Join(d, "current")})
	first := e.Status().Revision
	link(t, "v2", filepath.Join(d, "current"))
	second := heard(func(s policy.Status) bool { return s.Err == nil && s.Revision != first })
	write(t, filepath.Join(d, "v2/policy.rego"), "package s3.authz\nallow := input.key == `x`\n")
	heard(func(s policy.Status) bool { return s.Err == nil && s.Revision != second.Revision })
}

// link makes or swaps a symbolic link at once.
func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// TestReloadUnderLoad: every decision is one revision's, whole, and none fails.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	version := func(n string) map[string]string {
		return map[string]string{
			"policy.rego": "package s3.authz\nallow := true\nrole := data.role\nlimits := {\"bytes_per_second\": data.limit}\n",
			"data.yaml":   "role: r" + n + "\nlimit: " + n + "\n",
		}
	}
	d := dir(t, version("1"))
	e, _ := watched(t, policy.Config{Dir: d})
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	roles := make([]map[string]int64, 4)
	for i := range roles {
		roles[i] = map[string]int64{}
		work.Go(func() {
			for ctx.Err() == nil {
				got, err := e.Decide(context.Background(), question())
				if err != nil || !got.Allow {
					t.Errorf("%+v, %v", got, err)
					return
				}
				if limit, ok := roles[i][got.Role+got.Revision]; ok && limit != got.Limits.BytesPerSecond {
					t.Errorf("mixed revisions: %+v", got)
				}
				roles[i][got.Role+got.Revision] = got.Limits.BytesPerSecond
			}
		})
	}
	for i := range 20 {
		for name, content := range version(string(rune('1' + i%9))) {
			write(t, filepath.Join(d, name), content)
		}
		if err := e.Reload(context.Background()); err != nil {
			t.Error(err)
		}
	}
	stop()
	work.Wait()
}
