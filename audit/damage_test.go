package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/audit/ship"
)

// damaged is a log of 400 lines in several files, the newest rotated of which cannot be decompressed to its end. With
// head not even its beginning can.
func damaged(t *testing.T, c audit.Config, head bool) (path, file string) {
	t.Helper()
	log, path := open(t, c)
	record(t, log, 400)
	var files []string
	eventually(t, "all rotated files are compressed", func() bool {
		plain, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*.jsonl"))
		files, _ = filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*.zst"))
		for _, far := range log.Stats().Ship {
			if far.Lag > 0 {
				return false // its place is not yet behind what is to be damaged
			}
		}
		return log.Stats().Written == 400 && len(plain) == 0 && len(files) > 3
	})
	closeLog(t, log)
	number := func(file string) int {
		n, _ := strconv.Atoi(strings.TrimSuffix(file[strings.LastIndexByte(file, '-')+1:], ".jsonl.zst"))
		return n
	}
	file = slices.MaxFunc(files, func(a, b string) int { return number(a) - number(b) })
	edit(t, file, func(raw []byte) []byte {
		if head {
			return append(raw[:12:12], "this is not what a block of zstd is"...)
		}
		return raw[:len(raw)*2/3]
	})
	return path, file
}

// inFlight leaves a request in the journal, as a crash does.
func inFlight(t *testing.T, c audit.Config) (id string) {
	t.Helper()
	log, _ := open(t, c)
	r := begin(t, log)
	if err := r.Journal(); err != nil {
		t.Fatal(err)
	}
	closeLog(t, log)
	return r.Event.ID
}

func ids(path string) (ids []string) {
	for ev := range audit.Read(path) {
		if ev != nil {
			ids = append(ids, ev.ID)
		}
	}
	return ids
}

// TestDamagedFileKeepsNoProxyFromStarting that could lose or repeat nothing.
func TestDamagedFileKeepsNoProxyFromStarting(t *testing.T) {
	c := audit.Config{InFlight: 512, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxSize: 32 << 10, Keep: 100}}
	path, file := damaged(t, c, false)
	// Older than whatever is in flight by the time of the crash.
	if err := os.Chtimes(file, time.Time{}, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	id := inFlight(t, c)
	log, _ := open(t, c)
	record(t, log, 1)
	closeLog(t, log)
	if got := ids(path); !slices.Contains(got, id) {
		t.Error("the event of the request in flight is not in the log")
	}
	r := verify(t, audit.VerifyOptions{}, path)
	if got := problems(r); !strings.HasPrefix(got, filepath.Base(file)+":") || !strings.HasSuffix(got, "changed") {
		t.Errorf("verify says %q, want that %s cannot be read", got, file)
	}
}

// TestDamagedFileThatMayHaveTheEvent: to go on would lose it or repeat it.
func TestDamagedFileThatMayHaveTheEvent(t *testing.T) {
	c := audit.Config{InFlight: 512, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxSize: 32 << 10, Keep: 100}}
	path, file := damaged(t, c, true)
	id := inFlight(t, c)
	if err := os.Chtimes(file, time.Time{}, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	log, err := audit.Open(context.Background(), c)
	if err == nil {
		log.Close(context.Background())
		t.Fatal("it starts")
	}
	for _, want := range []string{file, "may hold 1 of them", "good copy", "keep it elsewhere"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q: %v", want, err)
		}
	}
	if err := os.Rename(file, filepath.Join(t.TempDir(), "kept")); err != nil {
		t.Fatal(err)
	}
	log, _ = open(t, c)
	closeLog(t, log)
	if got := ids(path); !slices.Contains(got, id) {
		t.Error("the event of the request in flight is not in the log")
	}
}

// TestDamagedNewestFile: the chain's end is in a file that cannot be read. It goes on from where it is known to have
// been.
func TestDamagedNewestFile(t *testing.T) {
	key, public := signingKey(t)
	far := httpServer(t)
	for name, c := range map[string]audit.Config{
		"from the checkpoint":    {SigningKeyFile: key},
		"from a far end's place": {Ship: []audit.Ship{far.config}},
		"from what can be read":  {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.InFlight, c.File = 512, &audit.File{Path: filepath.Join(dir, "audit.jsonl"), MaxSize: 32 << 10, Keep: 100}
			path, file := damaged(t, c, false)
			last := uint64(0)
			for ev, err := range audit.Read(path) {
				if err == nil {
					last = ev.Seq
				}
			}
			os.Remove(path) // what was after it
			log, _ := open(t, c)
			record(t, log, 1)
			closeLog(t, log)
			got := uint64(0)
			for ev, err := range audit.Read(path) {
				if err == nil {
					got = ev.Seq
				}
			}
			if known := c.SigningKeyFile != "" || c.Ship != nil; known && got != last+1 || got == 0 {
				t.Errorf("the chain goes on with line %d after %d", got, last)
			}
			o := audit.VerifyOptions{}
			if c.SigningKeyFile != "" {
				o.PublicKeys = []ed25519.PublicKey{public}
			}
			if text := problems(verify(t, o, path)); !strings.HasPrefix(text, filepath.Base(file)+":") {
				t.Errorf("verify says %q", text)
			}
		})
	}
}

// TestFarEndsGoOnBehindADamagedFile, and what was in it is counted.
func TestFarEndsGoOnBehindADamagedFile(t *testing.T) {
	for name, head := range map[string]bool{"its end": false, "its beginning": true} {
		t.Run(name, func(t *testing.T) {
			c := audit.Config{InFlight: 512, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxSize: 32 << 10, Keep: 100}}
			path, _ := damaged(t, c, head)
			all := len(ids(path))
			far := startRefusing(t, func(string) bool { return false })
			c.Ship = []audit.Ship{{Webhook: &ship.Webhook{URL: "http://" + far.address}}}
			log, _ := open(t, c)
			record(t, log, 1)
			eventually(t, "the far end has all there is", func() bool { s := log.Stats(); return s.Queued == 0 && s.Ship[0].Lag == 0 })
			stats := log.Stats().Ship[0]
			closeLog(t, log)
			if len(far.got()) != all+1 || stats.Lost != uint64(400-all) || stats.Shipped != uint64(all+1) {
				t.Errorf("%d sent of %d: %+v", len(far.got()), all+1, stats)
			}
		})
	}
}

// TestVerifyTellsACutFile: one that was cut off within what was compressed is not one that ended there.
func TestVerifyTellsACutFile(t *testing.T) {
	c := audit.Config{InFlight: 512, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxSize: 32 << 10, Keep: 100}}
	_, file := damaged(t, c, false)
	if got := problems(verify(t, audit.VerifyOptions{}, file)); !strings.HasPrefix(got, filepath.Base(file)+":") {
		t.Errorf("verify of %s alone says %q", file, got)
	}
}

// TestQueryAnswersWhatCanBeRead, and says what could not.
func TestQueryAnswersWhatCanBeRead(t *testing.T) {
	c := audit.Config{InFlight: 512, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxSize: 32 << 10, Keep: 100}}
	path, file := damaged(t, c, true)
	want := len(ids(path))
	for name, o := range map[string]audit.QueryOptions{"list": {Format: "json"}, "groups": {Format: "csv", GroupBy: []string{"day"}}} {
		var out bytes.Buffer
		err := audit.Query(t.Context(), []string{path}, &out, o)
		if err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
		if got := strings.Count(out.String(), "\n"); name == "list" && got != want || name == "groups" && !strings.Contains(out.String(), fmt.Sprintf(",%d,", want)) {
			t.Errorf("%s: want %d events:\n%.500s", name, want, &out)
		}
	}
	var out bytes.Buffer
	if err := audit.Tail(t.Context(), path, &out, audit.TailOptions{Last: 390}); err != nil || !strings.Contains(out.String(), "events are missing here") || strings.Count(out.String(), "GetObject") != want {
		t.Errorf("tail: %v, %d lines", err, strings.Count(out.String(), "\n"))
	}
}

// TestVerifyAsksWhoElseKnows: without checkpoints, too, there is more beside a log than its chain.
func TestVerifyAsksWhoElseKnows(t *testing.T) {
	empty := func(raw []byte) []byte { return nil }
	cut := func(raw []byte) []byte { return raw[:bytes.LastIndexByte(raw[:len(raw)-1], '\n')+1] }
	rewrite := func(raw []byte) []byte {
		return []byte(rechain(slices.Collect(strings.Lines(strings.Replace(string(raw), `"key-3"`, `"key-X"`, 1)))))
	}
	for name, c := range map[string]struct {
		ship, running bool
		change        func(raw []byte) []byte
		want          string
		says          string
	}{
		"a far end, of a log that was emptied":    {ship: true, change: empty, want: "audit.jsonl:0 seq 1 truncated", says: `far end "webhook" was sent up to line 10`},
		"a far end, of a log that was cut":        {ship: true, change: cut, want: "audit.jsonl:0 seq 10 truncated", says: `far end "webhook" was sent up to line 10`},
		"a far end, of a log that was rewritten":  {ship: true, change: rewrite, want: "audit.jsonl:0 seq 10 changed", says: `far end "webhook" was sent`},
		"the journal, of a log that was emptied":  {running: true, change: empty, want: "audit.jsonl:0 seq 1 truncated", says: "its journal"},
		"nobody, of a log that was emptied":       {change: empty, says: "a log that was emptied looks the same as one that was never written"},
		"nobody, of a log that was cut":           {change: cut, says: ": ok: 9 lines"},
		"a far end, of a log that is as it was":   {ship: true, change: bytes.Clone, says: ": ok: 10 lines"},
		"the journal, of a log that is as it was": {running: true, change: bytes.Clone, says: ": ok: 10 lines"},
	} {
		t.Run(name, func(t *testing.T) {
			config := audit.Config{InFlight: 8}
			if c.ship {
				config.Ship = []audit.Ship{httpServer(t).config}
			}
			log, path := open(t, config)
			for i := range 10 {
				r := begin(t, log)
				r.Event.Key = fmt.Sprintf("key-%d", i)
				if err := r.Journal(); err != nil {
					t.Fatal(err)
				}
				r.Commit()
			}
			eventually(t, "all is written, and sent", func() bool {
				s := log.Stats()
				return s.Written == 10 && (len(s.Ship) == 0 || s.Ship[0].Lag == 0)
			})
			if c.running {
				// As a process leaves it that is at work: with its journal.
				journal, err := os.ReadFile(path + ".journal")
				if err != nil {
					t.Fatal(err)
				}
				closeLog(t, log)
				if err := os.WriteFile(path+".journal", journal, 0o600); err != nil {
					t.Fatal(err)
				}
			} else {
				closeLog(t, log)
			}
			edit(t, path, c.change)
			r := verify(t, audit.VerifyOptions{}, path)
			var out bytes.Buffer
			r.Print(&out)
			if got := problems(r); got != c.want || !strings.Contains(out.String(), c.says) {
				t.Errorf("%q, want %q\n%s", got, c.want, &out)
			}
		})
	}
}

// TestFarEndsGoOnBehindTwoDamagedFiles: that neither has the line wanted next must not lead from one to the other for ever.
func TestFarEndsGoOnBehindTwoDamagedFiles(t *testing.T) {
	cut := func(raw []byte) []byte { return raw[:len(raw)/2] }
	for name, second := range map[string]func(raw []byte) []byte{
		"cut, and emptied": func([]byte) []byte { return nil },
		"cut, and zeros":   func(raw []byte) []byte { return make([]byte, len(raw)) },
	} {
		t.Run(name, func(t *testing.T) {
			no := false
			c := audit.Config{InFlight: 512, File: &audit.File{MaxSize: 32 << 10, Keep: 100, Compress: &no}}
			log, path := open(t, c)
			record(t, log, 400)
			closeLog(t, log)
			files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*.jsonl"))
			if len(files) < 4 {
				t.Fatalf("%d files", len(files))
			}
			edit(t, files[1], cut)
			edit(t, files[2], second)
			far := startRefusing(t, func(string) bool { return false })
			c.Ship = []audit.Ship{{Webhook: &ship.Webhook{URL: "http://" + far.address}}}
			log, _ = open(t, c)
			record(t, log, 1)
			eventually(t, "the far end has all there is", func() bool { s := log.Stats(); return s.Queued == 0 && s.Ship[0].Lag == 0 })
			s := log.Stats().Ship[0]
			closeLog(t, log)
			if s.Lost == 0 || s.Shipped+s.Lost != 401 || s.Shipped != uint64(len(far.got())) {
				t.Errorf("%d arrived: %+v", len(far.got()), s)
			}
		})
	}
}
