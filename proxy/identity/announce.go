package identity

import (
	"encoding/json"
	"log/slog"
	"maps"
	"time"
)

// Replicas tell each other of a revocation twice: in the bucket, where it is kept, and at once on the subject
// <bucket>.revoked. A bucket takes no writes while its servers elect a leader, which after a server's death takes seconds; a
// plain message is with everybody who is connected in milliseconds. Whoever was not connected just then asks when he is again.
//
// A message can only refuse more than was refused: it is merged with what is known, and there is none that deletes. Who may
// publish on the subject can shut anybody out all the same, as can who may write the bucket: docs/replicas.md says what
// permissions keep others from both.
const (
	// natsConfirm is how long the bucket has to show what was heard. Whoever said it may have died before he wrote it there:
	// then any replica that heard of it does.
	natsConfirm = 2 * time.Second
	// natsRecent is for how long revocations are told to those who ask. Nobody who is not connected stays unaware of it for
	// longer than a second or two; what is older is in the bucket.
	natsRecent = 30 * time.Second
	// maxRecent bounds what they are told.
	maxRecent = 1000
	// natsAnswer is how long questions are collected, so that many replicas that come back at once get one answer.
	natsAnswer = 20 * time.Millisecond
	// maxAnnouncement keeps messages well below NATS's megabyte.
	maxAnnouncement = 256 << 10
)

// announcement is a message on the subject.
type announcement struct {
	Revoked []Revocation `json:"revoked,omitempty"`
	// After is the bucket's revision that the sender had seen. What was deleted since he does not know of: a marker of a
	// later revision is about what he says, and one of an earlier is about what was there before.
	After uint64 `json:"after,omitempty"`
	Ask   bool   `json:"ask,omitempty"` // for what was revoked lately
}

// announce tells those who are connected now. Who is not finds out by asking, or from the bucket.
func (n *natsStore) announce(revoked []Revocation, after uint64, ask bool) {
	for first := true; first || len(revoked) > 0; first = false {
		count, size := 0, 0
		for count < len(revoked) && size < maxAnnouncement {
			v := &revoked[count]
			size += 300 + 6*(len(v.Issuer)+len(v.Session)+len(v.Subject)+len(v.TokenID)) // 6: as escaped as can be
			count++
		}
		data, err := json.Marshal(announcement{revoked[:count], after, ask && first})
		if err == nil {
			err = n.revoked.Publish(data)
		}
		if err != nil {
			slog.Debug("revocations not announced", slog.Any("error", err))
			return
		}
		revoked = revoked[count:]
	}
}

// announceRecent tells what others may have missed.
func (n *natsStore) announceRecent(ask bool) {
	r := n.revocations
	var revoked []Revocation
	r.mu.RLock()
	n.mu.Lock()
	n.dropOldLocked()
	ids := maps.Clone(n.recent)
	maps.Copy(ids, n.unsent)
	for id := range ids {
		if v, ok := r.byID[id]; ok && r.now().Before(v.Until) {
			revoked = append(revoked, v)
		}
	}
	after := n.seen
	n.mu.Unlock()
	r.mu.RUnlock()
	if len(revoked) > 0 || ask {
		n.announce(revoked, after, ask)
	}
}

// announceOne tells of one that has just come into force here.
func (n *natsStore) announceOne(v Revocation) {
	n.mu.Lock()
	after := n.seen
	n.mu.Unlock()
	n.announce([]Revocation{v}, after, false)
}

// hear does what another replica announced. Its own announcements come back too, and change nothing.
func (n *natsStore) hear(data []byte) {
	var a announcement
	if err := json.Unmarshal(data, &a); err != nil {
		slog.Warn("revocations: an announcement is not understood", slog.Any("error", err))
		return
	}
	changed := false
	for _, v := range a.Revoked {
		if n.heard(v, a.After) {
			changed = true
		}
	}
	if changed {
		n.revocations.cut()
		n.revocations.saveSoon()
	}
	if a.Ask && n.answering.CompareAndSwap(false, true) {
		time.AfterFunc(natsAnswer, func() {
			n.answering.Store(false)
			n.announceRecent(false)
		})
	}
}

// heard puts in force what another replica says is, and tells whether that changed anything.
func (n *natsStore) heard(v Revocation, after uint64) bool {
	r := n.revocations
	if err := v.check(r.now()); err != nil || v.Until.IsZero() || v.ID != v.id() {
		slog.Warn("revocations: one that was announced is not understood", slog.String("id", v.ID), slog.Any("error", err))
		return false
	}
	v.Until, v.IssuedBefore, v.Created = v.Until.UTC(), v.IssuedBefore.UTC(), v.Created.UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if gone, ok := n.gone[v.ID]; ok && (gone.created.Equal(v.Created) || gone.revision > after) {
		return false // said by somebody who does not know yet that it was deleted
	}
	if old, ok := r.byID[v.ID]; ok {
		v = old.merge(v)
	} else if len(r.byID) >= maxRevocations {
		return false
	}
	if !r.putLocked(v) {
		return false
	}
	n.noteLocked(v.ID, natsConfirm)
	n.heardAfter[v.ID] = after
	return true
}

// gone is a revocation that was deleted: when it was made, where that is known, and the marker's revision, where it came
// from the bucket.
type gone struct {
	created, deleted time.Time
	revision         uint64
}

// noteLocked is when a revocation has come into force here: the store shows it soon, or has to be told. r.mu and n.mu
// are held, so that no marker of an earlier deletion comes between.
func (n *natsStore) noteLocked(id string, soon time.Duration) {
	now := time.Now()
	n.unsent[id] = now.Add(soon)
	delete(n.deleted, id)
	delete(n.gone, id)
	delete(n.heardAfter, id)
	if len(n.recent) >= maxRecent {
		n.dropOldLocked()
	}
	if len(n.recent) < maxRecent {
		n.recent[id] = now
	}
}

// removedLocked is when a revocation was deleted, here or elsewhere; created is zero where it was never known here.
// r.mu and n.mu are held.
func (n *natsStore) removedLocked(id string, created time.Time, revision uint64) {
	delete(n.recent, id)
	if len(n.gone) >= maxRecent {
		n.dropOldLocked()
	}
	before, known := n.gone[id]
	if created.IsZero() {
		created = before.created
	}
	if known || len(n.gone) < maxRecent {
		n.gone[id] = gone{created, time.Now(), max(revision, before.revision)}
	}
}

// removedHereLocked is the same of one that the store has to be told.
func (n *natsStore) removedHereLocked(v Revocation) {
	n.removedLocked(v.ID, v.Created, 0)
	n.deleted[v.ID] = struct{}{}
	n.sentLocked(v.ID)
}

// sentLocked is when the store has no need to be told of a revocation any more.
func (n *natsStore) sentLocked(id string) {
	delete(n.unsent, id)
	delete(n.heardAfter, id)
}

func (n *natsStore) dropOldLocked() {
	now := time.Now()
	for id, since := range n.recent {
		if now.Sub(since) > natsRecent {
			delete(n.recent, id)
		}
	}
	for id, g := range n.gone {
		if now.Sub(g.deleted) > 2*natsRecent { // nobody announces it any more
			delete(n.gone, id)
		}
	}
}

// overdueLocked are those that the store has to be told.
func (n *natsStore) overdueLocked() map[string]bool {
	now := time.Now()
	overdue := map[string]bool{}
	for id, due := range n.unsent {
		if !now.Before(due) {
			overdue[id] = true
		}
	}
	return overdue
}
