package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func put(t *testing.T, j *journal, s *slot, body string) {
	t.Helper()
	if err := j.put(s, append(make([]byte, entryHeader), body...)); err != nil {
		t.Fatal(err)
	}
}

// left is what a start would find, were the process to die now.
func left(t *testing.T, j *journal) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	names, _ := filepath.Glob(j.path + ".*")
	for _, name := range names {
		spill, _ := os.ReadFile(name)
		os.WriteFile(filepath.Join(dir, filepath.Base(name)), spill, 0o600)
	}
	copied := filepath.Join(dir, filepath.Base(j.path))
	os.WriteFile(copied, raw, 0o600)
	other, entries, err := openJournal(copied)
	if err != nil {
		t.Fatal(err)
	}
	other.close(false)
	found := map[string]string{}
	for _, e := range entries {
		found[e.id] = string(e.body)
	}
	return found
}

func newJournal(t *testing.T, always bool) *journal {
	t.Helper()
	j, _, err := openJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.reset(4, always); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.close(false) })
	return j
}

func TestJournalKeepsTheNewestAndForgetsTheReleased(t *testing.T) {
	for _, always := range []bool{false, true} {
		j := newJournal(t, always)
		a, b := &slot{index: 0, id: newID(time.Now())}, &slot{index: 3, id: newID(time.Now())}
		put(t, j, a, "one")
		put(t, j, b, strings.Repeat("large", 5000))
		put(t, j, a, "two")
		if got := left(t, j); len(got) != 2 || got[a.id] != "two" || len(got[b.id]) != 25000 {
			t.Errorf("%d entries: %.100q", len(got), got)
		}
		put(t, j, b, "small again")
		if got := left(t, j); got[b.id] != "small again" {
			t.Errorf("%.100q", got)
		}
		if spills, _ := filepath.Glob(j.path + ".*"); len(spills) != 0 {
			t.Errorf("files stay: %v", spills)
		}
		if err := j.release([]*slot{a}); err != nil {
			t.Fatal(err)
		}
		if got := left(t, j); len(got) != 1 || got[a.id] != "" {
			t.Errorf("%q", got)
		}
		a.id = newID(time.Now()) // the slot's next request
		put(t, j, a, "three")
		if got := left(t, j); len(got) != 2 || got[a.id] != "three" {
			t.Errorf("%q", got)
		}
	}
}

func TestJournalEntryCutAnywhereLeavesTheOneBefore(t *testing.T) {
	j := newJournal(t, false)
	s := &slot{index: 1, id: newID(time.Now())}
	put(t, j, s, "before")
	old := make([]byte, areaSize)
	at := areaOffset(j.slots, s.index, s.side)
	if _, err := j.file.ReadAt(old, at); err != nil {
		t.Fatal(err)
	}
	put(t, j, s, "after, and longer")
	whole := make([]byte, entryHeader+len("after, and longer"))
	if _, err := j.file.ReadAt(whole, at); err != nil {
		t.Fatal(err)
	}
	for cut := range whole {
		torn := bytes.Clone(old)
		copy(torn, whole[:cut])
		if _, err := j.file.WriteAt(torn, at); err != nil {
			t.Fatal(err)
		}
		if got := left(t, j); len(got) != 1 || got[s.id] != "before" {
			t.Fatalf("cut at %d: %q", cut, got)
		}
	}
}

// Sluice up to November 2026 took the area by the number of the entry, so the newest may be alone in either.
func TestJournalIsReadWhicheverAreaItsEntriesAreIn(t *testing.T) {
	for side := range 2 {
		j := newJournal(t, false)
		s := &slot{index: 2, id: newID(time.Now()), side: side, generation: 40}
		put(t, j, s, "an older version's")
		if got := left(t, j); len(got) != 1 || got[s.id] != "an older version's" {
			t.Errorf("in area %d: %q", side, got)
		}
	}
}

func TestWhatIsNoJournalIsNotTaken(t *testing.T) {
	for name, content := range map[string]string{"text": strings.Repeat("text", 5000), "short": "SLUICEJ1", "another version's": "SLUICEJ2" + strings.Repeat("\x00", 5000), "too many slots": "SLUICEJ1\xff\xff\xff\xff" + strings.Repeat("\x00", 5000)} {
		path := filepath.Join(t.TempDir(), "journal")
		os.WriteFile(path, []byte(content), 0o600)
		if _, _, err := openJournal(path); err == nil || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A death between a line and its release leaves both. Where the clock was set back in between, the log's files are
// older than the request by their times.
func TestT24WhatIsWrittenIsNotRepeatedWhereTheClockWentBack(t *testing.T) {
	no := false
	config := Config{InFlight: 4, File: &File{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxSize: 4 << 10, Compress: &no}}
	log, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	var last []*slot
	for i := range 20 {
		r, err := log.Begin(time.Now().Add(2 * time.Hour)) // the clock was ahead
		for ; err != nil; r, err = log.Begin(time.Now().Add(2 * time.Hour)) {
		}
		if i >= 16 {
			last = append(last, &slot{index: i - 16, id: r.Event.ID})
		}
		r.Commit()
	}
	if err := log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	j, _, err := openJournal(config.File.Path + journalSuffix)
	if err == nil {
		err = j.reset(4, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range last {
		put(t, j, s, `"id":"`+s.id+`","time":"2026-11-23T00:00:00.000000Z"`)
	}
	j.close(false)
	if log, err = Open(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for ev, err := range Read(config.File.Path) {
		if err != nil {
			t.Fatal(err)
		}
		if seen[ev.ID] {
			t.Errorf("%s is there twice", ev.ID)
		}
		seen[ev.ID] = true
	}
	if len(seen) != 20 {
		t.Errorf("%d events, want 20", len(seen))
	}
}
