package identity

import (
	"context"
	"errors"
)

type natsStore struct{}

func openNATS(ctx context.Context, servers string, r *Revocations) (*natsStore, error) {
	return nil, errors.New("not written")
}
func (n *natsStore) put(ctx context.Context, v Revocation) error { return nil }
func (n *natsStore) remove(ctx context.Context, id string) error { return nil }
func (n *natsStore) status(s *RevocationStatus)                  {}
