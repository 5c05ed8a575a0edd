package audit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// The names around a log at dir/audit.jsonl:
//
//	audit.jsonl                                  what is being written
//	audit-20261123T000000.123Z-812.jsonl.zst     rotated away then; its first line is number 812
//	audit.jsonl.checkpoints                      signed checkpoints
//	audit.jsonl.journal                          requests in flight
//	audit.jsonl.ship-nats                        how far a shipper is
const (
	rotatedTime       = "20060102T150405.000Z"
	zstdSuffix        = ".zst"
	gzipSuffix        = ".gz"
	checkpointsSuffix = ".checkpoints"
	journalSuffix     = ".journal"
	shipSuffix        = ".ship-"
)

// logFile is one file of a log.
type logFile struct {
	path       string
	firstSeq   uint64 // 0 = empty, or not known
	rotated    bool
	compressed bool
	modified   time.Time
	size       int64
}

// behindLinks is where a log really is: what is kept beside it is kept there, and is the same by every name.
func behindLinks(path string) string {
	for range 40 { // as many as Linux follows
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return path
}

func rotatedName(current string, firstSeq uint64, now time.Time) string {
	ext := filepath.Ext(current)
	return fmt.Sprintf("%s-%s-%d%s", strings.TrimSuffix(current, ext), now.UTC().Format(rotatedTime), firstSeq, ext)
}

// parseRotated reads the name of a rotated file of the log at current. Both are names without a directory.
func parseRotated(current, name string) (firstSeq uint64, compressed, ok bool) {
	ext := filepath.Ext(current)
	rest, ok := strings.CutPrefix(name, strings.TrimSuffix(current, ext)+"-")
	if !ok {
		return 0, false, false
	}
	for _, suffix := range []string{zstdSuffix, gzipSuffix} {
		if r, found := strings.CutSuffix(rest, suffix); found {
			rest, compressed = r, true
		}
	}
	rest, ok = strings.CutSuffix(rest, ext)
	if !ok {
		return 0, false, false
	}
	stamp, seq, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, false, false
	}
	if _, err := time.Parse(rotatedTime, stamp); err != nil {
		return 0, false, false
	}
	firstSeq, err := strconv.ParseUint(seq, 10, 64)
	return firstSeq, compressed, err == nil
}

// rotatedFiles lists the rotated files of the log at current, oldest first. Of a file that is there plain and
// compressed (a compression was cut) only the plain one counts.
func rotatedFiles(current string) ([]logFile, error) {
	dir, base := filepath.Dir(current), filepath.Base(current)
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []logFile
	for _, name := range names {
		firstSeq, compressed, ok := parseRotated(base, name.Name())
		if !ok || !name.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, name.Name())
		info, err := name.Info()
		if errors.Is(err, os.ErrNotExist) && !compressed { // it may be by now
			path, compressed = path+zstdSuffix, true
			info, err = os.Lstat(path)
		}
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		files = append(files, logFile{
			path: path, firstSeq: firstSeq, rotated: true,
			compressed: compressed, modified: info.ModTime(), size: info.Size(),
		})
	}
	slices.SortFunc(files, func(a, b logFile) int {
		return cmp.Or(cmp.Compare(a.firstSeq, b.firstSeq), cmp.Compare(plainName(a.path), plainName(b.path)), cmp.Compare(len(a.path), len(b.path)))
	})
	return slices.CompactFunc(files, func(a, b logFile) bool { return plainName(a.path) == plainName(b.path) }), nil
}

// beginOf is the number of a log's first line, and the hash it carries ("" where it cannot be read).
func beginOf(log string) (seq uint64, prev string, err error) {
	files, err := rotatedFiles(log)
	if err != nil {
		return 0, "", err
	}
	for _, f := range append(files, logFile{path: log}) {
		prev, ok := firstPrev(f.path)
		if seq, err := firstOf(f.path); err == nil && seq != 0 && ok {
			return seq, prev, nil
		}
		if f.firstSeq != 0 {
			return f.firstSeq, "", nil
		}
	}
	return 1, noPrev, nil
}

// strays lists what else in the log's directory begins as a log does: files that somebody moved away (logrotate), and
// those of other logs.
func strays(current string) (files []logFile) {
	dir, base := filepath.Dir(current), filepath.Base(current)
	names, _ := os.ReadDir(dir)
	for _, name := range names {
		if _, _, ours := parseRotated(base, name.Name()); ours || name.Name() == base || isSidecar(name.Name()) || !name.Type().IsRegular() {
			continue
		}
		f := logFile{path: filepath.Join(dir, name.Name()), rotated: true}
		if info, err := name.Info(); err == nil {
			f.modified, f.size = info.ModTime(), info.Size()
		}
		if first, err := firstOf(f.path); err == nil && first != 0 {
			f.firstSeq = first
			files = append(files, f)
		}
	}
	return files
}

// continues reports whether a file has the line with this number, and it carries the hash of the line before.
func continues(path string, seq uint64, prev string) bool {
	r, err := openLog(path)
	if err != nil {
		return false
	}
	defer r.Close()
	for lines := newLineReader(r); ; {
		line, err := lines.next()
		if err != nil {
			return false
		}
		if n, hash, ok := lineSeq(line); ok && n >= seq {
			return n == seq && string(hash) == prev
		}
	}
}

func plainName(path string) string {
	return strings.TrimSuffix(strings.TrimSuffix(path, zstdSuffix), gzipSuffix)
}

// openLog opens a file of the log for reading, plain or compressed, whatever its name.
func openLog(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.Open(path + zstdSuffix) // compressed since it was found
	}
	if err != nil {
		return nil, err
	}
	var magic [4]byte
	n, err := f.ReadAt(magic[:], 0)
	if err != nil && err != io.EOF {
		f.Close()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	switch {
	case bytes.Equal(magic[:n], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxWindow(64<<20))
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("decompress %s: %w", path, err)
		}
		return &decompressed{Reader: d, close: func() error { d.Close(); return f.Close() }}, nil
	case n >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		d, err := gzip.NewReader(f)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("decompress %s: %w", path, err)
		}
		return &decompressed{Reader: d, close: func() error { d.Close(); return f.Close() }}, nil
	}
	return f, nil
}

type decompressed struct {
	io.Reader
	close func() error
}

func (d *decompressed) Close() error { return d.close() }

// maxLine bounds what a reader holds: the longest line is a DeleteObjects of 1,000 keys of control characters.
const maxLine = 32 << 20

// lineReader reads a log line by line.
type lineReader struct {
	r    io.Reader
	buf  []byte
	rest []byte // of buf, not yet returned
	err  error
}

func newLineReader(r io.Reader) *lineReader { return &lineReader{r: r, buf: make([]byte, 0, 256<<10)} }

// errUnfinished is the error of a last line that has no end (yet).
var errUnfinished = errors.New("the last line is unfinished")

// next returns the next line without its newline, good until next is called again. At the end it returns io.EOF,
// or what there is of an unfinished line and errUnfinished; both may be followed by more, where the file grows.
func (l *lineReader) next() ([]byte, error) {
	searched := 0
	for {
		if i := bytes.IndexByte(l.rest[searched:], '\n'); i >= 0 {
			line := l.rest[:searched+i]
			l.rest = l.rest[searched+i+1:]
			return line, nil
		}
		searched = len(l.rest)
		if l.err != nil {
			err := l.err
			l.err = nil
			if err == io.EOF && len(l.rest) > 0 {
				err = errUnfinished
			}
			return l.rest, err
		}
		if searched > maxLine {
			return nil, fmt.Errorf("a line is longer than %d bytes", maxLine)
		}
		l.fill()
	}
}

func (l *lineReader) fill() {
	n := copy(l.buf[:cap(l.buf)], l.rest)
	if n == cap(l.buf) {
		l.buf = append(make([]byte, 0, 2*cap(l.buf)), l.rest...)
	}
	m, err := l.r.Read(l.buf[n:cap(l.buf)])
	l.rest = l.buf[:n+m]
	l.err = err
}

// readFull fills p as far as r goes. io.EOF = r has ended as it should: io.ReadFull would say io.ErrUnexpectedEOF of that
// and of compressed bytes that were cut alike.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// lineSeq reads the number of a line and the hash it carries, without looking at what is between.
func lineSeq(line []byte) (seq uint64, prev []byte, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(lineStart))
	if !ok {
		return 0, nil, false
	}
	digits := 0
	for digits < len(rest) && rest[digits]-'0' <= 9 {
		seq = seq*10 + uint64(rest[digits]-'0')
		digits++
	}
	const tail = len(linePrev) + len(noPrev) + len(lineEnd) - 1
	if digits == 0 || digits > 19 || len(rest) < digits+1+tail || rest[digits] != ',' {
		return 0, nil, false
	}
	end := rest[len(rest)-tail:]
	if string(end[:len(linePrev)]) != linePrev || string(end[tail-2:]) != `"}` {
		return 0, nil, false
	}
	prev = end[len(linePrev) : tail-2]
	for _, c := range prev {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return 0, nil, false
		}
	}
	return seq, prev, true
}

// chainEnd is where a log's chain stands.
type chainEnd struct {
	seq  uint64
	hash string // of the line seq
}

// readEnd finds the last whole line of a plain file: where the chain stands, at which offset good lines end, and
// whether anything but an unfinished line follows.
func readEnd(f io.ReaderAt, size int64) (end chainEnd, good int64, broken bool, err error) {
	good = size
	first := true
	for good > 0 {
		line, start, terminated, err := lineBefore(f, good)
		if err != nil {
			return end, 0, false, err
		}
		if seq, _, ok := lineSeq(line); ok && terminated {
			return chainEnd{seq, lineHash(line)}, good, broken, nil
		}
		if terminated || !first {
			broken = true
		}
		first = false
		good = start
	}
	return end, 0, broken, nil
}

// lineBefore reads the line that ends at offset end.
func lineBefore(f io.ReaderAt, end int64) (line []byte, start int64, terminated bool, err error) {
	var tail []byte
	for start = end; start > 0; {
		n := min(start, 64<<10)
		block := make([]byte, int(n)+len(tail))
		if _, err := f.ReadAt(block[:n], start-n); err != nil {
			return nil, 0, false, err
		}
		copy(block[n:], tail)
		tail, start = block, start-n
		body := tail[:len(tail)-1] // its own newline does not begin it
		if i := bytes.LastIndexByte(body, '\n'); i >= 0 {
			tail, start = tail[i+1:], start+int64(i)+1
			break
		}
		if len(tail) > maxLine {
			break
		}
	}
	line, terminated = bytes.CutSuffix(tail, []byte("\n"))
	return line, start, terminated, nil
}

// endOf is readEnd for any file of the log, compressed ones included. Beside an error it is the end of what could be read.
func endOf(path string) (end chainEnd, err error) {
	r, err := openLog(path)
	if err != nil {
		return end, err
	}
	defer r.Close()
	if f, ok := r.(*os.File); ok {
		info, err := f.Stat()
		if err != nil {
			return end, err
		}
		end, _, _, err = readEnd(f, info.Size())
		return end, err
	}
	var last []byte
	lines := newLineReader(r)
	for {
		var line []byte
		if line, err = lines.next(); err != nil {
			break
		}
		if _, _, ok := lineSeq(line); ok {
			last = append(last[:0], line...)
		}
	}
	if seq, _, ok := lineSeq(last); ok {
		end = chainEnd{seq, lineHash(last)}
	}
	if err == io.EOF || err == errUnfinished {
		return end, nil
	}
	return end, fmt.Errorf("read %s: %w", path, err)
}

// witness is what a file beside the log says of it: that line was there.
type witness struct {
	chainEnd
	by string
}

// placesOf are the lines that far ends were sent last. It must be asked before the log is read, which only grows.
func placesOf(log string) (places []witness) {
	names, _ := os.ReadDir(filepath.Dir(log))
	for _, name := range names {
		farEnd, ok := strings.CutPrefix(name.Name(), filepath.Base(log)+shipSuffix)
		if !ok || strings.HasSuffix(farEnd, ".tmp") {
			continue
		}
		var c cursor
		raw, err := os.ReadFile(filepath.Join(filepath.Dir(log), name.Name()))
		if err == nil && json.Unmarshal(raw, &c) == nil && c.Seq != 0 && len(c.Hash) == len(noPrev) {
			places = append(places, witness{chainEnd{c.Seq, c.Hash}, farEnd})
		}
	}
	return places
}

// createTemp makes the file of that name, in the place of what a death left of one. Somebody may have put a link there, to
// what is not ours to overwrite.
func createTemp(name string, mode os.FileMode) (*os.File, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
}

// syncDir makes renames in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
