package audit_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/audit/ship"
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

// TestWhatIsPutInTheLogsPlaceIsPutAside, and nothing is written through it.
func TestWhatIsPutInTheLogsPlaceIsPutAside(t *testing.T) {
	for name, put := range map[string]func(t *testing.T, path, elsewhere string){
		"a link to nothing":        func(t *testing.T, path, elsewhere string) { must(t, os.Symlink(elsewhere, path)) },
		"a link to an empty file":  func(t *testing.T, path, elsewhere string) { makeEmpty(elsewhere); must(t, os.Symlink(elsewhere, path)) },
		"a link to the moved file": func(t *testing.T, path, elsewhere string) { must(t, os.Symlink(path+".1", path)) },
		"a directory":              func(t *testing.T, path, elsewhere string) { must(t, os.Mkdir(path, 0o700)) },
		"a pipe that nobody reads": func(t *testing.T, path, elsewhere string) { pipe(t, path) },
		"a link to a device":       func(t *testing.T, path, elsewhere string) { must(t, os.Symlink(os.DevNull, path)) },
		"another file with a line": func(t *testing.T, path, elsewhere string) { must(t, os.WriteFile(path, []byte("hello\n"), 0o600)) },
		"an empty file":            func(t *testing.T, path, elsewhere string) { makeEmpty(path) },
	} {
		t.Run(name, func(t *testing.T) {
			elsewhere := filepath.Join(t.TempDir(), "elsewhere")
			far := startRefusing(t, func(string) bool { return false })
			no := false
			log, path := open(t, audit.Config{InFlight: 64, File: &audit.File{MaxSize: 16 << 10, Keep: 100, Compress: &no},
				Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: "http://" + far.address}}}})
			record(t, log, 5)
			eventually(t, "all is written, and sent", func() bool { s := log.Stats(); return s.Written == 5 && s.Ship[0].Lag == 0 })
			must(t, os.Rename(path, path+".1"))
			put(t, path, elsewhere)
			record(t, log, 100)
			eventually(t, "all is written, and sent", func() bool { s := log.Stats(); return s.Written == 105 && s.Ship[0].Lag == 0 })
			closeLog(t, log)
			if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
				t.Errorf("the log is %v, %v", info, err)
			}
			if info, err := os.Stat(elsewhere); err == nil && info.Size() > 0 || err == nil && name == "a link to nothing" {
				t.Error("it was written elsewhere")
			}
			if r := verify(t, audit.VerifyOptions{FromStart: true, MinSeq: 105}, path, path+".1"); !r.OK() {
				t.Error(r.Logs[0].Problems)
			}
			if got := far.got(); len(got) != 105 {
				t.Errorf("the far end has %d events of 105", len(got))
			}
		})
	}
}

// TestNoLinkIsFollowedBesideTheLog: who may write its directory must not choose what of ours is overwritten.
func TestNoLinkIsFollowedBesideTheLog(t *testing.T) {
	const precious = "precious\n"
	victim := filepath.Join(t.TempDir(), "victim")
	must(t, os.WriteFile(victim, []byte(precious), 0o600))
	key, _ := signingKey(t)
	path, rotated := twoFiles(t)
	far := startRefusing(t, func(string) bool { return false })
	must(t, os.Symlink(victim, rotated+".zst.tmp"))
	must(t, os.Symlink(victim, path+".ship-webhook.tmp"))
	must(t, os.Symlink(victim, path+".journal.new"))
	log, _ := open(t, audit.Config{SigningKeyFile: key, File: &audit.File{Path: path, MaxSize: 4 << 10, Keep: 1000},
		Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: "http://" + far.address}}}})
	os.Remove(path + ".checkpoints")
	must(t, os.Symlink(victim, path+".checkpoints"))
	record(t, log, 15) // rotating signs
	eventually(t, "they are written", func() bool { return log.Stats().Written == 15 })
	os.Remove(path + ".checkpoints")
	pipe(t, path+".checkpoints")
	record(t, log, 15)
	eventually(t, "all is sent, and compressed", func() bool {
		_, err := os.Stat(rotated + ".zst")
		s := log.Stats()
		return s.Written == 30 && s.Ship[0].Lag == 0 && err == nil
	})
	os.Remove(path + ".checkpoints")
	closeLog(t, log)
	if raw, err := os.ReadFile(victim); err != nil || string(raw) != precious {
		t.Errorf("it is now %q, %v", raw, err)
	}
	if raw, err := os.ReadFile(path + ".checkpoints"); err != nil || len(raw) == 0 {
		t.Errorf("once the link is gone there are no checkpoints: %v", err)
	}
	if r := verify(t, audit.VerifyOptions{FromStart: true}, path); len(r.Logs) != 1 || r.Logs[0].Last != 40 {
		t.Errorf("%+v", r)
	}
}

// TestTheDirectorySwappedForALinkToAnother: names are looked up anew, so the log goes on there, and its parts are one chain.
func TestTheDirectorySwappedForALinkToAnother(t *testing.T) {
	root := t.TempDir()
	dir, first, second := filepath.Join(root, "log"), filepath.Join(root, "first"), filepath.Join(root, "second")
	must(t, os.Mkdir(first, 0o700))
	must(t, os.Mkdir(second, 0o700))
	must(t, os.Symlink(first, dir))
	no := false
	log, path := open(t, audit.Config{File: &audit.File{Path: filepath.Join(dir, "audit.jsonl"), MaxSize: 4 << 10, Keep: 1000, Compress: &no}})
	stop := serve(t, log)
	eventually(t, "files are rotated", func() bool { return log.Stats().Written > 50 })
	must(t, os.Symlink(second, dir+".new"))
	must(t, os.Rename(dir+".new", dir))
	written := log.Stats().Written
	eventually(t, "files are rotated there", func() bool { return log.Stats().Written > written+50 })
	eventually(t, "the journal is there", func() bool {
		_, err := os.Stat(filepath.Join(second, filepath.Base(path)+".journal"))
		return err == nil
	})
	served, _ := stop()
	closeLog(t, log)
	mustHoldExactly(t, served, filepath.Join(first, "audit.jsonl"), filepath.Join(second, "audit.jsonl"))
}

// TestOneProcessForALogWhateverWasDoneToIt: what the first holds may have another name by now.
func TestOneProcessForALogWhateverWasDoneToIt(t *testing.T) {
	for name, do := range map[string]func(t *testing.T, log *audit.Log, path string){
		"rotated": func(t *testing.T, log *audit.Log, path string) {
			record(t, log, 50)
			eventually(t, "it is rotated", func() bool { return log.Stats().Files.Rotated > 0 && log.Stats().Written == 60 })
		},
		"moved away":          func(t *testing.T, log *audit.Log, path string) { must(t, os.Rename(path, path+".1")) },
		"removed":             func(t *testing.T, log *audit.Log, path string) { must(t, os.Remove(path)) },
		"its journal removed": func(t *testing.T, log *audit.Log, path string) { must(t, os.Remove(path+".journal")) },
	} {
		t.Run(name, func(t *testing.T) {
			c := audit.Config{InFlight: 64, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxSize: 8 << 10, Keep: 100}}
			log, path := open(t, c)
			record(t, log, 10)
			eventually(t, "they are written", func() bool { return log.Stats().Written == 10 })
			do(t, log, path)
			if second, err := audit.Open(context.Background(), c); err == nil {
				closeLog(t, second)
				t.Error("a second log opens")
			} else if !strings.Contains(err.Error(), "another process") {
				t.Error(err)
			}
			record(t, log, 10)
			closeLog(t, log)
			again, _ := open(t, c)
			closeLog(t, again)
			if r := verify(t, audit.VerifyOptions{FromStart: true}, filepath.Dir(path)); !r.OK() {
				t.Error(r.Logs[0].Problems)
			}
		})
	}
}

// TestWhatIsNoFileKeepsALogFromOpening, and from waiting for it.
func TestWhatIsNoFileKeepsALogFromOpening(t *testing.T) {
	for name, put := range map[string]func(t *testing.T, path string){
		"a directory": func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) },
		"a pipe":      func(t *testing.T, path string) { pipe(t, path) },
		"a device":    func(t *testing.T, path string) { must(t, os.Symlink(os.DevNull, path)) },
	} {
		for what, suffix := range map[string]string{"log": "", "journal": ".journal", "checkpoints": ".checkpoints"} {
			if suffix == ".journal" && name != "a directory" {
				continue // it has no events, and is replaced
			}
			t.Run(name+" for the "+what, func(t *testing.T) {
				key, _ := signingKey(t)
				c := audit.Config{InFlight: 8, SigningKeyFile: key, File: &audit.File{Path: filepath.Join(t.TempDir(), "audit.jsonl")}}
				put(t, c.File.Path+suffix)
				done := make(chan error, 1)
				go func() {
					log, err := audit.Open(context.Background(), c)
					if err == nil {
						log.Close(context.Background())
						err = errors.New("it opens")
					}
					done <- err
				}()
				var err error
				eventually(t, "it says something", func() bool {
					select {
					case err = <-done:
						return true
					default:
						return false
					}
				})
				if err == nil || err.Error() == "it opens" || !strings.Contains(err.Error(), filepath.Base(c.File.Path)) && !strings.Contains(err.Error(), os.DevNull) {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
