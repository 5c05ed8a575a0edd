package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-s3/sluice/test/machine"
)

// front serves h on loopback as the S3 listener does, over TLS.
func front(t *testing.T, h http.Handler, idle time.Duration) (address string) {
	t.Helper()
	dir := t.TempDir()
	files := Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	writePair(t, files, "front.test")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	certs, err := (&TLS{Files: &files}).open(nil, listener.Addr(), newLogger(Log{Level: "error", Format: "text"}, io.Discard, nil))
	if err != nil {
		t.Fatal(err)
	}
	server := newS3Server(h, nil, certs.tls, Limits{HeaderTimeout: 10 * time.Second, IdleTimeout: idle}, log.New(io.Discard, "", 0))
	go server.Serve(narrow{listener})
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String()
}

// narrow has connections that hold little of what is not read, so that little has to be sent until none takes more.
type narrow struct{ net.Listener }

func (l narrow) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		_ = conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
	}
	return conn, err
}

// connect speaks proto, through as small a buffer as there is.
func connect(t *testing.T, address, proto string) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.NetConn().Close() })
	_ = c.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
	c.SetDeadline(time.Now().Add(machine.Patience))
	return c
}

// streams opens n streams of HTTP/2 with windows of that size.
func streams(t *testing.T, c net.Conn, n int, window uint32) *http2.Framer {
	t.Helper()
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}); err != nil {
		t.Fatal(err)
	}
	var block strings.Builder
	encoder := hpack.NewEncoder(&block)
	for i := range n {
		block.Reset()
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "front.test"}, {":path", "/b/k"}} {
			encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: []byte(block.String()), EndStream: true, EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// bothSides runs f with http1 and with net/http in its place.
func bothSides(t *testing.T, f func(t *testing.T)) {
	for _, side := range []string{"on", "off"} {
		t.Run("SLUICE_HTTP1="+side, func(t *testing.T) {
			t.Setenv("SLUICE_HTTP1", side)
			f(t)
		})
	}
}

// An answer that is done, and that the client gives no window for, is nobody's any more: it must not stay for ever, with its
// stream, buffers and goroutine. It takes no credentials to ask for a refusal.
func TestStreamsWithoutWindowEnd(t *testing.T) {
	bothSides(t, func(t *testing.T) {
		const n = 50
		address := front(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "refused") }), 200*time.Millisecond)
		f := streams(t, connect(t, address, "h2"), n, 0)
		for reset := 0; reset < n; {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatalf("%d of %d streams are reset: %v", reset, n, err)
			}
			switch frame := frame.(type) {
			case *http2.DataFrame:
				t.Fatalf("data without a window: %v", frame)
			case *http2.RSTStreamFrame:
				reset++
			}
		}
	})
}

// Clients that do not read what they asked for are let go of, whether the handler still writes or is done.
func TestClientsThatNeverRead(t *testing.T) {
	bothSides(t, func(t *testing.T) {
		for _, proto := range []string{"http/1.1", "h2"} {
			for what, size := range map[string]int{"still writing": 64 << 20, "done": 1 << 10} {
				if proto == "http/1.1" && size == 64<<20 {
					continue // proxy's rounds cut those
				}
				t.Run(proto+" "+what, func(t *testing.T) {
					ended := make(chan struct{}, 4096)
					address := front(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						defer func() { ended <- struct{}{} }()
						if size > 1<<20 {
							_, err := w.Write(make([]byte, size))
							if err == nil {
								t.Error("all was written")
							}
							return
						}
						w.Write(make([]byte, size))
					}), 200*time.Millisecond)
					c := connect(t, address, proto)
					gone := make(chan error, 1)
					if proto == "h2" {
						f := streams(t, c, 1, 1<<30)
						f.WriteWindowUpdate(0, 1<<30)
						if size > 1<<20 {
							select {
							case <-ended:
							case <-time.After(machine.Patience):
								t.Error("the handler hangs in its write")
							}
							return
						}
						go func() { // as many as fill whatever buffers there are
							for i := 1; ; i++ {
								var block strings.Builder
								encoder := hpack.NewEncoder(&block)
								for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "front.test"}, {":path", "/b/k"}} {
									encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
								}
								if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: []byte(block.String()), EndStream: true, EndHeaders: true}); err != nil {
									gone <- err
									return
								}
							}
						}()
					} else {
						go func() {
							for {
								if _, err := fmt.Fprintf(c, "GET /b/k HTTP/1.1\r\nHost: front.test\r\n\r\n"); err != nil {
									gone <- err
									return
								}
							}
						}()
					}
					if err := <-gone; strings.Contains(err.Error(), "timeout") {
						t.Errorf("the connection stays: %v", err)
					}
				})
			}
		}
	})
}
