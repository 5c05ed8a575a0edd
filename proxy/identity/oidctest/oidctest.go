// Package oidctest is an OpenID Connect issuer for tests and for the quickstart: a real HTTP server with
// discovery and a key set, which makes tokens, rotates its keys and fails in the ways issuers do.
package oidctest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Options are all optional.
type Options struct {
	Addr      string           // where to listen [127.0.0.1:0]
	Path      string           // of the issuer's URL, e.g. "/realms/acme" [none]
	Algorithm string           // that tokens are signed with [ES256, whose keys are made fastest]
	TLS       bool             // serve https with a certificate that CertificatePEM's CA signed
	Now       func() time.Time // for iat and exp [time.Now]
}

// Issuer makes tokens and serves what is needed to verify them.
type Issuer struct {
	url    string
	alg    jose.SignatureAlgorithm
	now    func() time.Time
	ca     []byte
	server *http.Server

	mu          sync.Mutex // guards all below
	keys        []jose.JSONWebKey
	made        int
	fault       Fault
	over        chan struct{} // closed when there is another fault
	fetches     int
	discoveries int
	closed      chan struct{}
}

// Fault is how an issuer misbehaves, at discovery and at its keys alike. The zero value is health.
type Fault struct {
	Drop     bool          // cut the connection without an answer
	Delay    time.Duration // before the answer, or until the next call of Fail
	Status   int           // instead of 200
	Redirect string        // to this URL, with 302
	Body     string        // instead of the document
	Huge     bool          // the document is followed by 64 MiB of blanks
}

// New starts an issuer. Like httptest.NewServer it panics where it cannot listen.
func New(o Options) *Issuer {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.Algorithm == "" {
		o.Algorithm = string(jose.ES256)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		panic(fmt.Sprintf("oidctest: %v", err))
	}
	i := &Issuer{alg: jose.SignatureAlgorithm(o.Algorithm), now: o.Now, closed: make(chan struct{}), over: make(chan struct{})}
	i.url = "http://" + listener.Addr().String() + o.Path
	if o.TLS {
		i.url = "https://" + listener.Addr().String() + o.Path
		var certificate tls.Certificate
		i.ca, certificate = certify()
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}})
	}
	i.addKey()

	mux := http.NewServeMux()
	mux.HandleFunc("GET "+strings.TrimSuffix(o.Path, "/")+"/.well-known/openid-configuration", i.serveDiscovery)
	mux.HandleFunc("GET "+strings.TrimSuffix(o.Path, "/")+"/keys", i.serveKeys)
	i.server = &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0)}
	go i.server.Serve(listener)
	return i
}

// URL is the issuer's name, as in tokens' iss.
func (i *Issuer) URL() string { return i.url }

// KeysURL is where the key set is.
func (i *Issuer) KeysURL() string { return strings.TrimSuffix(i.url, "/") + "/keys" }

// CertificatePEM is the CA that a client has to trust where Options.TLS is set.
func (i *Issuer) CertificatePEM() []byte { return i.ca }

// Close stops the server and cuts its connections.
func (i *Issuer) Close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.closed:
	default:
		close(i.closed)
		i.server.Close()
	}
}

// Fail makes the issuer misbehave until the next call; Fail(Fault{}) heals it.
func (i *Issuer) Fail(f Fault) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fault = f
	close(i.over)
	i.over = make(chan struct{})
}

// Fetches counts the requests for keys, failed ones included.
func (i *Issuer) Fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

// Discoveries counts the requests for the discovery document, failed ones included.
func (i *Issuer) Discoveries() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.discoveries
}

// Rotate signs with a new key from now on; the older ones stay published until Withdraw.
func (i *Issuer) Rotate() { i.addKey() }

// Withdraw publishes no key but the newest.
func (i *Issuer) Withdraw() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = i.keys[len(i.keys)-1:]
}

// Publish adds a key to the set without signing with it: a second one of the same kid, say.
func (i *Issuer) Publish(key jose.JSONWebKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append([]jose.JSONWebKey{key}, i.keys...)
}

// Key is the key that signs now, private part included.
func (i *Issuer) Key() jose.JSONWebKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[len(i.keys)-1]
}

// JWKS is the published key set as JSON.
func (i *Issuer) JWKS() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	set := struct {
		Keys []jose.JSONWebKey `json:"keys"`
	}{}
	for _, k := range i.keys {
		set.Keys = append(set.Keys, k.Public())
	}
	data, err := json.Marshal(set)
	if err != nil {
		panic(fmt.Sprintf("oidctest: %v", err))
	}
	return data
}

// Token signs claims. iss, sub, iat, exp (in an hour) and jti are filled in where absent; a claim that is nil is left out.
// There is no aud unless it is given.
func (i *Issuer) Token(claims map[string]any, options ...TokenOption) string {
	now := i.now()
	all := map[string]any{
		"iss": i.url,
		"sub": "workspace",
		"iat": now.Unix(),
		"exp": now.Add(time.Hour).Unix(),
		"jti": rand.Text(),
	}
	for name, value := range claims {
		if value == nil {
			delete(all, name)
			continue
		}
		all[name] = value
	}
	return i.sign(all, options)
}

// LogoutToken signs a back-channel logout token; claims are added to or, where nil, taken from the usual ones.
// It needs an aud, and a sub or a sid.
func (i *Issuer) LogoutToken(claims map[string]any, options ...TokenOption) string {
	all := map[string]any{
		"sub":    nil,
		"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
		"exp":    i.now().Add(2 * time.Minute).Unix(),
	}
	for name, value := range claims {
		all[name] = value
	}
	return i.Token(all, append([]TokenOption{Header("typ", "logout+jwt")}, options...)...)
}

// TokenOption changes how a token is signed.
type TokenOption func(*tokenOptions)

type tokenOptions struct {
	key     jose.JSONWebKey
	alg     jose.SignatureAlgorithm
	headers map[string]any
	noKid   bool
}

// Header sets a header parameter of the token.
func Header(name string, value any) TokenOption {
	return func(o *tokenOptions) { o.headers[name] = value }
}

// KeyID names another key than the one that signs.
func KeyID(kid string) TokenOption {
	return func(o *tokenOptions) { o.key.KeyID = kid }
}

// NoKeyID leaves kid out.
func NoKeyID() TokenOption {
	return func(o *tokenOptions) { o.noKid = true }
}

// SignWith signs by key, which the issuer need not have published.
func SignWith(key jose.JSONWebKey) TokenOption {
	return func(o *tokenOptions) { o.key, o.alg = key, jose.SignatureAlgorithm(key.Algorithm) }
}

func (i *Issuer) sign(claims map[string]any, options []TokenOption) string {
	o := tokenOptions{key: i.Key(), alg: i.alg, headers: map[string]any{"typ": "JWT"}}
	for _, option := range options {
		option(&o)
	}
	if !o.noKid {
		o.headers["kid"] = o.key.KeyID
	}
	signerOptions := &jose.SignerOptions{}
	for name, value := range o.headers {
		signerOptions.WithHeader(jose.HeaderKey(name), value)
	}
	// The bare key, not the JWK: a JWK's own kid would win over the header.
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: o.alg, Key: o.key.Key}, signerOptions)
	if err != nil {
		panic(fmt.Sprintf("oidctest: %v", err))
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(fmt.Sprintf("oidctest: %v", err))
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		panic(fmt.Sprintf("oidctest: %v", err))
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		panic(fmt.Sprintf("oidctest: %v", err))
	}
	return token
}

// NewKey makes a private key for an algorithm.
func NewKey(algorithm, kid string) jose.JSONWebKey {
	var private crypto.Signer
	var err error
	switch jose.SignatureAlgorithm(algorithm) {
	case jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	case jose.ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.ES512:
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case jose.EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("no key for algorithm %q", algorithm)
	}
	if err != nil {
		panic(fmt.Sprintf("oidctest: %v", err))
	}
	return jose.JSONWebKey{Key: private, KeyID: kid, Algorithm: algorithm, Use: "sig"}
}

func (i *Issuer) addKey() {
	i.mu.Lock()
	i.made++
	kid := fmt.Sprintf("key-%d", i.made)
	i.mu.Unlock()
	key := NewKey(string(i.alg), kid)
	i.mu.Lock()
	i.keys = append(i.keys, key)
	i.mu.Unlock()
}

func (i *Issuer) serveDiscovery(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.discoveries++
	i.mu.Unlock()
	document, err := json.Marshal(map[string]any{
		"issuer":                                i.url,
		"jwks_uri":                              i.KeysURL(),
		"id_token_signing_alg_values_supported": []string{string(i.alg)},
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
	})
	if err != nil {
		panic(fmt.Sprintf("oidctest: %v", err))
	}
	i.answer(w, r, document)
}

func (i *Issuer) serveKeys(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.fetches++
	i.mu.Unlock()
	i.answer(w, r, i.JWKS())
}

func (i *Issuer) answer(w http.ResponseWriter, r *http.Request, document []byte) {
	i.mu.Lock()
	fault, over := i.fault, i.over
	i.mu.Unlock()
	if fault.Delay > 0 {
		wait, cancel := context.WithTimeout(r.Context(), fault.Delay)
		defer cancel()
		select {
		case <-wait.Done():
		case <-over:
		case <-i.closed:
		}
	}
	switch {
	case fault.Drop:
		panic(http.ErrAbortHandler)
	case fault.Redirect != "":
		http.Redirect(w, r, fault.Redirect, http.StatusFound)
		return
	case fault.Body != "":
		document = []byte(fault.Body)
	}
	w.Header().Set("Content-Type", "application/json")
	if fault.Status != 0 {
		w.WriteHeader(fault.Status)
	}
	w.Write(document)
	if fault.Huge {
		io.CopyN(w, blanks{}, 64<<20)
	}
}

type blanks struct{}

func (blanks) Read(p []byte) (int, error) {
	for n := range p {
		p[n] = ' '
	}
	return len(p), nil
}

// certify makes a CA and a certificate by it for the loopback names.
func certify() (ca []byte, server tls.Certificate) {
	issue := func(template, parent *x509.Certificate, signer crypto.Signer) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(fmt.Sprintf("oidctest: %v", err))
		}
		if signer == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			panic(fmt.Sprintf("oidctest: %v", err))
		}
		return der, key
	}
	// Real time whatever Options.Now says: TLS clients go by it.
	begin, end := time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "oidctest CA"}, NotBefore: begin, NotAfter: end,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	rootDER, rootKey := issue(root, nil, nil)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "oidctest"}, NotBefore: begin, NotAfter: end,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, leafKey := issue(leaf, root, rootKey)
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
	return ca, tls.Certificate{Certificate: [][]byte{leafDER, rootDER}, PrivateKey: leafKey}
}
