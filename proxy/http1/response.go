package http1

import (
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// response writes an answer. What is short goes out in one piece with its head, and with its length.
type response struct {
	conn    *conn
	header  http.Header
	passed  Fields
	out     []byte // the head, and what follows it, until it is sent
	status  int
	length  int64 // of the body as declared; -1 = not
	sent    int64 // of the body
	nobody  bool  // HEAD, 204, 304
	chunked bool
	closing bool // the connection ends with this answer
	dated   bool // it has a Date
	headed  bool // out begins with the head, or it is sent
	failure error
	pieces  [2][]byte
	vector  net.Buffers

	mu    sync.Mutex // guards begun, and that no 100 comes into an answer
	begun bool
}

const outBuffer = 16 << 10 // more than this and a write is worth its own call

func (w *response) init(c *conn) {
	w.conn = c
	w.header = make(http.Header)
}

func (w *response) reset() {
	clear(w.header)
	clear(w.passed)
	w.passed = w.passed[:0]
	w.out, w.status, w.length, w.sent, w.failure = w.out[:0], 0, -1, 0, nil
	w.nobody, w.chunked, w.closing, w.dated, w.headed, w.begun = false, false, false, false, false, false
}

func (w *response) Header() http.Header { return w.header }

// Pass has the answer have fields beside its header, and is to be called before WriteHeader; again, to take back what it
// was told. A field is neither added to nor replaced by one of the header's. The list is copied: it may be room that is
// used again before the answer is sent.
func (w *response) Pass(fields Fields) { w.passed = append(w.passed[:0], fields...) }

// WriteHeader fixes the status and the header. 1xx are sent at once.
func (w *response) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	if status < 100 || status > 999 {
		panic("http1: status " + itoa(status))
	}
	if status < 200 {
		if status != http.StatusSwitchingProtocols && w.conn.request.ProtoMinor > 0 {
			_, err := io.WriteString(w.conn.rwc, "HTTP/1.1 "+itoa(status)+" "+http.StatusText(status)+"\r\n\r\n")
			w.failed(err)
		}
		return
	}
	w.status = status
	w.mu.Lock()
	w.begun = true
	w.mu.Unlock()
	w.nobody = w.conn.request.Method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
	if status == http.StatusNoContent || status == http.StatusNotModified {
		return
	}
	told, value := 0, ""
	for _, value = range w.header["Content-Length"] {
		told++
	}
	for i := range w.passed {
		if w.passed[i].Name == "Content-Length" {
			told, value = told+1, w.passed[i].Value
		}
	}
	if told == 1 {
		if n, err := length(value); err == nil {
			w.length = n
		}
	}
}

// goOn tells a client that waits to send its body. Once there is an answer, that tells it.
func (w *response) goOn() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun {
		return nil
	}
	_, err := io.WriteString(w.conn.rwc, "HTTP/1.1 100 Continue\r\n\r\n")
	return err
}

// head writes the head to out. whole is the length of a body that is known now and was not declared; -1 = not known.
func (w *response) head(whole int64) {
	w.headed = true
	b := append(w.out[:0], "HTTP/1.1 "...)
	if w.status == http.StatusOK {
		b = append(b, "200 OK\r\n"...)
	} else {
		b = strconv.AppendInt(b, int64(w.status), 10)
		b = append(b, ' ')
		b = append(b, http.StatusText(w.status)...)
		b = append(b, "\r\n"...)
	}
	for name, values := range w.header {
		for _, value := range values {
			b = w.field(b, name, value)
		}
	}
	for i := range w.passed {
		b = w.field(b, w.passed[i].Name, w.passed[i].Value)
	}
	if !w.dated {
		b = append(b, "Date: "...)
		b = append(b, date()...)
		b = append(b, "\r\n"...)
	}
	q := &w.conn.request.Request
	w.closing = w.closing || q.Close || w.conn.request.mustClose()
	select {
	case <-w.conn.server.ended:
		w.closing = true
	default:
	}
	switch {
	case w.length >= 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, w.length, 10)
		b = append(b, "\r\n"...)
	case w.nobody:
	case whole >= 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, whole, 10)
		b = append(b, "\r\n"...)
	case q.ProtoMinor > 0:
		w.chunked = true
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	default:
		w.closing = true
	}
	if w.closing {
		b = append(b, "Connection: close\r\n"...)
	}
	w.out = append(b, "\r\n"...)
}

// field writes a field that the handler gave, but for those that are the connection's and this package's to write.
func (w *response) field(b []byte, name, value string) []byte {
	switch name {
	case "Connection":
		w.closing = w.closing || hasToken(value, "close")
		return b
	case "Transfer-Encoding", "Content-Length", "Keep-Alive", "Upgrade":
		return b
	case "Content-Type":
		if w.status == http.StatusNotModified {
			return b
		}
	case "Date":
		w.dated = true
	}
	b, ok := appendField(b, name, value)
	if !ok && isName(name) {
		b, _ = appendField(b, name, harmless(value))
	}
	return b
}

// harmless is a value without what would end its line.
func harmless(value string) string {
	b := []byte(value)
	for i, c := range b {
		if classes[c]&isValue == 0 {
			b[i] = ' '
		}
	}
	return string(b)
}

// mustClose tells whether so much is left of the request's body that the connection ends with this answer, or that its
// deadlines are the handler's.
func (r *request) mustClose() bool {
	if r.deadlineSet.Load() {
		return true
	}
	if r.body.kind == bodyNone || !r.mu.TryLock() {
		return r.body.kind != bodyNone // somebody reads it: the answer is early
	}
	defer r.mu.Unlock()
	b := &r.body
	return !b.done && (r.expect || b.failure != nil || b.kind == bodyLength && b.left > maxDrain)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.failure != nil:
		return 0, w.failure
	case w.nobody:
		if w.conn.request.Method == http.MethodHead {
			return len(p), nil
		}
		return 0, http.ErrBodyNotAllowed
	case w.length >= 0 && w.sent+int64(len(p)) > w.length:
		return 0, http.ErrContentLength
	case len(p) == 0:
		return 0, nil
	}
	if !w.headed {
		if w.length < 0 && int(w.sent)+len(p) <= outBuffer {
			// Perhaps it is all there is: then its length can be told.
			w.out = append(w.out, p...)
			w.sent += int64(len(p))
			return len(p), nil
		}
		w.start(-1)
	}
	w.sent += int64(len(p))
	if w.chunked {
		w.out = strconv.AppendInt(w.out, int64(len(p)), 16)
		w.out = append(w.out, "\r\n"...)
	}
	if len(w.out)+len(p) <= outBuffer+smallBuffer {
		w.out = append(w.out, p...)
		if w.chunked {
			w.out = append(w.out, "\r\n"...)
		}
		return len(p), nil
	}
	if err := w.send(p); err != nil {
		return 0, err
	}
	if w.chunked {
		w.out = append(w.out, "\r\n"...)
	}
	return len(p), nil
}

// start puts the head before what is gathered of the body so far.
func (w *response) start(whole int64) {
	if w.headed {
		return
	}
	gathered := w.sent
	var body []byte
	if gathered > 0 {
		body = append([]byte(nil), w.out...)
	}
	w.head(whole)
	if gathered > 0 {
		if w.chunked {
			w.out = strconv.AppendInt(w.out, gathered, 16)
			w.out = append(w.out, "\r\n"...)
		}
		w.out = append(w.out, body...)
		if w.chunked {
			w.out = append(w.out, "\r\n"...)
		}
	}
}

// send writes what is gathered and then p.
func (w *response) send(p []byte) error {
	if w.failure != nil {
		return w.failure
	}
	var err error
	switch {
	case len(p) == 0 && len(w.out) == 0:
		return nil
	case len(p) == 0:
		_, err = w.conn.rwc.Write(w.out)
	case len(w.out) == 0:
		_, err = w.conn.rwc.Write(p)
	case w.conn.plain != nil:
		w.pieces = [2][]byte{w.out, p}
		w.vector = w.pieces[:]
		_, err = w.vector.WriteTo(w.conn.plain.tcp)
	default:
		w.out = append(w.out, p...) // under TLS they are copied anyway
		_, err = w.conn.rwc.Write(w.out)
	}
	w.out = w.out[:0]
	if cap(w.out) > 2*copyBuffer {
		w.out = nil
	}
	w.failed(err)
	return err
}

func (w *response) failed(err error) {
	if err != nil && w.failure == nil {
		w.failure = err
	}
}

func (w *response) flush() error { return w.send(nil) }

// Flush sends what there is.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *response) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.start(-1)
	return w.flush()
}

// SetReadDeadline is for http.ResponseController. The connection is not used again after it.
func (w *response) SetReadDeadline(t time.Time) error {
	w.conn.request.deadlineSet.Store(true)
	return w.conn.rwc.SetReadDeadline(t)
}

// SetWriteDeadline is for http.ResponseController. The connection is not used again after it.
func (w *response) SetWriteDeadline(t time.Time) error {
	w.conn.request.deadlineSet.Store(true)
	return w.conn.rwc.SetWriteDeadline(t)
}

// pending tells whether something is left to be sent: see conn.await.
func (w *response) pending() bool { return len(w.out) > 0 && w.failure == nil }

// finish ends the answer, and tells whether it is what it said. What is small is sent when the next request is waited
// for, and not before.
func (w *response) finish() bool {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.headed {
		w.start(w.sent)
	}
	if w.chunked {
		w.out = append(w.out, "0\r\n\r\n"...)
	}
	complete := w.nobody || w.length < 0 || w.sent == w.length
	if !complete || w.closing || w.conn.plain == nil || w.conn.in.buffered() > 0 || w.conn.request.deadlineSet.Load() || !w.conn.request.body.done {
		_ = w.flush()
	}
	return complete && w.failure == nil
}

func (w *response) direct(n int64) (*stream, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.failure != nil:
		return nil, w.failure
	case w.conn.plain == nil || w.nobody || w.length < 0:
		return nil, nil
	case w.sent+n > w.length:
		return nil, http.ErrContentLength
	}
	w.start(-1)
	return w.conn.plain, w.flush()
}

func (w *response) written(n int64, err error) {
	w.sent += n
	w.failed(err)
}

var (
	dateMu   sync.Mutex
	dateText atomic.Pointer[dateOf]
)

type dateOf struct {
	second int64
	text   string
}

// date is now as a header has it, written once a second.
func date() string {
	now := time.Now()
	if d := dateText.Load(); d != nil && d.second == now.Unix() {
		return d.text
	}
	dateMu.Lock()
	defer dateMu.Unlock()
	d := &dateOf{now.Unix(), now.UTC().Format(http.TimeFormat)}
	dateText.Store(d)
	return d.text
}

func itoa(n int) string { return strconv.Itoa(n) }
