package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Revocation refuses all identities of an issuer that have one session, one subject or one token id.
type Revocation struct {
	// ID is given by Add. Equal revocations have one, so that repeating a request does nothing twice.
	ID     string `json:"id"`
	Issuer string `json:"issuer"`

	// Just one of these is set. Session is what audit calls the session, or the token's sid.
	Session string `json:"session,omitempty"`
	Subject string `json:"subject,omitempty"`
	TokenID string `json:"token_id,omitempty"`

	// IssuedBefore, where set, spares tokens issued after it: those of a workspace that was started again, or of a
	// user who logged in again. Zero refuses them too.
	IssuedBefore time.Time `json:"issued_before,omitzero"`

	// Until ends the revocation. Add fills it in where it is zero: with the time at which no token or session from
	// before the revocation can still be valid.
	Until   time.Time `json:"until,omitzero"`
	Created time.Time `json:"created,omitzero"`
}

// ErrBadRevocation is matched by Add's errors that are the caller's to mend.
var ErrBadRevocation = errors.New("bad revocation")

// ErrNotShared is matched by the errors of Add and Delete where the store could not be reached. What was asked for is
// in force in this process, and the store will be told when it is back. A revocation has been announced to the replicas
// that can be reached; others do not know yet.
var ErrNotShared = errors.New("in force here, but not yet in the store that replicas share")

// ErrNoRevocation is returned by Delete for an id that is not there.
var ErrNoRevocation = errors.New("no such revocation")

const (
	// revocationLife is for how long something from before a revocation may still be valid.
	revocationLife = maxTokenAge + 2*maxLeeway
	// maxRevocations bounds their memory, at some 500 bytes each.
	maxRevocations = 1 << 20
)

// Revocations says which identities are no longer accepted, and cuts what they have in flight.
//
// A check of an identity that was checked since the last change costs one comparison of pointers: each identity
// remembers the version at which it was found clean, and a version is never used twice.
type Revocations struct {
	now  func() time.Time
	file string
	nats *natsStore // nil for memory

	version atomic.Pointer[version]

	mu       sync.RWMutex // guards all below
	byID     map[string]Revocation
	byTarget map[target][]Revocation // by what is revoked; a few each
	issuers  []string                // those that can be named; none = any
	changes  uint64
	ready    bool // false until what the store has is known
	holders  int  // of contexts that have not ended

	end context.CancelFunc // of what runs in the background

	saving sync.Mutex // guards saved, and the file
	saved  uint64     // of changes
	soon   chan struct{}

	tracking  sync.Mutex // guards transfers
	transfers Transfer   // the list's head
}

// version has a size, or else all its values might share one address.
type version struct{ _ byte }

// target is what a revocation is about.
type target struct {
	kind          byte // 's'ession, s'u'bject, 't'oken
	issuer, value string
}

// Transfer is a request in flight, in a list of those who want to know of revocations. It is part of what its owner
// keeps of the request, so that being in the list allocates nothing.
type Transfer struct {
	list           *Revocations // nil = was never in it
	id             *Identity
	tell           Revocable
	previous, next *Transfer // nil next: not in the list
}

// Revocable is told that its identity has been revoked. It MUST NOT block.
type Revocable interface{ Revoked() }

// OpenRevocations reads what is known and follows the store until ctx ends and those of all Authenticators that use
// it. It does not wait for a store that cannot be
// reached; until that has been read once, Check refuses everybody with Unavailable, unless file has what was last known.
func OpenRevocations(ctx context.Context, c RevocationConfig, now func() time.Time) (*Revocations, error) {
	if now == nil {
		now = time.Now
	}
	r := &Revocations{
		now: now, file: c.File, byID: map[string]Revocation{}, byTarget: map[target][]Revocation{}, soon: make(chan struct{}, 1),
	}
	r.version.Store(new(version))
	r.transfers.next, r.transfers.previous = &r.transfers, &r.transfers
	r.ready = c.Store == "" || c.Store == "memory"
	if c.File != "" {
		known, err := readRevocations(c.File)
		if err != nil {
			return nil, fmt.Errorf("revocation.file: %w", err)
		}
		if known != nil {
			r.ready = true
		}
		r.mu.Lock()
		for _, revocation := range known {
			if now().Before(revocation.Until) {
				r.putLocked(revocation)
			}
		}
		r.mu.Unlock()
		// At the start rather than at the first revocation. The file itself stays as it is: a process that is just
		// ending may still add to it.
		if err := probeDirectory(c.File); err != nil {
			return nil, fmt.Errorf("revocation.file: %w", err)
		}
		removeLeftovers(c.File, now())
	}
	// Values of ctx may be of use to the store; its end is what hold is for.
	background, end := context.WithCancel(context.WithoutCancel(ctx))
	r.end = end
	if c.Store != "" && c.Store != "memory" {
		var err error
		if r.nats, err = openNATS(background, c.Store, r); err != nil {
			end()
			return nil, fmt.Errorf("revocation.store: %w", err)
		}
	}
	go r.forget(background)
	r.hold(ctx)
	return r, nil
}

// hold keeps the background going until ctx has ended and those of all others that hold it. A reload makes an
// Authenticator under a new context before it ends the old one's.
func (r *Revocations) hold(ctx context.Context) {
	r.mu.Lock()
	r.holders++
	r.mu.Unlock()
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.holders--; r.holders == 0 {
			r.end()
		}
	})
}

// Revocations are those the Authenticator checks.
func (a *Authenticator) Revocations() *Revocations { return a.revocations }

// Track is Revocations.Track.
func (a *Authenticator) Track(t *Transfer, id *Identity, tell Revocable) {
	a.revocations.Track(t, id, tell)
}

// Check returns an *Error of kind Revoked where id is revoked.
func (r *Revocations) Check(id *Identity) error {
	version := r.version.Load()
	if id.clean.Load() == version {
		return nil
	}
	r.mu.RLock()
	ready, found := r.ready, r.findLocked(id)
	r.mu.RUnlock()
	if found != nil {
		return &Error{Kind: Revoked, Message: found.refusal(), Identity: id}
	}
	if !ready {
		return &Error{Kind: Unavailable, Message: "it is not known yet what has been revoked: try again"}
	}
	// version was read before the look: a change since then has another.
	id.clean.Store(version)
	return nil
}

func (r *Revocations) findLocked(id *Identity) *Revocation {
	if len(r.byTarget) == 0 {
		return nil
	}
	now := r.now()
	targets := [...]target{
		{'s', id.Issuer, id.Session},
		{'u', id.Issuer, id.Subject},
		{'t', id.Issuer, id.TokenID},
		{'s', id.Issuer, text(id.Claims["sid"])}, // as back-channel logout calls it
	}
	for _, target := range targets {
		if target.value == "" {
			continue
		}
		for n := range r.byTarget[target] {
			found := &r.byTarget[target][n]
			if now.Before(found.Until) && (found.IssuedBefore.IsZero() || !id.IssuedAt.After(found.IssuedBefore)) {
				copied := *found
				return &copied
			}
		}
	}
	return nil
}

func (v *Revocation) refusal() string {
	what := map[byte]string{'s': "session", 'u': "subject", 't': "token"}[v.target().kind]
	if !v.IssuedBefore.IsZero() {
		return fmt.Sprintf("this %s was logged out at %s: log in again, or fetch a new token", what, v.IssuedBefore.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("this %s was revoked at %s: its workspace was closed, or an operator revoked it", what, v.Created.UTC().Format(time.RFC3339))
}

func (v *Revocation) target() target {
	switch {
	case v.Session != "":
		return target{'s', v.Issuer, v.Session}
	case v.Subject != "":
		return target{'u', v.Issuer, v.Subject}
	default:
		return target{'t', v.Issuer, v.TokenID}
	}
}

// Add puts a revocation in force, and returns it with what was filled in. When it returns without an error, the
// revocation survives a restart and is on its way to the other replicas. Of an earlier one for the same, the later
// end counts.
func (r *Revocations) Add(ctx context.Context, v Revocation) (Revocation, error) {
	now := r.now()
	if err := v.check(now); err != nil {
		return v, err
	}
	r.mu.RLock()
	issuers, count := r.issuers, len(r.byID)
	r.mu.RUnlock()
	if len(issuers) > 0 && !slices.Contains(issuers, v.Issuer) {
		return v, fmt.Errorf("%w: issuer %.200q is not configured, so this would revoke nothing", ErrBadRevocation, v.Issuer)
	}
	if count >= maxRevocations {
		return v, fmt.Errorf("%d revocations are in force, and no more are taken: delete some, or stop whoever makes them", count)
	}
	if v.Until.IsZero() {
		v.Until = now.Add(revocationLife)
	}
	v.Until, v.IssuedBefore = v.Until.UTC().Round(0), v.IssuedBefore.UTC().Round(0)
	v.Created = now.UTC().Round(0)
	v.ID = v.id()

	v, changed := r.add(v)
	if changed {
		r.cut()
	}
	if r.nats != nil {
		r.nats.announceOne(v)
	}
	err := r.save()
	if r.nats != nil {
		err = errors.Join(err, r.nats.put(ctx, v))
	}
	return v, err
}

// add puts v in force together with what is already, and tells whether that changed anything.
func (r *Revocations) add(v Revocation) (_ Revocation, changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.byID[v.ID]; ok {
		v = old.merge(v)
	}
	if r.nats != nil {
		r.nats.mu.Lock()
		defer r.nats.mu.Unlock()
		r.nats.noteLocked(v.ID, natsTimeout)
	}
	return v, r.putLocked(v)
}

// check tells whether v can be understood, whoever says it.
func (v *Revocation) check(now time.Time) error {
	set := 0
	for _, value := range []string{v.Session, v.Subject, v.TokenID} {
		if value != "" {
			set++
		}
		if len(value) > maxTokenBytes {
			return fmt.Errorf("%w: session, subject and token_id are shorter than 16 KiB", ErrBadRevocation)
		}
	}
	switch {
	case set != 1:
		return fmt.Errorf("%w: name one of session, subject and token_id", ErrBadRevocation)
	case v.Issuer == "":
		return fmt.Errorf("%w: name the issuer", ErrBadRevocation)
	case len(v.Issuer) > maxTokenBytes:
		return fmt.Errorf("%w: the issuer is shorter than 16 KiB", ErrBadRevocation)
	case !v.Until.IsZero() && !now.Before(v.Until):
		return fmt.Errorf("%w: until is in the past", ErrBadRevocation)
	case v.Until.Year() > 9999 || v.IssuedBefore.Year() > 9999 || v.Created.Year() > 9999:
		return fmt.Errorf("%w: until is no time", ErrBadRevocation)
	}
	return nil
}

// id is the same for revocations of the same.
func (v *Revocation) id() string {
	hash := sha256.New()
	target := v.target()
	fmt.Fprintf(hash, "%c\n%q\n%q\n%t", target.kind, target.issuer, target.value, v.IssuedBefore.IsZero())
	return strings.ToLower(base32.StdEncoding.EncodeToString(hash.Sum(nil)[:15]))
}

// merge is what holds where the same was revoked twice.
func (v Revocation) merge(other Revocation) Revocation {
	if other.Until.After(v.Until) {
		v.Until = other.Until
	}
	if other.IssuedBefore.After(v.IssuedBefore) {
		v.IssuedBefore = other.IssuedBefore
	}
	return v
}

// putLocked stores a revocation in place of one with its id, and tells whether that changed anything.
func (r *Revocations) putLocked(v Revocation) bool {
	if old, ok := r.byID[v.ID]; ok {
		if old == v {
			return false
		}
		r.removeLocked(v.ID)
	}
	r.byID[v.ID] = v
	r.byTarget[v.target()] = append(r.byTarget[v.target()], v)
	r.changedLocked()
	return true
}

func (r *Revocations) removeLocked(id string) bool {
	v, ok := r.byID[id]
	if !ok {
		return false
	}
	delete(r.byID, id)
	rest := slices.DeleteFunc(slices.Clone(r.byTarget[v.target()]), func(other Revocation) bool { return other.ID == id })
	if r.byTarget[v.target()] = rest; len(rest) == 0 {
		delete(r.byTarget, v.target())
	}
	r.changedLocked()
	return true
}

func (r *Revocations) changedLocked() {
	r.changes++
	r.version.Store(new(version))
}

// List returns those in force, the newest first.
func (r *Revocations) List() []Revocation {
	now := r.now()
	r.mu.RLock()
	list := slices.Collect(maps.Values(r.byID))
	r.mu.RUnlock()
	list = slices.DeleteFunc(list, func(v Revocation) bool { return !now.Before(v.Until) })
	slices.SortFunc(list, func(a, b Revocation) int {
		if order := b.Created.Compare(a.Created); order != 0 {
			return order
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// Delete ends a revocation.
func (r *Revocations) Delete(ctx context.Context, id string) error {
	if !r.remove(id) {
		return fmt.Errorf("%w: %.60q", ErrNoRevocation, id)
	}
	err := r.save()
	if r.nats != nil {
		err = errors.Join(err, r.nats.remove(ctx, id))
	}
	return err
}

func (r *Revocations) remove(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.byID[id]
	if ok && r.nats != nil {
		r.nats.mu.Lock()
		defer r.nats.mu.Unlock()
		r.nats.removedHereLocked(v)
	}
	return r.removeLocked(id)
}

// Track tells t's owner when id is revoked, at once if it is already, unless Untrack was called before, and once at
// most. t MUST NOT be in use.
func (r *Revocations) Track(t *Transfer, id *Identity, tell Revocable) {
	*t = Transfer{list: r, id: id, tell: tell}
	r.tracking.Lock()
	t.previous, t.next = r.transfers.previous, &r.transfers
	t.previous.next, t.next.previous = t, t
	r.tracking.Unlock()
	// A revocation may have come between the check of the credentials and now.
	if err := r.Check(id); isRevoked(err) && t.leave() {
		tell.Revoked()
	}
}

// Untrack takes t out of its list, where it is in one. When it returns its owner has been told, or will not be.
func (t *Transfer) Untrack() {
	if t.list != nil {
		t.leave()
	}
}

// leave tells whether t was still in its list.
func (t *Transfer) leave() bool {
	t.list.tracking.Lock()
	defer t.list.tracking.Unlock()
	if t.next == nil {
		return false
	}
	t.unlink()
	return true
}

// unlink takes t out of its list. r.tracking MUST be held.
func (t *Transfer) unlink() {
	t.previous.next, t.next.previous = t.next, t.previous
	t.previous, t.next = nil, nil
}

// cut tells those whose identities are revoked.
func (r *Revocations) cut() {
	r.tracking.Lock()
	defer r.tracking.Unlock()
	for t := r.transfers.next; t != &r.transfers; {
		next := t.next
		if isRevoked(r.Check(t.id)) {
			t.unlink()
			t.tell.Revoked()
		}
		t = next
	}
}

func isRevoked(err error) bool {
	e, ok := err.(*Error)
	return ok && e.Kind == Revoked
}

// saveSoon saves in the background what came from the store, which has it already.
func (r *Revocations) saveSoon() {
	select {
	case r.soon <- struct{}{}:
	default:
	}
}

// forget drops what has ended, so that memory, file and store do not grow, and does what saveSoon asks for.
func (r *Revocations) forget(ctx context.Context) {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.soon:
		case <-ticker.C:
			ended := r.dropEnded()
			if r.nats != nil {
				r.nats.forget(ctx, ended)
			}
			if len(ended) == 0 {
				continue
			}
		}
		if err := r.save(); err != nil {
			slog.Error("revocations not saved", slog.Any("error", err))
		}
	}
}

func (r *Revocations) dropEnded() (ended []string) {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, v := range r.byID {
		if !now.Before(v.Until) {
			r.removeLocked(id)
			ended = append(ended, id)
		}
	}
	return ended
}

// setReady is when all that the store has is known.
func (r *Revocations) setReady() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ready = true
}

func (r *Revocations) isReady() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.ready
}

// RevocationStatus is for /readyz, for metrics and for people.
type RevocationStatus struct {
	Store   string `json:"store"` // memory or nats
	Ready   bool   `json:"ready"` // false until it is known what is revoked: nobody is let in
	Count   int    `json:"count"`
	Shared  bool   `json:"shared"`            // false while the store cannot be reached: what was known goes on
	Pending int    `json:"pending,omitempty"` // changes that the store does not know yet
	Error   string `json:"error,omitempty"`
}

// Status says how the revocations are kept now.
func (r *Revocations) Status() RevocationStatus {
	r.mu.RLock()
	status := RevocationStatus{Store: "memory", Ready: r.ready, Count: len(r.byID), Shared: true}
	r.mu.RUnlock()
	if r.nats != nil {
		r.nats.status(&status)
	}
	return status
}

// setIssuers has Add refuse others: a misspelt issuer would be a revocation that revokes nothing.
func (r *Revocations) setIssuers(names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.issuers = names
}

// revocationFile is what the file holds.
type revocationFile struct {
	Schema      string       `json:"schema"`
	Revocations []Revocation `json:"revocations"`
}

const revocationSchema = "sluice.revocations/1"

// save writes the file as it has to be after the changes so far. Those who come while another writes are often served
// by one further write.
func (r *Revocations) save() error {
	if r.file == "" {
		return nil
	}
	r.mu.RLock()
	wanted := r.changes
	r.mu.RUnlock()

	r.saving.Lock()
	defer r.saving.Unlock()
	if r.saved >= wanted && wanted > 0 {
		return nil
	}
	r.mu.RLock()
	changes := r.changes
	content := revocationFile{revocationSchema, slices.Collect(maps.Values(r.byID))}
	r.mu.RUnlock()
	slices.SortFunc(content.Revocations, func(a, b Revocation) int { return strings.Compare(a.ID, b.ID) })
	data, err := json.MarshalIndent(content, "", " ")
	if err != nil {
		return fmt.Errorf("save revocations: %w", err)
	}
	if err := replaceFile(r.file, append(data, '\n')); err != nil {
		return fmt.Errorf("save revocations: %w", err)
	}
	r.saved = changes
	return nil
}

// replaceFile writes a file so that, whenever the power goes, either the old or the new is there.
func replaceFile(path string, data []byte) error {
	directory := filepath.Dir(path)
	temporary, err := os.CreateTemp(directory, filepath.Base(path)+".*.tmp") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) // of no effect once it is renamed
	_, err = temporary.Write(data)
	if err == nil {
		err = temporary.Sync()
	}
	if closed := temporary.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(temporary.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(directory)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// probeDirectory tells whether replaceFile can work.
func probeDirectory(path string) error {
	probe, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// removeLeftovers removes what processes that were killed in replaceFile left behind. What is a minute old belongs to none
// that still runs.
func removeLeftovers(path string, now time.Time) {
	directory, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, entry := range directory {
		name := entry.Name()
		if !strings.HasPrefix(name, filepath.Base(path)+".") || !strings.HasSuffix(name, ".tmp") {
			continue
		}
		if info, err := entry.Info(); err == nil && now.Sub(info.ModTime()) > time.Minute {
			_ = os.Remove(filepath.Join(filepath.Dir(path), name))
		}
	}
}

// readRevocations reads the file; one that is not there has none. One that is not understood is an error: starting
// without it would let back in whoever was shut out.
func readRevocations(path string) ([]Revocation, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var content revocationFile
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&content); err != nil {
		return nil, fmt.Errorf("%s is not a file of revocations: %w; repair it, or remove it to start with none", path, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s has something behind its revocations; repair it, or remove it to start with none", path)
	}
	if content.Schema != revocationSchema {
		return nil, fmt.Errorf("%s is of schema %q, not %s; repair it, or remove it to start with none", path, content.Schema, revocationSchema)
	}
	known := []Revocation{}
	for _, v := range content.Revocations {
		if v.ID != v.id() {
			return nil, fmt.Errorf("%s: revocation %.60q does not have the id that belongs to it; repair it, or remove the file to start with none", path, v.ID)
		}
		known = append(known, v)
	}
	return known, nil
}
