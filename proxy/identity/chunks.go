package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"hash"
)

// ChunkSignatures verifies a signed body chunk by chunk: each signature covers the one before it, and the first
// covers the request's. It implements s3wire.ChunkVerifier, for one goroutine.
type ChunkSignatures struct {
	mac    hash.Hash // keyed with the request's signing key
	middle string    // of each string to sign: time and scope, a line each
	last   [sha256.Size * 2]byte
	sum    [sha256.Size]byte // scratch, as buffer is
	buffer []byte
	failed bool
}

// newChunkSignatures follows on from the request's own signature, in hex.
func newChunkSignatures(key []byte, stamp, scope string, seed [sha256.Size * 2]byte) *ChunkSignatures {
	return &ChunkSignatures{
		mac:    hmac.New(sha256.New, key),
		middle: stamp + "\n" + scope + "\n",
		last:   seed,
		buffer: make([]byte, 0, 512),
	}
}

// VerifyChunk checks the signature of the next chunk. sum is the SHA-256 of the chunk's data; the empty chunk at
// the end has one like the others.
func (c *ChunkSignatures) VerifyChunk(signature string, sum [sha256.Size]byte) error {
	// No client signs headers of a chunk, so what S3 calls their hash is always that of nothing.
	return c.verify("AWS4-HMAC-SHA256-PAYLOAD\n", emptySHA256+"\n", signature, sum,
		"the signature of a chunk does not match: its bytes changed on the way, or the client signed it with another key")
}

// VerifyTrailer checks the signature of the trailer, which follows the last chunk. sum is the SHA-256 of the
// canonical trailer lines.
func (c *ChunkSignatures) VerifyTrailer(signature string, sum [sha256.Size]byte) error {
	return c.verify("AWS4-HMAC-SHA256-TRAILER\n", "", signature, sum,
		"the signature of the trailer does not match: the trailer changed on the way, or the client signed it with another key")
}

func (c *ChunkSignatures) verify(algorithm, between, signature string, sum [sha256.Size]byte, problem string) error {
	b := append(c.buffer[:0], algorithm...)
	b = append(b, c.middle...)
	b = append(b, c.last[:]...)
	b = append(b, '\n')
	b = append(b, between...)
	b = hex.AppendEncode(b, sum[:])
	c.buffer = b

	c.mac.Reset()
	c.mac.Write(b)
	hex.Encode(c.last[:], c.mac.Sum(c.sum[:0]))
	// A body that failed once stays failed, whatever its reader does next.
	if len(signature) != len(c.last) || subtle.ConstantTimeCompare([]byte(signature), c.last[:]) != 1 {
		c.failed = true
	}
	if c.failed {
		return &Error{Kind: BadSignature, Message: problem}
	}
	return nil
}

// emptySHA256 is the hash of no bytes at all.
const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
