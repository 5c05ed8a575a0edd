package audit

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOrderIsThatOfTheLinesWhateverTheClockSays: it is set to and fro with every file that is begun.
func TestOrderIsThatOfTheLinesWhateverTheClockSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	base := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	steps := []time.Duration{0, -time.Hour, -time.Hour, 24 * time.Hour, 0, -48 * time.Hour, time.Minute, 0}
	clock := base
	no := false
	c := Config{File: &File{Path: path, MaxSize: minFileSize, Compress: &no}}.withDefaults()
	f, _, err := openFile(c.File, slog.New(slog.DiscardHandler), func() time.Time { return clock }, func(f *os.File) { f.Close() })
	if err != nil {
		t.Fatal(err)
	}
	e := newEncoder(c)
	prev := []byte(noPrev)
	var want []string
	const lines = 64
	for seq := range uint64(lines) {
		clock = base.Add(steps[int(seq)%len(steps)])
		ev := Event{Schema: Schema, ID: newID(clock), Time: clock, Operation: "GetObject", Error: strings.Repeat("x", 1000)}
		line := appendLine(nil, seq+1, e.append(nil, &ev), prev)
		prev = []byte(lineHash(line[:len(line)-1]))
		want = append(want, ev.ID)
		if n, err := f.append(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	f.close()
	if files, err := rotatedFiles(path); err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	r, err := Verify(context.Background(), []string{path}, VerifyOptions{FromStart: true, MinSeq: lines})
	if err != nil || !r.OK() {
		t.Fatalf("%+v, %v", r, err)
	}
	var got []string
	for ev, err := range Read(filepath.Dir(path)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ev.ID)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Error("they are read in another order")
	}
	follow := &follower{path: path, next: 1}
	defer follow.close()
	for seq := range uint64(lines) {
		if _, n, err := follow.read(); n != seq+1 || err != nil {
			t.Fatalf("a far end is sent line %d after %d: %v", n, seq, err)
		}
	}
	again, end, err := openFile(c.File, slog.New(slog.DiscardHandler), time.Now, func(*os.File) {})
	if err != nil || end.seq != lines {
		t.Fatalf("a start goes on after %d, %v", end.seq, err)
	}
	again.close()
}

// TestSinceAsksFilesThatSeemOlder: their last line came after a clock that had been hours ahead was set right.
func TestSinceAsksFilesThatSeemOlder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	log, err := Open(context.Background(), Config{File: &File{Path: path}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := log.Begin(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.Commit()
	if err := log.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-14*time.Hour)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	o := QueryOptions{Format: "json", Filter: Filter{Since: time.Now().Add(-time.Hour)}}
	if err := Query(context.Background(), []string{path}, &out, o); err != nil || !strings.Contains(out.String(), r.Event.ID) {
		t.Errorf("the answer is %q, %v", &out, err)
	}
}
