package signer

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Credentials are not used in their last seconds: clocks differ, and a request takes its time to arrive.
	spare = 30 * time.Second
	// A call for credentials, its retries included, takes no longer than this.
	callTimeout = 15 * time.Second
	// So many calls at once. STS throttles an account as a whole: a restart of the proxy under load must not use up
	// what others need.
	maxCalls = 32
	// How often what has expired is looked for.
	sweepEvery = time.Minute
)

// key is all that two requests must have in common to use the same credentials.
type key struct {
	who    string // persona.key
	role   string
	policy string // the session policy itself
}

// order is what to obtain.
type order struct {
	key
	persona  *persona
	token    string // for web_identity
	duration time.Duration
	expires  time.Time // of the identity
}

// asked is the duration to ask STS for: no longer than the identity lives, but for what STS takes as its least.
func (o *order) asked(now time.Time) time.Duration {
	left := o.expires.Sub(now)
	if up := left.Truncate(time.Second); up < left {
		left = up + time.Second
	}
	return max(min(o.duration, left), minDuration)
}

// obtainFunc asks whoever has credentials for some. The time that they are good for is the cache's business.
type obtainFunc func(ctx context.Context, o *order, now time.Time) (*credentials, *Error)

// cache keeps credentials, renews those in use before they expire, and makes one call for all who wait for the same.
type cache struct {
	ctx       context.Context // ends background calls
	now       func() time.Time
	obtain    obtainFunc
	max       int
	onRefresh func(role string, err error, took time.Duration)
	calls     chan struct{} // a place for each call under way

	refreshes, failures atomic.Uint64

	mu      sync.RWMutex // guards what follows
	entries map[key]*entry
	swept   time.Time
}

func newCache(ctx context.Context, o Options, now func() time.Time, obtain obtainFunc) *cache {
	return &cache{ctx: ctx, now: now, obtain: obtain, max: o.MaxSessions, onRefresh: o.OnRefresh,
		calls: make(chan struct{}, maxCalls), entries: map[key]*entry{}, swept: now()}
}

// entry is the credentials of one key.
type entry struct {
	current atomic.Pointer[credentials] // nil until there are some
	used    atomic.Int64                // Unix nanoseconds, to the second or so

	mu       sync.Mutex // guards what follows
	call     *call      // under way, or nil
	failed   *Error     // how the last call ended, or nil
	failures int        // since one went well
	again    time.Time  // no call before it
}

// call is one request to STS. What it brought may be read once done is closed.
type call struct {
	done  chan struct{}
	creds *credentials
	err   *Error
}

// usable tells whether c may sign at now for an identity that lives until expires. Where the identity ends first, there
// is nothing newer to be had for it, and c serves to the end.
func (c *credentials) usable(now, expires time.Time) bool {
	return c.expires.IsZero() || now.Before(c.until) || now.Before(c.expires) && !expires.After(c.expires)
}

// due tells whether c should be renewed by now, and that this would bring something for the identity.
func (c *credentials) due(now, expires time.Time) bool {
	return !c.expires.IsZero() && !now.Before(c.refreshAt) && expires.After(c.expires)
}

// get answers from what is kept where it can. Only a caller that finds nothing usable waits, until ctx ends at most; its
// going away does not end the call that others wait for.
func (c *cache) get(ctx context.Context, o *order) (*credentials, *Error) {
	now := c.now()
	e, err := c.entry(o.key, now)
	if err != nil {
		return nil, err
	}
	if have := e.current.Load(); have != nil && have.usable(now, o.expires) {
		if have.due(now, o.expires) {
			c.renew(e, o, now)
		}
		return have, nil
	}

	e.mu.Lock()
	if have := e.current.Load(); have != nil && have.usable(now, o.expires) {
		e.mu.Unlock()
		return have, nil // it came while we waited for the lock
	}
	under := e.call
	if under == nil {
		if e.failed != nil && now.Before(e.again) {
			defer e.mu.Unlock()
			return e.orElse(now, e.failed)
		}
		under = c.start(e, o)
	}
	e.mu.Unlock()

	select {
	case <-under.done:
		if under.err != nil {
			return e.orElse(c.now(), under.err)
		}
		return under.creds, nil
	case <-ctx.Done():
		return nil, &Error{Kind: Unavailable, Message: "gave up waiting for credentials to reach the backend with", Err: context.Cause(ctx)}
	}
}

// orElse falls back on credentials in their last seconds where there are no better ones.
func (e *entry) orElse(now time.Time, err *Error) (*credentials, *Error) {
	if have := e.current.Load(); have != nil && now.Before(have.expires) {
		return have, nil
	}
	return nil, err
}

// renew starts a call in the background, unless there is one or there was one just now.
func (c *cache) renew(e *entry, o *order, now time.Time) {
	if c.ctx.Err() != nil || !e.mu.TryLock() {
		return
	}
	defer e.mu.Unlock()
	if have := e.current.Load(); e.call == nil && !now.Before(e.again) && have.due(now, o.expires) {
		c.start(e, o)
	}
}

// start begins a call. e.mu is held. The call belongs to all who wait for it, so no one request's context ends it.
func (c *cache) start(e *entry, o *order) *call {
	under := &call{done: make(chan struct{})}
	e.call = under
	asked := *o
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), callTimeout)
		defer cancel()
		began := time.Now()
		creds, err := c.run(ctx, &asked)
		c.finish(e, under, creds, err)
		if c.onRefresh != nil {
			var told error
			if err != nil { // a nil *Error must not become an error
				told = err
			}
			c.onRefresh(asked.role, told, time.Since(began))
		}
	}()
	return under
}

func (c *cache) run(ctx context.Context, o *order) (*credentials, *Error) {
	select {
	case c.calls <- struct{}{}:
		defer func() { <-c.calls }()
	case <-ctx.Done():
		return nil, &Error{Kind: Unavailable, Message: "too many requests wait for credentials: try again", Err: ctx.Err(),
			Hint: "STS is slow or throttling: see its limits in docs/aws-setup.md"}
	}
	creds, err := c.obtain(ctx, o, c.now())
	if err == nil && !creds.usable(c.now(), time.Time{}) {
		return nil, &Error{Kind: Unavailable, Message: "the credentials that came have expired already",
			Hint: "compare the clocks of this machine and of STS"}
	}
	return creds, err
}

func (c *cache) finish(e *entry, under *call, creds *credentials, err *Error) {
	now := c.now()
	e.mu.Lock()
	if err != nil {
		c.failures.Add(1)
		under.err, e.failed = err, err
		e.failures++
		wait := time.Second + rand.N(time.Second)
		if have := e.current.Load(); have != nil && have.usable(now, time.Time{}) {
			wait <<= min(e.failures-1, 4) // nobody waits for it
		}
		e.again = now.Add(wait)
	} else {
		c.refreshes.Add(1)
		under.creds = creds
		e.failed, e.failures = nil, 0
		e.again = now.Add(time.Second)
		e.current.Store(creds)
	}
	e.call = nil
	e.mu.Unlock()
	close(under.done)
}

// lasting sets when c is to be renewed and when it is no longer used. The last quarter of its life is for renewing, a
// little earlier for some, so that sessions which began together do not end together.
func (c *credentials) lasting(now, expires time.Time) {
	life := expires.Sub(now)
	c.expires = expires
	c.until = expires.Add(-min(spare, life/4))
	c.refreshAt = expires.Add(-life / 4)
	if life > 0 {
		c.refreshAt = c.refreshAt.Add(-rand.N(life/10 + 1))
	}
}

// entry finds or makes the entry of k.
func (c *cache) entry(k key, now time.Time) (*entry, *Error) {
	c.mu.RLock()
	e := c.entries[k]
	c.mu.RUnlock()
	if e == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if e = c.entries[k]; e == nil {
			if !c.makeRoom(now) {
				return nil, &Error{Kind: Unavailable, Message: "too many requests wait for credentials: try again",
					Hint: "STS is slow or throttling: see its limits in docs/aws-setup.md"}
			}
			e = new(entry)
			c.entries[k] = e
		}
	}
	// Not on each request: the processors would take the line from each other.
	if t := now.UnixNano(); t-e.used.Load() > int64(time.Second) {
		e.used.Store(t)
	}
	return e, nil
}

// makeRoom forgets what has expired, now and then, and the sixteenth that was not used for longest where the cache is
// full. c.mu is held. Those with a call under way stay: it is what keeps it a single one.
func (c *cache) makeRoom(now time.Time) bool {
	full := len(c.entries) >= c.max
	if !full && now.Sub(c.swept) < sweepEvery {
		return true
	}
	c.swept = now
	type candidate struct {
		key  key
		used int64
	}
	var idle []candidate
	for k, e := range c.entries {
		switch e.state(now) {
		case useless:
			delete(c.entries, k)
		case kept:
			if full {
				idle = append(idle, candidate{k, e.used.Load()})
			}
		}
	}
	if excess := len(c.entries) - c.max; excess >= 0 {
		slices.SortFunc(idle, func(a, b candidate) int { return cmp.Compare(a.used, b.used) })
		for _, old := range idle[:min(len(idle), excess+1+c.max/16)] {
			delete(c.entries, old.key)
		}
	}
	return len(c.entries) < c.max
}

type state uint8

const (
	busy    state = iota // a call is under way
	useless              // nothing in it, or not any more
	kept
)

func (e *entry) state(now time.Time) state {
	e.mu.Lock()
	defer e.mu.Unlock()
	have := e.current.Load()
	switch {
	case e.call != nil, have == nil && e.failed == nil: // or is about to begin
		return busy
	case have != nil && have.usable(now, time.Time{}), now.Before(e.again):
		return kept
	}
	return useless
}

func (c *cache) stats() Stats {
	c.mu.RLock()
	n := len(c.entries)
	c.mu.RUnlock()
	return Stats{Sessions: n, Refreshes: c.refreshes.Load(), Failures: c.failures.Load()}
}
