package s3wire

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Bucket is an entry of ListBuckets.
type Bucket struct {
	Name         string
	CreationDate time.Time // zero = the backend did not say
	Region       string    // "" = the same; AWS says it only where the request has a parameter, such as max-buckets
}

// maxListing bounds what is read of a backend's list: ten thousand buckets, or a page of objects, are far below it.
const maxListing = 16 << 20

// ReadBuckets reads one page of a backend's ListBuckets answer.
func ReadBuckets(r io.Reader) (buckets []Bucket, next string, err error) {
	answer, err := readListing(r)
	if err != nil {
		return nil, "", fmt.Errorf("read ListBuckets: %w", err)
	}
	doc, err := splitDocument(answer)
	if err != nil || doc.name != "ListAllMyBucketsResult" {
		return nil, "", errors.New("the backend's answer to ListBuckets is not a ListAllMyBucketsResult")
	}
	err = doc.each(func(name, raw string) error {
		switch name {
		case "ContinuationToken":
			next, err = leafText(raw)
			return err
		case "Buckets":
			list, err := splitElement(raw)
			if err != nil {
				return err
			}
			return list.each(func(name, raw string) error {
				if name != "Bucket" {
					return nil
				}
				bucket, err := readBucket(raw)
				buckets = append(buckets, bucket)
				return err
			})
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("the backend's ListAllMyBucketsResult: %w", err)
	}
	return buckets, next, nil
}

func readBucket(raw string) (b Bucket, err error) {
	fields, err := splitElement(raw)
	if err != nil {
		return b, err
	}
	err = fields.each(func(name, raw string) (err error) {
		switch name {
		case "Name":
			b.Name, err = leafText(raw)
		case "BucketRegion":
			b.Region, err = leafText(raw)
		case "CreationDate":
			date, err := leafText(raw)
			if err != nil {
				return err
			}
			b.CreationDate, _ = time.Parse(time.RFC3339, date) // a list of buckets is not to fail over a date
		}
		return err
	})
	if err == nil && b.Name == "" {
		err = errors.New("a bucket has no name")
	}
	return b, err
}

func readListing(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxListing+1))
	if err == nil && len(b) > maxListing {
		err = errors.New("the answer is over 16 MiB")
	}
	return string(b), err
}

// maxBuckets is the most, and without a parameter the number, of buckets that S3 shows on one page.
const maxBuckets = 10_000

// WriteBuckets writes the answer to op (its prefix, bucket-region, max-buckets and continuation-token honoured) from
// all the buckets the caller may see, sorted by name.
//
// bucket-region finds only buckets whose Region is known. The continuation token names the last bucket shown: it
// says nothing that its holder has not seen, and opens nothing, because every page is authorised anew.
func (op *Operation) WriteBuckets(w io.Writer, all []Bucket, owner string) error {
	prefix, region := op.Query("prefix"), op.Query("bucket-region")
	most := maxBuckets
	if s := op.Query("max-buckets"); s != "" {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n < 1 || n > maxBuckets {
			return errorf("InvalidArgument", "max-buckets must be a number from 1 to %d", maxBuckets)
		}
		most = int(n)
	}
	after := ""
	if s := op.Query("continuation-token"); s != "" {
		b, err := base64.RawURLEncoding.Strict().DecodeString(s)
		if err != nil || len(b) < 2 || b[0] != tokenVersion || !utf8.Valid(b) {
			return errorf("InvalidArgument", "The continuation token provided is incorrect")
		}
		after = string(b[1:])
	}

	byName := func(a, b Bucket) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(all, byName) {
		all = slices.SortedFunc(slices.Values(all), byName)
	}
	b := make([]byte, 0, 512+128*min(len(all), most))
	b = append(b, xmlHeader+`<ListAllMyBucketsResult xmlns="`+s3Namespace+`"><Owner>`...)
	b = appendElement(b, "ID", owner)
	b = append(b, "</Owner><Buckets>"...)
	shown, last, more := 0, "", false
	for _, bucket := range all {
		if bucket.Name <= after && after != "" || !strings.HasPrefix(bucket.Name, prefix) || region != "" && bucket.Region != region {
			continue
		}
		if shown == most {
			more = true
			break
		}
		shown, last = shown+1, bucket.Name
		b = append(b, "<Bucket>"...)
		b = appendElement(b, "Name", bucket.Name)
		if !bucket.CreationDate.IsZero() {
			b = appendElement(b, "CreationDate", bucket.CreationDate.UTC().Format("2006-01-02T15:04:05.000Z"))
		}
		if bucket.Region != "" {
			b = appendElement(b, "BucketRegion", bucket.Region)
		}
		b = append(b, "</Bucket>"...)
	}
	b = append(b, "</Buckets>"...)
	if more {
		b = appendElement(b, "ContinuationToken", base64.RawURLEncoding.EncodeToString(append([]byte{tokenVersion}, last...)))
	}
	if prefix != "" {
		b = appendElement(b, "Prefix", prefix)
	}
	b = append(b, "</ListAllMyBucketsResult>"...)
	_, err := w.Write(b)
	return err
}

const tokenVersion = '1'
