package ship_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/sluice-s3/sluice/audit/ship"
	"github.com/sluice-s3/sluice/test/machine"
	"github.com/twmb/franz-go/pkg/kfake"
)

// certificate is one that signs itself, for 127.0.0.1 and for clients; with the files that the configuration names.
func certificate(t *testing.T) (pair tls.Certificate, pool *x509.CertPool, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "sluice-1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile = file(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	keyFile = file(t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	if pair, err = tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return pair, pool, certFile, keyFile
}

// TestFarEndsOverTLS: each kind believes ca_file, and shows cert_file to who asks. Without either nothing is sent.
func TestFarEndsOverTLS(t *testing.T) {
	theirs, _, caFile, _ := certificate(t)
	_, known, certFile, keyFile := certificate(t)
	secure := &tls.Config{Certificates: []tls.Certificate{theirs}, ClientCAs: known, ClientAuth: tls.RequireAndVerifyClientCert}

	got := http.Header{}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header.Clone() }))
	web.TLS = secure.Clone()
	web.StartTLS()
	defer web.Close()
	ns := startNATS(t, &server.Options{TLS: true, TLSVerify: true, TLSConfig: secure.Clone()})
	kc, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "audit"), kfake.TLS(secure.Clone()))
	if err != nil {
		t.Fatal(err)
	}
	defer kc.Close()

	headers := file(t, "X-Scope-OrgID: acme\n")
	for name, with := range map[string]func(ship.Connection) ship.Config{
		"otlp": func(n ship.Connection) ship.Config {
			return ship.Config{OTLP: &ship.OTLP{Endpoint: web.URL, HTTP: ship.HTTP{Connection: n, HeadersFile: headers, TokenFile: file(t, "secret")}}}
		},
		"webhook": func(n ship.Connection) ship.Config {
			return ship.Config{Webhook: &ship.Webhook{URL: web.URL, HTTP: ship.HTTP{Connection: n}}}
		},
		"nats": func(n ship.Connection) ship.Config {
			return ship.Config{NATS: &ship.NATS{URL: strings.Replace(ns.ClientURL(), "nats:", "tls:", 1), Stream: "A", Connection: n}}
		},
		"kafka": func(n ship.Connection) ship.Config {
			return ship.Config{Kafka: &ship.Kafka{Brokers: kc.ListenAddrs(), Topic: "audit", TLS: true, Connection: n}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for lacks, n := range map[string]ship.Connection{
				"a CA, which the system has not": {CertFile: certFile, KeyFile: keyFile},
				"a certificate to show":          {CAFile: caFile},
			} {
				t.Run("without "+lacks, func(t *testing.T) {
					// Of that, and of nothing else: an answer that is no TLS would be another error. In TLS 1.3 a server may close
					// before the client has read why.
					refused(t, with(n), "certificate", "after TLS handshake")
				})
			}
			if sent, err := send(t, with(ship.Connection{CAFile: caFile, CertFile: certFile, KeyFile: keyFile}), "{}"); err != nil || sent != 1 {
				t.Errorf("with both: %d sent, %v", sent, err)
			}
			if name == "otlp" && (got.Get("X-Scope-Orgid") != "acme" || got.Get("Authorization") != "Bearer secret") {
				t.Errorf("sent with %v", got)
			}
		})
	}
}

// TestNATSCredentials: a .creds file lets in where nothing else does.
func TestNATSCredentials(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	public := func(kp nkeys.KeyPair, err error) (nkeys.KeyPair, string) {
		must(err)
		name, err := kp.PublicKey()
		must(err)
		return kp, name
	}
	operator, operatorName := public(nkeys.CreateOperator())
	account, accountName := public(nkeys.CreateAccount())
	_, systemName := public(nkeys.CreateAccount())
	user, userName := public(nkeys.CreateUser())
	resolver := &server.MemAccResolver{}
	for _, name := range []string{accountName, systemName} {
		claims := jwt.NewAccountClaims(name)
		if name == accountName {
			claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
		}
		encoded, err := claims.Encode(operator)
		must(err)
		must(resolver.Store(name, encoded))
	}
	trusted := jwt.NewOperatorClaims(operatorName)
	trusted.SystemAccount = systemName
	s := startNATS(t, &server.Options{TrustedOperators: []*jwt.OperatorClaims{trusted}, SystemAccount: systemName, AccountResolver: resolver})
	token, err := jwt.NewUserClaims(userName).Encode(account)
	must(err)
	seed, err := user.Seed()
	must(err)
	creds, err := jwt.FormatUserConfig(token, seed)
	must(err)

	n := ship.NATS{URL: s.ClientURL(), Stream: "A"}
	if sent, err := send(t, ship.Config{NATS: &n}, "{}"); err == nil || sent != 0 {
		t.Error("the server asks for no credentials, and shows nothing")
	}
	n.CredentialsFile = file(t, string(creds))
	if sent, err := send(t, ship.Config{NATS: &n}, "{}"); err != nil || sent != 1 {
		t.Errorf("%d, %v", sent, err)
	}
}

// TestFormatStandsInEitherPlace: beside the far end, or among its own settings.
func TestFormatStandsInEitherPlace(t *testing.T) {
	within := ship.Connection{Format: ship.OCSF}
	for _, c := range []ship.Config{
		{Format: ship.OCSF, NATS: &ship.NATS{}}, {NATS: &ship.NATS{Connection: within}}, {Kafka: &ship.Kafka{Connection: within}},
		{OTLP: &ship.OTLP{HTTP: ship.HTTP{Connection: within}}}, {Webhook: &ship.Webhook{HTTP: ship.HTTP{Connection: within}}},
	} {
		if got := c.BodyFormat(); got != ship.OCSF {
			t.Errorf("%s: %s", c.Kind(), got)
		}
	}
}

// startNATS runs a server with JetStream on a free port.
func startNATS(t *testing.T, o *server.Options) *server.Server {
	t.Helper()
	o.Host, o.Port, o.JetStream, o.StoreDir, o.NoLog, o.NoSigs = "127.0.0.1", -1, true, t.TempDir(), true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(machine.Patience) {
		t.Fatal("the NATS server does not start")
	}
	return s
}
