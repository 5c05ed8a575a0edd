package s3wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"
)

// Two operations can ask in their bodies for more than their names say: RestoreObject can run a query and write its
// result into any bucket, and CreateBucket can tag. Their bodies are small, so they are read whole and understood
// before anything is decided. (DeleteObjects, whose body is all it is about, has ParseDelete.)

// BodyLimit is how many bytes of body the operation may have where BodyAccesses MUST see it before it is
// authorised; 0 = the body says nothing that policy needs to know, and streams.
func (op *Operation) BodyLimit() int64 {
	switch op.Name {
	case "CreateBucket", "RestoreObject":
		return 256 << 10
	}
	return 0
}

// elements that a body may have. What is not here is refused, so that a new power of S3's is not granted unseen.
var (
	createBucketElements  = strings.Fields("CreateBucketConfiguration LocationConstraint Tags Tag Key Value")
	restoreObjectElements = strings.Fields("RestoreRequest Days Description GlacierJobParameters Tier")
)

// BodyAccesses is what the body asks for besides Accesses. body is all of it, unframed.
func (op *Operation) BodyAccesses(body []byte) ([]Access, error) {
	if int64(len(body)) > op.BodyLimit() {
		return nil, errorf("MaxMessageLengthExceeded", "the body of %s must not be over %d bytes", op.Name, op.BodyLimit())
	}
	if isBlank(string(body)) {
		return nil, nil
	}
	allowed, unsupported := createBucketElements, directoryBuckets
	if op.Name == "RestoreObject" {
		allowed, unsupported = restoreObjectElements, "a restore that selects writes into another bucket"
	}
	malformed := errorf("MalformedXML", "the body of %s is not well-formed, or has comments, CDATA, processing instructions or a document type", op.Name)
	if !utf8.Valid(body) {
		return nil, malformed
	}
	l := lexer{data: string(body)}
	if err := l.declaration(); err != nil {
		return nil, malformed
	}
	tagged := false
	for {
		t, err := l.next()
		if err != nil {
			return nil, malformed
		}
		if t.kind == textToken {
			if t.text == "" {
				break
			}
			continue
		}
		if !slices.Contains(allowed, t.name) {
			return nil, errorf("NotImplemented", "%s with %s is not supported: %s", op.Name, quote(t.name), unsupported)
		}
		tagged = tagged || t.name == "Tag"
	}
	if tagged {
		return []Access{{Action: "s3:TagResource", Bucket: op.Bucket}}, nil
	}
	return nil, nil
}

// WholeBody is a body that was read, as it goes on. A checksum that came as a trailer becomes a header.
func (op *Operation) WholeBody(body []byte) Outbound {
	sum := sha256.Sum256(body)
	out := Outbound{Body: bytes.NewReader(body), Length: int64(len(body)), SHA256: hex.EncodeToString(sum[:])}
	if h := newChecksum(op.Payload.Trailer); op.Payload.Trailer != "" && h != nil {
		h.Write(body)
		out.Header = map[string]string{op.Payload.Trailer: base64.StdEncoding.EncodeToString(h.Sum(nil))}
	}
	return out
}
