package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"strconv"
	"sync"
	"time"
)

// role is what this program does when it has started itself: args are an address and what the role needs.
func role(name string, args []string) error {
	switch name {
	case "backend":
		return backend(args[0], args[1])
	case "bare":
		return bare(args[0], args[1], args[2], args[3], args[4])
	}
	return fmt.Errorf("no role is called %q", name)
}

// backend answers GET with as many bytes as the last segment of the path says, and takes whatever is PUT. It believes
// every signature: it is not what is measured.
func backend(address, payload string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_ = serveBackend(conn.(*net.TCPConn), payload)
		}()
	}
}

func serveBackend(conn *net.TCPConn, payload string) error {
	body, err := os.Open(payload)
	if err != nil {
		return err
	}
	defer body.Close()
	in := bufio.NewReaderSize(conn, 32<<10)
	out := make([]byte, 0, 70<<10)
	var second int64
	var date string
	id := 0x17A5F3B600000000 | rand.Uint64N(1<<32)
	for {
		head, err := readHead(in)
		if err != nil {
			return err
		}
		line, _, _ := bytes.Cut(head, []byte("\r\n"))
		method, rest, _ := bytes.Cut(line, []byte(" "))
		target, _, _ := bytes.Cut(rest, []byte(" "))
		isGet := string(method) == "GET"
		size, _ := strconv.ParseInt(path.Base(string(target)), 10, 64)
		if value, ok := headerOf(head, "content-length"); ok {
			length, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return err
			}
			if _, ok := headerOf(head, "expect"); ok {
				if _, err := io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
					return err
				}
			}
			if err := discard(in, conn, length); err != nil {
				return err
			}
		} else if !isGet {
			// Chunked: no proxy here should send it. An empty answer would hide that.
			if _, ok := headerOf(head, "transfer-encoding"); ok {
				return fmt.Errorf("chunked")
			}
		}
		if !isGet {
			size = 0
		}
		// Two fields of each answer are its own, as S3's are, so that nobody's memory of the one before is flattered.
		if now := time.Now().Unix(); now != second {
			second, date = now, time.Unix(now, 0).UTC().Format(http.TimeFormat)
		}
		id++
		out = append(out[:0], "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: "...)
		out = append(out, date...)
		out = append(out, "\r\nETag: \"d41d8cd98f00b204e9800998ecf8427e\"\r\nLast-Modified: Mon, 23 Nov 2026 00:00:00 GMT\r\nAccept-Ranges: bytes\r\nContent-Type: application/octet-stream\r\nx-amz-request-id: "...)
		out = strconv.AppendUint(out, id, 16)
		out = append(out, "\r\nContent-Length: "...)
		out = strconv.AppendInt(out, size, 10)
		out = append(out, "\r\n\r\n"...)
		small := size <= 64<<10
		if small {
			out = append(out, make([]byte, size)...)
		}
		if _, err := conn.Write(out); err != nil {
			return err
		}
		if !small {
			if err := sendBody(conn, body, size); err != nil {
				return err
			}
		}
	}
}

// bare is httputil.ReverseProxy as one would tune it, with no checks at all.
func bare(address, secure, to, cert, key string) error {
	target, err := url.Parse("http://" + to)
	if err != nil {
		return err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:    func(r *httputil.ProxyRequest) { r.SetURL(target) },
		BufferPool: &buffers{},
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			MaxIdleConnsPerHost: 1024, DisableCompression: true,
			WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10,
		},
	}
	failed := make(chan error, 2)
	go func() { failed <- (&http.Server{Addr: address, Handler: proxy}).ListenAndServe() }()
	go func() {
		s := &http.Server{Addr: secure, Handler: proxy, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
		failed <- s.ListenAndServeTLS(cert, key)
	}()
	return <-failed
}

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 64<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

// waitFor waits until something listens.
func waitFor(ctx context.Context, address string) error {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing listens on %s: %w", address, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
