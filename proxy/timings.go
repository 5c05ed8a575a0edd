package proxy

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// Timings keeps the histograms of requests where metrics are only pulled and nothing is traced. The SDK's can be more than
// that: deltas, other buckets, exemplars. Its Record reads and hashes all attributes each time, and two of them are a
// fiftieth of a small request. Timings is the SDK's metric.Producer, whose Reader tells the same either way.
type Timings struct {
	scope instrumentation.Scope
	start time.Time

	mu  sync.Mutex // guards all
	all []*timing
}

// NewTimings is for the meter of that name, which NewTelemetry gets with it.
func NewTimings(meter string) *Timings {
	return &Timings{scope: instrumentation.Scope{Name: meter}, start: time.Now()}
}

// timing is how long requests of one kind took.
type timing struct {
	mu                 sync.Mutex // guards both
	whole, toFirstByte histogram

	set attribute.Set
}

// inBounds are the histograms' buckets, in seconds, each up to its bound and with it; beyond the last is one more.
var inBounds = [...]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

type histogram struct {
	sum    float64 // beside the counts of what is quick
	counts [len(inBounds) + 1]uint64
}

func (h *histogram) add(seconds float64) {
	i := 0
	for i < len(inBounds) && seconds > inBounds[i] {
		i++
	}
	h.counts[i]++
	h.sum += seconds
}

func (t *Timings) of(set attribute.Set) *timing {
	k := &timing{set: set}
	t.mu.Lock()
	t.all = append(t.all, k)
	t.mu.Unlock()
	return k
}

// add counts a request. toFirstByte is negative where no backend answered.
func (k *timing) add(whole, toFirstByte float64) {
	k.mu.Lock()
	k.whole.add(whole)
	if toFirstByte >= 0 {
		k.toFirstByte.add(toFirstByte)
	}
	k.mu.Unlock()
}

// Produce implements the SDK's metric.Producer.
func (t *Timings) Produce(context.Context) ([]metricdata.ScopeMetrics, error) {
	now := time.Now()
	var whole, toFirstByte []metricdata.HistogramDataPoint[float64]
	t.mu.Lock()
	for _, k := range t.all {
		k.mu.Lock()
		whole = t.point(whole, k.set, k.whole, now)
		toFirstByte = t.point(toFirstByte, k.set, k.toFirstByte, now)
		k.mu.Unlock()
	}
	t.mu.Unlock()
	var found []metricdata.Metrics
	for _, m := range []struct {
		name, about string
		points      []metricdata.HistogramDataPoint[float64]
	}{{MetricDuration, aboutDuration, whole}, {MetricFirstByte, aboutFirstByte, toFirstByte}} {
		if len(m.points) > 0 {
			found = append(found, metricdata.Metrics{Name: m.name, Description: m.about, Unit: "s",
				Data: metricdata.Histogram[float64]{Temporality: metricdata.CumulativeTemporality, DataPoints: m.points}})
		}
	}
	return []metricdata.ScopeMetrics{{Scope: t.scope, Metrics: found}}, nil
}

// point adds what h has seen, if anything.
func (t *Timings) point(to []metricdata.HistogramDataPoint[float64], set attribute.Set, h histogram, now time.Time) []metricdata.HistogramDataPoint[float64] {
	count := uint64(0)
	for _, n := range h.counts {
		count += n
	}
	if count == 0 {
		return to
	}
	return append(to, metricdata.HistogramDataPoint[float64]{
		Attributes: set, StartTime: t.start, Time: now, Count: count, Sum: h.sum, Bounds: inBounds[:], BucketCounts: h.counts[:],
	})
}
