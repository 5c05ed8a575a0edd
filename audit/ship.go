package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/sluice-s3/sluice/audit/ship"
)

// Ship is one far end that events are sent to. Exactly one of its kinds is set.
type Ship = ship.Config

// ShipStats is the state of one far end.
type ShipStats struct {
	Name     string
	Shipped  uint64        // events that it has, since the start
	Failures uint64        // times that it would not take them
	Lost     uint64        // events that were gone from the log before it had them
	Skipped  uint64        // events that it has refused, and will not be sent again
	Lag      uint64        // events that it does not have yet
	Behind   time.Duration // how old the oldest of them is, about; 0 = none
	LastSeq  uint64        // the last line that it has
	Err      error         // why the last try failed; nil = it did not
}

const (
	shipEvents = 500
	shipBytes  = 1 << 20
	// refusals is how many events that were refused, one after the other, are held against those that follow.
	refusals = 100
)

// shipper reads the log and sends it to one far end. The log is the queue: what keeps the place is a number in a
// file, written after the far end has confirmed.
type shipper struct {
	name   string
	format string
	source string
	sink   ship.Sink
	path   string // of the cursor
	logger *slog.Logger
	follow *follower
	wake   chan struct{}
	quit   context.Context // ends when the log is closed for good
	stop   context.CancelFunc
	drain  chan struct{} // closed when no more events will come
	done   chan struct{}

	mu   sync.Mutex // guards what follows
	now  ShipStats
	head time.Time // of the oldest event that is being sent

	told map[string]bool // what the far end has said of events that it rejected; run's own
}

// cursor is what is kept of the last event that the far end has.
type cursor struct {
	Seq  uint64 `json:"seq"`
	ID   string `json:"id"`
	Hash string `json:"hash"` // of the line
}

func (l *Log) startShippers() (err error) {
	defer func() {
		if err != nil {
			for _, s := range l.shippers {
				s.sink.Close()
			}
		}
	}()
	for i := range l.config.Ship {
		c := &l.config.Ship[i]
		sink, err := ship.Open(*c, ship.Source())
		if err != nil {
			return fmt.Errorf("ship[%d]: %w", i, err)
		}
		s := &shipper{
			name: c.NameOrKind(), format: c.BodyFormat(), source: ship.Source(), sink: sink,
			path: l.file.path + shipSuffix + c.NameOrKind(), logger: l.config.Logger,
			wake: make(chan struct{}, 1), drain: make(chan struct{}), done: make(chan struct{}), told: map[string]bool{},
		}
		s.quit, s.stop = context.WithCancel(context.Background())
		l.shippers = append(l.shippers, s)
		if s.follow, err = s.resume(l.file.path); err != nil {
			return fmt.Errorf("ship[%d]: %w", i, err)
		}
		s.now.Name = s.name
	}
	for _, s := range l.shippers {
		go s.run()
	}
	return nil
}

// stopShippers lets them send what is left, as long as ctx and the far ends allow.
func (l *Log) stopShippers(ctx context.Context) {
	for _, s := range l.shippers {
		close(s.drain)
		s.mu.Lock()
		if s.now.Err != nil {
			s.stop() // no use to wait; the next process goes on from here
		}
		s.mu.Unlock()
	}
	for _, s := range l.shippers {
		select {
		case <-s.done:
		case <-ctx.Done():
			s.stop()
			select {
			case <-s.done:
			case <-time.After(time.Second): // it hangs in a read
				continue
			}
		}
		s.stop()
		s.sink.Close()
	}
}

// unshipped is the number of the first line that some far end does not have; 0 = there is no far end.
func (l *Log) unshipped() uint64 {
	first := uint64(0)
	for _, s := range l.shippers {
		s.mu.Lock()
		next := s.now.LastSeq + 1
		s.mu.Unlock()
		if first == 0 || next < first {
			first = next
		}
	}
	return first
}

func (s *shipper) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *shipper) stats(last uint64) ShipStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.now
	if last > st.LastSeq {
		st.Lag = last - st.LastSeq
		if !s.head.IsZero() {
			st.Behind = time.Since(s.head)
		}
	}
	return st
}

// resume finds the place: after the last line that the far end has. Where that line is not in the log any more,
// or is another one now, it begins with the oldest there is; the far end knows by the ids what it has had.
func (s *shipper) resume(log string) (*follower, error) {
	f := &follower{path: log}
	raw, err := os.ReadFile(s.path)
	if errors.Is(err, os.ErrNotExist) {
		f.next, f.hash, err = beginOf(log) // now: the file may be moved away before it is read
		return f, err
	}
	if err != nil {
		return nil, fmt.Errorf("read the place of %s: %w", s.name, err)
	}
	var c cursor
	if json.Unmarshal(raw, &c) != nil || c.Seq == 0 {
		s.logger.Error("audit: the place of a far end cannot be read: sending the whole log", "ship", s.name, "file", s.path)
		return f, nil
	}
	f.next = c.Seq
	line, seq, err := f.read()
	switch {
	case err == nil && seq == c.Seq && lineHash(line) == c.Hash:
		s.now.LastSeq = c.Seq
		return f, nil
	case err == nil && seq > c.Seq, err != nil && err != io.EOF:
		// The line itself was removed for its age; so were those between, which counts them as lost. Or it is where
		// nothing can be read any more.
		f.close()
		f = &follower{path: log, next: c.Seq + 1, hash: c.Hash}
		s.now.LastSeq = c.Seq
		return f, nil
	}
	f.close()
	s.logger.Error("audit: the log is not the one that a far end was sent: sending the whole log", "ship", s.name)
	return &follower{path: log}, nil
}

func (s *shipper) save(c cursor) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	temp := s.path + ".tmp"
	f, err := createTemp(temp, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(raw, '\n'))
	if err == nil {
		err = f.Sync() // or after a power loss the name may be there, and nothing in it
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(temp, s.path)
}

// shipBatch is what is being sent.
type shipBatch struct {
	messages []ship.Message
	cursors  []cursor // of each
	events   []*Event
}

// first takes the first n messages off the batch.
func (b *shipBatch) first(n int) shipBatch {
	first := shipBatch{b.messages[:n], b.cursors[:n], b.events[:n]}
	b.messages, b.cursors, b.events = b.messages[n:], b.cursors[n:], b.events[n:]
	return first
}

func (b *shipBatch) add(more shipBatch) {
	b.messages = append(b.messages, more.messages...)
	b.cursors = append(b.cursors, more.cursors...)
	b.events = append(b.events, more.events...)
}

// run sends events until the log is closed. What a far end refuses is sent in ever smaller parts, until it is one event
// that is refused. Whether that is the event's fault, or the far end takes nothing as it is set up, shows by the events
// that follow: once one of them is taken, those refused before are offered once more, and then given up. Until then
// nothing is.
func (s *shipper) run() {
	defer close(s.done)
	defer s.follow.close()
	var b, refused shipBatch
	limit := shipEvents
	backoff := time.Duration(0)
	longer := func() time.Duration {
		backoff = min(max(2*backoff, 250*time.Millisecond), 30*time.Second)
		return backoff + rand.N(backoff/4)
	}
	var saved, unsaved cursor
	lastSave := time.Time{}
	save := func() {
		if unsaved == saved {
			return
		}
		if err := s.save(unsaved); err != nil {
			s.failed(fmt.Errorf("keep the place: %w", err))
		} else {
			saved = unsaved
		}
		lastSave = time.Now()
	}
	defer save()
	for {
		if len(b.messages) == 0 {
			s.fill(&b, limit)
		}
		s.waiting(&refused, &b)
		if len(refused.messages) >= refusals || len(b.messages) == 0 && len(refused.messages) > 0 {
			save()
			if !s.pause(longer()) {
				return // the next process goes on from here
			}
			refused.add(b)
			b, refused, limit = refused, shipBatch{}, shipEvents
			continue
		}
		if len(b.messages) == 0 {
			save()
			select {
			case <-s.drain:
				return // nothing left
			case <-s.quit.Done():
				return
			case <-s.wake:
			case <-time.After(time.Second):
			}
			continue
		}
		some := b.messages[:min(limit, len(b.messages))]
		n, err := s.sink.Send(s.quit, some)
		rejected, partly := err.(ship.Rejected)
		if partly {
			s.tell(rejected, n)
			err = nil
		}
		if n > 0 {
			last := b.first(n).cursors[n-1]
			s.count(n-rejected.Messages, rejected.Messages)
			if settleErr := s.settle(&refused); settleErr != nil {
				err = settleErr // last is not where the far end is, as long as it may want what was before
			} else {
				unsaved = last
				s.waiting(&b)
				s.progress(unsaved.Seq, err)
			}
			if time.Since(lastSave) > 200*time.Millisecond {
				save()
			}
		}
		if err == nil {
			backoff = 0
			limit = min(2*limit, shipEvents)
			continue
		}
		s.failed(err)
		if n == 0 && (errors.Is(err, ship.ErrTooLarge) || errors.Is(err, ship.ErrRefused)) {
			if limit = max(1, len(some)/2); len(some) == 1 && !s.shrink(&b) {
				refused.add(b.first(1))
			}
			continue
		}
		select {
		case <-s.drain:
			return // the process ends; the next one goes on from here
		default:
		}
		// Who is away may come back with other rules.
		refused.add(b)
		b, refused, limit = refused, shipBatch{}, shipEvents
		wait := longer()
		var later ship.RetryAfter
		if errors.As(err, &later) {
			wait = max(wait, later.After)
		}
		select {
		case <-time.After(wait):
		case <-s.drain: // one last try
		case <-s.quit.Done():
			return
		}
	}
}

// pause waits; false = the log is closed.
func (s *shipper) pause(wait time.Duration) bool {
	select {
	case <-time.After(wait):
		return true
	case <-s.drain:
	case <-s.quit.Done():
	}
	return false
}

// waiting notes how old the oldest event is that the far end does not have.
func (s *shipper) waiting(batches ...*shipBatch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head = time.Time{}
	for _, b := range batches {
		if len(b.events) > 0 {
			s.head = b.events[0].Time
			return
		}
	}
}

// fill reads the next events.
func (s *shipper) fill(b *shipBatch, limit int) {
	*b = shipBatch{}
	for size := 0; len(b.messages) < limit && size < shipBytes; {
		line, seq, err := s.follow.read()
		s.lose()
		if err == io.EOF {
			break
		}
		if err != nil {
			s.failed(err)
			break
		}
		ev := new(Event)
		if err := json.Unmarshal(line, ev); err != nil {
			s.failed(fmt.Errorf("line %d of the log is no event: %w", seq, err))
			continue
		}
		m, err := s.message(ev, bytes.Clone(line))
		if err != nil {
			s.failed(fmt.Errorf("line %d of the log: %w", seq, err))
			continue
		}
		b.messages = append(b.messages, m)
		b.cursors = append(b.cursors, cursor{seq, ev.ID, lineHash(line)})
		b.events = append(b.events, ev)
		size += len(m.Body)
	}
}

func (s *shipper) message(ev *Event, line []byte) (ship.Message, error) {
	m := ship.Message{
		ID: ev.ID, Seq: ev.Seq, Time: ev.Time, Body: line,
		Outcome: string(ev.Outcome), Operation: ev.Operation, Bucket: ev.Bucket, Session: ev.Identity.Session, TraceID: ev.TraceID,
	}
	var err error
	switch s.format {
	case ship.OCSF:
		m.Body, err = appendOCSF(nil, ev)
	case ship.CloudEvents:
		m.Body, err = appendCloudEvent(nil, ev, line, s.source)
	}
	return m, err
}

// shrunk is how many accesses are left of an event that is too large for a far end.
const shrunk = 50

// shrink makes the first event of the batch small, and reports whether it could: a DeleteObjects of many keys is
// larger than what some far ends take. The log has it whole.
func (s *shipper) shrink(b *shipBatch) bool {
	ev := b.events[0]
	if len(ev.Accesses) <= shrunk {
		return false
	}
	all := len(ev.Accesses)
	ev.Accesses = ev.Accesses[:shrunk]
	ev.Error = or(ev.Error, fmt.Sprintf("%d of %d accesses are left out here: the audit log has them", all-shrunk, all))
	line, err := json.Marshal(ev)
	if err != nil {
		return false
	}
	m, err := s.message(ev, line)
	if err != nil {
		return false
	}
	b.messages[0] = m
	return true
}

// settle offers events that were refused once more, now that one after them was taken (the far end may have been mended
// in between, and then has them late), and skips those that are refused again, aloud. An error means that the rest of
// them are still to be sent.
func (s *shipper) settle(refused *shipBatch) error {
	for len(refused.messages) > 0 {
		n, err := s.sink.Send(s.quit, refused.messages[:1])
		rejected, partly := err.(ship.Rejected)
		switch {
		case n == 1:
			if partly {
				s.tell(rejected, n)
			}
			s.count(n-rejected.Messages, rejected.Messages)
		case errors.Is(err, ship.ErrTooLarge) || errors.Is(err, ship.ErrRefused):
			s.logger.Error("audit: a far end will not take an event; the log has it", "ship", s.name, "id", refused.cursors[0].ID, "seq", refused.cursors[0].Seq, "error", err)
			s.count(0, 1)
		default:
			return err
		}
		refused.first(1)
	}
	return nil
}

func (s *shipper) count(shipped, skipped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.Shipped += uint64(shipped)
	s.now.Skipped += uint64(skipped)
}

// tell says what a far end has to say of n events that it took, once for each thing it says, as far as these are few,
// and once more whenever what it threw away has doubled.
func (s *shipper) tell(r ship.Rejected, n int) {
	s.mu.Lock()
	so := s.now.Skipped
	s.mu.Unlock()
	why := r.Why[:min(len(r.Why), 300)]
	told := s.told[why] || len(s.told) >= 10
	if told && bits.Len64(so) == bits.Len64(so+uint64(r.Messages)) {
		return
	}
	if !told {
		s.told[why] = true
	}
	if r.Messages == 0 {
		s.logger.Warn("audit: a far end has taken events, with a warning", "ship", s.name, "warning", why)
		return
	}
	s.logger.Error("audit: a far end has rejected events, without saying which; it will not be sent them again, the log has them",
		"ship", s.name, "rejected", r.Messages, "of", n, "why", why)
}

// lose counts what was removed from the log before it could be sent.
func (s *shipper) lose() {
	lost := s.follow.lost
	if lost == 0 {
		return
	}
	s.follow.lost = 0
	s.logger.Error("audit: events were removed from the log before a far end had them", "ship", s.name, "events", lost)
	s.mu.Lock()
	s.now.Lost += lost
	s.mu.Unlock()
}

// progress notes that the far end is done with all up to line seq.
func (s *shipper) progress(seq uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.LastSeq = seq
	if err == nil && s.now.Err != nil {
		s.logger.Info("audit: events are sent again", "ship", s.name)
		s.now.Err = nil
	}
}

func (s *shipper) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.Err == nil {
		s.logger.Error("audit: events cannot be sent; trying again until they can", "ship", s.name, "error", err)
	}
	s.now.Failures++
	s.now.Err = err
}
