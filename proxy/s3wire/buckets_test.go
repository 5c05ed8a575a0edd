package s3wire_test

import (
	"bytes"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// parsed is the operation of a request line, which MUST be one.
func parsed(t testing.TB, method, target string) *s3wire.Operation {
	t.Helper()
	op, err := s3wire.Addressing{}.Parse(httptest.NewRequest(method, target, nil))
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return op
}

func TestReadBuckets(t *testing.T) {
	// As AWS documents it, indented, with an element nobody knows.
	const answer = `<?xml version="1.0" encoding="UTF-8"?>
<ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
   <Buckets>
      <Bucket>
         <BucketArn>arn:aws:s3:::amzn-s3-demo-bucket</BucketArn>
         <BucketRegion>us-east-1</BucketRegion>
         <CreationDate>2019-12-11T23:32:47.000Z</CreationDate>
         <Name>amzn-s3-demo-bucket</Name>
      </Bucket>
      <Bucket>
         <CreationDate>yesterday</CreationDate>
         <Name>amzn-s3-demo-bucket1</Name>
      </Bucket>
   </Buckets>
   <Owner>
      <DisplayName>Account+Name</DisplayName>
      <ID>AIDACKCEVSQ6C2EXAMPLE</ID>
   </Owner>
   <ContinuationToken>a&amp;b==</ContinuationToken>
   <New><Bucket><Name>x</Name></Bucket></New>
</ListAllMyBucketsResult>
`
	buckets, next, err := s3wire.ReadBuckets(strings.NewReader(answer))
	want := []s3wire.Bucket{
		{Name: "amzn-s3-demo-bucket", CreationDate: time.Date(2019, 12, 11, 23, 32, 47, 0, time.UTC), Region: "us-east-1"},
		{Name: "amzn-s3-demo-bucket1"},
	}
	if diff := cmp.Diff(want, buckets); diff != "" || next != "a&b==" || err != nil {
		t.Errorf("next %q, %v, %s", next, err, diff)
	}
	for _, answer := range []string{
		"<ListAllMyBucketsResult><Owner/><Buckets/></ListAllMyBucketsResult>",
		"<ListAllMyBucketsResult/>",
	} {
		if buckets, next, err := s3wire.ReadBuckets(strings.NewReader(answer)); len(buckets) != 0 || next != "" || err != nil {
			t.Errorf("%s: %v, %q, %v", answer, buckets, next, err)
		}
	}
	for _, answer := range []string{
		"", "ok", "<Error/>", "<ListAllMyBucketsResult>", "<ListAllMyBucketsResult><Buckets><Bucket/></Buckets></ListAllMyBucketsResult>",
		"<ListAllMyBucketsResult><Buckets><Bucket><Name>a<b/></Name></Bucket></Buckets></ListAllMyBucketsResult>",
		"<ListAllMyBucketsResult>" + strings.Repeat(" ", 16<<20) + "</ListAllMyBucketsResult>",
	} {
		if _, _, err := s3wire.ReadBuckets(strings.NewReader(answer)); err == nil {
			t.Errorf("%.80s was read", answer)
		}
	}
}

func TestWriteBuckets(t *testing.T) {
	date := time.Date(2019, 12, 11, 23, 32, 47, 120e6, time.FixedZone("", 3600))
	all := []s3wire.Bucket{{Name: "b2", Region: "eu-west-1"}, {Name: "a", CreationDate: date}, {Name: "b1", Region: "us-east-1"}, {Name: "b3", Region: "eu-west-1"}}
	names := func(target string) (shown []string, next string) {
		t.Helper()
		var b bytes.Buffer
		if err := parsed(t, "GET", target).WriteBuckets(&b, all, "env-42"); err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		buckets, next, err := s3wire.ReadBuckets(&b)
		if err != nil {
			t.Fatal(err)
		}
		for _, bucket := range buckets {
			shown = append(shown, bucket.Name)
		}
		return shown, next
	}
	for target, want := range map[string][]string{
		"/":                            {"a", "b1", "b2", "b3"},
		"/?prefix=b":                   {"b1", "b2", "b3"},
		"/?prefix=c":                   nil,
		"/?bucket-region=eu-west-1":    {"b2", "b3"},
		"/?max-buckets=10000":          {"a", "b1", "b2", "b3"},
		"/?max-buckets=4":              {"a", "b1", "b2", "b3"},
		"/?max-buckets=1&prefix=b3":    {"b3"},
		"/?x-id=ListBuckets&prefix=b1": {"b1"},
	} {
		if got, next := names(target); !slices.Equal(got, want) || next != "" {
			t.Errorf("%s: %q, next %q", target, got, next)
		}
	}

	var paged []string
	token := ""
	for range 10 {
		page, next := names("/?max-buckets=2&prefix=b" + token)
		paged = append(paged, page...)
		if next == "" {
			break
		}
		token = "&continuation-token=" + url.QueryEscape(next)
	}
	if want := []string{"b1", "b2", "b3"}; !slices.Equal(paged, want) {
		t.Errorf("by pages: %q", paged)
	}

	var b bytes.Buffer
	if err := parsed(t, "GET", "/?max-buckets=1").WriteBuckets(&b, all, "env<42>"); err != nil {
		t.Fatal(err)
	}
	want := `<?xml version="1.0" encoding="UTF-8"?>` + "\n" +
		`<ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Owner><ID>env&lt;42&gt;</ID></Owner>` +
		`<Buckets><Bucket><Name>a</Name><CreationDate>2019-12-11T22:32:47.120Z</CreationDate></Bucket></Buckets>` +
		`<ContinuationToken>MWE</ContinuationToken></ListAllMyBucketsResult>`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}

	for _, target := range []string{
		"/?max-buckets=0", "/?max-buckets=10001",
		"/?continuation-token=a", "/?continuation-token=MQ", "/?continuation-token=MmE", "/?continuation-token=MWF", "/?continuation-token=%21", "/?continuation-token=Mf8",
	} {
		if err := parsed(t, "GET", target).WriteBuckets(&b, all, ""); errorCode(err) != "InvalidArgument" {
			t.Errorf("%s: %v", target, err)
		}
	}
}
