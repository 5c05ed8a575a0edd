// Package signer signs requests to one backend as a role: it obtains the role's credentials, keeps them fresh,
// and signs last of all.
package signer

import (
	"context"
	"net/http"
	"time"
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

type Static struct {
	AccessKeyIDEnv, SecretAccessKeyEnv, SessionTokenEnv    string
	AccessKeyIDFile, SecretAccessKeyFile, SessionTokenFile string
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
type Signer struct{}

// New makes a Signer. ctx ends its background refreshes.
func New(ctx context.Context, c Config, o Options) (*Signer, error) { panic("not written") }

// Role tells which role As would act as, or why it may not, without asking STS. "" where the backend knows no roles.
func (s *Signer) Role(as As) (string, error) { panic("not written") }

// Sign signs req, whose URL, Host and headers are final. payloadHash is the value of x-amz-content-sha256, which
// Sign sets too. Errors are *Error.
func (s *Signer) Sign(ctx context.Context, req *http.Request, payloadHash string, as As) error {
	panic("not written")
}

// Kind says what a caller does about an error.
type Kind uint8

const (
	RoleNotAllowed Kind = iota + 1 // policy named a role outside allowed_roles
	Denied                         // STS refused: trust policy, duration, tags
	Unavailable                    // STS or the credential source not reachable, or throttling
	NoToken                        // web_identity, and the caller's session carries no token
)

// Error is why a request could not be signed. Message is for the developer and holds no secret.
type Error struct {
	Kind    Kind
	Message string
	Err     error
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }
