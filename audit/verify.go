package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// VerifyOptions says what Verify holds a log against, beside itself.
type VerifyOptions struct {
	// PublicKeys verify the checkpoints' signatures. Without one only their hashes count, which who rewrites a
	// log rewrites too. With it, a log that has no checkpoints is wrong.
	//
	// The first is the key in use; then come those that it and its like have replaced, the newest first. Each ends
	// where the next begins: who has got hold of an old one cannot sign anything new with it.
	PublicKeys []ed25519.PublicKey
	// MinSeq is a line that must be there: what an auditor noted last time. It finds a log that was cut together
	// with its checkpoints.
	MinSeq uint64
	// FromStart demands the first line; without it, files that were removed for their age are not missed.
	FromStart bool
}

// Report is what Verify found.
type Report struct {
	Logs     []LogReport
	Files    int
	Lines    uint64
	Bytes    int64 // uncompressed
	Duration time.Duration
}

// OK reports whether nothing is wrong.
func (r *Report) OK() bool {
	return !slices.ContainsFunc(r.Logs, func(l LogReport) bool { return len(l.Problems) > 0 })
}

// Print writes the report for people. Whoever wrote the files may have chosen names and texts for the terminal.
func (r *Report) Print(w io.Writer) {
	for _, log := range r.Logs {
		for _, problem := range log.Problems {
			fmt.Fprintln(w, problem)
		}
		for _, note := range log.Notes {
			fmt.Fprintln(w, printable(fmt.Sprintf("%s: note: %s", log.Path, note)))
		}
		switch {
		case len(log.Problems) > 0:
		case log.Lines == 0:
			fmt.Fprintln(w, printable(fmt.Sprintf("%s: no lines: nothing is wrong that could be seen, but a log that was emptied looks the same as one that was never written "+
				"(--min-seq with what you noted last time tells them apart, and so do checkpoints)", log.Path)))
		default:
			fmt.Fprintln(w, printable(fmt.Sprintf("%s: ok: %d lines in %d files, %d to %d, %d checkpoints, last hash %s",
				log.Path, log.Lines, log.Files, log.First, log.Last, log.Checkpoints, log.LastHash)))
		}
	}
}

// LogReport is what Verify found in one log.
type LogReport struct {
	Path        string
	Files       int
	First, Last uint64 // numbers of its lines; 0 = it has none
	LastHash    string
	Lines       uint64
	Bytes       int64
	Checkpoints int    // that hold
	Signed      uint64 // the last line that a checkpoint vouches for
	Problems    []Problem
	Notes       []string // what is no mistake but should be known
}

// Problem is one thing that is wrong.
type Problem struct {
	File string
	Line int    // in the file, from 1; 0 = the file, or the log, as a whole
	Seq  uint64 // the number of the line concerned; 0 = it has none
	What string // changed, removed, added, out of order, truncated, signature, checkpoint
	Text string // for people
}

func (p Problem) String() string {
	where := p.File
	if p.Line > 0 {
		where = fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return printable(fmt.Sprintf("%s: %s: %s", where, p.What, p.Text))
}

// The kinds of Problem.What.
const (
	Changed    = "changed"
	Removed    = "removed"
	Added      = "added"
	OutOfOrder = "out of order"
	Truncated  = "truncated"
	Signature  = "signature"
	BadMark    = "checkpoint"
)

// Verify checks the chain of every log that paths mean (see Read), and names the first line that is wrong. What
// is wrong with a log is in the report; an error means that it could not be read.
func Verify(ctx context.Context, paths []string, o VerifyOptions) (*Report, error) {
	start := time.Now()
	logs, err := findLogs(paths)
	if err != nil {
		return nil, err
	}
	r := &Report{}
	for _, log := range joinLogs(logs) {
		lr, err := verifyLog(ctx, log, o)
		// A log that is written may have been rotated under our eyes.
		for try := 0; try < 3 && (err != nil || len(lr.Problems) > 0) && log.rotatedSince(); try++ {
			lr, err = verifyLog(ctx, log, o)
		}
		if err != nil {
			return nil, err
		}
		r.Logs = append(r.Logs, *lr)
		r.Files += lr.Files
		r.Lines += lr.Lines
		r.Bytes += lr.Bytes
	}
	r.Duration = time.Since(start)
	return r, nil
}

// joinLogs puts together a log whose files lie in different directories, such as an archive.
func joinLogs(logs []*foundLog) []*foundLog {
	for i := 0; i < len(logs); i++ {
		if len(logs[i].files) == 0 {
			continue
		}
		prev, ok := firstPrev(logs[i].files[0].path)
		if !ok || prev == noPrev {
			continue
		}
		for j, other := range logs {
			if i == j || len(other.files) == 0 {
				continue
			}
			if end, err := endOf(other.files[len(other.files)-1].path); err == nil && end.hash == prev {
				other.files = append(other.files, logs[i].files...)
				if other.checkpoints == "" {
					other.checkpoints = logs[i].checkpoints
				}
				logs = slices.Delete(logs, i, i+1)
				i = -1 // again from the start: what was joined may be wanted by another
				break
			}
		}
	}
	return logs
}

func firstPrev(path string) (string, bool) {
	r, err := openLog(path)
	if err != nil {
		return "", false
	}
	defer r.Close()
	line, err := newLineReader(r).next()
	if err != nil {
		return "", false
	}
	_, prev, ok := lineSeq(line)
	return string(prev), ok
}

func verifyLog(ctx context.Context, log *foundLog, o VerifyOptions) (*LogReport, error) {
	lr := &LogReport{Path: log.path, Files: len(log.files)}
	recorded := 0
	var places []witness
	if n := len(log.files); n == 0 || !log.files[n-1].rotated { // to its end; before it is read, as it may grow
		recorded, places = recordedBeside(log.path+journalSuffix), placesOf(log.path)
	}
	marks, err := readCheckpoints(log.checkpoints, o.PublicKeys, lr)
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		marks = append(marks, checkpointAt{Checkpoint: Checkpoint{Seq: p.seq, Hash: p.hash}, farEnd: p.by})
	}
	slices.SortStableFunc(marks, func(a, b checkpointAt) int { return cmp.Compare(a.Seq, b.Seq) })
	v := &verification{ctx: ctx, report: lr, marks: marks, recorded: recorded}
	for i, f := range log.files {
		at := v.state
		ok, err := v.file(f.path, i == len(log.files)-1)
		if err != nil {
			return nil, err
		}
		if !ok {
			// Look again, slowly, to say what it is.
			lr.Problems = append([]Problem{diagnose(log.files[i:], at)}, lr.Problems...)
			return lr, nil
		}
	}
	lr.Last, lr.LastHash = v.state.seq, v.state.hash
	v.conclude(log, o)
	return lr, nil
}

// chainState is where a verification stands: chainEnd of what was read, with where that is.
type chainState struct {
	chainEnd
	started bool
	file    string
	line    int
}

type verification struct {
	ctx      context.Context
	report   *LogReport
	marks    []checkpointAt // by Seq
	recorded int            // events that the journal beside the log knows to be in it, at least
	state    chainState
	bad      *checkpointAt // the first of marks that the log does not hold to
}

// segment is a run of whole lines, checked by itself.
type segment struct {
	data []byte
	err  error // of reading, after data
	done chan struct{}

	first, last uint64
	firstPrev   []byte
	lastHash    [64]byte
	lines       int
	bad         bool // something is wrong inside
	badMark     *checkpointAt
}

const segmentSize = 2 << 20

var segmentPool = sync.Pool{New: func() any { return new([]byte) }}

// file checks one file as fast as it can, and reports whether it continues the chain. Lines are hashed by all
// processors while the next are read.
func (v *verification) file(path string, last bool) (ok bool, err error) {
	r, err := openLog(path)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(v.ctx)
	workers := max(2, runtime.GOMAXPROCS(0))
	work, order := make(chan *segment, workers), make(chan *segment, 2*workers)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		defer r.Close()
		defer close(order)
		defer close(work)
		readSegments(ctx, r, work, order)
	})
	for range workers {
		running.Go(func() {
			for s := range work {
				s.check(v.marks)
				close(s.done)
			}
		})
	}
	v.state.file, v.state.line = path, 0
	for s := range order {
		select {
		case <-s.done:
		case <-v.ctx.Done():
			return false, v.ctx.Err()
		}
		if s.bad {
			return false, nil
		}
		if s.lines > 0 {
			if v.state.started && (s.first != v.state.seq+1 || string(s.firstPrev) != v.state.hash) {
				return false, nil
			}
			if !v.state.started {
				v.report.First = s.first
				if (s.first == 1) != (string(s.firstPrev) == noPrev) {
					return false, nil
				}
			}
			v.state.started = true
			v.state.seq, v.state.hash = s.last, string(s.lastHash[:])
			v.state.line += s.lines
			v.report.Lines += uint64(s.lines)
			v.report.Bytes += int64(len(s.data))
		}
		if v.bad == nil {
			v.bad = s.badMark
		}
		data := s.data[:0]
		segmentPool.Put(&data)
		switch {
		case s.err == nil || s.err == io.EOF:
		case s.err == errUnfinished && last:
			v.report.Notes = append(v.report.Notes, fmt.Sprintf("%s ends in the middle of a line: it is being written, or the process died; the next start mends it", path))
		case v.ctx.Err() != nil:
			return false, v.ctx.Err()
		case errors.As(s.err, new(*os.PathError)):
			return false, fmt.Errorf("read %s: %w", path, s.err)
		default: // unfinished in the middle of a log, or it does not decompress
			return false, nil
		}
	}
	return true, v.ctx.Err()
}

// readSegments cuts r at line ends and hands the pieces to work, and in their order to order.
func readSegments(ctx context.Context, r io.Reader, work, order chan<- *segment) {
	var rest []byte
	for err := error(nil); err == nil; {
		buf := *segmentPool.Get().(*[]byte)
		if cap(buf) < segmentSize {
			buf = make([]byte, 0, segmentSize)
		}
		buf = append(buf[:0], rest...)
		end := 0
		for err == nil && end == 0 {
			if cap(buf)-len(buf) < segmentSize/2 {
				buf = slices.Grow(buf, segmentSize)
			}
			if len(buf) > maxLine {
				err = fmt.Errorf("a line is longer than %d bytes", maxLine)
				break
			}
			var n int
			n, err = readFull(r, buf[len(buf):cap(buf)])
			buf = buf[:len(buf)+n]
			end = bytes.LastIndexByte(buf, '\n') + 1
		}
		rest = append(rest[:0], buf[end:]...)
		if err == io.EOF && len(rest) > 0 {
			err = errUnfinished
		}
		s := &segment{data: buf[:end], err: err, done: make(chan struct{})}
		select {
		case order <- s:
		case <-ctx.Done():
			return
		}
		select {
		case work <- s:
		case <-ctx.Done():
			return
		}
	}
}

func (s *segment) check(marks []checkpointAt) {
	var hash [64]byte
	var next []checkpointAt
	for data := s.data; len(data) > 0; {
		i := bytes.IndexByte(data, '\n')
		line := data[:i]
		data = data[i+1:]
		seq, prev, ok := lineSeq(line)
		if !ok {
			s.bad = true
			return
		}
		if s.lines == 0 {
			s.first, s.firstPrev = seq, slices.Clone(prev)
			i, _ := slices.BinarySearchFunc(marks, seq, func(m checkpointAt, seq uint64) int {
				if m.Seq < seq {
					return -1
				}
				return 1
			})
			next = marks[i:]
		} else if seq != s.last+1 || !bytes.Equal(prev, hash[:]) {
			s.bad = true
			return
		}
		putLineHash(&hash, line)
		for len(next) > 0 && next[0].Seq <= seq {
			if next[0].Seq == seq && next[0].Hash != string(hash[:]) && s.badMark == nil {
				s.badMark = &next[0]
			}
			next = next[1:]
		}
		s.last = seq
		s.lines++
	}
	s.lastHash = hash
}

// conclude holds a log whose chain is whole against what is known from elsewhere.
func (v *verification) conclude(log *foundLog, o VerifyOptions) {
	lr := v.report
	problem := func(p Problem) { lr.Problems = append(lr.Problems, p) }
	last := lr.Last
	switch {
	case o.FromStart && lr.First > 1:
		problem(Problem{File: log.path, Seq: 1, What: Removed, Text: fmt.Sprintf("lines 1 to %d are not here", lr.First-1)})
	case lr.First > 1 && len(log.files) == 1 && !log.files[0].rotated:
		// The newest rotated file is never removed for its age.
		lr.Notes = append(lr.Notes, fmt.Sprintf("begins at line %d, and no file before it is here: those were moved to an archive, or somebody removed them or the beginning of this one", lr.First))
	case lr.First > 1:
		lr.Notes = append(lr.Notes, fmt.Sprintf("begins at line %d: the files before were removed for their age, or are not named", lr.First))
	}
	if v.bad != nil {
		from := uint64(1)
		for _, m := range v.marks {
			if m.Seq < v.bad.Seq && m.Seq >= lr.First {
				from = m.Seq + 1
			}
		}
		problem(Problem{File: log.path, Seq: v.bad.Seq, What: Changed,
			Text: fmt.Sprintf("the chain is whole but is not the one that %s: lines were rewritten between %d and %d", v.bad.saw(log.checkpoints), max(from, lr.First), v.bad.Seq)})
	}
	for _, m := range v.marks {
		switch {
		case m.Seq > last:
			newest := v.marks[len(v.marks)-1]
			problem(Problem{File: log.path, Seq: last + 1, What: Truncated,
				Text: fmt.Sprintf("ends at line %d, but is not the log that %s up to line %d: the end was removed", last, newest.saw(log.checkpoints), newest.Seq)})
		case m.farEnd != "":
		case m.Seq >= lr.First && v.bad == nil:
			lr.Checkpoints++
			lr.Signed = m.Seq
		}
		if m.Seq > last {
			break
		}
	}
	if v.recorded > 0 && lr.Lines == 0 && len(lr.Problems) == 0 {
		problem(Problem{File: log.path, Seq: 1, What: Truncated, Text: "has no line, but its journal has had events written: they were removed, or moved away"})
	}
	if o.MinSeq > last {
		problem(Problem{File: log.path, Seq: last + 1, What: Truncated, Text: fmt.Sprintf("ends at line %d, but line %d must be there: the end was removed", last, o.MinSeq)})
	}
	if len(o.PublicKeys) > 0 && len(lr.Problems) == 0 {
		if lr.Checkpoints == 0 && last > 0 {
			problem(Problem{File: log.path, What: BadMark, Text: "no checkpoint vouches for this log: none were written, or they were removed"})
		} else if lr.Signed < last {
			// A checkpoint follows each event within seconds. Where none does, somebody has taken them away to
			// write the lines after them anew, or they could not be written; it takes a look either way.
			text := fmt.Sprintf("lines %d to %d are newer than the last checkpoint: only the chain vouches for them", lr.Signed+1, last)
			if span := unsignedSpan(log.files, lr.Signed+1); span > unsignedAllowed {
				problem(Problem{File: log.path, Seq: lr.Signed + 1, What: BadMark,
					Text: fmt.Sprintf("%s, though they are %s long: checkpoints were removed, or could not be written", text, span.Round(time.Second))})
			} else {
				lr.Notes = append(lr.Notes, text)
			}
		}
	}
	if len(o.PublicKeys) == 0 && log.checkpoints != "" {
		lr.Notes = append(lr.Notes, "the checkpoints' signatures were not checked: no public key was given")
	}
}

// unsignedAllowed is for how long there may be lines without a checkpoint: several times checkpointEvery.
const unsignedAllowed = time.Minute

// unsignedSpan is the time between the ends of the line first and the last one.
func unsignedSpan(files []logFile, first uint64) time.Duration {
	var from, to time.Time
	end := func(line []byte) time.Time {
		var ev Event
		if json.Unmarshal(line, &ev) != nil {
			return time.Time{}
		}
		return ev.Time.Add(time.Duration(ev.DurationMS * float64(time.Millisecond)))
	}
	for i, f := range files {
		if i+1 < len(files) && files[i+1].firstSeq != 0 && files[i+1].firstSeq <= first {
			continue
		}
		var last []byte
		readFile(f.path, func(line textLine, err error) bool {
			if err != nil {
				return false
			}
			if seq, _, ok := lineSeq(line.text); ok && seq >= first {
				if seq == first {
					from = end(line.text)
				}
				last = append(last[:0], line.text...)
			}
			return true
		})
		if last != nil {
			to = end(last)
		}
	}
	return to.Sub(from)
}

// checkpointAt is a Checkpoint and where it is; or what a far end's place, which nobody signs, tells alike.
type checkpointAt struct {
	Checkpoint
	line   int
	farEnd string // "" = a checkpoint
}

// saw says who knows the log otherwise.
func (m *checkpointAt) saw(checkpoints string) string {
	if m.farEnd != "" {
		return fmt.Sprintf("far end %q was sent", m.farEnd)
	}
	return fmt.Sprintf("was signed at %s (checkpoint %d, %s:%d)", m.Time.Format(time.RFC3339), m.N, checkpoints, m.line)
}

// readCheckpoints reads the checkpoints of a log, and reports what is wrong with them.
func readCheckpoints(path string, keys []ed25519.PublicKey, lr *LogReport) ([]checkpointAt, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	problem := func(line int, seq uint64, what, format string, args ...any) {
		lr.Problems = append(lr.Problems, Problem{File: path, Line: line, Seq: seq, What: what, Text: fmt.Sprintf(format, args...)})
	}
	var marks []checkpointAt
	n, prev := uint64(0), noPrev
	signer := len(keys) - 1 // or a newer one
	lines := newLineReader(f)
	for i := 1; ; i++ {
		line, err := lines.next()
		if err == io.EOF {
			break
		}
		if err == errUnfinished {
			lr.Notes = append(lr.Notes, fmt.Sprintf("%s ends in the middle of a line", path))
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		m := checkpointAt{line: i}
		at := bytes.LastIndex(line, []byte(signatureMark))
		if err := json.Unmarshal(line, &m.Checkpoint); err != nil || at < 0 || m.Schema != checkpointSchema || len(m.Hash) != 64 {
			problem(i, 0, BadMark, "this line is no checkpoint")
			break
		}
		if m.N != n+1 || m.Prev != prev {
			problem(i, m.Seq, BadMark, "checkpoint %d comes after checkpoint %d: one was removed, added or changed", m.N, n)
			break
		}
		if len(marks) > 0 && m.Seq < marks[len(marks)-1].Seq {
			// Signed, so it is the writer's own word: it began again from less than it had signed.
			problem(i, m.Seq, Truncated, "the log ended at line %d when line %d had been signed: its end was removed before", m.Seq, marks[len(marks)-1].Seq)
			break
		}
		if len(keys) > 0 {
			signature, err := base64.StdEncoding.DecodeString(m.Signature)
			by := slices.IndexFunc(keys, func(key ed25519.PublicKey) bool { return keyID(key) == m.KeyID })
			switch {
			case by < 0:
				problem(i, m.Seq, Signature, "checkpoint %d was signed by key %s, not by the key given, which is %s", m.N, m.KeyID, keyIDs(keys))
			case by > signer:
				problem(i, m.Seq, Signature, "checkpoint %d was signed by key %s, after key %s had taken over", m.N, m.KeyID, keyID(keys[signer]))
			case err != nil || !ed25519.Verify(keys[by], line[:at], signature) || !bytes.Equal(line[at+len(signatureMark):], []byte(m.Signature+`"}`)):
				problem(i, m.Seq, Signature, "the signature of checkpoint %d, which vouches for line %d, does not hold", m.N, m.Seq)
			}
			if len(lr.Problems) > 0 {
				break
			}
			signer = by
		}
		n, prev = m.N, lineHash(line)
		marks = append(marks, m)
	}
	if len(marks) > 0 && signer > 0 && len(lr.Problems) == 0 {
		last := marks[len(marks)-1]
		problem(last.line, last.Seq, Signature, "no checkpoint is signed by key %s, which was given as the one in use: the last one, %d, is by key %s", keyID(keys[0]), last.N, last.KeyID)
	}
	return marks, nil
}

// keyIDs names keys.
func keyIDs(keys []ed25519.PublicKey) string {
	ids := make([]string, len(keys))
	for i, key := range keys {
		ids[i] = keyID(key)
	}
	return strings.Join(ids, " or ")
}
