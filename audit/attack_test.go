package audit_test

import (
	"context"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/sluice-s3/sluice/audit"
)

// What somebody would try who can write the log's directory but has not the key, and what the machine does to it by
// itself.

// twoFiles is a log of a rotated file and one that is written.
func twoFiles(t *testing.T) (path, rotated string) {
	t.Helper()
	no := false
	log, path := open(t, audit.Config{File: &audit.File{MaxSize: 4 << 10, Keep: 1000, Compress: &no}})
	record(t, log, 10)
	closeLog(t, log)
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*"))
	slices.Sort(files)
	if len(files) == 0 {
		t.Fatal("nothing was rotated")
	}
	return path, files[len(files)-1]
}

func edit(t *testing.T, path string, change func(raw []byte) []byte) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(raw), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAFileOfTheLogCannotHideInItsDirectory(t *testing.T) {
	garble := func(raw []byte) []byte { return append([]byte("x"), raw...) }
	for name, attack := range map[string]func(t *testing.T, path, rotated string){
		"first line of what is written": func(t *testing.T, path, rotated string) { edit(t, path, garble) },
		"first line of a rotated file":  func(t *testing.T, path, rotated string) { edit(t, rotated, garble) },
		"compressed, and its head damaged": func(t *testing.T, path, rotated string) {
			edit(t, rotated, func(raw []byte) []byte {
				e, _ := zstd.NewWriter(nil)
				raw = e.EncodeAll(raw, nil)
				raw[6] ^= 0xff
				return raw
			})
			os.Rename(rotated, rotated+".zst")
		},
		"swapped": func(t *testing.T, path, rotated string) {
			os.Rename(path, path+".x")
			os.Rename(rotated, path)
			os.Rename(path+".x", rotated)
		},
		"an old one in the place of what is written": func(t *testing.T, path, rotated string) {
			raw, _ := os.ReadFile(rotated)
			os.WriteFile(path, raw, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, rotated := twoFiles(t)
			attack(t, path, rotated)
			for _, named := range []string{path, filepath.Dir(path)} {
				if r := verify(t, audit.VerifyOptions{}, named); r.OK() {
					t.Errorf("verify %s finds nothing wrong: %+v", filepath.Base(named), r.Logs)
				}
			}
		})
	}
}

func TestWhatIsFoundCannotCommandTheTerminal(t *testing.T) {
	keyFile, public := signingKey(t)
	log, path := open(t, audit.Config{SigningKeyFile: keyFile})
	record(t, log, 3)
	closeLog(t, log)
	edit(t, path+".checkpoints", func(raw []byte) []byte {
		return []byte(strings.Replace(string(raw), `"key_id":"`, `"key_id":"\u001b]0;owned\u0007`, 1))
	})
	r := verify(t, audit.VerifyOptions{PublicKeys: []ed25519.PublicKey{public}}, path)
	if r.OK() {
		t.Fatal("nothing is wrong")
	}
	if got := r.Logs[0].Problems[0].String(); strings.ContainsAny(got, "\x1b\x07") {
		t.Errorf("%q", got)
	}
}

func TestOneProcessForALogByWhateverName(t *testing.T) {
	_, path := open(t, audit.Config{})
	for name, link := range map[string]func(old, new string) error{"a symbolic link": os.Symlink, "a hard link": os.Link} {
		other := filepath.Join(t.TempDir(), "other.jsonl")
		if err := link(path, other); err != nil {
			t.Fatal(err)
		}
		log, err := audit.Open(context.Background(), audit.Config{File: &audit.File{Path: other}})
		if err == nil {
			closeLog(t, log)
			t.Errorf("a second log opens by %s", name)
		} else if !strings.Contains(err.Error(), "another process") {
			t.Errorf("by %s: %v", name, err)
		}
	}
}

func TestALinkedLogIsWhereTheLinkLeads(t *testing.T) {
	real, names := t.TempDir(), t.TempDir()
	link := filepath.Join(names, "audit.jsonl")
	if err := os.Symlink(filepath.Join(real, "audit.jsonl"), link); err != nil {
		t.Fatal(err)
	}
	no := false
	for range 2 { // at first the link leads nowhere
		log, _ := open(t, audit.Config{File: &audit.File{Path: link, MaxSize: 4 << 10, Keep: 1000, Compress: &no}})
		record(t, log, 20)
		closeLog(t, log)
	}
	mustHold(t, link, 40)
	mustHold(t, filepath.Join(real, "audit.jsonl"), 40)
	if left, _ := os.ReadDir(names); len(left) != 1 {
		t.Errorf("beside the link are %v", left)
	}
}
