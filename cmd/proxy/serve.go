package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/proxy"
)

type serveCommand struct {
	Config string `required:"" placeholder:"FILE" help:"Configuration file. SIGHUP reads it again."`
}

func (serveCommand) Example() string { return "proxy serve --config /etc/sluice/sluice.yaml" }

// Run serves until SIGTERM or SIGINT, then drains.
func (cmd serveCommand) Run() error {
	c, err := loadConfig(cmd.Config)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)

	reserve()
	s, err := start(cmd.Config, c)
	if err != nil {
		return err
	}
	for {
		select {
		case err := <-s.failed:
			s.shutdown()
			return err
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				s.reload()
				continue
			}
			s.log.Info("draining", slog.String("signal", sig.String()))
			return s.shutdown()
		}
	}
}

// server is a running proxy.
type server struct {
	file     string
	begun    *Config // what a reload does not change is in force as this says it
	log      *slog.Logger
	keep     lasting
	current  atomic.Pointer[parts]
	draining atomic.Bool
	inFlight sync.WaitGroup // handlers of the S3 listener

	s3           s3Server
	admin        *http.Server
	certificates *certificates
	telemetry    *telemetry
	failed       chan error
	stop         context.CancelFunc
	ctx          context.Context

	reloading sync.Mutex // one reload at a time
}

// start opens everything in the order that lets nothing be served that could not be recorded.
func start(file string, c *Config) (_ *server, err error) {
	ctx, stop := context.WithCancel(context.Background())
	s := &server{file: file, begun: c, failed: make(chan error, 2), ctx: ctx, stop: stop}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	if s.telemetry, err = startTelemetry(ctx, c.Telemetry); err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	s.log = newLogger(c.Log, os.Stderr, s.telemetry)
	slog.SetDefault(s.log) // packages that are given no logger: what they say is the operator's too, in the same format

	recording := c.Audit
	recording.InFlight, recording.Logger = c.Limits.MaxInFlight+proxy.Spare(c.Limits.MaxInFlight), s.log
	log, err := audit.Open(ctx, recording)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	defer func() {
		if err != nil {
			_ = log.Close(ctx)
		}
	}()
	requests, err := proxy.NewTelemetry(s.telemetry.meter("proxy"), s.telemetry.tracer(), s.telemetry.timings)
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	s.keep = lasting{ctx: ctx, audit: log, log: s.log, telemetry: s.telemetry, requests: requests, stopping: make(chan struct{}), places: c.Limits.MaxInFlight}
	first, err := build(ctx, c, s.keep, nil)
	if err != nil {
		return nil, err
	}
	s.current.Store(first)

	listener, err := c.Listen.open()
	if err != nil {
		return nil, fmt.Errorf("listen.address: %w", err)
	}
	defer func() {
		if err != nil {
			listener.Close()
		}
	}()
	if s.certificates, err = c.Listen.TLS.open(c.Listen.Domains, listener.Addr(), s.log); err != nil {
		return nil, fmt.Errorf("listen.tls.%w", err)
	}
	tlsConfig := s.certificates.tls
	if err := s.telemetry.observe(s); err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	adminListener, err := net.Listen("tcp", c.Admin.Address)
	if err != nil {
		s.certificates.stop()
		return nil, fmt.Errorf("admin.address: %w", err)
	}
	errorLog := slog.NewLogLogger(s.log.Handler(), slog.LevelDebug) // handshakes and resets are the network's noise
	s.s3 = newS3Server(http.HandlerFunc(s.serveS3), s.serveMalformed, tlsConfig, c.Limits, errorLog)
	s.admin = &http.Server{Handler: s.adminHandler(c.Admin), ErrorLog: errorLog, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go s.run(s.admin, adminListener)
	go s.run(s.s3, listener)
	s.certificates.manage(ctx)
	s.log.Info("serving", slog.String("address", listener.Addr().String()), slog.String("admin", adminListener.Addr().String()),
		slog.Bool("tls", tlsConfig != nil), slog.String("policy_revision", first.policy.Status().Revision), slog.String("version", versionLine()))
	return s, nil
}

func (s *server) run(server interface{ Serve(net.Listener) error }, l net.Listener) {
	err := server.Serve(l)
	if !errors.Is(err, http.ErrServerClosed) {
		s.failed <- fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
}

// serveS3 hands a request to the parts in force. A request begun keeps its parts through a reload.
func (s *server) serveS3(w http.ResponseWriter, r *http.Request) {
	s.inFlight.Add(1)
	defer s.inFlight.Done()
	s.current.Load().proxy.ServeHTTP(w, r)
}

func (s *server) serveMalformed(w http.ResponseWriter, r *http.Request, status int) {
	s.inFlight.Add(1)
	defer s.inFlight.Done()
	s.current.Load().proxy.Malformed(w, r, status)
}

// open opens the listener, which understands PROXY protocol from whom the configuration trusts.
func (l *Listen) open() (net.Listener, error) {
	listener, err := net.Listen("tcp", l.Address)
	if err != nil || !l.ProxyProtocol {
		return listener, err
	}
	trusted, err := parsePrefixes(l.TrustedProxies)
	if err != nil {
		listener.Close()
		return nil, err
	}
	return &proxyproto.Listener{Listener: listener, ReadHeaderTimeout: 5 * time.Second, ConnPolicy: func(o proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
		from, err := netip.ParseAddrPort(o.Upstream.String())
		if err == nil && containsAddr(trusted, from.Addr().Unmap()) {
			return proxyproto.USE, nil
		}
		return proxyproto.SKIP, nil // from anyone else it is no HTTP, and refused as such
	}}, nil
}

func containsAddr(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// reload reads the configuration again. A bad one keeps the old in force and says why.
func (s *server) reload() {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	if err := s.keep.audit.Reopen(); err != nil {
		s.log.Error("audit log not reopened", slog.Any("error", err))
	}
	c, err := loadConfig(s.file)
	if err != nil {
		s.log.Error("configuration not reloaded; the one before stays in force", slog.Any("error", err))
		return
	}
	old := s.current.Load()
	next, err := build(s.ctx, c, s.keep, old)
	if err != nil {
		s.log.Error("configuration not reloaded; the one before stays in force", slog.Any("error", err))
		return
	}
	s.current.Store(next)
	for _, section := range needRestart(s.begun, c) {
		s.log.Warn("this section takes a restart to change", slog.String("section", section))
	}
	s.log.Info("configuration reloaded", slog.String("policy_revision", next.policy.Status().Revision))
	// Requests in flight still use the old parts; their background work may end now, as it only keeps things fresh.
	old.stop()
}

// shutdown stops accepting, lets what is in flight end within shutdown_timeout, and writes every event. Who asks the admin
// listener meanwhile is answered: it goes last.
func (s *server) shutdown() error {
	s.draining.Store(true)
	s.admin.SetKeepAlivesEnabled(false) // so that no question comes on a connection as it is closed for good
	timeout := s.current.Load().config.ShutdownTimeout
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := s.s3.Shutdown(ctx); err != nil {
		s.log.Warn("cutting what is still in flight", slog.String("shutdown_timeout", timeout.String()))
		close(s.keep.stopping)
		s.s3.Close()
	}
	s.inFlight.Wait() // handlers whose connection is gone end at once
	final, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.keep.audit.Close(final)
	if err != nil {
		err = fmt.Errorf("audit: %w", err)
	}
	s.certificates.stop()
	s.telemetry.shutdown(final)
	asked, cancel := context.WithTimeout(context.Background(), adminPatience)
	defer cancel()
	if s.admin.Shutdown(asked) != nil {
		s.admin.Close()
	}
	s.stop()
	s.log.Info("stopped")
	return err
}

// adminPatience is for what the admin listener has taken when all else is done: a revocation that goes to the store. Who does
// not ask to the end, or does not read the answer, keeps no process for longer.
const adminPatience = 2 * time.Second

// needRestart names the sections in which new differs from what the process began with, and which a running proxy cannot
// take up.
func needRestart(begun, new *Config) []string {
	var sections []string
	for name, same := range map[string]bool{
		"listen.address":         begun.Listen.Address == new.Listen.Address,
		"listen.proxy_protocol":  begun.Listen.ProxyProtocol == new.Listen.ProxyProtocol,
		"listen.tls":             reflect.DeepEqual(begun.Listen.TLS, new.Listen.TLS),
		"listen.domains":         begun.Listen.TLS.ACME == nil || slices.Equal(begun.Listen.Domains, new.Listen.Domains),              // of the certificates
		"listen.trusted_proxies": !begun.Listen.ProxyProtocol || slices.Equal(begun.Listen.TrustedProxies, new.Listen.TrustedProxies), // of the listener
		"admin":                  begun.Admin == new.Admin,
		"audit":                  reflect.DeepEqual(begun.Audit, new.Audit),
		"limits.max_in_flight":   new.Limits.MaxInFlight <= begun.Limits.MaxInFlight, // more than at the start have no place in the audit log
		"limits.header_timeout":  begun.Limits.HeaderTimeout == new.Limits.HeaderTimeout,
		"telemetry.otlp":         begun.Telemetry.OTLP == new.Telemetry.OTLP,
		"telemetry.service_name": begun.Telemetry.ServiceName == new.Telemetry.ServiceName,
		"log":                    begun.Log == new.Log,
	} {
		if !same {
			sections = append(sections, name)
		}
	}
	slices.Sort(sections)
	return sections
}
