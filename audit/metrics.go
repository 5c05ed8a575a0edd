package audit

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Register makes the log's instruments: what Stats tells, read when metrics are.
func (l *Log) Register(meter metric.Meter) error {
	var err error
	counter := func(name, description string) metric.Int64ObservableCounter {
		c, e := meter.Int64ObservableCounter(name, metric.WithDescription(description))
		if e != nil {
			err = e
		}
		return c
	}
	gauge := func(name, description, unit string) metric.Float64ObservableGauge {
		g, e := meter.Float64ObservableGauge(name, metric.WithDescription(description), metric.WithUnit(unit))
		if e != nil {
			err = e
		}
		return g
	}
	written := counter("sluice.audit.events", "events written to the log")
	bytes := counter("sluice.audit.bytes", "bytes written to the log")
	refused := counter("sluice.audit.refused", "requests not served because their event had no room")
	dropped := counter("sluice.audit.dropped", "events lost (on_failure: continue)")
	failures := counter("sluice.audit.failures", "writes that failed and were tried again, and entries that could not be journalled")
	healthy := gauge("sluice.audit.healthy", "1 while events can be recorded", "")
	free := gauge("sluice.audit.slots.free", "room for further events", "")
	open := gauge("sluice.audit.events.open", "events of requests in progress", "")
	queued := gauge("sluice.audit.events.queued", "events of finished requests that are not written yet", "")
	lag := gauge("sluice.audit.lag", "how long the oldest of these has waited", "s")
	rotated := gauge("sluice.audit.files", "rotated files kept", "")
	held := gauge("sluice.audit.files.held", "of them, those kept only because a far end has not had them", "")
	lost := counter("sluice.audit.files.lost", "files removed before a far end had them (on_failure: continue)")
	shipped := counter("sluice.audit.ship.events", "events that a far end has")
	shipFailures := counter("sluice.audit.ship.failures", "times that a far end would not take events")
	shipLost := counter("sluice.audit.ship.lost", "events gone from the log before a far end had them, or that it will not take")
	shipLag := gauge("sluice.audit.ship.lag", "events that a far end does not have yet", "")
	shipBehind := gauge("sluice.audit.ship.behind", "how old the oldest of these is", "s")
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := l.Stats()
		o.ObserveInt64(written, int64(s.Written))
		o.ObserveInt64(bytes, int64(s.Bytes))
		o.ObserveInt64(refused, int64(s.Refused))
		o.ObserveInt64(dropped, int64(s.Dropped))
		o.ObserveInt64(failures, int64(s.Failures))
		o.ObserveFloat64(healthy, 1)
		if s.Err != nil {
			o.ObserveFloat64(healthy, 0)
		}
		o.ObserveFloat64(free, float64(s.Free))
		o.ObserveFloat64(open, float64(s.Open))
		o.ObserveFloat64(queued, float64(s.Queued))
		o.ObserveFloat64(lag, s.Lag.Seconds())
		o.ObserveFloat64(rotated, float64(s.Files.Rotated))
		o.ObserveFloat64(held, float64(s.Files.Held))
		o.ObserveInt64(lost, int64(s.Files.Lost))
		for _, sh := range s.Ship {
			to := metric.WithAttributes(attribute.String("ship", sh.Name))
			o.ObserveInt64(shipped, int64(sh.Shipped), to)
			o.ObserveInt64(shipFailures, int64(sh.Failures), to)
			o.ObserveInt64(shipLost, int64(sh.Lost+sh.Skipped), to)
			o.ObserveFloat64(shipLag, float64(sh.Lag), to)
			o.ObserveFloat64(shipBehind, sh.Behind.Seconds(), to)
		}
		return nil
	}, written, bytes, refused, dropped, failures, healthy, free, open, queued, lag, rotated, held, lost, shipped, shipFailures, shipLost, shipLag, shipBehind)
	return err
}
