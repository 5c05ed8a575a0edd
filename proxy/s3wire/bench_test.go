package s3wire_test

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// A GET and a PUT with the headers that aws-sdk-go-v2 really sends, and the chunked upload of the CLI.
var benchmarks = []struct {
	name string
	w    wire
}{
	{"GetObject", wire{method: "GET", host: domain, target: "/my-bucket/team/project/build-1234/artifact.tgz?x-id=GetObject", header: http.Header{
		"Authorization": {"Bearer eyJhbGciOi"}, "User-Agent": {"aws-sdk-go-v2/1.47.7"}, "Accept-Encoding": {"identity"},
		"Amz-Sdk-Invocation-Id": {"d2b0b9a3"}, "Amz-Sdk-Request": {"attempt=1; max=3"}, "X-Amz-Checksum-Mode": {"ENABLED"},
		"X-Amz-Content-Sha256": {"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}, "X-Amz-Date": {"20261123T000000Z"},
	}}},
	{"GetObjectCurl", wire{method: "GET", host: domain, target: "/my-bucket/team/project/build-1234/artifact.tgz", header: http.Header{
		"Authorization": {"Bearer eyJhbGciOi"}, "User-Agent": {"curl/8"}, "Accept": {"*/*"},
	}}},
	{"GetObjectVirtualHosted", wire{method: "GET", host: "my-bucket." + domain, target: "/team/project/a%20key/%C3%BC", header: http.Header{
		"Authorization": {"Bearer eyJhbGciOi"}, "User-Agent": {"curl/8"}, "Accept": {"*/*"},
	}}},
	{"PutObject", wire{method: "PUT", host: domain, target: "/my-bucket/team/project/a?x-id=PutObject", header: http.Header{
		"Authorization": {"Bearer eyJhbGciOi"}, "User-Agent": {"aws-cli"}, "Accept-Encoding": {"identity"}, "Content-Encoding": {"aws-chunked"},
		"Content-Length": {"42"}, "X-Amz-Decoded-Content-Length": {"5"}, "X-Amz-Trailer": {"x-amz-checksum-crc32"}, "X-Amz-Sdk-Checksum-Algorithm": {"CRC32"},
		"X-Amz-Content-Sha256": {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, "Content-Type": {"text/plain"}, "X-Amz-Meta-Mtime": {"1"}, "Expect": {"100-continue"},
	}}},
	{"ListObjectsV2", wire{method: "GET", host: domain, target: "/my-bucket?list-type=2&prefix=team%2Fproject%2F&delimiter=%2F&encoding-type=url&max-keys=1000", header: http.Header{
		"Authorization": {"Bearer eyJhbGciOi"}, "User-Agent": {"aws-cli"}, "Accept-Encoding": {"identity"},
	}}},
}

func BenchmarkParse(b *testing.B) {
	for _, c := range benchmarks {
		b.Run(c.name, func(b *testing.B) {
			r := c.w.request()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := addressing.Parse(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRewrite is all that is done with an operation afterwards: what it needs, and writing it again.
func BenchmarkRewrite(b *testing.B) {
	endpoint := &url.URL{Scheme: "https", Host: "s3.eu-west-1.amazonaws.com"}
	for _, c := range benchmarks {
		b.Run(c.name, func(b *testing.B) {
			op, err := addressing.Parse(c.w.request())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if len(op.Accesses()) == 0 {
					b.Fatal("needs nothing")
				}
				urlOf(op, endpoint, false)
				op.WriteHeader(make(http.Header, 8))
			}
		})
	}
}

func BenchmarkRefuse(b *testing.B) {
	r := (&wire{method: "GET", host: domain, target: "/my-bucket/k?acl&tagging"}).request()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := (s3wire.Addressing{}).Parse(r); err == nil {
			b.Fatal("passes")
		}
	}
}
