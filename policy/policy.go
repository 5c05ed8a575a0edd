// Package policy answers whether an identity may do what a request needs, and as which role. It owns the Rego
// input: a contract with policy authors.
package policy

import (
	"encoding/json"
	"time"
)

// Config is `policy` in the configuration file. Exactly one of Dir, Git and OPA.
type Config struct {
	// Dir holds *.rego files and data files (JSON, YAML), and is read again when they change.
	Dir string `yaml:"dir"`
	Git *Git   `yaml:"git"`
	// OPA is OPA's own configuration: services, keys, bundles, discovery, labels, persistence_directory.
	OPA map[string]any `yaml:"opa"`
	// Entrypoint is the path of the package that decides. [s3/authz]
	Entrypoint string `yaml:"entrypoint"`
	// Shadow is a second source: evaluated beside this one and recorded, never obeyed. Its entrypoint is this one's
	// unless it has its own.
	Shadow *Config `yaml:"shadow"`
}

// Git is a repository that policy is read from.
type Git struct {
	// URL of the repository: https, ssh or file; http to loopback alone. It holds no password.
	URL string `yaml:"url"`
	// Ref is a branch, a tag or a whole commit id. [main]
	Ref string `yaml:"ref"`
	// Path is the policy's directory in the repository. [its root]
	Path string `yaml:"path"`
	// Interval between two looks at the repository. [30s]
	Interval time.Duration `yaml:"interval"`
	// Cache is the directory that keeps the last good policy over a restart.
	// [sluice/policy below the user's cache directory; where there is none, memory]
	Cache string `yaml:"cache"`
	// TokenFile, or the environment variable TokenEnv, holds the token for https: it is sent as the password.
	TokenFile string `yaml:"token_file"`
	TokenEnv  string `yaml:"token_env"`
	// SSHKeyFile is the private key for ssh. ["" = the ssh agent]
	SSHKeyFile string `yaml:"ssh_key_file"`
	// KnownHostsFile lists the ssh servers' keys. ["" = the user's and the system's]
	KnownHostsFile string `yaml:"known_hosts_file"`
	// CAFile is trusted for https beside the system's authorities.
	CAFile string `yaml:"ca_file"`
}

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
	Denied  bool // by `deny`, or by terms that cannot be kept, and not only for want of `allow`
	Reasons []string
}

// Limits narrow the configured ones; 0 = no opinion.
type Limits struct {
	RequestsPerSecond float64 `json:"requests_per_second,omitempty"`
	BytesPerSecond    int64   `json:"bytes_per_second,omitempty"`
	InFlight          int64   `json:"in_flight,omitempty"`
	MaxObjectBytes    int64   `json:"max_object_bytes,omitempty"`
}

// ShadowDecision is what the candidate policy would have said. It differs where the caller would have got something
// else, or got it on other terms; not where a request is refused either way, whatever for.
type ShadowDecision struct {
	Allow    bool     `json:"allow"`
	Differs  bool     `json:"differs"`
	Reasons  []string `json:"reasons,omitempty"`
	Role     string   `json:"role,omitempty"`
	Revision string   `json:"policy_revision,omitempty"`
	Error    string   `json:"error,omitempty"`
	Limits   Limits   `json:"-"` // for whoever holds the request to the limits, and so knows whether both refuse it
}
