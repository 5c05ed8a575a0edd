package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/examples/world/worldtest"
	"github.com/sluice-s3/sluice/test/machine"
)

// get starts a download with a workspace's token, and leaves its body unread.
func (r *rig) get(t *testing.T, target string) *http.Response {
	t.Helper()
	request, err := http.NewRequest("GET", r.proxy.URL+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+r.Workspace("env-1", "web", "dev@acme.com"))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return response
}

// store puts an object straight at the backend.
func (r *rig) store(t *testing.T, key string, content []byte) {
	t.Helper()
	worldtest.Store(t, r.World, key, content)
}

// unhurried is a limits.idle_timeout for what a test holds back, however long it takes on the machine.
const unhurried = "10m"

// until waits for something that happens in another process.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	worldtest.Until(t, machine.Patience, what, ok)
}

func TestDrain(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"shutdown_timeout": "50s"}}) // less than Wait waits
	r.store(t, "web/large", make([]byte, 32<<20))
	response := r.get(t, "/artifacts/web/large") // too large for the buffers between
	if err := r.proxy.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until(t, "not ready", func() bool {
		answer, err := http.Get(r.proxy.AdminURL + "/readyz")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusServiceUnavailable
	})
	until(t, "no more connections", func() bool {
		answer, err := (&http.Client{Transport: &http.Transport{}}).Get(r.proxy.URL + "/")
		if err == nil {
			answer.Body.Close()
		}
		return err != nil
	})
	if n, err := io.Copy(io.Discard, response.Body); err != nil || n != 32<<20 {
		t.Errorf("the download in flight ended after %d bytes: %v", n, err)
	}
	if err := r.proxy.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
	events, err := r.proxy.Events()
	if err != nil {
		t.Fatal(err)
	}
	events = slices.DeleteFunc(events, func(e audit.Event) bool { return e.Key == "" }) // who asked while it still listened
	if len(events) != 1 || events[0].Outcome != audit.Completed || events[0].BytesOut != 32<<20 {
		t.Errorf("events %+v", events)
	}
}

// What the admin listener has taken it answers, though all else is done by then; and who never asks to the end keeps no
// process from ending.
func TestDrainAnswersTheAdmin(t *testing.T) {
	t.Parallel() // the process waits 2 s for who does not ask to the end
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	ask := func() (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.proxy.AdminURL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "POST /revocations HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(revokeOther))
		reader := bufio.NewReader(conn)
		if line, err := reader.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
		reader.ReadString('\n') // the empty line after it
		return conn, reader
	}
	conn, answers := ask()
	ask() // and no more is said
	watch := machine.Watch(t)
	if err := r.proxy.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until(t, "no more questions", func() bool {
		other, err := net.Dial("tcp", conn.RemoteAddr().String())
		if err == nil {
			other.Close()
		}
		return err != nil
	})
	io.WriteString(conn, revokeOther)
	answer, err := http.ReadResponse(answers, nil)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(answer.Body)
	}
	switch {
	case err == nil && (answer.StatusCode != http.StatusCreated || !strings.Contains(string(body), `"session":"other"`)):
		t.Errorf("%s: %s", answer.Status, body)
	case err != nil && watch.Took() < time.Second: // half of what it has for it
		t.Errorf("cut: %v", err)
	case err != nil:
		t.Logf("SKIPPED: this machine is too busy to ask in time: %v", err)
	}
	if err := r.proxy.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
}

const revokeOther = `{"session": "other"}`

// What is cut then, on its way down or up, is the proxy's doing and not its client's.
func TestDrainIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"shutdown_timeout": "200ms"}})
	r.store(t, "web/large", make([]byte, 32<<20))
	r.get(t, "/artifacts/web/large")
	body, rest := io.Pipe()
	defer rest.Close()
	request, err := http.NewRequest("PUT", r.proxy.URL+"/artifacts/web/half", body)
	if err != nil {
		t.Fatal(err)
	}
	request.ContentLength = 1 << 20
	request.Header.Set("Authorization", "Bearer "+r.Workspace("env-1", "web", "dev@acme.com"))
	go func() {
		if answer, err := http.DefaultTransport.RoundTrip(request); err == nil {
			answer.Body.Close()
		}
	}()
	if _, err := rest.Write(make([]byte, 64<<10)); err != nil { // more than is read ahead of the headers
		t.Fatal(err)
	}
	until(t, "both are in flight", func() bool { return r.gauge(t, "sluice_requests_in_flight") == 2 })
	watch := machine.Watch(t)
	if err := r.proxy.Stop(); err != nil {
		t.Errorf("exit: %v", err)
	}
	watch.Within(t, 8*time.Second, "ended") // not the default, nor what other tests set
	events, err := r.proxy.Events()
	if err != nil || len(events) != 2 {
		t.Fatalf("events %+v, %v", events, err)
	}
	for _, e := range events {
		if e.Outcome != audit.Aborted || e.Error != "ServiceUnavailable" {
			t.Errorf("%s: %s, %q", e.Operation, e.Outcome, e.Error)
		}
	}
	if log := r.proxy.Log(); !strings.Contains(log, `"shutdown_timeout":"200ms"`) {
		t.Errorf("it logged:\n%s", log)
	}
}

// What was in flight when the process died has its event at the next start.
func TestKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	r.store(t, "web/large", make([]byte, 32<<20))
	r.get(t, "/artifacts/web/large")
	config, err := os.ReadFile(r.proxy.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	r.proxy.Kill()
	again, err := r.StartProxy(context.Background(), string(config))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop()
	events, err := again.WaitEvents(t.Context(), 1)
	if err != nil || len(events) != 1 {
		t.Fatalf("events %+v, %v", events, err)
	}
	if e := events[0]; e.Outcome != audit.Interrupted || e.Operation != "GetObject" || e.Key != "web/large" || e.Identity.Session != "env-1" || !e.Decision.Allow {
		t.Errorf("event %+v", e)
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy")
	if err := os.Mkdir(policy, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(policy, "a.rego"), "package s3.authz\nallow if input.action == \"s3:GetObject\"\n")
	r := newRig(t, world.Options{}, world.ProxyOptions{PolicyDir: policy})
	r.store(t, "web/x", []byte("x"))
	status := func() int { return r.get(t, "/artifacts/web/x").StatusCode }
	if got := status(); got != 200 {
		t.Fatalf("status %d", got)
	}

	// The policy's directory changes.
	write(t, filepath.Join(policy, "a.rego"), "package s3.authz\nallow if input.action == \"s3:PutObject\"\n")
	until(t, "the new policy in force", func() bool { return status() == 403 })
	write(t, filepath.Join(policy, "a.rego"), "package s3.authz\nallow if")
	until(t, "the bad policy noticed", func() bool { return strings.Contains(r.proxy.Log(), "policy not loaded") })
	if got := status(); got != 403 {
		t.Errorf("a policy that does not compile was taken: status %d", got)
	}

	// So does the configuration: first badly, then well.
	config, err := os.ReadFile(r.proxy.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(policy, "a.rego"), "package s3.authz\nallow if input.action == \"s3:GetObject\"\n")
	until(t, "the old policy in force again", func() bool { return status() == 200 })
	write(t, r.proxy.ConfigFile, string(config)+"\nfrobnicate: 1\n")
	r.proxy.Signal(syscall.SIGHUP)
	until(t, "the bad configuration noticed", func() bool { return strings.Contains(r.proxy.Log(), "frobnicate: unknown key") })
	if got := status(); got != 200 {
		t.Errorf("status %d", got)
	}
	write(t, r.proxy.ConfigFile, strings.Replace(string(config), r.Audience, "https://other.example.com", 1))
	r.proxy.Signal(syscall.SIGHUP)
	until(t, "the new audience", func() bool { return status() == 400 })
}

// What takes a restart is told on every reload while it is not what the process runs with, and then no longer.
func TestReloadTellsWhatIsNotInForce(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	config, err := os.ReadFile(r.proxy.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	changed := string(config) + "\nlog: {level: debug}\ntelemetry: {service_name: other, spans: {keys: true}}\n"
	told := 0
	for i, step := range []struct {
		config string
		want   []string
	}{
		{changed, []string{"log", "telemetry.service_name"}},
		{changed, []string{"log", "telemetry.service_name"}}, // read once, it is still not in force
		{string(config), nil},                                // and this is
	} {
		write(t, r.proxy.ConfigFile, step.config)
		r.proxy.Signal(syscall.SIGHUP)
		until(t, "a reload", func() bool { return strings.Count(r.proxy.Log(), `"configuration reloaded"`) == i+1 })
		var got []string
		for _, line := range strings.Split(r.proxy.Log(), "\n") {
			if _, section, ok := strings.Cut(line, `takes a restart to change","section":"`); ok {
				got = append(got, strings.TrimSuffix(section, `"}`))
			}
		}
		if !slices.Equal(got[told:], step.want) {
			t.Errorf("reload %d told %q, want %q", i+1, got[told:], step.want)
		}
		told = len(got)
	}
}

// A secret that everybody may read, or write, is told of at a reload as at the start.
func TestReloadTellsOfOpenFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	if strings.Contains(r.proxy.Log(), "open to every user") {
		t.Errorf("told of files that are the proxy's alone:\n%s", r.proxy.Log())
	}
	config, err := os.ReadFile(r.proxy.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	write(t, key, "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
	if err := os.Chmod(key, 0o646); err != nil {
		t.Fatal(err)
	}
	write(t, r.proxy.ConfigFile, regexp.MustCompile(`key_file: \S+`).ReplaceAllLiteralString(string(config), `key_file: "`+key+`"`))
	r.proxy.Signal(syscall.SIGHUP)
	until(t, "word of it", func() bool {
		return strings.Contains(r.proxy.Log(), `a file is open to every user of this machine","key":"sessions.key_file","problem":"`+key+` may be written by every user`)
	})
}

// What a session used of its limits, and what it has in flight, outlives a reload.
func TestReloadKeepsLimits(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{
		"limits.requests_per_second": 0.001, "limits.in_flight": 1, "limits.idle_timeout": unhurried,
	}})
	r.store(t, "web/x", []byte("x"))
	config, err := os.ReadFile(r.proxy.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	reloads := 0
	reload := func(old, new string) {
		t.Helper()
		config = bytes.Replace(config, []byte(old), []byte(new), 1)
		if !bytes.Contains(config, []byte(new)) {
			t.Fatalf("no %q in\n%s", old, config)
		}
		write(t, r.proxy.ConfigFile, string(config))
		r.proxy.Signal(syscall.SIGHUP)
		reloads++
		until(t, "the reload", func() bool { return strings.Count(r.proxy.Log(), "configuration reloaded") == reloads })
	}
	if got := r.get(t, "/artifacts/web/x").StatusCode; got != 200 {
		t.Fatalf("status %d", got)
	}
	reload("shutdown_timeout: 10s", "shutdown_timeout: 11s")
	if got := r.get(t, "/artifacts/web/x").StatusCode; got != 503 {
		t.Errorf("status %d: a reload gave the session its requests back", got)
	}
	reload("requests_per_second: 0.001", "requests_per_second: 1000")
	until(t, "the new limit", func() bool { return r.get(t, "/artifacts/web/x").StatusCode == 200 })
	r.store(t, "web/large", make([]byte, 32<<20))
	until(t, "a place", func() bool { return r.get(t, "/artifacts/web/large").StatusCode == 200 }) // too large for the buffers between
	for range 2 {
		if got := r.get(t, "/artifacts/web/x").StatusCode; got != 503 {
			t.Errorf("status %d: one is in flight, and one may be", got)
		}
		reload("shutdown_timeout: 11s", "shutdown_timeout: 12s")
	}
}

// A lower limits.max_in_flight is in force after a reload. A higher one than at the start is not, and that is told.
func TestReloadOfMaxInFlight(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"limits.max_in_flight": 2, "limits.idle_timeout": unhurried}})
	r.store(t, "web/x", []byte("x"))
	r.store(t, "web/large", make([]byte, 32<<20)) // too large for the buffers between
	config, err := os.ReadFile(r.proxy.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	small := func() int { return r.get(t, "/artifacts/web/x").StatusCode }
	until(t, "a place", func() bool { return r.get(t, "/artifacts/web/large").StatusCode == 200 })
	until(t, "another place", func() bool { return small() == 200 })
	for i, step := range []struct {
		most, want int
		told       bool
	}{{1, 503, false}, {3, 200, true}} {
		write(t, r.proxy.ConfigFile, regexp.MustCompile(`max_in_flight: \S+`).ReplaceAllString(string(config), fmt.Sprint("max_in_flight: ", step.most)))
		r.proxy.Signal(syscall.SIGHUP)
		until(t, "the reload", func() bool { return strings.Count(r.proxy.Log(), `"configuration reloaded"`) == i+1 })
		until(t, "none but the large one in flight", func() bool { return r.gauge(t, "sluice_requests_in_flight") == 1 })
		if got := small(); got != step.want {
			t.Errorf("status %d with one of %d in flight", got, step.most)
		}
		if told := strings.Contains(r.proxy.Log(), `takes a restart to change","section":"limits.max_in_flight"`); told != step.told {
			t.Errorf("told of %d: %v", step.most, told)
		}
	}
	until(t, "a second that stays", func() bool { return r.get(t, "/artifacts/web/large").StatusCode == 200 })
	if got := small(); got != 503 {
		t.Errorf("status %d: two are in flight, and for three the process has no room", got)
	}
}

func TestAdmin(t *testing.T) {
	t.Parallel() // at its end the proxy waits 15 s for the far end that takes nothing
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, "let-me-in\n")
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }))
	defer refusing.Close()
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{
		"admin.token_file": token, "audit.ship": []any{map[string]any{"webhook": map[string]any{"url": refusing.URL}}},
	}})
	ask := func(method, path, body, token string) (int, string) {
		request, err := http.NewRequest(method, r.proxy.AdminURL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, string(text)
	}
	r.store(t, "web/x", []byte("x"))
	if r.get(t, "/artifacts/web/x").StatusCode != 200 {
		t.Error("not served")
	}
	r.event(t) // by when it is measured
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": `"ready":true`, "/metrics": `sluice_requests_total{`} {
		if status, text := ask("GET", path, "", ""); status != 200 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	// A far end that takes no events is told, and is no reason to serve nobody.
	until(t, "/readyz to tell of it", func() bool {
		status, text := ask("GET", "/readyz", "", "")
		return status == 200 && strings.Contains(text, `"audit.ship webhook":{"ok":true,"error":"answered 400`)
	})
	for _, bad := range []string{"", "wrong", "let-me-i"} {
		if status, _ := ask("POST", "/revocations", `{"session": "env-1"}`, bad); status != 401 {
			t.Errorf("token %q: %d", bad, status)
		}
	}
	// What is wrong is said so that it can be read, and mended.
	for _, c := range []struct {
		method, path, body, token string
		status                    int
		want                      string
	}{
		{"POST", "/revocations", "", "", 401, "Bearer <the content of admin.token_file>"},
		{"POST", "/revocations", `{"session": "env-1", "until": "tomorrow"}`, "let-me-in", 400, "until has to be a time such as 2"},
		{"GET", "/", "", "", 404, "there is no GET / here: there are GET /healthz"},
		{"GET", "/revocation", "", "", 404, "POST /revocations"},
		{"PUT", "/revocations", "", "", 405, "POST /revocations"},
	} {
		if status, text := ask(c.method, c.path, c.body, c.token); status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, status, text)
		}
	}
	revocation := fmt.Sprintf(`{"session": "env-1", "issuer": %q}`, r.Issuer.URL())
	status, text := ask("POST", "/revocations", revocation, "let-me-in")
	if status != 201 || !strings.Contains(text, `"session":"env-1"`) {
		t.Fatalf("%d %s", status, text)
	}
	if got := r.get(t, "/artifacts/web/x"); got.StatusCode != 403 {
		t.Errorf("a revoked session is served: %s", got.Status)
	}
	status, text = ask("GET", "/revocations", "", "let-me-in")
	if status != 200 || strings.Count(text, `"id"`) != 1 {
		t.Fatalf("%d %s", status, text)
	}
	_, rest, _ := strings.Cut(text, `"id":"`)
	id, _, _ := strings.Cut(rest, `"`)
	if status, text := ask("DELETE", "/revocations/"+id, "", "let-me-in"); status != 204 {
		t.Errorf("%d %s", status, text)
	}
	if status, _ := ask("DELETE", "/revocations/"+id, "", "let-me-in"); status != 404 {
		t.Errorf("%d", status)
	}
	if got := r.get(t, "/artifacts/web/x"); got.StatusCode != 200 {
		t.Errorf("a session that is revoked no more is refused: %s", got.Status)
	}
	// Each of the three kinds, each until an end of its own.
	for kind, value := range map[string]string{"session": "env-1", "subject": "environment/env-1", "token_id": "token-1"} {
		token := r.Token(map[string]any{"sub": "environment/env-1", "environment_id": "env-1", "project_id": "web", "creator_email": "dev@acme.com", "jti": "token-1"})
		asked := func() int {
			request, err := http.NewRequest("GET", r.proxy.URL+"/artifacts/web/x", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Authorization", "Bearer "+token)
			answer, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			return answer.StatusCode
		}
		for lasts := 5 * time.Second; ; lasts *= 2 { // what follows takes milliseconds, or else tells nothing
			end := time.Now().Add(lasts).UTC()
			until1 := end.Format(time.RFC3339Nano)
			body := fmt.Sprintf(`{%q: %q, "issuer": %q, "until": %q}`, kind, value, r.Issuer.URL(), until1)
			status, text := ask("POST", "/revocations", body, "let-me-in")
			got := asked()
			if !time.Now().Before(end) && lasts < machine.Patience {
				continue
			}
			if status != 201 || !strings.Contains(text, `"until":"`+until1) {
				t.Errorf("%s: %d %s", body, status, text)
			}
			if got != 403 {
				t.Errorf("%s: %d", kind, got)
			}
			until(t, kind+" to end", func() bool { return asked() == 200 })
			if time.Now().Before(end) {
				t.Errorf("%s: let in before %s", kind, until1)
			}
			break
		}
	}
	for _, unguarded := range [][3]string{{"GET", "/revocations", ""}, {"DELETE", "/revocations/" + id, ""}, {"POST", "/-/reload", ""}} {
		if status, _ := ask(unguarded[0], unguarded[1], unguarded[2], ""); status != 401 {
			t.Errorf("%v without the token: %d", unguarded, status)
		}
	}
	for _, bad := range []string{"", "{}", `{"session": "a"} {"session": "b"}`, `{"session": "a", "until": 1795420800}`, `{"session": "a", "until": "2020-01-01T00:00:00Z"}`, `{"session": "a", "subject": "b"}`, `{"session": "a", "frobnicate": 1}`, `{"session": "a", "issuer": "https://elsewhere"}`} {
		if status, text := ask("POST", "/revocations", bad, "let-me-in"); status != 400 {
			t.Errorf("%s: %d %s", bad, status, text)
		}
	}
	if status, text := ask("POST", "/-/reload", "", "let-me-in"); status != 200 || !strings.Contains(text, "revision") {
		t.Errorf("%d %s", status, text)
	}
}

// Killed while it revokes, again and again: what was acknowledged is in force at the next start, and no half-written file
// keeps it from starting.
func TestRevocationsSurviveKills(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "revocations")
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"revocation.file": file}})
	config, err := os.ReadFile(r.proxy.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	acknowledged := map[string]bool{}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // what fails was cut, and not left over from before
	for round := range 5 {
		var mu sync.Mutex
		var all sync.WaitGroup
		enough := make(chan struct{}, 4000) // one for each that was acknowledged
		for worker := range 4 {
			all.Go(func() {
				for n := range 1000 {
					session := fmt.Sprintf("%d-%d-%d", round, worker, n)
					answer, err := client.Post(r.proxy.AdminURL+"/revocations", "application/json", strings.NewReader(`{"session": "`+session+`"}`))
					if err != nil {
						return // killed
					}
					answer.Body.Close()
					mu.Lock()
					acknowledged[session] = answer.StatusCode == 201
					mu.Unlock()
					enough <- struct{}{}
				}
			})
		}
		for range 5 + 7*round {
			<-enough
		}
		r.proxy.Kill()
		all.Wait()
		if round == 3 { // as a kill in the middle of a write leaves it, long ago
			torn := file + ".1.tmp"
			write(t, torn, `{"schema": "sluice.revocations/1", "revoc`)
			if err := os.Chtimes(torn, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		if r.proxy, err = r.StartProxy(context.Background(), string(config)); err != nil {
			t.Fatal(err)
		}
		answer, err := http.Get(r.proxy.AdminURL + "/revocations")
		if err != nil {
			t.Fatal(err)
		}
		list, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for session, ok := range acknowledged {
			if ok && !bytes.Contains(list, []byte(`"session":"`+session+`"`)) {
				t.Errorf("round %d: the revocation of %s was acknowledged and is gone", round, session)
			}
		}
	}
	if _, err := os.Stat(file + ".1.tmp"); err == nil {
		t.Error("what a kill left behind stays for ever")
	}
}

// An upload that ends while the proxy drains has its answer, also over HTTP/2.
func TestDrainAnswersTheLastStream(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{TLS: true})
	body, w := io.Pipe()
	request, err := http.NewRequest("PUT", r.proxy.URL+"/artifacts/web/late", body)
	if err != nil {
		t.Fatal(err)
	}
	request.ContentLength = 1 << 20
	request.Header.Set("Authorization", "Bearer "+r.Workspace("env-1", "web", "dev@acme.com"))
	answered := make(chan error, 1)
	go func() {
		response, err := r.HTTPClient().Do(request)
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if err == nil && (response.StatusCode != 200 || response.ProtoMajor != 2) {
				err = fmt.Errorf("%s %s", response.Proto, response.Status)
			}
		}
		answered <- err
	}()
	w.Write(make([]byte, 1<<19)) // returns once the client has sent it
	until(t, "in flight", func() bool { return r.gauge(t, "sluice_requests_in_flight") == 1 })
	r.proxy.Signal(syscall.SIGTERM)
	until(t, "draining", func() bool { return strings.Contains(r.proxy.Log(), "draining") })
	w.Write(make([]byte, 1<<19))
	w.Close()
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := r.proxy.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
}

// TestLogIsOneFormat: what the packages below say of session keys and of the store of revocations is in the operator's log
// and its format, the first failure to reach the store too.
func TestLogIsOneFormat(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "revocations"), `{"schema": "sluice.revocations/1", "revocations": []}`) // so that it serves without the store
	r := newRig(t, world.Options{}, world.ProxyOptions{Dir: dir, Set: map[string]any{
		"revocation": map[string]any{"store": "nats://127.0.0.1:1", "file": filepath.Join(dir, "revocations")},
	}})
	write(t, filepath.Join(dir, "session.keys"), "short")
	until(t, "the bad session keys noticed", func() bool { return strings.Contains(r.proxy.Log(), "session keys not reloaded") })
	until(t, "the store missed", func() bool { return strings.Contains(r.proxy.Log(), `"msg":"revocations are not shared for now`) })
	for line := range strings.Lines(r.proxy.Log()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
}
