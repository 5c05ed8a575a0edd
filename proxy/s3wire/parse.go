package s3wire

import (
	"net/http"
	"strconv"
	"strings"
)

// Parse reads r as exactly one operation of the table, or says with an *Error why it is none. It reads neither the
// body nor the credentials, and leaves r as it is.
//
// With an error the Operation is nil, or what had been understood by then: good for a record of what was asked,
// and for nothing else.
func (a Addressing) Parse(r *http.Request) (*Operation, error) { return a.ParseIn(new(Operation), r) }

// ParseIn is Parse for who has room for the operation.
func (a Addressing) ParseIn(op *Operation, r *http.Request) (*Operation, error) {
	t, err := readTarget(r)
	if err != nil {
		return nil, err
	}
	*op = Operation{Method: r.Method}
	if op.Bucket, op.Key, err = a.address(t); err != nil {
		return op, err
	}
	if methodIndex(op.Method) == options {
		return op.parsePreflight(r)
	}

	var q query
	if t.query != "" {
		if err := q.read(t.query); err != nil {
			return op, err
		}
	}
	e, err := op.find(r, &q)
	if e != nil {
		op.Name, op.entry = e.name, e
	}
	if err != nil {
		return op, err
	}
	if e.unsupported != "" {
		return op, errorf("NotImplemented", "%s is not supported: %s", e.name, e.unsupported)
	}
	op.take(q.params)

	h := headers{entry: e}
	if err := h.read(r.Header, &q); err != nil {
		return op, err
	}
	if len(r.Trailer) > 0 {
		for name := range r.Trailer {
			if _, ok := headerIDs[name]; ok || likeAmz(name) {
				return op, errorf("InvalidRequest", "header %s cannot come as a trailer of HTTP's: S3 takes it in the trailer of an aws-chunked body", quote(name))
			}
		}
	}
	op.headers = h.kept
	if e.source != noSource {
		if err := op.parseSource(); err != nil {
			return op, err
		}
	}
	op.Payload, err = h.frame.payload(e, r)
	return op, err
}

// take keeps the query parameters, those that have a field of their own there.
func (op *Operation) take(params []param) {
	rest := params[:0]
	for _, p := range params {
		switch p.id {
		case paramVersionID:
			op.VersionID = p.value
		case paramPrefix:
			op.Prefix = p.value
		case paramDelimiter:
			op.Delimiter = p.value
		default:
			if _, fixed := paramNames[p.id].fixed(); !fixed {
				rest = append(rest, p)
			}
		}
	}
	if len(rest) > 0 {
		op.params = rest
	}
}

func (op *Operation) level() level {
	switch {
	case op.Bucket == "":
		return service
	case op.Key == "":
		return bucket
	}
	return object
}

// find is the one entry that has just these subresources, or an error that says what is wrong with them.
func (op *Operation) find(r *http.Request, q *query) (*entry, error) {
	m := methodIndex(op.Method)
	if m < 0 {
		return nil, errorf("MethodNotAllowed", "S3 has no method %s", quote(op.Method))
	}
	at := op.level()
	source := noSource
	switch { // of other methods, these headers are refused as any that they do not have
	case m == put && q.names(r, headerCopySource):
		source = copySource
	case m == put && q.names(r, headerRenameSource):
		source = renameSource
	case m == post && (q.names(r, headerRequestRoute) || q.names(r, headerRequestToken)):
		return byName["WriteGetObjectResponse"], nil
	}
	if at == service && q.id == "ListDirectoryBuckets" {
		return byName["ListDirectoryBuckets"], nil // asked of another host, on which nothing else tells it from ListBuckets
	}

	var nearest *entry
	for _, e := range byMethod[m][at] {
		if e.source == source && e.required.within(q.present) {
			if q.present.within(e.allowed) {
				return e, nil
			}
			if nearest == nil || nearest.required.within(e.required) {
				nearest = e
			}
		}
	}

	if m == post && strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), "multipart/form-data") {
		return nil, errorf("NotImplemented", "uploads by HTML form are not supported: PUT to a presigned URL instead")
	}
	if nearest != nil {
		return nil, errorf("InvalidRequest", "%s does not go with %s: remove it", strings.Join(q.present.without(nearest.allowed).names(), ", "), nearest.name)
	}
	var others []string
	for other := range methods {
		for _, e := range byMethod[other][at] {
			if e.required == q.present && len(others) <= other {
				others = append(others, e.method)
				break
			}
		}
	}
	if source == noSource && len(others) > 0 {
		return nil, errorf("MethodNotAllowed", "S3 has no %s on %s; it has %s", op.Method, describe(at, q), strings.Join(others, ", "))
	}
	if source != noSource {
		return nil, errorf("InvalidRequest", "no operation of S3 is a PUT on %s with a copy or rename source", describe(at, q))
	}
	return nil, errorf("InvalidRequest", "no operation of S3 is a %s on %s", op.Method, describe(at, q))
}

func describe(at level, q *query) string {
	what := [...]string{"the service", "a bucket", "an object"}[at]
	if names := q.present.names(); len(names) > 0 {
		what += " with ?" + strings.Join(names, "&")
	}
	return what
}

// names tells whether the request has the header, be it as one or as a query parameter.
func (q *query) names(r *http.Request, id headerID) bool {
	if _, ok := r.Header[headerNames[id].name]; ok {
		return true
	}
	for _, h := range q.hoisted {
		if h.name == headerNames[id].lower {
			return true
		}
	}
	return false
}

func (op *Operation) parseSource() error {
	id := headerCopySource
	if op.entry.source == renameSource {
		id = headerRenameSource
	}
	known := &headerNames[id]
	for i, h := range op.headers {
		if h.id != id {
			continue
		}
		source, err := parseSource(known, h.value)
		if err != nil {
			return err
		}
		if id == headerRenameSource && (source.Bucket != op.Bucket || source.VersionID != "") {
			return errorf("InvalidArgument", "header %s must be %s/key: an object keeps its bucket when it is renamed, and has no version", known.lower, op.Bucket)
		}
		op.Source = source
		op.headers = append(op.headers[:i:i], op.headers[i+1:]...)
		return nil
	}
	return errorf("InvalidRequest", "header %s is missing", known.lower)
}

// parsePreflight reads what a browser asks before it sends a request of a page's. It asks with the very URL of the
// request to come, be it a presigned one; S3 answers by the method and the headers alone, so nothing of the query
// is kept.
func (op *Operation) parsePreflight(r *http.Request) (*Operation, error) {
	at := op.level()
	if at == service {
		return op, errorf("MethodNotAllowed", "the service itself has no cross-origin rules: ask of a bucket")
	}
	op.entry = byMethod[options][at][0]
	op.Name = op.entry.name
	h := headers{entry: op.entry}
	if err := h.read(r.Header, new(query)); err != nil {
		return op, err
	}
	op.headers = h.kept
	if !h.seen.has(headerOrigin) || !h.seen.has(headerRequestMethod) {
		return op, errorf("InvalidRequest", "OPTIONS needs the headers Origin and Access-Control-Request-Method")
	}
	var err error
	op.Payload, err = h.frame.payload(op.entry, r)
	return op, err
}

func repeated(what, name string) *Error {
	return errorf("InvalidRequest", "%s %s comes more than once", what, quote(name))
}

// quote is what a client sent, fit for a message to it.
func quote(s string) string {
	if len(s) > 100 {
		s = s[:100]
	}
	return strconv.QuoteToASCII(s)
}
