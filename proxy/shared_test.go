package proxy_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy"
)

// TestDecisionsAreShared: all requests of one place get the same decision from policy, so nothing that is done with it may
// change it, or one request would be told what another was.
func TestDecisionsAreShared(t *testing.T) {
	r := newRig(t, rigOptions{policy: ownPrefix + `
limits := {"requests_per_second": 1000, "bytes_per_second": 1000000, "in_flight": 10, "max_object_bytes": 10}
filter_listing if input.bucket == "b"
`})
	token := r.token()
	for _, what := range []struct{ method, target, body string }{
		{"GET", "/b/web/k", ""}, {"HEAD", "/b/web/k", ""}, {"GET", "/b/web/k?versionId=1", ""}, {"GET", "/b/web/k?tagging", ""}, {"PUT", "/b/web/k", "body"}, {"PUT", "/b/web/k", "more than ten"},
		{"DELETE", "/b/web/k", ""}, {"POST", "/b/web/k?uploads", ""}, {"GET", "/b?list-type=2&prefix=web/", ""},
	} {
		r.backend.Answer(200, nil, "")
		if strings.Contains(what.target, "list-type") {
			r.backend.Answer(200, http.Header{"Content-Type": {"application/xml"}}, `<ListBucketResult><Name>b</Name><Contents><Key>web/k</Key></Contents></ListBucketResult>`)
		}
		ask := func() *policy.Question {
			request, err := http.NewRequest(what.method, r.URL+what.target, strings.NewReader(what.body))
			must(t, err)
			request.Header.Set("Authorization", "Bearer "+token)
			proof, err := r.auth.Authenticate(request.Clone(t.Context()))
			must(t, err)
			response, body := r.do(request)
			event := r.event()
			if !event.Decision.Allow || len(event.Accesses) != 1 {
				t.Fatalf("%s %s: %s %s %+v", what.method, what.target, response.Status, body, event)
			}
			a := event.Accesses[0]
			q := &policy.Question{Subject: proxy.Subject(proof.Identity), Operation: event.Operation, Request: &policy.Request{}, Accesses: []policy.Access{
				{Action: a.Action, Bucket: a.Bucket, Key: a.Key, VersionID: a.VersionID, Prefix: a.Prefix, Delimiter: a.Delimiter, Backend: "main"},
			}}
			return q
		}
		var shared *policy.Decision
		var before string
		for range 6 {
			d, err := r.policy.Decide(t.Context(), ask())
			must(t, err)
			text, err := json.Marshal(d)
			must(t, err)
			if d == shared && string(text) != before {
				t.Errorf("%s %s: changed from %s to %s", what.method, what.target, before, text)
			}
			shared, before = d, string(text)
		}
		if d, err := r.policy.Decide(t.Context(), ask()); err != nil || d != shared {
			t.Errorf("%s %s: not shared: %+v, %v", what.method, what.target, d, err)
		}
	}
}
