package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

// collector is the OpenTelemetry collector's own OTLP receiver, and what it handed on.
type collector struct {
	t       *testing.T
	address string

	mu       sync.Mutex // guards what follows
	receiver component.Component
	busy     bool // what is behind the receiver takes nothing
	refused  int  // while busy
	records  []record
}

type record struct {
	uid, body, outcome, severity, service, event string
	trace                                        string
	at                                           time.Time
}

func (c *collector) up() {
	c.t.Helper()
	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig()
	settings := confmap.NewFromStringMap(map[string]any{"protocols": map[string]any{"http": map[string]any{"endpoint": c.address}}})
	if err := settings.Unmarshal(config); err != nil {
		c.t.Fatal(err)
	}
	behind, err := consumer.NewLogs(c.consume)
	if err != nil {
		c.t.Fatal(err)
	}
	receiver, err := factory.CreateLogs(context.Background(), receivertest.NewNopSettings(factory.Type()), config, behind)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := receiver.Start(context.Background(), componenttest.NewNopHost()); err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.receiver = receiver
}

func (c *collector) down() {
	c.mu.Lock()
	receiver := c.receiver
	c.receiver = nil
	c.mu.Unlock()
	if receiver != nil {
		if err := receiver.Shutdown(context.Background()); err != nil {
			c.t.Error(err)
		}
	}
}

func (c *collector) setBusy(busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = busy
}

func (c *collector) consume(_ context.Context, logs plog.Logs) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy {
		c.refused++
		return errors.New("the pipeline is full")
	}
	for _, resource := range logs.ResourceLogs().All() {
		service, _ := resource.Resource().Attributes().Get("service.name")
		for _, scope := range resource.ScopeLogs().All() {
			for _, r := range scope.LogRecords().All() {
				uid, _ := r.Attributes().Get("log.record.uid")
				outcome, _ := r.Attributes().Get("sluice.outcome")
				c.records = append(c.records, record{
					uid: uid.AsString(), body: r.Body().AsString(), outcome: outcome.AsString(), severity: r.SeverityNumber().String(),
					service: service.AsString(), event: r.EventName(), trace: r.TraceID().String(), at: r.Timestamp().AsTime(),
				})
			}
		}
	}
	return nil
}

// first are the records without those that came before: at least once is what is promised.
func (c *collector) first() []record {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := map[string]bool{}
	var first []record
	for _, r := range c.records {
		if !seen[r.uid] {
			seen[r.uid] = true
			first = append(first, r)
		}
	}
	return first
}

// lines are the log's, in their order: its files sort by their names, the one that is written comes last.
func (r *rig) lines() []string {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, "audit-*.jsonl"))
	if err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(files)
	var all []string
	for _, file := range append(files, r.log) {
		raw, err := os.ReadFile(file)
		if err != nil {
			r.t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			all = append(all, strings.TrimSuffix(line, "\n"))
		}
	}
	return all
}

func TestCollectorHasEveryEventOverOutages(t *testing.T) {
	c := &collector{t: t, address: free(t)}
	c.up()
	t.Cleanup(c.down)
	// Many small files: the outage reaches back over rotations, beyond what keep would let stay.
	r := newRig(t, ", max_size: 64KiB, keep: 2, compress: false", "  ship: [{otlp: {endpoint: \"http://"+c.address+"\"}}]")
	r.start()
	sent := 0
	ask := func(n int) (median time.Duration) {
		t.Helper()
		var took []time.Duration
		for i := range n {
			path, want := fmt.Sprintf("/artifacts/web/%d", i), 200
			if i%10 == 9 {
				path, want = "/artifacts/theirs", 403
			}
			status, span := r.get(path)
			if status != want {
				t.Fatalf("%s: %d, want %d", path, status, want)
			}
			took = append(took, span)
		}
		sent += n
		slices.Sort(took)
		return took[n/2]
	}
	has := func(n int) func() bool { return func() bool { return len(c.first()) == n } }
	lag := `sluice_audit_ship_lag{sink="otlp"}`

	up := ask(500)
	eventually(t, "the collector has all", has(sent))
	c.down()
	down := ask(500)
	eventually(t, "the metric tells how many events the collector lacks", func() bool { return r.metric(lag) == "500" }, func() any { return r.metric(lag) })
	t.Logf("median of a request: %s with the collector there, %s without", up, down)
	if down > 3*up+5*time.Millisecond {
		t.Errorf("requests are slower without the collector: %s, with it %s", down, up)
	}
	r.kill() // what is to be sent outlives the process
	r.start()
	ask(200)
	c.up()
	eventually(t, "it has what came in the outage, over a crash", has(sent), func() any { return len(c.first()) })

	c.setBusy(true)
	ask(300)
	eventually(t, "the collector has refused some", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.refused > 0 })
	c.setBusy(false)
	eventually(t, "it has those too", has(sent), func() any { return len(c.first()) })
	eventually(t, "nothing is behind", func() bool { return r.metric(lag) == "0" }, func() any { return r.metric(lag) })

	// Cut in the middle, again and again.
	for range 5 {
		ask(40)
		c.down()
		ask(40)
		c.up()
	}
	eventually(t, "it has all of them", has(sent), func() any { return len(c.first()) })
	r.stop()

	got := c.first()
	for i, r := range got {
		if r.service != "sluice" || r.event != "sluice.audit" || r.at.IsZero() || len(r.uid) != 26 {
			t.Fatalf("record %d: %+v", i, r)
		}
		if want := map[string]string{"completed": "Info", "refused": "Warn"}[r.outcome]; r.severity != want {
			t.Fatalf("record %d is %s and has severity %q", i, r.outcome, r.severity)
		}
		if !strings.Contains(r.body, `"id":"`+r.uid+`"`) || !strings.HasPrefix(r.body, fmt.Sprintf(`{"schema":"sluice.audit/1","seq":%d,`, i+1)) {
			t.Fatalf("record %d is out of order, or not its event: %s", i, r.body)
		}
	}
	// What is still in the log is, byte for byte, what the collector has last.
	lines := r.lines()
	if len(lines) < 50 || len(got) < len(lines) {
		t.Fatalf("%d lines, %d records", len(lines), len(got))
	}
	for i, line := range lines {
		if at := len(got) - len(lines) + i; got[at].body != line {
			t.Fatalf("the collector has\n%s\nthe log\n%s", got[at].body, line)
		}
	}
	t.Logf("%d events, each at the collector in order; %d came twice", len(got), len(c.records)-len(got))
}
