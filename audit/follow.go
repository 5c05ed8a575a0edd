package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// follower reads the lines of a log from one on, in order, over rotations, as they are written.
type follower struct {
	path string
	next uint64 // the number of the line that is wanted next; 0 = the oldest there is
	lost uint64 // lines that were wanted and are nowhere, since the last look

	before []byte // the line before next
	looked map[string]lookedAt
	hash   string // its hash, where it was not read; "" = not known

	r       io.ReadCloser // nil = a file is to be found
	name    string        // its
	lines   *lineReader
	live    os.FileInfo // r is what is written; nil = it was rotated away, and ends
	last    bool        // r was put away while it was read, and another is written: its end is the end
	first   uint64      // number of r's first line, by its name until it is read; 0 = not known
	done    uint64      // first of the file that was read to its end
	offered int64       // bytes of r read, where it is live
	again   uint64      // the line that was looked for once more, where a file seemed to be missing
}

// read returns the next line, good until read is called again; io.EOF = there is none yet. After another error it
// may be called again.
func (f *follower) read() (line []byte, seq uint64, err error) {
	for {
		if f.r == nil {
			if err := f.find(); err != nil {
				return nil, 0, err
			}
		}
		line, err := f.lines.next()
		switch {
		case err == nil:
			f.offered += int64(len(line)) + 1
			seq, _, ok := lineSeq(line)
			if !ok {
				continue // verify's business
			}
			if f.first == 0 {
				f.first = seq
			}
			if seq < f.next {
				continue
			}
			if f.next != 0 && seq > f.next {
				if seq == f.first && f.again != f.next {
					// A file that was compressed while the directory was listed may be in the list by neither name.
					f.again = f.next
					f.close()
					continue
				}
				if moved := f.moved(); moved != "" {
					f.close()
					if err := f.open(moved); err != nil {
						return nil, 0, err
					}
					continue
				}
				f.lost += seq - f.next
			}
			f.next = seq + 1
			f.before = append(f.before[:0], line...)
			return line, seq, nil
		case err != io.EOF && err != errUnfinished:
			// The rest of the file is lost; go on with the next one.
			path := f.name
			f.finish()
			return nil, 0, fmt.Errorf("read the audit log %s: %w", path, err)
		case f.live == nil || f.last:
			f.finish()
		default:
			named, err := os.Lstat(f.path)
			if err == nil && !named.Mode().IsRegular() {
				err = fs.ErrNotExist // see openCurrent
			}
			switch {
			case err == nil && os.SameFile(named, f.live) && named.Size() >= f.offered:
				return nil, 0, io.EOF
			case err == nil && os.SameFile(named, f.live):
				f.close() // cut by somebody: begin it again
			case err == nil && named.Size() > 0:
				f.last = true // what was written before the new one was begun is still to be read
			case err == nil || errors.Is(err, fs.ErrNotExist):
				// Put away, by the writer or by somebody else, of which the writer may not know yet. The file after it may
				// have been moved away too, and nothing more be written for long.
				moved := f.moved()
				if moved == "" {
					return nil, 0, io.EOF
				}
				f.close()
				if err := f.open(moved); err != nil {
					return nil, 0, err
				}
			default:
				return nil, 0, err
			}
		}
	}
}

// find opens the file that holds the line wanted next.
func (f *follower) find() error {
	// In this order: what is rotated away in between is then there twice, and not nowhere.
	current, err := openCurrent(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	files, err := rotatedFiles(f.path)
	if err != nil {
		if current != nil {
			current.Close()
		}
		return err
	}
	if current != nil {
		first, err := firstSeqOf(current)
		if err != nil {
			current.Close()
			return err
		}
		files = append(files, logFile{path: f.path, firstSeq: first})
	}
	// The last one that begins at or before the line, or else the oldest one.
	at := -1
	for i, file := range files {
		if file.firstSeq != 0 && (at < 0 || file.firstSeq <= f.next) {
			at = i
		}
	}
	// What has been read to its end is not read again, nor what is before it: what is wanted will be in one after. Where two
	// files that follow each other do not have it, each would be the other's next for ever.
	for at >= 0 && at < len(files) && files[at].firstSeq != 0 && (files[at].firstSeq == f.done || files[at].rotated && files[at].firstSeq < f.done) {
		at++
	}
	if at < 0 || at == len(files) { // not in a file of the log's, or not yet
		if moved := f.moved(); moved != "" {
			if current != nil {
				current.Close()
			}
			return f.open(moved)
		}
	}
	if at < 0 && current != nil {
		at = len(files) - 1 // empty
	}
	if at < 0 || at == len(files) {
		if current != nil {
			current.Close()
		}
		return io.EOF
	}
	if f.first, f.last, f.offered = files[at].firstSeq, false, 0; current != nil && at == len(files)-1 {
		if f.live, err = current.Stat(); err != nil {
			current.Close()
			return err
		}
		f.r = current
	} else {
		if current != nil {
			current.Close()
		}
		if f.r, err = openLog(files[at].path); err != nil {
			f.r, f.done = nil, files[at].firstSeq
			return err
		}
		f.live = nil
	}
	f.name, f.lines = files[at].path, newLineReader(f.r)
	return nil
}

// openCurrent opens what is written. Whatever else has its name is none, until the writer has put it aside: to open a pipe
// would wait for who writes to it.
func openCurrent(path string) (*os.File, error) {
	if info, err := os.Lstat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fs.ErrNotExist
	}
	return os.Open(path)
}

// open reads a file that somebody moved away.
func (f *follower) open(moved string) (err error) {
	if f.r, err = openLog(moved); err != nil {
		f.r = nil
		return err
	}
	f.name, f.lines, f.live = moved, newLineReader(f.r), nil
	f.first, f.last, f.offered = 0, false, 0
	return nil
}

// moved finds the line wanted next in a file that somebody moved away, within the directory; "" = it is in none.
func (f *follower) moved() string {
	prev := f.hash
	if len(f.before) > 0 {
		prev = lineHash(f.before)
	}
	if f.next == 0 || prev == "" {
		return ""
	}
	for _, file := range strays(f.path) {
		looked := lookedAt{file.size, f.next}
		if file.firstSeq > f.next || f.looked[file.path] == looked {
			continue
		}
		if continues(file.path, f.next, prev) {
			return file.path
		}
		if f.looked == nil {
			f.looked = map[string]lookedAt{}
		}
		f.looked[file.path] = looked
	}
	return ""
}

// lookedAt is when a file was found not to have a line, so that it need not be read again while nothing has changed.
type lookedAt struct {
	size int64
	next uint64
}

func (f *follower) finish() {
	f.done = f.first
	f.close()
}

func (f *follower) close() {
	if f.r != nil {
		f.r.Close()
		f.r = nil
	}
}
