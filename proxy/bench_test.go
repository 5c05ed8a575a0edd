package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy"
)

// still is a backend with no network: what is left is the proxy's own work.
type still struct{ body string }

func (s still) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	return &http.Response{
		StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Request: r, ContentLength: int64(len(s.body)),
		Header: http.Header{"Content-Length": {fmt.Sprint(len(s.body))}, "Etag": {`"x"`}, "Content-Type": {"application/octet-stream"}},
		Body:   io.NopCloser(&repeated{s.body}),
	}, nil
}

type repeated struct{ rest string }

func (r *repeated) Read(p []byte) (int, error) {
	if r.rest == "" {
		return 0, io.EOF
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

type nowhere struct {
	header http.Header
	status int
}

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) WriteHeader(status int)      { n.status = status }
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkGet is the whole path of a small GET, less the two connections: with the journal and the log's file, and with
// neither.
func BenchmarkGet(b *testing.B) {
	b.Run("journalled", func(b *testing.B) { benchmarkGet(b, nil) })
	b.Run("unjournalled", func(b *testing.B) {
		benchmarkGet(b, func(c *audit.Config) { c.File, c.Stdout, c.StdoutWriter = nil, true, io.Discard })
	})
}

func benchmarkGet(b *testing.B, recording func(*audit.Config)) {
	r := newRig(b, rigOptions{audit: recording, configure: func(c *proxy.Config) { c.Backends[0].Transport = still{string(make([]byte, 1024))} }})
	template := httptest.NewRequest("GET", "/artifacts/web/some/object.bin", nil)
	template.Header.Set("User-Agent", "aws-cli/2")
	token := "Bearer " + r.token()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		request := new(http.Request)
		*request = *template
		request.Header = http.Header{"User-Agent": template.Header["User-Agent"], "Authorization": {token}}
		r.proxy.ServeHTTP(&nowhere{header: http.Header{}}, request)
	}
}

// BenchmarkNewIdentity is the whole path of a small GET by a token never seen before, by the starter policies, and what
// the memory holds of it afterwards.
func BenchmarkNewIdentity(b *testing.B) {
	policies := b.TempDir()
	must(b, os.CopyFS(policies, os.DirFS(filepath.Join("..", "policies"))))
	must(b, os.WriteFile(filepath.Join(policies, "prefixes.yaml"), []byte("prefixes: {buckets: {artifacts: project}}\n"), 0o644))
	r := newRig(b, rigOptions{configure: func(c *proxy.Config) {
		c.Backends[0].Transport = still{string(make([]byte, 1024))}
		var err error
		c.Policy, err = policy.Open(b.Context(), policy.Config{Dir: policies}, nil)
		must(b, err)
	}})
	template := httptest.NewRequest("GET", "/artifacts/web/some/object.bin", nil)
	template.Header.Set("User-Agent", "aws-cli/2")
	tokens := make([]string, 3000)
	for n := range tokens {
		tokens[n] = r.token(map[string]any{
			"environment_id": fmt.Sprint("env-", n), "organization_id": "a1b2c3d4-0000-4000-8000-000000000001", "runner_id": "f3a4b5c6-0000-4000-8000-000000000007",
			"creator_principal": "user", "creator_id": "b3c4d5e6-0000-4000-8000-000000000003", "creator_idp_claims": map[string]any{"groups": []string{"engineering"}},
		})
	}
	ask := func(token string) {
		request := new(http.Request)
		*request = *template
		request.Header = http.Header{"User-Agent": template.Header["User-Agent"], "Authorization": {"Bearer " + strings.Clone(token)}}
		w := &nowhere{header: http.Header{}}
		if r.proxy.ServeHTTP(w, request); w.status != http.StatusOK {
			b.Fatal(w.status)
		}
	}
	ask(r.token())
	for b.Loop() {
		before, began := heap(), cpuTime()
		for _, token := range tokens {
			ask(token)
		}
		cold := cpuTime() - began
		b.ReportMetric(float64(heap()-before)/float64(len(tokens)), "B/identity")
		began = cpuTime()
		for _, token := range tokens {
			ask(token)
		}
		b.ReportMetric(float64(cold-(cpuTime()-began))/float64(len(tokens)), "cold-cpu-ns")
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// cpuTime is what this process has used of the processors, collecting garbage included.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
