package audit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	put(t, j, s, "first")
	put(t, j, s, "before")
	// The next goes where the first is.
	at := areaOffset(j.slots, s.index, 0)
	old := make([]byte, areaSizes[0])
	if _, err := j.file.ReadAt(old, at); err != nil {
		t.Fatal(err)
	}
	put(t, j, s, "after, and longer")
	whole := make([]byte, entryHeader+len("after, and longer"))
	if _, err := j.file.ReadAt(whole, at); err != nil {
		t.Fatal(err)
	}
	if got := left(t, j); got[s.id] != "after, and longer" {
		t.Fatalf("%q", got)
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

// Each size goes from each area to the next; the newest is what is found, and no other slot's is touched.
func TestJournalEntriesOfEverySize(t *testing.T) {
	sizes := []int{0, 1, areaSizes[0] - entryHeader, areaSizes[0] - entryHeader + 1, areaSizes[1] - entryHeader, areaSizes[1] - entryHeader + 1, 40000}
	j := newJournal(t, false)
	var slots []*slot
	want := map[string]string{}
	for i := range j.slots {
		s := &slot{index: i, id: newID(time.Now())}
		slots = append(slots, s)
		put(t, j, s, fmt.Sprint("of slot ", i))
		want[s.id] = fmt.Sprint("of slot ", i)
	}
	for round, first := range sizes {
		for _, second := range sizes {
			for _, size := range []int{first, second} {
				s := slots[(round+size)%len(slots)]
				body := strings.Repeat(string(rune('a'+size%26)), size)
				put(t, j, s, body)
				want[s.id] = body
				if got := left(t, j); !maps.Equal(got, want) {
					t.Fatalf("after one of %d bytes in slot %d there are %d entries, %d bytes of it", size, s.index, len(got), len(got[s.id]))
				}
			}
		}
	}
	if err := j.release(slots); err != nil {
		t.Fatal(err)
	}
	if got := left(t, j); len(got) != 0 {
		t.Errorf("%d entries after all were released", len(got))
	}
	if spills, _ := filepath.Glob(j.path + ".*"); len(spills) != 0 {
		t.Errorf("files stay: %v", spills)
	}
}

// Those that are put at once are written together; each returns when its own is there, and none waits for ever.
func TestJournalWritesTogether(t *testing.T) {
	for _, always := range []bool{false, true} {
		j, _, err := openJournal(filepath.Join(t.TempDir(), "journal"))
		if err == nil {
			err = j.reset(200, always)
		}
		if err != nil {
			t.Fatal(err)
		}
		want, rounds := 0, 300
		if always {
			rounds = 20
		}
		var all sync.WaitGroup
		for i := range j.slots {
			if i%7 == 3 {
				continue // in use by a request that was journalled long ago
			}
			want++
			all.Go(func() {
				s := &slot{index: i, id: newID(time.Now())}
				for round := range rounds {
					size := 30
					if (i+round)%50 == 0 {
						size = 3000
					}
					body := fmt.Sprintf("%d of slot %d %s", round, i, strings.Repeat("x", size))
					if err := j.put(s, append(make([]byte, entryHeader), body...)); err != nil {
						t.Error(err)
						return
					}
					room := make([]byte, areaSizes[s.area-1])
					if n, err := j.file.ReadAt(room, areaOffset(j.slots, i, s.area-1)); err != nil && err != io.EOF {
						t.Error(err)
					} else if e, generation, ok := j.decode(room[:n]); !ok || generation != s.generation || string(e.body) != body {
						t.Errorf("slot %d: %v, generation %d of %d, %.40q for %.40q", i, ok, generation, s.generation, e.body, body)
						return
					}
				}
			})
		}
		all.Wait()
		if got := left(t, j); len(got) != want {
			t.Errorf("%d entries, want %d", len(got), want)
		}
		if j.led || len(j.waiting) != 0 {
			t.Error("somebody is still waited for")
		}
		j.close(false)
	}
}

// Where the disk takes nothing all of them are told, and a later one is written that was never there before.
func TestJournalTellsEveryoneThatItCannotBeWritten(t *testing.T) {
	j, _, err := openJournal(filepath.Join(t.TempDir(), "journal"))
	if err == nil {
		err = j.reset(64, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	writable := j.file
	if j.file, err = os.Open(j.path); err != nil {
		t.Fatal(err)
	}
	slots := make([]*slot, j.slots)
	var all sync.WaitGroup
	for i := range slots {
		slots[i] = &slot{index: i, id: newID(time.Now())}
		all.Go(func() {
			if err := j.put(slots[i], append(make([]byte, entryHeader), "not written"...)); err == nil {
				t.Errorf("slot %d is said to be written", i)
			}
		})
	}
	all.Wait()
	j.file.Close()
	j.file = writable
	put(t, j, slots[5], "written")
	if got := left(t, j); len(got) != 1 || got[slots[5].id] != "written" {
		t.Errorf("%q", got)
	}
	if err := j.release(slots); err != nil {
		t.Fatal(err)
	}
	if got := left(t, j); len(got) != 0 {
		t.Errorf("%q", got)
	}
	j.close(false)
}

// What was written may hold, though the flush that failed was told: it is not found once its request's line is there.
func TestJournalEntryThatFailedIsForgottenToo(t *testing.T) {
	j := newJournal(t, false)
	s := &slot{index: 2, id: newID(time.Now())}
	put(t, j, s, "whole, but told as failed")
	s.area = 0 // as put leaves it then
	if err := j.release([]*slot{s}); err != nil {
		t.Fatal(err)
	}
	if got := left(t, j); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestJournalOfAnOlderVersionIsRead(t *testing.T) {
	for area := range 2 {
		path := filepath.Join(t.TempDir(), "journal")
		old := make([]byte, areaOffset1(4, 4, 0))
		copy(old, binary.LittleEndian.AppendUint32([]byte("SLUICEJ1"), 4))
		binary.LittleEndian.PutUint64(old[pageSize+8:], 7) // of slot 1, whose line is there
		ids := [4]string{}
		for index := range 4 {
			ids[index] = newID(time.Now())
			body := []byte("an older version's")
			header := old[areaOffset1(4, index, area):][:entryHeader]
			binary.LittleEndian.PutUint32(header, entryMagic)
			binary.LittleEndian.PutUint64(header[8:], 7)
			binary.LittleEndian.PutUint32(header[16:], uint32(len(body)))
			copy(header[24:], ids[index])
			binary.LittleEndian.PutUint32(header[20:], entryChecksum(header, body))
			copy(old[areaOffset1(4, index, area)+entryHeader:], body)
		}
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
		j, entries, err := openJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 3 || entries[0].id != ids[0] || entries[1].id != ids[2] || string(entries[2].body) != "an older version's" {
			t.Errorf("in area %d: %q", area, entries)
		}
		if n := recordedBeside(path); n != 1 {
			t.Errorf("%d recorded, want 1", n)
		}
		if err := j.reset(4, false); err != nil {
			t.Fatal(err)
		}
		if got := left(t, j); len(got) != 0 {
			t.Errorf("%q", got)
		}
		j.close(false)
	}
}

func TestSlotsLowestFirst(t *testing.T) {
	var f slotSet
	f.init(130)
	for want := range 130 {
		if s := f.take(); s == nil || s.index != want {
			t.Fatalf("%v, want %d", s, want)
		}
	}
	if s := f.take(); s != nil || f.n != 0 {
		t.Fatalf("%v, and %d free, of none", s, f.n)
	}
	for _, i := range []int{129, 64, 3, 70} {
		f.give(&f.all[i])
	}
	for i, want := range []int{3, 64, 70, 129} {
		if s := f.take(); s.index != want || f.n != 3-i {
			t.Errorf("%d, want %d; %d free", s.index, want, f.n)
		}
	}
}

func TestWhatIsNoJournalIsNotTaken(t *testing.T) {
	for name, content := range map[string]string{"text": strings.Repeat("text", 5000), "short": "SLUICEJ1", "another version's": "SLUICEJ3" + strings.Repeat("\x00", 5000), "too many slots": "SLUICEJ2\xff\xff\xff\xff" + strings.Repeat("\x00", 5000)} {
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
