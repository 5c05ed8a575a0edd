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
	isPath              // of a path that net/url takes, and gives back, as it is
)

var classes = func() (t [256]uint8) {
	for c := range 256 {
		if isAlphanumeric(byte(c)) || strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0 {
			t[c] |= isToken
		}
		if c > ' ' && c != 0x7f {
			t[c] |= isURI | isValue
		}
		if c == ' ' || c == '\t' {
			t[c] |= isValue
		}
		if isAlphanumeric(byte(c)) || strings.IndexByte("-._~/$&+,:;=@", byte(c)) >= 0 {
			t[c] |= isPath
		}
	}
	return t
}()

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

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
	for len(s) >= 32 {
		if odd(word(s))|odd(word(s[8:]))|odd(word(s[16:]))|odd(word(s[24:])) != 0 {
			return false
		}
		s = s[32:]
	}
	for len(s) >= 8 {
		if odd(word(s)) != 0 {
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

func word(s string) uint64 {
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// odd is not 0 where one of eight bytes is, in order, above 0x7f, below 0x20 or 0x7f. Borrows only ever make it so.
func odd(w uint64) uint64 {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	return (w | (w - 0x20*ones) | (w + ones)) & highs
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
// checked and its name looked up. Where all that follows the first line is what it was the last two times, one comparison
// is enough for all of it.
type heads struct {
	head []byte
	rest []byte
	at   int // lines taken
	text string

	said said // by the fields that were taken

	lines  [rememberedLines]string
	fields [rememberedLines]Field // of the lines
	size   int                    // of lines, in bytes
	fresh  int                    // lines taken that were not in lines

	whole string // what follows the first line of a head that came twice, which lines are pieces of; "" = another has come since
	count int    // of the lines of that head
	says  said   // by its fields
	same  bool   // whole is what this one has
}

const (
	rememberedLines = 16
	rememberedBytes = smallBuffer // for an idle connection is to cost little
	// learned is how many lines after the first are copied one by one, to be remembered. Of a head that has more that are
	// new, what is left is copied in one piece, which none of its lines must keep alive.
	learned = 4
)

// begin takes the first line. head is to stay as it is until its last field is taken, and must be as reader.head has it,
// which also tells whether whole is what follows the first line.
func (h *heads) begin(head []byte, same bool) string {
	h.head, h.rest, h.at, h.fresh, h.text, h.same = head, head, 0, 0, "", same
	h.said = said{framing: framing{length: -1}}
	first := h.lines[0]
	if line := h.line(); line != nil {
		text, learn := h.copy(line)
		if learn {
			h.remember(0, text, Field{})
		}
		first = text
	}
	h.fresh = 0
	return first
}

// again is the fields of a head whose lines after the first are those of the one before: then they need not be taken one by
// one, and said is what they say. No two have one name. They are good until the next head, and their strings for good.
func (h *heads) again() (fields Fields, ok bool) {
	if !h.same {
		return nil, false
	}
	h.said = h.says
	return h.fields[1:h.count], true
}

// more tells whether there are fields left.
func (h *heads) more() bool { return len(h.rest) > len("\r\n") }

// next reads a field. https://www.rfc-editor.org/rfc/rfc9112#section-5
func (h *heads) next() (Field, error) {
	at := h.at
	line := h.line()
	if line == nil {
		f := h.fields[at]
		h.said.take(f)
		if h.fresh == 0 && !h.more() {
			h.join()
		}
		return f, nil
	}
	text, learn := h.copy(line)
	f, err := parseField(text)
	if err != nil {
		return f, err
	}
	h.said.take(f)
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
	if at < len(h.lines) && h.lines[at] != "" && h.lines[at] == string(line) {
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
	if at >= len(h.lines) {
		return
	}
	if at > 0 {
		h.whole = ""
	}
	h.size -= len(h.lines[at])
	h.lines[at], h.fields[at] = "", Field{}
	if h.size+len(line) <= rememberedBytes {
		h.size += len(line)
		h.lines[at], h.fields[at] = line, f
	}
}

// join makes one piece of the lines of a head that came as the one before, so that the next is told by one comparison, and
// what is compared and what is used of it lies side by side.
func (h *heads) join() {
	if h.at > len(h.lines) || len(h.head) > rememberedBytes || namedTwice(h.fields[1:h.at]) {
		return
	}
	first, rest, _ := strings.Cut(string(h.head), "\r\n")
	if h.lines[0] != "" {
		h.lines[0] = first
	}
	h.whole, h.count, h.says = rest, h.at, h.said
	for i := 1; i < h.at; i++ {
		h.lines[i], rest, _ = strings.Cut(rest, "\r\n")
		h.fields[i], _ = parseField(h.lines[i]) // it went well before
	}
	for i := h.at; i < len(h.lines); i++ { // or else they would keep what they are pieces of
		h.size -= len(h.lines[i])
		h.lines[i], h.fields[i] = "", Field{}
	}
}

func namedTwice(fields Fields) bool {
	for i := range fields {
		for j := range i {
			if fields[j].Name == fields[i].Name {
				return true
			}
		}
	}
	return false
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

// usual are the names above where slot puts them, so that one that is about to be written is told by a comparison.
var usual = func() (t [256]string) {
	for _, name := range names {
		t[slot(name)] = name
	}
	return t
}()

// slot is where a name may be in usual. name MUST NOT be empty.
func slot(name string) uint8 {
	return uint8(len(name)) + name[0]<<2 + name[len(name)-1]<<6 + name[len(name)/2]<<1
}

// isName tells whether name may be a field's.
func isName(name string) bool {
	return name != "" && (usual[slot(name)] == name || all(name, isToken))
}

// framing is where a message's body ends by its header. It refuses what two readers could read in two ways: a length
// twice, a length beside chunks, an encoding other than chunks. https://www.rfc-editor.org/rfc/rfc9112#section-6.3
type framing struct {
	length  int64 // -1 = not told
	chunked bool
	foreign bool // an encoding other than chunks, or one more
	unclear bool // a length that is none, or one more
}

func (f *framing) takeLength(value string) {
	n, err := length(value)
	f.unclear = f.unclear || err != nil || f.length >= 0
	f.length = n
}

func (f *framing) takeEncoding(value string) {
	f.foreign = f.foreign || f.chunked || !strings.EqualFold(value, "chunked")
	f.chunked = true
}

func (f *framing) check() error {
	if f.foreign || f.unclear || f.chunked && f.length >= 0 {
		return errMalformed
	}
	return nil
}

// said is what a head's fields say of the message and of the connection.
type said struct {
	framing
	hosts   int
	host    string // the last one
	expects bool   // 100-continue
	unheard bool   // it expects something else
	closes  bool
}

func (s *said) take(f Field) {
	switch f.Name {
	case "Content-Length":
		s.takeLength(f.Value)
	case "Transfer-Encoding":
		s.takeEncoding(f.Value)
	case "Host":
		s.hosts++
		s.host = f.Value
	case "Expect":
		continues := hasToken(f.Value, "100-continue")
		s.expects, s.unheard = s.expects || continues, s.unheard || !continues
	case "Connection":
		s.closes = s.closes || hasToken(f.Value, "close")
	}
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

// hasToken tells whether a comma-separated list has a token.
func hasToken(list, token string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(trim(item), token) {
			return true
		}
	}
	return false
}

// appendField writes a field, or refuses what would write more than one line.
func appendField(b []byte, name, value string) ([]byte, bool) {
	if !isName(name) || !plain(value) && !all(value, isValue) {
		return b, false
	}
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...), true
}
