package s3wire_test

import (
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-s3/sluice/proxy/s3wire"
)

func TestWriteError(t *testing.T) {
	get := httptest.NewRequest("GET", "/b/k", nil)
	w := httptest.NewRecorder()
	s3wire.WriteError(w, get, &s3wire.Error{Code: "AccessDenied", Message: `policy's "no" & <why>`}, "/b/a\x01\xffü", "01JABC")
	if w.Code != http.StatusForbidden {
		t.Errorf("status %d", w.Code)
	}
	want := `<?xml version="1.0" encoding="UTF-8"?>` + "\n" +
		"<Error><Code>AccessDenied</Code><Message>policy's \"no\" &amp; &lt;why&gt;</Message><Resource>/b/a\uFFFD\uFFFDü</Resource>" +
		"<RequestId>01JABC</RequestId><HostId>01JABC</HostId></Error>"
	if diff := cmp.Diff(want, w.Body.String()); diff != "" {
		t.Error(diff)
	}
	wantHeader := http.Header{
		"Content-Type": {"application/xml"}, "Content-Length": {strconv.Itoa(len(want))}, "X-Amz-Request-Id": {"01JABC"}, "X-Amz-Id-2": {"01JABC"},
	}
	if diff := cmp.Diff(wantHeader, w.Header()); diff != "" {
		t.Error(diff)
	}
	var parsed struct{ Message string }
	if err := xml.Unmarshal(w.Body.Bytes(), &parsed); err != nil || parsed.Message != `policy's "no" & <why>` {
		t.Errorf("%q, %v", parsed.Message, err)
	}
}

func TestWriteErrorWithoutBody(t *testing.T) {
	for _, c := range []struct {
		method string
		status int
	}{{"HEAD", 403}, {"GET", 304}, {"GET", 204}} {
		w := httptest.NewRecorder()
		w.Header().Set("X-Amz-Request-Id", "theirs")
		s3wire.WriteError(w, httptest.NewRequest(c.method, "/", nil), &s3wire.Error{Code: "AccessDenied", Status: c.status}, "/", "ours")
		if w.Code != c.status || w.Body.Len() != 0 || w.Header().Get("Content-Length") != "" {
			t.Errorf("%s %d: %d, %v, %q", c.method, c.status, w.Code, w.Header(), w.Body)
		}
		if w.Header().Get("X-Amz-Request-Id") != "theirs" || w.Header().Get("X-Amz-Id-2") != "ours" {
			t.Errorf("headers %v", w.Header())
		}
	}
}

func TestHTTPStatus(t *testing.T) {
	for code, want := range map[string]int{
		"AccessDenied": 403, "InvalidToken": 400, "ExpiredToken": 400, "SignatureDoesNotMatch": 403, "InvalidAccessKeyId": 403,
		"RequestTimeTooSkewed": 403, "InvalidRequest": 400, "InvalidArgument": 400, "MethodNotAllowed": 405, "NotImplemented": 501,
		"SlowDown": 503, "ServiceUnavailable": 503, "InternalError": 500, "NoSuchBucket": 404, "MissingContentLength": 411,
		"PreconditionFailed": 412, "InvalidRange": 416, "NobodyKnows": 500, "": 500,
	} {
		if got := (&s3wire.Error{Code: code}).HTTPStatus(); got != want {
			t.Errorf("%s: %d, want %d", code, got, want)
		}
	}
	if got := (&s3wire.Error{Code: "AccessDenied", Status: 421}).HTTPStatus(); got != 421 {
		t.Errorf("own status: %d", got)
	}
	if got := (&s3wire.Error{Code: "SlowDown", Message: "wait"}).Error(); !strings.Contains(got, "SlowDown") || !strings.Contains(got, "wait") {
		t.Errorf("error %q", got)
	}
}
