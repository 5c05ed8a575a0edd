//go:build !linux

package http1

import (
	"syscall"
)

func splice(_, _ *stream, _ int64, _ func(int) error) (int64, error) { return 0, errNoSplice }

// peek looks at what there is without waiting.
func (s *stream) peek() (n int, err error) {
	failed := s.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK) // sockets of package net do not block
		return true
	})
	if failed != nil {
		err = failed
	}
	return n, err
}

// quiet tells whether an idle connection is just that: neither closed nor with bytes that nobody asked for.
func (s *stream) quiet() bool {
	_, err := s.peek()
	return err == syscall.EAGAIN
}

// gone tells whether the far end has hung up.
func (s *stream) gone() bool {
	n, err := s.peek()
	return n == 0 && err != syscall.EAGAIN
}

// asker writes a message and waits for the first bytes of what comes back.
type asker struct {
	stream *stream
	sent   func()
}

func (a *asker) init(s *stream) { a.stream = s }

func (a *asker) ask(out, buf []byte, check bool) (written, read int, asked bool, err error) {
	if check && !a.stream.quiet() {
		return 0, 0, false, errStale
	}
	if written, err = a.stream.tcp.Write(out); err != nil {
		return written, 0, false, err
	}
	if a.sent != nil {
		a.sent()
	}
	read, err = a.stream.tcp.Read(buf)
	return written, read, true, err
}
