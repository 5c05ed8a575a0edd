package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// file is the log on disk. One goroutine writes it.
type file struct {
	path    string
	maxSize int64
	logger  *slog.Logger
	now     func() time.Time

	rotateAfter time.Time      // a rotation failed: not before this
	retired     func(*os.File) // takes files that are done with
	rotating    func()         // the file is about to be put away; may be nil
	durable     bool
	end         chainEnd    // of what is in the log for good
	held        os.FileInfo // what f is, or was

	mu       sync.Mutex // guards what follows against flush, which runs beside the writer
	f        *os.File   // nil = to be opened
	size     int64      // of whole lines in f
	firstSeq uint64     // of f's first line; 0 = empty
	dirty    bool
}

// openFile opens the log, cuts what a death left of an unfinished line, and finds where the chain stands.
func openFile(c *File, logger *slog.Logger, now func() time.Time, retired func(*os.File)) (l *file, end chainEnd, err error) {
	l = &file{path: c.Path, maxSize: int64(c.MaxSize), durable: c.Fsync != fsyncOff, logger: logger, now: now, retired: retired}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o750); err != nil {
		return nil, chainEnd{}, fmt.Errorf("make the audit log's directory: %w", err)
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|noFollow, 0o640) // links to it were followed before
	if err != nil {
		return nil, chainEnd{}, fmt.Errorf("open the audit log: %w", err)
	}
	end, err = l.adopt(f)
	if err != nil {
		f.Close()
		return nil, chainEnd{}, fmt.Errorf("read the end of the audit log %s: %w", l.path, err)
	}
	if end.seq == 0 {
		files, err := rotatedFiles(l.path)
		if err != nil {
			return nil, end, fmt.Errorf("list the audit log's files: %w", err)
		}
		// The newest file with a line in it that can be read.
		for i := len(files) - 1; i >= 0 && end.seq == 0; i-- {
			if end, err = endOf(files[i].path); err != nil {
				// Where its last line is not known from elsewhere, lines of it that cannot be read are numbered again.
				for _, w := range append(placesOf(l.path), lastCheckpoint(l.path)) {
					if w.seq > end.seq {
						end = w.chainEnd
					}
				}
				logger.Error("audit: the newest file cannot be read to its end: the chain goes on from the last line known, and `audit verify` will name the place",
					"file", files[i].path, "error", err, "last_seq", end.seq)
			}
		}
	}
	l.end = end
	return l, end, nil
}

var errNoFile = errors.New("it is not a regular file")

// adopt makes f, which is at l.path, what is written.
func (l *file) adopt(f *os.File) (end chainEnd, err error) {
	info, err := f.Stat()
	if err != nil {
		return end, err
	}
	if !info.Mode().IsRegular() {
		return end, errNoFile
	}
	if err := lock(f); err != nil { // it may have other names than the one beside which the journal is
		return end, err
	}
	end, good, broken, err := readEnd(f, info.Size())
	if err != nil {
		return end, err
	}
	first, err := firstSeqOf(f)
	if err != nil {
		return end, err
	}
	if broken {
		// Lines that are no lines: it is not ours to remove them. The file is put aside as it is, for `audit
		// verify` to name them, and the chain goes on from the last good one.
		aside := rotatedName(l.path, first, l.now())
		l.logger.Error("the audit log ends in lines that are no events: putting the file aside", "file", aside, "last_good_seq", end.seq)
		if err := os.Rename(l.path, aside); err != nil {
			return end, err
		}
		if err := f.Close(); err != nil {
			return end, err
		}
		return end, l.create()
	}
	if cut := info.Size() - good; cut > 0 {
		l.logger.Warn("the audit log ended in the middle of a line: cutting it off, the journal has its event", "bytes", cut)
		if err := f.Truncate(good); err != nil {
			return end, err
		}
	}
	l.set(f, info, good, first)
	return end, nil
}

func (l *file) set(f *os.File, info os.FileInfo, size int64, first uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.f, l.held, l.size, l.firstSeq = f, info, size, first
}

func firstSeqOf(f *os.File) (uint64, error) {
	line, err := newLineReader(io.NewSectionReader(f, 0, 1<<62)).next()
	if err != nil && err != io.EOF && err != errUnfinished {
		return 0, err
	}
	seq, _, _ := lineSeq(line)
	return seq, nil
}

// create begins a new file at l.path, where none is.
func (l *file) create() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = lock(f)
	}
	if err != nil {
		f.Close()
		return err
	}
	l.set(f, info, 0, 0)
	return nil
}

// append writes whole lines, as many as the file has room for. It returns how many bytes of them are in the log
// for good; the rest must be given to append again, after an error or without.
func (l *file) append(lines []byte) (int, error) {
	if l.f == nil {
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	if !l.now().Before(l.rotateAfter) {
		fits := l.fit(lines)
		if fits == 0 {
			if err := l.rotate(); err != nil {
				if l.f == nil {
					return 0, err
				}
				l.logger.Error("rotate the audit log: it goes on growing", "error", err)
				l.rotateAfter = l.now().Add(10 * time.Second)
				fits = len(lines)
			} else {
				fits = l.fit(lines)
			}
		}
		lines = lines[:fits]
	}
	n, err := l.f.Write(lines)
	if err != nil {
		// What is there of a line is taken back: whoever reads the log sees whole lines.
		whole := bytes.LastIndexByte(lines[:n], '\n') + 1
		if whole < n {
			if cutErr := l.f.Truncate(l.size + int64(whole)); cutErr != nil {
				// Not even that: begin again, which cuts it.
				l.abandon()
				return 0, errors.Join(err, cutErr)
			}
		}
		n = whole
	}
	if n > 0 {
		l.mu.Lock()
		l.size += int64(n)
		l.dirty = true
		if l.firstSeq == 0 {
			l.firstSeq, _, _ = lineSeq(lines[:bytes.IndexByte(lines, '\n')])
		}
		l.mu.Unlock()
	}
	if err != nil {
		if n > 0 {
			l.noteEnd(lines[:n])
		}
		return n, fmt.Errorf("write the audit log: %w", err)
	}
	if err := l.check(lines); err != nil {
		// Not where readers look: take it back and write it again later.
		l.mu.Lock()
		l.size -= int64(n)
		l.mu.Unlock()
		if l.f != nil {
			if cutErr := l.f.Truncate(l.size); cutErr != nil {
				l.abandon()
			}
		}
		return 0, err
	}
	l.noteEnd(lines)
	return n, nil
}

// fit is how much of lines goes into the file before it is full: whole lines, and into an empty file at least one.
func (l *file) fit(lines []byte) int {
	room := l.maxSize - l.size
	if int64(len(lines)) <= room {
		return len(lines)
	}
	n := 0
	if room > 0 {
		n = bytes.LastIndexByte(lines[:room], '\n') + 1
	}
	if n == 0 && l.size == 0 {
		n = bytes.IndexByte(lines, '\n') + 1
	}
	return n
}

func (l *file) noteEnd(lines []byte) {
	last := bytes.TrimSuffix(lines, []byte("\n"))
	last = last[bytes.LastIndexByte(last, '\n')+1:]
	if seq, _, ok := lineSeq(last); ok {
		l.end = chainEnd{seq, lineHash(last)}
	}
}

// abandon closes the file; the next append opens it again.
func (l *file) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}

// open opens the log again: after abandon, a failed rotation, or when it was moved away. What has its name and
// is not what we wrote is put aside.
func (l *file) open() error {
	// A link that was put there since the start is not followed: who may write here would choose where else we write.
	if named, err := os.Lstat(l.path); err == nil && !named.Mode().IsRegular() {
		return l.replace()
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|noFollow, 0o640)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() > 0 && !os.SameFile(info, l.held) {
		var end chainEnd
		if end, _, _, err = readEnd(f, info.Size()); err == nil && end.hash != l.end.hash {
			f.Close()
			return l.replace()
		}
	}
	if err == nil {
		_, err = l.adopt(f)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("open the audit log: %w", err)
	}
	return nil
}

// replace begins a new file in the place of what has the log's name.
func (l *file) replace() error {
	if err := l.putAside(); err != nil {
		return err
	}
	if err := l.create(); err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	return nil
}

func (l *file) putAside() error {
	aside := l.path + ".replaced-" + l.now().UTC().Format(rotatedTime)
	l.logger.Error("another file has the audit log's name: putting it aside", "file", aside)
	if err := os.Rename(l.path, aside); err != nil {
		return fmt.Errorf("put aside what has the audit log's name: %w", err)
	}
	return nil
}

// check looks whether what we write is still what has the log's name, after just was written. An error means
// that just is not in the log.
func (l *file) check(just []byte) error {
	named, err := os.Lstat(l.path) // a link to it is not it: rotating would put the link away
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the audit log: %w", err)
	}
	held, heldErr := l.f.Stat()
	if heldErr != nil {
		return fmt.Errorf("look for the audit log: %w", heldErr)
	}
	switch {
	case err == nil && os.SameFile(named, held):
		if held.Size() != l.size {
			return l.resized(held.Size(), just)
		}
	case links(held) > 0:
		// Renamed by somebody: what we wrote is there. The next append goes on in a new file.
		l.logger.Warn("the audit log was moved away: going on in a new file", "file", l.path)
		old := l.f
		l.mu.Lock()
		l.f = nil
		l.mu.Unlock()
		l.retired(old)
	default:
		l.logger.Error("the audit log was removed: writing it again", "file", l.path, "bytes", l.size)
		return l.restore()
	}
	return nil
}

// resized is what becomes of a file that is not as long as we left it. It must end in just, and just begin a line: what
// somebody left of one before it would take our first with it.
func (l *file) resized(size int64, just []byte) error {
	l.logger.Error("the audit log was changed by somebody else: `audit verify` will tell what is wrong", "file", l.path, "bytes", size, "expected", l.size)
	if len(just) == 0 {
		l.abandon() // the next append looks at it afresh, and cuts such a rest
		return nil
	}
	before := size - int64(len(just))
	tail := make([]byte, len(just)+1)
	tail[0] = '\n'
	skip := 0
	if before <= 0 {
		skip = 1
	}
	n, err := l.f.ReadAt(tail[skip:], max(0, before-1))
	if n < len(tail)-skip || !bytes.Equal(tail[1:], just) {
		l.abandon()
		return errors.Join(errors.New("the audit log was cut while it was written"), err)
	}
	if tail[0] != '\n' {
		err := l.f.Truncate(before)
		l.abandon()
		return errors.Join(errors.New("somebody wrote part of a line into the audit log"), err)
	}
	l.mu.Lock()
	l.size = size
	l.mu.Unlock()
	return nil
}

// restore writes the file that was deleted while we had it open under its name again.
func (l *file) restore() error {
	name := l.path + ".restored"
	os.Remove(name)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return fmt.Errorf("restore the audit log: %w", err)
	}
	_, err = io.Copy(f, io.NewSectionReader(l.f, 0, l.size))
	if err == nil {
		if info, statErr := os.Lstat(l.path); statErr == nil && (info.Size() > 0 || info.IsDir()) {
			err = l.putAside()
		}
	}
	if err == nil {
		err = os.Rename(name, l.path)
	}
	if err != nil {
		f.Close()
		os.Remove(name)
		return fmt.Errorf("restore the audit log: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		err = lock(f)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("restore the audit log: %w", err)
	}
	old := l.f
	l.set(f, info, l.size, l.firstSeq)
	l.mu.Lock()
	l.dirty = true
	l.mu.Unlock()
	old.Close()
	return nil
}

// rotate puts the file away under a name of its own and begins a new one. On an error l.f is nil where nothing
// can be written.
func (l *file) rotate() error {
	name := rotatedName(l.path, l.firstSeq, l.now())
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("%s exists", name)
	}
	if l.rotating != nil {
		l.rotating()
	}
	if err := os.Rename(l.path, name); err != nil {
		return err
	}
	old := l.f
	if err := l.create(); err != nil {
		// Back, if that can be done: better too large a file than none.
		if os.Rename(name, l.path) != nil {
			l.mu.Lock()
			l.f = nil
			l.mu.Unlock()
			l.retired(old)
		}
		return err
	}
	l.retired(old)
	if l.durable {
		return syncDir(l.dir())
	}
	return nil
}

func (l *file) dir() string { return filepath.Dir(l.path) }

// reopen is for SIGHUP: it looks whether the file is still there, and makes it anew where it is not.
func (l *file) reopen() error {
	if l.f == nil {
		return l.open()
	}
	if err := l.check(nil); err != nil {
		return err
	}
	if l.f == nil {
		return l.open()
	}
	return nil
}

// flush waits for the disk. It may be called beside the writer.
func (l *file) flush() error {
	l.mu.Lock()
	f, dirty := l.f, l.dirty
	l.dirty = false
	l.mu.Unlock()
	if f == nil || !dirty {
		return nil
	}
	if err := fdatasync(f); err != nil && !errors.Is(err, os.ErrClosed) {
		l.mu.Lock()
		l.dirty = true
		l.mu.Unlock()
		return fmt.Errorf("flush the audit log: %w", err)
	}
	return nil
}

// takeBack cuts the last n bytes off again: the disk would not take them.
func (l *file) takeBack(n int) error {
	err := l.f.Truncate(l.size - int64(n))
	if err == nil {
		l.mu.Lock()
		l.size -= int64(n)
		l.mu.Unlock()
	}
	l.abandon()
	return err
}

func (l *file) close() error {
	if l.f == nil {
		return nil
	}
	return l.f.Close()
}
