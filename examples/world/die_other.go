//go:build !linux

package world

import "syscall"

// ownChild keeps a child out of the reach of Ctrl-C, which is ours to act on. On this system it outlives a parent that was
// killed.
func ownChild() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
