// Package worldtest is what tests that run the built proxy in a world have in common.
package worldtest

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/sluice-s3/sluice/examples/world"
)

// Bucket is there in every world of Start.
const Bucket = "artifacts"

// Main is the whole of TestMain, and the first call in one that does more.
func Main(m *testing.M) {
	world.Main()
	if os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=20") // else a program with the race detector takes a second to end, and tests run hundreds
	}
	os.Unsetenv("AWS_CA_BUNDLE") // it breaks SDK clients that are given an HTTP client
	os.Exit(m.Run())
}

// Start starts a world that ends with the test.
func Start(t testing.TB, o world.Options) *world.World {
	t.Helper()
	if o.Buckets == nil {
		o.Buckets = []string{Bucket}
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	w, err := world.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Stop() })
	return w
}

// Proxy runs the built proxy in w, and shows what it logged if the test fails.
func Proxy(t testing.TB, w *world.World, o world.ProxyOptions) *world.Proxy {
	t.Helper()
	config, err := w.ProxyConfig(o)
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.StartProxy(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the proxy logged:\n%.8000s", p.Log())
		}
	})
	return p
}

// ProjectPolicy is a directory with a policy under which a project may do anything below its own prefix, and list it.
func ProjectPolicy(t testing.TB) string {
	t.Helper()
	const policy = `package s3.authz
own := concat("", [input.identity.attributes.project, "/"])
allow if startswith(input.key, own)
allow if startswith(input.prefix, own)
`
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "authz.rego"), []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Store puts an object straight at the first S3 server.
func Store(t testing.TB, w *world.World, key string, content []byte) {
	t.Helper()
	if _, err := w.S3Client().PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(Bucket), Key: &key, Body: bytes.NewReader(content)}); err != nil {
		t.Fatal(err)
	}
}

// Stored tells whether the first S3 server has an object.
func Stored(t testing.TB, w *world.World, key string) bool {
	_, err := w.S3Client().HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String(Bucket), Key: &key})
	return err == nil
}

// Session exchanges a workspace's token for credentials at a proxy's endpoint, as the SDKs do.
func Session(w *world.World, client *http.Client, endpoint, token string) aws.CredentialsProvider {
	exchange := sts.New(sts.Options{BaseEndpoint: &endpoint, Region: w.Region, HTTPClient: client})
	return aws.NewCredentialsCache(stscreds.NewWebIdentityRoleProvider(exchange, world.RoleARN("any"), tokenText(token)))
}

type tokenText string

func (t tokenText) GetIdentityToken() ([]byte, error) { return []byte(t), nil }

// Until waits for something that happens in another process.
func Until(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
