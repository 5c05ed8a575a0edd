//go:build !linux

package main_test

import "errors"

func mountSmall(dir, size string) error { return errors.ErrUnsupported }

func unmount(dir string) {}
