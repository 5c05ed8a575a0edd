package http1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Transport is an http.RoundTripper over plain TCP. It keeps connections open, and uses one again only where both
// bodies of the exchange before were passed exactly and the backend has said nothing since.
//
// It follows no redirect, decompresses nothing and adds no header but Host and Content-Length. A request with a body
// MUST have its length. A body that is an io.WriterTo is asked to write itself: see Copy. The fields are to be set
// before the first use.
type Transport struct {
	// MaxIdle bounds the idle connections, over all hosts [1024].
	MaxIdle int
	// IdleTimeout is how long a connection may be idle and still be used [30 s]: less than what backends wait.
	IdleTimeout time.Duration
	// DialTimeout bounds connecting [5 s].
	DialTimeout time.Duration
	// ContinueTimeout is how long the backend may take to say whether it wants the body of a request that expects
	// 100-continue [1 s]; then it is sent.
	ContinueTimeout time.Duration

	mu     sync.Mutex // guards what follows
	idle   map[string][]*link
	count  int
	sweeps uint64      // done: the clock that links are told the time by
	sweep  *time.Timer // to come; nil = none is, as there is nothing idle
}

// link is a connection to a backend. It is one exchange's at a time.
type link struct {
	transport *Transport
	host      string
	conn      net.Conn
	stream    *stream
	asker     asker
	in        reader
	heads     heads
	out       []byte
	reused    bool
	since     uint64 // idle since so many sweeps
	watch     watch  // of the end of the scope of its exchange
}

// scopeEnded breaks the exchange off.
func (l *link) scopeEnded(error) { l.conn.Close() }

var (
	errIdleClosed = errors.New("the backend closed the connection before it answered")
	errLength     = errors.New("a request with a body needs its length")
)

// RoundTrip sends r and reads the head of the answer. Both go on in parallel where the body is not small, and an answer
// that comes early ends the upload with the exchange.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	a, err := t.Exchange(r.Context(), r, nil)
	if err != nil {
		return nil, err
	}
	response := &http.Response{
		Status: a.Status, StatusCode: a.StatusCode, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.Fields.header(), ContentLength: a.ContentLength, Close: a.close, Request: r, Body: a.Body,
	}
	if a.old {
		response.Proto, response.ProtoMinor = "HTTP/1.0", 0
	}
	if a.chunked {
		response.TransferEncoding = []string{"chunked"}
	}
	return response, nil
}

// Answer is what a backend answers, as far as Exchange has read it.
type Answer struct {
	StatusCode    int
	Status        string // "200 OK"
	Fields        Fields
	ContentLength int64 // -1 = not told
	Body          io.ReadCloser

	old     bool // HTTP/1.0
	chunked bool
	close   bool
}

// Room is what one exchange is made in, for who makes many and can tell when one is over: when the answer's body is
// closed, its fields are no longer looked at, and the request's body, if it had one, has been closed too. It may be made
// blank then, and used again. One that is not blank is left alone.
type Room struct{ exchange exchange }

// Exchange is RoundTrip for who passes the answer on: with its fields as a list, and in a context that is not r's, for a
// request is given its own only by being copied. room may be nil.
func (t *Transport) Exchange(ctx context.Context, r *http.Request, room *Room) (*Answer, error) {
	if room == nil || room.exchange.link != nil {
		room = new(Room)
	}
	if err := check(r); err != nil {
		closeBody(r)
		return nil, err
	}
	var small []byte
	expect := hasBody(r) && slices.ContainsFunc(r.Header["Expect"], func(list string) bool { return hasToken(list, "100-continue") })
	if hasBody(r) && !expect && r.ContentLength <= smallBody {
		buf := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buf)
		small = (*buf)[:r.ContentLength]
		if err := readBody(r, small); err != nil {
			return nil, err
		}
	}
	for {
		l, err := t.get(ctx, r.URL.Host)
		if err != nil {
			closeBody(r)
			return nil, err
		}
		reused := l.reused
		answer, untouched, err := l.exchange(ctx, &room.exchange, r, small, expect)
		if err == nil {
			return answer, nil
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if err == errStale || reused && untouched && Replayable(r) {
			continue // the backend hung up as we wrote: every such try uses an idle connection up
		}
		closeBody(r)
		return nil, err
	}
}

func check(r *http.Request) error {
	switch {
	case r.URL == nil || r.URL.Scheme != "http" || r.URL.Host == "":
		return errors.New("http1: only http:// URLs with a host")
	case hasBody(r) && r.ContentLength <= 0:
		return errLength
	case !all(r.Method, isToken) || r.Method == "" || r.Method == http.MethodConnect:
		return fmt.Errorf("http1: method %q", r.Method)
	}
	return nil
}

func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}

// Replayable is net/http's rule: what may have been done already is not done again.
func Replayable(r *http.Request) bool {
	return !hasBody(r) && (r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions)
}

// get takes the connection that was used last, as it is the likeliest to be open still, or makes one.
func (t *Transport) get(ctx context.Context, host string) (*link, error) {
	t.mu.Lock()
	stack := t.idle[host]
	if len(stack) == 0 {
		t.mu.Unlock()
		return t.dial(ctx, host)
	}
	l := stack[len(stack)-1]
	stack[len(stack)-1] = nil
	t.idle[host] = stack[:len(stack)-1]
	t.count--
	t.mu.Unlock()
	l.reused = true
	return l, nil
}

func (t *Transport) dial(ctx context.Context, host string) (*link, error) {
	timeout := t.DialTimeout
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	address := host
	if _, _, err := net.SplitHostPort(host); err != nil {
		address = net.JoinHostPort(trimBrackets(host), "80")
	}
	conn, err := (&net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		// A connection is closed after its last answer, or to break an upload off: then by a reset. There are backends
		// (those on fasthttp, versitygw is one) that take the end of the stream for the end of the object.
		_ = tcp.SetLinger(0)
	}
	l := &link{transport: t, host: host, conn: conn, stream: newStream(conn)}
	l.in.init(conn)
	if l.stream != nil {
		l.asker.init(l.stream)
	}
	return l, nil
}

func trimBrackets(host string) string {
	if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' {
		return host[1 : len(host)-1]
	}
	return host
}

func (t *Transport) idleTimeout() time.Duration {
	if t.IdleTimeout == 0 {
		return 30 * time.Second
	}
	return t.IdleTimeout
}

func (t *Transport) put(l *link) {
	most := t.MaxIdle
	if most == 0 {
		most = 1024
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count >= most || l.stream == nil {
		l.conn.Close()
		return
	}
	if t.idle == nil {
		t.idle = map[string][]*link{}
	}
	l.since = t.sweeps
	t.idle[l.host] = append(t.idle[l.host], l)
	t.count++
	if t.sweep == nil {
		t.sweep = time.AfterFunc(t.idleTimeout()/oldSweeps, t.closeOld)
	}
}

// oldSweeps is how many sweeps a connection may be idle for. Where many come and go, none needs to look at the clock.
const oldSweeps = 4

// closeOld closes what has been idle for too long.
func (t *Transport) closeOld() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweeps++
	t.sweep = nil
	for host, stack := range t.idle {
		old := 0
		for old < len(stack) && t.sweeps-stack[old].since >= oldSweeps {
			stack[old].conn.Close()
			old++
		}
		t.count -= old
		if old == len(stack) {
			delete(t.idle, host)
			continue
		}
		copy(stack, stack[old:])
		clear(stack[len(stack)-old:])
		t.idle[host] = stack[:len(stack)-old]
	}
	if t.count > 0 {
		t.sweep = time.AfterFunc(t.idleTimeout()/oldSweeps, t.closeOld)
	}
}

// CloseIdleConnections closes what nobody uses.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, stack := range t.idle {
		for _, l := range stack {
			l.conn.Close()
		}
	}
	t.idle, t.count = nil, 0
}

// smallBody is what goes out together with the head. It is not worth a goroutine that watches for an early answer.
const smallBody = 16 << 10

// exchange sends the request and reads the answer's head. untouched tells, beside an error, that no byte of an answer
// had come and none of the body was read: nobody else then has anything of e, which is used again.
func (l *link) exchange(ctx context.Context, e *exchange, r *http.Request, small []byte, expect bool) (_ *Answer, untouched bool, err error) {
	if e.link != nil {
		*e = exchange{} // else it is blank, and costs nothing
	}
	e.link = l
	if err := e.hold(ctx); err != nil {
		l.conn.Close()
		return nil, true, err
	}
	defer func() {
		if err != nil {
			e.end(false)
		}
	}()

	if l.out, err = appendRequest(l.out[:0], r); err != nil {
		return nil, false, err
	}
	l.out = append(l.out, small...)
	body := hasBody(r) && small == nil
	untouched = small == nil
	// Bytes that nobody asked for would be taken for the answer to what is asked now.
	if l.reused && body && !l.stream.quiet() {
		return nil, true, errStale
	}
	if err := l.write(!body); err != nil {
		if err == errStale {
			return nil, true, err
		}
		// An answer may have come all the same, and tell why; but not on a connection that was closed before.
		if l.reused && untouched {
			return nil, true, err
		}
		if head, failed := l.answer(e, r); failed == nil {
			e.broken = true
			return head, false, nil
		}
		return nil, untouched, err
	}
	if expect {
		wanted, err := l.await100()
		if err != nil {
			return nil, untouched, err
		}
		if !wanted {
			// It will not read the body; what follows on this connection would be taken for it.
			e.broken = true
			closeBody(r)
			body = false
		}
	}
	if body {
		untouched = false
		e.uploaded = make(chan error, 1)
		go l.upload(e, r)
	}
	answer, err := l.answer(e, r)
	if err != nil {
		if e.uploaded != nil {
			if failed := e.bodyErr.Load(); failed != nil {
				err = *failed // the connection was closed for it
			}
		}
		if untouched = untouched && l.in.buffered() == 0 && !errors.Is(err, errMalformed); untouched && err == io.EOF {
			err = errIdleClosed
		}
		return nil, untouched, err
	}
	return answer, false, nil
}

// write sends what is in out. Where that is the whole request it also waits for the answer to begin.
func (l *link) write(whole bool) error {
	out := l.out
	if whole && l.stream != nil && l.in.buffered() == 0 {
		l.in.r, l.in.w = 0, 0
		n, read, asked, err := l.asker.ask(out, l.in.buf, l.reused)
		if asked {
			l.in.w = read
			return nil // an error shows when the answer is read
		}
		if err != nil {
			return err
		}
		out = out[n:]
	}
	_, err := l.conn.Write(out)
	return err
}

// appendRequest writes a head. https://www.rfc-editor.org/rfc/rfc9112#section-3
func appendRequest(b []byte, r *http.Request) ([]byte, error) {
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	b = append(b, r.Method...)
	b = append(b, ' ')
	b, ok := appendTarget(b, r.URL)
	if !ok || !all(host, isURI) {
		return b, fmt.Errorf("http1: target %q of host %q", r.URL.RequestURI(), host)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, host...)
	b = append(b, "\r\n"...)
	if hasBody(r) || r.Method == http.MethodPut || r.Method == http.MethodPost || r.Method == http.MethodPatch {
		length := r.ContentLength
		if !hasBody(r) {
			length = 0
		}
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, length, 10)
		b = append(b, "\r\n"...)
	}
	for name, values := range r.Header {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer", "Connection": // are this package's to write
			continue
		}
		for _, value := range values {
			if b, ok = appendField(b, name, value); !ok {
				return b, fmt.Errorf("http1: header %q cannot be sent", name)
			}
		}
	}
	return append(b, "\r\n"...), nil
}

// appendTarget writes u.RequestURI(), or refuses what would end it for another reader. Where nothing of the path can be
// spelled in two ways, it is not looked at as often as net/url does.
func appendTarget(b []byte, u *url.URL) ([]byte, bool) {
	if u.Opaque != "" || u.Path == "" || u.RawPath != u.Path || !all(u.Path, isPath) {
		target := u.RequestURI()
		return append(b, target...), target != "" && all(target, isURI)
	}
	b = append(b, u.Path...)
	if u.ForceQuery || u.RawQuery != "" {
		b = append(append(b, '?'), u.RawQuery...)
	}
	return b, all(u.RawQuery, isURI)
}

// readBody reads a small body whole, and holds it to its length. It does so before there is a connection: a client that
// sends a byte a minute takes up none of the backend's.
func readBody(r *http.Request, into []byte) error {
	defer closeBody(r)
	if n, err := io.ReadFull(r.Body, into); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = fmt.Errorf("the body ends after %d bytes of %d: %w", n, r.ContentLength, io.ErrUnexpectedEOF)
		}
		return err
	}
	return atEnd(r.Body)
}

// atEnd holds a body to having nothing more, which is also when a reader that checks it says so.
func atEnd(body io.Reader) error {
	var one [1]byte
	for range 100 {
		n, err := body.Read(one[:])
		switch {
		case n > 0:
			return errors.New("the body is longer than its Content-Length")
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

// await100 waits for the backend to ask for the body, for a while. It leaves a final answer where it is.
func (l *link) await100() (wanted bool, err error) {
	timeout := l.transport.ContinueTimeout
	if timeout == 0 {
		timeout = time.Second
	}
	if err := l.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return false, err
	}
	defer l.conn.SetReadDeadline(time.Time{})
	for {
		// "HTTP/1.1 100" is enough to know it by.
		for l.in.buffered() < len("HTTP/1.1 100") {
			if err := l.in.fill(); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					return true, nil
				}
				return false, err
			}
		}
		status := string(l.in.buf[l.in.r+len("HTTP/1.1 ") : l.in.r+len("HTTP/1.1 100")])
		if status[0] != '1' {
			return false, nil
		}
		_ = l.conn.SetReadDeadline(time.Now().Add(timeout))
		if _, _, err := l.in.head(""); err != nil {
			return false, err
		}
		if status == "100" {
			return true, nil
		}
	}
}

// upload sends a body beside the reading of the answer.
func (l *link) upload(e *exchange, r *http.Request) {
	defer closeBody(r)
	to := &uploading{link: l, left: r.ContentLength}
	var err error
	if from, ok := r.Body.(io.WriterTo); ok {
		_, err = from.WriteTo(to)
	} else {
		_, err = Copy(to, r.Body, func(int) error { return nil })
	}
	var write *WriteError
	if err == nil && to.left > 0 {
		err = fmt.Errorf("the body ends %d bytes early: %w", to.left, io.ErrUnexpectedEOF)
	}
	if err != nil && !(errors.As(err, &write) && write.Err != errTooLong) {
		// The body is at fault. The backend MUST NOT take what it has got for the whole.
		e.bodyErr.Store(&err)
		l.conn.Close()
	}
	e.uploaded <- err
}

// uploading is the writing side of a request's body.
type uploading struct {
	link *link
	left int64
}

var errTooLong = errors.New("the body is longer than its Content-Length")

func (u *uploading) Write(p []byte) (int, error) {
	if int64(len(p)) > u.left {
		return 0, errTooLong
	}
	n, err := u.link.conn.Write(p)
	u.left -= int64(n)
	return n, err
}

func (u *uploading) direct(n int64) (*stream, error) {
	if n > u.left {
		return nil, errTooLong
	}
	return u.link.stream, nil
}

func (u *uploading) written(n int64, _ error) { u.left -= n }

// exchange is one request and its answer on a link. Its Body ends it.
type exchange struct {
	link     *link
	scope    *Scope      // whose end breaks it off; nil where the context is another's
	stop     func() bool // ends the watch over another's context
	uploaded chan error  // nil = no upload beside the answer
	bodyErr  atomic.Pointer[error]
	broken   bool // the connection must not be used again
	ended    atomic.Bool
	body     incoming
	answer   Answer
	fields   [16]Field // what most answers have room in
}

// hold has the exchange broken off when ctx ends, until release.
func (e *exchange) hold(ctx context.Context) error {
	if scope, ok := ctx.(*Scope); ok {
		e.scope = scope
		return scope.join(&e.link.watch, e.link)
	}
	l := e.link // e may be another exchange by then
	e.stop = context.AfterFunc(ctx, func() { l.scopeEnded(nil) })
	return nil
}

// release tells whether the context has not ended the exchange, and will not.
func (e *exchange) release() bool {
	if e.scope != nil {
		return e.scope.drop(&e.link.watch)
	}
	return e.stop()
}

// answer reads the head of the final answer. https://www.rfc-editor.org/rfc/rfc9112#section-4
func (l *link) answer(e *exchange, r *http.Request) (*Answer, error) {
	for skipped := 0; ; skipped++ {
		head, same, err := l.in.head(l.heads.whole)
		if err != nil {
			return nil, err
		}
		text := l.heads.begin(head, same)
		if len(text) < len("HTTP/1.1 200") || text[:7] != "HTTP/1." || text[7] != '1' && text[7] != '0' || text[8] != ' ' {
			return nil, fmt.Errorf("status line: %w", errMalformed)
		}
		status := 0
		for _, c := range text[9:12] {
			if c < '0' || c > '9' {
				return nil, fmt.Errorf("status line: %w", errMalformed)
			}
			status = status*10 + int(c-'0')
		}
		if status < 100 || len(text) > 12 && text[12] != ' ' {
			return nil, fmt.Errorf("status line: %w", errMalformed)
		}
		line := text[9:]
		if !all(line, isValue) {
			return nil, fmt.Errorf("status line: %w", errMalformed)
		}
		a := &e.answer
		*a = Answer{StatusCode: status, Status: line, Body: e, old: text[7] == '0'}
		fields, again := l.heads.again()
		a.Fields = append(e.fields[:0], fields...)
		for !again && l.heads.more() {
			f, err := l.heads.next()
			if err != nil {
				return nil, err
			}
			a.Fields = append(a.Fields, f)
		}
		if status < 200 {
			if status == http.StatusSwitchingProtocols || skipped == 5 {
				return nil, fmt.Errorf("status %d: %w", status, errMalformed)
			}
			continue
		}
		f := l.heads.said.framing
		if err := f.check(); err != nil {
			return nil, err
		}
		a.ContentLength, a.chunked, a.close = f.length, f.chunked, a.old || l.heads.said.closes
		if f.chunked {
			if a.old {
				return nil, errMalformed
			}
			a.Fields = slices.DeleteFunc(a.Fields, func(f Field) bool { return f.Name == "Transfer-Encoding" }) // chunked tells
		}
		if r.Method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified {
			if r.Method != http.MethodHead {
				a.ContentLength = 0
			}
			e.body.reset(&l.in, framing{length: 0}, false)
		} else {
			e.body.reset(&l.in, f, true)
			a.close = a.close || e.body.kind == bodyClose
		}
		e.broken = e.broken || a.close
		if e.body.done {
			e.end(true)
			a.Body = http.NoBody
		}
		return a, nil
	}
}

// Read reads the answer's body.
func (e *exchange) Read(p []byte) (int, error) {
	if e.ended.Load() && !e.body.done {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := e.body.Read(p)
	return n, e.give(err)
}

// Close ends the exchange. Where the body has not been read to its end that costs the connection.
func (e *exchange) Close() error {
	e.end(false)
	return nil
}

func (e *exchange) take() (*incoming, *stream) {
	if e.ended.Load() {
		return nil, nil
	}
	return &e.body, e.link.stream
}

func (e *exchange) give(err error) error {
	if e.body.done {
		e.end(true)
	} else if err != nil {
		e.end(false)
	}
	return err
}

// uploadGrace is how long an upload may take to notice that it has written its last byte, when the answer has.
const uploadGrace = 50 * time.Millisecond

// end gives the connection back where the exchange is complete, and closes it otherwise.
func (e *exchange) end(complete bool) {
	if !e.ended.CompareAndSwap(false, true) {
		return
	}
	l := e.link
	free := e.release()
	complete = complete && free && !e.broken && l.in.buffered() == 0
	if e.uploaded != nil && complete {
		select {
		case err := <-e.uploaded:
			complete = err == nil
		default:
			timer := time.NewTimer(uploadGrace)
			select {
			case err := <-e.uploaded:
				complete = err == nil
			case <-timer.C:
				complete = false
			}
			timer.Stop()
		}
	}
	if !complete {
		l.conn.Close()
		return
	}
	l.in.shrink()
	if cap(l.out) > smallBuffer+smallBody {
		l.out = nil
	}
	l.transport.put(l)
}
