package identity_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/minio/minio-go/v7"
	miniocredentials "github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/sluice-s3/sluice/proxy/identity"
)

// store is as much of an S3 server as its clients need to put and get an object: requests are authenticated, signed
// bodies are verified, objects are kept by the decoded path.
type store struct {
	*httptest.Server
	w *world

	mu      sync.Mutex // guards all below
	objects map[string][]byte
	hashes  map[string]bool // values of x-amz-content-sha256 that were seen, hashes as "hash"
	methods map[string]bool // of the identities
	refused []string
}

// clientKeys are names that clients differ about; each client below says which of them it takes.
var clientKeys = []string{
	"plain", "a b+c/ü%2F.txt", "~tilde", "$&+,:;=@", "!'()*", "trailing/", "a//b", "/leading", "%25%", "a?b#c", "emoji🪣", "\"<>\\^`{|}", "[x]",
}

func startStore(t *testing.T, tls bool) *store {
	s := &store{w: start(t), objects: map[string][]byte{}, hashes: map[string]bool{}, methods: map[string]bool{}}
	s.Server = httptest.NewUnstartedServer(s)
	if tls {
		s.EnableHTTP2 = true // Go's clients take it, the others stay on 1.1
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	// The machine's own settings are none of the clients' business here.
	for _, name := range []string{"AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	return s
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	hash := r.Header.Get("X-Amz-Content-Sha256")
	if len(hash) == 64 {
		hash = "hash"
	}
	proof, err := s.w.Authenticate(r)
	var body []byte
	if err == nil {
		body, err = readBody(r, proof)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hashes[hash] = true
	if err != nil {
		s.refused = append(s.refused, fmt.Sprintf("%s %s: %v", r.Method, r.URL.Path, err))
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "<Error><Code>AccessDenied</Code><Message>refused</Message></Error>")
		return
	}
	s.methods[proof.Identity.Method] = true
	w.Header().Set("ETag", `"0"`)
	w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
	switch r.Method {
	case "PUT":
		s.objects[r.URL.Path] = body
	case "GET", "HEAD":
		data, ok := s.objects[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		w.Write(data)
	}
}

// readBody reads what the client sent, by a reader of chunks that shares nothing with the proxy's.
func readBody(r *http.Request, proof *identity.Proof) ([]byte, error) {
	hash := r.Header.Get("X-Amz-Content-Sha256")
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if proof.CheckHash && sum(string(raw)) != hash {
		return nil, fmt.Errorf("hash of the body")
	}
	if !strings.HasPrefix(hash, "STREAMING-") {
		return raw, nil
	}
	var body []byte
	lines := bufio.NewReader(bytes.NewReader(raw))
	line := func() string {
		s, _ := lines.ReadString('\n')
		return strings.TrimSuffix(s, "\r\n")
	}
	for {
		size, signature, _ := strings.Cut(line(), ";chunk-signature=")
		n, err := strconv.ParseInt(size, 16, 32)
		if err != nil {
			return nil, err
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(lines, data); err != nil {
			return nil, err
		}
		if proof.Chunks != nil {
			if err := proof.Chunks.VerifyChunk(signature, sha256.Sum256(data)); err != nil {
				return nil, err
			}
		}
		body = append(body, data...)
		if n == 0 {
			break
		}
		line()
	}
	rest, _ := io.ReadAll(lines)
	trailer := ""
	for l := range strings.FieldsFuncSeq(string(rest), func(ch rune) bool { return ch == '\r' || ch == '\n' }) {
		if signature, ok := strings.CutPrefix(l, "x-amz-trailer-signature:"); ok {
			return body, proof.Chunks.VerifyTrailer(signature, sha256.Sum256([]byte(trailer)))
		}
		trailer += l + "\n"
	}
	if strings.HasSuffix(hash, "HMAC-SHA256-PAYLOAD-TRAILER") {
		return nil, fmt.Errorf("no signature of the trailer")
	}
	return body, nil
}

// check is called at the end of a client's work: nothing of it was refused, and it came in as we think it did.
func (s *store) check(t *testing.T, prefix string, content []byte, keys []string, hashes ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, refused := range s.refused {
		t.Errorf("refused: %s", refused)
	}
	for _, key := range keys {
		if !bytes.Equal(s.objects["/bucket/"+prefix+key], content) {
			t.Errorf("key %q was not stored, or changed; there is %v", key, names(s.objects))
		}
	}
	for _, hash := range hashes {
		if !s.hashes[hash] {
			t.Errorf("no request with x-amz-content-sha256 %q; there were %v", hash, s.hashes)
		}
	}
	if !s.methods["session"] || !s.methods["presigned"] {
		t.Errorf("methods %v", s.methods)
	}
}

func names(objects map[string][]byte) (all []string) {
	for name := range objects {
		all = append(all, strconv.Quote(name))
	}
	return all
}

func get(t *testing.T, client *http.Client, url string, want []byte) {
	t.Helper()
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != 200 || !bytes.Equal(body, want) {
		t.Errorf("%s: %s, %d bytes, %v", url, response.Status, len(body), err)
	}
}

var content = bytes.Repeat([]byte("0123456789abcdef"), 10_000) // several chunks of minio-go's and the SDKs' 64 KiB

func TestGoSDK(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", tls), func(t *testing.T) {
			s := startStore(t, tls)
			client := s3.New(s3.Options{
				Region: "eu-central-1", BaseEndpoint: &s.URL, UsePathStyle: true, HTTPClient: s.Client(),
				RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
				Credentials:                aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return credentials(s.w.session(nil)), nil }),
			})
			for _, key := range clientKeys {
				if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: &key, Body: bytes.NewReader(content),
					Metadata: map[string]string{"a": "x  y", "b": " z "}, ContentEncoding: aws.String("identity")}); err != nil {
					t.Errorf("put %q: %v", key, err)
				}
				out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("bucket"), Key: &key, ResponseContentType: aws.String("text/plain; a=b+c")})
				if err != nil {
					t.Errorf("get %q: %v", key, err)
					continue
				}
				io.Copy(io.Discard, out.Body)
				out.Body.Close()
				url, err := s3.NewPresignClient(client).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("bucket"), Key: &key})
				if err != nil {
					t.Fatal(err)
				}
				get(t, s.Client(), url.URL, content)
			}
			put, err := s3.NewPresignClient(client).PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: aws.String("shared"), ContentType: aws.String("text/plain"), Metadata: map[string]string{"a": "b"}})
			if err != nil {
				t.Fatal(err)
			}
			r, _ := http.NewRequest(put.Method, put.URL, bytes.NewReader(content))
			for name, values := range put.SignedHeader {
				if name != "Host" {
					r.Header[name] = values
				}
			}
			if response, err := s.Client().Do(r); err != nil || response.StatusCode != 200 {
				t.Errorf("presigned put: %v %v", response, err)
			}
			want := "hash"
			if tls {
				want = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
			}
			s.check(t, "", content, append(clientKeys, "shared"), want)
		})
	}
}

func TestMinioGo(t *testing.T) {
	for _, tls := range []bool{false, true} {
		for _, trailing := range []bool{false, true} {
			t.Run(fmt.Sprintf("tls=%v,trailing=%v", tls, trailing), func(t *testing.T) {
				s := startStore(t, tls)
				session := s.w.session(nil)
				client, err := minio.New(strings.TrimPrefix(strings.TrimPrefix(s.URL, "http://"), "https://"), &minio.Options{
					Creds:  miniocredentials.NewStaticV4(session.AccessKeyID, session.SecretAccessKey, session.SessionToken),
					Secure: tls, Transport: s.Client().Transport, Region: "us-east-1", TrailingHeaders: trailing,
				})
				if err != nil {
					t.Fatal(err)
				}
				options := minio.PutObjectOptions{UserMetadata: map[string]string{"a": "x  y"}}
				if trailing {
					options.Checksum = minio.ChecksumCRC32C
				}
				for _, key := range clientKeys {
					key = strings.TrimPrefix(key, "/") // it takes one off itself
					if _, err := client.PutObject(t.Context(), "bucket", key, bytes.NewReader(content), int64(len(content)), options); err != nil {
						t.Errorf("put %q: %v", key, err)
						continue
					}
					object, err := client.GetObject(t.Context(), "bucket", key, minio.GetObjectOptions{})
					if err == nil {
						_, err = io.Copy(io.Discard, object)
					}
					if err != nil {
						t.Errorf("get %q: %v", key, err)
					}
					url, err := client.PresignedGetObject(t.Context(), "bucket", key, time.Hour, nil)
					if err != nil {
						t.Fatal(err)
					}
					get(t, s.Client(), url.String(), content)
				}
				want := "UNSIGNED-PAYLOAD"
				switch {
				case !tls && trailing:
					want = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
				case !tls:
					want = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
				case trailing:
					want = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
				}
				var keys []string
				for _, key := range clientKeys {
					keys = append(keys, strings.TrimPrefix(key, "/"))
				}
				s.check(t, "", content, keys, want)
			})
		}
	}
}

// environment is what a client of another language is told.
func (s *store) environment(session *identity.Session) []string {
	keys, _ := json.Marshal(clientKeys)
	return append(os.Environ(),
		"AWS_ACCESS_KEY_ID="+session.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+session.SecretAccessKey, "AWS_SESSION_TOKEN="+session.SessionToken,
		"AWS_DEFAULT_REGION=eu-central-1", "AWS_REGION=eu-central-1", "AWS_EC2_METADATA_DISABLED=true",
		"ENDPOINT="+s.URL, "KEYS="+string(keys), "CONTENT="+strconv.Itoa(len(content)), "NODE_TLS_REJECT_UNAUTHORIZED=0", "PYTHONWARNINGS=ignore")
}

const botoScript = `
import boto3, json, os, urllib.request, ssl
from botocore.config import Config
content = b"0123456789abcdef" * (int(os.environ["CONTENT"]) // 16)
context = ssl._create_unverified_context()
for mode in "when_supported", "when_required":
    s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], verify=False, config=Config(
        signature_version="s3v4", request_checksum_calculation=mode, retries={"max_attempts": 0}, s3={"addressing_style": "path"}))
    for key in json.loads(os.environ["KEYS"]):
        s3.put_object(Bucket="bucket", Key=key, Body=content, Metadata={"a": "x  y"})
        assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == content, key
        url = s3.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": key, "ResponseContentType": "text/plain"})
        assert urllib.request.urlopen(url, context=context).read() == content, url
    url = s3.generate_presigned_url("put_object", Params={"Bucket": "bucket", "Key": "shared", "Metadata": {"a": "b"}, "ACL": "private"})
    urllib.request.urlopen(urllib.request.Request(url, data=content, method="PUT", headers={"x-amz-meta-a": "b", "x-amz-acl": "private"}), context=context)
`

func TestBoto3(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil || exec.Command(python, "-c", "import boto3").Run() != nil {
		t.Skip("no python3 with boto3 on this machine")
	}
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", tls), func(t *testing.T) {
			s := startStore(t, tls)
			command := exec.CommandContext(t.Context(), python, "-c", botoScript)
			command.Env = s.environment(s.w.session(nil))
			if out, err := command.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			want := []string{"hash"}
			if tls {
				want = []string{"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}
			}
			s.check(t, "", content, append(clientKeys, "shared"), want...)
		})
	}
}

func TestAWSCLI(t *testing.T) {
	cli, err := exec.LookPath("aws")
	if err != nil || exec.Command(cli, "--version").Run() != nil {
		t.Skip("no aws CLI on this machine")
	}
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", tls), func(t *testing.T) {
			s := startStore(t, tls)
			dir := t.TempDir()
			config := dir + "/config"
			if err := os.WriteFile(config, []byte("[default]\ns3 =\n  signature_version = s3v4\n  addressing_style = path\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir+"/content", content, 0o600); err != nil {
				t.Fatal(err)
			}
			run := func(args ...string) string {
				command := exec.CommandContext(t.Context(), cli, append(args, "--endpoint-url", s.URL, "--no-verify-ssl")...)
				command.Env = append(s.environment(s.w.session(nil)), "AWS_CONFIG_FILE="+config, "AWS_MAX_ATTEMPTS=1")
				var stderr bytes.Buffer
				command.Stderr = &stderr
				out, err := command.Output()
				if err != nil {
					t.Errorf("aws %q: %v\n%s", args, err, stderr.Bytes())
				}
				return strings.TrimSpace(string(out))
			}
			const key = "a b+c/ü%2F.txt"
			run("s3", "cp", dir+"/content", "s3://bucket/"+key)
			run("s3", "cp", "s3://bucket/"+key, dir+"/back")
			if back, err := os.ReadFile(dir + "/back"); err != nil || !bytes.Equal(back, content) {
				t.Errorf("%d bytes came back, %v", len(back), err)
			}
			get(t, s.Client(), run("s3", "presign", "s3://bucket/"+key), content)
			s.check(t, "", content, []string{key})
		})
	}
}

const nodeScript = `
import { S3Client, PutObjectCommand, GetObjectCommand } from "@aws-sdk/client-s3";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { Readable } from "node:stream";
const content = Buffer.from("0123456789abcdef".repeat(process.env.CONTENT / 16));
const client = new S3Client({ endpoint: process.env.ENDPOINT, forcePathStyle: true, maxAttempts: 1 });
for (const Key of JSON.parse(process.env.KEYS)) {
  const where = { Bucket: "bucket", Key };
  await client.send(new PutObjectCommand({ ...where, Body: content, Metadata: { a: "x  y" }, CacheControl: "no-cache" }));
  await client.send(new PutObjectCommand({ ...where, Body: Readable.from([content]), ContentLength: content.length }));
  const back = await (await client.send(new GetObjectCommand(where))).Body.transformToByteArray();
  if (Buffer.compare(content, Buffer.from(back))) throw new Error("get " + Key);
  const url = await getSignedUrl(client, new GetObjectCommand(where), { expiresIn: 60 });
  const shared = Buffer.from(await (await fetch(url)).arrayBuffer());
  if (Buffer.compare(content, shared)) throw new Error("presigned get " + url);
}
const url = await getSignedUrl(client, new PutObjectCommand({ Bucket: "bucket", Key: "shared", Metadata: { a: "b" } }), { expiresIn: 60 });
const put = await fetch(url, { method: "PUT", body: content });
if (!put.ok) throw new Error("presigned put " + url);
`

// SLUICE_TEST_NODE_MODULES names a directory in which `npm install @aws-sdk/client-s3 @aws-sdk/s3-request-presigner` ran.
func TestJavaScriptSDK(t *testing.T) {
	modules := os.Getenv("SLUICE_TEST_NODE_MODULES")
	node, err := exec.LookPath("node")
	if err != nil || modules == "" {
		t.Skip("no node, or SLUICE_TEST_NODE_MODULES is not set")
	}
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", tls), func(t *testing.T) {
			s := startStore(t, tls)
			command := exec.CommandContext(t.Context(), node, "--input-type=module", "-e", nodeScript)
			command.Dir = modules
			command.Env = s.environment(s.w.session(nil))
			if out, err := command.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			s.check(t, "", content, append(clientKeys, "shared"), "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
		})
	}
}
