package identity

import (
	"context"
	"time"
)

// Revocations says which identities are no longer accepted, and cuts what they have in flight.
type Revocations struct{}

// OpenRevocations reads what is known and follows the store until ctx ends.
func OpenRevocations(ctx context.Context, c RevocationConfig, now func() time.Time) (*Revocations, error) {
	return &Revocations{}, nil
}

// Check returns an *Error of kind Revoked where id is revoked.
func (r *Revocations) Check(id *Identity) error { return nil }

// Track calls cancel when id is revoked, unless untrack was called before.
func (r *Revocations) Track(id *Identity, cancel func()) (untrack func()) { return func() {} }

// Revocations are those the Authenticator checks.
func (a *Authenticator) Revocations() *Revocations { return a.revocations }

// Track calls cancel when id is revoked, unless untrack was called before.
func (a *Authenticator) Track(id *Identity, cancel func()) (untrack func()) {
	return a.revocations.Track(id, cancel)
}
