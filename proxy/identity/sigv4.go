package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithm = "AWS4-HMAC-SHA256"
	// stampLayout is how SigV4 writes a time.
	stampLayout = "20060102T150405Z"
	// maxSkew is how far a client's clock may be from ours, as with S3.
	maxSkew = 15 * time.Minute
	// maxPresigned is how long a presigned URL may be good, as with S3.
	maxPresigned = 7 * 24 * time.Hour

	contentSHA256   = "X-Amz-Content-Sha256"
	unsignedPayload = "UNSIGNED-PAYLOAD"
	signedChunks    = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	signedTrailer   = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	unsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// signature is what a request says of its own signature, in its Authorization header or in its query.
type signature struct {
	accessKeyID           string
	date, region, service string
	scope                 string // date, region and service, as signed
	signedHeaders         string // as sent: lower case, sorted, joined by ";"
	hex                   string
	stamp                 string // the time of signing, in stampLayout
	time                  time.Time
	payloadHash           string
	except                string // the query parameter that the signature does not cover: its own
}

// authenticateSigned verifies a request that is signed in its Authorization header with a session's credentials.
//
// The signature MUST cover the host and every x-amz-* header that the request has. It need not cover the others:
// stock clients leave different ones out (Content-Type, Cache-Control, Content-MD5), and S3 does not ask for them.
// What the body is framed as plays no part here: whatever x-amz-content-sha256 says, the signature covers
// what it says.
func (a *Authenticator) authenticateSigned(r *http.Request) (*Proof, error) {
	s, token, err := readSigned(r)
	if err != nil {
		return nil, err
	}
	s.payloadHash, err = payloadHash(r)
	if err != nil {
		return nil, err
	}
	session, key, err := a.verifySigned(r, s, token, "s3")
	if err != nil {
		return nil, err
	}
	proof := &Proof{Identity: session.identity, ExpiresAt: session.expires}
	switch s.payloadHash {
	case unsignedPayload, unsignedTrailer:
	case signedChunks, signedTrailer:
		var seed [sha256.Size * 2]byte
		copy(seed[:], s.hex)
		proof.Chunks = newChunkSignatures(key[:], s.stamp, s.scope, seed)
	default:
		proof.CheckHash = true
	}
	return proof, nil
}

// AuthenticateSTS verifies a request to STS whose form is body: signed for the service "sts", or a bearer of an
// OIDC token. Like Authenticate it takes the credentials out of r.
func (a *Authenticator) AuthenticateSTS(r *http.Request, body []byte) (*Proof, error) {
	defer removeCredentials(r)
	if found, err := hasQueryCredentials(r.URL.RawQuery); err != nil {
		return nil, err
	} else if found {
		return nil, refusal(Malformed, "credentials in the query of a request to STS: sign it in the Authorization header")
	}
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	tokens := r.Header["X-Amz-Security-Token"]
	if scheme != algorithm || len(r.Header["Authorization"]) > 1 || len(tokens) == 1 && isOIDCToken(tokens[0]) {
		// Not a signature that means anything: the same doors as everywhere, none of which knows STS's scope.
		return a.Authenticate(r)
	}
	s, token, err := readSigned(r)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	s.payloadHash = hex.EncodeToString(sum[:])
	// Clients that sign for S3 and STS with one routine send the header here too.
	if declared := r.Header[contentSHA256]; len(declared) > 1 || len(declared) == 1 && declared[0] != s.payloadHash {
		return nil, refusal(BadSignature, "x-amz-content-sha256 is not the SHA-256 of the body")
	}
	session, _, err := a.verifySigned(r, s, token, "sts")
	if err != nil {
		return nil, err
	}
	if err := a.revocations.Check(session.identity); err != nil {
		return nil, err
	}
	return &Proof{Identity: session.identity, ExpiresAt: session.expires}, nil
}

// readSigned reads the credentials of a request signed in its header.
func readSigned(r *http.Request) (s signature, token string, err error) {
	authorization, err := single(r, "Authorization")
	if err != nil {
		return s, "", err
	}
	if s, err = parseAuthorization(authorization); err != nil {
		return s, "", err
	}
	if token, err = single(r, "X-Amz-Security-Token"); err != nil {
		return s, "", err
	}
	if s.stamp, s.time, err = signedAt(r); err != nil {
		return s, "", err
	}
	return s, token, nil
}

func (a *Authenticator) verifySigned(r *http.Request, s signature, token, service string) (*session, signingKey, error) {
	now := a.now()
	session, err := a.sessionOf(s.accessKeyID, token, now)
	if err != nil {
		return nil, signingKey{}, err
	}
	if away := now.Sub(s.time); away > maxSkew || away < -maxSkew {
		return nil, signingKey{}, refusal(Skewed, "the request was signed at %s and it is %s here: more than 15 minutes apart. Set the client's clock", s.stamp, now.UTC().Format(stampLayout))
	}
	key, err := s.verify(r, session, service)
	return session, key, err
}

// authenticatePresigned verifies a request that is signed in its query: a presigned URL. Whoever has the URL can
// add headers to it, so none of S3's counts unless it was signed: an unsigned x-amz-* header is refused.
func (a *Authenticator) authenticatePresigned(r *http.Request) (*Proof, error) {
	now := a.now()
	s, token, lifetime, err := readPresigned(r)
	if err != nil {
		return nil, err
	}
	session, err := a.sessionOf(s.accessKeyID, token, now)
	if err != nil {
		return nil, err
	}
	if s.time.Sub(now) > maxSkew {
		return nil, refusal(Skewed, "the presigned URL was signed at %s, and it is only %s here: set the clock of the machine that signs", s.stamp, now.UTC().Format(stampLayout))
	}
	ends := s.time.Add(lifetime)
	if !now.Before(ends) {
		return nil, refusal(Expired, "the presigned URL expired at %s: make a new one", ends.UTC().Format(time.RFC3339))
	}
	if _, err := s.verify(r, session, "s3"); err != nil {
		return nil, err
	}
	if session.expires.Before(ends) {
		ends = session.expires
	}
	return &Proof{
		Identity:  session.presignedIdentity(),
		ExpiresAt: ends,
		CheckHash: s.payloadHash != unsignedPayload,
	}, nil
}

// readPresigned reads the credentials of a presigned URL.
func readPresigned(r *http.Request) (s signature, token string, lifetime time.Duration, err error) {
	if len(r.Header["Authorization"]) > 0 || len(r.Header["X-Amz-Security-Token"]) > 0 {
		return s, "", 0, refusal(Malformed, "credentials both in the query and in a header: send a presigned URL without Authorization and X-Amz-Security-Token")
	}
	c := canonicalizers.Get().(*canonicalizer)
	defer c.release()
	if c.params, err = parseQuery(c.params[:0], r.URL.RawQuery); err != nil {
		return s, "", 0, refusal(Malformed, "the query cannot be read: %v", err)
	}
	var given [len(presignNames)]presignParameter
	for _, p := range c.params {
		for i, name := range presignNames {
			if strings.EqualFold(p.name, name) {
				if err := given[i].set(p, name); err != nil {
					return s, "", 0, err
				}
			}
		}
		switch {
		case strings.EqualFold(p.name, "AWSAccessKeyId"), strings.EqualFold(p.name, "Signature"):
			return s, "", 0, refusal(Malformed, "the URL is presigned with signature version 2; only version 4 is accepted: set signature_version = s3v4 (aws configure set default.s3.signature_version s3v4) and presign again")
		case strings.EqualFold(p.name, "X-Amz-S3session-Token"):
			return s, "", 0, refusal(Malformed, "S3 Express sessions are not supported: presign with X-Amz-Security-Token instead")
		case strings.EqualFold(p.name, "X-Amz-Region-Set"):
			return s, "", 0, refusal(Malformed, "the URL is presigned with SigV4A; only %s is accepted: set signature_version = s3v4 and one region", algorithm)
		}
	}
	for i, name := range presignNames[:presignToken] {
		if !given[i].present {
			return s, "", 0, refusal(Malformed, "the query has a part of a presigned URL's signature but no %s: presign it again, and pass the URL on whole", name)
		}
	}
	if given[presignAlgorithm].value != algorithm {
		return s, "", 0, refusal(Malformed, "X-Amz-Algorithm is %.40q; only %s is accepted: set signature_version = s3v4 in the client", given[presignAlgorithm].value, algorithm)
	}
	if err := s.setCredential(given[presignCredential].value); err != nil {
		return s, "", 0, err
	}
	if err := s.setSignedHeaders(given[presignSignedHeaders].value); err != nil {
		return s, "", 0, err
	}
	if err := s.setHex(given[presignSignature].value); err != nil {
		return s, "", 0, err
	}
	if s.stamp, s.time, err = parseStamp(given[presignDate].value, "X-Amz-Date"); err != nil {
		return s, "", 0, err
	}
	if lifetime, err = parseLifetime(given[presignExpires].value); err != nil {
		return s, "", 0, err
	}
	if isOIDCToken(given[presignToken].value) {
		return s, "", 0, refusal(Malformed, "the presigned URL has an OIDC token as X-Amz-Security-Token, so whoever gets the URL gets the token: exchange the token for session credentials (AWS_WEB_IDENTITY_TOKEN_FILE) and presign with those. Do not pass this URL on")
	}
	if s.payloadHash, err = presignedHash(r, given[presignHash]); err != nil {
		return s, "", 0, err
	}
	s.except = "X-Amz-Signature"
	return s, given[presignToken].value, lifetime, nil
}

// The query parameters that make a presigned URL; those from presignToken on may be absent.
const (
	presignAlgorithm = iota
	presignCredential
	presignDate
	presignExpires
	presignSignedHeaders
	presignSignature
	presignToken
	presignHash
)

var presignNames = [...]string{
	presignAlgorithm: "X-Amz-Algorithm", presignCredential: "X-Amz-Credential", presignDate: "X-Amz-Date", presignExpires: "X-Amz-Expires",
	presignSignedHeaders: "X-Amz-SignedHeaders", presignSignature: "X-Amz-Signature", presignToken: "X-Amz-Security-Token", presignHash: contentSHA256,
}

// presignParameter is one of them as it was sent.
type presignParameter struct {
	value   string
	present bool
}

func (p *presignParameter) set(from param, name string) error {
	if p.present {
		return refusal(Malformed, "the query parameter %s is repeated", name)
	}
	// S3 knows its own parameters in one spelling. Others are headers to some servers and nothing to the rest. The hash
	// is one of the headers that clients move to the query, in whatever case.
	if from.name != name && name != contentSHA256 {
		return refusal(Malformed, "the query parameter %.60q must be written %s", from.name, name)
	}
	*p = presignParameter{from.value, true}
	return nil
}

// presignedHash is what a presigned URL signs as the payload's hash: nothing of it, unless the header, or the
// parameter that stands for the header, says more.
func presignedHash(r *http.Request, parameter presignParameter) (string, error) {
	hash := unsignedPayload
	var err error
	switch given := len(r.Header[contentSHA256]) > 0; {
	case given && parameter.present:
		return "", refusal(Malformed, "x-amz-content-sha256 is both in the query and a header")
	case given:
		hash, err = payloadHash(r)
	case parameter.present:
		hash, err = checkPayloadHash(parameter.value)
	}
	if err == nil && strings.HasPrefix(hash, "STREAMING-") {
		err = refusal(Malformed, "a presigned URL takes a plain body, not %s: configure the client not to add checksum trailers (request_checksum_calculation = when_required)", hash)
	}
	return hash, err
}

// payloadHash is the x-amz-content-sha256 header, which every S3 request that is signed in its header has.
func payloadHash(r *http.Request) (string, error) {
	hash, err := single(r, contentSHA256)
	if err != nil {
		return "", err
	}
	return checkPayloadHash(hash)
}

func checkPayloadHash(hash string) (string, error) {
	switch hash {
	case unsignedPayload, unsignedTrailer, signedChunks, signedTrailer:
		return hash, nil
	case "":
		return "", refusal(Malformed, "the header x-amz-content-sha256 is missing: a signed S3 request needs it (%s where the body is not signed)", unsignedPayload)
	}
	if isHex(hash) {
		return hash, nil
	}
	return "", refusal(Malformed, "x-amz-content-sha256 is %.60q: neither the SHA-256 of the body in lower-case hexadecimal, %s nor a STREAMING value that is known", hash, unsignedPayload)
}

// verify checks the signature itself, as the session's key makes it for service.
func (s *signature) verify(r *http.Request, session *session, service string) (signingKey, error) {
	if s.service != service {
		return signingKey{}, refusal(Malformed, "the credential's scope is for the service %.40q; this request needs %q", s.service, service)
	}
	if s.date != s.stamp[:len("20060102")] {
		return signingKey{}, refusal(Malformed, "the credential's scope is of %.20q, but the request was signed at %s", s.date, s.stamp)
	}
	if err := s.coversHeaders(r); err != nil {
		return signingKey{}, err
	}

	c := canonicalizers.Get().(*canonicalizer)
	defer c.release()
	var err error
	if c.params, err = parseQuery(c.params[:0], r.URL.RawQuery); err != nil {
		return signingKey{}, refusal(Malformed, "the query cannot be read: %v", err)
	}
	canonical, err := c.request(r, s.except, s.signedHeaders, s.payloadHash)
	if err != nil {
		return signingKey{}, err
	}
	sum := sha256.Sum256(canonical)

	b := append(canonical[:0], algorithm+"\n"...)
	b = append(b, s.stamp...)
	b = append(b, '\n')
	b = append(b, s.scope...)
	b = append(b, '\n')
	b = hex.AppendEncode(b, sum[:])

	key, known := session.signingKey(s.date, s.region, s.service)
	mac := hmac.New(sha256.New, key[:])
	mac.Write(b)
	var raw [sha256.Size]byte
	var want [sha256.Size * 2]byte
	hex.Encode(want[:], mac.Sum(raw[:0]))
	if subtle.ConstantTimeCompare([]byte(s.hex), want[:]) != 1 {
		return signingKey{}, refusal(BadSignature, "the signature does not match: the secret key is another session's, or something on the way changed what was signed (this proxy sees the host %.100q and the path %.200q)", r.Host, r.URL.EscapedPath())
	}
	if !known {
		session.keep(s.date, s.region, s.service, key)
	}
	return key, nil
}

// coversHeaders makes sure of the headers that matter: the host, and all that S3 reads by their prefix.
func (s *signature) coversHeaders(r *http.Request) error {
	if !s.covers("host") {
		return refusal(Malformed, "SignedHeaders must name host")
	}
	for name, values := range r.Header {
		if len(name) < len("x-amz-") || !strings.EqualFold(name[:len("x-amz-")], "x-amz-") {
			continue
		}
		// net/http spells a name in one way only. In another it would be a second header that the signature does not cover.
		if len(values) > 1 || http.CanonicalHeaderKey(name) != name {
			return refusal(Malformed, "the header %.60s is repeated", name)
		}
		if !s.covers(name) {
			return refusal(Malformed, "the header %.60s is not among the signed ones: sign every x-amz-* header that is sent, or do not send it", name)
		}
	}
	return nil
}

// covers reports whether name, in any case, is among the signed headers.
func (s *signature) covers(name string) bool {
	for rest, more := s.signedHeaders, true; more; {
		var signed string
		signed, rest, more = strings.Cut(rest, ";")
		if strings.EqualFold(signed, name) {
			return true
		}
	}
	return false
}

// parseAuthorization reads `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`: each part once, in any order.
func parseAuthorization(value string) (signature, error) {
	var s signature
	scheme, parts, _ := strings.Cut(value, " ")
	if scheme != algorithm {
		return s, refusal(Malformed, "the request is signed with %.40q; only %s is accepted: set signature_version = s3v4 in the client", scheme, algorithm)
	}
	for rest, more := parts, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, ",")
		name, value, _ := strings.Cut(strings.Trim(part, " \t"), "=")
		var err error
		switch {
		case name == "Credential" && s.scope == "":
			err = s.setCredential(value)
		case name == "SignedHeaders" && s.signedHeaders == "":
			err = s.setSignedHeaders(value)
		case name == "Signature" && s.hex == "":
			err = s.setHex(value)
		default:
			err = refusal(Malformed, "the Authorization header must have Credential, SignedHeaders and Signature, each once, and nothing else")
		}
		if err != nil {
			return s, err
		}
	}
	if s.scope == "" || s.signedHeaders == "" || s.hex == "" {
		return s, refusal(Malformed, "the Authorization header must have Credential, SignedHeaders and Signature, each once, and nothing else")
	}
	return s, nil
}

// setCredential takes `<access key id>/<date>/<region>/<service>/aws4_request`.
func (s *signature) setCredential(value string) error {
	id, scope, _ := strings.Cut(value, "/")
	date, rest, _ := strings.Cut(scope, "/")
	region, rest, _ := strings.Cut(rest, "/")
	service, end, _ := strings.Cut(rest, "/")
	if id == "" || end != "aws4_request" || len(date) != len("20060102") || !isWord(date) || !isWord(region) || !isWord(service) {
		return refusal(Malformed, "the signature's Credential must be <access key id>/<yyyymmdd>/<region>/s3/aws4_request")
	}
	s.accessKeyID, s.scope, s.date, s.region, s.service = id, scope, date, region, service
	return nil
}

// setSignedHeaders takes a list that is sorted, without repeats, in lower case: the only spelling there is, so that
// the signature covers each header exactly once.
func (s *signature) setSignedHeaders(value string) error {
	last := ""
	for rest, more := value, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, ";")
		if !isHeaderName(name) || name <= last {
			return refusal(Malformed, "SignedHeaders must be names in lower case, sorted, each once, joined by semicolons")
		}
		last = name
	}
	s.signedHeaders = value
	return nil
}

func (s *signature) setHex(value string) error {
	if !isHex(value) {
		return refusal(Malformed, "the signature must be 64 hexadecimal digits in lower case")
	}
	s.hex = value
	return nil
}

// signedAt is when the request says it was signed: X-Amz-Date, else Date.
func signedAt(r *http.Request) (string, time.Time, error) {
	stamp, err := single(r, "X-Amz-Date")
	if err != nil {
		return "", time.Time{}, err
	}
	if stamp != "" {
		return parseStamp(stamp, "X-Amz-Date")
	}
	date, err := single(r, "Date")
	if err != nil {
		return "", time.Time{}, err
	}
	if date == "" {
		return "", time.Time{}, refusal(Malformed, "a signed request needs the header X-Amz-Date")
	}
	if t, err := http.ParseTime(date); err == nil {
		t = t.UTC()
		return t.Format(stampLayout), t, nil
	}
	return parseStamp(date, "Date")
}

func parseStamp(stamp, name string) (string, time.Time, error) {
	// Parse takes fractions of a second that the layout has not, and so more than one spelling of a time.
	t, err := time.Parse(stampLayout, stamp)
	if err != nil || len(stamp) != len(stampLayout) {
		return "", time.Time{}, refusal(Malformed, "%s must be written as %s", name, stampLayout)
	}
	return stamp, t, nil
}

// parseLifetime takes X-Amz-Expires: 1 to 604800 seconds.
func parseLifetime(value string) (time.Duration, error) {
	seconds, err := strconv.ParseUint(value, 10, 32)
	if err != nil || value[0] < '1' || value[0] > '9' || seconds > uint64(maxPresigned/time.Second) {
		return 0, refusal(Malformed, "X-Amz-Expires must be from 1 to %d seconds", maxPresigned/time.Second)
	}
	return time.Duration(seconds) * time.Second, nil
}

// single is the value of a header that may be there once at most.
func single(r *http.Request, name string) (string, error) {
	switch values := r.Header[name]; len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	}
	return "", refusal(Malformed, "the header %s is repeated: send one", name)
}

// removeCredentials takes out of r what must reach no log, event or backend.
func removeCredentials(r *http.Request) {
	delete(r.Header, "Authorization")
	delete(r.Header, "X-Amz-Security-Token")
	if any, err := hasQueryCredentials(r.URL.RawQuery); !any && err == nil {
		return
	}
	parts := strings.Split(r.URL.RawQuery, "&")
	kept := slices.DeleteFunc(slices.Clone(parts), func(part string) bool {
		name, _, _ := strings.Cut(part, "=")
		if decoded, err := unescapeQuery(name); err == nil {
			name = decoded
		}
		return isCredentialParameter(name)
	})
	if len(kept) < len(parts) {
		r.URL.RawQuery = strings.Join(kept, "&")
		r.RequestURI = r.URL.RequestURI()
	}
}

func isCredentialParameter(name string) bool {
	for _, credential := range []string{
		"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature",
		"X-Amz-Security-Token", "X-Amz-S3session-Token", "X-Amz-Region-Set", "AWSAccessKeyId", "Signature",
	} {
		if strings.EqualFold(name, credential) {
			return true
		}
	}
	return false
}

// isHex reports whether s is a SHA-256 in lower-case hexadecimal, the only spelling that clients use and S3 takes.
func isHex(s string) bool {
	if len(s) != sha256.Size*2 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if ch := s[i]; (ch < '0' || ch > '9') && (ch < 'a' || ch > 'f') {
			return false
		}
	}
	return true
}

// isWord reports whether s can be a part of a credential's scope.
func isWord(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !unreserved[s[i]] {
			return false
		}
	}
	return true
}

func isHeaderName(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch ch := s[i]; {
		case 'a' <= ch && ch <= 'z', '0' <= ch && ch <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", ch) >= 0:
		default:
			return false
		}
	}
	return true
}

func refusal(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}
