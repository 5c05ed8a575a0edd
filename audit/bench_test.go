package audit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
)

// fill makes an event as most are.
func fill(ev *audit.Event) {
	ev.Identity = audit.Identity{Issuer: "https://app.gitpod.io", Subject: "organization:acme/project:web/environment:env-42", Session: "env-42", Method: "bearer",
		Attributes: audit.Attributes{Workspace: "env-42", Project: "web", Repository: "acme/web", User: "dev@acme.com"}}
	ev.SourceIP, ev.UserAgent, ev.Host = "10.1.2.3", "aws-cli/2.31.0 md/awscrt#0.28.1 ua/2.1 os/linux#6.8 md/arch#x86_64 lang/python#3.13", "s3.example.com"
	ev.Operation, ev.Bucket, ev.Key = "GetObject", "artifacts", "acme/web/builds/2026-11-23/build.tgz"
	ev.Accesses = append(ev.Accesses[:0], audit.Access{Action: "s3:GetObject", Bucket: "artifacts", Key: ev.Key, Allow: true})
	ev.Decision = audit.Decision{Allow: true, Role: "arn:aws:iam::123456789012:role/sluice-web", PolicyRevision: "4f1c2d3e"}
	ev.Backend = audit.Backend{Name: "aws", Status: 200, RequestID: "7Z3K1V9T0QABCDEF"}
	ev.Status, ev.Outcome, ev.BytesOut = 200, audit.Completed, 2048
	ev.TraceID = "4bf92f3577b34da6a3ce929d0e0e4736"
}

// BenchmarkJournal is what a request pays before it goes out: encoding and journalling its event.
func BenchmarkJournal(b *testing.B) {
	log, _ := open(b, audit.Config{})
	r := begin(b, log)
	fill(&r.Event)
	b.ReportAllocs()
	done := reportCPU(b)
	for b.Loop() {
		if err := r.Journal(); err != nil {
			b.Fatal(err)
		}
	}
	done()
	r.Commit()
}

// BenchmarkRequest is all that a request pays: Begin, Journal, Commit, the writer's work beside it included.
func BenchmarkRequest(b *testing.B) {
	for _, fsync := range []string{"off", "interval"} {
		b.Run(fsync, func(b *testing.B) {
			log, _ := open(b, audit.Config{File: &audit.File{Fsync: fsync}})
			b.ReportAllocs()
			var full atomic.Int64
			defer reportCPU(b)()
			b.RunParallel(func(pb *testing.PB) {
				accesses := make([]audit.Access, 0, 1)
				for pb.Next() {
					r, err := log.Begin(time.Now())
					for err != nil { // the benchmark asks for more than one disk takes
						full.Add(1)
						time.Sleep(time.Millisecond)
						r, err = log.Begin(time.Now())
					}
					r.Event.Accesses = accesses
					fill(&r.Event)
					if err := r.Journal(); err != nil {
						b.Fatal(err)
					}
					r.Commit()
				}
			})
			b.ReportMetric(float64(full.Load())/float64(b.N), "full/op")
		})
	}
}

// BenchmarkAlways is Journal with fsync always, by many at once: they share the disk's answers.
func BenchmarkAlways(b *testing.B) {
	log, _ := open(b, audit.Config{File: &audit.File{Fsync: "always"}})
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := begin(b, log)
			fill(&r.Event)
			if err := r.Journal(); err != nil {
				b.Fatal(err)
			}
			r.Commit()
		}
	})
}

func benchmarkLog(b *testing.B, lines int, compress bool) string {
	b.Helper()
	log, path := open(b, audit.Config{File: &audit.File{Path: filepath.Join(b.TempDir(), "audit.jsonl"), MaxSize: 64 << 20, Keep: 1000, Compress: &compress}})
	for range lines {
		r := begin(b, log)
		fill(&r.Event)
		r.Commit()
	}
	for compress {
		s := log.Stats()
		if zst, _ := filepath.Glob(path[:len(path)-len(".jsonl")] + "-*.zst"); s.Queued == 0 && len(zst) > 0 && len(zst) == s.Files.Rotated {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	closeLog(b, log)
	return path
}

func BenchmarkVerify(b *testing.B) {
	for _, compress := range []bool{false, true} {
		b.Run(fmt.Sprintf("compressed=%v", compress), func(b *testing.B) {
			path := benchmarkLog(b, 300_000, compress)
			b.ResetTimer()
			defer reportCPU(b)()
			var bytes int64
			for b.Loop() {
				r, err := audit.Verify(context.Background(), []string{path}, audit.VerifyOptions{})
				if err != nil || !r.OK() {
					b.Fatal(err, r)
				}
				bytes = r.Bytes
			}
			b.SetBytes(bytes)
		})
	}
}

func BenchmarkQuery(b *testing.B) {
	path := benchmarkLog(b, 100_000, false)
	for name, o := range map[string]audit.QueryOptions{
		"few of many": {Filter: audit.Filter{Refused: true}},
		"all grouped": {GroupBy: []string{"who", "operation"}},
	} {
		b.Run(name, func(b *testing.B) {
			defer reportCPU(b)()
			for b.Loop() {
				if err := audit.Query(context.Background(), []string{path}, io.Discard, o); err != nil {
					b.Fatal(err)
				}
			}
			r, err := audit.Verify(context.Background(), []string{path}, audit.VerifyOptions{})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(r.Bytes)
		})
	}
}

// BenchmarkMarshal is what encoding/json would take, to compare.
func BenchmarkMarshal(b *testing.B) {
	var ev audit.Event
	fill(&ev)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := json.Marshal(&ev); err != nil {
			b.Fatal(err)
		}
	}
}
