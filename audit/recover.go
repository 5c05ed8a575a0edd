package audit

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

// recover writes the events of the requests that a dead process left in the journal, but for those whose line
// it had written: a death between the line and the journal's release must not repeat it.
func (l *Log) recover(ctx context.Context, left []entry, durable bool) error {
	if len(left) == 0 {
		return nil
	}
	slices.SortFunc(left, func(a, b entry) int { return cmp.Compare(a.id, b.id) })
	written, err := l.linesOf(ctx, left)
	if err != nil {
		return fmt.Errorf("look for the events of requests that a crash cut: %w", err)
	}
	var lines []byte
	n := 0
	for _, e := range left {
		if written[e.id] {
			continue
		}
		start := len(lines)
		l.seq++
		lines = appendLine(lines, l.seq, e.body, l.prev[:])
		putLineHash(&l.prev, lines[start:len(lines)-1])
		n++
	}
	for len(lines) > 0 {
		m, err := l.file.append(lines)
		if err != nil {
			return fmt.Errorf("write the events of requests that a crash cut: %w", err)
		}
		lines = lines[m:]
	}
	if durable {
		if err := l.file.flush(); err != nil {
			return err
		}
	}
	l.count.lastSeq.Store(l.seq)
	if n > 0 {
		l.config.Logger.Warn("audit: the last process did not end by itself: wrote the events of its requests in flight", "events", n)
	}
	return nil
}

// linesOf tells which of the entries have their line in the log. Such a line is among the last that the dead process
// wrote, of which no more than its slots had not been released; and it was written after its request began, by which
// files are told where releasing failed for long. Not by that alone: clocks are set back.
//
// A file that cannot be read keeps no proxy from starting, unless an entry's line may be in it: to write the event would
// then repeat it, and not to write it would lose it.
func (l *Log) linesOf(ctx context.Context, left []entry) (map[string]bool, error) {
	wanted := make(map[string]bool, len(left))
	for _, e := range left {
		wanted[e.id] = false
	}
	oldest, _ := idTime(left[0].id) // left is sorted
	oldest = oldest.Add(-time.Minute)
	files, err := rotatedFiles(l.file.path)
	if err != nil {
		return nil, err
	}
	// Lines may have gone into a file after somebody had moved it away. An id is in no other log.
	for _, f := range strays(l.file.path) {
		if !f.modified.Before(oldest) {
			files = append(files, f)
		}
	}
	files = append(files, logFile{path: l.file.path, modified: time.Now()})
	type unreadable struct {
		logFile
		why error
	}
	var broken []unreadable
	lines := 0
	for i, f := range slices.Backward(files) {
		if i < len(files)-1 && lines > l.journal.slots && f.modified.Before(oldest) {
			continue
		}
		n, err := scanIDs(ctx, f.path, wanted)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			l.config.Logger.Error("audit: a file of the log cannot be read to its end: `audit verify` will name the place", "file", f.path, "error", err)
			broken = append(broken, unreadable{f, err})
		}
		lines += n
	}
	for _, f := range broken {
		maybe := 0
		for id, written := range wanted {
			// A file's time may be some ticks behind that of its last line.
			if began, _ := idTime(id); !written && !began.After(f.modified.Add(time.Second)) {
				maybe++
			}
		}
		if maybe > 0 {
			return nil, fmt.Errorf("%s cannot be read (%w), and may hold %d of them: put a good copy in its place; or keep it elsewhere, and they are written, perhaps a second time", f.path, f.why, maybe)
		}
	}
	return wanted, nil
}

// scanIDs sets those of wanted that a file has, and counts the file's lines.
func scanIDs(ctx context.Context, path string, wanted map[string]bool) (n int, err error) {
	r, err := openLog(path)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	lines := newLineReader(r)
	for ; ; n++ {
		if n%10000 == 0 && ctx.Err() != nil {
			return n, ctx.Err()
		}
		line, err := lines.next()
		if err == io.EOF || err == errUnfinished {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		i := bytes.Index(line[:min(len(line), len(lineStart)+64)], []byte(idMark))
		if i < 0 || len(line) < i+len(idMark)+26 {
			continue
		}
		id := line[i+len(idMark):][:26]
		if _, ok := wanted[string(id)]; ok { // no allocation
			wanted[string(id)] = true
		}
	}
}

const idMark = `,"id":"`
