package identity_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/identity/oidctest"
	"github.com/sluice-s3/sluice/test/machine"
)

// natsServer is a NATS server with JetStream, in this process, that can be stopped and started.
type natsServer struct {
	t       *testing.T
	options server.Options
	*server.Server
}

func startNATS(t *testing.T, change ...func(*server.Options)) *natsServer {
	t.Helper()
	s := &natsServer{t: t, options: server.Options{
		Host: "127.0.0.1", Port: machine.FreePort(t), JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
	}}
	for _, f := range change {
		f(&s.options)
	}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *natsServer) start() {
	s.t.Helper()
	options := s.options
	running, err := server.NewServer(&options)
	if err != nil {
		s.t.Fatal(err)
	}
	running.Start()
	if !running.ReadyForConnections(machine.Patience) {
		s.t.Fatal("the NATS server does not start")
	}
	s.Server = running
}

func (s *natsServer) stop() {
	s.Shutdown()
	s.WaitForShutdown()
}

func (s *natsServer) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", s.options.Port) }

func shared(r *identity.Revocations) func() bool {
	return func() bool { s := r.Status(); return s.Ready && s.Shared && s.Pending == 0 }
}

func refuses(r *identity.Revocations, session string) bool {
	return kind(r.Check(&identity.Identity{Issuer: "i", Session: session})) == identity.Revoked
}

// add revokes, and waits until the store has it. A server that does not answer for half a second is taken for one that hangs, as it
// does where the machine stands still; it is told what it missed.
func add(t *testing.T, r *identity.Revocations, v identity.Revocation) identity.Revocation {
	t.Helper()
	v, err := r.Add(t.Context(), v)
	inStore(t, r, err)
	return v
}

// remove is the same of a deletion.
func remove(t *testing.T, r *identity.Revocations, id string) {
	t.Helper()
	inStore(t, r, r.Delete(t.Context(), id))
}

func inStore(t *testing.T, r *identity.Revocations, err error) {
	t.Helper()
	switch {
	case errors.Is(err, identity.ErrNotShared):
		eventually(t, "the store to be told", shared(r))
	case err != nil:
		t.Fatal(err)
	}
}

func TestNATSSharesRevocations(t *testing.T) {
	store := identity.RevocationConfig{Store: startNATS(t).url()}
	a, b := openRevocations(t, store, nil), openRevocations(t, store, nil)
	eventually(t, "both to share", func() bool { return shared(a)() && shared(b)() })
	var cut atomic.Bool
	track(b, &identity.Identity{Issuer: "i", Session: "env-42"}, func() { cut.Store(true) })
	if refuses(a, "env-42") || refuses(b, "env-42") {
		t.Fatal("revoked already")
	}
	watch := machine.Watch(t)
	v := add(t, a, identity.Revocation{Issuer: "i", Session: "env-42"})
	eventually(t, "the other replica to know", func() bool { return refuses(b, "env-42") && cut.Load() })
	watch.Within(t, time.Second, "known everywhere")
	if list := b.List(); len(list) != 1 || list[0] != v {
		t.Errorf("there %+v, here %+v", list, v)
	}
	late := openRevocations(t, store, nil)
	eventually(t, "one that starts later", func() bool { return refuses(late, "env-42") })
	remove(t, b, v.ID)
	eventually(t, "all to know that it is deleted", func() bool { return !refuses(a, "env-42") && !refuses(late, "env-42") })
	eventually(t, "nothing to be amiss", func() bool {
		status := a.Status()
		return status.Store == "nats" && status.Shared && status.Error == "" && status.Count == 0
	})
}

func TestNATSOutage(t *testing.T) {
	nats := startNATS(t)
	store := identity.RevocationConfig{Store: nats.url()}
	a, b := openRevocations(t, store, nil), openRevocations(t, store, nil)
	eventually(t, "both to share", func() bool { return shared(a)() && shared(b)() })
	before := add(t, a, identity.Revocation{Issuer: "i", Session: "before"})
	eventually(t, "the other replica to know", func() bool { return refuses(b, "before") })

	nats.stop()
	eventually(t, "the loss to show", func() bool { return !a.Status().Shared && !b.Status().Shared })
	if s := a.Status(); s.Error == "" || !s.Ready {
		t.Errorf("%+v", s)
	}
	if !refuses(a, "before") || !refuses(b, "before") {
		t.Error("what was known is forgotten")
	}
	if _, err := a.Add(t.Context(), identity.Revocation{Issuer: "i", Session: "meanwhile"}); !errors.Is(err, identity.ErrNotShared) {
		t.Errorf("revoked while nobody can be told: %v", err)
	}
	if !refuses(a, "meanwhile") || refuses(b, "meanwhile") {
		t.Error("in force where it should not be, or not where it should")
	}
	if err := b.Delete(t.Context(), before.ID); !errors.Is(err, identity.ErrNotShared) {
		t.Errorf("deleted while nobody can be told: %v", err)
	}
	if a.Status().Pending != 1 || b.Status().Pending != 1 {
		t.Errorf("%+v, %+v", a.Status(), b.Status())
	}

	nats.start()
	eventually(t, "both to catch up", func() bool {
		return shared(a)() && shared(b)() && refuses(a, "meanwhile") && refuses(b, "meanwhile") && !refuses(a, "before") && !refuses(b, "before")
	})
}

// A store that comes back empty is told what the replicas know.
func TestNATSStoreLost(t *testing.T) {
	nats := startNATS(t)
	store := identity.RevocationConfig{Store: nats.url()}
	a := openRevocations(t, store, nil)
	eventually(t, "it to share", shared(a))
	add(t, a, identity.Revocation{Issuer: "i", Session: "env-42"})
	nats.stop()
	nats.options.StoreDir = t.TempDir()
	nats.start()
	b := openRevocations(t, store, nil)
	eventually(t, "a new replica to know", func() bool { return refuses(a, "env-42") && refuses(b, "env-42") })
}

// The bucket is deleted and made anew under the replicas, whose connections stay.
func TestNATSBucketMadeAnew(t *testing.T) {
	running := startNATS(t)
	store := identity.RevocationConfig{Store: running.url() + "?bucket=mine"}
	a := openRevocations(t, store, nil)
	eventually(t, "it to share", shared(a))
	add(t, a, identity.Revocation{Issuer: "i", Session: "env-42"})
	kv, js := bucket(t, running.url(), "mine")
	if _, err := kv.Get(t.Context(), a.List()[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteKeyValue(t.Context(), "mine"); err != nil {
		t.Fatal(err)
	}
	b := openRevocations(t, store, nil)
	eventually(t, "a new replica to know", func() bool { return refuses(a, "env-42") && refuses(b, "env-42") })
}

func bucket(t *testing.T, server, name string) (jetstream.KeyValue, jetstream.JetStream) {
	t.Helper()
	js, err := jetstream.New(connect(t, server), jetstream.WithDefaultTimeout(machine.Patience))
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return kv, js
}

// Starting without the store: who has a file goes by it, who has none lets nobody in until he knows.
func TestNATSStartWithoutTheStore(t *testing.T) {
	nats := startNATS(t)
	file := filepath.Join(t.TempDir(), "revocations")
	a := openRevocations(t, identity.RevocationConfig{Store: nats.url(), File: file}, nil)
	eventually(t, "it to share", shared(a))
	add(t, a, identity.Revocation{Issuer: "i", Session: "env-42"})
	nats.stop()

	withFile := openRevocations(t, identity.RevocationConfig{Store: nats.url(), File: file}, nil)
	if !refuses(withFile, "env-42") {
		t.Error("the file is not gone by")
	}
	if err := withFile.Check(&identity.Identity{Issuer: "i", Session: "other"}); err != nil {
		t.Errorf("with a file: %v", err)
	}
	issuer := newIssuer(t, oidctest.Options{})
	blind := trust(t, issuer, func(c *identity.Config) { c.Revocation.Store = nats.url() })
	token := issuer.Token(map[string]any{"aud": forUs})
	_, err := blind.Authenticate(bearer(token))
	said(t, err, identity.Unavailable, token, "not known yet")
	if blind.Status().Ready() {
		t.Error("ready, though it does not know who is revoked")
	}
	nats.start()
	eventually(t, "it to know", func() bool { _, err := blind.Authenticate(bearer(token)); return err == nil })
	if !blind.Status().Ready() {
		t.Errorf("%+v", blind.Status())
	}
}

// Replicas that revoke the same at once: the latest end counts, whoever writes last.
func TestNATSRevokingAtOnce(t *testing.T) {
	store := identity.RevocationConfig{Store: startNATS(t).url()}
	replicas := make([]*identity.Revocations, 4)
	for n := range replicas {
		replicas[n] = openRevocations(t, store, nil)
		eventually(t, "it to share", shared(replicas[n]))
	}
	end := time.Now().Add(100 * time.Hour).UTC().Truncate(time.Second)
	var wg sync.WaitGroup
	for n, r := range replicas {
		wg.Go(func() {
			for session := range 20 {
				until := end.Add(-time.Duration((n+session)%len(replicas)) * time.Hour)
				if _, err := r.Add(t.Context(), identity.Revocation{Issuer: "i", Session: fmt.Sprint(session), Until: until}); err != nil && !errors.Is(err, identity.ErrNotShared) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, r := range replicas {
		eventually(t, "the latest end", func() bool {
			list := r.List()
			for _, v := range list {
				if !v.Until.Equal(end) {
					return false
				}
			}
			return len(list) == 20
		})
	}
}

// A bucket that is written to without rest is followed: there is always something that is on its way.
func TestNATSWrittenToWithoutRest(t *testing.T) {
	running := startNATS(t)
	r := openRevocations(t, identity.RevocationConfig{Store: running.url()}, nil)
	eventually(t, "it to share", shared(r))
	v := add(t, r, identity.Revocation{Issuer: "i", Session: "s"})
	kv, _ := bucket(t, running.url(), "sluice_revocations")
	entry, err := kv.Get(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	var ended atomic.Bool
	for range 4 {
		writers.Go(func() {
			for !ended.Load() {
				if _, err := kv.Put(t.Context(), v.ID, entry.Value()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	// It looks every 400 ms. Where the machine stood still for as long, nothing was brought.
	for tries := 1; ; tries++ {
		watch, lost := machine.Watch(t), ""
		for watch.Took() < 2*time.Second && lost == "" {
			time.Sleep(time.Millisecond)
			if s := r.Status(); !s.Shared {
				lost = s.Error
			}
		}
		if lost == "" {
			break
		}
		if late := watch.Excuse() / 10; late < 400*time.Millisecond || tries == 10 {
			t.Errorf("lost after %v, of which this machine stood still for %v: %s", watch.Took(), late, lost)
			break
		}
		eventually(t, "it to share again", func() bool { return r.Status().Shared })
	}
	ended.Store(true)
	writers.Wait()
}

// A store that has been read is told what was in force here and is not there. What came while it was read it has had: it may have been
// deleted since.
func TestNATSToldWhatItLost(t *testing.T) {
	running := startNATS(t)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	r, err := identity.OpenRevocations(ctx, identity.RevocationConfig{Store: running.url()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it to share", shared(r))
	kv, js := bucket(t, running.url(), "sluice_revocations")
	before := time.Now()
	v := add(t, r, identity.Revocation{Issuer: "i", Session: "env-42"})
	end()
	eventually(t, "it to read nothing by itself", func() bool { return !r.FollowsStore() })
	stream, err := js.Stream(t.Context(), "KV_sluice_revocations")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil { // without a marker
		t.Fatal(err)
	}
	for _, test := range []struct {
		began time.Time
		told  bool
	}{{before, false}, {time.Now(), true}} {
		if err := r.TellStore(t.Context(), kv, test.began); err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Get(t.Context(), v.ID); (err == nil) != test.told {
			t.Errorf("read before it was revoked: %v; the store has it: %v", !test.told, err)
		}
	}
}

func TestNATSForgetsWhatEnded(t *testing.T) {
	clock := newClock()
	running := startNATS(t)
	store := identity.RevocationConfig{Store: running.url()}
	a, b := openRevocations(t, store, clock.now), openRevocations(t, store, clock.now)
	eventually(t, "both to share", func() bool { return shared(a)() && shared(b)() })
	for session, until := range map[string]time.Duration{"short": time.Minute, "long": time.Hour} {
		add(t, a, identity.Revocation{Issuer: "i", Session: session, Until: clock.now().Add(until)})
	}
	eventually(t, "the other replica to know", func() bool { return refuses(b, "short") && refuses(b, "long") })
	clock.pass(2 * time.Minute)
	if n := a.ForgetEnded(); n != 1 {
		t.Errorf("%d are forgotten", n)
	}
	b.ForgetEnded() // unless it heard from the store already
	kv, _ := bucket(t, running.url(), "sluice_revocations")
	keys, err := kv.Keys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Errorf("the store has %v, %v", keys, err)
	}
	if !refuses(a, "long") || !refuses(b, "long") {
		t.Error("the other is forgotten too")
	}
}

// What somebody else wrote into the bucket neither stops nor changes anything.
func TestNATSForeignEntries(t *testing.T) {
	running := startNATS(t)
	store := identity.RevocationConfig{Store: running.url()}
	a := openRevocations(t, store, nil)
	eventually(t, "it to share", shared(a))
	kv, _ := bucket(t, running.url(), "sluice_revocations")
	for key, value := range map[string]string{"x": "no json", "y": `{"id":"y","issuer":"i","session":"victim","until":"2099-01-01T00:00:00Z"}`} {
		if _, err := kv.PutString(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	add(t, a, identity.Revocation{Issuer: "i", Session: "mine"})
	b := openRevocations(t, store, nil)
	eventually(t, "a new replica to know", func() bool { return refuses(b, "mine") })
	if refuses(b, "victim") || len(b.List()) != 1 {
		t.Errorf("%+v", b.List())
	}
}

// Three servers; one is killed, and revocations go on within the second.
func TestNATSCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("three servers")
	}
	ports := []int{machine.FreePort(t), machine.FreePort(t), machine.FreePort(t)}
	var routes []*url.URL
	for _, port := range ports {
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", port)})
	}
	var servers []*natsServer
	var names []string
	var starting sync.WaitGroup
	servers = make([]*natsServer, len(ports))
	for n := range ports {
		options := func(o *server.Options) {
			o.ServerName = fmt.Sprint("n", n)
			o.Cluster = server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: ports[n]}
			o.Routes = routes
		}
		starting.Go(func() { servers[n] = startNATS(t, options) })
	}
	starting.Wait()
	for _, s := range servers {
		names = append(names, s.url())
	}
	store := identity.RevocationConfig{Store: strings.Join(names, ",")}
	a, b := openRevocations(t, store, nil), openRevocations(t, store, nil)
	eventually(t, "both to share", func() bool { return shared(a)() && shared(b)() })
	kv, js := bucket(t, names[0], "sluice_revocations")
	stream, err := js.Stream(t.Context(), "KV_sluice_revocations")
	if err != nil {
		t.Fatal(err)
	}
	if replicas := stream.CachedInfo().Config.Replicas; replicas != 3 {
		t.Errorf("%d replicas of the bucket", replicas)
	}
	if _, err := kv.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	add(t, a, identity.Revocation{Issuer: "i", Session: "before"})
	servers[0].stop()
	if !refuses(a, "before") {
		t.Error("forgotten")
	}
	// The revocation holds at once where it was made; the others know it as soon as the cluster has a leader again.
	if _, err := a.Add(t.Context(), identity.Revocation{Issuer: "i", Session: "during"}); err != nil && !errors.Is(err, identity.ErrNotShared) {
		t.Error(err)
	}
	eventually(t, "the other replica to know", func() bool { return refuses(b, "before") && refuses(b, "during") })
	eventually(t, "both to share again", func() bool { return shared(a)() && shared(b)() })
	// One of the watches may have died with the server, unnoticed so far.
	began := time.Now()
	add(t, b, identity.Revocation{Issuer: "i", Session: "after"})
	eventually(t, "the other replica to know", func() bool { return refuses(a, "after") })
	t.Logf("with two of three servers known everywhere after %v", time.Since(began))
}
