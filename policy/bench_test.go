package policy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/policy"
)

// startersDir is the starter policies with other data.
func startersDir(t testing.TB, data map[string]any) string {
	t.Helper()
	d := t.TempDir()
	rego, err := filepath.Glob(filepath.Join(starters, "*.rego"))
	if err != nil || len(rego) == 0 {
		t.Fatal("no starter policies", err)
	}
	for _, name := range rego {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(d, filepath.Base(name)), string(content))
	}
	content, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(d, "data.json"), string(content))
	return d
}

// grown is data for all starter policies with n grants of each kind, among them some of project web and its
// developer.
func grown(n int) map[string]any {
	grants := map[string]map[string]map[string]string{"web": {"artifacts": {"api": "read", "shared": "write"}}}
	buckets := map[string]string{"web-cache": "web"}
	timeboxed := map[string]any{}
	residency := map[string]any{"artifacts": map[string]any{"region": "eu-west-1"}}
	regions := map[string]any{}
	ci := map[string]any{}
	for i := range n {
		project, bucket := fmt.Sprintf("project-%d", i), fmt.Sprintf("bucket-%d", i)
		grants[project] = map[string]map[string]string{"artifacts": {"shared": "write"}, bucket: {"api": "read"}}
		buckets[bucket] = project
		timeboxed[project+"@acme.com"] = map[string]any{bucket: map[string]any{"may": "read", "until": "2026-12-01T00:00:00Z"}}
		residency[bucket] = map[string]any{"region": "eu-central-1", "tags": map[string]any{"data-kind": "none"}}
		regions[project] = map[string]any{"regions": []string{"eu-central-1"}, "kinds": []string{"none"}}
		ci["acme/"+project] = map[string]any{bucket: true}
	}
	return map[string]any{
		"prefixes":   map[string]any{"buckets": map[string]any{"artifacts": "project", "home": "user"}},
		"grants":     grants,
		"buckets":    buckets,
		"ci":         map[string]any{"https://token.actions.githubusercontent.com": ci},
		"admins":     map[string]any{"https://login.acme.com": map[string]any{"platform-admins": true}},
		"agents":     map[string]any{"known_by": map[string]any{"https://app.gitpod.io": map[string]any{"actor_type": []string{"agent"}}}, "limits": map[string]any{"requests_per_second": 50}},
		"timeboxed":  timeboxed,
		"residency":  map[string]any{"buckets": residency, "projects": regions},
		"breakglass": map[string]any{"reason": "^INC-[0-9]{1,8}$", "users": map[string]any{"https://login.acme.com": map[string]any{"oncall@acme.com": true}}},
		"listings":   map[string]any{"buckets": map[string]any{"home": true}},
		"roles":      map[string]any{},
	}
}

// cpuTime is what this process has used of the processors, collecting garbage included: on a machine that others use
// too it says more than the clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDecide: what a decision by all the starter policies costs must not depend on how many grants there are.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{5, 100, 5_000, 50_000} {
		e := openDir(b, startersDir(b, grown(n)))
		for _, ask := range []struct {
			name  string
			key   string
			allow bool
		}{
			{"own", "web/build.tgz", true},
			{"granted", "shared/build.tgz", true},
			{"refused", "secret/build.tgz", false},
		} {
			b.Run(fmt.Sprintf("%s/%d", ask.name, n), func(b *testing.B) {
				q := question(policy.Access{Action: "s3:GetObject", Bucket: "artifacts", Key: ask.key, Backend: "aws"})
				b.ReportAllocs()
				before := cpuTime()
				for b.Loop() {
					if d, err := e.Decide(context.Background(), q); err != nil || d.Allow != ask.allow {
						b.Fatal(d, err)
					}
				}
				b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkVisibleKeys: a page of a listing.
func BenchmarkVisibleKeys(b *testing.B) {
	e := openDir(b, startersDir(b, grown(5_000)))
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s/2026/build-%d.tgz", []string{"web", "api", "secret", "shared"}[i%4], i)
	}
	q := question(policy.Access{Action: "s3:ListBucket", Bucket: "artifacts", Backend: "aws"})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.VisibleKeys(context.Background(), q, keys); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkKnow: what a token costs that was never seen before, by how often it asks.
func BenchmarkKnow(b *testing.B) {
	e := openDir(b, startersDir(b, grown(5_000)))
	for _, times := range []int{1, 2, 3, 4} {
		b.Run(fmt.Sprint(times), func(b *testing.B) {
			b.ReportAllocs()
			before := cpuTime()
			for b.Loop() {
				q := question()
				for range times {
					if _, err := e.Decide(context.Background(), q); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkDeleteMany: DeleteObjects with as many keys as it takes.
func BenchmarkDeleteMany(b *testing.B) {
	e := openDir(b, startersDir(b, grown(5_000)))
	accesses := make([]policy.Access, 1000)
	for i := range accesses {
		accesses[i] = policy.Access{Action: "s3:DeleteObject", Bucket: "artifacts", Key: fmt.Sprintf("web/%d", i), Backend: "aws"}
	}
	q := question(accesses...)
	b.ReportAllocs()
	for b.Loop() {
		if d, err := e.Decide(context.Background(), q); err != nil || !d.Allow {
			b.Fatal(d, err)
		}
	}
}
