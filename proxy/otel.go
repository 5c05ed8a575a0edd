package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
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
	MetricCrowded    = "sluice.requests.crowded"    // refused because there were Limits.MaxInFlight others
	MetricLimited    = "sluice.requests.limited"    // refused because their session was over its limits
)

// Telemetry is what the requests of one process, over all its reloads, say of themselves. What is only counted is counted
// here, and told when somebody reads it: an instrument's own Add costs more than the request's parsing.
type Telemetry struct {
	tracer     trace.Tracer // nil = off
	propagator propagation.TextMapPropagator

	timings               *Timings                // nil = the two below
	duration, toFirstByte metric.Float64Histogram // these have exemplars

	inFlight, bytesIn, bytesOut, unrecorded, crowded, limited atomic.Int64

	decisions [2][2]atomic.Int64 // by whether policy allowed, and the shadow differs

	// What it and the exporters hold is bounded by the table of operations and by the configuration: nothing that a
	// caller can make up is ever a label.
	requests atomic.Pointer[map[requestKind]*counted] // replaced when there is one more
	adding   sync.Mutex
}

// counted is one kind of request, with the attributes that tell it from others, made once.
type counted struct {
	n      atomic.Int64
	set    attribute.Set
	timing *timing // nil = record
	record []metric.RecordOption
}

type requestKind struct {
	operation, outcome, backend string
	status                      int // its class
}

func (k requestKind) attributes() attribute.Set {
	return attribute.NewSet(attribute.String("operation", k.operation), attribute.String("outcome", k.outcome),
		attribute.String("backend", k.backend), attribute.String("status", fmt.Sprintf("%dxx", k.status)))
}

// of is what counts k.
func (t *Telemetry) of(k requestKind) *counted {
	if c := (*t.requests.Load())[k]; c != nil {
		return c
	}
	t.adding.Lock()
	defer t.adding.Unlock()
	known := *t.requests.Load()
	c := known[k]
	if c == nil {
		c = &counted{set: k.attributes()}
		if t.timings != nil {
			c.timing = t.timings.of(c.set)
		} else {
			c.record = []metric.RecordOption{metric.WithAttributeSet(c.set)}
		}
		grown := maps.Clone(known)
		grown[k] = c
		t.requests.Store(&grown)
	}
	return c
}

const (
	aboutDuration  = "Time from a request's first to its last byte."
	aboutFirstByte = "Time until the backend's answer began."
)

// NewTelemetry makes the instruments. Without a meter nothing is measured, without a tracer nothing traced. timings, where
// it is set, takes the place of the meter's histograms; a Reader of the meter's MUST have it for a Producer.
func NewTelemetry(meter metric.Meter, tracer trace.Tracer, timings *Timings) (*Telemetry, error) {
	if meter == nil {
		meter = metricnoop.Meter{}
	}
	if _, off := tracer.(tracenoop.Tracer); off {
		tracer = nil
	}
	t := &Telemetry{tracer: tracer, propagator: propagation.TraceContext{}, timings: timings}
	t.requests.Store(&map[requestKind]*counted{})
	var errs [10]error
	if timings == nil {
		inSeconds, buckets := metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(inBounds[:]...)
		t.duration, errs[0] = meter.Float64Histogram(MetricDuration, metric.WithDescription(aboutDuration), inSeconds, buckets)
		t.toFirstByte, errs[1] = meter.Float64Histogram(MetricFirstByte, metric.WithDescription(aboutFirstByte), inSeconds, buckets)
	}
	requests, err := meter.Int64ObservableCounter(MetricRequests, metric.WithDescription("Requests on the S3 listener."), metric.WithUnit("{request}"))
	errs[2] = err
	decisions, err := meter.Int64ObservableCounter(MetricDecisions, metric.WithDescription("Policy decisions."), metric.WithUnit("{decision}"))
	errs[3] = err
	bytes, err := meter.Int64ObservableCounter(MetricBytes, metric.WithDescription("Bytes of bodies passed through."), metric.WithUnit("By"))
	errs[4] = err
	unrecorded, err := meter.Int64ObservableCounter(MetricUnrecorded, metric.WithDescription("Requests refused because no audit event could be reserved."), metric.WithUnit("{request}"))
	errs[5] = err
	limited, err := meter.Int64ObservableCounter(MetricLimited, metric.WithDescription("Requests refused because their session was over its limits."), metric.WithUnit("{request}"))
	errs[6] = err
	inFlight, err := meter.Int64ObservableUpDownCounter(MetricInFlight, metric.WithDescription("Requests being served."), metric.WithUnit("{request}"))
	errs[7] = err
	crowded, err := meter.Int64ObservableCounter(MetricCrowded, metric.WithDescription("Requests refused because as many as may be were in flight."), metric.WithUnit("{request}"))
	errs[8] = err
	in := metric.WithAttributeSet(attribute.NewSet(attribute.String("direction", "in")))
	out := metric.WithAttributeSet(attribute.NewSet(attribute.String("direction", "out")))
	_, errs[9] = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, c := range *t.requests.Load() {
			o.ObserveInt64(requests, c.n.Load(), metric.WithAttributeSet(c.set))
		}
		for allowed, result := range [...]string{"refused", "allowed"} {
			for differs := range t.decisions[allowed] {
				if n := t.decisions[allowed][differs].Load(); n > 0 {
					o.ObserveInt64(decisions, n, metric.WithAttributes(attribute.String("result", result), attribute.Bool("shadow_differs", differs == 1)))
				}
			}
		}
		o.ObserveInt64(bytes, t.bytesIn.Load(), in)
		o.ObserveInt64(bytes, t.bytesOut.Load(), out)
		o.ObserveInt64(unrecorded, t.unrecorded.Load()) // what is alerted on is there before it first happens
		o.ObserveInt64(crowded, t.crowded.Load())
		o.ObserveInt64(limited, t.limited.Load())
		o.ObserveInt64(inFlight, t.inFlight.Load())
		return nil
	}, requests, decisions, bytes, unrecorded, crowded, limited, inFlight)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make instruments: %w", err)
	}
	return t, nil
}

func (t *Telemetry) decided(d *policy.Decision) {
	allowed, differs := 0, 0
	if d.Allow {
		allowed = 1
	}
	if d.Shadow != nil && d.Shadow.Differs {
		differs = 1
	}
	t.decisions[allowed][differs].Add(1)
}

func (t *Telemetry) finished(c *call, took time.Duration) {
	span := c.recorded()
	kind := t.of(requestKind{orOther(c.event.Operation), string(c.event.Outcome), c.event.Backend.Name, c.event.Status / 100})
	kind.n.Add(1)
	toFirstByte := -1. // none came
	if !c.firstByte.IsZero() {
		toFirstByte = max(0, c.firstByte.Sub(c.start).Seconds())
	}
	if kind.timing != nil {
		kind.timing.add(took.Seconds(), toFirstByte)
	} else {
		t.record(span, kind, took.Seconds(), toFirstByte)
	}
	t.bytesIn.Add(c.event.BytesIn)
	t.bytesOut.Add(c.event.BytesOut)
	if c.event.Outcome == audit.Refused && c.event.Error == "SlowDown" && c.proof != nil {
		t.limited.Add(1)
	}
	t.inFlight.Add(-1)
	if span != nil {
		c.describe(span)
		span.End()
	}
}

// record has the SDK keep the times, with the request's trace where it is seen.
func (t *Telemetry) record(span trace.Span, kind *counted, took, toFirstByte float64) {
	ctx := context.Background() // the request's may have ended, and costs a walk for each measurement
	if span != nil {
		ctx = trace.ContextWithSpan(ctx, span)
	}
	t.duration.Record(ctx, took, kind.record...)
	if toFirstByte >= 0 {
		t.toFirstByte.Record(ctx, toFirstByte, kind.record...)
	}
}

// recorded is the request's span where somebody will see it, and nil elsewhere.
func (c *call) recorded() trace.Span {
	if c.proxy.Telemetry.tracer == nil {
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
// taken: tracestate is text that anybody may make up, and would go on to backends. Where nothing is traced here, the event
// still tells the caller's trace.
func (c *call) startSpan() {
	t := c.proxy.Telemetry
	var from trace.SpanContext
	if len(c.in.Header["Traceparent"]) == 1 {
		from = trace.SpanContextFromContext(t.propagator.Extract(context.Background(), propagation.HeaderCarrier(c.in.Header)))
	}
	if t.tracer == nil {
		if from.IsValid() {
			c.event.TraceID = from.TraceID().String()
		}
		return
	}
	ctx := c.ctx
	if from.IsValid() {
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
	ctx, span := c.proxy.Telemetry.tracer.Start(c.ctx, name, trace.WithSpanKind(kind))
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
	c.proxy.Telemetry.propagator.Inject(c.ctx, propagation.HeaderCarrier(h))
}
