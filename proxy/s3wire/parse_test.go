package s3wire_test

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// What each request needs: the rule as IAM has it.
func TestAccesses(t *testing.T) {
	for _, c := range []struct {
		line string // method, target, and headers as name=value
		want string // action bucket[/key][@version][ prefix delimiter], separated by commas
	}{
		{"GET /", "ListAllMyBuckets "},
		{"GET /?prefix=a", "ListAllMyBuckets <a|>"},
		{"HEAD /b", "ListBucket b"},
		{"GET /b", "ListBucket b"},
		{"GET /b?prefix=a/&delimiter=/", "ListBucket b<a/|/>"},
		{"GET /b?list-type=2&prefix=a/", "ListBucket b<a/|>"},
		{"GET /b?versions&prefix=a/", "ListBucketVersions b<a/|>"},
		{"GET /b?uploads&prefix=a/&delimiter=x", "ListBucketMultipartUploads b<a/|x>"},
		{"GET /b?lifecycle", "GetLifecycleConfiguration b"},
		{"DELETE /b?lifecycle", "PutLifecycleConfiguration b"},
		{"PUT /b?cors", "PutBucketCORS b"},
		{"GET /b?location", "GetBucketLocation b"},
		{"GET /b?object-lock", "GetBucketObjectLockConfiguration b"},
		{"PUT /b", "CreateBucket b"},
		{"PUT /b x-amz-acl=private", "CreateBucket b, PutBucketAcl b"},
		{"PUT /b x-amz-grant-read=id=1 x-amz-grant-write=id=2", "CreateBucket b, PutBucketAcl b"},
		{"PUT /b x-amz-bucket-object-lock-enabled=true", "CreateBucket b, PutBucketObjectLockConfiguration b, PutBucketVersioning b"},
		{"PUT /b x-amz-bucket-object-lock-enabled=True x-amz-object-ownership=ObjectWriter", "CreateBucket b, PutBucketObjectLockConfiguration b, PutBucketVersioning b, PutBucketOwnershipControls b"},
		{"PUT /b x-amz-bucket-object-lock-enabled=false", "CreateBucket b"},
		{"PUT /b?acl x-amz-acl=private", "PutBucketAcl b"},

		{"GET /b/k", "GetObject b/k"},
		{"HEAD /b/k", "GetObject b/k"},
		{"GET /b/k?versionId=v", "GetObjectVersion b/k@v"},
		{"HEAD /b/k?versionId=null", "GetObjectVersion b/k@null"},
		{"GET /b/k?partNumber=1", "GetObject b/k"},
		{"GET /b/k?attributes x-amz-object-attributes=ETag", "GetObject b/k, GetObjectAttributes b/k"},
		{"GET /b/k?attributes&versionId=v x-amz-object-attributes=ETag", "GetObjectVersion b/k@v, GetObjectVersionAttributes b/k@v"},
		{"GET /b/k?acl", "GetObjectAcl b/k"},
		{"GET /b/k?acl&versionId=v", "GetObjectVersionAcl b/k@v"},
		{"PUT /b/k?acl&versionId=v", "PutObjectVersionAcl b/k@v"},
		{"GET /b/k?tagging", "GetObjectTagging b/k"},
		{"GET /b/k?tagging&versionId=v", "GetObjectVersionTagging b/k@v"},
		{"PUT /b/k?tagging&versionId=v", "PutObjectVersionTagging b/k@v"},
		{"DELETE /b/k?tagging&versionId=v", "DeleteObjectVersionTagging b/k@v"},
		{"GET /b/k?retention&versionId=v", "GetObjectRetention b/k@v"},
		{"PUT /b/k?retention x-amz-bypass-governance-retention=true", "PutObjectRetention b/k, BypassGovernanceRetention b/k"},
		{"PUT /b/k?legal-hold", "PutObjectLegalHold b/k"},
		{"GET /b/k?torrent", "GetObjectTorrent b/k"},
		{"POST /b/k?restore&versionId=v", "RestoreObject b/k@v"},
		{"POST /b/k?select&select-type=2", "GetObject b/k"},
		{"PUT /b/k?encryption&versionId=v", "PutObject b/k@v, UpdateObjectEncryption b/k@v"},
		{"DELETE /b/k", "DeleteObject b/k"},
		{"DELETE /b/k?versionId=v", "DeleteObjectVersion b/k@v"},
		{"DELETE /b/k?versionId=v x-amz-bypass-governance-retention=true", "DeleteObjectVersion b/k@v, BypassGovernanceRetention b/k@v"},
		{"DELETE /b/k x-amz-bypass-governance-retention=false", "DeleteObject b/k"},
		{"DELETE /b/k?x-amz-bypass-governance-retention=TRUE", "DeleteObject b/k, BypassGovernanceRetention b/k"},
		{"GET /b/k?annotation", "ListObjectAnnotations b/k"},
		{"GET /b/k?annotation&annotationName=n&versionId=v", "GetObjectVersionAnnotation b/k@v"},

		{"PUT /b/k", "PutObject b/k"},
		{"PUT /b/k x-amz-acl=private", "PutObject b/k, PutObjectAcl b/k"},
		{"PUT /b/k x-amz-grant-full-control=id=1", "PutObject b/k, PutObjectAcl b/k"},
		{"PUT /b/k x-amz-tagging=a=b", "PutObject b/k, PutObjectTagging b/k"},
		{"PUT /b/k x-amz-object-lock-mode=GOVERNANCE x-amz-object-lock-retain-until-date=2030-01-01T00:00:00Z", "PutObject b/k, PutObjectRetention b/k"},
		{"PUT /b/k x-amz-object-lock-event-hold=ON", "PutObject b/k, PutObjectRetention b/k"},
		{"PUT /b/k x-amz-object-lock-legal-hold=OFF", "PutObject b/k, PutObjectLegalHold b/k"},
		{"PUT /b/k x-amz-acl=a x-amz-tagging=b x-amz-object-lock-mode=c x-amz-object-lock-legal-hold=d", "PutObject b/k, PutObjectAcl b/k, PutObjectLegalHold b/k, PutObjectRetention b/k, PutObjectTagging b/k"},
		{"POST /b/k?uploads x-amz-acl=private x-amz-tagging=a=b", "PutObject b/k, PutObjectAcl b/k, PutObjectTagging b/k"},
		{"PUT /b/k?partNumber=1&uploadId=u", "PutObject b/k"},
		{"POST /b/k?uploadId=u", "PutObject b/k"},
		{"DELETE /b/k?uploadId=u", "AbortMultipartUpload b/k"},
		{"GET /b/k?uploadId=u", "ListMultipartUploadParts b/k"},

		{"PUT /b/k x-amz-copy-source=s/t", "GetObject s/t, PutObject b/k"},
		{"PUT /b/k x-amz-copy-source=s/t x-amz-acl=private", "GetObject s/t, PutObject b/k, PutObjectAcl b/k"},
		{"PUT /b/k x-amz-copy-source=s/t?versionId=v x-amz-tagging=a=b x-amz-tagging-directive=REPLACE", "GetObjectVersion s/t@v, PutObject b/k, PutObjectTagging b/k"},
		{"PUT /b/k x-amz-copy-source=s/t x-amz-object-annotation-directive=copy", "GetObject s/t, GetObjectAnnotation s/t, PutObject b/k, PutObjectAnnotation b/k"},
		{"PUT /b/k x-amz-copy-source=s/t?versionId=v x-amz-object-annotation-directive=COPY", "GetObjectVersion s/t@v, GetObjectVersionAnnotation s/t@v, PutObject b/k, PutObjectAnnotation b/k"},
		{"PUT /b/k x-amz-copy-source=s/t x-amz-object-annotation-directive=EXCLUDE", "GetObject s/t, PutObject b/k"},
		{"PUT /b/k?partNumber=1&uploadId=u x-amz-copy-source=s/t?versionId=v", "GetObjectVersion s/t@v, PutObject b/k"},
		{"PUT /b/k?renameObject x-amz-rename-source=b/t", "GetObject b/t, DeleteObject b/t, PutObject b/k"},
		{"POST /b?delete", "DeleteObject b"},
		{"OPTIONS /b/k origin=https://a access-control-request-method=PUT", "PreflightRequest b/k"},
	} {
		words := strings.Fields(c.line)
		header := http.Header{}
		for _, h := range words[2:] {
			name, value, _ := strings.Cut(h, "=")
			header.Set(name, value)
		}
		op, err := read(words[0], domain, words[1], header)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		var got []string
		for _, a := range op.Accesses() {
			s := strings.TrimPrefix(a.Action, "s3:") + " " + a.Bucket
			if a.Key != "" {
				s += "/" + a.Key
			}
			if a.VersionID != "" {
				s += "@" + a.VersionID
			}
			if a.Prefix != "" || a.Delimiter != "" {
				s += "<" + a.Prefix + "|" + a.Delimiter + ">"
			}
			got = append(got, s)
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s needs\n%s, want\n%s", c.line, s, c.want)
		}
	}
}

// Every action that the table can ask for is one that IAM has; a policy that names another never matches.
func TestActionsAreIAMs(t *testing.T) {
	known := map[string]bool{}
	f, err := os.Open("testdata/actions.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		known[lines.Text()] = true
	}
	if len(known) < 100 {
		t.Fatalf("only %d actions known", len(known))
	}
	for _, op := range s3wire.Operations() {
		for _, action := range slices.Concat(op.Actions, op.Versioned) {
			if name, ok := strings.CutPrefix(action, "s3:"); ok && op.Name != "PreflightRequest" && !known[name] {
				t.Errorf("%s needs %s, which IAM does not have", op.Name, action)
			}
		}
	}
}

// An Operation that nothing was parsed into grants nothing by needing nothing.
func TestZeroOperationNeedsSomething(t *testing.T) {
	if got := new(s3wire.Operation).Accesses(); len(got) == 0 || got[0].Action == "" {
		t.Errorf("needs %v", got)
	}
	made := &s3wire.Operation{Name: "GetObject", Method: "GET", Bucket: "b", Key: "k", VersionID: "v"}
	if got := made.Accesses(); len(got) != 1 || got[0].Action != "s3:GetObjectVersion" {
		t.Errorf("needs %v", got)
	}
	if got := rewritten(made); got != "GET /b/k?versionId=v\n" {
		t.Errorf("is sent as %s", got)
	}
}

func TestDeleteAccesses(t *testing.T) {
	d := &s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a"}, {Key: "b", VersionID: "v"}}}
	op, err := read("POST", domain, "/bucket?delete", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := op.DeleteAccesses(d); len(got) != 2 || got[1].Action != "s3:DeleteObjectVersion" {
		t.Errorf("needs %v", got)
	}
	op, err = read("POST", domain, "/bucket?delete", http.Header{"X-Amz-Bypass-Governance-Retention": {"true"}})
	if err != nil {
		t.Fatal(err)
	}
	got := op.DeleteAccesses(d)
	if len(got) != 4 || got[2] != (s3wire.Access{Action: "s3:BypassGovernanceRetention", Bucket: "bucket", Key: "a"}) || got[3].VersionID != "v" {
		t.Errorf("with a bypass needs %v", got)
	}
}

func TestPreflight(t *testing.T) {
	ask := http.Header{
		"Origin": {"https://app.example"}, "Access-Control-Request-Method": {"PUT"}, "Access-Control-Request-Headers": {"authorization,x-amz-acl"},
		"Authorization": {"canary"}, "User-Agent": {"canary"},
	}
	for _, target := range []string{"/b/k", "/b/k?X-Amz-Signature=canary&X-Amz-Credential=c&partNumber=1&uploadId=canary", "/b/k?anything;goes=canary"} {
		op, err := read("OPTIONS", domain, target, ask)
		if err != nil || !op.Preflight() || op.Name != "PreflightRequest" {
			t.Fatalf("%s: %+v, %v", target, op, err)
		}
		want := "OPTIONS /b/k\nAccess-Control-Request-Headers: authorization,x-amz-acl\nAccess-Control-Request-Method: PUT\nOrigin: https://app.example\n"
		if got := rewritten(op); got != want {
			t.Errorf("%s is sent as %s", target, got)
		}
	}
	for _, drop := range []string{"Origin", "Access-Control-Request-Method"} {
		header := ask.Clone()
		header.Del(drop)
		op, err := read("OPTIONS", domain, "/b/k", header)
		wantRefused(t, "without "+drop, op, err)
	}
	op, err := read("OPTIONS", domain, "/", ask)
	wantRefused(t, "of the service", op, err)
	header := ask.Clone()
	header.Set("X-Amz-Acl", "private")
	op, err = read("OPTIONS", domain, "/b/k", header)
	wantRefused(t, "with an x-amz header", op, err)
	if op, _ := read("GET", domain, "/b/k", nil); op.Preflight() {
		t.Error("a GET is a preflight")
	}
}

func TestPayload(t *testing.T) {
	const sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, c := range []struct {
		name   string
		line   string
		length int64 // Content-Length, -1 = chunked
		header map[string]string
		want   s3wire.Payload
		code   string
	}{
		{"plain", "PUT /b/k", 5, nil, s3wire.Payload{Length: 5, Wire: 5}, ""},
		{"empty", "PUT /b/k", 0, nil, s3wire.Payload{}, ""},
		{"unsigned", "PUT /b/k", 5, map[string]string{"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, s3wire.Payload{Length: 5, Wire: 5}, ""},
		{"hash", "PUT /b/k", 5, map[string]string{"x-amz-content-sha256": strings.ToUpper(sum)}, s3wire.Payload{Kind: s3wire.PayloadHash, SHA256: sum, Length: 5, Wire: 5}, ""},
		{"hash in the query", "PUT /b/k?X-Amz-Content-Sha256=" + sum, 5, nil, s3wire.Payload{Kind: s3wire.PayloadHash, SHA256: sum, Length: 5, Wire: 5}, ""},
		{"chunked, length told", "PUT /b/k", -1, map[string]string{"x-amz-decoded-content-length": "5"}, s3wire.Payload{Length: 5, Wire: -1}, ""},
		{"chunked, length not told", "PUT /b/k", -1, nil, s3wire.Payload{Length: -1, Wire: -1}, ""},
		{"trailer of the CLI", "PUT /b/k", -1, map[string]string{"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-decoded-content-length": "5", "x-amz-trailer": "X-Amz-Checksum-CRC32", "content-encoding": "aws-chunked"},
			s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: 5, Wire: -1, Trailer: "x-amz-checksum-crc32"}, ""},
		{"trailer of the Go SDK", "PUT /b/k", 47, map[string]string{"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-decoded-content-length": "5", "x-amz-trailer": "x-amz-checksum-crc32", "content-encoding": "gzip,aws-chunked"},
			s3wire.Payload{Kind: s3wire.PayloadUnsignedTrailer, Length: 5, Wire: 47, Trailer: "x-amz-checksum-crc32", Encoding: "gzip"}, ""},
		{"signed chunks of minio-go, with no encoding", "PUT /b/k", 180, map[string]string{"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "x-amz-decoded-content-length": "5"},
			s3wire.Payload{Kind: s3wire.PayloadSigned, Length: 5, Wire: 180}, ""},
		{"signed trailer", "PUT /b/k", 180, map[string]string{"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", "x-amz-decoded-content-length": "5", "x-amz-trailer": "x-amz-checksum-sha256"},
			s3wire.Payload{Kind: s3wire.PayloadSignedTrailer, Length: 5, Wire: 180, Trailer: "x-amz-checksum-sha256"}, ""},
		{"framed, length not told", "PUT /b/k", 180, map[string]string{"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"}, s3wire.Payload{Kind: s3wire.PayloadSigned, Length: -1, Wire: 180}, ""},
		{"encoding of an object without a body", "POST /b/k?uploads", 0, map[string]string{"content-encoding": "aws-chunked,gzip"}, s3wire.Payload{Encoding: "gzip"}, ""},
		{"encoding of a part", "PUT /b/k?partNumber=1&uploadId=u", 5, map[string]string{"content-encoding": "gzip"}, s3wire.Payload{Length: 5, Wire: 5}, ""},
		{"encoding aws-chunked of XML", "POST /b?delete", 5, map[string]string{"content-encoding": "AWS-chunked"}, s3wire.Payload{Length: 5, Wire: 5}, ""},
		{"hash of no body", "GET /b/k", 0, map[string]string{"x-amz-content-sha256": sum}, s3wire.Payload{Kind: s3wire.PayloadHash, SHA256: sum}, ""},
		{"chunks of no body", "POST /b/k?uploads", 0, map[string]string{"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, s3wire.Payload{}, ""},

		{"gzip of XML", "POST /b?delete", 5, map[string]string{"content-encoding": "gzip"}, s3wire.Payload{}, "NotImplemented"},
		{"gzip and chunks of XML", "PUT /b?policy", 5, map[string]string{"content-encoding": "gzip,aws-chunked"}, s3wire.Payload{}, "NotImplemented"},
		{"two lengths", "PUT /b/k", 5, map[string]string{"x-amz-decoded-content-length": "4"}, s3wire.Payload{}, "InvalidRequest"},
		{"a GET with a body", "GET /b/k", 5, nil, s3wire.Payload{}, "InvalidRequest"},
		{"a GET with a chunked body", "GET /b/k", -1, nil, s3wire.Payload{}, "InvalidRequest"},
		{"a GET that tells of a body", "GET /b/k", 0, map[string]string{"x-amz-decoded-content-length": "5"}, s3wire.Payload{}, "InvalidRequest"},
		{"a copy with a body", "PUT /b/k", 5, map[string]string{"x-amz-copy-source": "b/s"}, s3wire.Payload{}, "InvalidRequest"},
		{"a delete with a body", "DELETE /b/k", -1, nil, s3wire.Payload{}, "InvalidRequest"},
		{"a preflight with a body", "OPTIONS /b/k", 5, map[string]string{"origin": "a", "access-control-request-method": "GET"}, s3wire.Payload{}, "InvalidRequest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			method, target, _ := strings.Cut(c.line, " ")
			r := &http.Request{Method: method, Host: domain, RequestURI: target, Header: http.Header{}, ContentLength: c.length}
			if c.length < 0 {
				r.TransferEncoding = []string{"chunked"}
			}
			for name, value := range c.header {
				r.Header.Set(name, value)
			}
			op, err := addressing.Parse(r)
			if c.code != "" {
				wantRefused(t, c.name, op, err, c.code)
				return
			}
			if err != nil || op.Payload != c.want {
				t.Errorf("%+v, %v, want %+v", op.Payload, err, c.want)
			}
		})
	}
	for _, te := range [][]string{{"gzip"}, {"chunked", "chunked"}, {"gzip", "chunked"}, {"identity"}} {
		op, err := addressing.Parse(&http.Request{Method: "PUT", Host: domain, RequestURI: "/b/k", Header: http.Header{}, ContentLength: -1, TransferEncoding: te})
		wantRefused(t, fmt.Sprint(te), op, err)
	}
	op, err := addressing.Parse(&http.Request{Method: "PUT", Host: domain, RequestURI: "/b/k", Header: http.Header{}, Trailer: http.Header{"X-Amz-Checksum-Crc32": nil}})
	wantRefused(t, "a checksum as a trailer of HTTP's", op, err)
}

func TestStrictPrefixes(t *testing.T) {
	for prefix, ok := range map[string]bool{
		"": true, "a": true, "a/": true, "a/b": true, "a/.": true, ".": true, "a/.x": true, "a..": true, "a/b..": true,
		"/": false, "/a": false, "a//": false, "a//b": false, "..": false, "../": false, "a/..": false, "a/../b": false, "./": false, "a/./b": false, "a\x01": false,
	} {
		op, err := read("GET", domain, "/b?list-type=2&prefix="+url.QueryEscape(prefix), nil)
		if err != nil {
			t.Errorf("%q: %v", prefix, err)
		} else if err := op.StrictKey(); (err == nil) != ok {
			t.Errorf("prefix %q: %v", prefix, err)
		}
	}
	if s3wire.StrictKey("a/b/") != nil || s3wire.StrictKey("a/../b") == nil || s3wire.StrictKey("") == nil {
		t.Error("StrictKey")
	}
}

// Names that cannot stand before a domain go into the path, and endpoints may have a path of their own.
func TestURL(t *testing.T) {
	for _, c := range []struct{ target, endpoint, path, host string }{
		{"/", "https://e", "https://e/", "https://e/"},
		{"/my-bucket", "https://e", "https://e/my-bucket", "https://my-bucket.e/"},
		{"/my-bucket/", "https://e:9000/", "https://e:9000/my-bucket", "https://my-bucket.e:9000/"},
		{"/my-bucket/a%20b", "http://e", "http://e/my-bucket/a%20b", "http://my-bucket.e/a%20b"},
		{"/with.dots/k", "https://e", "https://e/with.dots/k", "https://e/with.dots/k"},
		{"/Capitals/k", "https://e", "https://e/Capitals/k", "https://e/Capitals/k"},
		{"/under_score/k", "https://e", "https://e/under_score/k", "https://e/under_score/k"},
		{"/ab/k", "https://e", "https://e/ab/k", "https://e/ab/k"},
		{"/my-bucket//k", "https://e", "https://e/my-bucket//k", "https://e/my-bucket//k"},
		{"/my-bucket/k", "https://e/storage%20x/s3/", "https://e/storage%20x/s3/my-bucket/k", "https://my-bucket.e/storage%20x/s3/k"},
		{"/my-bucket?acl", "https://e", "https://e/my-bucket?acl=", "https://my-bucket.e/?acl="},
	} {
		op, err := read("GET", domain, c.target, nil)
		if err != nil {
			t.Errorf("%s: %v", c.target, err)
			continue
		}
		endpoint, _ := url.Parse(c.endpoint)
		if got := urlOf(op, endpoint, true).String(); got != c.path {
			t.Errorf("%s at %s is %s, want %s", c.target, c.endpoint, got, c.path)
		}
		if got := urlOf(op, endpoint, false).String(); got != c.host {
			t.Errorf("%s at %s is %s, want %s", c.target, c.endpoint, got, c.host)
		}
	}
}

// A request that this process makes itself has no request line.
func TestParseOwnRequest(t *testing.T) {
	for target, key := range map[string]string{"https://" + domain + "/b/a%2Fb%20c?versionId=v": "a/b c", "http://b." + domain + "//k": "/k", "https://" + domain: ""} {
		r, err := http.NewRequest("GET", target, nil)
		if err != nil {
			t.Fatal(err)
		}
		op, err := addressing.Parse(r)
		if err != nil || op.Key != key || op.Bucket != "" && op.Bucket != "b" {
			t.Errorf("%s: %+v, %v", target, op, err)
		}
	}
}

// What was understood before an error is there for the record.
func TestErrorsNameTheOperation(t *testing.T) {
	op, err := read("GET", domain, "/b/k?versionId=v", http.Header{"X-Amz-Made-Up": {"1"}})
	if err == nil || op == nil || op.Name != "GetObject" || op.Bucket != "b" || op.Key != "k" || op.VersionID != "v" {
		t.Errorf("%+v, %v", op, err)
	}
	if op, err := read("GET", domain, "/b/%zz", nil); err == nil || op == nil || op.Bucket != "b" || op.Key != "" {
		t.Errorf("%+v, %v", op, err)
	}
	if op, err := read("GET", domain, "/%zz/k", nil); err == nil || op != nil && op.Bucket != "" {
		t.Errorf("%+v, %v", op, err)
	}
	if got := s3wire.Unsupported(); !slices.Equal(got, []string{"CreateSession", "ListDirectoryBuckets", "WriteGetObjectResponse"}) {
		t.Errorf("unsupported: %v", got)
	}
}

func TestBodyAccesses(t *testing.T) {
	create, _ := read("PUT", domain, "/bucket", nil)
	restore, _ := read("POST", domain, "/bucket/k?restore", nil)
	other, _ := read("PUT", domain, "/bucket/k", nil)
	if other.BodyLimit() != 0 || create.BodyLimit() == 0 || restore.BodyLimit() == 0 {
		t.Error("limits")
	}
	const ns = ` xmlns="http://s3.amazonaws.com/doc/2006-03-01/"`
	for _, c := range []struct {
		op   *s3wire.Operation
		body string
		want string // the action, "" = none, or the error's code
	}{
		{create, "", ""},
		{create, " \n", ""},
		{create, "<CreateBucketConfiguration" + ns + "><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>", ""},
		{create, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<CreateBucketConfiguration/>", ""},
		{create, "<CreateBucketConfiguration><Tags/></CreateBucketConfiguration>", ""},
		{create, "<CreateBucketConfiguration><Tags><Tag><Key>a</Key><Value>b</Value></Tag></Tags></CreateBucketConfiguration>", "s3:TagResource"},
		{create, "<CreateBucketConfiguration><Bucket><Type>Directory</Type></Bucket></CreateBucketConfiguration>", "NotImplemented"},
		{create, "<CreateBucketConfiguration><x:Tags/></CreateBucketConfiguration>", "NotImplemented"},
		{create, "<!DOCTYPE a><CreateBucketConfiguration/>", "MalformedXML"},
		{create, "<CreateBucketConfiguration><!-- --></CreateBucketConfiguration>", "MalformedXML"},
		{create, "<?xml version=\"1.0\" encoding=\"UTF-16\"?><CreateBucketConfiguration/>", "MalformedXML"},
		{create, "<CreateBucketConfiguration>\xff</CreateBucketConfiguration>", "MalformedXML"},
		{create, "<a", "MalformedXML"},
		{create, strings.Repeat(" ", 300<<10), "MaxMessageLengthExceeded"},
		{restore, "<RestoreRequest><Days>1</Days><GlacierJobParameters><Tier>Bulk</Tier></GlacierJobParameters></RestoreRequest>", ""},
		{restore, "<RestoreRequest><Type>SELECT</Type><OutputLocation><S3><BucketName>other</BucketName></S3></OutputLocation></RestoreRequest>", "NotImplemented"},
		{restore, "<RestoreRequest><OutputLocation/></RestoreRequest>", "NotImplemented"},
		{restore, "<RestoreRequest><SelectParameters/></RestoreRequest>", "NotImplemented"},
	} {
		got, err := c.op.BodyAccesses([]byte(c.body))
		var e *s3wire.Error
		switch {
		case errors.As(err, &e):
			if e.Code != c.want {
				t.Errorf("%.80q: %v, want %s", c.body, err, c.want)
			}
		case c.want == "" && len(got) == 0:
		case len(got) != 1 || got[0] != (s3wire.Access{Action: c.want, Bucket: "bucket"}):
			t.Errorf("%.80q needs %v, want %q", c.body, got, c.want)
		}
	}

	create.Payload.Trailer = "x-amz-checksum-crc32"
	out := create.WholeBody([]byte("hello world"))
	if out.Length != 11 || out.SHA256 != "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9" || out.Header["x-amz-checksum-crc32"] != "DUoRhQ==" {
		t.Errorf("%+v", out)
	}
}

// Every operation with any of its parameters and headers, in any spelling, is read as itself and, written and read
// again, as itself still.
func TestEveryOperationComesBack(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		runes := []rune(" abc/.+%&=;?#\"'<>~üß漢😀\u0301-_*!")
		var b strings.Builder
		for range 1 + random.IntN(8) {
			b.WriteRune(runes[random.IntN(len(runes))])
		}
		return b.String()
	}
	fixed := map[string]string{"list-type": "2", "select-type": "2", "encoding-type": "url", "partNumber": "7", "part-number-marker": "3"}
	for _, info := range s3wire.Operations() {
		if info.Why != "" || info.Name == "PreflightRequest" {
			continue
		}
		for range 60 {
			header, query, want := http.Header{}, []string{}, map[string]string{}
			add := func(name string) {
				value := ""
				switch v, ok := fixed[name]; {
				case ok:
					value = v
				case strings.HasPrefix(name, "max-"):
					value = fmt.Sprint(random.IntN(1000))
				case strings.HasPrefix(name, "response-") || strings.ContainsAny(name, "-IN") && name != "intelligent-tiering" && name != "object-lock" && name != "legal-hold" || slices.Contains([]string{"prefix", "delimiter", "marker", "id"}, name):
					value = text()
				}
				want[name] = value
				query = append(query, name+"="+url.QueryEscape(value))
			}
			for _, name := range info.Selected {
				if strings.HasPrefix(name, "x-amz-") {
					header.Set(name, "bucket/"+url.PathEscape("source"))
				} else if strings.HasPrefix(name, "metadata") || strings.ToLower(name) != name && !slices.Contains([]string{"partNumber", "uploadId", "annotationName"}, name) {
					want[name] = ""
					query = append(query, name)
				} else {
					add(name)
				}
			}
			for _, name := range info.Query {
				if random.IntN(2) == 0 {
					add(name)
				}
			}
			for _, name := range info.Headers {
				if random.IntN(3) > 0 || name == "content-encoding" {
					continue
				}
				value := strings.TrimSpace(text())
				switch {
				case strings.HasSuffix(name, "-source"):
					continue
				case name == "x-amz-bypass-governance-retention" || name == "x-amz-bucket-object-lock-enabled":
					value = "true"
				case name == "x-amz-meta-*":
					name = "x-amz-meta-" + []string{"a", "some-name", "with_underscore"}[random.IntN(3)]
				}
				if strings.HasPrefix(name, "x-amz-") && random.IntN(4) == 0 {
					query = append(query, name+"="+url.QueryEscape(value)) // as presigners do
				} else {
					header.Set(name, value)
				}
			}
			random.Shuffle(len(query), func(i, j int) { query[i], query[j] = query[j], query[i] })
			key := text()
			target := map[string]string{"service": "/", "bucket": "/my-bucket", "object": "/my-bucket/" + url.PathEscape(key)}[info.Level]
			if info.Name == "RenameObject" {
				header.Set("x-amz-rename-source", "my-bucket/s")
			}
			r := &http.Request{Method: info.Method, Host: domain, RequestURI: target + "?" + strings.Join(query, "&"), Header: header}
			op, err := addressing.Parse(r)
			if err != nil || op.Name != info.Name {
				t.Fatalf("%s %s %v: %+v, %v", r.Method, r.RequestURI, header, op, err)
			}
			got := op.PolicyQuery()
			for _, name := range []string{"prefix", "delimiter"} {
				if want[name] == "" {
					delete(want, name)
				}
			}
			if !maps.Equal(got, want) || info.Level == "object" && op.Key != key {
				t.Fatalf("%s: key %q, query %v, want %q, %v", r.RequestURI, op.Key, got, key, want)
			}
			for _, style := range []bool{true, false} {
				back, err := again(op, style)
				if err != nil || !same(op, back) {
					t.Fatalf("%s is sent as %s and read as %+v, %v", r.RequestURI, rewritten(op), back, err)
				}
			}
		}
	}
}

var update = flag.Bool("update", false, "write docs/operations.md")

// Whoever reads the README alone knows what cannot be done.
func TestREADMEListsWhatIsNotDone(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## Not supported\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if !found || len(s3wire.Unsupported()) == 0 {
		t.Fatal("nothing to look at")
	}
	for _, name := range s3wire.Unsupported() {
		if !strings.Contains(section, "`"+name+"`") {
			t.Errorf("README.md does not say that %s is not supported", name)
		}
	}
}

// docs/operations.md is the table for people.
func TestDocumentation(t *testing.T) {
	const file = "../../docs/operations.md"
	want := documentation()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("%s is not what the table says: go test ./proxy/s3wire -run TestDocumentation -update", file)
	}
}

func documentation() string {
	var b strings.Builder
	b.WriteString(`# Operations

Every request is one of these, or it is refused. The operations, their parameters and their headers are those of AWS's
current model of S3; the actions are those of its Service Authorization Reference, so that what you know of IAM
policies holds. This page is written from the table in ` + "`proxy/s3wire/table.go`" + ` by its test.

Policy is asked once for each action. Where a request names a version, the action after the arrow is asked for
instead. A request needs more where its headers ask for more:

| header | on | needs as well |
|---|---|---|
| ` + "`x-amz-copy-source`" + ` | CopyObject, UploadPartCopy | ` + "`s3:GetObject`" + ` (with a version ` + "`s3:GetObjectVersion`" + `) on the source |
| ` + "`x-amz-rename-source`" + ` | RenameObject | ` + "`s3:GetObject`, `s3:DeleteObject`" + ` on the source |
| ` + "`x-amz-acl`, `x-amz-grant-*`" + ` | whatever makes an object; CreateBucket | ` + "`s3:PutObjectAcl`; `s3:PutBucketAcl`" + ` |
| ` + "`x-amz-tagging`" + ` | whatever makes an object | ` + "`s3:PutObjectTagging`" + ` |
| ` + "`x-amz-object-lock-mode`, `-retain-until-date`, `-event-hold*`" + ` | whatever makes an object | ` + "`s3:PutObjectRetention`" + ` |
| ` + "`x-amz-object-lock-legal-hold`" + ` | whatever makes an object | ` + "`s3:PutObjectLegalHold`" + ` |
| ` + "`x-amz-bypass-governance-retention: true`" + ` | DeleteObject, DeleteObjects, PutObjectRetention | ` + "`s3:BypassGovernanceRetention`" + ` |
| ` + "`x-amz-object-annotation-directive: COPY`" + ` | CopyObject | ` + "`s3:GetObjectAnnotation` (`s3:GetObjectVersionAnnotation`)" + ` on the source, ` + "`s3:PutObjectAnnotation`" + ` |
| ` + "`x-amz-bucket-object-lock-enabled: true`" + ` | CreateBucket | ` + "`s3:PutBucketObjectLockConfiguration`, `s3:PutBucketVersioning`" + ` |
| ` + "`x-amz-object-ownership`" + ` | CreateBucket | ` + "`s3:PutBucketOwnershipControls`" + ` |

"Whatever makes an object" is PutObject, CopyObject and CreateMultipartUpload. Tags in the body of CreateBucket need
` + "`s3:TagResource`" + `. DeleteObjects needs its action on every key in its body, ` + "`s3:DeleteObjectVersion`" + ` where an entry names
a version. A copy that takes the source's tags along (S3's default) is not asked about tags: only S3 knows whether there
are any, and holds the role to ` + "`s3:GetObjectTagging`" + ` and ` + "`s3:PutObjectTagging`" + ` if there are. ListBuckets then shows only the
buckets on which ` + "`s3:ListBucket`" + ` is allowed.

| operation | request | needs |
|---|---|---|
`)
	for _, op := range s3wire.Operations() {
		target := map[string]string{"service": "/", "bucket": "/bucket", "object": "/bucket/key"}[op.Level]
		var query, with []string
		for _, name := range op.Selected {
			switch {
			case strings.HasPrefix(name, "x-amz-"):
				with = append(with, name)
			case strings.HasSuffix(name, "-type"):
				query = append(query, name+"=2")
			case name == "id" || name == "uploadId" || name == "partNumber" || name == "annotationName":
				query = append(query, name+"=…")
			default:
				query = append(query, name)
			}
		}
		if len(query) > 0 {
			target += "?" + strings.Join(query, "&")
		}
		request := "`" + op.Method + " " + target + "`"
		if len(with) > 0 {
			request += " with `" + strings.Join(with, "`, `") + "`"
		}
		if op.Name == "WriteGetObjectResponse" {
			request = "`POST /WriteGetObjectResponse` with `x-amz-request-route`"
		}
		needs := ""
		for i, action := range op.Actions {
			if i > 0 {
				needs += ", "
			}
			needs += "`" + action + "`"
			if op.Versioned[i] != action {
				needs += " → `" + op.Versioned[i] + "`"
			}
		}
		if op.Name == "PreflightRequest" {
			needs = "nothing: browsers send it without credentials, and the bucket's own CORS rules answer it"
		}
		if op.Why != "" {
			needs = "**not supported** (501): " + op.Why
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", op.Name, request, needs)
	}
	return b.String()
}

// urlOf is where op is sent.
func urlOf(op *s3wire.Operation, endpoint *url.URL, pathStyle bool) *url.URL {
	u := new(url.URL)
	op.WriteURL(u, endpoint, pathStyle)
	return u
}
