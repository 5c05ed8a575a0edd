package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pebble "github.com/letsencrypt/pebble/v2/acme"
	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/libdns/libdns"
	"github.com/miekg/dns"
	"github.com/sluice-s3/sluice/test/machine"
	"golang.org/x/crypto/ocsp"
)

// authority is Let's Encrypt's test server, pebble, and the name server that it and the proxy ask.
type authority struct {
	issuing   *ca.CAImpl
	name      string // that certificates are asked for: certmagic keeps challenges by it, for the whole process
	directory string
	caFile    string // of the directory's own certificate
	httpPort  int    // where it looks for http-01
	address   string // where it looks for tls-alpn-01, and the proxy listens
	zone      *zone
	store     *db.MemoryStore // what it remembers
	stop      func()
}

// newAuthority starts pebble. Certificates last for so many seconds, and
// where a key is given, accounts need it.
func newAuthority(t *testing.T, lifetime uint64, eabID, eabKey string) *authority {
	t.Helper()
	return newAuthorityWith(t, lifetime, eabID, eabKey, "")
}

// newAuthorityWith is newAuthority whose certificates name an OCSP responder.
func newAuthorityWith(t *testing.T, lifetime uint64, eabID, eabKey, responder string) *authority {
	t.Helper()
	os.Setenv("PEBBLE_VA_NOSLEEP", "1") // it waits up to five seconds before it looks, unless told not to
	a := &authority{zone: newZone(t)}
	port := machine.FreePort(t)
	a.address, a.httpPort = fmt.Sprintf("127.0.0.1:%d", port), machine.FreePort(t)
	a.name = fmt.Sprintf("s3-%d.example.test", a.httpPort)

	logger := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	a.store = store
	a.issuing = ca.New(logger, store, responder, "rsa", 0, 1, map[string]ca.Profile{"default": {Description: "d", ValidityPeriod: lifetime}, "other": {Description: "o", ValidityPeriod: lifetime}})
	validating := va.New(logger, a.httpPort, port, true, a.zone.address, store)
	if eabID != "" {
		if err := store.AddExternalAccountKeyByID(eabID, eabKey); err != nil {
			t.Fatal(err)
		}
	}
	front := wfe.New(logger, store, validating, a.issuing, []string{"pebble.test"}, true, eabID != "", 1, 1)
	server := httptest.NewTLSServer(front.Handler())
	a.stop = func() { server.Config.Close() } // without waiting for anybody
	t.Cleanup(a.stop)
	a.directory = server.URL + wfe.DirectoryPath
	a.caFile = filepath.Join(t.TempDir(), "ca.pem")
	write(t, a.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	return a
}

// config asks this authority for certificates.
func (a *authority) config(t *testing.T, change func(*ACME)) *ACME {
	t.Helper()
	c := &ACME{Email: "ops@example.test", Directory: a.directory, CAFile: a.caFile, Storage: filepath.Join(t.TempDir(), "acme"), HTTPPort: a.httpPort}
	if change != nil {
		change(c)
	}
	c.setDefaults()
	c.check([]string{a.name}, func(path, text string) { t.Errorf("%s: %s", path, text) })
	return c
}

// serve answers where the authority looks with c's certificates, as serve.go does.
func (a *authority) serve(t *testing.T, c *ACME, p pace) *certificates {
	t.Helper()
	listener, err := net.Listen("tcp", a.address)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := c.open([]string{a.name}, listener.Addr(), p, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	server := newS3Server(http.NotFoundHandler(), nil, certs.tls, Limits{HeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second}, log.New(io.Discard, "", 0))
	go server.Serve(listener)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		server.Close()
		certs.stop()
	})
	certs.manage(ctx)
	return certs
}

// shown is the certificate that a client sees; nil where there is none.
func (a *authority) shown(name string) *x509.Certificate {
	if state := a.handshake(name); state != nil {
		return state.PeerCertificates[0]
	}
	return nil
}

// proof is the kind of challenge by which a certificate's name was proved.
func (a *authority) proof(t *testing.T, c *x509.Certificate) string {
	t.Helper()
	known := a.store.GetCertificateByDER(c.Raw)
	if known == nil {
		t.Fatal("a certificate of another authority")
	}
	authorization := a.store.FindValidAuthorization(known.AccountID, pebble.Identifier{Type: pebble.IdentifierDNS, Value: c.DNSNames[0]})
	if authorization == nil {
		t.Fatalf("%v is not proved", c.DNSNames)
	}
	authorization.RLock()
	defer authorization.RUnlock()
	for _, c := range authorization.Challenges {
		c.RLock()
		defer c.RUnlock()
		if c.Status == pebble.StatusValid {
			return c.Type
		}
	}
	return "nothing"
}

func (a *authority) handshake(name string) *tls.ConnectionState {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: machine.Patience}, "tcp", a.address, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		return nil
	}
	defer c.Close()
	state := c.ConnectionState()
	return &state
}

// wait polls until a certificate for name is shown that good likes.
func (a *authority) wait(t *testing.T, name string, good func(*x509.Certificate) bool) *x509.Certificate {
	t.Helper()
	deadline := time.Now().Add(150 * time.Second) // certmagic tries again after a minute, should a busy machine fail it once
	for time.Now().Before(deadline) {
		if c := a.shown(name); c != nil && good(c) {
			if err := c.VerifyHostname(name); err != nil {
				t.Error(err)
			}
			return c
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no certificate for %s", name)
	return nil
}

func anyCertificate(*x509.Certificate) bool { return true }

func TestACMEIssuesByEachChallenge(t *testing.T) {
	t.Parallel()
	for _, challenge := range []string{challengeHTTP, challengeALPN} {
		t.Run(challenge, func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t, 0, "", "")
			c := a.config(t, func(c *ACME) { c.Challenges, c.Profile = []string{challenge}, "other" })
			certs := a.serve(t, c, pace{})
			got := a.wait(t, a.name, anyCertificate)
			if !strings.Contains(got.Issuer.CommonName, "Pebble") {
				t.Errorf("issued by %s", got.Issuer)
			}
			if by := a.proof(t, got); by != challenge {
				t.Errorf("proved by %s", by)
			}
			account := a.store.GetCertificateByDER(got.Raw).AccountID
			if to := a.store.GetAccountByID(account).Contact; !slices.Equal(to, []string{"mailto:ops@example.test"}) {
				t.Errorf("the authority would write to %q", to)
			}
			if order := a.store.GetOrdersByAccountID(account)[0]; order.Profile != "other" {
				t.Errorf("ordered of profile %q", order.Profile)
			}
			if at := certs.expiries()[a.name]; !at.Equal(got.NotAfter) {
				t.Errorf("expires %v, the certificate says %v", at, got.NotAfter)
			}
			// Clients that come by address send no name.
			if bare := a.shown(""); bare == nil || !bare.Equal(got) {
				t.Error("another certificate, or none, without a server name")
			}
			if other := a.shown("elsewhere.test"); other != nil {
				t.Errorf("a certificate of %v for a name that is not ours", other.DNSNames)
			}
		})
	}
}

func TestACMERestartKeepsTheCertificate(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 0, "", "")
	c := a.config(t, nil)
	t.Run("before", func(t *testing.T) { a.serve(t, c, pace{}); a.wait(t, a.name, anyCertificate) })
	before := onlyCertificate(t, c.Storage)

	a.stop() // the authority is gone, and nothing is to be asked of it
	a.serve(t, c, pace{})
	if after := a.wait(t, a.name, anyCertificate); !after.Equal(before) {
		t.Error("another certificate after the restart")
	}
}

func TestACMERenews(t *testing.T) {
	t.Parallel()
	for {
		a := newAuthority(t, 12, "", "")
		watch := machine.Watch(t)
		a.serve(t, a.config(t, nil), pace{check: 500 * time.Millisecond, window: .5})
		first := a.wait(t, a.name, anyCertificate)
		if first.SerialNumber.BitLen()%8 == 0 { // DER has a zero before it, by which Pebble does not know it again: once in 256
			continue
		}
		second := a.wait(t, a.name, func(c *x509.Certificate) bool { return !c.Equal(first) })
		if !second.NotAfter.After(first.NotAfter) {
			t.Errorf("renewed until %v, was until %v", second.NotAfter, first.NotAfter)
		}
		if late := time.Since(first.NotAfter); late > watch.Excuse() {
			t.Errorf("renewed %v after the first had expired", late)
		}
		return
	}
}

func TestACMEWildcardByDNS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 0, "", "")
	secretFile := filepath.Join(t.TempDir(), "tsig")
	write(t, secretFile, []byte(a.zone.secret+"\n"))
	c := a.config(t, func(c *ACME) {
		c.DNS01 = &DNS01{Resolvers: []string{a.zone.address}, RFC2136: &RFC2136{Server: a.zone.address, KeyName: "sluice", KeySecretFile: secretFile}}
	})
	a.serve(t, c, pace{})
	a.wait(t, a.name, anyCertificate)
	if got := a.wait(t, "artifacts."+a.name, anyCertificate); !slices.Contains(got.DNSNames, "*."+a.name) {
		t.Errorf("names %v", got.DNSNames)
	}
	// The records are taken away again, in the background.
	machine.Until(t, "no challenge record is left", func() bool { return a.zone.count() == 0 })
	if added, refused := a.zone.counts(); added < 2 || refused != 0 {
		t.Errorf("%d records added, %d updates refused", added, refused)
	}
}

func TestRFC2136WrongKey(t *testing.T) {
	t.Parallel()
	z := newZone(t)
	other := make([]byte, 32)
	rand.Read(other)
	u := &dnsUpdates{server: z.address, key: "sluice.", algorithm: dns.HmacSHA256, secret: base64.StdEncoding.EncodeToString(other)}
	if _, err := u.AppendRecords(t.Context(), "example.test.", nil); err == nil {
		t.Fatal("a wrong key was taken")
	} else if strings.Contains(err.Error(), u.secret) {
		t.Errorf("the secret shows: %v", err)
	}
	if z.count() != 0 {
		t.Error("something was written")
	}
}

func TestACMEExternalAccount(t *testing.T) {
	key := make([]byte, 32)
	rand.Read(key)
	text := base64.StdEncoding.EncodeToString(key) + "\n" // plain base64, as some authorities hand it out
	keyFile := filepath.Join(t.TempDir(), "hmac")
	write(t, keyFile, []byte(text))
	t.Setenv("TEST_HMAC_KEY", text)
	for name, account := range map[string]EAB{
		"file": {KeyID: "customer-7", HMACKeyFile: keyFile}, "variable": {KeyID: "customer-7", HMACKeyEnv: "TEST_HMAC_KEY"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t, 0, "customer-7", base64.RawURLEncoding.EncodeToString(key))
			a.serve(t, a.config(t, func(c *ACME) { c.EAB = &account }), pace{})
			a.wait(t, a.name, anyCertificate)
		})
	}
}

// TestRFC2136KeyFromTheEnvironment: the server takes what is signed with it.
func TestRFC2136KeyFromTheEnvironment(t *testing.T) {
	z := newZone(t)
	t.Setenv("TEST_TSIG_KEY", z.secret)
	r := RFC2136{Server: z.address, KeyName: "sluice", KeySecretEnv: "TEST_TSIG_KEY"}
	r.setDefaults()
	u, err := r.provider()
	if err != nil {
		t.Fatal(err)
	}
	record := libdns.TXT{Name: "_acme-challenge", TTL: time.Minute, Text: "proof"}
	if _, err := u.AppendRecords(t.Context(), "example.test.", []libdns.Record{record}); err != nil || z.count() != 1 {
		t.Errorf("%d records, %v", z.count(), err)
	}
}

// TestACMEPropagationTimeout: a record that no resolver ever shows is given up after that long.
func TestACMEPropagationTimeout(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 0, "", "")
	elsewhere := newZone(t) // which nothing is written to
	secretFile := filepath.Join(t.TempDir(), "tsig")
	write(t, secretFile, []byte(a.zone.secret))
	c := a.config(t, func(c *ACME) {
		c.DNS01 = &DNS01{
			Resolvers: []string{elsewhere.address}, PropagationTimeout: time.Second,
			RFC2136: &RFC2136{Server: a.zone.address, KeyName: "sluice", KeySecretFile: secretFile},
		}
	})
	a.serve(t, c, pace{})
	machine.Until(t, "the record is written, and taken away again", func() bool {
		added, _ := a.zone.counts()
		return added > 0 && a.zone.count() == 0
	})
}

// responder says of every certificate that it is in order, or what fault has it do instead.
type responder struct {
	*httptest.Server
	fault atomic.Pointer[http.HandlerFunc]
	asked atomic.Int64
	ca    func() *ca.CAImpl
}

func newResponder(t *testing.T, authority func() *ca.CAImpl) *responder {
	r := &responder{ca: authority}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Server.Close)
	return r
}

func (r *responder) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.asked.Add(1)
	body, err := io.ReadAll(request.Body)
	if fault := r.fault.Load(); fault != nil {
		(*fault)(w, request)
		return
	}
	asked, err2 := ocsp.ParseRequest(body)
	if err := errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	issuer, err := x509.ParseCertificate(r.ca().GetIntermediateCert(0).DER)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer, err := ocsp.CreateResponse(issuer, issuer, ocsp.Response{
		Status: ocsp.Good, SerialNumber: asked.SerialNumber, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
	}, r.ca().GetIntermediateKey(0))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/ocsp-response")
	w.Write(answer)
}

// newAuthorityWithResponder names a responder in its certificates.
func newAuthorityWithResponder(t *testing.T) (*authority, *responder) {
	var a *authority
	r := newResponder(t, func() *ca.CAImpl { return a.issuing })
	a = newAuthorityWith(t, 0, "", "", r.URL)
	return a, r
}

func TestACMEStaplesOCSP(t *testing.T) {
	t.Parallel()
	a, r := newAuthorityWithResponder(t)
	c := a.config(t, nil)
	leaf := func() *x509.Certificate { return a.wait(t, a.name, anyCertificate) }
	stapled := func() *ocsp.Response {
		t.Helper()
		state := a.handshake(a.name)
		if state == nil || len(state.OCSPResponse) == 0 {
			return nil
		}
		response, err := ocsp.ParseResponseForCert(state.OCSPResponse, state.PeerCertificates[0], state.PeerCertificates[1])
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	t.Run("new", func(t *testing.T) {
		a.serve(t, c, pace{})
		leaf()
		if got := stapled(); got == nil || got.Status != ocsp.Good || r.asked.Load() == 0 {
			t.Errorf("stapled %+v, asked %d times", got, r.asked.Load())
		}
	})

	// A restart staples what is kept, although the responder has gone.
	down := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	r.fault.Store(&down)
	t.Run("kept", func(t *testing.T) {
		a.serve(t, c, pace{})
		leaf()
		if got := stapled(); got == nil || got.Status != ocsp.Good {
			t.Errorf("stapled %+v", got)
		}
	})
}

// TestACMEServesWithoutOCSP: a responder that is broken, lies or says nothing must not keep the proxy from serving; what is
// not good is not stapled.
func TestACMEServesWithoutOCSP(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]http.HandlerFunc{
		"down":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"nothing": func(w http.ResponseWriter, _ *http.Request) {},
		"cut":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"garbage": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "good, good") },
		"hangs":   func(_ http.ResponseWriter, request *http.Request) { <-request.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, r := newAuthorityWithResponder(t)
			r.fault.Store(&fault)
			a.serve(t, a.config(t, nil), pace{})
			a.wait(t, a.name, anyCertificate)
			if state := a.handshake(a.name); state == nil || len(state.OCSPResponse) > 0 {
				t.Errorf("the handshake's state is %+v", state)
			}
			if r.asked.Load() == 0 {
				t.Error("the responder was not asked")
			}
		})
	}
}

// TestACMEServes starts the whole proxy, which has to listen before the authority comes to look.
func TestACMEServes(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 0, "", "")
	dir := t.TempDir()
	file := filepath.Join(dir, "sluice.yaml")
	key := filepath.Join(dir, "key")
	write(t, key, []byte("AKIAEXAMPLEEXAMPLE12"))
	write(t, file, fmt.Appendf(nil, `
listen:
  address: %q
  domains: [%s]
  tls: {acme: {directory: %q, ca_file: %q, storage: %q, challenges: [tls-alpn-01]}}
admin: {address: "127.0.0.1:%d"}
issuers: [{issuer: "http://127.0.0.1:1", audiences: [https://s3.example.test]}]
policy: {dir: testdata/policy}
backends: [{name: b, buckets: ["*"], endpoint: "http://127.0.0.1:1", region: us-east-1, credentials: {static: {access_key_id_file: %q, secret_access_key_file: %q}}}]
audit: {file: {path: %q}}
log: {level: error}
`, a.address, a.name, a.directory, a.caFile, filepath.Join(dir, "acme"), machine.FreePort(t), key, key, filepath.Join(dir, "audit.jsonl")))
	c, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	s, err := start(file, c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.shutdown()
	got := a.wait(t, a.name, anyCertificate)

	for _, protocol := range []string{"h2", "http/1.1"} {
		conn, err := tls.Dial("tcp", a.address, &tls.Config{ServerName: a.name, InsecureSkipVerify: true, NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err)
		}
		if spoken := conn.ConnectionState().NegotiatedProtocol; spoken != protocol {
			t.Errorf("asked for %s, got %q", protocol, spoken)
		}
		conn.Close()
	}
	if at := s.certificates.expiries()[a.name]; !at.Equal(got.NotAfter) {
		t.Errorf("expires %v", at)
	}
}

func TestACMEConfigChecks(t *testing.T) {
	for _, c := range []struct {
		name    string
		acme    ACME
		domains []string
		want    string // path
	}{
		{"no names", ACME{}, nil, "tls.acme"},
		{"plain directory", ACME{Directory: "http://ca.example.com/dir"}, []string{"a.test"}, "tls.acme.directory"},
		{"unknown challenge", ACME{Challenges: []string{"dns-02"}}, []string{"a.test"}, "tls.acme.challenges[0]"},
		{"dns-01 by nobody", ACME{Challenges: []string{challengeDNS}}, []string{"a.test"}, "tls.acme.dns01"},
		{"dns-01 and another", ACME{Challenges: []string{challengeHTTP}, DNS01: &DNS01{}}, []string{"a.test"}, "tls.acme.challenges"},
		{"no provider", ACME{DNS01: &DNS01{}}, []string{"a.test"}, "tls.acme.dns01.rfc2136"},
		{"no TSIG key", ACME{DNS01: &DNS01{RFC2136: &RFC2136{Server: "ns:53"}}}, []string{"a.test"}, "tls.acme.dns01.rfc2136.key_name"},
		{"weak TSIG", ACME{DNS01: &DNS01{RFC2136: &RFC2136{Server: "ns:53", KeyName: "k", KeyAlgorithm: "hmac-md5"}}}, []string{"a.test"}, "tls.acme.dns01.rfc2136.key_algorithm"},
		{"no EAB key", ACME{EAB: &EAB{KeyID: "7"}}, []string{"a.test"}, "tls.acme.eab.hmac_key_file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var paths []string
			c.acme.setDefaults()
			c.acme.check(c.domains, func(path, _ string) { paths = append(paths, path) })
			if !slices.Contains(paths, c.want) {
				t.Errorf("reported %q, not %s", paths, c.want)
			}
		})
	}
}

// zone is a name server for example.test that takes updates signed with its key.
type zone struct {
	address string
	secret  string

	mu      sync.Mutex // guards all below
	records map[string][]string
	added   int
	refused int
}

func newZone(t *testing.T) *zone {
	t.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	z := &zone{secret: base64.StdEncoding.EncodeToString(key), records: map[string][]string{}}
	var tcp net.Listener
	var udp net.PacketConn
	for range 20 { // a port that is free for both
		var err error
		if tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if udp, err = net.ListenPacket("udp", tcp.Addr().String()); err == nil {
			break
		}
		tcp.Close()
	}
	if udp == nil {
		t.Fatal("no port is free")
	}
	z.address = tcp.Addr().String()
	keys := map[string]string{"sluice.": z.secret}
	accept := func(h dns.Header) dns.MsgAcceptAction { // the library's own drops updates
		if opcode := int(h.Bits>>11) & 0xf; opcode == dns.OpcodeUpdate {
			return dns.MsgAccept
		}
		return dns.DefaultMsgAcceptFunc(h)
	}
	for _, s := range []*dns.Server{{Listener: tcp}, {PacketConn: udp}} {
		s.Handler, s.TsigSecret, s.MsgAcceptFunc = dns.HandlerFunc(z.answer), keys, accept
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return z
}

func (z *zone) answer(w dns.ResponseWriter, q *dns.Msg) {
	a := new(dns.Msg).SetReply(q)
	a.Authoritative = true
	if q.Opcode == dns.OpcodeUpdate {
		z.update(w, q, a)
		w.WriteMsg(a)
		return
	}
	name := dns.CanonicalName(q.Question[0].Name)
	header := dns.RR_Header{Name: name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 1}
	switch q.Question[0].Qtype {
	case dns.TypeA:
		a.Answer = []dns.RR{&dns.A{Hdr: header, A: net.IPv4(127, 0, 0, 1)}}
	case dns.TypeTXT:
		z.mu.Lock()
		for _, text := range z.records[name] {
			a.Answer = append(a.Answer, &dns.TXT{Hdr: header, Txt: []string{text}})
		}
		z.mu.Unlock()
	case dns.TypeSOA:
		if name == "example.test." {
			a.Answer = []dns.RR{&dns.SOA{Hdr: header, Ns: "ns.example.test.", Mbox: "ops.example.test.", Serial: 1, Refresh: 60, Retry: 60, Expire: 60, Minttl: 1}}
		}
	}
	w.WriteMsg(a)
}

func (z *zone) update(w dns.ResponseWriter, q, a *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if q.IsTsig() == nil || w.TsigStatus() != nil {
		z.refused++
		a.Rcode = dns.RcodeNotAuth
		return
	}
	for _, rr := range q.Ns {
		txt := rr.(*dns.TXT)
		name := dns.CanonicalName(txt.Hdr.Name)
		if txt.Hdr.Class == dns.ClassNONE { // take away
			z.records[name] = slices.DeleteFunc(z.records[name], func(s string) bool { return s == txt.Txt[0] })
			continue
		}
		z.records[name] = append(z.records[name], txt.Txt[0])
		z.added++
	}
	a.SetTsig("sluice.", dns.HmacSHA256, 300, time.Now().Unix())
}

func (z *zone) count() (n int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, list := range z.records {
		n += len(list)
	}
	return n
}

func (z *zone) counts() (added, refused int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.added, z.refused
}

// onlyCertificate is the certificate that is kept below dir.
func onlyCertificate(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "certificates", "*", "*", "*.crt"))
	if len(files) != 1 {
		t.Fatalf("certificates %q", files)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// testLog keeps a log for when the test fails.
func testLog(t *testing.T) *slog.Logger {
	var kept lockedLog
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", kept.String())
		}
	})
	return slog.New(slog.NewTextHandler(&kept, nil))
}

type lockedLog struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
