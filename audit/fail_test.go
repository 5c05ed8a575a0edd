package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/test/machine"
)

// serve plays requests until stop is called, and tells the ids of those that were served.
func serve(t testing.TB, log *audit.Log) (stop func() (served []string, refused int)) {
	t.Helper()
	var mu sync.Mutex
	var served []string
	var refused atomic.Int64
	quit := make(chan struct{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				r, err := log.Begin(time.Now())
				if err != nil {
					if !errors.Is(err, audit.ErrFull) {
						t.Error(err)
					}
					refused.Add(1)
					time.Sleep(time.Millisecond)
					continue
				}
				r.Event.Outcome = audit.Completed
				if err := r.Journal(); err != nil {
					refused.Add(1)
					r.Event.Outcome = audit.Failed // recorded all the same
				}
				mu.Lock()
				served = append(served, r.Event.ID)
				mu.Unlock()
				r.Commit()
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	return func() ([]string, int) {
		close(quit)
		all.Wait()
		return served, int(refused.Load())
	}
}

// mustHoldExactly fails unless the log's events are those of ids, each once, and its chain is whole.
func mustHoldExactly(t testing.TB, ids []string, paths ...string) {
	t.Helper()
	var got []string
	for ev, err := range audit.Read(paths...) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ev.ID)
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(ids))
	if !slices.Equal(got, want) {
		t.Errorf("the log has %d events, %d were served", len(got), len(want))
		for _, id := range want {
			if _, found := slices.BinarySearch(got, id); !found {
				t.Errorf("missing: %s", id)
				break
			}
		}
	}
	r := verify(t, audit.VerifyOptions{FromStart: true}, paths...)
	for _, l := range r.Logs {
		for _, p := range l.Problems {
			t.Error(p)
		}
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	machine.Until(t, what, ok)
}

// full is when there is no room because nothing can be written; it may also be that the writer has not come to it yet.
func full(log *audit.Log) func() bool {
	return func() bool {
		err := log.Health()
		return log.Stats().Free == 0 && err != nil && !errors.Is(err, audit.ErrFull)
	}
}

func healthy(log *audit.Log) func() bool {
	return func() bool { s := log.Stats(); return s.Err == nil && s.Queued == 0 }
}

func TestT24FullDiskRefusesAndRecovers(t *testing.T) {
	for _, fsync := range []string{"off", "always"} {
		t.Run(fsync, func(t *testing.T) {
			dir := smallDisk(t, "4m")
			log, path := open(t, audit.Config{InFlight: 32, File: &audit.File{Path: filepath.Join(dir, "audit.jsonl"), Fsync: fsync}})
			stop := serve(t, log)
			ballast := filepath.Join(dir, "ballast")
			for range 3 {
				eventually(t, "events are written", func() bool { return log.Stats().Written > 50 })
				b, err := os.Create(ballast)
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.Copy(b, neverEnding{}) // until there is no room
				b.Close()
				if err == nil {
					t.Fatal("the disk is not full")
				}
				refused := log.Stats().Refused
				eventually(t, "no room for another event", func() bool { return full(log)() && log.Stats().Refused > refused })
				if _, err := log.Begin(time.Now()); !errors.Is(err, audit.ErrFull) {
					t.Errorf("Begin on a full disk: %v", err)
				}
				eventually(t, "no part of a line to be in the log", func() bool { // but for the moment before it is taken back
					raw, _ := os.ReadFile(path)
					return len(raw) == 0 || raw[len(raw)-1] == '\n'
				})
				if err := os.Remove(ballast); err != nil {
					t.Fatal(err)
				}
				eventually(t, "it recovers by itself", healthy(log))
			}
			served, _ := stop()
			closeLog(t, log)
			mustHoldExactly(t, served, path)
		})
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestFullDiskKeepsHowRequestsEndedOverADeath(t *testing.T) {
	dir := smallDisk(t, "4m")
	config := audit.Config{InFlight: 16, File: &audit.File{Path: filepath.Join(dir, "audit.jsonl")}}
	log, path := open(t, config)
	b, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(b, neverEnding{})
	b.Close()
	var ids []string
	end := func(r *audit.Record) {
		r.Event.Outcome, r.Event.Status = audit.Completed, 200
		ids = append(ids, r.Event.ID)
		r.Commit()
	}
	last := begin(t, log)
	for {
		r, err := log.Begin(time.Now())
		if err != nil {
			break
		}
		end(r)
	}
	eventually(t, "the writer has tried", func() bool { return log.Stats().Failures > 6 })
	end(last) // when it tries again the log is closed
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := log.Close(ctx); err == nil {
		t.Error("Close says that all is written")
	}
	os.Remove(b.Name())
	log, _ = open(t, config)
	closeLog(t, log)
	for ev, err := range audit.Read(path) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Outcome != audit.Completed || ev.Status != 200 {
			t.Errorf("%s: %s %d", ev.ID, ev.Outcome, ev.Status)
		}
	}
	mustHoldExactly(t, ids, path)
}

func TestReadOnlyDirectoryLosesNothing(t *testing.T) {
	dir := t.TempDir()
	log, path := open(t, audit.Config{InFlight: 32, File: &audit.File{Path: filepath.Join(dir, "audit.jsonl"), MaxSize: 16 << 10, Keep: 10000}})
	stop := serve(t, log)
	eventually(t, "events are written", func() bool { return log.Stats().Written > 100 })
	undo := readOnly(t, dir)
	if _, err := audit.Open(context.Background(), audit.Config{File: &audit.File{Path: filepath.Join(dir, "other.jsonl")}}); err == nil {
		t.Error("a log opens in a read-only directory")
	}
	before := log.Stats().Written
	eventually(t, "the open file goes on growing", func() bool { return log.Stats().Written > before+200 })
	undo()
	served, _ := stop()
	closeLog(t, log)
	mustHoldExactly(t, served, path)
}

func TestT24HangingSinkRefusesAndRecovers(t *testing.T) {
	reader, writer := io.Pipe()
	log, path := open(t, audit.Config{InFlight: 32, Stdout: true, StdoutWriter: writer})
	stop := serve(t, log)
	eventually(t, "no room for another event", func() bool { return log.Stats().Refused > 0 })
	if _, err := log.Begin(time.Now()); !errors.Is(err, audit.ErrFull) {
		t.Errorf("Begin while the sink hangs: %v", err)
	}
	var copied bytes.Buffer
	done := make(chan struct{})
	go func() { defer close(done); io.Copy(&copied, reader) }()
	eventually(t, "it recovers by itself", func() bool { return log.Stats().Written > 100 })
	served, _ := stop()
	closeLog(t, log)
	writer.Close()
	<-done
	mustHoldExactly(t, served, path)
	if raw, _ := os.ReadFile(path); !bytes.Equal(raw, copied.Bytes()) {
		t.Errorf("standard output had %d bytes, the file %d", copied.Len(), len(raw))
	}
}

// Where the journal were mapped into memory, whoever writes to it would stop a processor, and the second or third the
// whole process: nobody would be answered.
func TestT24FrozenDiskRefusesAndRecovers(t *testing.T) {
	t.Parallel() // it mostly waits
	dir, freeze, thaw := freezable(t)
	log, path := open(t, audit.Config{InFlight: 64, File: &audit.File{Path: filepath.Join(dir, "audit.jsonl")}})
	record(t, log, 5)
	eventually(t, "they are written", func() bool { return log.Stats().Written == 5 })
	freeze()
	var held sync.WaitGroup
	for range 8 {
		r := begin(t, log)
		held.Go(func() {
			if err := r.Journal(); err != nil {
				t.Error(err)
			}
			r.Commit()
		})
	}
	eventually(t, "no room for another event", func() bool { return !errors.Is(log.Health(), audit.ErrFull) && log.Health() != nil })
	if _, err := log.Begin(time.Now()); !errors.Is(err, audit.ErrFull) || log.Stats().Free == 0 {
		t.Errorf("Begin on a frozen disk: %v, with %d slots free", err, log.Stats().Free)
	}
	if written := log.Stats().Written; written != 5 {
		t.Errorf("the disk is not frozen: %d events are written", written)
	}
	thaw()
	held.Wait()
	eventually(t, "it recovers by itself", healthy(log))
	record(t, log, 5)
	closeLog(t, log)
	mustHold(t, path, 5+8+5)
}

// flaky fails for a while, now and then after having taken a part.
type flaky struct {
	mu  sync.Mutex
	n   int
	got bytes.Buffer
}

func (f *flaky) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if f.n%3 == 0 {
		n, _ := f.got.Write(p[:len(p)/2])
		return n, errors.New("flaky")
	}
	return f.got.Write(p)
}

func TestFailingSinkLosesAndRepeatsNothing(t *testing.T) {
	sink := &flaky{}
	log, path := open(t, audit.Config{InFlight: 32, Stdout: true, StdoutWriter: sink})
	stop := serve(t, log)
	eventually(t, "events are written", func() bool { return log.Stats().Written > 300 })
	served, _ := stop()
	closeLog(t, log)
	mustHoldExactly(t, served, path)
	if raw, _ := os.ReadFile(path); !bytes.Equal(raw, sink.got.Bytes()) {
		t.Errorf("the sink had %d bytes, the file %d", sink.got.Len(), len(raw))
	}
}

func TestT24WhateverHappensToTheFile(t *testing.T) {
	for name, meddle := range map[string]func(t *testing.T, path string){
		"removed": func(t *testing.T, path string) { os.Remove(path) },
		"removed, and an empty one put there": func(t *testing.T, path string) {
			os.Remove(path)
			makeEmpty(path)
		},
		"another moved over it": func(t *testing.T, path string) {
			os.WriteFile(path+".x", []byte("something else\n"), 0o600)
			os.Rename(path+".x", path)
		},
		"copied over itself": func(t *testing.T, path string) {
			raw, _ := os.ReadFile(path)
			os.WriteFile(path+".x", raw, 0o600)
			os.Rename(path+".x", path)
		},
		"a directory put there": func(t *testing.T, path string) {
			os.Remove(path)
			os.Mkdir(path, 0o700)
		},
		"moved away, as logrotate does": func(t *testing.T, path string) { os.Rename(path, path+".1") },
		"moved away and made anew": func(t *testing.T, path string) {
			os.Rename(path, path+".1")
			makeEmpty(path)
		},
		"the directory removed and made anew": func(t *testing.T, path string) {
			os.RemoveAll(filepath.Dir(path))
			os.Mkdir(filepath.Dir(path), 0o700)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log", "audit.jsonl")
			log, _ := open(t, audit.Config{InFlight: 64, File: &audit.File{Path: path}})
			stop := serve(t, log)
			for range 3 {
				written := log.Stats().Written
				eventually(t, "events are written", func() bool { return log.Stats().Written > written+50 })
				os.Remove(path + ".2")
				if _, err := os.Stat(path + ".1"); err == nil {
					break // one is enough
				}
				meddle(t, path)
			}
			eventually(t, "it recovers by itself", healthy(log))
			served, _ := stop()
			closeLog(t, log)
			paths := []string{path}
			if _, err := os.Stat(path + ".1"); err == nil {
				paths = append(paths, path+".1")
			}
			mustHoldExactly(t, served, paths...)
		})
	}
}

func TestWrittenMeansUnderItsName(t *testing.T) {
	log, path := open(t, audit.Config{InFlight: 8})
	record(t, log, 1)
	eventually(t, "it is written", healthy(log))
	os.Remove(path)
	record(t, log, 1)
	eventually(t, "both are written", func() bool { return log.Stats().Written == 2 })
	// Were the process killed now, what is not under this name would be nowhere.
	n := 0
	for _, err := range audit.Read(path) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 2 {
		t.Errorf("%d events under the log's name, want 2", n)
	}
}

// makeEmpty does nothing where the log has made its file again already.
func makeEmpty(path string) {
	if f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600); err == nil {
		f.Close()
	}
}

func TestTruncationIsGoneOnFromAndFound(t *testing.T) {
	log, path := open(t, audit.Config{InFlight: 64})
	record(t, log, 50)
	eventually(t, "all is written", healthy(log))
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	record(t, log, 50)
	closeLog(t, log)
	n := 0
	for _, err := range audit.Read(path) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 50 {
		t.Errorf("%d events after the cut, want 50", n)
	}
	if got := problems(verify(t, audit.VerifyOptions{FromStart: true}, path)); got != "audit.jsonl:0 seq 1 removed" {
		t.Errorf("verify: %q", got)
	}
}

func TestJournalIsPutBack(t *testing.T) {
	log, path := open(t, audit.Config{InFlight: 4})
	r := begin(t, log)
	if err := r.Journal(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path + ".journal")
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path + ".journal")
	eventually(t, "the journal is back", func() bool {
		after, err := os.ReadFile(path + ".journal")
		return err == nil && bytes.Equal(before, after)
	})
	r.Commit()
	closeLog(t, log)
	if _, err := os.Stat(path + ".journal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty journal stays after the end: %v", err)
	}
}

func TestContinueServesAndCounts(t *testing.T) {
	reader, writer := io.Pipe()
	log, path := open(t, audit.Config{InFlight: 8, OnFailure: "continue", Stdout: true, StdoutWriter: writer})
	for range 100 {
		r, err := log.Begin(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Journal(); err != nil {
			t.Fatal(err)
		}
		r.Commit()
	}
	s := log.Stats()
	if s.Dropped < 80 || s.Dropped > 92 {
		t.Errorf("%d dropped of 100, with room for 8", s.Dropped)
	}
	go io.Copy(io.Discard, reader)
	eventually(t, "it recovers", healthy(log))
	record(t, log, 1)
	closeLog(t, log)
	mustHold(t, path, 101-s.Dropped)
}

func TestOneProcessForALog(t *testing.T) {
	_, path := open(t, audit.Config{})
	if _, err := audit.Open(context.Background(), audit.Config{File: &audit.File{Path: path}}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second Open: %v", err)
	}
}

// What has left the queue is written: who waits for the one may go by the other.
func TestStatsAgree(t *testing.T) {
	log, _ := open(t, audit.Config{InFlight: 1})
	for n := range uint64(3000) {
		record(t, log, 1)
		for {
			s := log.Stats()
			if s.Queued > 0 {
				runtime.Gosched()
				continue
			}
			if s.LastSeq != n+1 || s.Written != n+1 {
				t.Fatalf("nothing waits, and of %d events %d are written, up to line %d", n+1, s.Written, s.LastSeq)
			}
			break
		}
	}
}

func TestRecordsLeftOpenAreInterrupted(t *testing.T) {
	config := audit.Config{InFlight: 8, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl")}}
	log, path := open(t, config)
	r := begin(t, log)
	r.Event.Bucket = "b"
	if err := r.Journal(); err != nil {
		t.Fatal(err)
	}
	if s := log.Stats(); s.Open != 1 {
		t.Errorf("%d open", s.Open)
	}
	record(t, log, 1)
	closeLog(t, log)
	config.InFlight = 16 // another shape of journal
	log, _ = open(t, config)
	closeLog(t, log)
	mustHold(t, path, 2)
	for ev, err := range audit.Read(path) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.ID == r.Event.ID && (ev.Outcome != audit.Interrupted || ev.Bucket != "b") {
			t.Errorf("%+v", ev)
		}
	}
}

func TestOpenMendsTheEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(raw []byte) []byte
		want   string // what verify says
		lines  int
	}{
		"an unfinished line":                 {func(raw []byte) []byte { return append(raw, `{"schema":"sluice.audit/1","se`...) }, "", 11},
		"zeros, as power loss leaves":        {func(raw []byte) []byte { return append(raw, make([]byte, 5000)...) }, "", 11},
		"the last line cut":                  {func(raw []byte) []byte { return raw[:len(raw)-10] }, "", 10},
		"whole lines that are not ours":      {func(raw []byte) []byte { return append(raw, "hello\nworld\n"...) }, "audit-X.jsonl:11 seq 11 changed", 11},
		"nothing but what is not ours":       {func(raw []byte) []byte { return []byte("hello\nworld\n") }, "audit-X.jsonl:1 seq 1 changed", 1},
		"everything removed":                 {func(raw []byte) []byte { return nil }, "", 1},
		"zeros with a newline among nothing": {func(raw []byte) []byte { return append(raw, "\x00\x00\n\x00"...) }, "audit-X.jsonl:11 seq 11 changed", 11},
	} {
		t.Run(name, func(t *testing.T) {
			config := audit.Config{InFlight: 8, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl")}}
			log, path := open(t, config)
			record(t, log, 10)
			closeLog(t, log)
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, tc.damage(raw), 0o600); err != nil {
				t.Fatal(err)
			}
			log, _ = open(t, config)
			record(t, log, 1)
			closeLog(t, log)
			got := problems(verify(t, audit.VerifyOptions{}, path))
			if i := strings.Index(got, ".jsonl"); strings.HasPrefix(got, "audit-") {
				got = "audit-X" + got[i:]
			}
			got = strings.Replace(got, ".jsonl.zst", ".jsonl", 1)
			if got != tc.want {
				t.Errorf("verify says %q, want %q", got, tc.want)
			}
			n := 0
			for _, err := range audit.Read(path) {
				if err == nil {
					n++
				}
			}
			if n != tc.lines {
				t.Errorf("%d events, want %d", n, tc.lines)
			}
		})
	}
}

func TestReopenFindsAMovedFile(t *testing.T) {
	log, path := open(t, audit.Config{InFlight: 8})
	record(t, log, 5)
	eventually(t, "all is written", healthy(log))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := log.Reopen(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("there is no new file: %v", err)
	}
	record(t, log, 5)
	closeLog(t, log)
	if r := verify(t, audit.VerifyOptions{FromStart: true}, path, path+".1"); !r.OK() || r.Lines != 10 {
		t.Errorf("%+v", r)
	}
}

func TestKeepRemovesTheOldest(t *testing.T) {
	log, path := open(t, audit.Config{File: &audit.File{MaxSize: 8 << 10, Keep: 3}})
	record(t, log, 500)
	eventually(t, "only three are left", func() bool {
		rotated, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*"))
		zst, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*.zst"))
		return len(rotated) == 3 && len(zst) == 3
	})
	closeLog(t, log)
	r := verify(t, audit.VerifyOptions{}, path)
	if !r.OK() || r.Logs[0].Last != 500 || r.Logs[0].First == 1 {
		t.Errorf("%+v", r.Logs)
	}
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		config audit.Config
		want   []string
	}{
		"nowhere":   {audit.Config{}, []string{""}},
		"bare":      {audit.Config{Stdout: true}, nil},
		"all wrong": {audit.Config{File: &audit.File{MaxSize: 10, Keep: -1, Fsync: "often"}, OnFailure: "shrug", Claims: []string{""}, SigningKeyFile: "nowhere", Redact: audit.Redact{Keys: []string{""}, Drop: []string{"a", ""}}}, []string{"file.path", "file.max_size", "file.keep", "file.fsync", "claims[0]", "redact.keys[0]", "redact.drop[1]", "signing_key_file", "on_failure"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			tc.config.Check(func(path, problem string) {
				got = append(got, path)
				if problem == "" {
					t.Errorf("%s: no words", path)
				}
			})
			if fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// TestPartOfALineTakesNoEventWithIt: what follows it would be on its line, and so in none.
func TestPartOfALineTakesNoEventWithIt(t *testing.T) {
	written := func(t *testing.T, path string) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(`{"schema":"sluice.audit/1","se`); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	cut := func(t *testing.T, path string) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, info.Size()-5); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		meddle func(t *testing.T, path string)
		seen   bool // before the next event
		before int  // events that stay
	}{
		"written by somebody":           {written, false, 10},
		"written by somebody, and seen": {written, true, 10},
		"left by a cut":                 {cut, false, 9},
		"left by a cut, and seen":       {cut, true, 9},
	} {
		t.Run(name, func(t *testing.T) {
			log, path := open(t, audit.Config{InFlight: 64})
			record(t, log, 10)
			eventually(t, "all is written", func() bool { return log.Stats().Written == 10 })
			c.meddle(t, path)
			if c.seen {
				if err := log.Reopen(); err != nil {
					t.Error(err)
				}
			}
			r := begin(t, log)
			r.Commit()
			eventually(t, "the next is written", func() bool { return log.Stats().Written == 11 })
			record(t, log, 1)
			closeLog(t, log)
			got := ids(path)
			if len(got) != c.before+2 || got[c.before] != r.Event.ID {
				raw, _ := os.ReadFile(path)
				t.Errorf("%d events, the last but one is not what followed:\n%s", len(got), raw)
			}
			if want := c.before == 10; verify(t, audit.VerifyOptions{}, path).OK() != want {
				t.Errorf("verify finds it whole: %v, want %v", !want, want)
			}
		})
	}
}

// TestT24DiskFullWhileRotating rotates with every few events, compresses and signs, on a disk that is full again and again.
func TestT24DiskFullWhileRotating(t *testing.T) {
	key, public := signingKey(t)
	dir := smallDisk(t, "2m")
	c := audit.Config{InFlight: 32, SigningKeyFile: key, File: &audit.File{Path: filepath.Join(dir, "audit.jsonl"), MaxSize: 8 << 10, Keep: 10_000}}
	log, path := open(t, c)
	var served []string
	serve := func(r *audit.Record) {
		served = append(served, r.Event.ID)
		if err := r.Journal(); err != nil {
			t.Error(err)
		}
		r.Commit()
	}
	for range 5 {
		for range 50 {
			serve(begin(t, log))
		}
		b, err := os.Create(filepath.Join(dir, "ballast"))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(b, neverEnding{}) // until there is no room
		b.Close()
		eventually(t, "no room for another event", func() bool {
			if r, err := log.Begin(time.Now()); err == nil {
				serve(r)
			}
			return full(log)() && log.Stats().Failures > 0
		})
		if err := os.Remove(b.Name()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it recovers by itself", healthy(log))
	}
	closeLog(t, log)
	log, _ = open(t, c)
	eventually(t, "what could not be compressed is", func() bool {
		plain, _ := filepath.Glob(filepath.Join(dir, "audit-*.jsonl"))
		return len(plain) == 0
	})
	closeLog(t, log)
	mustHoldExactly(t, served, path)
	if r := verify(t, audit.VerifyOptions{FromStart: true, PublicKeys: []ed25519.PublicKey{public}}, path); !r.OK() {
		t.Error(r.Logs[0].Problems)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestNoRoomForAnotherFile: the disk has bytes left, but no new file can be made, so nothing can be rotated.
func TestNoRoomForAnotherFile(t *testing.T) {
	const files = 8
	dir := smallDisk(t, fmt.Sprintf("4m,nr_inodes=%d", files))
	no := false
	log, path := open(t, audit.Config{InFlight: 32, File: &audit.File{Path: filepath.Join(dir, "audit.jsonl"), MaxSize: 8 << 10, Keep: 10_000, Compress: &no}})
	for i := range files {
		if os.WriteFile(filepath.Join(dir, fmt.Sprintf("ballast-%d", i)), nil, 0o600) != nil {
			break
		}
	}
	record(t, log, 200)
	eventually(t, "events are written all the same", func() bool { return log.Stats().Written == 200 })
	if info, err := os.Stat(path); err != nil || info.Size() < 40<<10 || log.Health() != nil {
		t.Errorf("the file goes on growing: %v, %v, %v", info, err, log.Health())
	}
	closeLog(t, log)
	mustHold(t, path, 200)
}

// TestCloseEndsWhereTheDiskDoesNotAnswer: who ends the proxy waits for it.
func TestCloseEndsWhereTheDiskDoesNotAnswer(t *testing.T) {
	t.Parallel() // it mostly waits
	dir, freeze, thaw := freezable(t)
	log, _ := open(t, audit.Config{InFlight: 64, File: &audit.File{Path: filepath.Join(dir, "audit.jsonl"), Fsync: "interval"}})
	record(t, log, 5)
	eventually(t, "they are written", func() bool { return log.Stats().Written == 5 })
	freeze()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- log.Close(ctx) }()
	ended := false
	defer func() {
		thaw()
		if !ended {
			<-closed
		}
	}()
	eventually(t, "the log is closed", func() bool {
		select {
		case err := <-closed:
			ended = true
			if err == nil {
				t.Error("closed without an error on a frozen disk")
			}
		default:
		}
		return ended
	})
}

// onRecord is a logger's handler that does something with what is told.
type onRecord func(message string)

func (onRecord) Enabled(context.Context, slog.Level) bool { return true }
func (f onRecord) Handle(_ context.Context, r slog.Record) error {
	f(r.Message)
	return nil
}
func (f onRecord) WithAttrs([]slog.Attr) slog.Handler { return f }
func (f onRecord) WithGroup(string) slog.Handler      { return f }

// TestEveryCommitIsWrittenOrTold, also one that comes while the log is closed and the writer is at its last look.
func TestEveryCommitIsWrittenOrTold(t *testing.T) {
	var r *audit.Record
	told := 0
	log, path := open(t, audit.Config{InFlight: 64, Logger: slog.New(onRecord(func(message string) {
		switch message {
		case "the audit log was moved away: going on in a new file":
			r.Commit()
		case "audit: an event came after the log was closed":
			told++
		}
	}))})
	record(t, log, 1)
	eventually(t, "it is written", func() bool { return log.Stats().Written == 1 })
	r = begin(t, log)
	must(t, os.Rename(path, path+".1"))
	closeLog(t, log)
	if got := len(ids(path)); got+told != 1 {
		t.Errorf("%d events in the log, %d told of; want one of either", got, told)
	}
}
