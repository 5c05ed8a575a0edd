package proxy_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
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
		"container, no token":    {bare("GET", "/-/credentials"), 403, "GetContainerCredentials", "AccessDenied"},
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

// What HTTP itself cannot make a request of is refused as everything else is: in S3's words, and with an event.
func TestWhatIsNoRequestHasItsEvent(t *testing.T) {
	if netHTTP {
		t.Skip("net/http answers these by itself")
	}
	r := newRig(t, rigOptions{})
	for name, c := range map[string]struct {
		head    string
		status  int
		code    string
		message string
		host    string // what the event has of the request
	}{
		"bad escape in the path":  {"GET /b/web/%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400, "InvalidArgument", "write %25 for a %", "h"},
		"bad escape at the end":   {"GET /b/web/k% HTTP/1.1\r\nHost: h\r\n\r\n", 400, "InvalidArgument", "write %25 for a %", "h"},
		"no host":                 {"GET /b/web/k HTTP/1.1\r\n\r\n", 400, "InvalidRequest", "not well-formed HTTP", ""},
		"two hosts":               {"GET /b/web/k HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "InvalidRequest", "not well-formed HTTP", ""},
		"two lengths":             {"PUT /b/web/k HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy", 400, "InvalidRequest", "not well-formed HTTP", "h"},
		"length and chunks":       {"PUT /b/web/k HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "InvalidRequest", "not well-formed HTTP", "h"},
		"folded line":             {"GET /b/web/k HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", 400, "InvalidRequest", "not well-formed HTTP", ""},
		"a line feed":             {"GET /b/web/k HTTP/1.1\nHost: h\n\n", 400, "InvalidRequest", "not well-formed HTTP", ""},
		"no request line":         {"hello\r\n\r\n", 400, "InvalidRequest", "not well-formed HTTP", ""},
		"an unknown expectation":  {"PUT /b/web/k HTTP/1.1\r\nHost: h\r\nExpect: a pony\r\nContent-Length: 1\r\n\r\nx", 417, "InvalidRequest", "100-continue", "h"},
		"an unknown encoding":     {"PUT /b/web/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\nx", 501, "NotImplemented", "Transfer-Encoding", "h"},
		"another HTTP":            {"GET /b/web/k HTTP/3.0\r\nHost: h\r\n\r\n", 400, "InvalidRequest", "HTTP/1.1", ""},
		"too long":                {"GET /b/web/k HTTP/1.1\r\nHost: h\r\nA: " + strings.Repeat("x", 70_000) + "\r\n\r\n", 400, "RequestHeaderSectionTooLarge", "64 KiB", ""},
		"a HEAD has no body":      {"HEAD /b/web/%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400, "InvalidArgument", "", "h"},
		"credentials in a target": {"GET /b/web/%zz?X-Amz-Security-Token=canary HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer canary\r\n\r\n", 400, "InvalidArgument", "write %25", "h"},
	} {
		response, body := r.raw(c.head)
		e := r.event()
		if response.StatusCode != c.status || e.Status != c.status || e.Error != c.code || e.Outcome != "refused" || e.Host != c.host {
			t.Errorf("%s: %s %s, event %+v", name, response.Status, body, e)
		}
		if response.Header.Get("X-Amz-Request-Id") != e.ID || response.Header.Get("X-Sluice-Request-Id") != e.ID || !response.Close {
			t.Errorf("%s: %v for event %s", name, response.Header, e.ID)
		}
		if strings.HasPrefix(c.head, "HEAD") {
			if body != "" {
				t.Errorf("%s: body %q", name, body)
			}
			continue
		}
		if !strings.Contains(body, "<Code>"+c.code+"</Code>") || !strings.Contains(body, c.message) {
			t.Errorf("%s: %s", name, body)
		}
		if text, _ := json.Marshal(e); strings.Contains(string(text)+body+r.log.String(), "canary") {
			t.Errorf("%s: a credential in %s\n%s", name, text, body)
		}
	}
	if n := len(r.backend.Requests()); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// The event tells the bucket even where the key cannot be read.
func TestRefusedKeysTellTheirBucket(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, key := range []string{"web/a%00b", "web/a%FFb", strings.Repeat("k", 1025)} {
		response, body := r.raw("GET /artifacts/" + key + " HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + r.token() + "\r\n\r\n")
		if response.StatusCode != 400 || !strings.Contains(body, "<Code>InvalidArgument</Code>") && !strings.Contains(body, "<Code>KeyTooLongError</Code>") {
			t.Errorf("%.20s: %s %s", key, response.Status, body)
		}
		check(t, r.event(), map[string]any{"outcome": "refused", "bucket": "artifacts", "key": ""})
	}
}

// Over the limit of requests in flight nobody is served, and still every request has its event. A limit counts requests
// that are being served, not events that wait to be written.
func TestMaxInFlightIsOfRequests(t *testing.T) {
	const most, later = 2, 200
	r := newRig(t, rigOptions{
		configure: func(c *proxy.Config) { c.Limits.MaxInFlight = most },
		audit:     func(c *audit.Config) { c.InFlight = later + most + proxy.Spare(most) }, // however long a write to the disk takes
	})
	hold := make(chan struct{})
	r.backend.Handle(func(w http.ResponseWriter, q *s3test.Request) { <-hold })
	done := make(chan struct{})
	for range most {
		request := r.request("GET", "/artifacts/web/k", nil)
		go func() {
			if response, err := noRedirects.Do(request); err == nil {
				response.Body.Close()
			}
			done <- struct{}{}
		}()
	}
	for len(r.backend.Requests()) < most {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		response, body := r.do(r.request("GET", "/artifacts/web/k", nil))
		e := r.event()
		if response.StatusCode != 503 || !strings.Contains(body, "<Code>SlowDown</Code>") || response.Header.Get("Retry-After") == "" || response.Header.Get("X-Sluice-Request-Id") != e.ID {
			t.Errorf("%s %v %s", response.Status, response.Header, body)
		}
		check(t, e, map[string]any{"outcome": "refused", "error": "SlowDown", "status": 503})
	}
	close(hold)
	for range most {
		<-done
	}
	r.events(most)
	// One after the other, as fast as they go: the lines of those before may well not be written yet.
	for range later {
		if response, body := r.do(r.request("GET", "/artifacts/web/k", nil)); response.StatusCode != 200 {
			t.Fatalf("%s %s", response.Status, body)
		}
	}
	r.events(later)
	if n := len(r.backend.Requests()); n != most+later {
		t.Errorf("%d requests reached the backend", n)
	}
}

// A token file that a shell wrote ends in a newline, and SDKs send it as it is: at the STS, and to container credentials
// where HTTP drops it.
func TestTokenFilesEndInNewlines(t *testing.T) {
	r := newRig(t, rigOptions{})
	if status, body := r.sts(assumeForm(r, url.Values{"WebIdentityToken": {r.token() + "\n"}})); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	check(t, r.event(), map[string]any{"outcome": "completed"})
	if status, body := r.sts(assumeForm(r, url.Values{"WebIdentityToken": {r.token()[:100] + "\n" + r.token()[100:]}})); status != 400 {
		t.Errorf("a newline inside: %d %s", status, body)
	}
	r.event()
}

// A backend that does not take the proxy's signature says with what it was made. That is the operator's to know.
func TestT07BackendsComplaintsAboutTheProxyStay(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, code := range []string{"SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "AuthorizationHeaderMalformed"} {
		r.backend.Answer(403, http.Header{"Content-Type": {"application/xml"}}, `<?xml version="1.0"?><Error><Code>`+code+`</Code><Message>m</Message><AWSAccessKeyId>AKIDCANARY</AWSAccessKeyId><CanonicalRequest>x-amz-security-token:CANARY</CanonicalRequest></Error>`)
		response, body := r.do(r.request("GET", "/artifacts/web/k", nil))
		if response.StatusCode != 500 || !strings.Contains(body, "<Code>InternalError</Code>") || strings.Contains(body, "CANARY") {
			t.Errorf("%s: %s %s", code, response.Status, body)
		}
		check(t, r.event(), map[string]any{"status": 500, "error": "InternalError", "outcome": "failed"})
		if !strings.Contains(r.log.String(), code) {
			t.Errorf("%s: the operator's log does not say so: %s", code, r.log)
		}
	}
	// Nor does it, in words of its own, whatever it puts before and wherever it says so.
	canary := ""
	for name, echo := range map[string]func(w http.ResponseWriter, authorization, signature string){
		"signature": func(w http.ResponseWriter, _, signature string) {
			canary = signature
			w.WriteHeader(403)
			io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>"+strings.Repeat("no. ", 1000)+"</Message><Provided>"+signature+"</Provided></Error>")
		},
		"late code": func(w http.ResponseWriter, _, _ string) {
			canary = "AKIDCANARY"
			w.WriteHeader(403)
			io.WriteString(w, "<Error><Message>"+strings.Repeat("no. ", 1000)+"</Message><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>"+canary+"</AWSAccessKeyId></Error>")
		},
		"redirect": func(w http.ResponseWriter, authorization, _ string) {
			canary = authorization
			w.WriteHeader(307)
			io.WriteString(w, authorization)
		},
		"compressed": func(w http.ResponseWriter, _, signature string) {
			canary = "CANARY in gzip"
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(400)
			io.WriteString(w, canary)
		},
		"long": func(w http.ResponseWriter, _, signature string) {
			canary = signature
			w.WriteHeader(403)
			io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>"+strings.Repeat("no. ", 64<<10)+"</Message><Provided>"+signature+"</Provided></Error>")
		},
		"in pieces": func(w http.ResponseWriter, _, signature string) { // as they come, with whatever is read first
			canary = signature
			w.WriteHeader(403)
			io.WriteString(w, strings.Repeat("x", 64<<10-10))
			for _, b := range []byte(signature) {
				w.Write([]byte{b})
				w.(http.Flusher).Flush()
			}
		},
		"other header": func(w http.ResponseWriter, authorization, _ string) {
			canary = authorization
			w.Header().Set("X-Amz-Debug", "signed as "+authorization)
			w.WriteHeader(200)
		},
		"header": func(w http.ResponseWriter, authorization, _ string) {
			canary = authorization
			w.Header().Set("Authorization", authorization)
			w.Header().Set("X-Amz-Security-Token", authorization)
			w.Header().Set("X-Sluice-Reason", authorization)
			w.WriteHeader(200)
		},
	} {
		r.backend.Handle(func(w http.ResponseWriter, in *s3test.Request) {
			authorization := in.Header.Get("Authorization")
			_, signature, _ := strings.Cut(authorization, "Signature=")
			echo(w, authorization, signature)
		})
		response, err := noRedirects.Do(r.request("GET", "/artifacts/web/k", nil))
		must(t, err)
		body, err := io.ReadAll(response.Body) // breaks off where it had begun
		response.Body.Close()
		if canary == "" || strings.Contains(string(body), canary) || strings.Contains(fmt.Sprint(response.Header), canary) || response.StatusCode != 200 && response.StatusCode < 500 && err == nil {
			t.Errorf("%s: %s %v %d bytes, %v", name, response.Status, response.Header, len(body), err)
		}
		if e := r.event(); (e.Outcome == audit.Failed) != (response.StatusCode != 200) {
			t.Errorf("%s: %+v", name, e)
		}
	}
	// What is about the request goes through.
	r.backend.Answer(403, nil, `<Error><Code>AccessDenied</Code><Message>by the bucket's policy</Message></Error>`)
	if response, body := r.do(r.request("GET", "/artifacts/web/k", nil)); response.StatusCode != 403 || !strings.Contains(body, "by the bucket's policy") {
		t.Errorf("%s %s", response.Status, body)
	}
	r.event()
}

// What S3 has begun to answer with 200 may end in an error all the same: that too is looked through as it passes, and
// recorded. White space passes at once, as clients wait for it.
func TestT07ErrorsWithin200(t *testing.T) {
	r := newRig(t, rigOptions{})
	copying := func() *http.Request {
		request := r.request("PUT", "/artifacts/web/to", nil)
		request.Header.Set("X-Amz-Copy-Source", "/artifacts/web/from")
		return request
	}
	seen := make(chan struct{})
	signature := ""
	r.backend.Handle(func(w http.ResponseWriter, in *s3test.Request) {
		_, signature, _ = strings.Cut(in.Header.Get("Authorization"), "Signature=")
		w.WriteHeader(200)
		io.WriteString(w, "<?xml version=\"1.0\"?>\n ")
		w.(http.Flusher).Flush()
		<-seen
		fmt.Fprintf(w, "<Error><Code>InternalError</Code><Message>%s</Message></Error>", signature)
	})
	response, err := noRedirects.Do(copying())
	must(t, err)
	start := make([]byte, 23)
	_, err = io.ReadFull(response.Body, start)
	must(t, err)
	close(seen)
	rest, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err == nil || strings.Contains(string(rest), signature) {
		t.Errorf("%v %s", err, rest)
	}
	check(t, r.event(), map[string]any{"outcome": "failed", "status": 200})

	for answer, want := range map[string]string{
		"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>SlowDown</Code></Error>":                                       "SlowDown",
		" \n<Error xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><RequestId>1</RequestId><Code>InternalError</Code></Error>": "InternalError",
		"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>":                                                                    "",
		"<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code></Error></DeleteResult>":                                      "",
	} {
		r.backend.Answer(200, nil, answer)
		if response, body := r.do(copying()); response.StatusCode != 200 || body != answer {
			t.Errorf("%s %s, want %s", response.Status, body, answer)
		}
		check(t, r.event(), map[string]any{"outcome": "completed", "status": 200, "error": want})
	}
	// Of the proxy's own credentials a client is told nothing here either.
	r.backend.Answer(200, nil, "<Error><Code>ExpiredToken</Code><Token-0>CANARY</Token-0></Error>")
	if response, err = noRedirects.Do(copying()); err == nil {
		rest, err = io.ReadAll(response.Body)
		response.Body.Close()
	}
	if err == nil || strings.Contains(string(rest), "CANARY") {
		t.Errorf("%v %s", err, rest)
	}
	check(t, r.event(), map[string]any{"outcome": "failed", "status": 200, "error": "InternalError"})
}

// A client that follows one of these takes its token to wherever the backend says.
func TestT16HeadersThatLeadAway(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.backend.Answer(200, http.Header{"Alt-Svc": {`h2="elsewhere.example:443"`}, "Refresh": {"0; url=https://elsewhere.example/"}, "X-Amz-Id-2": {"kept"}}, "x")
	response, _ := r.do(r.request("GET", "/artifacts/web/k", nil))
	if strings.Contains(fmt.Sprint(response.Header), "elsewhere") || response.Header.Get("X-Amz-Id-2") != "kept" {
		t.Errorf("%v", response.Header)
	}
	r.event()
}

// ListBuckets needs s3:ListBucket on something, or s3:ListAllMyBuckets; deny takes it all.
func TestBucketsAreThoseOneMayList(t *testing.T) {
	const all = `<ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Buckets><Bucket><Name>a</Name></Bucket><Bucket><Name>b</Name></Bucket></Buckets></ListAllMyBucketsResult>`
	for name, c := range map[string]struct {
		rules  string
		status int
		names  string
	}{
		"one":                  {`allow if { input.action == "s3:ListBucket"; input.bucket == "b" }`, 200, "b"},
		"none":                 {`allow if input.action == "s3:GetObject"`, 403, ""},
		"none, but the call":   {`allow if input.action == "s3:ListAllMyBuckets"`, 200, ""},
		"one and the call":     {`allow if input.action == "s3:ListAllMyBuckets"` + "\n" + `allow if { input.action == "s3:ListBucket"; input.bucket == "a" }`, 200, "a"},
		"one, the call denied": {`allow if input.action == "s3:ListBucket"` + "\n" + `deny contains "no" if input.action == "s3:ListAllMyBuckets"`, 403, ""},
		"all but a denied one": {`allow if input.action == "s3:ListBucket"` + "\n" + `deny contains "no" if input.bucket == "a"`, 200, "b"},
		// It is not that policy does not allow the call: it allows it on terms that cannot be kept, and as the backend's own
		// role nothing would be left of them.
		"a role that is none":       {"allow := true\nrole := 5", 403, ""},
		"a session policy too long": {"allow := true\n" + `session_policy := {"Statement": [{"Effect": "Deny", "Action": "` + strings.Repeat("x", 2048) + `"}]}`, 403, ""},
		"undefined and erratic":     {`allow if input.nothing`, 403, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{policy: "package s3.authz\n" + c.rules + "\n"})
			r.backend.Answer(200, nil, all)
			response, body := r.do(r.request("GET", "/", nil))
			var names []string
			for _, part := range strings.Split(body, "<Name>")[1:] {
				names = append(names, part[:1])
			}
			if response.StatusCode != c.status || strings.Join(names, " ") != c.names {
				t.Errorf("%s %s", response.Status, body)
			}
			event := r.event()
			if event.Decision.Allow != (c.status == 200) {
				t.Errorf("the event says allow %v", event.Decision.Allow)
			}
			for _, a := range event.Accesses {
				if a.Allow != (c.status == 200) {
					t.Errorf("the event has %+v", a)
				}
			}
		})
	}
}
