package world_test

import (
	"testing"

	"github.com/sluice-s3/sluice/examples/world"
)

func TestTheProxyStartsServesAndStops(t *testing.T) {
	w := start(t, world.Options{Buckets: []string{"artifacts"}})
	config, err := w.ProxyConfig(world.ProxyOptions{Set: map[string]any{"limits.in_flight": 8, "issuers[0].leeway": "5s", "log.level": "debug"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(config)
	p, err := w.StartProxy(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(p.Log())
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
}
