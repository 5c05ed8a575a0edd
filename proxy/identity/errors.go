package identity

import "fmt"

// Kind says what a caller does about an error; proxy/errors.go turns each into S3's code, sts.go into STS's.
type Kind uint8

const (
	Missing      Kind = iota + 1 // no credentials
	Malformed                    // credentials not understood, repeated, or more than one kind
	BadToken                     // a token that does not verify: signature, issuer, audience, claims
	Expired                      // token, session or presigned URL past its end
	BadSignature                 // SigV4 does not match
	UnknownKey                   // access key id that Sluice did not issue
	Skewed                       // signed more than 15 minutes from now
	Revoked                      // by an operator or by logout
	Unavailable                  // the issuer's keys cannot be fetched: not the caller's fault
)

// Error is why a caller was not recognised. Message is for the developer and holds no secret.
type Error struct {
	Kind    Kind
	Message string
	Err     error // for the operator's log and the event; may be nil
	// Identity is who it was, of a credential that is good but for having been revoked. It MUST be let in nowhere.
	Identity *Identity
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }

// badToken refuses a token. What is formatted MUST NOT be the token or a part of it that is not a claim.
func badToken(format string, args ...any) *Error {
	return &Error{Kind: BadToken, Message: fmt.Sprintf(format, args...)}
}
