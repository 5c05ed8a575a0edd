package s3wire

import (
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Listed is an entry of a listing: an object, a version, a delete marker or an upload by its key, or a common prefix.
type Listed struct {
	Key      string // decoded: as it would stand in a GetObject
	IsPrefix bool
}

// listBatch is how many entries are asked about at a time: S3's page.
const listBatch = 1000

// listingRoots is the answers that FilterListing knows, by operation.
var listingRoots = map[string]string{
	"ListObjects":          "ListBucketResult",
	"ListObjectsV2":        "ListBucketResult",
	"ListObjectVersions":   "ListVersionsResult",
	"ListMultipartUploads": "ListMultipartUploadsResult",
}

// Listing tells whether the operation's answer can be filtered.
func (op *Operation) Listing() bool { return listingRoots[op.Name] != "" }

// FilterListing copies a backend's 200 answer to a listing, leaving out the entries that are not visible. It asks
// visible about up to 1,000 entries at a time, and keeps the slice no longer than visible runs.
//
// All else stays byte for byte as the backend wrote it, unknown elements and what continues the listing included, so
// that a page may be short, or empty, and the next one still follows. Two things are adjusted: KeyCount, and for
// ListObjects a NextMarker where there is none and the client would have gone on from the last key it sees. Note that
// a marker names the key it stands on, visible or not.
//
// One page is held, at most 16 MiB of it: some backends tell only at the end of a page how its keys are encoded.
// Nothing is written before all of it was understood and judged; an error from anything but dst is thus still
// time for another answer. An entry whose key cannot be read is not visible.
func (op *Operation) FilterListing(dst io.Writer, src io.Reader, visible func([]Listed) ([]bool, error)) error {
	page, err := readListing(src)
	if err != nil {
		return fmt.Errorf("read %s: %w", op.Name, err)
	}
	doc, err := splitDocument(page)
	if err != nil {
		return fmt.Errorf("the backend's answer to %s: %w", op.Name, err)
	}
	if want := listingRoots[op.Name]; want == "" || doc.name != want {
		return fmt.Errorf("the backend's answer to %s is a %q", op.Name, doc.name)
	}
	l := listPage{page: doc.data, start: doc.pos - len(doc.head)}
	if err := l.read(doc); err != nil {
		return fmt.Errorf("the backend's %s: %w", doc.name, err)
	}
	if err := l.judge(visible); err != nil {
		return err
	}
	if op.Name == "ListObjects" {
		l.keepGoing()
	}
	return l.write(dst)
}

// listPage is a page, taken apart.
type listPage struct {
	page      string
	start     int
	end       int        // of the last child
	parts     []listPart // what may be left out or changed, in the order of the page
	encoded   bool       // keys are in URL encoding
	truncated bool
}

type listPart struct {
	kind     listPartKind
	from, to int    // in page
	raw      string // the key as it is written; the text of a NextMarker
	key      string // "" = cannot be read
	instead  string // what is written in its place, "" = the part itself unless it is hidden
	hidden   bool
}

type listPartKind uint8

const (
	keyEntry listPartKind = iota
	prefixEntry
	keyCount
	nextMarker
	otherPart
)

func (l *listPage) read(doc *splitter) error {
	var entry splitter // one for all
	l.parts = make([]listPart, 0, strings.Count(l.page, "</Key>")+strings.Count(l.page, "</Prefix>")+4)
	for {
		p := listPart{from: doc.pos, kind: otherPart}
		name, raw, err := doc.child()
		if err == io.EOF {
			l.end = p.from
			break
		}
		if err != nil {
			return err
		}
		p.to = doc.pos
		switch {
		case localName(name, "Contents"), localName(name, "Version"), localName(name, "DeleteMarker"), localName(name, "Upload"):
			p.kind, p.raw = keyEntry, entry.only(raw, "Key")
		case localName(name, "CommonPrefixes"):
			p.kind, p.raw = prefixEntry, entry.only(raw, "Prefix")
		case localName(name, "KeyCount"):
			p.kind = keyCount
			p.from = p.to - len(strings.TrimLeft(raw, space))
		case localName(name, "NextMarker"):
			p.kind = nextMarker
			p.raw, _ = leafRaw(raw)
		case localName(name, "IsTruncated"):
			text, _ := leafText(raw)
			l.truncated = strings.EqualFold(text, "true")
		case localName(name, "EncodingType"):
			text, _ := leafText(raw)
			l.encoded = strings.EqualFold(text, "url")
		}
		if p.kind != otherPart {
			l.parts = append(l.parts, p)
		}
	}
	for i := range l.parts {
		if p := &l.parts[i]; p.entry() {
			p.key = l.decode(p.raw)
			p.hidden = true
		}
	}
	return nil
}

func (p *listPart) entry() bool { return p.kind == keyEntry || p.kind == prefixEntry }

func (l *listPage) decode(raw string) string {
	key, err := unescapeXML(raw)
	if err == nil && l.encoded {
		key, err = url.QueryUnescape(key)
	}
	if err != nil || !utf8.ValidString(key) {
		return ""
	}
	return key
}

func (l *listPage) judge(visible func([]Listed) ([]bool, error)) error {
	batch := make([]Listed, 0, min(len(l.parts), listBatch))
	first := 0
	for i := range l.parts {
		if p := &l.parts[i]; p.entry() && p.key != "" {
			batch = append(batch, Listed{p.key, p.kind == prefixEntry})
		}
		if len(batch) < listBatch && i < len(l.parts)-1 || len(batch) == 0 {
			continue
		}
		allowed, err := visible(batch)
		if err != nil {
			return err
		}
		if len(allowed) != len(batch) {
			return fmt.Errorf("filter a listing: %d answers for %d entries", len(allowed), len(batch))
		}
		for ; first <= i; first++ {
			if p := &l.parts[first]; p.entry() && p.key != "" {
				p.hidden = !allowed[0]
				allowed = allowed[1:]
			}
		}
		batch = batch[:0]
	}

	count, hidden := 0, 0
	for _, p := range l.parts {
		if p.entry() && !p.hidden {
			count++
		} else if p.entry() {
			hidden++
		}
	}
	for i := range l.parts {
		if p := &l.parts[i]; p.kind == keyCount && hidden > 0 {
			p.instead = "<KeyCount>" + strconv.Itoa(count) + "</KeyCount>"
		}
	}
	return nil
}

// keepGoing sets NextMarker where ListObjects left it out, as S3 does without a delimiter: the client would go on from
// the last key that it sees, and so over and over the same page, or nowhere from an empty one.
func (l *listPage) keepGoing() {
	var last, marker *listPart
	for i := range l.parts {
		switch p := &l.parts[i]; {
		case p.kind == nextMarker && p.raw != "":
			return
		case p.kind == nextMarker:
			marker = p
		case p.entry() && (last == nil || p.key >= last.key):
			last = p
		}
	}
	if !l.truncated || last == nil || !last.hidden || last.key == "" {
		return
	}
	if marker == nil {
		l.parts = append(l.parts, listPart{kind: nextMarker, from: l.end, to: l.end})
		marker = &l.parts[len(l.parts)-1]
	}
	marker.instead = "<NextMarker>" + last.raw + "</NextMarker>"
}

func (l *listPage) write(dst io.Writer) error {
	from := l.start
	for _, p := range l.parts {
		if !p.hidden && p.instead == "" {
			continue
		}
		if p.from > from {
			if _, err := io.WriteString(dst, l.page[from:p.from]); err != nil {
				return err
			}
		}
		if p.instead != "" {
			if _, err := io.WriteString(dst, p.instead); err != nil {
				return err
			}
		}
		from = p.to
	}
	_, err := io.WriteString(dst, l.page[from:])
	return err
}

// only yields the text, still escaped, of an element's one child of that name. "" where there is none or more.
func (s *splitter) only(element, want string) (text string) {
	s.data, s.pos = element, 0
	s.space()
	if s.begin(s.pos) != nil {
		return ""
	}
	found := false
	for {
		name, raw, err := s.child()
		if err == io.EOF {
			return text
		}
		if err != nil {
			return ""
		}
		if localName(name, want) {
			if found {
				return ""
			}
			found = true
			if text, err = leafRaw(raw); err != nil {
				return ""
			}
		}
	}
}
