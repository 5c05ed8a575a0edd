package signer_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sluice-s3/sluice/signer"
)

func load(t *testing.T, text string) signer.Config {
	t.Helper()
	var c signer.Config
	if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheck(t *testing.T) {
	const ok = "role_arn: arn:aws:iam::123456789012:role/sluice"
	assume := func(more string) string {
		return "assume_role:\n  " + ok + "\n" + more
	}
	for _, c := range []struct {
		name, yaml string
		want       []string // the paths with problems
	}{
		{"nothing", "{}", []string{""}},
		{"two", "static: {access_key_id_env: A, secret_access_key_env: B}\ndefault_chain: {}", []string{""}},
		{"default chain", "default_chain: {}", nil},
		{"static", "static: {access_key_id_env: A, secret_access_key_file: b, session_token_env: C}", nil},
		{"static by file", "static: {access_key_id_file: A, secret_access_key_file: b, session_token_file: C}", nil},
		{"static without", "static: {}", []string{"static.access_key_id_env", "static.secret_access_key_env"}},
		{"static twice", "static: {access_key_id_env: A, access_key_id_file: A, secret_access_key_env: B}", []string{"static.access_key_id_env"}},
		{"the contract's", `assume_role:
  role_arn: arn:aws:iam::123456789012:role/sluice-default
  allowed_roles: ["arn:aws:iam::123456789012:role/sluice-*"]
  external_id: ""
  duration: 1h
  session_tags: {project: "{{.Claims.project_id}}"}
  source_identity: "{{.Subject}}"
  sts_endpoint: ""`, nil},
		{"the contract's web identity", `web_identity: {role_arn: "arn:aws:iam::123456789012:role/r", sts_endpoint: ""}`, nil},
		{"empty", "assume_role: {}", []string{"assume_role.role_arn"}},
		{"all at once", `assume_role:
  role_arn: sluice
  allowed_roles: ["*", "arn:aws:iam::123456789012:role/a", "arn:aws:iam::123456789012:user/*", "arn:aws:iam::*:role/[a]"]
  external_id: "a b"
  duration: 5m
  session_tags: {"aws:x": x, "a*": x, "{{": x, ok: "{{", bad: "{{.Token}}", empty: "", star: "*", A: x, a: x}
  source_identity: "{{.Nobody}}"
  sts_endpoint: http://sts.example
  base: {}`, []string{"assume_role.allowed_roles[0]", "assume_role.allowed_roles[2]", "assume_role.allowed_roles[3]",
			"assume_role.base.access_key_id_env", "assume_role.base.secret_access_key_env", "assume_role.duration", "assume_role.external_id",
			"assume_role.role_arn", "assume_role.session_tags.a", "assume_role.session_tags.a*", "assume_role.session_tags.aws:x",
			"assume_role.session_tags.bad", "assume_role.session_tags.empty", "assume_role.session_tags.ok", "assume_role.session_tags.star",
			"assume_role.session_tags.{{", "assume_role.source_identity", "assume_role.sts_endpoint"}},
		{"web identity", "web_identity: {role_arn: x, allowed_roles: [y], duration: 13h, sts_endpoint: x}",
			[]string{"web_identity.allowed_roles[0]", "web_identity.duration", "web_identity.role_arn", "web_identity.sts_endpoint"}},
		{"least duration", assume("  duration: 15m"), nil},
		{"most duration", assume("  duration: 12h"), nil},
		{"too short", assume("  duration: 14m59s"), []string{"assume_role.duration"}},
		{"too long", assume("  duration: 12h1s"), []string{"assume_role.duration"}},
		{"negative", assume("  duration: -1h"), []string{"assume_role.duration"}},
		{"fraction", assume("  duration: 1h0.5s"), []string{"assume_role.duration"}},
		{"loopback STS", assume("  sts_endpoint: http://127.0.0.1:9000"), nil},
		{"localhost STS", assume("  sts_endpoint: http://localhost:9000/"), nil},
		{"private STS", assume("  sts_endpoint: https://minio.internal:9000"), nil},
		{"user in STS", assume("  sts_endpoint: https://a:b@sts.example"), []string{"assume_role.sts_endpoint"}},
		{"query in STS", assume("  sts_endpoint: https://sts.example?x"), []string{"assume_role.sts_endpoint"}},
		{"host that looks local", assume("  sts_endpoint: http://localhost.example"), []string{"assume_role.sts_endpoint"}},
		{"nested claim", assume(`  session_tags: {a: "{{.Claims.a.b}}", b: "{{index .Claims \"x\"}}", c: "{{.Attributes.project}}-{{.Session}}"}`), nil},
		{"unknown field", assume(`  session_tags: {a: "{{.Claim.x}}", b: "{{.Expires}}"}`), []string{"assume_role.session_tags.a", "assume_role.session_tags.b"}},
		{"literal source", assume("  source_identity: a b"), []string{"assume_role.source_identity"}},
		{"51 tags", assume("  session_tags: {" + manyTags(51) + "}"), []string{"assume_role.session_tags"}},
		{"50 tags", assume("  session_tags: {" + manyTags(50) + "}"), nil},
		{"other partitions", "assume_role: {role_arn: 'arn:aws-us-gov:iam::123456789012:role/a/b/c', allowed_roles: ['arn:minio:iam:::role/x*']}", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := load(t, c.yaml)
			var got []string
			conf.Check(func(path, problem string) {
				got = append(got, path)
				if problem == "" || strings.ToLower(problem[:1]) != problem[:1] && !strings.HasPrefix(problem, "AWS") {
					t.Errorf("%s: %q", path, problem)
				}
			})
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("problems at %q, want %q", got, c.want)
			}
			if len(c.want) > 0 {
				if _, err := signer.New(context.Background(), conf, signer.Options{}); err == nil {
					t.Error("New took it")
				}
			}
		})
	}
}

func manyTags(n int) string {
	var tags []string
	for i := range n {
		tags = append(tags, fmt.Sprintf("t%d: x", i))
	}
	return strings.Join(tags, ", ")
}

// Each value by variable and by file, whatever the others are named by; the key pair that roles are asked for with too.
func TestStaticComesFromWhereItIsNamed(t *testing.T) {
	const key, secret = "ASIABASE", "temporary-secret-canary"
	s := newSTS(t)
	s.minted[key] = secret
	t.Setenv("ID", " "+key+"\n")
	t.Setenv("SECRET", secret)
	t.Setenv("TOKEN", sessionToken(key))
	id, secretFile, token := writeFile(t, "id", key+"\n"), writeFile(t, "secret", secret), writeFile(t, "token", sessionToken(key)+"\n")
	for name, c := range map[string]signer.Static{
		"variables":    {AccessKeyIDEnv: "ID", SecretAccessKeyEnv: "SECRET", SessionTokenEnv: "TOKEN"},
		"files":        {AccessKeyIDFile: id, SecretAccessKeyFile: secretFile, SessionTokenFile: token},
		"id by file":   {AccessKeyIDFile: id, SecretAccessKeyEnv: "SECRET", SessionTokenEnv: "TOKEN"},
		"id by itself": {AccessKeyIDEnv: "ID", SecretAccessKeyFile: secretFile, SessionTokenFile: token},
	} {
		t.Run(name, func(t *testing.T) {
			req := get(t)
			sig := newSigner(t, signer.Config{Static: &c}, signer.Options{Now: s.clock.Now})
			if err := sig.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", forever()); err != nil {
				t.Fatal(err)
			}
			if keyOf(req) != key || req.Header.Get("X-Amz-Security-Token") != sessionToken(key) {
				t.Errorf("signed as %s with %q", keyOf(req), req.Header.Get("X-Amz-Security-Token"))
			}
			assume := s.assume(t) // whose STS checks signature and token
			assume.Base = &c
			n := s.count()
			if got := accessKey(t, s.signer(t, assume, signer.Options{}), signer.As{Principal: s.workspace("w")}); got != fmt.Sprintf("ASIA%06d", n+1) {
				t.Errorf("with this as its base, signed as %s", got)
			}
		})
	}

	t.Setenv("A", "x")
	for want, c := range map[string]signer.Static{
		"NOT_SET is not set":     {AccessKeyIDEnv: "NOT_SET", SecretAccessKeyEnv: "A"},
		"secret_access_key_file": {AccessKeyIDEnv: "A", SecretAccessKeyFile: "/nowhere"},
		"is empty":               {AccessKeyIDEnv: "A", SecretAccessKeyFile: writeFile(t, "empty", " \n")},
		"session_token":          {AccessKeyIDEnv: "A", SecretAccessKeyEnv: "A", SessionTokenFile: writeFile(t, "odd", "a\nb")},
	} {
		if _, err := signer.New(context.Background(), signer.Config{Static: &c}, signer.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

func TestCAFile(t *testing.T) {
	s := newSTS(t)
	c := s.assume(t)
	for name, file := range map[string]string{"missing": "/nowhere.pem", "no certificate": writeFile(t, "x.pem", "x")} {
		if _, err := signer.New(context.Background(), signer.Config{AssumeRole: c}, signer.Options{CAFile: file}); err == nil || !strings.Contains(err.Error(), "ca_file") {
			t.Errorf("%s: %v", name, err)
		}
	}

	private := newTLS(t, s)
	c.STSEndpoint = private.URL
	as := signer.As{Principal: s.workspace("w")}
	wantKind(t, s.signer(t, c, signer.Options{}).Sign(context.Background(), get(t), "UNSIGNED-PAYLOAD", as), signer.Unavailable)
	if got := accessKey(t, s.signer(t, c, signer.Options{CAFile: writeFile(t, "ca.pem", pemOf(private))}), as); got != "ASIA000001" {
		t.Errorf("signed as %s", got)
	}
}

func TestRegion(t *testing.T) {
	at := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	t.Setenv("A", "x")
	conf := signer.Config{Static: &signer.Static{AccessKeyIDEnv: "A", SecretAccessKeyEnv: "A"}}
	for in, want := range map[string]string{"": "us-east-1", "eu-west-1": "eu-west-1", "a b": "", "a/b": ""} {
		sig, err := signer.New(context.Background(), conf, signer.Options{Region: in, Now: func() time.Time { return at }})
		if want == "" {
			if err == nil {
				t.Errorf("region %q was taken", in)
			}
			continue
		}
		req := get(t)
		if err := sig.Sign(context.Background(), req, "UNSIGNED-PAYLOAD", forever()); err != nil {
			t.Fatal(err)
		}
		if got := req.Header.Get("Authorization"); !strings.Contains(got, "/20261123/"+want+"/s3/aws4_request") {
			t.Errorf("region %q: %s", in, got)
		}
	}
}
