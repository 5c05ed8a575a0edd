package s3test

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"slices"
	"strconv"
	"strings"
)

// Request is one request as it came over the wire.
type Request struct {
	Head   []byte // request line and header, byte for byte, up to and with the empty line
	Method string
	Target string // the request target, byte for byte
	Proto  string
	Header Header // in the order they came, spelled as they came, Host too

	Body    []byte // without Transfer-Encoding's framing, with S3's own; only the first KeepBody bytes are kept
	Length  int64  // of all the body
	SHA256  string // of all the body
	Trailer Header // after a chunked transfer, as it came

	// Payload is what the client meant to store: Body, without S3's chunks where it has them.
	Payload        []byte
	PayloadTrailer Header // after S3's chunks
	PayloadErr     error  // why S3 would refuse the body: its digest, framing, chunk signatures, checksums or length

	Signature    *Signature
	SignatureErr error

	Ended bool  // the body is read to its end, or will never be
	Err   error // why the body did not end cleanly: the other side went away, or the handler did not read it
}

// Header is header fields in their order.
type Header []Field

// Field is one line of a header.
type Field struct{ Name, Value string }

// Get is the first value of a field, whatever the case of its name.
func (h Header) Get(name string) string {
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// Values are all values of a field, in their order.
func (h Header) Values(name string) []string {
	var values []string
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			values = append(values, f.Value)
		}
	}
	return values
}

// Has tells whether the field was sent.
func (h Header) Has(name string) bool { return len(h.Values(name)) > 0 }

// Names are the names of all fields, in lower case, sorted, each once.
func (h Header) Names() []string {
	var names []string
	for _, f := range h {
		names = append(names, strings.ToLower(f.Name))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Path is the target up to its query, byte for byte.
func (r *Request) Path() string {
	path, _, _ := strings.Cut(r.Target, "?")
	return path
}

// Query is the target's query, byte for byte.
func (r *Request) Query() string {
	_, query, _ := strings.Cut(r.Target, "?")
	return query
}

// parseHead reads a head that net/http has taken already.
func parseHead(head []byte) *Request {
	r := &Request{Head: head}
	for i, line := range strings.Split(string(head), "\n") {
		line = strings.TrimSuffix(line, "\r")
		switch {
		case i == 0:
			r.Method, line, _ = strings.Cut(line, " ")
			if space := strings.LastIndexByte(line, ' '); space >= 0 {
				r.Target, r.Proto = line[:space], line[space+1:]
			}
		case line != "":
			r.Header = append(r.Header, parseField(line))
		}
	}
	return r
}

func parseField(line string) Field {
	name, value, _ := strings.Cut(line, ":")
	return Field{name, strings.Trim(value, " \t")}
}

// checkPayload holds a whole body to what the header says of it, as S3 does.
func (r *Request) checkPayload() error {
	r.Payload = r.Body
	declared := r.Header.Get("X-Amz-Content-Sha256")
	if strings.HasPrefix(declared, "STREAMING-") {
		if err := r.unframe(declared); err != nil {
			return err
		}
		length, err := strconv.ParseInt(r.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64)
		if err != nil {
			return fmt.Errorf("malformed or missing x-amz-decoded-content-length %q", r.Header.Get("X-Amz-Decoded-Content-Length"))
		}
		if length != int64(len(r.Payload)) {
			return fmt.Errorf("x-amz-decoded-content-length is %d, the payload has %d bytes", length, len(r.Payload))
		}
	} else if declared != "" && declared != "UNSIGNED-PAYLOAD" {
		if declared != r.SHA256 {
			return fmt.Errorf("x-amz-content-sha256 is %s, the body's is %s", declared, r.SHA256)
		}
	}
	if want := r.Header.Get("Content-MD5"); want != "" {
		sum := md5.Sum(r.Payload)
		if got := base64.StdEncoding.EncodeToString(sum[:]); got != want {
			return fmt.Errorf("content-md5 is %s, the payload's is %s", want, got)
		}
	}
	for _, fields := range []Header{r.Header, r.PayloadTrailer} {
		for _, f := range fields {
			name, ok := strings.CutPrefix(strings.ToLower(f.Name), "x-amz-checksum-")
			h := newChecksum(name)
			if !ok || h == nil {
				continue
			}
			h.Write(r.Payload)
			if got := base64.StdEncoding.EncodeToString(h.Sum(nil)); got != f.Value {
				return fmt.Errorf("x-amz-checksum-%s is %s, the payload's is %s", name, f.Value, got)
			}
		}
	}
	return nil
}

func newChecksum(name string) hash.Hash {
	switch name {
	case "crc32":
		return crc32.NewIEEE()
	case "crc32c":
		return crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case "crc64nvme":
		return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5))
	case "sha1":
		return sha1.New()
	case "sha256":
		return sha256.New()
	}
	return nil
}

// unframe takes the payload out of S3's chunks, and checks their signatures where they have them.
func (r *Request) unframe(declared string) error {
	signed := strings.HasPrefix(declared, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
	trailing := strings.HasSuffix(declared, "-TRAILER")
	if !signed && declared != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
		return fmt.Errorf("x-amz-content-sha256 %q is not known", declared)
	}
	if signed && r.Signature == nil {
		return fmt.Errorf("signed chunks of a request without a good signature")
	}
	previous := ""
	if signed {
		previous = r.Signature.seed
	}
	verify := func(kind, hashes, signature string) error {
		want := hex.EncodeToString(mac(r.Signature.key, kind+"\n"+r.Signature.stamp+"\n"+r.Signature.scope+"\n"+previous+"\n"+hashes))
		if want != signature {
			return fmt.Errorf("the signature of a chunk or trailer does not match: %s, not %s", signature, want)
		}
		previous = want
		return nil
	}
	hexSum := func(data []byte) string {
		sum := sha256.Sum256(data)
		return hex.EncodeToString(sum[:])
	}

	var payload []byte
	rest := r.Body
	for {
		line, after, ok := bytes.Cut(rest, []byte("\r\n"))
		if !ok {
			return fmt.Errorf("cut before the last chunk")
		}
		size, extension, _ := strings.Cut(string(line), ";")
		n, err := strconv.ParseInt(size, 16, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("malformed chunk size %q", line)
		}
		if int64(len(after)) < n {
			return fmt.Errorf("cut within a chunk of %d", n)
		}
		chunk := after[:n]
		rest = after[n:]
		if signed {
			signature, ok := strings.CutPrefix(extension, "chunk-signature=")
			if !ok {
				return fmt.Errorf("a chunk without its signature")
			}
			if err := verify(algorithm+"-PAYLOAD", hexSum(nil)+"\n"+hexSum(chunk), signature); err != nil {
				return err
			}
		} else if extension != "" {
			return fmt.Errorf("chunk extension %q", extension)
		}
		if n == 0 {
			break
		}
		payload = append(payload, chunk...)
		if rest, ok = bytes.CutPrefix(rest, []byte("\r\n")); !ok {
			return fmt.Errorf("no line end after a chunk of %d", n)
		}
	}
	r.Payload = payload

	var canonical strings.Builder
	signature := ""
	for len(rest) > 0 {
		line, after, ok := bytes.Cut(rest, []byte("\r\n"))
		if !ok {
			// AWS's own SDKs end each trailer with CRLF; some end the header part of a signed trailer with LF.
			return fmt.Errorf("cut within the trailer")
		}
		rest = after
		if len(line) == 0 {
			break
		}
		f := parseField(string(line))
		if strings.EqualFold(f.Name, "x-amz-trailer-signature") {
			signature = f.Value
			continue
		}
		f.Value = strings.TrimSuffix(f.Value, "\n")
		r.PayloadTrailer = append(r.PayloadTrailer, f)
		canonical.WriteString(strings.ToLower(f.Name) + ":" + f.Value + "\n")
	}
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes after the last chunk", len(rest))
	}
	announced := r.Header.Values("X-Amz-Trailer")
	if !trailing && (len(announced) > 0 || len(r.PayloadTrailer) > 0) {
		return fmt.Errorf("a trailer that x-amz-content-sha256 does not announce")
	}
	if trailing && strings.ToLower(strings.Join(announced, ",")) != strings.Join(r.PayloadTrailer.Names(), ",") {
		return fmt.Errorf("x-amz-trailer announces %q, sent were %q", announced, r.PayloadTrailer.Names())
	}
	if signed && trailing {
		return verify(algorithm+"-TRAILER", hexSum([]byte(canonical.String())), signature)
	}
	return nil
}
