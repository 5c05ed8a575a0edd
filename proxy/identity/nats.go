package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	natsBucket = "sluice_revocations"
	// natsTimeout bounds one operation: whoever revokes is waiting.
	natsTimeout = 2 * time.Second
	// natsRead bounds reading the bucket whole.
	natsRead = 20 * time.Second
	// natsCheck is how often the store is asked whether all of it has been seen. A watch dies silently with the server
	// that its consumer was on, and the client finds out after ten seconds; a revocation takes hold within one.
	natsCheck = 400 * time.Millisecond
	natsRetry = 250 * time.Millisecond
	// natsBeat and natsPong find a server out that hangs, or is gone without a word, in time to hear of a revocation from
	// another within the second.
	natsBeat = 200 * time.Millisecond
	natsPong = 500 * time.Millisecond
)

// natsStore shares revocations by a JetStream key-value bucket: a key for each revocation's id, its JSON as the value.
//
// Every replica watches the whole bucket. After each interruption it reads all of it anew, and then tells the store
// what that does not know: what was revoked here meanwhile, or all, where the bucket was lost. A marker of a deletion
// removes; that something is not there removes nothing, for it might have been lost.
type natsStore struct {
	revocations *Revocations
	conn        *nats.Conn
	revoked     *Channel // announcements
	bucket      string
	wake        chan struct{} // read all anew
	begun       chan struct{} // closed when all above is set: handlers may be called before
	answering   atomic.Bool

	mu         sync.Mutex // guards all below
	kv         jetstream.KeyValue
	shared     bool                 // the watch is complete
	deleted    map[string]struct{}  // here, and not yet in the store
	unsent     map[string]time.Time // in force here and perhaps not in the store, which is to be told at that time
	heardAfter map[string]uint64    // of unsent that were announced: see announcement.After
	seen       uint64               // the bucket's revision that is applied here
	recent     map[string]time.Time // of those in force: since when
	gone       map[string]gone      // deleted lately
	err        error
	said       bool // in the log, that it cannot be reached
}

// openNATS connects in the background, and goes on trying until ctx ends. It fails for a configuration only.
func openNATS(ctx context.Context, servers string, r *Revocations) (*natsStore, error) {
	n := &natsStore{
		revocations: r, bucket: natsBucket, wake: make(chan struct{}, 1), begun: make(chan struct{}),
		deleted: map[string]struct{}{}, unsent: map[string]time.Time{}, heardAfter: map[string]uint64{}, recent: map[string]time.Time{}, gone: map[string]gone{},
		err: errors.New("not connected yet"),
	}
	names, options, err := n.parse(servers)
	if err != nil {
		return nil, err
	}
	options = append(options,
		nats.Name("sluice"),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(natsRetry),
		nats.ReconnectJitter(natsRetry, natsRetry),
		nats.ReconnectBufSize(-1), // an operation fails at once instead of taking hold some time later
		nats.Timeout(natsTimeout),
		nats.PingInterval(2*time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if ctx.Err() == nil {
				n.lost(fmt.Errorf("disconnected: %w", orElse(err, errors.New("the server closed the connection"))))
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { n.connected() }),
		nats.ConnectHandler(func(*nats.Conn) { n.connected() }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			slog.Warn("revocations: nats", slog.Any("error", err))
		}),
	)
	defer close(n.begun)
	if n.conn, err = nats.Connect(names, options...); err != nil {
		return nil, err
	}
	n.revoked = &Channel{n.conn, n.bucket + ".revoked"}
	if _, err := n.revoked.Subscribe(n.hear); err != nil {
		n.conn.Close()
		return nil, err
	}
	go n.beat(ctx)
	go n.run(ctx)
	return n, nil
}

// connected is when there is a connection, or one again: by it, what was missed can be had.
func (n *natsStore) connected() {
	<-n.begun
	n.announceRecent(true)
	n.again()
}

// beat leaves a server that does not answer. A connection to one that hangs, or whose machine is gone, looks well to the
// kernel for minutes.
func (n *natsStore) beat(ctx context.Context) {
	ticker := time.NewTicker(natsBeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if n.conn.IsConnected() && errors.Is(n.conn.FlushTimeout(natsPong), nats.ErrTimeout) && ctx.Err() == nil {
			n.lost(errors.New("the server does not answer"))
			_ = n.conn.ForceReconnect() // fails for a closed connection only
		}
	}
}

// parse reads nats://host:port?credentials=FILE&ca=FILE&bucket=NAME; several servers have commas between them, and the
// parameters are with the last.
func (n *natsStore) parse(servers string) (string, []nats.Option, error) {
	var names []string
	var options []nats.Option
	for _, server := range strings.Split(servers, ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls" {
			return "", nil, errors.New("not a list of nats://host:port with commas between")
		}
		if u.User != nil {
			return "", nil, errors.New("a password or token does not belong here: name a credentials file by ?credentials=/path")
		}
		query, err := url.ParseQuery(u.RawQuery)
		if err != nil {
			return "", nil, errors.New("its parameters cannot be read")
		}
		for name, values := range query {
			value := values[len(values)-1]
			switch name {
			case "credentials":
				if _, err := os.ReadFile(value); err != nil {
					return "", nil, fmt.Errorf("credentials: %w", err)
				}
				options = append(options, nats.UserCredentials(value))
			case "ca":
				if _, err := loadRoots(value); err != nil || value == "" {
					return "", nil, fmt.Errorf("ca: %w", orElse(err, errors.New("is empty")))
				}
				options = append(options, nats.RootCAs(value))
			case "bucket":
				if value == "" || strings.Trim(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
					return "", nil, errors.New("bucket: is made of letters, digits, _ and -")
				}
				n.bucket = value
			default:
				return "", nil, fmt.Errorf("parameter %q is not known: they are credentials, ca and bucket", name)
			}
		}
		u.RawQuery = ""
		names = append(names, u.String())
	}
	return strings.Join(names, ","), options, nil
}

// errAgain is how follow ends where it is to begin anew.
var errAgain = errors.New("again")

// run follows the bucket until ctx ends.
func (n *natsStore) run(ctx context.Context) {
	defer n.conn.Close()
	for {
		select { // what comes from here on is another reason to read anew
		case <-n.wake:
		default:
		}
		err := n.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == errAgain {
			continue // whoever asked for it has said so if anything is lost
		}
		n.lost(err)
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		case <-time.After(natsRetry):
		}
	}
}

// follow reads the bucket whole and then its changes. It returns when that has to be done anew.
func (n *natsStore) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	kv, err := n.open(ctx)
	if err != nil {
		return err
	}
	last, err := lastRevision(ctx, kv) // what the watch has to reach at least
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.seen = min(n.seen, last) // or the bucket was made anew
	n.mu.Unlock()
	watcher, err := kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	defer watcher.Stop()
	check := time.NewTicker(natsCheck)
	defer check.Stop()

	known := map[string]bool{} // ids the store has, or had and deleted
	complete := false
	due := uint64(0) // what the store had at the last check: by now a watch that lives has brought it
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.wake:
			return errAgain
		case entry, ok := <-watcher.Updates():
			if !ok {
				return errors.New("the watch ended")
			}
			if entry != nil {
				if last < entry.Revision() {
					last = entry.Revision()
				}
				n.apply(entry)
				if !complete {
					known[entry.Key()] = true
				}
				continue
			}
			complete = true
			if err := n.tell(ctx, kv, known, began); err != nil {
				return err
			}
			known = nil
			n.caughtUp(kv)
		case <-check.C:
			now, err := lastRevision(ctx, kv)
			switch {
			case err != nil:
				return err
			case !complete && time.Since(began) > natsRead:
				return errors.New("the bucket was not read in time")
			case now < last:
				return errors.New("the bucket was made anew")
			case complete && last < due && len(watcher.Updates()) == 0:
				return errors.New("the watch fell behind")
			}
			if complete {
				due = now // what has been written since is on its way
			}
			if complete && n.overdue() {
				return errAgain
			}
		}
	}
}

// open finds the bucket, or makes it.
func (n *natsStore) open(ctx context.Context) (jetstream.KeyValue, error) {
	if !n.conn.IsConnected() {
		return nil, orElse(n.conn.LastError(), errors.New("not connected"))
	}
	js, err := jetstream.New(n.conn)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, natsTimeout)
	defer cancel()
	kv, err := js.KeyValue(ctx, n.bucket)
	if !errors.Is(err, jetstream.ErrBucketNotFound) {
		return kv, wrap("bucket "+n.bucket, err)
	}
	replicas := 1
	if n.conn.ConnectedClusterName() != "" {
		replicas = 3
	}
	kv, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: n.bucket, Description: "what Sluice refuses", History: 1, Storage: jetstream.FileStorage, Replicas: replicas,
	})
	if errors.Is(err, jetstream.ErrBucketExists) { // another replica was quicker
		kv, err = js.KeyValue(ctx, n.bucket)
	}
	return kv, wrap("make bucket "+n.bucket, err)
}

func lastRevision(ctx context.Context, kv jetstream.KeyValue) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, natsTimeout)
	defer cancel()
	status, err := kv.Status(ctx)
	if err != nil {
		return 0, fmt.Errorf("status: %w", err)
	}
	bucket, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return 0, fmt.Errorf("status: of type %T", status)
	}
	return bucket.StreamInfo().State.LastSeq, nil
}

// apply does here what happened in the store.
func (n *natsStore) apply(entry jetstream.KeyValueEntry) {
	r, id := n.revocations, entry.Key()
	if entry.Operation() != jetstream.KeyValuePut {
		if n.applyDelete(entry) {
			r.saveSoon()
		}
		return
	}
	v, err := decodeRevocation(id, entry.Value())
	if err != nil {
		// Nobody can tell what it should refuse. It is no reason to forget the others.
		slog.Error("revocations: an entry of the store is not understood", slog.String("key", id), slog.Any("error", err))
		return
	}
	if !r.now().Before(v.Until) {
		return
	}
	if n.applyPut(v, entry.Revision()) {
		r.cut()
		r.saveSoon()
	}
}

func (n *natsStore) applyDelete(marker jetstream.KeyValueEntry) bool {
	r, id, revision := n.revocations, marker.Key(), marker.Revision()
	r.mu.Lock()
	defer r.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = max(n.seen, revision)
	if _, unsent := n.unsent[id]; unsent {
		after, heard := n.heardAfter[id]
		if !heard || revision <= after {
			return false // it was revoked again since
		}
		n.sentLocked(id)
	}
	if v, ok := r.byID[id]; ok {
		n.removedLocked(id, v.Created, revision)
	} else if time.Since(marker.Created()) < 2*natsRecent { // somebody may announce it still
		n.removedLocked(id, time.Time{}, revision)
	}
	return r.removeLocked(id)
}

func (n *natsStore) applyPut(v Revocation, revision uint64) bool {
	r := n.revocations
	r.mu.Lock()
	defer r.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = max(n.seen, revision)
	if _, deleted := n.deleted[v.ID]; deleted {
		return false // here since
	}
	if _, unsent := n.unsent[v.ID]; unsent {
		stored := v
		if old, ok := r.byID[v.ID]; ok {
			v = v.merge(old)
		}
		if v == stored {
			n.sentLocked(v.ID) // the store has all of it
		}
	}
	return r.putLocked(v)
}

func decodeRevocation(id string, data []byte) (Revocation, error) {
	var v Revocation
	if err := json.Unmarshal(data, &v); err != nil {
		return v, err
	}
	if v.ID != id || v.id() != id {
		return v, errors.New("its id is not its own")
	}
	return v, nil
}

// tell brings the store, which has been read from began on, up to what happened here while it could not be reached.
func (n *natsStore) tell(ctx context.Context, kv jetstream.KeyValue, known map[string]bool, began time.Time) error {
	n.mu.Lock()
	deleted := slices.Collect(maps.Keys(n.deleted))
	overdue := n.overdueLocked()
	for id, since := range n.recent {
		if since.After(began) {
			known[id] = true // it had that since, and may have seen it deleted
		}
	}
	for id := range n.unsent {
		known[id] = !overdue[id] // what is not due is somebody else's to send, or on its way
	}
	n.mu.Unlock()
	for _, id := range deleted {
		if err := n.sendDelete(ctx, kv, id); err != nil {
			return err
		}
	}
	for _, v := range n.revocations.List() {
		if known[v.ID] {
			continue
		}
		if err := n.send(ctx, kv, v); err != nil {
			return err
		}
	}
	return nil
}

// put keeps a revocation that is in force here in the store.
func (n *natsStore) put(ctx context.Context, v Revocation) error {
	n.mu.Lock()
	kv := n.kv
	n.mu.Unlock()
	err := error(ErrNotShared)
	if kv != nil {
		if err = n.send(ctx, kv, v); err == nil {
			return nil
		}
		err = fmt.Errorf("%w: %w", ErrNotShared, err)
	}
	n.mu.Lock()
	n.unsent[v.ID] = time.Time{} // whenever there is a store
	n.mu.Unlock()
	if kv != nil {
		n.lost(err)
		n.again()
	}
	return err
}

// send merges v with what the store has of it, so that of two replicas that revoke at once none shortens the other's.
func (n *natsStore) send(ctx context.Context, kv jetstream.KeyValue, v Revocation) error {
	ctx, cancel := context.WithTimeout(ctx, natsTimeout)
	defer cancel()
	for {
		err := func() error {
			entry, err := kv.Get(ctx, v.ID)
			if errors.Is(err, jetstream.ErrKeyNotFound) { // or it was deleted
				data, err := json.Marshal(v)
				if err != nil {
					return err
				}
				_, err = kv.Create(ctx, v.ID, data)
				return err
			}
			if err != nil {
				return err
			}
			merged := v
			if there, err := decodeRevocation(v.ID, entry.Value()); err == nil {
				if merged = there.merge(v); merged == there {
					return nil
				}
			}
			data, err := json.Marshal(merged)
			if err != nil {
				return err
			}
			_, err = kv.Update(ctx, v.ID, data, entry.Revision())
			return err
		}()
		var conflict *jetstream.APIError
		switch {
		case err == nil:
			n.mu.Lock()
			n.sentLocked(v.ID)
			n.mu.Unlock()
			return nil
		case errors.Is(err, jetstream.ErrKeyExists),
			errors.As(err, &conflict) && (conflict.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
				conflict.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant):
			// Another replica was quicker: once more, on top of that.
			if ctx.Err() != nil {
				return ctx.Err()
			}
		default:
			return fmt.Errorf("write: %w", err)
		}
	}
}

// remove shares a deletion that removedHereLocked noted.
func (n *natsStore) remove(ctx context.Context, id string) error {
	n.mu.Lock()
	kv := n.kv
	n.mu.Unlock()
	if kv == nil {
		return ErrNotShared
	}
	if err := n.sendDelete(ctx, kv, id); err != nil {
		n.lost(err)
		n.again()
		return fmt.Errorf("%w: %w", ErrNotShared, err)
	}
	return nil
}

func (n *natsStore) sendDelete(ctx context.Context, kv jetstream.KeyValue, id string) error {
	ctx, cancel := context.WithTimeout(ctx, natsTimeout)
	defer cancel()
	if err := kv.Delete(ctx, id); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.deleted, id)
	return nil
}

// forget takes ended revocations out of the store, and in time the markers of deletions. All replicas do so, for none
// knows whether the others run; the store does not mind.
func (n *natsStore) forget(ctx context.Context, ended []string) {
	n.mu.Lock()
	kv := n.kv
	for _, id := range ended {
		n.sentLocked(id)
		delete(n.deleted, id)
	}
	n.mu.Unlock()
	if kv == nil || len(ended) == 0 {
		return
	}
	for _, id := range ended {
		ctx, cancel := context.WithTimeout(ctx, natsTimeout)
		entry, err := kv.Get(ctx, id)
		if err == nil {
			// Not where somebody has revoked it again since.
			if v, bad := decodeRevocation(id, entry.Value()); bad == nil && !n.revocations.now().Before(v.Until) {
				err = kv.Delete(ctx, id, jetstream.LastRevision(entry.Revision()))
			}
		}
		cancel()
		if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
			return // at another time
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*natsTimeout)
	defer cancel()
	// A replica that was away for longer than this would share again what it still has.
	if err := kv.PurgeDeletes(ctx, jetstream.DeleteMarkersOlderThan(revocationLife)); err != nil {
		slog.Warn("revocations: purge the store", slog.Any("error", err))
	}
}

// caughtUp is when all that the store has is known here.
func (n *natsStore) caughtUp(kv jetstream.KeyValue) {
	n.mu.Lock()
	before := n.shared
	n.kv, n.shared, n.err, n.said = kv, true, nil, true
	left := len(n.overdueLocked()) + len(n.deleted)
	n.mu.Unlock()
	if left > 0 { // what came after tell looked, and before kv was there to send it by
		n.again()
	}
	n.revocations.setReady()
	if !before {
		slog.Info("revocations are shared", slog.String("bucket", n.bucket), slog.String("server", n.conn.ConnectedUrlRedacted()))
	}
}

// lost is when they may no longer be.
func (n *natsStore) lost(err error) {
	n.mu.Lock()
	first := n.shared || !n.said
	n.kv, n.shared, n.err, n.said = nil, false, err, true
	n.mu.Unlock()
	switch {
	case !first: // it has been said
	case n.revocations.isReady():
		slog.Warn("revocations are not shared for now; what is known stays in force", slog.Any("error", err))
	default:
		slog.Warn("the store of revocations cannot be read: nobody is let in until it is, for it is not known who was shut out", slog.Any("error", err))
	}
}

// again has run read all anew.
func (n *natsStore) again() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *natsStore) status(s *RevocationStatus) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s.Store, s.Shared, s.Pending = "nats", n.shared, len(n.unsent)+len(n.deleted)
	if n.err != nil {
		s.Error = n.err.Error()
	}
}

func (n *natsStore) overdue() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.overdueLocked()) > 0
}

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

func wrap(step string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", step, err)
}
