package replicas

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/test/machine"
)

// startHAProxy puts HAProxy before the replicas, as docs/replicas.md has it, and returns its URL.
func (f *fleet) startHAProxy() string {
	f.t.Helper()
	program, err := exec.LookPath("haproxy")
	if err != nil {
		f.t.Skip("SKIPPED: haproxy is not installed (apt-get install haproxy)")
	}
	port := machine.FreePort(f.t)
	config := fmt.Sprintf(`
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout check 2s
  timeout http-request 10s
  option redispatch 1
  retries 3
frontend s3
  bind 127.0.0.1:%d
  default_backend sluice
backend sluice
  balance roundrobin
  option httpchk GET /readyz
  http-check expect status 200
  default-server inter 200ms fall 1 rise 1
`, port)
	for i, p := range f.proxies {
		_, admin, _ := strings.Cut(p.AdminURL, "//127.0.0.1:")
		config += fmt.Sprintf("  server r%d %s check port %s\n", i, strings.TrimPrefix(p.URL, "http://"), admin)
	}
	file := filepath.Join(f.t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		f.t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(program, "-db", "-f", file)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	f.until(machine.Patience, "HAProxy serves", func() bool { status, _ := f.ask("GET", url+"/", nil); return status == 403 })
	return url
}

// witness writes down what clients saw: the id and status of every answer that a replica gave.
type witness struct {
	base http.RoundTripper
	mu   sync.Mutex
	saw  map[string]int
}

func (w *witness) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := w.base.RoundTrip(r)
	if err == nil {
		if id := answer.Header.Get("X-Sluice-Request-Id"); id != "" {
			w.mu.Lock()
			w.saw[id] = answer.StatusCode
			w.mu.Unlock()
		}
	}
	return answer, err
}

// load is workspaces that read and write through the AWS SDK, with retries, and without rest.
type load struct {
	t    *testing.T
	stop atomic.Bool
	done atomic.Int64
	all  sync.WaitGroup
}

func (l *load) run(name string, client *s3.Client) {
	large := make([]byte, 3<<20)
	rand.Read(large)
	small := large[:1000]
	for n := 0; !l.stop.Load(); n++ {
		content := small
		if n%8 == 0 {
			content = large
		}
		key := aws.String(fmt.Sprintf("web/%s-%d", name, n))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if _, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String("artifacts"), Key: key, Body: bytes.NewReader(content)}); err != nil {
			l.t.Errorf("put %s: %v", *key, err)
		}
		// The SDK retries requests, but not bodies that break off: that is its download manager's part, and this one's.
		var got []byte
		var err error
		for range 5 {
			if got, err = read(ctx, client, key); err == nil || ctx.Err() != nil {
				break
			}
		}
		if err != nil || !bytes.Equal(got, content) {
			l.t.Errorf("get %s: %d bytes of %d, %v", *key, len(got), len(content), err)
		}
		cancel()
		l.done.Add(1)
	}
}

func read(ctx context.Context, client *s3.Client, key *string) ([]byte, error) {
	got, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("artifacts"), Key: key})
	if err != nil {
		return nil, err
	}
	defer got.Body.Close()
	return io.ReadAll(got.Body)
}

// Three replicas behind HAProxy and three NATS servers: through a rolling restart, a replica's death, a NATS server's
// death and a backend's outage nothing fails that a client's retries can finish, no event is lost, and nobody who was revoked
// gets in.
func TestThreeReplicas(t *testing.T) {
	f := newFleet(t, 3, 3, map[string]any{"shutdown_timeout": "10s"})
	f.store("web/secret", []byte("x"))
	entry := f.startHAProxy()
	seen := &witness{base: &http.Transport{MaxIdleConnsPerHost: 16}, saw: map[string]int{}}
	watched := func(o *s3.Options) { o.HTTPClient = &http.Client{Transport: seen} } // and the SDK's own three attempts
	patient := func(o *s3.Options) {
		watched(o)
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts = 12
			o.MaxBackoff = 2 * time.Second
		})
	}

	// Who has been revoked, and since when they are refused everywhere.
	var revoked sync.Map
	var attempts atomic.Int64
	intruders := new(load)
	intruders.all.Go(func() {
		client := &http.Client{Transport: seen}
		for ; !intruders.stop.Load(); time.Sleep(10 * time.Millisecond) {
			revoked.Range(func(session, since any) bool {
				began := time.Now()
				answer, err := client.Do(f.bearer("GET", entry, "web/secret", f.workspace(session.(string)), nil, 0))
				if err != nil {
					return true
				}
				io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				attempts.Add(1)
				if answer.StatusCode == 200 && began.After(since.(time.Time)) {
					t.Errorf("%s was let in %v after it was refused everywhere", session, began.Sub(since.(time.Time)))
				}
				return true
			})
		}
	})
	revoke := func(replica int, session string) {
		f.revoke(replica, map[string]any{"session": session})
		// At every replica that runs.
		watch := machine.Watch(t)
		for i, p := range f.proxies {
			f.until(machine.Patience, fmt.Sprintf("%s is refused at replica %d", session, i), func() bool {
				request := f.bearer("GET", p.URL, "web/secret", f.workspace(session), nil, 0)
				answer, err := (&http.Client{Transport: seen}).Do(request)
				if err != nil {
					return false
				}
				io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				return answer.StatusCode == 403
			})
		}
		revoked.Store(session, time.Now())
		watch.Within(t, time.Second, session+" is refused everywhere")
	}
	revoke(0, "gone-1")

	var l *load
	begin := func(name string, options func(*s3.Options)) {
		l = &load{t: t}
		for i := range 4 {
			session := fmt.Sprintf("%s-%d", name, i)
			client := f.client(entry, f.session(entry, f.workspace(session)), options)
			l.all.Go(func() { l.run(session, client) })
		}
	}
	trips := int64(0)
	end := func() {
		l.stop.Store(true)
		l.all.Wait()
		trips += l.done.Load()
	}
	begin("env", watched)
	act := func(what string, do func()) {
		began, before := time.Now(), l.done.Load()
		do()
		f.until(machine.Patience, "the load goes on after "+what, func() bool { return l.done.Load() > before+20 })
		t.Logf("%s: %d round trips in %v", what, l.done.Load()-before, time.Since(began).Round(time.Millisecond))
	}
	act("nothing yet", func() {})
	act("rolling restart", func() {
		for i, p := range f.proxies {
			if err := p.Stop(); err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
			f.start(i)
		}
	})
	f.shared()
	revoke(2, "gone-2")
	act("a replica is killed", func() {
		f.proxies[1].Kill()
		time.Sleep(500 * time.Millisecond)
		f.start(1)
	})
	f.shared()
	revoke(1, "gone-3")
	act("a NATS server dies", f.nats[0].kill)
	revoke(0, "gone-4")
	act("it comes back", f.nats[0].start)
	f.shared()
	revoke(2, "gone-5")
	end()
	begin("patient", patient) // three attempts are over sooner than this
	act("the backend is away for 2 s", func() {
		if err := f.Backends[0].Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if err := f.Backends[0].Start(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
	end()
	intruders.stop.Store(true)
	intruders.all.Wait()

	// Every answer that a client saw has just one event, which says the same of it.
	events := map[string]audit.Event{}
	for i, p := range f.proxies {
		if err := p.Stop(); err != nil {
			t.Errorf("replica %d: %v", i, err)
		}
		of, err := p.Events()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range of {
			if _, twice := events[e.ID]; twice {
				t.Errorf("two events of %s", e.ID)
			}
			events[e.ID] = e
		}
		if out, err := p.Run(t.Context(), "audit", "verify", p.AuditFile); err != nil {
			t.Errorf("replica %d's log: %v\n%s", i, err, out)
		}
	}
	outcomes := map[audit.Outcome]int{}
	for _, e := range events {
		outcomes[e.Outcome]++
		since, gone := revoked.Load(e.Identity.Session)
		if !gone || !e.Time.After(since.(time.Time)) {
			continue
		}
		switch e.Outcome {
		case audit.Refused, audit.Revoked:
		case audit.Interrupted: // the replica was killed between the decision and the answer
			if e.Decision.Allow {
				t.Errorf("a revoked session was let in, and its replica killed: %+v", e)
			}
		default:
			t.Errorf("the event of a revoked session: %+v", e)
		}
	}
	for id, status := range seen.saw {
		e, ok := events[id]
		if !ok {
			t.Errorf("no event of %s, which was answered %d", id, status)
		} else if e.Outcome != audit.Interrupted && e.Status != status {
			t.Errorf("the event of %s says %d, the client saw %d", id, e.Status, status)
		}
	}
	t.Logf("%d round trips, %d answers seen, %d events (%v), %d attempts of revoked sessions", trips, len(seen.saw), len(events), outcomes, attempts.Load())
}
