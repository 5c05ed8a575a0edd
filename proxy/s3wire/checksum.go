package s3wire

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"strings"
)

const checksumPrefix = "x-amz-checksum-"

// checksums is every algorithm of S3's current model, by the end of its header's name.
var checksums = []struct {
	name string
	size int
	new  func() hash.Hash // nil: passed on, and never computed here
}{
	{"crc32", crc32.Size, func() hash.Hash { return crc32.NewIEEE() }},
	{"crc32c", crc32.Size, func() hash.Hash { return crc32.New(castagnoli) }},
	{"crc64nvme", crc64.Size, func() hash.Hash { return crc64.New(nvme) }},
	{"md5", md5.Size, md5.New},
	{"sha1", sha1.Size, sha1.New},
	{"sha256", sha256.Size, sha256.New},
	{"sha512", sha512.Size, sha512.New},
	{"xxhash128", 16, nil},
	{"xxhash3", 8, nil},
	{"xxhash64", 8, nil},
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	nvme       = crc64.MakeTable(0x9A6C9329AC4BC9B5) // CRC-64/NVME, its polynomial reversed
)

// checksumSize is the size in bytes of what an x-amz-checksum- header carries, in base64; 0 = no such header.
func checksumSize(header string) int {
	name, ok := strings.CutPrefix(header, checksumPrefix)
	for _, c := range checksums {
		if ok && c.name == name {
			return c.size
		}
	}
	return 0
}

// newChecksum is the hash of an x-amz-checksum- header, nil where it is none that can be computed here.
func newChecksum(header string) hash.Hash {
	name := strings.TrimPrefix(header, checksumPrefix)
	for _, c := range checksums {
		if c.name == name && c.new != nil {
			return c.new()
		}
	}
	return nil
}

// isChecksum tells whether value is size bytes in canonical base64.
func isChecksum(value string, size int) bool {
	if len(value) != base64.StdEncoding.EncodedLen(size) || strings.ContainsAny(value, "\r\n") { // which the decoder skips
		return false
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(value)
	return err == nil && len(raw) == size
}
