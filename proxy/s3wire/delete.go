package s3wire

import (
	"io"
	"net/http"
)

// Delete is the body of a DeleteObjects request, understood.
type Delete struct {
	Quiet   bool
	Objects []DeleteObject
}

// DeleteObject is one entry; each needs its own access.
type DeleteObject struct {
	Key, VersionID               string
	ETag, LastModifiedTime, Size string // conditions, "" = none
}

// ParseDelete reads at most 2 MiB and 1,000 entries, strictly. header carries the digests (Content-MD5,
// x-amz-checksum-*) that the body is checked against. body is already unframed.
func ParseDelete(body io.Reader, header http.Header) (*Delete, error) { panic("not written") }

// Accesses is what each entry needs, in order: s3:DeleteObject or s3:DeleteObjectVersion.
func (d *Delete) Accesses(bucket string) []Access { panic("not written") }

// Encode writes the entries for which keep is true, with the digest headers that S3 wants for them.
func (d *Delete) Encode(keep func(i int) bool) (body []byte, header http.Header) {
	panic("not written")
}

// Result is a DeleteResult: what the backend answered, with the refused entries added as AccessDenied.
// backend may be nil where nothing was left to send.
func (d *Delete) Result(backend io.Reader, refused map[int]string) ([]byte, error) {
	panic("not written")
}
