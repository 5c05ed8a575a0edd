package main

import (
	"os/exec"
	"syscall"
)

// endWithParent has the kernel end cmd if this program dies before it could.
func endWithParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
