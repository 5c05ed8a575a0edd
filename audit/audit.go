// Package audit writes exactly one event for each request. It owns the log line: a contract with those who read it.
//
// A request's event begins with [Log.Begin], which reserves room for it and fails where there is none. Before
// anything leaves the process on the request's behalf, [Record.Journal] makes what is known so far survive the
// death of the process. [Record.Commit] ends the event and cannot fail. What a dead process left in its journal
// is written by the next [Open], with outcome interrupted.
package audit

import (
	"encoding/json"
	"time"
)

// Schema is Event.Schema of the events that this package writes.
const Schema = "sluice.audit/1"

// Event is one request, as the log tells it. See the contract, section 6, and docs/audit.md.
type Event struct {
	Schema     string    `json:"schema"`
	Seq        uint64    `json:"seq"` // of the line, from 1, without gaps
	ID         string    `json:"id"`
	Time       time.Time `json:"time"` // when the request came
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
	Prev       string    `json:"prev"` // sha256 of the line before, in hex
}

// Identity is who asked.
type Identity struct {
	Issuer     string         `json:"issuer"`
	Subject    string         `json:"subject"`
	Session    string         `json:"session"`
	Method     string         `json:"method"`
	Attributes Attributes     `json:"attributes,omitzero"`
	Claims     map[string]any `json:"claims"` // only those that Config.Claims names are written

	kept *keptIdentity // by Log.Keep; nil where it is to be encoded
}

// Attributes are the same facts whatever the issuer calls them.
type Attributes struct {
	Workspace  string   `json:"workspace,omitempty"`
	Project    string   `json:"project,omitempty"`
	Repository string   `json:"repository,omitempty"`
	User       string   `json:"user,omitempty"`
	Groups     []string `json:"groups,omitempty"`
}

// Access is one thing that the request needed, and whether policy allowed it.
type Access struct {
	Action    string `json:"action"`
	Bucket    string `json:"bucket"`
	Key       string `json:"key,omitempty"`
	VersionID string `json:"version_id,omitempty"`
	Prefix    string `json:"prefix,omitempty"` // of a listing
	Delimiter string `json:"delimiter,omitempty"`
	Allow     bool   `json:"allow"`
}

// Decision is what policy said.
type Decision struct {
	Allow          bool            `json:"allow"`
	Reasons        []string        `json:"reasons"`
	Role           string          `json:"role"`
	PolicyRevision string          `json:"policy_revision"`
	Shadow         json.RawMessage `json:"shadow"` // what the candidate policy would have said
}

// Backend is what the S3 service behind answered.
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

type constError string

func (e constError) Error() string { return string(e) }

// ErrFull is Begin's when no event can be recorded now: refuse the request, the caller may try again soon.
const ErrFull = constError("audit: no room for another event")
