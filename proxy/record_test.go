package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/proxy"
)

// An identity's part of the event is encoded once: each identity's for itself, and for each log as that is configured.
func TestEventsNameTheirOwnIdentity(t *testing.T) {
	first := newRig(t, rigOptions{audit: func(c *audit.Config) { c.Claims = []string{"team"} }})
	// A second proxy that has its identities from the same authenticator, and records other claims of them.
	second := newRig(t, rigOptions{
		audit:     func(c *audit.Config) { c.Claims = []string{"floor"} },
		configure: func(c *proxy.Config) { c.Auth = first.auth },
	})
	who := func(i int) map[string]any {
		return map[string]any{"sub": fmt.Sprint("environment/", i), "environment_id": fmt.Sprint("env-", i), "project_id": "web", "team": fmt.Sprint("team-", i), "floor": i}
	}
	tokens := []string{first.token(who(0)), first.token(who(1)), first.token(who(2))}
	for range 2 {
		for i, token := range tokens {
			for _, r := range []*rig{first, second} {
				request := r.request("GET", fmt.Sprint("/b/web/", i), nil)
				request.Header.Set("Authorization", "Bearer "+token)
				r.do(request)
				claims := map[string]any{"team": fmt.Sprint("team-", i)}
				if r == second {
					claims = map[string]any{"floor": i}
				}
				e := r.event()
				if id := e.Identity; id.Subject != fmt.Sprint("environment/", i) || id.Session != fmt.Sprint("env-", i) || fmt.Sprint(id.Claims) != fmt.Sprint(claims) {
					t.Errorf("request of %d: %+v, want claims %v", i, id, claims)
				}
				check(t, e, map[string]any{"key": fmt.Sprint("web/", i)})
			}
		}
	}
}

// However many tokens come, and whatever is in them, what is kept of them stays within the cache's bound: with the part of
// the event that is encoded for each, where what attributes are made of is said two and three times.
func TestKeptIdentitiesAreBounded(t *testing.T) {
	if netHTTP {
		t.Skip("no connection is used")
	}
	long := map[string]any{}
	r := newRig(t, rigOptions{audit: func(c *audit.Config) {
		c.File, c.Stdout, c.StdoutWriter = nil, true, io.Discard
		c.Claims = []string{"sub", "environment_id", "project_id", "creator_email"}
		for _, name := range c.Claims {
			long[name] = strings.Repeat("x", 1000)
		}
	}})
	request := httptest.NewRequest("GET", "/artifacts/web/k", nil)
	flood := func(n int) {
		for i := range n {
			long["environment_id"] = fmt.Sprintf("%01000d", i)
			request.Header = http.Header{"Authorization": {"Bearer " + r.token(long)}}
			w := &nowhere{header: http.Header{}}
			if r.proxy.ServeHTTP(w, request); w.status != http.StatusForbidden {
				t.Fatal(w.status) // verified, and refused by policy
			}
		}
	}
	flood(1)
	before := heap()
	const bound = 64 << 20
	flood(4000)
	if held := heap() - before; held > bound || held < bound/2 {
		t.Errorf("4000 tokens hold %.1f MiB, the bound is %d", float64(held)/(1<<20), bound>>20)
	}
}
