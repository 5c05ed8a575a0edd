// Package identity answers who sent a request: it verifies bearer tokens, issued sessions and signatures, and
// knows what has been revoked. It decides nothing about S3.
package identity

import (
	"sync/atomic"
	"time"
)

// Identity is who asks. It is immutable and shared by all requests that carry the same token.
type Identity struct {
	Issuer, Subject string
	Audience        []string
	Session         string // the workspace: what revocation and audit call it
	TokenID         string // jti
	Method          string // "bearer", "session" or "presigned"
	RequestedRole   string // RoleArn given to AssumeRoleWithWebIdentity
	IssuedAt        time.Time
	Expires         time.Time
	Claims          map[string]any // as decoded from JSON; numbers are json.Number
	Attributes      Attributes

	token   string // the OIDC token, for backends that use web_identity
	proof   Proof  // that the token is
	derived atomic.Pointer[derivation]
	clean   atomic.Pointer[version] // of Revocations at which it was not revoked
}

// Attributes are the same facts whatever the issuer calls them.
type Attributes struct {
	Workspace  string   `json:"workspace"`
	Project    string   `json:"project"`
	Repository string   `json:"repository"`
	User       string   `json:"user"`
	Groups     []string `json:"groups"`
}

// Token is the workspace's own OIDC token, "" where the session does not carry it.
func (i *Identity) Token() string { return i.token }

// Derived keeps what a caller computed once from the identity (its policy input, its session tags) for as long
// as the identity lives. key should be an unexported type of the caller's.
func (i *Identity) Derived(key any, make func() any) any {
	if d := i.derived.Load().find(key); d != nil {
		return d.value
	}
	made := &derivation{key: key, value: make()}
	for {
		made.next = i.derived.Load()
		if d := made.next.find(key); d != nil {
			return d.value // another request was first
		}
		if i.derived.CompareAndSwap(made.next, made) {
			return made.value
		}
	}
}

// derivation is one of a list that only ever grows at its head. There are few, and thousands of identities: a map for
// each would be most of what they hold.
type derivation struct {
	key, value any
	next       *derivation
}

func (d *derivation) find(key any) *derivation {
	for d != nil && d.key != key {
		d = d.next
	}
	return d
}

// Proof is what a request's credentials showed. It is immutable: those of one token share it.
type Proof struct {
	Identity *Identity
	Chunks   *ChunkSignatures // non-nil where the signature covers signed chunks
	// CheckHash: the signature covers the payload's hash, so the body must be held to it as it streams.
	CheckHash bool
	// ExpiresAt ends the request's authority; for a presigned URL it is sooner than the identity's.
	ExpiresAt time.Time
}
