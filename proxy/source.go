package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/http1"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3wire"
	"github.com/sluice-s3/sluice/signer"
)

// sourceIP is where a request comes from: the connection's far end, or, as long as that is a trusted proxy, who it
// says it forwards for. Read from the right: what is left of the first untrusted address anyone may have written.
func (p *Proxy) sourceIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	if len(p.TrustedProxies) == 0 || !p.trusted(host) {
		return host
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop := strings.TrimSpace(hops[i])
		addr, err := netip.ParseAddr(hop)
		if err != nil {
			return host
		}
		host = addr.Unmap().String()
		if !p.trusted(host) {
			return host
		}
	}
	return host
}

func (p *Proxy) trusted(host string) bool {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	addr = addr.Unmap()
	for _, prefix := range p.TrustedProxies {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// secure tells whether the client's side of the request was encrypted.
func (p *Proxy) secure(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	if len(p.TrustedProxies) == 0 {
		return false
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return p.trusted(host) && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}

// checkStream refuses what a stream of HTTP/2 can say and HTTP/1.1 cannot, as far as net/http lets it through. Backends are
// spoken to in HTTP/1.1, and what cannot be said there would be another request than the one that was asked for. Above all
// a length that is no number, or that nothing follows: net/http takes either for a body of no bytes, which would be stored
// in the place of what is there. https://www.rfc-editor.org/rfc/rfc9113#section-8.1.1
func checkStream(r *http.Request) error {
	if r.ProtoMajor < 2 {
		return nil
	}
	if hosts := r.Header["Host"]; !http1.ValidHost(r.Host) || r.Host == "" || len(hosts) > 1 || len(hosts) == 1 && hosts[0] != r.Host {
		return &s3wire.Error{Code: "InvalidRequest", Message: "the stream must name one host, in :authority; Host can only say the same"}
	}
	if strings.IndexByte(r.RequestURI, ' ') >= 0 {
		return &s3wire.Error{Code: "InvalidRequest", Message: "the :path has a space: write %20"}
	}
	if lengths, ok := r.Header["Content-Length"]; ok {
		n, err := strconv.ParseUint(lengths[0], 10, 63)
		if err != nil || len(lengths) > 1 || int64(n) != r.ContentLength {
			return &s3wire.Error{Code: "InvalidRequest", Message: "Content-Length must be one number, and that of the body's bytes"}
		}
	}
	if len(r.Header["Expect"]) > 0 {
		return malformed("", http.StatusExpectationFailed) // net/http takes out the one that there is
	}
	return nil
}

// checkHost refuses a request whose Host is not the name the connection was opened for: certificates and bucket
// names would not agree about whom it is meant for.
func (c *call) checkHost() error {
	state := c.in.TLS
	if state == nil || state.ServerName == "" {
		return nil
	}
	host := c.in.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if !strings.EqualFold(strings.TrimSuffix(host, "."), state.ServerName) {
		return &s3wire.Error{Code: "InvalidRequest", Status: http.StatusMisdirectedRequest, Message: "the Host header is not the name that the TLS connection was opened for"}
	}
	return nil
}

type (
	subjectOf   struct{}
	principalOf struct{}
)

// subject is the identity as policy sees it, made once for all requests of a token.
func subject(id *identity.Identity) *policy.Subject {
	return id.Derived(subjectOf{}, func() any {
		return policy.NewSubject(&policy.Identity{
			Issuer: id.Issuer, Subject: id.Subject, Audience: id.Audience, Session: id.Session,
			Method: id.Method, RequestedRole: id.RequestedRole, Expires: id.Expires.Unix(),
			Claims: id.Claims, Attributes: policy.Attributes(id.Attributes),
		})
	}).(*policy.Subject)
}

// Principal is the identity as the signer sees it, made once for all requests of a token.
func Principal(id *identity.Identity) *signer.Principal {
	return id.Derived(principalOf{}, func() any {
		a := id.Attributes
		return &signer.Principal{
			Issuer: id.Issuer, Subject: id.Subject, Session: id.Session, Claims: id.Claims,
			Attributes: map[string]any{"workspace": a.Workspace, "project": a.Project, "repository": a.Repository, "user": a.User, "groups": a.Groups},
			Token:      id.Token(), Expires: id.Expires,
		}
	}).(*signer.Principal)
}
