package s3wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// These are the holes of THREATS that are closed where a request is read and written again. Backends differ, so the
// assertions are on the bytes that would be sent.

// read parses a request made by hand.
func read(method, host, target string, header http.Header) (*s3wire.Operation, error) {
	if header == nil {
		header = http.Header{}
	}
	u, _ := url.ParseRequestURI(target)
	return addressing.Parse(&http.Request{Method: method, Host: host, RequestURI: target, URL: u, Header: header})
}

var backend = &url.URL{Scheme: "https", Host: "backend.internal"}

// rewritten is what a backend would get of op, path style: the request line and the headers.
func rewritten(op *s3wire.Operation) string {
	u := urlOf(op, backend, true)
	header := http.Header{}
	op.WriteHeader(header)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s\n", op.Method, u.RequestURI())
	_ = header.Write(&b)
	return strings.ReplaceAll(b.String(), "\r\n", "\n")
}

// wantRefused holds that err is an *Error of the client's making.
func wantRefused(t *testing.T, what string, op *s3wire.Operation, err error, codes ...string) {
	t.Helper()
	var e *s3wire.Error
	switch {
	case err == nil:
		t.Errorf("%s passes as %s of %q %q: %s", what, op.Name, op.Bucket, op.Key, rewritten(op))
	case !errors.As(err, &e):
		t.Errorf("%s: %T %v", what, err, err)
	case e.HTTPStatus() < 400 || e.HTTPStatus() == 500 || e.HTTPStatus() == 503 || e.Message == "":
		t.Errorf("%s: answered %d %v", what, e.HTTPStatus(), e)
	case len(codes) > 0 && !slices.Contains(codes, e.Code):
		t.Errorf("%s: %v, want %v", what, e, codes)
	}
}

func TestT01KnownConfusions(t *testing.T) {
	for _, line := range []string{
		"GET /b/k?list-type=2", "POST /b?delete&uploadId=1", "PUT /b?policy&partNumber=1&uploadId=z", // each obeyed by a real backend
		"GET /b/k?versions", "GET /b/k?uploads", "GET /b/k?policy", "PUT /b/k?policy", "DELETE /b/k?policy", "PUT /b?tagging&acl", "PUT /b/k?tagging&acl",
		"GET /b/?uploadId=1", "PUT /b?uploadId=1&partNumber=1", "POST /b/k?uploads&uploadId=1", "POST /b/k?delete", "GET /?acl", "PUT /?acl", "DELETE /",
		"GET /b/k?acl&versions", "PUT /b/k?partNumber=1", "PUT /b/k?uploadId=1", "DELETE /b/k?uploadId=1&versionId=2", "DELETE /b/k?tagging&uploadId=2",
		"HEAD /b?acl", "HEAD /b/k?acl", "HEAD /", "GET /b/k?ACL", "GET /b/k?Acl", "PUT /b?Policy", "GET /b/k?acl=1", "GET /b?uploads=x", "GET /b?list-type=1",
		"GET /b?list-type=", "GET /b?list-type=2&list-type=2", "GET /b?acl&acl", "GET /b/k?versionId=", "DELETE /b/k?versionId=", "GET /b/k?partNumber=",
		"PUT /b/k?partNumber=%2B1&uploadId=1", "PUT /b/k?partNumber=1&uploadId=", "POST /b/k?select", "POST /b/k?select-type=2", "POST /b/k?select&select-type=1",
		"PUT /b/k?append", "PUT /b/k?legal-hold&retention", "GET /b/k?torrent&acl", "PATCH /b/k", "TRACE /b/k", "CONNECT /b/k", "get /b/k", "LIST /b", "COPY /b/k",
		"PUT /b/k?x-amz-copy-source", "PUT /b/k?renameObject", "GET /b?events", "GET /b?location&website", "POST /b/k", "POST /b/k?restore&select",
	} {
		method, target, _ := strings.Cut(line, " ")
		op, err := read(method, domain, target, nil)
		wantRefused(t, line, op, err)
	}
}

// All pairs and triples of subresources, by every method and at every level. An oracle that is not the table: the
// SDK's own requests tell what each operation must and may have.
func TestT01SetsOfSubresources(t *testing.T) {
	bare, _, params := observed(t)
	values := map[string]string{}
	for _, have := range params {
		for name, value := range have {
			if name != "x-id" {
				values[name] = value
			}
		}
	}
	must := map[string][]string{}
	for name, w := range bare {
		for param := range w.request().URL.Query() {
			if param != "x-id" {
				must[name] = append(must[name], param)
			}
		}
	}
	all := make([]string, 0, len(values))
	for name := range values {
		all = append(all, name)
	}
	sort.Strings(all)
	// What only ever qualifies another parameter makes no triple of interest, and there are many.
	selecting := slices.DeleteFunc(slices.Clone(all), func(name string) bool {
		return strings.HasPrefix(name, "response-") || strings.HasPrefix(name, "max-") || strings.HasSuffix(name, "marker")
	})
	if len(selecting) < 50 {
		t.Fatalf("found only %d subresources", len(selecting))
	}

	tried, passed := 0, 0
	try := func(names ...string) {
		query := ""
		for i, name := range names {
			if i > 0 {
				query += "&"
			}
			query += name + "=" + url.QueryEscape(values[name])
		}
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE"} {
			for _, path := range []string{"/", "/b", "/b/", "/b/k"} {
				for _, source := range []string{"", "X-Amz-Copy-Source", "X-Amz-Rename-Source"} {
					if source != "" && (method != "PUT" || len(names) > 2) {
						continue
					}
					header := http.Header{}
					if source != "" {
						header.Set(source, "b/s")
					}
					tried++
					op, err := read(method, domain, path+"?"+query, header)
					if err != nil {
						continue
					}
					passed++
					what := fmt.Sprintf("%s %s?%s %v taken for %s", method, path, query, header, op.Name)
					w := bare[op.Name]
					if w == nil || w.method != method {
						t.Fatalf("%s, which is no %s", what, method)
					}
					for _, name := range names {
						if _, ok := params[op.Name][name]; !ok {
							t.Errorf("%s, which has no %s", what, name)
						}
					}
					for _, name := range must[op.Name] {
						if !slices.Contains(names, name) {
							t.Errorf("%s, which needs %s", what, name)
						}
					}
					if got := urlOf(op, backend, true).Query(); len(got) != len(names) {
						t.Errorf("%s and sent on with %v", what, got)
					}
					wantBucket, wantKey, _ := strings.Cut(path[1:], "/")
					if op.Bucket != wantBucket || op.Key != wantKey {
						t.Errorf("%s of %q %q", what, op.Bucket, op.Key)
					}
				}
			}
		}
	}
	for i, a := range all {
		try(a)
		for j, b := range all[i+1:] {
			try(a, b)
			if !slices.Contains(selecting, a) || !slices.Contains(selecting, b) {
				continue
			}
			for _, c := range all[i+1+j+1:] {
				if slices.Contains(selecting, c) {
					try(a, b, c)
				}
			}
		}
	}
	if passed < 200 {
		t.Errorf("of %d requests only %d passed: the test does not test", tried, passed)
	}
	t.Logf("%d requests, %d passed", tried, passed)
}

// The header that S3 tells a copy by counts as a subresource.
func TestT01SourceHeaders(t *testing.T) {
	source := http.Header{"X-Amz-Copy-Source": {"b/s"}}
	for target, name := range map[string]string{"/b/k": "CopyObject", "/b/k?partNumber=1&uploadId=u": "UploadPartCopy"} {
		if op, err := read("PUT", domain, target, source); err != nil || op.Name != name {
			t.Errorf("%s with a copy source: %+v, %v", target, op, err)
		}
	}
	for _, line := range []string{"GET /b/k", "HEAD /b/k", "DELETE /b/k", "POST /b/k?uploads", "PUT /b", "PUT /b/k?acl", "PUT /b/k?tagging", "PUT /b/k?renameObject", "GET /", "POST /b?delete"} {
		method, target, _ := strings.Cut(line, " ")
		op, err := read(method, domain, target, source)
		wantRefused(t, line+" with a copy source", op, err)
		op, err = read(method, domain, target, http.Header{"X-Amz-Copy-Source": {""}})
		wantRefused(t, line+" with an empty copy source", op, err)
	}
	op, err := read("PUT", domain, "/b/k", http.Header{"X-Amz-Copy-Source": {""}})
	wantRefused(t, "PUT with an empty copy source", op, err)
	op, err = read("PUT", domain, "/b/k", http.Header{"X-Amz-Rename-Source": {"b/s"}})
	wantRefused(t, "PUT with a rename source alone", op, err)
	op, err = read("PUT", domain, "/b/k?renameObject", http.Header{"X-Amz-Rename-Source": {"b/s"}, "X-Amz-Copy-Source": {"b/s"}})
	wantRefused(t, "rename and copy at once", op, err)
	op, err = read("PUT", domain, "/b/k", http.Header{"x-amz-copy-source": {"b/s"}}) // as no server of ours leaves it
	wantRefused(t, "a copy source in lower case", op, err)
	for _, h := range []string{"X-Amz-Request-Route", "X-Amz-Request-Token"} {
		for _, target := range []string{"/WriteGetObjectResponse", "/b/WriteGetObjectResponse", "/b?delete"} {
			op, err = read("POST", domain, target, http.Header{h: {"x"}})
			wantRefused(t, h, op, err, "NotImplemented")
		}
		op, err = read("GET", domain, "/b/k", http.Header{h: {"x"}})
		wantRefused(t, h, op, err)
	}
}

// Spellings of paths. What follows the arrow is the key, and the path sent on is always the strict escape of it.
func TestT02Paths(t *testing.T) {
	for _, c := range []struct {
		target, key string
		strict      bool // whether backends that are not AWS are given it
	}{
		{"/b/k", "k", true},
		{"/b/a/b", "a/b", true},
		{"/b/a%2Fb", "a/b", true}, // S3 keys are decoded: one and the same key
		{"/b/a%2fb", "a/b", true},
		{"/b/a/", "a/", true},
		{"/b/a%2F", "a/", true},
		{"/%62/k", "k", true}, // the bucket b
		{"/b/a%252Fb", "a%2Fb", true},
		{"/b/a%25", "a%", true},
		{"/b/a%25zz", "a%zz", true},
		{"/b/%61", "a", true},
		{"/b/a+b", "a+b", true},
		{"/b/a%2Bb", "a+b", true},
		{"/b/a%20b", "a b", true},
		{"/b/%20", " ", true},
		{"/b/ü", "ü", true},
		{"/b/%C3%BC", "ü", true},
		{"/b/u%CC%88", "u\u0308", true}, // not composed: another key
		{"/b/%F0%9F%98%80", "😀", true},
		{"/b/a;b", "a;b", true},
		{"/b/a%3Bb", "a;b", true},
		{"/b/a;jsessionid=1/b", "a;jsessionid=1/b", true},
		{"/b/a%3Fb", "a?b", true},
		{"/b/a%3Facl", "a?acl", true},
		{"/b/a%23b", "a#b", true},
		{"/b/a%26b", "a&b", true},
		{"/b/a=b", "a=b", true},
		{"/b/a:b@c", "a:b@c", true},
		{"/b/$&,;=:@!'()*", "$&,;=:@!'()*", true}, // bare in net/url's escape, not in S3's
		{"/b/a%5Cb", `a\b`, true},
		{`/b/a\b`, `a\b`, true},
		{"/b/..%5C..%5Cb", `..\..\b`, true},
		{"/b/%22%3C%3E%7C", `"<>|`, true},
		{"/b/~", "~", true},
		{"/b/a.", "a.", true},
		{"/b/.a", ".a", true},
		{"/b/...", "...", true},
		{"/b/a..b/c", "a..b/c", true},
		{"/b/b/b", "b/b", true},
		{"/b/http://x/y", "http://x/y", false},
		{"/b//", "/", false},
		{"/b//k", "/k", false},
		{"/b/%2Fk", "/k", false},
		{"/b///k", "//k", false},
		{"/b/a//b", "a//b", false},
		{"/b/a%2F%2Fb", "a//b", false},
		{"/b/a//", "a//", false},
		{"/b/.", ".", false},
		{"/b/%2e", ".", false},
		{"/b/./k", "./k", false},
		{"/b/a/./b", "a/./b", false},
		{"/b/a/.", "a/.", false},
		{"/b/..", "..", false},
		{"/b/../c/k", "../c/k", false},
		{"/b/..%2Fc", "../c", false},
		{"/b/%2e%2e/c/k", "../c/k", false},
		{"/b/%2E%2E%2Fc", "../c", false},
		{"/b/.%2e/c", "../c", false},
		{"/b/a/../b", "a/../b", false},
		{"/b/a/..", "a/..", false},
		{"/b/a/../", "a/../", false},
		{"/b/a/./", "a/./", false},
		{"/b/%01", "\x01", false},
		{"/b/a%0D%0Ab", "a\r\nb", false},
		{"/b/a%7F", "a\x7f", false},
		{"/b/a%C2%85", "a\u0085", false},
		{"/b/a%09b", "a\tb", false},
		{"/b/%EF%BB%BFk", "\ufeffk", true},
		{"/b/" + strings.Repeat("k", 1024), strings.Repeat("k", 1024), true},
		{"/b/" + strings.Repeat("%C3%BC", 512), strings.Repeat("ü", 512), true},
	} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			op, err := read(method, domain, c.target, nil)
			if err != nil {
				t.Errorf("%s %s: %v", method, c.target, err)
				continue
			}
			if op.Bucket != "b" || op.Key != c.key {
				t.Errorf("%s is %q %q, want %q", c.target, op.Bucket, op.Key, c.key)
			}
			if a := op.Accesses(); len(a) != 1 || a[0].Key != op.Key || a[0].Bucket != op.Bucket {
				t.Errorf("%s: policy is asked about %+v", c.target, a)
			}
			if err := op.StrictKey(); (err == nil) != c.strict {
				t.Errorf("%s: strict says %v", c.target, err)
			} else if err != nil {
				wantRefused(t, c.target, op, err, "InvalidArgument")
			}
			for _, style := range []bool{true, false} {
				u := urlOf(op, backend, style)
				sent := u.RequestURI()
				if u.EscapedPath() != u.RawPath || u.RawPath != sent || strings.ContainsAny(sent, "?#;+\\ ") {
					t.Errorf("%s is sent as %s (%+v)", c.target, sent, u)
				}
				if want := "/b/" + awsEscape(c.key); sent != want {
					t.Errorf("%s is sent as %s, want %s", c.target, sent, want)
				}
			}
		}
		// And on a host of its own.
		_, rawKey, _ := strings.Cut(c.target[1:], "/")
		op, err := read("GET", "my-bucket."+domain, "/"+rawKey, nil)
		if err != nil || op.Bucket != "my-bucket" || op.Key != c.key {
			t.Errorf("/%s on the bucket's host: %+v, %v", rawKey, op, err)
			continue
		}
		u := urlOf(op, backend, false)
		want := "//my-bucket.backend.internal/" + awsEscape(c.key)
		if strings.HasPrefix(c.key, "/") { // a path that begins with two slashes is a host to some
			want = "//backend.internal/my-bucket/" + awsEscape(c.key)
		}
		if got := "//" + u.Host + u.RequestURI(); got != want {
			t.Errorf("/%s on the bucket's host is sent to %s, want %s", rawKey, got, want)
		}
	}

	for _, target := range []string{
		"//b/k", "//", "///", "//evil.example/b/k", "/%2Fb/k", "/%2F", "/b%2Fk", "/b%2fk/x", "/../b/k", "/./b/k", "/%2e%2e/b/k", "/%2e/k", "/..%2Fb/k", "/b%00/k", "/b;x/k",
		"/b%20/k", "/b+c/k", "/b%25/k", "/b%5Ck/x", `/b\k/x`, "/b:80/k", "/user@b/k", "/b,c/k", "/-/k", "/-", "/.b/k", "/b./k", "/b..c/k", "/b%0A/k", "/ü/k", "/_b/k", "/*/k", "/~b/k",
		"/b/%", "/b/%1", "/b/%zz", "/b/%u0041", "/b/a%", "/b/a%2", "/b/a%G0", "/b/%00", "/b/a%00.txt", "/b/%FF", "/b/%C3", "/b/%C0%AF", "/b/%ED%A0%80", "/b/%F8%88%80%80%80", "/b/\xff",
		"/b/a#b", "/b/a#", "/127.0.0.1/k", "/192.168.0.1", "/%3A%3A1/k", "/arn:aws:s3:::b/k",
		"/my-access-point-hsd7f-s3alias/k", "/b--use1-az1--x-s3/k", "/b--ol-s3/k", "/mfzwi23gnjvgw.mrap/k", "/b--table-s3/k",
		"/" + strings.Repeat("b", 256) + "/k", "/b/" + strings.Repeat("k", 1025), "/b/" + strings.Repeat("%C3%BC", 513),
	} {
		op, err := read("GET", domain, target, nil)
		wantRefused(t, target, op, err, "InvalidRequest", "InvalidArgument", "InvalidBucketName", "KeyTooLongError", "NotImplemented")
	}
	for _, same := range [][]string{{"/bucket", "/bucket/"}, {"/bucket?uploads", "/bucket/?uploads", "/bucket?uploads=", "/bucket/?uploads=&x-id=ListMultipartUploads", "/bucket?&uploads&", "/bucket?%75ploads"}} {
		first, _ := read("GET", domain, same[0], nil)
		for _, target := range same {
			op, err := read("GET", domain, target, nil)
			if err != nil || rewritten(op) != rewritten(first) {
				t.Errorf("%s is not %s: %v", target, same[0], err)
			}
		}
	}
}

// awsEscape is what SigV4 demands of a path, written independently: byte by byte, unreserved characters and the
// slash as they are, all else as upper-case escapes.
func awsEscape(key string) string {
	out := ""
	for _, c := range []byte(key) {
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/", c) >= 0 {
			out += string(rune(c))
		} else {
			out += fmt.Sprintf("%%%02X", c)
		}
	}
	return out
}

func TestT03CopySources(t *testing.T) {
	type want struct{ bucket, key, version, sent string }
	for source, w := range map[string]want{
		"b/s":                            {"b", "s", "", "b/s"},
		"/b/s":                           {"b", "s", "", "b/s"},
		"/other/secret":                  {"other", "secret", "", "other/secret"},
		"b/other/prefix/s":               {"b", "other/prefix/s", "", "b/other/prefix/s"},
		"b/a%20b":                        {"b", "a b", "", "b/a%20b"},
		"b/a b":                          {"b", "a b", "", "b/a%20b"},
		"b/ü":                            {"b", "ü", "", "b/%C3%BC"},
		"b/a%2Fb":                        {"b", "a/b", "", "b/a/b"},
		"b/a%252Fb":                      {"b", "a%2Fb", "", "b/a%252Fb"}, // decoded once
		"b/%2e%2e/c/k":                   {"b", "../c/k", "", "b/../c/k"},
		"b/s?versionId=v1":               {"b", "s", "v1", "b/s?versionId=v1"},
		"b/s?versionId=null":             {"b", "s", "null", "b/s?versionId=null"},
		"b/s?versionId=a%2Bb":            {"b", "s", "a+b", "b/s?versionId=a%2Bb"},
		"b/s%3FversionId=v1":             {"b", "s?versionId=v1", "", "b/s%3FversionId%3Dv1"}, // part of the key
		"b/s%3FversionId=v1?versionId=2": {"b", "s?versionId=v1", "2", "b/s%3FversionId%3Dv1?versionId=2"},
		"b/a%2Bb":                        {"b", "a+b", "", "b/a%2Bb"},
		"b//k":                           {"b", "/k", "", "b//k"},
		"b%2Fs":                          {"b", "s", "", "b/s"}, // escaped as a whole
		"%2Fb%2Fa%20b%2Fc":               {"b", "a b/c", "", "b/a%20b/c"},
		"b%2Fa%252Fb?versionId=v1":       {"b", "a%2Fb", "v1", "b/a%252Fb?versionId=v1"},
	} {
		for _, target := range []string{"/target/t", "/target/t?partNumber=1&uploadId=u"} {
			op, err := read("PUT", domain, target, http.Header{"X-Amz-Copy-Source": {source}})
			if err != nil {
				t.Errorf("%q: %v", source, err)
				continue
			}
			if *op.Source != (s3wire.Source{Bucket: w.bucket, Key: w.key, VersionID: w.version}) {
				t.Errorf("%q is %+v", source, op.Source)
			}
			read := s3wire.Access{Action: "s3:GetObject", Bucket: w.bucket, Key: w.key, VersionID: w.version}
			if w.version != "" {
				read.Action = "s3:GetObjectVersion"
			}
			if got := op.Accesses(); len(got) != 2 || got[0] != read || got[1] != (s3wire.Access{Action: "s3:PutObject", Bucket: "target", Key: "t"}) {
				t.Errorf("%q needs %+v", source, got)
			}
			header := http.Header{}
			op.WriteHeader(header)
			if got := header["X-Amz-Copy-Source"]; len(got) != 1 || got[0] != w.sent {
				t.Errorf("%q is sent as %q, want %q", source, got, w.sent)
			}
			if got := op.PolicyHeaders()["x-amz-copy-source"]; got != w.sent {
				t.Errorf("%q: policy sees %q", source, got)
			}
		}
	}
	for _, source := range []string{
		"", "/", "//", "b", "/b", "b/", "/b/", "//b/k", "b?versionId=1", "b/s?versionId=", "b/s?versionId", "b/s?", "b/s?acl", "b/s?versionId=1&x=y", "b/s?x=y&versionId=1",
		"b/s?versionId=1?versionId=2", "b/s?VersionId=1", "b/s?versionId=1;2", "b/s??versionId=1", "b%2Fc/s", "b%2F", "%2Fb", "%2F%2Fb%2Fs", "b%2Fs%3FversionId%3D1", "b%252Fs", "arn%3Aaws%3As3%3A%3A%3Ab%2Fk", "b/%zz", "b/a%", "b/%00", "b/%FF", "../b/s", "%2e%2e/b", "b/a+b", "b/s?versionId=a+b",
		"arn:aws:s3:us-west-2:123456789012:accesspoint/my-ap/object/k", "/arn:aws:s3:us-west-2:123456789012:accesspoint/my-ap/object/k", "arn:aws:s3:::b/k", "http://evil/b/k",
		"my-ap-hsd7f-s3alias/k", "b/" + strings.Repeat("k", 1025), "b/s\x00", "b/s\r\nX-Amz-Acl: public-read",
	} {
		op, err := read("PUT", domain, "/target/t", http.Header{"X-Amz-Copy-Source": {source}})
		wantRefused(t, fmt.Sprintf("%q", source), op, err)
		op, err = read("PUT", domain, "/target/t?x-amz-copy-source="+url.QueryEscape(source), nil)
		wantRefused(t, fmt.Sprintf("%q in the query", source), op, err)
	}
	op, err := read("PUT", domain, "/target/t", http.Header{"X-Amz-Copy-Source": {"arn:aws:s3:::b/k"}})
	wantRefused(t, "an ARN", op, err, "NotImplemented")
	op, err = read("PUT", domain, "/target/t", http.Header{"X-Amz-Copy-Source": {"b/s", "b/s"}})
	wantRefused(t, "twice", op, err)
	op, err = read("PUT", domain, "/target/t?x-amz-copy-source=b/s", http.Header{"X-Amz-Copy-Source": {"b/s"}})
	wantRefused(t, "in the header and the query", op, err)
	op, err = read("PUT", domain, "/target/t?x-amz-copy-source=b/s&X-Amz-Copy-Source=b/s", nil)
	wantRefused(t, "twice in the query", op, err)
	op, err = read("PUT", domain, "/target/t?X-Amz-Copy-Source=b/s%3FversionId%3D1", nil)
	if err != nil || op.Source == nil || op.Source.VersionID != "1" || strings.Contains(urlOf(op, backend, true).String(), "opy") {
		t.Errorf("in the query: %+v, %v", op, err)
	}
	strict, _ := read("PUT", domain, "/target/t", http.Header{"X-Amz-Copy-Source": {"b/../c"}})
	wantRefused(t, "a source that goes up, on a strict backend", strict, strict.StrictKey())
}

func TestRename(t *testing.T) {
	for _, source := range []string{"my-bucket/a%20b", "/my-bucket/a b"} {
		op, err := read("PUT", domain, "/my-bucket/t?renameObject", http.Header{"X-Amz-Rename-Source": {source}})
		if err != nil {
			t.Fatal(err)
		}
		want := []s3wire.Access{
			{Action: "s3:GetObject", Bucket: "my-bucket", Key: "a b"}, {Action: "s3:DeleteObject", Bucket: "my-bucket", Key: "a b"},
			{Action: "s3:PutObject", Bucket: "my-bucket", Key: "t"},
		}
		if got := op.Accesses(); !slices.Equal(got, want) {
			t.Errorf("needs %+v", got)
		}
		if got := rewritten(op); got != "PUT /my-bucket/t?renameObject=\nX-Amz-Rename-Source: my-bucket/a%20b\n" {
			t.Errorf("sent as %s", got)
		}
	}
	for _, source := range []string{"other/s", "s", "my-bucket/s?versionId=1", "", "my-bucket"} {
		op, err := read("PUT", domain, "/my-bucket/t?renameObject", http.Header{"X-Amz-Rename-Source": {source}})
		wantRefused(t, source, op, err)
	}
}

func TestT05Forms(t *testing.T) {
	form := http.Header{"Content-Type": {`multipart/form-data; boundary="x"`}}
	for _, target := range []string{"/b", "/b/", "/", "/b/k", "/b/../other", "/b?policy", "/other?key=k", "/b/${filename}"} {
		op, err := read("POST", domain, target, form)
		wantRefused(t, target, op, err, "NotImplemented", "InvalidArgument")
		op, err = read("POST", "my-bucket."+domain, target, http.Header{"Content-Type": {"MULTIPART/form-data; boundary=x"}})
		wantRefused(t, target+" on the bucket's host", op, err, "NotImplemented", "InvalidArgument")
	}
	for _, target := range []string{"/b", "/b/", "/"} {
		op, err := read("POST", domain, target, form)
		wantRefused(t, target, op, err, "NotImplemented")
		op, err = read("POST", domain, target, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
		wantRefused(t, target, op, err, "MethodNotAllowed", "InvalidRequest")
	}
}

func TestT06Headers(t *testing.T) {
	put := func(header http.Header) (*s3wire.Operation, error) { return read("PUT", domain, "/b/k", header) }
	refused := map[string]http.Header{
		"unknown":                            {"X-Amz-Made-Up": {"1"}},
		"unknown, lower case":                {"x-amz-made-up": {"1"}},
		"of a response":                      {"X-Amz-Version-Id": {"1"}},
		"of another operation":               {"X-Amz-Copy-Source-If-Match": {"1"}},
		"of a bucket":                        {"X-Amz-Object-Ownership": {"ObjectWriter"}},
		"repeated":                           {"X-Amz-Acl": {"private", "public-read"}},
		"repeated, the same":                 {"X-Amz-Acl": {"private", "private"}},
		"repeated in other case":             {"X-Amz-Acl": {"private"}, "x-amz-acl": {"public-read"}},
		"repeated standard":                  {"Content-Type": {"text/plain", "text/html"}},
		"repeated condition":                 {"If-None-Match": {"*", "x"}},
		"repeated metadata":                  {"X-Amz-Meta-A": {"1", "2"}},
		"repeated metadata in other case":    {"X-Amz-Meta-A": {"1"}, "x-amz-meta-a": {"2"}},
		"repeated framing":                   {"X-Amz-Content-Sha256": {"UNSIGNED-PAYLOAD", "UNSIGNED-PAYLOAD"}},
		"metadata without a name":            {"X-Amz-Meta-": {"1"}},
		"underscores":                        {"X_amz_acl": {"public-read"}},
		"one underscore":                     {"X-Amz_acl": {"public-read"}},
		"underscore after amz":               {"X_Amz-Acl": {"public-read"}},
		"underscores in metadata's prefix":   {"X_amz_meta_a": {"1"}},
		"underscored copy source":            {"X_Amz_Copy_Source": {"b/s"}},
		"in Connection":                      {"Connection": {"X-Amz-Acl"}, "X-Amz-Acl": {"private"}},
		"in Connection, absent":              {"Connection": {"x-amz-acl"}},
		"in Connection, among others":        {"Connection": {"close", "keep-alive, x-amz-server-side-encryption"}},
		"Authorization in Connection":        {"Connection": {"Authorization"}},
		"x-amz-date in Connection":           {"Connection": {"x-amz-date"}},
		"content hash in Connection":         {"Connection": {"X-Amz-Content-Sha256"}},
		"If-None-Match in Connection":        {"Connection": {"if-none-match"}, "If-None-Match": {"*"}},
		"metadata in Connection":             {"Connection": {"X-Amz-Meta-A"}},
		"underscores in Connection":          {"Connection": {"x_amz_acl"}},
		"a session of directory buckets":     {"X-Amz-S3session-Token": {"x"}},
		"object lambda's":                    {"X-Amz-Request-Route": {"x"}},
		"part of an object as all of it":     {"Content-Range": {"bytes 0-1/2"}},
		"a condition that S3 has not here":   {"If-Modified-Since": {"x"}},
		"a line break":                       {"X-Amz-Website-Redirect-Location": {"/a\r\nX-Amz-Acl: public-read"}},
		"a line break in metadata":           {"X-Amz-Meta-A": {"a\nb"}},
		"an escape in a standard header":     {"Content-Disposition": {"a\x1bb"}},
		"a space before":                     {"X-Amz-Acl": {" public-read"}},
		"a tab after":                        {"X-Amz-Acl": {"public-read\t"}},
		"a space before metadata":            {"X-Amz-Meta-A": {" 1"}},
		"a space after a source":             {"X-Amz-Copy-Source": {"b/s "}},
		"a space before an encoding":         {"Content-Encoding": {" gzip"}},
		"repeated flag":                      {"X-Amz-Server-Side-Encryption-Bucket-Key-Enabled": {"true", "true"}},
		"payload hash that is none":          {"X-Amz-Content-Sha256": {"abc"}},
		"payload hash of Version 4A":         {"X-Amz-Content-Sha256": {"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"}},
		"payload hash of Version 4A trailer": {"X-Amz-Content-Sha256": {"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER"}},
		"payload hash in lower case":         {"X-Amz-Content-Sha256": {"unsigned-payload"}},
		"empty payload hash":                 {"X-Amz-Content-Sha256": {""}},
		"a trailer that is no checksum":      {"X-Amz-Content-Sha256": {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, "X-Amz-Trailer": {"x-amz-acl"}},
		"two trailers":                       {"X-Amz-Content-Sha256": {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, "X-Amz-Trailer": {"x-amz-checksum-crc32,x-amz-acl"}},
		"a decoded length that is none":      {"X-Amz-Content-Sha256": {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, "X-Amz-Decoded-Content-Length": {"-1"}},
		"a decoded length with a sign":       {"X-Amz-Content-Sha256": {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, "X-Amz-Decoded-Content-Length": {"+1"}},
		"a decoded length too large":         {"X-Amz-Content-Sha256": {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, "X-Amz-Decoded-Content-Length": {"9223372036854775808"}},
	}
	for what, header := range refused {
		op, err := put(header)
		wantRefused(t, what, op, err)
	}

	dropped := http.Header{
		"Authorization": {"Bearer canary"}, "X-Amz-Security-Token": {"canary"}, "X-Amz-Date": {"canary"}, "Date": {"canary"}, "Cookie": {"canary"}, "Proxy-Authorization": {"canary"},
		"User-Agent": {"canary"}, "Accept": {"canary"}, "Accept-Encoding": {"gzip, canary"}, "Amz-Sdk-Request": {"canary"}, "X-Amz-User-Agent": {"canary"}, "X-Amzn-Trace-Id": {"canary"},
		"X-Forwarded-For": {"canary"}, "X-Forwarded-Host": {"canary"}, "X-Forwarded-Proto": {"canary"}, "Forwarded": {"canary"}, "X-Real-Ip": {"canary"}, "Via": {"canary"}, "Traceparent": {"canary"},
		"Connection": {"X-Custom, close", "canary"}, "X-Custom": {"canary"}, "Keep-Alive": {"canary"}, "Te": {"canary"}, "Upgrade": {"canary"}, "Proxy-Connection": {"canary"},
		"X-Http-Method-Override": {"DELETE canary"}, "X-Original-Url": {"/canary"}, "X-Rewrite-Url": {"/canary"}, "X-Minio-Source-Proxy-Request": {"canary"}, "X-Goog-Acl": {"canary"},
		"X-Amz-Cf-Id": {"canary"}, "X-Amz-Te": {"canary"}, "Range": {"bytes=0-1 canary"}, "Content_type": {"canary"}, "If_none_match": {"canary"}, "Expect": {"100-continue"},
	}
	op, err := put(dropped)
	if err != nil {
		t.Fatal(err)
	}
	if got := rewritten(op); got != "PUT /b/k\n" {
		t.Errorf("sent on: %s", got)
	}
	if got := fmt.Sprint(op.PolicyHeaders(), op.PolicyQuery(), *op); strings.Contains(got, "canary") {
		t.Errorf("kept: %s", got)
	}

	for name, values := range dropped {
		for _, target := range []string{"/b/k", "/b?list-type=2", "/"} {
			if op, err := read("GET", domain, target, http.Header{name: values}); err != nil {
				t.Errorf("GET %s with %s: %v", target, name, err)
			} else if strings.Contains(rewritten(op), "canary") && name != "Range" {
				t.Errorf("GET %s: %s", target, rewritten(op))
			}
		}
	}

	kept := http.Header{
		"X-Amz-Acl": {"public-read"}, "Content-Type": {"text/html"}, "X-Amz-Meta-Some-Name": {"v"}, "X-Amz-Meta-With_underscore": {"w"}, "If-None-Match": {"*"}, "Origin": {"https://a"},
		"X-Amz-Server-Side-Encryption-Customer-Key": {"c2VjcmV0"}, "X-Amz-Server-Side-Encryption-Customer-Key-Md5": {"c2Vjcg"}, "X-Amz-Server-Side-Encryption-Customer-Algorithm": {"AES256"},
		"Content-Encoding": {"aws-chunked, gzip", "br"}, "Cache-Control": {"no-cache"}, "Expires": {"never"}, "Content-Md5": {"x"}, "X-Amz-Tagging": {"a=b"},
	}
	op, err = put(kept)
	if err != nil {
		t.Fatal(err)
	}
	header := http.Header{}
	op.WriteHeader(header)
	want := kept.Clone()
	want["Content-Encoding"] = []string{"gzip,br"}
	if fmt.Sprint(header) != fmt.Sprint(want) {
		t.Errorf("sent on\n%v, want\n%v", header, want)
	}
	seen := op.PolicyHeaders()
	if seen["x-amz-meta-some-name"] != "v" || seen["x-amz-server-side-encryption-customer-algorithm"] != "AES256" || seen["x-amz-acl"] != "public-read" || seen["content-encoding"] != "gzip,br" {
		t.Errorf("policy sees %v", seen)
	}
	if strings.Contains(fmt.Sprint(seen), "c2Vjc") {
		t.Errorf("policy sees a key: %v", seen)
	}
}

// S3 reads x-amz-* in the query as headers, so a policy that looks at headers must see them there.
func TestT06HoistedHeaders(t *testing.T) {
	op, err := read("PUT", domain, "/b/k?X-Amz-Acl=public-read&x-amz-meta-a=1&X-AMZ-TAGGING=a%3Db&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := rewritten(op); got != "PUT /b/k\nX-Amz-Acl: public-read\nX-Amz-Meta-A: 1\nX-Amz-Tagging: a=b\n" {
		t.Errorf("sent as %s", got)
	}
	var actions []string
	for _, a := range op.Accesses() {
		actions = append(actions, a.Action)
	}
	if !slices.Equal(actions, []string{"s3:PutObject", "s3:PutObjectAcl", "s3:PutObjectTagging"}) {
		t.Errorf("needs %v", actions)
	}
	if h := op.PolicyHeaders(); h["x-amz-acl"] != "public-read" || len(op.PolicyQuery()) != 0 {
		t.Errorf("policy sees %v and %v", h, op.PolicyQuery())
	}
	acl := http.Header{"X-Amz-Acl": {"private"}}
	for target, header := range map[string]http.Header{
		"/b/k?x-amz-acl=private&X-Amz-Acl=private":    nil,
		"/b/k?X-Amz-Acl=private":                      acl,
		"/b/k?x-amz-ACL=private":                      acl,
		"/b/k?x-amz-made-up=1":                        nil,
		"/b/k?X-Amz-Copy-Source-If-Match=1":           nil,
		"/b/k?x-amz-acl=a%0D%0AX-Amz-Tagging:%20a":    nil,
		"/b/k?x-amz-acl=%20private":                   nil,
		"/b/k?x-amz-acl=private%20":                   nil,
		"/b/k?x-amz-=1":                               nil,
		"/b/k?x-amz-meta-=1":                          nil,
		"/b/k?x_amz_acl=private":                      nil,
		"/b/k?x-amz-signature=1":                      nil, // SigV4's own, in the wrong case
		"/b/k?X-AMZ-Credential=1":                     nil,
		"/b/k?x-amz-security-token=1":                 nil,
		"/b/k?X-Amz-Signature=1&X-Amz-Signature=1":    nil,
		"/b/k?AWSAccessKeyId=A&Signature=S&Expires=1": nil,
		"/b/k?Signature=S":                            nil,
		"/b/k?x-amz-request-route=1":                  nil,
		"/b/k?X-Amz-Content-Sha256=nonsense":          nil,
		"/b/k?Authorization=x":                        nil,
	} {
		op, err := read("PUT", domain, target, header)
		wantRefused(t, target, op, err)
	}
	many := "/b/k?"
	for i := range 101 {
		many += fmt.Sprintf("x-amz-meta-%d=&", i)
	}
	op, err = read("PUT", domain, many, nil)
	wantRefused(t, "101 of them", op, err)
	_, err = read("GET", domain, "/b/k?AWSAccessKeyId=A&Signature=S&Expires=1", nil)
	if err == nil || !strings.Contains(err.Error(), "s3v4") {
		t.Errorf("a URL of Signature Version 2: %v, which does not say what to do", err)
	}
}

func TestT16Targets(t *testing.T) {
	for _, target := range []string{
		"http://169.254.169.254/latest/meta-data", "https://" + domain + "/b/k", "http://user:pass@" + domain + "/b/k", "HTTP://x/", "s3://b/k",
		"*", "", "b/k", "?acl", domain + ":443", "//169.254.169.254/latest", "///", "/b/k#frag", "/b/k?acl#frag", "\\\\evil\\b", "/\\evil/b", "/@evil/k",
	} {
		for _, method := range []string{"GET", "PUT", "OPTIONS", "CONNECT"} {
			r := &http.Request{Method: method, Host: domain, RequestURI: target, URL: new(url.URL), Header: http.Header{}}
			if target == "" {
				r.URL = &url.URL{Scheme: "http", Host: "evil", Opaque: "//evil/b"}
			}
			op, err := addressing.Parse(r)
			wantRefused(t, method+" "+target, op, err)
		}
	}
	for _, raw := range []string{"http://user@" + domain + "/b/k", "http://" + domain + "/b/k#f", "mailto:b"} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		op, err := addressing.Parse(&http.Request{Method: "GET", URL: u, Header: http.Header{}})
		wantRefused(t, raw, op, err)
	}
	// Whatever came, it goes to the endpoint.
	for _, host := range []string{"my-bucket." + domain, domain} {
		for _, target := range []string{"/b/k", "/b//evil.example/k", "/b/http://evil/k", "/b/%40evil", "/b/..%2f..%2fevil"} {
			op, err := read("GET", host, target, nil)
			if err != nil {
				t.Errorf("%s: %v", target, err)
				continue
			}
			for _, style := range []bool{true, false} {
				if u := urlOf(op, backend, style); u.Host != backend.Host && u.Host != op.Bucket+"."+backend.Host || u.Scheme != "https" || u.User != nil || u.Opaque != "" {
					t.Errorf("%s goes to %s", target, u)
				}
			}
		}
	}
}

func TestT17Hosts(t *testing.T) {
	a := s3wire.Addressing{Domains: []string{"example.com", "s3.example.com", "other.test", "Mixed.Example.ORG"}}
	for host, want := range map[string]string{ // the bucket in the host; "" = the path's
		"s3.example.com":            "",
		"S3.EXAMPLE.com":            "",
		"s3.example.com:8443":       "",
		"s3.example.com.":           "",
		"s3.example.com.:443":       "",
		"example.com":               "",
		"mixed.example.org":         "",
		"b1.s3.example.com":         "b1",
		"B1.s3.example.com":         "b1",
		"b1.s3.example.com:80":      "b1",
		"b1.s3.example.com.":        "b1",
		"with.dots.s3.example.com":  "with.dots",
		"s3.s3.example.com":         "s3",
		"b1.example.com":            "b1",
		"b1.other.test":             "b1",
		"s3.example.com.other.test": "s3.example.com", // a bucket by that name
		"b1.mixed.example.org":      "b1",
		"127.0.0.1":                 "",
		"127.0.0.1:9000":            "",
		"[::1]":                     "",
		"[::1]:9000":                "",
		"10.1.2.3.":                 "",
	} {
		r := &http.Request{Method: "GET", Host: host, RequestURI: "/path/k", Header: http.Header{}}
		op, err := a.Parse(r)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		bucket, key := "path", "k"
		if want != "" {
			bucket, key = want, "path/k" // the path is the key only
		}
		if op.Bucket != bucket || op.Key != key {
			t.Errorf("%s: bucket %q key %q, want %q %q", host, op.Bucket, op.Key, bucket, key)
		}
	}
	for _, host := range []string{
		"", "evil.test", "s3.example.com.evil.test", "evils3.example.org", "xexample.com", "localhost", "com", "b1.s3.example.com:http", "b1.s3.example.com:80:80", ":80", ".", "..",
		".s3.example.com", "..s3.example.com", "b1..s3.example.com", "-b.s3.example.com", "b_1!.s3.example.com", "user@s3.example.com", "b1/.s3.example.com", "b1%2f.s3.example.com",
		"127.0.0.1.s3.example.com", "[::1", "[s3.example.com]", "::1", "[::1]x", "127.1", "0x7f000001", "2130706433", "b1.s3.example.com..", "s3.example.com evil", "b1--x-s3.s3.example.com", "*.s3.example.com",
		"my-ap-hsd7f-s3alias.s3.example.com", "ü.s3.example.com", "b1\x00.s3.example.com",
	} {
		op, err := a.Parse(&http.Request{Method: "GET", Host: host, RequestURI: "/path/k", Header: http.Header{}})
		wantRefused(t, "host "+host, op, err, "InvalidRequest", "InvalidBucketName", "NotImplemented")
	}
	// Nobody else says what the host is.
	for _, h := range []string{"X-Forwarded-Host", "Forwarded", "X-Host", "X-Original-Host"} {
		op, err := a.Parse(&http.Request{Method: "GET", Host: "s3.example.com", RequestURI: "/path/k", Header: http.Header{h: {"b1.s3.example.com"}}})
		if err != nil || op.Bucket != "path" {
			t.Errorf("%s: %+v, %v", h, op, err)
		}
	}
	for _, host := range []string{"anything", "b1.s3.example.com", "", "127.0.0.1:1"} { // no domains: the path tells, always
		op, err := s3wire.Addressing{}.Parse(&http.Request{Method: "GET", Host: host, RequestURI: "/path/k", Header: http.Header{}})
		if err != nil || op.Bucket != "path" || op.Key != "k" {
			t.Errorf("%s without domains: %+v, %v", host, op, err)
		}
	}
}

func TestT18Queries(t *testing.T) {
	for query, want := range map[string]string{ // what is sent on
		"list-type=2&prefix=a%2Fb":               "list-type=2&prefix=a%2Fb",
		"prefix=a/b&list-type=2":                 "list-type=2&prefix=a%2Fb",
		"list-type=2&prefix=a+b":                 "list-type=2&prefix=a%20b",
		"list-type=2&prefix=a%2Bb":               "list-type=2&prefix=a%2Bb",
		"list-type=2&prefix=a%26acl":             "list-type=2&prefix=a%26acl",
		"list-type=2&prefix=a%3Db":               "list-type=2&prefix=a%3Db",
		"list-type=2&prefix=a=b":                 "list-type=2&prefix=a%3Db",
		"list-type=2&prefix=a%3Bb":               "list-type=2&prefix=a%3Bb",
		"list-type=2&prefix=ü":                   "list-type=2&prefix=%C3%BC",
		"list-type=2&prefix=%C3%BC":              "list-type=2&prefix=%C3%BC",
		"list-type=2&prefix=%25zz":               "list-type=2&prefix=%25zz",
		"list-type=2&prefix=a?b":                 "list-type=2&prefix=a%3Fb",
		"list-type=2&prefix=":                    "list-type=2",
		"list-type=2&prefix":                     "list-type=2",
		"&&list-type=2&&":                        "list-type=2",
		"list%2Dtype=2":                          "list-type=2",
		"list-type=%32":                          "list-type=2",
		"delimiter=%2F&list-type=2":              "delimiter=%2F&list-type=2",
		"list-type=2&x-id=ListObjectsV2":         "list-type=2",
		"list-type=2&continuation-token=a%2F%3D": "continuation-token=a%2F%3D&list-type=2",
		"list-type=2&start-after=":               "list-type=2&start-after=",
		"list-type=2&max-keys=0":                 "list-type=2&max-keys=0",
		"list-type=2&X-Amz-Algorithm=A&X-Amz-Credential=C&X-Amz-Date=D&X-Amz-Expires=1&X-Amz-SignedHeaders=host&X-Amz-Security-Token=T&X-Amz-Signature=S": "list-type=2",
	} {
		op, err := read("GET", domain, "/b?"+query, nil)
		if err != nil {
			t.Errorf("?%s: %v", query, err)
			continue
		}
		if got := urlOf(op, backend, true).RawQuery; got != want {
			t.Errorf("?%s is sent as ?%s, want ?%s", query, got, want)
		}
		values, err := url.ParseQuery(want)
		if err != nil || op.Prefix != values.Get("prefix") || op.Accesses()[0].Prefix != op.Prefix || op.Accesses()[0].Delimiter != values.Get("delimiter") {
			t.Errorf("?%s: policy is asked about %+v", query, op.Accesses())
		}
	}
	for _, query := range []string{
		"list-type=2;prefix=a", "prefix=a;b", "list-type=2&prefix=a;b", ";", "a;b=c", "prefix=%", "prefix=%2", "prefix=%zz", "%zz=a", "prefix=%u0041", "prefix=a&prefix=b", "prefix&prefix", "prefix=a&%70refix=b",
		"list-type=2&list-type=2", "x-id=a&x-id=b", "unknown=1", "unknown", "=", "=a", "Prefix=a", "PREFIX=a", "prefix[]=a", "prefix%00=a", "prefix=%00", "prefix=%FF", "prefix=\xff", "prefix=%C0%AF",
		"max-keys=", "max-keys=-1", "max-keys=1e3", "max-keys=0x10", "max-keys=%201", "max-keys=99999999999", "encoding-type=base64", "callback=x", "jsonp", "_=1", "list-type=2#frag", "acl=true",
	} {
		op, err := read("GET", domain, "/b?"+query, nil)
		wantRefused(t, "?"+query, op, err, "InvalidArgument", "InvalidRequest")
	}
}
