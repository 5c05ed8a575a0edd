package s3wire

import (
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strings"
)

// Delete is the body of a DeleteObjects request, understood.
type Delete struct {
	Quiet   bool
	Objects []DeleteObject

	checksum string // the x-amz-checksum- header that the client chose, "" = none
}

// DeleteObject is one entry; each needs its own access.
type DeleteObject struct {
	Key, VersionID               string
	ETag, LastModifiedTime, Size string // conditions, "" = none
}

// S3's own limits.
const (
	maxDeleteBody    = 2 << 20
	maxDeleteObjects = 1000
)

const s3Namespace = "http://s3.amazonaws.com/doc/2006-03-01/"

// ParseDelete reads at most 2 MiB and 1,000 entries, strictly. header carries the digests (Content-MD5,
// x-amz-checksum-*) that the body is checked against. body is already unframed.
//
// S3 wants a digest with every DeleteObjects, and so does ParseDelete: Content-MD5, an x-amz-checksum-* header, or a
// trailing checksum (x-amz-trailer), which Payload.Unframed has checked. A payload hash alone does not do.
//
// Keys are kept byte for byte, control characters that came as character references included. NUL, invalid UTF-8 and
// a CR written as it is are refused; whether the other odd keys are taken is for the backend's key mode.
func ParseDelete(body io.Reader, header http.Header) (*Delete, error) {
	b, err := io.ReadAll(io.LimitReader(body, maxDeleteBody+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxDeleteBody {
		return nil, errorf("MaxMessageLengthExceeded", "the body of DeleteObjects must not be over 2 MiB; send fewer keys at a time")
	}
	if len(b) == 0 {
		return nil, errorf("MissingRequestBodyError", "Request Body is empty")
	}
	d := new(Delete)
	if d.checksum, err = checkDigests(b, header); err != nil {
		return nil, err
	}
	p := deleteParser{lexer{data: string(b)}}
	if err := p.parse(d); err != nil {
		return nil, err
	}
	return d, nil
}

// checkDigests holds a whole body to the digests of its headers, and names the checksum among them.
func checkDigests(body []byte, header http.Header) (checksum string, err error) {
	found := false
	if values, ok := header["Content-Md5"]; ok {
		if len(values) != 1 || !isChecksum(values[0], md5.Size) {
			return "", errorf("InvalidDigest", "The Content-MD5 you specified is not valid.")
		}
		if sum := md5.Sum(body); base64.StdEncoding.EncodeToString(sum[:]) != values[0] {
			return "", errorf("BadDigest", "The Content-MD5 you specified did not match what we received.")
		}
		found = true
	}
	for _, c := range checksums {
		name := checksumPrefix + c.name
		values, ok := header[textproto.CanonicalMIMEHeaderKey(name)]
		if !ok {
			continue
		}
		if checksum != "" || len(values) != 1 {
			return "", errorf("InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		if !isChecksum(values[0], c.size) {
			return "", errorf("InvalidRequest", "Value for %s header is invalid.", name)
		}
		if c.new == nil {
			return "", errorf("InvalidRequest", "%s cannot be checked on DeleteObjects; use crc32, crc32c, crc64nvme, sha1, sha256, sha512 or md5", name)
		}
		h := c.new()
		h.Write(body)
		if base64.StdEncoding.EncodeToString(h.Sum(nil)) != values[0] {
			return "", errorf("BadDigest", "The %s you specified did not match the calculated checksum.", strings.ToUpper(c.name))
		}
		checksum = name
	}
	if trailer := header.Get("X-Amz-Trailer"); checksum == "" && newChecksum(strings.ToLower(trailer)) != nil {
		checksum = strings.ToLower(trailer)
	}
	if !found && checksum == "" {
		return "", errorf("InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
	}
	return checksum, nil
}

// deleteParser reads <Delete> to the letter of S3's schema, but for the order of elements, which clients do not keep.
type deleteParser struct{ lexer }

func malformed(format string, args ...any) error {
	return errorf("MalformedXML", "the body must be a Delete document: "+format, args...)
}

var errNotXML = malformed("it is not well-formed, or it has comments, CDATA, processing instructions or a document type")

func (p *deleteParser) parse(d *Delete) error {
	if err := p.declaration(); err != nil {
		return errNotXML
	}
	p.space()
	root, err := p.next()
	if err != nil {
		return errNotXML
	}
	if root.kind != startToken || root.name != "Delete" || !isNamespaceOnly(root.attrs) {
		return malformed("its root must be <Delete xmlns=%q>", s3Namespace)
	}
	quiet := false
	for {
		t, err := p.child("Delete")
		if err != nil {
			return err
		}
		switch {
		case t.kind == endToken:
			if len(d.Objects) == 0 {
				return malformed("it has no Object")
			}
			p.space()
			if p.pos != len(p.data) {
				return malformed("something follows </Delete>")
			}
			return nil
		case t.name == "Object" && t.kind == startToken:
			if len(d.Objects) == maxDeleteObjects {
				return malformed("it has more than 1,000 objects; send fewer at a time")
			}
			if d.Objects == nil {
				d.Objects = make([]DeleteObject, 0, min(maxDeleteObjects, strings.Count(p.data[p.pos:], "</Object")))
			}
			o, err := p.object()
			if err != nil {
				return err
			}
			d.Objects = append(d.Objects, o)
		case t.name == "Quiet" && !quiet:
			quiet = true
			text, err := p.text(t)
			if err != nil {
				return err
			}
			switch strings.ToLower(strings.Trim(text, " \t\n")) {
			case "true", "1":
				d.Quiet = true
			case "false", "0":
			default:
				return malformed("Quiet must be true or false")
			}
		default:
			return malformed("%q is unknown, repeated or empty in Delete", t.name)
		}
	}
}

func (p *deleteParser) object() (o DeleteObject, err error) {
	var seen [5]bool
	for {
		t, err := p.child("Object")
		if err != nil {
			return o, err
		}
		if t.kind == endToken {
			if o.Key == "" {
				return o, malformed("an Object has no Key")
			}
			return o, nil
		}
		var field *string
		i := 0
		switch t.name {
		case "Key":
			i, field = 0, &o.Key
		case "VersionId":
			i, field = 1, &o.VersionID
		case "ETag":
			i, field = 2, &o.ETag
		case "LastModifiedTime":
			i, field = 3, &o.LastModifiedTime
		case "Size":
			i, field = 4, &o.Size
		}
		if field == nil || seen[i] {
			return o, malformed("%q is unknown or repeated in Object", t.name)
		}
		seen[i] = true
		if *field, err = p.text(t); err != nil {
			return o, err
		}
		if field == &o.Size && strings.Trim(o.Size, "0123456789") != "" {
			return o, malformed("Size must be a number")
		}
	}
}

// child yields the next start, empty or end tag inside parent.
func (p *deleteParser) child(parent string) (token, error) {
	for {
		t, err := p.next()
		switch {
		case err != nil:
			return t, errNotXML
		case t.kind == textToken && t.text == "":
			return t, malformed("%s is not closed", parent)
		case t.kind == textToken:
			if !isBlank(t.text) {
				return t, malformed("there is text between the elements of %s", parent)
			}
		case t.kind == endToken && t.name != parent:
			return t, errNotXML
		case !isBlank(t.attrs):
			return t, malformed("%q has attributes", t.name)
		default:
			return t, nil
		}
	}
}

// text is what is in the element that t begins: text only.
func (p *deleteParser) text(t token) (string, error) {
	if t.kind == emptyToken {
		return "", nil
	}
	content, err := p.next()
	if err != nil {
		return "", errNotXML
	}
	end := content
	if content.kind == textToken {
		if end, err = p.next(); err != nil {
			return "", errNotXML
		}
	} else {
		content.text = ""
	}
	if end.kind != endToken || end.name != t.name {
		return "", malformed("%s must have text and nothing else", t.name)
	}
	s, err := unescapeXML(content.text)
	if err != nil {
		return "", malformed("the text of %s has characters, or references to characters, that XML does not allow; send CR as &#13;", t.name)
	}
	return s, nil
}

// isNamespaceOnly allows an xmlns of any value, as S3 does: the names are its own with and without.
func isNamespaceOnly(attrs string) bool {
	all, ok := attributes(attrs)
	return ok && (len(all) == 0 || len(all) == 1 && all[0].name == "xmlns")
}

// Accesses is what each entry needs, in order: s3:DeleteObject or s3:DeleteObjectVersion.
func (d *Delete) Accesses(bucket string) []Access {
	all := make([]Access, len(d.Objects))
	for i, o := range d.Objects {
		all[i] = Access{Action: "s3:DeleteObject", Bucket: bucket, Key: o.Key, VersionID: o.VersionID}
		if o.VersionID != "" {
			all[i].Action = "s3:DeleteObjectVersion"
		}
	}
	return all
}

// Encode writes the entries for which keep is true, with the digest headers that S3 wants for them: Content-MD5, which
// every backend knows, and the client's checksum computed again, so that none of the client's own is left beside it.
func (d *Delete) Encode(keep func(i int) bool) (body []byte, header http.Header) {
	size := 256
	for _, o := range d.Objects {
		size += len("<Object><Key></Key></Object>") + len(o.Key) + 2*len(o.VersionID)
	}
	b := make([]byte, 0, size+size/8)
	b = append(b, xmlHeader+`<Delete xmlns="`+s3Namespace+`">`...)
	for i, o := range d.Objects {
		if !keep(i) {
			continue
		}
		b = append(b, "<Object>"...)
		b = appendExact(b, "Key", o.Key)
		b = appendOptional(b, "VersionId", o.VersionID)
		b = appendOptional(b, "ETag", o.ETag)
		b = appendOptional(b, "LastModifiedTime", o.LastModifiedTime)
		b = appendOptional(b, "Size", o.Size)
		b = append(b, "</Object>"...)
	}
	if d.Quiet {
		b = append(b, "<Quiet>true</Quiet>"...)
	}
	b = append(b, "</Delete>"...)

	sum := md5.Sum(b)
	header = http.Header{
		"Content-Md5":  {base64.StdEncoding.EncodeToString(sum[:])},
		"Content-Type": {"application/xml"},
	}
	if h := newChecksum(d.checksum); h != nil {
		h.Write(b)
		header.Set(d.checksum, base64.StdEncoding.EncodeToString(h.Sum(nil)))
		header.Set("X-Amz-Sdk-Checksum-Algorithm", strings.ToUpper(strings.TrimPrefix(d.checksum, checksumPrefix)))
	}
	return b, header
}

func appendOptional(b []byte, name, text string) []byte {
	if text == "" {
		return b
	}
	return appendExact(b, name, text)
}

// maxDeleteResult is over what 1,000 entries can come to, keys of 1 KiB with every character a reference included.
const maxDeleteResult = 16 << 20

// Result is a DeleteResult: what the backend answered, with the refused entries added as AccessDenied.
// backend may be nil where nothing was left to send.
//
// refused has a message for each index into Objects that policy did not allow. The backend's entries stay as they
// are and come first. An answer that is no DeleteResult is an error, and none of it is passed on.
func (d *Delete) Result(backend io.Reader, refused map[int]string) ([]byte, error) {
	b := make([]byte, 0, 1024+256*len(refused))
	if backend == nil {
		b = append(b, xmlHeader+`<DeleteResult xmlns="`+s3Namespace+`">`...)
	} else {
		answer, err := io.ReadAll(io.LimitReader(backend, maxDeleteResult+1))
		if err != nil {
			return nil, fmt.Errorf("read DeleteResult: %w", err)
		}
		if len(answer) > maxDeleteResult {
			return nil, errors.New("the backend's DeleteResult is over 16 MiB")
		}
		if b, err = d.appendAnswer(b, string(answer)); err != nil {
			return nil, err
		}
	}
	for i, o := range d.Objects {
		message, ok := refused[i]
		if !ok {
			continue
		}
		b = append(b, "<Error>"...)
		b = appendExact(b, "Key", o.Key)
		b = appendOptional(b, "VersionId", o.VersionID)
		b = appendElement(b, "Code", "AccessDenied")
		b = appendElement(b, "Message", message)
		b = append(b, "</Error>"...)
	}
	return append(b, "</DeleteResult>"...), nil
}

// appendAnswer copies the backend's DeleteResult but for its end. In quiet mode only errors are shown, whatever the
// backend shows.
func (d *Delete) appendAnswer(b []byte, answer string) ([]byte, error) {
	doc, err := splitDocument(answer)
	if err != nil || doc.name != "DeleteResult" {
		return nil, errors.New("the backend's answer to DeleteObjects is not a DeleteResult")
	}
	b = append(b, doc.head...)
	for {
		name, raw, err := doc.child()
		switch {
		case err == io.EOF:
			return b, nil
		case err != nil:
			return nil, fmt.Errorf("the backend's DeleteResult: %w", err)
		case d.Quiet && localName(name, "Deleted"):
		default:
			b = append(b, raw...)
		}
	}
}
