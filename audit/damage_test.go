package audit_test

import (
	"context"
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
				o.PublicKey = public
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
			far.mu.Lock()
			defer far.mu.Unlock()
			if len(far.ids) != all+1 || stats.Lost != uint64(400-all) || stats.Shipped != uint64(all+1) {
				t.Errorf("%d sent of %d: %+v", len(far.ids), all+1, stats)
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
