package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-s3/sluice/proxy"
)

// traced is a rig whose spans and metrics are kept.
func traced(t *testing.T, configure func(*proxy.Config)) (*rig, *tracetest.SpanRecorder, *sdkmetric.ManualReader) {
	t.Helper()
	spans, reader := tracetest.NewSpanRecorder(), sdkmetric.NewManualReader()
	r := newRig(t, rigOptions{configure: func(c *proxy.Config) {
		var err error
		if c.Telemetry, err = proxy.NewTelemetry(
			sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test"),
			sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test"), nil,
		); err != nil {
			t.Fatal(err)
		}
		if configure != nil {
			configure(c)
		}
	}})
	return r, spans, reader
}

const remoteParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestOneTraceARequest(t *testing.T) {
	r, spans, _ := traced(t, func(c *proxy.Config) { c.Backends[0].Propagate = true })
	request := r.request("PUT", "/artifacts/web/secret-name", strings.NewReader("hello"))
	request.Header.Set("Traceparent", remoteParent)
	request.Header.Set("Tracestate", "vendor=made-up-text")
	if response, body := r.do(request); response.StatusCode != 200 {
		t.Fatal(response.Status, body)
	}
	event := r.event()
	if event.TraceID != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("the event's trace is %q", event.TraceID)
	}

	var root sdktrace.ReadOnlySpan
	var steps []string
	for _, s := range spans.Ended() {
		if s.SpanContext().TraceID().String() != event.TraceID {
			t.Errorf("span %s is in trace %s", s.Name(), s.SpanContext().TraceID())
		}
		if s.SpanKind() == trace.SpanKindServer {
			root = s
		} else {
			steps = append(steps, s.Name())
		}
	}
	if want := []string{"parse", "authenticate", "decide", "credentials", "backend"}; !slices.Equal(steps, want) {
		t.Errorf("steps %q, want %q", steps, want)
	}
	if root == nil {
		t.Fatal("no span of the whole request")
	}
	if root.Name() != "S3/PutObject" || root.Parent().SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("root %q below %s", root.Name(), root.Parent().SpanID())
	}
	for _, s := range spans.Ended() {
		if s.SpanKind() != trace.SpanKindServer && s.Parent().SpanID() != root.SpanContext().SpanID() {
			t.Errorf("%s is not below the request", s.Name())
		}
	}
	told := attributes(root)
	for name, want := range map[string]string{
		"rpc.system.name": "aws-api", "rpc.method": "S3/PutObject", "http.request.method": "PUT", "http.response.status_code": "200",
		"aws.s3.bucket": "artifacts", "sluice.backend": "main", "sluice.outcome": "completed", "sluice.request_id": event.ID,
	} {
		if told[name] != want {
			t.Errorf("%s is %q, want %q", name, told[name], want)
		}
	}
	seen := fmt.Sprint(told)
	for _, never := range []string{"secret-name", "environment/env-1", r.token()} {
		if strings.Contains(seen, never) {
			t.Errorf("the span tells %q: %s", never, seen)
		}
	}

	got := r.backend.Last().Header
	if sent := got.Get("Traceparent"); !strings.HasPrefix(sent, "00-"+event.TraceID+"-") || strings.Contains(sent, "b7ad6b7169203331") {
		t.Errorf("the backend got traceparent %q", sent)
	}
	if sent := got.Get("Tracestate"); sent != "" {
		t.Errorf("the backend got the caller's tracestate %q", sent)
	}
}

func TestSpansTellKeysAndSubjectsWhereAsked(t *testing.T) {
	r, spans, _ := traced(t, func(c *proxy.Config) { c.TraceKeys, c.TraceSubjects = true, true })
	r.do(r.request("GET", "/artifacts/web/name", nil))
	r.event()
	all := spans.Ended()
	told := attributes(all[len(all)-1])
	if told["aws.s3.key"] != "web/name" || told["enduser.id"] != "environment/env-1" || told["session.id"] != "env-1" {
		t.Errorf("%v", told)
	}
}

func TestTraceContextStopsHere(t *testing.T) {
	for name, configure := range map[string]func(*proxy.Config){
		"not asked for": nil,
		"no tracing":    func(c *proxy.Config) { c.Telemetry = nil; c.Backends[0].Propagate = true },
	} {
		t.Run(name, func(t *testing.T) {
			r, _, _ := traced(t, configure)
			request := r.request("PUT", "/artifacts/web/x", strings.NewReader("hello"))
			request.Header.Set("Traceparent", remoteParent)
			request.Header.Set("Baggage", "a=b")
			r.do(request)
			if e := r.event(); e.TraceID != "0af7651916cd43dd8448eb211c80319c" {
				t.Errorf("the event's trace is %q", e.TraceID)
			}
			for _, h := range []string{"Traceparent", "Tracestate", "Baggage"} {
				if sent := r.backend.Last().Header.Get(h); sent != "" {
					t.Errorf("the backend got %s %q", h, sent)
				}
			}
		})
	}
}

// Nothing that a caller makes up may become a label: each value would be kept for good, here and in Prometheus.
func TestLabelsAreBounded(t *testing.T) {
	r, _, reader := traced(t, nil)
	send := func(n int) {
		for i := range n {
			made := fmt.Sprintf("%d-%d", i, rand.Int64())
			for _, target := range []string{"/b-" + made + "/k", "/artifacts/web/" + made, "/artifacts?" + made, "/artifacts/k?uploadId=" + made + "&acl", "/-/" + made} {
				r.do(r.request("GET", target, nil))
			}
			request := r.request("GET", "/artifacts/web/x", nil)
			request.Method = "M" + made
			request.Header.Set("User-Agent", made)
			request.Header.Set("Authorization", "Bearer "+r.token(map[string]any{"sub": made, "environment_id": made, "project_id": made}))
			r.do(request)
		}
		r.events(n * 6)
	}
	send(3)
	before := labels(t, reader)
	send(30)
	if after := labels(t, reader); !slices.Equal(before, after) {
		t.Errorf("labels grew from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

func TestLimitedRequestsAreCounted(t *testing.T) {
	r, _, reader := traced(t, func(c *proxy.Config) { c.Limits.RequestsPerSecond = .001 })
	r.do(r.request("GET", "/artifacts/web/x", nil))
	if response, _ := r.do(r.request("GET", "/artifacts/web/x", nil)); response.StatusCode != http.StatusServiceUnavailable {
		t.Fatal(response.Status)
	}
	r.events(2)
	if all := labels(t, reader); !slices.ContainsFunc(all, func(s string) bool { return strings.HasPrefix(s, proxy.MetricLimited) }) {
		t.Errorf("not counted: %q", all)
	}
}

func attributes(s sdktrace.ReadOnlySpan) map[string]string {
	m := map[string]string{}
	for _, a := range s.Attributes() {
		m[string(a.Key)] = a.Value.String()
	}
	return m
}

// labels is every metric with every set of labels that it has.
func labels(t *testing.T, reader *sdkmetric.ManualReader) (all []string) {
	t.Helper()
	var read metricdata.ResourceMetrics
	must(t, reader.Collect(t.Context(), &read))
	add := func(name string, set attribute.Set) { all = append(all, name+" "+fmt.Sprint(set.ToSlice())) }
	for _, scope := range read.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					add(m.Name, p.Attributes)
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					add(m.Name, p.Attributes)
				}
			default:
				t.Fatalf("%s is a %T", m.Name, data)
			}
		}
	}
	slices.Sort(all)
	return all
}
