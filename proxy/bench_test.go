package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sluice-s3/sluice/audit"
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

type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) WriteHeader(int)             {}
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
		r.proxy.ServeHTTP(&nowhere{http.Header{}}, request)
	}
}
