package audit

import (
	"fmt"
	"io"
	"iter"
)

// seen is one line, as the diagnosis sees it.
type seen struct {
	file   string
	number int
	seq    uint64
	prev   string
	hash   string
	ok     bool  // it looks like one of our lines
	err    error // reading ended here; the rest is empty
}

// diagnose reads files, the first of which is known to be wrong, and says what the first wrong line is. before is
// where the chain stood at their start.
func diagnose(files []logFile, before chainState) Problem {
	next, stop := iter.Pull(seenLines(files))
	defer stop()
	older, old := seen{}, seen{file: before.file, number: before.line, seq: before.seq, hash: before.hash, ok: before.started}
	for {
		line, more := next()
		if !more {
			return Problem{File: files[0].path, What: Changed, Text: "it changed while it was read: run verify again"}
		}
		if line.err != nil {
			return Problem{File: line.file, Line: line.number, Seq: old.seq + 1, What: Changed, Text: fmt.Sprintf("the file cannot be read from here on: %v", line.err)}
		}
		good := line.ok && line.prev == old.hash && line.seq == old.seq+1
		if !old.ok {
			good = line.ok && (line.seq == 1) == (line.prev == noPrev)
		}
		if !good {
			after, more := next()
			if !more {
				after = seen{}
			}
			return blame(older, old, line, after, next)
		}
		older, old = old, line
	}
}

// blame says which of the lines around is the wrong one, where line does not follow old.
func blame(older, old, line, after seen, next func() (seen, bool)) Problem {
	problem := func(at seen, what, format string, args ...any) Problem {
		return Problem{File: at.file, Line: at.number, Seq: at.seq, What: what, Text: fmt.Sprintf(format, args...)}
	}
	want := old.seq + 1
	follows := func(b, a seen) bool { return b.ok && a.ok && b.prev == a.hash && b.seq == a.seq+1 }
	switch {
	case follows(after, old):
		if line.ok && line.hash == old.hash {
			return problem(line, Added, "this line repeats line %d", old.seq)
		}
		if line.ok && line.seq > after.seq && !appears(line.seq, next) {
			return problem(line, OutOfOrder, "line %d stands before line %d", line.seq, after.seq)
		}
		return problem(line, Added, "line %d follows line %d without this one", after.seq, old.seq)
	case !line.ok:
		p := problem(line, Changed, "this line is no audit event; line %d should be here", want)
		p.Seq = want
		return p
	case !old.ok:
		return problem(line, Changed, "this line says that it is number %d, but carries the hash of a line that cannot be before it", line.seq)
	case line.hash == old.hash:
		return problem(line, Added, "this line repeats line %d", old.seq)
	case follows(line, older):
		return problem(old, Added, "line %d follows line %d without this one", line.seq, older.seq)
	case line.prev == old.hash:
		return problem(line, Changed, "this line says that it is number %d, but is number %d", line.seq, want)
	case line.seq == want:
		// Either the line before is not what it was, or this one's word about it.
		if follows(after, line) || !after.ok {
			return problem(old, Changed, "the line after carries another hash: this line is not what it was")
		}
		return problem(line, Changed, "this line is not what it was: it carries a wrong hash, and the line after has another for it")
	case line.seq > want:
		for s := after; ; {
			if s.ok && s.seq == want {
				return problem(line, OutOfOrder, "line %d stands before line %d, which is at %s:%d", line.seq, want, s.file, s.number)
			}
			var more bool
			if s, more = next(); !more {
				break
			}
		}
		p := problem(line, Removed, "line %d is not here", want)
		if line.seq > want+1 {
			p.Text = fmt.Sprintf("lines %d to %d are not here", want, line.seq-1)
		}
		p.Seq = want
		return p
	}
	return problem(line, OutOfOrder, "line %d stands after line %d", line.seq, old.seq)
}

func appears(seq uint64, next func() (seen, bool)) bool {
	for {
		s, more := next()
		if !more {
			return false
		}
		if s.ok && s.seq == seq {
			return true
		}
	}
}

func seenLines(files []logFile) iter.Seq[seen] {
	return func(yield func(seen) bool) {
		for i, f := range files {
			if !seenFile(f.path, i == len(files)-1, yield) {
				return
			}
		}
	}
}

func seenFile(path string, last bool, yield func(seen) bool) (goOn bool) {
	r, err := openLog(path)
	if err != nil {
		return yield(seen{file: path, err: err})
	}
	defer r.Close()
	lines := newLineReader(r)
	for n := 1; ; n++ {
		text, err := lines.next()
		if err == io.EOF || err == errUnfinished && last {
			return true
		}
		s := seen{file: path, number: n, err: err}
		if err == errUnfinished {
			s.err = nil // its event is in no line
		} else if err == nil {
			var prev []byte
			s.seq, prev, s.ok = lineSeq(text)
			s.prev, s.hash = string(prev), lineHash(text)
		}
		if !yield(s) || s.err != nil {
			return false
		}
	}
}
