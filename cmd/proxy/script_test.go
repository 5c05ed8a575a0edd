package main_test

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sluice-s3/sluice/examples/world"
)

// TestScripts runs the built program as its users do: each file is a session at a shell.
func TestScripts(t *testing.T) {
	t.Parallel()
	program, err := world.ProxyProgram(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PROXY", program)
			e.Setenv("GORACE", os.Getenv("GORACE"))
			return nil
		},
	})
}
