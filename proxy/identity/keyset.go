package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// maxKeysBytes bounds a discovery document and a key set alike. The largest published ones are below 100 KiB.
const maxKeysBytes = 1 << 20

// maxWaiting bounds the requests that wait for keys: while an issuer answers slowly, tokens that nobody has verified
// yet must not take all the room there is.
const maxWaiting = 256

// maxKeys bounds the work that a token without a kid can cause: every key is tried on it.
const maxKeys = 64

// keyTiming paces a key set. Nothing here is for operators to turn: an issuer's health does not depend on who asks it.
type keyTiming struct {
	cooldown time.Duration // between two fetches that tokens caused
	absent   time.Duration // for which a kid that a fetch did not bring causes no other
	refresh  time.Duration // between two fetches of a healthy issuer: how long a withdrawn key may still work
	file     time.Duration // the same for jwks_file
	retry    time.Duration // after a failure; doubled up to maxRetry
	maxRetry time.Duration
	stale    time.Duration // for which keys are used while the issuer cannot be asked
	timeout  time.Duration // of a fetch, discovery included
}

var defaultKeyTiming = keyTiming{
	cooldown: 10 * time.Second,
	absent:   30 * time.Second,
	refresh:  5 * time.Minute,
	file:     2 * time.Second,
	retry:    time.Second,
	maxRetry: 15 * time.Second,
	stale:    24 * time.Hour,
	timeout:  5 * time.Second,
}

// keySet is the keys of one issuer. go-oidc's RemoteKeySet fetches once for each token it cannot verify, keeps
// withdrawn keys for ever, reads bodies of any size and does not look at what a key is for; hence this one, which has
// such a set for each key.
type keySet struct {
	issuer string
	file   string       // static keys instead of discovery
	client *http.Client // for discovery
	timing keyTiming
	now    func() time.Time

	current atomic.Pointer[keys] // replaced only when the keys differ, so that it tells what was verified by which

	ctx context.Context // of follow: fetches outlive the request that caused them, but not this

	mu        sync.Mutex // guards all below
	flight    *flight    // the fetch under way
	waiting   int        // requests that wait for it
	url       string     // jwks_uri, once discovered
	demanded  time.Time  // when a token last caused a fetch
	absent    map[string]time.Time
	attempted time.Time // when the last fetch ended
	fetched   time.Time // when the last good one did
	failures  int       // since then
	err       error     // of the last fetch
	changed   chan struct{}
}

type flight struct{ done chan struct{} }

// keys is one published set, never changed.
type keys struct{ list []*key }

// key is a public key and what it may verify.
type key struct {
	jwk        jose.JSONWebKey
	set        *oidc.RemoteKeySet // of it alone
	algorithms []jose.SignatureAlgorithm
	id         string // kid and thumbprint: equal for equal keys of two fetches
}

func newKeySet(issuer string, c *IssuerConfig, now func() time.Time, timing keyTiming) (*keySet, error) {
	s := &keySet{
		issuer: issuer, file: c.JWKSFile, timing: timing, now: now,
		absent: map[string]time.Time{}, changed: make(chan struct{}, 1),
	}
	s.current.Store(&keys{})
	if s.file != "" {
		return s, nil
	}
	roots, err := loadRoots(c.CAFile)
	if err != nil {
		return nil, err
	}
	s.client = newKeysClient(roots, timing.timeout)
	return s, nil
}

// follow fetches now and again until ctx ends. The first fetch is under way when it returns.
func (s *keySet) follow(ctx context.Context) {
	s.ctx = ctx
	s.mu.Lock()
	s.fetchLocked()
	s.mu.Unlock()
	go func() {
		if s.client != nil {
			defer s.client.CloseIdleConnections()
		}
		for {
			timer := time.NewTimer(s.pause())
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-s.changed: // a fetch ended that was not ours: count from there
				timer.Stop()
				continue
			case <-timer.C:
			}
			s.dropStale()
			s.mu.Lock()
			f := s.fetchLocked()
			s.mu.Unlock()
			<-f.done
		}
	}()
}

// pause is how long to wait for the next fetch.
func (s *keySet) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	pause := s.timing.refresh
	if s.file != "" {
		pause = s.timing.file
	}
	if s.failures > 0 && s.file == "" {
		pause = min(s.timing.retry<<min(s.failures-1, 10), s.timing.maxRetry)
	}
	// Replicas that started together should not ask together.
	return pause - time.Duration(rand.Int64N(int64(pause)/5+1))
}

// fetchLocked starts a fetch or joins the one under way. s.mu is held.
func (s *keySet) fetchLocked() *flight {
	if s.flight != nil {
		return s.flight
	}
	f := &flight{done: make(chan struct{})}
	s.flight = f
	url := s.url
	go func() {
		ctx, cancel := context.WithTimeout(s.ctx, s.timing.timeout)
		defer cancel()
		list, url, err := s.fetch(ctx, url)

		s.mu.Lock()
		defer s.mu.Unlock()
		s.flight, s.url, s.err, s.attempted = nil, url, err, s.now()
		if err == nil {
			s.failures, s.fetched = 0, s.attempted
			if old := s.current.Load(); !old.same(list) {
				s.current.Store(&keys{list})
				clear(s.absent)
			}
		} else {
			s.failures++
			s.url = "" // it may have moved
		}
		close(f.done)
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}()
	return f
}

// dropStale ends the trust in keys that the issuer has not confirmed for too long: one that was stolen and
// withdrawn would otherwise work for as long as its thief can keep us from the issuer.
func (s *keySet) dropStale() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && !s.fetched.IsZero() && s.now().Sub(s.fetched) > s.timing.stale && len(s.current.Load().list) > 0 {
		s.current.Store(&keys{})
	}
}

// inherit takes over what another set of the same issuer knows, until a fetch of its own succeeds.
func (s *keySet) inherit(from *keySet) {
	from.mu.Lock()
	defer from.mu.Unlock()
	s.current.Store(from.current.Load())
	s.fetched = from.fetched
}

// verify checks the signature of a token. Its errors are *Error: BadToken where the keys are known not to match,
// Unavailable where that cannot be told.
func (s *keySet) verify(ctx context.Context, t *token, raw string) (payload []byte, by *key, of *keys, err error) {
	of = s.current.Load()
	if payload, by = of.verify(ctx, t, raw); by != nil {
		return payload, by, of, nil
	}
	kid := t.kid
	var down error
	// A fetch that was under way when the token came may have been answered before its key was published, so where
	// that does not help, one more is tried.
	for range 2 {
		var joined bool
		if joined, down, err = s.demand(ctx, kid); err != nil {
			return nil, nil, nil, err
		}
		if now := s.current.Load(); now != of {
			of = now
			if payload, by = of.verify(ctx, t, raw); by != nil {
				return payload, by, of, nil
			}
		}
		if !joined {
			break
		}
	}
	switch {
	case kid != "" && of.has(kid):
		return nil, nil, nil, &Error{Kind: BadToken, Message: "the token's signature does not match its issuer's key: it was changed on the way, cut short, or signed by someone else"}
	case down != nil:
		return nil, nil, nil, &Error{
			Kind:    Unavailable,
			Message: fmt.Sprintf("the keys of issuer %s cannot be fetched now, so the token cannot be verified: try again", s.issuer),
			Err:     down,
		}
	case kid == "":
		return nil, nil, nil, &Error{Kind: BadToken, Message: fmt.Sprintf("the token's signature matches no key of issuer %s", s.issuer)}
	default:
		return nil, nil, nil, &Error{Kind: BadToken, Message: fmt.Sprintf("the token is signed by a key that issuer %s does not publish: fetch a new token", s.issuer)}
	}
}

// demand fetches because a token could not be verified, at most once in a cool-down whatever tokens come, and
// returns the error of the last fetch. Tokens that come meanwhile wait for the same fetch; joined tells those that it
// began before they came.
func (s *keySet) demand(ctx context.Context, kid string) (joined bool, down, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flight
	joined = f != nil
	if !joined {
		now := s.now()
		at, absent := s.absent[kid]
		if now.Sub(s.demanded) < s.timing.cooldown || absent && now.Sub(at) < s.timing.absent {
			return false, s.err, nil
		}
		s.demanded = now
		f = s.fetchLocked()
	}
	if s.waiting >= maxWaiting {
		return false, nil, &Error{Kind: Unavailable, Message: fmt.Sprintf("issuer %s is slow to show its keys: try again", s.issuer), Err: s.err}
	}
	s.waiting++
	s.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		err = &Error{Kind: Unavailable, Message: "the request ended while its issuer's keys were fetched", Err: ctx.Err()}
	}
	s.mu.Lock()
	s.waiting--
	if err == nil && s.err == nil && !joined {
		if len(s.absent) >= 1024 {
			clear(s.absent) // the cool-down still holds
		}
		s.absent[kid] = s.now() // or not: then nobody asks
	}
	return joined, s.err, err
}

// refresh fetches and waits: for the doctor, who wants to know now.
func (s *keySet) refresh(ctx context.Context) error {
	s.mu.Lock()
	f := s.fetchLocked()
	s.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *keySet) status() IssuerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := len(s.current.Load().list)
	status := IssuerStatus{Issuer: s.issuer, Ready: count > 0, Keys: count, Fetched: s.fetched}
	if s.err != nil {
		status.Error = s.err.Error()
	}
	return status
}

// verify tries the keys that may have signed a token. ctx is the one that go-oidc's verifier made.
func (k *keys) verify(ctx context.Context, t *token, raw string) ([]byte, *key) {
	ctx = context.WithoutCancel(ctx) // nothing is waited for
	for _, key := range k.list {
		if t.kid != "" && t.kid != key.jwk.KeyID {
			continue // two keys may have one kid, so a mismatch below ends nothing
		}
		if !slices.Contains(key.algorithms, t.algorithm) {
			continue
		}
		if payload, err := key.set.VerifySignature(ctx, raw); err == nil {
			return payload, key
		}
	}
	return nil, nil
}

func (k *keys) has(kid string) bool {
	return slices.ContainsFunc(k.list, func(key *key) bool { return key.jwk.KeyID == kid })
}

// holds tells whether a key of an earlier set is still published.
func (k *keys) holds(old *key) bool {
	return slices.ContainsFunc(k.list, func(key *key) bool { return key.id == old.id })
}

func (k *keys) same(list []*key) bool {
	return slices.EqualFunc(k.list, list, func(a, b *key) bool { return a.id == b.id })
}

// fetch gets the published keys, and where they are if url does not say.
func (s *keySet) fetch(ctx context.Context, url string) ([]*key, string, error) {
	if s.file != "" {
		list, err := readKeyFile(s.file)
		return list, "", err
	}
	if url == "" {
		var err error
		if url, err = s.discover(ctx); err != nil {
			return nil, "", fmt.Errorf("discover %s: %w", s.issuer, oneLine(err))
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", fmt.Errorf("fetch keys: %w", oneLine(err))
	}
	response, err := s.client.Do(request)
	if err != nil {
		return nil, "", fmt.Errorf("fetch keys: %w", oneLine(err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("fetch keys: %s answers %s", url, response.Status)
	}
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, "", fmt.Errorf("fetch keys: read %s: %w", url, err)
	}
	list, _, err := parseKeys(data)
	if err != nil {
		return nil, "", fmt.Errorf("fetch keys: %s: %w", url, err)
	}
	return list, url, nil
}

// discover asks the issuer where its keys are. go-oidc holds the document's issuer against ours.
func (s *keySet) discover(ctx context.Context) (string, error) {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, s.client), s.issuer)
	if err != nil {
		return "", err
	}
	var document struct {
		KeysURL string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return "", err
	}
	u, err := url.Parse(document.KeysURL)
	if err != nil || u.Host == "" {
		return "", errors.New("the discovery document has no usable jwks_uri")
	}
	if u.Scheme != "https" {
		// Only an issuer on this machine may keep its keys on this machine.
		issuer, err := url.Parse(s.issuer)
		if err != nil || u.Scheme != "http" || !isLoopback(u.Hostname()) || !isLoopback(issuer.Hostname()) {
			return "", fmt.Errorf("jwks_uri %q is not https", document.KeysURL)
		}
	}
	return document.KeysURL, nil
}

// readKeyFile reads jwks_file. A private key in it is refused: it was copied where it should not be.
func readKeyFile(path string) ([]*key, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxKeysBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxKeysBytes {
		return nil, fmt.Errorf("%s is larger than 1 MiB", path)
	}
	list, private, err := parseKeys(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(private) > 0 {
		return nil, fmt.Errorf("%s has the private part of key %q: keep public keys only, and replace that one", path, private[0])
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s has no public key that can verify a token", path)
	}
	return list, nil
}

// parseKeys reads a JWK set. RFC 7517, section 5: keys that are not understood are passed over; so are those that
// are not for signatures, those too weak for any, and those whose private part is there for all to see.
func parseKeys(data []byte) (list []*key, private []string, err error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, nil, fmt.Errorf("not a JWK set: %w", oneLine(err))
	}
	if set.Keys == nil {
		return nil, nil, errors.New(`not a JWK set: it has no "keys"`)
	}
	for _, raw := range set.Keys {
		var use struct {
			Operations []string `json:"key_ops"`
			D          string   `json:"d"`
		}
		var jwk jose.JSONWebKey
		if json.Unmarshal(raw, &use) != nil || json.Unmarshal(raw, &jwk) != nil {
			continue
		}
		if jwk.Use != "" && jwk.Use != "sig" || use.Operations != nil && !slices.Contains(use.Operations, "verify") {
			continue
		}
		if use.D != "" {
			private = append(private, jwk.KeyID)
			continue
		}
		algorithms := algorithmsOf(&jwk)
		if len(algorithms) == 0 || !jwk.Valid() {
			continue
		}
		thumbprint, err := jwk.Thumbprint(crypto.SHA256)
		if err != nil {
			continue
		}
		if len(list) == maxKeys {
			return nil, nil, fmt.Errorf("more than %d keys", maxKeys)
		}
		id := jwk.KeyID + "\n" + jwk.Algorithm + "\n" + base64.RawURLEncoding.EncodeToString(thumbprint)
		set, err := setOf(jwk)
		if err != nil {
			continue
		}
		list = append(list, &key{jwk: jwk, set: set, algorithms: algorithms, id: id})
	}
	return list, private, nil
}

// setOf is go-oidc's RemoteKeySet of one key. Of its key sets this is the one that takes the token as the verifier has
// parsed it, which is half the work; what it fetches, once and for each token that the key does not verify, is here.
func setOf(jwk jose.JSONWebKey) (*oidc.RemoteKeySet, error) {
	published, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: jwk.Key, KeyID: jwk.KeyID}}})
	if err != nil {
		return nil, err
	}
	ctx := oidc.ClientContext(context.Background(), &http.Client{Transport: memory(published)})
	return oidc.NewRemoteKeySet(ctx, "https://memory.invalid/"), nil
}

// memory answers every request with the same JSON.
type memory []byte

func (m memory) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(m)), ContentLength: int64(len(m)), Request: r,
	}, nil
}

// algorithmsOf is what a key may verify: what its type can, and of that only its own alg where it has one. A token's
// header alone never says how a key is used.
func algorithmsOf(jwk *jose.JSONWebKey) []jose.SignatureAlgorithm {
	var can []jose.SignatureAlgorithm
	switch public := jwk.Key.(type) {
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < 2048 || bits > 8192 {
			return nil
		}
		can = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
	case *ecdsa.PublicKey:
		switch public.Curve.Params().BitSize {
		case 256:
			can = []jose.SignatureAlgorithm{jose.ES256}
		case 384:
			can = []jose.SignatureAlgorithm{jose.ES384}
		case 521:
			can = []jose.SignatureAlgorithm{jose.ES512}
		}
	case ed25519.PublicKey:
		if jwk.Algorithm == "Ed25519" { // RFC 9864's name for it
			return []jose.SignatureAlgorithm{jose.EdDSA}
		}
		can = []jose.SignatureAlgorithm{jose.EdDSA}
	}
	if jwk.Algorithm == "" {
		return can
	}
	if own := jose.SignatureAlgorithm(jwk.Algorithm); slices.Contains(can, own) {
		return []jose.SignatureAlgorithm{own}
	}
	return nil
}

// newKeysClient is an HTTP client that an issuer can neither hang, flood nor send elsewhere.
func newKeysClient(roots *x509.CertPool, timeout time.Duration) *http.Client {
	dialer := &net.Dialer{Timeout: timeout}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    timeout,
		ResponseHeaderTimeout:  timeout,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConns:           2,
		IdleConnTimeout:        30 * time.Second,
		ForceAttemptHTTP2:      true,
	}
	return &http.Client{
		Transport: boundedTransport{transport},
		Timeout:   timeout,
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			first := via[0].URL
			if next.URL.Scheme != first.Scheme || next.URL.Host != first.Host {
				return fmt.Errorf("%s redirects to another host, %s: name that one in the configuration if it is meant", first.Host, next.URL.Host)
			}
			if len(via) >= 3 {
				return errors.New("more than 3 redirects")
			}
			return nil
		},
	}
}

// boundedTransport ends a body that is too long with an error, for go-oidc reads bodies whole.
type boundedTransport struct{ *http.Transport }

func (t boundedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.Transport.RoundTrip(request)
	if err == nil {
		response.Body = &boundedBody{ReadCloser: response.Body, left: maxKeysBytes}
	}
	return response, err
}

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	if n > b.left {
		return b.left, errors.New("the answer is larger than 1 MiB")
	}
	b.left -= n
	return n, err
}

// loadRoots reads ca_file; nil are the system's.
func loadRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bytes.TrimSpace(data)) {
		return nil, fmt.Errorf("%s has no PEM certificate", path)
	}
	return roots, nil
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// oneLine keeps what an issuer answered from filling the log: go-oidc puts whole bodies into its errors.
func oneLine(err error) error {
	return &shortError{err}
}

type shortError struct{ err error }

func (e *shortError) Unwrap() error { return e.err }

func (e *shortError) Error() string {
	clean := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, e.err.Error())
	if len(clean) > 300 {
		clean = strings.ToValidUTF8(clean[:300], "") + " …"
	}
	return clean
}
