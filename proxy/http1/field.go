package http1

import (
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// Character classes of RFC 9110.
const (
	isToken = 1 << iota // of a method or a field's name
	isValue             // of a field's value: visible, space, tab, and bytes above ASCII
	isURI               // of a request target: visible, and bytes above ASCII
)

var classes = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0 && c != 0:
			t[c] |= isToken
		}
		if c > ' ' && c != 0x7f {
			t[c] |= isURI | isValue
		}
		if c == ' ' || c == '\t' {
			t[c] |= isValue
		}
	}
	return t
}()

func all(s string, class uint8) bool {
	for i := 0; i < len(s); i++ {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

// plain tells, eight bytes at a time, that s is visible ASCII and spaces: what nearly every value is. Of what it does not
// tell that of, all knows.
func plain(s string) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for len(s) >= 8 {
		w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		// In order: a byte above 0x7f, one below 0x20, one of 0x7f. Borrows only ever make it say no.
		if (w|(w-0x20*ones)|(w+ones))&highs != 0 {
			return false
		}
		s = s[8:]
	}
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Field is a line of a head, its name as net/http writes it.
type Field struct{ Name, Value string }

// Fields are a head's, in their order. A list costs a fraction of what a map does where all that happens to it is to be
// passed on.
type Fields []Field

// Get is the first value under name, "" where there is none.
func (f Fields) Get(name string) string {
	for i := range f {
		if f[i].Name == name {
			return f[i].Value
		}
	}
	return ""
}

// FieldsOf is h as a list.
func FieldsOf(h http.Header) Fields {
	all := make(Fields, 0, len(h)+1)
	for name, values := range h {
		for _, value := range values {
			all = append(all, Field{name, value})
		}
	}
	return all
}

func (f Fields) header() http.Header {
	h := make(http.Header, len(f))
	values := make([]string, len(f)) // one array for all
	for i := range f {
		add(h, f[i].Name, f[i].Value, values[i:i+1:i+1])
	}
	return h
}

// add adds to h; room is for the value where it is the first.
func add(h http.Header, name, value string, room []string) {
	if old, ok := h[name]; ok {
		h[name] = append(old, value)
		return
	}
	room[0] = value
	h[name] = room
}

// next reads the first of a head's lines after its start line, of which there is one.
// https://www.rfc-editor.org/rfc/rfc9112#section-5
func next(lines string) (f Field, rest string, err error) {
	end := strings.IndexByte(lines, '\n') // there is one, and a CR before it: see reader.head
	if end < 1 {
		return f, "", errMalformed
	}
	line := lines[:end-1]
	colon := strings.IndexByte(line, ':')
	if colon < 1 || !all(line[:colon], isToken) { // a folded line begins with a space, which is no token
		return f, "", errMalformed
	}
	value := trim(line[colon+1:])
	if !plain(value) && !all(value, isValue) {
		return f, "", errMalformed
	}
	return Field{canonical(line[:colon]), value}, lines[end+1:], nil
}

// noMore is what follows a head's last line.
const noMore = "\r\n"

// fields reads the lines of a head after the first into h. values is room for them.
func fields(lines string, h http.Header, values []string) error {
	for lines != noMore {
		f, rest, err := next(lines)
		if err != nil {
			return err
		}
		if lines = rest; len(values) == 0 {
			values = make([]string, 16)
		}
		add(h, f.Name, f.Value, values[:1:1])
		values = values[1:]
	}
	return nil
}

func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// canonical is the name as net/http writes it.
func canonical(name string) string {
	if known, ok := names[name]; ok {
		return known
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}

// names spares the usual ones the work.
var names = func() map[string]string {
	t := map[string]string{}
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Accept-Ranges", "Amz-Sdk-Invocation-Id", "Amz-Sdk-Request", "Authorization", "Cache-Control",
		"Connection", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Length", "Content-Md5", "Content-Range",
		"Content-Type", "Date", "Etag", "Expect", "Expires", "Host", "If-Match", "If-Modified-Since", "If-None-Match",
		"If-Unmodified-Since", "Keep-Alive", "Last-Modified", "Location", "Origin", "Range", "Retry-After", "Server", "Trailer", "Transfer-Encoding",
		"User-Agent", "Vary", "X-Amz-Bucket-Region", "X-Amz-Checksum-Crc32", "X-Amz-Checksum-Crc32c", "X-Amz-Checksum-Crc64nvme", "X-Amz-Checksum-Sha256",
		"X-Amz-Checksum-Type", "X-Amz-Content-Sha256", "X-Amz-Copy-Source", "X-Amz-Date", "X-Amz-Decoded-Content-Length", "X-Amz-Expiration", "X-Amz-Id-2", "X-Amz-Request-Id",
		"X-Amz-Sdk-Checksum-Algorithm", "X-Amz-Security-Token", "X-Amz-Server-Side-Encryption", "X-Amz-Storage-Class", "X-Amz-Trailer", "X-Amz-User-Agent", "X-Amz-Version-Id", "X-Forwarded-For", "X-Forwarded-Proto",
	} {
		t[name], t[strings.ToLower(name)] = name, name
	}
	for written, name := range map[string]string{"ETag": "Etag", "Content-MD5": "Content-Md5", "X-Amz-Content-SHA256": "X-Amz-Content-Sha256"} {
		t[written] = name
	}
	return t
}()

// framing is where a message's body ends by its header.
type framing struct {
	length  int64 // -1 = not told
	chunked bool
}

// frame refuses what two readers could read in two ways: a length twice, a length beside chunks, an encoding other
// than chunks. https://www.rfc-editor.org/rfc/rfc9112#section-6.3
func frame(lengths, encodings []string) (framing, error) {
	f := framing{length: -1}
	if len(encodings) > 0 {
		if len(encodings) != 1 || !strings.EqualFold(encodings[0], "chunked") {
			return f, errMalformed
		}
		f.chunked = true
	}
	if len(lengths) > 0 {
		if len(lengths) != 1 || f.chunked {
			return f, errMalformed
		}
		n, err := length(lengths[0])
		if err != nil {
			return f, err
		}
		f.length = n
	}
	return f, nil
}

// length reads digits and nothing else: no sign, no list.
func length(s string) (int64, error) {
	if s == "" || len(s) > 19 {
		return 0, errMalformed
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, errMalformed
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, errMalformed
	}
	return n, nil
}

// hasToken tells whether one of the comma-separated lists has a token.
func hasToken(lists []string, token string) bool {
	for _, list := range lists {
		for item := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(trim(item), token) {
				return true
			}
		}
	}
	return false
}

// appendField writes a field, or refuses what would write more than one line.
func appendField(b []byte, name, value string) ([]byte, bool) {
	if name == "" || !all(name, isToken) || !plain(value) && !all(value, isValue) {
		return b, false
	}
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...), true
}
