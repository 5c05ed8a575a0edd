package s3wire

import (
	"net/http"
	"net/url"
	"strings"
)

// maxParams is more than any operation has parameters.
const maxParams = 16

// bare tells that the operation is sent without a query.
func (op *Operation) bare() bool {
	return len(op.row().flags) == 0 && len(op.params) == 0 && op.Prefix == "" && op.Delimiter == "" && op.VersionID == ""
}

// allParams is every query parameter of the operation, in order.
func (op *Operation) allParams(params []param) []param {
	e := op.row()
	params = append(params, e.flags...)
	params = append(params, op.params...)
	if op.Prefix != "" && e.allowed.has(paramPrefix) {
		params = append(params, param{paramPrefix, op.Prefix})
	}
	if op.Delimiter != "" && e.allowed.has(paramDelimiter) {
		params = append(params, param{paramDelimiter, op.Delimiter})
	}
	if op.VersionID != "" && e.allowed.has(paramVersionID) {
		params = append(params, param{paramVersionID, op.VersionID})
	}
	for i := 1; i < len(params); i++ { // few, and nearly sorted
		for j := i; j > 0 && params[j].id < params[j-1].id; j-- {
			params[j], params[j-1] = params[j-1], params[j]
		}
	}
	return params
}

// WriteURL sets u to where the operation is sent: endpoint with the path and query rebuilt, strictly escaped (RawPath
// set). Nothing of the client's own spelling is left.
//
// A bucket goes into the host only where pathStyle is false and it can stand there: one with a dot, capitals or an
// underscore goes into the path all the same, as with the SDKs, and so does one whose key begins with a slash, for
// "//k" is no path to everyone.
func (op *Operation) WriteURL(u, endpoint *url.URL, pathStyle bool) {
	*u = url.URL{Scheme: endpoint.Scheme, Host: endpoint.Host, RawQuery: op.rawQuery()}
	base, rawBase := "", ""
	if endpoint.Path != "" && endpoint.Path != "/" {
		base = strings.TrimSuffix(endpoint.Path, "/")
		rawBase = strings.TrimSuffix(endpoint.EscapedPath(), "/")
	}

	bucket, slash, key := op.Bucket, "", op.Key
	switch {
	case bucket == "":
		key = ""
	case !pathStyle && isHostLabel(bucket) && !strings.HasPrefix(key, "/"):
		u.Host = bucket + "." + endpoint.Host
		bucket = ""
	case key != "":
		slash = "/"
	}
	escaped := escapePath(key)
	u.RawPath = rawBase + "/" + bucket + slash + escaped
	u.Path = u.RawPath
	if rawBase != base || escaped != key {
		u.Path = base + "/" + bucket + slash + key
	}
}

func (op *Operation) rawQuery() string {
	if op.Preflight() || op.bare() {
		return ""
	}
	var buf [maxParams]param
	params := op.allParams(buf[:0])
	b := make([]byte, 0, 64)
	for _, p := range params {
		if len(b) > 0 {
			b = append(b, '&')
		}
		b = append(b, paramNames[p.id].name...)
		b = append(b, '=')
		b = appendEscaped(b, p.value)
	}
	return string(b)
}

// WriteHeader sets on h the headers of the operation that a backend needs: all that the table allows and the
// client sent, with the copy source encoded again. Never credentials, hop-by-hop headers or body framing: what
// Outbound.Header says of the body goes over what is set here. Accept-Encoding is left out on purpose: an object is
// its bytes as stored, and a front-end that rewrites that header would break the signature over it.
//
// For DeleteObjects the digests are left out too: the body is not the client's, and Delete.Encode has its own.
func (op *Operation) WriteHeader(h http.Header) {
	var values []string // one array for all
	if n := len(op.headers); n > 0 || op.Source != nil || op.Payload.Encoding != "" {
		values = make([]string, 0, n+2)
	}
	set := func(name, value string) {
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	rebuilt := op.Name == "DeleteObjects"
	for i := range op.headers {
		f := &op.headers[i]
		if rebuilt && digest.has(f.id) {
			continue
		}
		set(f.name, f.value)
	}
	if op.Source != nil {
		set(headerNames[op.sourceHeader()].name, op.Source.String())
	}
	if op.Payload.Encoding != "" {
		set(headerNames[headerContentEncoding].name, op.Payload.Encoding)
	}
}

// digest is the headers that hold for one body only.
var digest = func() (s headerSet) {
	for _, name := range strings.Fields("content-md5 " + checksummed) {
		s.add(mustHeader(name))
	}
	return s
}()

// escapePath is s as appendPath writes it: nearly always s itself.
func escapePath(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c != '/' && !isUnreserved[c] {
			var room [256]byte
			return string(appendPath(room[:0], s))
		}
	}
	return s
}

// appendPath escapes as SigV4 wants a path: all but unreserved characters and the slash.
func appendPath(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c == '/' || isUnreserved[c] {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return b
}

// appendEscaped escapes all but unreserved characters.
func appendEscaped(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; isUnreserved[c] {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return b
}

const upperHex = "0123456789ABCDEF"

var isUnreserved = func() (set [256]bool) {
	for c := range set {
		set[c] = isAlphanumeric(byte(c)) || strings.IndexByte("-._~", byte(c)) >= 0
	}
	return set
}()
