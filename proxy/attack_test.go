package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/proxy"
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
		tries++
		answer, _ := r.do(r.request("GET", "/artifacts/web/k", nil))
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
