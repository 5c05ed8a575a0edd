package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/http1"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3wire"
	"github.com/sluice-s3/sluice/signer"
)

// call is one request in progress: what is known of it so far, and its event. It belongs to the handler's
// goroutine but for the atomics, which the transport and the rounds of calls touch.
type call struct {
	proxy  *Proxy
	in     *http.Request
	out    *response // to the client: answer
	answer response
	record audit.Record
	event  *audit.Event // the record's
	start  time.Time

	journalled bool

	op       *s3wire.Operation
	proof    *identity.Proof
	backend  *Backend
	asked    *policy.Question
	decision *policy.Decision
	lease    lease // of the session's limits

	ctx      context.Context // of the exchange with the backend: scope, with the trace where there is one
	scope    http1.Scope
	transfer identity.Transfer // in the list of those that a revocation cuts
	place    place             // in the list of calls
	among    int64             // requests in flight when this one came, and it

	// What the call makes on its way, in one piece with it: each would be an allocation of its own.
	room struct {
		op       s3wire.Operation
		question policy.Question
		request  policy.Request
		asked    [2]policy.Access
		recorded [2]audit.Access
		out      http.Request
		header   http.Header // out's
		url      url.URL
		exchange http1.Room
		moved    func(int) error // the call's method
	}

	upload    atomic.Pointer[upload] // the body as it goes to the backend
	bytesIn   atomic.Int64
	progress  atomic.Int64 // bumped by every read and write
	paced     atomic.Int32 // more than 0 while a transfer waits for its session's rate: slow on purpose is not idle
	cutBy     atomic.Int32 // why the exchange was cut; see cut
	ending    sync.Mutex   // guards ended
	ended     bool         // the connection may be another request's by now
	firstByte time.Time    // of the backend's answer
}

// Reasons to cut an exchange from outside its goroutine.
const (
	cutNot  int32 = iota
	cutIdle       // neither side has moved a byte
	cutRevoked
)

// newCall is a call whose record is yet to be begun.
func newCall(p *Proxy) *call {
	c := retired.Get().(*call)
	c.proxy, c.event = p, &c.record.Event
	return c
}

func (c *call) begin(w http.ResponseWriter, r *http.Request, start time.Time) {
	p := c.proxy
	c.in, c.start = r, start
	c.scope.Begin(r.Context())
	c.ctx, c.out = &c.scope, &c.answer
	c.event.Host = r.Host
	if agent := r.Header["User-Agent"]; len(agent) > 0 {
		c.event.UserAgent = agent[0]
	}
	c.event.SourceIP = p.sourceIP(r)
	c.event.Outcome = audit.Failed                        // until something better is known
	c.event.Decision.PolicyRevision = p.Policy.Revision() // until policy is asked: the one it would have been asked of
	c.out.begin(w, c.event.ID)
	c.out.progress = &c.progress
	c.among = p.Telemetry.inFlight.Add(1)
	c.startSpan()
	p.calls.enter(c)
}

// finish writes the event. It is deferred before anything else happens, so it sees every way a request ends.
func (c *call) finish() {
	fault := recover()
	if fault != nil && fault != http.ErrAbortHandler {
		c.proxy.Log.Error("request panicked", slog.String("id", c.event.ID), slog.Any("panic", fault), slog.String("stack", string(debug.Stack())))
		c.event.Error = "InternalError"
		c.event.Outcome = audit.Failed
		if !c.out.started() {
			s3wire.WriteError(c.out, c.in, &s3wire.Error{Code: "InternalError", Message: "the proxy failed on this request; its operator can find it by the request id"}, c.in.URL.Path, c.event.ID)
			fault = nil
		} else {
			fault = http.ErrAbortHandler
		}
	}
	c.proxy.calls.leave(c)
	c.ending.Lock()
	c.ended = true
	c.ending.Unlock()
	c.scope.End()
	c.transfer.Untrack()
	if u := c.upload.Load(); u != nil {
		u.stop()
	}
	c.lease.release()

	took := c.proxy.Now().Sub(c.start)
	c.event.DurationMS = float64(took.Microseconds()) / 1000
	c.event.Status = c.out.status
	c.event.BytesIn = c.bytesIn.Load()
	c.event.BytesOut = c.out.bytes
	c.proxy.Telemetry.finished(c, took)
	c.record.Commit()
	if fault == nil && c.spent() && c.out.Header().Get("Connection") == "" {
		fault = http.ErrAbortHandler // the cut came too late for the answer to say so
	}
	if fault != nil {
		panic(fault)
	}
	c.retire()
}

const (
	usualRoom = 8  // most requests to a backend have no more header fields, and a map grows in one step
	maxRoom   = 32 // of a map that is kept
)

// retired are calls to use again: blank, so that nothing of a request ever meets another.
var retired = sync.Pool{New: func() any {
	c := new(call)
	c.room.header = make(http.Header, usualRoom)
	c.room.moved = c.moved
	return c
}}

// retire gives the call back where it can be told that nobody has it any more, as it is for most that have no body: it
// and what is in it are half of what a small request allocates. A body's goroutine, a timer, a context that hangs on the
// scope, a span or net/http's transport may all have it a moment longer than the handler.
func (c *call) retire() {
	mayBeHeld := c.op == nil || c.upload.Load() != nil || c.cutBy.Load() != cutNot || c.ctx != &c.scope || !c.scope.Over()
	if c.backend != nil {
		_, own := c.backend.Transport.(*http1.Transport)
		mayBeHeld = mayBeHeld || !own
	}
	if !mayBeHeld {
		c.blank()
	}
}

// blank keeps of a call what costs to make anew, and has nothing in it.
func (c *call) blank() {
	header := c.room.header
	if len(header) > maxRoom {
		header = make(http.Header, usualRoom)
	}
	clear(header)
	moved := c.room.moved
	*c = call{}
	c.room.header, c.room.moved = header, moved
	retired.Put(c)
}

// refuse answers with an error, or breaks the connection off where an answer has begun.
func (c *call) refuse(err error) {
	c.blame(err)
	if c.cutBy.Load() == cutIdle {
		err = c.silent(err)
	}
	e, outcome := translate(err)
	if outcome != audit.Refused && c.stopped(err) {
		err = &stopped{err}
		e, outcome = translate(err)
	}
	switch {
	case c.cutBy.Load() == cutRevoked:
		e, outcome = &s3wire.Error{Code: "AccessDenied", Message: "this session has been revoked"}, audit.Revoked
	case outcome == audit.Failed && c.clientLeft():
		outcome = audit.Aborted
	}
	c.event.Error = e.Code
	c.event.Outcome = outcome
	if outcome == audit.Refused && (c.decision == nil || c.decision.Allow) && len(c.event.Decision.Reasons) == 0 {
		c.event.Decision.Reasons = []string{e.Message} // what the client is told: it was not policy that refused
	}
	if outcome == audit.Failed {
		c.proxy.Log.Warn("request failed", slog.String("id", c.event.ID), slog.String("operation", c.event.Operation),
			slog.String("backend", c.event.Backend.Name), slog.String("code", e.Code), slog.Any("error", cause(err)), slog.String("hint", hint(err)))
	}
	if c.out.started() {
		panic(http.ErrAbortHandler)
	}
	if err := c.journal(); err != nil {
		e, _ = translate(err)
	}
	if c.in.Method == http.MethodHead {
		c.out.Header().Set("X-Sluice-Reason", headerText(e.Message)) // there is no body to say it in
	}
	if wait := retryAfter(err, e); wait > 0 {
		c.out.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
	if c.spent() {
		c.out.Header().Set("Connection", "close")
	}
	s3wire.WriteError(c.out, c.in, e, c.in.URL.Path, c.event.ID)
}

// spent tells whether a cut has used the connection up: its deadlines are the connection's, and net/http takes the client
// for gone from then on, so that the next request on it would be refused as one that nobody waits for.
func (c *call) spent() bool { return c.cutBy.Load() != cutNot && c.in.ProtoMajor == 1 }

// silent tells which side of an exchange that was cut for standing still it was: see cut.
func (c *call) silent(err error) error {
	silence := fmt.Errorf("%w for %s", errSilent, c.proxy.Limits.IdleTimeout)
	_, client := errors.AsType[*clientGone](err)
	_, sts := errors.AsType[*signer.Error](err)
	_, outcome := translate(err)
	switch {
	case client:
		return &clientGone{silence}
	case sts || outcome == audit.Refused || c.out.started():
		return err
	}
	return &backendDown{c.backendName(), silence}
}

var errSilent = errors.New("no byte was read or written")

// clientLeft tells whether the client hung up.
func (c *call) clientLeft() bool { return c.in.Context().Err() != nil && c.cutBy.Load() != cutIdle }

// stopped tells whether the request broke off because the process ends: its client seems to have hung up then.
func (c *call) stopped(err error) bool {
	select {
	case <-c.proxy.Stopping:
		_, gone := errors.AsType[*clientGone](err)
		return c.cutBy.Load() == cutNot && (gone || c.clientLeft())
	default:
		return false
	}
}

// journal makes the event survive the death of the process. Nothing may leave on the request's behalf before it,
// neither to a backend nor, so that the client and the log agree, to the client.
func (c *call) journal() error {
	if c.journalled {
		return nil
	}
	if err := c.record.Journal(); err != nil {
		return &unrecorded{err}
	}
	c.journalled = true
	return nil
}

func (c *call) setOperation(op *s3wire.Operation) {
	c.op = op
	c.event.Operation = op.Name
	c.event.Bucket = op.Bucket
	c.event.Key = op.Key
	c.event.VersionID = op.VersionID
}

// setProof takes what the credentials showed, and admits the request under its session's limits.
func (c *call) setProof(proof *identity.Proof) error {
	c.proof = proof
	c.setIdentity(proof.Identity)
	c.proxy.Auth.Track(&c.transfer, proof.Identity, c)
	return c.proxy.sessions.admit(&c.lease, proof.Identity)
}

// blame records what the caller is not told: who was refused, where the credential told that much, and how policy failed.
func (c *call) blame(err error) {
	if e, ok := errors.AsType[*identity.Error](err); ok && e.Identity != nil {
		c.setIdentity(e.Identity)
	}
	if e, ok := errors.AsType[*policy.Undecided](err); ok {
		// For whoever writes the policy; the caller is told that it failed, and no more.
		reason := "policy: " + strings.Join(strings.Fields(e.Err.Error()), " ")
		c.event.Decision.Reasons, c.event.Decision.PolicyRevision = []string{reason}, e.Revision
		c.proxy.Log.Warn("policy failed", slog.String("id", c.event.ID), slog.String("action", e.Action), slog.String("revision", e.Revision), slog.String("error", reason))
	}
}

func (c *call) setIdentity(id *identity.Identity) {
	c.event.Identity = recordIdentity(c.proxy.Audit, id)
}

// chunks verifies a signed body; nil where the signature, if any, proves nothing.
func (c *call) chunks() s3wire.ChunkVerifier {
	if c.proof == nil || c.proof.Chunks == nil {
		return nil
	}
	return c.proof.Chunks
}

// route finds the backend of the request, which takes all of its buckets.
func (c *call) route(bucket string, source *s3wire.Source) error {
	c.backend = c.proxy.backendOf(bucket)
	if c.backend == nil {
		return nil // policy first: who may not know of the bucket is told that, and no more
	}
	c.event.Backend.Name = c.backend.Name
	if source != nil && c.proxy.backendOf(source.Bucket) != c.backend {
		return &s3wire.Error{Code: "NotImplemented", Message: fmt.Sprintf("%q and %q are on different backends; read the object and write it instead of copying", source.Bucket, bucket)}
	}
	if c.backend.StrictKeys {
		return c.op.StrictKey()
	}
	return nil
}

func (p *Proxy) backendOf(bucket string) *Backend {
	for i := range p.Backends {
		for _, g := range p.Backends[i].globs {
			if g.Match(bucket) {
				return &p.Backends[i]
			}
		}
	}
	return nil
}

// decide asks policy about accesses, and writes down what it said.
func (c *call) decide(accesses []s3wire.Access) (*policy.Decision, error) {
	_, end := c.span("decide")
	c.asked = c.question(accesses)
	decision, err := c.proxy.Policy.Decide(c.ctx, c.asked)
	end(err)
	if err != nil {
		c.event.Accesses = recordAccesses(nil, accesses, nil)
		return nil, err
	}
	c.decision = decision
	c.event.Accesses = recordAccesses(c.room.recorded[:0], accesses, decision.Verdicts)
	c.event.Decision = audit.Decision{
		Allow: decision.Allow, Reasons: decision.Reasons, Role: decision.Role, PolicyRevision: decision.Revision,
	}
	var tooLarge error
	if decision.Allow {
		tooLarge = c.tooLarge(decision.Limits.MaxObjectBytes)
	}
	if shadow := decision.Shadow; shadow != nil {
		if tooLarge != nil && (!shadow.Allow || c.tooLarge(shadow.Limits.MaxObjectBytes) != nil) {
			shadow.Differs = false // it is refused either way
		}
		c.event.Decision.Shadow = encodeShadow(shadow)
	}
	c.proxy.Telemetry.decided(decision)
	if err := c.lease.narrow(decision.Limits); err != nil {
		return nil, err
	}
	if tooLarge != nil {
		return nil, tooLarge
	}
	return decision, nil
}

// tooLarge holds an upload to policy's limit; 0 is none.
func (c *call) tooLarge(most int64) error {
	switch {
	case most == 0 || !c.op.Uploads():
		return nil
	case c.op.Payload.Length < 0:
		return &s3wire.Error{Code: "MissingContentLength", Message: fmt.Sprintf("policy limits objects to %d bytes, so the upload must tell its length", most)}
	case c.op.Payload.Length > most:
		return &s3wire.Error{Code: "EntityTooLarge", Message: fmt.Sprintf("policy limits objects to %d bytes; this one has %d", most, c.op.Payload.Length)}
	}
	return nil
}

func (c *call) question(accesses []s3wire.Access) *policy.Question {
	room := &c.room
	room.request = policy.Request{
		ID: c.event.ID, Time: c.start, Method: c.in.Method, Host: c.in.Host, SourceIP: c.event.SourceIP,
		Secure: c.proxy.secure(c.in), UserAgent: c.event.UserAgent, ContentLength: max(c.op.Payload.Length, 0),
		Headers: c.op.PolicyHeaders(), Query: c.op.PolicyQuery(),
	}
	q := &room.question
	*q = policy.Question{Subject: subject(c.proof.Identity), Operation: c.op.Name, Request: &room.request}
	if q.Accesses = room.asked[:]; len(accesses) > len(room.asked) {
		q.Accesses = make([]policy.Access, len(accesses))
	}
	q.Accesses = q.Accesses[:len(accesses)]
	for i, a := range accesses {
		name := ""
		if a.Bucket == "" {
			// ListBuckets, which asks all of them.
		} else if b := c.proxy.backendOf(a.Bucket); b != nil {
			name = b.Name
		}
		q.Accesses[i] = policy.Access{
			Action: a.Action, Bucket: a.Bucket, Key: a.Key, VersionID: a.VersionID,
			Prefix: a.Prefix, Delimiter: a.Delimiter, Backend: name,
		}
	}
	return q
}

// denied is the refusal a developer sees: which access policy refused, and why.
func (c *call) denied(d *policy.Decision) error {
	for i, a := range c.event.Accesses {
		if !a.Allow {
			return accessDenied(a, d.Verdicts[i].Reasons)
		}
	}
	return &s3wire.Error{Code: "AccessDenied", Message: withReasons("policy refused the request", d.Reasons)}
}

// as is as whom the request is signed.
func (c *call) as() signer.As {
	return signer.As{Principal: Principal(c.proof.Identity), Role: c.decision.Role, SessionPolicy: string(c.decision.SessionPolicy)}
}

// Revoked is how the list of revocations cuts the exchange.
func (c *call) Revoked() { c.cut(cutRevoked) }

// pace counts n bytes more of a transfer, and waits where its session is ahead of its rate.
func (c *call) pace(n int) error {
	if c.lease.held == ([2]*meter{}) {
		return nil // as for most
	}
	c.paced.Add(1)
	defer c.paced.Add(-1)
	return c.lease.spend(c.ctx, n)
}

// cut ends the exchange: the backend sees its request broken off, and reads from the client return. It may be called
// late: neither a round of calls nor a revocation waits for the handler.
//
// Where it stands still, those who wait for the client are woken first. If that ends it, the client was to blame; if not,
// the backend was, and is broken off.
func (c *call) cut(why int32) {
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.ended || !c.cutBy.CompareAndSwap(cutNot, why) {
		return
	}
	control := http.NewResponseController(c.out.ResponseWriter)
	past := time.Unix(1, 0)
	begun := c.out.begun.Load() // before anybody is woken, who would begin to tell why
	_ = control.SetReadDeadline(past)
	if begun {
		_ = control.SetWriteDeadline(past)
	} else {
		time.AfterFunc(time.Second, c.hangUp)
	}
	if why == cutIdle {
		time.AfterFunc(cutGrace, c.breakOff)
		return
	}
	c.scope.End()
}

// breakOff ends the exchange with the backend.
func (c *call) breakOff() {
	c.ending.Lock()
	defer c.ending.Unlock()
	if !c.ended {
		c.scope.End()
	}
}

// hangUp ends writes to a client that does not even read why the exchange was cut.
func (c *call) hangUp() {
	c.ending.Lock()
	defer c.ending.Unlock()
	if !c.ended {
		_ = http.NewResponseController(c.out.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	}
}

// cutGrace is what a read or write that was woken takes to return, and more.
const cutGrace = 200 * time.Millisecond

// body is what the client sends, counted.
func (c *call) body() io.Reader {
	if c.in.Body == nil || c.in.Body == http.NoBody || c.in.ContentLength == 0 {
		return nil
	}
	return &clientBody{c, c.in.Body}
}

// clientBody holds on to the body itself: c.in may be another request by the time that a transport's goroutine gets to it.
type clientBody struct {
	c    *call
	from io.Reader
}

func (b *clientBody) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if n > 0 {
		if err := b.count(n); err != nil {
			return n, err
		}
	}
	if err != nil && err != io.EOF {
		err = &clientGone{err}
	}
	return n, err
}

// count notes n bytes more, and holds them to the session's rate.
func (b *clientBody) count(n int) error {
	b.c.progress.Add(1)
	b.c.bytesIn.Add(int64(n))
	return b.c.pace(n)
}

// clientGone is a failure to read from or write to the client.
type clientGone struct{ err error }

func (e *clientGone) Error() string { return "client: " + e.err.Error() }
func (e *clientGone) Unwrap() error { return e.err }

// upload is the body on its way to a backend. The transport reads it from a goroutine of its own, possibly for
// a moment longer than the handler lives.
type upload struct {
	from    io.Reader
	stopped atomic.Bool
	failed  atomic.Pointer[error] // the first error that reading it gave
}

var errStopped = errors.New("the request has ended")

func (u *upload) Read(p []byte) (int, error) {
	if u.stopped.Load() {
		return 0, errStopped
	}
	n, err := u.from.Read(p)
	if err != nil && err != io.EOF {
		u.failed.CompareAndSwap(nil, &err)
	}
	return n, err
}

// WriteTo lets a transport that can have the body moved by the kernel: what nobody here has to look at.
func (u *upload) WriteTo(to io.Writer) (int64, error) {
	body, ok := u.from.(*clientBody)
	if !ok {
		return http1.Copy(to, readOnly{u}, func(int) error { return nil })
	}
	if u.stopped.Load() {
		return 0, errStopped
	}
	var spent error
	n, err := http1.Copy(to, body.from, func(n int) error {
		if u.stopped.Load() {
			return errStopped
		}
		spent = body.count(n)
		return spent
	})
	var write *http1.WriteError
	if err == nil || errors.As(err, &write) {
		return n, err
	}
	if err != spent && err != errStopped {
		err = &clientGone{err}
	}
	u.failed.CompareAndSwap(nil, &err)
	return n, err
}

// readOnly hides WriteTo.
type readOnly struct{ io.Reader }

func (u *upload) Close() error {
	u.stop()
	if closer, ok := u.from.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

func (u *upload) stop() { u.stopped.Store(true) }

func (u *upload) err() error {
	if e := u.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// response counts what goes to the client, and tells it the event's id.
type response struct {
	http.ResponseWriter
	direct   passer
	id       string
	own      [1]http1.Field
	status   int
	bytes    int64
	begun    atomic.Bool
	progress *atomic.Int64
	passed   []string // names in the header that pass put there
}

// passer is http1's: see there.
type passer interface{ Pass(http1.Fields) }

const idField = "X-Sluice-Request-Id"

func (w *response) begin(to http.ResponseWriter, id string) {
	w.ResponseWriter, w.id = to, id
	if w.direct, _ = to.(passer); w.direct != nil {
		w.pass(w.own[:0])
		return
	}
	w.Header()[idField] = []string{id} // not of room: the header may outlive the call
}

func (w *response) started() bool { return w.status != 0 }

// pass has fields of a backend's answer go to the client; again, to take back what it was told. What there is room for
// behind the fields is written to.
func (w *response) pass(fields http1.Fields) {
	if w.direct != nil {
		w.direct.Pass(append(fields, http1.Field{Name: idField, Value: w.id}))
		return
	}
	h := w.Header()
	for _, name := range w.passed {
		delete(h, name)
	}
	w.passed = w.passed[:0]
	for _, f := range fields {
		h[f.Name] = append(h[f.Name], f.Value)
		w.passed = append(w.passed, f.Name)
	}
}

func (w *response) WriteHeader(status int) {
	if status >= 200 && w.status == 0 {
		w.status = status
		w.begun.Store(true)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	w.progress.Add(1)
	if err != nil {
		err = &clientGone{err}
	}
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
