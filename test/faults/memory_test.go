package faults

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
)

const (
	// memoryBound is resident memory at its highest, of the whole process: README and docs/faults.md state it.
	memoryBound = 100 << 20
	transfers   = 200
)

// 200 transfers of 100 MiB at once, half of them up and half down, fit into 100 MiB: bodies are passed on and never
// held. All stand half-way at one moment, so that they are at once for certain. Without SLUICE_LONG=1 the objects have
// 16 MiB, still far more than all buffers on the way.
func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory is many times the program's")
	}
	size := int64(16 << 20)
	if os.Getenv("SLUICE_LONG") != "" {
		size = 100 << 20
	}
	halfway := newBarrier(transfers)
	piece := make([]byte, 64<<10)
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodPut {
			io.CopyN(io.Discard, q.Body, size/2)
			halfway.wait()
			io.Copy(io.Discard, q.Body)
			w.Header().Set("ETag", `"0"`)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for sent := int64(0); sent < size; sent += int64(len(piece)) {
			if sent == size/2 {
				halfway.wait()
			}
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}), nil)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	began := time.Now()
	var all sync.WaitGroup
	for i := range transfers {
		all.Go(func() {
			method := http.MethodGet
			if i%2 == 0 {
				method = http.MethodPut
			}
			request := r.request(t, method, fmt.Sprintf("o-%d", i))
			if method == http.MethodPut {
				request.Body, request.ContentLength = io.NopCloser(io.LimitReader(zeros{}, size)), size
			}
			answer, err := client.Do(request)
			if err != nil {
				t.Error(err)
				halfway.open()
				return
			}
			defer answer.Body.Close()
			n, err := io.Copy(io.Discard, answer.Body)
			if answer.StatusCode != 200 || err != nil || method == http.MethodGet && n != size {
				t.Errorf("%s: %s, %d bytes, %v", method, answer.Status, n, err)
				halfway.open()
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	peak := r.status(t, "VmHWM")
	t.Logf("%d transfers of %d MiB at once: resident memory at its highest %.1f MiB; %v, %.0f MiB/s", transfers, size>>20, float64(peak)/(1<<20), took.Round(time.Millisecond), float64(transfers*size>>20)/took.Seconds())
	if peak > memoryBound {
		t.Errorf("resident memory reached %.1f MiB; the bound is %d MiB", float64(peak)/(1<<20), memoryBound>>20)
	}
	for _, e := range r.events(t, transfers) {
		if e.Outcome != audit.Completed || e.BytesIn+e.BytesOut != size {
			t.Errorf("event %+v", e)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// barrier holds everybody until all are there.
type barrier struct {
	all  sync.WaitGroup
	once sync.Once
	free chan struct{}
}

func newBarrier(n int) *barrier {
	b := &barrier{free: make(chan struct{})}
	b.all.Add(n)
	go func() { b.all.Wait(); b.open() }()
	return b
}

func (b *barrier) wait() { b.all.Done(); <-b.free }

// open lets everybody go, where somebody will not come.
func (b *barrier) open() { b.once.Do(func() { close(b.free) }) }

// procField is a field of /proc/PID/status, in bytes.
func procField(status, field string) (int, bool) {
	for line := range strings.Lines(status) {
		var n int
		if name, value, ok := strings.Cut(line, ":"); ok && name == field {
			_, err := fmt.Sscanf(value, "%d kB", &n)
			return n << 10, err == nil
		}
	}
	return 0, false
}
