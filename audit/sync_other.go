//go:build !linux

package audit

import (
	"errors"
	"os"
)

func fdatasync(f *os.File) error { return f.Sync() }

func fallocate(f *os.File, size int64) error { return errors.ErrUnsupported }
