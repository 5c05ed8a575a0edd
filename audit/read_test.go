package audit_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
)

// lockedBuffer is a writer that may be looked at meanwhile.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestTailFollowsOverRotation(t *testing.T) {
	log, path := open(t, audit.Config{File: &audit.File{MaxSize: 8 << 10, Keep: 10000}})
	record(t, log, 20)
	eventually(t, "all is written", healthy(log))
	ctx, cancel := context.WithCancel(context.Background())
	var out lockedBuffer
	done := make(chan error)
	go func() {
		done <- audit.Tail(ctx, path, &out, audit.TailOptions{Last: 5, Follow: true, Poll: time.Millisecond})
	}()
	eventually(t, "it has begun", func() bool { return strings.Count(out.String(), "\n") == 5 })
	const n = 1500
	for i := range n {
		r := begin(t, log)
		r.Event.Bucket, r.Event.Key, r.Event.Outcome = "b", fmt.Sprintf("new-%d", i), audit.Completed
		r.Commit()
		if i%10 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	eventually(t, "all is shown", func() bool { return strings.Count(out.String(), "\n") >= n+5 })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, line := range lines {
		want := fmt.Sprintf("  b/new-%d  ", i-5)
		if i < 5 {
			want = fmt.Sprintf("  artifacts/key-%d  ", 15+i)
		}
		if !strings.Contains(line, want) {
			t.Fatalf("line %d is %q, want %q in it", i, line, want)
		}
	}
	if len(lines) != n+5 {
		t.Errorf("%d lines, want %d", len(lines), n+5)
	}
}

// sample writes a few events that differ.
func sample(t testing.TB) string {
	log, path := open(t, audit.Config{File: &audit.File{MaxSize: 4 << 10, Keep: 100}, Redact: audit.Redact{Keys: []string{"vault/*"}}})
	add := func(edit func(*audit.Event)) {
		r, err := log.Begin(time.Date(2026, 11, 23, 0, len(path), 0, 0, time.UTC))
		if err != nil {
			t.Fatal(err)
		}
		ev := &r.Event
		ev.DurationMS = 12.34
		ev.Identity = audit.Identity{Issuer: "https://i", Subject: "sub-1", Session: "env-1", Attributes: audit.Attributes{User: "ann@acme.com"}}
		ev.Operation, ev.Bucket, ev.Key = "GetObject", "artifacts", "web/a.txt"
		ev.Decision.Allow, ev.Status, ev.Outcome, ev.BytesOut = true, 200, audit.Completed, 1024
		ev.Accesses = []audit.Access{{Action: "s3:GetObject", Bucket: ev.Bucket, Key: ev.Key, Allow: true}}
		edit(ev)
		r.Commit()
	}
	add(func(ev *audit.Event) { ev.Time = time.Date(2026, 11, 22, 23, 0, 0, 0, time.UTC) })
	add(func(ev *audit.Event) {
		ev.Identity.Subject, ev.Identity.Session, ev.Identity.Attributes.User = "sub-2", "env-2", ""
		ev.Decision.Allow, ev.Decision.Reasons = false, []string{"no grant for \x1b[31mweb"}
		ev.Accesses[0].Allow, ev.Status, ev.Outcome, ev.BytesOut = false, 403, audit.Refused, 0
	})
	add(func(ev *audit.Event) {
		ev.Operation, ev.Key = "DeleteObjects", ""
		ev.Accesses = []audit.Access{{Action: "s3:DeleteObject", Bucket: "artifacts", Key: "web/x", Allow: true}, {Action: "s3:DeleteObject", Bucket: "artifacts", Key: "api/y"}, {Action: "s3:DeleteObject", Bucket: "artifacts", Key: "web/z", Allow: true}}
	})
	add(func(ev *audit.Event) {
		ev.Operation, ev.Bucket, ev.Key = "CopyObject", "vault", "=secret"
		ev.Accesses = []audit.Access{{Action: "s3:GetObject", Bucket: "artifacts", Key: "web/a.txt", Allow: true}, {Action: "s3:PutObject", Bucket: "vault", Key: "=secret", Allow: true}}
		ev.Decision.Shadow = json.RawMessage(`{"allow":false,"differs":true,"reasons":["vault is closed"]}`)
	})
	add(func(ev *audit.Event) {
		ev.Key, ev.Outcome, ev.Status, ev.Error = "=cmd()", audit.Aborted, 0, "the client went away"
	})
	closeLog(t, log)
	return path
}

func TestTailIsForPeople(t *testing.T) {
	path := sample(t)
	var out bytes.Buffer
	if err := audit.Tail(context.Background(), path, &out, audit.TailOptions{Last: 10}); err != nil {
		t.Fatal(err)
	}
	day := "2026-11-23 0"
	for i, want := range []string{
		"2026-11-22 23:00:00.000  ann@acme.com (env-1)  GetObject  artifacts/web/a.txt  allow  200  1.0 KiB  12.3ms",
		`  sub-2 (env-2)  GetObject  artifacts/web/a.txt  DENY  403  0 B  12.3ms  no grant for \u001b[31mweb`,
		"  ann@acme.com (env-1)  DeleteObjects  artifacts (3 accesses)  PART  200  1.0 KiB  12.3ms",
		"  ann@acme.com (env-1)  CopyObject  vault/" + audit.HashKey("=secret") + " < artifacts/web/a.txt  allow  200  1.0 KiB  12.3ms",
		"    shadow policy would refuse: vault is closed",
		"  ann@acme.com (env-1)  GetObject  artifacts/=cmd()  allow  -  1.0 KiB  12.3ms  aborted  the client went away",
	} {
		got := strings.Split(out.String(), "\n")[i]
		if i > 0 {
			got = strings.TrimPrefix(got, day+got[min(len(day), len(got)):min(len(day)+11, len(got))])
		}
		if got != want {
			t.Errorf("line %d:\n got %q\nwant %q", i+1, got, want)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("a client commands the terminal")
	}
	out.Reset()
	if err := audit.Tail(context.Background(), path, &out, audit.TailOptions{Last: 10, Color: true, Filter: audit.Filter{Refused: true}}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 2 || !strings.Contains(out.String(), "\x1b[31mDENY\x1b[0m") {
		t.Errorf("refused, in colour:\n%s", out.String())
	}
}

// TestTailDecides: PART is said of what was done in part, and of nothing that was not done at all.
func TestTailDecides(t *testing.T) {
	yes, no := audit.Access{Action: "s3:PutObject", Allow: true}, audit.Access{Action: "s3:PutObjectAcl"}
	for _, tc := range []struct {
		what     string
		accesses []audit.Access
		outcome  audit.Outcome
		shadow   string
		want     string
	}{
		{"allowed", []audit.Access{yes}, audit.Completed, "", "allow"},
		{"too large, or over another limit", []audit.Access{yes}, audit.Refused, "", "DENY"},
		{"refused for one access", []audit.Access{yes, no}, audit.Refused, "", "DENY"},
		{"refused, and the client was gone", []audit.Access{no}, audit.Aborted, "", "DENY"},
		{"done in part", []audit.Access{yes, no}, audit.Completed, "", "PART"},
		{"policy was not asked", nil, audit.Failed, "", "-"},
		{"bad credentials", nil, audit.Refused, "", "DENY"},
		{"another part", []audit.Access{yes, no}, audit.Completed, `{"allow":false,"differs":true,"reasons":["not these"]}`, "PART"},
	} {
		log, path := open(t, audit.Config{File: &audit.File{}})
		r, err := log.Begin(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		ev := &r.Event
		ev.Operation, ev.Bucket, ev.Accesses, ev.Outcome = "PutObject", "b", tc.accesses, tc.outcome
		ev.Decision.Allow = len(tc.accesses) > 0 && !slices.Contains(tc.accesses, no)
		if tc.shadow != "" {
			ev.Decision.Shadow = json.RawMessage(tc.shadow)
		}
		r.Commit()
		closeLog(t, log)
		var out bytes.Buffer
		if err := audit.Tail(context.Background(), path, &out, audit.TailOptions{Last: 1}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "  "+tc.want+"  ") || tc.shadow != "" && !strings.Contains(out.String(), "shadow policy would do another part of it, or on other terms: not these\n") {
			t.Errorf("%s: want %s in\n%s", tc.what, tc.want, out.String())
		}
	}
}

func TestQuery(t *testing.T) {
	path := sample(t)
	for name, tc := range map[string]struct {
		o    audit.QueryOptions
		want string
	}{
		"who":                    {audit.QueryOptions{Filter: audit.Filter{Who: "env-2"}, Columns: []string{"operation", "who"}}, "operation,who\nGetObject,sub-2\n"},
		"who by pattern":         {audit.QueryOptions{Filter: audit.Filter{Who: "*@acme.com"}, GroupBy: []string{"who"}}, "who,events,bytes\nann@acme.com,4,4096\n"},
		"bucket of a source":     {audit.QueryOptions{Filter: audit.Filter{Bucket: "artifacts", Operation: "CopyObject"}, Columns: []string{"bucket"}}, "bucket\nvault\n"},
		"a key in DeleteObjects": {audit.QueryOptions{Filter: audit.Filter{KeyPrefix: "api/"}, Columns: []string{"operation"}}, "operation\nDeleteObjects\n"},
		"a redacted key":         {audit.QueryOptions{Filter: audit.Filter{Bucket: "vault", KeyPrefix: "=secret"}, Columns: []string{"operation"}}, "operation\nCopyObject\n"},
		"refused":                {audit.QueryOptions{Filter: audit.Filter{Refused: true}, Columns: []string{"operation", "status"}}, "operation,status\nGetObject,403\nDeleteObjects,200\n"},
		"outcomes":               {audit.QueryOptions{Filter: audit.Filter{Outcomes: []audit.Outcome{audit.Aborted, audit.Failed}}, Columns: []string{"outcome"}}, "outcome\naborted\n"},
		"since":                  {audit.QueryOptions{Filter: audit.Filter{Since: time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)}, GroupBy: []string{"day"}}, "day,events,bytes\n2026-11-23,4,3072\n"},
		"until":                  {audit.QueryOptions{Filter: audit.Filter{Until: time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)}, GroupBy: []string{"day"}}, "day,events,bytes\n2026-11-22,1,1024\n"},
		"shadow":                 {audit.QueryOptions{Filter: audit.Filter{ShadowDiffers: true}, Columns: []string{"operation"}}, "operation\nCopyObject\n"},
		"limit":                  {audit.QueryOptions{Limit: 2, Columns: []string{"operation"}}, "operation\nGetObject\nGetObject\n"},
		"groups in order":        {audit.QueryOptions{GroupBy: []string{"operation", "decision"}, Limit: 2}, "operation,decision,events,bytes\nGetObject,allow,2,2048\nCopyObject,allow,1,1024\n"},
		"a formula":              {audit.QueryOptions{Filter: audit.Filter{KeyPrefix: "=cmd"}, Columns: []string{"key"}}, "key\n'=cmd()\n"},
		"nothing":                {audit.QueryOptions{Filter: audit.Filter{Who: "nobody"}, Columns: []string{"key"}}, "key\n"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.o.Format = "csv"
			var out bytes.Buffer
			if err := audit.Query(context.Background(), []string{path}, &out, tc.o); err != nil {
				t.Fatal(err)
			}
			if out.String() != tc.want {
				t.Errorf("got %q, want %q", out.String(), tc.want)
			}
			if _, err := csv.NewReader(&out).ReadAll(); err != nil {
				t.Error(err)
			}
		})
	}
	var out bytes.Buffer
	if err := audit.Query(context.Background(), []string{filepath.Dir(path)}, &out, audit.QueryOptions{Format: "json"}); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, f := range []string{path} {
		raw, _ := os.ReadFile(f)
		all = append(all, raw...)
	}
	if !bytes.HasSuffix(out.Bytes(), all) || strings.Count(out.String(), "\n") != 5 {
		t.Errorf("JSON is not the lines as they are:\n%s", out.String())
	}
	out.Reset()
	if err := audit.Query(context.Background(), []string{path}, &out, audit.QueryOptions{GroupBy: []string{"outcome"}, Format: "json", Limit: 1}); err != nil || out.String() != `{"bytes":3072,"events":3,"outcome":"completed"}`+"\n" {
		t.Errorf("%v %s", err, out.String())
	}
	if err := audit.Query(context.Background(), []string{path}, &out, audit.QueryOptions{GroupBy: []string{"shoe_size"}}); err == nil || !strings.Contains(err.Error(), "source_ip") {
		t.Errorf("an unknown column: %v", err)
	}
	out.Reset()
	if err := audit.Query(context.Background(), []string{path}, &out, audit.QueryOptions{Columns: []string{"operation", "status"}, Limit: 1}); err != nil || out.String() != "operation  status\nGetObject  200\n" {
		t.Errorf("%v %q", err, out.String())
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"2026-11-20": "2026-11-20T00:00:00Z", "2026-11-20T10:00:00+01:00": "2026-11-20T09:00:00Z", "90m": "2026-11-23T10:30:00Z", "7d": "2026-11-16T12:00:00Z",
		"yesterday": "", "-5m": "", "": "",
	} {
		got, err := audit.ParseTime(text, now)
		if (err != nil) != (want == "") || err == nil && got.UTC().Format(time.RFC3339) != want {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
}

func TestReadTellsWhatIsNoEvent(t *testing.T) {
	path := sample(t)
	f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	fmt.Fprintf(f, "no event\n")
	f.Close()
	events, errs := 0, 0
	for ev, err := range audit.Read(path) {
		if err != nil {
			errs++
			if !strings.Contains(err.Error(), "not an audit event") {
				t.Error(err)
			}
			continue
		}
		if ev.Schema != audit.Schema {
			t.Error(ev)
		}
		events++
	}
	if events != 5 || errs != 1 {
		t.Errorf("%d events, %d errors", events, errs)
	}
	for _, err := range audit.Read(filepath.Join(t.TempDir(), "none.jsonl")) {
		if err == nil {
			t.Error("a log that is not there has events")
		}
	}
}
