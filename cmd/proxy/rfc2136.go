package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"
)

// RFC2136 is a name server that takes signed dynamic updates: BIND, Knot, PowerDNS, NSD behind one of them, Windows.
type RFC2136 struct {
	Server        string `yaml:"server"`          // host:port of the zone's primary
	KeyName       string `yaml:"key_name"`        // of the TSIG key
	KeyAlgorithm  string `yaml:"key_algorithm"`   // [hmac-sha256] or hmac-sha384, hmac-sha512
	KeySecretFile string `yaml:"key_secret_file"` // base64, as tsig-keygen writes it
	KeySecretEnv  string `yaml:"key_secret_env"`
}

// MD5 and SHA-1 are left out: RFC 8945, section 6.
var tsigAlgorithms = map[string]string{
	"hmac-sha256": dns.HmacSHA256,
	"hmac-sha384": dns.HmacSHA384,
	"hmac-sha512": dns.HmacSHA512,
}

func (r *RFC2136) setDefaults() { set(&r.KeyAlgorithm, "hmac-sha256") }

func (r *RFC2136) check(report func(path, text string)) {
	if _, _, err := net.SplitHostPort(r.Server); err != nil {
		report("server", fmt.Sprintf("%q is not host:port", r.Server))
	}
	if _, ok := dns.IsDomainName(r.KeyName); !ok || r.KeyName == "" {
		report("key_name", "needed: updates are signed (tsig-keygen makes a key)")
	}
	if tsigAlgorithms[r.KeyAlgorithm] == "" {
		report("key_algorithm", fmt.Sprintf("%q is none of %s", r.KeyAlgorithm, strings.Join(slices.Sorted(maps.Keys(tsigAlgorithms)), ", ")))
	}
	if checkSecret(r.KeySecretFile, r.KeySecretEnv, "key_secret", report) {
		if _, err := r.secret(); err != nil {
			report("key_secret", err.Error())
		}
	}
}

func (r *RFC2136) secret() (string, error) {
	secret, err := readSecret(r.KeySecretFile, r.KeySecretEnv)
	if err != nil {
		return "", err
	}
	if key, err := base64.StdEncoding.DecodeString(secret); err != nil || len(key) < 16 {
		return "", errors.New("is not base64 of 16 bytes or more, as tsig-keygen writes it")
	}
	return secret, nil
}

func (r *RFC2136) provider() (*dnsUpdates, error) {
	secret, err := r.secret()
	if err != nil {
		return nil, fmt.Errorf("key_secret: %w", err)
	}
	return &dnsUpdates{server: r.Server, key: dns.CanonicalName(r.KeyName), algorithm: tsigAlgorithms[r.KeyAlgorithm], secret: secret}, nil
}

// dnsUpdates adds and takes away records by dynamic update, RFC 2136, signed by TSIG, RFC 8945.
type dnsUpdates struct{ server, key, algorithm, secret string }

// AppendRecords is libdns.RecordAppender.
func (u *dnsUpdates) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, u.update(ctx, zone, records, (*dns.Msg).Insert)
}

// DeleteRecords is libdns.RecordDeleter.
func (u *dnsUpdates) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, u.update(ctx, zone, records, (*dns.Msg).Remove)
}

func (u *dnsUpdates) update(ctx context.Context, zone string, records []libdns.Record, change func(*dns.Msg, []dns.RR)) error {
	m := new(dns.Msg).SetUpdate(dns.Fqdn(zone))
	var list []dns.RR
	for _, record := range records {
		rr := record.RR()
		if rr.Type != "TXT" {
			return fmt.Errorf("only TXT records are written, not %s", rr.Type)
		}
		list = append(list, &dns.TXT{
			Hdr: dns.RR_Header{Name: dns.Fqdn(libdns.AbsoluteName(rr.Name, zone)), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: uint32(rr.TTL / time.Second)},
			Txt: []string{rr.Data},
		})
	}
	change(m, list)
	m.SetTsig(u.key, u.algorithm, 300, time.Now().Unix())
	client := &dns.Client{Net: "tcp", Timeout: 10 * time.Second, TsigSecret: map[string]string{u.key: u.secret}}
	answer, _, err := client.ExchangeContext(ctx, m, u.server)
	if err != nil {
		return fmt.Errorf("update zone %s at %s: %w", zone, u.server, err)
	}
	if answer.Rcode != dns.RcodeSuccess {
		return fmt.Errorf("update zone %s at %s: the server says %s; may the key %q update it?", zone, u.server, dns.RcodeToString[answer.Rcode], u.key)
	}
	return nil
}
