package audit

import (
	"os"
	"syscall"
)

// fdatasync writes f's data, and of its metadata what is needed to find them.
func fdatasync(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = conn.Control(func(fd uintptr) {
		for {
			if result = syscall.Fdatasync(int(fd)); result != syscall.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return result
}

// fallocate reserves size bytes for f on the disk; errors.ErrUnsupported where the file system cannot.
func fallocate(f *os.File, size int64) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = conn.Control(func(fd uintptr) {
		for {
			if result = syscall.Fallocate(int(fd), 0, 0, size); result != syscall.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return result // EOPNOTSUPP and ENOSYS are errors.ErrUnsupported
}
