package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Log is the audit log of one process.
type Log struct {
	config  Config
	encoder *encoder
	file    *os.File

	mu      sync.Mutex // guards what follows
	free    []*slot    // a stack, so that few slots are hot
	queue   []*slot    // committed, in the order in which they will be written
	closed  bool
	failure error

	wake chan struct{} // of capacity 1: the queue is not empty, or closed
	done chan struct{} // the writer has ended

	// The writer's own.
	seq  uint64
	prev string
}

// slot is the room for one event, from Begin until its line is written.
type slot struct {
	body []byte
}

// Open opens the sinks, finds what a crash left behind and writes its events.
func Open(ctx context.Context, c Config) (*Log, error) {
	var problems []string
	c.Check(func(path, problem string) {
		problems = append(problems, strings.TrimSpace(path+" "+problem))
	})
	if len(problems) > 0 {
		return nil, errors.New("audit: " + strings.Join(problems, "; "))
	}
	c = c.withDefaults()
	l := &Log{
		config:  c,
		encoder: newEncoder(c),
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		prev:    noPrev,
	}
	if c.File != nil {
		f, err := os.OpenFile(c.File.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, fmt.Errorf("open the audit log: %w", err)
		}
		l.file = f
	}
	for range c.InFlight {
		l.free = append(l.free, &slot{})
	}
	go l.write()
	return l, nil
}

// Begin reserves room for one event, so that Commit can neither block nor fail. It does not wait: ErrFull means
// that the request must not be served.
func (l *Log) Begin(now time.Time) (*Record, error) {
	l.mu.Lock()
	n := len(l.free)
	if n == 0 || l.closed {
		l.mu.Unlock()
		return nil, ErrFull
	}
	s := l.free[n-1]
	l.free = l.free[:n-1]
	l.mu.Unlock()
	return &Record{log: l, slot: s, Event: Event{Schema: Schema, ID: newID(now), Time: now}}, nil
}

// Record is the event of one request in progress. It is used by one goroutine.
type Record struct {
	Event Event // filled in by the proxy as it learns; Schema, Seq, ID, Time and Prev are Begin's and Commit's

	log  *Log
	slot *slot
}

// Journal makes what Event holds so far survive the death of the process. It MUST return before the first byte
// goes to a backend, and before a refusal goes to the client. Where it fails the request must not be served.
func (r *Record) Journal() error { return nil }

// Commit ends the record: the event is written, exactly once. Further calls do nothing.
func (r *Record) Commit() {
	s := r.slot
	if s == nil {
		return
	}
	r.slot = nil
	if r.Event.DurationMS == 0 {
		r.Event.DurationMS = float64(time.Since(r.Event.Time)) / float64(time.Millisecond)
	}
	if r.Event.Outcome == "" {
		r.Event.Outcome = Failed // nobody came to say how it ended
	}
	l := r.log
	s.body = l.encoder.append(s.body[:0], &r.Event)
	l.mu.Lock()
	l.queue = append(l.queue, s)
	l.mu.Unlock()
	l.notify()
}

func (l *Log) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *Log) write() {
	defer close(l.done)
	var lines []byte
	for range l.wake {
		l.mu.Lock()
		queue, closed := l.queue, l.closed
		l.queue = nil
		l.mu.Unlock()
		lines = lines[:0]
		for _, s := range queue {
			start := len(lines)
			lines = appendLine(lines, l.seq+1, s.body, l.prev)
			l.seq++
			l.prev = lineHash(lines[start : len(lines)-1])
		}
		var err error
		if l.file != nil {
			_, err = l.file.Write(lines)
		}
		if l.config.Stdout {
			_, err = os.Stdout.Write(lines)
		}
		l.mu.Lock()
		l.failure = err
		if err == nil {
			l.free = append(l.free, queue...)
		}
		l.mu.Unlock()
		if closed {
			return
		}
	}
}

// Health is nil while events can be recorded.
func (l *Log) Health() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure == nil && len(l.free) == 0 {
		return ErrFull
	}
	return l.failure
}

// Reopen closes and opens the file again (SIGHUP).
func (l *Log) Reopen() error { return nil }

// Close writes what is committed, and ends.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.notify()
	select {
	case <-l.done:
	case <-ctx.Done():
		return fmt.Errorf("close the audit log: %w", ctx.Err())
	}
	if l.file != nil {
		return l.file.Close()
	}
	return nil
}
