package audit

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Read yields the events of logs, oldest first. A path is a log (its rotated files come with it), one of its
// files, compressed or not, or a directory of logs; they may be given in any order. Logs of several proxies are
// read one after the other. Lines that are no events are errors, after which Read goes on.
func Read(paths ...string) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		for line, err := range readLines(paths, time.Time{}) {
			var ev *Event
			if err == nil {
				ev = new(Event)
				if err = json.Unmarshal(line.text, ev); err != nil {
					ev, err = nil, fmt.Errorf("%s:%d: not an audit event: %w", line.file, line.number, err)
				}
			}
			if !yield(ev, err) {
				return
			}
		}
	}
}

// textLine is one line of a log, good until the next one is asked for.
type textLine struct {
	file   string
	number int // from 1
	text   []byte
}

// clockError is how far a clock is taken to have been set back at most: somebody had the time zone wrong.
const clockError = 24 * time.Hour

// readLines yields the lines of logs, leaving out files that were done before since. An unfinished last line is left
// out: it is being written.
func readLines(paths []string, since time.Time) iter.Seq2[textLine, error] {
	return func(yield func(textLine, error) bool) {
		logs, err := findLogs(paths)
		if err != nil {
			yield(textLine{}, err)
			return
		}
		for _, log := range logs {
			for _, f := range log.files {
				// A line is written after its event's time, unless the clock was set back in between.
				if info, err := os.Stat(f.path); err == nil && info.ModTime().Before(since.Add(-clockError)) {
					continue
				}
				if !readFile(f.path, yield) {
					return
				}
			}
		}
	}
}

func readFile(path string, yield func(textLine, error) bool) (goOn bool) {
	r, err := openLog(path)
	if err != nil {
		return yield(textLine{file: path}, err)
	}
	defer r.Close()
	lines := newLineReader(r)
	for n := 1; ; n++ {
		text, err := lines.next()
		if err == io.EOF || err == errUnfinished {
			return true
		}
		if err != nil {
			return yield(textLine{file: path, number: n}, fmt.Errorf("%s:%d: %w", path, n, err))
		}
		if !yield(textLine{path, n, text}, nil) {
			return false
		}
	}
}

// foundLog is the files of one log, in order.
type foundLog struct {
	path        string // of the file that is written, whether or not it is there
	files       []logFile
	checkpoints string // "" = there are none
}

var (
	rotatedPattern = regexp.MustCompile(`^(.*)-\d{8}T\d{6}\.\d{3}Z-\d+(\.[^.]*)?$`)
	numberSuffix   = regexp.MustCompile(`\.\d+$`)
)

// logOf is the log that a file belongs to, by its name: our rotated names, and logrotate's.
func logOf(path string) (log string, rotated bool) {
	plain := plainName(path)
	if m := rotatedPattern.FindStringSubmatch(filepath.Base(plain)); m != nil {
		return filepath.Join(filepath.Dir(plain), m[1]+m[2]), true
	}
	if short := numberSuffix.ReplaceAllString(plain, ""); short != plain {
		return short, true
	}
	return plain, plain != path
}

// isSidecar tells the files that are kept beside a log.
func isSidecar(name string) bool {
	for _, mark := range []string{journalSuffix, checkpointsSuffix, shipSuffix, ".replaced-"} {
		if strings.Contains(name, mark) {
			return true
		}
	}
	return strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".restored")
}

// findLogs finds the files that paths mean.
func findLogs(paths []string) ([]*foundLog, error) {
	if len(paths) == 0 {
		return nil, errors.New("no audit log named")
	}
	logs := map[string]*foundLog{}
	var order []string
	add := func(path string) error {
		path = filepath.Clean(path)
		name, _ := logOf(path)
		log := logs[name]
		if log == nil {
			log = &foundLog{path: name}
			logs[name] = log
			order = append(order, name)
		}
		if slices.ContainsFunc(log.files, func(f logFile) bool { return plainName(f.path) == plainName(path) }) {
			return nil
		}
		f := logFile{path: path, compressed: plainName(path) != path, rotated: path != name}
		var err error
		f.firstSeq, err = firstOf(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // rotated meanwhile
		case errors.As(err, new(*fs.PathError)):
			return err
		}
		// Where it cannot be read as a log, whoever reads it will say so.
		// A name says where the file belongs even when its first line was tampered with.
		if seq, _, ok := parseRotated(filepath.Base(name), filepath.Base(path)); ok {
			f.firstSeq = seq
		}
		log.files = append(log.files, f)
		return nil
	}
	for _, path := range paths {
		path = behindLinks(path)
		info, err := os.Stat(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		switch {
		case err == nil && info.IsDir():
			names, err := os.ReadDir(path)
			if err != nil {
				return nil, err
			}
			var unlike []string // files that do not begin as a log does
			found := false
			for _, name := range names {
				file := filepath.Join(path, name.Name())
				if isSidecar(name.Name()) || !name.Type().IsRegular() {
					continue
				}
				if seq, err := firstOf(file); err != nil || seq == 0 {
					unlike = append(unlike, file)
					continue
				}
				found = true
				if err := add(file); err != nil {
					return nil, err
				}
			}
			if !found {
				return nil, fmt.Errorf("%s: no audit log in this directory", path)
			}
			// By their names they are a log's all the same: what was done to their beginning must show.
			for _, file := range unlike {
				log, _ := logOf(filepath.Clean(file))
				if info, err := os.Stat(file); logs[log] == nil || err != nil || info.Size() == 0 {
					continue
				}
				if err := add(file); err != nil {
					return nil, err
				}
			}
		case isSidecar(filepath.Base(path)) && err == nil:
			// `audit*` names these too.
			if log, ok := strings.CutSuffix(filepath.Clean(path), checkpointsSuffix); ok && logs[log] == nil {
				logs[log] = &foundLog{path: log}
				order = append(order, log)
			}
		default:
			_, rotated := logOf(filepath.Clean(path))
			var siblings []logFile
			if !rotated {
				siblings, _ = rotatedFiles(filepath.Clean(path))
			}
			if err != nil && len(siblings) == 0 {
				return nil, err
			}
			for _, f := range siblings {
				if err := add(f.path); err != nil {
					return nil, err
				}
			}
			if err == nil {
				if err := add(path); err != nil {
					return nil, err
				}
			}
		}
	}
	var result []*foundLog
	for _, name := range order {
		log := logs[name]
		slices.SortStableFunc(log.files, func(a, b logFile) int {
			if a.rotated != b.rotated { // the one that is written is the last
				if a.rotated {
					return -1
				}
				return 1
			}
			return cmp.Compare(a.firstSeq, b.firstSeq)
		})
		if info, err := os.Stat(name + checkpointsSuffix); err == nil && info.Size() > 0 {
			log.checkpoints = name + checkpointsSuffix
		}
		result = append(result, log)
	}
	return result, nil
}

// rotatedSince looks for the files again, and reports whether they are others now.
func (l *foundLog) rotatedSince() bool {
	if len(l.files) == 0 || l.files[len(l.files)-1].rotated {
		return false
	}
	again, err := findLogs([]string{l.path})
	if err != nil || len(again) != 1 {
		return false
	}
	same := slices.EqualFunc(l.files, again[0].files, func(a, b logFile) bool { return a.path == b.path && a.firstSeq == b.firstSeq })
	if !same {
		l.files = again[0].files
	}
	return !same
}

// firstOf is the number of a file's first line; 0 = it has none, or it is no log.
func firstOf(path string) (uint64, error) {
	r, err := openLog(path)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	line, err := newLineReader(r).next()
	if err != nil && err != io.EOF && err != errUnfinished {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	seq, _, _ := lineSeq(line)
	return seq, nil
}
