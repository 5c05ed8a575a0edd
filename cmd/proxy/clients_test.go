package main_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
)

// The whole matrix of clients is in test/clients; here is what is on most machines, so that every change meets it.

// settle waits for at least so many events since the last call, and holds each to have gone well.
func (r *rig) settle(t *testing.T, atLeast int) []audit.Event {
	t.Helper()
	events, err := r.proxy.WaitEvents(t.Context(), r.seen+atLeast) // an event is written a moment after its answer
	if err != nil {
		t.Fatal(err)
	}
	fresh := events[r.seen:]
	r.seen = len(events)
	for _, e := range fresh {
		// curl hangs up on HTTP/2 when it has as many bytes as it was told of. That may be before the proxy has heard that the
		// last of them went out.
		hasAll := e.Operation == "GetObject" && e.Status == 200 && strings.HasPrefix(e.UserAgent, "curl/")
		if e.Outcome != audit.Completed && e.Outcome != audit.Refused && !(e.Outcome == audit.Aborted && hasAll) {
			t.Errorf("event %+v", e)
		}
	}
	return fresh
}

func random(t *testing.T, size int) (file string, content []byte) {
	t.Helper()
	content = make([]byte, size)
	rand.Read(content)
	file = filepath.Join(t.TempDir(), "object.bin")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return file, content
}

func TestMinioGo(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	u, err := url.Parse(r.proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4("", "", ""), Region: "us-east-1",
		Transport: bearer{r.Workspace("env-1", "web", "dev@acme.com"), http.DefaultTransport},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for name, size := range map[string]int{"empty": 0, "small": 17, "multipart": 5<<20 + 1} {
		content := make([]byte, size)
		rand.Read(content)
		key := "web/minio/a b+c/ü%2F " + name
		if _, err := client.PutObject(ctx, "artifacts", key, bytes.NewReader(content), int64(size), minio.PutObjectOptions{PartSize: 5 << 20}); err != nil {
			t.Errorf("put %s: %v", key, err)
			continue
		}
		object, err := client.GetObject(ctx, "artifacts", key, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if back, err := io.ReadAll(object); err != nil || !bytes.Equal(back, content) {
			t.Errorf("get %s: %d bytes, %v", key, len(back), err)
		}
	}
	if _, err := client.StatObject(ctx, "artifacts", "api/x", minio.StatObjectOptions{}); minio.ToErrorResponse(err).StatusCode != 403 {
		t.Errorf("another project's object: %v", err)
	}
	r.settle(t, 1)
}

// run runs a client with no AWS settings but env.
func (r *rig) run(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not on this machine", name)
	}
	cmd := exec.Command(name, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	// The CLI keeps web identity credentials in ~/.aws/cli/cache, and would use those of an earlier test's proxy.
	cmd.Env = append(cmd.Env, "HOME="+t.TempDir(), "AWS_REGION=us-east-1", "AWS_CONFIG_FILE="+os.DevNull, "AWS_SHARED_CREDENTIALS_FILE="+os.DevNull, "AWS_EC2_METADATA_DISABLED=true")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ways are those in which an unmodified client can come in by environment variables alone.
func (r *rig) ways(t *testing.T, token string) map[string][]string {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	endpoint := "AWS_ENDPOINT_URL_S3=" + r.proxy.URL
	return map[string][]string{
		"web identity": {endpoint, "AWS_ENDPOINT_URL_STS=" + r.proxy.URL, "AWS_WEB_IDENTITY_TOKEN_FILE=" + file,
			"AWS_ROLE_ARN=" + world.RoleARN("workspace"), "AWS_ROLE_SESSION_NAME=test"},
		"container":     {endpoint, "AWS_CONTAINER_CREDENTIALS_FULL_URI=" + r.proxy.URL + "/-/credentials", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=" + file},
		"session token": {endpoint, "AWS_ACCESS_KEY_ID=any", "AWS_SECRET_ACCESS_KEY=any", "AWS_SESSION_TOKEN=" + token},
	}
}

func TestAWSCLI(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "http", true: "https"}[secure], func(t *testing.T) {
			r := newRig(t, world.Options{}, world.ProxyOptions{TLS: secure})
			file, content := random(t, 9<<20+1) // over the CLI's 8 MiB: multipart
			back := filepath.Join(t.TempDir(), "back.bin")
			for way, env := range r.ways(t, r.Workspace("env-1", "web", "dev@acme.com")) {
				t.Run(way, func(t *testing.T) {
					if secure {
						if way == "container" {
							t.Skip("botocore's container fetcher takes no private CA: see docs/clients.md")
						}
						env = append(env, "AWS_CA_BUNDLE="+r.CAFile)
					}
					key := "s3://artifacts/web/cli/" + strings.ReplaceAll(way, " ", "-") + "/a b+c/ü%2F.bin"
					for _, args := range [][]string{{"cp", file, key}, {"ls", "s3://artifacts/web/cli/"}, {"cp", key, back}, {"rm", key}} {
						if out, err := r.run(t, env, "aws", append([]string{"s3"}, args...)...); err != nil {
							t.Fatalf("aws s3 %v: %v\n%s", args, err, out)
						}
					}
					if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
						t.Errorf("read back %d bytes, %v", len(got), err)
					}
					out, err := r.run(t, env, "aws", "s3", "cp", "s3://artifacts/api/secret", "-")
					if err == nil {
						t.Errorf("another project's object: %s", out)
					}
				})
			}
			r.settle(t, 1)
		})
	}
}

func TestBoto3(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("python3", "-c", "import boto3").CombinedOutput(); err != nil {
		t.Skipf("boto3 is not on this machine: %s", out)
	}
	r := newRig(t, world.Options{}, world.ProxyOptions{})
	for way, env := range r.ways(t, r.Workspace("env-1", "web", "dev@acme.com")) {
		t.Run(way, func(t *testing.T) {
			out, err := r.run(t, env, "python3", "-c", `
import boto3, os, io
from botocore.exceptions import ClientError
s3 = boto3.client("s3")
for size in (0, 17, 9*1024*1024+1):
    body = os.urandom(size)
    s3.upload_fileobj(io.BytesIO(body), "artifacts", "web/boto/a b+c/ü%2F.bin", ExtraArgs={"Metadata": {"colour": "blue"}})
    got = s3.get_object(Bucket="artifacts", Key="web/boto/a b+c/ü%2F.bin")
    assert got["Body"].read() == body and got["Metadata"] == {"colour": "blue"} and "ContentEncoding" not in got, (got["Metadata"], got.get("ContentEncoding"), size)
    s3.copy_object(Bucket="artifacts", Key="web/boto/copy", CopySource={"Bucket": "artifacts", "Key": "web/boto/a b+c/ü%2F.bin"})
    assert s3.head_object(Bucket="artifacts", Key="web/boto/copy")["ContentLength"] == size
keys = [o["Key"] for p in s3.get_paginator("list_objects_v2").paginate(Bucket="artifacts", Prefix="web/boto/") for o in p["Contents"]]
assert keys == ["web/boto/a b+c/ü%2F.bin", "web/boto/copy"], keys
try:
    s3.get_object(Bucket="artifacts", Key="api/secret")
    raise SystemExit("another project's object was there to read")
except ClientError as e:
    assert e.response["Error"]["Code"] == "AccessDenied" and "project web works below web/" in e.response["Error"]["Message"], e
answer = s3.delete_objects(Bucket="artifacts", Delete={"Objects": [{"Key": k} for k in keys + ["api/x"]]})
assert len(answer["Deleted"]) == 2 and [e["Key"] for e in answer["Errors"]] == ["api/x"], answer
`)
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	r.settle(t, 1)
}

func TestCurl(t *testing.T) {
	t.Parallel()
	r := newRig(t, world.Options{}, world.ProxyOptions{TLS: true})
	file, content := random(t, 1<<20)
	back := filepath.Join(t.TempDir(), "back.bin")
	token := "Authorization: Bearer " + r.Workspace("env-1", "web", "dev@acme.com")
	base := []string{"-sS", "--fail-with-body", "--cacert", r.CAFile, "-H", token}
	for _, args := range [][]string{
		{"-T", file, r.proxy.URL + "/artifacts/web/curl.bin"},
		{"-o", back, r.proxy.URL + "/artifacts/web/curl.bin"},
		{"-I", r.proxy.URL + "/artifacts/web/curl.bin"},
		{"-X", "DELETE", r.proxy.URL + "/artifacts/web/curl.bin"},
	} {
		if out, err := r.run(t, nil, "curl", append(base[:len(base):len(base)], args...)...); err != nil {
			t.Fatalf("curl %v: %v\n%s", args, err, out)
		}
	}
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read back %d bytes, %v", len(got), err)
	}
	if events := r.settle(t, 4); len(events) != 4 {
		t.Errorf("%d events, want 4", len(events))
	}
}
