package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-s3/sluice/proxy"
)

// telemetry is the OpenTelemetry SDK of the process. Metrics can always be pulled; traces and logs are made only where
// they are sent somewhere, so that requests do not pay for what nobody sees.
type telemetry struct {
	registry *prometheus.Registry
	timings  *proxy.Timings // nil = the SDK's
	metrics  *sdkmetric.MeterProvider
	traces   *sdktrace.TracerProvider // nil = not exported
	logs     *sdklog.LoggerProvider   // nil = not exported

	refreshes   metric.Int64Counter
	refreshTime metric.Float64Histogram
}

const scope = "github.com/sluice-s3/sluice/"

func startTelemetry(ctx context.Context, c Telemetry) (_ *telemetry, err error) {
	t := &telemetry{registry: prometheus.NewRegistry()}
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	defer func() {
		if err != nil {
			t.shutdown(ctx)
		}
	}()
	about, err := describeProcess(ctx, c)
	if err != nil {
		return nil, err
	}
	options := []otelprometheus.Option{otelprometheus.WithRegisterer(t.registry), otelprometheus.WithoutScopeInfo()}
	if !c.exports("METRICS") && !c.exports("TRACES") && os.Getenv("OTEL_METRICS_EXEMPLAR_FILTER") == "" {
		t.timings = proxy.NewTimings(scope + "proxy")
		options = append(options, otelprometheus.WithProducer(t.timings))
	}
	pulled, err := otelprometheus.New(options...)
	if err != nil {
		return nil, err
	}
	metrics := []sdkmetric.Option{sdkmetric.WithReader(pulled), sdkmetric.WithResource(about)}
	if c.exports("METRICS") {
		reader, err := autoexport.NewMetricReader(ctx, fallbackTo(c, autoexport.WithFallbackMetricReader, func(ctx context.Context) (sdkmetric.Reader, error) {
			e, err := otlpmetrichttp.New(ctx, otlpmetrichttp.WithEndpointURL(c.OTLP.url("v1/metrics")))
			if err != nil {
				return nil, err
			}
			return sdkmetric.NewPeriodicReader(e), nil // every OTEL_METRIC_EXPORT_INTERVAL
		})...)
		if err != nil {
			return nil, err
		}
		metrics = append(metrics, sdkmetric.WithReader(reader))
	}
	t.metrics = sdkmetric.NewMeterProvider(metrics...)

	if c.exports("TRACES") {
		exporter, err := autoexport.NewSpanExporter(ctx, fallbackTo(c, autoexport.WithFallbackSpanExporter, func(ctx context.Context) (sdktrace.SpanExporter, error) {
			return otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(c.OTLP.url("v1/traces")))
		})...)
		if err != nil {
			return nil, err
		}
		if !autoexport.IsNoneSpanExporter(exporter) {
			options := []sdktrace.TracerProviderOption{sdktrace.WithBatcher(exporter), sdktrace.WithResource(about)}
			if os.Getenv("OTEL_TRACES_SAMPLER") == "" {
				options = append(options, sdktrace.WithSampler(sampler()))
			}
			t.traces = sdktrace.NewTracerProvider(options...)
		}
	}
	if c.exports("LOGS") {
		exporter, err := autoexport.NewLogExporter(ctx, fallbackTo(c, autoexport.WithFallbackLogExporter, func(ctx context.Context) (sdklog.Exporter, error) {
			return otlploghttp.New(ctx, otlploghttp.WithEndpointURL(c.OTLP.url("v1/logs")))
		})...)
		if err != nil {
			return nil, err
		}
		if !autoexport.IsNoneLogExporter(exporter) {
			t.logs = sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(exporter)), sdklog.WithResource(about))
		}
	}
	return t, t.instruments()
}

// exports says whether a signal is sent somewhere: by the configuration, or by OpenTelemetry's own variables.
func (c Telemetry) exports(signal string) bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	if c.OTLP.Endpoint != "" {
		return true
	}
	for _, name := range []string{"OTEL_" + signal + "_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT"} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return false
}

// fallbackTo sends to the configuration's endpoint where OTEL_…_EXPORTER does not say otherwise. Without an endpoint the
// variables say everything.
func fallbackTo[O, E any](c Telemetry, option func(func(context.Context) (E, error)) O, exporter func(context.Context) (E, error)) []O {
	if c.OTLP.Endpoint == "" {
		return nil
	}
	return []O{option(exporter)}
}

// url is where one signal goes. The endpoint is the receiver's, without a signal's path, as in OTEL_EXPORTER_OTLP_ENDPOINT.
func (o OTLP) url(path string) string {
	u, err := url.JoinPath(o.Endpoint, path)
	if err != nil {
		return o.Endpoint // checked with the configuration
	}
	return u
}

// sampler records every trace. That a caller asks for its own to be recorded, or not, decides nothing: who wants
// fewer sets OTEL_TRACES_SAMPLER.
func sampler() sdktrace.Sampler {
	always := sdktrace.AlwaysSample()
	return sdktrace.ParentBased(always, sdktrace.WithRemoteParentSampled(always), sdktrace.WithRemoteParentNotSampled(always))
}

// describeProcess says who sends. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word.
func describeProcess(ctx context.Context, c Telemetry) (*resource.Resource, error) {
	v, commit, _ := buildInfo()
	return resource.New(ctx,
		resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", c.ServiceName), attribute.String("service.version", v), attribute.String("vcs.ref.head.revision", commit)),
		resource.WithFromEnv(),
	)
}

func (t *telemetry) meter(name string) metric.Meter { return t.metrics.Meter(scope + name) }

// tracer is nil where traces go nowhere.
func (t *telemetry) tracer() trace.Tracer {
	if t.traces == nil {
		return nil
	}
	return t.traces.Tracer(scope + "proxy")
}

// scrape is what Prometheus pulls. Exemplars come with OpenMetrics.
func (t *telemetry) scrape() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// shutdown sends what has not been sent.
func (t *telemetry) shutdown(ctx context.Context) {
	if t.traces != nil {
		_ = t.traces.Shutdown(ctx)
	}
	if t.metrics != nil {
		_ = t.metrics.Shutdown(ctx)
	}
	if t.logs != nil {
		_ = t.logs.Shutdown(ctx)
	}
}

// newLogger is the operator's log: on to, and wherever telemetry sends logs.
func newLogger(c Log, to io.Writer, t *telemetry) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // checked with the configuration
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewJSONHandler(to, options)
	if c.Format == "text" {
		handler = slog.NewTextHandler(to, options)
	}
	if t == nil {
		return slog.New(handler)
	}
	reportFailures(slog.New(handler))
	if t.logs != nil {
		sent := otelslog.NewHandler(scope+"cmd/proxy", otelslog.WithLoggerProvider(t.logs))
		handler = slog.NewMultiHandler(handler, atLeast{sent, level})
	}
	return slog.New(handler)
}

// reportFailures tells once a minute that telemetry cannot be sent. Not by telemetry.
func reportFailures(log *slog.Logger) {
	var last atomic.Int64
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		now := time.Now().Unix()
		if then := last.Load(); now-then >= 60 && last.CompareAndSwap(then, now) {
			log.Warn("telemetry", slog.Any("error", err))
		}
	}))
}

// atLeast is a handler for records from a level on.
type atLeast struct {
	slog.Handler
	level slog.Level
}

func (h atLeast) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.level && h.Handler.Enabled(ctx, level)
}

func (h atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeast{h.Handler.WithAttrs(attrs), h.level}
}

func (h atLeast) WithGroup(name string) slog.Handler {
	return atLeast{h.Handler.WithGroup(name), h.level}
}
