//go:build unix

package audit_test

import (
	"syscall"
	"testing"
)

// reportCPU reports the processor time that an operation costs, all threads together: unlike the time on the
// clock it does not count what else runs on the machine.
func reportCPU(b *testing.B) func() {
	cpu := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := cpu()
	return func() { b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op") }
}
