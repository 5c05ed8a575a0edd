package main_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/examples/world"
)

// TestProxyProtocol: a load balancer's word for where a request comes from counts, and nobody else's.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, trusted, header string
		status                int
		from                  string
	}{
		{"trusted", "127.0.0.1/32", "PROXY TCP4 203.0.113.7 127.0.0.1 5555 80\r\n", 200, "203.0.113.7"},
		{"trusted, and silent", "127.0.0.1/32", "", 200, "127.0.0.1"},
		{"not trusted", "10.0.0.0/8", "PROXY TCP4 203.0.113.7 127.0.0.1 5555 80\r\n", 400, ""},
		{"not trusted, and silent", "10.0.0.0/8", "", 200, "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{
				"listen.proxy_protocol": true, "listen.trusted_proxies": []any{c.trusted},
			}})
			conn, err := net.Dial("tcp", strings.TrimPrefix(r.proxy.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "%sGET /artifacts?list-type=2&prefix=web/ HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n",
				c.header, strings.TrimPrefix(r.proxy.URL, "http://"), r.Workspace("env-1", "web", "dev@acme.com"))
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != c.status {
				t.Errorf("answered %s", response.Status)
			}
			if c.from == "" {
				return
			}
			if e := r.event(t); e.SourceIP != c.from {
				t.Errorf("the event says that it came from %s", e.SourceIP)
			}
		})
	}
}
