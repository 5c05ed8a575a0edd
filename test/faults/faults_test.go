package faults

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
	"github.com/sluice-s3/sluice/test/machine"
)

// soon are timeouts that a test can wait for, and that a busy machine does not keep it from writing its next bytes for.
var soon = map[string]any{"limits.header_timeout": "3s", "limits.idle_timeout": "3s"}

// backend takes all there is, and has one object.
func backend(w http.ResponseWriter, q *http.Request) {
	if strings.HasSuffix(q.URL.Path, "/large") {
		w.Header().Set("Content-Length", fmt.Sprint(64<<20))
		io.CopyN(w, zeros{}, 64<<20)
		return
	}
	n, _ := io.Copy(io.Discard, q.Body)
	w.Header().Set("X-Received", fmt.Sprint(n))
}

// Each of these is one request of a client that is slow or broken, what it gets, and the event.
func TestClients(t *testing.T) {
	r := newRig(t, http.HandlerFunc(backend), soon)
	raw := func(head string, then func(c net.Conn)) (string, *machine.Stopwatch) {
		c := r.dial(t)
		watch := machine.Watch(t)
		fmt.Fprintf(c, strings.ReplaceAll(head, "\n", "\r\n"), r.address(), r.token)
		if then != nil {
			then(c)
		}
		answer, _ := io.ReadAll(c)
		return string(answer), watch
	}
	do := func(method, key string) (int, int, error) {
		answer, err := http.DefaultClient.Do(r.request(t, method, key))
		if err != nil {
			return 0, 0, err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return answer.StatusCode, len(body), err
	}
	events := 0
	event := func(outcome audit.Outcome, status int) {
		t.Helper()
		events++
		all := r.events(t, events)
		if e := all[events-1]; e.Outcome != outcome || e.Status != status {
			t.Errorf("event %+v, want %s and %d", e, outcome, status)
		}
	}
	const line = "PUT /artifacts/web/x HTTP/1.1\nHost: %s\nAuthorization: Bearer %s\nContent-Length: 1000000\n"

	t.Run("slow header", func(t *testing.T) {
		answer, watch := raw(line, nil) // never ends its header
		watch.Within(t, 6*time.Second, "cut")
		if strings.Contains(answer, "200 OK") {
			t.Errorf("%q", answer)
		}
		r.events(t, events) // there was no request
	})
	t.Run("slow body", func(t *testing.T) {
		answer, watch := raw(line+"\nhello", nil)
		watch.Within(t, 7*time.Second, "cut")
		if !strings.Contains(answer, "RequestTimeout") {
			t.Errorf("%q", answer)
		}
		event(audit.Aborted, 400)
	})
	t.Run("slow body that moves", func(t *testing.T) {
		answer, _ := raw(strings.Replace(line, "1000000", "8", 1)+"Connection: close\n\n", func(c net.Conn) {
			for range 8 {
				time.Sleep(500 * time.Millisecond) // 4 s in all, and never one without a byte
				c.Write([]byte("x"))
			}
		})
		if !strings.Contains(answer, "200 OK") || !strings.Contains(answer, "X-Received: 8") {
			t.Errorf("%q", answer)
		}
		event(audit.Completed, 200)
	})
	t.Run("client that goes away", func(t *testing.T) {
		c := r.dial(t)
		fmt.Fprintf(c, strings.ReplaceAll(line+"\nhello", "\n", "\r\n"), r.address(), r.token)
		c.Close()
		events++
		if e := r.events(t, events)[events-1]; e.Outcome != audit.Aborted {
			t.Errorf("event %+v", e)
		}
	})
	t.Run("client that is gone without a word, or reads no more", func(t *testing.T) {
		c := r.dial(t)
		c.(*net.TCPConn).SetReadBuffer(4096)
		fmt.Fprintf(c, "GET /artifacts/web/large HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", r.address(), r.token)
		events++
		if e := r.events(t, events)[events-1]; e.Outcome != audit.Aborted || e.BytesOut >= 64<<20 {
			t.Errorf("event %+v", e)
		}
	})
	t.Run("header flood", func(t *testing.T) {
		c := r.dial(t)
		fmt.Fprintf(c, "GET /artifacts/web/x HTTP/1.1\r\nHost: %s\r\n", r.address())
		watch, sent, answers := machine.Watch(t), 0, make(chan string, 1)
		go func() {
			answer, _ := io.ReadAll(c)
			answers <- string(answer)
		}()
		for i := 0; ; i++ {
			n, err := fmt.Fprintf(c, "X-Flood-%d: %s\r\n", i, strings.Repeat("x", 4000))
			if sent += n; err != nil {
				break
			}
			if watch.Took() > 10*time.Second+watch.Excuse() {
				t.Fatalf("the flood is taken: %d bytes", sent)
			}
		}
		answer := <-answers
		if !strings.Contains(answer, " 400 ") || !strings.Contains(answer, "<Code>RequestHeaderSectionTooLarge</Code>") {
			t.Errorf("%q", answer)
		}
		event(audit.Refused, 400)
		if peak := r.status(t, "VmHWM"); !raceEnabled && peak > 200<<20 {
			t.Errorf("it was held: resident memory reached %d MiB", peak>>20)
		}
	})
	t.Run("and it still serves", func(t *testing.T) {
		if status, _, err := do("GET", "x"); status != 200 || err != nil {
			t.Errorf("%d, %v", status, err)
		}
	})
}

// Connections that do nothing cost memory only, and stand in nobody's way.
func TestIdleConnections(t *testing.T) {
	const want = 10_000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Skip(err)
	}
	limit.Cur = limit.Max // the proxy inherits it
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	if limit.Max < want+500 {
		t.Skipf("SKIPPED: %d files may be open here, and %d connections are wanted (ulimit -n)", limit.Max, want)
	}
	r := newRig(t, http.HandlerFunc(backend), map[string]any{"limits.idle_timeout": "5m", "limits.header_timeout": "5m"})
	before := r.status(t, "VmRSS")
	var mu sync.Mutex
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range want / 20 {
				c, err := net.Dial("tcp", r.address())
				if err != nil {
					t.Error(err)
					return
				}
				// Half of them have sent a part of a header.
				mu.Lock()
				open = append(open, c)
				half := len(open)%2 == 0
				mu.Unlock()
				if half {
					io.WriteString(c, "GET /artifacts/web/x HTTP/1.1\r\nHost:")
				}
			}
		})
	}
	all.Wait()
	began := time.Now()
	answer, err := http.DefaultClient.Do(r.request(t, "GET", "x"))
	if err != nil || answer.StatusCode != 200 {
		t.Fatalf("%v, %v", answer, err)
	}
	answer.Body.Close()
	rss := r.status(t, "VmRSS")
	t.Logf("%d connections: a request takes %v; resident memory went from %.0f to %.0f MiB, %.1f KiB for each", len(open), time.Since(began).Round(time.Microsecond), float64(before)/(1<<20), float64(rss)/(1<<20), float64(rss-before)/float64(len(open))/1024)
	if !raceEnabled && rss > 500<<20 {
		t.Errorf("resident memory is %d MiB", rss>>20)
	}
	if err := r.proxy.Stop(); err != nil {
		t.Errorf("they are in the way of stopping: %v", err)
	}
}

// The STS throttles, then is down: who has a session is served, others are told to come back, and get in once it is well.
func TestSTSFaults(t *testing.T) {
	r := newRig(t, nil, nil)
	do := func(session string) (*http.Response, string) {
		request := r.request(t, "HEAD", "nothing")
		request.Method = "GET"
		request.Header.Set("Authorization", "Bearer "+r.Workspace(session, "web", "dev@acme.com"))
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		return answer, string(body)
	}
	if answer, body := do("env-1"); answer.StatusCode != 404 {
		t.Fatalf("%s %s", answer.Status, body)
	}
	for name, fault := range map[string]world.STSFault{"throttling": {Throttle: true}, "down": {Down: true}, "broken": {Broken: true}} {
		r.STS.Fail(fault)
		answer, body := do("env-new-" + name)
		t.Logf("%s: %s, Retry-After %s: %s", name, answer.Status, answer.Header.Get("Retry-After"), message(body))
		if answer.StatusCode != 503 || answer.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %s %s", name, answer.Status, body)
		}
		if answer, body := do("env-1"); answer.StatusCode != 404 {
			t.Errorf("%s: one with a session: %s %s", name, answer.Status, body)
		}
	}
	r.STS.Fail(world.STSFault{})
	machine.Until(t, "others get in again", func() bool {
		answer, _ := do("env-later")
		return answer.StatusCode == 404
	})
}

// The issuer is down: tokens by keys that are known stay good (for 24 hours, which the tests of package identity let pass on
// a clock of their own), tokens by others are told to come back, and a replica that starts now is not ready.
func TestIssuerDown(t *testing.T) {
	r := newRig(t, http.HandlerFunc(backend), nil)
	do := func(token string) (int, string, string) {
		request := r.request(t, "GET", "x")
		request.Header.Set("Authorization", "Bearer "+token)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, string(body), answer.Header.Get("Retry-After")
	}
	if status, body, _ := do(r.token); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	r.Issuer.Fail(oidctest.Fault{Status: 500})
	if status, body, _ := do(r.Workspace("env-2", "web", "dev@acme.com")); status != 200 {
		t.Errorf("a new token by a known key: %d %s", status, body)
	}
	r.Issuer.Rotate()
	status, body, retry := do(r.Workspace("env-3", "web", "dev@acme.com"))
	t.Logf("a key that nobody knows yet: %d, Retry-After %s: %s", status, retry, message(body))
	if status != 503 || retry == "" {
		t.Errorf("%d %s", status, body)
	}
	r.Issuer.Fail(oidctest.Fault{})
	machine.Until(t, "the key is known", func() bool {
		status, _, _ = do(r.Workspace("env-3", "web", "dev@acme.com"))
		return status == 200
	})
}

func message(body string) string {
	_, rest, _ := strings.Cut(body, "<Message>")
	text, _, _ := strings.Cut(rest, "</Message>")
	return text
}
