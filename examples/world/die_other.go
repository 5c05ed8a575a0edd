//go:build !linux

package world

import "syscall"

// dieWithParent has no equal on this system: a proxy outlives a parent that was killed.
func dieWithParent() *syscall.SysProcAttr { return nil }
