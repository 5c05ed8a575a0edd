package http1

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// spread is over how many connections the benchmarks go in turn: what reading and writing heads costs is for the most part
// memory that is not at hand, and one connection's always is.
const spread = 512

const (
	usualRequest = "GET /artifacts/acme/web/builds/1024 HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nUser-Agent: aws-sdk-go-v2/1.47\r\nAccept-Encoding: identity\r\nAuthorization: Bearer "
	usualAnswer  = "HTTP/1.1 200 OK\r\nServer: S3\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\nETag: \"d41d8cd98f00b204e9800998ecf8427e\"\r\n" +
		"Last-Modified: Mon, 23 Nov 2026 00:00:00 GMT\r\nAccept-Ranges: bytes\r\nContent-Type: application/octet-stream\r\n" +
		"x-amz-request-id: 17A5F3B6D1C0E2F4\r\nContent-Length: 1024\r\n\r\n"
)

// nowhere takes what is written and has nothing to say.
type nowhere struct{ net.Conn }

func (nowhere) Read([]byte) (int, error)    { return 0, io.EOF }
func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

func BenchmarkRequestHead(b *testing.B) {
	text := usualRequest + strings.Repeat("t", 900) + "\r\n\r\n"
	s := &Server{}
	conns := make([]*conn, spread)
	for i := range conns {
		c := &conn{server: s, rwc: nowhere{}}
		c.in.init(c.rwc)
		c.request.init(c)
		conns[i] = c
	}
	b.ReportAllocs()
	for i := range b.N {
		c := conns[i%spread]
		c.in.r, c.in.w = 0, copy(c.in.buf, text)
		if status, err := c.request.read(); err != nil {
			b.Fatal(status, err)
		}
	}
}

func BenchmarkAnswerHead(b *testing.B) {
	r := &http.Request{Method: "GET"}
	links, exchanges := make([]*link, spread), make([]*exchange, spread)
	for i := range links {
		links[i], exchanges[i] = new(link), new(exchange)
		links[i].in.init(nowhere{})
	}
	b.ReportAllocs()
	for i := range b.N {
		l, e := links[i%spread], exchanges[i%spread]
		*e = exchange{link: l}
		l.in.r, l.in.w = 0, copy(l.in.buf, usualAnswer)
		if _, err := l.answer(e, r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteAnswer(b *testing.B) {
	s := &Server{ended: make(chan struct{})}
	conns := make([]*conn, spread)
	for i := range conns {
		c := &conn{server: s, rwc: nowhere{}}
		c.request.init(c)
		c.request.Request = *c.request.blank
		c.request.Method = "GET"
		c.response.init(c)
		conns[i] = c
	}
	var l link
	l.in.init(nowhere{})
	l.in.w = copy(l.in.buf, usualAnswer)
	answer, err := l.answer(&exchange{link: &l}, &http.Request{Method: "GET"})
	if err != nil {
		b.Fatal(err)
	}
	id, body := []string{"01JDKQ0000000000000000000"}, make([]byte, 1024)
	b.ReportAllocs()
	for i := range b.N {
		w := &conns[i%spread].response
		w.reset()
		w.Header()["X-Sluice-Request-Id"] = id
		w.Pass(answer.Fields)
		w.WriteHeader(answer.StatusCode)
		if _, err := w.Write(body); err != nil || !w.finish() {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteRequest(b *testing.B) {
	r := &http.Request{Method: "GET", Host: "127.0.0.1:9000",
		URL: &url.URL{Scheme: "http", Host: "127.0.0.1:9000", Path: "/artifacts/acme/web/builds/1024", RawPath: "/artifacts/acme/web/builds/1024"},
		Header: http.Header{
			"User-Agent": {"sluice"}, "X-Amz-Date": {"20261123T000000Z"}, "X-Amz-Content-Sha256": {"UNSIGNED-PAYLOAD"},
			"Authorization": {"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=" + strings.Repeat("0a", 32)},
		}}
	outs := make([][]byte, spread)
	b.ReportAllocs()
	for i := range b.N {
		var err error
		if outs[i%spread], err = appendRequest(outs[i%spread][:0], r); err != nil {
			b.Fatal(err)
		}
	}
}
