// Package policy answers whether an identity may do what a request needs, and as which role. It owns the Rego
// input: a contract with policy authors.
package policy

import (
	"context"
	"encoding/json"
	"time"
)

// Config is `policy` in the configuration file. Exactly one of Dir, Git and OPA.
type Config struct {
	Dir        string         `yaml:"dir"`
	Git        *Git           `yaml:"git"`
	OPA        map[string]any `yaml:"opa"`
	Entrypoint string         `yaml:"entrypoint"`
	Shadow     *Config        `yaml:"shadow"`
}

// Git is a repository that policy is read from.
type Git struct {
	URL      string        `yaml:"url"`
	Ref      string        `yaml:"ref"`
	Path     string        `yaml:"path"`
	Interval time.Duration `yaml:"interval"`
}

// Check reports every problem of the section, each with its path below it.
func (c *Config) Check(report func(path, problem string)) {}

// Identity is `input.identity`.
type Identity struct {
	Issuer        string         `json:"issuer"`
	Subject       string         `json:"subject"`
	Audience      []string       `json:"audience"`
	Session       string         `json:"session"`
	Method        string         `json:"method"`
	RequestedRole string         `json:"requested_role"`
	Expires       int64          `json:"expires"`
	Claims        map[string]any `json:"claims"`
	Attributes    Attributes     `json:"attributes"`
}

// Attributes is `input.identity.attributes`.
type Attributes struct {
	Workspace  string   `json:"workspace"`
	Project    string   `json:"project"`
	Repository string   `json:"repository"`
	User       string   `json:"user"`
	Groups     []string `json:"groups"`
}

// Subject is an Identity made ready for evaluation once, and used for every request of its token.
type Subject struct{}

// NewSubject copies what it needs of id.
func NewSubject(id *Identity) *Subject { panic("not written") }

// Request is `input.request`: what policy may know of the request beside the access. No raw headers: only those
// that the operation's table allows.
type Request struct {
	ID            string            `json:"id"`
	Time          time.Time         `json:"time"`
	Method        string            `json:"method"`
	Host          string            `json:"host"`
	SourceIP      string            `json:"source_ip"`
	Secure        bool              `json:"secure"`
	UserAgent     string            `json:"user_agent"`
	ContentLength int64             `json:"content_length"`
	Headers       map[string]string `json:"headers"`
	Query         map[string]string `json:"query"`
}

// Access is one thing to be decided.
type Access struct {
	Action, Bucket, Key, VersionID string
	Prefix, Delimiter              string
	Backend                        string
}

// Question is everything a decision depends on.
type Question struct {
	Subject   *Subject
	Operation string
	Request   *Request
	Accesses  []Access // never empty
}

// Decision is what policy said. The zero value refuses.
type Decision struct {
	Allow         bool            // every access is allowed
	Verdicts      []Verdict       // one for each access, in order
	Reasons       []string        // of all the refused, each once, sorted
	Role          string          // "" = the backend's default
	SessionPolicy json.RawMessage // nil = none
	Limits        Limits
	FilterListing bool
	Revision      string
	Shadow        *ShadowDecision // nil where no shadow policy is configured
}

// Verdict is the answer for one access.
type Verdict struct {
	Allow   bool
	Reasons []string
}

// Limits narrow the configured ones; 0 = no opinion.
type Limits struct {
	RequestsPerSecond float64
	BytesPerSecond    int64
	MaxObjectBytes    int64
}

// ShadowDecision is what the candidate policy would have said.
type ShadowDecision struct {
	Allow    bool     `json:"allow"`
	Differs  bool     `json:"differs"`
	Reasons  []string `json:"reasons,omitempty"`
	Role     string   `json:"role,omitempty"`
	Revision string   `json:"policy_revision,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// Engine decides by the policy in force.
type Engine struct{}

// Open loads the policy and keeps it current until ctx ends. It fails where there is no good policy to start with.
func Open(ctx context.Context, c Config, onReload func(Status)) (*Engine, error) {
	panic("not written")
}

// Decide asks policy about every access. An error means that nothing was decided: refuse.
func (e *Engine) Decide(ctx context.Context, q *Question) (*Decision, error) { panic("not written") }

// Allowed reports for each of the accesses by itself whether it is allowed (ListBuckets, listings).
func (e *Engine) Allowed(ctx context.Context, q *Question) ([]bool, error) { panic("not written") }

// Status is the health of the policy.
type Status struct {
	Revision string
	Loaded   time.Time // when the policy in force was loaded
	Err      error     // why the newest could not be loaded; nil = in force
}

func (e *Engine) Status() Status { panic("not written") }

// Reload loads the policy again now; the old one stays in force where that fails.
func (e *Engine) Reload(ctx context.Context) error { panic("not written") }
