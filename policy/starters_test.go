package policy_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/sluice-s3/sluice/policy"
)

const starters = "../policies"

func TestStarters(t *testing.T) {
	var out bytes.Buffer
	ok, err := policy.Test(context.Background(), []string{starters}, &out, testing.Verbose())
	if !ok || err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	t.Log(out.String())
}
