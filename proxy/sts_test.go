package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
)

const goodForm = "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fteam%2Fdev&RoleSessionName=ada&WebIdentityToken=a.b.c"

func TestParseSTS(t *testing.T) {
	replace := func(old, new string) string {
		if !strings.Contains(goodForm, old) {
			t.Fatalf("no %s in the form", old)
		}
		return strings.Replace(goodForm, old, new, 1)
	}
	roleIs := func(arn string) string {
		return replace("arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fteam%2Fdev", url.QueryEscape(arn))
	}
	for _, c := range []struct {
		form, code, message string // code "" = understood
	}{
		{goodForm, "", ""},
		{"WebIdentityToken=a.b.c&RoleSessionName=ada&Version=2011-06-15&RoleArn=arn:aws:iam::123456789012:role/dev&Action=AssumeRoleWithWebIdentity", "", ""},
		{goodForm + "&DurationSeconds=900", "", ""},
		{goodForm + "&DurationSeconds=43200", "", ""},
		{roleIs("arn:aws-us-gov:iam::123456789012:role/dev"), "", ""},
		{roleIs("arn:sluice:s3:::role/any"), "", ""},
		{roleIs("arn:Sluice:iam:eu-1:workspaces:role/any"), "", ""},
		{replace("WebIdentityToken=a.b.c", "WebIdentityToken=%20a.b.c%0A"), "", ""},
		{replace("WebIdentityToken=a.b.c", "WebIdentityToken=%0A"), "MissingParameter", "WebIdentityToken"},
		{"Action=GetCallerIdentity&Version=2011-06-15", "", ""},

		{"", "MissingAction", "AssumeRoleWithWebIdentity"},
		{"Version=2011-06-15", "MissingAction", ""},
		{"Action=AssumeRole&Version=2011-06-15", "InvalidAction", "AssumeRoleWithWebIdentity"},
		{"Action=assumerolewithwebidentity&Version=2011-06-15", "InvalidAction", ""},
		{replace("2011-06-15", "2012-10-17"), "InvalidAction", "2011-06-15"},
		{replace("&Version=2011-06-15", ""), "InvalidAction", "2011-06-15"},
		{replace("&RoleArn=", "&x="), "ValidationError", ""},
		{replace("&WebIdentityToken=a.b.c", ""), "MissingParameter", "WebIdentityToken"},
		{replace("&RoleSessionName=ada", ""), "MissingParameter", "RoleSessionName"},
		{replace("WebIdentityToken=a.b.c", "WebIdentityToken="), "MissingParameter", "WebIdentityToken"},
		{goodForm + "&RoleSessionName=eve", "ValidationError", "repeated"},
		{goodForm + "&WebIdentityToken=d.e.f", "ValidationError", "repeated"},
		{goodForm + "&Action=GetCallerIdentity", "ValidationError", "repeated"},
		{goodForm + "&%52oleSessionName=eve", "ValidationError", "repeated"},
		{replace("ada", "a"), "ValidationError", "RoleSessionName"},
		{replace("ada", "a%20b"), "ValidationError", "RoleSessionName"},
		{replace("ada", "a%0Ab"), "ValidationError", "RoleSessionName"},
		{replace("ada", strings.Repeat("a", 65)), "ValidationError", "RoleSessionName"},
		{roleIs("dev"), "ValidationError", "RoleArn"},
		{roleIs("arn:aws:iam::12345:role/dev"), "ValidationError", "RoleArn"},
		{roleIs("arn:aws:iam::123456789012:role/"), "ValidationError", "RoleArn"},
		{roleIs("arn:aws:iam::123456789012:role/dev\n"), "ValidationError", "RoleArn"},
		{roleIs("arn:aws:iam::123456789012:role/dev "), "ValidationError", "RoleArn"},
		{roleIs("arn:aws:iam::123456789012:role/ü"), "ValidationError", "RoleArn"},
		{roleIs("arn:aws:iam::123456789012:role/" + strings.Repeat("a", 2048)), "ValidationError", "RoleArn"},
		{goodForm + "&DurationSeconds=899", "ValidationError", "900"},
		{goodForm + "&DurationSeconds=43201", "ValidationError", "43200"},
		{goodForm + "&DurationSeconds=-1", "ValidationError", "900"},
		{goodForm + "&DurationSeconds=", "ValidationError", "900"},
		{goodForm + "&DurationSeconds=1h", "ValidationError", "900"},
		{goodForm + "&DurationSeconds=18446744073709551617", "ValidationError", "900"},
		{goodForm + "&Policy=%7B%7D", "ValidationError", "cannot be honoured"},
		{goodForm + "&PolicyArns.member.1.arn=arn:aws:iam::aws:policy/ReadOnlyAccess", "ValidationError", "cannot be honoured"},
		{goodForm + "&ProviderId=www.amazon.com", "ValidationError", "ProviderId"},
		{goodForm + "&X-Amz-Security-Token=x", "ValidationError", "X-Amz-Security-Token"},
		{goodForm + "&a;b=c", "ValidationError", "form"},
		{goodForm + "&a=%", "ValidationError", "form"},
		{"Action=GetCallerIdentity&Version=2011-06-15&RoleArn=x", "ValidationError", "RoleArn"},
	} {
		request, err := parseSTS([]byte(c.form))
		if c.code == "" {
			if err != nil {
				t.Errorf("%s: %v", c.form, err)
			}
			continue
		}
		e, ok := errors.AsType[*stsError](err)
		if !ok {
			t.Errorf("%s: %v, %+v", c.form, err, request)
			continue
		}
		if e.Code != c.code || !strings.Contains(e.Message, c.message) {
			t.Errorf("%s: %v, want %s with %q", c.form, e, c.code, c.message)
		}
		if strings.Contains(e.Message, "a.b.c") || strings.Contains(e.Message, "d.e.f") {
			t.Errorf("the message has the token: %v", e)
		}
	}
	request, err := parseSTS([]byte(goodForm + "&DurationSeconds=1200"))
	want := stsRequest{
		Action: "AssumeRoleWithWebIdentity", Token: "a.b.c",
		Issue: identity.IssueRequest{RoleARN: "arn:aws:iam::123456789012:role/team/dev", SessionName: "ada", Duration: 20 * time.Minute},
	}
	if err != nil || *request != want {
		t.Errorf("%+v, %v", request, err)
	}
}

func TestSTSErrorCodes(t *testing.T) {
	all := []identity.Kind{
		identity.Missing, identity.Malformed, identity.BadToken, identity.Expired, identity.BadSignature, identity.UnknownKey,
		identity.Skewed, identity.Revoked, identity.Unavailable,
	}
	for _, kind := range all {
		for _, exchange := range []bool{true, false} {
			e := stsErrorOf(fmt.Errorf("wrapped: %w", &identity.Error{Kind: kind, Message: "what to do"}), exchange)
			if e.Message != "what to do" || e.Status() < 400 || e.Status() >= 500 && kind != identity.Unavailable {
				t.Errorf("kind %v: %d %v", kind, e.Status(), e)
			}
		}
	}
	for _, err := range []error{errors.New("secret detail"), io.ErrUnexpectedEOF, context.Canceled} {
		if e := stsErrorOf(err, true); e.Code != "InternalFailure" || e.Status() != 500 || strings.Contains(e.Message, err.Error()) {
			t.Errorf("%v: %v", err, e)
		}
	}
	if e := stsErrorOf(&identity.Error{Kind: 200, Message: "new"}, true); e.Code != "AccessDenied" {
		t.Errorf("a kind that is not in the table: %v", e)
	}
}

// stsServer serves what is in sts.go, for clients to try themselves on.
func stsServer(t *testing.T) (endpoint string, issuer *oidctest.Issuer) {
	t.Helper()
	issuer = oidctest.New(oidctest.Options{})
	t.Cleanup(issuer.Close)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	auth, err := identity.New(ctx, identity.Config{Issuers: []identity.IssuerConfig{{Issuer: issuer.URL(), Audiences: []string{"sluice"}}}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/-/credentials" {
			session, err := auth.Issue(r.Context(), r.Header.Get("Authorization"), identity.IssueRequest{})
			if err != nil {
				e := stsErrorOf(err, true)
				writeContainerError(w, e)
				return
			}
			writeContainerCredentials(w, session)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		request, err := parseSTS(body)
		exchange := err == nil && request.Action == "AssumeRoleWithWebIdentity"
		var session *identity.Session
		var proof *identity.Proof
		switch {
		case err != nil:
		case exchange:
			session, err = auth.Issue(r.Context(), request.Token, request.Issue)
		default:
			proof, err = auth.AuthenticateSTS(r, body)
		}
		switch {
		case err != nil:
			writeSTSError(w, stsErrorOf(err, exchange), "request-1")
		case exchange:
			writeAssumeRoleWithWebIdentity(w, request, session, "request-1")
		default:
			writeGetCallerIdentity(w, proof.Identity, "request-1")
		}
	}))
	t.Cleanup(server.Close)
	t.Setenv("AWS_CA_BUNDLE", "")
	os.Unsetenv("AWS_CA_BUNDLE")
	return server.URL, issuer
}

func TestSTSByTheGoSDK(t *testing.T) {
	endpoint, issuer := stsServer(t)
	client := sts.New(sts.Options{Region: "eu-west-1", BaseEndpoint: &endpoint, RetryMaxAttempts: 1})
	subject := "repo:acme/web <&>\u00fc"
	token := issuer.Token(map[string]any{"aud": []string{"sluice"}, "sub": subject})
	assume := func(token string) (*sts.AssumeRoleWithWebIdentityOutput, error) {
		return client.AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
			RoleArn: aws.String("arn:aws:iam::123456789012:role/team/dev"), RoleSessionName: aws.String("ada"), WebIdentityToken: &token, DurationSeconds: aws.Int32(1800),
		})
	}
	out, err := assume(token)
	if err != nil {
		t.Fatal(err)
	}
	if *out.SubjectFromWebIdentityToken != subject || *out.Provider != issuer.URL() || *out.Audience != "sluice" ||
		*out.AssumedRoleUser.Arn != "arn:aws:sts::123456789012:assumed-role/dev/ada" || !strings.HasSuffix(*out.AssumedRoleUser.AssumedRoleId, ":ada") {
		t.Errorf("%+v %+v", out, out.AssumedRoleUser)
	}
	if left := time.Until(*out.Credentials.Expiration); left > 30*time.Minute || left < 29*time.Minute {
		t.Errorf("expires in %s", left)
	}

	// The credentials that came are good for the next call, as configure-aws-credentials makes it.
	caller := sts.New(sts.Options{Region: "eu-west-1", BaseEndpoint: &endpoint, RetryMaxAttempts: 1, Credentials: aws.NewCredentialsCache(
		stscreds.NewWebIdentityRoleProvider(client, "arn:aws:iam::123456789012:role/team/dev", identityToken(token), func(o *stscreds.WebIdentityRoleOptions) { o.RoleSessionName = "ada" }))})
	who, err := caller.GetCallerIdentity(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if *who.Account != "123456789012" || *who.Arn != *out.AssumedRoleUser.Arn || *who.UserId != *out.AssumedRoleUser.AssumedRoleId {
		t.Errorf("account %s, arn %s, user id %s", *who.Account, *who.Arn, *who.UserId)
	}

	_, err = assume(issuer.Token(map[string]any{"aud": "elsewhere"}))
	if e, ok := errors.AsType[*types.InvalidIdentityTokenException](err); !ok || !strings.Contains(e.ErrorMessage(), "audience") {
		t.Errorf("wrong audience: %v", err)
	}
	_, err = assume(issuer.Token(map[string]any{"aud": "sluice", "iat": time.Now().Add(-2 * time.Hour).Unix(), "exp": time.Now().Add(-time.Hour).Unix()}))
	if _, ok := errors.AsType[*types.ExpiredTokenException](err); !ok {
		t.Errorf("expired: %v", err)
	}
}

// What an issuer's outage looks like: an error that the SDKs retry.
func TestSTSWhileTheIssuerIsDown(t *testing.T) {
	down := oidctest.New(oidctest.Options{})
	token := down.Token(map[string]any{"aud": "sluice"})
	down.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	auth, err := identity.New(ctx, identity.Config{Issuers: []identity.IssuerConfig{{Issuer: down.URL(), Audiences: []string{"sluice"}}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = auth.Issue(ctx, token, identity.IssueRequest{})
	recorder := httptest.NewRecorder()
	writeSTSError(recorder, stsErrorOf(err, true), "request-1")
	if body := recorder.Body.String(); recorder.Code != 503 || !strings.Contains(body, "<Code>IDPCommunicationError</Code>") {
		t.Errorf("%d %s", recorder.Code, body)
	}
	recorder = httptest.NewRecorder()
	e := stsErrorOf(err, true)
	writeContainerError(recorder, e)
	if recorder.Code != 503 {
		t.Errorf("container credentials: %d", recorder.Code)
	}
}

type identityToken string

func (t identityToken) GetIdentityToken() ([]byte, error) { return []byte(t), nil }

func TestContainerCredentialsByTheGoSDK(t *testing.T) {
	endpoint, issuer := stsServer(t)
	retrieve := func(token string) (aws.Credentials, error) {
		return endpointcreds.New(endpoint+"/-/credentials", func(o *endpointcreds.Options) { o.AuthorizationToken = token }).Retrieve(t.Context())
	}
	got, err := retrieve(issuer.Token(map[string]any{"aud": "sluice"}))
	if err != nil {
		t.Fatal(err)
	}
	if !got.CanExpire || time.Until(got.Expires) < 59*time.Minute || got.SessionToken == "" {
		t.Errorf("%+v", got)
	}
	_, err = retrieve(issuer.Token(map[string]any{"aud": "elsewhere"}))
	if err == nil || !strings.Contains(err.Error(), "InvalidIdentityToken") || !strings.Contains(err.Error(), "audience") {
		t.Errorf("the SDK does not show what was wrong: %v", err)
	}
}

const botoSTSScript = `
import boto3, json, os
from botocore.exceptions import ClientError
sts = boto3.client("sts", endpoint_url=os.environ["ENDPOINT"], region_name="eu-west-1")
out = sts.assume_role_with_web_identity(RoleArn="arn:aws:iam::123456789012:role/dev", RoleSessionName="ada", WebIdentityToken=os.environ["TOKEN"])
assert out["AssumedRoleUser"]["Arn"] == "arn:aws:sts::123456789012:assumed-role/dev/ada", out
assert out["ResponseMetadata"]["RequestId"] == "request-1", out
assert out["Audience"] == "sluice" and out["Provider"] == os.environ["ISSUER"], out
try:
    sts.assume_role_with_web_identity(RoleArn="arn:aws:iam::123456789012:role/dev", RoleSessionName="ada", WebIdentityToken="no.token.atall")
except sts.exceptions.InvalidIdentityTokenException:
    pass
# As a workspace does it: everything from the environment.
with open(os.environ["TOKEN_FILE"], "w") as f: f.write(os.environ["TOKEN"])
os.environ.update(AWS_WEB_IDENTITY_TOKEN_FILE=os.environ["TOKEN_FILE"], AWS_ROLE_ARN="arn:aws:iam::123456789012:role/dev",
    AWS_ROLE_SESSION_NAME="ada", AWS_ENDPOINT_URL_STS=os.environ["ENDPOINT"], AWS_DEFAULT_REGION="eu-west-1")
assert boto3.Session().client("sts").get_caller_identity()["Account"] == "123456789012"
for name in "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN": del os.environ[name]
os.environ.update(AWS_CONTAINER_CREDENTIALS_FULL_URI=os.environ["ENDPOINT"] + "/-/credentials", AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=os.environ["TOKEN_FILE"])
who = boto3.Session().client("sts").get_caller_identity()
assert who["Arn"].startswith("arn:aws:sts::000000000000:assumed-role/sluice/"), who
`

func TestSTSByBoto3(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil || exec.Command(python, "-c", "import boto3").Run() != nil {
		t.Skip("no python3 with boto3 on this machine")
	}
	endpoint, issuer := stsServer(t)
	command := exec.CommandContext(t.Context(), python, "-c", botoSTSScript)
	command.Env = append(os.Environ(), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true",
		"ENDPOINT="+endpoint, "ISSUER="+issuer.URL(), "TOKEN="+issuer.Token(map[string]any{"aud": "sluice"}), "TOKEN_FILE="+t.TempDir()+"/token")
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The answers carry secrets: nothing may keep them. Their bytes are a contract with parsers of all ages.
func TestSTSAnswers(t *testing.T) {
	session := &identity.Session{
		AccessKeyID: "SLCEXAMPLE", SecretAccessKey: "secret", SessionToken: "token", Expiration: time.Date(2026, 11, 23, 1, 2, 3, 999, time.FixedZone("", 3600)),
		Identity: &identity.Identity{Issuer: "https://issuer.example.com", Subject: "a<b>&c", Audience: []string{"one", "two"}, Session: "env 42"},
	}
	recorder := httptest.NewRecorder()
	writeAssumeRoleWithWebIdentity(recorder, &stsRequest{}, session, "r1")
	const want = `<?xml version="1.0" encoding="UTF-8"?>
<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>` +
		`<Credentials><AccessKeyId>SLCEXAMPLE</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken><Expiration>2026-11-23T00:02:03Z</Expiration></Credentials>` +
		`<SubjectFromWebIdentityToken>a&lt;b&gt;&amp;c</SubjectFromWebIdentityToken>` +
		`<AssumedRoleUser><AssumedRoleId>SLCRQDQGBZRZMHYNDVSXK:env-42</AssumedRoleId><Arn>arn:aws:sts::000000000000:assumed-role/sluice/env-42</Arn></AssumedRoleUser>` +
		`<Provider>https://issuer.example.com</Provider><Audience>one</Audience></AssumeRoleWithWebIdentityResult>` +
		`<ResponseMetadata><RequestId>r1</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>`
	if got := recorder.Body.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if h := recorder.Result().Header; h.Get("Cache-Control") != "no-store" || h.Get("Content-Type") != "text/xml" {
		t.Errorf("%v", h)
	}

	recorder = httptest.NewRecorder()
	writeContainerCredentials(recorder, session)
	var container map[string]string
	if err := json.Unmarshal(recorder.Body.Bytes(), &container); err != nil {
		t.Fatal(err)
	}
	if len(container) != 4 || container["AccessKeyId"] != "SLCEXAMPLE" || container["SecretAccessKey"] != "secret" || container["Token"] != "token" || container["Expiration"] != "2026-11-23T00:02:03Z" {
		t.Errorf("%v", container)
	}
	if recorder.Header().Get("Cache-Control") != "no-store" {
		t.Error("container credentials may be cached")
	}

	recorder = httptest.NewRecorder()
	writeSTSError(recorder, &stsError{"ExpiredTokenException", `no "RoleArn" in it's <token> &#34;`}, "r1")
	const wantError = `<?xml version="1.0" encoding="UTF-8"?>
<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>ExpiredTokenException</Code><Message>no "RoleArn" in it's &lt;token&gt; &amp;#34;</Message></Error><RequestId>r1</RequestId></ErrorResponse>`
	if got := recorder.Body.String(); got != wantError || recorder.Code != 400 {
		t.Errorf("%d\n%s", recorder.Code, got)
	}
}

func FuzzParseSTS(f *testing.F) {
	f.Add(goodForm)
	f.Add("Action=GetCallerIdentity&Version=2011-06-15")
	f.Fuzz(func(t *testing.T, form string) {
		request, err := parseSTS([]byte(form))
		if err != nil {
			if _, ok := err.(*stsError); !ok {
				t.Errorf("%T", err)
			}
			return
		}
		if request.Action == "AssumeRoleWithWebIdentity" {
			c := callerOf(&identity.Identity{RequestedRole: request.Issue.RoleARN})
			if strings.ContainsAny(c.arn, " \n\t") {
				t.Errorf("%q of %q", c.arn, request.Issue.RoleARN)
			}
		}
	})
}
