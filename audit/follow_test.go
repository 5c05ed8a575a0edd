package audit

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFollowWhileFilesAreCompressed: a directory is not listed in an instant, and a file changes its name meanwhile.
func TestFollowWhileFilesAreCompressed(t *testing.T) {
	const files = 150
	for range 3 {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		e := newEncoder(Config{}.withDefaults())
		prev := []byte(noPrev)
		for seq := uint64(1); seq <= files; seq++ {
			ev := Event{Schema: Schema, ID: newID(time.Now()), Time: time.Now()}
			line := appendLine(nil, seq, e.append(nil, &ev), prev)
			prev = []byte(lineHash(line[:len(line)-1]))
			name := rotatedName(path, seq, time.Now())
			if seq == files {
				name = path
			}
			if err := os.WriteFile(name, line, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := Config{File: &File{Path: path}}.withDefaults()
		k := newKeeper(c.File, true, slog.New(slog.DiscardHandler))
		compressed := make(chan error, 1)
		go func() { compressed <- k.compressAll() }()
		for done := false; !done; {
			select {
			case err := <-compressed:
				if err != nil {
					t.Fatal(err)
				}
				done = true
			default:
			}
			f := &follower{path: path, next: 1}
			for seq := uint64(1); seq <= files; seq++ {
				if _, n, err := f.read(); n != seq || err != nil || f.lost != 0 {
					t.Fatal(fmt.Errorf("line %d, want %d; %d lost, %v", n, seq, f.lost, err))
				}
			}
			f.close()
		}
	}
}
