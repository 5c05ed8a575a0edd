package http1

import (
	"errors"
	"io"
	"net"
	"syscall"
)

var (
	errNoSplice = errors.New("not spliceable")
	errLost     = errors.New("bytes of the body were lost on their way")
	errStopped  = errors.New("stopped by the caller")
	errStale    = errors.New("the connection is closed, or has bytes that nobody asked for")
)

// stream is a plain TCP connection that the kernel can move bytes to and from.
type stream struct {
	tcp *net.TCPConn
	raw syscall.RawConn
}

func newStream(conn net.Conn) *stream {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return &stream{tcp, raw}
}

// source is a body that may lie in the kernel still.
type source interface {
	io.Reader
	// take gives the body that reads would read, and its connection: nil where the kernel cannot move it. It is the
	// taker's alone until give, which MUST follow, and is told what went wrong with the reading.
	take() (*incoming, *stream)
	give(err error) error
}

// sink is a writer that is a connection, but for what it has still to write first.
type sink interface {
	io.Writer
	// direct makes the connection ready for n bytes of the message that do not pass through Write; nil where the
	// message's form does not allow that.
	direct(n int64) (*stream, error)
	written(n int64, err error)
}

// spliceFrom is the least that is spliced: what one read and one write would move has little to gain by a pipe.
const spliceFrom = 64 << 10

// Copy copies src to dst, and calls moved after each piece: where it returns an error, that ends the copy. Where src
// is a body of this package and dst a message of it, and both are plain TCP, what is large moves in the kernel.
// errors of dst are of type *WriteError.
func Copy(dst io.Writer, src io.Reader, moved func(n int) error) (int64, error) {
	var total int64
	if from, ok := src.(source); ok {
		if to, ok := dst.(sink); ok {
			n, handled, err := spliceBody(to, from, moved)
			total += n
			if handled || err != nil {
				return total, err
			}
		}
	}
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			if _, err := dst.Write((*buf)[:n]); err != nil {
				return total, &WriteError{err}
			}
			total += int64(n)
			if err := moved(n); err != nil {
				return total, err
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// WriteError is a failure of the side that Copy writes to.
type WriteError struct{ Err error }

func (e *WriteError) Error() string { return "write: " + e.Err.Error() }
func (e *WriteError) Unwrap() error { return e.Err }

// spliceBody moves a body of known length: by the kernel, or, where all of it has come with the head, from the buffer
// that it is in. handled is false where nothing has been done that a plain copy could not go on from.
func spliceBody(dst sink, src source, moved func(int) error) (total int64, handled bool, err error) {
	body, from := src.take()
	var broken error // the reading side
	defer func() {
		if failed := src.give(broken); err == nil && failed != io.EOF {
			err = failed
		}
	}()
	if body == nil || body.kind != bodyLength || body.failure != nil {
		return 0, false, nil
	}
	rest := body.left - int64(body.in.buffered())
	if rest > 0 && (from == nil || rest < spliceFrom) {
		return 0, false, nil
	}
	if head := min(int64(body.in.buffered()), body.left); head > 0 {
		in := body.in
		n, err := dst.Write(in.buf[in.r : in.r+int(head)])
		in.r += n
		body.left -= int64(n)
		if err != nil {
			return int64(n), true, &WriteError{err}
		}
		total = int64(n)
		if body.left == 0 {
			body.done = true // as of a read that came to the end: the taker may still be told to stop
		}
		if err := moved(n); err != nil || body.done {
			return total, true, err
		}
	}
	to, err := dst.direct(body.left)
	if err != nil {
		return total, true, &WriteError{err}
	}
	if to == nil {
		return total, false, nil
	}
	var stop error // what moved said
	for body.left > 0 {
		n, err := splice(to, from, body.left, func(n int) error {
			body.left -= int64(n)
			total += int64(n)
			dst.written(int64(n), nil)
			if stop = moved(n); stop != nil {
				return errStopped
			}
			return nil
		})
		if err == errNoSplice && n == 0 {
			return total, false, nil
		}
		if err != nil {
			dst.written(0, err)
			if write, ok := err.(*WriteError); ok {
				broken = body.fail(errLost) // what the pipe held is gone
				return total, true, write
			}
			if err == errStopped {
				broken = body.fail(errLost)
				return total, true, stop
			}
			broken = body.fail(err)
			return total, true, broken
		}
	}
	body.done = true
	return total, true, nil
}
