package policy_test

import (
	"context"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/policy/policytest"
	"github.com/sluice-s3/sluice/test/machine"
)

func TestOPA(t *testing.T) {
	t.Parallel()
	b := policytest.NewBundles(t)
	b.Publish("/authz", "r1", "package s3.authz\nallow := data.on\n", map[string]any{"on": true})
	config := policy.Config{OPA: b.OPA(t.TempDir(), "/authz")}
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != "r1" || s.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}
	b.Publish("/authz", "r2", "package s3.authz\nallow := data.on\n", map[string]any{"on": false})
	heard(func(s policy.Status) bool { return s.Revision == "r2" && s.Err == nil })
	if d := decide(t, e, question()); d.Allow || d.Revision != "r2" {
		t.Errorf("%+v", d)
	}

	// None of these takes force; the next good one does.
	for _, bad := range []struct {
		name, want string
		content    []byte
	}{
		{"unsigned", "signature", b.Build("bad", allowAll, nil, policytest.Unsigned)},
		{"changed", "digest", b.Build("bad", allowNone, nil, policytest.Changed(allowAll))},
		{"signed by another", "verif", policytest.NewSigner(t).Build("bad", allowAll, nil)},
		{"forbidden function", "http.send is not available", b.Build("bad", "package s3.authz\nallow if http.send({}).x\n", nil)},
		{"no allow", "no rule `allow`", b.Build("bad", "package s3.authz\nx := 1\n", nil)},
		{"does not compile", "a.rego", b.Build("bad", "package s3.authz\nallow if x == 1\n", nil)},
		{"no bundle", "", []byte("nonsense")},
	} {
		b.Put("/authz", bad.content)
		s := heard(func(s policy.Status) bool { return s.Err != nil && strings.Contains(s.Err.Error(), bad.want) })
		if d := decide(t, e, question()); s.Revision != "r2" || d.Allow || d.Revision != "r2" {
			t.Errorf("%s: %+v, %+v", bad.name, s, d)
		}
		b.Publish("/authz", "r2", "package s3.authz\nallow := data.on\n", map[string]any{"on": false})
		heard(func(s policy.Status) bool { return s.Err == nil })
	}

	// The same revision with another content is another policy.
	b.Publish("/authz", "r2", allowAll, nil)
	heard(func(policy.Status) bool { return decide(t, e, question()).Allow })

	// What is there already does not come again.
	for before := b.NotAgain(); b.NotAgain() == before; {
		runtime.Gosched()
	}

	// The server's death changes nothing, nor does a restart meanwhile.
	b.SetDown(true)
	heard(func(s policy.Status) bool { return s.Err != nil })
	if !decide(t, e, question()).Allow {
		t.Error("not in force any more")
	}
	later, heardLater := watched(t, config)
	if s := later.Status(); s.Revision != "r2" || s.Err == nil || !decide(t, later, question()).Allow {
		t.Errorf("%+v", s)
	}
	b.SetDown(false)
	b.Publish("/authz", "r3", allowNone, nil)
	heardLater(func(s policy.Status) bool { return s.Revision == "r3" && s.Err == nil })

	// Reload does not wait.
	b.Publish("/authz", "r4", allowNone, nil)
	if err := later.Reload(context.Background()); err != nil || later.Status().Revision != "r4" {
		t.Errorf("%v, %+v", err, later.Status())
	}

	// Without a good bundle, and none kept, nothing begins.
	b.Put("/authz", b.Build("bad", "package s3.authz\nx := 1\n", nil))
	if e, err := policy.Open(t.Context(), policy.Config{OPA: b.OPA(t.TempDir(), "/authz")}, nil); err == nil {
		t.Errorf("began: %+v", e.Status())
	}
}

// TestOPALongPoll: a server that answers when there is something new is heard at once; and a poll that a reload breaks
// off is no failure.
func TestOPALongPoll(t *testing.T) {
	t.Parallel()
	b := policytest.NewBundles(t)
	b.SetLongPoll(true)
	b.Publish("/authz", "r1", allowAll, nil)
	config := policy.Config{OPA: b.OPA(t.TempDir(), "/authz")}
	config.OPA["bundles"].(map[string]any)["authz"].(map[string]any)["polling"] = map[string]any{"long_polling_timeout_seconds": 600}
	heard := make(chan policy.Status, 100)
	ctx, stop := context.WithCancel(context.Background())
	e, err := policy.Open(ctx, config, func(s policy.Status) { heard <- s })
	if err != nil {
		stop()
		t.Fatal(err)
	}
	next := func(revision string) {
		t.Helper()
		select {
		case s := <-heard:
			if s.Revision != revision || s.Err != nil {
				t.Errorf("%+v, want %s", s, revision)
			}
		case <-time.After(machine.Patience):
			t.Fatalf("%s not heard of in time; %+v", revision, e.Status())
		}
	}
	next("r1")
	for begun, revision := range []string{"r2", "r3"} {
		for b.Waited() <= begun {
			runtime.Gosched()
		}
		b.Publish("/authz", revision, allowAll, nil)
		next(revision)
	}
	for b.Waited() < 3 {
		runtime.Gosched()
	}
	if err := e.Reload(context.Background()); err != nil {
		t.Error(err)
	}
	stop()
	e.Wait()
	select {
	case s := <-heard:
		t.Errorf("neither to reload what is there nor to end is news: %+v", s)
	default:
	}
}

// TestOPAManyBundles: policy from one team, data from another.
func TestOPAManyBundles(t *testing.T) {
	t.Parallel()
	b := policytest.NewBundles(t)
	b.Publish("/authz", "p1", "package s3.authz\nallow if data.grants[input.identity.attributes.project]\n", nil)
	b.Publish("/grants", "g1", "", map[string]any{"grants": map[string]any{"web": true}})
	e, heard := watched(t, policy.Config{OPA: b.OPA(t.TempDir(), "/authz", "/grants")})
	if s := e.Status(); s.Revision != "authz@p1,grants@g1" || s.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}
	b.Publish("/grants", "g2", "", map[string]any{"grants": map[string]any{}})
	heard(func(s policy.Status) bool { return s.Revision == "authz@p1,grants@g2" })
	if decide(t, e, question()).Allow {
		t.Error("old grants")
	}
}

// TestOPADiscovery: even the configuration comes as a bundle.
func TestOPADiscovery(t *testing.T) {
	t.Parallel()
	b := policytest.NewBundles(t)
	b.Publish("/authz", "r1", allowAll, nil)
	bundleConfig := b.OPA("", "/authz")["bundles"]
	b.Publish("/discovery", "d1", "", map[string]any{"config": map[string]any{"bundles": bundleConfig}})
	config := policy.Config{OPA: b.OPA(t.TempDir())}
	delete(config.OPA, "bundles")
	config.OPA["discovery"] = map[string]any{"service": "ci", "resource": "/discovery", "decision": "config", "signing": map[string]any{"keyid": "ci"}}
	e, _ := watched(t, config)
	if s := e.Status(); s.Revision != "r1" || s.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}
}

// TestOPAFile: a bundle in a file is taken up when the file changes.
func TestOPAFile(t *testing.T) {
	t.Parallel()
	b := policytest.NewBundles(t)
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	write(t, file, string(b.Build("r1", allowAll, nil)))
	config := policy.Config{OPA: b.OPA(t.TempDir(), "/authz")}
	source := config.OPA["bundles"].(map[string]any)["authz"].(map[string]any)
	source["resource"], source["persist"] = "file://"+file, false // it is a file already
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != "r1" || s.Err != nil {
		t.Fatalf("%+v", s)
	}
	write(t, file, string(b.Build("r2", allowNone, nil)))
	heard(func(s policy.Status) bool { return s.Revision == "r2" })
	if decide(t, e, question()).Allow {
		t.Error("the old one is in force")
	}
}

func bundles(directory, name string) map[string]any {
	c := map[string]any{
		"services": map[string]any{"x": map[string]any{"url": "https://example.com"}},
		"bundles":  map[string]any{name: map[string]any{"service": "x", "persist": true}},
	}
	if directory != "" {
		c["persistence_directory"] = directory
	}
	return c
}

func TestConfigCheck(t *testing.T) {
	for _, test := range []struct {
		name   string
		config policy.Config
		want   []string // path: beginning of the problem
	}{
		{"none", policy.Config{}, []string{": no source"}},
		{"two", policy.Config{Dir: ".", Git: &policy.Git{URL: "https://github.com/acme/p"}}, []string{": more than one source"}},
		{"entrypoint", policy.Config{Dir: ".", Entrypoint: "/s3//authz"}, []string{"entrypoint: \"/s3//authz\""}},
		{"git", policy.Config{Git: &policy.Git{URL: "http://u:secret@example.com/p", Interval: 1, Path: "../x", TokenEnv: "NO_SUCH_VARIABLE", CAFile: "/no/such/file"}}, []string{
			"git.url: http can be changed", "git.url: holds a password", "git.token_env: environment variable", "git.ca_file: open", "git.interval: 1ns", "git.path: leads out",
		}},
		{"git without url", policy.Config{Git: &policy.Git{}}, []string{"git.url: missing"}},
		{"git protocol", policy.Config{Git: &policy.Git{URL: "git://example.com/p"}}, []string{"git.url: git is not supported"}},
		{"ssh", policy.Config{Git: &policy.Git{URL: "git@github.com:acme/p.git", TokenEnv: "HOME"}}, []string{"git.url: token_file"}},
		{"opa", policy.Config{OPA: map[string]any{"decision_logs": map[string]any{}, "bundels": map[string]any{}}}, []string{
			"opa.bundels: has no meaning", "opa.decision_logs: has no meaning", "opa.bundles: missing",
		}},
		{"opa service", policy.Config{OPA: map[string]any{"bundles": map[string]any{"a": map[string]any{"service": "none"}}}}, []string{"opa: "}},
		{"shadow", policy.Config{Dir: ".", Shadow: &policy.Config{Shadow: &policy.Config{}}}, []string{"shadow.shadow: a shadow has no shadow"}},
		{"shadow's source", policy.Config{Dir: ".", Shadow: &policy.Config{Git: &policy.Git{}}}, []string{"shadow.git.url: missing"}},
		{"kept in one place", policy.Config{OPA: bundles("/a", "x"), Shadow: &policy.Config{OPA: bundles("/a/../a/", "x")}}, []string{"shadow.opa.persistence_directory: the policy's own"}},
		{"both where OPA likes", policy.Config{OPA: bundles("", "x"), Shadow: &policy.Config{OPA: bundles("", "x")}}, []string{"shadow.opa.persistence_directory: the policy's own"}},
		{"kept apart", policy.Config{OPA: bundles("/a", "x"), Shadow: &policy.Config{OPA: bundles("/b", "x")}}, nil},
		{"good", policy.Config{Dir: "."}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var have []string
			test.config.Check(func(path, problem string) { have = append(have, path+": "+problem) })
			if len(have) != len(test.want) {
				t.Fatalf("have %q, want %q", have, test.want)
			}
			for i, want := range test.want {
				if !strings.HasPrefix(have[i], want) || strings.Contains(have[i], "secret") {
					t.Errorf("have %q, want %q", have[i], want)
				}
			}
		})
	}
}
