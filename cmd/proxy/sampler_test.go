package main

import (
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Whether requests are recorded is the operator's to say, and not each caller's.
func TestCallersDoNotDecideWhatIsSampled(t *testing.T) {
	for _, flags := range []trace.TraceFlags{0, trace.FlagsSampled} {
		caller := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: flags, Remote: true})
		ctx := trace.ContextWithRemoteSpanContext(t.Context(), caller)
		if got := sampler().ShouldSample(sdktrace.SamplingParameters{ParentContext: ctx, TraceID: caller.TraceID()}); got.Decision != sdktrace.RecordAndSample {
			t.Errorf("with flags %v: %v", flags, got.Decision)
		}
	}
}
