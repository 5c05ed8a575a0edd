package main_test

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/examples/world/worldtest"
)

// rolesPolicy allows everything, as another role than the backend's default below web/other.
func rolesPolicy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "authz.rego"), fmt.Sprintf("package s3.authz\nallow := true\nrole := %q if startswith(input.key, \"web/other\")\n", world.RoleARN("sluice-other")))
	return dir
}

// AWS verifies the workspace's own token, which a session carries along: the proxy's own credentials are not asked for.
func TestWebIdentity(t *testing.T) {
	t.Parallel()
	const section = "backends[0].credentials.web_identity."
	r := newRig(t, world.Options{}, world.ProxyOptions{Credentials: "web_identity", PolicyDir: rolesPolicy(t), Set: map[string]any{
		section + "allowed_roles": []any{world.RoleARN("sluice-*")}, section + "duration": "20m",
	}})
	r.store(t, "web/x", []byte("x"))
	r.store(t, "web/other", []byte("x"))
	token := r.Workspace("env-1", "web", "dev@acme.com")
	session := r.exchange(t, http.DefaultClient, token)
	for _, key := range []string{"web/x", "web/other"} {
		if got := r.fetch(t, token, "/artifacts/"+key).StatusCode; got != 200 {
			t.Errorf("%s by bearer: %d", key, got)
		}
		request, err := http.NewRequest("GET", r.proxy.URL+"/artifacts/"+key, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		if err := v4.NewSigner().SignHTTP(t.Context(), session, request, "UNSIGNED-PAYLOAD", "s3", r.Region, time.Now()); err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != 200 {
			t.Errorf("%s by session: %s", key, answer.Status)
		}
	}
	asked := map[string]bool{}
	for _, call := range r.STS.Calls() {
		asked[call.RoleARN] = true
		if call.Action != "AssumeRoleWithWebIdentity" || call.WebIdentity != token || call.Duration != 20*time.Minute || call.Error != "" {
			t.Errorf("%+v", call)
		}
	}
	if !asked[world.RoleARN("sluice-default")] || !asked[world.RoleARN("sluice-other")] || len(asked) != 2 {
		t.Errorf("asked for %v", asked)
	}
}

func TestAssumeRole(t *testing.T) {
	const section = "backends[0].credentials.assume_role."
	w := worldtest.Start(t, world.Options{})
	worldtest.Store(t, w, "web/x", []byte("x"))
	worldtest.Store(t, w, "web/other", []byte("x"))
	policy := rolesPolicy(t)
	start := func(t *testing.T, set map[string]any) *rig {
		w.STS.Forget()
		return &rig{World: w, proxy: worldtest.Proxy(t, w, world.ProxyOptions{PolicyDir: policy, Set: set})}
	}
	t.Run("set", func(t *testing.T) {
		r := start(t, map[string]any{section + "duration": "20m"})
		for _, key := range []string{"web/x", "web/other"} {
			if got := r.get(t, "/artifacts/"+key).StatusCode; got != 200 {
				t.Errorf("%s: %d", key, got)
			}
		}
		if calls := w.STS.Calls(); len(calls) != 2 || calls[0].Duration != 20*time.Minute || calls[1].RoleARN != world.RoleARN("sluice-other") {
			t.Errorf("%+v", calls)
		}
	})
	t.Run("defaults", func(t *testing.T) {
		r := start(t, map[string]any{section + "allowed_roles": nil})
		if got := r.get(t, "/artifacts/web/other").StatusCode; got != 403 {
			t.Errorf("a role that is not allowed: %d", got)
		}
		if got := r.get(t, "/artifacts/web/x").StatusCode; got != 200 {
			t.Errorf("the default role: %d", got)
		}
		// An hour, or the little less that the token lives.
		if calls := w.STS.Calls(); len(calls) != 1 || calls[0].Duration < 58*time.Minute {
			t.Errorf("%+v", calls)
		}
	})
	// The environment has a key pair that may ask for roles. base goes before it.
	dir := t.TempDir()
	for secret, want := range map[string]int{w.BaseKey.SecretAccessKey: 200, "of-another": 503} {
		t.Run(fmt.Sprintf("base %d", want), func(t *testing.T) {
			t.Setenv("BASE_ID", w.BaseKey.AccessKeyID)
			write(t, filepath.Join(dir, "secret"), secret+"\n")
			r := start(t, map[string]any{section + "base": map[string]any{
				"access_key_id_env": "BASE_ID", "secret_access_key_file": filepath.Join(dir, "secret"),
			}})
			answer := r.get(t, "/artifacts/web/x")
			said, _ := io.ReadAll(answer.Body)
			if answer.StatusCode != want || want == 503 && !strings.Contains(string(said), "the proxy's own credentials") {
				t.Errorf("%s\n%s", answer.Status, said)
			}
		})
	}
}

// Temporary credentials are a key pair and a token, and without it nothing.
func TestStaticSessionToken(t *testing.T) {
	w := worldtest.Start(t, world.Options{})
	worldtest.Store(t, w, "web/x", []byte("x"))
	temporary, err := stscreds.NewAssumeRoleProvider(sts.New(sts.Options{
		BaseEndpoint: &w.STS.URL, Region: w.Region, HTTPClient: w.HTTPClient(),
		Credentials: credentials.NewStaticCredentialsProvider(w.BaseKey.AccessKeyID, w.BaseKey.SecretAccessKey, ""),
	}), world.RoleARN("sluice-default")).Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("TEMPORARY_ID", temporary.AccessKeyID)
	t.Setenv("TEMPORARY_TOKEN", temporary.SessionToken)
	write(t, filepath.Join(dir, "secret"), temporary.SecretAccessKey)
	write(t, filepath.Join(dir, "token"), temporary.SessionToken+"\n")
	policy := rolesPolicy(t)
	for by, token := range map[string]string{"session_token_env": "TEMPORARY_TOKEN", "session_token_file": filepath.Join(dir, "token"), "": ""} {
		t.Run("by "+by, func(t *testing.T) {
			static := map[string]any{"access_key_id_env": "TEMPORARY_ID", "secret_access_key_file": filepath.Join(dir, "secret")}
			want := http.StatusInternalServerError // nothing that the caller could mend
			if by != "" {
				static[by], want = token, http.StatusOK
			}
			r := &rig{World: w, proxy: worldtest.Proxy(t, w, world.ProxyOptions{PolicyDir: policy, Set: map[string]any{"backends[0].credentials": map[string]any{"static": static}}})}
			if got := r.get(t, "/artifacts/web/x").StatusCode; got != want {
				t.Errorf("status %d, want %d", got, want)
			}
		})
	}
}

// The chain, and what is signed with it: where the request goes and for which region.
func TestDefaultChain(t *testing.T) {
	t.Parallel()
	backend := newHeard(t)
	r := newRig(t, world.Options{}, world.ProxyOptions{Set: map[string]any{
		"backends[0].endpoint": backend.URL, "backends[0].region": "eu-north-1", "backends[0].credentials": map[string]any{"default_chain": map[string]any{}},
	}})
	if got := r.get(t, "/artifacts/web/x").StatusCode; got != 200 {
		t.Fatalf("status %d", got)
	}
	signed := backend.last().Get("Authorization")
	if !strings.Contains(signed, "Credential="+r.BaseKey.AccessKeyID+"/") || !strings.Contains(signed, "/eu-north-1/s3/aws4_request") {
		t.Errorf("signed %q", signed)
	}
	if calls := r.STS.Calls(); len(calls) != 0 {
		t.Errorf("STS was asked: %+v", calls)
	}
}
