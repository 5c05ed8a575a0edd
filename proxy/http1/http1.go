// Package http1 moves HTTP/1.1 messages between a client and a backend at the price of a plain TCP relay: Server on
// the one side, Transport on the other, and Copy between them, which leaves bodies in the kernel where it can.
//
// It does less than net/http, so that there is less to pay for and to get wrong: what is not the one plain way to write
// a message is refused, and where a message ends is never guessed. Behaviour that it has in common with net/http is
// held to net/http's by its tests.
package http1

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
)

// maxHead bounds a head, and a trailer: as much as the proxy's listener always took.
const maxHead = 64 << 10

const (
	smallBuffer = 4 << 10 // holds a head of the usual size, with a bearer token
	copyBuffer  = 64 << 10
)

var (
	errHeadTooLong = errors.New("the head is longer than 64 KiB")
	errMalformed   = errors.New("malformed head")
)

var (
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, maxHead+smallBuffer); return &b }}
	copyBuffers  = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}
)

// reader reads a connection by way of a buffer that grows for a long head, and goes back to its usual size.
type reader struct {
	conn  net.Conn
	buf   []byte
	r, w  int
	small []byte
	large *[]byte
}

func (b *reader) init(conn net.Conn) {
	b.conn = conn
	b.small = make([]byte, smallBuffer)
	b.buf = b.small
}

func (b *reader) buffered() int { return b.w - b.r }

// Read reads what is buffered, or else from the connection.
func (b *reader) Read(p []byte) (int, error) {
	if b.r == b.w {
		if len(p) >= len(b.buf) {
			return b.conn.Read(p)
		}
		if err := b.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.buf[b.r:b.w])
	b.r += n
	return n, nil
}

// fill reads once, into what is free after the buffered bytes.
func (b *reader) fill() error {
	if b.r == b.w {
		b.r, b.w = 0, 0
		b.shrink()
	}
	if b.w == len(b.buf) {
		if b.r > 0 {
			b.w = copy(b.buf, b.buf[b.r:b.w])
			b.r = 0
		} else if b.large == nil {
			b.large = largeBuffers.Get().(*[]byte)
			b.w = copy(*b.large, b.buf[:b.w])
			b.buf = *b.large
		} else {
			return errHeadTooLong
		}
	}
	n, err := b.conn.Read(b.buf[b.w:])
	b.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// shrink gives a grown buffer back. It MUST be called with nothing buffered.
func (b *reader) shrink() {
	if b.large != nil {
		largeBuffers.Put(b.large)
		b.large, b.buf = nil, b.small
	}
}

// head reads up to and including the empty line. Each line MUST end in CRLF: a reader before or behind this one might
// take a lone LF for a line's end, and a lone CR for one too. What is returned is good until the next read.
//
// rest is what followed the first line of another head of this connection, or "". same tells that it does again: then it is
// not looked through once more.
func (b *reader) head(rest string) (head []byte, same bool, err error) {
	for seen := 0; ; {
		for at := b.r + seen; ; at++ {
			next := bytes.IndexByte(b.buf[at:b.w], '\n')
			if next < 0 {
				break
			}
			first := at == b.r
			at += next
			if at == b.r || b.buf[at-1] != '\r' {
				return nil, false, errMalformed
			}
			if at == b.r+1 {
				return nil, false, errMalformed // an empty line for a start line
			}
			if first && rest != "" && b.w-at > len(rest) && string(b.buf[at+1:at+1+len(rest)]) == rest {
				at += len(rest)
				same = true
			}
			if at >= b.r+3 && b.buf[at-2] == '\n' {
				head := b.buf[b.r : at+1]
				b.r = at + 1
				if len(head) > maxHead {
					return nil, false, errHeadTooLong
				}
				return head, same, nil
			}
		}
		if seen = b.w - b.r; seen > maxHead {
			return nil, false, errHeadTooLong
		}
		if err := b.fill(); err != nil {
			if err == io.EOF && seen > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, false, err
		}
	}
}

// line reads one line of at most most bytes, without its CRLF. What is returned is good until the next read.
func (b *reader) line(most int) ([]byte, error) {
	for seen := 0; ; {
		for at := b.r + seen; at < b.w; at++ {
			switch {
			case at-b.r > most+1: // the CRLF does not count
				return nil, errMalformed
			case b.buf[at] == '\n':
				if at == b.r || b.buf[at-1] != '\r' {
					return nil, errMalformed
				}
				line := b.buf[b.r : at-1]
				b.r = at + 1
				return line, nil
			}
		}
		seen = b.w - b.r
		if err := b.fill(); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}
