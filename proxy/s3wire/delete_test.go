package s3wire_test

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

func md5Header(body string) http.Header {
	sum := md5.Sum([]byte(body))
	return http.Header{"Content-Md5": {base64.StdEncoding.EncodeToString(sum[:])}}
}

func parseDelete(body string) (*s3wire.Delete, error) {
	return s3wire.ParseDelete(strings.NewReader(body), md5Header(body))
}

var all = func(int) bool { return true }

func errorCode(err error) string {
	var e *s3wire.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

func TestParseDelete(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       s3wire.Delete
	}{
		{"the SDKs'", `<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Object><Key>a</Key></Object><Object><Key>b</Key><VersionId>1</VersionId></Object><Quiet>true</Quiet></Delete>`,
			s3wire.Delete{Quiet: true, Objects: []s3wire.DeleteObject{{Key: "a"}, {Key: "b", VersionID: "1"}}}},
		{"with a declaration and space", "<?xml version=\"1.0\" encoding='utf-8' standalone=\"yes\" ?>\n<Delete>\r\n\t<Quiet> false\n</Quiet >\n <Object >\n<Key>a</Key>\n</Object>\n</Delete>\n\n",
			s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a"}}}},
		{"space first", "\n<Delete><Object><Key>a</Key></Object></Delete>", s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a"}}}},
		{"conditions", `<Delete><Object><ETag>"d41d8"</ETag><Key>a</Key><LastModifiedTime>Wed, 21 Oct 2015 07:28:00 GMT</LastModifiedTime><Size>12</Size></Object></Delete>`,
			s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a", ETag: `"d41d8"`, LastModifiedTime: "Wed, 21 Oct 2015 07:28:00 GMT", Size: "12"}}}},
		{"no version", `<Delete><Object><Key>a</Key><VersionId/></Object><Object><Key>b</Key><VersionId></VersionId></Object></Delete>`,
			s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a"}, {Key: "b"}}}},
		{"the null version", `<Delete><Object><Key>a</Key><VersionId>null</VersionId></Object></Delete>`,
			s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a", VersionID: "null"}}}},
		{"the same key twice", `<Delete><Object><Key>a</Key></Object><Object><Key>a</Key></Object></Delete>`,
			s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a"}, {Key: "a"}}}},
		{"keys of all kinds", `<Delete><Object><Key> a  b </Key></Object><Object><Key>&lt;a&gt;&amp;&quot;&apos;</Key></Object><Object><Key>ü/日本語/😀</Key></Object>` +
			`<Object><Key>&#x10FFFD;&#65;&#x0041;</Key></Object><Object><Key>/../a//b/.</Key></Object><Object><Key>a>b]]&gt;</Key></Object><Object><Key>%2F+%00</Key></Object></Delete>`,
			s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: " a  b "}, {Key: `<a>&"'`}, {Key: "ü/日本語/😀"}, {Key: "\U0010FFFDAA"}, {Key: "/../a//b/."}, {Key: "a>b]]>"}, {Key: "%2F+%00"}}}},
		{"control characters", "<Delete><Object><Key>a&#13;b</Key></Object><Object><Key>a&#xD;&#xA;b</Key></Object><Object><Key>a\nb\tc</Key></Object><Object><Key>&#1;&#x1F;&#127;</Key></Object></Delete>",
			s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a\rb"}, {Key: "a\r\nb"}, {Key: "a\nb\tc"}, {Key: "\x01\x1f\x7f"}}}},
		{"a namespace of the client's", `<Delete xmlns = 'http://doc.s3.amazonaws.com/2006-03-01'><Object><Key>a</Key></Object></Delete>`,
			s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := parseDelete(c.body)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&c.want, d, cmpopts.IgnoreUnexported(s3wire.Delete{})); diff != "" {
				t.Error(diff)
			}
			again, header := d.Encode(all)
			d2, err := s3wire.ParseDelete(bytes.NewReader(again), header)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&c.want, d2, cmpopts.IgnoreUnexported(s3wire.Delete{})); diff != "" {
				t.Errorf("encoded: %s", diff)
			}
		})
	}
}

func TestT04DeleteObjectsThatAreNotUnderstood(t *testing.T) {
	const object = "<Object><Key>a</Key></Object>"
	for _, c := range []struct{ name, body string }{
		{"no XML", "a"},
		{"JSON", `{"Objects": [{"Key": "a"}]}`},
		{"another root", "<delete>" + object + "</delete>"},
		{"an empty root", "<Delete/>"},
		{"no object", "<Delete></Delete>"},
		{"only quiet", "<Delete><Quiet>true</Quiet></Delete>"},
		{"an empty object", "<Delete><Object/></Delete>"},
		{"an object without a key", "<Delete><Object><VersionId>1</VersionId></Object></Delete>"},
		{"an empty key", "<Delete><Object><Key></Key></Object></Delete>"},
		{"an empty key tag", "<Delete><Object><Key/></Object></Delete>"},
		{"two keys", "<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>"},
		{"two versions", "<Delete><Object><Key>a</Key><VersionId>1</VersionId><VersionId>2</VersionId></Object></Delete>"},
		{"two quiets", "<Delete><Quiet>false</Quiet>" + object + "<Quiet>true</Quiet></Delete>"},
		{"a quiet that is neither", "<Delete><Quiet>maybe</Quiet>" + object + "</Delete>"},
		{"an unknown element", "<Delete>" + object + "<Other/></Delete>"},
		{"an unknown element in an object", "<Delete><Object><Key>a</Key><Other>b</Other></Object></Delete>"},
		{"a key outside an object", "<Delete>" + object + "<Key>b</Key></Delete>"},
		{"an object in an object", "<Delete><Object><Key>a</Key>" + object + "</Object></Delete>"},
		{"an element in a key", "<Delete><Object><Key>a<b/>c</Key></Object></Delete>"},
		{"a key in a key", "<Delete><Object><Key><Key>a</Key></Key></Object></Delete>"},
		{"another case", "<Delete><object><key>a</key></object></Delete>"},
		{"a prefix", `<Delete xmlns:s="http://s3.amazonaws.com/doc/2006-03-01/">` + object + "</Delete>"},
		{"a prefixed element", `<Delete><s:Object><Key>a</Key></s:Object></Delete>`},
		{"an attribute", `<Delete><Object a="b"><Key>a</Key></Object></Delete>`},
		{"an attribute of the root", `<Delete xmlns="" a="b">` + object + "</Delete>"},
		{"a namespace on a key", `<Delete><Object><Key xmlns="a">a</Key></Object></Delete>`},
		{"an attribute on an end tag", `<Delete>` + object + `</Delete a="b">`},
		{"text in the root", "<Delete>a" + object + "</Delete>"},
		{"text in an object", "<Delete><Object>a<Key>a</Key></Object></Delete>"},
		{"text after the root", "<Delete>" + object + "</Delete>a"},
		{"two roots", strings.Repeat("<Delete>"+object+"</Delete>", 2)},
		{"not closed", "<Delete>" + object},
		{"an object not closed", "<Delete><Object><Key>a</Key></Delete>"},
		{"closed in the wrong order", "<Delete><Object><Key>a</Object></Key></Delete>"},
		{"an end tag too many", "<Delete>" + object + "</Object></Delete>"},

		{"a comment inside a key", "<Delete><Object><Key>acme/<!-- -->../b</Key></Object></Delete>"},
		{"a comment instead of a key", "<Delete><Object><Key><!--a--></Key></Object></Delete>"},
		{"a comment", "<Delete><!-- a -->" + object + "</Delete>"},
		{"a comment first", "<!-- a --><Delete>" + object + "</Delete>"},
		{"a comment last", "<Delete>" + object + "</Delete><!-- a -->"},
		{"CDATA in a key", "<Delete><Object><Key><![CDATA[a]]></Key></Object></Delete>"},
		{"CDATA in the middle of a key", "<Delete><Object><Key>a<![CDATA[b]]>c</Key></Object></Delete>"},
		{"a processing instruction", "<Delete><?a b?>" + object + "</Delete>"},
		{"a processing instruction first", "<?a b?><Delete>" + object + "</Delete>"},
		{"a style sheet", `<?xml-stylesheet href="a"?><Delete>` + object + "</Delete>"},
		{"a document type", "<!DOCTYPE Delete><Delete>" + object + "</Delete>"},
		{"an entity", `<!DOCTYPE Delete [<!ENTITY a "b">]><Delete><Object><Key>&a;</Key></Object></Delete>`},
		{"an external entity", `<?xml version="1.0"?><!DOCTYPE Delete [<!ENTITY a SYSTEM "file:///etc/passwd">]><Delete><Object><Key>&a;</Key></Object></Delete>`},
		{"an unknown entity", "<Delete><Object><Key>a&nbsp;b</Key></Object></Delete>"},
		{"an entity in another case", "<Delete><Object><Key>a&AMP;b</Key></Object></Delete>"},
		{"a bare ampersand", "<Delete><Object><Key>a&b</Key></Object></Delete>"},
		{"an empty reference", "<Delete><Object><Key>a&;b</Key></Object></Delete>"},
		{"a reference not closed", "<Delete><Object><Key>a&#65</Key></Object></Delete>"},
		{"a reference with a sign", "<Delete><Object><Key>a&#+65;</Key></Object></Delete>"},
		{"a reference with an upper case X", "<Delete><Object><Key>a&#X41;</Key></Object></Delete>"},
		{"a reference with space", "<Delete><Object><Key>a&# 65;</Key></Object></Delete>"},
		{"a reference to nothing", "<Delete><Object><Key>a&#;</Key></Object></Delete>"},
		{"a reference to nothing in hex", "<Delete><Object><Key>a&#x;</Key></Object></Delete>"},
		{"a reference to NUL", "<Delete><Object><Key>a&#0;b</Key></Object></Delete>"},
		{"a reference to NUL in hex", "<Delete><Object><Key>a&#x0000;b</Key></Object></Delete>"},
		{"a reference to a surrogate", "<Delete><Object><Key>&#xD800;</Key></Object></Delete>"},
		{"two surrogates", "<Delete><Object><Key>&#xD83D;&#xDE00;</Key></Object></Delete>"},
		{"a reference over Unicode", "<Delete><Object><Key>&#x110000;</Key></Object></Delete>"},
		{"a reference over 32 bits", "<Delete><Object><Key>&#x100000041;</Key></Object></Delete>"},
		{"a reference to a non-character", "<Delete><Object><Key>&#xFFFE;</Key></Object></Delete>"},
		{"a non-character", "<Delete><Object><Key>a\uFFFF</Key></Object></Delete>"},
		{"NUL", "<Delete><Object><Key>a\x00b</Key></Object></Delete>"},
		{"a control character", "<Delete><Object><Key>a\x01b</Key></Object></Delete>"},
		{"a bare CR", "<Delete><Object><Key>a\rb</Key></Object></Delete>"},
		{"a bare CR LF", "<Delete><Object><Key>a\r\nb</Key></Object></Delete>"},
		{"invalid UTF-8", "<Delete><Object><Key>a\xff</Key></Object></Delete>"},
		{"an overlong slash", "<Delete><Object><Key>a\xc0\xafb</Key></Object></Delete>"},
		{"a surrogate in UTF-8", "<Delete><Object><Key>\xed\xa0\x80</Key></Object></Delete>"},
		{"the end of a CDATA section", "<Delete><Object><Key>a]]>b</Key></Object></Delete>"},

		{"a byte order mark", "\xEF\xBB\xBF<Delete>" + object + "</Delete>"},
		{"UTF-16", "\xFF\xFE<\x00D\x00e\x00l\x00e\x00t\x00e\x00>\x00"},
		{"another encoding", `<?xml version="1.0" encoding="UTF-7"?><Delete>` + object + "</Delete>"},
		{"Latin 1", `<?xml version="1.0" encoding="ISO-8859-1"?><Delete>` + object + "</Delete>"},
		{"another version", `<?xml version="2.0"?><Delete>` + object + "</Delete>"},
		{"a declaration without version", `<?xml encoding="UTF-8"?><Delete>` + object + "</Delete>"},
		{"a declaration out of order", `<?xml version="1.0" standalone="no" encoding="UTF-8"?><Delete>` + object + "</Delete>"},
		{"two encodings", `<?xml version="1.0" encoding="UTF-8" encoding="UTF-7"?><Delete>` + object + "</Delete>"},
		{"two declarations", strings.Repeat(`<?xml version="1.0"?>`, 2) + "<Delete>" + object + "</Delete>"},
		{"a declaration after space", ` <?xml version="1.0"?><Delete>` + object + "</Delete>"},
		{"a size that is no number", "<Delete><Object><Key>a</Key><Size>-1</Size></Object></Delete>"},
		{"1,001 keys", "<Delete>" + strings.Repeat(object, 1001) + "</Delete>"},
		{"deep", strings.Repeat("<Delete>", 10000)},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := parseDelete(c.body)
			if code := errorCode(err); code != "MalformedXML" {
				t.Errorf("%+v, error %v, want MalformedXML", d, err)
			}
		})
	}
}

func TestT04DeleteObjectsBounds(t *testing.T) {
	const object = "<Object><Key>a</Key></Object>"
	d, err := parseDelete("<Delete>" + strings.Repeat(object, 1000) + "</Delete>")
	if err != nil || len(d.Objects) != 1000 {
		t.Errorf("1,000 keys: %v", err)
	}
	fill := func(n int) string {
		const frame = "<Delete>" + object + "</Delete>"
		return "<Delete>" + object + strings.Repeat(" ", n-len(frame)) + "</Delete>"
	}
	if _, err := parseDelete(fill(2 << 20)); err != nil {
		t.Errorf("2 MiB: %v", err)
	}
	if _, err := parseDelete(fill(2<<20 + 1)); errorCode(err) != "MaxMessageLengthExceeded" {
		t.Errorf("over 2 MiB: %v", err)
	}
	endless := io.MultiReader(strings.NewReader("<Delete>"), &loop{of: []byte(object), left: 1 << 40})
	if _, err := s3wire.ParseDelete(endless, md5Header("")); errorCode(err) != "MaxMessageLengthExceeded" {
		t.Errorf("endless: %v", err)
	}
	if _, err := parseDelete(""); errorCode(err) != "MissingRequestBodyError" {
		t.Errorf("no body: %v", err)
	}
	gone := errors.New("connection reset")
	if _, err := s3wire.ParseDelete(iotest.ErrReader(gone), md5Header("")); !errors.Is(err, gone) {
		t.Errorf("the client's own error: %v", err)
	}
}

func TestT04DeleteObjectsDigests(t *testing.T) {
	const body = "<Delete><Object><Key>a</Key></Object></Delete>"
	nvme := crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5))
	io.WriteString(nvme, body)
	crc64nvme := base64.StdEncoding.EncodeToString(nvme.Sum(nil))
	header := func(pairs ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			h.Add(pairs[i], pairs[i+1])
		}
		return h
	}
	good := md5Header(body).Get("Content-Md5")
	for _, c := range []struct {
		name   string
		header http.Header
		code   string
	}{
		{"MD5", header("Content-MD5", good), "<nil>"},
		{"wrong MD5", header("Content-MD5", md5Header("").Get("Content-Md5")), "BadDigest"},
		{"MD5 in hex", header("Content-MD5", "d41d8cd98f00b204e9800998ecf8427e"), "InvalidDigest"},
		{"empty MD5", header("Content-MD5", ""), "InvalidDigest"},
		{"two MD5s", header("Content-MD5", good, "Content-MD5", good), "InvalidDigest"},
		{"crc32", header("X-Amz-Checksum-Crc32", "WJH8Dw=="), "BadDigest"},
		{"crc64nvme", header("X-Amz-Checksum-Crc64nvme", crc64nvme), "<nil>"},
		{"both", header("X-Amz-Checksum-Crc64nvme", crc64nvme, "Content-MD5", good), "<nil>"},
		{"right checksum, wrong MD5", header("X-Amz-Checksum-Crc64nvme", crc64nvme, "Content-MD5", md5Header("").Get("Content-Md5")), "BadDigest"},
		{"right MD5, wrong checksum", header("X-Amz-Checksum-Crc64nvme", "AAAAAAAAAAA=", "Content-MD5", good), "BadDigest"},
		{"two checksums", header("X-Amz-Checksum-Crc64nvme", crc64nvme, "X-Amz-Checksum-Sha1", "AAAA"), "InvalidRequest"},
		{"malformed checksum", header("X-Amz-Checksum-Sha256", "AAAA"), "InvalidRequest"},
		{"xxhash", header("X-Amz-Checksum-Xxhash64", "AAAAAAAAAAA="), "InvalidRequest"},
		{"trailer", header("X-Amz-Trailer", "x-amz-checksum-crc32"), "<nil>"},
		{"none", header(), "InvalidRequest"},
		{"payload hash alone", header("X-Amz-Content-Sha256", strings.Repeat("0", 64)), "InvalidRequest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s3wire.ParseDelete(strings.NewReader(body), c.header)
			if code := errorCode(err); code != c.code {
				t.Errorf("error %v, want %s", err, c.code)
			}
		})
	}
}

func TestT04DeleteObjectsGzip(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, "<Delete><Object><Key>a</Key></Object></Delete>")
	w.Close()
	if _, err := parseDelete(b.String()); errorCode(err) != "MalformedXML" {
		t.Errorf("error %v", err)
	}
}

// The envelope must be opened before the keys are read, and whatever is wrong with it refuses all of them.
func TestT04DeleteObjectsChunked(t *testing.T) {
	const body = "<Delete><Object><Key>a</Key></Object></Delete>"
	framed := frame([]byte(body), 8192, crc32Trailer([]byte(body)))
	header := http.Header{"X-Amz-Trailer": {"x-amz-checksum-crc32"}}
	if _, err := s3wire.ParseDelete(strings.NewReader(framed), header); errorCode(err) != "MalformedXML" {
		t.Errorf("framed: %v", err)
	}
	r, err := trailerPayload(len(body)).Unframed(strings.NewReader(framed), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	d, err := s3wire.ParseDelete(r, header)
	if err != nil {
		t.Fatal(err)
	}
	if _, digests := d.Encode(all); digests.Get("X-Amz-Checksum-Crc32") == "" {
		t.Errorf("digests %v", digests)
	}
	r, err = trailerPayload(len(body)).Unframed(strings.NewReader(frame([]byte(body), 8192, crc32Trailer(nil))), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s3wire.ParseDelete(r, header); errorCode(err) != "BadDigest" {
		t.Errorf("wrong trailer: %v", err)
	}
}

func TestT04DeleteObjectsMixed(t *testing.T) {
	const body = `<Delete><Object><Key>acme/a</Key></Object><Object><Key>evil/b</Key></Object><Object><Key>acme/a</Key><VersionId>7</VersionId></Object><Object><Key>evil/b</Key></Object></Delete>`
	d, err := parseDelete(body)
	if err != nil {
		t.Fatal(err)
	}
	wantAccesses := []s3wire.Access{
		{Action: "s3:DeleteObject", Bucket: "b", Key: "acme/a"},
		{Action: "s3:DeleteObject", Bucket: "b", Key: "evil/b"},
		{Action: "s3:DeleteObjectVersion", Bucket: "b", Key: "acme/a", VersionID: "7"},
		{Action: "s3:DeleteObject", Bucket: "b", Key: "evil/b"},
	}
	if diff := cmp.Diff(wantAccesses, d.Accesses("b")); diff != "" {
		t.Error(diff)
	}
	refused := map[int]string{1: "not yours", 3: "not yours"}
	sent, header := d.Encode(func(i int) bool { return refused[i] == "" })
	if want := `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Object><Key>acme/a</Key></Object><Object><Key>acme/a</Key><VersionId>7</VersionId></Object></Delete>`; string(sent) != want {
		t.Errorf("sent %s", sent)
	}
	if header.Get("Content-MD5") != md5Header(string(sent)).Get("Content-MD5") {
		t.Errorf("header %v", header)
	}

	answer := "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n <Deleted><Key>acme/a</Key></Deleted>\n <Error><Key>acme/a</Key><VersionId>7</VersionId><Code>InternalError</Code><Message>We &amp; you</Message></Error>\n</DeleteResult>\n"
	got, err := d.Result(strings.NewReader(answer), refused)
	if err != nil {
		t.Fatal(err)
	}
	want := "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n <Deleted><Key>acme/a</Key></Deleted>\n <Error><Key>acme/a</Key><VersionId>7</VersionId><Code>InternalError</Code><Message>We &amp; you</Message></Error>" +
		strings.Repeat("<Error><Key>evil/b</Key><Code>AccessDenied</Code><Message>not yours</Message></Error>", 2) + "</DeleteResult>"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestDeleteResult(t *testing.T) {
	d := &s3wire.Delete{Objects: []s3wire.DeleteObject{{Key: "a<\r\n>", VersionID: "1"}, {Key: "b"}}}
	refused := map[int]string{1: "no: \x01 <b>", 0: "no"}
	const begin = `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`
	const denied = `<Error><Key>a&lt;&#13;&#10;&gt;</Key><VersionId>1</VersionId><Code>AccessDenied</Code><Message>no</Message></Error>` +
		"<Error><Key>b</Key><Code>AccessDenied</Code><Message>no: \uFFFD &lt;b&gt;</Message></Error></DeleteResult>"
	for _, c := range []struct {
		name, answer, want string
		quiet              bool
	}{
		{"nothing sent", "", begin + denied, false},
		{"nothing deleted", `<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>`, `<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">` + denied, false},
		{"no namespace", "  <DeleteResult><Deleted/></DeleteResult>", "<DeleteResult><Deleted/>" + denied, false},
		{"quiet", "<DeleteResult><Deleted><Key>c</Key></Deleted><Error><Key>d</Key></Error></DeleteResult>", "<DeleteResult><Error><Key>d</Key></Error>" + denied, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d.Quiet = c.quiet
			var answer io.Reader
			if c.answer != "" {
				answer = strings.NewReader(c.answer)
			}
			got, err := d.Result(answer, refused)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Error(diff)
			}
			var parsed struct {
				Error []struct{ Key, Code string }
			}
			if err := xml.Unmarshal(got, &parsed); err != nil || parsed.Error[len(parsed.Error)-2].Key != "a<\r\n>" {
				t.Errorf("%+v, %v", parsed, err)
			}
		})
	}
	for _, answer := range []string{
		"", " ", "ok", "<html></html>", "<Error><Code>SlowDown</Code></Error>", "<DeleteResult>", "<DeleteResult><Deleted></DeleteResult>",
		"<DeleteResult>a</DeleteResult>", "<DeleteResult></DeleteResult><x/>", "<DeleteResult><!-- --></DeleteResult>",
		"<DeleteResult>" + strings.Repeat("<a>", 1000) + "</DeleteResult>",
	} {
		if got, err := d.Result(strings.NewReader(answer), refused); err == nil {
			t.Errorf("%q gave %s", answer, got)
		}
	}
}

// What parses is sent as what was parsed, and another parser reads the same of it. What another parser reads otherwise
// does not parse.
func FuzzDelete(f *testing.F) {
	f.Add("<Delete><Object><Key>a</Key></Object></Delete>")
	f.Add(`<?xml version="1.0" encoding="UTF-8"?><Delete xmlns="a"><Quiet>true</Quiet><Object><Key>&#13;&amp;</Key><VersionId>1</VersionId></Object></Delete>`)
	f.Add("<Delete><Object><Key>a<!-- -->b</Key></Object></Delete>")
	f.Add("<Delete><Object><Key><![CDATA[a]]></Key></Object></Delete>")
	f.Fuzz(func(t *testing.T, body string) {
		d, err := parseDelete(body)
		if err != nil {
			if d != nil {
				t.Fatal("both a result and an error")
			}
			return
		}
		sent, header := d.Encode(all)
		again, err := s3wire.ParseDelete(bytes.NewReader(sent), header)
		if err != nil {
			t.Fatalf("%s does not parse: %v", sent, err)
		}
		if again.Quiet != d.Quiet || !slices.Equal(again.Objects, d.Objects) {
			t.Fatalf("%+v became %+v", d, again)
		}
		var other struct {
			Object []struct{ Key, VersionId string }
		}
		for _, text := range []string{body, string(sent)} {
			if err := xml.Unmarshal([]byte(text), &other); err != nil {
				return // it does not know the control characters of XML 1.1
			}
			if len(other.Object) != len(d.Objects) {
				t.Fatalf("another parser reads %d objects of %s", len(other.Object), text)
			}
			for i, o := range other.Object {
				if o.Key != d.Objects[i].Key || o.VersionId != d.Objects[i].VersionID {
					t.Fatalf("another parser reads %q of %s", o, text)
				}
			}
			other.Object = nil
		}
	})
}

func BenchmarkDelete(b *testing.B) {
	var body strings.Builder
	body.WriteString(`<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`)
	for i := range 1000 {
		fmt.Fprintf(&body, "<Object><Key>team/project &amp; more/%064d/object.tar.gz</Key></Object>", i)
	}
	body.WriteString("</Delete>")
	header := md5Header(body.String())
	b.ReportAllocs()
	b.SetBytes(int64(body.Len()))
	for b.Loop() {
		d, err := s3wire.ParseDelete(strings.NewReader(body.String()), header)
		if err != nil {
			b.Fatal(err)
		}
		if sent, _ := d.Encode(all); len(sent) < body.Len() {
			b.Fatal(len(sent))
		}
	}
}
