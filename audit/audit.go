// Package audit writes exactly one event for each request. It owns the log line: a contract with those who read it.
package audit

import (
	"context"
	"encoding/json"
	"time"
)

// Config is `audit` in the configuration file.
type Config struct {
	File           *File    `yaml:"file"`
	Stdout         bool     `yaml:"stdout"`
	Claims         []string `yaml:"claims"`
	Redact         Redact   `yaml:"redact"`
	Ship           []Ship   `yaml:"ship"`
	SigningKeyFile string   `yaml:"signing_key_file"`
	OnFailure      string   `yaml:"on_failure"` // refuse (the default) or continue
}

type File struct {
	Path     string `yaml:"path"`
	MaxSize  Size   `yaml:"max_size"`
	Keep     int    `yaml:"keep"`
	Compress *bool  `yaml:"compress"`
	Fsync    string `yaml:"fsync"` // off, interval, always
}

type Redact struct {
	Keys []string `yaml:"keys"`
}

// Size is a number of bytes, written "256MiB".
type Size int64

// Ship is one far end that events are sent to. Exactly one of its fields is set.
type Ship struct{}

// Check reports every problem of the section, each with its path below it.
func (c *Config) Check(report func(path, problem string)) {}

// Event is one request, as the log tells it. See the contract, section 6.
type Event struct {
	Schema     string    `json:"schema"`
	Seq        uint64    `json:"seq"`
	ID         string    `json:"id"`
	Time       time.Time `json:"time"`
	DurationMS float64   `json:"duration_ms"`
	Identity   Identity  `json:"identity"`
	SourceIP   string    `json:"source_ip"`
	UserAgent  string    `json:"user_agent"`
	Host       string    `json:"host"`
	Operation  string    `json:"operation"`
	Bucket     string    `json:"bucket"`
	Key        string    `json:"key"`
	VersionID  string    `json:"version_id"`
	Accesses   []Access  `json:"accesses"`
	Decision   Decision  `json:"decision"`
	Backend    Backend   `json:"backend"`
	Status     int       `json:"status"`
	Error      string    `json:"error"`
	Outcome    Outcome   `json:"outcome"`
	BytesIn    int64     `json:"bytes_in"`
	BytesOut   int64     `json:"bytes_out"`
	TraceID    string    `json:"trace_id"`
	Prev       string    `json:"prev"`
}

type Identity struct {
	Issuer     string         `json:"issuer"`
	Subject    string         `json:"subject"`
	Session    string         `json:"session"`
	Method     string         `json:"method"`
	Attributes any            `json:"attributes,omitempty"`
	Claims     map[string]any `json:"claims"` // only those that Config.Claims names are written
}

type Access struct {
	Action    string `json:"action"`
	Bucket    string `json:"bucket"`
	Key       string `json:"key,omitempty"`
	VersionID string `json:"version_id,omitempty"`
	Allow     bool   `json:"allow"`
}

type Decision struct {
	Allow          bool            `json:"allow"`
	Reasons        []string        `json:"reasons"`
	Role           string          `json:"role"`
	PolicyRevision string          `json:"policy_revision"`
	Shadow         json.RawMessage `json:"shadow"`
}

type Backend struct {
	Name      string `json:"name"`
	Status    int    `json:"status"`
	RequestID string `json:"request_id"`
}

// Outcome is how a request ended.
type Outcome string

const (
	Completed   Outcome = "completed"
	Refused     Outcome = "refused"     // credentials, policy, malformed
	Failed      Outcome = "failed"      // Sluice or the backend
	Aborted     Outcome = "aborted"     // a side went away mid-body
	Revoked     Outcome = "revoked"     // cut mid-body
	Interrupted Outcome = "interrupted" // the process died
)

// Log is the audit log of one process.
type Log struct{}

// Open opens the sinks, finds what a crash left behind and writes its events.
func Open(ctx context.Context, c Config) (*Log, error) { panic("not written") }

// Begin reserves room for one event, so that Commit can neither block nor fail. It does not wait: ErrFull means
// that the request must not be served.
func (l *Log) Begin(now time.Time) (*Record, error) { panic("not written") }

// Record is the event of one request in progress. It is used by one goroutine.
type Record struct {
	Event Event // filled in by the proxy as it learns; Schema, Seq, ID, Time and Prev are Begin's and Commit's
}

// Journal makes what Event holds so far survive the death of the process. It MUST return before the first byte
// goes to a backend.
func (r *Record) Journal() error { panic("not written") }

// Commit ends the record: the event is written, exactly once. Further calls do nothing.
func (r *Record) Commit() { panic("not written") }

// Health is nil while events can be recorded.
func (l *Log) Health() error { panic("not written") }

// Reopen closes and opens the file again (SIGHUP).
func (l *Log) Reopen() error { panic("not written") }

// Close writes what is committed, and ends.
func (l *Log) Close(ctx context.Context) error { panic("not written") }

type constError string

func (e constError) Error() string { return string(e) }

// ErrFull is Begin's when no event can be recorded now: refuse the request, the caller may try again soon.
const ErrFull = constError("audit: no room for another event")
