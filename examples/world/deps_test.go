package world_test

import (
	"os/exec"
	"strings"
	"testing"
)

// What is here for tests and for the quickstart must not get into the program that guards the door: an STS that mints
// sessions, an issuer that signs tokens, an S3 server of sixty modules.
func TestTheProxyIsBuiltWithoutTheWorld(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "github.com/sluice-s3/sluice/cmd/proxy").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 100 {
		t.Fatalf("only %d packages: %s", len(packages), out)
	}
	for _, p := range packages {
		for _, foreign := range []string{"versitygw", "minio", "identity/oidctest", "sluice/proxy/s3test", "sluice/examples", "net/http/httptest", "go-containerregistry", "policy/policytest"} {
			if strings.Contains(p, foreign) {
				t.Errorf("cmd/proxy is built with %s", p)
			}
		}
	}
}
