package signer

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"text/template"
	"time"
	"unicode"
	"unicode/utf8"
)

// Principal is for whom a request is signed. Make one for an identity and keep it: what a Signer derives from it is
// kept inside. It MUST NOT be changed or copied once it has been used.
type Principal struct {
	Issuer, Subject, Session string
	Claims                   map[string]any
	Attributes               map[string]any // workspace, project, repository, user, groups
	Token                    string         `json:"-"` // the workspace's OIDC token, for web_identity only
	Expires                  time.Time      // credentials are never used past it; zero is past

	derived atomic.Pointer[[]derivation]
}

// String keeps the token and the claims out of logs.
func (p *Principal) String() string { return fmt.Sprintf("%s of %s", p.Subject, p.Issuer) }

// GoString is String, for %#v.
func (p *Principal) GoString() string { return p.String() }

// persona is how STS is told of a principal.
type persona struct {
	key    string // all that makes its sessions its own, hashed
	name   string // RoleSessionName
	tags   []tag
	source string // SourceIdentity
	err    *Error // why there is none
}

type tag struct{ key, value string }

type derivation struct {
	signer  uint64
	persona *persona
}

// A principal outlives Signers where configuration is reloaded: what the oldest derived is forgotten.
const maxDerivations = 16

// persona is made once for each Signer that the principal meets.
func (p *Principal) persona(signer uint64, derive func(*Principal) *persona) *persona {
	for {
		was := p.derived.Load()
		var kept []derivation
		if was != nil {
			kept = *was
		}
		for i := range kept {
			if kept[i].signer == signer {
				return kept[i].persona
			}
		}
		if len(kept) >= maxDerivations {
			kept = kept[1:]
		}
		d := derivation{signer, derive(p)}
		now := append(kept[:len(kept):len(kept)], d)
		if p.derived.CompareAndSwap(was, &now) {
			return d.persona
		}
	}
}

// facts is what templates see of a principal: all but the token.
type facts struct {
	Issuer, Subject, Session string
	Claims, Attributes       map[string]any
}

const factsType = "signer.facts" // as text/template's errors name it

// who renders what STS is told from what configuration asks for.
type who struct {
	tags       []tagTemplate // by key
	source     *template.Template
	externalID string
	token      bool // AWS verifies the principal's own token
}

type tagTemplate struct {
	key   string
	value *template.Template
}

func newWho(c *AssumeRole) (*who, error) {
	w := &who{externalID: c.ExternalID}
	for _, key := range sortedKeys(c.SessionTags) {
		t, err := parseTemplate(c.SessionTags[key])
		if err != nil {
			return nil, fmt.Errorf("session_tags.%s: %w", key, err)
		}
		w.tags = append(w.tags, tagTemplate{key, t})
	}
	if c.SourceIdentity != "" {
		t, err := parseTemplate(c.SourceIdentity)
		if err != nil {
			return nil, fmt.Errorf("source_identity: %w", err)
		}
		w.source = t
	}
	return w, nil
}

// A claim that is missing must not become "<no value>" or nothing at all: aws:PrincipalTag/project = "" opens
// "${aws:PrincipalTag/project}/*" to everything below "/".
func parseTemplate(text string) (*template.Template, error) {
	return template.New("").Option("missingkey=error").Parse(text)
}

func (w *who) persona(p *Principal) *persona {
	out := &persona{name: sessionName(p)}
	in := facts{p.Issuer, p.Subject, p.Session, p.Claims, p.Attributes}
	for _, t := range w.tags {
		value, err := render(t.value, in, checkTagValue)
		if err != nil {
			out.err = cannotName("session tag "+t.key, "session_tags."+t.key, err)
			return out
		}
		out.tags = append(out.tags, tag{t.key, value})
	}
	if w.source != nil {
		value, err := render(w.source, in, checkSourceIdentity)
		if err != nil {
			out.err = cannotName("source identity", "source_identity", err)
			return out
		}
		out.source = awsName(p.Issuer, value)
	}
	if w.token && p.Token == "" {
		out.err = &Error{Kind: NoToken,
			Message: "this backend is reached with the workspace's own token, which this session does not carry: send it as \"Authorization: Bearer <token>\", or exchange it again",
			Hint:    "web_identity passes the workspace's OIDC token on to AWS: sessions must carry it"}
		return out
	}

	// Everything by which two sessions could differ, each with its length so that nothing runs into its neighbour.
	h := sha256.New()
	field := func(s string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	for _, s := range []string{p.Issuer, p.Subject, p.Session, out.name, out.source, w.externalID} {
		field(s)
	}
	for _, t := range out.tags {
		field(t.key)
		field(t.value)
	}
	if w.token {
		field(p.Token) // AWS reads tags and source identity from it, so a new token is a new session
	}
	out.key = string(h.Sum(nil))
	return out
}

func cannotName(what, path string, err error) *Error {
	return &Error{Kind: Denied, Err: err,
		Message: "this identity cannot act here: its " + what + " " + err.Error(),
		Hint:    path + ": use a claim that every identity of this backend has, or choose another backend for those without it"}
}

// render gives a template's value for a principal. Its errors name no claim's value.
func render(t *template.Template, in facts, check func(string) error) (string, error) {
	var out limited
	if err := t.Execute(&out, in); err != nil {
		if errors.Is(err, errTooLong) {
			return "", errTooLong
		}
		return "", errors.New("needs a claim that the token lacks: " + templateProblem(err))
	}
	if err := check(out.String()); err != nil {
		return "", err
	}
	return out.String(), nil
}

var inTemplate = regexp.MustCompile(`<(\.[A-Za-z0-9_.]*)>`)

// templateProblem is the expression that failed. The error's own text may quote what a claim holds.
func templateProblem(err error) string {
	if m := inTemplate.FindStringSubmatch(err.Error()); m != nil {
		return m[1]
	}
	return "(see the configured template)"
}

var errTooLong = errors.New("is too long for AWS")

// limited stops a template over claims of many KiB early.
type limited struct{ strings.Builder }

func (l *limited) Write(b []byte) (int, error) {
	if l.Len()+len(b) > 4*maxTagValue {
		return 0, errTooLong
	}
	return l.Builder.Write(b)
}

// What AWS takes in session tags. Nothing is mended here: two claims must not become one tag, and policies in AWS
// compare tags with the claims as they are.
const (
	maxTags     = 50
	maxTagKey   = 128
	maxTagValue = 256
)

func checkTagKey(key string) error {
	switch {
	case key == "" || utf8.RuneCountInString(key) > maxTagKey:
		return fmt.Errorf("a tag's key has 1 to %d characters", maxTagKey)
	case !tagChars(key):
		return errors.New("a tag's key has letters, digits, spaces and _.:/=+-@ only")
	case strings.HasPrefix(strings.ToLower(key), "aws:"):
		return errors.New(`AWS keeps keys that begin with "aws:" to itself`)
	}
	return nil
}

func checkTagValue(value string) error {
	switch {
	case value == "":
		return errors.New("is empty")
	case utf8.RuneCountInString(value) > maxTagValue:
		return errTooLong
	case !tagChars(value):
		return errors.New("has characters that AWS does not take in a tag (letters, digits, spaces and _.:/=+-@)")
	}
	return nil
}

func tagChars(s string) bool {
	for _, r := range s {
		if !unicode.In(r, unicode.L, unicode.N, unicode.Z) && !strings.ContainsRune("_.:/=+-@", r) || r == utf8.RuneError {
			return false
		}
	}
	return true
}

// checkSourceIdentity is for what awsName cannot know: that there is nothing to be named.
func checkSourceIdentity(value string) error {
	switch {
	case value == "":
		return errors.New("is empty")
	case strings.Contains(value, "<no value>"): // how a template writes a null
		return errors.New("needs a claim that the token lacks")
	}
	return nil
}

const maxName = 64

// sessionName is the RoleSessionName: what the identity calls its session, which is then in CloudTrail and in
// aws:userid.
func sessionName(p *Principal) string {
	if p.Session == "" {
		return awsName(p.Issuer, p.Subject)
	}
	return awsName(p.Issuer, p.Session)
}

// awsName is name as STS takes it for a session or a source identity. One that it does not take (subjects have colons and
// slashes more often than not), or that could be mistaken for a mended one, gets its odd characters replaced and a
// hash of whose it is, so that no two names fall together.
func awsName(issuer, name string) string {
	if checkName(name) == nil && !mended.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(issuer + "\x00" + name))
	suffix := "=" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:hashChars]
	clean := strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf && nameChar(byte(r)) {
			return r
		}
		return '_'
	}, name)
	return clean[:min(len(clean), maxName-len(suffix))] + suffix
}

const hashChars = 13 // 65 bits

var mended = regexp.MustCompile(fmt.Sprintf(`=[a-z2-7]{%d}$`, hashChars))

func checkName(name string) error {
	if len(name) < 2 || len(name) > maxName || !cleanName(name) {
		return errors.New("is not what AWS takes as a source identity (2 to 64 letters, digits and _+=,.@-)")
	}
	return nil
}

func cleanName(s string) bool {
	for i := range len(s) {
		if !nameChar(s[i]) {
			return false
		}
	}
	return true
}

func nameChar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_+=,.@-", c) >= 0
}
