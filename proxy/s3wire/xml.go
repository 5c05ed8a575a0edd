package s3wire

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// encoding/xml is not used on what S3 clients and backends send: it takes directives and mixed content in its stride
// where authorisation must not, it turns CR into LF, it refuses the control characters that S3's keys may have, and it
// does not give back the bytes it read. The XML of S3 needs elements, text and references, no more.

// lexer cuts XML into tags and text. Comments, CDATA, processing instructions and document types are errors: no S3
// client or backend writes them, and each of them can hide bytes from one of two readers.
type lexer struct {
	data string
	pos  int
}

type token struct {
	kind  tokenKind
	name  string // of a tag
	attrs string // of a tag, as they stand
	text  string // all of it
}

type tokenKind uint8

const (
	textToken  tokenKind = iota // empty at the end of data, and only there
	startToken                  // <a>
	endToken                    // </a>
	emptyToken                  // <a/>
)

var errXML = errors.New("not well-formed XML, or XML that S3 does not use")

func (l *lexer) next() (token, error) {
	rest := l.data[l.pos:]
	if rest == "" || rest[0] != '<' {
		n := strings.IndexByte(rest, '<')
		if n < 0 {
			n = len(rest)
		}
		l.pos += n
		return token{text: rest[:n]}, nil
	}
	n := tagEnd(rest)
	if n < 0 {
		return token{}, errXML
	}
	t := token{kind: startToken, text: rest[:n]}
	inner := rest[1 : n-1]
	switch {
	case strings.HasPrefix(inner, "/"):
		t.kind = endToken
		inner = inner[1:]
	case strings.HasSuffix(inner, "/"):
		t.kind = emptyToken
		inner = inner[:len(inner)-1]
	}
	end := 0
	for end < len(inner) && isNameByte(inner[end]) {
		end++
	}
	t.name, t.attrs = inner[:end], inner[end:]
	if end == 0 || t.attrs != "" && !isSpace(t.attrs[0]) || t.kind == endToken && !isBlank(t.attrs) {
		return token{}, errXML
	}
	l.pos += n
	return t, nil
}

// tagEnd is the length of the tag that s begins with, -1 where there is none.
func tagEnd(s string) int {
	end := strings.IndexByte(s, '>') + 1
	if end == 0 {
		return -1
	}
	if strings.IndexByte(s[1:end], '<') >= 0 {
		return -1
	}
	if strings.IndexByte(s[:end], '"') < 0 && strings.IndexByte(s[:end], '\'') < 0 {
		return end
	}
	quote := byte(0) // within quotes, > is an attribute's
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '<':
			return -1
		case c == '>':
			return i + 1
		}
	}
	return -1
}

// declaration skips an XML declaration, if there is one, and the space behind it.
func (l *lexer) declaration() error {
	const open, end = "<?xml", "?>"
	rest := l.data[l.pos:]
	if !strings.HasPrefix(rest, open) {
		return nil
	}
	n := strings.Index(rest, end)
	if n < 0 || !isDeclaration(rest[len(open):n]) {
		return errXML
	}
	l.pos += n + len(end)
	l.space()
	return nil
}

func (l *lexer) space() {
	for l.pos < len(l.data) && isSpace(l.data[l.pos]) {
		l.pos++
	}
}

// isDeclaration judges what is between <?xml and ?>: any encoding but UTF-8 would make other text of the same bytes.
func isDeclaration(s string) bool {
	all, ok := attributes(s)
	if !ok || len(all) == 0 || all[0].name != "version" {
		return false
	}
	last := 0
	for _, a := range all {
		order := 0
		switch a.name {
		case "version":
			order, ok = 1, a.value == "1.0" || a.value == "1.1"
		case "encoding":
			order, ok = 2, strings.EqualFold(a.value, "UTF-8")
		case "standalone":
			order, ok = 3, a.value == "yes" || a.value == "no"
		}
		if !ok || order <= last {
			return false
		}
		last = order
	}
	return true
}

type attribute struct{ name, value string }

// attributes reads what stands behind a tag's name. Values are left as they are written.
func attributes(s string) (all []attribute, ok bool) {
	for {
		rest := strings.TrimLeft(s, space)
		if rest == "" {
			return all, true
		}
		if len(rest) == len(s) {
			return nil, false
		}
		name, rest, found := strings.Cut(rest, "=")
		name = strings.TrimRight(name, space)
		rest = strings.TrimLeft(rest, space)
		if !found || name == "" || strings.ContainsAny(name, space+"\"'<>&/") || rest == "" || rest[0] != '"' && rest[0] != '\'' {
			return nil, false
		}
		value, after, found := strings.Cut(rest[1:], rest[:1])
		if !found {
			return nil, false
		}
		all = append(all, attribute{name, value})
		s = after
	}
}

const space = " \t\r\n"

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func isBlank(s string) bool { return strings.TrimLeft(s, space) == "" }

func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == ':' || c == '_' || c == '-' || c == '.'
}

// unescapeXML yields the text that s stands for, byte for byte. CR must come as a character reference: written as it
// is, some parsers turn it into LF and some do not, and so one key becomes two.
func unescapeXML(s string) (string, error) {
	simple := true
	for i := range len(s) {
		switch c := s[i]; {
		case c == '&' || c == '>' || c >= utf8.RuneSelf:
			simple = false
		case c < ' ' && c != '\t' && c != '\n':
			return "", errXML
		}
	}
	if simple {
		return s, nil
	}
	if strings.Contains(s, "]]>") || !utf8.ValidString(s) {
		return "", errXML
	}
	if strings.IndexByte(s, '&') >= 0 {
		var b strings.Builder
		b.Grow(len(s))
		for {
			before, rest, found := strings.Cut(s, "&")
			b.WriteString(before)
			if !found {
				break
			}
			name, after, found := strings.Cut(rest, ";")
			c, ok := reference(name)
			if !found || !ok {
				return "", errXML
			}
			b.WriteRune(c)
			s = after
		}
		s = b.String()
	}
	if strings.Contains(s, "\uFFFE") || strings.Contains(s, "\uFFFF") {
		return "", errXML
	}
	return s, nil
}

// reference is the character of an entity, without & and ;. The five names are all there are without a document type.
func reference(name string) (rune, bool) {
	switch name {
	case "amp":
		return '&', true
	case "lt":
		return '<', true
	case "gt":
		return '>', true
	case "quot":
		return '"', true
	case "apos":
		return '\'', true
	}
	digits, ok := strings.CutPrefix(name, "#")
	if !ok || len(digits) > len("x0010FFFF") {
		return 0, false
	}
	base := 10
	if strings.HasPrefix(digits, "x") {
		digits, base = digits[1:], 16
	}
	for i := range len(digits) {
		if hexDigit(digits[i]) == 0xFF { // ParseUint takes signs
			return 0, false
		}
	}
	c, err := strconv.ParseUint(digits, base, 32)
	if err != nil || c == 0 || c > utf8.MaxRune || !utf8.ValidRune(rune(c)) {
		return 0, false
	}
	return rune(c), true
}

// splitter cuts an element into its children without changing a byte of them.
type splitter struct {
	lexer
	name string   // of the element
	head string   // all of it before the first child
	open []string // names of the elements inside a child, reused
}

// maxDepth is far over what S3's answers nest.
const maxDepth = 16

// splitDocument begins a backend's answer. Backends may send white space first, to keep a connection alive.
func splitDocument(data string) (*splitter, error) {
	s := &splitter{lexer: lexer{data: data}}
	s.space()
	begin := s.pos
	if err := s.declaration(); err != nil {
		return nil, err
	}
	return s, s.begin(begin)
}

// splitElement begins an element by itself.
func splitElement(data string) (*splitter, error) {
	s := &splitter{lexer: lexer{data: data}}
	s.space()
	return s, s.begin(s.pos)
}

// begin reads the element's own tag. An empty element becomes one whose end comes next.
func (s *splitter) begin(from int) error {
	t, err := s.next()
	if err != nil {
		return err
	}
	switch t.kind {
	case startToken:
	case emptyToken:
		s.data = s.data[:s.pos-len("/>")] + "></" + t.name + ">" + s.data[s.pos:]
		s.pos -= len("/")
	default:
		return errXML
	}
	s.name = t.name
	s.head = s.data[from:s.pos]
	return nil
}

// child yields the next child: its name, and all of it together with the white space before it. At the end of the
// element it is io.EOF, and nothing but white space has followed.
func (s *splitter) child() (name, raw string, err error) {
	start := s.pos
	s.open = s.open[:0]
	for {
		t, err := s.next()
		if err != nil {
			return "", "", err
		}
		switch t.kind {
		case textToken:
			if t.text == "" || len(s.open) == 0 && !isBlank(t.text) {
				return "", "", errXML
			}
			continue
		case startToken:
			if len(s.open) == maxDepth {
				return "", "", errXML
			}
			s.open = append(s.open, t.name)
			continue
		case emptyToken:
			s.open = append(s.open, t.name)
		case endToken:
			if len(s.open) == 0 {
				if t.name != s.name || !isBlank(s.data[s.pos:]) {
					return "", "", errXML
				}
				return "", s.data[start:], io.EOF
			}
			if t.name != s.open[len(s.open)-1] {
				return "", "", errXML
			}
		}
		if len(s.open) == 1 {
			return s.open[0], s.data[start:s.pos], nil
		}
		s.open = s.open[:len(s.open)-1]
	}
}

// leafText is the text of an element that has nothing but text.
func leafText(element string) (string, error) {
	raw, err := leafRaw(element)
	if err != nil {
		return "", err
	}
	return unescapeXML(raw)
}

// leafRaw is the same, still escaped.
func leafRaw(element string) (string, error) {
	s := lexer{data: element}
	s.space()
	t, err := s.next()
	if err != nil || t.kind == emptyToken {
		return "", err
	}
	content, err := s.next()
	if err != nil || content.kind == endToken {
		return "", err
	}
	if end, err := s.next(); err != nil || content.kind != textToken || end.kind != endToken {
		return "", errXML
	}
	return content.text, nil
}

// localName is the name that a client's parser goes by: without a prefix, and some take any case.
func localName(name, want string) bool {
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		name = name[i+1:]
	}
	return strings.EqualFold(name, want)
}

// each calls f with every child, and ends with the first error.
func (s *splitter) each(f func(name, raw string) error) error {
	for {
		name, raw, err := s.child()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(name, raw); err != nil {
			return err
		}
	}
}
