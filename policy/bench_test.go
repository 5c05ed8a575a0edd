package policy_test

import (
	"context"
	"testing"
)

func BenchmarkDecideSmall(b *testing.B) {
	e := open(b, `package s3.authz

default allow := false

allow if {
	input.action in {"s3:GetObject", "s3:PutObject"}
	startswith(input.key, concat("", [input.identity.attributes.project, "/"]))
}
`)
	q := question()
	b.ReportAllocs()
	for b.Loop() {
		if d, err := e.Decide(context.Background(), q); err != nil || !d.Allow {
			b.Fatal(d, err)
		}
	}
}
