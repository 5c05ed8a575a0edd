package main_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/examples/world/worldtest"
)

func TestMain(m *testing.M) { worldtest.Main(m) }

// rig is a world with the built proxy in front of it.
type rig struct {
	*world.World
	proxy *world.Proxy
	seen  int // events looked at so far
}

func newRig(t *testing.T, o world.Options, p world.ProxyOptions) *rig {
	t.Helper()
	if o.Buckets == nil {
		o.Buckets = []string{worldtest.Bucket, "other"}
	}
	if p.PolicyDir == "" {
		var err error
		if p.PolicyDir, err = filepath.Abs("testdata/policy"); err != nil {
			t.Fatal(err)
		}
	}
	w := worldtest.Start(t, o)
	return &rig{World: w, proxy: worldtest.Proxy(t, w, p)}
}

// bearer is an HTTP client that sends a token and nothing else.
type bearer struct {
	token string
	base  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.base.RoundTrip(r)
}

// client is the AWS SDK with a bearer transport.
func (r *rig) client(token string, options ...func(*s3.Options)) *s3.Client {
	return s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(r.proxy.URL), UsePathStyle: true,
		Credentials: aws.AnonymousCredentials{},
		HTTPClient:  &http.Client{Transport: bearer{token, r.HTTPClient().Transport}},
	}, options...)
}

// event waits for the next event and returns it.
func (r *rig) event(t *testing.T) audit.Event {
	t.Helper()
	events, err := r.proxy.WaitEvents(t.Context(), r.seen+1)
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != r.seen+1 {
		t.Fatalf("%d events, want just one more than %d", len(events), r.seen)
	}
	e := events[r.seen]
	r.seen++
	return e
}

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return fmt.Sprint(err)
}

func TestMainPath(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	ctx := context.Background()
	web := r.client(r.Workspace("env-1", "web", "dev@acme.com"))

	body := make([]byte, 1<<20+17)
	rand.Read(body)
	put, err := web.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String("artifacts"), Key: aws.String("web/a b+c/ü%2F.bin"), Body: bytes.NewReader(body)})
	if err != nil {
		t.Fatal(err)
	}
	e := r.event(t)
	if e.Operation != "PutObject" || e.Outcome != audit.Completed || e.Status != 200 || e.Backend.Status != 200 || e.BytesIn < int64(len(body)) {
		t.Errorf("event %+v", e)
	}
	if e.Identity.Session != "env-1" || e.Identity.Method != "bearer" || e.Key != "web/a b+c/ü%2F.bin" || e.Bucket != "artifacts" {
		t.Errorf("event %+v", e)
	}
	if e.Decision.Role != world.RoleARN("sluice-default") {
		t.Errorf("role %q", e.Decision.Role)
	}

	// What HTTP itself refuses has its event too.
	malformed, err := http.NewRequest("GET", r.proxy.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	malformed.URL.Opaque = "/artifacts/web/%zz"
	response, err := r.HTTPClient().Do(malformed)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if e := r.event(t); response.StatusCode != 400 || e.Outcome != audit.Refused || response.Header.Get("X-Amz-Request-Id") != e.ID {
		t.Errorf("%s %v, event %+v", response.Status, response.Header, e)
	}
	if want := []audit.Access{{Action: "s3:PutObject", Bucket: "artifacts", Key: e.Key, Allow: true}}; fmt.Sprint(e.Accesses) != fmt.Sprint(want) {
		t.Errorf("accesses %v, want %v", e.Accesses, want)
	}

	got, err := web.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("artifacts"), Key: aws.String("web/a b+c/ü%2F.bin")})
	if err != nil {
		t.Fatal(err)
	}
	back, err := io.ReadAll(got.Body)
	if err != nil || !bytes.Equal(back, body) {
		t.Fatalf("read back %d bytes, %v", len(back), err)
	}
	if aws.ToString(got.ETag) != aws.ToString(put.ETag) {
		t.Errorf("ETag %v, put gave %v", got.ETag, put.ETag)
	}
	if e := r.event(t); e.Operation != "GetObject" || e.BytesOut != int64(len(body)) || e.Outcome != audit.Completed {
		t.Errorf("event %+v", e)
	}
	direct, err := r.S3Client().GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("artifacts"), Key: aws.String("web/a b+c/ü%2F.bin")})
	if err != nil {
		t.Fatal(err)
	}
	if back, _ := io.ReadAll(direct.Body); !bytes.Equal(back, body) {
		t.Error("the backend has other bytes")
	}

	_, err = web.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("artifacts"), Key: aws.String("api/secret")})
	if code(err) != "AccessDenied" || !strings.Contains(err.Error(), "project web works below web/") {
		t.Errorf("another project's object: %v", err)
	}
	if e := r.event(t); e.Outcome != audit.Refused || e.Decision.Allow || e.Backend.Status != 0 || len(e.Decision.Reasons) != 1 {
		t.Errorf("event %+v", e)
	}

	list, err := web.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("artifacts"), Prefix: aws.String("web/")})
	if err != nil || len(list.Contents) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
	r.event(t)

	deleted, err := web.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: aws.String("artifacts"), Delete: &types.Delete{
		Objects: []types.ObjectIdentifier{{Key: aws.String("web/a b+c/ü%2F.bin")}, {Key: aws.String("api/secret")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(deleted.Deleted) != 1 || len(deleted.Errors) != 1 || aws.ToString(deleted.Errors[0].Code) != "AccessDenied" {
		t.Errorf("deleted %v, errors %v", deleted.Deleted, deleted.Errors)
	}
	if e := r.event(t); len(e.Accesses) != 2 || !e.Accesses[0].Allow || e.Accesses[1].Allow {
		t.Errorf("event %+v", e)
	}

	buckets, err := web.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil || len(buckets.Buckets) != 0 {
		t.Errorf("buckets %v, %v: none may be listed whole", buckets, err)
	}
	r.event(t)

	response, err = http.Get(r.proxy.URL + "/artifacts/web/x")
	if err != nil {
		t.Fatal(err)
	}
	refusal, _ := io.ReadAll(response.Body)
	if response.StatusCode != 403 || !bytes.Contains(refusal, []byte("<Code>AccessDenied</Code>")) || !bytes.Contains(refusal, []byte("Authorization: Bearer")) {
		t.Errorf("no credentials: %s\n%s", response.Status, refusal)
	}
	if e := r.event(t); e.ID != response.Header.Get("X-Amz-Request-Id") || e.Outcome != audit.Refused {
		t.Errorf("event %+v, response %v", e, response.Header)
	}
	if err := r.proxy.Stop(); err != nil {
		t.Error(err)
	}
}

// runProxy runs a command of the built program in a world's environment.
func runProxy(t *testing.T, w *world.World, args ...string) (string, error) {
	t.Helper()
	program, err := world.ProxyProgram(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = w.ProxyEnv()
	out, err := cmd.CombinedOutput()
	return string(out), err
}
