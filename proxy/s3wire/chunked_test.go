package s3wire_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// frame writes data as an SDK does, in chunks of size bytes.
func frame(data []byte, size int, trailer string) string {
	var b strings.Builder
	for len(data) > 0 {
		n := min(size, len(data))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, data[:n])
		data = data[n:]
	}
	b.WriteString("0\r\n" + trailer + "\r\n")
	return b.String()
}

func crc32Trailer(data []byte) string {
	h := crc32.NewIEEE()
	h.Write(data)
	return "x-amz-checksum-crc32:" + base64.StdEncoding.EncodeToString(h.Sum(nil)) + "\r\n"
}

func trailerPayload(length int) s3wire.Payload {
	return s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: int64(length), Wire: -1, Trailer: "x-amz-checksum-crc32"}
}

// outbound reads all that a backend would get.
func outbound(p s3wire.Payload, body string, verify s3wire.ChunkVerifier) (s3wire.Outbound, string, error) {
	out, err := p.Outbound(strings.NewReader(body), verify, true)
	if err != nil || out.Body == nil {
		return out, "", err
	}
	sent, err := io.ReadAll(out.Body)
	return out, string(sent), err
}

// wantBroken holds a body to the promise of Outbound: whoever reads it sees an error, and never the last byte.
// seed is what the first chunk's signature follows, "" = signatures are not verified.
func wantBroken(t *testing.T, p s3wire.Payload, body, seed string, codes ...string) {
	t.Helper()
	wraps := []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.DataErrReader, iotest.OneByteReader, iotest.HalfReader}
	if len(body) > 4096 {
		wraps = wraps[:2] // the others take long, and short bodies show as much
	}
	for _, wrap := range wraps {
		var verify s3wire.ChunkVerifier
		if seed != "" {
			verify = newSignatures(seed)
		}
		out, err := p.Outbound(wrap(strings.NewReader(body)), verify, true)
		if err == nil {
			var sent []byte
			if out.Body != nil {
				sent, err = io.ReadAll(out.Body)
			}
			if int64(len(sent)) >= out.Length {
				t.Errorf("the backend got all %d bytes of a broken body", len(sent))
			}
			if err != nil {
				if _, again := out.Body.Read(make([]byte, 1)); again != err {
					t.Errorf("read again: %v, want %v", again, err)
				}
			}
		}
		var e *s3wire.Error
		if !errors.As(err, &e) {
			t.Errorf("error %v, want one of %q", err, codes)
			continue
		}
		if !slices.Contains(codes, e.Code) {
			t.Errorf("error %v, want one of %q", e, codes)
		}
	}
}

func TestTrailerIsFramedAgain(t *testing.T) {
	for _, size := range []int{0, 1, 2, 8191, 8192, 65536, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 17} {
		data := make([]byte, size)
		rand.NewChaCha8([32]byte{}).Read(data)
		for _, chunk := range []int{8192, 65536, 1 << 20, 1 << 30} {
			out, sent, err := outbound(trailerPayload(size), frame(data, chunk, crc32Trailer(data)), nil)
			if err != nil {
				t.Fatalf("%d bytes in chunks of %d: %v", size, chunk, err)
			}
			if int64(len(sent)) != out.Length {
				t.Fatalf("sent %d bytes, promised %d", len(sent), out.Length)
			}
			if want := frame(data, 1<<20, crc32Trailer(data)); sent != want {
				t.Fatalf("%d bytes in chunks of %d: not what was framed", size, chunk)
			}
			if out.SHA256 != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" || out.Header["x-amz-trailer"] != "x-amz-checksum-crc32" ||
				out.Header["x-amz-decoded-content-length"] != strconv.Itoa(size) || out.Header["content-encoding"] != "aws-chunked" {
				t.Fatalf("headers %v, %s", out.Header, out.SHA256)
			}
		}
	}
}

func TestTrailerOfEveryAlgorithm(t *testing.T) {
	for name, size := range map[string]int{
		"crc32": 4, "crc32c": 4, "crc64nvme": 8, "sha1": 20, "sha256": 32, "sha512": 64, "md5": 16,
		"xxhash64": 8, "xxhash3": 8, "xxhash128": 16,
	} {
		t.Run(name, func(t *testing.T) {
			name := "x-amz-checksum-" + name
			p := trailerPayload(2)
			p.Trailer = name
			value := base64.StdEncoding.EncodeToString(make([]byte, size))
			out, sent, err := outbound(p, frame([]byte("hi"), 8192, name+":"+value+"\r\n"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if want := "2\r\nhi\r\n0\r\n" + name + ":" + value + "\r\n\r\n"; sent != want || out.Length != int64(len(want)) {
				t.Errorf("sent %q of %d bytes", sent, out.Length)
			}
			for _, bad := range []string{"", "=", value[1:], value + "=", base64.StdEncoding.EncodeToString(make([]byte, size+1)), strings.ReplaceAll(value, "A", "*"), " " + value[1:], value[:len(value)-1] + "\t"} {
				wantBroken(t, p, frame([]byte("hi"), 8192, name+":"+bad+"\r\n"), "", "InvalidRequest", "MalformedTrailerError")
			}
		})
	}
}

// minio-go writes a trailer's line end as LF CR LF, in mc, restic and all else that is built on it.
func TestTrailerOfMinioGo(t *testing.T) {
	_, sent, err := outbound(trailerPayload(2), "2\r\nhi\r\n0\r\nx-amz-checksum-crc32:2TKnHg==\n\r\n\r\n", nil)
	if want := "2\r\nhi\r\n0\r\nx-amz-checksum-crc32:2TKnHg==\r\n\r\n"; sent != want || err != nil {
		t.Errorf("sent %q, %v", sent, err)
	}
}

func TestTrailerKeepsContentEncoding(t *testing.T) {
	p := trailerPayload(2)
	p.Encoding = "gzip"
	out, _, err := outbound(p, "2\r\nhi\r\n0\r\nx-amz-checksum-crc32:2TKnHg==\r\n\r\n", nil)
	if out.Header["content-encoding"] != "gzip,aws-chunked" || err != nil {
		t.Errorf("headers %v, %v", out.Header, err)
	}
}

// S3 takes a body that promises a trailer and has none; there is nothing then that a plain body could not carry.
func TestTrailerPromisedAndNotDeclared(t *testing.T) {
	p := s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: 11, Wire: -1, Encoding: "gzip"}
	out, sent, err := outbound(p, "B\r\nhello world\r\n0\r\n\r\n", nil)
	if err != nil || sent != "hello world" || out.Length != 11 || out.SHA256 != "UNSIGNED-PAYLOAD" {
		t.Errorf("sent %q, %+v, %v", sent, out, err)
	}
	if out.Header != nil {
		t.Errorf("headers %v", out.Header)
	}
	wantBroken(t, p, "B\r\nhello world\r\n0\r\nx-amz-checksum-crc32:2TKnHg==\r\n\r\n", "", "MalformedTrailerError")
}

func TestPlainBodyGoesOnUntouched(t *testing.T) {
	body := strings.NewReader("hello")
	for _, p := range []s3wire.Payload{
		{Kind: s3wire.PayloadUnsigned, Length: -1, Wire: 5},
		{Kind: s3wire.PayloadUnsigned, Length: 5, Wire: 5},
		{Kind: s3wire.PayloadHash, Length: 5, Wire: 5, SHA256: strings.Repeat("0", 64)},
	} {
		out, err := p.Outbound(body, nil, false)
		if err != nil || out.Body != io.Reader(body) || out.Length != 5 {
			t.Errorf("%+v: %+v, %v", p, out, err)
		}
		if want := map[bool]string{true: "UNSIGNED-PAYLOAD", false: p.SHA256}[p.SHA256 == ""]; out.SHA256 != want {
			t.Errorf("sha256 %q", out.SHA256)
		}
	}
	out, err := s3wire.Payload{Length: -1, Wire: 0}.Outbound(nil, nil, false)
	if err != nil || out.Body != nil || out.Length != 0 || out.SHA256 != "UNSIGNED-PAYLOAD" || out.Header != nil {
		t.Errorf("no body: %+v, %v", out, err)
	}
}

func TestHashIsChecked(t *testing.T) {
	for _, size := range []int{0, 1, 100_000} {
		data := strings.Repeat("x", size)
		sum := sha256.Sum256([]byte(data))
		p := s3wire.Payload{Kind: s3wire.PayloadHash, Length: int64(size), Wire: int64(size), SHA256: hex.EncodeToString(sum[:])}
		if out, sent, err := outbound(p, data, nil); err != nil || sent != data || out.SHA256 != p.SHA256 {
			t.Errorf("%d bytes: sent %d, %v", size, len(sent), err)
		}
		p.SHA256 = strings.Repeat("0", 64)
		wantBroken(t, p, data, "", "XAmzContentSHA256Mismatch")
		if size > 0 {
			p.SHA256 = hex.EncodeToString(sum[:])
			wantBroken(t, p, data[1:], "", "IncompleteBody")
		}
		wantBroken(t, p, data+"x", "", "IncompleteBody")
	}
}

// A plain body with no Content-Length has only the client's word for its length.
func TestPlainBodyWithoutContentLength(t *testing.T) {
	p := s3wire.Payload{Kind: s3wire.PayloadUnsigned, Length: 5, Wire: -1}
	if out, sent, err := outbound(p, "hello", nil); err != nil || sent != "hello" || out.Length != 5 {
		t.Errorf("sent %q, %+v, %v", sent, out, err)
	}
	wantBroken(t, p, "hell", "", "IncompleteBody")
	wantBroken(t, p, "hello!", "", "IncompleteBody")
	p.Length = 0
	wantBroken(t, p, "!", "", "IncompleteBody")
}

func TestPayloadRefusedBeforeItsBody(t *testing.T) {
	for _, c := range []struct {
		name string
		p    s3wire.Payload
		code string
	}{
		{"no length", s3wire.Payload{Length: -1, Wire: -1}, "MissingContentLength"},
		{"hash without length", s3wire.Payload{Kind: s3wire.PayloadHash, Length: -1, Wire: -1}, "MissingContentLength"},
		{"framed without decoded length", s3wire.Payload{Kind: s3wire.PayloadSigned, Length: -1, Wire: 500}, "MissingContentLength"},
		{"longer than anything", s3wire.Payload{Length: 1<<62 + 1, Wire: -1}, "EntityTooLarge"},
		{"framed, longer than anything", s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: 1<<63 - 1, Wire: -1, Trailer: "x-amz-checksum-crc32"}, "EntityTooLarge"},
		{"two lengths", s3wire.Payload{Length: 4, Wire: 5}, "IncompleteBody"},
		{"no room for framing", s3wire.Payload{Kind: s3wire.PayloadSigned, Length: 500, Wire: 500}, "IncompleteBody"},
		{"nothing framed", s3wire.Payload{Kind: s3wire.PayloadSigned, Length: 0, Wire: 0}, "IncompleteBody"},
		{"unknown trailer", s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: 5, Wire: -1, Trailer: "x-amz-meta-a"}, "InvalidRequest"},
		{"unknown checksum", s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: 5, Wire: -1, Trailer: "x-amz-checksum-type"}, "InvalidRequest"},
		{"trailer on a plain body", s3wire.Payload{Length: 5, Wire: 5, Trailer: "x-amz-checksum-crc32"}, "InvalidRequest"},
		{"trailer on signed chunks without", s3wire.Payload{Kind: s3wire.PayloadSigned, Length: 5, Wire: -1, Trailer: "x-amz-checksum-crc32"}, "InvalidRequest"},
		{"signed trailer not declared", s3wire.Payload{Kind: s3wire.PayloadSignedTrailer, Length: 5, Wire: -1}, "MalformedTrailerError"},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := iotest.ErrReader(errors.New("the body was read"))
			_, err := c.p.Outbound(body, nil, true)
			var e *s3wire.Error
			if !errors.As(err, &e) || e.Code != c.code {
				t.Errorf("error %v, want %s", err, c.code)
			}
			if _, err := c.p.Unframed(body, nil, true); !errors.As(err, &e) || e.Code != c.code {
				t.Errorf("unframed: error %v, want %s", err, c.code)
			}
		})
	}
}

// A client that goes away is not a client that framed its body wrongly: the proxy records another outcome.
func TestClientsOwnErrorComesThrough(t *testing.T) {
	gone := errors.New("connection reset")
	data := bytes.Repeat([]byte("a"), 20000)
	whole := frame(data, 8192, crc32Trailer(data))
	for _, cut := range cuts(whole + "!") {
		out, err := trailerPayload(20000).Outbound(io.MultiReader(strings.NewReader(whole[:cut]), iotest.ErrReader(gone)), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(out.Body); err != gone {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}

// cuts is every place to cut a body at, but for those in the midst of a chunk's data, which are all alike.
func cuts(body string) (at []int) {
	for i := range body {
		if near := body[max(0, i-100):min(len(body), i+100)]; strings.Trim(near, near[:1]) != "" {
			at = append(at, i)
		}
	}
	return at
}

func TestT13CutAtEveryByte(t *testing.T) {
	for _, data := range []string{"", "a", "hello", strings.Repeat("a", 8200)} {
		data := []byte(data)
		crc := crc32Trailer(data)
		p := s3wire.Payload{Kind: s3wire.PayloadSigned, Length: int64(len(data)), Wire: -1}
		signed := signedFrame(data, 8192, "")
		for _, cut := range cuts(signed) {
			wantBroken(t, p, signed[:cut], "", "IncompleteBody")
		}
		p.Kind, p.Trailer = s3wire.PayloadUnsignedTrailer, "x-amz-checksum-crc32"
		unsigned := frame(data, 8192, crc)
		for _, cut := range cuts(unsigned) {
			wantBroken(t, p, unsigned[:cut], "", "IncompleteBody")
		}
		p.Kind = s3wire.PayloadSignedTrailer
		signed = signedFrame(data, 8192, strings.TrimSuffix(crc, "\r\n"))
		for _, cut := range cuts(signed) {
			wantBroken(t, p, signed[:cut], docSeed, "IncompleteBody")
		}
		if _, _, err := outbound(p, signed, newSignatures(docSeed)); err != nil {
			t.Errorf("whole: %v", err)
		}
	}
}

func TestT13Framing(t *testing.T) {
	const crc = "x-amz-checksum-crc32:2TKnHg==\r\n"
	for _, c := range []struct {
		name, body string
		codes      []string
	}{
		{"extra byte", "2\r\nhi\r\n0\r\n" + crc + "\r\n!", nil},
		{"extra line", "2\r\nhi\r\n0\r\n" + crc + "\r\n\r\n", nil},
		{"a second body", strings.Repeat("2\r\nhi\r\n0\r\n"+crc+"\r\n", 2), nil},
		{"declared too long", "1\r\nh\r\n0\r\n" + crc + "\r\n", nil},
		{"declared too short", "3\r\nhi!\r\n0\r\n" + crc + "\r\n", nil},
		{"chunk longer than its size", "2\r\nhi!\r\n0\r\n" + crc + "\r\n", nil},
		{"chunk shorter than its size", "2\r\nh\r\n0\r\n" + crc + "\r\n", nil},
		{"chunk after the last", "0\r\n2\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"no last chunk", "2\r\nhi\r\n" + crc + "\r\n", nil},
		{"bare LF after size", "2\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"bare LF after data", "2\r\nhi\n0\r\n" + crc + "\r\n", nil},
		{"bare LF after last", "2\r\nhi\r\n0\n" + crc + "\r\n", nil},
		{"bare LF everywhere", "2\nhi\n0\nx-amz-checksum-crc32:2TKnHg==\n\n", nil},
		{"bare CR after size", "2\rhi\r\n0\r\n" + crc + "\r\n", nil},
		{"two CR", "2\r\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"bare LF after trailer", "2\r\nhi\r\n0\r\nx-amz-checksum-crc32:2TKnHg==\n\r\n", nil},
		{"two LF after trailer", "2\r\nhi\r\n0\r\nx-amz-checksum-crc32:2TKnHg==\n\n\r\n\r\n", []string{"MalformedTrailerError"}},
		{"LF CR LF after size", "2\n\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"only LF for a trailer", "2\r\nhi\r\n0\r\n\n\r\n\r\n", []string{"MalformedTrailerError"}},
		{"plus", "+2\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"minus", "-2\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"minus zero", "2\r\nhi\r\n-0\r\n" + crc + "\r\n", nil},
		{"0x", "0x2\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"underscore", "0_2\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"space before size", " 2\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"space after size", "2 \r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"tab", "2\t\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"no size", "\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"leading line", "\r\n2\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"extension", "2;a=b\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"empty extension", "2;\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"signature on unsigned", "2;chunk-signature=" + strings.Repeat("0", 64) + "\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"byte order mark", "\xEF\xBB\xBF2\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"17 digits", strings.Repeat("0", 16) + "2\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"over 64 bits", "10000000000000002\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"over 63 bits", "ffffffffffffffff\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"63 bits", "7fffffffffffffff\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"a gigabyte", "40000000\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"long line", strings.Repeat("2", 300) + "\r\nhi\r\n0\r\n" + crc + "\r\n", nil},
		{"endless line", strings.Repeat("2", 1<<20), nil},
		{"raw body", "hi", nil},
		{"empty body", "", nil},
		{"two small chunks", "1\r\nh\r\n1\r\ni\r\n0\r\n" + crc + "\r\n", []string{"InvalidChunkSizeError"}},

		{"no trailer", "2\r\nhi\r\n0\r\n\r\n", []string{"MalformedTrailerError"}},
		{"trailer twice", "2\r\nhi\r\n0\r\n" + crc + crc + "\r\n", []string{"MalformedTrailerError"}},
		{"undeclared trailer", "2\r\nhi\r\n0\r\nx-amz-checksum-sha1:" + strings.Repeat("A", 27) + "=\r\n\r\n", []string{"MalformedTrailerError"}},
		{"undeclared trailer beside it", "2\r\nhi\r\n0\r\n" + crc + "x-amz-meta-a:b\r\n\r\n", []string{"MalformedTrailerError"}},
		{"undeclared trailer before it", "2\r\nhi\r\n0\r\nx-amz-meta-a:b\r\n" + crc + "\r\n", []string{"MalformedTrailerError"}},
		{"signature on unsigned trailer", "2\r\nhi\r\n0\r\n" + crc + "x-amz-trailer-signature:" + strings.Repeat("0", 64) + "\r\n\r\n", []string{"MalformedTrailerError"}},
		{"no name", "2\r\nhi\r\n0\r\n:2TKnHg==\r\n\r\n", []string{"MalformedTrailerError"}},
		{"no colon", "2\r\nhi\r\n0\r\n2TKnHg==\r\n\r\n", []string{"MalformedTrailerError"}},
		{"space before colon", "2\r\nhi\r\n0\r\nx-amz-checksum-crc32 :2TKnHg==\r\n\r\n", []string{"MalformedTrailerError"}},
		{"space after colon", "2\r\nhi\r\n0\r\nx-amz-checksum-crc32: 2TKnHg==\r\n\r\n", []string{"InvalidRequest"}},
		{"folded trailer", "2\r\nhi\r\n0\r\nx-amz-checksum-crc32:\r\n 2TKnHg==\r\n\r\n", []string{"InvalidRequest"}},
		{"padding missing", "2\r\nhi\r\n0\r\nx-amz-checksum-crc32:2TKnHg\r\n\r\n", []string{"InvalidRequest"}},
		{"bits after the padding", "2\r\nhi\r\n0\r\nx-amz-checksum-crc32:2TKnHh==\r\n\r\n", []string{"InvalidRequest"}},
		{"endless trailer", "2\r\nhi\r\n0\r\n" + strings.Repeat("x", 1<<20), nil},
		{"endless trailers", "2\r\nhi\r\n0\r\n" + strings.Repeat(crc, 1<<15), []string{"MalformedTrailerError"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.codes == nil {
				c.codes = []string{"IncompleteBody"}
			}
			wantBroken(t, trailerPayload(2), c.body, "", c.codes...)
		})
	}
}

// The envelope of one kind must not pass for the content of another.
func TestT13FramingOfAnotherKind(t *testing.T) {
	data := []byte("hello")
	unsigned := frame(data, 8192, "")
	signed := signedFrame(data, 8192, "")
	wantBroken(t, s3wire.Payload{Kind: s3wire.PayloadSigned, Length: 5, Wire: -1}, unsigned, "", "IncompleteBody")
	wantBroken(t, s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: 5, Wire: -1}, signed, "", "IncompleteBody")
	wantBroken(t, s3wire.Payload{Kind: s3wire.PayloadUnsigned, Length: 5, Wire: -1}, signed, "", "IncompleteBody")
	for _, body := range []string{
		"5;chunk-signature=" + strings.Repeat("0", 63) + "\r\nhello\r\n",
		"5;chunk-signature=" + strings.Repeat("0", 65) + "\r\nhello\r\n",
		"5;chunk-signature=" + strings.Repeat("g", 64) + "\r\nhello\r\n",
		"5;chunk-Signature=" + strings.Repeat("0", 64) + "\r\nhello\r\n",
		"5; chunk-signature=" + strings.Repeat("0", 64) + "\r\nhello\r\n",
		"5;a=b;chunk-signature=" + strings.Repeat("0", 64) + "\r\nhello\r\n",
		"5;chunk-signature=" + strings.Repeat("0", 64) + ";a=b\r\nhello\r\n",
		";chunk-signature=" + strings.Repeat("0", 64) + "\r\nhello\r\n",
		"5\r\nhello\r\n",
	} {
		wantBroken(t, s3wire.Payload{Kind: s3wire.PayloadSigned, Length: 5, Wire: -1}, body+"0;chunk-signature="+strings.Repeat("0", 64)+"\r\n\r\n", "", "IncompleteBody")
	}
}

// The published examples: 65 KiB of "a" in chunks of 64 KiB, signed with the documentation's key.
const (
	docSeed        = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
	docTrailerSeed = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
	docSecret      = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

// signatures signs, and verifies, as AWS's documentation tells.
type signatures struct {
	key  []byte
	last string
}

func newSignatures(seed string) *signatures {
	key := []byte("AWS4" + docSecret)
	for _, part := range []string{"20130524", "us-east-1", "s3", "aws4_request"} {
		key = mac(key, part)
	}
	return &signatures{key, seed}
}

func mac(key []byte, s string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(s))
	return h.Sum(nil)
}

func (s *signatures) sign(algorithm string, sums ...string) string {
	parts := append([]string{algorithm, "20130524T000000Z", "20130524/us-east-1/s3/aws4_request", s.last}, sums...)
	s.last = hex.EncodeToString(mac(s.key, strings.Join(parts, "\n")))
	return s.last
}

func (s *signatures) chunk(sum [32]byte) string {
	empty := sha256.Sum256(nil)
	return s.sign("AWS4-HMAC-SHA256-PAYLOAD", hex.EncodeToString(empty[:]), hex.EncodeToString(sum[:]))
}

func (s *signatures) trailer(sum [32]byte) string {
	return s.sign("AWS4-HMAC-SHA256-TRAILER", hex.EncodeToString(sum[:]))
}

var errSignature = &s3wire.Error{Code: "SignatureDoesNotMatch"}

func (s *signatures) VerifyChunk(signature string, sum [32]byte) error {
	if signature != s.chunk(sum) {
		return errSignature
	}
	return nil
}

func (s *signatures) VerifyTrailer(signature string, sum [32]byte) error {
	if signature != s.trailer(sum) {
		return errSignature
	}
	return nil
}

// signedFrame signs data after docSeed. trailer is a line without its end, or "".
func signedFrame(data []byte, size int, trailer string) string {
	return signedFrameAfter(docSeed, data, size, trailer)
}

func signedFrameAfter(seed string, data []byte, size int, trailer string) string {
	s := newSignatures(seed)
	var b strings.Builder
	for len(data) > 0 {
		n := min(size, len(data))
		fmt.Fprintf(&b, "%x;chunk-signature=%s\r\n%s\r\n", n, s.chunk(sha256.Sum256(data[:n])), data[:n])
		data = data[n:]
	}
	fmt.Fprintf(&b, "0;chunk-signature=%s\r\n", s.chunk(sha256.Sum256(nil)))
	if trailer != "" {
		fmt.Fprintf(&b, "%s\r\nx-amz-trailer-signature:%s\r\n", trailer, s.trailer(sha256.Sum256([]byte(trailer+"\n"))))
	}
	b.WriteString("\r\n")
	return b.String()
}

func TestSignedChunksOfTheDocumentation(t *testing.T) {
	data := strings.Repeat("a", 66560)
	body := "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" + data[:65536] + "\r\n" +
		"400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" + data[65536:] + "\r\n" +
		"0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
	if len(body) != 66824 {
		t.Fatalf("the documentation's body has 66824 bytes, this one %d", len(body))
	}
	p := s3wire.Payload{Kind: s3wire.PayloadSigned, Length: 66560, Wire: 66824}
	out, sent, err := outbound(p, body, newSignatures(docSeed))
	if err != nil || sent != data || out.Length != 66560 || out.SHA256 != "UNSIGNED-PAYLOAD" || out.Header != nil {
		t.Errorf("sent %d bytes, %+v, %v", len(sent), out, err)
	}
	for i := range body {
		if i%977 == 0 || i < 100 || i > len(body)-200 || body[i] != 'a' {
			changed := []byte(body)
			changed[i] ^= 1
			wantBroken(t, p, string(changed), docSeed, "IncompleteBody", "SignatureDoesNotMatch", "InvalidChunkSizeError")
		}
	}
	wantBroken(t, p, body, docTrailerSeed, "SignatureDoesNotMatch")

	// The SDK's own signer agrees with this test's.
	seed, _ := hex.DecodeString(docSeed)
	sdk := v4.NewStreamSigner(aws.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: docSecret}, "s3", "us-east-1", seed)
	ours := newSignatures(docSeed)
	for _, chunk := range []string{data[:65536], data[65536:], ""} {
		sig, err := sdk.GetSignature(t.Context(), nil, []byte(chunk), time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC))
		if err != nil || hex.EncodeToString(sig) != ours.chunk(sha256.Sum256([]byte(chunk))) {
			t.Errorf("SDK signs %x, %v", sig, err)
		}
	}
}

func TestSignedTrailerOfTheDocumentation(t *testing.T) {
	data := strings.Repeat("a", 66560)
	const trailer = "x-amz-checksum-crc32c:sOO8/Q=="
	chunks := "10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n" + data[:65536] + "\r\n" +
		"400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n" + data[65536:] + "\r\n" +
		"0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n"
	const signature = "x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"
	p := s3wire.Payload{Kind: s3wire.PayloadSignedTrailer, Length: 66560, Wire: -1, Trailer: "x-amz-checksum-crc32c"}
	want := "10400\r\n" + data + "\r\n0\r\n" + trailer + "\r\n\r\n"
	for _, end := range []string{"\r\n", "\n\r\n"} { // the documentation's, and minio-go's
		out, sent, err := outbound(p, chunks+trailer+end+signature+"\r\n\r\n", newSignatures(docTrailerSeed))
		if err != nil || sent != want || out.Length != int64(len(want)) || out.SHA256 != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
			t.Errorf("sent %d bytes, %+v, %v", len(sent), out, err)
		}
	}
	for _, c := range []struct {
		end  string
		code string
	}{
		{"x-amz-checksum-crc32c:sOO8/A==\r\n" + signature + "\r\n\r\n", "SignatureDoesNotMatch"},
		{trailer + "\r\n" + strings.Replace(signature, "d81f", "d81e", 1) + "\r\n\r\n", "SignatureDoesNotMatch"},
		{trailer + "\r\n\r\n", "MalformedTrailerError"},
		{"\r\n", "MalformedTrailerError"},
		{signature + "\r\n\r\n", "MalformedTrailerError"},
		{signature + "\r\n" + trailer + "\r\n\r\n", "MalformedTrailerError"},
		{trailer + "\r\n" + signature + "\r\n" + signature + "\r\n\r\n", "MalformedTrailerError"},
		{trailer + "\r\n" + signature[:len(signature)-1] + "\r\n\r\n", "MalformedTrailerError"},
		{trailer + "\r\n" + trailer + "\r\n" + signature + "\r\n\r\n", "MalformedTrailerError"},
		{"x-amz-checksum-crc32:sOO8/Q==\r\n" + signature + "\r\n\r\n", "MalformedTrailerError"},
	} {
		wantBroken(t, p, chunks+c.end, docTrailerSeed, c.code)
	}
	if _, sent, err := outbound(p, chunks+trailer+"\r\n"+signature+"\r\n\r\n", nil); err != nil || sent != want {
		t.Errorf("unverified: %d bytes, %v", len(sent), err)
	}
	wantBroken(t, p, chunks+"\r\n", "", "MalformedTrailerError")
}

// counting refuses the refuse-th signature it is shown.
type counting struct{ chunks, trailers, refuse int }

func (c *counting) VerifyChunk(string, [32]byte) error   { c.chunks++; return c.verdict() }
func (c *counting) VerifyTrailer(string, [32]byte) error { c.trailers++; return c.verdict() }
func (c *counting) verdict() error {
	if c.chunks+c.trailers == c.refuse {
		return errSignature
	}
	return nil
}

// No framing makes up for a signature: each one is shown to the verifier, and any that it refuses ends the body.
func TestT12EverySignatureCounts(t *testing.T) {
	data := make([]byte, 20_000)
	crc := strings.TrimSuffix(crc32Trailer(data), "\r\n")
	for _, c := range []struct {
		kind             s3wire.PayloadKind
		body             string
		chunks, trailers int
	}{
		{s3wire.PayloadSigned, signedFrame(data, 8192, ""), 4, 0},
		{s3wire.PayloadSignedTrailer, signedFrame(data, 8192, crc), 4, 1},
		{s3wire.PayloadUnsignedTrailer, frame(data, 8192, crc+"\r\n"), 0, 0},
	} {
		p := s3wire.Payload{Kind: c.kind, Length: int64(len(data)), Wire: -1}
		if c.kind != s3wire.PayloadSigned {
			p.Trailer = "x-amz-checksum-crc32"
		}
		for refuse := range c.chunks + c.trailers + 1 {
			v := &counting{refuse: refuse}
			out, sent, err := outbound(p, c.body, v)
			if refuse > 0 {
				if err != errSignature || int64(len(sent)) >= out.Length {
					t.Errorf("kind %d: signature %d refused, sent %d of %d bytes, %v", c.kind, refuse, len(sent), out.Length, err)
				}
			} else if err != nil || v.chunks != c.chunks || v.trailers != c.trailers {
				t.Errorf("kind %d: verified %+v, %v", c.kind, v, err)
			}
		}
	}
}

// An empty object has no last byte to hold back, so it is judged before there is anything to send.
func TestEmptyObjectIsJudgedFirst(t *testing.T) {
	p := s3wire.Payload{Kind: s3wire.PayloadSigned, Length: 0, Wire: -1}
	body := signedFrame(nil, 8192, "")
	out, err := p.Outbound(strings.NewReader(body), newSignatures(docSeed), false)
	if err != nil || out.Body != nil || out.Length != 0 {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := p.Outbound(strings.NewReader(body), newSignatures(docTrailerSeed), false); err != errSignature {
		t.Errorf("wrong signature: %v", err)
	}
	wantBroken(t, p, body+"!", "", "IncompleteBody")
	wantBroken(t, p, body[:len(body)-1], "", "IncompleteBody")
	wantBroken(t, p, "1;"+body[2:], "", "IncompleteBody")
}

func TestUnframed(t *testing.T) {
	data := []byte("<Delete/>")
	sum := sha256.Sum256(data)
	md5sum, sha512sum := md5.Sum(data), sha512.Sum512(data)
	read := func(p s3wire.Payload, body string, verify s3wire.ChunkVerifier) (string, error) {
		r, err := p.Unframed(strings.NewReader(body), verify, true)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(r)
		return string(b), err
	}
	withTrailer := func(algorithm string) s3wire.Payload {
		return s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: 9, Wire: -1, Trailer: "x-amz-checksum-" + algorithm}
	}
	for _, c := range []struct {
		name string
		p    s3wire.Payload
		body string
		code string
	}{
		{"plain", s3wire.Payload{Length: -1, Wire: 9}, "<Delete/>", ""},
		{"plain, short", s3wire.Payload{Length: 9, Wire: -1}, "<Delete/", "IncompleteBody"},
		{"hash", s3wire.Payload{Kind: s3wire.PayloadHash, SHA256: hex.EncodeToString(sum[:]), Length: -1, Wire: 9}, "<Delete/>", ""},
		{"wrong hash", s3wire.Payload{Kind: s3wire.PayloadHash, SHA256: strings.Repeat("0", 64), Length: -1, Wire: 9}, "<Delete/>", "XAmzContentSHA256Mismatch"},
		{"signed", s3wire.Payload{Kind: s3wire.PayloadSigned, Length: 9, Wire: -1}, signedFrame(data, 8192, ""), ""},
		{"crc32", withTrailer("crc32"), frame(data, 8192, crc32Trailer(data)), ""},
		{"wrong crc32", withTrailer("crc32"), frame(data, 8192, crc32Trailer(nil)), "BadDigest"},
		{"md5", withTrailer("md5"), frame(data, 8192, "x-amz-checksum-md5:"+base64.StdEncoding.EncodeToString(md5sum[:])+"\r\n"), ""},
		{"sha512", withTrailer("sha512"), frame(data, 8192, "x-amz-checksum-sha512:"+base64.StdEncoding.EncodeToString(sha512sum[:])+"\r\n"), ""},
		{"wrong sha512", withTrailer("sha512"), frame(data, 8192, "x-amz-checksum-sha512:"+base64.StdEncoding.EncodeToString(make([]byte, 64))+"\r\n"), "BadDigest"},
		{"xxhash", withTrailer("xxhash64"), frame(data, 8192, "x-amz-checksum-xxhash64:AAAAAAAAAAA=\r\n"), "InvalidRequest"},
		{"not declared", s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: 9, Wire: -1}, frame(data, 8192, ""), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := read(c.p, c.body, newSignatures(docSeed))
			var e *s3wire.Error
			if c.code == "" && (err != nil || got != string(data)) {
				t.Errorf("read %q, %v", got, err)
			}
			if c.code != "" && (!errors.As(err, &e) || e.Code != c.code || len(got) == len(data)) {
				t.Errorf("read %q, error %v, want %s", got, err, c.code)
			}
		})
	}
	r, err := s3wire.Payload{Length: -1}.Unframed(nil, nil, true)
	if b, _ := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Errorf("no body: %q, %v", b, err)
	}
}

// Whatever the bytes, a body either breaks before its end or reads back as exactly what it declared: our own framing,
// read again, is the same object with the same trailer.
func FuzzChunked(f *testing.F) {
	data := []byte("0123456789abcdef")
	f.Add(uint8(2), int64(2), "2\r\nhi\r\n0\r\nx-amz-checksum-crc32:2TKnHg==\r\n\r\n", uint8(0))
	f.Add(uint8(2), int64(16), frame(data, 8192, crc32Trailer(data)), uint8(1))
	f.Add(uint8(3), int64(16), signedFrame(data, 8192, ""), uint8(2))
	f.Add(uint8(4), int64(16), signedFrame(data, 8192, strings.TrimSpace(crc32Trailer(data))), uint8(3))
	f.Add(uint8(4), int64(0), signedFrame(nil, 8192, "x-amz-checksum-crc32:AAAAAA=="), uint8(3))
	f.Add(uint8(0), int64(2), "hi", uint8(0))
	f.Fuzz(func(t *testing.T, kind uint8, length int64, body string, how uint8) {
		p := s3wire.Payload{Kind: s3wire.PayloadKind(kind % 5), Length: length, Wire: -1, SHA256: strings.Repeat("0", 64)}
		if p.Kind == s3wire.PayloadSignedTrailer || p.Kind == s3wire.PayloadUnsignedTrailer {
			p.Trailer = "x-amz-checksum-crc32"
		}
		var in io.Reader = strings.NewReader(body)
		switch how % 4 {
		case 1:
			in = iotest.OneByteReader(in)
		case 2:
			in = iotest.DataErrReader(in)
		case 3:
			in = iotest.HalfReader(in)
		}
		out, err := p.Outbound(in, nil, true)
		if err != nil {
			return
		}
		var sent []byte
		if out.Body != nil {
			sent, err = io.ReadAll(out.Body)
		}
		if err != nil {
			if int64(len(sent)) >= out.Length {
				t.Fatalf("all %d bytes went out before %v", len(sent), err)
			}
			return
		}
		if int64(len(sent)) != out.Length {
			t.Fatalf("sent %d bytes, promised %d", len(sent), out.Length)
		}
		object := sent
		if out.SHA256 == "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
			again := s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: length, Wire: out.Length, Trailer: p.Trailer}
			_, twice, err := outbound(again, string(sent), nil)
			if err != nil || twice != string(sent) {
				t.Fatalf("read again: %v", err)
			}
			chunks := sent[:len(sent)-len("x-amz-checksum-crc32:2TKnHg==\r\n\r\n")]
			if value := sent[len(chunks)+len("x-amz-checksum-crc32:"):]; !strings.Contains(body, string(value[:8])) {
				t.Fatalf("trailer %q is not the client's", value)
			}
			object = dechunk(string(chunks))
		}
		if int64(len(object)) != length {
			t.Fatalf("the object has %d bytes, declared %d", len(object), length)
		}
		if p.Kind >= s3wire.PayloadUnsignedTrailer && !bytes.Equal(object, dechunk(body)) {
			t.Fatalf("the object is not what was framed")
		}
	})
}

// dechunk is a second, careless reader of a well-formed body.
func dechunk(body string) (object []byte) {
	for {
		line, rest, _ := strings.Cut(body, "\r\n")
		size, _, _ := strings.Cut(line, ";")
		n, _ := strconv.ParseUint(size, 16, 63)
		if n == 0 {
			return object
		}
		object = append(object, rest[:n]...)
		body = rest[n+2:]
	}
}

// loop is a body without end or cost.
type loop struct {
	of   []byte
	at   int
	left int64
}

func (l *loop) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), l.left)], l.of[l.at:])
	l.at = (l.at + n) % len(l.of)
	l.left -= int64(n)
	return n, nil
}

func BenchmarkChunked(b *testing.B) {
	chunk := make([]byte, 64<<10)
	framed := []byte("10000\r\n" + string(chunk) + "\r\n")
	s := newSignatures(docSeed)
	signedChunk := []byte("10000;chunk-signature=" + s.chunk(sha256.Sum256(chunk)) + "\r\n" + string(chunk) + "\r\n")
	const crc = "0\r\nx-amz-checksum-crc32:2TKnHg==\r\n\r\n"
	signedEnd := "0;chunk-signature=" + s.last + "\r\n\r\n"
	anySignature := verifyNothing{}
	for _, size := range []int64{64 << 10, 1 << 20, 64 << 20} {
		n := size / int64(len(chunk))
		for _, c := range []struct {
			name   string
			p      s3wire.Payload
			of     []byte
			end    string
			verify s3wire.ChunkVerifier
		}{
			{"unsigned-trailer", s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: size, Wire: -1, Trailer: "x-amz-checksum-crc32"}, framed, crc, nil},
			{"signed-unverified", s3wire.Payload{Kind: s3wire.PayloadSigned, Length: size, Wire: -1}, signedChunk, signedEnd, nil},
			{"signed", s3wire.Payload{Kind: s3wire.PayloadSigned, Length: size, Wire: -1}, signedChunk, signedEnd, anySignature},
		} {
			b.Run(fmt.Sprintf("%s/%dKiB", c.name, size>>10), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(size)
				buf := make([]byte, 32<<10) // that of net/http's transport
				for b.Loop() {
					body := io.MultiReader(&loop{of: c.of, left: n * int64(len(c.of))}, strings.NewReader(c.end))
					out, err := c.p.Outbound(body, c.verify, false)
					if err != nil {
						b.Fatal(err)
					}
					sent, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, out.Body, buf)
					if err != nil || sent != out.Length {
						b.Fatal(sent, err)
					}
				}
			})
		}
	}
}

type verifyNothing struct{}

func (verifyNothing) VerifyChunk(string, [32]byte) error   { return nil }
func (verifyNothing) VerifyTrailer(string, [32]byte) error { return nil }
