// Package signer signs requests to one backend as a role: it obtains the role's credentials, keeps them fresh,
// and signs last of all.
package signer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Config is `credentials` of a backend. Exactly one of its fields is set.
type Config struct {
	AssumeRole   *AssumeRole   `yaml:"assume_role"`
	WebIdentity  *WebIdentity  `yaml:"web_identity"`
	Static       *Static       `yaml:"static"`
	DefaultChain *DefaultChain `yaml:"default_chain"`
}

type AssumeRole struct {
	RoleARN        string            `yaml:"role_arn"`
	AllowedRoles   []string          `yaml:"allowed_roles"`
	ExternalID     string            `yaml:"external_id"`
	Duration       time.Duration     `yaml:"duration"`
	SessionTags    map[string]string `yaml:"session_tags"`    // text/template values over Principal
	SourceIdentity string            `yaml:"source_identity"` // the same
	STSEndpoint    string            `yaml:"sts_endpoint"`
}

type WebIdentity struct {
	RoleARN      string        `yaml:"role_arn"`
	AllowedRoles []string      `yaml:"allowed_roles"`
	Duration     time.Duration `yaml:"duration"`
	STSEndpoint  string        `yaml:"sts_endpoint"`
}

// Static is one fixed key pair, for S3 services without STS. Each value is named by an environment variable or by a
// file, never written in the configuration.
type Static struct {
	AccessKeyIDEnv      string `yaml:"access_key_id_env"`
	AccessKeyIDFile     string `yaml:"access_key_id_file"`
	SecretAccessKeyEnv  string `yaml:"secret_access_key_env"`
	SecretAccessKeyFile string `yaml:"secret_access_key_file"`
	SessionTokenEnv     string `yaml:"session_token_env"`
	SessionTokenFile    string `yaml:"session_token_file"`
}

type DefaultChain struct{}

// Check reports every problem of the section, each with its path below it.
func (c *Config) Check(report func(path, problem string)) {}

// Principal is for whom a request is signed, as templates see it.
type Principal struct {
	Issuer, Subject, Session string
	Claims                   map[string]any
	Attributes               map[string]any // workspace, project, repository, user, groups
	Token                    string         `json:"-"` // the workspace's OIDC token, for web_identity only
	Expires                  time.Time      // credentials are never used past it
}

// As is as whom a request is signed.
type As struct {
	Principal     *Principal
	Role          string // policy's choice; "" = the configured default
	SessionPolicy string // IAM policy document; "" = none
}

// Options is what a Signer needs besides its configuration.
type Options struct {
	Region string
	CAFile string
	Now    func() time.Time
}

// Signer signs for one backend. It is safe for concurrent use.
type Signer struct {
	region string
	now    func() time.Time
	static aws.Credentials
	v4     *v4.Signer
}

// New makes a Signer. ctx ends its background refreshes.
func New(ctx context.Context, c Config, o Options) (*Signer, error) {
	s := &Signer{region: o.Region, now: o.Now}
	if s.now == nil {
		s.now = time.Now
	}
	if c.Static == nil {
		return nil, errors.New("credentials: only static is written so far")
	}
	creds, err := c.Static.read()
	if err != nil {
		return nil, fmt.Errorf("credentials: static: %w", err)
	}
	s.static = creds
	s.v4 = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	return s, nil
}

func (c *Static) read() (creds aws.Credentials, err error) {
	for _, v := range []struct {
		to              *string
		name, env, file string
		optional        bool
	}{
		{&creds.AccessKeyID, "access_key_id", c.AccessKeyIDEnv, c.AccessKeyIDFile, false},
		{&creds.SecretAccessKey, "secret_access_key", c.SecretAccessKeyEnv, c.SecretAccessKeyFile, false},
		{&creds.SessionToken, "session_token", c.SessionTokenEnv, c.SessionTokenFile, true},
	} {
		switch {
		case v.env != "":
			*v.to = os.Getenv(v.env)
			if *v.to == "" {
				return aws.Credentials{}, fmt.Errorf("%s_env: environment variable %s is not set", v.name, v.env)
			}
		case v.file != "":
			b, err := os.ReadFile(v.file)
			if err != nil {
				return aws.Credentials{}, fmt.Errorf("%s_file: %w", v.name, err)
			}
			*v.to = strings.TrimSpace(string(b))
			if *v.to == "" {
				return aws.Credentials{}, fmt.Errorf("%s_file: %s is empty", v.name, v.file)
			}
		case !v.optional:
			return aws.Credentials{}, fmt.Errorf("%s_env or %s_file is missing", v.name, v.name)
		}
	}
	return creds, nil
}

// Role tells which role As would act as, or why it may not, without asking STS. "" where the backend knows no roles.
func (s *Signer) Role(as As) (string, error) {
	if as.Role != "" {
		return "", &Error{Kind: RoleNotAllowed, Message: "policy named a role, and this backend's credentials are static"}
	}
	return "", nil
}

// Sign signs req, whose URL, Host and headers are final. payloadHash is the value of x-amz-content-sha256, which
// Sign sets too. Errors are *Error.
func (s *Signer) Sign(ctx context.Context, req *http.Request, payloadHash string, as As) error {
	if _, err := s.Role(as); err != nil {
		return err
	}
	if as.SessionPolicy != "" {
		return &Error{Kind: RoleNotAllowed, Message: "policy narrows the session, and this backend's credentials are static"}
	}
	now := s.now()
	if as.Principal == nil || !now.Before(as.Principal.Expires) {
		return &Error{Kind: Expired, Message: "the identity has expired"}
	}
	req.Header.Del("X-Amz-Security-Token")
	req.Header["X-Amz-Content-Sha256"] = []string{payloadHash}
	if err := s.v4.SignHTTP(ctx, s.static, req, payloadHash, "s3", s.region, now); err != nil {
		return &Error{Kind: Unavailable, Message: "the request could not be signed", Err: err}
	}
	return nil
}

// Kind says what a caller does about an error.
type Kind uint8

const (
	RoleNotAllowed Kind = iota + 1 // policy named a role outside allowed_roles
	Denied                         // STS refused: trust policy, duration, tags
	Unavailable                    // STS or the credential source not reachable, or throttling
	NoToken                        // web_identity, and the caller's session carries no token
	Expired                        // the identity itself has expired
)

// Error is why a request could not be signed. Message is for the developer and holds no secret.
type Error struct {
	Kind    Kind
	Message string
	Err     error
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }
