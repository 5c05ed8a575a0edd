package s3wire_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// again sends op to a Sluice that stands behind, and returns what that one reads.
func again(op *s3wire.Operation, pathStyle bool) (*s3wire.Operation, error) {
	u := urlOf(op, &url.URL{Scheme: "https", Host: domain}, pathStyle)
	r := &http.Request{Method: op.Method, Host: u.Host, URL: u, RequestURI: u.RequestURI(), Header: http.Header{}, ContentLength: op.Payload.Wire}
	op.WriteHeader(r.Header)
	if op.Payload.Wire < 0 {
		r.TransferEncoding = []string{"chunked"}
	}
	if p := op.Payload; p.Kind == s3wire.PayloadHash {
		r.Header.Set("X-Amz-Content-Sha256", p.SHA256)
	} else if p.Kind != s3wire.PayloadUnsigned {
		r.Header.Set("X-Amz-Content-Sha256", map[s3wire.PayloadKind]string{
			s3wire.PayloadUnsignedTrailer: "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
			s3wire.PayloadSigned:          "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
			s3wire.PayloadSignedTrailer:   "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
		}[p.Kind])
	}
	if p := op.Payload; p.Length >= 0 && p.Length != p.Wire {
		r.Header.Set("X-Amz-Decoded-Content-Length", fmt.Sprint(p.Length))
	}
	if op.Payload.Trailer != "" {
		r.Header.Set("X-Amz-Trailer", op.Payload.Trailer)
	}
	return addressing.Parse(r)
}

// Whatever is read is written so that it is read as the same again, and nothing panics.
func FuzzParse(f *testing.F) {
	seeds := [][4]string{
		{"GET", domain, "/bucket/k", ""},
		{"GET", "my-bucket." + domain, "/a%2Fb+c//d/../ü;x?versionId=1&x-id=GetObject&response-content-type=text%2Fhtml", "Range: bytes=0-1"},
		{"PUT", domain, "/bucket/k?partNumber=1&uploadId=u", "X-Amz-Copy-Source: b/s%3F?versionId=1\nx-amz-copy-source-range: bytes=0-1"},
		{"PUT", domain, "/bucket/k?X-Amz-Acl=private&X-Amz-Signature=s&x-amz-meta-a=b", "X-Amz-Meta-B: c\nContent-Encoding: gzip, aws-chunked"},
		{"PUT", domain, "/bucket/k", "X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\nX-Amz-Trailer: x-amz-checksum-crc32\nX-Amz-Decoded-Content-Length: 5\nContent-Encoding: aws-chunked"},
		{"PUT", domain, "/bucket?object-lock", "Content-Md5: x"},
		{"PUT", domain, "/bucket/k?renameObject", "X-Amz-Rename-Source: bucket/a b"},
		{"GET", domain, "/bucket?list-type=2&prefix=a%20b&delimiter=/&max-keys=3&start-after=a%26b", ""},
		{"POST", domain, "/bucket/?delete", "X-Amz-Bypass-Governance-Retention: true\nX-Amz-Sdk-Checksum-Algorithm: CRC32"},
		{"DELETE", domain, "/bucket/k?versionId=null", "X-Amz-Bypass-Governance-Retention: false"},
		{"OPTIONS", domain, "/bucket/k?X-Amz-Signature=1", "Origin: https://a\nAccess-Control-Request-Method: PUT"},
		{"GET", domain, "/", ""},
	}
	for _, s := range seeds {
		f.Add(s[0], s[1], s[2], s[3])
	}
	f.Fuzz(func(t *testing.T, method, host, target, lines string) {
		header := http.Header{}
		for line := range strings.SplitSeq(lines, "\n") {
			if name, value, ok := strings.Cut(line, ": "); ok {
				header.Add(name, strings.TrimSpace(value))
			}
		}
		r := &http.Request{Method: method, Host: host, RequestURI: target, Header: header, ContentLength: int64(len(lines) % 3)}
		before := header.Clone()
		op, err := addressing.Parse(r)
		if !cmp.Equal(map[string][]string(before), map[string][]string(header)) {
			t.Fatalf("the request was changed: %v", header)
		}
		if err != nil {
			if _, ok := err.(*s3wire.Error); !ok {
				t.Fatalf("%T is no *Error", err)
			}
			return
		}
		if len(op.Accesses()) == 0 {
			t.Fatalf("%s needs nothing", op.Name)
		}
		for _, a := range op.Accesses() {
			if a.Action == "" || op.Name != "ListBuckets" && a.Bucket == "" {
				t.Fatalf("%s needs %+v", op.Name, a)
			}
		}
		for _, s := range []string{op.Key, op.Prefix, op.VersionID, op.Bucket} {
			if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
				t.Fatalf("%q passed", s)
			}
		}
		for _, style := range []bool{true, false} {
			back, err := again(op, style)
			if err != nil {
				t.Fatalf("%s: what is sent is refused: %v", rewritten(op), err)
			}
			if !same(op, back) {
				t.Fatalf("%s of %+v is read as %+v", rewritten(op), op, back)
			}
		}
		// And net/url reads the same path and query as we do.
		u := urlOf(op, backend, true)
		read, err := url.ParseRequestURI(u.RequestURI())
		if err != nil || read.Path != u.Path || read.RawQuery != u.RawQuery {
			t.Fatalf("net/url reads %s as %+v, %v", u.RequestURI(), read, err)
		}
		for name, value := range op.PolicyQuery() {
			if op.Name != "PreflightRequest" && read.Query().Get(name) != value {
				t.Fatalf("net/url reads %s in %s as %q, and policy %q", name, read.RawQuery, read.Query().Get(name), value)
			}
		}
	})
}

func same(a, b *s3wire.Operation) bool {
	ha, hb := http.Header{}, http.Header{}
	a.WriteHeader(ha)
	b.WriteHeader(hb)
	if a.Name == "DeleteObjects" {
		// Its body is not the client's any more, nor are the digests: those of the first are not compared.
		for name := range maps.Clone(ha) {
			if strings.Contains(name, "hecksum") || name == "Content-Md5" {
				delete(ha, name)
			}
		}
		pa := a.PolicyHeaders()
		maps.DeleteFunc(pa, func(name, _ string) bool { return strings.Contains(name, "checksum") || name == "content-md5" })
		return a.Name == b.Name && a.Bucket == b.Bucket && cmp.Equal(ha, hb) && cmp.Equal(pa, b.PolicyHeaders()) && slices.Equal(a.Accesses(), b.Accesses())
	}
	return a.Name == b.Name && a.Method == b.Method && a.Bucket == b.Bucket && a.Key == b.Key && a.VersionID == b.VersionID && a.Prefix == b.Prefix &&
		a.Delimiter == b.Delimiter && reflect.DeepEqual(a.Source, b.Source) && a.Payload == b.Payload && cmp.Equal(ha, hb) &&
		cmp.Equal(a.PolicyQuery(), b.PolicyQuery()) && cmp.Equal(a.PolicyHeaders(), b.PolicyHeaders()) && slices.Equal(a.Accesses(), b.Accesses()) &&
		urlOf(a, backend, true).String() == urlOf(b, backend, true).String()
}

// A query that passes is read as net/url reads it, parameter for parameter; one that net/url cannot read never
// passes.
func FuzzT18Query(f *testing.F) {
	for _, s := range []string{"list-type=2&prefix=a", "list-type=2&prefix=a;b", "prefix=%2", "prefix=a+b%2B&delimiter=%2F", "&&prefix=a&=&", "marker=%F0%9F%98%80", "prefix=a&prefix=b", "prefix=%00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		if strings.Contains(query, "#") {
			return
		}
		op, err := read("GET", domain, "/bucket?"+query, nil)
		if err != nil {
			return
		}
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatalf("net/url refuses %q: %v", query, err)
		}
		for name, all := range values {
			if name == "x-id" || strings.HasPrefix(strings.ToLower(name), "x-amz-") {
				continue
			}
			if len(all) != 1 {
				t.Fatalf("%q has %s %d times", query, name, len(all))
			}
			if got := op.Query(name); got != all[0] && op.PolicyQuery()[name] != all[0] {
				t.Fatalf("%q: %s is %q to us and %q to net/url", query, name, got, all[0])
			}
		}
		for name := range op.PolicyQuery() {
			if !values.Has(name) {
				t.Fatalf("%q: we read a %s", query, name)
			}
		}
	})
}

// The key that is authorised is the key that is sent, byte for byte, however a client escaped it.
func FuzzT02Key(f *testing.F) {
	for _, s := range []string{"a/b", "../x", "a//b/", "ü %2F+;?#", "/", ".", "\x01", "k\xff"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, key string, pathStyle bool) {
		for _, escaped := range []string{url.PathEscape(key), (&url.URL{Path: "/" + key}).EscapedPath()[1:], awsEscape(key)} {
			op, err := read("PUT", domain, "/bucket/"+escaped, nil)
			ok := key != "" && utf8.ValidString(key) && !strings.ContainsRune(key, 0) && len(key) <= 1024
			if key == "" {
				return // a bucket
			}
			if (err == nil) != ok {
				t.Fatalf("%q escaped %q: %v", key, escaped, err)
			}
			if !ok {
				return
			}
			if op.Key != key || op.Accesses()[0].Key != key {
				t.Fatalf("%q escaped %q is %q", key, escaped, op.Key)
			}
			u := urlOf(op, backend, pathStyle)
			if !strings.HasSuffix(u.RequestURI(), "/"+awsEscape(key)) {
				t.Fatalf("%q is sent as %s", key, u.RequestURI())
			}
			source, err := read("PUT", domain, "/t/t", http.Header{"X-Amz-Copy-Source": {"bucket/" + awsEscape(key)}})
			if err != nil || source.Source.Key != key || source.Source.String() != "bucket/"+awsEscape(key) {
				t.Fatalf("as a copy source %q is %+v, %v", key, source, err)
			}
		}
	})
}
