package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
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
	if c.decision.FilterListing && c.op.Listing() && answer.StatusCode == http.StatusOK {
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
func (c *call) relayFiltered(answer *http.Response) error {
	c.passHeader(answer.Header)
	c.out.Header().Del("Content-Length")
	if c.in.Method == http.MethodHead {
		c.out.WriteHeader(http.StatusOK)
		return nil
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
		for name := range answer.Header {
			if name != "X-Sluice-Request-Id" {
				c.out.Header().Del(name) // they were the page's
			}
		}
	}
	return &backendDown{c.backendName(), err}
}

// send rebuilds the request from the operation, journals it, and sends it. Nothing of the incoming request goes
// on that the operation did not understand.
func (c *call) send(b *Backend, body s3wire.Outbound) (*http.Response, error) {
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
		Method: c.op.Method, URL: u, Host: u.Host, Header: make(http.Header, 8), // most have no more, and a map grows in one step
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
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
func (c *call) roundTrip(b *Backend, out *http.Request) (*http.Response, error) {
	if err := c.journal(); err != nil {
		return nil, err
	}
	ctx, end := c.span("backend")
	answer, err := b.exchange(ctx, out)
	if err != nil {
		err = c.sendError(b, err)
		end(err)
		return nil, err
	}
	end(nil)
	c.firstByte = c.proxy.Now()
	c.progress.Add(1)
	c.event.Backend.Status = answer.StatusCode
	c.event.Backend.RequestID = answer.Header.Get("X-Amz-Request-Id")
	return answer, nil
}

// exchanger is a transport that takes the context beside the request: http1's.
type exchanger interface {
	Exchange(context.Context, *http.Request) (*http.Response, error)
}

func (b *Backend) exchange(ctx context.Context, out *http.Request) (*http.Response, error) {
	if t, ok := b.Transport.(exchanger); ok {
		return t.Exchange(ctx, out)
	}
	return b.Transport.RoundTrip(out.WithContext(ctx))
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
func (c *call) relay(answer *http.Response) error {
	header := c.passHeader(answer.Header)
	if answer.StatusCode >= 300 && answer.StatusCode < 400 {
		// A client that follows it would take its token to a host we do not know.
		header.Del("Location")
	}
	if answer.StatusCode >= 400 {
		c.event.Error = "" // the body tells; see peekCode
	}
	if answer.ContentLength >= 0 && header.Get("Content-Length") == "" && c.in.Method != http.MethodHead && bodyAllowed(answer.StatusCode) {
		header.Set("Content-Length", fmt.Sprint(answer.ContentLength))
	}
	body := io.Reader(answer.Body)
	if answer.StatusCode >= 400 && c.in.Method != http.MethodHead {
		body = c.peekCode(body)
	}
	c.out.WriteHeader(answer.StatusCode)
	if c.in.Method == http.MethodHead || !bodyAllowed(answer.StatusCode) {
		return nil
	}
	return c.stream(body, answer.ContentLength < 0)
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
	_, err := http1.Copy(c.out.ResponseWriter, from, func(n int) error {
		c.out.bytes += int64(n)
		c.progress.Add(1)
		return c.pace(n)
	})
	var write *http1.WriteError
	if errors.As(err, &write) {
		return &clientGone{write.Err}
	}
	return c.cutShort(err)
}

// cutShort tells who is to blame for a body that did not come whole from the backend.
func (c *call) cutShort(err error) error {
	switch {
	case err == nil:
		return nil
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

// peekCode reads the S3 code out of a backend's error for the event. Only the beginning is looked at, and the
// whole body still goes on.
func (c *call) peekCode(body io.Reader) io.Reader {
	head := make([]byte, 1024)
	n, _ := io.ReadFull(body, head)
	head = head[:n]
	if _, rest, ok := strings.Cut(string(head), "<Code>"); ok {
		if code, _, ok := strings.Cut(rest, "</Code>"); ok && len(code) <= 64 {
			c.event.Error = code
		}
	}
	return io.MultiReader(strings.NewReader(string(head)), body)
}

// passHeader has the answer to the client take the end-to-end headers of the backend's, which are its from here on.
func (c *call) passHeader(from http.Header) http.Header {
	endToEnd(from)
	if adopting, ok := c.out.ResponseWriter.(interface{ Adopt(http.Header) }); ok {
		adopting.Adopt(from)
		return c.out.Header()
	}
	to := c.out.Header()
	for name, values := range from {
		to[name] = values
	}
	return to
}

// endToEnd takes out of a backend's answer what was between it and us, and what Sluice alone may say.
func endToEnd(h http.Header) {
	named := h["Connection"]
	for name, values := range h {
		switch name {
		case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "X-Sluice-Request-Id":
			delete(h, name)
		case "Content-Encoding":
			if len(values) > 0 && strings.Contains(strings.ToLower(values[0]), "aws-chunked") {
				dropFraming(h)
			}
		}
		if len(named) > 0 && listed(named, name) {
			delete(h, name)
		}
	}
	lowerMetadata(h)
}

// dropFraming takes aws-chunked out of an answer's Content-Encoding. It is how an upload came, and S3 keeps the rest alone;
// versitygw and others keep it, too, and browsers and some clients do not read an object with an encoding that they do not know.
func dropFraming(h http.Header) {
	codings := slices.DeleteFunc(strings.Split(strings.Join(h["Content-Encoding"], ","), ","), func(c string) bool {
		c = strings.TrimSpace(c)
		return c == "" || strings.EqualFold(c, "aws-chunked")
	})
	if len(codings) == 0 {
		h.Del("Content-Encoding")
		return
	}
	h["Content-Encoding"] = []string{strings.TrimSpace(strings.Join(codings, ","))}
}

// lowerMetadata writes the names of user metadata in lower case, both ways. They have no case in S3, which answers so;
// but backends keep names, and clients hand them to programs, as they come, and Go's are not as clients wrote them.
func lowerMetadata(h http.Header) {
	for name, values := range h {
		if strings.HasPrefix(name, "X-Amz-Meta-") {
			delete(h, name)
			h[strings.ToLower(name)] = values
		}
	}
}

func listed(lists []string, name string) bool {
	for _, list := range lists {
		for item := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(item), name) {
				return true
			}
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
