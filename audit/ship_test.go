package audit_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/audit/ship"
	"github.com/sluice-s3/sluice/test/machine"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"
)

// farEnd is a real system that events are shipped to.
type farEnd struct {
	config ship.Config
	down   func()        // until up
	up     func()        //
	bodies func() []body // what it has, in its order
}

type body struct{ id, text string }

func farEnds(t *testing.T) map[string]func(t *testing.T) *farEnd {
	return map[string]func(t *testing.T) *farEnd{"otlp": otlpCollector, "nats": natsServer, "nats-plain": plainStream, "kafka": kafkaCluster, "webhook": httpServer}
}

// restartable is an HTTP server that can go away and come back under its address.
type restartable struct {
	t       *testing.T
	address string
	handler http.Handler
	server  *http.Server
}

func (r *restartable) up() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.server = &http.Server{Handler: r.handler}
	go r.server.Serve(l)
}

func (r *restartable) down() { r.server.Close() }

func startHTTP(t *testing.T, h http.HandlerFunc) *restartable {
	r := &restartable{t: t, address: fmt.Sprintf("127.0.0.1:%d", machine.FreePort(t)), handler: h}
	r.up()
	t.Cleanup(func() { r.server.Close() })
	return r
}

func readBody(t *testing.T, r *http.Request) []byte {
	var in io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(in)
		if err != nil {
			t.Error(err)
			return nil
		}
		in = z
	}
	raw, err := io.ReadAll(in)
	if err != nil {
		return nil // the connection was cut, as the test does
	}
	return raw
}

func otlpCollector(t *testing.T) *farEnd {
	var mu sync.Mutex
	var got []body
	s := startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		var req collector.ExportLogsServiceRequest
		raw := readBody(t, r)
		if err := proto.Unmarshal(raw, &req); err != nil || r.URL.Path != "/v1/logs" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %v: %v", r.URL, r.Header, err)
			w.WriteHeader(400)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rl := range req.ResourceLogs {
			for _, sl := range rl.ScopeLogs {
				for _, rec := range sl.LogRecords {
					id := ""
					for _, a := range rec.Attributes {
						if a.Key == "log.record.uid" {
							id = a.Value.GetStringValue()
						}
					}
					if rec.TimeUnixNano == 0 || rec.SeverityNumber == 0 {
						t.Errorf("no time or severity: %v", rec)
					}
					got = append(got, body{id, rec.Body.GetStringValue()})
				}
			}
		}
		raw, _ = proto.Marshal(&collector.ExportLogsServiceResponse{})
		w.Header().Set("Content-Type", "application/x-protobuf")
		w.Write(raw)
	})
	return &farEnd{config: ship.Config{OTLP: &ship.OTLP{Endpoint: "http://" + s.address}}, down: s.down, up: s.up,
		bodies: func() []body { mu.Lock(); defer mu.Unlock(); return slices.Clone(got) }}
}

func httpServer(t *testing.T) *farEnd {
	var mu sync.Mutex
	var got []body
	n := 0
	s := startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		raw := readBody(t, r)
		mu.Lock()
		defer mu.Unlock()
		if n++; n%5 == 3 {
			w.WriteHeader(503) // busy now and then
			return
		}
		switch r.Header.Get("Content-Type") {
		case "application/x-ndjson":
			for line := range strings.Lines(string(raw)) {
				var ev audit.Event
				if err := json.Unmarshal([]byte(line), &ev); err != nil {
					t.Error(err)
				}
				got = append(got, body{ev.ID, strings.TrimSuffix(line, "\n")})
			}
		case "application/cloudevents-batch+json", "application/json":
			var list []json.RawMessage
			if err := json.Unmarshal(raw, &list); err != nil {
				t.Error(err)
			}
			for _, item := range list {
				var ids struct {
					ID       string
					Metadata struct{ UID string }
				}
				json.Unmarshal(item, &ids)
				got = append(got, body{ids.ID + ids.Metadata.UID, string(item)})
			}
		default:
			t.Errorf("%v", r.Header)
		}
		if n%7 == 4 {
			w.WriteHeader(500) // had them, but does not say so: they come again
		}
	})
	return &farEnd{config: ship.Config{Webhook: &ship.Webhook{URL: "http://" + s.address + "/events"}}, down: s.down, up: s.up,
		bodies: func() []body { mu.Lock(); defer mu.Unlock(); return slices.Clone(got) }}
}

func natsServer(t *testing.T) *farEnd  { return natsEnd(t, false) }
func plainStream(t *testing.T) *farEnd { return natsEnd(t, true) }

// natsEnd is a NATS server with JetStream; with plain, its stream was made without atomic batches.
func natsEnd(t *testing.T, plain bool) *farEnd {
	dir := t.TempDir()
	var s *server.Server
	port := machine.FreePort(t)
	up := func() {
		t.Helper()
		var err error
		s, err = server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true})
		if err != nil {
			t.Fatal(err)
		}
		go s.Start()
		if !s.ReadyForConnections(machine.Patience) {
			t.Fatal("the NATS server does not start")
		}
	}
	down := func() { s.Shutdown(); s.WaitForShutdown() }
	up()
	t.Cleanup(func() { down() })
	connect := func() (jetstream.JetStream, func()) {
		nc, err := nats.Connect(s.ClientURL(), nats.Timeout(machine.Patience))
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(machine.Patience))
		if err != nil {
			t.Fatal(err)
		}
		return js, nc.Close
	}
	if plain {
		js, done := connect()
		if _, err := js.CreateStream(context.Background(), jetstream.StreamConfig{Name: "AUDIT", Subjects: []string{"sluice.>"}}); err != nil {
			t.Fatal(err)
		}
		done()
	}
	return &farEnd{
		config: ship.Config{NATS: &ship.NATS{URL: s.ClientURL(), Stream: "AUDIT"}}, down: down, up: up,
		bodies: func() (got []body) {
			js, done := connect()
			defer done()
			stream, err := js.Stream(context.Background(), "AUDIT")
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				return nil
			}
			if err != nil {
				t.Fatal(err)
			}
			info, err := stream.Info(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if plain == info.Config.AllowAtomicPublish {
				t.Errorf("atomic batches: %v", info.Config.AllowAtomicPublish)
			}
			for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
				m, err := stream.GetMsg(context.Background(), seq)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, body{m.Header.Get("Nats-Msg-Id"), string(m.Data)})
			}
			return got
		},
	}
}

func kafkaCluster(t *testing.T) *farEnd {
	dir := t.TempDir()
	port := machine.FreePort(t)
	var c *kfake.Cluster
	up := func() {
		t.Helper()
		var err error
		if c, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(port), kfake.DataDir(dir), kfake.SyncWrites(), kfake.SeedTopics(3, "audit")); err != nil {
			t.Fatal(err)
		}
	}
	up()
	t.Cleanup(func() { c.Close() })
	broker := fmt.Sprintf("127.0.0.1:%d", port)
	return &farEnd{
		config: ship.Config{Kafka: &ship.Kafka{Brokers: []string{broker}, Topic: "audit"}}, down: func() { c.Close() }, up: up,
		bodies: func() (got []body) {
			client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics("audit"))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			left := int64(0)
			for _, p := range c.PartitionInfos("audit") {
				left += p.HighWatermark - p.LogStartOffset
			}
			partitions := map[int32]bool{}
			for int64(len(got)) < left {
				client.PollFetches(t.Context()).EachRecord(func(r *kgo.Record) {
					partitions[r.Partition] = true
					got = append(got, body{string(r.Headers[0].Value), string(r.Value)})
				})
			}
			if len(partitions) > 1 {
				t.Errorf("the log is in %d partitions: it has no order", len(partitions))
			}
			return got
		},
	}
}

// shipped waits until the far end has everything.
func shipped(log *audit.Log) func() bool {
	return func() bool {
		s := log.Stats()
		return s.Queued == 0 && len(s.Ship) == 1 && s.Ship[0].Lag == 0
	}
}

// loggedLines are the lines of a log by the ids of their events, and the ids in order.
func loggedLines(t *testing.T, path string) (lines map[string]string, order []string) {
	t.Helper()
	lines = map[string]string{}
	var out bytes.Buffer
	if err := audit.Query(context.Background(), []string{path}, &out, audit.QueryOptions{Format: "json"}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		var ev audit.Event
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatal(err)
		}
		lines[ev.ID] = strings.TrimSuffix(line, "\n")
		order = append(order, ev.ID)
	}
	return lines, order
}

// TestShippedAtLeastOnceInOrderOverOutages takes each far end away while events are written and files rotated,
// ends the proxy meanwhile, and brings both back.
func TestShippedAtLeastOnceInOrderOverOutages(t *testing.T) {
	for name, start := range farEnds(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait for each other's timeouts
			end := start(t)
			c := audit.Config{Ship: []audit.Ship{end.config}, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxSize: 64 << 10, Keep: 2}}
			log, path := open(t, c)
			record(t, log, 300)
			eventually(t, "the far end has all", shipped(log))

			end.down()
			record(t, log, 700)
			eventually(t, "the log has all", healthy(log))
			if s := log.Stats(); s.Ship[0].Lag < 100 || s.Refused > 0 {
				t.Errorf("lag %d, %d refused", s.Ship[0].Lag, s.Refused)
			}
			ctx, cancel := context.WithTimeout(context.Background(), machine.Patience)
			if err := log.Close(ctx); err != nil {
				t.Error(err)
			}
			cancel()
			log, _ = open(t, c)
			record(t, log, 300)
			eventually(t, "files stay that the far end has not had", func() bool { return log.Stats().Files.Held > 0 })
			eventually(t, "it says why", func() bool { return log.Stats().Ship[0].Err != nil })
			end.up()
			eventually(t, "the far end has all", shipped(log))
			record(t, log, 100)
			eventually(t, "the far end has all", shipped(log))
			before := log.Stats()
			closeLog(t, log)
			if s := before.Ship[0]; s.Err != nil || s.Lost != 0 || s.Skipped != 0 {
				t.Errorf("%+v", s)
			}

			lines, order := loggedLines(t, path)
			if len(order) != 1400 {
				// keep: 2 may have removed what is shipped by now; nothing else may be missing
				t.Logf("%d events are left in the log", len(order))
			}
			seen := map[string]bool{}
			var firsts []string
			for _, b := range end.bodies() {
				if want, ok := lines[b.id]; ok && b.text != want {
					t.Fatalf("it has\n%s\nand the log\n%s", b.text, want)
				}
				if !seen[b.id] {
					seen[b.id] = true
					firsts = append(firsts, b.id)
				}
			}
			if len(firsts) != 1400 {
				t.Errorf("the far end has %d different events, want 1400", len(firsts))
			}
			if i := slices.Index(firsts, order[0]); i < 0 || !slices.Equal(firsts[i:], order) {
				t.Error("the order is another")
			}
		})
	}
}

// TestAnHourWithoutTheFarEnd lives through the hour in seconds: the clock is synctest's.
func TestAnHourWithoutTheFarEnd(t *testing.T) {
	const minutes, perMinute = 60, 200
	var mu sync.Mutex
	var got []string
	there := false
	far := startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.Header().Set("Connection", "close") // the clock stands while somebody reads from the network
		if !there {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		for line := range strings.Lines(string(readBody(t, r))) {
			var ev audit.Event
			if err := json.Unmarshal([]byte(line), &ev); err != nil {
				t.Error(err)
			}
			got = append(got, ev.ID)
		}
	})
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log, _ := open(t, audit.Config{
			File: &audit.File{Path: filepath.Join(dir, "audit.jsonl"), MaxSize: 128 << 10, Keep: 1},
			Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: "http://" + far.address}}},
		})
		var want []string
		for range minutes {
			for range perMinute {
				began := time.Now()
				r := begin(t, log)
				r.Event.Outcome = audit.Completed
				if err := r.Journal(); err != nil {
					t.Fatal(err)
				}
				r.Commit()
				want = append(want, r.Event.ID)
				if took := time.Since(began); took > 0 {
					t.Fatalf("a request waited for %s", took)
				}
			}
			time.Sleep(time.Minute)
		}
		s := log.Stats()
		if end := s.Ship[0]; end.Lag != minutes*perMinute || end.Behind < 59*time.Minute || end.Err == nil || end.Failures < 60 || end.Failures > 200 {
			t.Errorf("after an hour without the far end: %+v", end)
		}
		if s.Refused+s.Dropped > 0 || s.Files.Held < 10 {
			t.Errorf("after an hour without the far end: %+v", s)
		}
		mu.Lock()
		there = true
		mu.Unlock()
		back := time.Now()
		for log.Stats().Ship[0].Lag > 0 && time.Since(back) < time.Hour {
			time.Sleep(time.Second)
		}
		t.Logf("%d tries in the hour; it had all of %d events %s after it was back", s.Ship[0].Failures, len(want), time.Since(back))
		if took := time.Since(back); took > time.Minute {
			t.Errorf("the far end is there again, and has all after %s", took)
		}
		time.Sleep(time.Minute)
		if f := log.Stats().Files; f.Held != 0 || f.Rotated != 1 || f.Lost != 0 {
			t.Errorf("once the far end has all: %+v", f)
		}
		closeLog(t, log)
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(got, want) {
			t.Errorf("the far end has %d events of %d, or in another order", len(got), len(want))
		}
	})
}

func TestFormatsAreShipped(t *testing.T) {
	for _, format := range []string{ship.OCSF, ship.CloudEvents} {
		for name, start := range map[string]func(t *testing.T) *farEnd{"webhook": httpServer, "otlp": otlpCollector} {
			t.Run(format+" "+name, func(t *testing.T) {
				end := start(t)
				end.config.Format = format
				log, path := open(t, audit.Config{Ship: []audit.Ship{end.config}})
				record(t, log, 20)
				eventually(t, "the far end has all", shipped(log))
				closeLog(t, log)
				lines, _ := loggedLines(t, path)
				n := 0
				for _, b := range end.bodies() {
					var got struct {
						Data     json.RawMessage
						ClassUID int `json:"class_uid"`
					}
					if err := json.Unmarshal([]byte(b.text), &got); err != nil {
						t.Fatal(err)
					}
					if lines[b.id] == "" || format == ship.OCSF && got.ClassUID != 6003 || format == ship.CloudEvents && string(got.Data) != lines[b.id] {
						t.Errorf("%s", b.text)
					}
					n++
				}
				if n < 20 {
					t.Errorf("%d events", n)
				}
			})
		}
	}
}

func TestTooLargeForTheFarEnd(t *testing.T) {
	var mu sync.Mutex
	got := map[string]int{} // accesses by id
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw := readBody(t, r)
		if len(raw) > 20<<10 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for line := range strings.Lines(string(raw)) {
			var ev audit.Event
			json.Unmarshal([]byte(line), &ev)
			got[ev.ID] = len(ev.Accesses)
			if len(ev.Accesses) == 50 && !strings.Contains(ev.Error, "950 of 1000 accesses are left out") {
				t.Errorf("it does not say what is left out: %q", ev.Error)
			}
		}
	}))
	defer s.Close()
	log, _ := open(t, audit.Config{Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: s.URL}}}})
	record(t, log, 100)
	r := begin(t, log)
	for i := range 1000 {
		r.Event.Accesses = append(r.Event.Accesses, audit.Access{Action: "s3:DeleteObject", Bucket: "b", Key: fmt.Sprint("some/key/", i)})
	}
	r.Commit()
	hopeless := begin(t, log)
	for range 50 {
		hopeless.Event.Accesses = append(hopeless.Event.Accesses, audit.Access{Action: "s3:DeleteObject", Bucket: "b", Key: strings.Repeat("k", 1000)})
	}
	hopeless.Commit()
	record(t, log, 100)
	eventually(t, "the far end has all it takes", shipped(log))
	stats := log.Stats().Ship[0]
	closeLog(t, log)
	if len(got) != 201 || got[r.Event.ID] != 50 || stats.Skipped != 1 {
		t.Errorf("%d events, %d accesses, %+v", len(got), got[r.Event.ID], stats)
	}
}

// refusing is a webhook that answers 400 to what it is told to, and keeps the ids of the rest.
type refusing struct {
	*restartable
	mu  sync.Mutex
	bad func(line string) bool
	ids []string
}

func startRefusing(t *testing.T, bad func(line string) bool) *refusing {
	r := &refusing{bad: bad}
	r.restartable = startHTTP(t, func(w http.ResponseWriter, q *http.Request) {
		raw := string(readBody(t, q))
		r.mu.Lock()
		defer r.mu.Unlock()
		for line := range strings.Lines(raw) {
			if r.bad(line) {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
		}
		for line := range strings.Lines(raw) {
			var ev audit.Event
			json.Unmarshal([]byte(line), &ev)
			r.ids = append(r.ids, ev.ID)
		}
	})
	return r
}

func (r *refusing) only(bad func(line string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad = bad
}

// got is the ids of what it has, in its order.
func (r *refusing) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ids)
}

func poison(t *testing.T, log *audit.Log) {
	r := begin(t, log)
	r.Event.Bucket = "poison"
	r.Commit()
}

func isPoison(line string) bool { return strings.Contains(line, `"poison"`) }

// TestRefusedEventsHoldNothingUp: they are given up, aloud, once it is seen that the far end takes others.
func TestRefusedEventsHoldNothingUp(t *testing.T) {
	far := startRefusing(t, isPoison)
	log, path := open(t, audit.Config{Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: "http://" + far.address}}}})
	record(t, log, 37)
	for range 20 {
		poison(t, log)
	}
	record(t, log, 5)
	poison(t, log)
	record(t, log, 40)
	poison(t, log) // with nothing after it to hold it against
	eventually(t, "only the last is left", func() bool { s := log.Stats(); return s.Written == 104 && s.Ship[0].Lag == 1 && s.Ship[0].Err != nil })
	if s := log.Stats().Ship[0]; s.Skipped != 21 || s.Behind == 0 {
		t.Errorf("%+v", s)
	}
	record(t, log, 1)
	eventually(t, "the far end has all it takes", shipped(log))
	stats := log.Stats().Ship[0]
	closeLog(t, log)
	var want []string
	for ev, err := range audit.Read(path) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Bucket != "poison" {
			want = append(want, ev.ID)
		}
	}
	if got := far.got(); !slices.Equal(got, want) || len(want) != 83 || stats.Skipped != 22 || stats.Shipped != 83 || stats.Err != nil {
		t.Errorf("the far end has %d events, want %d: %+v", len(got), len(want), stats)
	}
}

// TestAFarEndThatRefusesAllLosesNone: an answer of 400 to everything is about how it is set up. Nothing is given up.
func TestAFarEndThatRefusesAllLosesNone(t *testing.T) {
	for name, events := range map[string]int{"a few": 3, "more than are held against what follows": 700} {
		t.Run(name, func(t *testing.T) {
			far := startRefusing(t, func(string) bool { return true })
			log, path := open(t, audit.Config{Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: "http://" + far.address}}}})
			record(t, log, events)
			eventually(t, "it has refused", func() bool { return log.Stats().Ship[0].Failures > uint64(events)/5 })
			if s := log.Stats().Ship[0]; s.Skipped != 0 || s.LastSeq != 0 || s.Err == nil || s.Behind == 0 {
				t.Errorf("%+v", s)
			}
			far.down()
			far.only(func(string) bool { return false })
			far.up()
			eventually(t, "it takes all", shipped(log))
			stats := log.Stats().Ship[0]
			closeLog(t, log)
			_, order := loggedLines(t, path)
			got := far.got()
			slices.Sort(got) // mended while some were held against others, it has those late
			slices.Sort(order)
			if !slices.Equal(slices.Compact(got), order) || len(order) != events || stats.Skipped != 0 {
				t.Errorf("the far end has %d events of %d: %+v", len(got), len(order), stats)
			}
		})
	}
}

// TestPartialSuccessIsNotSentAgain: what a collector rejects so is gone, and counted; OTLP forbids to send it again.
func TestPartialSuccessIsNotSentAgain(t *testing.T) {
	var mu sync.Mutex
	requests, records, rejected := 0, 0, 0
	far := startHTTP(t, func(w http.ResponseWriter, q *http.Request) {
		var request collector.ExportLogsServiceRequest
		if err := proto.Unmarshal(readBody(t, q), &request); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		requests++
		n := len(request.ResourceLogs[0].ScopeLogs[0].LogRecords)
		records += n
		partial := &collector.ExportLogsPartialSuccess{ErrorMessage: "slow down a little"} // a warning
		if requests > 1 {
			partial = &collector.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: fmt.Sprint("too old: ", requests)}
			rejected++
		}
		answer, _ := proto.Marshal(&collector.ExportLogsServiceResponse{PartialSuccess: partial})
		w.Write(answer)
	})
	var told lockedBuffer
	log, _ := open(t, audit.Config{
		Logger: slog.New(slog.NewTextHandler(&told, nil)),
		Ship:   []audit.Ship{{OTLP: &ship.OTLP{Endpoint: "http://" + far.address}}},
	})
	for range 40 {
		record(t, log, 1)
		eventually(t, "the far end has it", shipped(log))
	}
	stats := log.Stats().Ship[0]
	closeLog(t, log)
	mu.Lock()
	defer mu.Unlock()
	if records != 40 || rejected != 39 || stats.Shipped != 1 || stats.Skipped != 39 || stats.Failures != 0 || stats.Err != nil {
		t.Errorf("%d records in %d requests, %d rejected: %+v", records, requests, rejected, stats)
	}
	text := told.String()
	if n := strings.Count(text, "has rejected events"); n < 1 || n > 20 || !strings.Contains(text, "too old: 2") || strings.Count(text, "slow down") != 1 {
		t.Errorf("told %d times:\n%s", n, text)
	}
}

func TestShipContinueLetsOldFilesGo(t *testing.T) {
	log, path := open(t, audit.Config{OnFailure: "continue", File: &audit.File{MaxSize: 8 << 10, Keep: 2},
		Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: "http://127.0.0.1:1"}}}})
	record(t, log, 300)
	eventually(t, "old files are removed", func() bool {
		s := log.Stats()
		rotated, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*.zst"))
		return s.Queued == 0 && s.Files.Lost > 0 && len(rotated) == 2
	})
}

func TestShipCursorOfAnotherLog(t *testing.T) {
	end := httpServer(t)
	c := audit.Config{Ship: []audit.Ship{end.config}, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl")}}
	log, path := open(t, c)
	record(t, log, 50)
	eventually(t, "the far end has all", shipped(log))
	closeLog(t, log)
	os.Remove(path) // and with it the chain
	log, _ = open(t, c)
	record(t, log, 80)
	eventually(t, "the far end has all", shipped(log))
	closeLog(t, log)
	ids := map[string]bool{}
	for _, b := range end.bodies() {
		ids[b.id] = true
	}
	if len(ids) != 130 {
		t.Errorf("%d different events, want 130", len(ids))
	}
}

// TestShippedOverMovesByHand: logrotate's way. What is still written to the file that was moved away is not missed, nor is
// what follows sent before it.
func TestShippedOverMovesByHand(t *testing.T) {
	far := startRefusing(t, func(string) bool { return false })
	log, path := open(t, audit.Config{InFlight: 64, Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: "http://" + far.address}}}})
	var out lockedBuffer
	ctx, cancel := context.WithCancel(t.Context())
	tailing := make(chan error)
	go func() {
		tailing <- audit.Tail(ctx, path, &out, audit.TailOptions{Last: 1, Follow: true, Poll: 50 * time.Microsecond})
	}()
	first := begin(t, log)
	first.Commit()
	eventually(t, "tail follows", func() bool { return strings.Count(out.String(), "\n") == 1 })
	stop := serve(t, log)
	paths := []string{path}
	for i := range 30 {
		written := log.Stats().Written
		eventually(t, "events are written", func() bool { return log.Stats().Written > written+20 })
		moved := fmt.Sprintf("%s.%d", path, i+1)
		if err := os.Rename(path, moved); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		} else if err == nil {
			paths = append(paths, moved)
		}
	}
	served, _ := stop()
	served = append(served, first.Event.ID)
	eventually(t, "all is written, and the far end has it", func() bool { return log.Stats().Queued == 0 && shipped(log)() })
	stats := log.Stats().Ship[0]
	closeLog(t, log)
	mustHoldExactly(t, served, paths...)
	if stats.Lost != 0 || len(far.got()) != len(served) {
		t.Errorf("%d events sent of %d: %+v", len(far.got()), len(served), stats)
	}
	eventually(t, "tail has the last", func() bool { return strings.Count(out.String(), "\n") >= len(served) })
	cancel()
	if err := <-tailing; err != nil || strings.Contains(out.String(), "missing") {
		t.Errorf("tail: %v\n%s", err, grepMissing(out.String()))
	}
}

// TestShippedOverAMoveAndARestart: a far end that was away has what was moved away meanwhile, too.
func TestShippedOverAMoveAndARestart(t *testing.T) {
	far := startRefusing(t, func(string) bool { return false })
	c := audit.Config{File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl")}, Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: "http://" + far.address}}}}
	log, path := open(t, c)
	record(t, log, 10)
	eventually(t, "the far end has them", shipped(log))
	far.down()
	record(t, log, 10)
	eventually(t, "they are written", healthy(log))
	if err := os.Rename(path, filepath.Join(filepath.Dir(path), "x")); err != nil {
		t.Fatal(err)
	}
	if err := log.Reopen(); err != nil {
		t.Fatal(err)
	}
	record(t, log, 10)
	closeLog(t, log)
	far.up()
	log, _ = open(t, c)
	eventually(t, "the far end has all", shipped(log))
	if s := log.Stats().Ship[0]; s.Lost != 0 || len(far.got()) != 30 || s.Shipped != 20 {
		t.Errorf("%d events: %+v", len(far.got()), s)
	}
	closeLog(t, log)
}

func grepMissing(text string) (missing string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, "missing") {
			missing += line
		}
	}
	return missing
}
