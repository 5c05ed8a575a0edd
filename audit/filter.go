package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Filter chooses events. The zero value chooses all.
type Filter struct {
	// Who is a subject, session, user or workspace; * stands for any run of characters.
	Who string
	// Bucket and KeyPrefix match what the request named and every access it needed. A key that was recorded as
	// a hash is found by the whole key.
	Bucket    string
	KeyPrefix string
	Operation string
	Outcomes  []Outcome // any of them; none = all
	// Refused chooses requests of which anything was refused.
	Refused bool
	// ShadowDiffers chooses requests that the candidate policy would have decided otherwise.
	ShadowDiffers bool
	Since, Until  time.Time // of Event.Time: not before, and before
	ID            string
}

// match reports whether the filter chooses ev.
func (f *Filter) match(ev *Event) bool {
	switch {
	case f.ID != "" && ev.ID != f.ID,
		f.Operation != "" && ev.Operation != f.Operation,
		!f.Since.IsZero() && ev.Time.Before(f.Since),
		!f.Until.IsZero() && !ev.Time.Before(f.Until),
		f.Who != "" && !f.matchWho(&ev.Identity),
		len(f.Outcomes) > 0 && !contains(f.Outcomes, ev.Outcome),
		f.Refused && !ev.refused(),
		f.ShadowDiffers && !shadowOf(ev).Differs:
		return false
	}
	if f.Bucket == "" && f.KeyPrefix == "" {
		return true
	}
	if f.matchPlace(ev.Bucket, ev.Key) {
		return true
	}
	for _, a := range ev.Accesses {
		if f.matchPlace(a.Bucket, a.Key) {
			return true
		}
	}
	return false
}

func contains[T comparable](list []T, v T) bool {
	for _, item := range list {
		if item == v {
			return true
		}
	}
	return false
}

func (f *Filter) matchWho(id *Identity) bool {
	p := pattern(f.Who)
	return p.match(id.Subject) || p.match(id.Session) || p.match(id.Attributes.User) || p.match(id.Attributes.Workspace)
}

func (f *Filter) matchPlace(bucket, key string) bool {
	if f.Bucket != "" && !pattern(f.Bucket).match(bucket) {
		return false
	}
	return f.KeyPrefix == "" || strings.HasPrefix(key, f.KeyPrefix) || strings.HasPrefix(key, hashPrefix) && key == HashKey(f.KeyPrefix)
}

// refused reports whether anything of the request was refused.
func (ev *Event) refused() bool {
	if ev.Outcome == Refused {
		return true
	}
	for _, a := range ev.Accesses {
		if !a.Allow {
			return true
		}
	}
	return false
}

// shadow is what people want to know of Decision.Shadow.
type shadow struct {
	Allow   bool     `json:"allow"`
	Differs bool     `json:"differs"`
	Reasons []string `json:"reasons"`
	Role    string   `json:"role"`
	Error   string   `json:"error"`
}

func shadowOf(ev *Event) (s shadow) {
	if len(ev.Decision.Shadow) > 0 {
		json.Unmarshal(ev.Decision.Shadow, &s)
	}
	return s
}

// prefilter throws away lines that cannot match before they are decoded, which is what takes the time.
type prefilter struct {
	all          [][]byte   // each is in the line
	any          [][][]byte // of each, one is
	since, until []byte
}

func (f *Filter) prefilter() *prefilter {
	p := &prefilter{}
	quoted := func(s string) []byte { return appendString(nil, s) }
	if f.Who != "" && !strings.ContainsAny(f.Who, "*?") {
		p.all = append(p.all, quoted(f.Who))
	}
	if f.Bucket != "" && !strings.ContainsAny(f.Bucket, "*?") {
		p.all = append(p.all, append([]byte(`"bucket":`), quoted(f.Bucket)...))
	}
	if f.KeyPrefix != "" && len(f.KeyPrefix) <= maxField {
		open := append([]byte(`"key":`), quoted(f.KeyPrefix)...)
		p.any = append(p.any, [][]byte{open[:len(open)-1], []byte(HashKey(f.KeyPrefix))})
	}
	if f.Operation != "" {
		p.all = append(p.all, append([]byte(`"operation":`), quoted(f.Operation)...))
	}
	if f.ID != "" {
		p.all = append(p.all, append([]byte(`"id":`), quoted(f.ID)...))
	}
	if len(f.Outcomes) > 0 {
		var any [][]byte
		for _, o := range f.Outcomes {
			any = append(any, append([]byte(`"outcome":`), quoted(string(o))...))
		}
		p.any = append(p.any, any)
	}
	if f.Refused {
		p.any = append(p.any, [][]byte{[]byte(`"outcome":"refused"`), []byte(`"allow":false`)})
	}
	if f.ShadowDiffers {
		p.all = append(p.all, []byte(`"differs":true`))
	}
	if !f.Since.IsZero() {
		p.since = appendTime(nil, f.Since)
	}
	if !f.Until.IsZero() {
		p.until = appendTime(nil, f.Until)
	}
	return p
}

func (p *prefilter) match(line []byte) bool {
	if p.since != nil || p.until != nil {
		// Times are of one width, so their order is that of their bytes.
		const mark = `","time":"`
		if i := bytes.Index(line[:min(len(line), 128)], []byte(mark)); i >= 0 && len(line) > i+len(mark)+27 {
			at := line[i+len(mark):][:27]
			if p.since != nil && bytes.Compare(at, p.since) < 0 || p.until != nil && bytes.Compare(at, p.until) > 0 {
				return false
			}
		}
	}
	for _, s := range p.all {
		if !bytes.Contains(line, s) {
			return false
		}
	}
	for _, any := range p.any {
		found := false
		for _, s := range any {
			found = found || bytes.Contains(line, s)
		}
		if !found {
			return false
		}
	}
	return true
}

// ParseTime reads what people write for a time: RFC 3339, a date (in UTC), or how long ago (90m, 24h, 7d).
func ParseTime(s string, now time.Time) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 && n < 36500 {
			return now.Add(-time.Duration(n * 24 * float64(time.Hour))), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	return time.Time{}, fmt.Errorf("%q is no time: write 2026-11-23T08:00:00Z, 2026-11-23, or how long ago, such as 24h or 7d", s)
}
