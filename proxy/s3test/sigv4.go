package s3test

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Credentials are what a signature is checked against.
type Credentials struct {
	AccessKeyID, SecretAccessKey, SessionToken string
}

// Signature is a SigV4 signature that was found good.
type Signature struct {
	AccessKeyID   string
	SessionToken  string
	Region        string
	Service       string
	Time          time.Time
	SignedHeaders []string
	PayloadHash   string // as signed: a digest, UNSIGNED-PAYLOAD or STREAMING-…
	Presigned     bool

	key    []byte // the derived key and the seed signature, for signed chunks
	seed   string
	scope  string
	stamp  string
	expiry time.Duration
}

// CheckSignature recomputes the SigV4 signature of r from its bytes, and compares. It shares no code with the
// signer of any SDK, so that a mistake of theirs cannot hide here. lookup finds the secret and the session token that
// belong to an access key. now is when the request arrived.
//
// Beyond the signature itself it holds r to what S3 demands: a signed host, a signed payload hash, every x-amz-*
// header signed, a time within 15 minutes and the session token that belongs to the key.
func CheckSignature(r *Request, lookup func(accessKeyID string) (Credentials, bool), now time.Time) (*Signature, error) {
	path, rawQuery, _ := strings.Cut(r.Target, "?")
	query, err := parseQuery(rawQuery)
	if err != nil {
		return nil, err
	}
	presigned := query.get("X-Amz-Algorithm") != "" || query.get("X-Amz-Signature") != ""
	switch authorization := r.Header.Values("Authorization"); {
	case presigned && len(authorization) > 0:
		return nil, fmt.Errorf("signed in the header and in the query")
	case presigned:
		return checkPresigned(r, path, query, lookup, now)
	case len(authorization) == 0:
		return nil, fmt.Errorf("no Authorization header")
	case len(authorization) > 1:
		return nil, fmt.Errorf("the header Authorization stands there %d times", len(authorization))
	default:
		return checkHeader(r, authorization[0], path, query, lookup, now)
	}
}

func checkHeader(r *Request, authorization, path string, query query, lookup func(string) (Credentials, bool), now time.Time) (*Signature, error) {
	rest, ok := strings.CutPrefix(authorization, algorithm+" ")
	if !ok {
		return nil, fmt.Errorf("the authorization is not %s", algorithm)
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if _, twice := parts[name]; twice {
			return nil, fmt.Errorf("%s twice in Authorization", name)
		}
		parts[name] = value
	}
	s := &Signature{PayloadHash: r.Header.Get("X-Amz-Content-Sha256"), SessionToken: r.Header.Get("X-Amz-Security-Token")}
	if err := s.parse(parts["Credential"], parts["SignedHeaders"], r.Header.Get("X-Amz-Date")); err != nil {
		return nil, err
	}
	if s.Service == "s3" && s.PayloadHash == "" {
		return nil, fmt.Errorf("no x-amz-content-sha256 header")
	}
	if s.PayloadHash == "" {
		sum := sha256.Sum256(r.Body)
		s.PayloadHash = hex.EncodeToString(sum[:])
	}
	if skew := now.Sub(s.Time).Abs(); skew > 15*time.Minute {
		return nil, fmt.Errorf("signed %v from now", skew)
	}
	return s, s.compare(r, path, query, parts["Signature"], lookup)
}

func checkPresigned(r *Request, path string, query query, lookup func(string) (Credentials, bool), now time.Time) (*Signature, error) {
	s := &Signature{Presigned: true, PayloadHash: "UNSIGNED-PAYLOAD", SessionToken: query.get("X-Amz-Security-Token")}
	if query.get("X-Amz-Algorithm") != algorithm {
		return nil, fmt.Errorf("X-Amz-Algorithm is not %s", algorithm)
	}
	if hash := r.Header.Get("X-Amz-Content-Sha256"); hash != "" {
		s.PayloadHash = hash
	}
	if err := s.parse(query.get("X-Amz-Credential"), query.get("X-Amz-SignedHeaders"), query.get("X-Amz-Date")); err != nil {
		return nil, err
	}
	seconds, err := strconv.Atoi(query.get("X-Amz-Expires"))
	if err != nil || seconds < 1 || seconds > 7*24*3600 {
		return nil, fmt.Errorf("X-Amz-Expires %q is not 1 to 604800", query.get("X-Amz-Expires"))
	}
	s.expiry = time.Duration(seconds) * time.Second
	if now.Before(s.Time.Add(-15*time.Minute)) || now.After(s.Time.Add(s.expiry)) {
		return nil, fmt.Errorf("presigned for %v from %v", s.expiry, s.Time)
	}
	signature := query.get("X-Amz-Signature")
	query = slices.DeleteFunc(query, func(p pair) bool { return p.name == "X-Amz-Signature" })
	return s, s.compare(r, path, query, signature, lookup)
}

const algorithm = "AWS4-HMAC-SHA256"

func (s *Signature) parse(credential, signedHeaders, stamp string) error {
	scope := strings.Split(credential, "/")
	if len(scope) != 5 || scope[4] != "aws4_request" {
		return fmt.Errorf("malformed credential scope %q", credential)
	}
	at, err := time.Parse("20060102T150405Z", stamp)
	if err != nil {
		return fmt.Errorf("malformed X-Amz-Date %q", stamp)
	}
	if scope[1] != stamp[:8] {
		return fmt.Errorf("scope of %s, date of %s", scope[1], stamp)
	}
	s.AccessKeyID, s.Region, s.Service = scope[0], scope[2], scope[3]
	s.Time, s.stamp, s.scope = at, stamp, strings.Join(scope[1:], "/")
	s.SignedHeaders = strings.Split(signedHeaders, ";")
	if !slices.IsSorted(s.SignedHeaders) {
		return fmt.Errorf("SignedHeaders %q are not sorted", signedHeaders)
	}
	return nil
}

func (s *Signature) compare(r *Request, path string, query query, signature string, lookup func(string) (Credentials, bool)) error {
	credentials, ok := lookup(s.AccessKeyID)
	if !ok {
		return fmt.Errorf("unknown access key %q", s.AccessKeyID)
	}
	if credentials.SessionToken != s.SessionToken {
		return fmt.Errorf("session token %q does not belong to %q", s.SessionToken, s.AccessKeyID)
	}
	if !slices.Contains(s.SignedHeaders, "host") {
		return fmt.Errorf("host is not signed")
	}
	for _, f := range r.Header {
		name := strings.ToLower(f.Name)
		if strings.HasPrefix(name, "x-amz-") && !slices.Contains(s.SignedHeaders, name) && !(s.Presigned && name == "x-amz-content-sha256") {
			return fmt.Errorf("%s is sent but not signed", name)
		}
	}
	decodedPath, err := unescape(path, false)
	if err != nil {
		return err
	}

	var canonical strings.Builder
	canonical.WriteString(r.Method + "\n" + escape(decodedPath, true) + "\n" + query.canonical() + "\n")
	for _, name := range s.SignedHeaders {
		values := r.Header.Values(name)
		if len(values) == 0 {
			return fmt.Errorf("%s is signed but not sent", name)
		}
		for i, v := range values {
			values[i] = strings.Join(strings.Fields(v), " ")
		}
		canonical.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}
	canonical.WriteString("\n" + strings.Join(s.SignedHeaders, ";") + "\n" + s.PayloadHash)

	s.key = []byte("AWS4" + credentials.SecretAccessKey)
	for step := range strings.SplitSeq(s.scope, "/") {
		s.key = mac(s.key, step)
	}
	sum := sha256.Sum256([]byte(canonical.String()))
	s.seed = hex.EncodeToString(mac(s.key, algorithm+"\n"+s.stamp+"\n"+s.scope+"\n"+hex.EncodeToString(sum[:])))
	if !hmac.Equal([]byte(s.seed), []byte(signature)) {
		return fmt.Errorf("signature does not match; canonical request:\n%s", canonical.String())
	}
	return nil
}

func mac(key []byte, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

type pair struct{ name, value string }
type query []pair

func (q query) get(name string) string {
	for _, p := range q {
		if p.name == name {
			return p.value
		}
	}
	return ""
}

func (q query) canonical() string {
	escaped := make(query, len(q))
	for i, p := range q {
		escaped[i] = pair{escape(p.name, false), escape(p.value, false)}
	}
	// By name and then by value: as whole strings "a-b=" would come before "a=".
	slices.SortFunc(escaped, func(a, b pair) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.value, b.value))
	})
	pairs := make([]string, len(escaped))
	for i, p := range escaped {
		pairs[i] = p.name + "=" + p.value
	}
	return strings.Join(pairs, "&")
}

func parseQuery(raw string) (query, error) {
	var q query
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		name, err := unescape(name, true)
		if err != nil {
			return nil, err
		}
		value, err = unescape(value, true)
		if err != nil {
			return nil, err
		}
		q = append(q, pair{name, value})
	}
	return q, nil
}

func unescape(s string, plusIsSpace bool) (string, error) {
	if plusIsSpace {
		return url.QueryUnescape(s)
	}
	return url.PathUnescape(s)
}

// escape is SigV4's own: all but the unreserved characters, with capital digits.
func escape(s string, keepSlash bool) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0, keepSlash && c == '/':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
