package http1

import (
	"io"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pipe is where splice(2) keeps what is on its way. It is empty whenever it is in the pool.
type pipe struct{ r, w int }

// pipeSize is a compromise: a user without privileges may have 64 MiB of pipes, and gets ones of a page or two beyond.
const pipeSize = 256 << 10

var pipes = sync.Pool{New: func() any {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return (*pipe)(nil)
	}
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	p := &pipe{fds[0], fds[1]}
	runtime.SetFinalizer(p, (*pipe).close)
	return p
}}

func (p *pipe) close() {
	runtime.SetFinalizer(p, nil)
	unix.Close(p.r)
	unix.Close(p.w)
}

// splice moves n bytes from one connection to another without bringing them into this process, and calls moved for
// each piece that has arrived. An error of the writing side is a *WriteError; the end of from is io.EOF. After any
// error bytes may have been taken from from that to has not got.
func splice(to, from *stream, n int64, moved func(int) error) (total int64, err error) {
	p := pipes.Get().(*pipe)
	if p == nil {
		return 0, errNoSplice
	}
	inPipe := 0
	defer func() {
		if inPipe > 0 {
			p.close()
		} else {
			pipes.Put(p)
		}
	}()
	var step int
	var failed error
	most := 0
	drain := func(fd uintptr) bool {
		step, failed = retry(func() (int64, error) {
			return unix.Splice(int(fd), nil, p.w, nil, most, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		})
		return failed != unix.EAGAIN
	}
	pump := func(fd uintptr) bool {
		flags := unix.SPLICE_F_NONBLOCK | unix.SPLICE_F_MOVE
		step, failed = retry(func() (int64, error) { return unix.Splice(p.r, nil, int(fd), nil, inPipe, flags) })
		return failed != unix.EAGAIN
	}
	for n > 0 {
		most = int(min(n, pipeSize))
		if err := from.raw.Read(drain); err != nil {
			return total, err
		}
		switch {
		case failed == unix.EINVAL && total == 0:
			return 0, errNoSplice
		case failed != nil:
			return total, os.NewSyscallError("splice", failed)
		case step == 0:
			return total, io.EOF
		}
		inPipe = step
		for inPipe > 0 {
			if err := to.raw.Write(pump); err != nil {
				return total, &WriteError{err}
			}
			if failed != nil {
				return total, &WriteError{os.NewSyscallError("splice", failed)}
			}
			inPipe -= step
			n -= int64(step)
			total += int64(step)
			if err := moved(step); err != nil {
				return total, err
			}
		}
	}
	return total, nil
}

func retry(call func() (int64, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return int(n), err
		}
	}
}

// writeNow and recvNow do not block: the sockets of package net do not. So the runtime is not told of them as of system
// calls that may, which would have it look after every one, and take the processor from those that the kernel interrupts.
func writeNow(fd uintptr, p []byte) (int, error) {
	for {
		n, _, err := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if err == 0 {
			return int(n), nil
		}
		if err != unix.EINTR {
			return 0, err
		}
	}
}

func recvNow(fd uintptr, p []byte, flags uintptr) (int, error) {
	for {
		n, _, err := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags|unix.MSG_DONTWAIT, 0, 0)
		if err == 0 {
			return int(n), nil
		}
		if err != unix.EINTR {
			return 0, err
		}
	}
}

// quiet tells whether an idle connection is just that: neither closed nor with bytes that nobody asked for.
func (s *stream) quiet() bool {
	quiet := false
	err := s.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = err == unix.EAGAIN
		return true
	})
	return err == nil && quiet
}

// gone tells whether the far end has hung up, or at least will not say anything more. Unread bytes may come first.
func (s *stream) gone() bool {
	gone := false
	err := s.raw.Control(func(fd uintptr) {
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds[:], 0)
		gone = err == nil && n > 0 && fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return err != nil || gone
}

// asker writes a message and waits for the first bytes of what comes back, in one go: the connection is not read
// before there is anything to read, and the look whether it was quiet costs no lock. It is made once a connection.
type asker struct {
	stream *stream
	step   func(uintptr) bool

	out     []byte
	buf     []byte
	check   bool   // that nothing has come before
	sent    func() // called once all is written
	written int
	read    int
	asked   bool
	err     error
}

func (a *asker) init(s *stream) {
	a.stream = s
	a.step = func(fd uintptr) bool {
		if !a.asked {
			if a.check {
				var b [1]byte
				if _, err := recvNow(fd, b[:], unix.MSG_PEEK); err != unix.EAGAIN {
					a.err = errStale
					return true
				}
			}
			a.written, a.err = writeNow(fd, a.out)
			if a.err == unix.EAGAIN {
				a.written, a.err = 0, nil
			}
			if a.err != nil || a.written < len(a.out) {
				return true // the rest goes the usual way
			}
			a.asked = true
			if a.sent != nil {
				a.sent()
			}
			if a.check {
				return false // what comes back cannot be here yet
			}
			// It may, where nobody looked before: the poller tells once of what comes, and has forgotten what it told until now.
		}
		a.read, a.err = recvNow(fd, a.buf, 0)
		if a.err == unix.EAGAIN {
			a.read, a.err = 0, nil
			return false
		}
		return true
	}
}

// ask writes out, and reads into buf once something comes. Where not all of out was written nothing is read. err is
// io.EOF where the connection ended. asked tells whether all of out is written.
func (a *asker) ask(out, buf []byte, check bool) (written, read int, asked bool, err error) {
	a.out, a.buf, a.check = out, buf, check
	a.written, a.read, a.asked, a.err = 0, 0, false, nil
	if err := a.stream.raw.Read(a.step); err != nil {
		return max(a.written, 0), 0, a.asked, err
	}
	a.out, a.buf = nil, nil
	if a.asked && a.read == 0 && a.err == nil {
		a.err = io.EOF
	}
	return max(a.written, 0), max(a.read, 0), a.asked, a.err
}
