package audit

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// journal is what survives the process: the requests that have begun and whose lines are not yet in the log. It
// is a file of fixed size, written in place, so that it works on a full disk too:
//
//	header | released: one number for each slot | the first area of each slot | the second of each
//
// An entry is written whole into that area of its slot that does not hold the request's last one, and holds only if
// its checksum does; so a death in the middle leaves the one before. Nearly all entries are a request's first and fit the
// first area, and those lie side by side. An entry is dead once its generation is not above what the slot's number says.
// Entries too large for an area are in a file of their own.
//
// Requests that come at about the same time are written together: see join. It is done with pwrite and not by mapping the
// file: a disk that stands still (storage that does not answer, a snapshot that freezes the file system) then holds up
// the requests that wait for it, and not, through page faults that Go's scheduler cannot see, the whole process.
// TestT24FrozenDiskRefusesAndRecovers shows the difference.
type journal struct {
	path  string
	slots int
	sync  bool // every entry is to be on disk before put returns

	mu   sync.RWMutex // guards file against being replaced
	file *os.File

	released []byte // the table, as on disk; the writer's own

	joining sync.Mutex // guards the next three
	waiting []*slot    // for the next write
	spare   []*slot    // to wait in after that, empty
	led     bool       // one of them is writing, or about to, and sees to it that another follows

	together []byte // where the one who writes puts what lies side by side
}

const (
	journalMagic = "SLUICEJ2"
	pageSize     = 4096
	entryHeader  = 64
	entryMagic   = 0x314c4a53
	flagSpilled  = 1

	togetherMost = 32 // entries in one system call
)

// areaSizes are those of a slot's two areas. The first takes an event with a few hundred bytes of claims.
var areaSizes = [2]int{2048, 6144}

func tableSize(slots int) int64 { return (int64(slots)*8 + pageSize - 1) / pageSize * pageSize }

func journalSize(slots int) int64 { return areaOffset(slots, slots, 1) }

func areaOffset(slots, index, area int) int64 {
	at := pageSize + tableSize(slots)
	if area == 1 {
		at += int64(slots) * int64(areaSizes[0])
	}
	return at + int64(index)*int64(areaSizes[area])
}

// Of journals that Sluice made up to November 2026 the two areas of a slot lie side by side. They are read: the process
// that is replaced by a newer one may have died.
const journalMagic1 = "SLUICEJ1"

var areaSizes1 = [2]int{pageSize, pageSize}

func areaOffset1(slots, index, area int) int64 {
	return pageSize + tableSize(slots) + (int64(index)*2+int64(area))*pageSize
}

func isJournal(head []byte) bool {
	return string(head[:8]) == journalMagic || string(head[:8]) == journalMagic1
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
	if !isJournal(head[:]) || slots <= 0 || slots > 1<<24 {
		return nil, errJournalShape
	}
	sizes, offset := areaSizes, areaOffset
	if string(head[:8]) == journalMagic1 {
		sizes, offset = areaSizes1, areaOffset1
	}
	releases := make([]byte, slots*8)
	if _, err := io.ReadFull(io.NewSectionReader(j.file, pageSize, int64(len(releases))), releases); err != nil {
		return nil, errJournalShape
	}
	j.slots = slots
	var entries []entry
	room := make([]byte, max(sizes[0], sizes[1]))
	for index := range slots {
		released := binary.LittleEndian.Uint64(releases[index*8:])
		newest, found := released, entry{}
		for area, size := range sizes {
			n, err := j.file.ReadAt(room[:size], offset(slots, index, area))
			if err != nil && err != io.EOF {
				return nil, err
			}
			e, generation, ok := j.decode(room[:n])
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
	if _, err := io.ReadFull(f, head[:]); err != nil || !isJournal(head[:]) {
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
	j.slots, j.sync = slots, always
	j.together = make([]byte, togetherMost*areaSizes[0])
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
	f, err = createTemp(name, 0o600)
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
	if j.sync {
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

// put makes entry, whose first entryHeader bytes are room for the header, the newest of its slot. Until it returns s and
// entry are the journal's.
func (j *journal) put(s *slot, entry []byte) error {
	s.generation++ // also where it fails: some of it may be there
	header, body := entry[:entryHeader], entry[entryHeader:]
	clear(header)
	binary.LittleEndian.PutUint32(header, entryMagic)
	binary.LittleEndian.PutUint64(header[8:], s.generation)
	binary.LittleEndian.PutUint32(header[16:], uint32(len(body)))
	copy(header[24:], s.id)
	area, old, spill := 0, s.spill, ""
	if s.area == 1 || s.area == 0 && len(entry) > areaSizes[0] {
		area = 1
	}
	if len(entry) > areaSizes[area] {
		binary.LittleEndian.PutUint32(header[4:], flagSpilled)
		spill = j.spillName(s.id, s.generation)
		if err := writeSpill(spill, body, j.sync); err != nil {
			os.Remove(spill)
			return err
		}
		entry = header
	}
	binary.LittleEndian.PutUint32(header[20:], entryChecksum(header, body))

	if err := j.join(s, areaOffset(j.slots, s.index, area), entry); err != nil {
		if spill != "" {
			os.Remove(spill)
		}
		return err
	}
	s.area, s.spill = area+1, spill
	if old != "" {
		os.Remove(old)
	}
	return nil
}

// joined is a slot in a write that it shares with others.
type joined struct {
	at    int64
	entry []byte
	told  chan told // made once
}

// told is what one who waits is told: how it went, or that the next write is its own to do.
type told struct {
	lead bool
	err  error
}

// join writes an entry, together with those of others. The first to come lets all who are ready to run go before it, and
// writes for those who joined meanwhile; who comes while it writes waits, and one of them writes for all of them next. So
// a system call that may block, which costs Go's scheduler more than the write costs the kernel, is made once for some.
func (j *journal) join(s *slot, at int64, entry []byte) error {
	s.put.at, s.put.entry = at, entry
	if s.put.told == nil {
		s.put.told = make(chan told, 1)
	}
	j.joining.Lock()
	j.waiting = append(j.waiting, s)
	led := j.led
	j.led = true
	j.joining.Unlock()
	if !led {
		runtime.Gosched()
	} else if t := <-s.put.told; !t.lead {
		return t.err
	}

	j.joining.Lock()
	batch := j.waiting
	j.waiting = j.spare
	j.joining.Unlock()
	err := j.write(batch)
	for _, other := range batch {
		if other != s {
			other.put.told <- told{err: err}
		}
	}
	j.joining.Lock()
	clear(batch)
	j.spare = batch[:0]
	if j.led = len(j.waiting) > 0; j.led {
		j.waiting[0].put.told <- told{lead: true}
	}
	j.joining.Unlock()
	return err
}

// write writes the slots' entries. One goroutine at a time calls it.
func (j *journal) write(batch []*slot) error {
	slices.SortFunc(batch, func(a, b *slot) int { return cmp.Compare(a.put.at, b.put.at) })
	j.mu.RLock()
	defer j.mu.RUnlock()
	secondAreas := areaOffset(j.slots, 0, 1)
	for len(batch) > 0 {
		at, run := batch[0].put.at, batch[0].put.entry
		n := 1
		for n < min(len(batch), togetherMost) && batch[n].put.at == at+int64(n*areaSizes[0]) && batch[n].put.at < secondAreas {
			n++
		}
		if n > 1 {
			run = j.together[:(n-1)*areaSizes[0]+len(batch[n-1].put.entry)]
			for i, s := range batch[:n] {
				copy(run[i*areaSizes[0]:], s.put.entry) // nobody reads what is between two of them
			}
		}
		if _, err := j.file.WriteAt(run, at); err != nil {
			return err
		}
		batch = batch[n:]
	}
	if j.sync {
		return fdatasync(j.file)
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
	if empty {
		os.Remove(j.path)
	}
	return j.file.Close()
}
