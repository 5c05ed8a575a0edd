package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/sluice-s3/sluice/proxy/http1"
)

// netHTTP is the way back, should http1 read some client or backend wrongly: SLUICE_HTTP1=off has net/http do all of it.
func netHTTP() bool { return os.Getenv("SLUICE_HTTP1") == "off" }

// s3Server serves the S3 listener.
type s3Server interface {
	Serve(net.Listener) error // plain or TLS, as configured
	Shutdown(context.Context) error
	Close() error
}

// newS3Server has h serve, and malformed answer what http1 cannot give to h; what net/http cannot, it answers itself.
func newS3Server(h http.Handler, malformed func(http.ResponseWriter, *http.Request, int), secure *tls.Config, limits Limits, errorLog *log.Logger) s3Server {
	standard := &http.Server{
		Handler: h, TLSConfig: secure, ErrorLog: errorLog,
		ReadHeaderTimeout: limits.HeaderTimeout, IdleTimeout: limits.IdleTimeout, MaxHeaderBytes: 64 << 10,
		DisableGeneralOptionsHandler: true, // OPTIONS * is refused and recorded like anything else
		// Streams are cut by a frame: a connection that takes none is closed itself.
		HTTP2: &http.HTTP2Config{WriteByteTimeout: limits.IdleTimeout},
	}
	standard.Handler = ending(h, limits.IdleTimeout)
	if netHTTP() {
		return &standardServer{standard}
	}
	s := &fastServer{
		http1: &http1.Server{Handler: h, Malformed: malformed, TLS: secure, ErrorLog: errorLog, HeaderTimeout: limits.HeaderTimeout, IdleTimeout: limits.IdleTimeout},
		http2: standard,
	}
	s.http1.HTTP2 = s.handOver
	return s
}

// ending bounds what net/http has left to do when the handler is done: to send the end of the answer, and to read what the
// client still sends. While it runs the proxy cuts what stands still, and then nobody would: a client that reads nothing, or
// gives a stream no window, would keep connection, stream and goroutine for ever, and needs no credentials for it.
func ending(h http.Handler, idle time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.ProtoMajor == 1 {
			_ = control.SetWriteDeadline(time.Time{}) // net/http keeps the last request's
		}
		h.ServeHTTP(w, r)
		if idle > 0 {
			late := time.Now().Add(idle)
			_ = control.SetWriteDeadline(late)
			_ = control.SetReadDeadline(late)
		}
	})
}

type standardServer struct{ *http.Server }

func (s *standardServer) Serve(l net.Listener) error {
	if s.TLSConfig != nil {
		return s.ServeTLS(l, "", "")
	}
	return s.Server.Serve(l)
}

// fastServer is http1's for HTTP/1.1 and net/http's for HTTP/2.
type fastServer struct {
	http1 *http1.Server
	http2 *http.Server

	mu    sync.Mutex // guards conns and ended
	conns chan net.Conn
	ended chan struct{}
}

func (s *fastServer) Serve(l net.Listener) error { return s.http1.Serve(l) }

// handOver gives a connection that speaks HTTP/2 to net/http.
func (s *fastServer) handOver(conn *tls.Conn) {
	s.mu.Lock()
	if s.conns == nil {
		s.conns, s.ended = make(chan net.Conn), make(chan struct{})
		go s.http2.Serve(&handed{s, conn.LocalAddr(), sync.Once{}})
	}
	s.mu.Unlock()
	select {
	case s.conns <- conn:
	case <-s.ended:
		conn.Close()
	}
}

// handed is a listener for connections that another one accepted.
type handed struct {
	server  *fastServer
	address net.Addr
	once    sync.Once
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case conn := <-h.server.conns:
		return conn, nil
	case <-h.server.ended:
		return nil, net.ErrClosed
	}
}

func (h *handed) Addr() net.Addr { return h.address }

func (h *handed) Close() error {
	h.once.Do(func() { close(h.server.ended) })
	return nil
}

// Shutdown has net/http say GOAWAY on every connection of HTTP/2 at once: a client that always has one more stream would
// else never be without, and be cut with all of them when the time is over.
func (s *fastServer) Shutdown(ctx context.Context) error {
	second := make(chan error, 1)
	go func() { second <- s.http2.Shutdown(ctx) }()
	return errors.Join(s.http1.Shutdown(ctx), <-second)
}

func (s *fastServer) Close() error { return errors.Join(s.http1.Close(), s.http2.Close()) }

// roundTripper is http1's for plain backends. Under TLS nothing could be spliced, and net/http's is at home.
func (b *Backend) roundTripper(endpoint *url.URL, limits Limits) (http.RoundTripper, error) {
	if endpoint.Scheme == "http" && !netHTTP() {
		return &http1.Transport{MaxIdle: limits.MaxInFlight}, nil
	}
	return b.transport(limits)
}
