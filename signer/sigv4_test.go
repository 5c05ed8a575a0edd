package signer_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"pgregory.net/rapid"

	"github.com/sluice-s3/sluice/signer"
)

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func unwrap(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	return nil
}

const (
	exampleKey    = "AKIAIOSFODNN7EXAMPLE"
	exampleSecret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	emptySum      = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// static signs with one key pair.
func static(t testing.TB, key, secret, token, region string, now func() time.Time) *signer.Signer {
	t.Setenv("STATIC_ID", key)
	t.Setenv("STATIC_SECRET", secret)
	c := signer.Static{AccessKeyIDEnv: "STATIC_ID", SecretAccessKeyEnv: "STATIC_SECRET"}
	if token != "" {
		t.Setenv("STATIC_TOKEN", token)
		c.SessionTokenEnv = "STATIC_TOKEN"
	}
	return newSigner(t, signer.Config{Static: &c}, signer.Options{Region: region, Now: now})
}

func forever() signer.As {
	return signer.As{Principal: &signer.Principal{Subject: "s", Expires: time.Now().AddDate(100, 0, 0)}}
}

// The four examples of https://docs.aws.amazon.com/AmazonS3/latest/API/sig-header-based-auth.html.
func TestSignPublishedExamples(t *testing.T) {
	at := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	s := static(t, exampleKey, exampleSecret, "", "us-east-1", func() time.Time { return at })
	for _, c := range []struct {
		name, method, url string
		header            map[string]string
		hash, signature   string
	}{
		{"get object", "GET", "https://examplebucket.s3.amazonaws.com/test.txt", map[string]string{"Range": "bytes=0-9"}, emptySum,
			"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		{"put object", "PUT", "https://examplebucket.s3.amazonaws.com/test$file.text",
			map[string]string{"Date": "Fri, 24 May 2013 00:00:00 GMT", "X-Amz-Storage-Class": "REDUCED_REDUNDANCY"},
			"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
			"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
		{"get bucket lifecycle", "GET", "https://examplebucket.s3.amazonaws.com/?lifecycle", nil, emptySum,
			"fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		{"list objects", "GET", "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J", nil, emptySum,
			"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequest(c.method, c.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			if err := s.Sign(context.Background(), req, c.hash, forever()); err != nil {
				t.Fatal(err)
			}
			if got := req.Header.Get("Authorization"); !strings.HasSuffix(got, "Signature="+c.signature) {
				t.Errorf("signed %s\nwant   %s", got, c.signature)
			}
		})
	}
}

// A key is derived for each day, in UTC, whatever zone the clock is in.
func TestSignOverMidnight(t *testing.T) {
	at := time.Date(2026, 11, 24, 1, 59, 59, 0, time.FixedZone("", 2*3600))
	s := static(t, exampleKey, exampleSecret, "", "us-east-1", func() time.Time { return at })
	sdk := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	for _, step := range []time.Duration{0, time.Second, 24 * time.Hour, -24 * time.Hour, time.Hour} {
		at = at.Add(step)
		got, want := get(t), get(t)
		if err := s.Sign(context.Background(), got, emptySum, forever()); err != nil {
			t.Fatal(err)
		}
		want.Header.Set("X-Amz-Content-Sha256", emptySum)
		creds := aws.Credentials{AccessKeyID: exampleKey, SecretAccessKey: exampleSecret}
		if err := sdk.SignHTTP(context.Background(), creds, want, emptySum, "s3", "us-east-1", at); err != nil {
			t.Fatal(err)
		}
		if g, w := got.Header.Get("Authorization"), want.Header.Get("Authorization"); g != w {
			t.Errorf("at %s signed %s\nSDK %s", at, g, w)
		}
	}
}

// What the request has of an earlier signature, or of the client's, is replaced or gone.
func TestSignReplacesWhatWasThere(t *testing.T) {
	req := get(t)
	for _, h := range []string{"Authorization", "X-Amz-Date", "X-Amz-Content-Sha256", "X-Amz-Security-Token"} {
		req.Header[h] = []string{"canary", "canary"}
	}
	s := static(t, "AKID", "secret", "", "", time.Now)
	if err := s.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", forever()); err != nil {
		t.Fatal(err)
	}
	for name, values := range req.Header {
		if len(values) != 1 || strings.Contains(values[0], "canary") {
			t.Errorf("%s: %q", name, values)
		}
	}
	if v, ok := req.Header["X-Amz-Security-Token"]; ok {
		t.Errorf("a session token without a session: %q", v)
	}
}

func TestSignLeavesUnsignedWhatOthersRewrite(t *testing.T) {
	req := get(t)
	ignored := []string{"User-Agent", "Expect", "Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Proxy-Authorization", "Proxy-Connection", "Accept-Encoding", "Via", "Forwarded", "X-Forwarded-For", "X-Amzn-Trace-Id",
		"Traceparent", "Tracestate", "Content-Length", "Host"}
	for _, h := range ignored {
		req.Header.Set(h, "x")
	}
	req.Header.Set("X-Amz-Acl", "private")
	s := static(t, "AKID", "secret", "token", "", time.Now)
	if err := s.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", forever()); err != nil {
		t.Fatal(err)
	}
	const want = "SignedHeaders=host;x-amz-acl;x-amz-content-sha256;x-amz-date;x-amz-security-token,"
	if auth := req.Header.Get("Authorization"); !strings.Contains(auth, want) {
		t.Errorf("signed %s, want %s", auth, want)
	}
}

func TestSignRefusesWhatWouldBeSentAsSomethingElse(t *testing.T) {
	s := static(t, "AKID", "secret", "", "", time.Now)
	for name, spoil := range map[string]func(*http.Request){
		"opaque":             func(r *http.Request) { r.URL.Opaque = "//x/y" },
		"user":               func(r *http.Request) { r.URL.User = url.User("x") },
		"relative":           func(r *http.Request) { r.URL.Path = "b/k" },
		"semicolon":          func(r *http.Request) { r.URL.RawQuery = "prefix=a;b" },
		"bad escape":         func(r *http.Request) { r.URL.RawQuery = "prefix=%zz" },
		"short escape":       func(r *http.Request) { r.URL.RawQuery = "prefix=%2" },
		"bad escape in name": func(r *http.Request) { r.URL.RawQuery = "%=1" },
		"line break":         func(r *http.Request) { r.Header["X-Amz-Meta-A"] = []string{"a\r\nX-Amz-Acl: public-read"} },
		"line feed":          func(r *http.Request) { r.Header["X-Amz-Meta-A"] = []string{"a", "b\nc"} },
		"carriage return":    func(r *http.Request) { r.Header["X-Amz-Meta-A"] = []string{"b\rc"} },
		"two spellings":      func(r *http.Request) { r.Header["X-Amz-Acl"], r.Header["x-amz-acl"] = []string{"a"}, []string{"b"} },
		"host":               func(r *http.Request) { r.Host = "a\r\nb" },
	} {
		t.Run(name, func(t *testing.T) {
			req := get(t)
			spoil(req)
			if err := s.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", forever()); err == nil {
				t.Errorf("signed %v %v", req.URL, req.Header)
			}
			if req.Header.Get("Authorization") != "" {
				t.Error("and left a signature")
			}
		})
	}
	for _, hash := range []string{"", "a b", "a\nb"} {
		if err := s.Sign(context.Background(), get(t), hash, forever()); err == nil {
			t.Errorf("signed with payload hash %q", hash)
		}
	}
}

// However a URL holds its path, it goes out as S3 signs it, and means what it meant.
func TestSignSpellsThePath(t *testing.T) {
	s := static(t, "AKID", "secret", "", "", time.Now)
	for _, c := range []struct{ path, raw, want string }{
		{"", "", "/"},
		{"/a-b_c.~/D9", "", "/a-b_c.~/D9"},
		{"/a-b_c.~/D9", "/a-b_c.~/D9", "/a-b_c.~/D9"},
		{"/a b+$", "", "/a%20b%2B%24"},
		{"/a b+$", "/a b+$", "/a%20b%2B%24"}, // no spelling of it
		{"/a b+$", "/a%20b+$", "/a%20b%2B%24"},
		{"/a/b", "/a%2fb", "/a%2Fb"},
		{"/a/b", "/other", "/a/b"},
		{"/a%2Fb", "", "/a%252Fb"},
		{"/a%2Fb", "/a%2Fb", "/a%252Fb"}, // the path is what counts
		{"/%zz", "/%zz", "/%25zz"},
		{"/\xff", "/\xff", "/%FF"},
	} {
		req := get(t)
		req.URL.Path, req.URL.RawPath = c.path, c.raw
		before := *req.URL
		if err := s.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", forever()); err != nil {
			t.Errorf("%q %q: %v", c.path, c.raw, err)
			continue
		}
		if got := req.URL.EscapedPath(); got != c.want {
			t.Errorf("%q %q goes out as %q, want %q", c.path, c.raw, got, c.want)
		}
		if c.path != "" && req.URL.Path != before.Path {
			t.Errorf("%q became %q", before.Path, req.URL.Path)
		}
	}
}

// Any request that both sign, the SDK's signer signs alike.
func FuzzSignAsTheSDK(f *testing.F) {
	f.Add("GET", "bucket.s3.example", "/key", "list-type=2&prefix=a%2Fb&acl", "X-Amz-Meta-A", "a  b ", "x-amz-acl", "private", int64(0), true)
	f.Add("PUT", "host:443", "/a b/ü%2F+.txt//", "a=1&a=0&b&=x&%41=%7e", "Content-Type", "", "content-type", "x", int64(12), false)
	f.Add("POST", "host:8443", "", "k=a/b&k=a-b&+=%20", "Date", "\t x", "Zz", "z", int64(1<<40), true)
	at := time.Date(2026, 11, 23, 23, 59, 59, 0, time.UTC)
	ours := static(f, exampleKey, exampleSecret, "", "eu-west-1", func() time.Time { return at })
	oursToken := static(f, exampleKey, exampleSecret, "IQoJ+/token==", "eu-west-1", func() time.Time { return at })
	sdk := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })

	f.Fuzz(func(t *testing.T, method, host, path, query, h1, v1, h2, v2 string, length int64, token bool) {
		if strings.ContainsAny(query, ";") || strings.ContainsAny(host, "[]%/?#@\\ \t") || host == "" || !plain(host) {
			return // the SDK signs what it then does not send, or strips brackets
		}
		if _, err := url.ParseQuery(query); err != nil {
			return // the same
		}
		build := func() *http.Request {
			r := &http.Request{Method: method, Host: host, ContentLength: length, Header: http.Header{},
				URL: &url.URL{Scheme: "https", Host: host, Path: "/" + path, RawPath: encodePath("/" + path), RawQuery: query}}
			for _, h := range [][2]string{{h1, v1}, {h2, v2}} {
				if comparable(h[0]) && plain(h[1]) {
					r.Header.Add(h[0], h[1])
				}
			}
			return r
		}
		if method == "" {
			return // GET to us and to net/http, nothing to the SDK
		}
		s, creds := ours, aws.Credentials{AccessKeyID: exampleKey, SecretAccessKey: exampleSecret}
		if token {
			s, creds.SessionToken = oursToken, "IQoJ+/token=="
		}
		got, want := build(), build()
		if err := s.Sign(context.Background(), got, emptySum, forever()); err != nil {
			t.Fatalf("%v: %v", err, unwrap(err))
		}
		want.Header.Set("X-Amz-Content-Sha256", emptySum)
		if err := sdk.SignHTTP(context.Background(), creds, want, emptySum, "s3", "eu-west-1", at); err != nil {
			t.Fatal(err)
		}
		if g, w := got.Header.Get("Authorization"), want.Header.Get("Authorization"); g != w {
			t.Errorf("signed %s\nSDK    %s\n%s %q %v", g, w, got.Method, got.URL, got.Header)
		}
		if g, w := got.URL.RequestURI(), want.URL.RequestURI(); g != w {
			t.Errorf("sends %q, SDK %q", g, w)
		}
		if g, w := got.Host, want.Host; g != w {
			t.Errorf("host %q, SDK %q", g, w)
		}
		if g, w := fmt.Sprint(got.Header), fmt.Sprint(want.Header); g != w {
			t.Errorf("headers %s\nSDK     %s", g, w)
		}
	})
}

func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > '~' || r < ' ' && r != '\t' })
}

// comparable tells whether both signers sign the header: we leave out more, and name no header that is none.
func comparable(name string) bool {
	switch strings.ToLower(name) {
	case "", "authorization", "host", "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
		"te", "trailer", "transfer-encoding", "upgrade", "accept-encoding", "via", "forwarded", "x-forwarded-for",
		"x-forwarded-host", "x-forwarded-proto", "traceparent", "tracestate", "baggage", "user-agent", "expect", "x-amzn-trace-id",
		"x-amz-date", "x-amz-content-sha256", "x-amz-security-token":
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-')
	})
}

// encodePath is S3's spelling of a path, written apart from the signer's.
func encodePath(path string) string {
	return strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(path))
}

// wireVerifier is a server that takes requests apart itself, and knows nothing but their bytes.
type wireVerifier struct {
	net.Listener
	secret string
	seen   chan error
}

func newWireVerifier(t *testing.T, secret string) *wireVerifier {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wireVerifier{l, secret, make(chan error, 1)}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for {
					head, length, err := readHead(r)
					if err != nil {
						return
					}
					io.CopyN(io.Discard, r, length)
					w.seen <- w.verify(head)
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			}()
		}
	}()
	return w
}

func readHead(r *bufio.Reader) (lines []string, length int64, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, 0, err
		}
		line = strings.TrimSuffix(line, "\r\n")
		if line == "" {
			return lines, length, nil
		}
		if v, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			fmt.Sscan(v, &length)
		}
		lines = append(lines, line)
	}
}

// verify computes the signature from the request line and header lines alone. It decodes the path and query and
// encodes them anew, as S3 does.
func (w *wireVerifier) verify(head []string) error {
	method, rest, _ := strings.Cut(head[0], " ")
	target, _, _ := strings.Cut(rest, " HTTP/1.1")
	rawPath, rawQuery, _ := strings.Cut(target, "?")
	headers := map[string][]string{}
	for _, line := range head[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return fmt.Errorf("header line %q", line)
		}
		headers[strings.ToLower(name)] = append(headers[strings.ToLower(name)], strings.TrimSpace(value))
	}
	for _, name := range []string{"authorization", "x-amz-date", "x-amz-content-sha256", "host"} {
		if len(headers[name]) != 1 {
			return fmt.Errorf("%d headers %s", len(headers[name]), name)
		}
	}
	var cred, names, signature string
	if _, err := fmt.Sscanf(headers["authorization"][0], "AWS4-HMAC-SHA256 Credential=%s SignedHeaders=%s Signature=%s", &cred, &names, &signature); err != nil {
		return err
	}
	cred, names = strings.TrimSuffix(cred, ","), strings.TrimSuffix(names, ",")

	path, err := url.PathUnescape(rawPath)
	if err != nil {
		return err
	}
	var pairs []string
	for pair := range strings.SplitSeq(rawQuery, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		if name, err = url.PathUnescape(name); err != nil {
			return err
		}
		if value, err = url.PathUnescape(value); err != nil {
			return err
		}
		pairs = append(pairs, encodeQuery(name)+"="+encodeQuery(value))
	}
	slices.SortFunc(pairs, func(a, b string) int {
		return slices.Compare(strings.SplitN(a, "=", 2), strings.SplitN(b, "=", 2))
	})
	// Servers differ in what they make canonical: what is sent is so already.
	if want := strings.Join(pairs, "&"); rawQuery != want {
		return fmt.Errorf("query %q is sent, canonical is %q", rawQuery, want)
	}
	if want := encodePath(path); strings.ReplaceAll(rawPath, "%2F", "/") != want {
		return fmt.Errorf("path %q is sent, canonical is %q", rawPath, want)
	}
	canonical := method + "\n" + encodePath(path) + "\n" + strings.Join(pairs, "&") + "\n"
	signed := strings.Split(names, ";")
	if !slices.IsSorted(signed) {
		return fmt.Errorf("signed headers out of order: %s", names)
	}
	for _, name := range signed {
		if len(headers[name]) == 0 {
			return fmt.Errorf("header %s is signed and not sent", name)
		}
		value := strings.Join(headers[name], ",")
		for strings.Contains(value, "  ") {
			value = strings.ReplaceAll(value, "  ", " ")
		}
		canonical += name + ":" + value + "\n"
	}
	for name := range headers {
		if !slices.Contains(signed, name) && !slices.Contains([]string{"authorization", "user-agent", "accept-encoding", "content-length"}, name) {
			return fmt.Errorf("header %s is sent and not signed", name)
		}
	}
	canonical += "\n" + names + "\n" + headers["x-amz-content-sha256"][0]

	_, scope, _ := strings.Cut(cred, "/")
	key := []byte("AWS4" + w.secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	want := hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+headers["x-amz-date"][0]+"\n"+scope+"\n"+sum([]byte(canonical))))
	if want != signature {
		return fmt.Errorf("signature does not match; the server's canonical request is\n%s", canonical)
	}
	return nil
}

func encodeQuery(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func mac(key []byte, s string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(s))
	return m.Sum(nil)
}

// What is sent is what was signed, whatever is in keys, queries and headers, and however they are spelt.
func TestSignedIsWhatIsSent(t *testing.T) {
	w := newWireVerifier(t, exampleSecret)
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	t.Cleanup(client.CloseIdleConnections)
	s := static(t, exampleKey, exampleSecret, "token+/==", "eu-west-1", time.Now)

	send := func(req *http.Request) error {
		if err := s.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", forever()); err != nil {
			return fmt.Errorf("%w: %w", err, unwrap(err))
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		return <-w.seen
	}
	for _, odd := range []string{"/", "//", "/b//k", "/b/./k", "/b/../k", "/b/a b", "/b/a+b", "/b/ü.txt", "/b/%", "/b/%2F", "/b/%25",
		"/b/$&+,:;=@!*'()", "/b/?", "/b/#", "/b/\\", "/b/k/", "/b/~-_.", "/b/\x01\x7f", "//evil.example/k"} {
		for _, raw := range []string{"", encodePath(odd), strings.ToLower(encodePath(odd))} {
			req := get(t)
			req.URL = &url.URL{Scheme: "http", Host: w.Addr().String(), Path: odd, RawPath: raw}
			req.Host = ""
			if err := send(req); err != nil {
				t.Errorf("path %q, spelt %q: %v", odd, raw, err)
			}
		}
	}

	rapid.Check(t, func(r *rapid.T) {
		var query []string
		for range rapid.IntRange(0, 5).Draw(r, "params") {
			p := encodeQuery(rapid.String().Draw(r, "name"))
			if rapid.Bool().Draw(r, "value?") {
				p += "=" + encodeQuery(rapid.String().Draw(r, "value"))
			}
			query = append(query, p)
		}
		body := rapid.SliceOfN(rapid.Byte(), 0, 32).Draw(r, "body")
		method := rapid.SampledFrom([]string{"GET", "PUT", "POST", "DELETE", "HEAD"}).Draw(r, "method")
		req, err := http.NewRequest(method, "http://"+w.Addr().String(), bytes.NewReader(body))
		if err != nil {
			r.Fatal(err)
		}
		req.URL.Path = "/" + rapid.String().Draw(r, "path")
		req.URL.RawQuery = strings.Join(query, "&")
		for range rapid.IntRange(0, 6).Draw(r, "headers") {
			name := rapid.StringMatching(`(X-Amz-Meta-|x-amz-tag-|Content-|If-)[a-z0-9]{1,4}`).Draw(r, "header")
			req.Header[name] = append(req.Header[name], rapid.StringMatching(`[ -~]{0,12}`).Draw(r, "header value"))
		}
		if err := send(req); err != nil {
			r.Fatalf("%s %q %v: %v", req.Method, req.URL, req.Header, err)
		}
	})
}

// benchRequest is a GET as the proxy sends it: few headers, a session token as long as AWS's.
func benchRequest() *http.Request {
	return &http.Request{Method: "GET", Host: "artifacts.s3.eu-west-1.amazonaws.com", Header: http.Header{"Range": {"bytes=0-1023"}},
		URL: &url.URL{Scheme: "https", Host: "artifacts.s3.eu-west-1.amazonaws.com", Path: "/acme/web/build-4711.tgz"}}
}

func benchToken() string {
	b := make([]byte, 900)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/"[rand.N(64)]
	}
	return string(b)
}

func BenchmarkSign(b *testing.B) {
	s := static(b, exampleKey, exampleSecret, benchToken(), "eu-west-1", time.Now)
	as := forever()
	req := benchRequest()
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Sign(ctx, req, emptySum, as); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSignSDK(b *testing.B) {
	s := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	creds := aws.Credentials{AccessKeyID: exampleKey, SecretAccessKey: exampleSecret, SessionToken: benchToken()}
	req := benchRequest()
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		req.Header["X-Amz-Content-Sha256"] = []string{emptySum}
		if err := s.SignHTTP(ctx, creds, req, emptySum, "s3", "eu-west-1", time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}
