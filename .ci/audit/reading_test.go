package audit

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	_ "github.com/duckdb/duckdb-go/v2"
)

// written is a log of the real proxy, in several files, all but the last compressed: 180 events of one session, of
// which 60 were refused.
func written(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, ", max_size: 16KiB, keep: 100", "")
	r.start()
	for i := range 180 {
		path, want := fmt.Sprintf("/artifacts/web/%d?versionId=v%%22%d", i, i), 200
		if i%3 == 2 {
			path, want = fmt.Sprintf("/artifacts/theirs/caf%%C3%%A9/%d", i), 403
		}
		if status, _ := r.get(path); status != want {
			t.Fatalf("%s: %d, want %d", path, status, want)
		}
	}
	files := func(pattern string) int { all, _ := filepath.Glob(filepath.Join(r.dir, pattern)); return len(all) }
	eventually(t, "all is written, and the rotated files compressed", func() bool {
		return r.metric("sluice_audit_events_total") == "180" && files("audit-*.jsonl") == 0 && files("audit-*.jsonl.zst") > 3
	})
	r.stop()
	if got := proxy(t, "audit", "verify", r.log); !strings.Contains(got, "180") {
		t.Fatalf("verify: %s", got)
	}
	return r
}

// snippets are the documentation's examples in a language that begin with a word.
func snippets(t *testing.T, language, begin string) []string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, s := range regexp.MustCompile("(?s)```"+language+"\n("+begin+".*?)```").FindAllSubmatch(doc, -1) {
		found = append(found, string(s[1]))
	}
	return found
}

func TestEventsLoadIntoDuckDBAsTheyAre(t *testing.T) {
	examples := snippets(t, "sql", "")
	r := written(t)
	t.Chdir(r.dir)
	db, err := sql.Open("duckdb", "")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	// The documentation's, in their order: what the answer must be.
	for i, want := range []func(rows [][]string) bool{
		func(rows [][]string) bool {
			return len(rows) == 1 && rows[0][0] == "env-42" && rows[0][1] == "120" && rows[0][2] == fmt.Sprint(120*len("the object"))
		},
		func(rows [][]string) bool {
			return len(rows) > 0 && rows[0][1] == "environment/env-42" && rows[0][2] == "s3:GetObject" && rows[0][3] == "artifacts" && strings.HasPrefix(rows[0][4], "theirs/café/")
		},
		func(rows [][]string) bool { return len(rows) == 1 && rows[0][0] == "180" && rows[0][1] == "0" },
	} {
		if i >= len(examples) {
			t.Fatalf("the documentation has %d examples", len(examples))
		}
		if rows := ask(t, db, examples[i]); !want(rows) {
			t.Errorf("%s\n%v", examples[i], rows)
		}
	}
	// Every field is a column of a type that is worked with, without being told.
	const events = `read_json(['audit-*.jsonl.zst', 'audit.jsonl'], format = 'newline_delimited', union_by_name = true)`
	types := map[string]string{}
	for _, row := range ask(t, db, "DESCRIBE SELECT * FROM "+events) {
		types[row[0]] = row[1]
	}
	for column, want := range map[string]string{
		"seq": "BIGINT", "time": "TIMESTAMP", "duration_ms": "DOUBLE", "status": "BIGINT", "bytes_out": "BIGINT", "outcome": "VARCHAR",
		"identity": "STRUCT(", "accesses": "STRUCT(", "decision": "STRUCT(", "backend": "STRUCT(", "prev": "VARCHAR",
	} {
		if !strings.HasPrefix(types[column], want) {
			t.Errorf("%s is %q, want %s…", column, types[column], want)
		}
	}
	if rows := ask(t, db, `SELECT count(*), count(DISTINCT id), min(seq), max(seq), any_value(identity.claims.organization_id) FROM `+events); fmt.Sprint(rows) != "[[180 180 1 180 acme]]" {
		t.Errorf("%v", rows)
	}
	// The chain, checked by somebody else's SHA-256 over the lines as they are.
	if rows := ask(t, db, `WITH l AS (SELECT content FROM read_text('audit.jsonl')), line AS (SELECT unnest(string_split(rtrim(content, chr(10)), chr(10))) AS text FROM l),
		n AS (SELECT text, row_number() OVER () AS i FROM line)
		SELECT count(*) > 1, bool_and(json_extract_string(b.text, '$.prev') = sha256(a.text)) FROM n a JOIN n b ON b.i = a.i + 1`); fmt.Sprint(rows) != "[[true true]]" {
		t.Errorf("the chain in DuckDB: %v", rows)
	}
}

func ask(t *testing.T, db *sql.DB, query string) [][]string {
	t.Helper()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatalf("%s\n%v", query, err)
	}
	defer rows.Close()
	columns, _ := rows.Columns()
	var all [][]string
	for rows.Next() {
		values, pointers := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			pointers[i] = &values[i]
		}
		if err := rows.Scan(pointers...); err != nil {
			t.Fatal(err)
		}
		var row []string
		for _, v := range values {
			row = append(row, fmt.Sprint(v))
		}
		all = append(all, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s\n%v", query, err)
	}
	return all
}

func TestEventsReadWithJQ(t *testing.T) {
	for _, tool := range []string{"jq", "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: the documentation's examples for jq were not run: %v", err)
		}
	}
	examples := append(snippets(t, "sh", "jq "), snippets(t, "sh", "zstd ")...)
	r := written(t)
	last := r.lines()
	refused := 0
	for _, line := range last {
		if strings.Contains(line, `"outcome":"refused"`) {
			refused++
		}
	}
	checks := []func(out string) bool{
		func(out string) bool {
			return strings.Count(out, "\n") == refused && strings.Contains(out, "\tenv-42\tGetObject\tartifacts\ttheirs/café/") && strings.Contains(out, "only web/ is yours")
		},
		func(out string) bool {
			return strings.Count(out, "\n") == refused && strings.Contains(out, "1 s3:GetObject artifacts/theirs/café/")
		},
		func(out string) bool {
			var sessions []struct {
				Session string
				Events  int
				Bytes   int
			}
			_ = json.Unmarshal([]byte("["+strings.ReplaceAll(strings.TrimSpace(out), "}\n{", "},{")+"]"), &sessions)
			return len(sessions) == 1 && sessions[0].Session == "env-42" && sessions[0].Events == 180-len(last)
		},
	}
	if len(examples) != len(checks) || refused == 0 {
		t.Fatalf("%d examples, %d refused", len(examples), refused)
	}
	for i, example := range examples {
		cmd := exec.Command("sh", "-c", example)
		cmd.Dir = r.dir
		out, err := cmd.CombinedOutput()
		if err != nil || !checks[i](string(out)) {
			t.Errorf("%s\n%v\n%s", example, err, out)
		}
	}
}
