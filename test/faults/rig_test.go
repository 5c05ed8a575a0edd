// Package faults shows what users see when something is slow, broken, gone or too much. docs/faults.md says it in
// words.
//
// The longest of them takes SLUICE_LONG=1, which makes the transfers of TestMemory whole:
//
//	SLUICE_LONG=1 go test ./test/faults
package faults

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/examples/world/worldtest"
	"github.com/sluice-s3/sluice/test/machine"
)

func TestMain(m *testing.M) { worldtest.Main(m) }

// rig is the built proxy in front of a backend that the test is.
type rig struct {
	*world.World
	proxy *world.Proxy
	token string
}

// newRig gives the proxy a backend that handles requests by h, or the world's own where h is nil.
func newRig(t *testing.T, h http.Handler, set map[string]any) *rig {
	t.Helper()
	w := worldtest.Start(t, world.Options{})
	o := world.ProxyOptions{PolicyDir: worldtest.ProjectPolicy(t), Set: map[string]any{}}
	if h != nil {
		backend := httptest.NewServer(h)
		t.Cleanup(backend.Close)
		t.Cleanup(backend.CloseClientConnections)
		o.Credentials = "static"
		o.Set["backends[0].endpoint"] = backend.URL
	}
	for path, value := range set {
		o.Set[path] = value
	}
	return &rig{World: w, proxy: worldtest.Proxy(t, w, o), token: w.Workspace("env-1", "web", "dev@acme.com")}
}

// address is the proxy's host:port.
func (r *rig) address() string { return r.proxy.URL[len("http://"):] }

// dial is a connection to the proxy that the test speaks on by itself.
func (r *rig) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(machine.Patience))
	return c
}

func (r *rig) request(t *testing.T, method, key string) *http.Request {
	t.Helper()
	request, err := http.NewRequest(method, r.proxy.URL+"/artifacts/web/"+key, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+r.token)
	return request
}

// events waits until there are n, and fails where there are more.
func (r *rig) events(t *testing.T, n int) []audit.Event {
	t.Helper()
	events, err := r.proxy.WaitEvents(t.Context(), n)
	if err != nil || len(events) != n {
		t.Fatalf("%d events, want %d: %v", len(events), n, err)
	}
	return events
}

func (r *rig) status(t *testing.T, field string) (n int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.proxy.PID()))
	if err != nil {
		t.Skipf("no /proc here: %v", err)
	}
	n, ok := procField(string(text), field)
	if !ok {
		t.Fatalf("no %s in\n%s", field, text)
	}
	return n
}
