package identity

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// SessionsConfig is `sessions`.
type SessionsConfig struct {
	// KeyFile has one base64 key of 32 bytes a line: the first seals session tokens, all open them. It is read
	// again when it changes. To rotate, add the new key as the last line everywhere, then move it to the top
	// everywhere, and take the old one out when max_duration has passed.
	//
	// Default: none. Then every process makes a key of its own, and sessions neither outlive it nor are known to
	// other replicas.
	KeyFile string `yaml:"key_file"`

	// MaxDuration is how long a session is good at most, 1s to 12h; it never outlives its OIDC token. Default: 1h. SDKs ask
	// for 15m at least and take what they get; below that they renew before each request.
	MaxDuration time.Duration `yaml:"max_duration"`
}

const (
	defaultDuration = time.Hour
	minAsked        = 15 * time.Minute // both are STS's
	maxDuration     = 12 * time.Hour
)

// Check reports every problem of the section, each with its path below it.
func (c *SessionsConfig) Check(report func(path, problem string)) {
	if c.MaxDuration != 0 && (c.MaxDuration < time.Second || c.MaxDuration > maxDuration) {
		report("max_duration", fmt.Sprintf("%s is not between %s and %s", c.MaxDuration, time.Second, maxDuration))
	}
	if c.KeyFile != "" {
		if _, _, err := readSessionKeys(c.KeyFile); err != nil {
			report("key_file", err.Error())
		}
	}
}

// sessions seals and opens session tokens.
type sessions struct {
	keyFile string
	longest time.Duration

	reloading sync.Mutex // held while ring is replaced
	ring      atomic.Pointer[keyring]
}

// keyring is the keys of one moment with the sessions that they opened: a key that goes takes its sessions along.
type keyring struct {
	file   []byte // what the keys were read from
	keys   []sealingKey
	opened *openSessions
}

// newSessions reads the keys, and keeps them current until ctx ends. previous, where not nil, lends the key of a
// process that has no key file, so that a reload of the configuration ends no session.
func newSessions(ctx context.Context, c SessionsConfig, previous *sessions) (*sessions, error) {
	s := &sessions{keyFile: c.KeyFile, longest: c.MaxDuration}
	if s.longest == 0 {
		s.longest = defaultDuration
	}
	if s.keyFile == "" {
		if previous != nil && previous.keyFile == "" {
			s.use(nil, previous.ring.Load().keys)
			return s, nil
		}
		var secret [32]byte
		rand.Read(secret[:])
		key, err := newSealingKey(secret)
		if err != nil {
			return nil, fmt.Errorf("sessions: %w", err)
		}
		s.use(nil, []sealingKey{key})
		return s, nil
	}
	if err := s.reload(); err != nil {
		return nil, err
	}
	go s.watch(ctx)
	return s, nil
}

// keyFileInterval is how often the key file is looked at. It is read rather than watched: it is small, and a change
// is seen whether the file is written, renamed over or, as Kubernetes does it, a link two directories up is turned.
const keyFileInterval = 2 * time.Second

func (s *sessions) watch(ctx context.Context) {
	ticker := time.NewTicker(keyFileInterval)
	defer ticker.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		switch err := s.reload(); {
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			slog.Error("session keys not reloaded, the old ones stay in use", slog.Any("error", err))
		}
	}
}

// reload reads the key file; where it is not good, the old keys stay and the error says why.
func (s *sessions) reload() error {
	if s.keyFile == "" {
		return nil
	}
	s.reloading.Lock()
	defer s.reloading.Unlock()
	file, keys, err := readSessionKeys(s.keyFile)
	if err != nil {
		return fmt.Errorf("sessions.key_file: %w", err)
	}
	if ring := s.ring.Load(); ring != nil && bytes.Equal(ring.file, file) {
		return nil
	}
	s.use(file, keys)
	return nil
}

func (s *sessions) use(file []byte, keys []sealingKey) {
	s.ring.Store(&keyring{file: file, keys: keys, opened: newOpenSessions()})
}

// readSessionKeys reads a key file. Its errors show nothing of what the file has in it.
func readSessionKeys(path string) ([]byte, []sealingKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	const limit = 64 << 10
	file, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(file) > limit {
		return nil, nil, fmt.Errorf("%s is larger than 64 KiB", path)
	}
	const hint = "each line must be 32 random bytes in base64: openssl rand -base64 32"
	var keys []sealingKey
	for i, line := range strings.Split(string(file), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(raw) != 32 {
			return nil, nil, fmt.Errorf("%s, line %d: not a key; %s", path, i+1, hint)
		}
		if bytes.Count(raw, raw[:1]) == len(raw) {
			return nil, nil, fmt.Errorf("%s, line %d: not random; %s", path, i+1, hint)
		}
		key, err := newSealingKey([32]byte(raw))
		if err != nil {
			return nil, nil, err
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, nil, fmt.Errorf("%s has no key; %s", path, hint)
	}
	return file, keys, nil
}

// IssueRequest is what an exchange of a token for session credentials asks for. All of it is optional.
type IssueRequest struct {
	RoleARN     string        // given to policy as identity.requested_role
	SessionName string        // for GetCallerIdentity to tell again
	Duration    time.Duration // 15m to 12h, cut to what is allowed; 0 = as long as is allowed
}

// Session is temporary credentials that any AWS SDK can sign with.
type Session struct {
	AccessKeyID, SecretAccessKey, SessionToken string

	Expiration time.Time
	Identity   *Identity // as requests signed with the credentials will show it
}

// Issue exchanges an OIDC token, verified as at every other door, for session credentials. They expire with the
// token, or before. Its errors are *Error, but for a fault of its own.
func (a *Authenticator) Issue(ctx context.Context, token string, request IssueRequest) (*Session, error) {
	if request.Duration != 0 && (request.Duration < minAsked || request.Duration > maxDuration) {
		return nil, refusal(Malformed, "the duration of a session must be between %d and %d seconds", minAsked/time.Second, maxDuration/time.Second)
	}
	bearer, err := a.verifyToken(ctx, token)
	if err != nil {
		return nil, err
	}
	now := a.now()
	lasts := a.sessions.longest
	if request.Duration != 0 {
		lasts = min(lasts, request.Duration)
	}
	expires := now.Add(lasts)
	if bearer.Expires.Before(expires) {
		expires = bearer.Expires
	}
	expires = expires.Truncate(time.Second)
	if !now.Before(expires) {
		return nil, refusal(Expired, "the token expired at %s: fetch a new one", bearer.Expires.UTC().Format(time.RFC3339))
	}

	id := &Identity{
		Issuer: bearer.Issuer, Subject: bearer.Subject, Audience: bearer.Audience, Session: bearer.Session, TokenID: bearer.TokenID,
		Method: "session", RequestedRole: request.RoleARN,
		IssuedAt: bearer.IssuedAt, Expires: expires,
		Claims: bearer.Claims, Attributes: bearer.Attributes,
	}
	id.Derived(sessionNameKey{}, func() any { return request.SessionName })
	if a.carryToken {
		id.token = token
	}
	plain, err := encodeIdentity(id, request.SessionName, id.token)
	if err == nil {
		var sealed string
		var d derived
		ring := a.sessions.ring.Load()
		if sealed, d, err = ring.keys[0].seal(plain); err == nil {
			return &Session{AccessKeyID: d.accessKeyID, SecretAccessKey: d.secret, SessionToken: sealed, Expiration: expires, Identity: id}, nil
		}
	}
	if errors.Is(err, errTooLarge) {
		return nil, &Error{Kind: BadToken, Message: "the token has too many claims for session credentials: send it as it is (Authorization: Bearer, or as AWS_SESSION_TOKEN), or have the issuer put less into it", Err: err}
	}
	return nil, fmt.Errorf("seal session: %w", err)
}

// SessionName is the RoleSessionName that the identity's session was asked for with, "" if none.
func (i *Identity) SessionName() string {
	d := i.derived.Load().find(sessionNameKey{})
	if d == nil {
		return ""
	}
	return d.value.(string)
}

type sessionNameKey struct{}

// session is an open session token.
type session struct {
	token       string
	size        int // of what was sealed, before compression
	accessKeyID string
	secret      string
	expires     time.Time
	sealed      *sealedIdentity
	identity    *Identity

	presigned atomic.Pointer[Identity]

	mu   sync.Mutex // guards keys and next
	keys [8]scopedKey
	next int
}

// signingKey is what requests of one day, region and service are signed with.
type signingKey [sha256.Size]byte

type scopedKey struct {
	date, region, service string
	key                   signingKey
}

const noSessionToken = "session credentials need their session token: set AWS_SESSION_TOKEN beside AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

// sessionOf opens the session token of a signed request.
func (a *Authenticator) sessionOf(accessKeyID, token string, now time.Time) (*session, error) {
	if token == "" {
		if strings.HasPrefix(accessKeyID, accessKeyPrefix) {
			return nil, refusal(UnknownKey, noSessionToken)
		}
		return nil, refusal(UnknownKey, "this proxy did not issue that access key id: exchange your workspace's OIDC token for session credentials (AWS_WEB_IDENTITY_TOKEN_FILE), or set AWS_SESSION_TOKEN to the token itself")
	}
	s, err := a.sessions.open(token, a.accepts)
	if e, ok := errors.AsType[*Error](err); ok {
		return nil, e
	}
	if err != nil {
		return nil, &Error{Kind: BadToken, Message: "the session token is not one of this proxy's, or was altered or cut short: get new session credentials", Err: err}
	}
	if subtle.ConstantTimeCompare([]byte(accessKeyID), []byte(s.accessKeyID)) != 1 {
		return nil, refusal(UnknownKey, "the access key id and the session token belong to different sessions: set both, and the secret key, from one exchange")
	}
	if !now.Before(s.expires) {
		return nil, refusal(Expired, "the session expired at %s: get new session credentials", s.expires.UTC().Format(time.RFC3339))
	}
	return s, nil
}

// accepts holds a session against the configuration of now, as its token would be: the file may have changed since
// the token was exchanged, at another replica even.
func (a *Authenticator) accepts(id *Identity) error {
	is := a.issuers[id.Issuer]
	if is == nil {
		return refusal(BadToken, "the session is of an issuer that is not accepted any more: get new session credentials")
	}
	if !slices.ContainsFunc(id.Audience, func(audience string) bool { return slices.Contains(is.audiences, audience) }) {
		return refusal(BadToken, "the session is of a token for an audience that is not accepted any more: get new session credentials")
	}
	return is.checkRequired(id.Claims)
}

// open opens a session token that accept accepts, or finds it opened.
func (s *sessions) open(token string, accept func(*Identity) error) (*session, error) {
	if len(token) > maxSealed {
		return nil, errNotSealed
	}
	ring := s.ring.Load()
	if opened := ring.opened.get(token); opened != nil {
		return opened, nil
	}
	plain, d, err := open(ring.keys, token)
	if err != nil {
		return nil, err
	}
	sealed, claims, size, err := decodeIdentity(plain)
	if err != nil {
		return nil, err
	}
	opened := &session{
		token: strings.Clone(token), size: size, accessKeyID: d.accessKeyID, secret: d.secret, expires: time.Unix(sealed.Expires, 0),
		sealed: sealed, identity: sealed.identity("session", claims),
	}
	if err := accept(opened.identity); err != nil {
		return nil, err
	}
	return ring.opened.add(opened), nil
}

// maxOpenBytes bounds the sessions that are kept open by what was sealed in them; in memory they are some times that.
const maxOpenBytes = 16 << 20

// openSessions keeps sessions that were opened, the least recently used going first. Only what this proxy sealed gets
// in, so nobody without a token can push others out.
type openSessions struct {
	seed maphash.Seed // makes the hashes that sessions are kept by nobody's to choose

	mu    sync.Mutex // guards all below
	lru   *simplelru.LRU[uint64, *session]
	bytes int
}

func newOpenSessions() *openSessions {
	o := &openSessions{seed: maphash.MakeSeed()}
	var err error
	// The count only has to be out of reach: no session has less than 64 bytes.
	o.lru, err = simplelru.NewLRU(maxOpenBytes/64, func(_ uint64, s *session) { o.bytes -= s.size })
	if err != nil {
		panic(err) // only for a size below 1
	}
	return o
}

// get is the open session of token, or nil.
func (o *openSessions) get(token string) *session {
	hash := maphash.String(o.seed, token)
	o.mu.Lock()
	s, ok := o.lru.Get(hash)
	o.mu.Unlock()
	if !ok || s.token != token {
		return nil
	}
	return s
}

// add keeps s, and returns the one that another request opened meanwhile: all requests of a session shall share one
// identity, and so what is derived from it.
func (o *openSessions) add(s *session) *session {
	hash := maphash.String(o.seed, s.token)
	o.mu.Lock()
	defer o.mu.Unlock()
	if first, ok := o.lru.Get(hash); ok {
		if first.token == s.token {
			return first
		}
		o.lru.Remove(hash) // or else replacing it would count twice
	}
	o.lru.Add(hash, s)
	o.bytes += s.size
	for o.bytes > maxOpenBytes {
		o.lru.RemoveOldest()
	}
	return s
}

// presignedIdentity is the session's identity as presigned URLs show it, so that policy can tell.
func (s *session) presignedIdentity() *Identity {
	if id := s.presigned.Load(); id != nil {
		return id
	}
	s.presigned.CompareAndSwap(nil, s.sealed.identity("presigned", s.identity.Claims))
	return s.presigned.Load()
}

// signingKey is the key for a scope, and whether it is one that keep was given.
func (s *session) signingKey(date, region, service string) (signingKey, bool) {
	s.mu.Lock()
	for i := range s.keys {
		if k := &s.keys[i]; k.date == date && k.region == region && k.service == service {
			key := k.key
			s.mu.Unlock()
			return key, true
		}
	}
	s.mu.Unlock()
	key := []byte("AWS4" + s.secret)
	for _, part := range []string{date, region, service, "aws4_request"} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return signingKey(key), false
}

// keep remembers the key of a scope in which a signature has matched, so that nobody else's requests push it out.
func (s *session) keep(date, region, service string, key signingKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.keys {
		if s.keys[i].key == key {
			return // another request was first
		}
	}
	// The strings are parts of a request's header, all of which would be kept with them.
	s.keys[s.next] = scopedKey{strings.Clone(date), strings.Clone(region), strings.Clone(service), key}
	s.next = (s.next + 1) % len(s.keys)
}
