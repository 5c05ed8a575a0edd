package audit_test

import (
	"context"
	"testing"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/audit/ship"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

func TestMetrics(t *testing.T) {
	log, _ := open(t, audit.Config{InFlight: 64, Ship: []audit.Ship{{Webhook: &ship.Webhook{URL: "http://127.0.0.1:1"}}}})
	reader := metric.NewManualReader()
	if err := log.Register(metric.NewMeterProvider(metric.WithReader(reader)).Meter("test")); err != nil {
		t.Fatal(err)
	}
	record(t, log, 10)
	eventually(t, "all is written", healthy(log))
	eventually(t, "the far end was tried", func() bool { return log.Stats().Ship[0].Failures > 0 })
	var data metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &data); err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, m := range data.ScopeMetrics[0].Metrics {
		switch d := m.Data.(type) {
		case metricdata.Sum[int64]:
			got[m.Name] = float64(d.DataPoints[0].Value)
		case metricdata.Gauge[float64]:
			got[m.Name] = d.DataPoints[0].Value
		}
	}
	for name, want := range map[string]float64{"sluice.audit.events": 10, "sluice.audit.healthy": 1, "sluice.audit.slots.free": 64, "sluice.audit.events.open": 0, "sluice.audit.ship.lag": 10, "sluice.audit.dropped": 0} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}
	if got["sluice.audit.ship.failures"] == 0 || len(got) != 18 {
		t.Errorf("%v", got)
	}
}
