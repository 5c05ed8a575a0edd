package http1

import (
	"io"
)

// incoming is the body of a message that is being received: of a known length, in chunks, or up to the connection's
// end. It knows when it has been read exactly, which is when the connection may be used again.
type incoming struct {
	in      *reader
	kind    uint8
	left    int64 // of the body, or of the present chunk
	excess  int64 // how much framing there was beside the data: see chunk
	begun   bool  // a chunk has been read
	done    bool  // the body has ended as it should
	failure error // what reading it said; it says so again
}

const (
	bodyNone uint8 = iota
	bodyLength
	bodyChunked
	bodyClose
)

func (b *incoming) reset(in *reader, f framing, untilClose bool) {
	*b = incoming{in: in}
	switch {
	case f.chunked:
		b.kind = bodyChunked
	case f.length >= 0:
		b.kind, b.left, b.done = bodyLength, f.length, f.length == 0
	case untilClose:
		b.kind = bodyClose
	default:
		b.done = true
	}
}

// Read returns io.EOF together with the last bytes.
func (b *incoming) Read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	if b.failure != nil {
		return 0, b.failure
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.read(p)
	if err != nil {
		return n, b.fail(err)
	}
	if b.done {
		return n, io.EOF
	}
	return n, nil
}

func (b *incoming) fail(err error) error {
	if err == io.EOF {
		if b.kind == bodyClose {
			b.done = true
			return io.EOF
		}
		err = io.ErrUnexpectedEOF
	}
	b.failure = err
	return err
}

func (b *incoming) read(p []byte) (int, error) {
	if b.kind == bodyClose {
		return b.in.Read(p)
	}
	if b.kind == bodyChunked && b.left == 0 {
		if err := b.chunk(); err != nil || b.done {
			return 0, err
		}
	}
	n, err := b.in.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	b.done = b.left == 0 && b.kind == bodyLength && err == nil
	return n, err
}

// chunk reads the line that begins a chunk, and after the last the trailer, which is dropped.
// https://www.rfc-editor.org/rfc/rfc9112#section-7.1
func (b *incoming) chunk() error {
	if b.begun {
		end, err := b.in.line(0)
		if err != nil {
			return err
		}
		if len(end) != 0 {
			return errMalformed
		}
	}
	b.begun = true
	line, err := b.in.line(smallBuffer / 2)
	if err != nil {
		return err
	}
	n, digits := int64(0), 0
	for ; digits < len(line); digits++ {
		c := line[digits]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			c = 255
		}
		if c == 255 {
			break
		}
		if digits == 15 {
			return errMalformed // 2^60 bytes are no chunk
		}
		n = n<<4 | int64(c)
	}
	rest := string(line[digits:])
	if extension := trim(rest); digits == 0 || extension != "" && extension[0] != ';' || !all(rest, isValue) {
		return errMalformed
	}
	// As net/http does: an extension or two, or chunks of a byte, are no harm; nothing but framing is.
	b.excess = max(0, b.excess+int64(len(line))+2-16-2*n)
	if b.excess > 16<<10 {
		return errMalformed
	}
	if b.left = n; n > 0 {
		return nil
	}
	for size := 0; ; {
		line, err := b.in.line(smallBuffer / 2)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			b.done = true
			return nil
		}
		if size += len(line) + 2; size > maxHead {
			return errHeadTooLong
		}
		name := 0
		for name < len(line) && classes[line[name]]&isToken != 0 {
			name++
		}
		if name == 0 || name == len(line) || line[name] != ':' || !all(string(line[name+1:]), isValue) {
			return errMalformed
		}
	}
}
