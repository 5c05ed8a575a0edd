//go:build !linux

package main

import (
	"os/exec"
	"syscall"
)

func endWithParent(*exec.Cmd) {}

func truncate(fd int, _ []byte, n int64) (int, error) {
	return syscall.Read(fd, make([]byte, min(n, 64<<10)))
}
