package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/policy/policytest"
)

const (
	readAll  = "package s3.authz\nallow if input.action == \"s3:GetObject\"\n"
	readNone = "package s3.authz\nallow if input.action == \"s3:PutObject\"\nreasons contains \"not today\"\n"
	noAllow  = "package s3.authz\nx := 1\n"
)

// policyState is what /readyz says of the policy.
func (r *rig) policyState(t *testing.T) (state struct{ Revision, Age, Checked, Error string }) {
	t.Helper()
	answer, err := http.Get(r.proxy.AdminURL + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var body struct {
		Ready      bool
		Components struct {
			Policy struct{ Revision, Age, Checked, Error string }
		}
	}
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil || !body.Ready || body.Components.Policy.Age == "" {
		t.Errorf("/readyz: %+v, %v", body, err)
	}
	return body.Components.Policy
}

func (r *rig) scrape(t *testing.T) string {
	t.Helper()
	answer, err := http.Get(r.proxy.AdminURL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	return string(text)
}

func (r *rig) reloadPolicy(t *testing.T) (status int, body struct{ Revision, Error string }) {
	t.Helper()
	answer, err := http.Post(r.proxy.AdminURL+"/-/reload", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, body
}

// restart kills the proxy and starts it again.
func (r *rig) restart(t *testing.T) {
	t.Helper()
	config, err := os.ReadFile(r.proxy.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	r.proxy.Kill()
	if r.proxy, err = r.StartProxy(context.Background(), string(config)); err != nil {
		t.Fatal(err)
	}
}

// TestPolicySources: what is published in an OCI registry, or committed to a repository that is reached by ssh, is what
// the running program enforces; what is bad is not; and neither is needed to start again.
func TestPolicySources(t *testing.T) {
	t.Parallel()
	sources := map[string]func(t *testing.T) (section map[string]any, publish func(rego string) (revision string), down func(bool)){
		"registry": func(t *testing.T) (map[string]any, func(string) string, func(bool)) {
			o := policytest.NewRegistry(t)
			n := 0
			publish := func(rego string) string {
				n++
				revision := fmt.Sprintf("r%d", n)
				if rego == "" { // the attack: signed by somebody else
					o.Push("live", policytest.NewSigner(t).Build(revision, readAll, nil))
				} else {
					o.Push("live", o.Build(revision, rego, nil))
				}
				return revision
			}
			return map[string]any{"opa": o.OPA(t.TempDir(), ":live")}, publish, o.Down.Store
		},
		"ssh": func(t *testing.T) (map[string]any, func(string) string, func(bool)) {
			r := policytest.NewRepository(t)
			key, _, public := policytest.SSHKey(t, "")
			server := r.ServeSSH(public)
			known := filepath.Join(t.TempDir(), "known_hosts")
			write(t, known, server.Ed)
			publish := func(rego string) string {
				if rego == "" {
					rego = noAllow
				}
				return r.Commit(map[string]string{"policies/authz.rego": rego})
			}
			return map[string]any{"git": map[string]any{
					"url": server.URL, "path": "policies", "interval": "1s", "cache": t.TempDir(), "ssh_key_file": key, "known_hosts_file": known,
				}}, publish, func(down bool) {
					if down {
						write(t, known, "") // nobody vouches for the host any more
					}
				}
		},
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			section, publish, down := source(t)
			first := publish(readAll)
			r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"policy": section}})
			r.store(t, "web/x", []byte("x"))
			ask := func() (status int, revision string) {
				status = r.get(t, "/artifacts/web/x").StatusCode
				return status, r.event(t).Decision.PolicyRevision
			}
			if status, revision := ask(); status != 200 || revision != first {
				t.Fatalf("%d by %s", status, revision)
			}
			second := publish(readNone)
			until(t, "the change enforced", func() bool {
				status, revision := ask()
				return status == 403 && revision == second
			})

			bad := publish("")
			until(t, "the bad one noticed", func() bool { return r.policyState(t).Error != "" })
			if state := r.policyState(t); state.Revision != second || state.Checked == "" {
				t.Errorf("%+v", state)
			}
			if text := r.scrape(t); !strings.Contains(text, "\nsluice_policy_stale") || !strings.Contains(text, `revision="`+second+`"`) || strings.Contains(text, `revision="`+bad+`"`) {
				t.Errorf("metrics:\n%s", text)
			}
			if status, body := r.reloadPolicy(t); status != 422 || body.Revision != second || body.Error == "" {
				t.Errorf("%d %+v", status, body)
			}
			if status, revision := ask(); status != 403 || revision != second {
				t.Errorf("%d by %s", status, revision)
			}

			down(true)
			r.restart(t)
			events, err := r.proxy.Events()
			if err != nil {
				t.Fatal(err)
			}
			r.seen = len(events)
			if status, revision := ask(); status != 403 || revision != second {
				t.Errorf("after a restart without the source: %d by %s", status, revision)
			}
			until(t, "the source missed", func() bool { return r.policyState(t).Error != "" })
			if state := r.policyState(t); state.Revision != second || state.Checked != "" {
				t.Errorf("%+v", state)
			}
		})
	}
}
