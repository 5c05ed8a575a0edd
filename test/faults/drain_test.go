package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/test/machine"
)

// SIGTERM under load: /readyz turns at once, every request that was taken is answered whole and has its event, and nothing
// else has one.
func TestDrainUnderLoad(t *testing.T) {
	content := make([]byte, 1<<20)
	var served, held atomic.Int64
	noticed := make(chan struct{})
	turn := sync.OnceFunc(func() { close(noticed) })
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		io.Copy(io.Discard, q.Body)
		time.Sleep(30 * time.Millisecond)
		if strings.HasSuffix(q.URL.Path, "/0-40") { // in flight until /readyz has been seen, or the process might be gone before
			held.Add(1)
			<-noticed
		}
		served.Add(1)
		if q.Method == http.MethodGet {
			w.Write(content)
		}
	}), nil)
	t.Cleanup(turn)
	type seen struct {
		status int
		whole  bool
	}
	var mu sync.Mutex
	saw := map[string]seen{}
	var lost atomic.Int64
	var stop atomic.Bool
	var all sync.WaitGroup
	for worker := range 16 {
		all.Go(func() {
			client := &http.Client{Transport: &http.Transport{}} // connections of its own, kept open
			for n := 0; !stop.Load(); n++ {
				request := r.request(t, http.MethodGet, fmt.Sprintf("%d-%d", worker, n))
				if n%2 == 0 {
					request = r.request(t, http.MethodPut, fmt.Sprintf("%d-%d", worker, n))
					request.Body, request.ContentLength = io.NopCloser(bytes.NewReader(content)), int64(len(content))
				}
				answer, err := client.Do(request)
				if err != nil {
					if !errors.Is(err, syscall.ECONNREFUSED) {
						lost.Add(1) // sent on a connection that was just being closed, and never taken
					}
					if strings.Contains(err.Error(), "refused") {
						return
					}
					continue
				}
				body, err := io.ReadAll(answer.Body)
				answer.Body.Close()
				whole := err == nil && (request.Method == http.MethodPut || len(body) == len(content))
				mu.Lock()
				saw[answer.Header.Get("X-Sluice-Request-Id")] = seen{answer.StatusCode, whole}
				mu.Unlock()
			}
		})
	}
	machine.Until(t, "a hundred requests, and one that is held", func() bool { return served.Load() >= 100 && held.Load() == 1 })
	if err := r.proxy.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	began, watch := time.Now(), machine.Watch(t)
	for {
		answer, err := http.Get(r.proxy.AdminURL + "/readyz")
		if err != nil {
			t.Errorf("/readyz: %v", err)
			break
		}
		answer.Body.Close()
		if answer.StatusCode == 503 {
			break
		}
		if time.Since(began) > time.Second+watch.Excuse() {
			t.Fatalf("ready %v after SIGTERM", time.Since(began))
		}
	}
	turned := time.Since(began)
	turn()
	if err := r.proxy.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
	took := time.Since(began)
	stop.Store(true)
	all.Wait()
	events, err := r.proxy.Events()
	if err != nil {
		t.Fatal(err)
	}
	outcomes := map[audit.Outcome]int{}
	for _, e := range events {
		outcomes[e.Outcome]++
		s, ok := saw[e.ID]
		if !ok || !s.whole || s.status != e.Status || e.Outcome != audit.Completed {
			t.Errorf("event %s of %s %s: %s with %d; the client saw %+v (%v)", e.ID, e.Operation, e.Key, e.Outcome, e.Status, s, ok)
		}
		delete(saw, e.ID)
	}
	for id, s := range saw {
		t.Errorf("no event of %s, which was answered %d", id, s.status)
	}
	if out, err := r.proxy.Run(t.Context(), "audit", "verify", r.proxy.AuditFile); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%d requests (%v); not ready after %v, gone after %v; %d never taken", len(events), outcomes, turned.Round(time.Millisecond), took.Round(time.Millisecond), lost.Load())
}

// More at once than limits.max_in_flight are told to come back, at once, and counted; those in flight go on.
func TestMaxInFlight(t *testing.T) {
	release := make(chan struct{})
	var inside atomic.Int64
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		inside.Add(1)
		<-release
	}), map[string]any{"limits.max_in_flight": 8})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			answer, err := http.DefaultClient.Do(r.request(t, "GET", fmt.Sprint(i)))
			if err != nil || answer.StatusCode != 200 {
				t.Errorf("%v, %v", answer, err)
				return
			}
			answer.Body.Close()
		})
	}
	for inside.Load() < 8 {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		watch := machine.Watch(t)
		answer, err := http.DefaultClient.Do(r.request(t, "GET", "more"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != 503 || !strings.Contains(string(body), "<Code>SlowDown</Code>") || answer.Header.Get("Retry-After") == "" {
			t.Errorf("%s, Retry-After %q: %s", answer.Status, answer.Header.Get("Retry-After"), body)
		}
		watch.Within(t, time.Second, "told to come back")
	}
	answer, err := http.Get(r.proxy.AdminURL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	for _, want := range []string{"sluice_requests_crowded_total 3\n", "sluice_requests_in_flight 8\n"} {
		if !strings.Contains(string(metrics), "\n"+want) {
			t.Errorf("no %q in /metrics", want)
		}
	}
	close(release)
	all.Wait()
	refused := 0
	for _, e := range r.events(t, 8+3) {
		if e.Outcome == audit.Refused && e.Error == "SlowDown" {
			refused++
		}
	}
	if refused != 3 {
		t.Errorf("%d events of requests that were refused", refused)
	}
	if answer, err := http.DefaultClient.Do(r.request(t, "GET", "later")); err != nil || answer.StatusCode != 200 {
		t.Errorf("%v, %v", answer, err)
	}
}
