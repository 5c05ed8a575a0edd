package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/proxy/http1"
	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// forward sends the operation to its backend as policy's role, and streams the answer back.
func (c *call) forward(body s3wire.Outbound) {
	answer, err := c.send(c.backend, body)
	if err != nil {
		c.refuse(err)
		return
	}
	defer answer.Body.Close()
	relay := c.relay
	if c.decision.FilterListing && c.op.Listing() && answer.StatusCode < 300 {
		relay = c.relayFiltered
	}
	c.settle(relay(answer))
}

// settle ends a request whose answer was passed on, or could not be.
func (c *call) settle(err error) {
	if err != nil {
		c.refuse(err)
		return
	}
	c.event.Outcome = audit.Completed
}

// relayFiltered passes a listing on without the entries that the caller may not read. A page is judged whole before
// any of it is sent.
func (c *call) relayFiltered(answer *http1.Answer) error {
	c.out.pass(slices.DeleteFunc(c.passable(answer.Fields), named("Content-Length")))
	if c.in.Method == http.MethodHead {
		c.out.WriteHeader(http.StatusOK)
		return nil
	}
	if answer.StatusCode != http.StatusOK {
		// S3 answers a listing with 200 and nothing else that is good; what this is cannot be filtered.
		c.out.pass(nil)
		return &backendDown{c.backendName(), fmt.Errorf("status %d to %s", answer.StatusCode, c.op.Name)}
	}
	err := c.op.FilterListing(c.out, answer.Body, func(listed []s3wire.Listed) ([]bool, error) {
		keys := make([]string, len(listed))
		for i := range listed {
			keys[i] = listed[i].Key
		}
		c.progress.Add(1)
		return c.proxy.Policy.VisibleKeys(c.ctx, c.asked, keys)
	})
	if _, gone := errors.AsType[*clientGone](err); err == nil || gone {
		return err
	}
	if !c.out.started() {
		c.out.pass(nil) // what there was told of the page
	}
	return &backendDown{c.backendName(), err}
}

// send rebuilds the request from the operation, journals it, and sends it. Nothing of the incoming request goes
// on that the operation did not understand.
func (c *call) send(b *Backend, body s3wire.Outbound) (*http1.Answer, error) {
	_, end := c.span("credentials")
	out, err := c.rebuild(b, body)
	if err == nil {
		as := c.as()
		if role, e := b.Signer.Role(as); e == nil {
			c.event.Decision.Role = role // the role it is signed as, also where policy named none
		}
		err = b.Signer.Sign(c.ctx, out, body.SHA256, as)
	}
	end(err)
	if err != nil {
		return nil, err
	}
	return c.roundTrip(b, out)
}

func (c *call) rebuild(b *Backend, body s3wire.Outbound) (*http.Request, error) {
	u, out := &c.room.url, &c.room.out
	c.op.WriteURL(u, b.Endpoint, b.PathStyle)
	*out = http.Request{
		Method: c.op.Method, URL: u, Host: u.Host, Header: c.room.header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if len(out.Header) > 0 {
		clear(out.Header) // of the request to another backend; to clear an empty one costs no less
	}
	c.op.WriteHeader(out.Header)
	lowerMetadata(out.Header)
	for name, value := range body.Header {
		out.Header.Set(name, value)
	}
	if body.Body != nil && body.Length != 0 {
		if body.Length < 0 {
			return nil, &s3wire.Error{Code: "MissingContentLength", Message: "send Content-Length, or x-amz-decoded-content-length with a chunked body"}
		}
		u := &upload{from: body.Body}
		c.upload.Store(u)
		out.Body, out.ContentLength = u, body.Length
		if c.in.Header.Get("Expect") != "" {
			// The backend's 100 is what makes the client's bytes flow: a PUT it refuses costs none.
			out.Header.Set("Expect", "100-continue")
		}
	}
	if b.Propagate {
		c.propagate(out.Header)
	}
	// Go's transport sends its own User-Agent where there is none.
	out.Header["User-Agent"] = userAgent
	return out, nil
}

var userAgent = []string{"sluice"} // nobody writes to what a header holds

// roundTrip journals the request and sends it: from here on the backend may have acted.
func (c *call) roundTrip(b *Backend, out *http.Request) (*http1.Answer, error) {
	if err := c.journal(); err != nil {
		return nil, err
	}
	ctx, end := c.span("backend")
	answer, err := b.exchange(ctx, out, &c.room.exchange)
	if err != nil {
		err = c.sendError(b, err)
		end(err)
		return nil, err
	}
	end(nil)
	c.firstByte = c.proxy.Now()
	c.progress.Add(1)
	c.event.Backend.Status = answer.StatusCode
	c.event.Backend.RequestID = answer.Fields.Get("X-Amz-Request-Id")
	return answer, nil
}

// exchange sends out, and reads the head of what is answered. net/http's transport wants the context in the request.
func (b *Backend) exchange(ctx context.Context, out *http.Request, room *http1.Room) (*http1.Answer, error) {
	if t, ok := b.Transport.(*http1.Transport); ok {
		return t.Exchange(ctx, out, room)
	}
	r, err := b.Transport.RoundTrip(out.WithContext(ctx))
	// net/http gives a connection on as soon as it has read an answer without a body, and ends it when the request whose
	// answer that was ends before it is told. The next request on it then fails for a client that is not its own.
	if errors.Is(err, context.Canceled) && ctx.Err() == nil && http1.Replayable(out) {
		r, err = b.Transport.RoundTrip(out.WithContext(ctx))
	}
	if err != nil {
		return nil, err
	}
	return &http1.Answer{StatusCode: r.StatusCode, Status: r.Status, Fields: http1.FieldsOf(r.Header), ContentLength: r.ContentLength, Body: r.Body}, nil
}

// sendError tells whose fault it was that a request did not get an answer.
func (c *call) sendError(b *Backend, err error) error {
	if u := c.upload.Load(); u != nil {
		if bad := u.err(); bad != nil && !errors.Is(bad, errStopped) {
			return bad // the client left, or its body was not what it said
		}
	}
	if c.clientLeft() {
		return &clientGone{err}
	}
	return &backendDown{b.Name, err}
}

// relay passes the backend's answer on. It returns an error where the body could not be passed on whole.
func (c *call) relay(answer *http1.Answer) error {
	body := io.Reader(answer.Body)
	fields := c.passable(answer.Fields)
	if answer.StatusCode >= 300 {
		c.event.Error = "" // the body tells
		if c.in.Method != http.MethodHead && bodyAllowed(answer.StatusCode) {
			var err error
			if body, err = c.readError(fields, body); err != nil {
				return err
			}
		}
	} else if c.in.Method != http.MethodGet && c.in.Method != http.MethodHead && answer.ContentLength != 0 {
		body = &screen{call: c, from: body} // no object, but what became of the request
	}
	if answer.StatusCode >= 300 && answer.StatusCode < 400 {
		// A client that follows it would take its token to a host we do not know.
		fields = slices.DeleteFunc(fields, named("Location"))
	}
	if answer.ContentLength >= 0 && fields.Get("Content-Length") == "" && c.in.Method != http.MethodHead && bodyAllowed(answer.StatusCode) {
		fields = append(fields, http1.Field{Name: "Content-Length", Value: strconv.FormatInt(answer.ContentLength, 10)})
	}
	c.out.pass(fields)
	c.out.WriteHeader(answer.StatusCode)
	if c.in.Method == http.MethodHead || !bodyAllowed(answer.StatusCode) {
		return nil
	}
	err := c.stream(body, answer.ContentLength < 0)
	if _, gone := errors.AsType[*clientGone](err); gone && c.out.bytes == answer.ContentLength {
		return nil // it left with all that it came for, before the backend's body was seen to end
	}
	return err
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

const copySize = 64 << 10

// copies holds the buffers that bodies pass through where they must be flushed on the way.
var copies = sync.Pool{New: func() any { b := make([]byte, copySize); return &b }}

// stream copies a body to the client. flush sends each piece on at once: backends keep a slow answer alive by
// trickling white space (CompleteMultipartUpload), and clients count on it.
func (c *call) stream(from io.Reader, flush bool) error {
	if flush {
		return c.trickle(from)
	}
	_, err := http1.Copy(c.out.ResponseWriter, from, c.room.moved)
	if write, ok := errors.AsType[*http1.WriteError](err); ok {
		return &clientGone{write.Err}
	}
	return c.cutShort(err)
}

// moved counts n bytes more that the client has got, and holds them to the session's rate.
func (c *call) moved(n int) error {
	c.out.bytes += int64(n)
	c.progress.Add(1)
	return c.pace(n)
}

// cutShort tells who is to blame for a body that did not come whole from the backend.
func (c *call) cutShort(err error) error {
	_, refused := errors.AsType[*backendRefusesUs](err)
	switch {
	case err == nil || refused:
		return err
	case c.clientLeft():
		return &clientGone{err}
	}
	return &backendCut{c.backendName(), err}
}

func (c *call) trickle(from io.Reader) error {
	buf := copies.Get().(*[]byte)
	defer copies.Put(buf)
	control := http.NewResponseController(c.out)
	for {
		n, err := from.Read(*buf)
		if n > 0 {
			c.progress.Add(1)
			if err := c.pace(n); err != nil {
				return err
			}
			if _, err := c.out.Write((*buf)[:n]); err != nil {
				return err
			}
			if err := control.Flush(); err != nil {
				return &clientGone{err}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return c.cutShort(err)
		}
	}
}

func (c *call) backendName() string { return c.event.Backend.Name }

// endToEnd takes out of a backend's answer what was between it and us, and what Sluice alone may say; in place.
func endToEnd(fields http1.Fields) http1.Fields {
	connection := ""
	kept := fields[:0]
	for _, f := range fields {
		switch f.Name {
		case "Connection":
			connection += "," + f.Value
			continue
		case "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
			continue
		case "Authorization", "X-Amz-Security-Token": // ours, sent back
			continue
		case idField, "X-Sluice-Reason":
			continue
		case "Alt-Svc", "Refresh": // a client that follows takes its token along, as with Location
			continue
		case "Content-Encoding":
			if f.Value = withoutFraming(f.Value); f.Value == "" {
				continue
			}
		default:
			if strings.HasPrefix(f.Name, metaPrefix) {
				f.Name = strings.ToLower(f.Name)
			}
		}
		kept = append(kept, f)
	}
	if connection != "" {
		kept = slices.DeleteFunc(kept, func(f http1.Field) bool { return listed(connection, f.Name) })
	}
	return kept
}

func named(name string) func(http1.Field) bool {
	return func(f http1.Field) bool { return f.Name == name }
}

// withoutFraming takes aws-chunked out of an answer's Content-Encoding. It is how an upload came, and S3 keeps the rest
// alone; versitygw and others keep it, too, and browsers and some clients do not read an object with an encoding that
// they do not know.
func withoutFraming(codings string) string {
	if !strings.Contains(strings.ToLower(codings), "aws-chunked") {
		return codings
	}
	left := slices.DeleteFunc(strings.Split(codings, ","), func(c string) bool {
		c = strings.TrimSpace(c)
		return c == "" || strings.EqualFold(c, "aws-chunked")
	})
	return strings.TrimSpace(strings.Join(left, ","))
}

// metaPrefix begins the names of user metadata. They have no case in S3, which answers so in lower case; but backends
// keep names, and clients hand them to programs, as they come, and Go's are not as clients wrote them. So they are in
// lower case both ways.
const metaPrefix = "X-Amz-Meta-"

func lowerMetadata(h http.Header) {
	for name, values := range h {
		if strings.HasPrefix(name, metaPrefix) {
			delete(h, name)
			h[strings.ToLower(name)] = values
		}
	}
}

// listed tells whether a list, separated by commas, has an item.
func listed(list, name string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(item), name) {
			return true
		}
	}
	return false
}

// forwardPreflight passes a browser's CORS question on, unsigned as browsers send it: the backend answers by the
// bucket's own CORS rules and tells nothing else.
func (c *call) forwardPreflight() {
	if err := c.route(c.op.Bucket, nil); err != nil {
		c.refuse(err)
		return
	}
	if c.backend == nil {
		c.refuse(&s3wire.Error{Code: "AccessDenied", Message: "CORSResponse: this bucket has no CORS rules here"})
		return
	}
	out, err := c.rebuild(c.backend, s3wire.Outbound{})
	if err != nil {
		c.refuse(err)
		return
	}
	answer, err := c.roundTrip(c.backend, out)
	if err != nil {
		c.refuse(err)
		return
	}
	defer answer.Body.Close()
	c.settle(c.relay(answer))
}
