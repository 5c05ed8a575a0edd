package main_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/examples/world/worldtest"
	"github.com/sluice-s3/sluice/proxy/s3test"
	"github.com/sluice-s3/sluice/test/machine"
)

// h2 is a connection to the built proxy's door for HTTP/2, frame by frame.
type h2 struct {
	t    *testing.T
	conn *tls.Conn

	writing sync.Mutex // guards these four
	framer  *http2.Framer
	encoder *hpack.Encoder
	block   bytes.Buffer
	last    uint32 // stream

	mu      sync.Mutex // guards what has been read
	streams map[uint32]*h2stream
	away    *goAway
	ended   error // why there is nothing more to read
}

// goAway is the end of a connection: nothing after stream last was looked at.
type goAway struct {
	code http2.ErrCode
	last uint32
}

// h2stream is what has come on a stream.
type h2stream struct {
	statuses []string // 1xx too
	header   http.Header
	body     []byte
	whole    bool
	reset    *http2.ErrCode
}

// over tells that nothing more will come.
func (s h2stream) over() bool { return s.whole || s.reset != nil }

func (s h2stream) status() string {
	if len(s.statuses) == 0 {
		return ""
	}
	return s.statuses[len(s.statuses)-1]
}

// h2 connects; streams get that much window.
func (r *rig) h2(t *testing.T, window uint32) *h2 {
	t.Helper()
	return dialH2(t, r.proxy, window)
}

func dialH2(t *testing.T, p *world.Proxy, window uint32) *h2 {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(p.URL, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	c := &h2{t: t, conn: conn, framer: http2.NewFramer(conn, conn), streams: map[uint32]*h2stream{}}
	t.Cleanup(func() { conn.Close() })
	c.encoder = hpack.NewEncoder(&c.block)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.framer.AllowIllegalWrites = true
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	c.must(c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}))
	c.must(c.framer.WriteWindowUpdate(0, 1<<30))
	go c.read()
	return c
}

func (c *h2) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *h2) read() {
	for {
		frame, err := c.framer.ReadFrame()
		c.mu.Lock()
		if err != nil {
			c.ended = err
			c.mu.Unlock()
			return
		}
		id := frame.Header().StreamID
		s := c.streams[id]
		if s == nil {
			s = &h2stream{}
			c.streams[id] = s
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			s.statuses = append(s.statuses, frame.PseudoValue("status"))
			s.header = http.Header{}
			for _, f := range frame.RegularFields() {
				s.header.Add(f.Name, f.Value)
			}
			s.whole = frame.StreamEnded()
		case *http2.DataFrame:
			s.body = append(s.body, frame.Data()...)
			s.whole = frame.StreamEnded()
		case *http2.RSTStreamFrame:
			if s.reset == nil { // what is sent after it is answered with more
				s.reset = &frame.ErrCode
			}
		case *http2.GoAwayFrame:
			c.away = &goAway{frame.ErrCode, frame.LastStreamID}
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				c.mu.Unlock()
				c.writing.Lock()
				c.framer.WriteSettingsAck()
				c.writing.Unlock()
				c.mu.Lock()
			}
		}
		c.mu.Unlock()
	}
}

// encode is a header block.
func (c *h2) encode(fields ...string) []byte {
	c.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		c.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(c.block.Bytes())
}

// send opens a stream with just these fields.
func (c *h2) send(end bool, fields ...string) uint32 {
	c.t.Helper()
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.last++; c.last%2 == 0 {
		c.last++
	}
	if err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: c.last, BlockFragment: c.encode(fields...), EndStream: end, EndHeaders: true}); err != nil {
		c.mu.Lock()
		c.ended = err
		c.mu.Unlock()
	}
	return c.last
}

// ask opens a stream for a request as it should be.
func (c *h2) ask(end bool, method, path, token string, more ...string) uint32 {
	c.t.Helper()
	return c.send(end, append([]string{":method", method, ":scheme", "https", ":authority", "localhost", ":path", path, "authorization", "Bearer " + token}, more...)...)
}

func (c *h2) data(id uint32, end bool, data string) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for len(data) > 16<<10 {
		c.framer.WriteData(id, false, []byte(data[:16<<10]))
		data = data[16<<10:]
	}
	c.framer.WriteData(id, end, []byte(data))
}

func (c *h2) reset(id uint32) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.framer.WriteRSTStream(id, http2.ErrCodeCancel)
}

// window gives a stream as much as it may need.
func (c *h2) window(id uint32) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.framer.WriteWindowUpdate(id, 1<<30)
}

// look is what has come on a stream so far, and whether more may come on the connection.
func (c *h2) look(id uint32) (s h2stream, ended error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := c.streams[id]; at != nil {
		s = *at
	}
	return s, c.ended
}

// wait waits until something has come on a stream.
func (c *h2) wait(id uint32, what string, ok func(h2stream) bool) h2stream {
	c.t.Helper()
	var s h2stream
	machine.Until(c.t, fmt.Sprintf("stream %d: %s", id, what), func() bool {
		var ended error
		s, ended = c.look(id)
		return ok(s) || ended != nil
	})
	if !ok(s) {
		c.t.Errorf("stream %d: not %s: the connection ended: %v, %+v", id, what, c.ended, c.away)
	}
	return s
}

// answer waits for the whole answer, or for the end of the stream without one.
func (c *h2) answer(id uint32) h2stream {
	c.t.Helper()
	return c.wait(id, "over", h2stream.over)
}

// waitAway waits for the connection's GOAWAY, or its end.
func (c *h2) waitAway(code http2.ErrCode, last uint32) {
	c.t.Helper()
	machine.Until(c.t, "the end of the connection", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.away != nil || c.ended != nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if want := (goAway{code, last}); c.away == nil || *c.away != want {
		c.t.Errorf("GOAWAY %+v, want %v after stream %d; the connection: %v", c.away, code, last, c.ended)
	}
}

// newH2Rig has the built proxy listen with TLS, in front of a backend that records.
func newH2Rig(t *testing.T, set map[string]any) (*rig, *s3test.Backend) {
	t.Helper()
	backend := s3test.New(t)
	all := map[string]any{"backends[0].endpoint": backend.URL, "limits.idle_timeout": unhurried}
	for name, value := range set {
		all[name] = value
	}
	r := newRig(t, world.Options{}, world.ProxyOptions{TLS: true, Credentials: "static", Set: all})
	backend.Accept(func(id string) (s3test.Credentials, bool) {
		return s3test.Credentials{AccessKeyID: r.Root.AccessKeyID, SecretAccessKey: r.Root.SecretAccessKey}, id == r.Root.AccessKeyID
	})
	return r, backend
}

// onEither runs f with http1 and with net/http in its place: what a connection of HTTP/2 is handed to differs.
func onEither(t *testing.T, f func(t *testing.T)) {
	for _, side := range []string{"on", "off"} {
		t.Run("SLUICE_HTTP1="+side, func(t *testing.T) {
			t.Setenv("SLUICE_HTTP1", side)
			f(t)
		})
	}
}

// gauge is a value of the proxy's metrics.
func (r *rig) gauge(t *testing.T, name string) (sum float64) {
	t.Helper()
	answer, err := http.Get(r.proxy.AdminURL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			n, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// The streams of one connection are held to the limits as requests of as many connections are; each that is refused has its
// event, and the places of those that end are free.
func TestStreamsOverTheLimits(t *testing.T) {
	onEither(t, func(t *testing.T) {
		const most, each = 6, 4
		r, backend := newH2Rig(t, map[string]any{"limits.max_in_flight": most, "limits.in_flight": each})
		hold := make(chan struct{})
		backend.Handle(func(http.ResponseWriter, *s3test.Request) { <-hold })
		c := r.h2(t, 1<<16)
		one, two := r.Workspace("env-1", "web", "dev@acme.com"), r.Workspace("env-2", "web", "dev@acme.com")
		var held []uint32
		refused := 0
		for _, token := range []string{one, one, one, one, one, one, two, two, two, two} {
			before := len(backend.Requests())
			id := c.ask(true, "GET", "/artifacts/web/k", token)
			machine.Until(t, "served or refused", func() bool {
				s, _ := c.look(id)
				return s.over() || len(backend.Requests()) > before
			})
			if s, _ := c.look(id); !s.over() {
				held = append(held, id)
			} else {
				refused++
				if s.status() != "503" || !strings.Contains(string(s.body), "<Code>SlowDown</Code>") || s.header.Get("Retry-After") == "" || !s.whole {
					t.Errorf("stream %d: %v %s", id, s.statuses, s.body)
				}
				e := r.event(t)
				session := "env-1"
				if id > 2*6 {
					session = "" // there was no room to ask who it is
				}
				if e.Outcome != audit.Refused || e.Error != "SlowDown" || e.Status != 503 || e.ID != s.header.Get("X-Sluice-Request-Id") || e.Identity.Session != session {
					t.Errorf("stream %d: event %+v", id, e)
				}
			}
		}
		if len(held) != most || refused != 10-most {
			t.Errorf("%d are served at once, and %d refused", len(held), refused)
		}
		close(hold)
		for _, id := range held {
			if s := c.answer(id); s.status() != "200" {
				t.Errorf("stream %d: %v %s", id, s.statuses, s.body)
			}
		}
		for range 20 {
			if s := c.answer(c.ask(true, "GET", "/artifacts/web/k", one)); s.status() != "200" {
				t.Errorf("a place is still taken: %v %s", s.statuses, s.body)
			}
		}
		if err := r.proxy.Stop(); err != nil {
			t.Error(err)
		}
		if events, err := r.proxy.Events(); err != nil || len(events) != 10+20 {
			t.Errorf("%d events, %v", len(events), err)
		}
	})
}

// A proxy that drains says so on each connection at once, serves no stream that comes after, and lets those in flight end:
// a client that has always one more would else be cut with all it has when the time is over.
func TestStreamsDrain(t *testing.T) {
	onEither(t, func(t *testing.T) {
		r := newRig(t, world.Options{}, world.ProxyOptions{TLS: true, Set: map[string]any{"limits.idle_timeout": unhurried}})
		large := bytes.Repeat([]byte("large"), 1<<18)
		r.store(t, "web/large", large)
		token := r.Workspace("env-1", "web", "dev@acme.com")
		c, idle := r.h2(t, 0), r.h2(t, 1<<16)
		if s := idle.answer(idle.ask(true, "GET", "/artifacts/web/none", token)); s.status() != "404" {
			t.Errorf("%v %s", s.statuses, s.body)
		}
		down := c.ask(true, "GET", "/artifacts/web/large", token)
		c.wait(down, "answered", func(s h2stream) bool { return s.status() == "200" })
		up := c.ask(false, "PUT", "/artifacts/web/up", token, "content-length", "10")
		c.data(up, false, "first")
		until(t, "two in flight", func() bool { return r.gauge(t, "sluice_requests_in_flight") == 2 })

		r.proxy.Signal(syscall.SIGTERM)
		c.waitAway(http2.ErrCodeNo, up)
		idle.waitAway(http2.ErrCodeNo, 1)
		late := c.ask(true, "GET", "/artifacts/web/late", token)
		c.data(up, true, "after")
		if s := c.answer(up); s.status() != "200" {
			t.Errorf("the upload in flight: %v %s", s.statuses, s.body)
		}
		c.window(down)
		if s := c.answer(down); !s.whole || !bytes.Equal(s.body, large) {
			t.Errorf("the download in flight: %d bytes, whole: %v", len(s.body), s.whole)
		}
		if err := r.proxy.Wait(); err != nil {
			t.Errorf("exit: %v", err)
		}
		if s, _ := c.look(late); len(s.statuses) > 0 {
			t.Errorf("a stream that came late is answered: %v", s.statuses)
		}
		if !worldtest.Stored(t, r.World, "web/up") {
			t.Error("the upload is not stored")
		}
		events, err := r.proxy.Events()
		if err != nil || len(events) != 3 {
			t.Fatalf("%d events, %v", len(events), err)
		}
		for _, e := range events {
			if e.Outcome != audit.Completed {
				t.Errorf("event %+v", e)
			}
		}
	})
}

// Who is revoked loses his streams, and nobody else's on the same connection.
func TestStreamsOfTheRevoked(t *testing.T) {
	onEither(t, func(t *testing.T) {
		r := newRig(t, world.Options{}, world.ProxyOptions{TLS: true, Set: map[string]any{"limits.idle_timeout": unhurried}})
		large := bytes.Repeat([]byte("large"), 1<<18)
		r.store(t, "web/large", large)
		c := r.h2(t, 0)
		down, up := map[string]uint32{}, map[string]uint32{}
		for _, session := range []string{"env-1", "env-2", "env-3"} {
			token := r.Workspace(session, "web", "dev@acme.com")
			down[session] = c.ask(true, "GET", "/artifacts/web/large", token)
			c.wait(down[session], "answered", func(s h2stream) bool { return s.status() == "200" })
			up[session] = c.ask(false, "PUT", "/artifacts/web/"+session, token, "content-length", "10", "expect", "100-continue")
			c.window(up[session]) // for the answer
			// Who has not been let in yet would be refused, and not cut.
			c.wait(up[session], "told to go on", func(s h2stream) bool { return s.status() == "100" })
			c.data(up[session], false, "first")
		}
		answer, err := http.Post(r.proxy.AdminURL+"/revocations", "application/json", strings.NewReader(`{"session": "env-2"}`))
		if err != nil || answer.StatusCode != 201 {
			t.Fatalf("%v, %v", answer, err)
		}
		answer.Body.Close()
		if s := c.answer(down["env-2"]); s.whole || len(s.body) != 0 {
			t.Errorf("the download of the revoked: %+v", s)
		}
		if s := c.answer(up["env-2"]); s.reset == nil && s.status() != "403" {
			t.Errorf("the upload of the revoked: %v %s", s.statuses, s.body)
		}
		c.window(down["env-2"]) // for a stream that is no more
		for _, session := range []string{"env-1", "env-3"} {
			c.data(up[session], true, "after")
			if s := c.answer(up[session]); s.status() != "200" {
				t.Errorf("%s: its upload: %v %s", session, s.statuses, s.body)
			}
			c.window(down[session])
			if s := c.answer(down[session]); !s.whole || !bytes.Equal(s.body, large) {
				t.Errorf("%s: its download: %d bytes, whole: %v", session, len(s.body), s.whole)
			}
		}
		after := c.ask(true, "GET", "/artifacts/web/env-1", r.Workspace("env-2", "web", "dev@acme.com"))
		c.window(after)
		if s := c.answer(after); s.status() != "403" {
			t.Errorf("a stream of the revoked after: %v %s", s.statuses, s.body)
		}
		if err := r.proxy.Stop(); err != nil {
			t.Error(err)
		}
		events, err := r.proxy.Events()
		if err != nil || len(events) != 7 {
			t.Fatalf("%d events, %v", len(events), err)
		}
		for _, e := range events {
			want := audit.Completed
			if e.Identity.Session == "env-2" {
				want = audit.Revoked
				if e.Key == "web/env-1" {
					want = audit.Refused
				}
			}
			if e.Outcome != want {
				t.Errorf("%s %s of %s: %s, want %s", e.Operation, e.Key, e.Identity.Session, e.Outcome, want)
			}
		}
		if worldtest.Stored(t, r.World, "web/env-2") {
			t.Error("the backend has what the revoked began to send")
		}
	})
}

// An upload that is refused is not read: who asks first is not told to go on, and who sends at once has the answer while he
// sends. Neither takes from the connection what the streams beside it need.
func TestStreamsRefusedEarly(t *testing.T) {
	onEither(t, func(t *testing.T) {
		r, backend := newH2Rig(t, nil)
		token := r.Workspace("env-1", "web", "dev@acme.com")
		c := r.h2(t, 1<<16)
		refused := func(id uint32) {
			t.Helper()
			s := c.answer(id)
			if len(s.statuses) != 1 || s.status() != "403" || !strings.Contains(string(s.body), "<Code>AccessDenied</Code>") {
				t.Errorf("%v %s", s.statuses, s.body)
			}
			// What the client still has to send is told that nobody wants it, and not that it failed.
			c.wait(id, "reset", func(s h2stream) bool { return s.reset != nil && *s.reset == http2.ErrCodeNo })
			if e := r.event(t); e.Outcome != audit.Refused || e.Error != "AccessDenied" || e.Decision.Allow || e.Backend.Status != 0 || e.BytesIn != 0 || e.ID != s.header.Get("X-Sluice-Request-Id") {
				t.Errorf("event %+v", e)
			}
		}
		refused(c.ask(false, "PUT", "/artifacts/api/k", token, "content-length", "100000", "expect", "100-continue"))
		// More in all than the connection has window for, were it not given back.
		for range 48 {
			id := c.ask(false, "PUT", "/artifacts/api/k", token, "content-length", "1000000")
			c.data(id, false, strings.Repeat("x", 60_000))
			refused(id)
		}
		if n := len(backend.Requests()); n != 0 {
			t.Errorf("%d requests reached the backend", n)
		}
		id := c.ask(false, "PUT", "/artifacts/web/k", token, "content-length", "200000", "expect", "100-continue")
		c.wait(id, "told to go on", func(s h2stream) bool { return s.status() == "100" })
		c.data(id, true, strings.Repeat("x", 200_000))
		if s := c.answer(id); s.status() != "200" || len(s.statuses) != 2 {
			t.Errorf("%v %s", s.statuses, s.body)
		}
		if e := r.event(t); e.Outcome != audit.Completed || e.BytesIn != 200_000 {
			t.Errorf("event %+v", e)
		}
		if q := backend.Last(); q.Length != 200_000 {
			t.Errorf("the backend has %d bytes", q.Length)
		}
	})
}

// T13 over HTTP/2: an upload whose length is not what it says is not stored, neither what came of it nor nothing at all in
// the place of what was there.
func TestT13StreamsOfAnotherLength(t *testing.T) {
	onEither(t, func(t *testing.T) {
		r := newRig(t, world.Options{}, world.ProxyOptions{TLS: true})
		token := r.Workspace("env-1", "web", "dev@acme.com")
		read := func() string {
			t.Helper()
			c := r.h2(t, 1<<16)
			defer c.conn.Close()
			s := c.answer(c.ask(true, "GET", "/artifacts/web/k", token))
			r.event(t)
			return string(s.body)
		}
		long := strings.Repeat("x", 150_000)
		for name, x := range map[string]struct {
			lengths []string
			send    func(c *h2, id uint32) // nil: the header is all
			outcome audit.Outcome
		}{
			"less":               {[]string{"5"}, func(c *h2, id uint32) { c.data(id, true, "hal") }, audit.Aborted},
			"much less":          {[]string{"200000"}, func(c *h2, id uint32) { c.data(id, true, long) }, audit.Aborted},
			"more":               {[]string{"5"}, func(c *h2, id uint32) { c.data(id, true, "too much") }, audit.Aborted},
			"more in the end":    {[]string{"5"}, func(c *h2, id uint32) { c.data(id, false, "hal"); c.data(id, true, "too much") }, audit.Aborted},
			"reset":              {[]string{"200000"}, func(c *h2, id uint32) { c.data(id, false, long); c.reset(id) }, audit.Aborted},
			"hung up":            {[]string{"200000"}, func(c *h2, id uint32) { c.data(id, false, long); c.conn.Close() }, audit.Aborted},
			"nothing":            {[]string{"5"}, nil, audit.Refused},
			"nothing of nothing": {[]string{"5"}, func(c *h2, id uint32) { c.data(id, true, "") }, audit.Aborted},
			"no number":          {[]string{"five"}, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
			"negative":           {[]string{"-5"}, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
			"with a sign":        {[]string{"+5"}, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
			"with a space":       {[]string{" 5"}, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
			"too large a number": {[]string{"18446744073709551621"}, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
			"empty":              {[]string{""}, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
			"two":                {[]string{"5", "6"}, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
			"the same twice":     {[]string{"5", "5"}, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
			"a list":             {[]string{"5, 5"}, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
			"none":               {nil, func(c *h2, id uint32) { c.data(id, true, "wrong") }, audit.Refused},
		} {
			t.Run(name, func(t *testing.T) {
				r.store(t, "web/k", []byte("whole"))
				c := r.h2(t, 1<<16)
				var fields []string
				for _, length := range x.lengths {
					fields = append(fields, "content-length", length)
				}
				id := c.ask(x.send == nil, "PUT", "/artifacts/web/k", token, fields...)
				if x.send != nil {
					x.send(c, id)
				}
				e := r.event(t)
				if e.Outcome != x.outcome {
					t.Errorf("event %+v", e)
				}
				if x.outcome == audit.Refused && e.Backend.Status != 0 {
					t.Errorf("the backend was asked: %+v", e)
				}
				for range 5 { // the backend may take a moment
					if got := read(); got != "whole" {
						t.Fatalf("stored: %d bytes, %.20q", len(got), got)
					}
				}
			})
		}
	})
}

// Streams that are opened and reset in a loop leave nothing behind: each that has begun has its event, and gives its place
// back.
func TestStreamsResetInALoopLeaveNothing(t *testing.T) {
	onEither(t, func(t *testing.T) {
		const most = 8
		r, backend := newH2Rig(t, map[string]any{"limits.max_in_flight": most, "log.level": "error"})
		token := r.Workspace("env-1", "web", "dev@acme.com")
		for round := range 4 {
			c := r.h2(t, 1<<16)
			for range 1500 {
				var id uint32
				if round%2 == 0 {
					id = c.ask(true, "GET", "/artifacts/web/k", token)
				} else {
					id = c.ask(false, "PUT", "/artifacts/web/k", token, "content-length", "5")
				}
				c.reset(id)
				if _, ended := c.look(id); ended != nil {
					break
				}
			}
			c.conn.Close()
		}
		// All places are there.
		hold := make(chan struct{})
		var waiting atomic.Int64
		backend.Handle(func(_ http.ResponseWriter, q *s3test.Request) {
			if q.Target == "/artifacts/web/held" { // others may yet come of what was reset
				waiting.Add(1)
				<-hold
			}
		})
		c := r.h2(t, 1<<16)
		var held []uint32
		for range most {
			held = append(held, c.ask(true, "GET", "/artifacts/web/held", token))
		}
		until(t, "all places are taken", func() bool {
			for i, id := range held {
				if s, _ := c.look(id); s.over() { // what was reset may have a place for a moment yet
					held[i] = c.ask(true, "GET", "/artifacts/web/held", token)
				}
			}
			return waiting.Load() == most
		})
		close(hold)
		for _, id := range held {
			if s := c.answer(id); s.status() != "200" {
				t.Errorf("%v %s", s.statuses, s.body)
			}
		}
		var served float64
		until(t, "an event for each that began", func() bool {
			events, err := r.proxy.Events()
			if err != nil {
				t.Fatal(err)
			}
			served = r.gauge(t, "sluice_requests_total")
			return len(events) == int(served) && r.gauge(t, "sluice_requests_in_flight") == 0
		})
		if served <= most {
			t.Error("none of the others began")
		}
		t.Logf("%v began of %d, and %v found no room for an event", served, 6000+most, r.gauge(t, "sluice_requests_unrecorded_total"))
	})
}

// peakMemory is the most that a process has had, in bytes.
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Skip("no VmHWM")
	return 0
}

// A header block of few bytes may stand for very many. It is refused before it is that long.
func TestHeadersThatUnfold(t *testing.T) {
	onEither(t, func(t *testing.T) {
		r, backend := newH2Rig(t, nil)
		token := r.Workspace("env-1", "web", "dev@acme.com")
		c := r.h2(t, 1<<16)
		if s := c.answer(c.ask(true, "GET", "/artifacts/web/k", token, "x-filler", strings.Repeat("~", 3000))); s.status() != "200" {
			t.Fatalf("%v %s", s.statuses, s.body)
		}
		r.event(t)
		before := peakMemory(t, r.proxy.PID())
		// The field is in the table now, 3 KB for each byte that names it.
		for i := 0; ; i++ {
			block := c.encode(":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/artifacts/web/k", "authorization", "Bearer "+token, "x-filler", strings.Repeat("~", 3000))
			index := block[len(block)-1]
			if index&0x80 == 0 {
				t.Fatal("the field is not in the table")
			}
			block = append(block, bytes.Repeat([]byte{index}, 16000-len(block))...)
			c.last += 2
			c.writing.Lock()
			err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: c.last, BlockFragment: block, EndStream: true, EndHeaders: true})
			c.writing.Unlock()
			if err != nil || i == 100 {
				break
			}
		}
		if s := c.answer(c.last); s.status() != "431" {
			t.Errorf("%v %s", s.statuses, s.body)
		}
		if grown := peakMemory(t, r.proxy.PID()) - before; grown > 64<<20 {
			t.Errorf("it took %d MiB", grown>>20)
		} else {
			t.Logf("it took %d MiB", grown>>20)
		}
		if n := len(backend.Requests()); n != 1 {
			t.Errorf("%d requests reached the backend", n)
		}
		if err := r.proxy.Stop(); err != nil {
			t.Error(err)
		}
		if events, err := r.proxy.Events(); err != nil || len(events) != 1 {
			t.Errorf("%d events, %v: a block that is not read is no request", len(events), err)
		}
	})
}

// What no request of HTTP/2 may be is refused by Go's library, before anybody here hears of it: so docs/audit.md says. What
// HTTP/2 lets through and HTTP/1.1 would not is refused here, with an event.
func TestStreamsThatAreNoRequests(t *testing.T) {
	r, backend := newH2Rig(t, nil)
	token := r.Workspace("env-1", "web", "dev@acme.com")
	fields := func(change map[string]string, more ...string) []string {
		var all []string
		for _, name := range []string{":method", ":scheme", ":authority", ":path"} {
			value := map[string]string{":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": "/artifacts/web/k"}[name]
			if changed, ok := change[name]; ok {
				value = changed
			}
			if value != "none" {
				all = append(all, name, value)
			}
		}
		return append(append(all, "authorization", "Bearer "+token), more...)
	}
	const (
		reset  = "reset"
		served = "200"
	)
	answered := 0
	for name, x := range map[string]struct {
		fields []string
		want   string // the status, and S3's code where the answer is ours
	}{
		"as it should be":               {fields(nil), served},
		"the same host twice":           {fields(nil, "host", "localhost"), served},
		"host alone":                    {fields(map[string]string{":authority": "none"}, "host", "localhost"), served},
		":scheme http":                  {fields(map[string]string{":scheme": "http"}), served},
		"te: trailers":                  {fields(nil, "te", "trailers"), served},
		"no :method":                    {fields(map[string]string{":method": "none"}), reset},
		"no :path":                      {fields(map[string]string{":path": "none"}), reset},
		"no :scheme":                    {fields(map[string]string{":scheme": "none"}), reset},
		"an empty :path":                {fields(map[string]string{":path": ""}), reset},
		"an empty :method":              {fields(map[string]string{":method": ""}), reset},
		"a :path without its slash":     {fields(map[string]string{":path": "artifacts/web/k"}), reset},
		"a :path that is a query":       {fields(map[string]string{":path": "?x"}), reset},
		"a bad escape":                  {fields(map[string]string{":path": "/artifacts/web/%zz"}), reset},
		"a control in :path":            {fields(map[string]string{":path": "/artifacts/web/\x01"}), reset},
		"a line feed in :path":          {fields(map[string]string{":path": "/artifacts/web/k HTTP/1.1\r\nx: y"}), reset},
		"a line feed in a value":        {fields(nil, "x-amz-meta-a", "b\r\nx-amz-acl: public-read"), reset},
		"a NUL in a value":              {fields(nil, "x-amz-meta-a", "b\x00"), reset},
		"another :scheme":               {fields(map[string]string{":scheme": "ftp"}), reset},
		":scheme in capitals":           {fields(map[string]string{":scheme": "HTTPS"}), reset},
		"a user in :authority":          {fields(map[string]string{":authority": "user@localhost"}), reset},
		":path twice":                   {append([]string{":path", "/artifacts/api/k"}, fields(nil)...), reset},
		":authority twice":              {append([]string{":authority", "other"}, fields(nil)...), reset},
		":method twice":                 {append([]string{":method", "PUT"}, fields(nil)...), reset},
		":path after a field":           {append(fields(map[string]string{":path": "none"}), ":path", "/artifacts/web/k"), reset},
		":status":                       {append([]string{":status", "200"}, fields(nil)...), reset},
		":protocol":                     {append([]string{":protocol", "websocket"}, fields(nil)...), reset},
		"an unknown pseudo-header":      {append([]string{":bucket", "other"}, fields(nil)...), reset},
		"a name in capitals":            {fields(nil, "X-Amz-Acl", "private"), reset},
		"a name with a space":           {fields(nil, "x-amz-acl ", "private"), reset},
		"an empty name":                 {fields(nil, "", "private"), reset},
		"CONNECT with a path":           {fields(map[string]string{":method": "CONNECT"}), reset},
		"connection":                    {fields(nil, "connection", "close"), "400"},
		"connection: authorization":     {fields(nil, "connection", "authorization"), "400"},
		"keep-alive":                    {fields(nil, "keep-alive", "1"), "400"},
		"proxy-connection":              {fields(nil, "proxy-connection", "close"), "400"},
		"transfer-encoding":             {fields(nil, "transfer-encoding", "chunked"), "400"},
		"upgrade":                       {fields(nil, "upgrade", "h2c"), "400"},
		"te: gzip":                      {fields(nil, "te", "gzip"), "400"},
		"CONNECT":                       {fields(map[string]string{":method": "CONNECT", ":path": "none", ":scheme": "none"}), "400 InvalidRequest"},
		"a whole URL":                   {fields(map[string]string{":path": "https://localhost/artifacts/web/k"}), "400 InvalidRequest"},
		"a whole URL of elsewhere":      {fields(map[string]string{":path": "http://169.254.169.254/artifacts/web/k"}), "400 InvalidRequest"},
		"*":                             {fields(map[string]string{":path": "*"}), "400 InvalidRequest"},
		"OPTIONS *":                     {fields(map[string]string{":path": "*", ":method": "OPTIONS"}), "400 InvalidRequest"},
		"a fragment":                    {fields(map[string]string{":path": "/artifacts/web/k#f"}), "400 InvalidRequest"},
		"a space in :path":              {fields(map[string]string{":path": "/artifacts/web/a b"}), "400 InvalidRequest"},
		"no :authority, no host":        {fields(map[string]string{":authority": "none"}), "400 InvalidRequest"},
		"an empty :authority":           {fields(map[string]string{":authority": ""}), "400 InvalidRequest"},
		"a host that is another":        {fields(nil, "host", "artifacts.localhost"), "400 InvalidRequest"},
		"two hosts":                     {fields(nil, "host", "localhost", "host", "localhost"), "400 InvalidRequest"},
		"two hosts, and no :authority":  {fields(map[string]string{":authority": "none"}, "host", "localhost", "host", "other"), "400 InvalidRequest"},
		":authority with a path":        {fields(map[string]string{":authority": "localhost/x"}), "400 InvalidRequest"},
		":authority with a space":       {fields(map[string]string{":authority": "local host"}), "400 InvalidRequest"},
		":authority with a query":       {fields(map[string]string{":authority": "localhost?x"}), "400 InvalidRequest"},
		"a value that begins in spaces": {fields(map[string]string{":method": "PUT"}, "x-amz-acl", " public-read"), "400 InvalidArgument"},
		"a value that ends in a tab":    {fields(map[string]string{":method": "PUT"}, "x-amz-acl", "public-read\t"), "400 InvalidArgument"},
		"another expectation":           {fields(nil, "expect", "a pony"), "417 InvalidRequest"},
	} {
		t.Run(name, func(t *testing.T) {
			c, seen := r.h2(t, 1<<16), len(backend.Requests())
			s := c.answer(c.send(true, x.fields...))
			got := s.status()
			if _, rest, ok := strings.Cut(string(s.body), "<Code>"); ok {
				code, _, _ := strings.Cut(rest, "</Code>")
				got += " " + code
			} else if s.reset != nil {
				got = reset
			}
			if got != x.want {
				t.Errorf("%s, want %s: %s", got, x.want, s.body)
			}
			if asked := len(backend.Requests()) - seen; asked != 0 && x.want != served {
				t.Errorf("it reached the backend: %s", backend.Last().Head)
			}
			if id := s.header.Get("X-Sluice-Request-Id"); id != "" {
				answered++
				if e := r.event(t); e.ID != id || (e.Outcome != audit.Refused) != (x.want == served) {
					t.Errorf("event %+v", e)
				}
			} else if x.want != reset && x.want != "400" {
				t.Error("no event")
			}
		})
	}
	if err := r.proxy.Stop(); err != nil {
		t.Error(err)
	}
	if events, err := r.proxy.Events(); err != nil || len(events) != answered {
		t.Errorf("%d events for %d answers of ours, %v", len(events), answered, err)
	}
}
