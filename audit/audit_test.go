package audit_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
)

func TestOneEventForEachRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	log, err := audit.Open(context.Background(), audit.Config{File: &audit.File{Path: path}})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a", "b"} {
		r, err := log.Begin(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		r.Event.Operation, r.Event.Bucket, r.Event.Key = "GetObject", "artifacts", key
		r.Event.Outcome = audit.Completed
		if err := r.Journal(); err != nil {
			t.Fatal(err)
		}
		r.Commit()
		r.Commit()
	}
	if err := log.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2:\n%s", len(lines), raw)
	}
	for i, line := range lines {
		var ev audit.Event
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatal(err)
		}
		if ev.Seq != uint64(i+1) || ev.Key != []string{"a", "b"}[i] || ev.Outcome != audit.Completed {
			t.Errorf("line %d: %+v", i+1, ev)
		}
	}
}

func hash(line string) string {
	sum := sha256.Sum256([]byte(line))
	return hex.EncodeToString(sum[:])
}
