package world

import "syscall"

// dieWithParent has the system kill a child that would outlive this process.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
