package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Log is the audit log of one process.
type Log struct {
	config  Config
	encoder *encoder
	stdout  io.Writer

	// Nil where there is no file.
	file        *file
	journal     *journal
	keeper      *keeper
	checkpoints *checkpointer // nil also where nothing is signed
	shippers    []*shipper

	mu     sync.Mutex // guards what follows
	free   slotSet
	queue  []*slot // committed, in the order in which they will be written
	spare  []*slot // a queue to use next, empty
	closed bool
	ended  bool  // the writer is gone
	failed error // why the newest line is not written; nil once it is

	wake    chan struct{}   // of capacity 1: the queue is not empty, or closed
	hurry   chan struct{}   // of capacity 1: slots run out, or closed
	reopens chan chan error // SIGHUP
	giveUp  chan struct{}   // Close will not wait longer
	done    chan struct{}   // the writer has ended
	flusher sync.WaitGroup

	count      counters
	writing    atomic.Int64 // since when the writer waits for a sink, in Unix nanoseconds; 0 = it does not
	trying     atomic.Int64 // since when the journal is tried, likewise; see watch
	journalBad atomic.Pointer[error]

	// The writer's own.
	seq   uint64            // of the last line made
	prev  [len(noPrev)]byte // its hash
	batch batch
}

type counters struct {
	begun, written, refused, dropped, failures, bytes atomic.Uint64
	lastSeq                                           atomic.Uint64
}

// slot is the room for one event, from Begin until its line is written. It belongs to the request until Commit,
// then to the writer.
type slot struct {
	index      int
	id         string
	room       []byte // slack, room for the journal's header, and the body of the line
	begins     int    // where in room the body does
	generation uint64 // of the newest journal entry
	area       int    // that holds it: 1, 2, or 0 = there is none
	spill      string // the file that holds it, where it is too large for the journal
	final      bool   // the journal holds the committed body
	committed  time.Time
	put        joined // while it is put in the journal
}

// bodyStart is where a body begins at first.
const bodyStart = slack + entryHeader

func (s *slot) body() []byte  { return s.room[s.begins:] }
func (s *slot) entry() []byte { return s.room[s.begins-entryHeader:] }

// slotSet is the free slots, of which the lowest is taken first: those in use are few and lie close together, in memory as
// in the journal.
type slotSet struct {
	all  []slot
	free []uint64 // a bit for each
	low  int      // no bit is set in those before
	n    int      // bits set
}

func (f *slotSet) init(n int) {
	f.all = make([]slot, n)
	f.free = make([]uint64, (n+63)/64)
	for i := range f.all {
		s := &f.all[i]
		s.index, s.room = i, make([]byte, bodyStart)
		f.give(s)
	}
}

// take returns nil where there is none.
func (f *slotSet) take() *slot {
	for ; f.low < len(f.free); f.low++ {
		if word := f.free[f.low]; word != 0 {
			f.free[f.low] = word & (word - 1)
			f.n--
			return &f.all[f.low*64+bits.TrailingZeros64(word)]
		}
	}
	return nil
}

func (f *slotSet) give(s *slot) {
	f.free[s.index/64] |= 1 << (s.index % 64)
	f.low = min(f.low, s.index/64)
	f.n++
}

// Open opens the sinks, finds what a crash left behind and writes its events. ctx bounds the opening.
func Open(ctx context.Context, c Config) (*Log, error) {
	if err := c.problems(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	l := &Log{
		config:  c,
		encoder: newEncoder(c),
		wake:    make(chan struct{}, 1),
		hurry:   make(chan struct{}, 1),
		reopens: make(chan chan error),
		giveUp:  make(chan struct{}),
		done:    make(chan struct{}),
	}
	copy(l.prev[:], noPrev)
	if c.Stdout {
		l.stdout = c.StdoutWriter
		if l.stdout == nil {
			l.stdout = ownStdout()
		}
	}
	l.free.init(c.InFlight)
	if c.File != nil {
		if err := l.openFiles(ctx); err != nil {
			return nil, err
		}
	}
	go l.write()
	return l, nil
}

func (l *Log) openFiles(ctx context.Context) (err error) {
	c := l.config
	durable := c.File.Fsync != fsyncOff
	c.File.Path = behindLinks(c.File.Path) // of our own copy
	l.keeper = newKeeper(c.File, c.OnFailure == onFailureRefuse, c.Logger)
	f, end, err := openFile(c.File, c.Logger, time.Now, l.keeper.retire)
	if err != nil {
		return err
	}
	journal, left, err := openJournal(c.File.Path + journalSuffix)
	if err != nil {
		f.close()
		return err
	}
	defer func() {
		if err != nil {
			f.close()
			journal.close(false)
		}
	}()
	l.file, l.journal = f, journal
	if end.seq != 0 {
		l.seq = end.seq
		l.count.lastSeq.Store(l.seq) // or far ends that are behind would seem to have all until the next event
		copy(l.prev[:], end.hash)
	}
	if c.SigningKeyFile != "" {
		if l.checkpoints, err = openCheckpoints(c.File.Path+checkpointsSuffix, c.SigningKeyFile, end, c.Logger); err != nil {
			return err
		}
		f.rotating = func() { l.checkpoints.sign(l.file.end) }
	}
	if err := l.recover(ctx, left, durable); err != nil {
		return err
	}
	if err := journal.reset(c.InFlight, c.File.Fsync == fsyncAlways); err != nil {
		return err
	}
	if durable {
		if err := syncDir(f.dir()); err != nil {
			return fmt.Errorf("open the audit log: %w", err)
		}
	}
	if err := l.startShippers(); err != nil {
		return err
	}
	l.keeper.start(l.unshipped)
	l.flusher.Go(l.watch)
	return nil
}

// ownStdout is standard output under a descriptor of its own: an error on descriptor 1 itself would end the
// process (os/signal, SIGPIPE) where the sink should be found broken.
func ownStdout() io.Writer {
	if f, err := duplicate(os.Stdout); err == nil {
		return f
	}
	return os.Stdout
}

// Begin reserves room for one event, so that Commit can neither block nor fail. It does not wait: ErrFull means
// that the request must not be served.
func (l *Log) Begin(now time.Time) (*Record, error) {
	r := new(Record)
	if err := l.BeginIn(r, now); err != nil {
		return nil, err
	}
	return r, nil
}

// BeginIn is Begin for who has room for the record. It may be begun again when it is committed and nobody looks at its
// event any more.
func (l *Log) BeginIn(r *Record, now time.Time) error {
	*r = Record{log: l}
	r.Event.Schema, r.Event.ID, r.Event.Time = Schema, newID(now), now
	if !longAgo(l.trying.Load()) { // or the request would hang in Journal
		r.slot = l.take()
	}
	if r.slot == nil && l.config.OnFailure != onFailureContinue {
		l.count.refused.Add(1)
		return ErrFull
	}
	if r.slot != nil {
		r.slot.id = r.Event.ID
	}
	l.count.begun.Add(1)
	return nil
}

func (l *Log) take() *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	return l.free.take()
}

// Record is the event of one request in progress. It is used by one goroutine.
type Record struct {
	Event Event // filled in by the proxy as it learns; Schema, Seq, ID, Time and Prev are Begin's and Commit's

	log  *Log
	slot *slot // nil once committed, or where on_failure is continue and there was no room
	over bool

	// Of the body that was journalled: slot has it.
	settled settled
	parts   parts
}

// Keep is id with its part of the line encoded, for who has many requests of one identity. What is returned may be copied
// into any number of events of this log. It MUST NOT be changed, nor what it refers to: assign another instead.
func (l *Log) Keep(id Identity) Identity {
	encoded := l.encoder.appendIdentity(nil, &id)
	id.kept = &keptIdentity{l.encoder, bytes.Clone(encoded)} // no longer than it is: there are thousands
	return id
}

// Journal makes what Event holds so far survive the death of the process: the next Open will write it, with
// outcome interrupted. It MUST return before the first byte goes to a backend, and SHOULD before a refusal goes
// to the client. Where it fails the request must not be served. It may be called again when more is known.
//
// With fsync always the entry is on the disk when Journal returns.
func (r *Record) Journal() error {
	s, l := r.slot, r.log
	if s == nil || l.journal == nil {
		return nil
	}
	// In the journal the request has not ended; only the next start can find it so.
	outcome, message := r.Event.Outcome, r.Event.Error
	r.Event.Outcome = Interrupted
	if message == "" {
		r.Event.Error = interruptedError
	}
	s.room, r.parts = l.encoder.appendParts(s.room[:bodyStart], &r.Event)
	s.begins = bodyStart
	l.encoder.settle(&r.settled, &r.Event)
	r.Event.Outcome, r.Event.Error = outcome, message
	err := l.journal.put(s, s.entry())
	if err == nil {
		if l.journalBad.Load() != nil {
			l.journalBad.Store(nil)
		}
		return nil
	}
	return l.journalFailed(err)
}

func (l *Log) journalFailed(err error) error {
	err = fmt.Errorf("journal the request: %w", err)
	l.count.failures.Add(1)
	if l.journalBad.Swap(&err) == nil {
		l.config.Logger.Error("audit: requests cannot be journalled", "error", err)
	}
	if l.config.OnFailure == onFailureContinue {
		return nil
	}
	return err
}

const interruptedError = "the process ended before the request did"

// Commit ends the record: the event is written, exactly once. Further calls do nothing.
func (r *Record) Commit() {
	if r.over || r.log == nil {
		return
	}
	r.over = true
	l, s := r.log, r.slot
	if s == nil {
		if s = l.take(); s == nil {
			l.drop(r.Event.ID)
			return
		}
		s.id = r.Event.ID
	}
	r.slot = nil
	ev := &r.Event
	ev.ID = s.id
	if ev.DurationMS == 0 {
		ev.DurationMS = float64(time.Since(ev.Time)) / float64(time.Millisecond)
	}
	if ev.Outcome == "" {
		ev.Outcome = Failed // nobody came to say how it ended
	}
	// Between the two most events learn no more than how they end.
	var now settled
	if l.encoder.settle(&now, ev) && now == r.settled {
		s.room, s.begins = putEnd(s.room, s.begins, r.parts, ev)
	} else {
		s.room, s.begins = l.encoder.append(s.room[:bodyStart], ev), bodyStart
	}

	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		l.config.Logger.Error("audit: an event came after the log was closed", "id", s.id)
		return // what the journal has of it is found at the next start
	}
	first := len(l.queue) == 0
	if first {
		s.committed = time.Now()
	}
	l.queue = append(l.queue, s)
	scarce := l.scarce()
	l.mu.Unlock()
	if first {
		notify(l.wake)
	}
	if scarce {
		notify(l.hurry)
	}
}

// drop is what on_failure: continue asks for.
func (l *Log) drop(id string) {
	if n := l.count.dropped.Add(1); n&(n-1) == 0 { // 1, 2, 4, 8, …: told, without filling the operator's log
		l.config.Logger.Error("audit: events are not recorded (on_failure: continue)", "dropped", n, "id", id)
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Stats is what there is to measure.
type Stats struct {
	Begun    uint64 // events begun
	Written  uint64 // lines written
	Bytes    uint64 // of them
	Refused  uint64 // times that Begin had no room
	Dropped  uint64 // events lost, where on_failure is continue
	Failures uint64 // writes that failed, to be tried again; and journal entries that could not be made

	Free    int           // slots left
	Open    int           // events begun and not committed
	Queued  int           // events committed and not written
	Lag     time.Duration // how long the oldest of them has waited, about
	LastSeq uint64        // of the newest line written

	Err error // why events cannot be written now; nil = they can

	Files FileStats
	Ship  []ShipStats
}

// Stats reports the log's state; it is cheap.
func (l *Log) Stats() Stats {
	var s Stats
	l.mu.Lock()
	s.Free, s.Queued = l.free.n, len(l.queue)+l.batch.waiting
	s.Open = l.config.InFlight - s.Free - s.Queued
	if !l.batch.oldest.IsZero() {
		s.Lag = time.Since(l.batch.oldest)
	} else if len(l.queue) > 0 && !l.queue[0].committed.IsZero() {
		s.Lag = time.Since(l.queue[0].committed)
	}
	l.mu.Unlock()
	// After the queue: what has left that is among the lines written.
	s.Begun, s.Written, s.Bytes = l.count.begun.Load(), l.count.written.Load(), l.count.bytes.Load()
	s.Refused, s.Dropped, s.Failures = l.count.refused.Load(), l.count.dropped.Load(), l.count.failures.Load()
	s.LastSeq = l.count.lastSeq.Load()
	s.Err = l.Health()
	if l.keeper != nil {
		s.Files = l.keeper.stats()
	}
	for _, sh := range l.shippers {
		s.Ship = append(s.Ship, sh.stats(s.LastSeq))
	}
	return s
}

// hanging is how long a sink may take before Health says so, and the journal before requests are refused.
const hanging = 5 * time.Second

// longAgo reports whether what began then, in Unix nanoseconds, hangs; 0 = nothing began.
func longAgo(since int64) bool { return since != 0 && time.Since(time.Unix(0, since)) > hanging }

// Health is nil while events can be recorded.
func (l *Log) Health() error {
	l.mu.Lock()
	failed, closed, full := l.failed, l.closed, l.free.n == 0
	l.mu.Unlock()
	writing, trying := l.writing.Load(), l.trying.Load()
	switch {
	case closed:
		return errors.New("audit: the log is closed")
	case failed != nil:
		return fmt.Errorf("audit: %w", failed)
	case longAgo(trying):
		return fmt.Errorf("audit: the journal's disk has not answered for %s", time.Since(time.Unix(0, trying)).Round(time.Second))
	case longAgo(writing):
		return fmt.Errorf("audit: the log's disk or standard output has not answered for %s", time.Since(time.Unix(0, writing)).Round(time.Second))
	case full:
		return ErrFull
	}
	if bad := l.journalBad.Load(); bad != nil {
		return fmt.Errorf("audit: %w", *bad)
	}
	return nil
}

// Reopen looks whether the file is still where it was and makes it anew where it is not (SIGHUP). Sluice rotates
// by itself; who moves the file away instead need not even tell, but may.
func (l *Log) Reopen() error {
	if l.file == nil {
		return nil
	}
	answer := make(chan error, 1)
	timeout := time.NewTimer(hanging)
	defer timeout.Stop()
	select {
	case l.reopens <- answer:
		return <-answer
	case <-l.done:
		return errors.New("audit: the log is closed")
	case <-timeout.C:
		return fmt.Errorf("audit: reopen: the log's disk has not answered for %s", hanging)
	}
}

// Close writes what is committed, and ends. Records that are not committed by then stay in the journal. Where
// ctx ends first, what is not written stays there too, and the next Open writes it.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	notify(l.wake)
	notify(l.hurry)
	var err error
	stuck := false
	select {
	case <-l.done:
	case <-ctx.Done():
		err = fmt.Errorf("close the audit log: events are left in the journal: %w", ctx.Err())
		close(l.giveUp)
		select {
		case <-l.done:
		case <-time.After(time.Second): // it hangs in a write
			stuck = true
		}
	}
	if l.file == nil || stuck || longAgo(l.trying.Load()) {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- l.end(ctx) }()
	select {
	case endErr := <-ended:
		return errors.Join(err, endErr)
	case <-ctx.Done():
	}
	select {
	case endErr := <-ended:
		return errors.Join(err, endErr)
	case <-time.After(hanging):
		return errors.Join(err, fmt.Errorf("close the audit log: its disk has not answered for %s: %w", hanging, ctx.Err()))
	}
}

// end ends what works beside the writer, and closes the files.
func (l *Log) end(ctx context.Context) error {
	l.stopShippers(ctx)
	l.flusher.Wait()
	l.keeper.stop()
	s := l.Stats()
	empty := s.Open == 0 && s.Queued == 0
	return errors.Join(l.file.flush(), l.file.close(), l.checkpoints.close(), l.journal.close(empty))
}
