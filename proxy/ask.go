package proxy

import (
	"net/http"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3wire"
	"github.com/sluice-s3/sluice/signer"
)

// Asked is a request as the proxy would take it: what policy would be asked, and where it would go. Nothing is sent.
type Asked struct {
	Operation *s3wire.Operation
	Question  *policy.Question
	Backend   *Backend // nil where none has the bucket

	identity *identity.Identity
}

// Ask reads r as ServeHTTP would, for somebody whose credentials have shown id. Of c only Domains, TrustedProxies and
// the backends' names, buckets, key modes and signers are needed. The keys of a DeleteObjects come with its body,
// which is not read. Its errors are those that the client would get: *s3wire.Error.
func Ask(c Config, id *identity.Identity, r *http.Request, now time.Time) (*Asked, error) {
	if err := c.compile(); err != nil {
		return nil, err
	}
	p := &Proxy{Config: c, addressing: s3wire.Addressing{Domains: c.Domains}}
	op, err := p.addressing.Parse(r)
	if err != nil {
		return nil, err
	}
	event := &audit.Event{ID: "explain", UserAgent: r.UserAgent(), SourceIP: p.sourceIP(r)}
	asking := &call{proxy: p, in: r, event: event, start: now, proof: &identity.Proof{Identity: id}}
	asking.setOperation(op)
	if err := asking.route(op.Bucket, op.Source); err != nil {
		return nil, err
	}
	return &Asked{Operation: op, Question: asking.question(op.Accesses()), Backend: asking.backend, identity: id}, nil
}

// Role is the role that the request would be signed as after decision, "" where its backend knows no roles.
func (a *Asked) Role(decision *policy.Decision) (string, error) {
	if a.Backend == nil {
		return "", nil
	}
	return a.Backend.Signer.Role(signer.As{Principal: Principal(a.identity), Role: decision.Role, SessionPolicy: string(decision.SessionPolicy)})
}
