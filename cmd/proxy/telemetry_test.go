package main_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	collectorlogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectormetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortraces "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/test/machine"
)

// receiver is an OpenTelemetry collector that keeps what it gets.
type receiver struct {
	URL string

	mu       sync.Mutex // guards all below
	raw      bytes.Buffer
	services []string // service.name of whoever sent
	spans    []string
	metrics  []string
	logs     []string
	headers  []http.Header
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		text, err := io.ReadAll(request.Body)
		if err != nil {
			return // whoever sent it was killed
		}
		if request.Header.Get("Content-Encoding") == "gzip" {
			var z *gzip.Reader
			if z, err = gzip.NewReader(bytes.NewReader(text)); err == nil {
				text, err = io.ReadAll(z)
			}
		}
		if err == nil {
			err = r.take(request.URL.Path, text)
			r.mu.Lock()
			r.headers = append(r.headers, request.Header)
			r.mu.Unlock()
		}
		if err != nil {
			t.Errorf("%s: %v", request.URL.Path, err)
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(server.Close)
	r.URL = server.URL
	return r
}

func (r *receiver) take(path string, text []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.raw.Write(text)
	service := func(attributes []*common.KeyValue) {
		for _, a := range attributes {
			if a.Key == "service.name" {
				r.services = append(r.services, a.Value.GetStringValue())
			}
		}
	}
	switch path {
	case "/v1/traces":
		var m collectortraces.ExportTraceServiceRequest
		if err := proto.Unmarshal(text, &m); err != nil {
			return err
		}
		for _, from := range m.ResourceSpans {
			service(from.Resource.Attributes)
			for _, scope := range from.ScopeSpans {
				for _, s := range scope.Spans {
					r.spans = append(r.spans, s.Name)
				}
			}
		}
	case "/v1/metrics":
		var m collectormetrics.ExportMetricsServiceRequest
		if err := proto.Unmarshal(text, &m); err != nil {
			return err
		}
		for _, from := range m.ResourceMetrics {
			service(from.Resource.Attributes)
			for _, scope := range from.ScopeMetrics {
				for _, s := range scope.Metrics {
					r.metrics = append(r.metrics, s.Name)
				}
			}
		}
	case "/v1/logs":
		var m collectorlogs.ExportLogsServiceRequest
		if err := proto.Unmarshal(text, &m); err != nil {
			return err
		}
		for _, from := range m.ResourceLogs {
			service(from.Resource.Attributes)
			for _, scope := range from.ScopeLogs {
				for _, s := range scope.LogRecords {
					r.logs = append(r.logs, s.Body.GetStringValue())
				}
			}
		}
	}
	return nil
}

// wait polls until good holds of what has come.
func (r *receiver) wait(t *testing.T, what string, good func() bool) {
	t.Helper()
	came := false
	defer func() {
		if !came {
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Logf("there are spans %q, metrics %q, logs %q", r.spans, r.metrics, r.logs)
		}
	}()
	machine.Until(t, what, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		came = good()
		return came
	})
}

func soon(t *testing.T) {
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
	t.Setenv("OTEL_BLRP_SCHEDULE_DELAY", "100")
}

func (r *rig) fetch(t *testing.T, token, target string) *http.Response {
	t.Helper()
	request, err := http.NewRequest("GET", r.proxy.URL+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := r.HTTPClient().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
	return response
}

func TestTelemetryIsSent(t *testing.T) {
	to := newReceiver(t)
	soon(t)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{
		"telemetry.otlp.endpoint": to.URL, "telemetry.service_name": "sluice-under-test", "log.level": "warn",
	}})
	token := r.Workspace("env-canary", "web", "dev@acme.com")
	r.fetch(t, token, "/artifacts/web/key-canary")
	event := r.event(t)
	if len(event.TraceID) != 32 {
		t.Errorf("the event's trace is %q", event.TraceID)
	}
	r.World.STS.Fail(world.STSFault{Broken: true})
	r.fetch(t, r.Workspace("env-2", "web2", "else@acme.com"), "/artifacts/web2/x")
	to.wait(t, "trace", func() bool { return slices.Contains(to.spans, "S3/GetObject") && slices.Contains(to.spans, "decide") })
	to.wait(t, "metric", func() bool {
		return slices.Contains(to.metrics, "sluice.requests") && slices.Contains(to.metrics, "sluice.policy.age")
	})
	to.wait(t, "log", func() bool { return slices.Contains(to.logs, "request failed") })
	if err := r.proxy.Stop(); err != nil {
		t.Error(err)
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	for _, s := range to.services {
		if s != "sluice-under-test" {
			t.Errorf("sent as service %q", s)
		}
	}
	if slices.Contains(to.logs, "serving") {
		t.Error("log.level does not hold for what is sent")
	}
	for _, never := range []string{token, strings.Split(token, ".")[2], "key-canary", "env-canary"} {
		if bytes.Contains(to.raw.Bytes(), []byte(never)) {
			t.Errorf("telemetry holds %q", never)
		}
	}
	if !bytes.Contains(to.raw.Bytes(), []byte("deployment.environment.name")) {
		t.Error("OTEL_RESOURCE_ATTRIBUTES is not honoured")
	}
}

func TestTelemetryByTheVariablesAlone(t *testing.T) {
	to := newReceiver(t)
	soon(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", to.URL)
	t.Setenv("OTEL_SERVICE_NAME", "by-variable")
	t.Setenv("OTEL_LOGS_EXPORTER", "none")
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	r.fetch(t, r.Workspace("env-1", "web", "dev@acme.com"), "/artifacts/web/x")
	r.event(t)
	to.wait(t, "trace", func() bool { return slices.Contains(to.spans, "S3/GetObject") })
	to.wait(t, "metric", func() bool { return slices.Contains(to.metrics, "sluice.requests") })
	if err := r.proxy.Stop(); err != nil {
		t.Error(err)
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	if len(to.logs) > 0 {
		t.Errorf("logs were sent: %q", to.logs)
	}
	if !slices.Contains(to.services, "by-variable") {
		t.Errorf("sent as %q", to.services)
	}
}

// TestTelemetryVariables: what else OpenTelemetry's variables promise, each by what the receiver sees of it.
func TestTelemetryVariables(t *testing.T) {
	for _, c := range []struct {
		name, variable, value    string
		header                   string // of every request
		spans, metrics, disabled bool
	}{
		{"headers", "OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret%20key", "secret key", true, true, false},
		{"no sampling", "OTEL_TRACES_SAMPLER", "always_off", "", false, true, false},
		{"no metrics", "OTEL_METRICS_EXPORTER", "none", "", true, false, false},
		{"disabled", "OTEL_SDK_DISABLED", "True", "", false, false, true}, // the specification's booleans have no case
	} {
		t.Run(c.name, func(t *testing.T) {
			to := newReceiver(t)
			soon(t)
			t.Setenv(c.variable, c.value)
			r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{"telemetry.otlp.endpoint": to.URL}})
			r.fetch(t, r.Workspace("env-1", "web", "dev@acme.com"), "/artifacts/web/x")
			r.event(t)
			if err := r.proxy.Stop(); err != nil { // which sends what has not been sent
				t.Error(err)
			}
			to.mu.Lock()
			defer to.mu.Unlock()
			if got := len(to.spans) > 0; got != c.spans {
				t.Errorf("spans %q", to.spans)
			}
			if got := len(to.metrics) > 0; got != c.metrics {
				t.Errorf("metrics %q", to.metrics)
			}
			if c.disabled && len(to.logs) > 0 {
				t.Errorf("logs %q", to.logs)
			}
			for _, h := range to.headers {
				if c.header != "" && h.Get("api-key") != c.header {
					t.Errorf("sent with the headers %v", h)
				}
			}
		})
	}
}

// TestTelemetryByGRPC: OTEL_EXPORTER_OTLP_PROTOCOL chooses how it is sent.
func TestTelemetryByGRPC(t *testing.T) {
	soon(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	spoken := make(chan string, 64)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			start := make([]byte, 16)
			n, _ := io.ReadFull(conn, start)
			conn.Close()
			select {
			case spoken <- string(start[:n]):
			default:
			}
		}
	}()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+listener.Addr().String())
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "500")
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	r.fetch(t, r.Workspace("env-1", "web", "dev@acme.com"), "/artifacts/web/x")
	r.event(t)
	select {
	case start := <-spoken:
		if !strings.HasPrefix(start, "PRI * HTTP/2.0") {
			t.Errorf("not gRPC: %q", start)
		}
	case <-time.After(machine.Patience):
		t.Error("nothing was sent")
	}
}

// TestEveryMetricNamedIsThere holds the documentation, the dashboard and the alert rules to what a running proxy
// answers to Prometheus.
func TestEveryMetricNamedIsThere(t *testing.T) {
	t.Parallel()
	to := newReceiver(t)
	r := newRig(t, world.Options{TLS: true}, world.ProxyOptions{TLS: true, Set: map[string]any{
		"telemetry.otlp.endpoint": to.URL, "limits.requests_per_second": .001,
		"audit.ship[0].otlp.endpoint": to.URL,
	}})
	r.fetch(t, r.Workspace("env-1", "web", "dev@acme.com"), "/artifacts/web/x")
	r.fetch(t, r.Workspace("env-1", "web", "dev@acme.com"), "/artifacts/web/x") // over its limit
	upload, err := http.NewRequest("PUT", r.proxy.URL+"/artifacts/web/y", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	upload.Header.Set("Authorization", "Bearer "+r.Workspace("env-3", "web", "dev@acme.com"))
	response, err := r.HTTPClient().Do(upload)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()

	if _, err := r.proxy.WaitEvents(t.Context(), 3); err != nil { // a request is measured before its event is written
		t.Fatal(err)
	}

	request, _ := http.NewRequest("GET", r.proxy.AdminURL+"/metrics", nil)
	request.Header.Set("Accept", "application/openmetrics-text")
	if response, err = http.DefaultClient.Do(request); err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	scrape, _ := io.ReadAll(response.Body)
	if !bytes.Contains(scrape, []byte(`# {span_id="`)) && !bytes.Contains(scrape, []byte(`# {trace_id="`)) {
		t.Error("no exemplars")
	}
	have := map[string]bool{}
	for line := range strings.Lines(string(scrape)) {
		if name := regexp.MustCompile(`^[a-z_]+`).FindString(line); name != "" {
			have[name] = true
		}
	}
	for _, never := range []string{"env-1", "dev@acme.com", "web/x"} {
		if bytes.Contains(scrape, []byte(never)) {
			t.Errorf("the metrics tell %q", never)
		}
	}

	named := map[string][]string{}
	for _, file := range []string{"docs/telemetry.md", "examples/grafana/dashboard.json", "examples/grafana/alerts.yaml"} {
		text, err := os.ReadFile(filepath.Join("..", "..", file))
		if err != nil {
			t.Fatal(err)
		}
		names := slices.Compact(slices.Sorted(slices.Values(regexp.MustCompile(`\bsluice_[a-z_]+`).FindAllString(string(text), -1))))
		if len(names) < 10 {
			t.Errorf("%s names %d metrics", file, len(names))
		}
		named[file] = names
		for _, name := range names {
			if !have[name] && !(file == "docs/telemetry.md" && have[name+"_bucket"]) {
				t.Errorf("%s: no metric %s in a scrape", file, name)
			}
		}
	}
	// And nothing is measured that is not documented.
	for name := range have {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if strings.HasPrefix(name, "sluice_") && !slices.Contains(named["docs/telemetry.md"], base) {
			t.Errorf("docs/telemetry.md does not have %s", base)
		}
	}
	if t.Failed() {
		t.Logf("%s", scrape)
	}
}

// TestMetricsArePulledAlike: what Prometheus sees of requests has the same names and labels whether they are sent elsewhere
// too or not, which decides who keeps them.
func TestMetricsArePulledAlike(t *testing.T) {
	to := newReceiver(t)
	scrape := func(set map[string]any) string {
		r := newRig(t, world.Options{}, world.ProxyOptions{Set: set})
		r.fetch(t, r.Workspace("env-1", "web", "dev@acme.com"), "/artifacts/web/x")
		r.fetch(t, "none", "/artifacts/web/x")
		if _, err := r.proxy.WaitEvents(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		request, _ := http.NewRequest("GET", r.proxy.AdminURL+"/metrics", nil)
		request.Header.Set("Accept", "application/openmetrics-text")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		lines := regexp.MustCompile(`(?m)^(# .*|sluice_request_[a-z_]*\{.*?\} )`).FindAllString(string(text), -1)
		return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return !strings.Contains(line, "sluice_request_") }), "\n")
	}
	pulled := scrape(nil)
	sent := scrape(map[string]any{"telemetry.otlp.endpoint": to.URL})
	if pulled != sent {
		t.Errorf("only pulled:\n%s\nsent, too:\n%s", pulled, sent)
	}
	for _, name := range []string{"sluice_request_duration_seconds_bucket{", "sluice_request_first_byte_seconds_bucket{"} {
		if !strings.Contains(pulled, name) {
			t.Errorf("there is no %s in\n%s", name, pulled)
		}
	}
}

func TestDashboardAndAlertsAreWellFormed(t *testing.T) {
	text, err := os.ReadFile("../../examples/grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Title  string
		UID    string
		Panels []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if p.Title == "" || ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
	}
	if dashboard.Title == "" || len(ids) < 10 {
		t.Errorf("%q with %d panels", dashboard.Title, len(ids))
	}

	text, err = os.ReadFile("../../examples/grafana/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.UnmarshalWithOptions(text, &rules, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			seen++
			if r.Alert == "" || r.Expr == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["do"] == "" {
				t.Errorf("rule %+v", r)
			}
		}
	}
	if seen < 8 {
		t.Errorf("%d rules", seen)
	}
}
