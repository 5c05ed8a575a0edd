package s3test

import (
	"bytes"
	"net"
	"strconv"
	"strings"
	"sync"
)

// tap is a connection that keeps what net/http does not tell: the bytes of each request's head and trailer. It follows the
// framing of the bodies between them, and keeps nothing of those.
type tap struct {
	net.Conn

	mu       sync.Mutex // guards all below
	state    tapState
	line     []byte // the head, or the line of a chunk or of a trailer, so far
	left     int64  // of the body or the chunk
	trailer  []Field
	begun    int      // requests whose head is complete
	heads    [][]byte // complete, and not yet taken
	trailers map[int]Header
}

type tapState int

const (
	inHead tapState = iota
	inBody
	inChunkSize
	inChunk
	afterChunk
	inTrailer
)

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.feed(p[:n])
	return n, err
}

func (t *tap) feed(p []byte) {
	for len(p) > 0 {
		if t.state == inBody || t.state == inChunk {
			n := min(t.left, int64(len(p)))
			p, t.left = p[n:], t.left-n
			if t.left == 0 && t.state == inBody {
				t.endOfRequest()
			} else if t.left == 0 {
				t.state = afterChunk
			}
			continue
		}
		c := p[0]
		p = p[1:]
		t.line = append(t.line, c)
		if c != '\n' {
			continue
		}
		if t.state == inHead {
			if bytes.HasSuffix(t.line, []byte("\n\r\n")) || bytes.HasSuffix(t.line, []byte("\n\n")) {
				t.endOfHead()
			}
			continue
		}
		line := strings.TrimRight(string(t.line), "\r\n")
		t.line = nil
		switch t.state {
		case inChunkSize:
			size, _, _ := strings.Cut(line, ";")
			t.left, _ = strconv.ParseInt(strings.TrimSpace(size), 16, 64)
			t.state = inChunk
			if t.left == 0 {
				t.state = inTrailer
			}
		case afterChunk:
			t.state = inChunkSize
		case inTrailer:
			if line == "" {
				t.endOfRequest()
			} else {
				t.trailer = append(t.trailer, parseField(line))
			}
		}
	}
}

func (t *tap) endOfHead() {
	r := parseHead(t.line)
	t.heads = append(t.heads, t.line)
	t.line = nil
	t.begun++
	length, _ := strconv.ParseInt(r.Header.Get("Content-Length"), 10, 64)
	switch {
	case strings.EqualFold(r.Header.Get("Transfer-Encoding"), "chunked"):
		t.state = inChunkSize
	case length > 0:
		t.state, t.left = inBody, length
	default:
		t.endOfRequest()
	}
}

func (t *tap) endOfRequest() {
	if t.trailer != nil {
		if t.trailers == nil {
			t.trailers = map[int]Header{}
		}
		t.trailers[t.begun] = t.trailer
	}
	t.state, t.trailer, t.line = inHead, nil, nil
}

// takeHead returns the head of the request that net/http is handing out, and its number on this connection.
func (t *tap) takeHead() (head []byte, number int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	head, t.heads = t.heads[0], t.heads[1:]
	return head, t.begun - len(t.heads)
}

// takeTrailer returns the trailer of a request whose body has been read to its end.
func (t *tap) takeTrailer(number int) Header {
	t.mu.Lock()
	defer t.mu.Unlock()
	trailer := t.trailers[number]
	delete(t.trailers, number)
	return trailer
}

// tapped is a listener whose connections are taps.
type tapped struct{ net.Listener }

func (l tapped) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tap{Conn: c}, nil
}
