package proxy_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/proxy/identity/oidctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// doors are all ways in for a token. Each answers whether it was let in.
var doors = map[string]func(r *rig, token string) (status int, body string){
	"bearer": func(r *rig, token string) (int, string) {
		request := r.request("GET", "/artifacts/web/k", nil)
		request.Header.Set("Authorization", "Bearer "+token)
		response, body := r.do(request)
		return response.StatusCode, body
	},
	"session token": func(r *rig, token string) (int, string) {
		request := r.request("GET", "/artifacts/web/k", nil)
		request.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=any/20261123/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature="+strings.Repeat("0", 64))
		request.Header.Set("X-Amz-Date", "20261123T000000Z")
		request.Header.Set("X-Amz-Security-Token", token)
		response, body := r.do(request)
		return response.StatusCode, body
	},
	"sts": func(r *rig, token string) (int, string) {
		return r.sts(url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {"arn:aws:iam::123456789012:role/dev"}, "RoleSessionName": {"me"}, "WebIdentityToken": {token}})
	},
	"container": func(r *rig, token string) (int, string) {
		request := r.request("GET", "/-/credentials", nil)
		request.Header.Set("Authorization", token)
		response, body := r.do(request)
		return response.StatusCode, body
	},
}

func (r *rig) sts(form url.Values) (int, string) {
	r.t.Helper()
	request, err := http.NewRequest("POST", r.URL+"/", strings.NewReader(form.Encode()))
	must(r.t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, body := r.do(request)
	return response.StatusCode, body
}

// T10: one verifier behind every door, and an event for each.
func TestT10TheSameAtEveryDoor(t *testing.T) {
	r := newRig(t, rigOptions{})
	other := oidctest.New(oidctest.Options{})
	defer other.Close()
	past := time.Now().Add(-time.Hour).Unix()
	tokens := map[string]struct {
		token string
		in    bool
	}{
		"good":             {r.token(), true},
		"expired":          {r.token(map[string]any{"exp": past, "iat": past - 3600}), false},
		"another audience": {r.token(map[string]any{"aud": "https://elsewhere"}), false},
		"another issuer":   {other.Token(map[string]any{"aud": audience, "sub": "x"}), false},
		"no subject":       {r.token(map[string]any{"sub": ""}), false},
		"not yet":          {r.token(map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}), false},
		"cut short":        {r.token()[:200], false},
		"none":             {"", false},
	}
	for door, enter := range doors {
		for name, c := range tokens {
			status, body := enter(r, c.token)
			if (status == 200) != c.in || status >= 500 {
				t.Errorf("%s by %s: %d %s", name, door, status, body)
			}
			if c.token != "" && strings.Contains(body, c.token) {
				t.Errorf("%s by %s: the answer repeats the token", name, door)
			}
		}
	}
	for _, e := range r.events(len(doors) * len(tokens)) {
		if (e.Outcome == "completed") != (e.Status == 200) || e.Operation == "" || e.Outcome == "completed" && e.Identity.Session != "env-1" {
			t.Errorf("event %+v", e)
		}
	}
	revoke(t, r, "env-1")
	for door, enter := range doors {
		if status, body := enter(r, tokens["good"].token); status == 200 {
			t.Errorf("revoked, by %s: %d %s", door, status, body)
		}
	}
	for _, e := range r.events(len(doors)) {
		if e.Identity.Session != "env-1" || e.Outcome != "refused" {
			t.Errorf("the event does not tell who was revoked: %+v", e)
		}
	}
}

func TestExchangeAnswers(t *testing.T) {
	r := newRig(t, rigOptions{})
	status, body := doors["container"](r, "Bearer "+r.token())
	var got map[string]string
	if status != 200 || json.Unmarshal([]byte(body), &got) != nil || got["AccessKeyId"] == "" || got["SecretAccessKey"] == "" || got["Token"] == "" || got["Expiration"] == "" {
		t.Errorf("%d %s", status, body)
	}
	check(t, r.event(), map[string]any{"operation": "GetContainerCredentials", "outcome": "completed"})

	for name, form := range map[string]url.Values{
		"unknown action": {"Action": {"AssumeRole"}, "Version": {"2011-06-15"}},
		"no action":      {"Version": {"2011-06-15"}},
		"a policy that would not hold": {"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {"arn:aws:iam::1:role/dev"},
			"RoleSessionName": {"me"}, "WebIdentityToken": {r.token()}, "Policy": {"{}"}},
		"repeated": {"Action": {"GetCallerIdentity", "GetCallerIdentity"}, "Version": {"2011-06-15"}},
	} {
		status, body := r.sts(form)
		if status != 400 || !strings.Contains(body, "<ErrorResponse") || !strings.Contains(body, "<RequestId>") {
			t.Errorf("%s: %d %s", name, status, body)
		}
		check(t, r.event(), map[string]any{"outcome": "refused"})
	}

	// In a virtual-hosted request the same path is a key, and a POST is the bucket's.
	if n := len(r.backend.Requests()); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// T17: whom the connection was opened for is whom the request is for.
func TestT17HostIsTheNameOfTheConnection(t *testing.T) {
	r := newRig(t, rigOptions{})
	server := httptest.NewTLSServer(r.proxy)
	defer server.Close()
	ask := func(serverName, host string) int {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: serverName}}}
		request, err := http.NewRequest("GET", server.URL+"/artifacts/web/k", nil)
		must(t, err)
		request.Host = host
		request.Header.Set("Authorization", "Bearer "+r.token())
		response, err := client.Do(request)
		must(t, err)
		defer response.Body.Close()
		io.Copy(io.Discard, response.Body)
		return response.StatusCode
	}
	for host, want := range map[string]int{
		"example.com": 200, "example.com:443": 200, "EXAMPLE.COM.": 200,
		"other.example.com": 421, "example.com.evil.com": 421, "127.0.0.1": 421,
	} {
		if got := ask("example.com", host); got != want {
			t.Errorf("Host %s on a connection for example.com: %d, want %d", host, got, want)
		}
		r.event()
	}
}

// T17 over HTTP/2, where a stream says by itself what scheme it has. One that says http is on the same connection all the
// same.
func TestT17StreamOfAnotherScheme(t *testing.T) {
	r := newRig(t, rigOptions{})
	server := httptest.NewUnstartedServer(r.proxy)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	for scheme, want := range map[string]string{"https": "200", "http": "421"} {
		conn, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com", NextProtos: []string{"h2"}})
		must(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, http2.ClientPreface)
		must(t, err)
		framer := http2.NewFramer(conn, conn)
		framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		must(t, framer.WriteSettings())
		host := map[string]string{"https": "example.com", "http": "other.example.com"}[scheme]
		var block bytes.Buffer
		encoder := hpack.NewEncoder(&block)
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", scheme}, {":authority", host}, {":path", "/artifacts/web/k"}, {"authorization", "Bearer " + r.token()}} {
			must(t, encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
		}
		must(t, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}))
		for {
			frame, err := framer.ReadFrame()
			must(t, err)
			if head, ok := frame.(*http2.MetaHeadersFrame); ok {
				if got := head.PseudoValue("status"); got != want {
					t.Errorf(":scheme %s, :authority %s on a connection for example.com: %s, want %s", scheme, host, got, want)
				}
				break
			}
		}
		r.event()
	}
}

// https://openid.net/specs/openid-connect-backchannel-1_0.html#BCRequest
func TestLogoutDoor(t *testing.T) {
	r := newRig(t, rigOptions{})
	const form = "application/x-www-form-urlencoded"
	token := func() string { return r.issuer.LogoutToken(map[string]any{"aud": audience, "sid": "s-1"}) }
	for _, test := range []struct {
		name, method, query, kind, body string
		status                          int
	}{
		{"GET", "GET", "", "", "", 405},
		{"GET with the token in the query", "GET", "?logout_token=" + token(), "", "", 405},
		{"PUT", "PUT", "", form, "logout_token=" + token(), 405},
		{"JSON", "POST", "", "application/json", `{"logout_token": "` + token() + `"}`, 400},
		{"the token alone", "POST", "", "application/jwt", token(), 400},
		{"no form", "POST", "", form, "", 400},
		{"the token in the query", "POST", "?logout_token=" + token(), form, "", 400},
		{"two", "POST", "", form, "logout_token=" + token() + "&logout_token=" + token(), 400},
		{"no token", "POST", "", form, "logout_token=x", 400},
		{"an access token", "POST", "", form, "logout_token=" + r.token(), 400},
		{"a logout token", "POST", "", form, "logout_token=" + token(), 200},
		{"and what else the issuer says", "POST", "", form + "; charset=utf-8", "logout_token=" + token() + "&state=x", 200},
	} {
		request, err := http.NewRequest(test.method, r.URL+"/-/logout"+test.query, strings.NewReader(test.body))
		must(t, err)
		if test.kind != "" {
			request.Header.Set("Content-Type", test.kind)
		}
		response, body := r.do(request)
		if response.StatusCode != test.status || response.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s, Cache-Control %q: %s", test.name, response.Status, response.Header.Get("Cache-Control"), body)
		}
		if test.status == 405 && response.Header.Get("Allow") != "POST" {
			t.Errorf("%s: Allow %q", test.name, response.Header.Get("Allow"))
		}
		e := r.event()
		if want := map[bool]string{true: "completed", false: "refused"}[test.status == 200]; string(e.Outcome) != want || e.Operation != "BackChannelLogout" {
			t.Errorf("%s: event %+v", test.name, e)
		}
	}
	response, _ := r.do(r.request("GET", "/b/web/x", nil))
	if response.StatusCode != 404 && response.StatusCode != 200 {
		t.Errorf("another session: %s", response.Status)
	}
	request := r.request("GET", "/b/web/x", nil)
	request.Header.Set("Authorization", "Bearer "+r.token(map[string]any{"sid": "s-1"}))
	if response, body := r.do(request); response.StatusCode != 403 {
		t.Errorf("the session: %s %s", response.Status, body)
	}
	r.events(2)
}
