package identity_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/test/machine"
)

const announcements = "sluice_revocations.revoked"

func connect(t *testing.T, server string, options ...nats.Option) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect(server, append(options, nats.Timeout(machine.Patience))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// say publishes a message of some other replica, or of somebody who would like to be one.
func say(t *testing.T, conn *nats.Conn, message any) {
	t.Helper()
	data, ok := message.(string)
	if !ok {
		encoded, err := json.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		data = string(encoded)
	}
	if err := conn.Publish(announcements, []byte(data)); err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// Whatever is said on the subject where revocations are announced, nobody who is shut out gets in again, and not one of the
// forms that nobody should believe shuts anybody out.
func TestAnnouncementsOnlyRefuse(t *testing.T) {
	running := startNATS(t)
	r := openRevocations(t, identity.RevocationConfig{Store: running.url()}, nil)
	eventually(t, "it to share", shared(r))
	conn := connect(t, running.url())
	until := time.Now().Add(10 * time.Hour).UTC().Truncate(time.Second)
	v := add(t, r, identity.Revocation{Issuer: "i", Session: "gone", Until: until})
	change := func(f func(*identity.Revocation)) any {
		changed := v
		f(&changed)
		return map[string]any{"revoked": []identity.Revocation{changed}}
	}
	other := func(f func(*identity.Revocation)) any { // of somebody who is not revoked, and whose id is right
		made, err := openRevocations(t, identity.RevocationConfig{}, nil).Add(t.Context(), identity.Revocation{Issuer: "i", Session: "victim", Until: until})
		if err != nil {
			t.Fatal(err)
		}
		f(&made)
		return map[string]any{"revoked": []identity.Revocation{made}}
	}
	for name, message := range map[string]any{
		"no JSON":          "revoked",
		"nothing":          "",
		"another type":     `{"revoked": "all"}`,
		"a deletion":       map[string]any{"deleted": []string{v.ID}, "revoked": []any{}},
		"ended":            change(func(v *identity.Revocation) { v.Until = time.Now().Add(-time.Hour) }),
		"ends sooner":      change(func(v *identity.Revocation) { v.Until = time.Now().Add(time.Second) }),
		"ends never":       change(func(v *identity.Revocation) { v.Until = time.Time{} }),
		"spares the later": change(func(v *identity.Revocation) { v.IssuedBefore = time.Unix(1, 0) }),
		"another issuer":   change(func(v *identity.Revocation) { v.Issuer = "j" }),
		"another session":  change(func(v *identity.Revocation) { v.Session = "victim" }),
		"another id":       other(func(v *identity.Revocation) { v.ID = "x" }),
		"two targets":      other(func(v *identity.Revocation) { v.Subject = "me" }),
		"no issuer":        other(func(v *identity.Revocation) { v.Issuer = "" }),
		"in the past":      other(func(v *identity.Revocation) { v.Until = time.Now().Add(-time.Hour) }),
		"without end":      other(func(v *identity.Revocation) { v.Until = time.Time{} }),
		"enormous":         other(func(v *identity.Revocation) { v.Session = strings.Repeat("x", 20<<10) }),
	} {
		say(t, conn, message)
		marker := openMarker(t, r, conn, name) // when it has been heard, so has the one before
		if refuses(r, "victim") || !refuses(r, "gone") {
			t.Errorf("%s: it was believed", name)
		}
		remove(t, r, marker)
	}
	if list := r.List(); len(list) != 1 || list[0] != v {
		t.Errorf("%+v, not %+v", list, v)
	}
	say(t, conn, change(func(v *identity.Revocation) { v.Until = until.Add(time.Hour) }))
	eventually(t, "the later end", func() bool { return r.List()[0].Until.Equal(until.Add(time.Hour)) })
}

// openMarker announces a revocation as another replica would, waits until it is in force, and returns its id.
func openMarker(t *testing.T, r *identity.Revocations, conn *nats.Conn, session string) string {
	t.Helper()
	return openMarkerAfter(t, r, conn, session, 0)
}

// openMarkerAfter is openMarker as by a replica that had seen so much of the bucket.
func openMarkerAfter(t *testing.T, r *identity.Revocations, conn *nats.Conn, session string, after uint64) string {
	t.Helper()
	made, err := openRevocations(t, identity.RevocationConfig{}, nil).Add(t.Context(), identity.Revocation{Issuer: "i", Session: session})
	if err != nil {
		t.Fatal(err)
	}
	say(t, conn, map[string]any{"revoked": []identity.Revocation{made}, "after": after})
	eventually(t, "what was announced", func() bool { return refuses(r, session) })
	return made.ID
}

// revisionOf is the bucket's last.
func revisionOf(t *testing.T, kv jetstream.KeyValue) uint64 {
	t.Helper()
	status, err := kv.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status.(*jetstream.KeyValueBucketStatus).StreamInfo().State.LastSeq
}

// What was heard and does not show in the bucket, because whoever said it died before he had written it, is written there by
// those who heard it.
func TestAnnouncedAndNotKept(t *testing.T) {
	running := startNATS(t)
	store := identity.RevocationConfig{Store: running.url()}
	a, b := openRevocations(t, store, nil), openRevocations(t, store, nil)
	eventually(t, "both to share", func() bool { return shared(a)() && shared(b)() })
	id := openMarker(t, a, connect(t, running.url()), "env-42")
	eventually(t, "the other replica to hear it too", func() bool { return refuses(b, "env-42") })
	kv, _ := bucket(t, running.url(), "sluice_revocations")
	eventually(t, "the bucket to have it", func() bool { _, err := kv.Get(t.Context(), id); return err == nil && shared(a)() && shared(b)() })
	late := openRevocations(t, store, nil)
	eventually(t, "one that starts later", func() bool { return refuses(late, "env-42") })
}

// An announcement that comes after the deletion does not bring the revocation back; the same revoked anew does.
func TestAnnouncedTooLate(t *testing.T) {
	running := startNATS(t)
	r := openRevocations(t, identity.RevocationConfig{Store: running.url()}, nil)
	eventually(t, "it to share", shared(r))
	conn := connect(t, running.url())
	v := add(t, r, identity.Revocation{Issuer: "i", Session: "env-42"})
	remove(t, r, v.ID)
	kv, _ := bucket(t, running.url(), "sluice_revocations")
	marker := revisionOf(t, kv) // of its deletion: what is said below may be written there in time
	say(t, conn, map[string]any{"revoked": []identity.Revocation{v}})
	openMarker(t, r, conn, "marker")
	if refuses(r, "env-42") {
		t.Error("a revocation that was deleted is back")
	}
	// Nor does it with one that began when all that was left was the marker, told by a replica that had seen less.
	late := openRevocations(t, identity.RevocationConfig{Store: running.url()}, nil)
	eventually(t, "it to share", shared(late))
	say(t, conn, map[string]any{"revoked": []identity.Revocation{v}, "after": marker - 1})
	openMarker(t, late, conn, "marker-2")
	if refuses(late, "env-42") {
		t.Error("a revocation that was deleted is there")
	}
	v.Created = v.Created.Add(time.Millisecond)
	say(t, conn, map[string]any{"revoked": []identity.Revocation{v}, "after": marker})
	eventually(t, "the new one", func() bool { return refuses(r, "env-42") && refuses(late, "env-42") })
}

// What was announced and then deleted is deleted, though its entry in the bucket was never seen, but for the marker of its
// deletion. A marker that was there before it was announced is of another.
func TestAnnouncedThenDeleted(t *testing.T) {
	running := startNATS(t)
	r := openRevocations(t, identity.RevocationConfig{Store: running.url()}, nil)
	eventually(t, "it to share", shared(r))
	conn := connect(t, running.url())
	kv, _ := bucket(t, running.url(), "sluice_revocations")
	revision := revisionOf(t, kv)
	began := time.Now()
	id := openMarkerAfter(t, r, conn, "env-1", revision)
	other := openMarkerAfter(t, r, conn, "env-2", revision+100)
	for _, id := range []string{id, other} {
		if err := kv.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the deletion to be known", func() bool { return !refuses(r, "env-1") })
	openMarker(t, r, conn, "later")
	// After two seconds what was heard is written into the bucket, and then the marker is of that.
	if time.Since(began) < 2*time.Second && !refuses(r, "env-2") {
		t.Error("a marker from before it was announced deleted a revocation")
	}
}

// Who was not connected when something was announced asks for it, and is told by any replica that knows, though the bucket
// cannot be read.
func TestAskedWhatWasMissed(t *testing.T) {
	running := startNATS(t)
	store := identity.RevocationConfig{Store: running.url()}
	a := openRevocations(t, store, nil)
	eventually(t, "it to share", shared(a))
	v := add(t, a, identity.Revocation{Issuer: "i", Session: "env-42"})
	conn := connect(t, running.url())
	heard, err := conn.SubscribeSync(announcements)
	if err != nil {
		t.Fatal(err)
	}
	say(t, conn, `{"ask": true}`)
	for {
		m, err := heard.NextMsg(machine.Patience)
		if err != nil {
			t.Fatal(err)
		}
		var said struct{ Revoked []identity.Revocation }
		if err := json.Unmarshal(m.Data, &said); err != nil {
			t.Fatal(err)
		}
		if len(said.Revoked) == 0 {
			continue // the question itself
		}
		if len(said.Revoked) != 1 || said.Revoked[0] != v {
			t.Errorf("%s", m.Data)
		}
		return
	}
}

// The permissions that docs/replicas.md gives a replica are enough for it; a client without them reads nothing, and shuts
// nobody out.
func TestNATSPermissions(t *testing.T) {
	document, err := os.ReadFile("../../docs/replicas.md")
	if err != nil {
		t.Fatal(err)
	}
	permissions := func(kind string) jwt.Permission {
		_, rest, ok := strings.Cut(string(document), kind+": [")
		list, _, closed := strings.Cut(rest, "]")
		if !ok || !closed {
			t.Fatalf("docs/replicas.md does not say what a replica may %s", kind)
		}
		var p jwt.Permission
		for subject := range strings.SplitSeq(list, ",") {
			p.Allow.Add(strings.Trim(subject, "\" \n\t"))
		}
		return p
	}
	running, user := startGuardedNATS(t)
	replica := user(jwt.Permissions{Pub: permissions("publish"), Sub: permissions("subscribe")})
	foreign := user(jwt.Permissions{Pub: jwt.Permission{Allow: jwt.StringList{"else.>"}}, Sub: jwt.Permission{Allow: jwt.StringList{"else.>", "_INBOX.>"}}})

	store := identity.RevocationConfig{Store: running.url() + "?credentials=" + replica}
	a, b := openRevocations(t, store, nil), openRevocations(t, store, nil)
	eventually(t, "both to share", func() bool { return shared(a)() && shared(b)() })
	v := add(t, a, identity.Revocation{Issuer: "i", Session: "env-42"})
	eventually(t, "the other replica to know", func() bool { return refuses(b, "env-42") })
	add(t, b, v)
	remove(t, b, v.ID)
	eventually(t, "all to know that it is deleted", func() bool { return !refuses(a, "env-42") })
	told := make(chan string, 1)
	if stop, err := a.Channel("limits").Subscribe(func(data []byte) { told <- string(data) }); err != nil {
		t.Fatal(err)
	} else {
		defer stop()
	}
	eventually(t, "limits to be told", func() bool {
		b.Channel("limits").Publish([]byte("x"))
		select {
		case <-told:
			return true
		default:
			return false
		}
	})

	v.Created, v.Session = time.Now(), "env-42"
	refused := make(chan error, 16)
	conn := connect(t, running.url(), nats.UserCredentials(foreign), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	for _, subject := range []string{announcements, "sluice_revocations.limits", "$KV.sluice_revocations." + v.ID} {
		data, _ := json.Marshal(map[string]any{"revoked": []identity.Revocation{v}})
		if err := conn.Publish(subject, data); err != nil {
			t.Fatal(err)
		}
		conn.Flush()
		select {
		case err := <-refused:
			if !strings.Contains(err.Error(), "ermissions") {
				t.Errorf("%s: %v", subject, err)
			}
		case <-time.After(machine.Patience):
			t.Errorf("anybody may publish on %s", subject)
		}
	}
	if refuses(a, "env-42") || refuses(b, "env-42") {
		t.Error("a client without permission shut somebody out")
	}
}

// startGuardedNATS is a server that lets in who has credentials, and a maker of those.
func startGuardedNATS(t *testing.T) (*natsServer, func(jwt.Permissions) (file string)) {
	t.Helper()
	key := func(kp nkeys.KeyPair, err error) (nkeys.KeyPair, string) {
		if err != nil {
			t.Fatal(err)
		}
		public, err := kp.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return kp, public
	}
	operator, operatorName := key(nkeys.CreateOperator())
	account, accountName := key(nkeys.CreateAccount())
	_, system := key(nkeys.CreateAccount())
	claims := jwt.NewAccountClaims(accountName)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	encoded, err := claims.Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	resolver := &server.MemAccResolver{}
	if err := resolver.Store(accountName, encoded); err != nil {
		t.Fatal(err)
	}
	systemClaims, err := jwt.NewAccountClaims(system).Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	if err := resolver.Store(system, systemClaims); err != nil {
		t.Fatal(err)
	}
	running := startNATS(t, func(o *server.Options) {
		trusted := jwt.NewOperatorClaims(operatorName)
		trusted.SystemAccount = system
		o.TrustedOperators = []*jwt.OperatorClaims{trusted}
		o.SystemAccount = system
		o.AccountResolver = resolver
	})
	n := 0
	return running, func(p jwt.Permissions) string {
		user, userName := key(nkeys.CreateUser())
		claims := jwt.NewUserClaims(userName)
		claims.Permissions = p
		token, err := claims.Encode(account)
		if err != nil {
			t.Fatal(err)
		}
		seed, err := user.Seed()
		if err != nil {
			t.Fatal(err)
		}
		text, err := jwt.FormatUserConfig(token, seed)
		if err != nil {
			t.Fatal(err)
		}
		n++
		file := filepath.Join(t.TempDir(), fmt.Sprintf("user-%d.creds", n))
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
}
