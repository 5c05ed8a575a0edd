package s3test_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/minio/minio-go/v7"
	miniocredentials "github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/sluice-s3/sluice/proxy/s3test"
)

func TestMain(m *testing.M) {
	os.Unsetenv("AWS_CA_BUNDLE")
	os.Exit(m.Run())
}

// The examples that AWS publishes in "Signature Calculations for the Authorization Header" and "Authenticating Requests:
// Using Query Parameters".
func TestAWSPublishedSignatures(t *testing.T) {
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	at := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	authorization := func(headers, signature string) s3test.Field {
		return s3test.Field{Name: "Authorization", Value: "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=" + headers + ",Signature=" + signature}
	}
	base := func(hash string, more ...s3test.Field) s3test.Header {
		return append(s3test.Header{
			{Name: "Host", Value: "examplebucket.s3.amazonaws.com"},
			{Name: "x-amz-content-sha256", Value: hash},
			{Name: "x-amz-date", Value: "20130524T000000Z"},
		}, more...)
	}
	for name, r := range map[string]*s3test.Request{
		"get object": {Method: "GET", Target: "/test.txt", Header: base(empty, s3test.Field{Name: "Range", Value: "bytes=0-9"},
			authorization("host;range;x-amz-content-sha256;x-amz-date", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"))},
		"put object": {Method: "PUT", Target: "/test$file.text", Header: base("44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
			s3test.Field{Name: "Date", Value: "Fri, 24 May 2013 00:00:00 GMT"}, s3test.Field{Name: "x-amz-storage-class", Value: "REDUCED_REDUNDANCY"},
			authorization("date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"))},
		"get lifecycle": {Method: "GET", Target: "/?lifecycle", Header: base(empty,
			authorization("host;x-amz-content-sha256;x-amz-date", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"))},
		"list objects": {Method: "GET", Target: "/?max-keys=2&prefix=J", Header: base(empty,
			authorization("host;x-amz-content-sha256;x-amz-date", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"))},
		"presigned": {Method: "GET", Target: "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
			Header: s3test.Header{{Name: "Host", Value: "examplebucket.s3.amazonaws.com"}}},
	} {
		lookup := func(id string) (s3test.Credentials, bool) { return s3test.Key, id == s3test.Key.AccessKeyID }
		if _, err := s3test.CheckSignature(r, lookup, at); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s3test.CheckSignature(r, lookup, at.Add(-16*time.Minute)); err == nil {
			t.Errorf("%s: good 16 minutes too early", name)
		}
		if _, err := s3test.CheckSignature(r, lookup, at.Add(25*time.Hour)); err == nil {
			t.Errorf("%s: good a day later", name)
		}
		r.Target += "x"
		if _, err := s3test.CheckSignature(r, lookup, at); err == nil {
			t.Errorf("%s: good for another target", name)
		}
	}
}

func client(b *s3test.Backend, options ...func(*s3.Options)) *s3.Client {
	transport := &http.Transport{}
	if b.CAFile != "" {
		ca, err := os.ReadFile(b.CAFile)
		if err != nil {
			panic(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(b.URL), Region: "us-east-1", UsePathStyle: true, HTTPClient: &http.Client{Transport: transport},
		RetryMaxAttempts: 1, RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
		Credentials: credentials.NewStaticCredentialsProvider(s3test.Key.AccessKeyID, s3test.Key.SecretAccessKey, ""),
	}, options...)
}

// What each SDK's way of uploading looks like from behind: the payload is the same, and everything was checked.
func TestUploadsOfRealClients(t *testing.T) {
	const payload = "the payload"
	put := func(algorithm types.ChecksumAlgorithm) func(b *s3test.Backend) error {
		return func(b *s3test.Backend) error {
			_, err := client(b).PutObject(t.Context(), &s3.PutObjectInput{
				Bucket: aws.String("bucket"), Key: aws.String("a key/+&é~"), Body: strings.NewReader(payload), ChecksumAlgorithm: algorithm,
			})
			return err
		}
	}
	minioPut := func(trailing bool, options minio.PutObjectOptions) func(b *s3test.Backend) error {
		return func(b *s3test.Backend) error {
			c, err := minio.New(strings.TrimPrefix(b.URL, "http://"), &minio.Options{
				Creds:  miniocredentials.NewStaticV4(s3test.Key.AccessKeyID, s3test.Key.SecretAccessKey, ""),
				Region: "us-east-1", TrailingHeaders: trailing,
			})
			if err != nil {
				return err
			}
			_, err = c.PutObject(t.Context(), "bucket", "a key/+&é~", struct{ io.Reader }{strings.NewReader(payload)}, int64(len(payload)), options)
			return err
		}
	}
	for _, c := range []struct {
		name, hash, trailer string
		tls                 bool
		put                 func(*s3test.Backend) error
	}{
		{"sdk, plain", "", "", false, put("")},
		{"sdk, TLS", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-checksum-crc32", true, put("")},
		{"sdk, TLS, crc64nvme", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-checksum-crc64nvme", true, put(types.ChecksumAlgorithmCrc64nvme)},
		{"sdk, TLS, sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-checksum-sha256", true, put(types.ChecksumAlgorithmSha256)},
		{"minio", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "", false, minioPut(false, minio.PutObjectOptions{})},
		{"minio, trailer", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", "x-amz-checksum-crc32c", false, minioPut(true, minio.PutObjectOptions{Checksum: minio.ChecksumCRC32C})},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := s3test.New(t)
			if c.tls {
				b = s3test.NewTLS(t)
			}
			b.Answer(200, http.Header{"Etag": {`"e"`}}, "")
			if err := c.put(b); err != nil {
				t.Fatal(err)
			}
			r := b.Wait(1)[0]
			if r.SignatureErr != nil || r.PayloadErr != nil || r.Err != nil || string(r.Payload) != payload {
				t.Errorf("payload %q\n%v", r.Payload, r)
			}
			if hash := r.Header.Get("x-amz-content-sha256"); c.hash != "" && hash != c.hash {
				t.Errorf("payload hash %s", hash)
			}
			if names := r.PayloadTrailer.Names(); strings.Join(names, ",") != c.trailer {
				t.Errorf("trailer %q", names)
			}
			if path := r.Path(); path != "/bucket/a%20key/%2B%26%C3%A9~" {
				t.Errorf("path %q", path)
			}
		})
	}
}

func sign(t *testing.T, method, url, body, hash string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Amz-Content-Sha256", hash)
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	err = signer.SignHTTP(context.Background(), aws.Credentials{AccessKeyID: s3test.Key.AccessKeyID, SecretAccessKey: s3test.Key.SecretAccessKey}, r, hash, "s3", "us-east-1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBadBodiesAreRefused(t *testing.T) {
	const digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // of nothing
	for name, c := range map[string]struct {
		hash, body string
		header     http.Header
	}{
		"digest":           {digest, "x", nil},
		"md5":              {"UNSIGNED-PAYLOAD", "x", http.Header{"Content-Md5": {"1B2M2Y8AsgTpgAmY7PhCfg=="}}},
		"checksum":         {"UNSIGNED-PAYLOAD", "x", http.Header{"X-Amz-Checksum-Crc32": {"AAAAAA=="}}},
		"framing":          {"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x", http.Header{"X-Amz-Decoded-Content-Length": {"1"}}},
		"cut":              {"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "5\r\nabc", http.Header{"X-Amz-Decoded-Content-Length": {"5"}}},
		"no last chunk":    {"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "1\r\na\r\n", http.Header{"X-Amz-Decoded-Content-Length": {"1"}}},
		"length":           {"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "1\r\na\r\n0\r\n\r\n", http.Header{"X-Amz-Decoded-Content-Length": {"2"}}},
		"trailer checksum": {"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "1\r\na\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", http.Header{"X-Amz-Decoded-Content-Length": {"1"}, "X-Amz-Trailer": {"x-amz-checksum-crc32"}}},
		"no trailer":       {"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "1\r\na\r\n0\r\n\r\n", http.Header{"X-Amz-Decoded-Content-Length": {"1"}, "X-Amz-Trailer": {"x-amz-checksum-crc32"}}},
		"more after":       {"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "1\r\na\r\n0\r\n\r\nx", http.Header{"X-Amz-Decoded-Content-Length": {"1"}}},
		"chunk signature":  {"STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "1;chunk-signature=00\r\na\r\n0;chunk-signature=00\r\n\r\n", http.Header{"X-Amz-Decoded-Content-Length": {"1"}}},
	} {
		b := s3test.New(t)
		r, err := http.NewRequestWithContext(t.Context(), "PUT", b.URL+"/b/k", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		for name, values := range c.header {
			r.Header[name] = values
		}
		r.Header.Set("X-Amz-Content-Sha256", c.hash)
		signer := v4.NewSigner()
		if err := signer.SignHTTP(t.Context(), aws.Credentials{AccessKeyID: s3test.Key.AccessKeyID, SecretAccessKey: s3test.Key.SecretAccessKey}, r, c.hash, "s3", "us-east-1", time.Now()); err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != 400 || b.Last().PayloadErr == nil {
			t.Errorf("%s: %s", name, response.Status)
		}
	}
}

// A bad signature fails the test it happens in, unless that was the point.
func TestBadSignaturesAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*http.Request){
		"none":            func(r *http.Request) { r.Header.Del("Authorization") },
		"method":          func(r *http.Request) { r.Method = "DELETE" },
		"query":           func(r *http.Request) { r.URL.RawQuery = "acl=" },
		"path":            func(r *http.Request) { r.URL.Path += "x" },
		"header":          func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", strings.Repeat("0", 64)) },
		"unsigned header": func(r *http.Request) { r.Header.Set("X-Amz-Acl", "public-read") },
		"token":           func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "t") },
	} {
		b := s3test.New(t)
		b.Lenient()
		r := sign(t, "GET", b.URL+"/b/k", "", "UNSIGNED-PAYLOAD")
		spoil(r)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if b.Last().SignatureErr == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// Head and trailer are recorded byte for byte, on a connection that is used again, whatever net/http makes of them.
func TestRawBytes(t *testing.T) {
	b := s3test.New(t)
	b.Lenient()
	c, err := net.Dial("tcp", strings.TrimPrefix(b.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	heads := []string{
		"PUT /b//k%2f..%2Fé?x&&y=;  HTTP/1.1\r\nhOsT: b\r\nX-AMZ-Decoded-Content-Length: 3\r\nx-b:  two  spaces \r\nX-B: again\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\n\r\n",
		"PUT /b/2 HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n\r\n",
		"GET /b/3 HTTP/1.1\r\nHost: b\r\n\r\n",
	}
	heads[0] = strings.Replace(heads[0], ";  HTTP", "; HTTP", 1)
	bodies := []string{"2\r\nab\r\n1\r\nc\r\n0\r\nx-t: v\r\n\r\n", "GET /", ""}
	reader := bufio.NewReader(c)
	for i := range heads {
		if _, err := io.WriteString(c, heads[i]+bodies[i]); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, response.Body)
		if response.StatusCode != 200 {
			t.Errorf("%s", response.Status)
		}
	}
	requests := b.Wait(3)
	for i, r := range requests {
		if string(r.Head) != heads[i] {
			t.Errorf("head %q", r.Head)
		}
	}
	r := requests[0]
	if r.Method != "PUT" || r.Target != "/b//k%2f..%2Fé?x&&y=;" || r.Proto != "HTTP/1.1" {
		t.Errorf("%q %q %q", r.Method, r.Target, r.Proto)
	}
	if fmt.Sprint(r.Header) != "[{hOsT b} {X-AMZ-Decoded-Content-Length 3} {x-b two  spaces} {X-B again} {Transfer-Encoding chunked} {Trailer x-t}]" {
		t.Errorf("%v", r.Header)
	}
	if string(r.Body) != "abc" || fmt.Sprint(r.Trailer) != "[{x-t v}]" || string(requests[1].Body) != "GET /" {
		t.Errorf("%q, %v, %q", r.Body, r.Trailer, requests[1].Body)
	}
}

var errGone = errors.New("gone")

func TestAnAbortedUploadIsSeen(t *testing.T) {
	b := s3test.New(t)
	began := make(chan struct{})
	b.HandleStream(func(w http.ResponseWriter, body io.Reader, r *s3test.Request) {
		io.CopyN(io.Discard, body, 3)
		close(began)
		io.Copy(io.Discard, body)
	})
	r := sign(t, "PUT", b.URL+"/b/k", "", "UNSIGNED-PAYLOAD")
	pr, pw := io.Pipe()
	r.Body, r.ContentLength = pr, -1
	go func() {
		io.WriteString(pw, "abcd")
		<-began
		pw.CloseWithError(errGone)
	}()
	if _, err := http.DefaultClient.Do(r); !errors.Is(err, errGone) {
		t.Fatal(err)
	}
	got := b.Wait(1)[0]
	if got.Err == nil || got.Length != 4 || string(got.Body) != "abcd" {
		t.Errorf("%v", got)
	}
}

func TestMisbehaviour(t *testing.T) {
	b := s3test.New(t)
	get := func() (string, error) {
		response, err := http.DefaultClient.Do(sign(t, "GET", b.URL+"/b/k", "", "UNSIGNED-PAYLOAD"))
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return response.Status + " " + string(body), err
	}
	b.Handle(func(w http.ResponseWriter, r *s3test.Request) {
		w.Header().Set("Content-Length", "10")
		io.WriteString(w, "half")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	if got, err := get(); err == nil || got != "200 OK half" {
		t.Errorf("cut: %q, %v", got, err)
	}
	b.Handle(func(w http.ResponseWriter, r *s3test.Request) { s3test.Reset(w) })
	if got, err := get(); err == nil {
		t.Errorf("reset: %q", got)
	}
	b.Handle(func(w http.ResponseWriter, r *s3test.Request) {
		w.WriteHeader(103)
		s3test.Error(w, 503, "SlowDown", "not so fast")
	})
	if got, err := get(); err != nil || !strings.HasPrefix(got, "503") || !strings.Contains(got, "<Code>SlowDown</Code><Message>not so fast</Message>") {
		t.Errorf("error: %q, %v", got, err)
	}
	b.Answer(200, http.Header{"Etag": {`"e"`}}, "hello")
	if got, err := get(); err != nil || got != "200 OK hello" {
		t.Errorf("answer: %q, %v", got, err)
	}
	if n := len(b.Wait(4)); n < 4 {
		t.Errorf("%d requests", n)
	}
}

func BenchmarkPut(b *testing.B) {
	backend := s3test.New(b)
	body := bytes.Repeat([]byte("x"), 64<<10)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	c := client(backend)
	for b.Loop() {
		if _, err := c.PutObject(b.Context(), &s3.PutObjectInput{Bucket: aws.String("b"), Key: aws.String("k"), Body: bytes.NewReader(body)}); err != nil {
			b.Fatal(err)
		}
		backend.Forget()
	}
}
