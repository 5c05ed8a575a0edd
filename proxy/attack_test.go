package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/proxy"
	"github.com/sluice-s3/sluice/proxy/s3test"
	"github.com/sluice-s3/sluice/test/machine"
)

// T16: a whole URL as request target is refused at Sluice's own doors too.
func TestT16WholeURLsOpenNoDoor(t *testing.T) {
	r := newRig(t, rigOptions{configure: func(c *proxy.Config) { c.Domains = []string{"s3.example.com"} }})
	for _, head := range []string{
		"GET http://s3.example.com/-/credentials HTTP/1.1\r\nHost: s3.example.com\r\nAuthorization: Bearer " + r.token() + "\r\n\r\n",
		"POST http://s3.example.com/ HTTP/1.1\r\nHost: s3.example.com\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n",
		"POST http://s3.example.com/-/logout HTTP/1.1\r\nHost: s3.example.com\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n",
	} {
		if response, body := r.raw(head); response.StatusCode != 400 || !strings.Contains(body, "<Code>InvalidRequest</Code>") {
			t.Errorf("%.60q: %s %s", head, response.Status, body)
		}
		check(t, r.event(), map[string]any{"outcome": "refused", "error": "InvalidRequest"})
	}
}

// T24: nor may as many of them as there are places keep all others out.
func TestT24FormsThatTakeEveryPlace(t *testing.T) {
	if netHTTP {
		t.Skip("net/http's server gives the place back at once, and the answer when the body has come")
	}
	const places = 8
	r := newRig(t, rigOptions{configure: func(c *proxy.Config) { c.Limits.MaxInFlight = places }})
	refused := make(chan string, 2*places)
	var conns []net.Conn
	for i := range 2 * places {
		c, err := net.Dial("tcp", r.server.Listener.Addr().String())
		must(t, err)
		conns = append(conns, c)
		target := []string{"/", "/-/logout"}[i%2]
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 60000\r\n\r\na", target)
		go func() {
			answer, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				refused <- err.Error()
				return
			}
			refused <- answer.Status
		}()
	}
	for range 2*places - places/4 {
		if status := <-refused; !strings.HasPrefix(status, "503") {
			t.Errorf("a form too many: %s", status)
		}
	}
	if answer, body := r.do(r.request("GET", "/artifacts/web/k", nil)); answer.StatusCode != 200 {
		t.Errorf("who has credentials is kept out by those who have none: %s %s", answer.Status, body)
	}
	for _, c := range conns {
		c.Close()
	}
	r.events(2*places + 1)
}

// T24: forms are read before anybody has shown who he is, so none may keep a place among the requests in flight.
func TestT24FormsThatTrickle(t *testing.T) {
	const places = 2
	r := newRig(t, rigOptions{
		configure: func(c *proxy.Config) { c.Limits.IdleTimeout = 300 * time.Millisecond },
		audit:     func(c *audit.Config) { c.InFlight = places },
	})
	for _, target := range []string{"/", "/-/logout"} {
		for range places {
			c, err := net.Dial("tcp", r.server.Listener.Addr().String())
			must(t, err)
			defer c.Close()
			fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 60000\r\n\r\n", target)
			go func() {
				for err := error(nil); err == nil; time.Sleep(50 * time.Millisecond) { // never idle
					_, err = io.WriteString(c, "a")
				}
			}()
			c.SetReadDeadline(time.Now().Add(machine.Patience))
			// Who still sends when the connection is closed may lose the answer.
			if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil && answer.StatusCode != 400 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v %v", target, answer, err)
			}
		}
		r.events(places)
	}
	tries := 0
	machine.Until(t, "a place is free", func() bool { // on a slow machine the timeout is also too short for an honest request
		answer, _ := r.do(r.request("GET", "/artifacts/web/k", nil))
		if answer.Header.Get("X-Sluice-Request-Id") != "" { // there was room for its event
			tries++
		}
		return answer.StatusCode == 200
	})
	r.events(tries)
}

// What a client breaks off is no failure of Sluice's, which would page somebody.
func TestFormsCutShortAreTheClients(t *testing.T) {
	r := newRig(t, rigOptions{})
	head := "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
	response, body := r.raw(head + "Transfer-Encoding: chunked\r\n\r\nnot a length\r\n")
	if response.StatusCode != 400 || !strings.Contains(body, "<Code>RequestTimeout</Code>") {
		t.Errorf("%s %s", response.Status, body)
	}
	check(t, r.event(), map[string]any{"outcome": "aborted", "error": "RequestTimeout"})

	c, err := net.Dial("tcp", r.server.Listener.Addr().String())
	must(t, err)
	_, err = io.WriteString(c, head+"Content-Length: 100\r\n\r\nAction=")
	must(t, err)
	c.Close()
	check(t, r.event(), map[string]any{"outcome": "aborted", "error": "RequestTimeout"})
}

// Streams of one connection, of two callers, have each their own answers and events, also where their calls are used again
// and what a backend said is taken back.
func TestStreamsHaveTheirOwn(t *testing.T) {
	r := newRig(t, rigOptions{policy: ownPrefix + "filter_listing if input.action == \"s3:ListBucket\"\n"})
	r.backend.Handle(func(w http.ResponseWriter, in *s3test.Request) {
		whose := in.Path() + in.Query()
		w.Header().Set("Etag", whose)
		for i := range len(whose) % 20 { // beyond the room that an answer has for its fields, too
			w.Header().Set(fmt.Sprint("X-Amz-Meta-", i), whose)
		}
		w.Header().Set("X-Sluice-Request-Id", "forged")
		if strings.Contains(whose, "odd") {
			w.WriteHeader(http.StatusNonAuthoritativeInfo)
		} else if strings.Contains(whose, "gone") {
			w.WriteHeader(http.StatusNotFound)
		}
		io.WriteString(w, whose)
	})
	server := httptest.NewUnstartedServer(r.proxy)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	tokens := map[string]string{"web": r.token(), "api": r.token(map[string]any{"project_id": "api", "sub": "environment/env-2", "environment_id": "env-2"})}
	const clients, each = 8, 30
	type told struct{ target, project string }
	var mu sync.Mutex
	ids := map[string]told{}
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for n := range each {
				project := []string{"web", "api"}[(i+n)%2]
				key := fmt.Sprintf("%s/%d-%d%s", project, i, n, strings.Repeat("x", n))
				target, status := "/b/"+key, 200
				switch n % 5 {
				case 1:
					target, status = target+"-gone", 404
				case 2:
					target, status = "/b/others/"+key, 403
				case 3:
					target, status = "/b?list-type=2&prefix="+url.QueryEscape(key+"-odd"), 503
				}
				request, err := http.NewRequest("GET", server.URL+target, nil)
				if err != nil {
					t.Error(err)
					return
				}
				request.Header.Set("Authorization", "Bearer "+tokens[project])
				response, err := server.Client().Do(request)
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(response.Body)
				response.Body.Close()
				id, etag := response.Header.Values("X-Sluice-Request-Id"), response.Header.Get("Etag")
				passed := status == 200 || status == 404
				if err != nil || response.ProtoMajor != 2 || response.StatusCode != status || len(id) != 1 || passed != (etag == target) || !passed && etag != "" || passed && string(body) != target {
					t.Errorf("%s %s: %s %q %.200q, %v", response.Proto, target, response.Status, response.Header, body, err)
					return
				}
				for name, values := range response.Header {
					if strings.HasPrefix(strings.ToLower(name), "x-amz-meta-") && (!passed || values[0] != target) {
						t.Errorf("%s: %s %q", target, name, values)
					}
				}
				mu.Lock()
				ids[id[0]] = told{target, project}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for _, e := range r.events(clients * each) {
		its, ok := ids[e.ID]
		if !ok || e.Identity.Attributes.Project != its.project || e.Key != "" && "/b/"+e.Key != its.target {
			t.Errorf("told %+v (%v), recorded %+v", its, ok, e)
		}
		delete(ids, e.ID)
	}
}
