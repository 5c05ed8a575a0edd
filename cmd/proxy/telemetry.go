package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/trace"
)

// telemetry is the OpenTelemetry SDK of the process.
type telemetry struct {
	registry *prometheus.Registry
	metrics  *sdkmetric.MeterProvider
}

func startTelemetry(ctx context.Context, c Telemetry) (*telemetry, error) {
	t := &telemetry{registry: prometheus.NewRegistry()}
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reader, err := otelprometheus.New(otelprometheus.WithRegisterer(t.registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return nil, err
	}
	t.metrics = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader),
		sdkmetric.WithResource(resource.NewSchemaless(attribute.String("service.name", c.ServiceName))))
	return t, nil
}

func (t *telemetry) meter(name string) metric.Meter {
	return t.metrics.Meter("github.com/sluice-s3/sluice/" + name)
}

func (t *telemetry) tracer() trace.Tracer { return nil }

// scrape is what Prometheus pulls.
func (t *telemetry) scrape() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

func (t *telemetry) shutdown(ctx context.Context) { _ = t.metrics.Shutdown(ctx) }

// observe reports the state of the parts in force whenever metrics are read.
func (t *telemetry) observe(s *server) error {
	meter := t.meter("cmd/proxy")
	age, err := meter.Float64ObservableGauge("sluice.policy.age", metric.WithUnit("s"), metric.WithDescription("Time since the policy in force was loaded."))
	if err != nil {
		return err
	}
	stale, err := meter.Int64ObservableGauge("sluice.policy.stale", metric.WithDescription("1 while a newer policy could not be loaded."))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		status := s.current.Load().policy.Status()
		o.ObserveFloat64(age, sinceSeconds(status.Loaded))
		bad := int64(0)
		if status.Err != nil {
			bad = 1
		}
		o.ObserveInt64(stale, bad)
		return nil
	}, age, stale)
	return err
}

// newLogger is the operator's log.
func newLogger(c Log, to io.Writer, _ *telemetry) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // checked with the configuration
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(to, options))
	}
	return slog.New(slog.NewJSONHandler(to, options))
}
