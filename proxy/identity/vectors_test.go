package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

// awsExample is the session that AWS's published examples are signed with.
func awsExample() *session {
	return &session{accessKeyID: "AKIAIOSFODNN7EXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
}

const exampleScope = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"

// The examples of https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html and of
// sigv4-streaming.html and sigv4-streaming-trailers.html.
var published = []struct {
	name, method, url string
	header            map[string]string
	signedHeaders     string
	signature         string
}{
	{
		"GET Object", "GET", "https://examplebucket.s3.amazonaws.com/test.txt",
		map[string]string{"Range": "bytes=0-9", "X-Amz-Content-Sha256": emptySHA256},
		"host;range;x-amz-content-sha256;x-amz-date",
		"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
	},
	{
		"PUT Object", "PUT", "https://examplebucket.s3.amazonaws.com/test$file.text",
		map[string]string{
			"Date": "Fri, 24 May 2013 00:00:00 GMT", "X-Amz-Storage-Class": "REDUCED_REDUNDANCY",
			"X-Amz-Content-Sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
		},
		"date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
		"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
	},
	{
		"GET Bucket Lifecycle", "GET", "https://examplebucket.s3.amazonaws.com/?lifecycle",
		map[string]string{"X-Amz-Content-Sha256": emptySHA256},
		"host;x-amz-content-sha256;x-amz-date",
		"fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
	},
	{
		"GET Bucket (List Objects)", "GET", "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J",
		map[string]string{"X-Amz-Content-Sha256": emptySHA256},
		"host;x-amz-content-sha256;x-amz-date",
		"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
	},
	{
		"chunked upload", "PUT", "https://s3.amazonaws.com/examplebucket/chunkObject.txt",
		map[string]string{
			"X-Amz-Storage-Class": "REDUCED_REDUNDANCY", "X-Amz-Content-Sha256": signedChunks, "Content-Encoding": "aws-chunked",
			"X-Amz-Decoded-Content-Length": "66560", "Content-Length": "66824",
		},
		"content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class",
		"4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
	},
	{
		"chunked upload with a trailer", "PUT", "https://s3.amazonaws.com/examplebucket/chunkObject.txt",
		map[string]string{
			"X-Amz-Storage-Class": "REDUCED_REDUNDANCY", "X-Amz-Content-Sha256": signedTrailer, "Content-Encoding": "aws-chunked",
			"X-Amz-Decoded-Content-Length": "66560", "X-Amz-Trailer": "x-amz-checksum-crc32c",
		},
		"content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer",
		"106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
	},
}

func TestPublishedExamples(t *testing.T) {
	for _, example := range published {
		r := httptest.NewRequest(example.method, example.url, nil)
		for name, value := range example.header {
			r.Header.Set(name, value)
		}
		r.Header.Set("X-Amz-Date", "20130524T000000Z")
		// The header is written as the page has it, without a blank behind the commas.
		r.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s,SignedHeaders=%s,Signature=%s", exampleScope, example.signedHeaders, example.signature))
		s, _, err := readSigned(r)
		if err == nil {
			s.payloadHash, err = payloadHash(r)
		}
		if err == nil {
			_, err = s.verify(r, awsExample(), "s3")
		}
		if err != nil {
			t.Errorf("%s: %v", example.name, err)
		}
	}
}

func TestPublishedPresignedExample(t *testing.T) {
	r := httptest.NewRequest("GET", "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404", nil)
	s, _, lifetime, err := readPresigned(r)
	if err != nil {
		t.Fatal(err)
	}
	if lifetime.Hours() != 24 {
		t.Errorf("lifetime %s", lifetime)
	}
	if _, err := s.verify(r, awsExample(), "s3"); err != nil {
		t.Error(err)
	}
}

func TestPublishedChunks(t *testing.T) {
	for _, example := range []struct {
		seed    string
		chunks  []string
		trailer string
	}{
		{
			"4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
			[]string{
				"ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
				"0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
				"b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
			}, "",
		},
		{
			"106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
			[]string{
				"b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
				"1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
				"2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
			}, "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435",
		},
	} {
		start := func() *ChunkSignatures {
			key, _ := awsExample().signingKey("20130524", "us-east-1", "s3")
			return newChunkSignatures(key[:], "20130524T000000Z", "20130524/us-east-1/s3/aws4_request", [64]byte([]byte(example.seed)))
		}
		data := []string{strings.Repeat("a", 65536), strings.Repeat("a", 1024), ""}
		c := start()
		for i, signature := range example.chunks {
			if err := c.VerifyChunk(signature, sha256.Sum256([]byte(data[i]))); err != nil {
				t.Errorf("chunk %d: %v", i, err)
			}
		}
		trailer := sha256.Sum256([]byte("x-amz-checksum-crc32c:sOO8/Q==\n"))
		if example.trailer != "" {
			if err := c.VerifyTrailer(example.trailer, trailer); err != nil {
				t.Error(err)
			}
		}

		// Anything else ends it for good: another chunk's data, order, or signature, however spelt.
		for what, try := range map[string]func(*ChunkSignatures) error{
			"data": func(c *ChunkSignatures) error { return c.VerifyChunk(example.chunks[0], sha256.Sum256([]byte("b"))) },
			"order": func(c *ChunkSignatures) error {
				return c.VerifyChunk(example.chunks[1], sha256.Sum256([]byte(data[1])))
			},
			"empty": func(c *ChunkSignatures) error { return c.VerifyChunk("", sha256.Sum256([]byte(data[0]))) },
			"short": func(c *ChunkSignatures) error {
				return c.VerifyChunk(example.chunks[0][:63], sha256.Sum256([]byte(data[0])))
			},
			"case": func(c *ChunkSignatures) error {
				return c.VerifyChunk(strings.ToUpper(example.chunks[0]), sha256.Sum256([]byte(data[0])))
			},
			"trailer": func(c *ChunkSignatures) error {
				return c.VerifyTrailer(example.chunks[0], sha256.Sum256([]byte(data[0])))
			},
		} {
			c := start()
			wantBadSignature(t, what, try(c))
			wantBadSignature(t, "the right chunk after a wrong "+what, c.VerifyChunk(hex.EncodeToString(make([]byte, 32)), [32]byte{}))
			wantBadSignature(t, "its own next signature after a wrong "+what, c.VerifyChunk(next(c), [32]byte{}))
		}
	}
}

// next is the signature that c would take for an empty hash, were it not for an earlier failure.
func next(c *ChunkSignatures) string {
	fork := newChunkSignatures(nil, "", "", c.last)
	fork.mac, fork.middle = c.mac, c.middle
	fork.VerifyChunk("", [32]byte{})
	return string(fork.last[:])
}

func wantBadSignature(t *testing.T, what string, err error) {
	t.Helper()
	if e, ok := err.(*Error); !ok || e.Kind != BadSignature {
		t.Errorf("%s: %v", what, err)
	}
}

func BenchmarkVerifyChunk(b *testing.B) {
	key, _ := awsExample().signingKey("20130524", "us-east-1", "s3")
	c := newChunkSignatures(key[:], "20130524T000000Z", "20130524/us-east-1/s3/aws4_request", [64]byte{})
	signature := next(c)
	b.ReportAllocs()
	for b.Loop() {
		c.failed = false
		c.last = [64]byte{}
		if err := c.VerifyChunk(signature, [32]byte{}); err != nil {
			b.Fatal(err)
		}
	}
}
