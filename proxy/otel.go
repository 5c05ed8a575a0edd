package proxy

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
)

// Names of what is measured. Dashboards and alerts are written against them.
const (
	MetricRequests   = "sluice.requests"           // by operation, outcome, backend, status class
	MetricDuration   = "sluice.request.duration"   // seconds, the whole request
	MetricFirstByte  = "sluice.request.first_byte" // seconds until the backend's answer began
	MetricBytes      = "sluice.bytes"              // of bodies, by direction
	MetricDecisions  = "sluice.policy.decisions"   // by result, and whether the shadow differs
	MetricInFlight   = "sluice.requests.in_flight"
	MetricUnrecorded = "sluice.requests.unrecorded" // refused for want of room in the audit log
)

// telemetry holds the instruments and, so that no request builds them, the attribute sets.
type telemetry struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator

	requests, decisions, bytes, unrecordedCount metric.Int64Counter
	duration, toFirstByte                       metric.Float64Histogram
	inFlight                                    metric.Int64UpDownCounter

	sets sync.Map // setKey → metric.MeasurementOption; bounded by the operation table
}

type setKey struct {
	operation, outcome, backend string
	status                      int
}

var inSeconds = metric.WithUnit("s")

func newTelemetry(meter metric.Meter, tracer trace.Tracer) (*telemetry, error) {
	if meter == nil {
		meter = metricnoop.Meter{}
	}
	if tracer == nil {
		tracer = tracenoop.Tracer{}
	}
	t := &telemetry{tracer: tracer, propagator: propagation.TraceContext{}}
	buckets := metric.WithExplicitBucketBoundaries(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300)
	var failed error
	keep := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	var err error
	t.requests, err = meter.Int64Counter(MetricRequests, metric.WithDescription("Requests on the S3 listener."), metric.WithUnit("{request}"))
	keep(err)
	t.decisions, err = meter.Int64Counter(MetricDecisions, metric.WithDescription("Policy decisions."), metric.WithUnit("{decision}"))
	keep(err)
	t.bytes, err = meter.Int64Counter(MetricBytes, metric.WithDescription("Bytes of bodies passed through."), metric.WithUnit("By"))
	keep(err)
	t.unrecordedCount, err = meter.Int64Counter(MetricUnrecorded, metric.WithDescription("Requests refused because no audit event could be reserved."), metric.WithUnit("{request}"))
	keep(err)
	t.duration, err = meter.Float64Histogram(MetricDuration, metric.WithDescription("Time from a request's first to its last byte."), inSeconds, buckets)
	keep(err)
	t.toFirstByte, err = meter.Float64Histogram(MetricFirstByte, metric.WithDescription("Time until the backend's answer began."), inSeconds, buckets)
	keep(err)
	t.inFlight, err = meter.Int64UpDownCounter(MetricInFlight, metric.WithDescription("Requests being served."), metric.WithUnit("{request}"))
	keep(err)
	if failed != nil {
		return nil, fmt.Errorf("make instruments: %w", failed)
	}
	return t, nil
}

var (
	directionIn  = metric.WithAttributeSet(attribute.NewSet(attribute.String("direction", "in")))
	directionOut = metric.WithAttributeSet(attribute.NewSet(attribute.String("direction", "out")))
)

func (t *telemetry) unrecorded(ctx context.Context) { t.unrecordedCount.Add(ctx, 1) }

func (t *telemetry) decided(ctx context.Context, d *policy.Decision) {
	key := setKey{operation: "decision", outcome: "refused"}
	if d.Allow {
		key.outcome = "allowed"
	}
	if d.Shadow != nil && d.Shadow.Differs {
		key.backend = "differs"
	}
	set, ok := t.sets.Load(key)
	if !ok {
		set, _ = t.sets.LoadOrStore(key, metric.WithAttributeSet(attribute.NewSet(
			attribute.String("result", key.outcome), attribute.Bool("shadow_differs", key.backend != ""))))
	}
	t.decisions.Add(ctx, 1, set.(metric.MeasurementOption))
}

func (t *telemetry) finished(c *call, took time.Duration) {
	ctx := context.WithoutCancel(c.ctx)
	key := setKey{c.event.Operation, string(c.event.Outcome), c.event.Backend.Name, c.event.Status / 100}
	loaded, ok := t.sets.Load(key)
	if !ok {
		loaded, _ = t.sets.LoadOrStore(key, metric.WithAttributeSet(attribute.NewSet(
			attribute.String("rpc.method", key.operation), attribute.String("outcome", key.outcome),
			attribute.String("backend", key.backend), attribute.String("status", fmt.Sprintf("%dxx", key.status)))))
	}
	set := loaded.(metric.MeasurementOption)
	t.requests.Add(ctx, 1, set)
	t.duration.Record(ctx, took.Seconds(), set)
	if !c.firstByte.IsZero() {
		t.toFirstByte.Record(ctx, c.firstByte.Sub(c.start).Seconds(), set)
	}
	if c.event.BytesIn > 0 {
		t.bytes.Add(ctx, c.event.BytesIn, directionIn)
	}
	if c.event.BytesOut > 0 {
		t.bytes.Add(ctx, c.event.BytesOut, directionOut)
	}
	t.inFlight.Add(ctx, -1)
	if span := trace.SpanFromContext(c.ctx); span.IsRecording() {
		span.SetName("S3." + c.event.Operation)
		span.SetAttributes(
			attribute.String("rpc.system", "aws-api"), attribute.String("rpc.service", "S3"), attribute.String("rpc.method", c.event.Operation),
			attribute.String("aws.s3.bucket", c.event.Bucket), attribute.String("aws.s3.key", c.event.Key),
			attribute.Int("http.response.status_code", c.event.Status), attribute.String("http.request.method", c.in.Method),
			attribute.String("client.address", c.event.SourceIP), attribute.String("user_agent.original", c.event.UserAgent),
			attribute.String("sluice.request_id", c.event.ID), attribute.String("sluice.outcome", string(c.event.Outcome)),
			attribute.String("sluice.backend", c.event.Backend.Name), attribute.String("enduser.id", c.event.Identity.Subject),
		)
		if c.event.Outcome == audit.Failed {
			span.SetStatus(codes.Error, c.event.Error)
		}
		span.End()
	}
}

// startSpan continues the caller's trace, or begins one.
func (c *call) startSpan() {
	t := c.proxy.telemetry
	t.inFlight.Add(c.ctx, 1)
	if _, off := t.tracer.(tracenoop.Tracer); off {
		return
	}
	ctx := t.propagator.Extract(c.ctx, propagation.HeaderCarrier(c.in.Header))
	ctx, span := t.tracer.Start(ctx, "S3", trace.WithSpanKind(trace.SpanKindServer))
	c.ctx = ctx
	if id := span.SpanContext().TraceID(); id.IsValid() {
		c.event.TraceID = id.String()
	}
}

// span times one step where the request is sampled, and costs nothing where it is not.
func (c *call) span(name string) (context.Context, func(error)) {
	if !trace.SpanFromContext(c.ctx).IsRecording() {
		return c.ctx, func(error) {}
	}
	ctx, span := c.proxy.telemetry.tracer.Start(c.ctx, name)
	return ctx, func(err error) {
		if err != nil {
			e, _ := translate(err)
			span.SetStatus(codes.Error, e.Code) // the code alone: messages are for the caller
		}
		span.End()
	}
}

// propagate sends the trace on to a backend that asked for it.
func (c *call) propagate(h http.Header) {
	c.proxy.telemetry.propagator.Inject(c.ctx, propagation.HeaderCarrier(h))
}
