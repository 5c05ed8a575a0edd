package audit_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
)

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("AUDIT_TEST_CRASH_DIR"); dir != "" {
		serveUntilKilled(dir, os.Getenv("AUDIT_TEST_FSYNC"))
		return
	}
	os.Exit(m.Run())
}

func crashConfig(dir, fsync string) audit.Config {
	return audit.Config{InFlight: 64, File: &audit.File{Path: filepath.Join(dir, "audit.jsonl"), MaxSize: 512 << 10, Keep: 100000, Fsync: fsync}}
}

// serveUntilKilled plays a proxy: each of its requests goes to a backend, which notes its id, and is answered to a
// client, which notes it too.
func serveUntilKilled(dir, fsync string) {
	log, err := audit.Open(context.Background(), crashConfig(dir, fsync))
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(3)
	}
	note := func(name string) func(id string) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		// 32 bytes, so that none lies on two pages: only then is a write whole or not at all.
		return func(id string) { f.WriteString(id + "     \n") }
	}
	backend, client := note("backend"), note("client")
	fmt.Println("serving")
	for worker := range 8 {
		go func() {
			for n := 0; ; n++ {
				r, err := log.Begin(time.Now())
				if err != nil {
					time.Sleep(100 * time.Microsecond)
					continue
				}
				ev := &r.Event
				ev.Bucket, ev.Key = "b", fmt.Sprintf("%d/%d", worker, n)
				refused := n%5 == 4
				switch n % 7 {
				case 3: // too large for the journal's slots
					ev.Operation = "DeleteObjects"
					for i := range 200 {
						ev.Accesses = append(ev.Accesses, audit.Access{Action: "s3:DeleteObject", Bucket: "b", Key: fmt.Sprintf("%s/%d", ev.Key, i), Allow: true})
					}
				default:
					ev.Operation = "GetObject"
				}
				ev.Outcome = audit.Completed
				if refused {
					ev.Outcome = audit.Refused
				}
				if n%11 == 10 {
					ev.UserAgent = strings.Repeat("x", 700)
				}
				if err := r.Journal(); err != nil {
					panic(err)
				}
				if n%3 == 0 {
					ev.Decision.Reasons = []string{"said more"}
					if err := r.Journal(); err != nil {
						panic(err)
					}
				}
				if !refused {
					backend(ev.ID)
				}
				client(ev.ID)
				r.Commit()
			}
		}()
	}
	select {}
}

// killAgainAndAgain runs serveUntilKilled and kills it, each time somewhere else.
func killAgainAndAgain(t *testing.T, dir, fsync string, times int) {
	t.Helper()
	for range times {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "AUDIT_TEST_CRASH_DIR="+dir, "AUDIT_TEST_FSYNC="+fsync)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if rand.IntN(4) == 0 { // while it starts, and perhaps mends what the last one left
			time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
			cmd.Process.Kill()
			cmd.Wait()
			continue
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		if line != "serving\n" {
			cmd.Process.Kill()
			rest, _ := io.ReadAll(out)
			cmd.Wait()
			t.Fatalf("it does not serve: %s%s%s", line, rest, stderr.String())
		}
		time.Sleep(time.Duration(rand.IntN(60_000)) * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		if strings.Contains(stderr.String(), "panic") {
			t.Fatal(stderr.String())
		}
	}
}

// threeLists holds what the backend did and what clients saw against the log.
func threeLists(t *testing.T, dir string) {
	t.Helper()
	read := func(name string) map[string]bool {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{}
		for line := range strings.Lines(string(raw)) {
			if len(line) != 32 {
				t.Fatalf("the test's own list is torn: %q", line)
			}
			ids[strings.TrimSpace(line)] = true
		}
		return ids
	}
	backend, client := read("backend"), read("client")
	logged := map[string]audit.Outcome{}
	lines, interrupted := uint64(0), 0
	for ev, err := range audit.Read(filepath.Join(dir, "audit.jsonl")) {
		if err != nil {
			t.Fatal(err)
		}
		lines++
		if _, twice := logged[ev.ID]; twice {
			t.Errorf("%s is there twice", ev.ID)
		}
		logged[ev.ID] = ev.Outcome
		if ev.Outcome == audit.Interrupted {
			interrupted++
		}
		if ev.Outcome == audit.Completed && !backend[ev.ID] {
			t.Errorf("%s is completed, and the backend never saw it", ev.ID)
		}
		if ev.Operation == "DeleteObjects" && len(ev.Accesses) != 200 {
			t.Errorf("%s has %d accesses", ev.ID, len(ev.Accesses))
		}
	}
	missing := 0
	for _, list := range []map[string]bool{backend, client} {
		for id := range list {
			if _, ok := logged[id]; !ok {
				missing++
				t.Logf("missing: %s", id)
			}
		}
	}
	if missing > 0 {
		t.Errorf("%d requests are not in the log", missing)
	}
	t.Logf("%d events: %d at the backend, %d seen by clients, %d interrupted", lines, len(backend), len(client), interrupted)
	if interrupted == 0 || len(backend) == 0 {
		t.Error("the test tried nothing")
	}
	mustHold(t, filepath.Join(dir, "audit.jsonl"), lines)
}

func TestT24KilledAgainAndAgainNothingIsMissingNothingTwice(t *testing.T) {
	times := 30
	if testing.Short() {
		times = 5
	}
	for _, fsync := range []string{"off", "always"} {
		t.Run(fsync, func(t *testing.T) {
			dir := t.TempDir()
			killAgainAndAgain(t, dir, fsync, times)
			log, err := audit.Open(context.Background(), crashConfig(dir, fsync))
			if err != nil {
				t.Fatal(err)
			}
			closeLog(t, log)
			// A second start finds nothing more to write.
			log, err = audit.Open(context.Background(), crashConfig(dir, fsync))
			if err != nil {
				t.Fatal(err)
			}
			if s := log.Stats(); s.Open != 0 || s.Queued != 0 {
				t.Errorf("%+v", s)
			}
			closeLog(t, log)
			threeLists(t, dir)
		})
	}
}
