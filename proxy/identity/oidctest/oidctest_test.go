package oidctest_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

// What an ordinary relying party makes of it: discovery, keys, a token that verifies, another that does not.
func TestAnOrdinaryClientVerifiesItsTokens(t *testing.T) {
	for _, o := range []oidctest.Options{{}, {Path: "/realms/acme"}, {TLS: true}, {Algorithm: "RS256"}, {Algorithm: "EdDSA"}} {
		issuer := oidctest.New(o)
		defer issuer.Close()
		ctx := t.Context()
		if o.TLS {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(issuer.CertificatePEM())
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
			defer client.CloseIdleConnections()
			ctx = oidc.ClientContext(ctx, client)
		}
		provider, err := oidc.NewProvider(ctx, issuer.URL())
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		verifier := provider.VerifierContext(ctx, &oidc.Config{ClientID: "sluice"})
		token, err := verifier.Verify(ctx, issuer.Token(map[string]any{"aud": "sluice", "sub": "ada"}))
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		if token.Subject != "ada" {
			t.Errorf("subject %q", token.Subject)
		}
		issuer.Rotate()
		if err := verifyRotated(ctx, verifier, issuer); err != nil {
			t.Errorf("after rotation: %v", err)
		}
		stranger := oidctest.NewKey(orES256(o.Algorithm), issuer.Key().KeyID)
		if _, err := verifier.Verify(ctx, issuer.Token(map[string]any{"aud": "sluice"}, oidctest.SignWith(stranger))); err == nil {
			t.Error("a token signed by another key verifies")
		}
		if _, err := verifier.VerifyLogout(ctx, issuer.LogoutToken(map[string]any{"aud": "sluice", "sid": "env-42"})); err != nil {
			t.Errorf("logout token: %v", err)
		}
		if issuer.Fetches() < 2 || issuer.Discoveries() != 1 {
			t.Errorf("%d fetches, %d discoveries", issuer.Fetches(), issuer.Discoveries())
		}
	}
}

// verifyRotated asks more than once: go-oidc answers from its last fetch until the goroutine that made it has
// put it away, which may be later than the answer. That fetch ends without anybody's help, so the tries are bounded.
func verifyRotated(ctx context.Context, verifier *oidc.IDTokenVerifier, issuer *oidctest.Issuer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fetches := issuer.Fetches()
	for {
		_, err := verifier.Verify(ctx, issuer.Token(map[string]any{"aud": "sluice"}))
		if err == nil || issuer.Fetches() > fetches || ctx.Err() != nil {
			return err
		}
	}
}

func TestFaults(t *testing.T) {
	issuer := oidctest.New(oidctest.Options{})
	defer issuer.Close()
	for _, fault := range []oidctest.Fault{
		{Drop: true},
		{Status: 500},
		{Redirect: "http://127.0.0.1:1/"},
		{Body: "no json"},
		{Delay: 1 << 40},
	} {
		issuer.Fail(fault)
		ctx, cancel := context.WithTimeout(t.Context(), 200e6)
		if _, err := oidc.NewProvider(ctx, issuer.URL()); err == nil {
			t.Errorf("%+v: no error", fault)
		}
		cancel()
	}
	issuer.Fail(oidctest.Fault{})
	if _, err := oidc.NewProvider(t.Context(), issuer.URL()); err != nil {
		t.Errorf("healed: %v", err)
	}
}

func orES256(algorithm string) string {
	if algorithm == "" {
		return "ES256"
	}
	return algorithm
}
