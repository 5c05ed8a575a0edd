package s3wire

import (
	"net/http"
	"net/url"
)

// Operation is one S3 request, understood. It holds no credential: those are neither read nor kept here.
type Operation struct {
	Name      string // AWS's name: "GetObject"
	Method    string
	Bucket    string
	Key       string  // as decoded once from the escaped path; never cleaned
	VersionID string  // of the object asked for, "" = current
	Source    *Source // CopyObject, UploadPartCopy and RenameObject
	Payload   Payload // how the body is framed, and what vouches for it

	// Prefix and Delimiter of a listing.
	Prefix, Delimiter string
}

// Source is the object that a copy or a rename reads.
type Source struct{ Bucket, Key, VersionID string }

// Access is one thing an operation needs: an IAM action on a bucket, and on a key where it has one.
type Access struct {
	Action            string // "s3:GetObject"
	Bucket, Key       string
	VersionID         string
	Prefix, Delimiter string
}

// Addressing tells which host names are Sluice's own, and so where the bucket's name is looked for.
type Addressing struct {
	Domains []string // none: path style on any host
}

// Parse reads r as exactly one operation of the table, or says with an *Error why it is none.
func (a Addressing) Parse(r *http.Request) (*Operation, error) { panic("not written") }

// Accesses is what the operation needs, never empty. DeleteObjects' keys come with its body: see ParseDelete.
func (op *Operation) Accesses() []Access { panic("not written") }

// URL is where the operation is sent: endpoint with the path and query rebuilt, strictly escaped (RawPath set).
func (op *Operation) URL(endpoint *url.URL, pathStyle bool) *url.URL { panic("not written") }

// WriteHeader sets on h the headers of the operation that a backend needs: all that the table allows and the
// client sent, with the copy source encoded again. Never credentials, hop-by-hop headers or body framing.
func (op *Operation) WriteHeader(h http.Header) { panic("not written") }
