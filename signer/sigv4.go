package signer

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// SigV4 for S3, as https://docs.aws.amazon.com/AmazonS3/latest/API/sig-header-based-auth.html has it. It is ours
// because signing is on every request's path and the SDK's signer costs several times as much; a fuzz test holds it to
// that signer.

const (
	service    = "s3"
	terminator = "aws4_request"
	algorithm  = "AWS4-HMAC-SHA256"
)

// credentials are immutable but for the key kept inside, which any number of requests use at once.
type credentials struct {
	accessKeyID, secret, token string

	expires   time.Time // zero = never
	until     time.Time // not to be used from here on, a little before expires
	refreshAt time.Time // replaced in the background from here on

	day atomic.Pointer[dayKey]
}

// String keeps credentials out of logs.
func (c *credentials) String() string   { return "credentials of " + c.accessKeyID }
func (c *credentials) GoString() string { return c.String() }

// dayKey is what signing with some credentials needs on one day, in one region.
type dayKey struct {
	day    int64 // since 1970
	region string
	scope  string // 20261123/eu-west-1/s3/aws4_request
	start  string // of Authorization, up to the names of the signed headers
	second atomic.Pointer[stamp]

	inner, outer []byte // SHA-256 as HMAC's two have it when they have read the key
}

type stamp struct {
	unix int64
	text string // 20261123T120000Z
}

func (c *credentials) key(now time.Time, region string) *dayKey {
	day := now.Unix() / 86400
	if k := c.day.Load(); k != nil && k.day == day && k.region == region {
		return k
	}
	date := now.UTC().Format("20060102")
	secret := []byte("AWS4" + c.secret)
	for _, part := range []string{date, region, service, terminator} {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(part))
		secret = mac.Sum(nil)
	}
	scope := date + "/" + region + "/" + service + "/" + terminator
	k := &dayKey{day: day, region: region, scope: scope,
		start: algorithm + " Credential=" + c.accessKeyID + "/" + scope + ", SignedHeaders="}
	k.inner, k.outer = keyed(secret, 0x36), keyed(secret, 0x5c)
	c.day.Store(k)
	return k
}

// keyed is the state of SHA-256 after a key with HMAC's padding (RFC 2104). All requests begin with the same two, where
// each hmac.Hash would have both to itself.
func keyed(key []byte, pad byte) []byte {
	var block [sha256.BlockSize]byte
	copy(block[:], key)
	for i := range block {
		block[i] ^= pad
	}
	h := newHash()
	h.Write(block[:])
	state, err := h.AppendBinary(nil)
	if err != nil {
		panic(err) // it has no way to fail
	}
	return state
}

// stateful is what crypto/sha256 makes.
type stateful interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

func newHash() stateful { return sha256.New().(stateful) }

// macOf is the HMAC of text with k.
func (s *scratch) macOf(k *dayKey, text []byte) []byte {
	s.from(k.inner)
	s.hash.Write(text)
	sum := s.hash.Sum(s.sum[:0])
	s.from(k.outer)
	s.hash.Write(sum)
	return s.hash.Sum(sum[:0])
}

func (s *scratch) from(state []byte) {
	if err := s.hash.UnmarshalBinary(state); err != nil {
		panic(err) // keyed made it
	}
}

func (k *dayKey) stamp(now time.Time) string {
	unix := now.Unix()
	if s := k.second.Load(); s != nil && s.unix == unix {
		return s.text
	}
	s := &stamp{unix, now.UTC().Format("20060102T150405Z")}
	k.second.Store(s)
	return s.text
}

// scratch is what one signature needs for as long as it is being made.
type scratch struct {
	text   []byte // the canonical request, then the string to sign
	names  []byte // lower-case header names
	fields []field
	host   [1]string
	length [1]string
	query  []byte // encoded names and values
	params []param
	hash   stateful
	sum    [sha256.Size]byte
}

type field struct {
	from, to uint32 // in names
	values   []string
}

type param struct{ from, eq, to int } // in query

var scratches = sync.Pool{New: func() any { return &scratch{hash: newHash()} }}

// sign makes req's URL canonical, which changes its spelling and not its meaning, so that what is sent is byte for byte
// what was signed, and sets the four headers of a signature. All other headers are signed but those in unsigned.
func sign(req *http.Request, payloadHash string, c *credentials, region string, now time.Time) error {
	if err := checkSignable(req, payloadHash); err != nil {
		return err
	}
	k := c.key(now, region)

	// One array for the four values. Nothing is shared between requests: others may write to what a header holds.
	values := new([4]string)
	values[0], values[1], values[2] = payloadHash, k.stamp(now), c.token

	s := scratches.Get().(*scratch)
	defer s.release()
	if err := s.collect(req.Header, sentHost(req), req.ContentLength, values); err != nil {
		return err
	}

	// The canonical request.
	b := append(s.text[:0], methodOf(req)...)
	b = append(b, '\n')
	b, err := s.appendURL(b, req.URL)
	if err != nil {
		return err
	}
	for i := range s.fields {
		f := &s.fields[i]
		b = append(b, s.name(f)...)
		b = append(b, ':')
		for i, v := range f.values {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendTrimmed(b, v)
		}
		b = append(b, '\n')
	}
	b = append(b, '\n')
	b = s.appendNames(b)
	b = append(b, '\n')
	b = append(b, payloadHash...)
	s.hash.Reset()
	s.hash.Write(b)
	sum := s.hash.Sum(s.sum[:0])

	// The string to sign.
	b = append(b[:0], algorithm+"\n"...)
	b = append(b, values[1]...)
	b = append(b, '\n')
	b = append(b, k.scope...)
	b = append(b, '\n')
	b = hex.AppendEncode(b, sum)
	signature := s.macOf(k, b)

	b = append(b[:0], k.start...)
	b = s.appendNames(b)
	b = append(b, ", Signature="...)
	b = hex.AppendEncode(b, signature)
	values[3] = string(b)
	s.text = b

	h := req.Header
	h["X-Amz-Content-Sha256"] = values[0:1:1]
	h["X-Amz-Date"] = values[1:2:2]
	if c.token != "" {
		h["X-Amz-Security-Token"] = values[2:3:3]
	} else {
		delete(h, "X-Amz-Security-Token")
	}
	h["Authorization"] = values[3:4:4]
	return nil
}

// release keeps the buffers unless one request made them big.
func (s *scratch) release() {
	clear(s.fields) // the request's strings
	if cap(s.text)+cap(s.query)+cap(s.names) > 64<<10 {
		return
	}
	scratches.Put(s)
}

func (s *scratch) appendNames(b []byte) []byte {
	for i := range s.fields {
		if i > 0 {
			b = append(b, ';')
		}
		b = append(b, s.name(&s.fields[i])...)
	}
	return b
}

// checkSignable refuses what would be sent as something else than what is signed.
func checkSignable(req *http.Request, payloadHash string) error {
	if req.URL == nil || req.Header == nil || req.URL.Opaque != "" || req.URL.User != nil {
		return errors.New("the request must have headers and a URL of scheme, host, path and query only")
	}
	if host := cmp.Or(req.Host, req.URL.Host); host == "" || !hostSafe(host) {
		return errors.New("the request must have a host")
	}
	if payloadHash == "" || !headerSafe(payloadHash) {
		return fmt.Errorf("%q is no value of x-amz-content-sha256", payloadHash)
	}
	return nil
}

func methodOf(req *http.Request) string { return cmp.Or(req.Method, http.MethodGet) }

// sentHost is the Host that goes out. A scheme's own port is left out of it, since servers behind a balancer see the
// name alone.
func sentHost(req *http.Request) string {
	host := cmp.Or(req.Host, req.URL.Host)
	port := ""
	switch req.URL.Scheme {
	case "https":
		port = ":443"
	case "http":
		port = ":80"
	}
	if name, ok := strings.CutSuffix(host, port); ok && port != "" {
		host = name
		req.Host = name
	}
	return host
}

// unsigned are headers that a later hop, Go's own transport included, may add, change or drop, and that mean nothing to
// S3; and the signature's own.
func unsigned(name []byte) bool {
	switch string(name) {
	case "authorization", "user-agent", "expect", "host", "content-length",
		"connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
		"te", "trailer", "transfer-encoding", "upgrade",
		"accept-encoding", "via", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
		"x-amzn-trace-id", "traceparent", "tracestate", "baggage":
		return true
	}
	return false
}

// collect lists the headers to sign, sorted by name: those of h, and of a signature the values of the first three.
func (s *scratch) collect(h http.Header, host string, length int64, signature *[4]string) error {
	s.names, s.fields = s.names[:0], s.fields[:0]
	s.host[0] = host
	s.add("host", s.host[:])
	if length > 0 {
		s.length[0] = strconv.FormatInt(length, 10)
		s.add("content-length", s.length[:])
	}
	s.add("x-amz-content-sha256", signature[0:1])
	s.add("x-amz-date", signature[1:2])
	if signature[2] != "" {
		s.add("x-amz-security-token", signature[2:3])
	}
	for key, values := range h {
		switch key {
		case "Authorization", "X-Amz-Content-Sha256", "X-Amz-Date", "X-Amz-Security-Token":
			continue // will be the signature's own
		}
		from := len(s.names)
		for i := range len(key) {
			c := key[i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			s.names = append(s.names, c)
		}
		if unsigned(s.names[from:]) || len(values) == 0 {
			s.names = s.names[:from]
			continue
		}
		s.fields = append(s.fields, field{uint32(from), uint32(len(s.names)), values})
	}
	slices.SortFunc(s.fields, func(a, b field) int { return bytes.Compare(s.name(&a), s.name(&b)) })
	for i := range s.fields {
		f := &s.fields[i]
		if i > 0 && bytes.Equal(s.name(&s.fields[i-1]), s.name(f)) {
			return fmt.Errorf("header %s is there in two spellings", s.name(f))
		}
		for _, v := range f.values {
			if strings.IndexByte(v, '\n') >= 0 || strings.IndexByte(v, '\r') >= 0 {
				return fmt.Errorf("header %s has a line break in it", s.name(f))
			}
		}
	}
	return nil
}

func (s *scratch) add(name string, values []string) {
	from := len(s.names)
	s.names = append(s.names, name...)
	s.fields = append(s.fields, field{uint32(from), uint32(len(s.names)), values})
}

func (s *scratch) name(f *field) []byte { return s.names[f.from:f.to] }

// appendTrimmed appends a header's value without spaces around it and with one for each run of them inside.
func appendTrimmed(b []byte, v string) []byte {
	if v != "" && (v[0] <= ' ' || v[len(v)-1] <= ' ') {
		v = strings.Trim(v, " \t")
	}
	if !strings.Contains(v, "  ") {
		return append(b, v...)
	}
	for i := range len(v) {
		if v[i] != ' ' || v[i-1] != ' ' {
			b = append(b, v[i])
		}
	}
	return b
}

// appendURL writes u's path and query as they are signed, each with its line's end, and has u be just those.
func (s *scratch) appendURL(b []byte, u *url.URL) ([]byte, error) {
	escaped := u.Path // where it has no escapes, what comes of it is the same
	if strings.IndexByte(escaped, '%') >= 0 || u.RawPath != "" && u.RawPath != escaped {
		escaped = u.EscapedPath()
	}
	if escaped == "" {
		escaped = "/"
		u.Path = "/"
	}
	if escaped[0] != '/' {
		return b, errors.New("the path must begin with a slash")
	}
	from := len(b)
	if b = appendEncodedPath(b, escaped); string(b[from:]) != escaped {
		u.RawPath = string(b[from:])
	}
	b = append(b, '\n')

	from = len(b)
	b, err := s.appendQuery(b, u.RawQuery)
	if err != nil {
		return b, err
	}
	if string(b[from:]) != u.RawQuery {
		u.RawQuery = string(b[from:])
	}
	u.ForceQuery = false
	return append(b, '\n'), nil
}

// appendQuery writes a query sorted, as S3 spells it.
func (s *scratch) appendQuery(b []byte, raw string) ([]byte, error) {
	s.query, s.params = s.query[:0], s.params[:0]
	for rest := raw; rest != ""; {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		p := param{from: len(s.query)}
		var ok1, ok2 bool
		s.query, ok1 = appendEncodedQuery(s.query, name)
		p.eq = len(s.query)
		s.query, ok2 = appendEncodedQuery(append(s.query, '='), value)
		p.to = len(s.query)
		if !ok1 || !ok2 {
			return b, errors.New("the query has a bad escape or a bare semicolon, which each server reads in its own way")
		}
		s.params = append(s.params, p)
	}
	slices.SortStableFunc(s.params, func(a, b param) int {
		return cmp.Or(bytes.Compare(s.query[a.from:a.eq], s.query[b.from:b.eq]),
			bytes.Compare(s.query[a.eq:a.to], s.query[b.eq:b.to]))
	})
	for i, p := range s.params {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(b, s.query[p.from:p.to]...)
	}
	return b, nil
}

const upperHex = "0123456789ABCDEF"

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func appendEscaped(b []byte, c byte) []byte { return append(b, '%', upperHex[c>>4], upperHex[c&15]) }

// unescape reads the escape at s[i].
func unescape(s string, i int) (byte, bool) {
	if i+2 >= len(s) {
		return 0, false
	}
	hi, ok1 := unhex(s[i+1])
	lo, ok2 := unhex(s[i+2])
	return hi<<4 | lo, ok1 && ok2
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// appendEncodedPath spells an escaped path as S3 does: all but unreserved characters and slashes are escaped. Go leaves
// $&+,:;=@ bare. An escaped slash stays one.
func appendEncodedPath(b []byte, escaped string) []byte {
	plain := 0
	for plain < len(escaped) && (unreserved(escaped[plain]) || escaped[plain] == '/') {
		plain++
	}
	b = append(b, escaped[:plain]...) // all of most
	for i := plain; i < len(escaped); i++ {
		c := escaped[i]
		if c == '%' {
			if d, ok := unescape(escaped, i); ok {
				i += 2
				if unreserved(d) {
					b = append(b, d)
				} else {
					b = appendEscaped(b, d)
				}
				continue
			}
		}
		if unreserved(c) || c == '/' {
			b = append(b, c)
		} else {
			b = appendEscaped(b, c)
		}
	}
	return b
}

// appendEncodedQuery spells a name or value of a query as S3 does. A plus is a space, as it is to S3 and to Go.
func appendEncodedQuery(b []byte, s string) ([]byte, bool) {
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch c {
		case '%':
			d, ok := unescape(s, i)
			if !ok {
				return b, false
			}
			i += 2
			c = d
		case '+':
			c = ' '
		case ';':
			return b, false
		}
		if unreserved(c) {
			b = append(b, c)
		} else {
			b = appendEscaped(b, c)
		}
	}
	return b, true
}

// hostSafe tells that s can stand in a Host as it is, and in a URL without ending its host.
func hostSafe(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '/' || c == '?' || c == '#' || c == '@' || c == '\\' {
			return false
		}
	}
	return true
}

// headerSafe tells that s is visible ASCII and can stand in a header as it is.
func headerSafe(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
