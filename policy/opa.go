package policy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/logging"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/plugins/bundle"
	"github.com/open-policy-agent/opa/v1/plugins/discovery"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"oras.land/oras-go/v2/content/oci"
)

// opaKeys are the parts of OPA's configuration that have a meaning here. The rest is refused rather than ignored:
// decisions are not made by OPA's server nor logged by its plugins.
var opaKeys = []string{"services", "labels", "keys", "bundles", "discovery", "persistence_directory"}

// opaWait bounds how long a load waits to hear from every bundle.
const opaWait = 30 * time.Second

// opaSource is `policy.opa`. OPA's plugins download, verify and persist bundles, and put them into a store. The store
// is ours: it takes over only what makes a good policy, so that a bad bundle is neither activated nor persisted.
type opaSource struct {
	config []byte
	// alone: one bundle is the whole policy, so that it can be judged even before anything is in force.
	alone bool
	offer func(*files) error
	fail  func(error)
	force func() bool // whether a policy is in force

	manager *plugins.Manager // of the newest load; guarded by the engine's loading

	// mu guards what the plugins told.
	mu      sync.Mutex
	told    map[string]error // by bundle: what came of it last; nil = nobody listens
	changed chan struct{}    // closed when told changes
}

func newOPASource(c map[string]any, offer func(*files) error, fail func(error), force func() bool) (*opaSource, error) {
	config, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("policy.opa: %w", err)
	}
	bundles, _ := c["bundles"].(map[string]any)
	return &opaSource{
		config: config, alone: len(bundles) == 1 && c["discovery"] == nil,
		offer: offer, fail: fail, force: force,
	}, nil
}

// load begins anew: OPA's downloaders cannot be asked for an extra download while they poll. The policy in force
// stays until the first bundle is there.
func (s *opaSource) load(ctx context.Context) error {
	store := &acceptingStore{Store: inmem.NewWithOpts(inmem.OptRoundTripOnWrite(false)), accept: s.accept}
	m, err := plugins.New(s.config, "sluice", store, plugins.Logger(logging.NewNoOpLogger()))
	if err != nil {
		return fmt.Errorf("policy.opa: %w", err)
	}
	if err := m.Init(ctx); err != nil {
		return fmt.Errorf("policy.opa: %w", err)
	}
	if err := canKeep(m); err != nil {
		return fmt.Errorf("policy.opa: %w", err)
	}
	d, err := discovery.New(m)
	if err != nil {
		return fmt.Errorf("policy.opa: %w", err)
	}
	m.Register(discovery.Name, d)
	s.listen(m)
	d.RegisterListener(s, func(st bundle.Status) {
		s.tell("discovery", st.Errors, st.Message)
		s.listen(m) // bundles may have come with it
	})

	s.stop()
	s.mu.Lock()
	s.told, s.changed = map[string]error{}, make(chan struct{})
	s.mu.Unlock()
	if err := mendLayout(m); err != nil {
		return fmt.Errorf("policy.opa: %w", err)
	}
	if err := m.Start(ctx); err != nil {
		m.Stop(ctx)
		return fmt.Errorf("policy.opa: %w", err)
	}
	s.manager = m
	s.listen(m)
	return s.wait(ctx, m)
}

// canKeep finds out before OPA does whether there is a place for what it keeps: its downloader of OCI artifacts panics
// where there is none, later even in a goroutine of its own.
func canKeep(m *plugins.Manager) error {
	at, key := os.TempDir(), "the directory for temporary files"
	if dir := m.GetConfig().PersistenceDirectory; dir != nil {
		at, key = *dir, "persistence_directory"
	} else if !slices.ContainsFunc(m.Services(), func(name string) bool { return strings.EqualFold(m.Client(name).Config().Type, "oci") }) {
		return nil
	}
	err := os.MkdirAll(at, 0o700)
	if err == nil {
		var probe string
		if probe, err = os.MkdirTemp(at, ".probe-*"); err == nil {
			err = os.Remove(probe)
		}
	}
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w", key, err)
	}
	return nil
}

// mendLayout begins anew what OPA keeps of OCI artifacts, where a death in the middle of a write has left it unreadable:
// OPA would panic at it, at every start from then on. What is lost is downloaded again; the bundle that is kept for when
// its source is down is not in there.
func mendLayout(m *plugins.Manager) error {
	at := m.GetConfig().PersistenceDirectory
	if at == nil {
		return nil
	}
	dir := filepath.Join(*at, "oci")
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	if _, err := oci.New(dir); err == nil {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove what is left of OCI artifacts: %w", err)
	}
	return nil
}

// stop ends the polling. That a poll is broken off by it is no failure to tell of.
func (s *opaSource) stop() {
	s.mu.Lock()
	s.told = nil
	s.mu.Unlock()
	if s.manager != nil {
		s.manager.Stop(context.Background())
		s.manager = nil
	}
}

// listen hears of what becomes of each bundle.
func (s *opaSource) listen(m *plugins.Manager) {
	if p := bundle.Lookup(m); p != nil {
		p.Register(s, func(st bundle.Status) { s.tell(st.Name, st.Errors, st.Message) })
	}
}

func (s *opaSource) tell(name string, errs []error, message string) {
	var err error
	if len(errs) > 0 {
		err = errors.Join(errs...)
	} else if message != "" && name != "discovery" {
		err = errors.New(message)
	}
	s.mu.Lock()
	if s.told == nil {
		s.mu.Unlock()
		return
	}
	if err != nil {
		err = fmt.Errorf("bundle %s: %w", name, err)
	}
	s.told[name] = err
	close(s.changed)
	s.changed = make(chan struct{})
	all := s.problems()
	s.mu.Unlock()
	s.fail(all)
}

// problems needs mu.
func (s *opaSource) problems() error {
	var errs []error
	for _, name := range sortedKeys(s.told) {
		errs = append(errs, s.told[name])
	}
	return errors.Join(errs...)
}

// wait returns when every bundle has been heard of.
func (s *opaSource) wait(ctx context.Context, m *plugins.Manager) error {
	ctx, cancel := context.WithTimeout(ctx, opaWait)
	defer cancel()
	for {
		s.mu.Lock()
		all, changed := s.heard(m), s.changed
		err := s.problems()
		s.mu.Unlock()
		if all {
			if err == nil && !s.force() {
				err = errors.New("policy.opa: the bundles are there, but hold no policy")
			}
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(err, fmt.Errorf("policy.opa: not all bundles came within %v", opaWait))
		}
	}
}

// heard needs mu.
func (s *opaSource) heard(m *plugins.Manager) bool {
	var want []string
	if c := m.GetConfig(); len(c.Discovery) > 0 {
		want = append(want, "discovery")
	}
	if p := bundle.Lookup(m); p != nil {
		want = append(want, sortedKeys(p.Config().Bundles)...)
	}
	return !slices.ContainsFunc(want, func(name string) bool { _, ok := s.told[name]; return !ok })
}

// watch has little to do: the plugins poll by themselves. Only bundles that are files are read once, and then not
// looked at again.
func (s *opaSource) watch(ctx context.Context, reload func()) {
	defer s.stop()
	var work sync.WaitGroup
	defer work.Wait()
	for _, file := range s.files() {
		work.Go(func() { watchTree(ctx, file, reload) })
	}
	<-ctx.Done()
}

func (s *opaSource) files() []string {
	var c struct {
		Bundles map[string]struct{ Resource string }
	}
	json.Unmarshal(s.config, &c)
	var list []string
	for _, name := range sortedKeys(c.Bundles) {
		if u, err := url.Parse(c.Bundles[name].Resource); err == nil && u.Scheme == "file" {
			list = append(list, u.Path)
		}
	}
	return list
}

// accept judges what the bundles together are, before it is committed. An error refuses the commit, and with it the
// bundle.
func (s *opaSource) accept(ctx context.Context, store storage.Store, txn storage.Transaction, lost bool) error {
	f, err := readStore(ctx, store, txn)
	if err != nil {
		return err
	}
	if len(f.rego) == 0 && !s.force() && !s.alone {
		return nil // other bundles are still to come
	}
	s.mu.Lock()
	f.kept = len(s.told) == 0 // nobody was heard of yet: persisted bundles come first
	s.mu.Unlock()
	err = s.offer(f)
	// Of several bundles the first cannot be whole, and one that is taken away cannot be refused: these are
	// committed though the policy in force stays what it was.
	committed := err == nil || lost || !s.force() && !s.alone
	s.mu.Lock()
	delete(s.told, together)
	if err != nil && committed && s.told != nil {
		s.told[together] = fmt.Errorf("the bundles together: %w", err)
	}
	s.mu.Unlock()
	if committed {
		return nil
	}
	return err
}

// together stands among the bundles for what they make together. No bundle is called so.
const together = ""

// readStore takes over what the bundles wrote.
func readStore(ctx context.Context, store storage.Store, txn storage.Transaction) (*files, error) {
	f := newFiles()
	f.fresh = true
	ids, err := store.ListPolicies(ctx, txn)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if isTest(id) {
			continue
		}
		if f.rego[id], err = store.GetPolicy(ctx, txn, id); err != nil {
			return nil, err
		}
	}
	root, err := store.Read(ctx, txn, storage.Path{})
	if err != nil {
		return nil, err
	}
	f.data = maps.Clone(root.(map[string]any))
	delete(f.data, "system") // OPA's own notes

	names, err := opabundle.ReadBundleNamesFromStore(ctx, store, txn)
	if err != nil && !storage.IsNotFound(err) {
		return nil, err
	}
	slices.Sort(names)
	var revisions []string
	for _, name := range names {
		revision, err := opabundle.ReadBundleRevisionFromStore(ctx, store, txn, name)
		if err != nil && !storage.IsNotFound(err) {
			return nil, err
		}
		switch {
		case revision == "": // the manifest has none
		case len(names) == 1:
			revisions = append(revisions, revision)
		default:
			revisions = append(revisions, name+"@"+revision)
		}
	}
	if f.revision = strings.Join(revisions, ","); f.revision == "" {
		content, err := json.Marshal(f.data)
		if err != nil {
			return nil, err
		}
		f.docs[""] = content
		f.revision = f.hash()
		delete(f.docs, "")
	}
	return f, nil
}

// acceptingStore asks before it commits.
type acceptingStore struct {
	storage.Store
	accept  func(ctx context.Context, store storage.Store, txn storage.Transaction, lost bool) error
	writing atomic.Uint64 // the one transaction that writes
	bundles []string      // those of the last commit; there is one writer at a time
}

func (s *acceptingStore) NewTransaction(ctx context.Context, params ...storage.TransactionParams) (storage.Transaction, error) {
	txn, err := s.Store.NewTransaction(ctx, params...)
	if err == nil && len(params) > 0 && params[0].Write {
		s.writing.Store(txn.ID())
	}
	return txn, err
}

func (s *acceptingStore) Commit(ctx context.Context, txn storage.Transaction) error {
	if s.writing.Load() != txn.ID() {
		return s.Store.Commit(ctx, txn)
	}
	names, err := opabundle.ReadBundleNamesFromStore(ctx, s.Store, txn)
	if err != nil && !storage.IsNotFound(err) {
		s.Store.Abort(ctx, txn)
		return err
	}
	lost := slices.ContainsFunc(s.bundles, func(name string) bool { return !slices.Contains(names, name) })
	if len(names) > 0 || lost {
		if err := s.accept(ctx, s.Store, txn, lost); err != nil {
			s.Store.Abort(ctx, txn)
			return err
		}
	}
	s.bundles = names
	return s.Store.Commit(ctx, txn)
}

// keeps is where OPA keeps what it gets, "" where it keeps nothing.
func keeps(c map[string]any) string {
	anything := c["discovery"] != nil // what comes with it may
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			anything = anything || v["persist"] == true || v["type"] == "oci"
			for _, below := range v {
				walk(below)
			}
		case []any:
			for _, below := range v {
				walk(below)
			}
		}
	}
	if walk(c); !anything {
		return ""
	}
	dir, _ := c["persistence_directory"].(string)
	dir, err := filepath.Abs(cmp.Or(dir, ".opa")) // OPA's default
	if err != nil {
		return ""
	}
	return dir
}

// checkOPA reports every problem of the section.
func checkOPA(c map[string]any, at string, report func(path, problem string)) {
	for _, key := range sortedKeys(c) {
		if !slices.Contains(opaKeys, key) {
			report(at+key, "has no meaning here: want "+strings.Join(opaKeys, ", "))
		}
	}
	if c["bundles"] == nil && c["discovery"] == nil {
		report(at+"bundles", "missing: name a bundle, or use discovery")
	}
	raw, err := json.Marshal(c)
	if err != nil {
		report(strings.TrimSuffix(at, "."), err.Error())
		return
	}
	m, err := plugins.New(raw, "sluice", inmem.New(), plugins.Logger(logging.NewNoOpLogger()))
	if err == nil {
		_, err = discovery.New(m)
	}
	if err != nil {
		report(strings.TrimSuffix(at, "."), err.Error())
	}
}
