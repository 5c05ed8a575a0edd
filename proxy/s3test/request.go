package s3test

import (
	"strings"
)

// Request is one request as it came over the wire.
type Request struct {
	Method string
	Target string // the request target, byte for byte
	Proto  string
	Header Header // in the order they came, spelled as they came
	Body   []byte // without Transfer-Encoding's framing, with S3's own
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
