package main_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/examples/world/worldtest"
	"github.com/sluice-s3/sluice/test/machine"
)

// transferWays make a request somebody's: each way in that a transfer can have come by.
var transferWays = map[string]func(t *testing.T, r *rig, client *http.Client, request *http.Request, token string){
	"bearer": func(t *testing.T, r *rig, client *http.Client, request *http.Request, token string) {
		request.Header.Set("Authorization", "Bearer "+token)
	},
	"session": func(t *testing.T, r *rig, client *http.Client, request *http.Request, token string) {
		request.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		if err := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).SignHTTP(t.Context(), r.exchange(t, client, token), request, "UNSIGNED-PAYLOAD", "s3", r.Region, time.Now()); err != nil {
			t.Fatal(err)
		}
	},
	"presigned": func(t *testing.T, r *rig, client *http.Client, request *http.Request, token string) {
		query := request.URL.Query()
		query.Set("X-Amz-Expires", "600")
		request.URL.RawQuery = query.Encode()
		bare := &http.Request{Method: request.Method, URL: request.URL, Host: request.Host, Header: http.Header{}}
		signed, _, err := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).PresignHTTP(t.Context(), r.exchange(t, client, token), bare, "UNSIGNED-PAYLOAD", "s3", r.Region, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if request.URL, err = request.URL.Parse(signed); err != nil {
			t.Fatal(err)
		}
	},
}

// exchange gets session credentials as the SDKs do.
func (r *rig) exchange(t *testing.T, client *http.Client, token string) aws.Credentials {
	t.Helper()
	credentials, err := worldtest.Session(r.World, client, r.proxy.URL, token).Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return credentials
}

// Whoever is revoked has cut what is in flight, both ways, whatever they showed and whatever they speak, within a second; and
// the backend keeps nothing of an upload.
func TestRevokedInFlight(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		r := newRig(t, world.Options{}, world.ProxyOptions{TLS: secure, Set: map[string]any{"limits.idle_timeout": unhurried}})
		r.store(t, "web/large", make([]byte, 32<<20))
		trust := func() *tls.Config {
			return &tls.Config{RootCAs: r.HTTPClient().Transport.(*http.Transport).TLSClientConfig.RootCAs}
		}
		clients := map[string]*http.Client{"HTTP/1.1": {Transport: &http.Transport{TLSClientConfig: trust()}}}
		if secure {
			clients["HTTP/2.0"] = &http.Client{Transport: &http.Transport{TLSClientConfig: trust(), ForceAttemptHTTP2: true}}
		}
		type transfer struct {
			name, session, key string
			cut                <-chan error // nil: it went through
			read               func()       // has a download go on, which could else be in the buffers by then
		}
		var transfers []transfer
		for protocol, client := range clients {
			for way, authorise := range transferWays {
				for _, method := range []string{"GET", "PUT"} {
					x := transfer{name: fmt.Sprintf("%s by %s over %s, TLS %v", method, way, protocol, secure), session: fmt.Sprintf("env-%d", len(transfers)), key: "web/large"}
					token := r.Workspace(x.session, "web", "dev@acme.com")
					var body io.Reader
					feed := make(chan struct{})
					if method == "PUT" {
						x.key = "web/" + x.session
						body = &slowBody{first: 4 << 20, begun: feed}
					}
					request, err := http.NewRequest(method, r.proxy.URL+"/artifacts/"+x.key, body)
					if err != nil {
						t.Fatal(err)
					}
					if body != nil {
						request.ContentLength = 64 << 20
					}
					authorise(t, r, client, request, token)
					cut := make(chan error, 1)
					x.cut = cut
					begun := make(chan error, 1)
					go func() {
						answer, err := client.Do(request)
						if method == "GET" && (err != nil || answer.StatusCode != 200 || answer.Proto != protocol) {
							begun <- fmt.Errorf("%v, %w", answer, err)
							return
						}
						begun <- nil
						if err == nil {
							defer answer.Body.Close()
							if method == "GET" {
								<-feed // reads no more until it is revoked
							}
							_, err = io.Copy(io.Discard, answer.Body)
							if err == nil && answer.StatusCode != 200 {
								err = fmt.Errorf("%s", answer.Status)
							}
						}
						cut <- err
					}()
					if method == "GET" {
						if err := <-begun; err != nil {
							t.Fatalf("%s: %v", x.name, err)
						}
						x.read = func() { close(feed) }
					} else {
						select {
						case <-feed:
						case err := <-cut:
							t.Fatalf("%s: ended at once: %v", x.name, err)
						}
					}
					transfers = append(transfers, x)
				}
			}
		}
		for _, x := range transfers {
			watch := machine.Watch(t)
			answer, err := http.Post(r.proxy.AdminURL+"/revocations", "application/json", strings.NewReader(`{"session": "`+x.session+`"}`))
			if err != nil || answer.StatusCode != 201 {
				t.Fatalf("%v, %v", answer, err)
			}
			answer.Body.Close()
			if x.read != nil {
				x.read()
			}
			select {
			case err := <-x.cut:
				if err == nil {
					t.Errorf("%s: it went through", x.name)
				}
			case <-time.After(machine.Patience):
				t.Errorf("%s: not cut", x.name)
			}
			until(t, x.name+": an event", func() bool { return r.outcome(t, x.session, x.key) != "" })
			if got := r.outcome(t, x.session, x.key); got != audit.Revoked {
				t.Errorf("%s: outcome %s", x.name, got)
			}
			watch.Within(t, time.Second, x.name+" is cut")
			if x.key != "web/large" {
				if worldtest.Stored(t, r.World, x.key) {
					t.Errorf("%s: the backend has it", x.name)
				}
			}
		}
		t.Logf("%d transfers cut, TLS %v", len(transfers), secure)
	}
}

// outcome is that of the transfer's event, "" where there is none yet.
func (r *rig) outcome(t *testing.T, session, key string) audit.Outcome {
	t.Helper()
	events, err := r.proxy.Events()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Identity.Session == session && e.Key == key {
			return e.Outcome
		}
	}
	return ""
}

// slowBody is an upload that sends so much at once, and then a byte every now and then.
type slowBody struct {
	first int
	begun chan struct{}
	once  sync.Once
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.first > 0 {
		n := min(len(p), b.first)
		b.first -= n
		return copy(p, bytes.Repeat([]byte{'x'}, n)), nil
	}
	b.once.Do(func() { close(b.begun) })
	time.Sleep(50 * time.Millisecond)
	p[0] = 'x'
	return 1, nil
}
