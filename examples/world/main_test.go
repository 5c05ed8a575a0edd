package world_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/sluice-s3/sluice/examples/world"
)

func TestMain(m *testing.M) {
	world.Main()
	os.Unsetenv("AWS_CA_BUNDLE") // the SDK refuses it beside an HTTP client of one's own
	if os.Getenv("WORLD_TEST_ORPHAN") != "" {
		w, err := world.Start(context.Background(), world.Options{})
		if err != nil {
			panic(err)
		}
		fmt.Println(w.Backends[0].URL, w.Dir)
		select {}
	}
	os.Exit(m.Run())
}
