package proxy_test

import (
	"encoding/xml"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/proxy/s3test"
)

// Details by which SDKs, tools and browsers tell S3.

// What carried an upload is no encoding of the object, but some backends store and answer it as one.
func TestFramingIsNoEncodingOfAnAnswer(t *testing.T) {
	r := newRig(t, rigOptions{})
	for answered, want := range map[string]string{
		"aws-chunked":       "",
		"AWS-Chunked":       "",
		"gzip,aws-chunked":  "gzip",
		"aws-chunked, gzip": "gzip",
		"gzip":              "gzip",
		"br, gzip":          "br, gzip",
	} {
		for _, method := range []string{"GET", "HEAD"} {
			r.backend.Answer(200, http.Header{"Content-Encoding": {answered}, "Content-Length": {"5"}}, "hello")
			request := r.request(method, "/artifacts/web/k", nil)
			request.Header.Set("Accept-Encoding", "identity") // or Go would unpack it
			response, _ := r.do(request)
			if got := response.Header.Get("Content-Encoding"); got != want || response.ContentLength != 5 {
				t.Errorf("%s of %q: Content-Encoding %q, length %d", method, answered, got, response.ContentLength)
			}
			check(t, r.event(), map[string]any{"outcome": "completed", "status": 200})
		}
	}
}

// A browser asks before it sends, without credentials, and is answered by the backend's own rules; what it then reads
// carries the backend's Access-Control headers.
func TestBrowsersAreAnsweredByTheBackendsCORS(t *testing.T) {
	r := newRig(t, rigOptions{})
	rules := http.Header{
		"Access-Control-Allow-Origin": {"https://app.example.com"}, "Access-Control-Allow-Methods": {"PUT"}, "Access-Control-Allow-Headers": {"authorization, content-type"},
		"Access-Control-Expose-Headers": {"ETag"}, "Access-Control-Allow-Credentials": {"true"}, "Access-Control-Max-Age": {"600"},
		"Vary": {"Origin, Access-Control-Request-Headers, Access-Control-Request-Method"},
	}
	carries := func(name string, response *http.Response) {
		t.Helper()
		for field := range rules {
			if got, want := response.Header.Get(field), rules.Get(field); got != want {
				t.Errorf("%s: %s is %q, want %q", name, field, got, want)
			}
		}
	}
	preflight := func() *http.Request {
		request := r.request("OPTIONS", "/artifacts/web/k?x-id=PutObject", nil)
		request.Header = http.Header{
			"Origin": {"https://app.example.com"}, "Access-Control-Request-Method": {"PUT"}, "Access-Control-Request-Headers": {"authorization,content-type"},
		}
		return request
	}

	r.backend.Lenient()
	r.backend.Answer(200, rules, "")
	response, _ := r.do(preflight())
	if response.StatusCode != 200 {
		t.Errorf("preflight: %s", response.Status)
	}
	carries("preflight", response)
	asked := r.backend.Last()
	if asked.Method != "OPTIONS" || asked.Header.Get("Origin") != "https://app.example.com" || asked.Header.Get("Access-Control-Request-Headers") != "authorization,content-type" {
		t.Errorf("the backend was asked %v", asked)
	}
	if asked.Header.Has("Authorization") {
		t.Error("the preflight was signed: it would be answered as a role's, not as a browser's")
	}
	check(t, r.event(), map[string]any{"operation": "PreflightRequest", "outcome": "completed", "status": 200})

	// A refusal is the backend's, too.
	r.backend.Handle(func(w http.ResponseWriter, _ *s3test.Request) {
		s3test.Error(w, 403, "AccessForbidden", "CORSResponse: This CORS request is not allowed.")
	})
	if response, body := r.do(preflight()); response.StatusCode != 403 || !strings.Contains(body, "AccessForbidden") || response.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a preflight that the backend refuses: %s %s", response.Status, body)
	}
	r.event()

	for _, method := range []string{"GET", "HEAD", "PUT"} {
		r.backend.Answer(200, rules, "")
		request := r.request(method, "/artifacts/web/k", strings.NewReader(map[string]string{"PUT": "hello"}[method]))
		request.Header.Set("Origin", "https://app.example.com")
		response, _ := r.do(request)
		if response.StatusCode != 200 {
			t.Errorf("%s: %s", method, response.Status)
		}
		carries(method, response)
		if got := r.backend.Last().Header.Get("Origin"); got != "https://app.example.com" {
			t.Errorf("%s: the backend saw Origin %q, and answers nothing without it", method, got)
		}
		check(t, r.event(), map[string]any{"outcome": "completed", "status": 200})
	}
}

// SDKs probe for a bucket's region by these, and go to the region that they are told.
func TestRegionProbesAreTheBackends(t *testing.T) {
	r := newRig(t, rigOptions{policy: `package s3.authz
allow if input.bucket == "artifacts"`})
	r.backend.Answer(200, http.Header{"X-Amz-Bucket-Region": {"eu-west-1"}}, "")
	if response, _ := r.do(r.request("HEAD", "/artifacts", nil)); response.Header.Get("X-Amz-Bucket-Region") != "eu-west-1" {
		t.Errorf("HeadBucket: %s %v", response.Status, response.Header)
	}
	check(t, r.event(), map[string]any{"operation": "HeadBucket", "outcome": "completed"})

	const answer = `<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/">eu-west-1</LocationConstraint>`
	r.backend.Answer(200, http.Header{"Content-Type": {"application/xml"}}, answer)
	if response, body := r.do(r.request("GET", "/artifacts/?location", nil)); body != answer {
		t.Errorf("GetBucketLocation: %s %s", response.Status, body)
	}
	check(t, r.event(), map[string]any{"operation": "GetBucketLocation", "outcome": "completed"})
}

// Support asks for both ids, and tools print them: an answer of the proxy's own has them as S3's do, in the header and in the body.
func TestOwnErrorsCarryBothIDs(t *testing.T) {
	r := newRig(t, rigOptions{})
	response, body := r.do(r.request("GET", "/artifacts/api/secret", nil))
	var e struct{ Code, Message, RequestId, HostId string }
	if err := xml.Unmarshal([]byte(body), &e); err != nil {
		t.Fatal(err)
	}
	id := r.event().ID
	if response.StatusCode != 403 || e.Code != "AccessDenied" || e.RequestId != id || e.HostId == "" ||
		response.Header.Get("X-Amz-Request-Id") != id || response.Header.Get("X-Amz-Id-2") != e.HostId {
		t.Errorf("%s %v\n%s", response.Status, response.Header, body)
	}
	// The answer to a HEAD has no body, so the headers are all there is.
	response, _ = r.do(r.request("HEAD", "/artifacts/api/secret", nil))
	if response.StatusCode != 403 || response.Header.Get("X-Amz-Request-Id") != r.event().ID || response.Header.Get("X-Amz-Id-2") == "" {
		t.Errorf("HEAD: %s %v", response.Status, response.Header)
	}
}
