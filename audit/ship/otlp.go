package ship

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/url"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"
)

// OTLP sends events as log records, by OTLP over HTTP (protobuf): an OpenTelemetry collector listens on port 4318.
type OTLP struct {
	// Endpoint is the collector's URL; without a path, /v1/logs is added.
	Endpoint string `yaml:"endpoint"`
	HTTP     `yaml:",inline"`
}

func (o *OTLP) check(report func(path, problem string)) { o.HTTP.check(report, "endpoint", o.Endpoint) }

type otlp struct {
	*poster
	format, source string
}

func openOTLP(c OTLP, format, source string) (Sink, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, err
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/logs"
	}
	p, err := newPoster(c.HTTP, u.String())
	if err != nil {
		return nil, err
	}
	return &otlp{p, format, source}, nil
}

func (o *otlp) Send(ctx context.Context, messages []Message) (int, error) {
	now := uint64(time.Now().UnixNano())
	records := make([]*logs.LogRecord, len(messages))
	for i, m := range messages {
		r := &logs.LogRecord{
			TimeUnixNano:         uint64(m.Time.UnixNano()),
			ObservedTimeUnixNano: now,
			SeverityNumber:       logs.SeverityNumber_SEVERITY_NUMBER_INFO,
			SeverityText:         "INFO",
			EventName:            "sluice.audit",
			Body:                 text(string(m.Body)),
			Attributes: []*common.KeyValue{
				{Key: "log.record.uid", Value: text(m.ID)},
				{Key: "sluice.seq", Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: int64(m.Seq)}}},
			},
		}
		switch m.Outcome {
		case "refused", "revoked", "aborted":
			r.SeverityNumber, r.SeverityText = logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
		case "failed", "interrupted":
			r.SeverityNumber, r.SeverityText = logs.SeverityNumber_SEVERITY_NUMBER_ERROR, "ERROR"
		}
		for _, a := range []struct{ key, value string }{
			{"sluice.outcome", m.Outcome}, {"sluice.session", m.Session}, {"rpc.method", m.Operation}, {"aws.s3.bucket", m.Bucket}, {"sluice.format", o.format},
		} {
			if a.value != "" {
				r.Attributes = append(r.Attributes, &common.KeyValue{Key: a.key, Value: text(a.value)})
			}
		}
		if id, err := hex.DecodeString(m.TraceID); err == nil && len(id) == 16 {
			r.TraceId = id
		}
		records[i] = r
	}
	body, err := proto.Marshal(&collector.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource: &resource.Resource{Attributes: []*common.KeyValue{
			{Key: "service.name", Value: text("sluice")},
			{Key: "service.instance.id", Value: text(o.source)},
		}},
		ScopeLogs: []*logs.ScopeLogs{{Scope: &common.InstrumentationScope{Name: "sluice.audit", Version: "1"}, LogRecords: records}},
	}}})
	if err != nil {
		return 0, fmt.Errorf("encode log records: %w", err)
	}
	answer, err := o.post(ctx, "application/x-protobuf", body, nil)
	if err != nil {
		return 0, err
	}
	var result collector.ExportLogsServiceResponse
	if err := proto.Unmarshal(answer, &result); err == nil {
		// The specification (OTLP/HTTP, Partial Success): such a request must not be sent again.
		partial := result.GetPartialSuccess()
		if n := partial.GetRejectedLogRecords(); n > 0 || partial.GetErrorMessage() != "" {
			return len(messages), Rejected{int(min(max(n, 0), int64(len(messages)))), partial.GetErrorMessage()}
		}
	}
	return len(messages), nil
}

func text(s string) *common.AnyValue {
	return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: s}}
}
