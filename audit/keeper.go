package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// keeper looks after the rotated files, beside the writer: it compresses them and removes the oldest.
type keeper struct {
	path     string
	keep     int
	compress bool
	durable  bool
	refuse   bool
	logger   *slog.Logger
	wake     chan struct{}
	quit     chan struct{}
	done     chan struct{}
	// unshipped is the number of the first line that a far end still wants; 0 = none does.
	unshipped func() uint64

	mu      sync.Mutex // guards what follows
	retired []*os.File
	now     FileStats
}

// FileStats is the state of the rotated files.
type FileStats struct {
	Rotated int    // files that are kept
	Held    int    // of them, more than File.Keep, because a far end has not had them
	Removed uint64 // files removed since the start
	Lost    uint64 // of them, files that a far end had not had (on_failure: continue)
	Err     error  // why the last compression or removal failed; nil = it did not
}

func newKeeper(c *File, refuse bool, logger *slog.Logger) *keeper {
	return &keeper{
		path: c.Path, keep: c.Keep, compress: *c.Compress, durable: c.Fsync != fsyncOff, refuse: refuse, logger: logger,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
}

// retire takes a file that the writer is done with.
func (k *keeper) retire(f *os.File) {
	k.mu.Lock()
	k.retired = append(k.retired, f)
	k.mu.Unlock()
	k.notify()
}

func (k *keeper) notify() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *keeper) stats() FileStats {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now
}

func (k *keeper) start(unshipped func() uint64) {
	k.unshipped = unshipped
	go k.run()
}

func (k *keeper) stop() {
	close(k.quit)
	<-k.done
	k.closeRetired()
}

func (k *keeper) run() {
	defer close(k.done)
	again := time.NewTicker(30 * time.Second)
	defer again.Stop()
	for {
		err := errors.Join(k.closeRetired(), k.compressAll(), k.removeOld())
		if errors.Is(err, errStopped) {
			return
		}
		k.mu.Lock()
		if err != nil && k.now.Err == nil {
			k.logger.Error("audit: look after the rotated files", "error", err)
		}
		k.now.Err = err
		k.mu.Unlock()
		select {
		case <-k.wake:
		case <-again.C:
		case <-k.quit:
			return
		}
	}
}

func (k *keeper) closeRetired() error {
	k.mu.Lock()
	retired := k.retired
	k.retired = nil
	k.mu.Unlock()
	var errs []error
	for _, f := range retired {
		if k.durable {
			errs = append(errs, f.Sync())
		}
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

var errStopped = errors.New("stopped")

func (k *keeper) compressAll() error {
	if !k.compress {
		return nil
	}
	files, err := rotatedFiles(k.path)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		if f.compressed {
			continue
		}
		if err := k.compressFile(f); err != nil {
			errs = append(errs, fmt.Errorf("compress %s: %w", f.path, err))
		}
	}
	return errors.Join(errs...)
}

// compressFile replaces a file by its compressed self, which is read back first: the original is evidence.
func (k *keeper) compressFile(f logFile) (err error) {
	in, err := os.OpenFile(f.path, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	name := f.path + zstdSuffix
	temp := name + ".tmp"
	out, err := createTemp(temp, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() {
		out.Close()
		if err != nil {
			os.Remove(temp)
		}
	}()
	buffered := bufio.NewWriterSize(out, 256<<10)
	// Lines are so alike that the fastest level makes them no larger than the default does, in half the time.
	z, err := zstd.NewWriter(buffered, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, &stoppable{in, k.quit}); err != nil {
		return err
	}
	if err := errors.Join(z.Close(), buffered.Flush(), out.Sync()); err != nil {
		return err
	}
	back, err := openLog(temp)
	if err != nil {
		return err
	}
	defer back.Close()
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := sameContent(&stoppable{in, k.quit}, back); err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	// The time of the last line, which a start after a crash goes by.
	if err := os.Chtimes(temp, time.Time{}, info.ModTime()); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(name)); err != nil {
		return err
	}
	return os.Remove(f.path)
}

// sameContent fails unless both readers give the same bytes.
func sameContent(a, b io.Reader) error {
	var pieceA, pieceB [64 << 10]byte
	for {
		n, errA := readFull(a, pieceA[:])
		m, errB := readFull(b, pieceB[:])
		if !bytes.Equal(pieceA[:n], pieceB[:m]) {
			return errors.New("it is not what it was")
		}
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF {
				return err
			}
		}
		if errA != nil || errB != nil {
			return nil // both have ended: the pieces were as long
		}
	}
}

// stoppable lets a long copy end with the process.
type stoppable struct {
	io.Reader
	quit <-chan struct{}
}

func (s *stoppable) Read(p []byte) (int, error) {
	select {
	case <-s.quit:
		return 0, errStopped
	default:
		return s.Reader.Read(p)
	}
}

// removeOld removes the oldest files beyond keep. One that a far end has not had stays: with on_failure refuse a
// disk that fills refuses requests, which is what was asked for; with continue it goes, and is counted.
func (k *keeper) removeOld() error {
	files, err := rotatedFiles(k.path)
	if err != nil {
		return err
	}
	var errs []error
	held, removed, lost := 0, 0, 0
	wanted := k.unshipped()
	for i := 0; i < len(files)-k.keep; i++ {
		// The last line of a file is the one before the next file's first; there is a next, since keep > 0.
		needed := wanted != 0 && files[i+1].firstSeq > wanted
		if needed && k.refuse {
			held++
			continue
		}
		if err := os.Remove(files[i].path); err != nil {
			errs = append(errs, err)
			continue
		}
		removed++
		if needed {
			lost++
			k.logger.Error("audit: removed a file that a far end has not had (on_failure: continue)", "file", files[i].path)
		}
	}
	k.mu.Lock()
	if held > 0 && k.now.Held == 0 {
		k.logger.Warn("audit: more than file.keep rotated files stay, because a far end has not had them", "held", held)
	}
	k.now.Rotated, k.now.Held = len(files)-removed, held
	k.now.Removed += uint64(removed)
	k.now.Lost += uint64(lost)
	k.mu.Unlock()
	return errors.Join(errs...)
}
