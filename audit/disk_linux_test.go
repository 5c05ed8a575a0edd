package audit_test

import (
	"os"
	"os/exec"
	"path/filepath"
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

// freezable is a disk of its own, where the test may mount one, that freeze stops from taking any write until it is
// thawed: what a snapshot does, or storage that does not answer.
func freezable(t *testing.T) (dir string, freeze, thaw func()) {
	t.Helper()
	dir = t.TempDir()
	image := filepath.Join(t.TempDir(), "disk")
	for _, command := range [][]string{
		{"truncate", "-s", "64M", image},
		{"mkfs.ext4", "-q", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: a disk that can be frozen cannot be mounted here: %s: %v: %s (it takes root, and e2fsprogs)", command[0], err, out)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	frozen := false
	order := func(request uintptr) {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, root.Fd(), request, 0); errno != 0 {
			t.Error(os.NewSyscallError("ioctl", errno))
		}
	}
	freeze = func() { frozen = true; order(fifreeze) }
	thaw = func() { frozen = false; order(fithaw) }
	t.Cleanup(func() {
		if frozen {
			thaw()
		}
		root.Close()
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return dir, freeze, thaw
}

// From linux/fs.h.
const (
	fifreeze = 0xC0045877
	fithaw   = 0xC0045878
)

// pipe makes a named pipe.
func pipe(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}
