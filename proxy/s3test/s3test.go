// Package s3test is an S3 backend for tests that records exactly what reached it, and checks every signature, digest, chunk
// and checksum by itself. It stores nothing: it answers what the test tells it to, and misbehaves as the test tells it to.
//
// For a backend that really stores, and that knows sessions, see examples/world.
package s3test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Key is what a backend accepts unless Accept says otherwise.
var Key = Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}

// KeepBody is how much of a body a Request keeps. Longer ones are counted and hashed, and their payload is not looked at.
const KeepBody = 64 << 20

// Backend is a server on loopback.
type Backend struct {
	URL    string
	CAFile string // of the CA that signed the certificate, where the URL is https

	t      testing.TB
	server *http.Server
	done   chan struct{} // closed at the end of the test

	mu       sync.Mutex // guards all below
	changed  *sync.Cond
	requests []*Request
	handle   func(http.ResponseWriter, *Request)
	stream   func(http.ResponseWriter, io.Reader, *Request)
	lookup   func(accessKeyID string) (Credentials, bool)
	lenient  bool
	closed   bool
}

// New starts a backend, which ends with the test.
func New(t testing.TB) *Backend { return start(t, false) }

// NewTLS is New with https, and HTTP/1.1 as all S3 servers have it.
func NewTLS(t testing.TB) *Backend { return start(t, true) }

func start(t testing.TB, secure bool) *Backend {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &Backend{t: t, done: make(chan struct{}), URL: "http://" + listener.Addr().String()}
	b.changed = sync.NewCond(&b.mu)
	b.lookup = func(id string) (Credentials, bool) { return Key, id == Key.AccessKeyID }
	if secure {
		b.URL = "https://" + listener.Addr().String()
		listener = tls.NewListener(listener, b.certify())
	}
	b.server = &http.Server{
		Handler:  http.HandlerFunc(b.serve),
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, tapKey{}, c.(*tap))
		},
		ConnState: b.connState,
	}
	var running sync.WaitGroup
	running.Go(func() { b.server.Serve(tapped{listener}) })
	t.Cleanup(func() {
		close(b.done)
		b.mu.Lock()
		b.closed = true
		b.mu.Unlock()
		b.changed.Broadcast()
		b.server.Close()
		running.Wait()
	})
	return b
}

type tapKey struct{}

// connState finds requests that net/http refused by itself, so that no handler ever saw them.
func (b *Backend) connState(c net.Conn, s http.ConnState) {
	if s != http.StateClosed {
		return
	}
	t := c.(*tap)
	t.mu.Lock()
	heads := t.heads
	t.mu.Unlock()
	for _, head := range heads {
		b.complain("s3test: net/http refused this request:\n%s", head)
	}
}

// complain fails the test, unless it is over.
func (b *Backend) complain(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed && !b.lenient {
		b.t.Errorf(format, args...)
	}
}

// Done is closed when the test ends: a handler that waits for something waits for this too.
func (b *Backend) Done() <-chan struct{} { return b.done }

// Accept has lookup name the credentials of an access key. Without it only Key is known.
func (b *Backend) Accept(lookup func(accessKeyID string) (Credentials, bool)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lookup = lookup
}

// Lenient lets requests through whose signature does not match. They are answered with 403 and fail the test otherwise.
func (b *Backend) Lenient() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lenient = true
}

// Handle has f answer from now on, once a request's body has been read and found good. Without it the answer is 200 (204
// for DELETE) and nothing more. f may panic with http.ErrAbortHandler to cut the connection in the middle of its answer.
func (b *Backend) Handle(f func(w http.ResponseWriter, r *Request)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handle, b.stream = f, nil
}

// HandleStream has f answer from now on, before the body is read: f reads of it what it likes, when it likes. The
// Request's fields for the body are filled in as f reads.
func (b *Backend) HandleStream(f func(w http.ResponseWriter, body io.Reader, r *Request)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handle, b.stream = nil, f
}

// Answer has every request from now on answered so.
func (b *Backend) Answer(status int, header http.Header, body string) {
	b.Handle(func(w http.ResponseWriter, r *Request) {
		for name, values := range header {
			w.Header()[name] = values
		}
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			io.WriteString(w, body)
		}
	})
}

// Reset resets the connection that w answers on, as a crashing server's system does. The handler must return then.
func Reset(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	inner := c.(*tap).Conn
	if t, ok := inner.(*tls.Conn); ok {
		inner = t.NetConn()
	}
	inner.(*net.TCPConn).SetLinger(0)
	inner.Close()
}

// Error writes an error as S3 does.
func Error(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("X-Amz-Request-Id", "S3TEST")
	w.WriteHeader(status)
	io.WriteString(w, xml.Header)
	xml.NewEncoder(w).Encode(struct {
		XMLName   xml.Name `xml:"Error"`
		Code      string
		Message   string
		RequestID string `xml:"RequestId"`
	}{Code: code, Message: message, RequestID: "S3TEST"})
}

// Requests are those that have come so far, also the unfinished, in the order of their heads.
func (b *Backend) Requests() []Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	requests := make([]Request, len(b.requests))
	for i, r := range b.requests {
		requests[i] = *r
	}
	return requests
}

// Last is the newest request. The test fails if there is none.
func (b *Backend) Last() Request {
	b.t.Helper()
	requests := b.Requests()
	if len(requests) == 0 {
		b.t.Fatal("s3test: no request has reached the backend")
	}
	return requests[len(requests)-1]
}

// patience is far longer than anything takes that a test waits for.
const patience = 2 * time.Minute

// Wait waits until n requests have come and ended, whichever way, and returns all.
func (b *Backend) Wait(n int) []Request {
	b.t.Helper()
	late := time.AfterFunc(patience, b.changed.Broadcast)
	defer late.Stop()
	deadline := time.Now().Add(patience)
	b.mu.Lock()
	for !b.ended(n) && time.Now().Before(deadline) {
		b.changed.Wait()
	}
	ok := b.ended(n)
	b.mu.Unlock()
	if !ok {
		b.t.Fatalf("s3test: %d requests have not come and ended in time: %d came", n, len(b.Requests()))
	}
	return b.Requests()
}

func (b *Backend) ended(n int) bool {
	count := 0
	for _, r := range b.requests {
		if r.Ended {
			count++
		}
	}
	return count >= n
}

// Forget empties Requests.
func (b *Backend) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = nil
}

func (b *Backend) serve(w http.ResponseWriter, hr *http.Request) {
	t := hr.Context().Value(tapKey{}).(*tap)
	head, number := t.takeHead()
	r := parseHead(head)
	if hr.ContentLength > 0 {
		r.Body = make([]byte, 0, min(hr.ContentLength, KeepBody))
	}
	b.mu.Lock()
	lookup, handle, stream := b.lookup, b.handle, b.stream
	r.Signature, r.SignatureErr = CheckSignature(r, lookup, time.Now())
	if r.SignatureErr != nil {
		r.Signature = nil
	}
	b.requests = append(b.requests, r)
	b.mu.Unlock()
	body := &recorder{b: b, r: r, tap: t, number: number, from: hr.Body, hash: sha256.New()}
	defer body.end(errors.New("the handler did not read all of the body"))

	switch {
	case r.SignatureErr != nil && !b.isLenient():
		b.complain("s3test: %s %s: %v", r.Method, r.Target, r.SignatureErr)
		Error(w, http.StatusForbidden, "SignatureDoesNotMatch", r.SignatureErr.Error())
		return
	case stream != nil:
		stream(w, body, r)
		return
	case hr.ContentLength < 0 && !r.Header.Has("X-Amz-Decoded-Content-Length"):
		Error(w, http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header.")
		return
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		panic(http.ErrAbortHandler) // there is nobody to answer
	}
	switch {
	case r.PayloadErr != nil:
		Error(w, http.StatusBadRequest, "BadDigest", r.PayloadErr.Error())
	case handle != nil:
		handle(w, r)
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	default:
		w.WriteHeader(http.StatusOK)
	}
}

func (b *Backend) isLenient() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lenient
}

// recorder is a body that is written down as it is read.
type recorder struct {
	b      *Backend
	r      *Request
	tap    *tap
	number int
	from   io.Reader
	hash   hash.Hash
}

func (c *recorder) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.b.mu.Lock()
	c.hash.Write(p[:n])
	c.r.Length += int64(n)
	if room := KeepBody - len(c.r.Body); room > 0 {
		c.r.Body = append(c.r.Body, p[:min(n, room)]...)
	}
	c.b.mu.Unlock()
	if err == io.EOF {
		c.end(nil)
	} else if err != nil {
		c.end(err)
	}
	return n, err
}

// end notes how the body ended; the first to say wins.
func (c *recorder) end(err error) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	r := c.r
	if r.Ended {
		return
	}
	if err != nil && r.Length == 0 && !hasBody(r) {
		err = nil // there was nothing to read
	}
	r.Ended, r.Err = true, err
	r.SHA256 = hex.EncodeToString(c.hash.Sum(nil))
	if err == nil {
		r.Trailer = c.tap.takeTrailer(c.number)
		r.Payload = r.Body
		if r.Length <= KeepBody {
			r.PayloadErr = r.checkPayload()
		}
	}
	c.b.changed.Broadcast()
}

func hasBody(r *Request) bool {
	length := r.Header.Get("Content-Length")
	return r.Header.Has("Transfer-Encoding") || length != "" && strings.Trim(length, "0") != ""
}

func (b *Backend) certify() *tls.Config {
	b.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	// One certificate, its own CA: clients trust it by CAFile.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "s3test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		b.t.Fatal(err)
	}
	b.CAFile = filepath.Join(b.t.TempDir(), "ca.pem")
	if err := os.WriteFile(b.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{"http/1.1"},
	}
}

// String is a request as a test's message shows it: its head, and how its body went.
func (r Request) String() string {
	s := fmt.Sprintf("%s%d bytes of body", r.Head, r.Length)
	for _, err := range []error{r.Err, r.SignatureErr, r.PayloadErr} {
		if err != nil {
			s += ", " + err.Error()
		}
	}
	return s
}
