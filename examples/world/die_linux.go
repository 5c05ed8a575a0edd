package world

import "syscall"

// ownChild keeps a child out of the reach of Ctrl-C, which is ours to act on, and has the system kill it if it would
// outlive this process.
func ownChild() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
