package signer

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
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
	macs   sync.Pool
	second atomic.Pointer[stamp]
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
	k.macs.New = func() any { return hmac.New(sha256.New, secret) }
	c.day.Store(k)
	return k
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
	url    []byte // path and query as they go out
	sum    [sha256.Size]byte
	hex    [2 * sha256.Size]byte
}

type field struct {
	from, to int // in names
	key      string
	values   []string
}

type param struct{ from, eq, to int } // in query

var scratches = sync.Pool{New: func() any { return new(scratch) }}

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
	h := req.Header
	h["X-Amz-Content-Sha256"] = values[0:1:1]
	h["X-Amz-Date"] = values[1:2:2]
	if c.token != "" {
		h["X-Amz-Security-Token"] = values[2:3:3]
	} else {
		delete(h, "X-Amz-Security-Token")
	}

	s := scratches.Get().(*scratch)
	defer s.release()
	if err := s.canonicalURL(req); err != nil {
		return err
	}
	if err := s.collect(h, sentHost(req), req.ContentLength); err != nil {
		return err
	}

	// The canonical request.
	b := append(s.text[:0], methodOf(req)...)
	b = append(b, '\n')
	path, query, _ := bytes.Cut(s.url, []byte{'?'})
	b = append(b, path...)
	b = append(b, '\n')
	b = append(b, query...)
	b = append(b, '\n')
	for _, f := range s.fields {
		b = append(b, s.names[f.from:f.to]...)
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
	s.sum = sha256.Sum256(b)

	// The string to sign.
	b = append(b[:0], algorithm+"\n"...)
	b = append(b, values[1]...)
	b = append(b, '\n')
	b = append(b, k.scope...)
	b = append(b, '\n')
	b = hex.AppendEncode(b, s.sum[:])
	mac := k.macs.Get().(hash.Hash)
	mac.Reset()
	mac.Write(b)
	hex.Encode(s.hex[:], mac.Sum(s.sum[:0]))
	k.macs.Put(mac)

	b = append(b[:0], k.start...)
	b = s.appendNames(b)
	b = append(b, ", Signature="...)
	b = append(b, s.hex[:]...)
	values[3] = string(b)
	h["Authorization"] = values[3:4:4]
	s.text = b
	return nil
}

// release keeps the buffers unless one request made them big.
func (s *scratch) release() {
	clear(s.fields[:cap(s.fields)]) // the request's strings
	if cap(s.text)+cap(s.query)+cap(s.names) > 64<<10 {
		return
	}
	scratches.Put(s)
}

func (s *scratch) appendNames(b []byte) []byte {
	for i, f := range s.fields {
		if i > 0 {
			b = append(b, ';')
		}
		b = append(b, s.names[f.from:f.to]...)
	}
	return b
}

// checkSignable refuses what would be sent as something else than what is signed.
func checkSignable(req *http.Request, payloadHash string) error {
	if req.URL == nil || req.Header == nil || req.URL.Opaque != "" || req.URL.User != nil {
		return errors.New("the request must have headers and a URL of scheme, host, path and query only")
	}
	if host := cmp.Or(req.Host, req.URL.Host); host == "" || !headerSafe(host) || strings.ContainsAny(host, "/?#@\\") {
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

// collect lists the headers to sign, sorted by name.
func (s *scratch) collect(h http.Header, host string, length int64) error {
	s.names, s.fields = s.names[:0], s.fields[:0]
	s.host[0] = host
	s.add("host", s.host[:])
	if length > 0 {
		s.length[0] = strconv.FormatInt(length, 10)
		s.add("content-length", s.length[:])
	}
	for key, values := range h {
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
		for _, v := range values {
			if strings.IndexByte(v, '\n') >= 0 || strings.IndexByte(v, '\r') >= 0 {
				return fmt.Errorf("header %s has a line break in it", key)
			}
		}
		s.fields = append(s.fields, field{from, len(s.names), key, values})
	}
	slices.SortFunc(s.fields, func(a, b field) int {
		return bytes.Compare(s.names[a.from:a.to], s.names[b.from:b.to])
	})
	for i := 1; i < len(s.fields); i++ {
		if a, b := s.fields[i-1], s.fields[i]; bytes.Equal(s.names[a.from:a.to], s.names[b.from:b.to]) {
			return fmt.Errorf("header %s is there in two spellings", a.key)
		}
	}
	return nil
}

func (s *scratch) add(name string, values []string) {
	from := len(s.names)
	s.names = append(s.names, name...)
	s.fields = append(s.fields, field{from, len(s.names), name, values})
}

// appendTrimmed appends a header's value without spaces around it and with one for each run of them inside.
func appendTrimmed(b []byte, v string) []byte {
	v = strings.Trim(v, " \t")
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

// canonicalURL leaves in s.url the path and query as they are signed, and has req send just those.
func (s *scratch) canonicalURL(req *http.Request) error {
	escaped := req.URL.EscapedPath()
	if escaped == "" {
		escaped = "/"
		req.URL.Path = "/"
	}
	if escaped[0] != '/' {
		return errors.New("the path must begin with a slash")
	}
	b := appendEncodedPath(s.url[:0], escaped)
	if string(b) != escaped {
		req.URL.RawPath = string(b)
	}
	pathEnd := len(b)
	b = append(b, '?')

	raw := req.URL.RawQuery
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
			return errors.New("the query has a bad escape or a bare semicolon, which each server reads in its own way")
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
	if string(b[pathEnd+1:]) != raw {
		req.URL.RawQuery = string(b[pathEnd+1:])
	}
	req.URL.ForceQuery = false
	s.url = b
	return nil
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
	for i := 0; i < len(escaped); i++ {
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

// headerSafe tells that s is visible ASCII and can stand in a header as it is.
func headerSafe(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
