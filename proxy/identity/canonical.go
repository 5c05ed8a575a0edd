package identity

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// A canonical request is what SigV4 signs: the request written so that both sides write it alike. It is made
// from what the server will act on, the decoded path and the decoded query, and encoded anew; so a signature
// holds for one meaning, however its client chose to escape it.
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
type canonicalizer struct {
	params []param
	pairs  []pair
	query  []byte // encoded parameters, where pairs point to
	out    []byte
}

// param is one decoded query parameter.
type param struct{ name, value string }

// pair is one encoded query parameter.
type pair struct{ name, value []byte }

// A canonicalizer keeps its buffers, which hold credentials, and nothing else.
var canonicalizers = sync.Pool{New: func() any { return new(canonicalizer) }}

// release hands the buffers on to another request.
func (c *canonicalizer) release() {
	clear(c.params[:cap(c.params)])
	if cap(c.out) <= 64<<10 && cap(c.query) <= 64<<10 && cap(c.params) <= 256 {
		canonicalizers.Put(c)
	}
}

// request writes the canonical request, without the parameter named except. The result lives until the next call.
//
// The path is that of S3: encoded once and never normalised. signed is SignedHeaders as sent, already checked to
// be sorted; a header that it names and r lacks is an error, for a signature over nothing vouches for nothing.
func (c *canonicalizer) request(r *http.Request, except, signed, payloadHash string) ([]byte, error) {
	b := append(c.out[:0], r.Method...)
	b = append(b, '\n')
	if r.URL.Path == "" {
		b = append(b, '/')
	}
	b = appendEscaped(b, r.URL.Path, true)
	b = append(b, '\n')
	b = c.appendQuery(b, except)
	b = append(b, '\n')
	for rest, more := signed, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, ";")
		var err error
		if b, err = appendHeader(b, r, name); err != nil {
			return nil, err
		}
	}
	b = append(b, '\n')
	b = append(b, signed...)
	b = append(b, '\n')
	b = append(b, payloadHash...)
	c.out = b
	return b, nil
}

// appendQuery writes c.params sorted by their encoded names, then values.
func (c *canonicalizer) appendQuery(b []byte, except string) []byte {
	c.pairs = c.pairs[:0]
	// Room for all of it first, or else pairs would point into an array that append has left behind.
	room := 0
	for _, p := range c.params {
		room += 3 * (len(p.name) + len(p.value))
	}
	q := slices.Grow(c.query[:0], room)
	for _, p := range c.params {
		if p.name == except {
			continue
		}
		start := len(q)
		q = appendEscaped(q, p.name, false)
		middle := len(q)
		q = appendEscaped(q, p.value, false)
		c.pairs = append(c.pairs, pair{q[start:middle], q[middle:]})
	}
	c.query = q
	slices.SortFunc(c.pairs, func(x, y pair) int {
		if order := bytes.Compare(x.name, y.name); order != 0 {
			return order
		}
		return bytes.Compare(x.value, y.value)
	})
	for i, p := range c.pairs {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(b, p.name...)
		b = append(b, '=')
		b = append(b, p.value...)
	}
	return b
}

// appendHeader writes the line of one signed header.
func appendHeader(b []byte, r *http.Request, name string) ([]byte, error) {
	b = append(b, name...)
	b = append(b, ':')
	if name == "host" {
		b = appendFolded(b, r.Host)
		return append(b, '\n'), nil
	}
	values := r.Header[canonicalName(name)]
	if len(values) == 0 {
		// Two that some clients sign and net/http may have taken out, having read them.
		switch {
		case name == "expect":
			values = []string{"100-continue"} // there is no other value
		case name == "content-length" && r.ContentLength >= 0:
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		}
	}
	if len(values) == 0 {
		return nil, refusal(Malformed, "SignedHeaders names the header %.60q, which the request does not have; something between the client and this proxy may have removed it", name)
	}
	for i, value := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendFolded(b, value)
	}
	return append(b, '\n'), nil
}

// appendFolded writes a header's value without blanks at its ends, and each run of blanks within as one space.
func appendFolded(b []byte, value string) []byte {
	value = strings.Trim(value, " \t")
	if !strings.Contains(value, "  ") && strings.IndexByte(value, '\t') < 0 {
		return append(b, value...) // as nearly all are
	}
	for {
		at := strings.IndexAny(value, " \t")
		if at < 0 {
			return append(b, value...)
		}
		b = append(b, value[:at]...)
		b = append(b, ' ')
		value = strings.TrimLeft(value[at:], " \t")
	}
}

const upperHex = "0123456789ABCDEF"

// unreserved are the characters that SigV4 leaves as they are.
var unreserved = func() (set [256]bool) {
	for _, ch := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~" {
		set[ch] = true
	}
	return set
}()

// appendEscaped writes s with all but the unreserved characters as %XX. Slashes stay in a path.
func appendEscaped(b []byte, s string, path bool) []byte {
	for i := 0; i < len(s); i++ {
		ch := s[i]
		if unreserved[ch] || ch == '/' && path {
			b = append(b, ch)
		} else {
			b = append(b, '%', upperHex[ch>>4], upperHex[ch&15])
		}
	}
	return b
}

var errBadEscape = errors.New("a % without two hexadecimal digits")

// parseQuery appends the decoded parameters of raw to params. "a" and "a=" are the same, as SigV4 has it. Nothing
// is dropped: what cannot be read is an error, where net/url's Query would leave it out of what is signed.
func parseQuery(params []param, raw string) ([]param, error) {
	for rest, more := raw, raw != ""; more; {
		var pair string
		pair, rest, more = strings.Cut(rest, "&")
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		if name == "" {
			return nil, errors.New("a parameter without a name")
		}
		name, err := unescapeQuery(name)
		if err != nil {
			return nil, err
		}
		if value, err = unescapeQuery(value); err != nil {
			return nil, err
		}
		params = append(params, param{name, value})
	}
	return params, nil
}

// unescapeQuery decodes one name or value. A plus is a space, as in the forms that queries come from and as S3
// reads it.
func unescapeQuery(s string) (string, error) {
	if !strings.ContainsAny(s, "%+") {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '+':
			b = append(b, ' ')
		case '%':
			if i+2 >= len(s) {
				return "", errBadEscape
			}
			high, low := unhex(s[i+1]), unhex(s[i+2])
			if high > 15 || low > 15 {
				return "", errBadEscape
			}
			b = append(b, high<<4|low)
			i += 2
		default:
			b = append(b, s[i])
		}
	}
	return string(b), nil
}

// unhex is the value of a hexadecimal digit, or something above 15.
func unhex(ch byte) byte {
	switch {
	case '0' <= ch && ch <= '9':
		return ch - '0'
	case 'a' <= ch && ch <= 'f':
		return ch - 'a' + 10
	case 'A' <= ch && ch <= 'F':
		return ch - 'A' + 10
	}
	return 255
}

// canonicalName is http.CanonicalHeaderKey for a name in lower case, without allocating for those that every
// signed request has.
func canonicalName(lower string) string {
	switch lower {
	case "x-amz-content-sha256":
		return "X-Amz-Content-Sha256"
	case "x-amz-date":
		return "X-Amz-Date"
	case "x-amz-security-token":
		return "X-Amz-Security-Token"
	case "amz-sdk-invocation-id":
		return "Amz-Sdk-Invocation-Id"
	case "amz-sdk-request":
		return "Amz-Sdk-Request"
	case "x-amz-checksum-mode":
		return "X-Amz-Checksum-Mode"
	case "x-amz-decoded-content-length":
		return "X-Amz-Decoded-Content-Length"
	case "x-amz-sdk-checksum-algorithm":
		return "X-Amz-Sdk-Checksum-Algorithm"
	case "x-amz-trailer":
		return "X-Amz-Trailer"
	case "x-amz-user-agent":
		return "X-Amz-User-Agent"
	}
	return http.CanonicalHeaderKey(lower)
}
