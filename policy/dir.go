package policy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// dirSource is `policy.dir`.
type dirSource struct {
	dir   string
	offer func(*files) error
}

func (s *dirSource) load(context.Context) error {
	f, err := readDir(s.dir)
	if err != nil {
		return err
	}
	return s.offer(f)
}

// Where the file system tells of changes, they are taken up when it has been quiet for quietTime, so that an
// editor or a checkout can finish; pollTime finds those of which nothing was heard (network file systems).
const (
	quietTime = 100 * time.Millisecond
	pollTime  = 15 * time.Second
)

func (s *dirSource) watch(ctx context.Context, reload func()) { watchTree(ctx, s.dir, reload) }

// watchTree calls reload when a directory, or a file, may have changed, until ctx ends.
func watchTree(ctx context.Context, tree string, reload func()) {
	tree = filepath.Clean(tree)
	var events chan fsnotify.Event
	var errs chan error
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer w.Close()
		events, errs = w.Events, w.Errors
		addWatches(w, tree)
	}
	// A change between the load and the watch would go unseen until the next poll.
	reload()

	poll := time.NewTicker(pollTime)
	defer poll.Stop()
	quiet := time.NewTimer(time.Hour)
	defer quiet.Stop()
	quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case event, ok := <-events:
			if !ok {
				events = nil
			} else if event.Op != fsnotify.Chmod && concerns(tree, event.Name) {
				quiet.Reset(quietTime)
			}
		case <-errs: // events were lost, or the watcher is closed
			quiet.Reset(quietTime)
			if events == nil {
				errs = nil
			}
		case <-quiet.C:
			if w != nil {
				addWatches(w, tree)
			}
			reload()
		case <-poll.C:
			if w != nil {
				addWatches(w, tree)
			}
			reload()
		}
	}
}

// addWatches watches every directory of the policy. Where the policy's own name is a link that may be swapped, a file,
// or not there, it watches the directory that the name is in, and only then: there may be the audit log and its
// journal too, and to be told of every write to them costs a request as much again as the writes. Those that cannot be
// watched are left to the poll.
func addWatches(w *fsnotify.Watcher, tree string) {
	if info, err := os.Lstat(tree); err == nil && info.IsDir() {
		w.Remove(filepath.Dir(tree)) // a directory tells itself that it is moved or removed
	} else {
		w.Add(filepath.Dir(tree))
	}
	root, err := filepath.EvalSymlinks(tree)
	if err != nil {
		return
	}
	w.Add(root)
	walk(root, "", 0, func(name string, isDir bool) {
		if isDir {
			w.Add(filepath.Join(root, filepath.FromSlash(name)))
		}
	})
}

// concerns leaves out the policy's neighbours.
func concerns(tree, name string) bool {
	return filepath.Dir(name) != filepath.Dir(tree) || filepath.Base(name) == filepath.Base(tree)
}

// readDir reads the policy below dir as `opa eval --data dir` would: every *.rego file, and every JSON and YAML
// file as data below the path of its directory. Left out are the tests (*_test.*), and what begins with a dot: a
// Kubernetes ConfigMap keeps its versions in such directories, editors their half-written files.
func readDir(dir string) (*files, error) { return readTree(dir, false) }

func readTree(dir string, tests bool) (*files, error) {
	// The root is resolved once, so that a link that is swapped meanwhile cannot mix two versions.
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("policy directory: %w", err)
	}
	f := newFiles()
	err = walk(root, "", 0, func(name string, isDir bool) {
		if isDir || !isPolicyFile(name) || isTest(name) && !tests {
			return
		}
		content, readErr := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		if readErr != nil {
			err = readErr
			return
		}
		f.add(name, content)
	})
	if err != nil {
		return nil, fmt.Errorf("policy directory: %w", err)
	}
	if len(f.rego) == 0 {
		return nil, fmt.Errorf("policy directory %s: no *.rego file in it", dir)
	}
	f.revision = f.hash()
	return f, nil
}

// walk visits what is below root, by its path with slashes. It follows links to files and directories; depth ends
// those that go round.
func walk(root, name string, depth int, visit func(name string, isDir bool)) error {
	if depth > 32 {
		return fmt.Errorf("%s: directories nested too deep; does a link lead round in a circle?", name)
	}
	entries, err := os.ReadDir(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		child := path.Join(name, entry.Name())
		info, err := os.Stat(filepath.Join(root, filepath.FromSlash(child)))
		switch {
		case err != nil:
			return err
		case info.IsDir():
			visit(child, true)
			if err := walk(root, child, depth+1, visit); err != nil {
				return err
			}
		case info.Mode().IsRegular():
			visit(child, false)
		}
	}
	return nil
}

func newFiles() *files {
	return &files{rego: map[string][]byte{}, docs: map[string][]byte{}}
}

func (f *files) add(name string, content []byte) {
	if path.Ext(name) == ".rego" {
		f.rego[name] = content
	} else {
		f.docs[name] = content
	}
}

// hash names the content where the source has no name for it.
func (f *files) hash() string {
	h := sha256.New()
	for _, part := range []map[string][]byte{f.rego, f.docs} {
		for _, name := range sortedKeys(part) {
			hashPart(h, name)
			hashPart(h, string(part[name]))
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// hashPart tells "ab","c" from "a","bc".
func hashPart(h io.Writer, s string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(s)))
	h.Write(n[:])
	io.WriteString(h, s)
}

func isPolicyFile(name string) bool {
	return slices.Contains([]string{".rego", ".json", ".yaml", ".yml"}, path.Ext(name))
}

func isTest(name string) bool {
	return strings.HasSuffix(strings.TrimSuffix(name, path.Ext(name)), "_test")
}
