package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/signer"
)

// parts is all that one configuration makes. A reload makes new ones and keeps what must outlive it: the audit
// log, the revocations, the issuers' keys and what sessions used of their limits.
type parts struct {
	config  *Config
	auth    *identity.Authenticator
	policy  *policy.Engine
	proxy   *proxy.Proxy
	signers []*signer.Signer   // of the backends, in their order
	stop    context.CancelFunc // ends the parts' background work
}

// signerOf is the signer of a backend that a reload did not change: with it its sessions live on. A new one would
// ask STS again for everybody at once.
func (p *parts) signerOf(b *Backend) *signer.Signer {
	if p == nil {
		return nil
	}
	for i := range p.config.Backends {
		old := &p.config.Backends[i]
		if old.Region == b.Region && old.CAFile == b.CAFile && reflect.DeepEqual(old.Credentials, b.Credentials) && b.Credentials.Static == nil {
			return p.signers[i]
		}
	}
	return nil
}

// lasting is what outlives a reload.
type lasting struct {
	ctx       context.Context // of the process: signers go from one reload to the next
	audit     *audit.Log
	log       *slog.Logger
	telemetry *telemetry
	requests  *proxy.Telemetry
	stopping  chan struct{} // closed before what is in flight is cut
	places    int           // limits.max_in_flight as of the start: for so many the audit log has room
}

// build makes the parts of c. previous is nil at the start.
func build(ctx context.Context, c *Config, keep lasting, previous *parts) (_ *parts, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			stop()
		}
	}()
	p := &parts{config: c, stop: stop}
	for _, loose := range c.looseFiles() {
		keep.log.Warn("a file is open to every user of this machine", slog.String("key", loose.Path), slog.String("problem", loose.Text))
	}

	auth := identity.Config{Issuers: c.Issuers, Sessions: c.Sessions, Revocation: c.Revocation}
	for _, b := range c.Backends {
		auth.CarryToken = auth.CarryToken || b.Credentials.WebIdentity != nil
	}
	var before *proxy.Proxy
	if previous != nil {
		before = previous.proxy
		auth.Previous = previous.auth
		if previous.config.Revocation == c.Revocation {
			auth.Revocations = previous.auth.Revocations()
		}
	}
	if p.auth, err = identity.New(ctx, auth); err != nil {
		return nil, err
	}
	news := &policyNews{log: keep.log}
	p.policy, err = openPolicy(ctx, c.Policy, news.heard)
	if err != nil {
		return nil, err
	}
	backends := make([]proxy.Backend, len(c.Backends))
	for i := range c.Backends {
		b := &c.Backends[i]
		s := previous.signerOf(b)
		if s == nil {
			if s, err = signer.New(keep.ctx, b.Credentials, signer.Options{Region: b.Region, CAFile: b.CAFile, OnRefresh: keep.telemetry.onRefresh(b.Name)}); err != nil {
				return nil, &ConfigError{Problems: credentialProblems(i, err)}
			}
		}
		p.signers = append(p.signers, s)
		if backends[i], err = b.build(s, c.Limits); err != nil {
			return nil, fmt.Errorf("backends[%d].%w", i, err)
		}
	}
	trusted, err := parsePrefixes(c.Listen.TrustedProxies)
	if err != nil {
		return nil, err
	}
	p.proxy, err = proxy.New(proxy.Config{
		Auth: p.auth, Policy: p.policy, Audit: keep.audit, Backends: backends,
		Domains: c.Listen.Domains, TrustedProxies: trusted,
		Limits: proxy.Limits{
			MaxInFlight: min(c.Limits.MaxInFlight, keep.places), IdleTimeout: c.Limits.IdleTimeout, RequestsPerSecond: c.Limits.RequestsPerSecond,
			BytesPerSecond: int64(c.Limits.BytesPerSecond), InFlight: c.Limits.InFlight,
		},
		Previous: before, Stopping: keep.stopping,
		Log: keep.log, Telemetry: keep.requests,
		TraceKeys: c.Telemetry.Spans.Keys, TraceSubjects: c.Telemetry.Spans.Subjects,
	})
	if err != nil {
		return nil, err
	}
	if err := p.proxy.ShareLimits(keep.ctx, p.auth.Revocations().Channel("limits")); err != nil {
		return nil, fmt.Errorf("revocation.store: %w", err)
	}
	return p, nil
}

// policyNews logs what becomes of the policy and of its shadow, each where it changes.
type policyNews struct {
	log *slog.Logger

	mu             sync.Mutex // both are watched at once; guards what was told last
	policy, shadow string
}

func (n *policyNews) heard(s policy.Status) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.policy = n.tell(n.policy, "policy", s); s.Shadow != nil {
		n.shadow = n.tell(n.shadow, "shadow policy", *s.Shadow)
	}
}

func (n *policyNews) tell(before, what string, s policy.Status) (now string) {
	now = fmt.Sprint(s.Revision, s.Loaded, s.Err)
	switch {
	case now == before:
	case s.Err != nil && s.Revision == "" && what == "policy": // opening it fails, and that says so
	case s.Err != nil && s.Revision == "":
		n.log.Error(what+" not loaded", slog.Any("error", s.Err))
	case s.Err != nil:
		n.log.Error(what+" not loaded; the one before stays in force", slog.String("revision", s.Revision), slog.Any("error", s.Err))
	case s.Revision != "":
		n.log.Info(what+" loaded", slog.String("revision", s.Revision))
		for _, found := range s.Mistyped {
			n.log.Warn("a rule of this "+what+" has a value that is never understood, and so refuses", slog.String("rule", found.String()))
		}
	}
	return now
}

// build makes the backend that b describes.
func (b *Backend) build(s *signer.Signer, limits Limits) (proxy.Backend, error) {
	endpoint, err := b.url()
	if err != nil {
		return proxy.Backend{}, err
	}
	transport, err := b.roundTripper(endpoint, limits)
	if err != nil {
		return proxy.Backend{}, err
	}
	return proxy.Backend{
		Name: b.Name, Buckets: b.Buckets, Endpoint: endpoint, Region: b.Region, PathStyle: b.PathStyle || nothingBelow(endpoint.Hostname()),
		StrictKeys: b.Keys == "strict", Signer: s, Transport: transport, Propagate: b.TraceContext,
	}, nil
}

// url is where the backend is. AWS's partitions have domains of their own.
func (b *Backend) url() (*url.URL, error) {
	if b.Endpoint != "" {
		u, err := url.Parse(b.Endpoint)
		if err != nil {
			return nil, fmt.Errorf("endpoint: %w", err)
		}
		return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
	}
	domain := "amazonaws.com"
	if strings.HasPrefix(b.Region, "cn-") {
		domain = "amazonaws.com.cn"
	}
	return &url.URL{Scheme: "https", Host: "s3." + b.Region + "." + domain}, nil
}

// nothingBelow tells whether no name below host can be a bucket's: addresses have none, and most resolvers know none of
// localhost's.
func nothingBelow(host string) bool { return host == "localhost" || net.ParseIP(host) != nil }

// dialBackend connects so that closing is a reset: a connection is closed after its last answer, or to break an upload
// off, and there are backends that take the end of the stream for the end of the object (http1 does the same).
func dialBackend(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext(ctx, network, address)
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	return c, err
}

// transport keeps many connections to the one host there is. It has no whole-request timeout: the proxy cuts what
// stands still.
func (b *Backend) transport(limits Limits) (*http.Transport, error) {
	t := &http.Transport{
		DialContext:            dialBackend,
		MaxIdleConns:           0,
		MaxIdleConnsPerHost:    limits.MaxInFlight,
		IdleConnTimeout:        30 * time.Second, // below the minute after which backends hang up
		ExpectContinueTimeout:  time.Second,
		DisableCompression:     true, // an object is the bytes that were stored
		WriteBufferSize:        64 << 10,
		ReadBufferSize:         64 << 10,
		Proxy:                  nil, // a backend is where the configuration says
		MaxResponseHeaderBytes: 64 << 10,
	}
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if b.CAFile != "" {
		pool, err := certificatesIn(b.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dialSecureBackend(ctx, network, address, t.TLSClientConfig)
	}
	return t, nil
}

// dialSecureBackend is dialBackend with TLS over it.
func dialSecureBackend(ctx context.Context, network, address string, config *tls.Config) (net.Conn, error) {
	c, err := dialBackend(ctx, network, address)
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.ServerName, _, _ = net.SplitHostPort(address)
	secure := tls.Client(c, config)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return abrupt{secure}, nil
}

// abrupt closes without TLS's close_notify, which comes before the reset and is an end of the stream like any other.
type abrupt struct{ *tls.Conn }

func (a abrupt) Close() error { return a.NetConn().Close() }
