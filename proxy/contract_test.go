package proxy_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-s3/sluice/proxy"
	"github.com/sluice-s3/sluice/proxy/s3test"
)

// assumeForm is an exchange that is understood, with what is changed of it.
func assumeForm(r *rig, changes url.Values) url.Values {
	form := url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {"arn:aws:iam::123456789012:role/dev"},
		"RoleSessionName": {"me"}, "WebIdentityToken": {r.token()},
	}
	for name, values := range changes {
		form[name] = values
	}
	return form
}

// Whoever has an answer finds its event, whichever door gave it; and every event tells the policy that was in force.
func TestEveryOwnAnswerLeadsToItsEvent(t *testing.T) {
	r := newRig(t, rigOptions{})
	post := func(path string, form url.Values) *http.Request {
		q, err := http.NewRequest("POST", r.URL+path, strings.NewReader(form.Encode()))
		must(t, err)
		q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return q
	}
	bare := func(method, target string) *http.Request {
		q := r.request(method, target, nil)
		q.Header.Del("Authorization")
		return q
	}
	r.backend.Answer(200, nil, `<ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Buckets></Buckets></ListAllMyBucketsResult>`)
	for name, c := range map[string]struct {
		request   *http.Request
		status    int
		operation string
		error     string
	}{
		"buckets":                {r.request("GET", "/", nil), 200, "ListBuckets", ""},
		"exchange":               {post("/", assumeForm(r, nil)), 200, "AssumeRoleWithWebIdentity", ""},
		"exchange, bad role":     {post("/", assumeForm(r, url.Values{"RoleArn": {"dev"}})), 400, "AssumeRoleWithWebIdentity", "ValidationError"},
		"exchange, no version":   {post("/", assumeForm(r, url.Values{"Version": {""}})), 400, "AssumeRoleWithWebIdentity", "InvalidAction"},
		"exchange, a policy":     {post("/", assumeForm(r, url.Values{"Policy": {"{}"}})), 400, "AssumeRoleWithWebIdentity", "ValidationError"},
		"exchange, bad token":    {post("/", assumeForm(r, url.Values{"WebIdentityToken": {"x"}})), 400, "AssumeRoleWithWebIdentity", "InvalidIdentityToken"},
		"exchange, unknown":      {post("/", assumeForm(r, url.Values{"Action": {"AssumeRole"}})), 400, "STS", "InvalidAction"},
		"caller, unsigned":       {post("/", url.Values{"Action": {"GetCallerIdentity"}, "Version": {"2011-06-15"}}), 403, "GetCallerIdentity", "MissingAuthenticationToken"},
		"container":              {r.request("GET", "/-/credentials", nil), 200, "GetContainerCredentials", ""},
		"container, no token":    {bare("GET", "/-/credentials"), 400, "GetContainerCredentials", "InvalidIdentityToken"},
		"container, POST":        {post("/-/credentials", nil), 405, "GetContainerCredentials", "MethodNotAllowed"},
		"logout":                 {post("/-/logout", url.Values{"logout_token": {"x"}}), 400, "BackChannelLogout", "InvalidToken"},
		"no such door":           {r.request("GET", "/-/x", nil), 404, "", "InvalidRequest"},
		"no credentials":         {bare("GET", "/b/web/k"), 403, "GetObject", "AccessDenied"},
		"no credentials, a HEAD": {bare("HEAD", "/b/web/k"), 403, "HeadObject", "AccessDenied"},
		"not understood":         {r.request("GET", "/b/web/k?frobnicate", nil), 400, "", "InvalidArgument"},
	} {
		response, body := r.do(c.request)
		e := r.event()
		if response.StatusCode != c.status || e.Operation != c.operation || e.Error != c.error {
			t.Errorf("%s: %s, %s of %s: %s", name, response.Status, e.Error, e.Operation, body)
		}
		if response.Header.Get("X-Amz-Request-Id") != e.ID || response.Header.Get("X-Sluice-Request-Id") != e.ID {
			t.Errorf("%s: the answer to %s has the ids of no event: %v", name, e.ID, response.Header)
		}
		if e.Decision.PolicyRevision != r.policy.Revision() {
			t.Errorf("%s: the event has policy revision %q, in force was %q", name, e.Decision.PolicyRevision, r.policy.Revision())
		}
		if (e.Outcome == "refused") != (len(e.Decision.Reasons) == 1) {
			t.Errorf("%s: %s for %q", name, e.Outcome, e.Decision.Reasons)
		}
	}
}

// A token in a URL would be in every log on the way: STS's parameters come in the body, and a caller who has them in the
// query is told so, in STS's words.
func TestSTSTakesNoQuery(t *testing.T) {
	r := newRig(t, rigOptions{})
	form := assumeForm(r, nil).Encode()
	for _, method := range []string{"GET", "POST"} {
		for _, body := range []string{"", form} {
			request, err := http.NewRequest(method, r.URL+"/?"+form, strings.NewReader(body))
			must(t, err)
			if body != "" {
				request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			response, answer := r.do(request)
			if response.StatusCode != 400 || !strings.Contains(answer, "<Code>ValidationError</Code>") || !strings.Contains(answer, "the form in the body") || strings.Contains(answer, "SecretAccessKey") {
				t.Errorf("%s: %s %s", method, response.Status, answer)
			}
			check(t, r.event(), map[string]any{"outcome": "refused", "operation": "STS", "error": "ValidationError"})
		}
	}
	request, err := http.NewRequest("POST", r.URL+"/?uploads", strings.NewReader(form))
	must(t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if response, answer := r.do(request); response.StatusCode != 400 || strings.Contains(answer, "SecretAccessKey") {
		t.Errorf("a query that STS does not have: %s %s", response.Status, answer)
	}
	r.event()
}

// Policy that fails refuses like policy that does not allow: with what the caller can act on, while the event has what
// its author can.
func TestPolicyThatFailsRefuses(t *testing.T) {
	for name, rego := range map[string]string{
		"a function in allow": "allow if to_number(input.key) == 1\n",
		"a function in deny":  "allow := true\ndeny contains \"no\" if to_number(input.key) == 1\n",
		"rules that conflict": "allow := true if input.bucket\nallow := false if input.key\n",
	} {
		r := newRig(t, rigOptions{policy: "package s3.authz\n" + rego})
		response, body := r.do(r.request("GET", "/artifacts/web/k", nil))
		if response.StatusCode != 403 || !strings.Contains(body, "<Code>AccessDenied</Code>") || !strings.Contains(body, "policy failed on s3:GetObject") || strings.Contains(body, "rego") {
			t.Errorf("%s: %s %s", name, response.Status, body)
		}
		e := r.event()
		check(t, e, map[string]any{"outcome": "refused", "error": "AccessDenied", "status": 403})
		if len(e.Decision.Reasons) != 1 || !strings.HasPrefix(e.Decision.Reasons[0], "policy: authz.rego:") || strings.Contains(e.Decision.Reasons[0], "\n") {
			t.Errorf("%s: the event's reasons are %q", name, e.Decision.Reasons)
		}
		if len(e.Accesses) != 1 || e.Accesses[0].Allow {
			t.Errorf("%s: accesses %+v", name, e.Accesses)
		}
		if !strings.Contains(r.log.String(), "policy failed") {
			t.Errorf("%s: the operator is not told", name)
		}
		if n := len(r.backend.Requests()); n != 0 {
			t.Errorf("%s: %d requests reached the backend", name, n)
		}
	}
}

// What is refused though policy allows it has its reason in the event too.
func TestRefusedThoughAllowed(t *testing.T) {
	r := newRig(t, rigOptions{policy: "package s3.authz\nallow := true\nrole := \"arn:aws:iam::123456789012:role/admin\"\n"})
	response, body := r.do(r.request("GET", "/artifacts/web/k", nil))
	if response.StatusCode != 403 || !strings.Contains(body, "role/admin") {
		t.Errorf("%s %s", response.Status, body)
	}
	if e := r.event(); e.Outcome != "refused" || len(e.Decision.Reasons) != 1 || !strings.Contains(e.Decision.Reasons[0], "role/admin") {
		t.Errorf("%+v", e)
	}
}

// ListBuckets asks every backend, so policy is not told of one of them.
func TestListBucketsIsOfNoBackend(t *testing.T) {
	var second *s3test.Backend
	r := newRig(t, rigOptions{
		policy: "package s3.authz\nallow if {\n\tinput.action == \"s3:ListAllMyBuckets\"\n\tinput.backend == \"\"\n}\nallow if {\n\tinput.action == \"s3:ListBucket\"\n\tinput.backend == \"main\"\n}\n",
		configure: func(c *proxy.Config) {
			second = s3test.New(t)
			c.Backends = append(c.Backends, backendFor(t, "other", second.URL, "b"))
			slices.Reverse(c.Backends)
		},
	})
	r.backend.Answer(200, nil, `<ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Buckets><Bucket><Name>a</Name></Bucket></Buckets></ListAllMyBucketsResult>`)
	second.Answer(200, nil, `<ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Buckets><Bucket><Name>b</Name></Bucket></Buckets></ListAllMyBucketsResult>`)
	response, body := r.do(r.request("GET", "/", nil))
	if response.StatusCode != 200 || strings.Count(body, "<Bucket>") != 1 || !strings.Contains(body, "<Name>a</Name>") {
		t.Errorf("%s %s", response.Status, body)
	}
	r.event()
}
