package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A line is made of three pieces: Begin's caller knows the middle, which is all that is journalled; only the one
// goroutine that writes knows what goes around it.
//
//	{"schema":"sluice.audit/1","seq":812, <body> ,"prev":"…"}
const (
	lineStart = `{"schema":"` + Schema + `","seq":`
	linePrev  = `,"prev":"`
	lineEnd   = "\"}\n"
)

// noPrev stands for the line before the first.
const noPrev = "0000000000000000000000000000000000000000000000000000000000000000"

// How much of a field is recorded. What is longer ends in "…", so that one request cannot fill the disk. S3 keys
// and version ids end at 1,024 bytes by themselves.
const (
	maxField = 1024
	maxError = 2048
	maxClaim = 4096 // of the encoded value
)

// encoder turns events into the bodies of lines. It is immutable.
type encoder struct {
	claims [][]string // paths
	hash   []pattern  // keys to record as a hash
	drop   []pattern  // keys not to record
}

func newEncoder(c Config) *encoder {
	e := &encoder{}
	for _, claim := range c.Claims {
		e.claims = append(e.claims, claimPath(claim))
	}
	// Sorted, so that claims that share a parent are neighbours.
	slices.SortFunc(e.claims, slices.Compare)
	e.claims = slices.CompactFunc(e.claims, slices.Equal)
	for _, p := range c.Redact.Keys {
		e.hash = append(e.hash, pattern(p))
	}
	for _, p := range c.Redact.Drop {
		e.drop = append(e.drop, pattern(p))
	}
	return e
}

// append encodes all of ev but Schema, Seq and Prev: the same JSON that encoding/json would give, without
// escaping for HTML, with empty lists rather than null, and with microseconds.
func (e *encoder) append(b []byte, ev *Event) []byte {
	b, _ = e.appendParts(b, ev)
	return b
}

// parts are where in a body there begin how long it took, what was asked and decided, and how it ended.
type parts struct{ took, asked, ended int }

// appendParts is append, and tells where the parts are.
func (e *encoder) appendParts(b []byte, ev *Event) (body []byte, at parts) {
	var scrub redaction
	if len(e.hash)+len(e.drop) > 0 {
		scrub = e.redact(ev)
	}
	b = appendText(append(b, `"id":"`...), ev.ID)
	b = appendTime(append(b, `,"time":"`...), ev.Time)
	b = append(b, `","duration_ms":`...)
	at.took = len(b)
	b = appendFloat(b, ev.DurationMS)
	at.asked = len(b)
	b = e.appendAsked(b, ev, &scrub)
	at.ended = len(b)
	return appendEnded(b, ev, &scrub), at
}

// appendAsked encodes who asked for what, and what was decided.
func (e *encoder) appendAsked(b []byte, ev *Event, scrub *redaction) []byte {
	b = append(b, `,"identity":`...)
	if kept := ev.Identity.kept; kept != nil && kept.by == e {
		b = append(b, kept.encoded...)
	} else {
		b = e.appendIdentity(b, &ev.Identity)
	}

	b = appendText(append(b, `,"source_ip":"`...), ev.SourceIP)
	b = appendText(append(b, `,"user_agent":"`...), withoutCredentials(ev.UserAgent))
	b = appendText(append(b, `,"host":"`...), ev.Host)
	b = appendText(append(b, `,"operation":"`...), ev.Operation)
	b = appendText(append(b, `,"bucket":"`...), ev.Bucket)
	b = appendText(append(b, `,"key":"`...), scrub.key(ev.Bucket, ev.Key))
	b = appendText(append(b, `,"version_id":"`...), ev.VersionID)

	b = append(b, `,"accesses":[`...)
	for i := range ev.Accesses {
		a := &ev.Accesses[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(append(b, `{"action":"`...), a.Action)
		b = appendText(append(b, `,"bucket":"`...), a.Bucket)
		b = appendOptional(b, `,"key":`, scrub.key(a.Bucket, a.Key))
		b = appendOptional(b, `,"version_id":`, a.VersionID)
		b = appendOptional(b, `,"prefix":`, scrub.key(a.Bucket, a.Prefix))
		b = appendOptional(b, `,"delimiter":`, a.Delimiter)
		b = strconv.AppendBool(append(b, `,"allow":`...), a.Allow)
		b = append(b, '}')
	}

	b = strconv.AppendBool(append(b, `],"decision":{"allow":`...), ev.Decision.Allow)
	b = append(b, `,"reasons":[`...)
	for i, reason := range ev.Decision.Reasons {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, scrub.text(withoutCredentials(reason)))
	}
	b = appendText(append(b, `],"role":"`...), ev.Decision.Role)
	b = appendText(append(b, `,"policy_revision":"`...), ev.Decision.PolicyRevision)
	b = appendRaw(append(b, `,"shadow":`...), scrub.raw(ev.Decision.Shadow))

	return appendText(append(b, `},"backend":{"name":"`...), ev.Backend.Name)
}

func appendEnded(b []byte, ev *Event, scrub *redaction) []byte {
	b = strconv.AppendInt(append(b, `,"status":`...), int64(ev.Backend.Status), 10)
	b = appendText(append(b, `,"request_id":"`...), ev.Backend.RequestID)

	b = strconv.AppendInt(append(b, `},"status":`...), int64(ev.Status), 10)
	b = appendLimited(append(b, `,"error":`...), scrub.text(withoutCredentials(ev.Error)), maxError)
	b = appendText(append(b, `,"outcome":"`...), string(ev.Outcome))
	b = strconv.AppendInt(append(b, `,"bytes_in":`...), ev.BytesIn, 10)
	b = strconv.AppendInt(append(b, `,"bytes_out":`...), ev.BytesOut, 10)
	return appendText(append(b, `,"trace_id":"`...), ev.TraceID)
}

// settled is what comes before the last part, but for the duration, of an event without reasons, a shadow decision, or more
// than one access.
type settled struct {
	id       string
	time     time.Time
	identity *keptIdentity

	sourceIP, userAgent, host, operation, bucket, key, versionID, backend string

	access Access
	allow  bool

	role, policyRevision string
}

// settle takes down what ev holds; false = there is more to it than settled has.
func (e *encoder) settle(s *settled, ev *Event) bool {
	d := &ev.Decision
	if ev.Identity.kept == nil || len(ev.Accesses) != 1 || len(d.Reasons)+len(d.Shadow)+len(e.hash)+len(e.drop) != 0 {
		*s = settled{}
		return false
	}
	s.id, s.time, s.identity = ev.ID, ev.Time, ev.Identity.kept
	s.sourceIP, s.userAgent, s.host, s.operation = ev.SourceIP, ev.UserAgent, ev.Host, ev.Operation
	s.bucket, s.key, s.versionID, s.backend = ev.Bucket, ev.Key, ev.VersionID, ev.Backend.Name
	s.access, s.role, s.policyRevision, s.allow = ev.Accesses[0], d.Role, d.PolicyRevision, d.Allow
	return true
}

// putEnd makes an earlier body of ev, from b[start] on, tell how long it took and how it ended. The rest MUST be as it was, and
// settled. What is before a longer duration moves into the slack that MUST be before the body: all after it would be more.
func putEnd(b []byte, start int, at parts, ev *Event) (body []byte, newStart int) {
	var room [slack]byte
	took := appendFloat(room[:0], ev.DurationMS)
	newStart = start - (len(took) - (at.asked - at.took))
	copy(b[newStart:], b[start:at.took])
	copy(b[at.asked-len(took):], took)
	return appendEnded(b[:at.ended], ev, &redaction{}), newStart
}

// slack is more than a duration takes.
const slack = 32

func (e *encoder) appendIdentity(b []byte, id *Identity) []byte {
	b = appendText(append(b, `{"issuer":"`...), id.Issuer)
	b = appendText(append(b, `,"subject":"`...), id.Subject)
	b = appendText(append(b, `,"session":"`...), id.Session)
	b = appendText(append(b, `,"method":"`...), id.Method)
	b = appendAttributes(b, &id.Attributes)
	b = e.appendClaims(append(b, `,"claims":`...), id.Claims)
	return append(b, '}')
}

// keptIdentity is an identity's part of a line.
type keptIdentity struct {
	by      *encoder // another names other claims
	encoded []byte
}

func appendAttributes(b []byte, a *Attributes) []byte {
	if a.Workspace == "" && a.Project == "" && a.Repository == "" && a.User == "" && len(a.Groups) == 0 {
		return b
	}
	// Each member is written with a comma before it; the first one's becomes the brace.
	b = append(b, `,"attributes":`...)
	brace := len(b)
	b = appendOptional(b, `,"workspace":`, a.Workspace)
	b = appendOptional(b, `,"project":`, a.Project)
	b = appendOptional(b, `,"repository":`, a.Repository)
	b = appendOptional(b, `,"user":`, a.User)
	if len(a.Groups) > 0 {
		b = append(b, `,"groups":[`...)
		for i, g := range a.Groups {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, g)
		}
		b = append(b, ']')
	}
	b[brace] = '{'
	return append(b, '}')
}

func appendOptional(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendString(append(b, name...), value)
}

func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	µs := t.Nanosecond() / 1000
	var d = [...]byte{4: '-', 7: '-', 10: 'T', 13: ':', 16: ':', 19: '.', 26: 'Z'}
	put2(d[0:], year/100%100)
	put2(d[2:], year%100)
	put2(d[5:], int(month))
	put2(d[8:], day)
	put2(d[11:], hour)
	put2(d[14:], minute)
	put2(d[17:], second)
	put2(d[20:], µs/10000)
	put2(d[22:], µs/100%100)
	put2(d[24:], µs%100)
	return append(b, d[:]...)
}

// put2 writes a number of two digits.
func put2(b []byte, n int) { b[0], b[1] = byte('0'+n/10), byte('0'+n%10) }

// appendFloat keeps microseconds.
func appendFloat(b []byte, f float64) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) || math.Abs(f) > 1e15 {
		return append(b, '0')
	}
	return strconv.AppendFloat(b, math.Round(f*1000)/1000, 'f', -1, 64)
}

// appendRaw appends JSON on one line; what is not JSON becomes null, for it must not break the line.
func appendRaw(b []byte, raw json.RawMessage) []byte {
	if len(raw) == 0 {
		return append(b, "null"...)
	}
	buf := bytes.NewBuffer(b)
	if err := json.Compact(buf, raw); err != nil {
		return append(b, "null"...)
	}
	return buf.Bytes()
}

func appendString(b []byte, s string) []byte { return appendText(append(b, '"'), s) }

func appendLimited(b []byte, s string, limit int) []byte {
	return appendTextLimited(append(b, '"'), s, limit)
}

// appendText ends a string whose opening quote is there, with what came before it.
func appendText(b []byte, s string) []byte {
	if n := len(b); len(s) <= maxField && cap(b)-n > len(s) && plainBytes(s) == len(s) {
		b = b[:n+len(s)+1]
		copy(b[n:], s)
		b[n+len(s)] = '"'
		return b
	}
	return appendTextLimited(b, s, maxField)
}

const hexDigits = "0123456789abcdef"

// plain are the bytes that stand for themselves in a JSON string.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// plainBytes is how many of the first bytes of s stand for themselves: they are looked at by eight, as far as that goes.
func plainBytes(s string) int {
	rest := s
	for len(rest) >= 8 && plainWord(word(rest)) {
		rest = rest[8:]
	}
	if len(s) >= 8 && len(rest) < 8 && plainWord(word(s[len(s)-8:])) {
		return len(s)
	}
	i := len(s) - len(rest)
	for i < len(s) && plain[s[i]] {
		i++
	}
	return i
}

// word is the first eight bytes of s, which has as many.
func word(s string) uint64 {
	s = s[:8]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// plainWord reports whether eight bytes stand for themselves. The top bit of one is set if it is not ASCII; and of the
// others, as long as none before it is set, exactly where subtracting borrows: below the space, at a quote, at a backslash.
func plainWord(w uint64) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	return (w|(w-' '*ones)|(w^'"'*ones-ones)|(w^'\\'*ones-ones))&tops == 0
}

func appendTextLimited(b []byte, s string, limit int) []byte {
	cut := len(s) > limit
	if cut {
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		s = s[:limit]
	}
	start := 0
	for i := 0; ; {
		if i += plainBytes(s[i:]); i == len(s) {
			break
		}
		c := s[i]
		if c < utf8.RuneSelf {
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\b':
				b = append(b, `\b`...)
			case '\f':
				b = append(b, `\f`...)
			case '\n':
				b = append(b, `\n`...)
			case '\r':
				b = append(b, `\r`...)
			case '\t':
				b = append(b, `\t`...)
			default:
				b = append(b, `\u00`...)
				b = append(b, hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, s[start:i]...)
			b = append(b, `\ufffd`...)
		case r == '\u2028' || r == '\u2029': // would end the line in JavaScript
			b = append(b, s[start:i]...)
			b = append(b, `\u202`...)
			b = append(b, hexDigits[r&15])
		default:
			i += n
			continue
		}
		i += n
		start = i
	}
	b = append(b, s[start:]...)
	if cut {
		b = append(b, "…"...)
	}
	return append(b, '"')
}

// claimPath reads an entry of Config.Claims.
func claimPath(entry string) []string {
	if !strings.HasPrefix(entry, "/") {
		return []string{entry}
	}
	path := strings.Split(entry[1:], "/")
	for i, p := range path { // RFC 6901, section 4
		path[i] = strings.ReplaceAll(strings.ReplaceAll(p, "~1", "/"), "~0", "~")
	}
	return path
}

// appendClaims writes the claims that the configuration names, each at its own place, so that a policy which
// reads the event finds them where the token had them.
func (e *encoder) appendClaims(b []byte, claims map[string]any) []byte {
	if len(e.claims) == 0 || len(claims) == 0 {
		return append(b, "{}"...)
	}
	return appendChosen(b, claims, e.claims, 0)
}

// appendChosen writes the members of value that paths choose, whose first depth elements led here. paths is sorted.
func appendChosen(b []byte, value map[string]any, paths [][]string, depth int) []byte {
	b = append(b, '{')
	first := true
	for len(paths) > 0 {
		name := paths[0][depth]
		same := 1
		for same < len(paths) && paths[same][depth] == name {
			same++
		}
		group := paths[:same]
		paths = paths[same:]
		member, ok := value[name]
		if !ok {
			continue
		}
		whole := len(group[0]) == depth+1 // the shortest path comes first, and holds the others
		object, isObject := member.(map[string]any)
		if !whole && !isObject {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = appendString(b, name)
		b = append(b, ':')
		if whole {
			b = appendClaim(b, member)
		} else {
			b = appendChosen(b, object, group, depth+1)
		}
	}
	return append(b, '}')
}

func appendClaim(b []byte, v any) []byte {
	start := len(b)
	b = appendValue(b, v, 0)
	if len(b)-start > maxClaim {
		b = appendString(b[:start], fmt.Sprintf("… (%d bytes)", len(b)-start))
	}
	return b
}

// appendValue writes a decoded JSON value.
func appendValue(b []byte, v any, depth int) []byte {
	if depth > 16 {
		return append(b, "null"...)
	}
	switch v := v.(type) {
	case nil:
		return append(b, "null"...)
	case string:
		return appendString(b, v)
	case bool:
		return strconv.AppendBool(b, v)
	case json.Number:
		if !json.Valid([]byte(v)) {
			return append(b, "null"...)
		}
		return append(b, v...)
	case []string:
		b = append(b, '[')
		for i, item := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, item)
		}
		return append(b, ']')
	case []any:
		b = append(b, '[')
		for i, item := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendValue(b, item, depth+1)
		}
		return append(b, ']')
	case map[string]any:
		b = append(b, '{')
		for i, name := range slices.Sorted(maps.Keys(v)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, name)
			b = append(b, ':')
			b = appendValue(b, v[name], depth+1)
		}
		return append(b, '}')
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return append(b, "null"...)
	}
	return append(b, raw...)
}

// appendLine makes a line of a body.
func appendLine[hash string | []byte](b []byte, seq uint64, body []byte, prev hash) []byte {
	b = append(b, lineStart...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, ',')
	b = append(b, body...)
	b = append(b, linePrev...)
	b = append(b, prev...)
	return append(b, lineEnd...)
}

// lineHash is what the line after it carries. line has no newline.
func lineHash(line []byte) string {
	var h [len(noPrev)]byte
	putLineHash(&h, line)
	return string(h[:])
}

func putLineHash(h *[len(noPrev)]byte, line []byte) {
	sum := sha256.Sum256(line)
	hex.Encode(h[:], sum[:])
}
