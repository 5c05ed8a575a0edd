package audit

import (
	"errors"
	"fmt"
	"time"
)

const (
	// batchBytes is about how much is written at once.
	batchBytes = 1 << 20
	// pace is how far apart batches are under load: a wake-up and a write for each event would cost more than the
	// event. The first after a pause does not wait. A long write costs more than itself: Go's scheduler looks every 20 µs
	// for who is held up by one, and goes on for 4 ms after it, so that at 2 ms it never rested.
	pace = 10 * time.Millisecond
)

// batch is what is being written.
type batch struct {
	slots  []*slot
	lines  []byte
	inFile int // how much of lines each sink has
	out    int

	waiting int       // len(slots); guarded by Log.mu, as is
	oldest  time.Time // when about the oldest of slots was committed
}

// write is the one goroutine that gives lines their numbers and hashes, and writes them.
func (l *Log) write() {
	defer close(l.done)
	defer func() {
		l.mu.Lock()
		l.ended = true
		l.mu.Unlock()
		l.saveFinal() // what is left where the log was given up
	}()
	idle := time.NewTicker(time.Second)
	defer idle.Stop()
	pause := time.NewTimer(pace)
	defer pause.Stop()
	for {
		more := l.fillBatch()
		if len(l.batch.slots) == 0 {
			if !more {
				l.look()
				if l.checkpoints != nil {
					l.checkpoints.sign(l.file.end)
				}
				return
			}
			if !l.wait(idle.C) {
				return
			}
			continue
		}
		if !l.deliverBatch() {
			return
		}
		l.releaseBatch()
		l.attend(idle.C)
		// One wake-up for all that comes until then: that the queue is no longer empty wakes nobody up.
		pause.Reset(pace)
		select {
		case <-pause.C:
		case <-l.hurry:
		}
	}
}

// scarce reports whether slots run out, so that what is committed must be written now. l.mu is held.
func (l *Log) scarce() bool { return l.closed || l.free.n <= l.config.InFlight/2 }

// wait waits for something to do; false = the log is given up.
func (l *Log) wait(idle <-chan time.Time) bool {
	select {
	case <-l.wake:
	case answer := <-l.reopens:
		answer <- l.reopen()
	case <-l.checkpoints.timer():
		l.checkpoints.sign(l.file.end)
	case <-idle:
		l.look()
	case <-l.giveUp:
		return false
	}
	return true
}

// attend does what wait would do beside the events, which may never pause.
func (l *Log) attend(idle <-chan time.Time) {
	select {
	case answer := <-l.reopens:
		answer <- l.reopen()
	case <-l.checkpoints.timer():
		l.checkpoints.sign(l.file.end)
	case <-idle: // each batch looks after the file
	default:
	}
}

// look looks after the file where no event makes that happen.
func (l *Log) look() {
	if l.file == nil {
		return
	}
	err := l.file.reopen()
	if err != nil {
		l.count.failures.Add(1)
	}
	l.mu.Lock()
	l.failed = err
	l.mu.Unlock()
}

func (l *Log) reopen() error {
	if err := l.file.reopen(); err != nil {
		return fmt.Errorf("reopen the audit log: %w", err)
	}
	return nil
}

// fillBatch takes committed events and makes lines of them. It reports whether more may come.
func (l *Log) fillBatch() bool {
	b := &l.batch
	l.mu.Lock()
	size, n := 0, 0
	for n < len(l.queue) && size < batchBytes {
		size += len(l.queue[n].room)
		n++
	}
	b.slots = append(b.slots[:0], l.queue[:n]...)
	if n > 0 {
		b.oldest = l.queue[0].committed
		if b.oldest.IsZero() {
			b.oldest = time.Now()
		}
		rest := append(l.spare[:0], l.queue[n:]...)
		clear(l.queue)
		l.spare, l.queue = l.queue[:0], rest
		if len(rest) > 0 {
			rest[0].committed = b.oldest
		}
	}
	b.waiting = n
	more := !l.closed
	if !more && n == 0 {
		l.ended = true // now: what were committed before the writer is gone would be in a queue that nobody reads
	}
	l.mu.Unlock()

	b.lines = b.lines[:0]
	b.inFile, b.out = 0, 0
	for _, s := range b.slots {
		start := len(b.lines)
		l.seq++
		b.lines = appendLine(b.lines, l.seq, s.body(), l.prev[:])
		putLineHash(&l.prev, b.lines[start:len(b.lines)-1])
	}
	return more
}

// deliverBatch writes the batch to every sink, as long as that takes; false = the log is given up.
func (l *Log) deliverBatch() bool {
	backoff := 10 * time.Millisecond
	for {
		l.writing.Store(time.Now().UnixNano())
		err := l.tryBatch()
		l.writing.Store(0)
		l.mu.Lock()
		before := l.failed
		l.failed = err
		l.mu.Unlock()
		if err == nil {
			if before != nil {
				l.config.Logger.Info("audit: events are written again")
			}
			return true
		}
		l.count.failures.Add(1)
		if before == nil {
			l.config.Logger.Error("audit: events cannot be written; trying again until they can", "error", err, "on_failure", l.config.OnFailure)
		}
		l.saveFinal()
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case answer := <-l.reopens:
			answer <- l.reopen()
		case <-l.giveUp:
			timer.Stop()
			return false
		}
		timer.Stop()
		backoff = min(2*backoff, time.Second)
	}
}

// tryBatch writes what the sinks do not have yet.
func (l *Log) tryBatch() error {
	b := &l.batch
	if l.file != nil {
		for b.inFile < len(b.lines) {
			n, err := l.file.append(b.lines[b.inFile:])
			b.inFile += n
			if l.config.File.Fsync == fsyncAlways && n > 0 {
				if flushErr := l.file.flush(); flushErr != nil {
					// After a failed fsync nobody knows what is on the disk, and a second would lie. Write it again.
					if cutErr := l.file.takeBack(n); cutErr != nil {
						return errors.Join(flushErr, cutErr)
					}
					b.inFile -= n
					return flushErr
				}
			}
			if err != nil {
				return err
			}
		}
	}
	for l.stdout != nil && b.out < len(b.lines) {
		n, err := l.stdout.Write(b.lines[b.out:])
		b.out += n
		if err != nil {
			return fmt.Errorf("write the event to standard output: %w", err)
		}
	}
	return nil
}

// saveFinal puts what is committed and cannot be written into the journal, so that a death now keeps how each of
// the requests ended.
func (l *Log) saveFinal() {
	if l.journal == nil {
		return
	}
	l.mu.Lock()
	waiting := append(append([]*slot(nil), l.batch.slots...), l.queue...)
	l.mu.Unlock()
	for _, s := range waiting {
		if !s.final && l.journal.put(s, s.entry()) == nil {
			s.final = true
		}
	}
}

// releaseBatch gives the slots back.
func (l *Log) releaseBatch() {
	b := &l.batch
	if l.journal != nil {
		if err := l.journal.release(b.slots); err != nil {
			// No harm: at the next start the log is found to have these.
			l.config.Logger.Error("audit: release journal entries", "error", err)
		}
	}
	l.count.written.Add(uint64(len(b.slots)))
	l.count.bytes.Add(uint64(len(b.lines)))
	l.count.lastSeq.Store(l.seq)
	for _, s := range b.slots {
		s.final, s.area = false, 0
		s.committed = time.Time{}
		if cap(s.room) > 2*pageSize {
			s.room = make([]byte, bodyStart)
		}
		s.room = s.room[:bodyStart]
	}
	if cap(b.lines) > 4*batchBytes {
		b.lines = nil
	}
	l.mu.Lock()
	for _, s := range b.slots {
		l.free.give(s)
	}
	b.waiting, b.oldest = 0, time.Time{}
	l.mu.Unlock()
	if l.checkpoints != nil {
		l.checkpoints.note(l.file.end)
	}
	for _, s := range l.shippers {
		s.notify()
	}
}

// tryJournal writes where a request would, while there are any: where that hangs, every request would, and has no
// more to be let in.
func (l *Log) tryJournal() {
	if l.Stats().Open == 0 {
		return
	}
	l.trying.Store(time.Now().UnixNano())
	if err := l.journal.writeHead(); err != nil {
		l.config.Logger.Error("audit: the journal cannot be written", "error", err)
	}
	l.trying.Store(0)
}

// watch is what has to be done now and then, beside the writer.
func (l *Log) watch() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.done:
			return
		}
		l.tryJournal()
		if restored, err := l.journal.restore(); err != nil {
			l.config.Logger.Error("audit: the journal is not where it was, and cannot be put back", "error", err)
		} else if restored {
			l.config.Logger.Error("audit: the journal was removed or replaced: it is back", "file", l.journal.path)
		}
		if l.config.File.Fsync == fsyncInterval {
			if err := errors.Join(l.file.flush(), l.journal.fdatasync()); err != nil {
				l.config.Logger.Error("audit: the disk does not keep what is written to it", "error", err)
			}
		}
	}
}
