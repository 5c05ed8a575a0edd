package proxy

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/sluice-s3/sluice/audit"
)

// measured is a Telemetry that only Prometheus reads, with timings of our own or the SDK's, and its scrape.
func measured(t testing.TB, own bool) (*Telemetry, func(accept string) string) {
	t.Helper()
	registry, timings := prometheus.NewRegistry(), (*Timings)(nil)
	options := []otelprometheus.Option{otelprometheus.WithRegisterer(registry)}
	if own {
		timings = NewTimings("test")
		options = append(options, otelprometheus.WithProducer(timings))
	}
	reader, err := otelprometheus.New(options...)
	if err != nil {
		t.Fatal(err)
	}
	telemetry, err := NewTelemetry(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test"), nil, timings)
	if err != nil {
		t.Fatal(err)
	}
	return telemetry, func(accept string) string {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept", accept)
		promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}).ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			t.Fatal(w.Code, w.Body)
		}
		return w.Body.String()
	}
}

// finish has t measure a request that took so long; toFirstByte is negative where no backend answered.
func (t *Telemetry) finish(operation, backend string, status int, took, toFirstByte time.Duration) {
	start := time.Unix(1e9, 0)
	c := &call{proxy: &Proxy{Config: Config{Telemetry: t}}, start: start,
		event: &audit.Event{Operation: operation, Outcome: audit.Completed, Status: status, Backend: audit.Backend{Name: backend}}}
	if toFirstByte >= 0 {
		c.firstByte = start.Add(toFirstByte)
	}
	t.finished(c, took)
}

// What Prometheus gets is what it gets from the SDK, byte for byte.
func TestTimingsAreTheSDKs(t *testing.T) {
	own, scrapeOwn := measured(t, true)
	sdk, scrapeSDK := measured(t, false)
	compare := func() {
		t.Helper()
		for _, accept := range []string{"text/plain", "application/openmetrics-text"} {
			if got, want := scrapeOwn(accept), scrapeSDK(accept); got != want {
				t.Errorf("%s\ngot:\n%s\nwant:\n%s", accept, got, want)
			}
		}
	}
	compare()
	both := func(operation, backend string, status int, took, toFirstByte time.Duration) {
		own.finish(operation, backend, status, took, toFirstByte)
		sdk.finish(operation, backend, status, took, toFirstByte)
	}
	both("GetObject", "", 403, 0, -1)
	compare() // nothing came of a backend
	for _, bound := range inBounds {
		// Each in a series of its own: of sums, the last digit is another where terms are added in another order.
		exactly := time.Duration(bound * 1e9)
		both("at "+exactly.String(), "main", 200, exactly, exactly)
		both("over "+exactly.String(), "main", 200, exactly+1, exactly-1)
	}
	both("", "", 400, time.Hour, -1)
	compare()
	for range 1000 {
		took := time.Duration(rand.N(400*512)) * time.Second / 512
		both([]string{"GetObject", "PutObject", ""}[rand.N(3)], []string{"a", "b"}[rand.N(2)], 200+100*rand.N(4), took, (took / 2).Truncate(time.Second/512))
	}
	compare()
	if text := scrapeOwn("text/plain"); strings.Count(text, "_bucket{") < 100 {
		t.Errorf("there is little to compare:\n%s", text)
	}
}

// A scrape meanwhile sees whole requests: as many as its sum tells.
func TestTimingsWhileTheyAreRead(t *testing.T) {
	own, _ := measured(t, true)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 2000 {
				own.finish("GetObject", "main", 200, time.Second, 2*time.Second)
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for last := false; !last; {
		select {
		case <-done:
			last = true
		default:
		}
		produced, err := own.timings.Produce(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range produced[0].Metrics {
			p := m.Data.(metricdata.Histogram[float64]).DataPoints[0]
			if p.Sum != float64(p.Count)*float64(i+1) || last && p.Count != 8000 {
				t.Fatalf("%s: %d requests took %v s", m.Name, p.Count, p.Sum)
			}
		}
	}
}

func BenchmarkFinished(b *testing.B) {
	for name, own := range map[string]bool{"own": true, "sdk": false} {
		b.Run(name, func(b *testing.B) {
			telemetry, _ := measured(b, own)
			c := &call{proxy: &Proxy{Config: Config{Telemetry: telemetry}}, start: time.Unix(1e9, 0), firstByte: time.Unix(1e9, 1e6),
				event: &audit.Event{Operation: "GetObject", Outcome: audit.Completed, Status: 200, Backend: audit.Backend{Name: "main"}}}
			b.ReportAllocs()
			for b.Loop() {
				telemetry.finished(c, 2*time.Millisecond)
			}
		})
	}
}
