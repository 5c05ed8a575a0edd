package world_test

import (
	"os"
	"testing"

	"github.com/sluice-s3/sluice/examples/world"
)

func TestMain(m *testing.M) {
	world.Main()
	os.Unsetenv("AWS_CA_BUNDLE") // the SDK refuses it beside an HTTP client of one's own
	os.Exit(m.Run())
}
