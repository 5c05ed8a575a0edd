package s3wire

import "io"

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
type Outbound struct {
	Body   io.Reader         // nil = no body
	Length int64             // exact; no backend takes a body without a length
	SHA256 string            // x-amz-content-sha256: a hex digest, UNSIGNED-PAYLOAD or STREAMING-UNSIGNED-PAYLOAD-TRAILER
	Header map[string]string // further framing headers: x-amz-decoded-content-length, x-amz-trailer, content-encoding
}

// Outbound frames body again for the backend. verify checks signed chunks (nil: framing and lengths only).
// checkHash makes the proxy verify PayloadHash itself while the body streams.
func (p Payload) Outbound(body io.Reader, verify ChunkVerifier, checkHash bool) (Outbound, error) {
	panic("not written")
}
