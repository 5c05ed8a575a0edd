package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/test/machine"
)

// open opens a log in a new directory and closes it with the test.
func open(t testing.TB, c audit.Config) (*audit.Log, string) {
	t.Helper()
	if c.File == nil {
		c.File = &audit.File{}
	}
	if c.File.Path == "" {
		c.File.Path = filepath.Join(t.TempDir(), "audit.jsonl")
	}
	log, err := audit.Open(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Where the test has failed its sink may hang still: to wait for it would hide why.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		log.Close(ctx)
	})
	return log, c.File.Path
}

// record writes n events.
func record(t testing.TB, log *audit.Log, n int) {
	t.Helper()
	for i := range n {
		r := begin(t, log)
		r.Event.Operation, r.Event.Bucket, r.Event.Key = "GetObject", "artifacts", fmt.Sprintf("key-%d", i)
		r.Event.Outcome = audit.Completed
		r.Commit()
	}
}

// begin waits for room.
func begin(t testing.TB, log *audit.Log) (r *audit.Record) {
	t.Helper()
	machine.Until(t, "there is room for an event", func() (ok bool) {
		var err error
		r, err = log.Begin(time.Now())
		return err == nil
	})
	return r
}

func closeLog(t testing.TB, log *audit.Log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), machine.Patience)
	defer cancel()
	if err := log.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func verify(t testing.TB, o audit.VerifyOptions, paths ...string) *audit.Report {
	t.Helper()
	r, err := audit.Verify(context.Background(), paths, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// mustHold fails unless the log holds lines 1 to n.
func mustHold(t testing.TB, path string, n uint64) {
	t.Helper()
	r := verify(t, audit.VerifyOptions{FromStart: true}, path)
	for _, l := range r.Logs {
		for _, p := range l.Problems {
			t.Error(p)
		}
	}
	if len(r.Logs) != 1 || r.Logs[0].Last != n || r.Lines != n {
		t.Errorf("the log does not hold lines 1 to %d: %+v", n, r.Logs)
	}
}

func problems(r *audit.Report) string {
	var s []string
	for _, l := range r.Logs {
		for _, p := range l.Problems {
			s = append(s, fmt.Sprintf("%s:%d seq %d %s", filepath.Base(p.File), p.Line, p.Seq, p.What))
		}
	}
	return strings.Join(s, "; ")
}

func TestVerifyNamesTheFirstWrongLine(t *testing.T) {
	log, path := open(t, audit.Config{})
	record(t, log, 10)
	closeLog(t, log)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(raw), "\n"), "\n")
	lines[9] += "\n"
	forge := func(seq int, like string) string {
		return regexp.MustCompile(`"seq":\d+`).ReplaceAllString(strings.Replace(like, `"key-`, `"forged-`, 1), fmt.Sprintf(`"seq":%d`, seq))
	}
	for name, tc := range map[string]struct {
		edit func([]string) []string
		want string
	}{
		"untouched":       {func(l []string) []string { return l }, ""},
		"content changed": {func(l []string) []string { l[3] = strings.Replace(l[3], "key-3", "key-x", 1); return l }, "audit.jsonl:4 seq 4 changed"},
		"first changed":   {func(l []string) []string { l[0] = strings.Replace(l[0], "key-0", "key-x", 1); return l }, "audit.jsonl:1 seq 1 changed"},
		"a space":         {func(l []string) []string { l[3] = strings.Replace(l[3], `{"schema`, `{ "schema`, 1); return l }, "audit.jsonl:4 seq 4 changed"},
		"garbage":         {func(l []string) []string { l[5] = "garbage\n"; return l }, "audit.jsonl:6 seq 6 changed"},
		"number changed":  {func(l []string) []string { l[3] = strings.Replace(l[3], `"seq":4`, `"seq":9`, 1); return l }, "audit.jsonl:4 seq 9 changed"},
		"hash changed": {func(l []string) []string {
			l[3] = regexp.MustCompile(`"prev":".`).ReplaceAllString(l[3], `"prev":"x`)
			return l
		}, "audit.jsonl:4 seq 4 changed"},
		"hash swapped":      {func(l []string) []string { l[3] = l[3][:len(l[3])-67] + l[5][len(l[5])-67:]; return l }, "audit.jsonl:4 seq 4 changed"},
		"removed":           {func(l []string) []string { return slices.Delete(l, 3, 4) }, "audit.jsonl:4 seq 4 removed"},
		"two removed":       {func(l []string) []string { return slices.Delete(l, 3, 5) }, "audit.jsonl:4 seq 4 removed"},
		"first removed":     {func(l []string) []string { return l[1:] }, "audit.jsonl:0 seq 1 removed"},
		"swapped":           {func(l []string) []string { l[3], l[4] = l[4], l[3]; return l }, "audit.jsonl:4 seq 5 out of order"},
		"moved up":          {func(l []string) []string { m := l[7]; return slices.Insert(slices.Delete(l, 7, 8), 2, m) }, "audit.jsonl:3 seq 8 out of order"},
		"moved down":        {func(l []string) []string { m := l[2]; return slices.Insert(slices.Delete(l, 2, 3), 7, m) }, "audit.jsonl:3 seq 4 out of order"},
		"repeated":          {func(l []string) []string { return slices.Insert(l, 3, l[2]) }, "audit.jsonl:4 seq 3 added"},
		"old line inserted": {func(l []string) []string { return slices.Insert(l, 6, l[1]) }, "audit.jsonl:7 seq 2 added"},
		"forged inserted":   {func(l []string) []string { return slices.Insert(l, 3, forge(4, l[3])) }, "audit.jsonl:4 seq 4 added"},
		"garbage inserted":  {func(l []string) []string { return slices.Insert(l, 3, "{}\n") }, "audit.jsonl:4 seq 0 added"},
		"empty line":        {func(l []string) []string { return slices.Insert(l, 3, "\n") }, "audit.jsonl:4 seq 0 added"},
		"unfinished":        {func(l []string) []string { l[9] = l[9][:20]; return l }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "audit.jsonl")
			if err := os.WriteFile(file, []byte(strings.Join(tc.edit(slices.Clone(lines)), "")), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := problems(verify(t, audit.VerifyOptions{FromStart: true}, file)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestVerifyOverRotatedAndCompressedFiles(t *testing.T) {
	yes := true
	log, path := open(t, audit.Config{File: &audit.File{MaxSize: 64 << 10, Keep: 1000, Compress: &yes}})
	record(t, log, 3000)
	closeLog(t, log)
	log, _ = open(t, audit.Config{File: &audit.File{Path: path, MaxSize: 64 << 10, Keep: 1000, Compress: &yes}})
	record(t, log, 500)
	closeLog(t, log)
	mustHold(t, path, 3500)
	mustHold(t, filepath.Dir(path), 3500)

	files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "audit*"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%v %v", files, err)
	}
	slices.Reverse(files)
	if r := verify(t, audit.VerifyOptions{}, files...); !r.OK() || r.Lines != 3500 || len(r.Logs) != 1 {
		t.Errorf("in the other order: %+v", r)
	}

	// A whole file in the middle removed, then one changed inside its compression.
	rotated, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*"))
	firstLine := func(name string) int { // compressed or not, which a busy machine leaves some of them
		digits, _, _ := strings.Cut(name[strings.LastIndexByte(name, '-')+1:], ".")
		n, err := strconv.Atoi(digits)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	slices.SortFunc(rotated, func(a, b string) int { return firstLine(a) - firstLine(b) })
	victim := rotated[len(rotated)/2]
	raw, err := os.ReadFile(victim)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(victim)
	if r := verify(t, audit.VerifyOptions{}, path); !strings.Contains(problems(r), "removed") {
		t.Errorf("a file removed: %q", problems(r))
	}
	damaged := bytes.Clone(raw)
	damaged[len(damaged)/2] ^= 0x40
	os.WriteFile(victim, damaged, 0o600)
	if r := verify(t, audit.VerifyOptions{}, path); !strings.Contains(problems(r), "changed") {
		t.Errorf("a compressed file changed: %q", problems(r))
	}
	if strings.HasSuffix(victim, ".zst") {
		d, _ := zstd.NewReader(bytes.NewReader(raw))
		var plain bytes.Buffer
		plain.ReadFrom(d)
		e, _ := zstd.NewWriter(nil)
		tampered := e.EncodeAll(bytes.Replace(plain.Bytes(), []byte(`"GetObject"`), []byte(`"PutObject"`), 1), nil)
		os.WriteFile(victim, tampered, 0o600)
		if r := verify(t, audit.VerifyOptions{}, path); !strings.HasPrefix(problems(r), filepath.Base(victim)+":1 ") || !strings.Contains(problems(r), "changed") {
			t.Errorf("a line changed in a compressed file: %q", problems(r))
		}
	}
	os.WriteFile(victim, raw, 0o600)
	mustHold(t, path, 3500)
}

func TestVerifyJoinsAnArchive(t *testing.T) {
	no := false
	log, path := open(t, audit.Config{File: &audit.File{MaxSize: 32 << 10, Keep: 1000, Compress: &no}})
	record(t, log, 500)
	closeLog(t, log)
	archive := t.TempDir()
	rotated, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*"))
	for _, f := range rotated {
		if err := os.Rename(f, filepath.Join(archive, filepath.Base(f))); err != nil {
			t.Fatal(err)
		}
	}
	if r := verify(t, audit.VerifyOptions{FromStart: true}, path, archive); !r.OK() || r.Lines != 500 || len(r.Logs) != 1 {
		t.Errorf("%+v", r)
	}
}

func signingKey(t testing.TB) (file string, public ed25519.PublicKey) {
	t.Helper()
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	file = filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(base64.StdEncoding.EncodeToString(seed)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
}

// rechain makes the chain of tampered lines whole again, as who rewrites a log would.
func rechain(lines []string) string {
	var b strings.Builder
	prev := strings.Repeat("0", 64)
	for i, l := range lines {
		l = regexp.MustCompile(`^(\{"schema":"[^"]*","seq":)\d+`).ReplaceAllString(l, fmt.Sprintf("${1}%d", i+1))
		l = l[:strings.LastIndex(l, `"prev":"`)] + `"prev":"` + prev + `"}`
		prev = hash(l)
		b.WriteString(l + "\n")
	}
	return b.String()
}

func TestCheckpointsFindWhatTheChainCannot(t *testing.T) {
	keyFile, public := signingKey(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	no := false
	config := audit.Config{SigningKeyFile: keyFile, File: &audit.File{Path: path, Compress: &no}}
	for range 3 { // one at each close
		log, _ := open(t, config)
		record(t, log, 10)
		closeLog(t, log)
	}
	raw, _ := os.ReadFile(path)
	marks, _ := os.ReadFile(path + ".checkpoints")
	lines := strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")
	signed := slices.Collect(strings.Lines(string(marks)))
	if len(signed) != 3 {
		t.Fatalf("%d checkpoints, want 3:\n%s", len(signed), marks)
	}
	later := func(minutes int) []string { // the last ten lines, as if written minutes after each other
		rewritten := slices.Clone(lines)
		for i := range 10 {
			at := time.Date(2027, 1, 1, 0, i*minutes, 0, 0, time.UTC).Format("2006-01-02T15:04:05.000000Z")
			rewritten[20+i] = regexp.MustCompile(`"time":"[^"]*"`).ReplaceAllString(rewritten[20+i], `"time":"`+at+`"`)
		}
		return rewritten
	}
	otherKey := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	all := audit.VerifyOptions{PublicKeys: []ed25519.PublicKey{public}, FromStart: true}

	for name, tc := range map[string]struct {
		log, marks string
		options    audit.VerifyOptions
		want       string
	}{
		"untouched": {string(raw), string(marks), all, ""},
		"rewritten": {rechain(slices.Concat(lines[:14], []string{strings.Replace(lines[14], "GetObject", "PutObject", 1)}, lines[15:])), string(marks), all,
			"audit.jsonl:0 seq 20 changed"},
		"line taken out and rechained": {rechain(slices.Concat(lines[:14], lines[15:])), string(marks), all,
			"audit.jsonl:0 seq 20 changed; audit.jsonl:0 seq 30 truncated"},
		"cut":                      {strings.Join(lines[:25], "\n") + "\n", string(marks), all, "audit.jsonl:0 seq 26 truncated"},
		"cut with its checkpoints": {strings.Join(lines[:20], "\n") + "\n", strings.Join(signed[:2], ""), audit.VerifyOptions{PublicKeys: []ed25519.PublicKey{public}, MinSeq: 30}, "audit.jsonl:0 seq 21 truncated"},
		"tail rewritten, its checkpoints removed": {rechain(later(5)), strings.Join(signed[:2], ""), all, "audit.jsonl:0 seq 21 checkpoint"},
		"tail not signed yet":                     {rechain(later(0)), strings.Join(signed[:2], ""), all, ""},
		"checkpoint removed":                      {string(raw), signed[0] + signed[2], all, "audit.jsonl.checkpoints:2 seq 30 checkpoint"},
		"checkpoint changed":                      {string(raw), strings.Replace(string(marks), `"seq":20`, `"seq":19`, 1), all, "audit.jsonl.checkpoints:2 seq 19 signature"},
		"checkpoints removed":                     {string(raw), "", all, "audit.jsonl:0 seq 0 checkpoint"},
		"another key":                             {string(raw), string(marks), audit.VerifyOptions{PublicKeys: []ed25519.PublicKey{otherKey}}, "audit.jsonl.checkpoints:1 seq 10 signature"},
		"hashes count without keys":               {string(raw), strings.Replace(string(marks), `"seq":20`, `"seq":19`, 1), audit.VerifyOptions{}, "audit.jsonl.checkpoints:3 seq 30 checkpoint; audit.jsonl:0 seq 19 changed"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "audit.jsonl")
			os.WriteFile(file, []byte(tc.log), 0o600)
			if tc.marks != "" {
				os.WriteFile(file+".checkpoints", []byte(tc.marks), 0o600)
			}
			r := verify(t, tc.options, file)
			if got := problems(r); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
				for _, p := range r.Logs[0].Problems {
					t.Log(p)
				}
			}
		})
	}
}

// TestAnotherSigningKeyTakesOver: verify needs the key in use and those before it, each of which ends with the next.
func TestAnotherSigningKeyTakesOver(t *testing.T) {
	var files []string
	var keys []ed25519.PublicKey
	for i := range 3 {
		seed := bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize)
		file := filepath.Join(t.TempDir(), "key")
		must(t, os.WriteFile(file, []byte(base64.StdEncoding.EncodeToString(seed)), 0o600))
		files = append(files, file)
		keys = append(keys, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
	}
	first, second, stranger := keys[0], keys[1], keys[2]
	// run lets a proxy record events with each of the keys, one after the other.
	run := func(t *testing.T, events int, by ...int) (path string) {
		path = filepath.Join(t.TempDir(), "audit.jsonl")
		for _, key := range by {
			log, _ := open(t, audit.Config{SigningKeyFile: files[key], File: &audit.File{Path: path}})
			record(t, log, events)
			closeLog(t, log)
		}
		return path
	}
	for name, tc := range map[string]struct {
		by   []int
		keys []ed25519.PublicKey
		want string
	}{
		"the new key, then the old one":   {[]int{0, 1}, []ed25519.PublicKey{second, first}, ""},
		"the new key alone":               {[]int{0, 1}, []ed25519.PublicKey{second}, "audit.jsonl.checkpoints:1 seq 5 signature"},
		"the old key alone":               {[]int{0, 1}, []ed25519.PublicKey{first}, "audit.jsonl.checkpoints:2 seq 5 signature"},
		"the old key named as in use":     {[]int{0, 1}, []ed25519.PublicKey{first, second}, "audit.jsonl.checkpoints:2 seq 5 signature"},
		"a stranger besides":              {[]int{0, 1}, []ed25519.PublicKey{second, stranger, first}, ""},
		"signed by the old one only":      {[]int{0, 0}, []ed25519.PublicKey{second, first}, "audit.jsonl.checkpoints:2 seq 10 signature"},
		"the old one signs again":         {[]int{0, 1, 0}, []ed25519.PublicKey{second, first}, "audit.jsonl.checkpoints:4 seq 10 signature"},
		"signed by a stranger in between": {[]int{0, 2, 1}, []ed25519.PublicKey{second, first}, "audit.jsonl.checkpoints:2 seq 5 signature"},
	} {
		t.Run(name, func(t *testing.T) {
			path := run(t, 5, tc.by...)
			r := verify(t, audit.VerifyOptions{FromStart: true, PublicKeys: tc.keys}, path)
			if got := problems(r); got != tc.want {
				t.Errorf("got %q, want %q: %v", got, tc.want, r.Logs[0].Problems)
			}
		})
	}
	t.Run("without an event", func(t *testing.T) {
		path := run(t, 5, 0)
		log, _ := open(t, audit.Config{SigningKeyFile: files[1], File: &audit.File{Path: path}})
		closeLog(t, log)
		if got := problems(verify(t, audit.VerifyOptions{PublicKeys: []ed25519.PublicKey{second, first}}, path)); got != "" {
			t.Error(got)
		}
	})
}
