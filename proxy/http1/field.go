package http1

import (
	"bytes"
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

// heads reads the heads that come on one connection. They say nearly the same each time, so that it remembers the lines of
// the one before: a line that is, byte for byte, what stood in its place costs a comparison, where another is copied,
// checked and its name looked up.
type heads struct {
	rest []byte
	at   int // lines taken
	text string

	last [rememberedLines]struct {
		line  string
		field Field
	}
	size  int // of the lines in last, in bytes
	fresh int // lines taken that were not in last
}

const (
	rememberedLines = 16
	rememberedBytes = smallBuffer // for an idle connection is to cost little
	// learned is how many lines of a head are copied one by one, to be remembered. Of one that has more that are new,
	// what is left is copied in one piece, which none of its lines must keep alive.
	learned = 4
)

// begin takes the first line. head is to stay as it is until its last field is taken, and must be as reader.head has it.
func (h *heads) begin(head []byte) string {
	h.rest, h.at, h.fresh, h.text = head, 0, 0, ""
	line := h.line()
	if line == nil {
		return h.last[0].line
	}
	text, learn := h.copy(line)
	if learn {
		h.remember(0, text, Field{})
	}
	return text
}

// more tells whether there are fields left.
func (h *heads) more() bool { return len(h.rest) > len("\r\n") }

// next reads a field. https://www.rfc-editor.org/rfc/rfc9112#section-5
func (h *heads) next() (Field, error) {
	at := h.at
	line := h.line()
	if line == nil {
		return h.last[at].field, nil
	}
	text, learn := h.copy(line)
	f, err := parseField(text)
	if err != nil {
		return f, err
	}
	if learn {
		h.remember(at, text, f)
	}
	return f, nil
}

// line takes a line without its CRLF; nil = it is the remembered one.
func (h *heads) line() []byte {
	end := bytes.IndexByte(h.rest, '\n') // there is one, and a CR before it
	line := h.rest[:end-1]
	h.rest = h.rest[end+1:]
	at := h.at
	h.at++
	if at < len(h.last) && h.last[at].line != "" && h.last[at].line == string(line) {
		return nil
	}
	return line
}

// copy makes a string of the line that was just taken, and tells whether it is one to remember.
func (h *heads) copy(line []byte) (text string, learn bool) {
	if h.fresh++; h.fresh <= learned {
		return string(line), true
	}
	left := len(line) + len("\r\n") + len(h.rest)
	if h.text == "" {
		h.text = string(line[:left:left]) // up to the head's end: they are of one array
	}
	from := len(h.text) - left
	return h.text[from : from+len(line)], false
}

func (h *heads) remember(at int, line string, f Field) {
	if at >= len(h.last) {
		return
	}
	k := &h.last[at]
	h.size -= len(k.line)
	k.line, k.field = "", Field{}
	if h.size+len(line) <= rememberedBytes {
		h.size += len(line)
		k.line, k.field = line, f
	}
}

func parseField(line string) (Field, error) {
	colon := strings.IndexByte(line, ':')
	if colon < 1 || !all(line[:colon], isToken) { // a folded line begins with a space, which is no token
		return Field{}, errMalformed
	}
	value := trim(line[colon+1:])
	if !plain(value) && !all(value, isValue) {
		return Field{}, errMalformed
	}
	return Field{canonical(line[:colon]), value}, nil
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
