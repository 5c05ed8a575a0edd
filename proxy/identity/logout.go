package identity

import (
	"context"
	"errors"
	"time"
)

// logoutEvent marks a logout token. https://openid.net/specs/openid-connect-backchannel-1_0.html#LogoutToken
const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// Logout takes an OpenID Connect back-channel logout token and revokes what it names: the session (sid) where it has
// one, else what its subject was issued so far. Where the tokens of the issuer do not carry sid, a token that names
// both revokes both. Its errors are *Error, or those of Revocations.Add.
func (a *Authenticator) Logout(ctx context.Context, raw string) error {
	t, err := a.parseToken(raw)
	if err != nil {
		return err
	}
	if !t.isLogout() {
		return badToken("this is not a logout token: it has no events claim with %s", logoutEvent)
	}
	if _, ok := t.claims["nonce"]; ok {
		return badToken("the logout token has a nonce, which only ID tokens have")
	}
	sid, ok := t.claims["sid"].(string)
	if t.claims["sid"] != nil && !ok {
		return badToken("the logout token's sid claim is not a string")
	}
	if t.subject == "" && sid == "" {
		return badToken("the logout token has neither sub nor sid")
	}
	if t.id == "" {
		return badToken("the logout token has no jti")
	}
	if err := t.checkTimes(a.now()); err != nil {
		return err
	}
	if err := t.checkAudience(); err != nil {
		return err
	}
	if err := t.checkLogoutSignature(ctx, raw, sid); err != nil {
		return err
	}
	// After the signature, or else anybody could find out what has been used.
	if isRevoked(a.revocations.Check(&Identity{Issuer: t.issuer.name, TokenID: t.id})) {
		return badToken("this logout token was used before")
	}
	if err := a.revokeLoggedOut(ctx, t, sid); err != nil {
		return err // the issuer may try again
	}
	// What was used is kept as what is revoked is: over restarts, and at all replicas.
	_, err = a.revocations.Add(ctx, Revocation{Issuer: t.issuer.name, TokenID: t.id, Until: t.expires.Add(t.issuer.leeway + time.Second)})
	return err
}

// revokeLoggedOut counts from iat, so that the same token does the same whenever and wherever it is shown: at another replica, in
// the moment before that knows that it was used.
func (a *Authenticator) revokeLoggedOut(ctx context.Context, t *token, sid string) error {
	until := t.issued.Add(revocationLife)
	var err error
	if sid != "" {
		_, err = a.revocations.Add(ctx, Revocation{Issuer: t.issuer.name, Session: sid, Until: until})
	}
	if t.subject != "" && (sid == "" || t.issuer.session != "sid") {
		_, subject := a.revocations.Add(ctx, Revocation{Issuer: t.issuer.name, Subject: t.subject, IssuedBefore: t.issued, Until: until})
		err = errors.Join(err, subject)
	}
	return err
}

func (t *token) isLogout() bool {
	events, _ := t.claims["events"].(map[string]any)
	_, ok := events[logoutEvent].(map[string]any)
	return ok
}

// checkLogoutSignature lets go-oidc verify the token by our keys, and agree on what it says.
func (t *token) checkLogoutSignature(ctx context.Context, raw, sid string) error {
	checked, err := t.verifier().VerifyLogout(ctx, raw)
	if t.err != nil {
		return t.err
	}
	if err != nil || t.key == nil {
		return &Error{Kind: BadToken, Message: "the logout token does not verify", Err: err}
	}
	if checked.SessionID != sid || checked.TokenID != t.id {
		return badToken("the token has a claim twice, in different spellings")
	}
	return t.agrees(checked.Issuer, checked.Subject, checked.Audience, checked.IssuedAt)
}
