package identity

import "context"

// verifyToken is the one verifier of every door: of bearer tokens, of exchanges, of tokens sent as session tokens.
func (a *Authenticator) verifyToken(ctx context.Context, raw string) (*Identity, error) {
	return nil, &Error{Kind: BadToken, Message: "no issuer is configured"}
}
