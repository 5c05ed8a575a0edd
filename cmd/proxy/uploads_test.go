package main_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/examples/world"
)

// T13: an upload that is broken off stores nothing, and leaves what was there. versitygw takes the end of a stream for
// the end of the object, be it TCP's or TLS's.
func TestT13UploadsBrokenOffStoreNothing(t *testing.T) {
	t.Parallel()
	for name, secure := range map[string]bool{"http": false, "https": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, world.Options{TLS: secure}, world.ProxyOptions{})
			token := r.Workspace("env-1", "web", "dev@acme.com")
			send := func(method, body string) string {
				t.Helper()
				request, err := http.NewRequest(method, r.proxy.URL+"/artifacts/web/k", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				request.Header.Set("Authorization", "Bearer "+token)
				response, err := http.DefaultClient.Do(request)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				content, err := io.ReadAll(response.Body)
				if err != nil || response.StatusCode != 200 {
					t.Fatalf("%s: %s %v", method, response.Status, err)
				}
				r.event(t)
				return string(content)
			}
			send("PUT", "whole")
			address := strings.TrimPrefix(r.proxy.URL, "http://")
			for _, reset := range []bool{false, true} {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(c, "PUT /artifacts/web/k HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: 200000\r\n\r\n%150000d", address, token, 0)
				time.Sleep(100 * time.Millisecond) // so that some of it is at the backend; less would make the test easier
				if reset {
					c.(*net.TCPConn).SetLinger(0)
				}
				c.Close()
				if e := r.event(t); e.Outcome != "aborted" {
					t.Errorf("reset %v: outcome %s", reset, e.Outcome)
				}
				for range 10 { // the backend may take a moment
					if got := send("GET", ""); got != "whole" {
						t.Fatalf("reset %v: the upload that was broken off is stored: %d bytes", reset, len(got))
					}
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
}
