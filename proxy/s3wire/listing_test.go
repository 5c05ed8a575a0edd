package s3wire_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// only shows what begins with prefix, and prefixes on the way there.
func only(prefix string) func([]s3wire.Listed) ([]bool, error) {
	return func(entries []s3wire.Listed) ([]bool, error) {
		visible := make([]bool, len(entries))
		for i, e := range entries {
			visible[i] = strings.HasPrefix(e.Key, prefix) || e.IsPrefix && strings.HasPrefix(prefix, e.Key)
		}
		return visible, nil
	}
}

// Answers as AWS documents them, indented as there, and as MinIO and versitygw write them.
func TestFilterListing(t *testing.T) {
	for _, c := range []struct {
		name, target, show, answer, want string
	}{
		{"ListObjectsV2", "/quotes?list-type=2", "ExampleObject", `<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
    <Name>quotes</Name>
    <Prefix/>
    <KeyCount>3</KeyCount>
    <MaxKeys>1000</MaxKeys>
    <IsTruncated>false</IsTruncated>
    <Contents>
        <Key>ExampleObject.txt</Key>
        <LastModified>2013-09-17T18:07:53.000Z</LastModified>
        <ETag>&quot;599bab3ed2c697f1d26842727561fd94&quot;</ETag>
        <Size>857</Size>
        <StorageClass>REDUCED_REDUNDANCY</StorageClass>
    </Contents>
    <Contents>
        <Key>secret.txt</Key>
        <Owner><ID>75aa</ID></Owner>
    </Contents>
    <CommonPrefixes>
        <Prefix>photos/</Prefix>
    </CommonPrefixes>
    <New><Key>left as it is</Key></New>
</ListBucketResult>
`, `<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
    <Name>quotes</Name>
    <Prefix/>
    <KeyCount>1</KeyCount>
    <MaxKeys>1000</MaxKeys>
    <IsTruncated>false</IsTruncated>
    <Contents>
        <Key>ExampleObject.txt</Key>
        <LastModified>2013-09-17T18:07:53.000Z</LastModified>
        <ETag>&quot;599bab3ed2c697f1d26842727561fd94&quot;</ETag>
        <Size>857</Size>
        <StorageClass>REDUCED_REDUNDANCY</StorageClass>
    </Contents>
    <New><Key>left as it is</Key></New>
</ListBucketResult>
`},
		{"nothing to leave out", "/b?list-type=2", "", "<ListBucketResult><KeyCount>7</KeyCount><Contents><Key>a</Key></Contents></ListBucketResult>", "<ListBucketResult><KeyCount>7</KeyCount><Contents><Key>a</Key></Contents></ListBucketResult>"},
		{"an empty page goes on", "/b?list-type=2&continuation-token=x", "z", "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b</NextContinuationToken><KeyCount>2</KeyCount><Contents><Key>a</Key></Contents><Contents><Key>b</Key></Contents></ListBucketResult>",
			"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b</NextContinuationToken><KeyCount>0</KeyCount></ListBucketResult>"},
		{"encoding said at the end", "/b?list-type=2&encoding-type=url", "a b/+", "<ListBucketResult><Contents><Key>a+b%2F%2B</Key></Contents><Contents><Key>a+b%2f%2B%C3%BC</Key></Contents><Contents><Key>a b/+</Key></Contents><Contents><Key>%zz</Key></Contents><CommonPrefixes><Prefix>a%20b/</Prefix></CommonPrefixes><EncodingType>url</EncodingType></ListBucketResult>",
			"<ListBucketResult><Contents><Key>a+b%2F%2B</Key></Contents><Contents><Key>a+b%2f%2B%C3%BC</Key></Contents><CommonPrefixes><Prefix>a%20b/</Prefix></CommonPrefixes><EncodingType>url</EncodingType></ListBucketResult>"},
		{"no encoding", "/b?list-type=2&encoding-type=url", "a+b%2F", "<ListBucketResult><Contents><Key>a+b%2Fc</Key></Contents><Contents><Key>a b/c</Key></Contents><EncodingType></EncodingType></ListBucketResult>",
			"<ListBucketResult><Contents><Key>a+b%2Fc</Key></Contents><EncodingType></EncodingType></ListBucketResult>"},
		{"escaped keys", "/b", "<&>\r", "<ListBucketResult><Contents><Key>&lt;&amp;&gt;&#13;</Key></Contents><Contents><Key>&lt;</Key></Contents></ListBucketResult>", "<ListBucketResult><Contents><Key>&lt;&amp;&gt;&#13;</Key></Contents></ListBucketResult>"},
		{"keys that cannot be read", "/b", "", "<ListBucketResult><Contents><Key>&nbsp;</Key></Contents><Contents><Key>a\rb</Key></Contents><Contents><Key>a\xff</Key></Contents><Contents/><Contents><Key/></Contents><Contents><Key>a</Key><Key>b</Key></Contents><Contents><Key>a<b/></Key></Contents><Contents><Key>ok</Key></Contents></ListBucketResult>", "<ListBucketResult><Contents><Key>ok</Key></Contents></ListBucketResult>"},
		{"names as a lenient client reads them", "/b", "z", `<ListBucketResult xmlns:s="a"><contents><Key>a</Key></contents><s:Contents><s:Key>a</s:Key></s:Contents><Contents><key>a</key></Contents><COMMONPREFIXES><Prefix>a</Prefix></COMMONPREFIXES></ListBucketResult>`, `<ListBucketResult xmlns:s="a"></ListBucketResult>`},
		{"an empty answer", "/b?list-type=2", "", `  <ListBucketResult a="b"/>`, `<ListBucketResult a="b"></ListBucketResult>`},

		{"ListObjects with a marker", "/b?delimiter=/", "a", "<ListBucketResult><IsTruncated>true</IsTruncated><NextMarker>b/</NextMarker><Contents><Key>a</Key></Contents><CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes></ListBucketResult>",
			"<ListBucketResult><IsTruncated>true</IsTruncated><NextMarker>b/</NextMarker><Contents><Key>a</Key></Contents></ListBucketResult>"},
		{"ListObjects without a marker", "/b", "a", "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>a</Key></Contents><Contents><Key>b&amp;</Key></Contents></ListBucketResult>",
			"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>a</Key></Contents><NextMarker>b&amp;</NextMarker></ListBucketResult>"},
		{"ListObjects with an empty marker", "/b", "z", "<ListBucketResult><NextMarker/><IsTruncated>true</IsTruncated><Contents><Key>b</Key></Contents><Contents><Key>a</Key></Contents>\n</ListBucketResult>",
			"<ListBucketResult><NextMarker>b</NextMarker><IsTruncated>true</IsTruncated>\n</ListBucketResult>"},
		{"ListObjects, the last is visible", "/b", "b", "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>a</Key></Contents><Contents><Key>b</Key></Contents></ListBucketResult>",
			"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>b</Key></Contents></ListBucketResult>"},
		{"ListObjects at its end", "/b", "a", "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents><Contents><Key>b</Key></Contents></ListBucketResult>",
			"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents></ListBucketResult>"},

		{"ListObjectVersions", "/b?versions", "a", `<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><KeyMarker/><NextKeyMarker>b</NextKeyMarker><NextVersionIdMarker>1</NextVersionIdMarker><IsTruncated>true</IsTruncated>` +
			`<Version><Key>a</Key><VersionId>1</VersionId><IsLatest>true</IsLatest></Version><DeleteMarker><Key>a2</Key></DeleteMarker><DeleteMarker><Key>b</Key></DeleteMarker><Version><VersionId>1</VersionId><Key>b</Key></Version><CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes></ListVersionsResult>`,
			`<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><KeyMarker/><NextKeyMarker>b</NextKeyMarker><NextVersionIdMarker>1</NextVersionIdMarker><IsTruncated>true</IsTruncated>` +
				`<Version><Key>a</Key><VersionId>1</VersionId><IsLatest>true</IsLatest></Version><DeleteMarker><Key>a2</Key></DeleteMarker></ListVersionsResult>`},
		{"ListMultipartUploads", "/b?uploads", "photos/2006/", `<ListMultipartUploadsResult><Bucket>b</Bucket><UploadIdMarker/><NextKeyMarker>my-movie.m2ts</NextKeyMarker><MaxUploads>3</MaxUploads><IsTruncated>true</IsTruncated>` +
			`<Upload><Key>my-divisor</Key><UploadId>XMgb</UploadId><Initiator><ID>a</ID></Initiator></Upload><Upload><Key>photos/2006/a</Key></Upload><CommonPrefixes><Prefix>photos/</Prefix></CommonPrefixes><CommonPrefixes><Prefix>videos/</Prefix></CommonPrefixes></ListMultipartUploadsResult>`,
			`<ListMultipartUploadsResult><Bucket>b</Bucket><UploadIdMarker/><NextKeyMarker>my-movie.m2ts</NextKeyMarker><MaxUploads>3</MaxUploads><IsTruncated>true</IsTruncated>` +
				`<Upload><Key>photos/2006/a</Key></Upload><CommonPrefixes><Prefix>photos/</Prefix></CommonPrefixes></ListMultipartUploadsResult>`},
	} {
		t.Run(c.name, func(t *testing.T) {
			op := parsed(t, "GET", c.target)
			if !op.Listing() {
				t.Errorf("%s is no listing", op.Name)
			}
			var got bytes.Buffer
			if err := op.FilterListing(&got, strings.NewReader(c.answer), only(c.show)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFilterListingAsksByPages(t *testing.T) {
	var answer strings.Builder
	answer.WriteString("<ListBucketResult>")
	for i := range 2500 {
		fmt.Fprintf(&answer, "<Contents><Key>%d</Key></Contents>", i)
	}
	answer.WriteString("<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes><KeyCount>2501</KeyCount></ListBucketResult>")
	var asked []int
	var keys []string
	var got bytes.Buffer
	err := parsed(t, "GET", "/b?list-type=2").FilterListing(&got, iotest.HalfReader(strings.NewReader(answer.String())), func(entries []s3wire.Listed) ([]bool, error) {
		asked = append(asked, len(entries))
		visible := make([]bool, len(entries))
		for i, e := range entries {
			if e.IsPrefix != (e.Key == "p/") {
				t.Errorf("%+v", e)
			}
			if visible[i] = strings.HasSuffix(e.Key, "7"); visible[i] {
				keys = append(keys, e.Key)
			}
		}
		return visible, nil
	})
	if err != nil || !slices.Equal(asked, []int{1000, 1000, 501}) {
		t.Errorf("asked about %v, %v", asked, err)
	}
	var page struct {
		KeyCount int
		Contents []struct{ Key string }
	}
	if err := xml.Unmarshal(got.Bytes(), &page); err != nil || page.KeyCount != 250 || len(page.Contents) != 250 {
		t.Fatalf("%d of %d, %v", len(page.Contents), page.KeyCount, err)
	}
	for i, o := range page.Contents {
		if o.Key != keys[i] {
			t.Errorf("%d: %s, want %s", i, o.Key, keys[i])
		}
	}
}

// Nothing of a page may get out before all of it was judged.
func TestFilterListingFailsWhole(t *testing.T) {
	op := parsed(t, "GET", "/b?list-type=2")
	const page = "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>"
	boom := errors.New("boom")
	show := only("")
	for _, c := range []struct {
		name, answer string
		visible      func([]s3wire.Listed) ([]bool, error)
	}{
		{"policy fails", page, func([]s3wire.Listed) ([]bool, error) { return []bool{true}, boom }},
		{"policy answers too little", page, func([]s3wire.Listed) ([]bool, error) { return nil, nil }},
		{"policy answers too much", page, func([]s3wire.Listed) ([]bool, error) { return []bool{true, true}, nil }},
		{"empty", "", show},
		{"an error", "<Error><Code>SlowDown</Code></Error>", show},
		{"another listing", "<ListVersionsResult></ListVersionsResult>", show},
		{"cut", page[:len(page)-1], show},
		{"cut in an entry", page[:40], show},
		{"text", "<ListBucketResult>a</ListBucketResult>", show},
		{"a comment", "<ListBucketResult><!-- <Contents> --></ListBucketResult>", show},
		{"CDATA", "<ListBucketResult><Contents><Key><![CDATA[a]]></Key></Contents></ListBucketResult>", show},
		{"a document type", "<!DOCTYPE a><ListBucketResult></ListBucketResult>", show},
		{"a second root", page + page, show},
		{"closed in the wrong order", "<ListBucketResult><Contents><Key>a</Contents></Key></ListBucketResult>", show},
		{"deep", "<ListBucketResult>" + strings.Repeat("<a>", 20), show},
		{"over 16 MiB", "<ListBucketResult>" + strings.Repeat(" ", 16<<20) + "</ListBucketResult>", show},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got bytes.Buffer
			err := op.FilterListing(&got, strings.NewReader(c.answer), c.visible)
			if err == nil || got.Len() > 0 {
				t.Errorf("error %v after %q", err, got.String())
			}
		})
	}
	if err := op.FilterListing(&bytes.Buffer{}, iotest.ErrReader(boom), show); !errors.Is(err, boom) {
		t.Errorf("the backend's own error: %v", err)
	}
	get := parsed(t, "GET", "/b/k")
	if get.Listing() {
		t.Error("GetObject is a listing")
	}
	if err := get.FilterListing(&bytes.Buffer{}, strings.NewReader(page), show); err == nil {
		t.Error("GetObject was filtered")
	}
}

// Whatever a backend writes, what gets out is well-formed, and any parser finds in it only what is visible.
func FuzzFilterListing(f *testing.F) {
	f.Add("<ListBucketResult><Contents><Key>show/a</Key></Contents><Contents><Key>hide/a</Key></Contents></ListBucketResult>")
	f.Add("<?xml version='1.0'?><ListBucketResult xmlns='a'><KeyCount>2</KeyCount><IsTruncated>true</IsTruncated><CommonPrefixes><Prefix>a%2F</Prefix></CommonPrefixes><EncodingType>url</EncodingType></ListBucketResult>")
	f.Add("<ListBucketResult><s:Contents><Key>&#104;</Key></s:Contents><contents/><NextMarker/></ListBucketResult>")
	op := parsed(f, "GET", "/b")
	f.Fuzz(func(t *testing.T, answer string) {
		asked := 0
		var got bytes.Buffer
		err := op.FilterListing(&got, strings.NewReader(answer), func(entries []s3wire.Listed) ([]bool, error) {
			asked += len(entries)
			return only("show/")(entries)
		})
		if err != nil {
			if got.Len() > 0 {
				t.Fatal("something was written before the error")
			}
			return
		}
		if asked == 0 && !strings.Contains(got.String(), "NextMarker") && len(got.String()) > len(answer)+len("></ListBucketResult>") {
			t.Fatalf("%s became %s", answer, got.String())
		}
		var page struct {
			EncodingType   string
			Contents       []struct{ Key string }
			CommonPrefixes []struct{ Prefix string }
		}
		if err := xml.Unmarshal(got.Bytes(), &page); err != nil {
			if xml.Unmarshal([]byte(answer), &page) == nil {
				t.Fatalf("%s became %s: %v", answer, got.String(), err)
			}
			return
		}
		for _, o := range page.Contents {
			key := o.Key
			if decoded, err := url.QueryUnescape(key); err == nil && strings.EqualFold(page.EncodingType, "url") {
				key = decoded
			}
			if !strings.HasPrefix(key, "show/") {
				t.Fatalf("%q is in %s", key, got.String())
			}
		}
		again := got.String()
		got.Reset()
		if err := op.FilterListing(&got, strings.NewReader(again), only("show/")); err != nil || got.String() != again {
			t.Fatalf("filtered again, %s became %s, %v", again, got.String(), err)
		}
	})
}

func BenchmarkFilterListing(b *testing.B) {
	var answer strings.Builder
	answer.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><KeyCount>1000</KeyCount>`)
	for i := range 1000 {
		fmt.Fprintf(&answer, "<Contents><Key>team/project-%d/%060d/object.tar.gz</Key><LastModified>2013-09-17T18:07:53.000Z</LastModified><ETag>&quot;599bab3ed2c697f1d26842727561fd94&quot;</ETag><Size>857</Size><StorageClass>STANDARD</StorageClass></Contents>", i%2, i)
	}
	answer.WriteString("</ListBucketResult>")
	op := parsed(b, "GET", "/b?list-type=2")
	visible := make([]bool, 1000)
	for i := range visible {
		visible[i] = i%2 == 0
	}
	b.ReportAllocs()
	b.SetBytes(int64(answer.Len()))
	var got bytes.Buffer
	for b.Loop() {
		got.Reset()
		err := op.FilterListing(&got, strings.NewReader(answer.String()), func([]s3wire.Listed) ([]bool, error) { return visible, nil })
		if err != nil || got.Len() < answer.Len()/3 {
			b.Fatal(got.Len(), err)
		}
	}
}
