package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/proxy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3test"
	"github.com/sluice-s3/sluice/test/machine"
)

func TestPutReachesTheBackendRebuilt(t *testing.T) {
	r := newRig(t, rigOptions{})
	request := r.request("PUT", "/artifacts/web/a%20b+c/%C3%BC%2F.txt?x-id=PutObject", strings.NewReader("hello"))
	request.Header.Set("Content-Type", "text/plain")
	request.Header.Set("X-Amz-Meta-Colour", "blue")
	request.Header.Set("X-Forwarded-For", "6.6.6.6")
	request.Header.Set("Cookie", "a=b")
	response, _ := r.do(request)
	if response.StatusCode != 200 {
		t.Fatal(response.Status)
	}
	got := r.backend.Last()
	if got.Target != "/artifacts/web/a%20b%2Bc/%C3%BC/.txt" {
		t.Errorf("target %s", got.Target)
	}
	if string(got.Payload) != "hello" || got.PayloadErr != nil {
		t.Errorf("payload %q, %v", got.Payload, got.PayloadErr)
	}
	for _, name := range []string{"X-Forwarded-For", "Cookie", "Accept-Encoding", "X-Sluice-Request-Id"} {
		if got.Header.Has(name) {
			t.Errorf("%s reached the backend", name)
		}
	}
	for name, want := range map[string]string{"Content-Type": "text/plain", "X-Amz-Meta-Colour": "blue", "Content-Length": "5"} {
		if got.Header.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, got.Header.Get(name), want)
		}
	}
	e := r.event()
	check(t, e, map[string]any{"operation": "PutObject", "bucket": "artifacts", "key": "web/a b+c/ü/.txt", "outcome": "completed", "status": 200, "bytes_in": 5})
	if response.Header.Get("X-Sluice-Request-Id") != e.ID {
		t.Errorf("x-sluice-request-id is %q, the event's id %q", response.Header.Get("X-Sluice-Request-Id"), e.ID)
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t, rigOptions{})
	for name, c := range map[string]struct {
		change  func(*http.Request)
		method  string
		target  string
		status  int
		code    string
		message string
	}{
		"no credentials": {func(q *http.Request) { q.Header.Del("Authorization") }, "GET", "/b/web/k", 403, "AccessDenied", "Authorization: Bearer"},
		"not a token":    {func(q *http.Request) { q.Header.Set("Authorization", "Bearer x.y.z") }, "GET", "/b/web/k", 400, "InvalidToken", ""},
		"expired": {func(q *http.Request) {
			q.Header.Set("Authorization", "Bearer "+r.token(map[string]any{"exp": time.Now().Add(-time.Hour).Unix(), "iat": time.Now().Add(-2 * time.Hour).Unix()}))
		}, "GET", "/b/web/k", 400, "ExpiredToken", "fetch a new one"},
		"basic":               {func(q *http.Request) { q.Header.Set("Authorization", "Basic eDp5") }, "GET", "/b/web/k", 400, "InvalidRequest", ""},
		"policy":              {nil, "GET", "/b/api/k", 403, "AccessDenied", "policy does not allow s3:GetObject on b/api/k: project web works below web/"},
		"unknown subresource": {nil, "GET", "/b/web/k?frobnicate", 400, "InvalidArgument", ""},
		"unknown header":      {func(q *http.Request) { q.Header.Set("X-Amz-Frobnicate", "1") }, "GET", "/b/web/k", 400, "InvalidArgument", ""},
		"form":                {func(q *http.Request) { q.Header.Set("Content-Type", "multipart/form-data; boundary=x") }, "POST", "/b", 501, "NotImplemented", ""},
		"own path":            {nil, "GET", "/-/metrics", 404, "InvalidRequest", "/-/credentials"},
	} {
		t.Run(name, func(t *testing.T) {
			request := r.request(c.method, c.target, nil)
			if c.change != nil {
				c.change(request)
			}
			response, body := r.do(request)
			if response.StatusCode != c.status && !(c.code == "InvalidArgument" && response.StatusCode == 400) {
				t.Errorf("%s, want %d: %s", response.Status, c.status, body)
			}
			if !strings.Contains(body, "<Code>"+c.code+"</Code>") && !(c.code == "InvalidArgument" && strings.Contains(body, "<Code>InvalidRequest</Code>")) {
				t.Errorf("want %s: %s", c.code, body)
			}
			if !strings.Contains(body, c.message) {
				t.Errorf("want %q in %s", c.message, body)
			}
			e := r.event()
			check(t, e, map[string]any{"outcome": "refused", "status": response.StatusCode})
			if response.Header.Get("X-Amz-Request-Id") != e.ID || !strings.Contains(body, e.ID) {
				t.Errorf("request id %q is not the event's", response.Header.Get("X-Amz-Request-Id"))
			}
		})
	}
	if n := len(r.backend.Requests()); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// A HEAD has no body to say why in.
func TestRefusedHeadSaysWhy(t *testing.T) {
	r := newRig(t, rigOptions{})
	response, _ := r.do(r.request("HEAD", "/b/api/%C3%BC", nil))
	if reason := response.Header.Get("X-Sluice-Reason"); response.StatusCode != 403 || !strings.Contains(reason, "policy does not allow s3:GetObject on b/api/?") || !strings.Contains(reason, "project web works below web/") {
		t.Errorf("%s: %q", response.Status, reason)
	}
	check(t, r.event(), map[string]any{"outcome": "refused"})
}

// A refused upload costs the client no byte of its body.
func TestRefusedPutIsNotContinued(t *testing.T) {
	r := newRig(t, rigOptions{})
	response, _ := r.raw("PUT /artifacts/api/k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.token() + "\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	if response.StatusCode != 403 {
		t.Errorf("got %s, want 403 and no 100", response.Status)
	}
	check(t, r.event(), map[string]any{"outcome": "refused", "bytes_in": 0})
}

// Nor does one that the backend refuses: its 100 is what makes the bytes flow.
func TestContinueIsTheBackends(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.backend.HandleStream(func(w http.ResponseWriter, body io.Reader, q *s3test.Request) {
		w.Header().Set("Connection", "close")
		s3test.Error(w, 412, "PreconditionFailed", "exists")
	})
	response, body := r.raw("PUT /artifacts/web/k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.token() + "\r\nIf-None-Match: *\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	if response.StatusCode != 412 {
		t.Errorf("got %s, want the backend's 412 and no 100: %s", response.Status, body)
	}
	check(t, r.event(), map[string]any{"outcome": "completed", "bytes_in": 0, "error": "PreconditionFailed", "status": 412})
}

func TestAnswersPassAsTheyAre(t *testing.T) {
	r := newRig(t, rigOptions{})
	for name, c := range map[string]struct {
		method string
		header http.Header
		status int
		answer http.Header
		body   string
	}{
		"range":        {"GET", http.Header{"Range": {"bytes=1-3"}}, 206, http.Header{"Content-Range": {"bytes 1-3/10"}, "Etag": {`"x"`}}, "ell"},
		"not modified": {"GET", http.Header{"If-None-Match": {`"x"`}}, 304, http.Header{"Etag": {`"x"`}}, ""},
		"precondition": {"GET", http.Header{"If-Match": {`"y"`}}, 412, http.Header{"X-Amz-Request-Id": {"B1"}}, "<Error><Code>PreconditionFailed</Code></Error>"},
		"missing":      {"GET", nil, 404, nil, "<Error><Code>NoSuchKey</Code></Error>"},
		"head":         {"HEAD", nil, 200, http.Header{"Content-Length": {"1234567"}, "X-Amz-Meta-A": {"b"}}, ""},
		"head missing": {"HEAD", nil, 404, nil, ""},
		"delete":       {"DELETE", nil, 204, http.Header{"X-Amz-Delete-Marker": {"true"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r.backend.Answer(c.status, c.answer, c.body)
			request := r.request(c.method, "/artifacts/web/k", nil)
			for name, values := range c.header {
				request.Header[name] = values
			}
			response, body := r.do(request)
			if response.StatusCode != c.status || body != c.body {
				t.Errorf("%s %q, want %d %q", response.Status, body, c.status, c.body)
			}
			for name := range c.answer {
				if response.Header.Get(name) != c.answer.Get(name) {
					t.Errorf("%s is %q, want %q", name, response.Header.Get(name), c.answer.Get(name))
				}
			}
			got := r.backend.Last()
			for name := range c.header {
				if got.Header.Get(name) != c.header.Get(name) {
					t.Errorf("the backend saw %s %q", name, got.Header.Get(name))
				}
			}
			check(t, r.event(), map[string]any{"outcome": "completed", "status": c.status, "bytes_out": len(c.body)})
		})
	}
}

func TestClientLeavesMidUpload(t *testing.T) {
	r := newRig(t, rigOptions{})
	c, err := net.Dial("tcp", r.server.Listener.Addr().String())
	must(t, err)
	fmt.Fprintf(c, "PUT /artifacts/web/k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 100000\r\n\r\nonly this", r.token())
	for len(r.backend.Requests()) == 0 {
		time.Sleep(time.Millisecond)
	}
	c.Close()
	check(t, r.event(), map[string]any{"outcome": "aborted", "operation": "PutObject"})
	if got := r.backend.Wait(1)[0]; got.Err == nil {
		t.Error("the backend saw a whole upload")
	}
}

func TestClientLeavesMidDownload(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.backend.Handle(func(w http.ResponseWriter, q *s3test.Request) {
		piece := make([]byte, 1<<20)
		for range 64 {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	})
	response, err := noRedirects.Do(r.request("GET", "/artifacts/web/k", nil))
	must(t, err)
	io.CopyN(io.Discard, response.Body, 10)
	response.Body.Close()
	check(t, r.event(), map[string]any{"outcome": "aborted", "status": 200})
}

func TestBackendCutsMidAnswer(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.backend.Handle(func(w http.ResponseWriter, q *s3test.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "half of it")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	if body, err := r.readAll("/artifacts/web/k"); err == nil {
		t.Errorf("the client was told that %q is all", body)
	}
	check(t, r.event(), map[string]any{"outcome": "aborted", "status": 200, "bytes_out": 10})
}

func TestBackendDown(t *testing.T) {
	r := newRig(t, rigOptions{configure: func(c *proxy.Config) {
		c.Backends[0].Endpoint = &url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", machine.FreePort(t))}
	}})
	response, body := r.do(r.request("GET", "/artifacts/web/k", nil))
	if response.StatusCode != 503 || !strings.Contains(body, "ServiceUnavailable") || response.Header.Get("Retry-After") == "" {
		t.Errorf("%s %s", response.Status, body)
	}
	if strings.Contains(body, "127.0.0.1") {
		t.Errorf("the answer tells where the backend is: %s", body)
	}
	check(t, r.event(), map[string]any{"outcome": "failed", "error": "ServiceUnavailable"})
}

func TestNothingMovesForTheIdleTimeout(t *testing.T) {
	// Long enough for what is not to time out on a slow machine, too.
	short := func(c *proxy.Config) { c.Limits.IdleTimeout = time.Second }
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, rigOptions{configure: short})
		response, body := r.raw("PUT /artifacts/web/k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.token() + "\r\nContent-Length: 1000\r\n\r\nonly this")
		if response.StatusCode != 400 || !strings.Contains(body, "RequestTimeout") {
			t.Errorf("%s %s", response.Status, body)
		}
		check(t, r.event(), map[string]any{"outcome": "aborted", "error": "RequestTimeout"})
	})
	t.Run("backend", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, rigOptions{configure: short})
		r.backend.Handle(func(w http.ResponseWriter, q *s3test.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, "half of it")
			http.NewResponseController(w).Flush()
			<-r.backend.Done()
		})
		if _, err := r.readAll("/artifacts/web/k"); err == nil {
			t.Error("the client was told that half is all")
		}
		check(t, r.event(), map[string]any{"outcome": "aborted"})
	})
	t.Run("slow but moving", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, rigOptions{configure: short})
		r.backend.Handle(func(w http.ResponseWriter, q *s3test.Request) {
			for range 20 {
				io.WriteString(w, "x")
				http.NewResponseController(w).Flush()
				time.Sleep(75 * time.Millisecond) // what is tested is that time passes
			}
		})
		if _, body := r.do(r.request("GET", "/artifacts/web/k", nil)); len(body) != 20 {
			t.Errorf("%d bytes, want 20", len(body))
		}
		check(t, r.event(), map[string]any{"outcome": "completed", "bytes_out": 20})
	})
}

type panics struct{}

func (panics) RoundTrip(*http.Request) (*http.Response, error) { panic("a bug") }

func TestPanicIsRecorded(t *testing.T) {
	r := newRig(t, rigOptions{configure: func(c *proxy.Config) { c.Backends[0].Transport = panics{} }})
	response, body := r.do(r.request("GET", "/artifacts/web/k", nil))
	if response.StatusCode != 500 || !strings.Contains(body, "InternalError") || strings.Contains(body, "a bug") {
		t.Errorf("%s %s", response.Status, body)
	}
	check(t, r.event(), map[string]any{"outcome": "failed", "error": "InternalError", "status": 500})
}

// T16: the endpoint is the configuration's alone, and no redirect is followed or handed on.
func TestT16Redirects(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, status := range []int{301, 302, 303, 307, 308} {
		r.backend.Answer(status, http.Header{"Location": {"http://169.254.169.254/latest/meta-data/"}, "X-Amz-Bucket-Region": {"eu-west-1"}}, "<Error><Code>PermanentRedirect</Code></Error>")
		response, _ := r.do(r.request("GET", "/artifacts/web/k", nil))
		if response.StatusCode != status || response.Header.Get("Location") != "" {
			t.Errorf("%d: got %s to %q", status, response.Status, response.Header.Get("Location"))
		}
		if response.Header.Get("X-Amz-Bucket-Region") != "eu-west-1" {
			t.Error("clients find a bucket's region by this header")
		}
		r.event()
	}
	for _, line := range []string{
		"GET http://169.254.169.254/latest/meta-data/ HTTP/1.1", "GET //169.254.169.254/web/k HTTP/1.1", "OPTIONS * HTTP/1.1",
		"GET http://user:pass@x/b/web/k HTTP/1.1", "CONNECT 169.254.169.254:80 HTTP/1.1",
	} {
		r.backend.Forget()
		response, body := r.raw(line + "\r\nHost: x\r\nAuthorization: Bearer " + r.token() + "\r\nConnection: close\r\n\r\n")
		if response.StatusCode < 400 || len(r.backend.Requests()) != 0 {
			t.Errorf("%s: %s %s", line, response.Status, body)
		}
		check(t, r.event(), map[string]any{"outcome": "refused"})
	}
}

// T25: nothing on the S3 listener is let through for its path or its user agent.
func TestT25NoSideDoors(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/minio/health/live", "/favicon.ico", "/-/healthz", "/-/", "/-"} {
		request := r.request("GET", path, nil)
		request.Header.Del("Authorization")
		request.Header.Set("User-Agent", "kube-probe/1.30")
		response, body := r.do(request)
		if response.StatusCode < 400 {
			t.Errorf("%s: %s %s", path, response.Status, body)
		}
		check(t, r.event(), map[string]any{"outcome": "refused"})
	}
	if n := len(r.backend.Requests()); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// T07: the canaries are in no sink: not upstream, not in a log, not in an event, not in an answer.
func TestT07CredentialsGoNowhere(t *testing.T) {
	r := newRig(t, rigOptions{})
	var answers strings.Builder
	token := r.token()
	signature := token[strings.LastIndex(token, ".")+1:]
	for _, send := range []func(q *http.Request){
		func(q *http.Request) {},
		func(q *http.Request) { q.Header.Add("Authorization", "Bearer "+token) },
		func(q *http.Request) { q.Header.Set("X-Amz-Security-Token", token) },
		func(q *http.Request) { q.Header.Set("Authorization", "Bearer "+token+"x") },
		func(q *http.Request) { q.Header.Set("Authorization", "bearer  "+token) },
		func(q *http.Request) { q.Header.Set("Authorization", token) },
		func(q *http.Request) {
			q.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=x/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature="+signature)
			q.Header.Set("X-Amz-Security-Token", token)
		},
		func(q *http.Request) { q.URL.RawQuery = "X-Amz-Security-Token=" + token },
		func(q *http.Request) { q.URL.RawQuery = "access_token=" + token },
	} {
		for _, target := range []string{"/artifacts/web/k", "/artifacts/api/k"} {
			request := r.request("GET", target, nil)
			request.Header.Set("Authorization", "Bearer "+token)
			send(request)
			response, body := r.do(request)
			fmt.Fprintln(&answers, response.Header, body)
		}
	}
	r.events(18)
	events, err := os.ReadFile(r.path)
	must(t, err)
	var upstream bytes.Buffer
	for _, q := range r.backend.Requests() {
		upstream.Write(q.Head)
		upstream.Write(q.Body)
	}
	if upstream.Len() == 0 {
		t.Fatal("nothing reached the backend: this test tests nothing")
	}
	for sink, text := range map[string]string{"the backend": upstream.String(), "the log": r.log.String(), "an event": string(events), "an answer": answers.String()} {
		for _, canary := range []string{token, signature} {
			if strings.Contains(text, canary) {
				t.Errorf("%s has the token or its signature", sink)
			}
		}
	}
}

// T24: without room for an event nothing is served, and with room again it is.
func TestT24NoRoomNoService(t *testing.T) {
	r := newRig(t, rigOptions{audit: func(c *audit.Config) { c.InFlight = 2 }})
	hold := make(chan struct{})
	r.backend.Handle(func(w http.ResponseWriter, q *s3test.Request) { <-hold })
	done := make(chan struct{}, 2)
	for range 2 {
		request := r.request("GET", "/artifacts/web/k", nil)
		go func() {
			response, err := noRedirects.Do(request)
			if err == nil {
				response.Body.Close()
			}
			done <- struct{}{}
		}()
	}
	for len(r.backend.Requests()) < 2 {
		time.Sleep(time.Millisecond)
	}
	response, body := r.do(r.request("GET", "/artifacts/web/k", nil))
	if response.StatusCode != 503 || !strings.Contains(body, "SlowDown") {
		t.Errorf("%s %s", response.Status, body)
	}
	if n := len(r.backend.Requests()); n != 2 {
		t.Errorf("%d requests at the backend, want 2", n)
	}
	close(hold)
	<-done
	<-done
	r.events(2)
	machine.Until(t, "it is served again", func() bool { // a place is free a moment after its event is written
		response, _ := r.do(r.request("GET", "/artifacts/web/k", nil))
		return response.StatusCode == 200
	})
	r.event()
}

func TestBackendsByBucket(t *testing.T) {
	var second *s3test.Backend
	r := newRig(t, rigOptions{configure: func(c *proxy.Config) {
		second = s3test.New(t)
		c.Backends = []proxy.Backend{backendFor(t, "logs", second.URL, "logs-*"), c.Backends[0]}
		c.Backends[1].Buckets = []string{"artifacts", "seen-*"}
	}})
	list := func(names ...string) string {
		var b strings.Builder
		b.WriteString(`<ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Owner><ID>o</ID></Owner><Buckets>`)
		for _, name := range names {
			fmt.Fprintf(&b, "<Bucket><Name>%s</Name><CreationDate>2026-01-02T03:04:05.000Z</CreationDate></Bucket>", name)
		}
		b.WriteString(`</Buckets></ListAllMyBucketsResult>`)
		return b.String()
	}
	if response, _ := r.do(r.request("GET", "/logs-1/web/k", nil)); response.StatusCode != 200 || len(second.Requests()) != 1 || len(r.backend.Requests()) != 0 {
		t.Errorf("a bucket went to the wrong backend: %s", response.Status)
	}
	r.event()
	response, body := r.do(r.request("GET", "/nowhere/web/k", nil))
	if response.StatusCode != 404 || !strings.Contains(body, "NoSuchBucket") {
		t.Errorf("%s %s", response.Status, body)
	}
	r.event()

	request := r.request("PUT", "/artifacts/web/copy", nil)
	request.Header.Set("X-Amz-Copy-Source", "/logs-1/web/k")
	response, body = r.do(request)
	if response.StatusCode != 501 || !strings.Contains(body, "NotImplemented") {
		t.Errorf("copy between backends: %s %s", response.Status, body)
	}
	r.event()

	// Each backend shows one bucket that is the other's to serve, and one that policy hides.
	second.Answer(200, nil, list("logs-1", "seen-2", "seen-elsewhere"))
	r.backend.Answer(200, nil, list("artifacts", "logs-9", "seen-1"))
	response, body = r.do(r.request("GET", "/", nil))
	if response.StatusCode != 200 || strings.Count(body, "<Bucket>") != 1 || !strings.Contains(body, "<Name>seen-1</Name>") {
		t.Errorf("%s %s", response.Status, body)
	}
	check(t, r.event(), map[string]any{"operation": "ListBuckets", "outcome": "completed"})
}

// Without path_style the bucket stands in the host, where it can, and what was signed is what arrives.
func TestVirtualHostedBackend(t *testing.T) {
	r := newRig(t, rigOptions{policy: "package s3.authz\nallow := true", configure: func(c *proxy.Config) {
		b := &c.Backends[0]
		address := b.Endpoint.Host
		b.PathStyle, b.Endpoint = false, &url.URL{Scheme: "http", Host: "s3.backend.test"}
		transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}}
		t.Cleanup(transport.CloseIdleConnections)
		b.Transport = transport
	}})
	for target, want := range map[string]string{
		"/artifacts/web/a%20b+c": "artifacts.s3.backend.test/web/a%20b%2Bc",
		"/artifacts?list-type=2": "artifacts.s3.backend.test/?list-type=2",
		"/with.dots/web/k":       "s3.backend.test/with.dots/web/k",
		"/":                      "s3.backend.test/",
	} {
		response, _ := r.do(r.request("GET", target, nil))
		got := r.backend.Last()
		if at := got.Header.Get("Host") + got.Target; at != want || got.SignatureErr != nil {
			t.Errorf("%s: %s, asked at %s, want %s (%v)", target, response.Status, at, want, got.SignatureErr)
		}
		r.event()
	}
}

func TestSourceOfARequest(t *testing.T) {
	r := newRig(t, rigOptions{})
	request := r.request("GET", "/artifacts/web/k", nil)
	request.Header.Set("X-Forwarded-For", "10.9.9.9")
	r.do(request)
	check(t, r.event(), map[string]any{"source_ip": "127.0.0.1"})

	r = newRig(t, rigOptions{configure: trust("127.0.0.0/8", "10.0.0.0/8")})
	for forwarded, want := range map[string]string{
		"10.9.9.9":             "10.9.9.9",
		"6.6.6.6, 10.9.9.9":    "6.6.6.6",
		"1.1.1.1, 6.6.6.6":     "6.6.6.6",
		"1.1.1.1, x, 10.0.0.1": "10.0.0.1",
		"":                     "127.0.0.1",
	} {
		request := r.request("GET", "/artifacts/web/k", nil)
		request.Header.Set("X-Forwarded-For", forwarded)
		r.do(request)
		check(t, r.event(), map[string]any{"source_ip": want})
	}
}

func TestSessionLimits(t *testing.T) {
	now := time.Now()
	r := newRig(t, rigOptions{configure: func(c *proxy.Config) {
		c.Limits.RequestsPerSecond = 2
		c.Now = func() time.Time { return now }
	}})
	refused := 0
	for range 6 {
		response, body := r.do(r.request("GET", "/artifacts/web/k", nil))
		if response.StatusCode == 503 {
			refused++
			if !strings.Contains(body, "SlowDown") || response.Header.Get("Retry-After") == "" {
				t.Errorf("%v %s", response.Header, body)
			}
		}
	}
	if refused != 4 {
		t.Errorf("%d of 6 requests at once were refused, with 2 a second", refused)
	}
	request := r.request("GET", "/artifacts/web/k", nil)
	request.Header.Set("Authorization", "Bearer "+r.token(map[string]any{"environment_id": "env-2", "sub": "environment/env-2"}))
	if response, _ := r.do(request); response.StatusCode != 200 {
		t.Errorf("another session is held to the first one's limit: %s", response.Status)
	}
	r.events(7)
}

func TestPolicyLimits(t *testing.T) {
	r := newRig(t, rigOptions{policy: ownPrefix + "\nlimits := {\"max_object_bytes\": 4}\n"})
	if response, body := r.do(r.request("PUT", "/artifacts/web/k", strings.NewReader("12345"))); response.StatusCode != 400 || !strings.Contains(body, "EntityTooLarge") {
		t.Errorf("%s %s", response.Status, body)
	}
	if response, _ := r.do(r.request("PUT", "/artifacts/web/k", strings.NewReader("1234"))); response.StatusCode != 200 {
		t.Errorf("%s", response.Status)
	}
	r.events(2)

	// Whatever frames the body: it is what the object will have that counts, and what says less than it sends ends nowhere.
	const trailer = "X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\n"
	const chunked = "Transfer-Encoding: chunked\r\n"
	for name, c := range map[string]struct {
		target, header, body string
		status               int
		code                 string
	}{
		"a part":                     {"?partNumber=1&uploadId=u", "Content-Length: 5\r\n", "12345", 400, "EntityTooLarge"},
		"a small part":               {"?partNumber=1&uploadId=u", "Content-Length: 4\r\n", "1234", 200, ""},
		"in frames":                  {"", trailer + "X-Amz-Decoded-Content-Length: 5\r\nContent-Length: 46\r\n", "5\r\n12345\r\n0\r\nx-amz-checksum-crc32:y/U6HA==\r\n\r\n", 400, "EntityTooLarge"},
		"in frames that say less":    {"", trailer + "X-Amz-Decoded-Content-Length: 4\r\nContent-Length: 46\r\n", "5\r\n12345\r\n0\r\nx-amz-checksum-crc32:y/U6HA==\r\n\r\n", 400, ""},
		"frames of unknown length":   {"", trailer + "Content-Length: 46\r\n", "5\r\n12345\r\n0\r\nx-amz-checksum-crc32:y/U6HA==\r\n\r\n", 411, "MissingContentLength"},
		"chunked, of unknown length": {"", chunked, "5\r\n12345\r\n0\r\n\r\n", 411, "MissingContentLength"},
		"chunked, and says so":       {"", chunked + "X-Amz-Decoded-Content-Length: 5\r\n", "5\r\n12345\r\n0\r\n\r\n", 400, "EntityTooLarge"},
		"chunked, and says less":     {"", chunked + "X-Amz-Decoded-Content-Length: 4\r\n", "5\r\n12345\r\n0\r\n\r\n", 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r.backend.Forget()
			response, body := r.raw("PUT /artifacts/web/k" + c.target + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.token() + "\r\n" + c.header + "\r\n" + c.body)
			if response.StatusCode != c.status || c.code != "" && !strings.Contains(body, "<Code>"+c.code+"</Code>") {
				t.Errorf("%s %s", response.Status, body)
			}
			r.event()
			for _, q := range r.backend.Requests() {
				if len(q.Body) > 4 {
					t.Errorf("the backend took %q", q.Body)
				}
			}
		})
	}
}

func TestDeleteObjectsIsPartial(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.backend.Handle(func(w http.ResponseWriter, q *s3test.Request) {
		if bytes.Contains(q.Body, []byte("api/")) {
			t.Errorf("a refused key reached the backend: %s", q.Body)
		}
		io.WriteString(w, `<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Deleted><Key>web/a</Key></Deleted></DeleteResult>`)
	})
	send := func(keys ...string) (*http.Response, string) {
		var b strings.Builder
		b.WriteString(`<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`)
		for _, key := range keys {
			fmt.Fprintf(&b, "<Object><Key>%s</Key></Object>", key)
		}
		b.WriteString("</Delete>")
		request := r.request("POST", "/artifacts?delete", strings.NewReader(b.String()))
		request.Header.Set("Content-MD5", md5Of(b.String()))
		return r.do(request)
	}
	response, body := send("web/a", "api/b")
	if response.StatusCode != 200 || !strings.Contains(body, "<Deleted><Key>web/a</Key></Deleted>") || !strings.Contains(body, "<Code>AccessDenied</Code>") || !strings.Contains(body, "api/b") {
		t.Errorf("%s %s", response.Status, body)
	}
	e := r.event()
	check(t, e, map[string]any{"operation": "DeleteObjects", "outcome": "completed"})
	if len(e.Accesses) != 2 || !e.Accesses[0].Allow || e.Accesses[1].Allow || e.Accesses[1].Key != "api/b" {
		t.Errorf("accesses %+v", e.Accesses)
	}
	r.backend.Forget()
	if response, body := send("api/a", "api/b"); response.StatusCode != 200 || strings.Count(body, "<Error>") != 2 || len(r.backend.Requests()) != 0 {
		t.Errorf("%s %s", response.Status, body)
	}
	check(t, r.event(), map[string]any{"outcome": "refused"})
}

// A body that is not what it said never ends at the backend, so that no object appears.
func TestBadUploadsDoNotEnd(t *testing.T) {
	r := newRig(t, rigOptions{})
	for name, c := range map[string]struct{ header, body string }{
		"truncated chunk": {"X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Decoded-Content-Length: 5\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\n", "5\r\nhel"},
		"too much":        {"X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Decoded-Content-Length: 5\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\n", "6\r\nhello!\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"},
		"no trailer":      {"X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Decoded-Content-Length: 5\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\n", "5\r\nhello\r\n0\r\n\r\n"},
		"another trailer": {"X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Decoded-Content-Length: 5\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\n", "5\r\nhello\r\n0\r\nx-amz-acl:public-read\r\n\r\n"},
		"bare line feeds": {"X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Decoded-Content-Length: 5\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\n", "5\nhello\n0\nx-amz-checksum-crc32:NhCmhg==\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			r.backend.Forget()
			response, body := r.raw("PUT /artifacts/web/k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.token() + "\r\n" + c.header +
				fmt.Sprintf("Content-Length: %d\r\n\r\n", len(c.body)) + c.body)
			if response.StatusCode != 400 {
				t.Errorf("%s %s", response.Status, body)
			}
			check(t, r.event(), map[string]any{"status": 400})
			for _, q := range r.backend.Requests() {
				if q := r.backend.Wait(1)[0]; q.Err == nil && q.PayloadErr == nil {
					t.Errorf("the backend saw a whole upload: %s%s", q.Head, q.Body)
				}
				_ = q
			}
		})
	}
}

func TestTrailerUploadArrivesIntact(t *testing.T) {
	r := newRig(t, rigOptions{})
	response, body := r.raw("PUT /artifacts/web/k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.token() + "\r\n" +
		"X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Decoded-Content-Length: 5\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\nContent-Encoding: aws-chunked\r\n" +
		"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
	if response.StatusCode != 100 {
		t.Fatalf("%s %s", response.Status, body)
	}
	r.server.CloseClientConnections()
	r.event()

	c, err := net.Dial("tcp", r.server.Listener.Addr().String())
	must(t, err)
	defer c.Close()
	fmt.Fprintf(c, "PUT /artifacts/web/k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"+
		"X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Decoded-Content-Length: 5\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\nContent-Encoding: aws-chunked\r\n"+
		"Transfer-Encoding: chunked\r\n\r\n", r.token())
	framed := "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
	for _, b := range []byte(framed) { // a byte a chunk
		fmt.Fprintf(c, "1\r\n%c\r\n", b)
	}
	io.WriteString(c, "0\r\n\r\n")
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(t, err)
	if answer.StatusCode != 200 {
		text, _ := io.ReadAll(answer.Body)
		t.Fatalf("%s %s", answer.Status, text)
	}
	got := r.backend.Last()
	if string(got.Payload) != "hello" || got.PayloadErr != nil || got.PayloadTrailer.Get("x-amz-checksum-crc32") != "NhCmhg==" || got.Header.Get("Content-Length") == "" {
		t.Errorf("the backend saw %s%s (%v)", got.Head, got.Body, got.PayloadErr)
	}
	check(t, r.event(), map[string]any{"outcome": "completed"})
}

// Who is refused because its session was revoked meanwhile is told, too, that its connection is of no more use.
func TestRevocationEndsTheConnection(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.backend.Handle(func(http.ResponseWriter, *s3test.Request) {
		if _, err := r.auth.Revocations().Add(t.Context(), identity.Revocation{Issuer: r.issuer.URL(), Session: "env-1"}); err != nil {
			t.Error(err)
		}
		<-r.backend.Done()
	})
	if response, body := r.do(r.request("GET", "/artifacts/web/k", nil)); response.StatusCode != 403 || !response.Close {
		t.Errorf("%s, close %v: %s", response.Status, response.Close, body)
	}
	check(t, r.event(), map[string]any{"outcome": "revoked"})
}

// A revocation cuts what is in flight, both ways.
func TestRevocationCutsTransfers(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.backend.Handle(func(w http.ResponseWriter, q *s3test.Request) {
		io.WriteString(w, "the beginning")
		http.NewResponseController(w).Flush()
		<-r.backend.Done()
	})
	response, err := noRedirects.Do(r.request("GET", "/artifacts/web/k", nil))
	must(t, err)
	defer response.Body.Close()
	revoke(t, r, "env-1")
	if _, err := io.ReadAll(response.Body); err == nil {
		t.Error("the client was told that the beginning is all")
	}
	check(t, r.event(), map[string]any{"outcome": "revoked"})
	refused, body := r.do(r.request("GET", "/artifacts/web/k", nil))
	if refused.StatusCode != 403 || !strings.Contains(body, "AccessDenied") {
		t.Errorf("%s %s", refused.Status, body)
	}
	r.event()
}

func TestShutdownContextIsNotAFault(t *testing.T) {
	// A client that leaves while the backend has not answered yet.
	r := newRig(t, rigOptions{})
	arrived := make(chan struct{})
	r.backend.Handle(func(w http.ResponseWriter, q *s3test.Request) {
		close(arrived)
		<-r.backend.Done()
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-arrived; cancel() }()
	_, err := noRedirects.Do(r.request("GET", "/artifacts/web/k", nil).WithContext(ctx))
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	check(t, r.event(), map[string]any{"outcome": "aborted"})
}

// A body that asks for more than its operation's name is judged by what it asks for, or refused.
func TestBodiesThatAskForMore(t *testing.T) {
	r := newRig(t, rigOptions{policy: ownPrefix + "\nallow if input.action == \"s3:CreateBucket\"\nallow if input.action == \"s3:RestoreObject\"\n"})
	location := `<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LocationConstraint>eu-west-1</LocationConstraint>%s</CreateBucketConfiguration>`
	for name, c := range map[string]struct {
		method, target, body string
		status               int
	}{
		"bucket":               {"PUT", "/fresh", fmt.Sprintf(location, ""), 200},
		"bucket without body":  {"PUT", "/fresh", "", 200},
		"tagged bucket":        {"PUT", "/fresh", fmt.Sprintf(location, "<Tags><Tag><Key>a</Key><Value>b</Value></Tag></Tags>"), 403},
		"restore":              {"POST", "/artifacts/web/k?restore", "<RestoreRequest><Days>1</Days></RestoreRequest>", 200},
		"restore that selects": {"POST", "/artifacts/web/k?restore", "<RestoreRequest><Type>SELECT</Type><OutputLocation><S3><BucketName>other</BucketName></S3></OutputLocation></RestoreRequest>", 501},
	} {
		t.Run(name, func(t *testing.T) {
			r.backend.Forget()
			response, text := r.do(r.request(c.method, c.target, strings.NewReader(c.body)))
			if response.StatusCode != c.status {
				t.Errorf("%s, want %d: %s", response.Status, c.status, text)
			}
			r.event()
			if c.status == 200 {
				if got := r.backend.Last(); string(got.Payload) != c.body {
					t.Errorf("the backend saw %q", got.Payload)
				}
			} else if n := len(r.backend.Requests()); n != 0 {
				t.Errorf("%d requests reached the backend", n)
			}
		})
	}
}

func TestListingsShowOnlyWhatOneMayRead(t *testing.T) {
	r := newRig(t, rigOptions{policy: ownPrefix + "\nallow if input.action == \"s3:ListBucket\"\nfilter_listing if input.prefix == \"\"\n"})
	page := `<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>artifacts</Name><Prefix></Prefix><KeyCount>4</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated><NextContinuationToken>abc</NextContinuationToken><Contents><Key>api/secret</Key><Size>1</Size></Contents><Contents><Key>web/mine</Key><Size>2</Size></Contents><CommonPrefixes><Prefix>api/dir/</Prefix></CommonPrefixes><CommonPrefixes><Prefix>web/dir/</Prefix></CommonPrefixes></ListBucketResult>`
	r.backend.Answer(200, http.Header{"Content-Type": {"application/xml"}}, page)
	response, body := r.do(r.request("GET", "/artifacts?list-type=2", nil))
	if response.StatusCode != 200 || strings.Contains(body, "api/") || !strings.Contains(body, "web/mine") || !strings.Contains(body, "web/dir/") || !strings.Contains(body, "<NextContinuationToken>abc</NextContinuationToken>") || !strings.Contains(body, "<KeyCount>2</KeyCount>") {
		t.Errorf("%s %s", response.Status, body)
	}
	check(t, r.event(), map[string]any{"outcome": "completed", "bytes_out": len(body)})
	if _, body := r.do(r.request("GET", "/artifacts?list-type=2&prefix=api/", nil)); body != page {
		t.Errorf("a listing that is not to be filtered was: %s", body)
	}
	r.event()
	r.backend.Answer(200, nil, "<html>not a listing</html>")
	if response, body := r.do(r.request("GET", "/artifacts?list-type=2", nil)); response.StatusCode != 503 || strings.Contains(body, "html") {
		t.Errorf("%s %s", response.Status, body)
	}
	check(t, r.event(), map[string]any{"outcome": "failed"})

	// Nor does another kind of success get by the filter.
	for _, status := range []int{201, 203, 206} {
		r.backend.Answer(status, http.Header{"Content-Type": {"application/xml"}}, page)
		if response, body := r.do(r.request("GET", "/artifacts?list-type=2", nil)); response.StatusCode != 503 || strings.Contains(body, "api/") {
			t.Errorf("%d: %s %s", status, response.Status, body)
		}
		check(t, r.event(), map[string]any{"outcome": "failed"})
	}
	// The backend's own refusals pass as they are.
	r.backend.Answer(404, nil, "<Error><Code>NoSuchBucket</Code></Error>")
	if response, body := r.do(r.request("GET", "/artifacts?list-type=2", nil)); response.StatusCode != 404 || !strings.Contains(body, "NoSuchBucket") {
		t.Errorf("%s %s", response.Status, body)
	}
	r.event()

	// A policy that cannot judge a key is not the backend's fault.
	r = newRig(t, rigOptions{policy: "package s3.authz\nallow if input.action == \"s3:ListBucket\"\nallow if to_number(input.key) > 1\nfilter_listing := true\n"})
	r.backend.Answer(200, http.Header{"Content-Type": {"application/xml"}}, page)
	response, body = r.do(r.request("GET", "/artifacts?list-type=2", nil))
	if response.StatusCode != 403 || strings.Contains(body, "api/") {
		t.Errorf("%s %s", response.Status, body)
	}
	check(t, r.event(), map[string]any{"outcome": "refused"})
}

// endsForAnother ends each first request for a context that is not the request's, as net/http's transport may.
type endsForAnother struct {
	http.RoundTripper
	asked atomic.Int32
}

func (t *endsForAnother) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.asked.Add(1) == 1 {
		return nil, context.Canceled
	}
	return t.RoundTripper.RoundTrip(r)
}

func TestEndedForAnother(t *testing.T) {
	for method, want := range map[string]struct {
		status int
		asked  int32
	}{"GET": {200, 2}, "HEAD": {200, 2}, "DELETE": {503, 1}} {
		t.Run(method, func(t *testing.T) {
			transport := &endsForAnother{RoundTripper: &http.Transport{}}
			r := newRig(t, rigOptions{configure: func(c *proxy.Config) { c.Backends[0].Transport = transport }})
			response, body := r.do(r.request(method, "/artifacts/web/k", nil))
			if asked := transport.asked.Load(); response.StatusCode != want.status || asked != want.asked {
				t.Errorf("%s %s, asked %d times", response.Status, body, asked)
			}
			check(t, r.event(), map[string]any{"status": want.status})
		})
	}
}

// unending is a body whose end is not seen before its request's is.
type unending struct {
	content io.Reader
	ended   context.Context
}

func (u unending) Read(p []byte) (int, error) {
	if n, _ := u.content.Read(p); n > 0 {
		return n, nil
	}
	<-u.ended.Done()
	return 0, u.ended.Err()
}

func (u unending) Close() error { return nil }

type answersUnending struct{ size int64 }

func (a answersUnending) RoundTrip(r *http.Request) (*http.Response, error) {
	content := io.LimitReader(strings.NewReader(strings.Repeat("x", 64<<10)), a.size)
	return &http.Response{StatusCode: 200, Status: "200 OK", Header: http.Header{}, ContentLength: 64 << 10, Body: unending{content, r.Context()}}, nil
}

// A client may leave as soon as it has the last byte.
func TestLeavesWithAllItCameFor(t *testing.T) {
	for size, outcome := range map[int64]string{64 << 10: "completed", 64<<10 - 1: "aborted"} {
		r := newRig(t, rigOptions{configure: func(c *proxy.Config) { c.Backends[0].Transport = answersUnending{size} }})
		request := r.request("GET", "/artifacts/web/k", nil)
		request.Close = true // or it would keep the connection for another
		ctx, leave := context.WithCancel(t.Context())
		response, err := http.DefaultClient.Do(request.WithContext(ctx))
		must(t, err)
		_, err = io.CopyN(io.Discard, response.Body, size)
		must(t, err)
		leave()
		check(t, r.event(), map[string]any{"outcome": outcome, "bytes_out": int(size)})
	}
}
