package audit_test

import (
	"os"
	"sync"
	"syscall"
	"testing"
)

// smallDisk is a file system of the given size, where the test may mount one.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("SKIPPED: a small disk cannot be mounted here (%v; it takes root)", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
		os.Remove(dir)
	})
	return dir
}

// readOnly makes dir read-only for everybody, root included, until the function it returns is called.
func readOnly(t *testing.T, dir string) (undo func()) {
	t.Helper()
	// Made read-only elsewhere and then laid over: what is open for writing in between would forbid it.
	aside := t.TempDir()
	if err := syscall.Mount(dir, aside, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("SKIPPED: a directory cannot be made read-only for root here (%v)", err)
	}
	defer syscall.Unmount(aside, syscall.MNT_DETACH)
	if err := syscall.Mount("", aside, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(aside, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	undo = sync.OnceFunc(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(undo)
	return undo
}
