package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// ACME is certificates from an authority that speaks RFC 8555, for every name in listen.domains. Where dns01 is given
// there is one for *.<domain> besides, which virtual-hosted buckets need.
type ACME struct {
	Email      string   `yaml:"email"`
	Directory  string   `yaml:"directory"`  // [Let's Encrypt]
	CAFile     string   `yaml:"ca_file"`    // trust for the directory's own certificate
	Storage    string   `yaml:"storage"`    // [/var/lib/sluice/acme]; replicas share it
	Profile    string   `yaml:"profile"`    // of certificate, where the authority offers several
	Challenges []string `yaml:"challenges"` // [http-01 and tls-alpn-01; dns-01 alone where dns01 is given]
	HTTPPort   int      `yaml:"http_port"`  // [80] where http-01 is answered, while there is one to answer
	EAB        *EAB     `yaml:"eab"`
	DNS01      *DNS01   `yaml:"dns01"`
}

// EAB binds the ACME account to one that its holder has with the authority.
type EAB struct {
	KeyID       string `yaml:"key_id"`
	HMACKeyFile string `yaml:"hmac_key_file"` // base64url, as authorities hand it out
	HMACKeyEnv  string `yaml:"hmac_key_env"`
}

// DNS01 proves names in DNS: the one way to a wildcard.
type DNS01 struct {
	RFC2136            *RFC2136      `yaml:"rfc2136"`
	Domain             string        `yaml:"domain"`              // write the record here instead, where _acme-challenge.<name> is a CNAME to it
	Resolvers          []string      `yaml:"resolvers"`           // [the system's] host:port, to find the zone and to see that the record is there
	PropagationTimeout time.Duration `yaml:"propagation_timeout"` // [2m] until the record must be seen
}

const (
	challengeHTTP = "http-01"
	challengeALPN = "tls-alpn-01"
	challengeDNS  = "dns-01"
)

func (a *ACME) setDefaults() {
	set(&a.Storage, "/var/lib/sluice/acme")
	set(&a.Directory, certmagic.LetsEncryptProductionCA)
	set(&a.HTTPPort, 80)
	if len(a.Challenges) == 0 {
		a.Challenges = []string{challengeHTTP, challengeALPN}
		if a.DNS01 != nil {
			a.Challenges = []string{challengeDNS}
		}
	}
	if a.DNS01 != nil {
		set(&a.DNS01.PropagationTimeout, 2*time.Minute)
		if a.DNS01.RFC2136 != nil {
			a.DNS01.RFC2136.setDefaults()
		}
	}
}

func (a *ACME) check(domains []string, report func(path, text string)) {
	if len(domains) == 0 {
		report("tls.acme", "listen.domains is empty: there is no name to get a certificate for")
	}
	if u, err := url.Parse(a.Directory); err != nil || u.Host == "" || (u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname()))) {
		report("tls.acme.directory", fmt.Sprintf("%q is not an https URL", a.Directory))
	}
	if a.Email != "" && (strings.Count(a.Email, "@") != 1 || strings.ContainsAny(a.Email, " <>,")) {
		report("tls.acme.email", fmt.Sprintf("%q is not an address such as ops@example.com", a.Email))
	}
	if a.CAFile != "" {
		if _, err := certificatesIn(a.CAFile); err != nil {
			report("tls.acme.ca_file", err.Error())
		}
	}
	if a.HTTPPort < 1 || a.HTTPPort > 65535 {
		report("tls.acme.http_port", "must be between 1 and 65535")
	}
	for i, c := range a.Challenges {
		if !slices.Contains([]string{challengeHTTP, challengeALPN, challengeDNS}, c) {
			report(fmt.Sprintf("tls.acme.challenges[%d]", i), fmt.Sprintf("%q is none of http-01, tls-alpn-01, dns-01", c))
		}
	}
	switch uses := slices.Contains(a.Challenges, challengeDNS); {
	case uses && a.DNS01 == nil:
		report("tls.acme.dns01", "needed where challenges has dns-01: it says who can write the record")
	case a.DNS01 != nil && (!uses || len(a.Challenges) != 1):
		report("tls.acme.challenges", "dns-01 goes alone: leave the others, or dns01, out")
	}
	if a.EAB != nil {
		a.EAB.check(func(path, text string) { report("tls.acme.eab."+path, text) })
	}
	if a.DNS01 != nil {
		a.DNS01.check(func(path, text string) { report("tls.acme.dns01."+path, text) })
	}
}

func (e *EAB) check(report func(path, text string)) {
	if e.KeyID == "" {
		report("key_id", "needed: the authority shows it beside the HMAC key")
	}
	if checkSecret(e.HMACKeyFile, e.HMACKeyEnv, "hmac_key", report) {
		if _, err := e.key(); err != nil {
			report("hmac_key", err.Error())
		}
	}
}

func (e *EAB) key() (string, error) {
	key, err := readSecret(e.HMACKeyFile, e.HMACKeyEnv)
	if err != nil {
		return "", err
	}
	key = strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(key), "=") // some hand it out padded, or as plain base64
	if _, err := base64.RawURLEncoding.DecodeString(key); err != nil {
		return "", errors.New("is not base64url, as authorities hand it out")
	}
	return key, nil
}

func (d *DNS01) check(report func(path, text string)) {
	if d.RFC2136 == nil {
		report("rfc2136", "needed: the server that takes the record")
	} else {
		d.RFC2136.check(func(path, text string) { report("rfc2136."+path, text) })
	}
	if d.Domain != "" && !isDomain(strings.TrimPrefix(d.Domain, "_acme-challenge.")) {
		report("domain", fmt.Sprintf("%q is not a host name", d.Domain))
	}
	for i, r := range d.Resolvers {
		if _, _, err := net.SplitHostPort(r); err != nil {
			report(fmt.Sprintf("resolvers[%d]", i), fmt.Sprintf("%q is not host:port", r))
		}
	}
	if d.PropagationTimeout < 0 {
		report("propagation_timeout", "must not be negative")
	}
}

// checkSecret looks at a secret that is named by file or by environment variable: exactly one.
func checkSecret(file, env, name string, report func(path, text string)) (ok bool) {
	switch {
	case file == "" && env == "":
		report(name+"_file", "needed, or "+name+"_env")
	case file != "" && env != "":
		report(name+"_env", name+"_file is given as well; use one")
	case file != "":
		return checkFile(file, name+"_file", report)
	case os.Getenv(env) == "":
		report(name+"_env", "environment variable "+env+" is not set")
	default:
		return true
	}
	return false
}

func readSecret(file, env string) (string, error) {
	if file == "" {
		return strings.TrimSpace(os.Getenv(env)), nil
	}
	text, err := os.ReadFile(file)
	return strings.TrimSpace(string(text)), err
}

// pace is how often certificates are looked at, and how much of their life is left when they are renewed. The zero
// value is certmagic's: every ten minutes, a third, or when the authority says (RFC 9773).
type pace struct {
	check  time.Duration
	window float64
}

// open makes the certificates' manager. Nothing is asked of the authority until it manages: answering tls-alpn-01
// needs the listener, whose host and port are given.
func (a *ACME) open(domains []string, listener net.Addr, p pace, log *slog.Logger) (*certificates, error) {
	// Found out now, where it can still be told, rather than after the authority has made a certificate.
	if err := os.MkdirAll(a.Storage, 0o700); err != nil {
		return nil, fmt.Errorf("acme.storage: %w", err)
	}
	logger := zap.New(slogCore{log.With(slog.String("component", "acme"))})
	template := certmagic.ACMEIssuer{
		CA: a.Directory, Email: a.Email, Agreed: true, Profile: a.Profile, Logger: logger,
		DisableHTTPChallenge:    !slices.Contains(a.Challenges, challengeHTTP),
		DisableTLSALPNChallenge: !slices.Contains(a.Challenges, challengeALPN),
		AltHTTPPort:             a.HTTPPort,
	}
	if tcp, ok := listener.(*net.TCPAddr); ok {
		template.AltTLSALPNPort = tcp.Port // which is taken, by the listener that answers
		if !tcp.IP.IsUnspecified() {
			template.ListenHost = tcp.IP.String()
		}
	}
	if a.CAFile != "" {
		var err error
		if template.TrustedRoots, err = certificatesIn(a.CAFile); err != nil {
			return nil, fmt.Errorf("acme.ca_file: %w", err)
		}
	}
	if a.EAB != nil {
		key, err := a.EAB.key()
		if err != nil {
			return nil, fmt.Errorf("acme.eab.hmac_key: %w", err)
		}
		template.ExternalAccount = &acme.EAB{KeyID: a.EAB.KeyID, MACKey: key}
	}
	names := slices.Clone(domains)
	if a.DNS01 != nil {
		provider, err := a.DNS01.RFC2136.provider()
		if err != nil {
			return nil, fmt.Errorf("acme.dns01.rfc2136: %w", err)
		}
		template.DNS01Solver = &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
			DNSProvider: provider, TTL: time.Minute, Resolvers: a.DNS01.Resolvers,
			PropagationTimeout: a.DNS01.PropagationTimeout, OverrideDomain: a.DNS01.Domain, Logger: logger,
		}}
		for _, domain := range domains {
			names = append(names, "*."+domain)
		}
	}

	var magic *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return magic, nil },
		RenewCheckInterval: p.check,
		Logger:             logger,
	})
	magic = certmagic.New(cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: a.Storage}, Logger: logger, RenewalWindowRatio: p.window,
		DefaultServerName: domains[0], // clients that come by IP address send no name
		// Given a proxy, certmagic gives a responder half a minute; without, for ever, and a certificate is not shown before.
		OCSP: certmagic.OCSPConfig{HTTPProxy: http.ProxyFromEnvironment},
	})
	magic.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(magic, template)}

	return &certificates{
		tls: &tls.Config{
			MinVersion: tls.VersionTLS12, GetCertificate: magic.GetCertificate,
			NextProtos: []string{"h2", "http/1.1", "acme-tls/1"},
		},
		manage: func(ctx context.Context) {
			// Each by itself: one whose OCSP responder says nothing holds up no other, and not the start.
			for _, name := range names {
				go func() {
					if err := magic.ManageAsync(ctx, []string{name}); err != nil && ctx.Err() == nil {
						log.Error("certificate is not managed", slog.String("name", name), slog.Any("error", err))
					}
				}()
			}
		},
		expiries: func() map[string]time.Time {
			at := map[string]time.Time{}
			for _, name := range names {
				for _, c := range cache.AllMatchingCertificates(name) {
					if c.Leaf != nil && c.Leaf.NotAfter.After(at[name]) {
						at[name] = c.Leaf.NotAfter
					}
				}
			}
			return at
		},
		stop: cache.Stop,
	}, nil
}

// slogCore is zap's end of the operator's log: certmagic knows no other logger.
type slogCore struct{ log *slog.Logger }

func (c slogCore) Enabled(level zapcore.Level) bool {
	return c.log.Enabled(context.Background(), slogLevel(level))
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{slog.New(c.log.Handler().WithAttrs(attrs(fields)))}
}

func (c slogCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	record := slog.NewRecord(e.Time, slogLevel(e.Level), e.Message, 0)
	record.AddAttrs(attrs(fields)...)
	return c.log.Handler().Handle(context.Background(), record)
}

func (slogCore) Sync() error { return nil }

// slogLevel calls certmagic's notes on its own progress what they are to an operator.
func slogLevel(level zapcore.Level) slog.Level {
	switch {
	case level >= zapcore.ErrorLevel:
		return slog.LevelError
	case level == zapcore.WarnLevel:
		return slog.LevelWarn
	case level == zapcore.InfoLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func attrs(fields []zapcore.Field) []slog.Attr {
	encoded := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(encoded)
	}
	list := make([]slog.Attr, 0, len(encoded.Fields))
	for _, f := range fields {
		if value, ok := encoded.Fields[f.Key]; ok {
			list = append(list, slog.Any(f.Key, value))
		}
	}
	return list
}
