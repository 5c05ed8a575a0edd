package http1

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// request is what the handler is given, and the body behind it.
type request struct {
	http.Request
	conn   *conn
	blank  *http.Request // with the connection's context and nothing else
	heads  heads
	url    url.URL
	header http.Header
	values [32]string
	used   int // of values

	deadlineSet atomic.Bool // by the handler: nobody knows when it passes

	mu     sync.Mutex // held by whoever reads the body, so that finish knows of it
	body   incoming
	number uint64 // of the body that is being read: see content
	over   bool   // the handler has returned
	expect bool   // the client waits for 100 before it sends the body
}

// content is a request's body as its handler has it. The request it is of is one of many in the same place: whoever
// still has it when that is over reads of no other's, which is somebody else's.
type content struct {
	*request
	number uint64
}

func (r *request) init(c *conn) {
	r.conn = c
	r.blank = (&http.Request{ProtoMajor: 1, ProtoMinor: 1, Proto: "HTTP/1.1", RemoteAddr: c.remote, TLS: c.tls}).WithContext(&c.ctx)
	r.header = make(http.Header) // up to eight fields it is searched without a hash, and cleared in no time
}

// read reads a request's head. status is what to answer where that fails; 0 = nothing. The request is then what had been
// read: see Server.Malformed.
func (r *request) read() (status int, err error) {
	c := r.conn
	r.Request = *r.blank
	r.Request.Body, r.Request.Close = http.NoBody, true
	r.body.reset(&c.in, framing{length: -1}, false)
	r.expect = false
	r.deadlineSet.Store(false)
	late := time.Time{}
	if t := c.server.HeaderTimeout; t > 0 && !complete(&c.in) {
		late = time.Now().Add(t)
		c.deadline(late)
	}
	head, same, err := c.in.head(r.heads.whole)
	switch {
	case err == nil:
	case errors.Is(err, errHeadTooLong):
		return http.StatusRequestHeaderFieldsTooLarge, err
	case errors.Is(err, errMalformed):
		return http.StatusBadRequest, err
	default:
		return 0, err
	}
	if status, err := r.parse(head, same); err != nil {
		return status, err
	}
	if !r.body.done {
		c.deadline(time.Time{}) // bodies have no deadline but the handler's
	}
	return 0, nil
}

// complete tells whether a whole head is there already, as it nearly always is.
func complete(in *reader) bool {
	b := in.buf[in.r:in.w]
	return len(b) >= 4 && string(b[len(b)-4:]) == "\r\n\r\n"
}

// parse reads a head. https://www.rfc-editor.org/rfc/rfc9112#section-3
func (r *request) parse(head []byte, same bool) (status int, err error) {
	line := r.heads.begin(head, same)
	method, rest, ok := strings.Cut(line, " ")
	target, proto, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || method == "" || target == "" || !all(method, isToken) || !all(target, isURI) {
		return http.StatusBadRequest, errMalformed
	}
	q := &r.Request
	q.Method, q.RequestURI = method, target
	old := proto == "HTTP/1.0"
	if !old && proto != "HTTP/1.1" {
		if strings.HasPrefix(proto, "HTTP/") {
			return http.StatusHTTPVersionNotSupported, errMalformed
		}
		return http.StatusBadRequest, errMalformed
	}
	if err := r.fill(); err != nil {
		return http.StatusBadRequest, err
	}
	said := &r.heads.said
	if said.hosts > 1 || said.hosts == 0 && !old || !ValidHost(said.host) {
		return http.StatusBadRequest, errMalformed
	}
	q.Host = said.host
	f := said.framing
	if err := f.check(); err != nil {
		if f.foreign {
			return http.StatusNotImplemented, err
		}
		return http.StatusBadRequest, err
	}
	if old && f.chunked {
		return http.StatusBadRequest, errMalformed
	}
	u, err := r.parseTarget(method, target)
	if err != nil {
		return http.StatusBadRequest, err
	}
	if said.unheard {
		return http.StatusExpectationFailed, errMalformed
	}
	if f.chunked {
		if err := r.announced(); err != nil {
			return http.StatusBadRequest, err
		}
	}

	q.URL, q.Header = u, r.header
	if old {
		q.Proto, q.ProtoMinor = "HTTP/1.0", 0
	}
	if u.Host != "" {
		q.Host = u.Host
	}
	q.Close = old || said.closes
	q.ContentLength = max(f.length, 0)
	if f.chunked {
		q.ContentLength = -1
		q.TransferEncoding = []string{"chunked"}
	}
	r.body.reset(&r.conn.in, f, false)
	if !r.body.done {
		r.mu.Lock()
		r.number++
		r.over, r.expect = false, said.expects && !old
		q.Body = &content{r, r.number}
		r.mu.Unlock()
	}
	return 0, nil
}

// announced moves the names of trailers to where net/http has them. The trailers themselves are dropped.
func (r *request) announced() error {
	lists, ok := r.header["Trailer"]
	if !ok {
		return nil
	}
	delete(r.header, "Trailer")
	r.Request.Trailer = http.Header{}
	for _, list := range lists {
		for name := range strings.SplitSeq(list, ",") {
			switch name = canonical(trim(name)); name {
			case "":
			case "Transfer-Encoding", "Trailer", "Content-Length":
				return errMalformed
			default:
				r.Request.Trailer[name] = nil
			}
		}
	}
	return nil
}

// inHeader tells of a field whether net/http has it in the header, and not beside.
func inHeader(name string) bool { return name != "Host" && name != "Transfer-Encoding" }

// fill reads the fields into the header.
func (r *request) fill() error {
	fields, again := r.heads.again()
	if again && r.refill(fields) {
		return nil
	}
	clear(r.header)
	clear(r.values[:r.used])
	r.used = 0
	for _, f := range fields {
		r.put(f)
	}
	for !again && r.heads.more() {
		f, err := r.heads.next()
		if err != nil {
			return err
		}
		r.put(f)
	}
	return nil
}

func (r *request) put(f Field) {
	switch {
	case !inHeader(f.Name):
	case r.used == len(r.values):
		add(r.header, f.Name, f.Value, make([]string, 1))
	default:
		add(r.header, f.Name, f.Value, r.values[r.used:r.used+1:r.used+1])
		r.used++
	}
}

// refill puts the fields that the request before had, too, over what is left of its header. They are of different names: where
// there are as many in it then as fields, there is nothing else that its handler put there.
func (r *request) refill(fields Fields) bool {
	used := 0
	for i := range fields {
		f := &fields[i]
		if inHeader(f.Name) {
			r.values[used] = f.Value
			r.header[f.Name] = r.values[used : used+1 : used+1]
			used++
		}
	}
	clear(r.values[min(used, r.used):r.used])
	r.used = used
	return len(r.header) == used
}

// parseTarget reads a target as net/http does. Handlers that care take RequestURI, which is the target byte for byte.
func (r *request) parseTarget(method, target string) (*url.URL, error) {
	path, query, asks := strings.Cut(target, "?")
	if target[0] == '/' && all(path, isPath) {
		r.url = url.URL{Path: path, RawQuery: query, ForceQuery: asks && query == ""}
		return &r.url, nil
	}
	if method == http.MethodConnect && target[0] != '/' {
		u, err := url.ParseRequestURI("http://" + target)
		if err != nil {
			return nil, err
		}
		u.Scheme = ""
		return u, nil
	}
	return url.ParseRequestURI(target)
}

// ValidHost leaves out what could not be a host: above all what would end the name for another reader.
func ValidHost(host string) bool {
	for i := 0; i < len(host); i++ {
		c := host[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"/?#@\<>{}|^`+"`", c) >= 0 {
			return false
		}
	}
	return true
}

// Read reads the body. The first tells a client that asked to go on.
func (r *content) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.begin(); err != nil {
		return 0, err
	}
	n, err := r.body.Read(p)
	r.ifDone()
	return n, err
}

// current tells whether the request is still being handled. r.mu is held; else nothing of the request may be looked at.
func (r *content) current() bool { return !r.over && r.number == r.request.number }

func (r *content) begin() error {
	if !r.current() {
		return http.ErrBodyReadAfterClose
	}
	if r.expect {
		r.expect = false
		if err := r.conn.response.goOn(); err != nil {
			return r.body.fail(err)
		}
	}
	return nil
}

// ifDone has the client watched once there is nothing more to read from it.
func (r *content) ifDone() {
	if r.current() && r.body.done {
		r.conn.handling.Store(r.conn.requests)
	}
}

// Close does nothing: what is left of the body is the server's business.
func (r *content) Close() error { return nil }

func (r *content) take() (*incoming, *stream) {
	r.mu.Lock()
	if r.begin() != nil {
		return nil, nil
	}
	return &r.body, r.conn.plain
}

func (r *content) give(err error) error {
	r.ifDone()
	r.mu.Unlock()
	return err
}

// What has become of a request's body when its handler is done.
const (
	bodyRead = iota // exactly
	bodyLeft        // something of it is there, or to come
	bodyGone        // the connection failed
)

// maxDrain is what is read of a body that the handler left, so that the connection can go on: as net/http does.
const maxDrain = 256 << 10

// abandon makes whoever still reads the body stop, and waits for that.
func (r *request) abandon() {
	if r.body.kind == bodyNone {
		return
	}
	// A transport's goroutine may sit in a read for a client that sends nothing. It MUST be out of here before the
	// connection's next use.
	if !r.mu.TryLock() {
		r.conn.deadline(time.Unix(1, 0))
		r.deadlineSet.Store(true)
		r.mu.Lock()
	}
	r.over = true
	r.mu.Unlock()
}

// finish takes the body back from the handler, and drains a little of what is left.
func (r *request) finish() int {
	r.abandon()
	b := &r.body
	switch {
	case b.failure != nil:
		// errLost: what took the body failed, and the client may be sending still.
		if errors.Is(b.failure, errMalformed) || errors.Is(b.failure, os.ErrDeadlineExceeded) || errors.Is(b.failure, errLost) {
			return bodyLeft
		}
		return bodyGone
	case b.done && r.deadlineSet.Load():
		return bodyLeft
	case b.done:
		return bodyRead
	case r.deadlineSet.Load() || r.expect || r.conn.response.closing || b.kind == bodyLength && b.left > maxDrain:
		return bodyLeft
	}
	r.conn.deadline(time.Now().Add(lingerFor))
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for drained := 0; drained <= maxDrain; {
		n, err := b.Read(*buf)
		drained += n
		if b.done {
			r.conn.deadline(time.Time{}) // was for this body alone; the next request may be here already
			return bodyRead
		}
		if err != nil {
			break
		}
	}
	return bodyLeft
}
