package replicas

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/test/machine"
)

// Revoked at one replica, credentials of every kind are refused at the other within a second, and what is in flight there
// is cut both ways: the backend keeps nothing of it.
func TestRevokedEverywhere(t *testing.T) {
	f := newFleet(t, 2, 1, nil)
	here, there := f.proxies[0].URL, f.proxies[1].URL
	f.store("web/small", []byte("x"))
	f.store("web/large", make([]byte, 64<<20))
	ctx := t.Context()

	token := f.workspace("env-1")
	session := f.session(here, token) // issued by one replica, good at both
	if _, err := session.Retrieve(ctx); err != nil {
		t.Fatal(err)
	}
	client := f.client(there, session, func(o *s3.Options) { o.RetryMaxAttempts = 1 })
	presigned, err := s3.NewPresignClient(client).PresignGetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("artifacts"), Key: aws.String("web/small")})
	if err != nil {
		t.Fatal(err)
	}
	doors := map[string]func() int{
		"bearer": func() int { return status(f.bearer("GET", there, "web/small", token, nil, 0)) },
		"session": func() int {
			got, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("artifacts"), Key: aws.String("web/small")})
			if err != nil {
				return 403
			}
			got.Body.Close()
			return 200
		},
		"presigned": func() int {
			request, err := http.NewRequest("GET", presigned.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			return status(request)
		},
	}
	for name, ask := range doors {
		if got := ask(); got != 200 {
			t.Fatalf("%s: %d before anything is revoked", name, got)
		}
	}

	// In flight at the other replica: a download, an upload, and a part.
	download, err := http.DefaultClient.Do(f.bearer("GET", there, "web/large", token, nil, 0))
	if err != nil || download.StatusCode != 200 {
		t.Fatalf("%v, %v", download, err)
	}
	defer download.Body.Close()
	upload, err := client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String("artifacts"), Key: aws.String("web/parts")})
	if err != nil {
		t.Fatal(err)
	}
	const enough = 16 << 20 / (64 << 10) // pieces: more than the sockets' buffers take before the proxy has begun to read
	var sending sync.WaitGroup
	send := func(key string) {
		body, feed := io.Pipe()
		begun := make(chan struct{})
		sending.Go(func() {
			if got := status(f.bearer("PUT", there, key, token, body, 32<<20)); got == 200 {
				t.Errorf("%s: stored although it was cut", key)
			}
			body.CloseWithError(io.ErrClosedPipe)
		})
		sending.Go(func() {
			piece := make([]byte, 64<<10)
			for n := range 1 << 30 {
				if _, err := feed.Write(piece); err != nil {
					return
				}
				if n == enough {
					close(begun)
				}
				if n > enough {
					time.Sleep(50 * time.Millisecond) // a slow upload, that would take minutes
				}
			}
		})
		<-begun
	}
	send("web/upload")
	send("web/parts?partNumber=1&uploadId=" + url.QueryEscape(*upload.UploadId))

	watch := machine.Watch(t)
	f.revoke(0, map[string]any{"session": "env-1"})
	for name, ask := range doors {
		f.until(machine.Patience, name+" is refused", func() bool { return ask() == 403 })
	}
	if _, err := io.Copy(io.Discard, download.Body); err == nil {
		t.Error("the download in flight went on to its end")
	}
	sending.Wait()
	watch.Within(t, time.Second, "refused and cut at the other replica")
	defer func() {
		if t.Failed() {
			events, _ := f.proxies[1].Events()
			t.Logf("the events there: %+v", events)
		}
	}()
	for _, key := range []string{"web/large", "web/upload", "web/parts"} {
		f.until(machine.Patience, "the event of "+key, func() bool {
			for _, e := range f.eventsOf(1, key) {
				if e.Outcome == audit.Revoked && e.Error == "AccessDenied" && e.Identity.Session == "env-1" {
					return true
				}
			}
			return false
		})
	}
	if f.stored("web/upload") || f.stored("web/parts") {
		t.Error("the backend has an object of an upload that was cut")
	}
	parts, err := f.S3Client().ListParts(ctx, &s3.ListPartsInput{Bucket: aws.String("artifacts"), Key: aws.String("web/parts"), UploadId: upload.UploadId})
	if err != nil || len(parts.Parts) != 0 {
		t.Errorf("parts %v, %v", parts, err)
	}
	if got := status(f.bearer("GET", there, "web/small", f.workspace("env-2"), nil, 0)); got != 200 {
		t.Errorf("another session: %d", got)
	}

	// A revocation of one token spares the session's others; of a subject, none of them.
	f.revoke(1, map[string]any{"subject": "environment/env-2"})
	f.soon("the subject is refused", func() bool {
		return status(f.bearer("GET", here, "web/small", f.workspace("env-2"), nil, 0)) == 403
	})
	one := f.Token(map[string]any{"sub": "environment/env-3", "environment_id": "env-3", "project_id": "web", "creator_email": "dev@acme.com", "jti": "one"})
	other := f.Token(map[string]any{"sub": "environment/env-3", "environment_id": "env-3", "project_id": "web", "creator_email": "dev@acme.com", "jti": "other"})
	f.revoke(1, map[string]any{"token_id": "one"})
	f.soon("the token is refused", func() bool { return status(f.bearer("GET", here, "web/small", one, nil, 0)) == 403 })
	if got := status(f.bearer("GET", here, "web/small", other, nil, 0)); got != 200 {
		t.Errorf("the session's other token: %d", got)
	}
}

// The issuer says by a back-channel logout at one replica that a session has ended; that is so at all of them.
func TestLogoutEverywhere(t *testing.T) {
	f := newFleet(t, 2, 1, nil)
	here, there := f.proxies[0].URL, f.proxies[1].URL
	f.store("web/small", []byte("x"))
	logout := func(token string) int {
		answer, err := http.PostForm(here+"/-/logout", url.Values{"logout_token": {token}})
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer.StatusCode
	}
	claims := map[string]any{"sub": "user-1", "sid": "s-1", "environment_id": "env-1", "project_id": "web", "creator_email": "dev@acme.com"}
	token := f.Token(claims)
	if got := status(f.bearer("GET", there, "web/small", token, nil, 0)); got != 200 {
		t.Fatalf("%d", got)
	}
	if got := logout(f.Issuer.LogoutToken(map[string]any{"aud": f.Audience, "sid": "s-1", "nonce": "n"})); got != 400 {
		t.Errorf("with a nonce: %d", got)
	}
	if got := logout(token); got != 400 {
		t.Errorf("an ordinary token: %d", got)
	}
	if got := status(f.bearer("GET", there, "web/small", token, nil, 0)); got != 200 {
		t.Fatalf("%d", got)
	}
	ended := f.Issuer.LogoutToken(map[string]any{"aud": f.Audience, "sid": "s-1"})
	if got := logout(ended); got != 200 {
		t.Errorf("%d", got)
	}
	f.soon("the session's tokens are refused", func() bool {
		return status(f.bearer("GET", there, "web/small", token, nil, 0)) == 403
	})
	if got := logout(ended); got != 400 {
		t.Errorf("the same logout token again: %d", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), machine.Patience)
	defer cancel()
	events, err := f.proxies[0].WaitEvents(ctx, 4)
	if err != nil || len(events) != 4 || events[2].Operation != "BackChannelLogout" || events[2].Outcome != audit.Completed {
		t.Errorf("events %+v, %v", events, err)
	}
}

// Replicas that lose NATS go on with what they know, say so, keep for themselves what is revoked meanwhile, and catch up.
func TestReplicasWithoutNATS(t *testing.T) {
	f := newFleet(t, 2, 1, nil)
	f.store("web/small", []byte("x"))
	ask := func(replica int, session string) int {
		return status(f.bearer("GET", f.proxies[replica].URL, "web/small", f.workspace(session), nil, 0))
	}
	says := func(replica int, metric, ready string) func() bool {
		return func() bool {
			_, metrics := f.ask("GET", f.proxies[replica].AdminURL+"/metrics", nil)
			code, body := f.ask("GET", f.proxies[replica].AdminURL+"/readyz", nil)
			return strings.Contains(metrics, "\n"+metric+"\n") && code == 200 && strings.Contains(body, ready)
		}
	}
	f.revoke(0, map[string]any{"session": "before"})
	f.soon("the other replica knows", func() bool { return ask(1, "before") == 403 })
	for i := range f.proxies {
		f.soon("it says that it shares", says(i, "sluice_revocations_shared 1", `"revocations":{"ok":true}`))
	}

	f.nats[0].kill()
	for i := range f.proxies {
		f.until(machine.Patience, "it says that it does not", says(i, "sluice_revocations_shared 0", `"revocations":{"ok":true,"error":`))
		if ask(i, "before") != 403 || ask(i, "other") != 200 {
			t.Errorf("replica %d does not go on with what it knew", i)
		}
	}
	if code, body := f.ask("POST", f.proxies[0].AdminURL+"/revocations", map[string]any{"session": "meanwhile", "issuer": f.Issuer.URL()}); code != 202 {
		t.Errorf("%d %s", code, body)
	}
	if ask(0, "meanwhile") != 403 {
		t.Error("not in force where it was revoked")
	}
	f.soon("it says what it owes", says(0, "sluice_revocations_pending 1", ""))

	f.nats[0].start()
	f.until(machine.Patience, "the other replica knows, too", func() bool { return ask(1, "meanwhile") == 403 })
	for i := range f.proxies {
		f.until(machine.Patience, "it shares again", says(i, "sluice_revocations_shared 1", `"revocations":{"ok":true}`))
		f.until(machine.Patience, "it owes nothing", says(i, "sluice_revocations_pending 0", ""))
	}
}
