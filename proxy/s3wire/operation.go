package s3wire

import "strings"

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

	entry   *entry
	params  []param  // those without a field above or a value of the table's
	headers []header // those that go on, in the table's order; not the source, and nothing of the body's framing
}

// row is the operation's entry of the table, which is also found for an Operation that a caller made.
func (op *Operation) row() *entry {
	if op.entry != nil {
		return op.entry
	}
	return byName[op.Name]
}

// Preflight tells a browser's CORS preflight, which is no operation of S3's: it carries no credentials, so it can
// be neither authenticated nor authorised, and it goes on unsigned or not at all.
func (op *Operation) Preflight() bool { return op.Name == preflight }

// Uploads tells whether the body is an object's bytes, or a part's.
func (op *Operation) Uploads() bool { return op.Name == "PutObject" || op.Name == "UploadPart" }

// Query is the value of a query parameter, "" where there is none.
func (op *Operation) Query(name string) string {
	switch name {
	case "versionId":
		return op.VersionID
	case "prefix":
		return op.Prefix
	case "delimiter":
		return op.Delimiter
	}
	for _, p := range op.params {
		if paramNames[p.id].name == name {
			return p.value
		}
	}
	return ""
}

// none is what most requests have. It MUST NOT be written to, as what PolicyQuery and PolicyHeaders return is not.
var none = map[string]string{}

// PolicyQuery is the query as policy may see it: the parameters of the table, by name. Never nil, and only to be read.
func (op *Operation) PolicyQuery() map[string]string {
	if op.bare() {
		return none
	}
	var buf [maxParams]param
	params := op.allParams(buf[:0])
	query := make(map[string]string, len(params))
	for _, p := range params {
		query[paramNames[p.id].name] = p.value
	}
	return query
}

// PolicyHeaders is the headers as policy may see them: those that the table allows, in lower case, less the keys
// and codes among them. Never nil, and only to be read.
func (op *Operation) PolicyHeaders() map[string]string {
	if len(op.headers) == 0 && op.Source == nil && op.Payload.Encoding == "" {
		return none
	}
	headers := make(map[string]string, len(op.headers)+1)
	for i := range op.headers {
		switch h := &op.headers[i]; {
		case h.id == userMetadata:
			headers[strings.ToLower(h.name)] = h.value
		case headerNames[h.id].class != secret:
			headers[headerNames[h.id].lower] = h.value
		}
	}
	if op.Source != nil {
		headers[headerNames[op.sourceHeader()].lower] = op.Source.String()
	}
	if op.Payload.Encoding != "" {
		headers["content-encoding"] = op.Payload.Encoding
	}
	return headers
}

func (op *Operation) sourceHeader() headerID {
	if op.row().source == renameSource {
		return headerRenameSource
	}
	return headerCopySource
}

// header finds one of the headers that go on.
func (op *Operation) header(id headerID) (string, bool) {
	for i := range op.headers {
		if op.headers[i].id == id {
			return op.headers[i].value, true
		}
	}
	return "", false
}
