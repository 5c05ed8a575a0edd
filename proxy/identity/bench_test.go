package identity_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

// benchClaims is what a token of Ona holds, about 1 KiB when signed.
func benchClaims() map[string]any {
	return map[string]any{
		"aud": forUs, "sub": "organization_id:a1b2c3d4-0000-4000-8000-000000000001:project_id:c9d0e1f2-0000-4000-8000-000000000005",
		"environment_id": "e5f6a7b8-0000-4000-8000-000000000004", "organization_id": "a1b2c3d4-0000-4000-8000-000000000001",
		"project_id": "c9d0e1f2-0000-4000-8000-000000000005", "runner_id": "f3a4b5c6-0000-4000-8000-000000000007",
		"creator_principal": "user", "creator_id": "b3c4d5e6-0000-4000-8000-000000000003", "creator_email": "dev@acme.example",
		"creator_idp_claims": map[string]any{"groups": []string{"engineering"}},
	}
}

func BenchmarkAuthenticateCached(b *testing.B) {
	issuer := newIssuer(b, oidctest.Options{Algorithm: "RS256"})
	a := trust(b, issuer, func(c *identity.Config) { c.Issuers[0].Preset = "ona" })
	authorization := []string{"Bearer " + issuer.Token(benchClaims())}
	r := bearer("")
	b.ReportAllocs()
	for b.Loop() {
		r.Header["Authorization"] = authorization
		if _, err := a.Authenticate(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyTokenCached(b *testing.B) {
	issuer := newIssuer(b, oidctest.Options{Algorithm: "RS256"})
	a := trust(b, issuer)
	token := issuer.Token(benchClaims())
	if _, err := a.VerifyToken(b.Context(), token); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.VerifyToken(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyTokenCachedParallel(b *testing.B) {
	issuer := newIssuer(b, oidctest.Options{Algorithm: "RS256"})
	a := trust(b, issuer)
	tokens := make([]string, 1000)
	for n := range tokens {
		tokens[n] = issuer.Token(benchClaims())
		if _, err := a.VerifyToken(b.Context(), tokens[n]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for n := 0; pb.Next(); n++ {
			if _, err := a.VerifyToken(b.Context(), tokens[n%len(tokens)]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkVerifyTokenNew is a token never seen before.
func BenchmarkVerifyTokenNew(b *testing.B) {
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		b.Run(algorithm, func(b *testing.B) {
			issuer := newIssuer(b, oidctest.Options{Algorithm: algorithm})
			a := trust(b, issuer)
			tokens := make([]string, 2000)
			for n := range tokens {
				tokens[n] = issuer.Token(benchClaims())
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if n++; n == len(tokens) {
					b.StopTimer()
					n, a = 0, trust(b, issuer, func(c *identity.Config) { c.Previous = a })
					b.StartTimer()
				}
				if _, err := a.VerifyToken(b.Context(), tokens[n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRefuseGarbage(b *testing.B) {
	a := trust(b, newIssuer(b, oidctest.Options{}))
	r := bearer("")
	authorization := []string{"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.eA"}
	b.ReportAllocs()
	for b.Loop() {
		r.Header["Authorization"] = authorization
		if _, err := a.Authenticate(r); err == nil {
			b.Fatal("accepted")
		}
	}
}

func BenchmarkRevocationCheck(b *testing.B) {
	r := openRevocations(b, identity.RevocationConfig{}, nil)
	for n := range 10_000 {
		if _, err := r.Add(b.Context(), identity.Revocation{Issuer: "i", Session: fmt.Sprint("s-", n)}); err != nil {
			b.Fatal(err)
		}
	}
	id := &identity.Identity{Issuer: "i", Subject: "me", Session: "mine", TokenID: "t"}
	b.Run("unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := r.Check(id); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("first", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			id := identity.Identity{Issuer: "i", Subject: "me", Session: "mine", TokenID: "t"}
			if err := r.Check(&id); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkTrack(b *testing.B) {
	r := openRevocations(b, identity.RevocationConfig{}, nil)
	id := &identity.Identity{Issuer: "i", Subject: "me", Session: "mine"}
	b.ReportAllocs()
	for b.Loop() {
		track(r, id, func() {}).Untrack()
	}
}

// BenchmarkRevoke is one revocation while 4,096 transfers are in flight.
func BenchmarkRevoke(b *testing.B) {
	r := openRevocations(b, identity.RevocationConfig{}, nil)
	for n := range 4096 {
		track(r, &identity.Identity{Issuer: "i", Session: fmt.Sprint("s-", n)}, func() {})
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		if _, err := r.Add(b.Context(), identity.Revocation{Issuer: "i", Session: fmt.Sprint("other-", n), Until: time.Now().Add(time.Hour)}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRemembered is what the memory holds of a token that was verified, the token itself included.
func BenchmarkRemembered(b *testing.B) {
	issuer := newIssuer(b, oidctest.Options{Algorithm: "ES256"})
	const n = 2000
	for b.Loop() {
		a := trust(b, issuer, func(c *identity.Config) { c.Issuers[0].Preset = "ona" })
		before := heap()
		size := 0
		for range n {
			token := issuer.Token(benchClaims())
			size = len(token)
			if _, err := a.VerifyToken(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(heap()-before)/n, "B/identity")
		b.ReportMetric(float64(size), "B/token")
		runtime.KeepAlive(a)
	}
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
