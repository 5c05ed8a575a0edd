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
