package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// journal is what survives the process: the requests that have begun and whose lines are not yet in the log. It
// is a file of fixed size, written in place, so that it works on a full disk too:
//
//	header | released: one number for each slot | slots, each of two areas
//
// An entry is written whole into the area of its slot that does not hold the request's last one, and holds only if
// its checksum does; so a death in the middle leaves the one before. A request's first goes to the first area, so
// that few pages are hot. An entry is dead once its generation is not above what the slot's number says. Entries too
// large for an area are in a file of their own.
//
// It is written with pwrite and not mapped: a disk that stands still (storage that does not answer, a snapshot that
// freezes the file system) then holds up the requests that wait for it, and not, through page faults that Go's
// scheduler cannot see, the whole process. TestT24FrozenDiskRefusesAndRecovers shows the difference.
type journal struct {
	path  string
	slots int

	mu   sync.RWMutex // guards file against being replaced
	file *os.File

	released []byte // the table, as on disk; the writer's own

	group *groupSync // nil unless every entry is to be on disk before put returns
}

const (
	journalMagic = "SLUICEJ1"
	pageSize     = 4096
	areaSize     = pageSize // one page: a write that dies leaves the old or the new
	entryHeader  = 64
	entryMagic   = 0x314c4a53
	flagSpilled  = 1
)

func tableSize(slots int) int64 { return (int64(slots)*8 + pageSize - 1) / pageSize * pageSize }

func journalSize(slots int) int64 {
	return pageSize + tableSize(slots) + int64(slots)*2*areaSize
}

func areaOffset(slots, index, side int) int64 {
	return pageSize + tableSize(slots) + (int64(index)*2+int64(side))*areaSize
}

// entry is what a dead process knew of a request.
type entry struct {
	id   string
	body []byte
}

// openJournal locks the journal at path, so that no second process writes the same log, and returns what is in
// it; reset must follow.
func openJournal(path string) (j *journal, entries []entry, err error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("open the audit journal: %w", err)
		}
		if err := lock(f); err != nil {
			f.Close()
			return nil, nil, fmt.Errorf("lock the audit journal %s: %w", path, err)
		}
		held, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, nil, fmt.Errorf("open the audit journal: %w", err)
		}
		// Whoever had it may have removed or replaced it before it let go.
		if named, err := os.Stat(path); err != nil || !os.SameFile(held, named) {
			f.Close()
			continue
		}
		j = &journal{path: path, file: f}
		break
	}
	entries, err = j.read()
	if err != nil {
		j.file.Close()
		return nil, nil, fmt.Errorf("read the audit journal %s: %w", path, err)
	}
	return j, entries, nil
}

var errJournalShape = errors.New("it is no journal of ours: move it away, events of requests cut by a crash may be in it")

func (j *journal) read() ([]entry, error) {
	info, err := j.file.Stat()
	if err != nil || info.Size() == 0 {
		return nil, err
	}
	var head [pageSize]byte
	if _, err := io.ReadFull(io.NewSectionReader(j.file, 0, pageSize), head[:]); err != nil {
		return nil, errJournalShape
	}
	if head == [pageSize]byte{} {
		return nil, nil // died while making it
	}
	slots := int(binary.LittleEndian.Uint32(head[8:]))
	if string(head[:8]) != journalMagic || slots <= 0 || slots > 1<<24 {
		return nil, errJournalShape
	}
	releases := make([]byte, slots*8)
	if _, err := io.ReadFull(io.NewSectionReader(j.file, pageSize, int64(len(releases))), releases); err != nil {
		return nil, errJournalShape
	}
	j.slots = slots
	var entries []entry
	area := make([]byte, areaSize)
	for index := range slots {
		released := binary.LittleEndian.Uint64(releases[index*8:])
		newest, found := released, entry{}
		for side := range 2 {
			n, err := j.file.ReadAt(area, areaOffset(slots, index, side))
			if err != nil && err != io.EOF {
				return nil, err
			}
			e, generation, ok := j.decode(area[:n])
			if ok && generation > newest {
				newest, found = generation, e
			}
		}
		if newest > released {
			entries = append(entries, found)
		}
	}
	return entries, nil
}

// recordedBeside is how many of a journal's slots have had an event whose line is in the log, since the journal was made:
// 0 = none, or there is no journal. It may be another process's, which is at work.
func recordedBeside(path string) (n int) {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	var head [12]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || string(head[:8]) != journalMagic {
		return 0
	}
	slots := binary.LittleEndian.Uint32(head[8:])
	if slots > 1<<24 {
		return 0
	}
	releases := make([]byte, slots*8)
	if _, err := io.ReadFull(io.NewSectionReader(f, pageSize, int64(len(releases))), releases); err != nil {
		return 0
	}
	for generation := range slices.Chunk(releases, 8) {
		if binary.LittleEndian.Uint64(generation) != 0 {
			n++
		}
	}
	return n
}

func (j *journal) decode(area []byte) (e entry, generation uint64, ok bool) {
	if len(area) < entryHeader || binary.LittleEndian.Uint32(area) != entryMagic {
		return e, 0, false
	}
	flags := binary.LittleEndian.Uint32(area[4:])
	generation = binary.LittleEndian.Uint64(area[8:])
	n := binary.LittleEndian.Uint32(area[16:])
	e.id = strings.TrimRight(string(area[24:entryHeader]), "\x00")
	if _, isID := idTime(e.id); !isID {
		return e, 0, false // nor may it become part of a file's name
	}
	if flags&flagSpilled != 0 {
		body, err := os.ReadFile(j.spillName(e.id, generation))
		if err != nil || uint32(len(body)) != n {
			return e, 0, false
		}
		e.body = body
	} else {
		if int64(n) > int64(len(area)-entryHeader) {
			return e, 0, false
		}
		e.body = append([]byte(nil), area[entryHeader:entryHeader+n]...)
	}
	return e, generation, binary.LittleEndian.Uint32(area[20:]) == entryChecksum(area[:entryHeader], e.body)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func entryChecksum(header, body []byte) uint32 {
	sum := crc32.Update(0, castagnoli, header[:20])
	sum = crc32.Update(sum, castagnoli, header[24:entryHeader])
	return crc32.Update(sum, castagnoli, body)
}

// reset makes an empty journal of the given number of slots. What was in it MUST be in the log.
func (j *journal) reset(slots int, always bool) error {
	j.removeSpills()
	if always {
		j.group = newGroupSync(j.fdatasync)
	}
	j.slots = slots
	j.released = make([]byte, slots*8)
	f, err := j.create()
	if err != nil {
		return fmt.Errorf("make the audit journal: %w", err)
	}
	j.file.Close()
	j.file = f
	return nil
}

// removeSpills removes what large entries have left.
func (j *journal) removeSpills() {
	names, _ := os.ReadDir(filepath.Dir(j.path))
	for _, name := range names {
		rest, ours := strings.CutPrefix(name.Name(), filepath.Base(j.path)+".")
		id, _, _ := strings.Cut(rest, "-")
		if _, isID := idTime(id); ours && isID {
			os.Remove(filepath.Join(filepath.Dir(j.path), name.Name()))
		}
	}
}

// create puts a new, empty and locked journal in the place of the one at path. Its space is really ours from then
// on: it must be writable on a full disk.
func (j *journal) create() (f *os.File, err error) {
	name := j.path + ".new"
	os.Remove(name)
	f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(name)
		}
	}()
	if err := lock(f); err != nil {
		return nil, err
	}
	if err := allocate(f, journalSize(j.slots)); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(j.head(), 0); err != nil {
		return nil, err
	}
	if j.group != nil {
		if err := f.Sync(); err != nil {
			return nil, err
		}
	}
	return f, os.Rename(name, j.path)
}

func (j *journal) head() []byte {
	return binary.LittleEndian.AppendUint32([]byte(journalMagic), uint32(j.slots))
}

// writeHead writes the header again: it changes nothing, and shows whether the disk takes anything.
func (j *journal) writeHead() error {
	j.mu.RLock()
	defer j.mu.RUnlock()
	_, err := j.file.WriteAt(j.head(), 0)
	return err
}

func (j *journal) spillName(id string, generation uint64) string {
	return fmt.Sprintf("%s.%s-%d", j.path, id, generation)
}

// allocate reserves size bytes. Where the file system can, it does so without writing: a page that was written by
// the megabyte is kept by the kernel in large folios, in which a small write costs three times as much.
func allocate(f *os.File, size int64) error {
	if err := fallocate(f, size); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	zeros := make([]byte, 1<<20)
	for size > 0 {
		n, err := f.Write(zeros[:min(size, int64(len(zeros)))])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

// put makes entry, whose first entryHeader bytes are room for the header, the newest of its slot. s is the
// caller's alone.
func (j *journal) put(s *slot, entry []byte) error {
	generation := s.generation + 1
	header, body := entry[:entryHeader], entry[entryHeader:]
	clear(header)
	binary.LittleEndian.PutUint32(header, entryMagic)
	binary.LittleEndian.PutUint64(header[8:], generation)
	binary.LittleEndian.PutUint32(header[16:], uint32(len(body)))
	copy(header[24:], s.id)
	old := s.spill
	spill := ""
	if len(entry) > areaSize {
		binary.LittleEndian.PutUint32(header[4:], flagSpilled)
		spill = j.spillName(s.id, generation)
		if err := writeSpill(spill, body, j.group != nil); err != nil {
			os.Remove(spill)
			return err
		}
		entry = header
	}
	binary.LittleEndian.PutUint32(header[20:], entryChecksum(header, body))

	j.mu.RLock()
	_, err := j.file.WriteAt(entry, areaOffset(j.slots, s.index, s.side))
	j.mu.RUnlock()
	if err == nil && j.group != nil {
		err = j.group.wait()
	}
	if err != nil {
		if spill != "" {
			os.Remove(spill)
		}
		return err
	}
	s.generation, s.side, s.spill = generation, 1-s.side, spill
	if old != "" {
		os.Remove(old)
	}
	return nil
}

func writeSpill(name string, body []byte, sync bool) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err == nil && sync {
		if err = f.Sync(); err == nil {
			err = syncDir(filepath.Dir(name))
		}
	}
	return errors.Join(err, f.Close())
}

// release forgets the slots' entries: their lines are in the log. One goroutine calls it.
func (j *journal) release(slots []*slot) error {
	low, high := len(j.released), 0
	for _, s := range slots {
		at := s.index * 8
		if binary.LittleEndian.Uint64(j.released[at:]) == s.generation {
			continue // it was never journalled
		}
		binary.LittleEndian.PutUint64(j.released[at:], s.generation)
		low, high = min(low, at), max(high, at+8)
	}
	if low >= high {
		return nil
	}
	j.mu.RLock()
	_, err := j.file.WriteAt(j.released[low:high], pageSize+int64(low))
	j.mu.RUnlock()
	for _, s := range slots {
		if s.spill != "" {
			os.Remove(s.spill)
			s.spill = ""
		}
	}
	return err
}

// restore puts the journal back where somebody removed or replaced it: what we hold open is still whole.
func (j *journal) restore() (restored bool, err error) {
	held, err := j.file.Stat()
	if err != nil {
		return false, err
	}
	if named, err := os.Stat(j.path); err == nil && os.SameFile(held, named) && named.Size() >= journalSize(j.slots) {
		return false, nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	f, err := j.create()
	if err != nil {
		return false, err
	}
	if _, err := io.Copy(io.NewOffsetWriter(f, 0), io.NewSectionReader(j.file, 0, journalSize(j.slots))); err != nil {
		f.Close()
		return false, err
	}
	j.file.Close()
	j.file = f
	return true, nil
}

func (j *journal) fdatasync() error {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return fdatasync(j.file)
}

// close removes the journal where nothing is in it.
func (j *journal) close(empty bool) error {
	if j.group != nil {
		j.group.stop()
	}
	if empty {
		os.Remove(j.path)
	}
	return j.file.Close()
}

// groupSync lets many callers share one fsync.
type groupSync struct {
	sync func() error

	mu     sync.Mutex
	next   *syncRound // the round that callers of wait join now
	wake   chan struct{}
	closed bool
}

type syncRound struct {
	done chan struct{}
	err  error
}

func newGroupSync(sync func() error) *groupSync {
	g := &groupSync{sync: sync, next: newSyncRound(), wake: make(chan struct{}, 1)}
	go g.run()
	return g
}

func newSyncRound() *syncRound { return &syncRound{done: make(chan struct{})} }

// wait returns once an fsync that began after wait was called has ended.
func (g *groupSync) wait() error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return os.ErrClosed
	}
	round := g.next
	select {
	case g.wake <- struct{}{}:
	default:
	}
	g.mu.Unlock()
	<-round.done
	return round.err
}

func (g *groupSync) run() {
	for range g.wake {
		g.mu.Lock()
		round := g.next
		g.next = newSyncRound()
		g.mu.Unlock()
		round.err = g.sync()
		close(round.done)
	}
}

func (g *groupSync) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed = true
		close(g.wake)
	}
}
