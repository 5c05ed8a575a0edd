package s3wire

import (
	"io"
	"time"
)

// Bucket is an entry of ListBuckets.
type Bucket struct {
	Name         string    `xml:"Name"`
	CreationDate time.Time `xml:"CreationDate"`
	Region       string    `xml:"BucketRegion,omitempty"`
}

// ReadBuckets reads one page of a backend's ListBuckets answer.
func ReadBuckets(r io.Reader) (buckets []Bucket, next string, err error) { panic("not written") }

// WriteBuckets writes the answer to op (its prefix, bucket-region, max-buckets and continuation-token honoured) from
// all the buckets the caller may see, sorted by name.
func (op *Operation) WriteBuckets(w io.Writer, all []Bucket, owner string) error {
	panic("not written")
}
