package policy_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/policy/policytest"
)

func TestGit(t *testing.T) {
	t.Parallel()
	r := policytest.NewRepository(t)
	first := r.Commit(map[string]string{
		"policies/a.rego": "package s3.authz\nallow := data.on\n", "policies/a.yaml": "on: true\n",
		"policies/a_test.rego": "package s3.authz\nallow := 1\n", "policies/.x/b.rego": "nonsense", "other/c.rego": "nonsense",
	})
	var secret atomic.Value
	secret.Store("hunter2")
	url, ca, down := r.Serve(func() string { return secret.Load().(string) })
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, "hunter2\n")
	config := policy.Config{Git: &policy.Git{URL: url, Path: "policies", Interval: time.Second, Cache: t.TempDir(), TokenFile: token, CAFile: ca}}
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != first || s.Err != nil || s.Checked.IsZero() || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}

	// A change is taken up by the poll.
	second := r.Commit(map[string]string{"policies/a.yaml": "on: false\n"})
	heard(func(s policy.Status) bool { return s.Revision == second })
	if d := decide(t, e, question()); d.Allow || d.Revision != second {
		t.Errorf("%+v", d)
	}

	// A bad one is not, and says why.
	bad := r.Commit(map[string]string{"policies/a.rego": "package s3.authz\nallow if http.send({})\n"})
	s := heard(func(s policy.Status) bool { return s.Err != nil })
	if s.Revision != second || !strings.Contains(s.Err.Error(), bad) || !strings.Contains(s.Err.Error(), "http.send") {
		t.Errorf("%+v", s)
	}

	// Reload does not wait for the poll.
	third := r.Commit(map[string]string{"policies/a.rego": allowAll})
	if err := e.Reload(context.Background()); err != nil || e.Status().Revision != third {
		t.Errorf("%v, %+v", err, e.Status())
	}

	// The token is another from now on.
	secret.Store("hunter3")
	write(t, token, "hunter3\n")
	r.Commit(nil)
	third = r.Git("rev-parse", "HEAD")
	if err := e.Reload(context.Background()); err != nil || e.Status().Revision != third {
		t.Errorf("%v, %+v", err, e.Status())
	}

	// Nothing of the secret is told, not even by a failure.
	down.Store(true)
	if err := e.Reload(context.Background()); err == nil || strings.Contains(err.Error(), "hunter") {
		t.Errorf("down: %v", err)
	}
	if d := decide(t, e, question()); !d.Allow || d.Revision != third {
		t.Errorf("%+v", d)
	}

	// A process that begins while the repository is down goes on with the last good policy.
	later, _ := watched(t, config)
	if s := later.Status(); s.Revision != third || s.Err == nil || !s.Checked.IsZero() {
		t.Errorf("%+v", s)
	}
	// So does one that finds a bad policy.
	down.Store(false)
	r.Commit(map[string]string{"policies/a.rego": "package s3.authz\n"})
	later, _ = watched(t, config)
	if s := later.Status(); s.Revision != third || s.Err == nil || !strings.Contains(s.Err.Error(), "s3.authz") {
		t.Errorf("%+v", s)
	}
	// But one that never had any does not begin.
	fresh := *config.Git
	fresh.Cache = t.TempDir()
	if _, err := policy.Open(t.Context(), policy.Config{Git: &fresh}, nil); err == nil {
		t.Error("began without a good policy")
	}
	write(t, token, "wrong")
	if _, err := policy.Open(t.Context(), policy.Config{Git: &fresh}, nil); err == nil || !strings.Contains(err.Error(), "auth") {
		t.Errorf("wrong token: %v", err)
	}
	write(t, token, "hunter3")
	fresh.CAFile = ""
	if _, err := policy.Open(t.Context(), policy.Config{Git: &fresh}, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server of nobody knows whom: %v", err)
	}
}

// TestGitShadow: policy and candidate from one repository keep apart what they keep.
// What would take all memory is not read, and the policy in force stays.
func TestGitTooLarge(t *testing.T) {
	t.Parallel()
	r := policytest.NewRepository(t)
	first := r.Commit(map[string]string{"a.rego": allowAll})
	url, ca, _ := r.Serve(func() string { return "" })
	e, heard := watched(t, policy.Config{Git: &policy.Git{URL: url, Interval: time.Second, Cache: t.TempDir(), CAFile: ca}})
	half := `{"x": "` + strings.Repeat("x", 33<<20) + `"}`
	r.Commit(map[string]string{"a/a.json": half, "b/b.json": half})
	heard(func(s policy.Status) bool {
		return s.Err != nil && strings.Contains(s.Err.Error(), "larger than 64 MiB together") && s.Revision == first
	})
	if !decide(t, e, question()).Allow {
		t.Error("the policy in force is not")
	}
}

func TestGitShadow(t *testing.T) {
	t.Parallel()
	r := policytest.NewRepository(t)
	first := r.Commit(map[string]string{"a.rego": allowNone})
	r.Git("checkout", "--quiet", "-b", "candidate")
	candidate := r.Commit(map[string]string{"a.rego": allowAll})
	url, ca, down := r.Serve(func() string { return "" })
	cache := t.TempDir()
	source := func(ref string) *policy.Git {
		return &policy.Git{URL: url, Ref: ref, Interval: time.Second, Cache: cache, CAFile: ca}
	}
	config := policy.Config{Git: source("main"), Shadow: &policy.Config{Git: source("candidate")}}
	_, heard := watched(t, config)
	heard(func(s policy.Status) bool {
		return s.Revision == first && s.Shadow != nil && s.Shadow.Revision == candidate
	})
	down.Store(true)
	later, heard := watched(t, config)
	if s := later.Status(); s.Revision != first || decide(t, later, question()).Allow {
		t.Errorf("after a restart without the repository: %+v", s)
	}
	heard(func(s policy.Status) bool { return s.Shadow != nil && s.Shadow.Revision == candidate })
}

func TestGitSSH(t *testing.T) {
	t.Parallel()
	r := policytest.NewRepository(t)
	first := r.Commit(map[string]string{"policies/a.rego": allowAll})
	keyFile, _, key := policytest.SSHKey(t, "")
	server := r.ServeSSH(key)
	known := filepath.Join(t.TempDir(), "known_hosts")
	write(t, known, server.Ed)
	config := policy.Config{Git: &policy.Git{URL: server.URL, Path: "policies", Interval: time.Second, Cache: t.TempDir(), SSHKeyFile: keyFile, KnownHostsFile: known}}
	e, heard := watched(t, config)
	if s := e.Status(); s.Revision != first || s.Err != nil || !decide(t, e, question()).Allow {
		t.Fatalf("%+v", s)
	}
	second := r.Commit(map[string]string{"policies/a.rego": allowNone})
	heard(func(s policy.Status) bool { return s.Revision == second })
	if d := decide(t, e, question()); d.Allow || d.Revision != second {
		t.Errorf("%+v", d)
	}

	other, _, _ := policytest.SSHKey(t, "")
	locked, _, _ := policytest.SSHKey(t, "swordfish")
	_, _, foreign := policytest.SSHKey(t, "")
	address := strings.Fields(server.Ed)[0]
	for name, c := range map[string]struct{ known, key, want string }{
		"its other key":       {server.RSA, keyFile, ""},
		"both keys":           {server.Ed + server.RSA, keyFile, ""},
		"unknown host":        {"", keyFile, "key is unknown"},
		"another host":        {strings.Replace(server.Ed, address, "github.com", 1), keyFile, "key is unknown"},
		"changed host key":    {knownhosts.Line([]string{address}, foreign) + "\n", keyFile, "key mismatch"},
		"revoked host key":    {server.Ed + "@revoked " + server.Ed, keyFile, "revoked"},
		"not authorized":      {server.Ed, other, "unable to authenticate"},
		"key with passphrase": {server.Ed, locked, "ssh_key_file: it has a passphrase"},
		"no key":              {server.Ed, known, "ssh_key_file"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "known_hosts")
			write(t, file, c.known)
			e, err := policy.Open(t.Context(), policy.Config{Git: &policy.Git{URL: server.URL, Path: "policies", Cache: t.TempDir(), SSHKeyFile: c.key, KnownHostsFile: file}}, nil)
			switch {
			case c.want == "" && (err != nil || e.Status().Revision != second):
				t.Errorf("%v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("have %v, want %s", err, c.want)
			}
		})
	}

	// A server that accepts connections and says nothing holds nothing up: not the reload after it either.
	server.Down.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := e.Reload(ctx); err == nil || e.Status().Revision != second {
		t.Errorf("%v, %+v", err, e.Status())
	}
	server.Down.Store(false)
	third := r.Commit(nil)
	if err := e.Reload(context.Background()); err != nil || e.Status().Revision != third {
		t.Errorf("%v, %+v", err, e.Status())
	}
}

// TestGitSSHAgent: without files of its own, ssh is the user's: the agent's keys, and the hosts that the user knows.
func TestGitSSHAgent(t *testing.T) {
	r := policytest.NewRepository(t)
	first := r.Commit(map[string]string{"a.rego": allowAll})
	_, private, key := policytest.SSHKey(t, "")
	server := r.ServeSSH(key)
	keys := agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		t.Fatal(err)
	}
	home, err := os.MkdirTemp("", "agent") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	listener, err := net.Listen("unix", filepath.Join(home, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(keys, conn)
		}
	}()
	t.Setenv("SSH_AUTH_SOCK", listener.Addr().String())
	t.Setenv("HOME", home)
	t.Setenv("SSH_KNOWN_HOSTS", filepath.Join(home, "known_hosts"))
	open := func() (*policy.Engine, error) {
		return policy.Open(t.Context(), policy.Config{Git: &policy.Git{URL: server.URL, Cache: t.TempDir()}}, nil)
	}
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "known_hosts") {
		t.Errorf("nothing is known of any host: %v", err)
	}
	write(t, filepath.Join(home, "known_hosts"), strings.Replace(server.Ed, "127.0.0.1", "127.0.0.2", 1))
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "key is unknown") {
		t.Errorf("the host is not known: %v", err)
	}
	write(t, filepath.Join(home, "known_hosts"), server.Ed)
	if e, err := open(); err != nil || e.Status().Revision != first {
		t.Errorf("%v", err)
	}
}

func TestGitRefs(t *testing.T) {
	t.Parallel()
	r := policytest.NewRepository(t)
	first := r.Commit(map[string]string{"a.rego": allowAll})
	r.Git("tag", "v1")
	r.Git("tag", "-a", "v1.1", "-m", "annotated")
	r.Git("checkout", "--quiet", "-b", "feature/x")
	second := r.Commit(map[string]string{"a.rego": allowNone})
	r.Git("checkout", "--quiet", "main")
	url := "file://" + r.Dir
	for ref, want := range map[string]string{
		"": first, "main": first, "v1": first, "v1.1": first, "refs/tags/v1": first, "feature/x": second, first: first,
	} {
		e, err := policy.Open(t.Context(), policy.Config{Git: &policy.Git{URL: url, Ref: ref, Cache: t.TempDir()}}, nil)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		} else if s := e.Status(); s.Revision != want {
			t.Errorf("%s: %+v, want %s", ref, s, want)
		}
	}
	for ref, want := range map[string]string{"nonsense": `no branch or tag "nonsense"`, strings.Repeat("1", 40): ""} {
		_, err := policy.Open(t.Context(), policy.Config{Git: &policy.Git{URL: url, Ref: ref, Cache: t.TempDir()}}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}
