package s3wire_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// payloadOf is how a client says its body comes.
func payloadOf(t *testing.T, h http.Header, wire int64) s3wire.Payload {
	t.Helper()
	p := s3wire.Payload{Wire: wire, Trailer: strings.ToLower(h.Get("X-Amz-Trailer"))}
	switch sum := h.Get("X-Amz-Content-Sha256"); sum {
	case "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
		p.Kind = s3wire.PayloadUnsignedTrailer
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD":
		p.Kind = s3wire.PayloadSigned
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER":
		p.Kind = s3wire.PayloadSignedTrailer
	default:
		t.Fatalf("x-amz-content-sha256 is %q", sum)
	}
	var err error
	if p.Length, err = strconv.ParseInt(h.Get("X-Amz-Decoded-Content-Length"), 10, 64); err != nil {
		t.Fatal(err)
	}
	return p
}

// sameObject holds what a backend gets of a client's body to the object.
func sameObject(t *testing.T, p s3wire.Payload, body string, verify s3wire.ChunkVerifier, object []byte) {
	t.Helper()
	if p.Wire >= 0 && p.Wire != int64(len(body)) {
		t.Fatalf("the client's Content-Length is %d, its body has %d bytes", p.Wire, len(body))
	}
	out, sent, err := outbound(p, body, verify)
	if err != nil || int64(len(sent)) != out.Length {
		t.Fatalf("sent %d bytes of %d: %v", len(sent), out.Length, err)
	}
	if out.SHA256 == "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
		sent = string(dechunk(sent))
	}
	if sent != string(object) {
		t.Fatalf("sent %d bytes, not the object's %d", len(sent), len(object))
	}
}

var bodySizes = []int{0, 1, 8191, 64 << 10, 64<<10 + 1, 300_000}

func TestBodiesOfMinioGo(t *testing.T) {
	at := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	for _, size := range bodySizes {
		object := bytes.Repeat([]byte("m"), size)
		for _, trailing := range []bool{false, true} {
			request := func() *http.Request {
				req, _ := http.NewRequest("PUT", "http://examplebucket.s3.amazonaws.com/o", bytes.NewReader(object))
				if trailing {
					name, value, _ := strings.Cut(strings.TrimSuffix(crc32Trailer(object), "\r\n"), ":")
					req.Trailer = http.Header{http.CanonicalHeaderKey(name): {value}}
				}
				return req
			}
			t.Run(fmt.Sprintf("signed/%d/%v", size, trailing), func(t *testing.T) {
				req := signer.StreamingSignV4(request(), "AKIAIOSFODNN7EXAMPLE", docSecret, "", "us-east-1", int64(size), at, sumCloser{sha256.New()})
				body, err := io.ReadAll(req.Body)
				if err != nil {
					t.Fatal(err)
				}
				wire := req.ContentLength
				if wire == 0 {
					wire = -1 // to net/http a body with no length, which it sends in chunks
				}
				_, seed, _ := strings.Cut(req.Header.Get("Authorization"), "Signature=")
				sameObject(t, payloadOf(t, req.Header, wire), string(body), newSignatures(seed), object)
			})
			if trailing {
				t.Run(fmt.Sprintf("unsigned/%d", size), func(t *testing.T) {
					req := signer.StreamingUnsignedV4(request(), "", int64(size), at)
					body, err := io.ReadAll(req.Body)
					if err != nil {
						t.Fatal(err)
					}
					sameObject(t, trailerPayload(size), string(body), nil, object)
				})
			}
		}
	}
}

type sumCloser struct{ hash.Hash }

func (sumCloser) Close() {}

func TestBodiesOfTheSDK(t *testing.T) {
	t.Setenv("AWS_CA_BUNDLE", "")
	var got *http.Request
	var body string
	client := s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: aws.String("https://s3.example.com"), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider("AKIAIOSFODNN7EXAMPLE", docSecret, ""),
		HTTPClient: roundTripper(func(r *http.Request) (*http.Response, error) {
			b, err := io.ReadAll(r.Body)
			got, body = r, string(b)
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: r}, err
		}),
	})
	for _, size := range bodySizes[1:] { // it sends an empty object plainly
		for _, algorithm := range []types.ChecksumAlgorithm{"CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256", "SHA512"} {
			t.Run(fmt.Sprintf("%d/%s", size, algorithm), func(t *testing.T) {
				object := bytes.Repeat([]byte("s"), size)
				_, err := client.PutObject(t.Context(), &s3.PutObjectInput{
					Bucket: aws.String("b"), Key: aws.String("k"), ChecksumAlgorithm: algorithm,
					Body: bytes.NewReader(object),
				})
				if err != nil {
					t.Fatal(err)
				}
				sameObject(t, payloadOf(t, got.Header, got.ContentLength), body, nil, object)
			})
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) Do(r *http.Request) (*http.Response, error) { return f(r) }
