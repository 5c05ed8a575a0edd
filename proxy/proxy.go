// Package proxy is the request path: it joins who asks (identity), what is asked (s3wire), whether they may
// (policy), as whom it is signed (signer) and what is written down (audit). Reading ServeHTTP and serve is
// reading the program.
package proxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gobwas/glob"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3wire"
	"github.com/sluice-s3/sluice/signer"
)

// Config is what New needs. Every field without a default must be set.
type Config struct {
	Auth     *identity.Authenticator
	Policy   *policy.Engine
	Audit    *audit.Log
	Backends []Backend // the first whose Buckets match takes the request

	Domains        []string       // Sluice's own names; none = path style on any host
	TrustedProxies []netip.Prefix // whose X-Forwarded-For tells the source
	Limits         Limits

	Log       *slog.Logger // nil = slog.Default()
	Telemetry *Telemetry   // nil = none

	// Previous is the Proxy that this one takes the place of: what sessions used of their limits goes on. nil = none.
	Previous *Proxy

	// Stopping is closed before connections are closed because the process ends: what breaks off from then on is not the
	// client's doing. nil = never.
	Stopping <-chan struct{}

	TraceKeys     bool // spans tell object keys
	TraceSubjects bool // spans tell subject and session

	Now func() time.Time // nil = time.Now
}

// Backend is an S3 service behind Sluice.
type Backend struct {
	Name       string
	Buckets    []string // globs over bucket names
	Endpoint   *url.URL // scheme and host only
	Region     string   // of buckets whose own the backend does not tell
	PathStyle  bool
	StrictKeys bool // refuse keys that only AWS takes literally
	Signer     *signer.Signer
	Transport  http.RoundTripper // MUST NOT decompress or follow redirects
	Propagate  bool              // send W3C trace context

	globs []*glob.Pattern
}

// Limits of the S3 listener.
type Limits struct {
	// MaxInFlight bounds the requests that are served at once, over all reloads; 0 = by the audit log alone. The log should
	// have room for some more: see Spare.
	MaxInFlight       int
	IdleTimeout       time.Duration // no byte either way; 0 = 60 s
	RequestsPerSecond float64       // these three for each session; 0 = none
	BytesPerSecond    int64
	InFlight          int
}

// Spare is how many events the audit log should have room for beyond maxInFlight: those of requests that are refused for
// their number, and those that are served and not yet written.
func Spare(maxInFlight int) int { return min(64+maxInFlight/4, 1024) }

// Proxy is the S3 listener's http.Handler.
type Proxy struct {
	Config
	addressing s3wire.Addressing
	sessions   *sessionLimits
	calls      *calls
	forms      atomic.Int64 // being read: see readForm
}

// New checks c and makes a Proxy.
func New(c Config) (*Proxy, error) {
	if c.Auth == nil || c.Policy == nil || c.Audit == nil {
		return nil, errors.New("proxy: Auth, Policy and Audit are needed")
	}
	if len(c.Backends) == 0 {
		return nil, errors.New("proxy: at least one backend is needed")
	}
	for i := range c.Backends {
		b := &c.Backends[i]
		if b.Signer == nil || b.Transport == nil || b.Endpoint == nil {
			return nil, fmt.Errorf("proxy: backend %q: Signer, Transport and Endpoint are needed", b.Name)
		}
	}
	if err := c.compile(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Limits.IdleTimeout == 0 {
		c.Limits.IdleTimeout = 60 * time.Second
	}
	if c.Telemetry == nil {
		var err error
		if c.Telemetry, err = NewTelemetry(nil, nil, nil); err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
	}
	p := &Proxy{Config: c, addressing: s3wire.Addressing{Domains: c.Domains}, calls: newCalls(c.Limits.IdleTimeout)}
	if c.Previous == nil {
		p.sessions = newSessionLimits(c.Limits, c.Now)
	} else {
		p.sessions = c.Previous.sessions
		p.sessions.configure(c.Limits)
		p.Previous = nil // or else none would ever be let go
	}
	return p, nil
}

// compile makes the backends' globs ready.
func (c *Config) compile() error {
	for i := range c.Backends {
		b := &c.Backends[i]
		for _, pattern := range b.Buckets {
			g, err := glob.Compile(pattern)
			if err != nil {
				return fmt.Errorf("proxy: backend %q: buckets: %q: %w", b.Name, pattern, err)
			}
			b.globs = append(b.globs, g)
		}
	}
	return nil
}

// ServeHTTP answers one request and records it, once, whatever happens.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.answer(w, r, (*call).serve) }

// Malformed does the same for what HTTP could not make a request of: see http1.Server.Malformed.
func (p *Proxy) Malformed(w http.ResponseWriter, r *http.Request, status int) {
	r.URL = &url.URL{}
	r.URL.Path, _, _ = strings.Cut(r.RequestURI, "?")
	p.answer(w, r, func(c *call) { c.refuse(malformed(r.RequestURI, status)) })
}

func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, serve func(*call)) {
	start := p.Now()
	c := newCall(p)
	if err := p.Audit.BeginIn(&c.record, start); err != nil {
		c.blank()
		// Nothing has been done and nothing can be recorded: the one answer without an event.
		p.Telemetry.unrecorded.Add(1)
		w.Header().Set("Retry-After", "1")
		s3wire.WriteError(w, r, &s3wire.Error{Code: "SlowDown", Message: "the proxy cannot record another request at the moment, so it was not served; retry soon"}, r.URL.Path, "")
		return
	}
	c.begin(w, r, start)
	defer c.finish()
	if most := int64(p.Limits.MaxInFlight); most > 0 && c.among > most {
		p.Telemetry.crowded.Add(1)
		c.refuse(&slowDown{message: fmt.Sprintf("the proxy has %d requests in flight, its limit; retry soon", most), retryAfter: time.Second})
		return
	}
	serve(c)
}

// serve is the path of a request. Each step either answers for good or hands on.
func (c *call) serve() {
	if err := checkStream(c.in); err != nil {
		c.refuse(err)
		return
	}
	if err := c.checkHost(); err != nil {
		c.refuse(err)
		return
	}
	if door := c.proxy.ownDoor(c.in); door != nil {
		c.out.Header().Set("X-Amz-Request-Id", c.event.ID)
		door(c)
		return
	}

	_, end := c.span("parse")
	op, err := c.proxy.addressing.ParseIn(&c.room.op, c.in)
	end(err)
	if op != nil {
		c.setOperation(op) // what was understood of a request that is refused is recorded too
	}
	if err != nil {
		c.refuse(err)
		return
	}
	if op.Preflight() {
		c.forwardPreflight()
		return
	}

	_, end = c.span("authenticate")
	proof, err := c.proxy.Auth.Authenticate(c.in)
	end(err)
	if err != nil {
		c.refuse(err)
		return
	}
	if err := c.setProof(proof); err != nil {
		c.refuse(err)
		return
	}

	switch op.Name {
	case "ListBuckets":
		c.listBuckets()
	case "DeleteObjects":
		c.deleteObjects()
	default:
		c.object()
	}
}

// object is every operation but the two that answer for several buckets or keys at once.
func (c *call) object() {
	if err := c.route(c.op.Bucket, c.op.Source); err != nil {
		c.refuse(err)
		return
	}
	var room [1]s3wire.Access // what most need, and nobody keeps
	accesses := c.op.AppendAccesses(room[:0])
	whole, more, err := c.inspect()
	if err != nil {
		c.refuse(err)
		return
	}
	decision, err := c.decide(append(accesses, more...))
	if err != nil {
		c.refuse(err)
		return
	}
	if !decision.Allow {
		c.refuse(c.denied(decision))
		return
	}
	if c.backend == nil {
		c.refuse(noBackend(c.op.Bucket))
		return
	}
	if whole != nil {
		c.forward(c.op.WholeBody(whole))
		return
	}
	body, err := c.op.Payload.Outbound(c.body(), c.chunks(), c.proof.CheckHash)
	if err != nil {
		c.refuse(err)
		return
	}
	c.forward(body)
}

// inspect reads the body of the few operations whose bodies ask for more than their names say. They are small; all
// others stream and are not looked at.
func (c *call) inspect() (body []byte, accesses []s3wire.Access, err error) {
	limit := c.op.BodyLimit()
	if limit == 0 {
		return nil, nil, nil
	}
	from, err := c.op.Payload.Unframed(c.body(), c.chunks(), c.proof.CheckHash)
	if err != nil || from == nil {
		return nil, nil, err
	}
	if body, err = io.ReadAll(io.LimitReader(from, limit+1)); err != nil {
		return nil, nil, err
	}
	accesses, err = c.op.BodyAccesses(body)
	return body, accesses, err
}
