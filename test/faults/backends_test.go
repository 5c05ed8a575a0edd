package faults

import (
	"bufio"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/test/machine"
)

// fault is a backend that is broken in one way, at one point of an exchange.
type fault struct {
	name  string
	serve func(net.Conn) // nil = see TestBackends
	// Broken off once the answer has begun, or whole; otherwise it is 503.
	short, whole bool
}

// idle is the proxy's idle_timeout in TestBackends: longer than a busy machine keeps this process, which is all the clients and
// backends, from running while the proxy runs.
const idle = 4 * time.Second

const okHead = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"

var some = strings.Repeat("x", 100_000)

var faultsOfBackends = []fault{
	{name: "refuses"},
	{name: "dial hangs"},
	{name: "closes", serve: func(c net.Conn) {}},
	{name: "silent", serve: func(c net.Conn) { io.Copy(io.Discard, c) }},
	{name: "reads nothing", serve: sleep},
	{name: "resets", serve: func(c net.Conn) { readHead(c); reset(c) }},
	{name: "ends in its head", serve: func(c net.Conn) { readHead(c); io.WriteString(c, okHead[:20]) }},
	{name: "resets in its head", serve: func(c net.Conn) { readHead(c); io.WriteString(c, okHead[:20]); reset(c) }},
	{name: "stalls in its head", serve: func(c net.Conn) { readHead(c); io.WriteString(c, okHead[:20]); sleep(c) }},
	{name: "head without end", serve: func(c net.Conn) {
		readHead(c)
		io.WriteString(c, okHead[:17])
		for {
			if _, err := io.WriteString(c, "X-Flood: "+strings.Repeat("x", 4000)+"\r\n"); err != nil {
				return
			}
		}
	}},
	{name: "speaks no HTTP", serve: func(c net.Conn) { readHead(c); io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n\r\n") }},
	{name: "ends in its body", short: true, serve: func(c net.Conn) { readHead(c); io.WriteString(c, okHead+some) }},
	{name: "resets in its body", short: true, serve: func(c net.Conn) {
		readHead(c)
		io.WriteString(c, okHead+some)
		time.Sleep(100 * time.Millisecond)
		reset(c)
	}},
	{name: "stalls in its body", short: true, serve: func(c net.Conn) { readHead(c); io.WriteString(c, okHead+some); sleep(c) }},
	{name: "ends in its chunks", short: true, serve: func(c net.Conn) {
		readHead(c)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n")
	}},
	{name: "trickles", whole: true, serve: func(c net.Conn) {
		readHead(c)
		io.WriteString(c, strings.Replace(okHead, "1000000", "10", 1))
		for range 10 {
			time.Sleep(idle / 8) // longer than idle in all, and never as long without a byte
			io.WriteString(c, "x")
		}
	}},
}

func readHead(c net.Conn) { c.Read(make([]byte, 64<<10)) }
func sleep(c net.Conn)    { time.Sleep(30 * time.Second) }
func reset(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// Whatever a backend does instead of answering, with TLS or without, the client is told 503 and when to try again, in time;
// and once the answer has begun, nobody takes it for the whole.
func TestBackends(t *testing.T) {
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	certified.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certified.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o644); err != nil {
		t.Fatal(err)
	}
	var backends []any
	type exchange struct {
		fault
		bucket string
	}
	var all []exchange
	add := func(f fault, address, scheme, ca string) {
		bucket := fmt.Sprintf("b%d-%s", len(all), scheme)
		backend := map[string]any{
			"name": bucket, "buckets": []any{bucket}, "endpoint": scheme + "://" + address, "region": "us-east-1", "path_style": true,
			"credentials": map[string]any{"static": map[string]any{"access_key_id_env": world.RootIDVariable, "secret_access_key_env": world.RootSecretVariable}},
		}
		if ca != "" {
			backend["ca_file"] = ca
		}
		backends = append(backends, backend)
		f.name = scheme + ": " + f.name
		all = append(all, exchange{f, bucket})
	}
	for _, f := range faultsOfBackends {
		switch f.name {
		case "refuses":
			l := listen(t)
			l.Close()
			add(f, l.Addr().String(), "http", "")
			add(f, l.Addr().String(), "https", ca)
		case "dial hangs":
			if address := fullListener(t); address != "" {
				add(f, address, "http", "")
				add(f, address, "https", ca)
			}
		default:
			add(f, accept(t, listen(t), f.serve), "http", "")
			add(f, accept(t, tls.NewListener(listen(t), &tls.Config{Certificates: certified.TLS.Certificates}), f.serve), "https", ca)
		}
	}
	add(fault{name: "speaks no TLS"}, accept(t, listen(t), func(c net.Conn) { readHead(c); io.WriteString(c, okHead) }), "https", ca)
	add(fault{name: "handshake hangs"}, accept(t, listen(t), sleep), "https", ca)
	add(fault{name: "certificate of nobody known"}, accept(t, tls.NewListener(listen(t), &tls.Config{Certificates: certified.TLS.Certificates}), sleep), "https", "")

	r := newRig(t, nil, map[string]any{"limits.idle_timeout": idle.String(), "backends": backends})
	const size = 8 << 20 // more than the buffers on the way take
	// net/http's client gives up where the rest of a body cannot be written any more, though the answer is there.
	send := func(request *http.Request) (*http.Response, error) {
		c, err := net.Dial("tcp", r.address())
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(machine.Patience))
		go request.Write(c)
		return http.ReadResponse(bufio.NewReader(c), request)
	}
	try := func(x exchange, method string) {
		var body io.Reader
		if method == "PUT" {
			body = io.LimitReader(zeros{}, size)
		}
		request, err := http.NewRequest(method, r.proxy.URL+"/"+x.bucket+"/web/"+method, body)
		if err != nil {
			t.Error(err)
			return
		}
		if body != nil {
			request.ContentLength = size
		}
		request.Close = true
		request.Header.Set("Authorization", "Bearer "+r.token)
		began := time.Now()
		status, after, got := 0, "", []byte(nil)
		answer, err := send(request)
		if err == nil {
			got, err = io.ReadAll(answer.Body)
			answer.Body.Close()
			status, after = answer.StatusCode, answer.Header.Get("Retry-After")
		}
		took := time.Since(began)
		if took > 2*idle && !raceEnabled {
			t.Errorf("%s of %s took %v", method, x.name, took)
		}
		switch {
		case x.short:
			if status != 200 || err == nil {
				t.Errorf("%s of %s: %d with %d bytes: the client must see that it is short", method, x.name, status, len(got))
			}
		case x.whole:
			if status != 200 || err != nil || len(got) != 10 {
				t.Errorf("%s of %s: %d with %d bytes, %v", method, x.name, status, len(got), err)
			}
		case status != 503 || err != nil || !strings.Contains(string(got), "<Code>ServiceUnavailable</Code>") || after == "":
			t.Errorf("%s of %s: %d, Retry-After %q, after %v: %s, %v", method, x.name, status, after, took, got, err)
		}
	}
	want := 0
	var running sync.WaitGroup
	places := make(chan struct{}, 16) // all at once would be a load of its own
	start := func(x exchange, method string) {
		want++
		running.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			try(x, method)
		})
	}
	for _, x := range all {
		start(x, "GET")
		if !x.short && !x.whole { // they answer before they have read a body, which is another matter
			start(x, "PUT")
		}
	}
	running.Wait()
	events := map[string][]audit.Event{}
	recorded, err := r.proxy.WaitEvents(t.Context(), want)
	if err != nil || len(recorded) != want {
		t.Fatalf("%d events, not %d: %v", len(recorded), want, err)
	}
	for _, e := range recorded {
		events[e.Bucket] = append(events[e.Bucket], e)
	}
	for _, x := range all {
		for _, e := range events[x.bucket] {
			outcome, status, code := audit.Failed, 503, "ServiceUnavailable"
			if x.short {
				outcome, status, code = audit.Aborted, 200, "InternalError"
			} else if x.whole {
				outcome, status, code = audit.Completed, 200, ""
			}
			if e.Outcome != outcome || e.Status != status || e.Error != code || e.Backend.Name != x.bucket {
				t.Errorf("%s: the event says %s, %d, %q of %q, not %s, %d, %q", x.name, e.Outcome, e.Status, e.Error, e.Backend.Name, outcome, status, code)
			}
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// accept has each connection served, and closed.
func accept(t *testing.T, l net.Listener, serve func(net.Conn)) string {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	return l.Addr().String()
}

// fullListener listens with a queue that is full: further connections are neither taken nor refused. It returns "" where the
// system does not do that.
func fullListener(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 8 {
		c, err := net.DialTimeout("tcp", address, 300*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Log("SKIPPED: a full queue refuses nobody here")
	return ""
}
