package main

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// What the parts report besides package proxy's own metrics. docs/telemetry.md lists all of them; a test holds it, the
// dashboard and the alert rules to what a scrape has.

func (t *telemetry) instruments() (err error) {
	meter := t.meter("cmd/proxy")
	if t.refreshes, err = meter.Int64Counter("sluice.credentials.refreshes", metric.WithUnit("{call}"), metric.WithDescription("Calls for backend credentials, most of them to STS.")); err != nil {
		return err
	}
	t.refreshTime, err = meter.Float64Histogram("sluice.credentials.refresh.duration", metric.WithUnit("s"), metric.WithDescription("Time that calls for backend credentials took."),
		metric.WithExplicitBucketBoundaries(.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10))
	return err
}

// onRefresh counts a backend's calls for credentials. Which role they were for is the audit log's to tell: policy may
// name as many as it likes.
func (t *telemetry) onRefresh(backend string) func(role string, err error, took time.Duration) {
	ok := metric.WithAttributeSet(attribute.NewSet(attribute.String("backend", backend), attribute.String("result", "ok")))
	failed := metric.WithAttributeSet(attribute.NewSet(attribute.String("backend", backend), attribute.String("result", "failed")))
	// So that there is a line to draw, and to alert on, before anything has happened.
	t.refreshes.Add(context.Background(), 0, ok)
	t.refreshes.Add(context.Background(), 0, failed)
	return func(_ string, err error, took time.Duration) {
		set := ok
		if err != nil {
			set = failed
		}
		t.refreshes.Add(context.Background(), 1, set)
		t.refreshTime.Record(context.Background(), took.Seconds(), set)
	}
}

// gauges collects what is observed whenever metrics are read.
type gauges struct {
	meter metric.Meter
	all   []metric.Observable
	errs  []error
}

func (g *gauges) gauge(name, unit, description string) metric.Float64Observable {
	i, err := g.meter.Float64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
	g.all, g.errs = append(g.all, i), append(g.errs, err)
	return i
}

func (g *gauges) counter(name, unit, description string) metric.Float64Observable {
	i, err := g.meter.Float64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
	g.all, g.errs = append(g.all, i), append(g.errs, err)
	return i
}

// observe reports the state of the parts in force whenever metrics are read.
func (t *telemetry) observe(s *server) error {
	g := &gauges{meter: t.meter("cmd/proxy")}
	var (
		policyAge      = g.gauge("sluice.policy.age", "s", "Time since the policy in force was loaded.")
		policyChecked  = g.gauge("sluice.policy.checked", "s", "Time since its source was last seen to have no other.")
		policyStale    = g.gauge("sluice.policy.stale", "", "1 while a newer policy could not be loaded.")
		policyRevision = g.gauge("sluice.policy.revision", "", "1, for the revision in force.")

		issuerReady = g.gauge("sluice.issuer.ready", "", "1 while there are keys to verify the issuer's tokens with.")
		issuerKeys  = g.gauge("sluice.issuer.keys", "{key}", "Keys known of an issuer.")
		issuerAge   = g.gauge("sluice.issuer.keys.age", "s", "Time since the issuer's keys were confirmed.")

		revocations = g.gauge("sluice.revocations", "{revocation}", "Revocations in force.")
		revShared   = g.gauge("sluice.revocations.shared", "", "1 while replicas hear of each other's revocations, or where there is no store to share.")
		revPending  = g.gauge("sluice.revocations.pending", "{revocation}", "Revocations that the store does not know yet.")

		sessions = g.gauge("sluice.credentials.sessions", "{session}", "Sessions of backend roles that are kept.")

		auditHealthy  = g.gauge("sluice.audit.healthy", "", "1 while events can be recorded.")
		auditLag      = g.gauge("sluice.audit.lag", "s", "How long the oldest event that is not written has waited.")
		auditQueued   = g.gauge("sluice.audit.queued", "{event}", "Events committed and not written.")
		auditFree     = g.gauge("sluice.audit.slots.free", "{slot}", "Requests that could begin now.")
		auditEvents   = g.counter("sluice.audit.events", "{event}", "Events written.")
		auditBytes    = g.counter("sluice.audit.written", "By", "Bytes of events written.")
		auditDropped  = g.counter("sluice.audit.dropped", "{event}", "Events lost (on_failure: continue).")
		auditFailures = g.counter("sluice.audit.failures", "{failure}", "Writes that failed, to be tried again, and requests that could not be journalled.")

		filesRotated = g.gauge("sluice.audit.files.rotated", "{file}", "Rotated files that are kept.")
		filesHeld    = g.gauge("sluice.audit.files.held", "{file}", "Of them, those beyond audit.file.keep, which a far end has not had.")

		shipLag      = g.gauge("sluice.audit.ship.lag", "{event}", "Events that a far end does not have.")
		shipBehind   = g.gauge("sluice.audit.ship.behind", "s", "How old the oldest of them is.")
		shipEvents   = g.counter("sluice.audit.ship.events", "{event}", "Events that a far end has taken.")
		shipFailures = g.counter("sluice.audit.ship.failures", "{failure}", "Times that a far end would not take events.")
		shipLost     = g.counter("sluice.audit.ship.lost", "{event}", "Events gone from the log before a far end had them, and those that it refused or rejected for good.")

		certificate = g.gauge("sluice.tls.certificate.remaining", "s", "Time until the listener's certificate expires.")
	)
	if err := errors.Join(g.errs...); err != nil {
		return err
	}
	names := s.certificates
	_, err := g.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		see := func(i metric.Float64Observable, value float64, labels ...attribute.KeyValue) {
			o.ObserveFloat64(i, value, metric.WithAttributes(labels...))
		}
		parts := s.current.Load()

		status := parts.policy.Status()
		see(policyAge, sinceSeconds(status.Loaded))
		if !status.Checked.IsZero() {
			see(policyChecked, sinceSeconds(status.Checked))
		}
		see(policyStale, flag(status.Err != nil))
		see(policyRevision, 1, attribute.String("revision", status.Revision))

		who := parts.auth.Status()
		for _, i := range who.Issuers {
			issuer := attribute.String("issuer", i.Issuer)
			see(issuerReady, flag(i.Ready), issuer)
			see(issuerKeys, float64(i.Keys), issuer)
			if !i.Fetched.IsZero() {
				see(issuerAge, sinceSeconds(i.Fetched), issuer)
			}
		}
		see(revocations, float64(who.Revocations.Count))
		see(revShared, flag(who.Revocations.Shared))
		see(revPending, float64(who.Revocations.Pending))

		for i, b := range parts.config.Backends {
			see(sessions, float64(parts.signers[i].Stats().Sessions), attribute.String("backend", b.Name))
		}

		log := s.keep.audit.Stats()
		see(auditHealthy, flag(log.Err == nil))
		see(auditLag, log.Lag.Seconds())
		see(auditQueued, float64(log.Queued))
		see(auditFree, float64(log.Free))
		see(auditEvents, float64(log.Written))
		see(auditBytes, float64(log.Bytes))
		see(auditDropped, float64(log.Dropped))
		see(auditFailures, float64(log.Failures))
		see(filesRotated, float64(log.Files.Rotated))
		see(filesHeld, float64(log.Files.Held))
		for _, far := range log.Ship {
			sink := attribute.String("sink", far.Name)
			see(shipLag, float64(far.Lag), sink)
			see(shipBehind, far.Behind.Seconds(), sink)
			see(shipEvents, float64(far.Shipped), sink)
			see(shipFailures, float64(far.Failures), sink)
			see(shipLost, float64(far.Lost+far.Skipped), sink)
		}

		for name, at := range names.expiries() {
			see(certificate, time.Until(at).Seconds(), attribute.String("name", name))
		}
		return nil
	}, g.all...)
	return err
}

func flag(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
