//go:build !linux

package audit_test

import "testing"

func smallDisk(t *testing.T, size string) string {
	t.Helper()
	t.Skip("SKIPPED: a small disk is mounted on Linux only")
	return ""
}

func readOnly(t *testing.T, dir string) (undo func()) {
	t.Helper()
	t.Skip("SKIPPED: a directory is made read-only on Linux only")
	return nil
}

func freezable(t *testing.T) (dir string, freeze, thaw func()) {
	t.Helper()
	t.Skip("SKIPPED: a disk is frozen on Linux only")
	return "", nil, nil
}

func pipe(t *testing.T, path string) {
	t.Helper()
	t.Skip("SKIPPED: named pipes are tried on Linux")
}
