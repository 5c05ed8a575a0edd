// Package replicas runs the built proxy several times, as an installation does: behind HAProxy, with a NATS cluster
// that keeps what they share.
package replicas

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/examples/world/worldtest"
	"github.com/sluice-s3/sluice/test/machine"
)

func TestMain(m *testing.M) {
	natsMain()
	worldtest.Main(m)
}

// fleet is replicas of the proxy in one world, that share a store and the session keys.
type fleet struct {
	*world.World
	t       *testing.T
	nats    []*natsNode
	proxies []*world.Proxy
	configs []string
}

func newFleet(t *testing.T, replicas, nodes int, set map[string]any) *fleet {
	t.Helper()
	w := worldtest.Start(t, world.Options{})
	f := &fleet{World: w, t: t, nats: startNATS(t, nodes)}
	policy, shared := worldtest.ProjectPolicy(t), t.TempDir()
	if _, err := w.ProxyConfig(world.ProxyOptions{Dir: shared}); err != nil { // makes the keys
		t.Fatal(err)
	}
	var servers []string
	for _, n := range f.nats {
		servers = append(servers, fmt.Sprintf("nats://127.0.0.1:%d", n.Port))
	}
	for range replicas {
		o := world.ProxyOptions{PolicyDir: policy, Set: map[string]any{
			"sessions.key_file": filepath.Join(shared, "session.keys"),
			"revocation.store":  strings.Join(servers, ","),
		}}
		for path, value := range set {
			o.Set[path] = value
		}
		config, err := w.ProxyConfig(o)
		if err != nil {
			t.Fatal(err)
		}
		f.configs = append(f.configs, config)
		f.proxies = append(f.proxies, nil)
	}
	for i := range f.proxies {
		f.start(i)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for i, p := range f.proxies {
				t.Logf("replica %d logged:\n%.4000s", i, p.Log())
			}
		}
	})
	f.shared()
	return f
}

// start starts a replica, again where it ran before: with its address and its audit log.
func (f *fleet) start(i int) {
	f.t.Helper()
	p, err := f.StartProxy(context.Background(), f.configs[i])
	if err != nil {
		f.t.Fatal(err)
	}
	f.proxies[i] = p
}

// shared waits until all replicas share their revocations.
func (f *fleet) shared() {
	f.t.Helper()
	for i, p := range f.proxies {
		f.until(machine.Patience, fmt.Sprintf("replica %d shares", i), func() bool {
			status, body := f.ask("GET", p.AdminURL+"/readyz", nil)
			return status == 200 && !strings.Contains(body, "not connected") && strings.Contains(body, `"revocations":{"ok":true}`)
		})
	}
}

func (f *fleet) until(patience time.Duration, what string, ok func() bool) {
	f.t.Helper()
	worldtest.Until(f.t, patience, what, ok)
}

// soon is until for what is promised within a second.
func (f *fleet) soon(what string, ok func() bool) {
	f.t.Helper()
	watch := machine.Watch(f.t)
	f.until(machine.Patience, what, ok)
	watch.Within(f.t, time.Second, what)
}

// ask sends a request with a JSON body, and returns status 0 where nobody answers.
func (f *fleet) ask(method, url string, body any) (int, string) {
	f.t.Helper()
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			f.t.Fatal(err)
		}
		reader = bytes.NewReader(data)
	}
	request, err := http.NewRequest(method, url, reader)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.answer(request)
}

func (f *fleet) answer(request *http.Request) (int, string) {
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text)
}

// revoke revokes at one replica.
func (f *fleet) revoke(i int, what map[string]any) {
	f.t.Helper()
	what["issuer"] = f.Issuer.URL()
	if status, body := f.ask("POST", f.proxies[i].AdminURL+"/revocations", what); status != 201 && status != 202 {
		f.t.Fatalf("%d %s", status, body)
	}
}

func (f *fleet) workspace(session string) string { return f.Workspace(session, "web", "dev@acme.com") }

// session exchanges a workspace's token at an endpoint, as the SDKs do.
func (f *fleet) session(endpoint, token string) aws.CredentialsProvider {
	return worldtest.Session(f.World, http.DefaultClient, endpoint, token)
}

func (f *fleet) client(endpoint string, credentials aws.CredentialsProvider, options ...func(*s3.Options)) *s3.Client {
	return s3.New(s3.Options{
		Region: f.Region, BaseEndpoint: &endpoint, UsePathStyle: true, Credentials: credentials, HTTPClient: http.DefaultClient,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
	}, options...)
}

// store puts an object straight at the backend.
func (f *fleet) store(key string, content []byte) {
	f.t.Helper()
	worldtest.Store(f.t, f.World, key, content)
}

// stored tells whether the backend has an object.
func (f *fleet) stored(key string) bool { return worldtest.Stored(f.t, f.World, key) }

// bearer is a request with a workspace's token.
func (f *fleet) bearer(method, endpoint, key, token string, body io.Reader, length int64) *http.Request {
	f.t.Helper()
	request, err := http.NewRequest(method, endpoint+"/artifacts/"+key, body)
	if err != nil {
		f.t.Fatal(err)
	}
	request.ContentLength = length
	request.Header.Set("Authorization", "Bearer "+token)
	return request
}

// status is what a request is answered with, 0 where it is not.
func status(request *http.Request) int {
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	return answer.StatusCode
}

// events are a replica's, by key.
func (f *fleet) eventsOf(i int, key string) (found []audit.Event) {
	f.t.Helper()
	events, err := f.proxies[i].Events()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range events {
		if e.Key == key {
			found = append(found, e)
		}
	}
	return found
}
