package signer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// chain is where every AWS SDK looks for credentials and settings. It is loaded when it is first needed, and again
// after a failure.
type chain struct {
	region string

	mu  sync.Mutex // guards cfg
	cfg *aws.Config
}

// load gives the SDK no HTTP client of ours: it refuses one where AWS_CA_BUNDLE is set, and makes its own from that.
func (c *chain) load(ctx context.Context, with ...func(*config.LoadOptions) error) (aws.Config, *Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg == nil {
		cfg, err := config.LoadDefaultConfig(ctx, append(with, config.WithRegion(c.region))...)
		if err != nil {
			return aws.Config{}, &Error{Kind: Unavailable, Message: "the proxy's AWS configuration cannot be loaded",
				Hint: "look at the AWS_* variables and the shared configuration files of the proxy: " + told(err).Error(), Err: told(err)}
		}
		c.cfg = &cfg
	}
	return *c.cfg, nil
}

// obtain is default_chain's.
func (c *chain) obtain(ctx context.Context, _ *order, now time.Time) (*credentials, *Error) {
	cfg, e := c.load(ctx)
	if e != nil {
		return nil, e
	}
	// The SDK's own cache would give what it has until it has expired: we ask before.
	if cache, ok := cfg.Credentials.(*aws.CredentialsCache); ok {
		cache.Invalidate()
	}
	v, err := retrieve(ctx, cfg.Credentials)
	if err != nil {
		return nil, err
	}
	if !headerSafe(v.AccessKeyID) || !headerSafe(v.SessionToken) {
		return nil, errOddCredentials
	}
	out := &credentials{accessKeyID: v.AccessKeyID, secret: v.SecretAccessKey, token: v.SessionToken}
	if v.CanExpire {
		out.lasting(now, v.Expires)
	}
	return out, nil
}

func retrieve(ctx context.Context, from aws.CredentialsProvider) (aws.Credentials, *Error) {
	var v aws.Credentials
	err := errors.New("no source of credentials is configured")
	if from != nil {
		v, err = from.Retrieve(ctx)
	}
	if err == nil && !v.HasKeys() {
		err = errors.New("the source of credentials gave none")
	}
	if err != nil {
		return aws.Credentials{}, &Error{Kind: Unavailable, Message: "the proxy has no AWS credentials of its own at the moment",
			Hint: "give the proxy an instance, container or service account role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its environment",
			Err:  told(err)}
	}
	return v, nil
}

// stsSource obtains credentials by assuming roles.
type stsSource struct {
	region, endpoint, externalID string

	client *http.Client
	base   *credentials // nil = the chain's
	web    bool         // calls need no credentials
	chain  chain

	mu  sync.Mutex // guards api
	api *sts.Client
}

func (s *stsSource) service(ctx context.Context) (*sts.Client, *Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.api != nil {
		return s.api, nil
	}
	// What of the chain expires in the next minute might do so on its way to STS.
	with := config.WithCredentialsCacheOptions(func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = time.Minute })
	switch {
	case s.web:
		with = config.WithCredentialsProvider(aws.AnonymousCredentials{})
	case s.base != nil:
		with = config.WithCredentialsProvider(s.base)
	}
	cfg, err := s.chain.load(ctx, with)
	if err != nil {
		return nil, err
	}
	s.api = sts.NewFromConfig(cfg, func(o *sts.Options) {
		o.HTTPClient = s.client
		if s.endpoint != "" {
			o.BaseEndpoint = aws.String(s.endpoint)
		}
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts = 3
			o.MaxBackoff = 200 * time.Millisecond // somebody may be waiting
		})
	})
	return s.api, nil
}

// Retrieve is for the SDK to sign its calls with.
func (c *credentials) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: c.accessKeyID, SecretAccessKey: c.secret, SessionToken: c.token, Source: "sluice"}, nil
}

func (s *stsSource) assumeRole(ctx context.Context, o *order, now time.Time) (*credentials, *Error) {
	policy, e := sessionPolicy(o.policy)
	if e != nil {
		return nil, e
	}
	in := &sts.AssumeRoleInput{
		RoleArn:         aws.String(o.role),
		RoleSessionName: aws.String(o.persona.name),
		DurationSeconds: aws.Int32(int32(o.asked(now) / time.Second)),
		ExternalId:      unlessEmpty(s.externalID),
		Policy:          policy,
		SourceIdentity:  unlessEmpty(o.persona.source),
	}
	for _, t := range o.persona.tags {
		in.Tags = append(in.Tags, types.Tag{Key: aws.String(t.key), Value: aws.String(t.value)})
	}
	api, e := s.service(ctx)
	if e != nil {
		return nil, e
	}
	// Asked for first, so that a proxy without credentials is not taken for a role that cannot be assumed.
	base, e := retrieve(ctx, api.Options().Credentials)
	if e != nil {
		return nil, e
	}
	out, err := api.AssumeRole(ctx, in)
	if err != nil {
		return nil, s.explain(err, o, base.SecretAccessKey, base.SessionToken)
	}
	return taken(out.Credentials, now, o.asked(now))
}

func (s *stsSource) webIdentity(ctx context.Context, o *order, now time.Time) (*credentials, *Error) {
	policy, e := sessionPolicy(o.policy)
	if e != nil {
		return nil, e
	}
	api, e := s.service(ctx)
	if e != nil {
		return nil, e
	}
	out, err := api.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn:          aws.String(o.role),
		RoleSessionName:  aws.String(o.persona.name),
		DurationSeconds:  aws.Int32(int32(o.asked(now) / time.Second)),
		Policy:           policy,
		WebIdentityToken: aws.String(o.token),
	})
	if err != nil {
		return nil, s.explain(err, o, o.token)
	}
	return taken(out.Credentials, now, o.asked(now))
}

func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

var errOddCredentials = &Error{Kind: Unavailable, Message: "the credentials that came are not usable",
	Hint: "what answers as STS gave no keys, no expiry, or characters that no key has: is sts_endpoint right?"}

// taken makes credentials of what STS answered. They last no longer than was asked for, whatever it says.
func taken(c *types.Credentials, now time.Time, asked time.Duration) (*credentials, *Error) {
	if c == nil || c.Expiration == nil || aws.ToString(c.AccessKeyId) == "" || aws.ToString(c.SecretAccessKey) == "" ||
		!headerSafe(*c.AccessKeyId) || !headerSafe(aws.ToString(c.SessionToken)) {
		return nil, errOddCredentials
	}
	out := &credentials{accessKeyID: *c.AccessKeyId, secret: *c.SecretAccessKey, token: aws.ToString(c.SessionToken)}
	expires := *c.Expiration
	if latest := now.Add(asked); expires.After(latest) {
		expires = latest
	}
	out.lasting(now, expires)
	return out, nil
}

// sessionPolicy is policy as STS takes it, or what is wrong with it. STS takes no character beyond Latin-1, so all but
// ASCII is escaped: in JSON, it can only be inside strings.
func sessionPolicy(policy string) (*string, *Error) {
	const most = 2048
	if policy == "" {
		return nil, nil
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal([]byte(policy), &doc); err != nil || doc == nil || !utf8.ValidString(policy) {
		return nil, &Error{Kind: Denied, Message: "policy's session_policy is not a JSON object",
			Hint: "session_policy must be an IAM policy document"}
	}
	var out strings.Builder
	for _, r := range policy {
		if r < utf8.RuneSelf {
			out.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	if out.Len() > most {
		return nil, &Error{Kind: Denied, Message: fmt.Sprintf("policy's session_policy is %d characters long, and AWS takes %d", out.Len(), most),
			Hint: "say it with wildcards, or put it into the role's own policy with session tags"}
	}
	text := out.String()
	return &text, nil
}

// newHTTPClient makes the client for STS. It follows no redirect: a request for credentials goes where it was sent.
func newHTTPClient(caFile string) (*http.Client, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	for _, from := range []struct{ name, file string }{
		{"ca_file", caFile},
		{"AWS_CA_BUNDLE", os.Getenv("AWS_CA_BUNDLE")}, // every AWS SDK takes it
	} {
		if from.file == "" {
			continue
		}
		pem, err := os.ReadFile(from.file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from.name, err)
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: %s has no PEM certificate", from.name, from.file)
		}
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	t.MaxIdleConnsPerHost = maxCalls
	t.MaxResponseHeaderBytes = 64 << 10
	return &http.Client{
		Transport:     t,
		Timeout:       5 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// explain turns an error of STS into what a developer and an operator can do about it. Codes are those of
// https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html and of the two calls.
func (s *stsSource) explain(err error, o *order, secrets ...string) *Error {
	status, code, message := apiError(err)
	e := &Error{Kind: Denied, Err: told(err, secrets...)}
	say := func(kind Kind, message, hint string) *Error {
		e.Kind, e.Message, e.Hint = kind, message, hint
		return e
	}
	role := "role " + o.role

	switch code {
	case "":
		if status != 0 {
			return say(Unavailable, fmt.Sprintf("STS answered %d and nothing that STS says", status),
				"is sts_endpoint right, and does it speak STS (2011-06-15)?")
		}
		return say(Unavailable, "STS cannot be reached: try again",
			"check sts_endpoint, the network and, for a private STS, ca_file: "+e.Err.Error())

	case "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException",
		"RequestLimitExceeded", "TooManyRequestsException", "LimitExceededException", "BandwidthLimitExceeded", "SlowDown":
		return say(Unavailable, "STS is throttling: try again", "too many AssumeRole calls in this account: session tags with few values make fewer sessions, see docs/aws-setup.md")

	case "ServiceUnavailable", "InternalFailure", "InternalError", "InternalServerError", "RequestTimeout":
		return say(Unavailable, "STS does not work at the moment: try again", "")

	case "RegionDisabledException":
		return say(Unavailable, "STS is switched off in the backend's region", "activate STS for the region in the account settings of IAM, or set sts_endpoint")

	case "ExpiredToken", "ExpiredTokenException":
		if s.web {
			return say(Expired, "AWS says that the workspace's token has expired: get a new one and try again", "")
		}
		return s.selfRefused(e)
	case "InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch", "IncompleteSignature",
		"AuthFailure", "MissingAuthenticationToken", "RequestExpired", "OptInRequired":
		return s.selfRefused(e)

	case "InvalidIdentityToken":
		return say(Denied, "AWS does not accept the workspace's token for "+role+" (InvalidIdentityToken)",
			"register the token's issuer as an IAM OIDC provider in the role's account, with the token's audience as client ID")
	case "IDPRejectedClaim":
		return say(Denied, "the issuer told AWS that it does not stand by the workspace's token (IDPRejectedClaim): get a new one", "")
	case "IDPCommunicationError":
		return say(Unavailable, "AWS cannot reach the token's issuer: try again", "the issuer's discovery document and keys must be public for web_identity; use assume_role otherwise")

	case "AccessDenied", "AccessDeniedException":
		return s.denied(e, role, message)

	case "PackedPolicyTooLarge":
		return say(Denied, "the session policy and tags for "+role+" are too large for AWS together (PackedPolicyTooLarge)",
			"shorten policy's session_policy, or have fewer session_tags")
	case "MalformedPolicyDocument":
		return say(Denied, "AWS does not accept policy's session_policy (MalformedPolicyDocument)", "session_policy must be an IAM policy document: "+e.Err.Error())

	case "ValidationError", "ValidationException", "InvalidParameterValue":
		if strings.Contains(message, "DurationSeconds") {
			return s.tooLong(e, role, message)
		}
		return say(Denied, "STS does not accept what it was asked for "+role+" ("+code+")", "look at external_id, session_tags and source_identity: "+e.Err.Error())
	}
	if status >= 500 {
		return say(Unavailable, "STS does not work at the moment: try again", "")
	}
	return say(Denied, "STS refused "+role+" ("+printable(code, 64)+")", e.Err.Error())
}

// selfRefused: not the workspace's fault, and not for ever.
func (s *stsSource) selfRefused(e *Error) *Error {
	e.Kind, e.Message = Unavailable, "STS does not accept the proxy's own credentials"
	e.Hint = "renew the proxy's AWS credentials, and compare this machine's clock with STS's: " + e.Err.Error()
	return e
}

func (s *stsSource) tooLong(e *Error, role, message string) *Error {
	e.Kind, e.Message = Denied, role+" does not give sessions as long as `duration` asks for"
	e.Hint = "lower `duration`, or raise the role's maximum session duration"
	if strings.Contains(message, "chain") {
		e.Hint = "lower `duration` to 1h: the proxy's own credentials are a role's, and AWS gives sessions of chained roles no longer"
	}
	return e
}

// denied reads which of the three permissions was missing: AWS names it.
func (s *stsSource) denied(e *Error, role, message string) *Error {
	e.Kind = Denied
	switch {
	case strings.Contains(message, "sts:TagSession"):
		e.Message = role + " does not take session tags from the proxy (AccessDenied on sts:TagSession)"
		e.Hint = "allow sts:TagSession beside sts:AssumeRole in the role's trust policy"
	case strings.Contains(message, "sts:SetSourceIdentity"):
		e.Message = role + " does not take a source identity from the proxy (AccessDenied on sts:SetSourceIdentity)"
		e.Hint = "allow sts:SetSourceIdentity beside sts:AssumeRole in the role's trust policy and in the proxy's own"
	case s.web:
		e.Message = role + " does not trust the workspace's token (AccessDenied on sts:AssumeRoleWithWebIdentity)"
		e.Hint = "the role's trust policy must name the issuer's OIDC provider as Federated principal, allow sts:AssumeRoleWithWebIdentity, and have conditions that the token's aud and sub meet"
	default:
		e.Message = role + " does not let the proxy in (AccessDenied on sts:AssumeRole)"
		e.Hint = "the role's trust policy must name the proxy's own role or user, with the same external ID if it asks for one, and the proxy's own policy must allow sts:AssumeRole on the role"
	}
	return e
}

// apiError takes an error of the SDK apart; code is "" where STS itself said nothing.
func apiError(err error) (status int, code, message string) {
	if r := (*smithyhttp.ResponseError)(nil); errors.As(err, &r) {
		status = r.HTTPStatusCode()
	}
	if a := smithy.APIError(nil); errors.As(err, &a) {
		code, message = a.ErrorCode(), a.ErrorMessage()
	}
	if code == "UnknownError" {
		code = ""
	}
	return status, code, message
}

// told is an SDK's error for logs: without what it wraps, since that keeps whole requests and answers, and without
// secrets. STS repeats the canonical request, session token and all, where it finds a signature wrong.
func told(err error, secrets ...string) error {
	_, code, message := apiError(err)
	text := err.Error()
	switch {
	case code == "SignatureDoesNotMatch" || code == "IncompleteSignature":
		text = code
	case code != "":
		text = code + ": " + message
	}
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "[removed]")
		}
	}
	text = secretive.ReplaceAllString(text, "[removed]")
	plain := errors.New(printable(text, 512))
	for _, cause := range []error{context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, cause) {
			return fmt.Errorf("%w: %w", cause, plain)
		}
	}
	return plain
}

// secretive is what could be a token or a part of one, however it was escaped.
var secretive = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9._-]*|[A-Za-z0-9+/=_.%-]{80,}`)

// printable keeps a foreign text to one line of at most n bytes.
func printable(s string, n int) string {
	if len(s) > n {
		s = s[:n] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
