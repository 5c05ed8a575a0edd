package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// pattern is a glob in which * crosses slashes: where privacy is asked for, a pattern that matches too much is
// the safe mistake.
type pattern string

func (p pattern) match(s string) bool {
	i, j := 0, 0
	star, mark := -1, 0
	for j < len(s) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == s[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// redaction replaces the private keys of one event. The zero value replaces nothing.
type redaction struct {
	encoder *encoder
	private map[string]string // the event's private keys, and what is written in their place
}

// redact finds the private keys of ev: they may also be quoted in its texts.
func (e *encoder) redact(ev *Event) redaction {
	r := redaction{encoder: e}
	r.key(ev.Bucket, ev.Key)
	for i := range ev.Accesses {
		a := &ev.Accesses[i]
		r.key(a.Bucket, a.Key)
		r.key(a.Bucket, a.Prefix)
	}
	return r
}

// key is what is recorded in key's place.
func (r *redaction) key(bucket, key string) string {
	if r.encoder == nil || key == "" {
		return key
	}
	if hidden, ok := r.private[key]; ok {
		return hidden
	}
	place := bucket + "/" + key
	for _, p := range r.encoder.drop {
		if p.match(key) || p.match(place) {
			return r.hide(key, droppedKey)
		}
	}
	for _, p := range r.encoder.hash {
		if p.match(key) || p.match(place) {
			return r.hide(key, HashKey(key))
		}
	}
	return key
}

func (r *redaction) hide(key, as string) string {
	if r.private == nil {
		r.private = map[string]string{}
	}
	r.private[key] = as
	return as
}

// text is s with the private keys in it replaced.
func (r *redaction) text(s string) string {
	for _, key := range r.longestFirst() {
		s = replaceKey(s, key, r.private[key])
	}
	return s
}

func (r *redaction) raw(b json.RawMessage) json.RawMessage {
	if len(r.private) == 0 || len(b) == 0 {
		return b
	}
	s := string(b)
	for _, key := range r.longestFirst() {
		quoted, _ := json.Marshal(key)
		s = replaceKey(s, string(quoted[1:len(quoted)-1]), r.private[key])
	}
	return json.RawMessage(s)
}

// longestFirst is the order in which a key that is part of another leaves nothing of it.
func (r *redaction) longestFirst() []string {
	if len(r.private) == 0 {
		return nil
	}
	return slices.SortedFunc(maps.Keys(r.private), func(a, b string) int { return len(b) - len(a) })
}

// replaceKey replaces key in s; a very short one only where it stands by itself, or no text would stay readable.
func replaceKey(s, key, with string) string {
	if len(key) > 3 || !strings.Contains(s, key) {
		return strings.ReplaceAll(s, key, with)
	}
	alone := regexp.MustCompile(`(^|[^\w])` + regexp.QuoteMeta(key) + `($|[^\w])`)
	return alone.ReplaceAllString(s, "${1}"+with+"${2}")
}

// HashKey is how a private object key is recorded. It is no secret to who knows the key already: an auditor finds
// the events of a known key by it.
func HashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hashPrefix + hex.EncodeToString(sum[:])
}

const (
	hashPrefix = "sha256:"
	droppedKey = "[dropped]"
)

// Free texts are the one place where a credential could come in by accident: a client that puts its token in
// its user agent, a library's error that quotes a URL.
var (
	credential = regexp.MustCompile(`eyJ[\w-]{6,}\.[\w-]+(?:\.[\w-]*)*|((?i:x-amz-(?:signature|credential|security-token)=))[^&\s"']+|((?i:bearer|AWS4-HMAC-SHA256)\s+)(?:[\w.+/=~-]{20,}|Credential=\S+)`)
)

// withoutCredentials removes what looks like a credential. Most texts cannot hold one, which is told cheaply.
func withoutCredentials(s string) string {
	if !mayHoldCredential(s) {
		return s
	}
	return credential.ReplaceAllString(s, "$1$2[removed]")
}

// mayHoldCredential is true of everything that the expression matches: a JWT, a parameter's value, or the space
// after Bearer or AWS4-HMAC-SHA256, however they are written.
func mayHoldCredential(s string) bool {
	if strings.Contains(s, "eyJ") || strings.IndexByte(s, '=') >= 0 {
		return true
	}
	for i := 1; i < len(s); i++ {
		if s[i] <= ' ' && (s[i-1] == 'r' || s[i-1] == 'R' || s[i-1] == '6') {
			return true
		}
	}
	return false
}
