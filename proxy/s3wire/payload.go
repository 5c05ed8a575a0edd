package s3wire

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"hash"
	"io"
	"strconv"
	"strings"
)

// PayloadKind is what x-amz-content-sha256 says of a body. Content-Encoding is no witness: clients leave
// "aws-chunked" out of it.
type PayloadKind uint8

const (
	PayloadUnsigned        PayloadKind = iota // UNSIGNED-PAYLOAD, or no header at all
	PayloadHash                               // a hex SHA-256 of the body
	PayloadUnsignedTrailer                    // STREAMING-UNSIGNED-PAYLOAD-TRAILER
	PayloadSigned                             // STREAMING-AWS4-HMAC-SHA256-PAYLOAD
	PayloadSignedTrailer                      // STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER
)

// Payload is how a request's body is framed.
type Payload struct {
	Kind     PayloadKind
	SHA256   string // hex, for PayloadHash
	Length   int64  // of the object's bytes, as declared; -1 = not told
	Wire     int64  // Content-Length of what the client sends; -1 = chunked transfer encoding
	Trailer  string // the one declared x-amz-trailer, canonical lower case; "" = none
	Encoding string // Content-Encoding less aws-chunked, to be stored with the object
}

// ChunkVerifier checks the signatures of signed chunks, each of which covers the one before.
// A nil ChunkVerifier unframes signed chunks and checks their lengths only.
type ChunkVerifier interface {
	VerifyChunk(signature string, sum [32]byte) error   // sum is the SHA-256 of the chunk's data
	VerifyTrailer(signature string, sum [32]byte) error // sum is the SHA-256 of the canonical trailer lines
}

// Outbound is a body as it goes to a backend. Nothing of it is held: memory is bounded whatever the size.
// Reading it fails before its last byte is handed out where the client's framing, length, hash or a chunk's
// signature was wrong, so that a backend never sees the end of a bad upload.
//
// Body is for one goroutine. It returns *Error for what the client did wrong, and errors of the client's body and
// of the ChunkVerifier as they came.
type Outbound struct {
	Body   io.Reader         // nil = no body
	Length int64             // exact; no backend takes a body without a length
	SHA256 string            // x-amz-content-sha256: a hex digest, UNSIGNED-PAYLOAD or STREAMING-UNSIGNED-PAYLOAD-TRAILER
	Header map[string]string // where it is framed: x-amz-decoded-content-length, x-amz-trailer and content-encoding
}

const (
	unsignedPayload = "UNSIGNED-PAYLOAD"
	unsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// Outbound frames body again for the backend. verify checks signed chunks (nil: framing and lengths only).
// checkHash makes the proxy verify PayloadHash itself while the body streams.
//
// A body with a length and nothing to check goes on as the very reader that came in. A body with a trailer keeps it,
// in frames of our own whose length is known beforehand. All others go on as the object's bytes, unframed: signed
// chunks, because their signatures are the client's and not ours; and a trailer that was promised but never declared
// (S3 takes STREAMING-UNSIGNED-PAYLOAD-TRAILER without x-amz-trailer), because there is nothing to carry.
//
// The framing of an empty object is read here and not by the backend's transport, which would send "no body" without
// reading any: an empty upload with a wrong signature must not create an object either.
func (p Payload) Outbound(body io.Reader, verify ChunkVerifier, checkHash bool) (Outbound, error) {
	p, err := p.checked(body)
	if err != nil {
		return Outbound{}, err
	}
	out := Outbound{Length: p.Length, SHA256: unsignedPayload}
	switch {
	case p.Trailer != "":
		out.SHA256 = unsignedTrailer
		out.Length = frameLength(p.Length, p.Trailer)
		out.Body = &framer{in: newUnframer(body, p, verify), trailer: p.Trailer, left: p.Length}
		out.Header = map[string]string{
			"x-amz-decoded-content-length": strconv.FormatInt(p.Length, 10),
			"x-amz-trailer":                p.Trailer,
			// S3 takes "aws-chunked" out again before it stores the rest. It could do without, but MinIO before 2025 takes
			// a body without it for a plain one, and every SDK sends it.
			"content-encoding": "aws-chunked",
		}
		if p.Encoding != "" {
			out.Header["content-encoding"] = p.Encoding + ",aws-chunked"
		}
	case p.framed():
		out.Body, err = unframed(newUnframer(body, p, verify), p.Length)
	case p.Kind == PayloadHash && checkHash:
		out.Body, err = unframed(&rawBody{from: body, left: p.Length, hash: sha256.New(), want: p.SHA256}, p.Length)
	case p.Wire < 0:
		out.Body, err = unframed(&rawBody{from: body, left: p.Length}, p.Length)
	case p.Length > 0:
		out.Body = body
	}
	if err != nil {
		return Outbound{}, err
	}
	if p.Kind == PayloadHash {
		out.SHA256 = p.SHA256
	}
	return out, nil
}

// Unframed is the object's bytes themselves, for a body that the proxy reads instead of passing it on. All that the
// client declared of it is checked: lengths, framing, signatures, payload hash where checkHash, and the trailing
// checksum. As with Outbound, reading fails before the last byte where anything was wrong.
func (p Payload) Unframed(body io.Reader, verify ChunkVerifier, checkHash bool) (io.Reader, error) {
	p, err := p.checked(body)
	if err != nil {
		return nil, err
	}
	var from source
	switch {
	case p.framed():
		u := newUnframer(body, p, verify)
		if p.Trailer != "" {
			if u.checksum = newChecksum(p.Trailer); u.checksum == nil {
				return nil, errorf("InvalidRequest", "%s cannot be checked on a request of this kind; use crc32, crc32c, crc64nvme, sha1, sha256, sha512 or md5", p.Trailer)
			}
		}
		from = u
	case p.Kind == PayloadHash && checkHash:
		from = &rawBody{from: body, left: p.Length, hash: sha256.New(), want: p.SHA256}
	default:
		from = &rawBody{from: body, left: p.Length}
	}
	reader, err := unframed(from, p.Length)
	if reader == nil && err == nil {
		reader = bytes.NewReader(nil)
	}
	return reader, err
}

func (p Payload) framed() bool {
	return p.Kind == PayloadUnsignedTrailer || p.Kind == PayloadSigned || p.Kind == PayloadSignedTrailer
}

// maxLength is far over anything S3 stores, and far enough under an int64 that no sum of lengths overflows.
const maxLength = 1 << 56

// checked refuses what the headers alone show to be wrong, before a backend hears of it, and settles Length.
func (p Payload) checked(body io.Reader) (Payload, error) {
	if body == nil {
		p.Wire = 0 // a request without a body
	}
	if p.Length < 0 && !p.framed() {
		p.Length = p.Wire
	}
	switch {
	case p.Length < 0 && p.framed():
		return p, errorf("MissingContentLength", "x-amz-decoded-content-length must tell the object's length where x-amz-content-sha256 is a STREAMING- value")
	case p.Length < 0:
		return p, errorf("MissingContentLength", "send Content-Length, or x-amz-decoded-content-length where the body is sent in chunks")
	case p.Length > maxLength:
		return p, errorf("EntityTooLarge", "the declared length of the object is more than any S3 service stores")
	}

	switch p.Kind {
	case PayloadSignedTrailer:
		if p.Trailer == "" {
			return p, errorf("MalformedTrailerError", "x-amz-trailer must name the trailer that STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER promises")
		}
	case PayloadUnsignedTrailer:
	default:
		if p.Trailer != "" {
			return p, errorf("InvalidRequest", "x-amz-trailer is only for an x-amz-content-sha256 that ends in -TRAILER")
		}
	}
	if p.Trailer != "" && checksumSize(p.Trailer) == 0 {
		return p, errorf("InvalidRequest", "the value specified in the x-amz-trailer header is not supported; name one x-amz-checksum- header that S3 knows")
	}

	if p.framed() {
		if p.Wire >= 0 && p.Wire < p.Length+int64(len("0\r\n\r\n")) {
			return p, errorf("IncompleteBody", "Content-Length is less than x-amz-decoded-content-length and its framing need")
		}
	} else if p.Wire >= 0 && p.Wire != p.Length {
		return p, errorf("IncompleteBody", "Content-Length and x-amz-decoded-content-length differ, and the body is not aws-chunked")
	}
	return p, nil
}

// source yields a body's declared number of bytes, and then judges it.
type source interface {
	// read yields some of the declared bytes, never more, and never none without an error. p is not empty.
	read(p []byte) (int, error)
	// finish comes after the last declared byte: nil means that all of the body has been seen and is as declared.
	finish() error
}

// unframed reads length bytes of from, the last of them only once from has passed. nil where there is nothing to read.
func unframed(from source, length int64) (io.Reader, error) {
	if length == 0 {
		return nil, from.finish()
	}
	return &guarded{from: from, left: length}, nil
}

// guarded holds the end of a body back until the body has been judged. Who reads it asks for a buffer at a time, so
// the end is what fits that last buffer, and nothing needs to be kept.
type guarded struct {
	from source
	left int64
	err  error
}

func (g *guarded) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := g.from.read(p[:min(int64(len(p)), g.left)])
	g.left -= int64(n)
	if err == nil && g.left == 0 {
		if err = g.from.finish(); err == nil {
			g.err = io.EOF
			return n, nil
		}
		n = 0
	}
	g.err = err
	return n, err
}

// rawBody is a body without framing.
type rawBody struct {
	from io.Reader
	left int64
	hash hash.Hash // nil: lengths only
	want string    // hex SHA-256
}

func (b *rawBody) read(p []byte) (int, error) {
	n, err := readSome(b.from, p)
	b.left -= int64(n)
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	if err == io.EOF && b.left > 0 {
		err = errorf("IncompleteBody", "the body ended %d bytes before the declared length", b.left)
	}
	if n > 0 && (err == io.EOF || b.left == 0) {
		err = nil // finish will see it again
	}
	return n, err
}

func (b *rawBody) finish() error {
	if err := expectEnd(b.from); err != nil {
		return err
	}
	if b.hash == nil {
		return nil
	}
	var raw [sha256.Size]byte
	var sum [2 * sha256.Size]byte
	hex.Encode(sum[:], b.hash.Sum(raw[:0]))
	if subtle.ConstantTimeCompare(sum[:], []byte(strings.ToLower(b.want))) != 1 {
		return errorf("XAmzContentSHA256Mismatch", "the provided x-amz-content-sha256 header does not match what was computed: the body changed on the way, or the client hashed another one")
	}
	return nil
}

// expectEnd reads the end of a body, which is not over before its reader says so.
func expectEnd(r io.Reader) error {
	if r == nil {
		return nil
	}
	var extra [1]byte
	n, err := readSome(r, extra[:])
	switch {
	case n > 0:
		return errorf("IncompleteBody", "the body goes on after its declared end")
	case err == io.EOF:
		return nil
	}
	return err
}

// readSome reads at least one byte or returns an error, and does not wait for ever on a reader that does neither.
func readSome(r io.Reader, p []byte) (int, error) {
	for range 100 {
		if n, err := r.Read(p); n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}
