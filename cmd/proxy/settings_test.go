package main_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
)

// heard is an HTTP server that answers everything and keeps what it was sent.
type heard struct {
	*httptest.Server
	mu      sync.Mutex
	headers []http.Header
}

func newHeard(t *testing.T) *heard {
	h := &heard{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.headers = append(h.headers, r.Header.Clone())
	}))
	t.Cleanup(h.Close)
	return h
}

// last is the header of what came last.
func (h *heard) last() http.Header {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.headers) == 0 {
		return nil
	}
	return h.headers[len(h.headers)-1]
}

// rotated are the audit log's files but for the one that is written to.
func rotated(t *testing.T, p *world.Proxy) []string {
	t.Helper()
	names, err := filepath.Glob(strings.TrimSuffix(p.AuditFile, ".jsonl") + "-*Z-*.jsonl*")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestSettings: each of these keys is seen to have its effect on the built proxy, and its default to have another.
func TestSettings(t *testing.T) {
	soon(t)
	const odd = "/artifacts/web//odd" // an empty segment, which is not a key to every server
	t.Run("defaults", func(t *testing.T) {
		backend, traces := newHeard(t), newReceiver(t)
		r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{
			"backends[0].endpoint": backend.URL, "telemetry.otlp.endpoint": traces.URL, "audit.file.max_size": "4KiB",
		}})
		if got := r.get(t, odd).StatusCode; got != 400 {
			t.Errorf("keys: strict took an odd key: %d", got)
		}
		if got := r.get(t, "/artifacts/web/key-canary").StatusCode; got != 200 {
			t.Fatalf("status %d", got)
		}
		if backend.last().Get("Traceparent") != "" {
			t.Error("trace_context: false sends it")
		}
		until(t, "rotated files, compressed", func() bool {
			r.get(t, "/artifacts/web/x").Body.Close()
			files := rotated(t, r.proxy)
			return len(files) > 2 && strings.HasSuffix(files[0], ".zst")
		})
		log := r.proxy.Log()
		if !strings.Contains(log, `"msg":"serving"`) {
			t.Error("log.format: json is not")
		}
		if strings.Contains(log, audit.Schema) {
			t.Error("audit.stdout: false writes events there")
		}
		traces.wait(t, "trace", func() bool { return len(traces.spans) > 0 })
		if err := r.proxy.Stop(); err != nil {
			t.Error(err)
		}
		traces.mu.Lock()
		defer traces.mu.Unlock()
		if bytes.Contains(traces.raw.Bytes(), []byte("key-canary")) || bytes.Contains(traces.raw.Bytes(), []byte("environment/env-1")) {
			t.Error("telemetry.spans tells keys or subjects")
		}
	})
	t.Run("set", func(t *testing.T) {
		backend, traces, sink := newHeard(t), newReceiver(t), newHeard(t)
		r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{
			"backends[0].endpoint": backend.URL, "backends[0].keys": "literal", "backends[0].trace_context": true,
			"telemetry.otlp.endpoint": traces.URL, "telemetry.spans": map[string]any{"keys": true, "subjects": true},
			"log":                 map[string]any{"format": "text"},
			"audit.stdout":        true,
			"audit.claims":        []any{"creator_email"},
			"audit.redact":        map[string]any{"keys": []any{"artifacts/web/hidden*"}, "drop": []any{"artifacts/web/gone*"}},
			"audit.file.max_size": "4KiB", "audit.file.keep": 2, "audit.file.compress": false,
			"audit.ship": []any{map[string]any{"format": "cloudevents", "webhook": map[string]any{"url": sink.URL}}},
		}})
		if got := r.get(t, odd).StatusCode; got != 200 {
			t.Errorf("keys: literal refused an odd key: %d", got)
		}
		if backend.last().Get("Traceparent") == "" {
			t.Error("trace_context: true sends none")
		}
		r.get(t, "/artifacts/web/hidden-canary")
		r.get(t, "/artifacts/web/gone-canary")
		events, err := r.proxy.WaitEvents(t.Context(), 3)
		if err != nil {
			t.Fatal(err)
		}
		if got := events[0].Identity.Claims["creator_email"]; fmt.Sprint(got) != "dev@acme.com" {
			t.Errorf("audit.claims: recorded %v", got)
		}
		if k1, k2 := events[1].Key, events[2].Key; !strings.HasPrefix(k1, "sha256:") || k2 != "[dropped]" {
			t.Errorf("audit.redact: recorded %q and %q", k1, k2)
		}
		until(t, "the far end has an event as CloudEvents has them", func() bool {
			return strings.HasPrefix(sink.last().Get("Content-Type"), "application/cloudevents")
		})
		until(t, "plain rotated files, and the first of them gone", func() bool {
			r.get(t, "/artifacts/web/x").Body.Close()
			files := rotated(t, r.proxy)
			return len(files) == 2 && strings.HasSuffix(files[0], ".jsonl") && !strings.HasSuffix(files[0], "-1.jsonl")
		})
		log := r.proxy.Log()
		if !strings.Contains(log, "level=INFO msg=serving") {
			t.Error("log.format: text is not")
		}
		if !strings.Contains(log, `{"schema":"`+audit.Schema+`"`) {
			t.Error("audit.stdout: true writes none there")
		}
		if err := r.proxy.Stop(); err != nil {
			t.Error(err)
		}
		traces.mu.Lock()
		defer traces.mu.Unlock()
		if raw := traces.raw.Bytes(); !bytes.Contains(raw, []byte("web//odd")) || !bytes.Contains(raw, []byte("environment/env-1")) {
			t.Error("telemetry.spans tells no keys or subjects")
		}
	})
	t.Run("log.level", func(t *testing.T) {
		r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"log.level": "warn"}})
		if err := r.proxy.Stop(); err != nil {
			t.Error(err)
		}
		if log := r.proxy.Log(); log != "" {
			t.Errorf("above info: %s", log)
		}
	})
	// What works in the background keeps to the configuration's log too.
	t.Run("log of sessions and revocations", func(t *testing.T) {
		dir := t.TempDir()
		r := newRig(t, world.Options{}, world.ProxyOptions{Dir: dir})
		write(t, filepath.Join(dir, "session.keys"), "no key\n")
		until(t, "the bad key file noticed", func() bool { return strings.Contains(r.proxy.Log(), "session keys not reloaded") })
		if err := r.proxy.Stop(); err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(r.proxy.Log()) {
			if !json.Valid([]byte(line)) {
				t.Errorf("not log.format: json: %s", line)
			}
		}
	})
}

// Where the audit log's disk is full, on_failure says whether requests are served all the same.
func TestAuditOnFailure(t *testing.T) {
	t.Parallel()
	for on, want := range map[string]int{"refuse": http.StatusServiceUnavailable, "continue": http.StatusOK} {
		t.Run(on, func(t *testing.T) {
			disk := t.TempDir()
			if err := mountSmall(disk, "1m"); err != nil {
				t.Skipf("SKIPPED: a small disk cannot be mounted here (%v; it takes root)", err)
			}
			t.Cleanup(func() { unmount(disk) })
			r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{
				"audit.on_failure": on, "audit.file.path": filepath.Join(disk, "audit.jsonl"), "limits.max_in_flight": 8,
			}})
			r.store(t, "web/x", []byte("x"))
			if got := r.get(t, "/artifacts/web/x").StatusCode; got != 200 {
				t.Fatalf("status %d", got)
			}
			filler, err := os.Create(filepath.Join(disk, "filler"))
			if err != nil {
				t.Fatal(err)
			}
			for err = nil; err == nil; {
				_, err = filler.Write(make([]byte, 512))
			}
			filler.Close()
			ready := func() (int, string) {
				answer, err := http.Get(r.proxy.AdminURL + "/readyz")
				if err != nil {
					t.Fatal(err)
				}
				defer answer.Body.Close()
				body, _ := io.ReadAll(answer.Body)
				return answer.StatusCode, string(body)
			}
			until(t, "the full disk noticed", func() bool {
				r.get(t, "/artifacts/web/x").Body.Close()
				_, body := ready()
				return strings.Contains(body, "no space left on device")
			})
			// There is room for some, whose events wait for the disk; there is none for so many.
			served := 0
			for range 200 {
				response := r.get(t, "/artifacts/web/x")
				response.Body.Close()
				if response.StatusCode == 200 {
					served++
				} else if response.StatusCode != 503 {
					t.Fatalf("status %d", response.StatusCode)
				}
			}
			if (served == 200) != (on == "continue") {
				t.Errorf("%d of 200 are served while the disk is full", served)
			}
			if got, body := ready(); got != want || !strings.Contains(body, `"audit":{`) {
				t.Errorf("/readyz: %d %s", got, body)
			}
			if err := os.Remove(filler.Name()); err != nil {
				t.Fatal(err)
			}
			until(t, "served and ready again", func() bool {
				status, body := ready()
				return status == 200 && !strings.Contains(body, "no space") && r.get(t, "/artifacts/web/x").StatusCode == 200
			})
			if err := r.proxy.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// fsync is what the kernel is asked for: nothing, once a second, or before each answer.
func TestAuditFsync(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("SKIPPED: no strace")
	}
	for _, fsync := range []string{"off", "interval", "always"} {
		t.Run(fsync, func(t *testing.T) {
			r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"audit.file.fsync": fsync}})
			r.store(t, "web/x", []byte("x"))
			out := filepath.Join(t.TempDir(), "trace")
			tracer := exec.Command("strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", out, "-p", fmt.Sprint(r.proxy.PID()))
			says, err := tracer.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := tracer.Start(); err != nil {
				t.Fatal(err)
			}
			if n, _ := says.Read(make([]byte, 1)); n == 0 { // it says that it is attached, or ends
				t.Skip("SKIPPED: a process cannot be traced here")
			}
			go io.Copy(io.Discard, says)
			syncs := func() int {
				text, _ := os.ReadFile(out)
				return bytes.Count(text, []byte("audit.jsonl")) // the log or its journal
			}
			served, began := 0, time.Now()
			for ; time.Since(began) < 2500*time.Millisecond || served < 20; served++ {
				if got := r.get(t, "/artifacts/web/x").StatusCode; got != 200 {
					t.Fatalf("status %d", got)
				}
			}
			if fsync == "interval" {
				until(t, "the disk waited for", func() bool { return syncs() > 0 })
			}
			tracer.Process.Signal(syscall.SIGINT) // detaches
			tracer.Wait()
			n, took := syncs(), time.Since(began)
			most := 2 * (2 + int(took/time.Second)) // each second for the log and for its journal, however few requests that is
			if fsync == "off" && n > 0 || fsync == "interval" && n > most || fsync == "always" && n < served {
				t.Errorf("the disk was waited for %d times for %d requests in %v", n, served, took)
			}
		})
	}
}

// A session's bytes take their time.
func TestBytesPerSecond(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"limits.bytes_per_second": 1 << 20}})
	r.store(t, "web/x", make([]byte, 4<<20))
	began := time.Now()
	if n, err := io.Copy(io.Discard, r.get(t, "/artifacts/web/x").Body); err != nil || n != 4<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("4 MiB at 1 MiB a second in %v", took)
	}
}

// A role that asks for an external ID is acted as by who tells it.
func TestExternalID(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{Roles: []world.Role{{ARN: world.RoleARN("sluice-default"), ExternalID: "known"}}},
		world.ProxyOptions{Set: map[string]any{"backends[0].credentials.assume_role.external_id": "known"}})
	r.store(t, "web/x", []byte("x"))
	if got := r.get(t, "/artifacts/web/x").StatusCode; got != 200 {
		t.Errorf("status %d", got)
	}
}

// Session credentials are good for max_duration, also where the token lives longer.
func TestSessionDuration(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		set  any
		want time.Duration
	}{{"20m", 20 * time.Minute}, {nil, time.Hour}} {
		r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"sessions.max_duration": c.set}})
		token := r.Token(map[string]any{"sub": "environment/env-1", "environment_id": "env-1", "project_id": "web", "exp": time.Now().Add(3 * time.Hour).Unix()})
		got := time.Until(r.exchange(t, http.DefaultClient, token).Expires)
		if got > c.want || got < c.want-time.Minute {
			t.Errorf("max_duration %v: good for %v", c.set, got)
		}
	}
}

// With signing_key_file there are checkpoints, and they are this key's.
func TestSigningKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	file, pub := filepath.Join(dir, "audit.key"), filepath.Join(dir, "audit.pub")
	write(t, file, base64.StdEncoding.EncodeToString(private.Seed())+"\n")
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	write(t, pub, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	for key, want := range map[string]bool{file: true, "": false} {
		r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"audit.signing_key_file": key}})
		r.get(t, "/artifacts/web/x").Body.Close()
		if err := r.proxy.Stop(); err != nil {
			t.Fatal(err)
		}
		out, err := runProxy(t, r.World, "audit", "verify", "--public-key", pub, r.proxy.AuditFile)
		if (err == nil) != want {
			t.Errorf("signing_key_file %q: %v\n%s", key, err, out)
		}
	}
}

// The package that is asked is the entrypoint's, whatever another one beside it allows.
func TestEntrypoint(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "default.rego"), "package s3.authz\nallow := true\n")
	write(t, filepath.Join(dir, "team.rego"), "package team.storage\nallow if input.key == \"web/x\"\n")
	for entrypoint, want := range map[any]int{nil: http.StatusOK, "team/storage": http.StatusForbidden} {
		r := newRig(t, world.Options{}, world.ProxyOptions{PolicyDir: dir, Set: map[string]any{"policy.entrypoint": entrypoint}})
		r.store(t, "web/x", []byte("x"))
		r.store(t, "web/y", []byte("y"))
		if x, y := r.get(t, "/artifacts/web/x").StatusCode, r.get(t, "/artifacts/web/y").StatusCode; x != http.StatusOK || y != want {
			t.Errorf("entrypoint %v: %d and %d", entrypoint, x, y)
		}
	}
}
