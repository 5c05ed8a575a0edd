package faults

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/examples/world/worldtest"
)

const (
	filesUnderLimits = 24
	botoUnderLimits  = `
import boto3, os, sys
from concurrent.futures import ThreadPoolExecutor
s3, directory = boto3.client("s3"), sys.argv[1]
names = sorted(os.listdir(directory))
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda name: s3.upload_file(os.path.join(directory, name), "artifacts", "web/boto3/" + name), names))
    list(pool.map(lambda name: s3.download_file("artifacts", "web/boto3/" + name, os.path.join(directory, name + ".back")), names))
for name in names:
    assert open(os.path.join(directory, name), "rb").read() == open(os.path.join(directory, name + ".back"), "rb").read(), name
`
)

// SDKs with their own retries (ten attempts, as docs/replicas.md advises) and eight requests at once finish their work under limits
// that are far below what they ask for: they are told to slow down, and do.
func TestSDKsUnderLimits(t *testing.T) {
	r := newRig(t, nil, map[string]any{"limits.requests_per_second": 10, "limits.bytes_per_second": 8 << 20, "limits.in_flight": 6})
	// A program of the AWS family, as a user runs it.
	run := func(t *testing.T, session string, program ...string) {
		t.Helper()
		token := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(token, []byte(r.Workspace(session, "web", "dev@acme.com")), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program[0], program[1:]...)
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_") }),
			"AWS_CONFIG_FILE="+os.DevNull, "AWS_SHARED_CREDENTIALS_FILE="+os.DevNull, "AWS_EC2_METADATA_DISABLED=true", "AWS_DEFAULT_REGION="+r.Region, "AWS_MAX_ATTEMPTS=10", "HOME="+t.TempDir(), // the CLI keeps credentials there
			"AWS_ENDPOINT_URL_S3="+r.proxy.URL, "AWS_ENDPOINT_URL_STS="+r.proxy.URL, "AWS_WEB_IDENTITY_TOKEN_FILE="+token, "AWS_ROLE_ARN="+world.RoleARN("any"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", program[:2], err, out)
		}
	}
	files := func(t *testing.T) string {
		dir := t.TempDir()
		for n := range filesUnderLimits {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d", n)), bytes.Repeat([]byte{byte(n)}, 50_000), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "large"), bytes.Repeat([]byte("large"), 2<<20), 0o644); err != nil { // goes in parts
			t.Fatal(err)
		}
		return dir
	}
	began := time.Now()
	t.Run("all", func(t *testing.T) {
		t.Run("aws CLI", func(t *testing.T) {
			t.Parallel()
			cli, err := exec.LookPath("aws")
			if err != nil || exec.Command(cli, "--version").Run() != nil {
				t.Skip("SKIPPED: no aws CLI on this machine")
			}
			from, to := files(t), t.TempDir()
			run(t, "env-cli", cli, "s3", "cp", "--recursive", "--only-show-errors", from, "s3://artifacts/web/cli/")
			run(t, "env-cli", cli, "s3", "cp", "--recursive", "--only-show-errors", "s3://artifacts/web/cli/", to)
			if out, err := exec.Command("diff", "-r", from, to).CombinedOutput(); err != nil {
				t.Errorf("%v %s", err, out)
			}
		})
		t.Run("boto3", func(t *testing.T) {
			t.Parallel()
			python, err := exec.LookPath("python3")
			if err != nil || exec.Command(python, "-c", "import boto3").Run() != nil {
				t.Skip("SKIPPED: no python3 with boto3 on this machine")
			}
			run(t, "env-boto3", python, "-c", botoUnderLimits, files(t))
		})
		t.Run("Go", func(t *testing.T) {
			t.Parallel()
			client := s3.New(s3.Options{
				Region: r.Region, BaseEndpoint: &r.proxy.URL, UsePathStyle: true, HTTPClient: http.DefaultClient, RetryMaxAttempts: 10,
				Credentials: worldtest.Session(r.World, http.DefaultClient, r.proxy.URL, r.Workspace("env-go", "web", "dev@acme.com")),
			})
			work := make(chan int)
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					for n := range work {
						key, content := aws.String(fmt.Sprint("web/go/", n)), bytes.Repeat([]byte{byte(n)}, 50_000)
						if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("artifacts"), Key: key, Body: bytes.NewReader(content)}); err != nil {
							t.Error(err)
							continue
						}
						got, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("artifacts"), Key: key})
						if err != nil {
							t.Error(err)
							continue
						}
						back, err := io.ReadAll(got.Body)
						got.Body.Close()
						if err != nil || !bytes.Equal(back, content) {
							t.Errorf("%s: %d bytes, %v", *key, len(back), err)
						}
					}
				})
			}
			for n := range filesUnderLimits {
				work <- n
			}
			close(work)
			all.Wait()
		})
	})
	if err := r.proxy.Stop(); err != nil {
		t.Error(err)
	}
	events, err := r.proxy.Events()
	if err != nil {
		t.Fatal(err)
	}
	served, slowed := map[string]int{}, map[string]int{}
	for _, e := range events {
		switch {
		case e.Outcome == audit.Completed:
			served[e.Identity.Session]++
		case e.Error == "SlowDown":
			slowed[e.Identity.Session]++
		}
	}
	t.Logf("after %v: served %v, told to slow down %v", time.Since(began).Round(time.Second), served, slowed)
	if slowed["env-go"] == 0 {
		t.Error("nobody was told to slow down: the limits are not below what was asked for")
	}
}
