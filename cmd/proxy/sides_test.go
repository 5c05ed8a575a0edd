package main_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/proxy/s3test"
	"github.com/sluice-s3/sluice/test/machine"
)

// The ways by which one request can come to the built program.
const (
	byHTTP1   = "http1"
	byNetHTTP = "net/http" // SLUICE_HTTP1=off
	byHTTP2   = "HTTP/2"
)

// hostile is a request as somebody with a socket makes it.
type hostile struct {
	method, target string
	hosts          []string // nil = the one there is
	header         []string // lines
	body           string
	without        bool              // the token
	why            string            // the ways differ
	but            map[string]string // what comes of it by these ways then; the backend is asked nothing, or it is served
}

// sameHost is the proxy's own name in these requests.
const sameHost = "s3.localhost"

// T10 for whatever reads the request: the decision is the same, and so is what the backend is asked. Where they differ,
// there is a reason for it.
func TestT10TheSameByEveryWay(t *testing.T) {
	key := filepath.Join(t.TempDir(), "session.keys")
	set := map[string]any{"listen.domains": []any{sameHost}, "sessions.key_file": key}
	write(t, key, "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n")
	r, backend := newH2Rig(t, set)
	set["backends[0].endpoint"] = backend.URL
	config, err := r.ProxyConfig(world.ProxyOptions{TLS: true, Credentials: "static", PolicyDir: mustAbs(t, "testdata/policy"), Set: set})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SLUICE_HTTP1", "off")
	off, err := r.StartProxy(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	token := r.Workspace("env-1", "web", "dev@acme.com")
	session := r.exchange(t, r.HTTPClient(), token)

	// signed are the headers, or the target, of a request that a session signs.
	sign := func(method, target string, presign bool, header ...string) (string, []string) {
		t.Helper()
		request, err := http.NewRequest(method, "https://"+sameHost+target, nil)
		if err != nil {
			t.Fatal(err)
		}
		signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
		if presign {
			request.URL.RawQuery = strings.TrimPrefix(request.URL.RawQuery+"&X-Amz-Expires=600", "&")
			signed, _, err := signer.PresignHTTP(t.Context(), session, request, "UNSIGNED-PAYLOAD", "s3", r.Region, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimPrefix(signed, "https://"+sameHost), nil
		}
		request.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		for _, line := range header {
			name, value, _ := strings.Cut(line, ": ")
			request.Header.Add(name, value)
		}
		if err := signer.SignHTTP(t.Context(), session, request, "UNSIGNED-PAYLOAD", "s3", r.Region, time.Now()); err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, name := range slices.Sorted(maps.Keys(request.Header)) {
			for _, value := range request.Header[name] {
				lines = append(lines, name+": "+value)
			}
		}
		return target, lines
	}
	get := func(target string, header ...string) hostile {
		return hostile{method: "GET", target: target, header: header}
	}
	put := func(target string, header ...string) hostile {
		return hostile{method: "PUT", target: target, header: header, body: "body"}
	}
	hosts := func(hosts ...string) hostile {
		return hostile{method: "GET", target: "/artifacts/web/k", hosts: append([]string{}, hosts...)}
	}
	signed := func(method, target string, presign bool, header ...string) hostile {
		x := hostile{method: method, without: true}
		x.target, x.header = sign(method, target, presign, header...)
		return x
	}
	also := func(x hostile, header ...string) hostile {
		x.header = append(slices.Clone(x.header), header...)
		return x
	}
	but := func(x hostile, why string, pairs ...string) hostile {
		x.why, x.but = why, map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			x.but[pairs[i]] = pairs[i+1]
		}
		return x
	}
	const (
		byItself  = "net/http refuses by itself what is no HTTP: in a line of text, without an event"
		noStream  = "net/http refuses by itself what is no HTTP, and resets a stream that is no request, without an event"
		cannotSay = "HTTP/2 has another way to say it"
		reset     = "reset"
		plain400  = "400 without event"
	)

	for name, x := range map[string]hostile{
		"plain":                        get("/artifacts/web/k"),
		"HEAD":                         {method: "HEAD", target: "/artifacts/web/k"},
		"..":                           get("/artifacts/web/../api/k"),
		".. at the root":               get("/../artifacts/web/k"),
		"%2e%2e":                       get("/artifacts/web/%2e%2e/api/k"),
		".":                            get("/artifacts/web/./k"),
		". before the bucket":          get("/./artifacts/web/k"),
		"//":                           get("/artifacts/web//k"),
		"// after the bucket":          get("/artifacts//web/k"),
		"// before the bucket":         get("//artifacts/web/k"),
		"a slash at the end":           get("/artifacts/web/k/"),
		"%2F in the key":               get("/artifacts/web%2Fk"),
		"%2F and ..":                   get("/artifacts/web%2F..%2Fapi%2Fk"),
		"%2F for the bucket's slash":   get("/artifacts%2Fweb/k"),
		"%5C":                          get("/artifacts/web/..%5Capi"),
		"a backslash":                  get(`/artifacts/web/..\api`),
		"%00":                          get("/artifacts/web/k%00"),
		"a control":                    get("/artifacts/web/%01"),
		"%0d%0a":                       get("/artifacts/web/k%0d%0aX-Amz-Acl:%20public-read"),
		"half a character":             get("/artifacts/web/%c3%28"),
		"unescaped UTF-8":              get("/artifacts/web/ü"),
		"twice escaped":                get("/artifacts/web/%252e%252e/k"),
		"a plus":                       get("/artifacts/web/a+b%2Bc"),
		"a semicolon":                  get("/artifacts/web/k;v=1"),
		"a fragment":                   get("/artifacts/web/k#f"),
		"%23":                          get("/artifacts/web/k%23f"),
		"another's key":                get("/artifacts/api/k"),
		"its own doors":                get("/-/credentials/../../artifacts/web/k"),
		"its own doors, escaped":       get("/%2d/credentials"),
		"a bad escape":                 but(get("/artifacts/web/%zz"), noStream, byNetHTTP, plain400, byHTTP2, reset),
		"half an escape":               but(get("/artifacts/web/k%2"), noStream, byNetHTTP, plain400, byHTTP2, reset),
		"no slash":                     but(get("artifacts/web/k"), noStream, byNetHTTP, plain400, byHTTP2, reset),
		"a space":                      but(get("/artifacts/web/a b"), byItself, byNetHTTP, plain400),
		"a whole URL":                  get("https://" + sameHost + "/artifacts/web/k"),
		"a whole URL of elsewhere":     get("http://169.254.169.254/latest/meta-data"),
		"*":                            {method: "OPTIONS", target: "*"},
		"two of a parameter":           get("/artifacts/web/k?versionId=1&versionId=2"),
		"two subresources":             get("/artifacts/web/k?acl&tagging"),
		"a bucket's parameter":         get("/artifacts/web/k?list-type=2"),
		"policy by part":               put("/artifacts?policy&partNumber=1&uploadId=z"),
		"a semicolon in the query":     get("/artifacts/web/k?versionId=1;partNumber=2"),
		"a bad escape in the query":    get("/artifacts/web/k?versionId=%zz"),
		"%00 in the query":             get("/artifacts?list-type=2&prefix=web/%00"),
		"prefix of another":            get("/artifacts?list-type=2&prefix=web/&prefix=api/"),
		"empty pairs":                  get("/artifacts/web/k?&&versionId=1&"),
		"no name":                      get("/artifacts/web/k?=x"),
		"an escaped name":              get("/artifacts/web/k?version%49d=1"),
		"a name in capitals":           get("/artifacts/web/k?VERSIONID=1"),
		"an unknown parameter":         get("/artifacts/web/k?admin=1"),
		"a second ?":                   get("/artifacts/web/k?versionId=a?b"),
		"half a character in a query":  get("/artifacts/web/k?versionId=%e2%28"),
		"a header in the query":        put("/artifacts/web/k?x-amz-acl=public-read", "X-Amz-Acl: private"),
		"a header of spaces":           put("/artifacts/web/k?x-amz-acl=%20public-read"),
		"a signature of nothing":       get("/artifacts/web/k?X-Amz-Signature=1"),
		"no credentials":               {method: "GET", target: "/artifacts/web/k", without: true},
		"two tokens":                   get("/artifacts/web/k", "Authorization: Bearer x"),
		"two tokens in one line":       {method: "GET", target: "/artifacts/web/k", without: true, header: []string{"Authorization: Bearer " + token + ", Bearer " + token}},
		"a token in capitals":          {method: "GET", target: "/artifacts/web/k", without: true, header: []string{"AUTHORIZATION: BEARER " + token}},
		"a token after two spaces":     {method: "GET", target: "/artifacts/web/k", without: true, header: []string{"Authorization: Bearer  " + token}},
		"an empty Authorization":       {method: "GET", target: "/artifacts/web/k", without: true, header: []string{"Authorization: "}},
		"token and session token":      get("/artifacts/web/k", "X-Amz-Security-Token: x"),
		"token and session of S3":      get("/artifacts/web/k", "X-Amz-S3session-Token: x"),
		"signed":                       signed("GET", "/artifacts/web/k", false),
		"signed, a header":             signed("GET", "/artifacts/web/k", false, "Range: bytes=0-1"),
		"signed, a token too":          also(signed("GET", "/artifacts/web/k", false), "Authorization: Bearer "+token),
		"signed, a header more":        also(signed("GET", "/artifacts/web/k", false), "X-Amz-Checksum-Mode: ENABLED"),
		"signed, a header twice":       also(signed("GET", "/artifacts/web/k", false, "X-Amz-Checksum-Mode: ENABLED"), "X-Amz-Checksum-Mode: ENABLED"),
		"signed, two dates":            also(signed("GET", "/artifacts/web/k", false), "X-Amz-Date: 20260101T000000Z"),
		"signed, two hashes":           also(signed("GET", "/artifacts/web/k", false), "X-Amz-Content-Sha256: UNSIGNED-PAYLOAD"),
		"signed, two session tokens":   also(signed("GET", "/artifacts/web/k", false), "X-Amz-Security-Token: x"),
		"presigned":                    signed("GET", "/artifacts/web/k", true),
		"presigned, a token too":       also(signed("GET", "/artifacts/web/k", true), "Authorization: Bearer "+token),
		"presigned, a header":          also(signed("GET", "/artifacts/web/k", true), "X-Amz-Checksum-Mode: ENABLED"),
		"put":                          put("/artifacts/web/k", "X-Amz-Meta-A: b", "Content-Type: text/plain"),
		"an ACL":                       put("/artifacts/web/k", "X-Amz-Acl: public-read"),
		"two ACLs":                     put("/artifacts/web/k", "X-Amz-Acl: private", "X-Amz-Acl: public-read"),
		"an underscore":                put("/artifacts/web/k", "X_Amz_Acl: public-read"),
		"two of metadata":              put("/artifacts/web/k", "X-Amz-Meta-A: b", "x-amz-meta-a: c"),
		"an unknown header":            put("/artifacts/web/k", "X-Amz-Admin: 1"),
		"a copy":                       {method: "PUT", target: "/artifacts/web/k", header: []string{"X-Amz-Copy-Source: /artifacts/web/x"}},
		"a copy of another's":          {method: "PUT", target: "/artifacts/web/k", header: []string{"X-Amz-Copy-Source: /artifacts/web/..%2fapi/k"}},
		"a copy of two":                {method: "PUT", target: "/artifacts/web/k", header: []string{"X-Amz-Copy-Source: /artifacts/web/x", "X-Amz-Copy-Source: /artifacts/api/x"}},
		"two ranges":                   get("/artifacts/web/k", "Range: bytes=0-1", "Range: bytes=0-"),
		"two types":                    put("/artifacts/web/k", "Content-Type: text/plain", "Content-Type: text/html"),
		"bytes above ASCII":            put("/artifacts/web/k", "X-Amz-Meta-A: \xff\xfe"),
		"forwarded for another":        get("/artifacts/web/k", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Host: evil.com", "X-Forwarded-Proto: http"),
		"another method":               get("/artifacts/web/k", "X-HTTP-Method-Override: DELETE"),
		"a body of a GET":              {method: "GET", target: "/artifacts/web/k", body: "body"},
		"a body of a DELETE":           {method: "DELETE", target: "/artifacts/web/k", body: "body"},
		"DELETE":                       {method: "DELETE", target: "/artifacts/web/k"},
		"a method in small":            {method: "get", target: "/artifacts/web/k"},
		"no method of S3's":            {method: "PATCH", target: "/artifacts/web/k"},
		"aws-chunked, and not":         put("/artifacts/web/k", "Content-Encoding: aws-chunked"),
		"a length that is told twice":  put("/artifacts/web/k", "X-Amz-Decoded-Content-Length: 3"),
		"chunks that are none":         put("/artifacts/web/k", "X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER", "X-Amz-Decoded-Content-Length: 4"),
		"a wrong hash":                 put("/artifacts/web/k", "X-Amz-Content-Sha256: "+strings.Repeat("0", 64)),
		"a form":                       {method: "POST", target: "/artifacts", header: []string{"Content-Type: multipart/form-data; boundary=x"}, body: "--x--"},
		"STS":                          {method: "POST", target: "/", without: true, header: []string{"Content-Type: application/x-www-form-urlencoded"}, body: "Action=GetCallerIdentity&Version=2011-06-15"},
		"STS in the query":             {method: "GET", target: "/?Action=AssumeRoleWithWebIdentity&Version=2011-06-15", without: true},
		"a virtual host":               {method: "GET", target: "/web/k", hosts: []string{"artifacts." + sameHost}},
		"a virtual host in capitals":   {method: "GET", target: "/web/k", hosts: []string{"ARTIFACTS.S3.LOCALHOST."}},
		"a virtual host, and its path": {method: "GET", target: "/artifacts/web/k", hosts: []string{"artifacts." + sameHost}},
		"a port":                       hosts(sameHost + ":8443"),
		"no port":                      hosts(sameHost + ":http"),
		"another host":                 hosts("evil.com"),
		"a host that ends so":          hosts("evils3.localhost"),
		"dots":                         hosts("..s3.localhost"),
		"an empty host":                hosts(""),
		"no host":                      but(hosts(), byItself, byNetHTTP, plain400),
		"two hosts":                    but(hosts(sameHost, sameHost), "Host may say what :authority says", byNetHTTP, plain400, byHTTP2, "200  completed"),
		"two hosts that differ":        but(hosts(sameHost, "artifacts."+sameHost), byItself, byNetHTTP, plain400),
		"a host with a path":           but(hosts(sameHost+"/artifacts"), byItself, byNetHTTP, plain400),
		"a host with a space":          but(hosts("s3 .localhost"), byItself, byNetHTTP, plain400),
		"a host with a user":           but(hosts("user@"+sameHost), noStream, byNetHTTP, plain400, byHTTP2, reset),
		"Connection: close":            but(get("/artifacts/web/k", "Connection: close"), cannotSay, byHTTP2, plain400),
		"Connection: Authorization":    but(get("/artifacts/web/k", "Connection: Authorization"), cannotSay, byHTTP2, plain400),
		"an unknown expectation":       but(put("/artifacts/web/k", "Expect: a pony"), byItself, byNetHTTP, "417 without event"),
		"an expectation":               but(put("/artifacts/web/k", "Expect: 100-continue"), "net/http takes it out of a stream's header, and the backend is not told of it", byHTTP2, "200  completed"),
		"chunks":                       but(put("/artifacts/web/k", "Transfer-Encoding: chunked"), cannotSay, byHTTP2, plain400),
		"chunks and a length":          but(put("/artifacts/web/k", "Transfer-Encoding: chunked", "Content-Length: 4"), "net/http passes over the length, as it may", byNetHTTP, "411 MissingContentLength refused", byHTTP2, plain400),
		"an unknown coding":            but(put("/artifacts/web/k", "Transfer-Encoding: gzip"), byItself, byNetHTTP, "501 without event", byHTTP2, plain400),
		"two lengths":                  but(put("/artifacts/web/k", "Content-Length: 4", "Content-Length: 3"), byItself, byNetHTTP, plain400),
		"a length twice":               but(put("/artifacts/web/k", "Content-Length: 4", "Content-Length: 4"), "net/http takes the same length twice for one, as it may", byNetHTTP, "200  completed"),
		"a length with a sign":         but(hostile{method: "PUT", target: "/artifacts/web/k", header: []string{"Content-Length: +4"}}, byItself, byNetHTTP, plain400),
		"a length in hexadecimal":      but(hostile{method: "PUT", target: "/artifacts/web/k", header: []string{"Content-Length: 0x4"}}, byItself, byNetHTTP, plain400),
		"a negative length":            but(hostile{method: "PUT", target: "/artifacts/web/k", header: []string{"Content-Length: -4"}}, byItself, byNetHTTP, plain400),
		"a list of lengths":            but(hostile{method: "PUT", target: "/artifacts/web/k", header: []string{"Content-Length: 4, 4"}}, byItself, byNetHTTP, plain400),
		"a length of zeros":            put("/artifacts/web/k", "Content-Length: 0004"),
		"a NUL in a value":             but(hostile{method: "PUT", target: "/artifacts/web/k", header: []string{"X-Amz-Meta-A: \x00"}}, noStream, byNetHTTP, plain400, byHTTP2, reset),
		"a space in a name":            but(hostile{method: "PUT", target: "/artifacts/web/k", header: []string{"X-Amz-Meta-A : b"}}, noStream, byNetHTTP, plain400, byHTTP2, reset),
	} {
		t.Run(name, func(t *testing.T) {
			x.header = slices.Clone(x.header)
			if !x.without {
				x.header = append(x.header, "Authorization: Bearer "+token)
			}
			has := func(prefix string) bool {
				return slices.ContainsFunc(x.header, func(line string) bool { return strings.HasPrefix(line, prefix) })
			}
			if x.body != "" && !has("Content-Length:") && !has("Transfer-Encoding: chunked") {
				x.header = append(x.header, fmt.Sprintf("Content-Length: %d", len(x.body)))
			}
			if x.hosts == nil {
				x.hosts = []string{sameHost}
			}
			results := map[string]string{}
			for _, way := range []struct {
				name  string
				proxy *world.Proxy
				send  func(*testing.T, *world.Proxy, hostile) (*http.Response, string)
			}{{byHTTP1, r.proxy, sendHTTP1}, {byNetHTTP, off, sendHTTP1}, {byHTTP2, r.proxy, sendHTTP2}} {
				seen := len(backend.Requests())
				response, body := way.send(t, way.proxy, x)
				result := reset
				if response != nil {
					result = fmt.Sprint(response.StatusCode)
					if id := response.Header.Get("X-Sluice-Request-Id"); id == "" {
						result += " without event"
					} else {
						e := eventOf(t, way.proxy, id)
						result += " " + e.Error + " " + string(e.Outcome)
						if x.method != "HEAD" && e.Error != "" && !strings.Contains(body, "<Code>"+e.Error+"</Code>") {
							t.Errorf("%s: the event has %s, the answer %s", way.name, e.Error, body)
						}
					}
				}
				for _, q := range backend.Requests()[seen:] {
					result += "\n" + asked(q)
				}
				results[way.name] = result
			}
			for _, way := range []string{byNetHTTP, byHTTP2} {
				got, want := results[way], results[byHTTP1]
				if other, ok := x.but[way]; ok {
					want = other
					if strings.HasPrefix(want, "200") {
						got, _, _ = strings.Cut(got, "\n")
					}
				}
				if got != want {
					t.Errorf("by %s: %s\nwant (%s) %s", way, got, x.why, want)
				}
			}
			t.Logf("%s", results[byHTTP1])
		})
	}
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	all, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// asked is a request at the backend, without what differs each time.
func asked(q s3test.Request) string {
	var fields []string
	for _, f := range q.Header {
		switch strings.ToLower(f.Name) {
		case "authorization", "x-amz-date", "x-amz-security-token", "host":
		default:
			fields = append(fields, strings.ToLower(f.Name)+": "+f.Value)
		}
	}
	slices.Sort(fields)
	return fmt.Sprintf("%s %s %q %q", q.Method, q.Target, fields, q.Body)
}

func eventOf(t *testing.T, p *world.Proxy, id string) (e audit.Event) {
	t.Helper()
	machine.Until(t, "the event "+id, func() bool {
		events, err := p.Events()
		if err != nil {
			t.Fatal(err)
		}
		for _, e = range slices.Backward(events) {
			if e.ID == id {
				return true
			}
		}
		return false
	})
	return e
}

func sendHTTP1(t *testing.T, p *world.Proxy, x hostile) (*http.Response, string) {
	t.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(p.URL, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(machine.Patience))
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", x.method, x.target)
	chunked := false
	for _, host := range x.hosts {
		fmt.Fprintf(&b, "Host: %s\r\n", host)
	}
	for _, line := range x.header {
		fmt.Fprintf(&b, "%s\r\n", line)
		chunked = chunked || line == "Transfer-Encoding: chunked"
	}
	body := x.body
	if chunked {
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	if _, err := io.WriteString(c, b.String()+"\r\n"+body); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	for {
		response, err := http.ReadResponse(in, &http.Request{Method: x.method})
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode >= 200 {
			body, _ := io.ReadAll(response.Body)
			return response, string(body)
		}
	}
}

func sendHTTP2(t *testing.T, p *world.Proxy, x hostile) (*http.Response, string) {
	t.Helper()
	c := dialH2(t, p, 1<<20)
	defer c.conn.Close()
	fields := []string{":method", x.method, ":scheme", "https", ":path", x.target}
	for i, host := range x.hosts {
		if i == 0 {
			fields = append(fields, ":authority", host)
		} else {
			fields = append(fields, "host", host)
		}
	}
	for _, line := range x.header {
		name, value, _ := strings.Cut(line, ":")
		fields = append(fields, strings.ToLower(name), strings.TrimPrefix(value, " "))
	}
	id := c.send(x.body == "", fields...)
	if x.body != "" {
		c.data(id, true, x.body)
	}
	s := c.answer(id)
	if s.status() == "" {
		return nil, ""
	}
	response := &http.Response{Header: s.header}
	fmt.Sscan(s.status(), &response.StatusCode)
	return response, string(s.body)
}
