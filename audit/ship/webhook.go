package ship

import (
	"bytes"
	"context"
	"net/http"
)

// Webhook posts batches of events: native ones as JSON lines (application/x-ndjson), ocsf as a JSON array,
// cloudevents as a batch (application/cloudevents-batch+json). An answer of 2xx means that all of them arrived.
type Webhook struct {
	URL  string `yaml:"url"`
	HTTP `yaml:",inline"`
}

func (w *Webhook) check(report func(path, problem string)) { w.HTTP.check(report, "url", w.URL) }

type webhook struct {
	*poster
	format, source string
}

func openWebhook(c Webhook, format, source string) (Sink, error) {
	p, err := newPoster(c.HTTP, c.URL)
	if err != nil {
		return nil, err
	}
	return &webhook{p, format, source}, nil
}

func (w *webhook) Send(ctx context.Context, messages []Message) (int, error) {
	var body bytes.Buffer
	contentType := "application/x-ndjson"
	switch w.format {
	case Native:
		for _, m := range messages {
			body.Write(m.Body)
			body.WriteByte('\n')
		}
	default:
		contentType = "application/json"
		if w.format == CloudEvents {
			contentType = "application/cloudevents-batch+json"
		}
		for i, m := range messages {
			body.WriteByte(",["[b2i(i == 0)])
			body.Write(m.Body)
		}
		body.WriteByte(']')
	}
	header := http.Header{
		"Idempotency-Key": {messages[0].ID + "-" + messages[len(messages)-1].ID},
		"Sluice-Source":   {w.source},
	}
	if _, err := w.post(ctx, contentType, body.Bytes(), header); err != nil {
		return 0, err
	}
	return len(messages), nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
