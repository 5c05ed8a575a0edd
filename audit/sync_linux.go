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
