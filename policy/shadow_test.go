package policy_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/test/machine"
)

func TestShadow(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, candidate string
		want            policy.ShadowDecision
		err             string
	}{
		{"the same", "allow := true\nrole := `r`", policy.ShadowDecision{Allow: true, Role: "r"}, ""},
		{"would refuse", "allow := false\nreasons contains `no`", policy.ShadowDecision{Differs: true, Reasons: []string{"no"}}, ""},
		{"other role", "allow := true\nrole := `other`", policy.ShadowDecision{Allow: true, Differs: true, Role: "other"}, ""},
		{"other terms", "allow := true\nrole := `r`\nlimits := {\"bytes_per_second\": 1}", policy.ShadowDecision{Allow: true, Differs: true, Role: "r"}, ""},
		{"fails", "allow if to_number(input.key) == 1", policy.ShadowDecision{Differs: true}, "to_number"},
		{"never ends", "allow if { some i in numbers.range(1, 1000); some j in numbers.range(1, 1000); some k in numbers.range(1, 1000); i * j * k == -1 }", policy.ShadowDecision{Differs: true}, "longer than"},
		{"cannot be loaded", "allow if x", policy.ShadowDecision{}, "policy.rego:2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			shadow := dir(t, map[string]string{"policy.rego": "package s3.authz\n" + test.candidate + "\n"})
			e, heard := watched(t, policy.Config{
				Dir:    dir(t, map[string]string{"policy.rego": "package s3.authz\nallow := true\nrole := `r`\n"}),
				Shadow: &policy.Config{Dir: shadow},
			})
			status := e.Status()
			if s := status.Shadow; s == nil || s.Revision == "" && s.Err == nil {
				status = heard(func(s policy.Status) bool { return s.Shadow.Revision != "" || s.Shadow.Err != nil })
			}
			if test.err == "longer than" {
				policy.Impatient(e)
			}
			watch := machine.Watch(t)
			d := decide(t, e, question())
			watch.Within(t, 500*time.Millisecond, "decided")
			if !d.Allow || d.Role != "r" || d.Revision != status.Revision {
				t.Errorf("obeyed: %+v", d)
			}
			have := *d.Shadow
			if !strings.Contains(have.Error, test.err) || (have.Error == "") != (test.err == "") {
				t.Errorf("error %q, want %q", have.Error, test.err)
			}
			if have.Revision != status.Shadow.Revision {
				t.Errorf("revision %s, want %s", have.Revision, status.Shadow.Revision)
			}
			have.Error, have.Revision = "", ""
			if strings.Join(have.Reasons, ";") != strings.Join(test.want.Reasons, ";") || have.Allow != test.want.Allow || have.Differs != test.want.Differs || have.Role != test.want.Role {
				t.Errorf("have %+v, want %+v", have, test.want)
			}
		})
	}
}

// TestShadowReload: the candidate is reloaded as the policy is, and its failure is not the policy's.
func TestShadowReload(t *testing.T) {
	t.Parallel()
	d := dir(t, map[string]string{"policy.rego": allowNone})
	e, heard := watched(t, policy.Config{Dir: dir(t, map[string]string{"policy.rego": allowAll}), Shadow: &policy.Config{Dir: d}})
	if s := e.Status(); s.Shadow.Revision == "" {
		heard(func(s policy.Status) bool { return s.Shadow.Revision != "" })
	}
	write(t, filepath.Join(d, "policy.rego"), allowAll)
	heard(func(policy.Status) bool { return decide(t, e, question()).Shadow.Allow })
	write(t, filepath.Join(d, "policy.rego"), "nonsense")
	if err := e.Reload(context.Background()); err != nil {
		t.Error(err)
	}
	if s := e.Status(); s.Err != nil || s.Shadow.Err == nil {
		t.Errorf("%+v", s)
	}
	if d := decide(t, e, question()); !d.Shadow.Allow || d.Shadow.Differs {
		t.Errorf("%+v", d.Shadow)
	}
}

// TestShadowDiffers: a difference is one in what the caller gets.
func TestShadowDiffers(t *testing.T) {
	t.Parallel()
	const role = "\nrole := `r`\n"
	put := []policy.Access{{Action: "s3:PutObject", Bucket: "b", Key: "k"}, {Action: "s3:PutObjectAcl", Bucket: "b", Key: "k"}}
	batch := []policy.Access{{Action: "s3:DeleteObject", Bucket: "b", Key: "k"}, {Action: "s3:DeleteObject", Bucket: "b", Key: "l"}}
	bypass := append(batch[:2:2], policy.Access{Action: "s3:BypassGovernanceRetention", Bucket: "b", Key: "k"}, policy.Access{Action: "s3:BypassGovernanceRetention", Bucket: "b", Key: "l"})
	for _, test := range []struct {
		name, operation    string
		accesses           []policy.Access
		inForce, candidate string
		want               bool
	}{
		{"refused for one access, or for both", "PutObject", put, "allow if input.action == `s3:PutObject`", "allow := false", false},
		{"refused for one, or for the other", "PutObject", put, "allow if input.action == `s3:PutObject`", "allow if input.action == `s3:PutObjectAcl`", false},
		{"refused, on other terms", "PutObject", put, "allow if input.action == `s3:PutObject`", "allow if input.action == `s3:PutObject`" + role, false},
		{"refused, and the candidate fails", "PutObject", put, "allow if input.action == `s3:PutObject`", "allow if to_number(input.key) == 1", false},
		{"refused, or allowed", "PutObject", put, "allow if input.action == `s3:PutObject`", "allow := true", true},
		{"allowed, or refused for one", "PutObject", put, "allow := true", "allow if input.action == `s3:PutObject`", true},
		{"allowed, on other terms", "PutObject", put, "allow := true", "allow := true" + role, true},
		{"one key, or none", "DeleteObjects", batch, "allow if input.key == `k`", "allow := false", true},
		{"one key, or the other", "DeleteObjects", batch, "allow if input.key == `k`", "allow if input.key == `l`", true},
		{"one key, on other terms", "DeleteObjects", batch, "allow if input.key == `k`", "allow if input.key == `k`" + role, true},
		{"one key, and the candidate fails", "DeleteObjects", batch, "allow if input.key == `k`", "allow if to_number(input.key) == 1", true},
		{"no key, on other terms", "DeleteObjects", batch, "allow := false", "allow := false" + role, false},
		{"no key, for want of one thing or the other", "DeleteObjects", bypass, "allow if input.action == `s3:DeleteObject`", "allow if input.action != `s3:DeleteObject`", false},
		{"a key with all it needs", "DeleteObjects", bypass, "allow if input.action == `s3:DeleteObject`", "allow if input.action == `s3:DeleteObject`\nallow if input.key == `k`", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, heard := watched(t, policy.Config{
				Dir:    dir(t, map[string]string{"policy.rego": "package s3.authz\n" + test.inForce + "\n"}),
				Shadow: &policy.Config{Dir: dir(t, map[string]string{"policy.rego": "package s3.authz\n" + test.candidate + "\n"})},
			})
			if e.Status().Shadow.Revision == "" {
				heard(func(s policy.Status) bool { return s.Shadow.Revision != "" })
			}
			q := question(test.accesses...)
			q.Operation = test.operation
			if d := decide(t, e, q); d.Shadow.Differs != test.want {
				t.Errorf("differs is %t: in force %+v, the candidate %+v", d.Shadow.Differs, d, d.Shadow)
			}
		})
	}
}
