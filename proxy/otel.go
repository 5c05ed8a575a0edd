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

// Names of what is measured. Dashboards and alerts are written against them; docs/telemetry.md lists them.
const (
	MetricRequests   = "sluice.requests"           // by operation, outcome, backend, status class
	MetricDuration   = "sluice.request.duration"   // seconds, the whole request
	MetricFirstByte  = "sluice.request.first_byte" // seconds until the backend's answer began
	MetricBytes      = "sluice.bytes"              // of bodies, by direction
	MetricDecisions  = "sluice.policy.decisions"   // by result, and whether the shadow differs
	MetricInFlight   = "sluice.requests.in_flight"
	MetricUnrecorded = "sluice.requests.unrecorded" // refused for want of room in the audit log
	MetricLimited    = "sluice.requests.limited"    // refused because their session was over its limits
)

// telemetry holds the instruments and, so that no request builds them, the attribute sets.
type telemetry struct {
	tracer     trace.Tracer // nil = off
	propagator propagation.TextMapPropagator

	requests, decisions, bytes, unrecordedCount, limited metric.Int64Counter
	duration, toFirstByte                                metric.Float64Histogram
	inFlight                                             metric.Int64UpDownCounter

	// setKey → metric.MeasurementOption. What it and the exporters hold is bounded by the table of operations and by
	// the configuration: nothing that a caller can make up is ever a label.
	mu   sync.RWMutex         // guards sets
	sets map[setKey]*measured // bounded by the operation table
}

// measured is a set of attributes as each kind of instrument takes it.
type measured struct {
	add    []metric.AddOption
	record []metric.RecordOption
}

func measuredBy(attributes ...attribute.KeyValue) *measured {
	set := metric.WithAttributeSet(attribute.NewSet(attributes...))
	return &measured{[]metric.AddOption{set}, []metric.RecordOption{set}}
}

// measured is what key stands for, made once.
func (t *telemetry) measured(key setKey, attributes func() []attribute.KeyValue) *measured {
	t.mu.RLock()
	m := t.sets[key]
	t.mu.RUnlock()
	if m == nil {
		m = measuredBy(attributes()...)
		t.mu.Lock()
		t.sets[key] = m
		t.mu.Unlock()
	}
	return m
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
	if _, off := tracer.(tracenoop.Tracer); off {
		tracer = nil
	}
	t := &telemetry{sets: map[setKey]*measured{}, tracer: tracer, propagator: propagation.TraceContext{}}
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
	t.limited, err = meter.Int64Counter(MetricLimited, metric.WithDescription("Requests refused because their session was over its limits."), metric.WithUnit("{request}"))
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
	// What is alerted on is there before it first happens.
	t.unrecordedCount.Add(context.Background(), 0)
	t.limited.Add(context.Background(), 0)
	return t, nil
}

var (
	directionIn  = measuredBy(attribute.String("direction", "in"))
	directionOut = measuredBy(attribute.String("direction", "out"))
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
	set := t.measured(key, func() []attribute.KeyValue {
		return []attribute.KeyValue{attribute.String("result", key.outcome), attribute.Bool("shadow_differs", key.backend != "")}
	})
	t.decisions.Add(ctx, 1, set.add...)
}

func (t *telemetry) finished(c *call, took time.Duration) {
	ctx := context.Background() // the request's may have ended, and costs a walk for each measurement
	span := c.recorded()
	if span != nil {
		ctx = trace.ContextWithSpan(ctx, span)
	}
	key := setKey{orOther(c.event.Operation), string(c.event.Outcome), c.event.Backend.Name, c.event.Status / 100}
	set := t.measured(key, func() []attribute.KeyValue {
		return []attribute.KeyValue{
			attribute.String("operation", key.operation), attribute.String("outcome", key.outcome),
			attribute.String("backend", key.backend), attribute.String("status", fmt.Sprintf("%dxx", key.status)),
		}
	})
	t.requests.Add(ctx, 1, set.add...)
	t.duration.Record(ctx, took.Seconds(), set.record...)
	if !c.firstByte.IsZero() {
		t.toFirstByte.Record(ctx, c.firstByte.Sub(c.start).Seconds(), set.record...)
	}
	if c.event.BytesIn > 0 {
		t.bytes.Add(ctx, c.event.BytesIn, directionIn.add...)
	}
	if c.event.BytesOut > 0 {
		t.bytes.Add(ctx, c.event.BytesOut, directionOut.add...)
	}
	if c.event.Outcome == audit.Refused && c.event.Error == "SlowDown" {
		t.limited.Add(ctx, 1)
	}
	t.inFlight.Add(ctx, -1)
	if span != nil {
		c.describe(span)
		span.End()
	}
}

// recorded is the request's span where somebody will see it, and nil elsewhere.
func (c *call) recorded() trace.Span {
	if c.proxy.telemetry.tracer == nil {
		return nil
	}
	if span := trace.SpanFromContext(c.ctx); span.IsRecording() {
		return span
	}
	return nil
}

// other is what OpenTelemetry calls a method that is not known.
const other = "_OTHER"

func orOther(operation string) string {
	if operation == "" {
		return other
	}
	return operation
}

// describe says on the span what the event says, by OpenTelemetry's semantic conventions (v1.43: http, rpc, aws). No
// path and no query: they hold keys and signatures. Keys and subjects only where the configuration asks for them, as
// traces are seen by other people than the audit log is.
func (c *call) describe(span trace.Span) {
	e := c.event
	span.SetName("S3/" + orOther(e.Operation))
	method := c.in.Method
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodOptions:
	default:
		method = other
	}
	list := append(make([]attribute.KeyValue, 0, 20),
		attribute.String("rpc.system.name", "aws-api"), attribute.String("rpc.method", "S3/"+orOther(e.Operation)),
		attribute.String("http.request.method", method), attribute.Int("http.response.status_code", e.Status),
		attribute.Int64("http.request.body.size", e.BytesIn), attribute.Int64("http.response.body.size", e.BytesOut),
		attribute.String("network.protocol.name", "http"), attribute.String("network.protocol.version", fmt.Sprintf("%d.%d", c.in.ProtoMajor, c.in.ProtoMinor)),
		attribute.String("client.address", e.SourceIP), attribute.String("user_agent.original", e.UserAgent),
		attribute.String("sluice.request_id", e.ID), attribute.String("sluice.outcome", string(e.Outcome)),
	)
	optional := func(name, value string) {
		if value != "" {
			list = append(list, attribute.String(name, value))
		}
	}
	optional("aws.s3.bucket", e.Bucket)
	optional("aws.request_id", e.Backend.RequestID)
	optional("sluice.backend", e.Backend.Name)
	optional("sluice.policy.revision", e.Decision.PolicyRevision)
	optional("error.type", e.Error)
	if c.proxy.TraceKeys {
		optional("aws.s3.key", e.Key)
	}
	if c.proxy.TraceSubjects {
		optional("enduser.id", e.Identity.Subject)
		optional("session.id", e.Identity.Session)
	}
	span.SetAttributes(list...)
	if e.Outcome == audit.Failed || e.Status >= 500 {
		span.SetStatus(codes.Error, e.Error)
	}
}

// startSpan continues the caller's trace, or begins one. Of the caller's context only the trace and the parent are
// taken: tracestate is text that anybody may make up, and would go on to backends.
func (c *call) startSpan() {
	t := c.proxy.telemetry
	t.inFlight.Add(context.Background(), 1)
	if t.tracer == nil {
		return
	}
	ctx := c.ctx
	if from := trace.SpanContextFromContext(t.propagator.Extract(context.Background(), propagation.HeaderCarrier(c.in.Header))); from.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, from.WithTraceState(trace.TraceState{}))
	}
	ctx, span := t.tracer.Start(ctx, "S3", trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(c.start))
	c.ctx = ctx
	if id := span.SpanContext().TraceID(); id.IsValid() {
		c.event.TraceID = id.String()
	}
}

// span times one step where the request is sampled, and costs nothing where it is not.
func (c *call) span(name string) (context.Context, func(error)) {
	if c.recorded() == nil {
		return c.ctx, func(error) {}
	}
	kind := trace.SpanKindInternal
	if name == "backend" {
		kind = trace.SpanKindClient
	}
	ctx, span := c.proxy.telemetry.tracer.Start(c.ctx, name, trace.WithSpanKind(kind))
	return ctx, func(err error) {
		if err != nil {
			e, _ := translate(err)
			span.SetStatus(codes.Error, e.Code) // the code alone: messages are for the caller
		}
		span.End()
	}
}

// propagate sends the trace on to a backend that asked for it. Where there is none, nothing of the caller's goes on.
func (c *call) propagate(h http.Header) {
	c.proxy.telemetry.propagator.Inject(c.ctx, propagation.HeaderCarrier(h))
}
