package http1_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/proxy/http1"
	"github.com/sluice-s3/sluice/test/machine"
)

// Who still has a request's body when its handler is done, as a transport's goroutine may, reads nothing of the next
// request's: that is somebody else's.
func TestBodyKeptTooLong(t *testing.T) {
	both(t, func() http.HandlerFunc {
		kept := make(chan io.ReadCloser, 1)
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/first" {
				kept <- r.Body
				return
			}
			stolen, err := io.ReadAll(<-kept)
			own, _ := io.ReadAll(r.Body)
			if len(stolen) > 0 || !errors.Is(err, http.ErrBodyReadAfterClose) || string(own) != "second" {
				t.Errorf("the body of before gives %q and %v, the request's own %q", stolen, err, own)
			}
		}
	}(), func(t *testing.T, address string) {
		_, in := raw(t, address, "PUT /first HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nfirst"+
			"PUT /second HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nsecond")
		for range 2 {
			response, err := http.ReadResponse(in, nil)
			must(t, err)
			response.Body.Close()
		}
	})
}

// A client that sends requests and never reads an answer is let go of: it has not shown who it is.
func TestClientThatNeverReads(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	defer certificate.Close()
	for name, config := range map[string]*tls.Config{"plain": nil, "TLS": {Certificates: certificate.TLS.Certificates}} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			answer := make([]byte, 8<<10)
			s := &http1.Server{
				Handler:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(answer) }),
				IdleTimeout: 300 * time.Millisecond, TLS: config,
			}
			go s.Serve(l)
			defer s.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			must(t, err)
			defer c.Close()
			must(t, c.(*net.TCPConn).SetReadBuffer(4<<10))
			if config != nil {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			}
			must(t, c.SetDeadline(time.Now().Add(machine.Patience)))
			for err == nil {
				_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the server still waits for its answers to be read")
			}
		})
	}
}

// An answer tells that its connection ends, also where all that ends it is a deadline that the handler set: a client that
// sent its next request on it would not know whether that was done.
func TestClosingIsTold(t *testing.T) {
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		must(t, http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)))
		io.WriteString(w, "cut")
	})
	for _, head := range []string{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx"} {
		_, in := raw(t, address, head)
		response, err := http.ReadResponse(in, nil)
		must(t, err)
		if !response.Close {
			t.Errorf("%q: closed without a word", head)
		}
	}
}

// wrapped accepts connections as PROXY protocol's listener does.
type wrapped struct{ net.Listener }

type wrappedConn struct{ net.Conn }

func (l wrapped) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return wrappedConn{c}, err
}

func (c wrappedConn) Raw() net.Conn { return c.Conn }

// Where the end of the connection is the end of the answer, one that was cut must not look whole: over TLS no close_notify may
// follow it, and over TCP no FIN.
func TestCutAnswerIsNotWhole(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	defer certificate.Close()
	secured := &tls.Config{Certificates: certificate.TLS.Certificates}
	for name, way := range map[string]struct {
		tls     *tls.Config
		proxied bool
	}{"plain": {}, "TLS": {tls: secured}, "PROXY protocol": {proxied: true}, "PROXY protocol and TLS": {secured, true}} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			s := &http1.Server{TLS: way.tls, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "half")
				if r.URL.Path == "/cut" {
					must(t, http.NewResponseController(w).Flush())
					panic(http.ErrAbortHandler)
				}
			})}
			if way.proxied {
				go s.Serve(wrapped{l})
			} else {
				go s.Serve(l)
			}
			defer s.Close()
			for _, path := range []string{"/whole", "/cut"} {
				c, err := net.Dial("tcp", l.Addr().String())
				must(t, err)
				defer c.Close()
				if way.tls != nil {
					c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
				}
				must(t, c.SetDeadline(time.Now().Add(machine.Patience)))
				_, err = io.WriteString(c, "GET "+path+" HTTP/1.0\r\n\r\n")
				must(t, err)
				if answer, err := io.ReadAll(c); (err != nil) != (path == "/cut") {
					t.Errorf("%s: %q, %v", path, answer, err)
				}
			}
		})
	}
}

// The time that is left for a body nobody wanted is not that of the requests which were sent behind it.
func TestDrainedInTime(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &http1.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // which has no time for heads
		if r.URL.Path == "/slow" {
			time.Sleep(600 * time.Millisecond) // what is tested is that time passes: more than lingerFor
		}
		io.WriteString(w, r.URL.Path)
	})}
	go s.Serve(l)
	defer s.Close()
	c, in := raw(t, l.Addr().String(), "PUT /unwanted HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET /slow HTTP/1.1\r\nHost: h\r\n\r\nGET /last HT")
	for _, path := range []string{"/unwanted", "/slow", "/last"} {
		if path == "/last" {
			_, err := io.WriteString(c, "TP/1.1\r\nHost: h\r\n\r\n")
			must(t, err)
		}
		response, err := http.ReadResponse(in, nil)
		must(t, err)
		if body, err := io.ReadAll(response.Body); err != nil || string(body) != path {
			t.Errorf("%q, %v, want %q", body, err, path)
		}
	}
}
