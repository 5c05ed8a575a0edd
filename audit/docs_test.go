package audit_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/sluice-s3/sluice/audit"
)

// TestSnippetsInTheDocsRun runs the examples for jq and DuckDB on a log.
func TestSnippetsInTheDocsRun(t *testing.T) {
	doc, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	path := sample(t)
	log, _ := open(t, audit.Config{File: &audit.File{Path: path, MaxSize: 4 << 10, Keep: 100}})
	record(t, log, 30)
	eventually(t, "files are compressed", func() bool {
		zst, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*.zst"))
		return len(zst) > 1 && len(zst) == log.Stats().Files.Rotated
	})
	// One that is refused in the file that is written.
	r := begin(t, log)
	r.Event.Outcome, r.Event.Accesses = audit.Refused, []audit.Access{{Action: "s3:GetObject", Bucket: "b", Key: "k"}}
	r.Commit()
	closeLog(t, log)

	run := func(kind string, tools []string, command func(snippet string) *exec.Cmd, pattern string) {
		snippets := regexp.MustCompile(pattern).FindAllSubmatch(doc, -1)
		if len(snippets) == 0 {
			t.Fatalf("%d snippets for %s", len(snippets), kind)
		}
		t.Run(kind, func(t *testing.T) {
			for _, tool := range tools {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skipf("SKIPPED: the docs' examples for %s were not run: %v", kind, err)
				}
			}
			for _, s := range snippets {
				cmd := command(string(s[1]))
				cmd.Dir = filepath.Dir(path)
				out, err := cmd.CombinedOutput()
				if err != nil || len(out) == 0 {
					t.Errorf("%s\n%v\n%s", s[1], err, out)
				}
			}
		})
	}
	sh := func(s string) *exec.Cmd { return exec.Command("sh", "-c", s) }
	run("jq", []string{"jq"}, sh, "(?s)```sh\n(jq .*?)```")
	run("zstd and jq", []string{"jq", "zstd"}, sh, "(?s)```sh\n(zstd .*?)```")
	run("DuckDB", []string{"duckdb"}, func(s string) *exec.Cmd { return exec.Command("duckdb", "-c", s) }, "(?s)```sql\n(.*?)```")
}
