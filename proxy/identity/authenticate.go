package identity

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Authenticator verifies every kind of credential, for every door alike.
type Authenticator struct {
	now         func() time.Time
	issuers     map[string]*issuer // by the exact iss of their tokens
	cache       *tokenCache
	sessions    *sessions
	revocations *Revocations
	carryToken  bool
}

// Config is what New needs. Issuers, Sessions and Revocation are the configuration file's sections.
type Config struct {
	Issuers    []IssuerConfig
	Sessions   SessionsConfig
	Revocation RevocationConfig
	Now        func() time.Time // nil = time.Now

	// CarryToken seals the OIDC token itself into session tokens, for backends that use web_identity.
	CarryToken bool

	// Revocations, where set, are used instead of opening Revocation: a reload passes the ones it has, because
	// transfers in flight are tracked by them.
	Revocations *Revocations
	// Previous, where set, lends its issuers' keys, so that a reload while an issuer is down forgets none.
	Previous *Authenticator

	timing *keyTiming // tests do not wait for minutes
}

// New starts fetching keys in the background; it does not wait for issuers. ctx ends what it started.
func New(ctx context.Context, c Config) (*Authenticator, error) {
	a := &Authenticator{now: c.Now, issuers: map[string]*issuer{}, cache: newTokenCache(), carryToken: c.CarryToken}
	if a.now == nil {
		a.now = time.Now
	}
	var err error
	var previous *sessions
	if c.Previous != nil {
		previous = c.Previous.sessions
	}
	if a.sessions, err = newSessions(ctx, c.Sessions, previous); err != nil {
		return nil, err
	}
	if err := a.openIssuers(ctx, c); err != nil {
		return nil, err
	}
	if a.revocations = c.Revocations; a.revocations != nil {
		a.revocations.hold(ctx)
	} else if a.revocations, err = OpenRevocations(ctx, c.Revocation, a.now); err != nil {
		return nil, err
	}
	a.revocations.setIssuers(slices.Sorted(maps.Keys(a.issuers)))
	return a, nil
}

// Authenticate verifies the one credential of r and that it is not revoked. It never reads the body, and it takes
// the credentials' headers out of r, whatever the result. Its errors are *Error.
func (a *Authenticator) Authenticate(r *http.Request) (*Proof, error) {
	defer removeCredentials(r)
	proof, err := a.prove(r)
	if err != nil {
		return nil, err
	}
	// Tokens were checked when they were verified; sessions and presigned URLs have not been.
	if err := a.revocations.Check(proof.Identity); err != nil {
		return nil, err
	}
	return proof, nil
}

// prove finds the door by which r came in. Each door is shut to what belongs to another: a request with two kinds
// of credential would be judged by one and, at the backend or in a log, be another's.
func (a *Authenticator) prove(r *http.Request) (*Proof, error) {
	authorization, tokens := r.Header["Authorization"], r.Header["X-Amz-Security-Token"]
	if len(authorization) > 1 || len(tokens) > 1 {
		return nil, &Error{Kind: Malformed, Message: "the Authorization or X-Amz-Security-Token header is repeated: send one"}
	}
	if len(r.Header["X-Amz-S3session-Token"]) > 0 {
		return nil, &Error{Kind: Malformed, Message: "S3 Express sessions are not supported: sign with X-Amz-Security-Token instead"}
	}
	signedQuery, err := hasQueryCredentials(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	if signedQuery {
		if len(authorization) > 0 || len(tokens) > 0 {
			return nil, &Error{Kind: Malformed, Message: "credentials both in the query and in a header: send a presigned URL without Authorization and X-Amz-Security-Token"}
		}
		return a.authenticatePresigned(r)
	}
	if len(authorization) == 0 || authorization[0] == "" {
		if len(tokens) > 0 {
			return nil, &Error{Kind: Malformed, Message: "X-Amz-Security-Token without a signature: sign the request, or send the token as \"Authorization: Bearer <token>\""}
		}
		return nil, &Error{Kind: Missing, Message: "no credentials: send \"Authorization: Bearer <token>\" with your workspace's OIDC token, or exchange it for session credentials (AWS_WEB_IDENTITY_TOKEN_FILE) and sign the request"}
	}

	scheme, credentials, _ := strings.Cut(authorization[0], " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		if len(tokens) > 0 {
			return nil, &Error{Kind: Malformed, Message: "both a bearer token and X-Amz-Security-Token: send one of them"}
		}
		return a.proveByToken(r.Context(), credentials)
	case scheme == "AWS4-HMAC-SHA256":
		// A client that can set nothing but AWS_SESSION_TOKEN sends its OIDC token there. The token alone is the
		// proof; the signature is by a key that nobody knows.
		if len(tokens) > 0 && isOIDCToken(tokens[0]) {
			return a.proveByToken(r.Context(), tokens[0])
		}
		return a.authenticateSigned(r)
	case scheme == "AWS":
		return nil, &Error{Kind: Malformed, Message: "signature version 2 is not supported: use version 4 (aws configure set default.s3.signature_version s3v4)"}
	case strings.HasPrefix(scheme, "AWS4-"):
		return nil, &Error{Kind: Malformed, Message: "of the signature algorithms only AWS4-HMAC-SHA256 is supported"}
	default:
		return nil, &Error{Kind: Malformed, Message: "the Authorization header is neither \"Bearer <token>\" nor an AWS4-HMAC-SHA256 signature"}
	}
}

func (a *Authenticator) proveByToken(ctx context.Context, raw string) (*Proof, error) {
	id, err := a.verifyToken(ctx, raw)
	if err != nil {
		return nil, err
	}
	return &id.proof, nil
}

// isOIDCToken tells a JWT from a sealed session token, which has no dots.
func isOIDCToken(s string) bool {
	return strings.HasPrefix(s, "ey") && strings.Count(s, ".") == 2
}

// hasQueryCredentials tells whether the query holds any part of a signature, of either version, however it is
// spelt: S3 takes x-amz-* query parameters for headers, and a proxy that overlooked one would let two kinds in.
func hasQueryCredentials(query string) (bool, error) {
	for query != "" {
		var parameter string
		parameter, query, _ = strings.Cut(query, "&")
		name, _, _ := strings.Cut(parameter, "=")
		if strings.ContainsAny(name, "%+") {
			decoded, err := url.QueryUnescape(name)
			if err != nil {
				return false, &Error{Kind: Malformed, Message: "the query has a bad percent escape"}
			}
			name = decoded
		}
		switch len(name) { // most names of S3 match none, and cost one comparison
		case len("X-Amz-S3session-Token"):
			if strings.EqualFold(name, "X-Amz-S3session-Token") {
				return true, nil
			}
		case len("X-Amz-Security-Token"):
			if strings.EqualFold(name, "X-Amz-Security-Token") {
				return true, nil
			}
		case len("X-Amz-SignedHeaders"):
			if strings.EqualFold(name, "X-Amz-SignedHeaders") {
				return true, nil
			}
		case len("X-Amz-Credential"):
			if strings.EqualFold(name, "X-Amz-Credential") {
				return true, nil
			}
		case len("X-Amz-Algorithm"):
			if strings.EqualFold(name, "X-Amz-Algorithm") || strings.EqualFold(name, "X-Amz-Signature") {
				return true, nil
			}
		case len("AWSAccessKeyId"):
			if strings.EqualFold(name, "AWSAccessKeyId") {
				return true, nil
			}
		case len("X-Amz-Expires"):
			if strings.EqualFold(name, "X-Amz-Expires") {
				return true, nil
			}
		case len("X-Amz-Date"):
			if strings.EqualFold(name, "X-Amz-Date") {
				return true, nil
			}
		case len("Signature"):
			if strings.EqualFold(name, "Signature") {
				return true, nil
			}
		}
	}
	return false, nil
}
