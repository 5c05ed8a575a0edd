package main

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// drive sends one round of w to c.
func (f *field) drive(c *contender, w work) (result, error) {
	connections := w.connections
	if connections == 0 {
		connections = f.options.connections
	}
	address := c.address
	if w.tls {
		address = c.secure
	}
	requests := c.requests(w)
	type tally struct {
		took []time.Duration
		err  error
	}
	tallies := make([]tally, connections)
	c.forgetPeak()
	cpuBefore, err := c.cpu()
	if err != nil {
		return result{}, err
	}
	var started atomic.Int64 // requests, over all connections
	begin := time.Now()
	end := begin.Add(f.options.span)
	var all sync.WaitGroup
	for i := range tallies {
		all.Go(func() {
			t := &tallies[i]
			client, err := dial(address, w.tls, f.payload)
			if err != nil {
				t.err = err
				return
			}
			defer client.Close()
			for {
				n := started.Add(1)
				if w.most > 0 && n > int64(w.most) || w.most == 0 && n > int64(w.least) && !time.Now().Before(end) {
					return
				}
				request := requests[int(n)%len(requests)]
				at := time.Now()
				if err := client.exchange(request, w); err != nil {
					t.err = err
					return
				}
				t.took = append(t.took, time.Since(at))
			}
		})
	}
	all.Wait()
	elapsed := time.Since(begin).Seconds()
	cpuAfter, err := c.cpu()
	if err != nil {
		return result{}, err
	}
	var took []time.Duration
	for _, t := range tallies {
		if t.err != nil {
			return result{}, t.err
		}
		took = append(took, t.took...)
	}
	slices.Sort(took)
	r := result{peak: c.peak(), p50: took[len(took)/2], p99: took[len(took)*99/100]}
	used := cpuAfter - cpuBefore
	if w.large() {
		moved := float64(len(took)) * float64(w.size)
		r.perSecond, r.cpu = moved/elapsed, used.Seconds()/(moved/1e9)
	} else {
		r.perSecond, r.cpu = float64(len(took))/elapsed, float64(used.Microseconds())/float64(len(took))
	}
	return r, nil
}

// requests are what is sent in turn, whole but for large bodies.
func (c *contender) requests(w work) [][]byte {
	target, header, body := fmt.Sprintf("/artifacts/web/%d", w.size), "", []byte(nil)
	switch {
	case w.keys > 0:
		target = "/artifacts?delete"
		body = append(body, `<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>`...)
		for i := range w.keys {
			body = fmt.Appendf(body, "<Object><Key>web/%d/object-%d.bin</Key></Object>", i%10, i)
		}
		body = append(body, "</Delete>"...)
		sum := md5.Sum(body)
		header = fmt.Sprintf("Content-MD5: %s\r\nContent-Length: %d\r\n", base64.StdEncoding.EncodeToString(sum[:]), len(body))
	case w.method == "PUT":
		target = "/artifacts/web/put"
		header = fmt.Sprintf("Content-Length: %d\r\n", w.size)
		if w.size <= 64<<10 {
			body = make([]byte, w.size)
		}
	}
	tokens := []string{c.token}
	if w.cold && c.fresh != nil {
		tokens = tokens[:0]
		for range w.most + 1 {
			tokens = append(tokens, c.fresh())
		}
	}
	var all [][]byte
	for _, token := range tokens {
		request := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\n%s", w.method, target, header)
		if token != "" {
			request = fmt.Appendf(request, "Authorization: Bearer %s\r\n", token)
		}
		all = append(all, append(append(request, "\r\n"...), body...))
	}
	return all
}

// client is one connection of the load generator. It spends as little as it can: bodies go out by sendfile and are
// thrown away in the kernel where there is no TLS.
type client struct {
	net.Conn
	tcp  *net.TCPConn // nil under TLS
	in   *bufio.Reader
	body *os.File
}

func dial(address string, secure bool, payload string) (*client, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &client{Conn: conn, tcp: conn.(*net.TCPConn)}
	if secure {
		c.tcp, c.Conn = nil, tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	}
	c.in = bufio.NewReaderSize(c.Conn, 32<<10)
	c.body, err = os.Open(payload)
	return c, err
}

func (c *client) Close() error {
	c.body.Close()
	return c.Conn.Close()
}

func (c *client) exchange(head []byte, w work) error {
	if _, err := c.Write(head); err != nil {
		return err
	}
	if w.method == "PUT" && w.size > 64<<10 {
		if err := sendBody(c.Conn, c.body, w.size); err != nil {
			return err
		}
	}
	head, err := readHead(c.in)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		rest, _ := c.in.Peek(c.in.Buffered())
		return fmt.Errorf("answered %.400s%.600s", head, rest)
	}
	length := int64(0)
	if value, ok := headerOf(head, "content-length"); ok {
		length, _ = strconv.ParseInt(value, 10, 64)
	}
	if w.method == "GET" && length != w.size {
		return fmt.Errorf("a body of %d bytes, want %d", length, w.size)
	}
	return discard(c.in, c.tcp, length)
}

// payloadSize is the length of the file that bodies are sent from, over and over.
const payloadSize = 1 << 20

func sendBody(to net.Conn, from *os.File, n int64) error {
	for n > 0 {
		if _, err := from.Seek(0, io.SeekStart); err != nil {
			return err
		}
		piece := min(n, payloadSize)
		if _, err := io.CopyN(to, from, piece); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}

// readHead reads up to and including the empty line. What it returns is good until the next read.
func readHead(in *bufio.Reader) ([]byte, error) {
	for at := 1; ; {
		if _, err := in.Peek(at); err != nil {
			return nil, err
		}
		head, _ := in.Peek(in.Buffered())
		if end := bytes.Index(head, []byte("\r\n\r\n")); end >= 0 {
			in.Discard(end + 4)
			return head[:end+4], nil
		}
		if at = len(head) + 1; at > in.Size() {
			return nil, errors.New("the head is too long")
		}
	}
}

func headerOf(head []byte, name string) (string, bool) {
	for line := range bytes.Lines(head) {
		n, value, ok := bytes.Cut(line, []byte(":"))
		if ok && len(n) == len(name) && bytes.EqualFold(n, []byte(name)) {
			return string(bytes.TrimSpace(value)), true
		}
	}
	return "", false
}

// discard throws n bytes away: those in the buffer, and the rest without ever copying it out of the kernel.
func discard(in *bufio.Reader, tcp *net.TCPConn, n int64) error {
	if tcp == nil {
		_, err := io.CopyN(io.Discard, in, n)
		return err
	}
	buffered, _ := in.Discard(int(min(n, int64(in.Buffered()))))
	n -= int64(buffered)
	if n == 0 {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	scrap := make([]byte, 1) // MSG_TRUNC writes nothing to it, however long it is said to be
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for n > 0 {
			got, err := truncate(int(fd), scrap, min(n, 1<<20))
			if err == syscall.EAGAIN {
				return false
			}
			if err == nil && got == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil && err != syscall.EINTR {
				failed = err
				return true
			}
			n -= int64(got)
		}
		return true
	})
	if err != nil {
		return err
	}
	return failed
}
