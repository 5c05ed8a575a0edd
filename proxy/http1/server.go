package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves HTTP/1.1, over TCP or TLS. The request that its Handler is given, with its header, URL and body, is the
// handler's until it returns, and no longer: the next one is put into the same place. Its context ends with the
// connection, and where the client hangs up while the handler runs.
//
// What it does otherwise than net/http's: it sniffs no Content-Type, has no Hijack, refuses what is not strict
// (lone LF, repeated Content-Length, folded lines), and reads a request that came early only when the one before is
// done. The fields are to be set before the first use.
type Server struct {
	Handler http.Handler
	// Malformed answers what cannot be given to Handler; status is what HTTP has for it. The request has what could be
	// read before that: nothing, or Method and RequestURI, or Host too. It has no URL, no header and no body.
	// nil = a line of text.
	Malformed func(w http.ResponseWriter, r *http.Request, status int)
	// HeaderTimeout bounds a request's head from its first byte, and a TLS handshake; 0 = none.
	HeaderTimeout time.Duration
	// IdleTimeout is how long a connection may be without a request; 0 = for ever.
	IdleTimeout time.Duration
	// TLS is nil for plain TCP. HTTP2 serves the connections that negotiate h2.
	TLS   *tls.Config
	HTTP2 func(*tls.Conn)
	// ErrorLog is told of handlers that panic [log.Default].
	ErrorLog *log.Logger

	mu        sync.Mutex // guards the three below
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	draining  bool

	patrolled sync.Once
	ended     chan struct{} // closed by Shutdown and Close
	endOnce   sync.Once
	initOnce  sync.Once
}

func (s *Server) init() {
	s.initOnce.Do(func() {
		if s.TLS != nil {
			s.TLS = s.TLS.Clone()
			s.TLS.DynamicRecordSizingDisabled = true // small records first are for browsers
		}
		s.ended = make(chan struct{})
		s.listeners = map[net.Listener]struct{}{}
		s.conns = map[*conn]struct{}{}
	})
}

// Serve accepts connections until Shutdown or Close, and returns http.ErrServerClosed then.
func (s *Server) Serve(l net.Listener) error {
	s.init()
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		l.Close()
		return http.ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	s.patrolled.Do(func() { go s.patrol() })
	var wait time.Duration
	for {
		accepted, err := l.Accept()
		if err != nil {
			select {
			case <-s.ended:
				return http.ErrServerClosed
			default:
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() { // too many open files, mostly
				wait = min(max(2*wait, 5*time.Millisecond), time.Second)
				time.Sleep(wait)
				continue
			}
			return err
		}
		wait = 0
		go s.serve(accepted)
	}
}

// patrolEvery is how soon a handler learns that its client is gone.
const patrolEvery = 100 * time.Millisecond

// patrol looks after clients whose request is being handled, and which nobody reads from meanwhile, and after those that
// do not read an answer whose handler is done. Requests that are done before it comes by twice cost nothing; net/http keeps
// a second goroutine at every one.
func (s *Server) patrol() {
	ticker := time.NewTicker(patrolEvery)
	defer ticker.Stop()
	var look []*conn
	for {
		select {
		case <-ticker.C:
		case <-s.ended:
			// Handlers in flight still want to know.
			s.mu.Lock()
			left := len(s.conns)
			s.mu.Unlock()
			if left == 0 {
				return
			}
			<-ticker.C
		}
		look = look[:0]
		s.mu.Lock()
		for c := range s.conns {
			n := c.handling.Load()
			switch {
			case n == 0 || n != c.seen || c.state.Load() != connActive:
				c.seen, c.stuck = n, 0
			case n&answering == 0:
				look = append(look, c)
			default:
				if c.stuck += patrolEvery; s.IdleTimeout > 0 && c.stuck > s.IdleTimeout {
					c.accepted.Close() // it does not read what it asked for
				}
			}
		}
		s.mu.Unlock()
		for _, c := range look {
			c.checkClient()
		}
	}
}

// Shutdown stops accepting, closes idle connections, and waits for the others until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		s.mu.Lock()
		left := len(s.conns)
		for c := range s.conns {
			c.closeIdle()
		}
		s.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// Close closes every connection at once.
func (s *Server) Close() error {
	s.stop()
	s.CloseConnections()
	return nil
}

// CloseConnections closes every connection there is, and goes on serving.
func (s *Server) CloseConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.accepted.Close()
		c.ctx.End()
	}
}

func (s *Server) stop() {
	s.init()
	s.endOnce.Do(func() { close(s.ended) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for l := range s.listeners {
		l.Close()
		delete(s.listeners, l)
	}
}

// conn is a client's connection, and the one request on it that is being served.
type conn struct {
	server   *Server
	accepted net.Conn // as it was accepted
	rwc      net.Conn // what requests are read from: the same, or TLS upon it
	tls      *tls.ConnectionState
	plain    *stream // where bodies may be spliced; nil under TLS or PROXY protocol
	wire     *stream // to see hang-ups by; nil where that cannot be told
	remote   string
	ctx      Scope

	asker    asker
	in       reader
	request  request
	response response
	idleTill time.Time
	hurried  bool // there is another deadline than the idle one
	handed   bool // to HTTP2

	state    atomic.Int32  // see below
	handling atomic.Uint64 // the number of the request whose handler may be waiting, or with answering, whose answer may be; 0 = none
	requests uint64
	seen     uint64        // handling as patrol saw it last; these two are patrol's
	stuck    time.Duration // for how long that has been an answer
}

// answering marks the number of a request whose handler is done: what is left to do is to send the end of the answer, and
// a client that never reads would keep that waiting for ever.
const answering = 1 << 63

const (
	connActive int32 = iota
	connIdle         // between requests: may be closed at any time
	connClosed
)

func (c *conn) closeIdle() {
	if c.state.CompareAndSwap(connIdle, connClosed) {
		c.accepted.Close()
	}
}

// checkClient ends the request's context where the client is gone. As with net/http that is so, too, for one that has
// only shut down its sending side; and only once the whole request is read.
func (c *conn) checkClient() {
	if c.wire == nil || !c.wire.gone() {
		return
	}
	if n := c.handling.Load(); n != 0 && n&answering == 0 {
		c.ctx.End()
	}
}

func (s *Server) serve(accepted net.Conn) {
	c := &conn{server: s, accepted: accepted, rwc: accepted}
	c.ctx.Begin(context.Background())
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		accepted.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		c.ctx.End()
		if !c.handed {
			c.rwc.Close()
		}
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	if s.TLS != nil {
		if !c.handshake() {
			return
		}
	} else {
		c.plain = newStream(accepted)
	}
	c.wire = c.plain
	if c.wire == nil {
		c.wire = newStream(underneath(accepted))
	}
	c.remote = c.rwc.RemoteAddr().String()
	c.in.init(c.rwc)
	if c.plain != nil {
		c.asker.init(c.plain)
		c.asker.sent = func() { c.state.Store(connIdle) }
	}
	c.request.init(c)
	c.response.init(c)
	for c.one() {
	}
}

// underneath is the TCP connection that PROXY protocol's wraps.
func underneath(conn net.Conn) net.Conn {
	if wrapped, ok := conn.(interface{ Raw() net.Conn }); ok {
		return wrapped.Raw()
	}
	return conn
}

// handshake returns false where the connection is done with: refused, or served as HTTP/2.
func (c *conn) handshake() bool {
	if t := c.server.HeaderTimeout; t > 0 {
		c.rwc.SetDeadline(time.Now().Add(t))
	}
	cork := &corked{Conn: c.rwc}
	secure := tls.Server(cork, c.server.TLS)
	if err := secure.Handshake(); err != nil {
		var record tls.RecordHeaderError
		if errors.As(err, &record) && record.Conn != nil && looksLikeHTTP(record.RecordHeader) {
			io.WriteString(c.rwc, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
		}
		return false
	}
	c.rwc.SetDeadline(time.Time{})
	state := secure.ConnectionState()
	if state.NegotiatedProtocol == "h2" {
		if c.server.HTTP2 != nil {
			c.handed = true
			c.server.HTTP2(secure)
		}
		return false
	}
	c.tls = &state
	c.rwc = &corkedTLS{secure, cork}
	return true
}

func looksLikeHTTP(head [5]byte) bool {
	switch string(head[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET":
		return true
	}
	return false
}

// one serves one request, and tells whether there may be another.
func (c *conn) one() (again bool) {
	if !c.await() {
		return false
	}
	c.handling.Store(0)
	status, err := c.request.read()
	if err != nil && status == 0 {
		return false
	}
	c.requests++
	c.response.reset()
	if err != nil {
		return c.handle(func(w http.ResponseWriter, r *http.Request) { c.server.malformed(w, r, status) }, true)
	}
	if c.request.body.done {
		c.handling.Store(c.requests)
	}
	return c.handle(c.server.Handler.ServeHTTP, false)
}

func (s *Server) malformed(w http.ResponseWriter, r *http.Request, status int) {
	if s.Malformed != nil {
		s.Malformed(w, r, status)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, itoa(status)+" "+http.StatusText(status))
}

// await waits for the first byte of a request, as long as the connection may be idle.
func (c *conn) await() bool {
	if c.in.buffered() == 0 {
		c.in.shrink()
		if timeout := c.server.IdleTimeout; timeout > 0 {
			// A deadline costs more than this read; that it is up to a second late harms nobody.
			if now := time.Now(); c.idleTill.Before(now.Add(timeout)) {
				c.idleTill = now.Add(timeout + min(timeout/8, time.Second))
				c.rwc.SetReadDeadline(c.idleTill)
			}
		} else if c.hurried {
			c.deadline(time.Time{}) // of the request before, for its head
		}
		if c.response.pending() && c.plain != nil {
			if !c.answerAndAwait() {
				return false
			}
			return c.state.CompareAndSwap(connIdle, connActive)
		}
		c.state.Store(connIdle)
		select {
		case <-c.server.ended:
			return false
		default:
		}
		if err := c.in.fill(); err != nil {
			return false
		}
		if !c.state.CompareAndSwap(connIdle, connActive) {
			return false // closed by Shutdown
		}
	}
	return true
}

// answerAndAwait sends the end of an answer and waits for the next request.
func (c *conn) answerAndAwait() bool {
	w := &c.response
	c.in.r, c.in.w = 0, 0
	n, read, asked, err := c.asker.ask(w.out, c.in.buf, false)
	if !asked {
		w.out = w.out[n:]
		if err != nil || w.flush() != nil {
			return false
		}
		c.state.Store(connIdle)
		return c.in.fill() == nil
	}
	w.out = w.out[:0]
	c.in.w = read
	return err == nil
}

// deadline sets the one deadline for reads that there is; the idle one is to be set again.
func (c *conn) deadline(t time.Time) {
	c.idleTill, c.hurried = time.Time{}, !t.IsZero()
	c.rwc.SetReadDeadline(t)
}

// handle runs a handler, and ends the answer. unread tells that there may be more of the request than anybody knows.
func (c *conn) handle(h http.HandlerFunc, unread bool) (again bool) {
	defer func() {
		if fault := recover(); fault != nil {
			c.handling.Store(0)
			c.request.abandon()
			// No reader may take what it has got for the whole, so there is no FIN, and of TLS no close_notify. A client that
			// has sent this request before it had the answer to the one before loses what it has not read of that: RFC 9112,
			// section 9.3.2, has it ask again.
			if c.wire != nil {
				_ = c.wire.tcp.SetLinger(0)
			}
			c.accepted.Close()
			if fault != http.ErrAbortHandler {
				logger := c.server.ErrorLog
				if logger == nil {
					logger = log.Default()
				}
				logger.Printf("http1: panic serving %s: %v\n%s", c.remote, fault, debug.Stack())
			}
			again = false
		}
	}()
	h(&c.response, &c.request.Request)
	c.handling.Store(c.requests | answering)
	complete := c.response.finish()
	rest := c.request.finish()
	switch {
	case !complete || c.ctx.Err() != nil:
		return false
	case c.response.closing || rest != bodyRead:
		if c.response.flush() != nil {
			return false
		}
		if unread || rest == bodyLeft || c.in.buffered() > 0 {
			c.linger()
		}
		return false
	}
	return true
}

// lingerFor is how long a client gets to read an answer that it did not wait for. Closing a connection with unread
// bytes on it resets it, and would take the answer along.
const lingerFor = 500 * time.Millisecond

func (c *conn) linger() {
	half, ok := c.rwc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.rwc.SetReadDeadline(time.Now().Add(lingerFor))
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		if _, err := c.rwc.Read(*buf); err != nil {
			return
		}
	}
}

// corked gathers the records that TLS writes one by one, so that many go out in one piece.
type corked struct {
	net.Conn
	held bool
	out  []byte
}

func (c *corked) Write(p []byte) (int, error) {
	if !c.held {
		return c.Conn.Write(p)
	}
	c.out = append(c.out, p...)
	return len(p), nil
}

// corkedTLS writes what one Write gives it in one piece. Only one goroutine writes at a time.
type corkedTLS struct {
	*tls.Conn
	cork *corked
}

const maxRecord = 16 << 10

func (c *corkedTLS) Write(p []byte) (int, error) {
	if len(p) <= maxRecord {
		return c.Conn.Write(p)
	}
	c.cork.held = true
	n, err := c.Conn.Write(p)
	c.cork.held = false
	if err == nil {
		_, err = c.cork.Conn.Write(c.cork.out)
	}
	if cap(c.cork.out) > 2*copyBuffer {
		c.cork.out = nil
	}
	c.cork.out = c.cork.out[:0]
	if err != nil {
		n = 0
	}
	return n, err
}
