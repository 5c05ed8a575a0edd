package policy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"
)

// Event is what a replay needs of an audit event.
type Event struct {
	ID        string
	Time      time.Time
	Identity  json.RawMessage // as RecordedIdentity; kept as text, for it repeats
	SourceIP  string
	UserAgent string
	Host      string
	Operation string
	Accesses  []RecordedAccess
	Decision  RecordedDecision
	Backend   string
	BytesIn   int64
	Refused   bool // the caller got nothing of it, whoever refused it: limits do, too
}

// RecordedIdentity is Event.Identity, by the audit log's names. Of the claims it has those that audit.claims names.
type RecordedIdentity struct {
	Issuer     string         `json:"issuer"`
	Subject    string         `json:"subject"`
	Session    string         `json:"session"`
	Method     string         `json:"method"`
	Attributes Attributes     `json:"attributes"`
	Claims     map[string]any `json:"claims"`
}

// RecordedAccess is one access of an event and what became of it.
type RecordedAccess struct {
	Action, Bucket, Key, VersionID string
	Prefix, Delimiter              string
	Allow                          bool
}

// RecordedDecision is what policy said then.
type RecordedDecision struct {
	Allow    bool
	Role     string
	Revision string // "" = policy was not asked
}

// Question is what the event asked of policy, as far as it is recorded: of the request's headers, query and method
// the log has nothing, and a request is taken to have come over TLS.
func (e *Event) Question() (*Question, error) {
	subject, err := e.subject()
	if err != nil {
		return nil, err
	}
	return e.question(subject), nil
}

func (e *Event) subject() (*Subject, error) {
	var id RecordedIdentity
	d := json.NewDecoder(bytes.NewReader(e.Identity))
	d.UseNumber()
	if err := d.Decode(&id); err != nil {
		return nil, fmt.Errorf("audit event %s: identity: %w", e.ID, err)
	}
	return NewSubject(&Identity{
		Issuer: id.Issuer, Subject: id.Subject, Session: id.Session, Method: id.Method,
		Attributes: id.Attributes, Claims: id.Claims,
	}), nil
}

func (e *Event) question(subject *Subject) *Question {
	q := &Question{
		Subject: subject, Operation: e.Operation, Accesses: make([]Access, len(e.Accesses)),
		Request: &Request{
			ID: e.ID, Time: e.Time, Host: e.Host, SourceIP: e.SourceIP, UserAgent: e.UserAgent,
			ContentLength: e.BytesIn, Secure: true,
		},
	}
	for i, a := range e.Accesses {
		q.Accesses[i] = Access{
			Action: a.Action, Bucket: a.Bucket, Key: a.Key, VersionID: a.VersionID,
			Prefix: a.Prefix, Delimiter: a.Delimiter, Backend: e.Backend,
		}
	}
	return q
}

// Change is how an access is decided otherwise.
type Change string

const (
	NewlyRefused Change = "newly refused"
	NewlyAllowed Change = "newly allowed"
	RoleChanged  Change = "role changed"
	Failed       Change = "fails" // the candidate could not decide
	// Unsure: the policy in force does not decide as it is recorded either. It has changed since, or the event does
	// not hold all that policy looks at.
	Unsure Change = "unsure"
)

// Difference is a group of recorded accesses that the candidate decides otherwise, by identity and access. Where the
// request is refused either way there is none.
type Difference struct {
	Change  Change   `json:"change"`
	Issuer  string   `json:"issuer"`
	Subject string   `json:"subject"`
	Action  string   `json:"action"`
	Bucket  string   `json:"bucket"`
	Backend string   `json:"backend,omitempty"`
	From    string   `json:"from,omitempty"` // roles, where these changed
	To      string   `json:"to,omitempty"`
	Count   int      `json:"count"`
	Example string   `json:"example"`       // the first key or prefix
	EventID string   `json:"example_event"` // of it
	Reasons []string `json:"reasons,omitempty"`
}

// ReplayReport is what a candidate would change.
type ReplayReport struct {
	Revision    string       `json:"policy_revision"` // the candidate's
	Events      int          `json:"events"`
	Accesses    int          `json:"accesses"`
	Skipped     int          `json:"skipped"` // events without a decision: refused before policy was asked
	Differences []Difference `json:"differences"`
}

// Changes reports whether the candidate would decide anything otherwise.
func (r *ReplayReport) Changes() bool {
	return slices.ContainsFunc(r.Differences, func(d Difference) bool { return d.Change != Unsure })
}

// maxSubjects bounds the identities that a replay keeps ready.
const maxSubjects = 10_000

// Replay decides recorded events by the candidate and tells what it would change. inForce, which may be nil, is the
// policy that the candidate is to follow: with it, a difference that the log alone explains is told apart.
func Replay(ctx context.Context, candidate, inForce *Engine, events iter.Seq2[*Event, error]) (*ReplayReport, error) {
	report := &ReplayReport{Revision: candidate.Status().Revision, Differences: []Difference{}}
	subjects := map[string]*Subject{}
	groups := map[differenceKey]int{}
	for event, err := range events {
		if err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if event.Decision.Revision == "" || len(event.Accesses) == 0 {
			report.Skipped++
			continue
		}
		report.Events++
		report.Accesses += len(event.Accesses)
		subject, ok := subjects[string(event.Identity)]
		if !ok {
			if subject, err = event.subject(); err != nil {
				return nil, err
			}
			if len(subjects) >= maxSubjects {
				clear(subjects)
			}
			subjects[string(event.Identity)] = subject
		}
		q := event.question(subject)
		now, decideErr := candidate.Decide(ctx, q)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		got := q.granted(func(i int) bool { return event.Accesses[i].Allow }) // as far as it was policy's to grant
		gets := make([]bool, len(got))
		if decideErr == nil {
			gets = q.granted(func(i int) bool { return now.Verdicts[i].Allow })
		}
		var before *Decision // by the policy in force, asked only where there is something to compare
		for i, a := range event.Accesses {
			d := Difference{Action: a.Action, Bucket: a.Bucket, Backend: event.Backend}
			var reasons []string
			switch {
			case decideErr != nil:
				d.Change, reasons = Failed, []string{decideErr.Error()}
			case got[i] && !event.Refused && !now.Verdicts[i].Allow:
				d.Change, reasons = NewlyRefused, now.Verdicts[i].Reasons
			case gets[i] && !a.Allow:
				d.Change = NewlyAllowed
			}
			if before == nil && inForce != nil && (d.Change != "" || got[i] && gets[i]) {
				// Where it fails, nothing can be said about what it would have decided.
				if before, err = inForce.Decide(ctx, q); err != nil {
					before = &Decision{Verdicts: make([]Verdict, len(q.Accesses))}
				}
			}
			switch {
			case d.Change != "" && d.Change != Failed && before != nil && before.Verdicts[i].Allow != a.Allow:
				d.Change = Unsure
			case d.Change == "" && got[i] && gets[i] && i == 0:
				d.From, d.To = roles(event, now, before)
				if d.From != d.To {
					d.Change = RoleChanged
				}
			}
			if d.Change == "" {
				continue
			}
			d.Issuer, d.Subject = who(event.Identity)
			report.add(groups, d, cmp.Or(a.Key, a.Prefix), event.ID, reasons)
		}
	}
	slices.SortStableFunc(report.Differences, func(a, b Difference) int {
		return cmp.Or(
			slices.Index(changes, a.Change)-slices.Index(changes, b.Change), b.Count-a.Count,
			strings.Compare(a.Subject, b.Subject), strings.Compare(a.Action, b.Action), strings.Compare(a.Bucket, b.Bucket),
		)
	})
	return report, nil
}

var changes = []Change{Failed, NewlyRefused, NewlyAllowed, RoleChanged, Unsure}

// roles compares what both policies name. The log has the role that was taken, which is the backend's own where
// policy named none: then nothing can be told from it.
func roles(event *Event, now, before *Decision) (from, to string) {
	if before != nil {
		return before.Role, now.Role
	}
	if now.Role == "" {
		return "", ""
	}
	return event.Decision.Role, now.Role
}

// who reads just what a difference is told by.
func who(identity json.RawMessage) (issuer, subject string) {
	var id struct {
		Issuer  string `json:"issuer"`
		Subject string `json:"subject"`
	}
	if json.Unmarshal(identity, &id) != nil {
		return "", ""
	}
	return id.Issuer, id.Subject
}

// differenceKey is a Difference without what differs within a group.
type differenceKey struct{ change, issuer, subject, action, bucket, backend, from, to string }

func (r *ReplayReport) add(groups map[differenceKey]int, d Difference, example, event string, reasons []string) {
	key := differenceKey{string(d.Change), d.Issuer, d.Subject, d.Action, d.Bucket, d.Backend, d.From, d.To}
	i, ok := groups[key]
	if !ok {
		i = len(r.Differences)
		groups[key] = i
		d.Example, d.EventID, d.Reasons = example, event, reasons
		r.Differences = append(r.Differences, d)
	}
	r.Differences[i].Count++
}

// WriteText tells people what would change.
func (r *ReplayReport) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.printf("%d events with %d accesses replayed against policy %s", r.Events, r.Accesses, r.Revision)
	if r.Skipped > 0 {
		p.printf(" (%d refused before policy was asked)", r.Skipped)
	}
	p.printf("\n")
	if len(r.Differences) == 0 {
		p.printf("nothing would change\n")
	}
	var last Change
	for _, d := range r.Differences {
		if d.Change != last {
			total := 0
			for _, o := range r.Differences {
				if o.Change == d.Change {
					total += o.Count
				}
			}
			p.printf("\n%s: %d\n", d.Change, total)
			if d.Change == Unsure {
				p.printf("  (the policy in force does not decide these as they are recorded: it has changed since, or the log lacks claims that it reads)\n")
			}
			last = d.Change
		}
		p.printf("  %6d  %s  %s  %s", d.Count, d.Subject, d.Action, d.Bucket)
		if d.Example != "" {
			p.printf("/%s", d.Example)
		}
		if d.Count > 1 {
			p.printf(" …")
		}
		if d.From != d.To {
			p.printf("  %s → %s", cmp.Or(d.From, "the backend's own"), cmp.Or(d.To, "the backend's own"))
		}
		p.printf("\n")
		for _, reason := range d.Reasons {
			p.printf("          %s\n", reason)
		}
	}
	return p.err
}
