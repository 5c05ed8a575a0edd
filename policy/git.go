package policy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	gogit "github.com/go-git/go-git/v5"
	gitconfig "github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/memory"
)

const (
	gitInterval = 30 * time.Second
	gitTimeout  = time.Minute // for one look at the repository
	maxGitFiles = 64 << 20    // all files of a policy together

	// fetchedRef is what the repository had last; goodRef the last of it that was a good policy.
	fetchedRef = plumbing.ReferenceName("refs/sluice/fetched")
	goodRef    = plumbing.ReferenceName("refs/sluice/good")
)

// gitSource is `policy.git`. Files are read from the commit itself, without a work tree: what is in force is what
// was committed, whatever becomes of the cache's directory meanwhile.
type gitSource struct {
	config Git
	offer  func(*files) error
	repo   *gogit.Repository
	began  bool // something was offered: the last good policy is not needed any more
}

func newGitSource(c Git, offer func(*files) error) (*gitSource, error) {
	s := &gitSource{config: c, offer: offer}
	store, err := gitStore(&c)
	if err != nil {
		return nil, err
	}
	s.repo, err = gogit.Open(store, nil)
	if errors.Is(err, gogit.ErrRepositoryNotExists) {
		s.repo, err = gogit.Init(store, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("policy cache: %w", err)
	}
	return s, nil
}

// gitStore is a bare repository for each source, so that no two share references: a candidate from another branch of
// the same repository must never be taken for the last good policy.
func gitStore(c *Git) (storage.Storer, error) {
	dir := c.Cache
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return memory.NewStorage(), nil
		}
		dir = filepath.Join(user, "sluice", "policy")
	}
	name := sha256.New()
	for _, part := range []string{c.URL, c.ref(), path.Clean("/" + c.Path)} {
		hashPart(name, part)
	}
	dir = filepath.Join(dir, hex.EncodeToString(name.Sum(nil)[:8])+".git")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		if c.Cache == "" {
			return memory.NewStorage(), nil
		}
		return nil, fmt.Errorf("policy cache: %w", err)
	}
	return filesystem.NewStorage(osfs.New(dir), cache.NewObjectLRUDefault()), nil
}

func (s *gitSource) load(ctx context.Context) error {
	commit, err := s.fetch(ctx)
	if err == nil {
		err = s.offerCommit(commit, false)
	}
	if err != nil && !s.began && ctx.Err() == nil {
		// The repository has no good policy for us now. It may have had one before this process began.
		if good, refErr := s.repo.Reference(goodRef, true); refErr == nil {
			if goodErr := s.offerCommit(good.Hash(), true); goodErr != nil {
				err = errors.Join(err, fmt.Errorf("the last good policy: %w", goodErr))
			}
		}
	}
	return err
}

func (s *gitSource) watch(ctx context.Context, reload func()) {
	every(ctx, s.config.interval(), reload)
}

// every calls f again and again until ctx ends.
func every(ctx context.Context, interval time.Duration, f func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// fetch brings the commit that the ref names now, alone, without its history.
func (s *gitSource) fetch(ctx context.Context) (plumbing.Hash, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	fail := func(err error) (plumbing.Hash, error) {
		return plumbing.ZeroHash, fmt.Errorf("policy repository %s: %w", s.config.shownURL(), err)
	}
	auth, ca, err := s.config.credentials()
	if err != nil {
		return fail(err)
	}
	through := s.config.dialUntil(ctx)
	remote := gogit.NewRemote(s.repo.Storer, &gitconfig.RemoteConfig{Name: "origin", URLs: []string{s.config.URL}})

	from := s.config.ref()
	if !plumbing.IsHash(from) {
		refs, err := remote.ListContext(ctx, &gogit.ListOptions{Auth: auth, CABundle: ca, ProxyOptions: through})
		if err != nil {
			return fail(err)
		}
		ref := findRef(refs, from)
		if ref == nil {
			return fail(fmt.Errorf("no branch or tag %q", from))
		}
		if have, err := s.repo.Reference(fetchedRef, true); err == nil && have.Hash() == ref.Hash() {
			return s.commitOf(have.Hash())
		}
		from = ref.Name().String()
	} else if commit, err := s.commitOf(plumbing.NewHash(from)); err == nil {
		return commit, nil // a commit never changes
	}
	options := &gogit.FetchOptions{
		RefSpecs: []gitconfig.RefSpec{gitconfig.RefSpec("+" + from + ":" + fetchedRef.String())},
		Depth:    1, Tags: gogit.NoTags, Force: true, Auth: auth, CABundle: ca, ProxyOptions: through,
	}
	if err = remote.FetchContext(ctx, options); errors.Is(err, gogit.ErrExactSHA1NotSupported) {
		// Not every server gives out a commit by its id. Then it comes with all the rest.
		options.RefSpecs = []gitconfig.RefSpec{"+refs/heads/*:refs/sluice/heads/*", "+refs/tags/*:refs/sluice/tags/*"}
		options.Depth = 0
		if err = remote.FetchContext(ctx, options); err == nil || errors.Is(err, gogit.NoErrAlreadyUpToDate) {
			err = s.repo.Storer.SetReference(plumbing.NewHashReference(fetchedRef, plumbing.NewHash(from)))
		}
	}
	if err != nil && !errors.Is(err, gogit.NoErrAlreadyUpToDate) {
		return fail(err)
	}
	have, err := s.repo.Reference(fetchedRef, true)
	if err != nil {
		return fail(err)
	}
	return s.commitOf(have.Hash())
}

func findRef(refs []*plumbing.Reference, name string) *plumbing.Reference {
	for _, full := range []string{name, "refs/heads/" + name, "refs/tags/" + name} {
		for _, ref := range refs {
			if ref.Name().String() == full && ref.Type() == plumbing.HashReference {
				return ref
			}
		}
	}
	return nil
}

// commitOf resolves an annotated tag.
func (s *gitSource) commitOf(h plumbing.Hash) (plumbing.Hash, error) {
	if tag, err := s.repo.TagObject(h); err == nil {
		commit, err := tag.Commit()
		if err != nil {
			return plumbing.ZeroHash, err
		}
		return commit.Hash, nil
	}
	_, err := s.repo.CommitObject(h)
	return h, err
}

func (s *gitSource) offerCommit(h plumbing.Hash, kept bool) error {
	f, err := s.read(h)
	if err != nil {
		return fmt.Errorf("policy commit %s: %w", h, err)
	}
	f.kept = kept
	if err := s.offer(f); err != nil {
		return fmt.Errorf("policy commit %s: %w", h, err)
	}
	s.began = true
	return s.repo.Storer.SetReference(plumbing.NewHashReference(goodRef, h))
}

// read takes the same files from a commit as readDir does from a directory.
func (s *gitSource) read(h plumbing.Hash) (*files, error) {
	commit, err := s.repo.CommitObject(h)
	if err != nil {
		return nil, err
	}
	tree, err := commit.Tree()
	if err != nil {
		return nil, err
	}
	if dir := path.Clean("/" + s.config.Path)[1:]; dir != "" {
		if tree, err = tree.Tree(dir); err != nil {
			return nil, fmt.Errorf("no directory %s in it", dir)
		}
	}
	f := newFiles()
	walker := object.NewTreeWalker(tree, true, nil)
	defer walker.Close()
	for total := int64(0); ; {
		name, entry, err := walker.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if !entry.Mode.IsFile() || !isPolicyFile(name) || isTest(name) || strings.HasPrefix(name, ".") || strings.Contains(name, "/.") {
			continue
		}
		// By its header: to read the file is what would take the memory.
		size, err := s.repo.Storer.EncodedObjectSize(entry.Hash)
		if err != nil {
			return nil, err
		}
		if total += size; total > maxGitFiles {
			return nil, fmt.Errorf("its files are larger than %d MiB together, with %s", maxGitFiles>>20, name)
		}
		file, err := tree.TreeEntryFile(&entry)
		if err != nil {
			return nil, err
		}
		content, err := file.Contents()
		if err != nil {
			return nil, err
		}
		f.add(name, []byte(content))
	}
	if len(f.rego) == 0 {
		return nil, errors.New("no *.rego file in it")
	}
	f.revision = h.String()
	return f, nil
}

func (c *Git) ref() string {
	if c.Ref == "" {
		return "main"
	}
	return c.Ref
}

func (c *Git) interval() time.Duration {
	if c.Interval == 0 {
		return gitInterval
	}
	return c.Interval
}

// shownURL leaves out who logs in.
func (c *Git) shownURL() string {
	if u, err := url.Parse(c.URL); err == nil {
		u.User = nil
		return u.String()
	}
	return c.URL
}

// credentials reads the secrets anew each time: tokens are rotated.
func (c *Git) credentials() (auth transport.AuthMethod, ca []byte, err error) {
	if c.CAFile != "" {
		if ca, err = os.ReadFile(c.CAFile); err != nil {
			return nil, nil, err
		}
	}
	endpoint, err := transport.NewEndpoint(c.URL)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case endpoint.Protocol == "ssh":
		auth, err = c.sshAuth(endpoint)
		return auth, ca, err
	case c.TokenFile == "" && c.TokenEnv == "":
		return nil, ca, nil
	}
	token := os.Getenv(c.TokenEnv)
	if c.TokenFile != "" {
		content, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return nil, nil, err
		}
		token = strings.TrimSpace(string(content))
	}
	if token == "" {
		return nil, nil, fmt.Errorf("the token in %s%s is empty", c.TokenFile, c.TokenEnv)
	}
	// GitHub and GitLab take any name with a token, but not none.
	return &githttp.BasicAuth{Username: cmp.Or(endpoint.User, "sluice"), Password: token}, ca, nil
}

// check reports every problem of the section.
func (c *Git) check(at string, report func(path, problem string)) {
	endpoint, err := transport.NewEndpoint(c.URL)
	switch {
	case c.URL == "":
		report(at+"url", "missing: give the repository, such as https://github.com/acme/policies.git")
	case err != nil:
		report(at+"url", err.Error())
	default:
		web := endpoint.Protocol == "https" || endpoint.Protocol == "http"
		switch endpoint.Protocol {
		case "https", "ssh", "file":
		case "http":
			if !isLoopback(endpoint.Host) {
				report(at+"url", "http can be changed on its way: use https")
			}
		default:
			report(at+"url", fmt.Sprintf("%s is not supported: use https, ssh or file", endpoint.Protocol))
		}
		if endpoint.Password != "" {
			report(at+"url", "holds a password: name it by token_file or token_env instead")
		}
		if !web && (c.TokenFile != "" || c.TokenEnv != "" || c.CAFile != "") {
			report(at+"url", "token_file, token_env and ca_file are for https")
		}
		if endpoint.Protocol != "ssh" && (c.SSHKeyFile != "" || c.KnownHostsFile != "") {
			report(at+"url", "ssh_key_file and known_hosts_file are for ssh")
		}
	}
	if c.TokenFile != "" && c.TokenEnv != "" {
		report(at+"token_file", "and token_env: give one of them")
	}
	if c.TokenEnv != "" && os.Getenv(c.TokenEnv) == "" {
		report(at+"token_env", fmt.Sprintf("environment variable %s is empty", c.TokenEnv))
	}
	for _, file := range []struct{ key, name string }{
		{"token_file", c.TokenFile}, {"ssh_key_file", c.SSHKeyFile}, {"known_hosts_file", c.KnownHostsFile}, {"ca_file", c.CAFile},
	} {
		if file.name == "" {
			continue
		}
		text, err := os.ReadFile(file.name)
		switch {
		case err != nil:
			report(at+file.key, err.Error())
		case file.key == "ca_file" && !x509.NewCertPool().AppendCertsFromPEM(text):
			report(at+file.key, file.name+" has no PEM certificate")
		}
	}
	if c.Interval < 0 || c.Interval > 0 && c.Interval < time.Second {
		report(at+"interval", fmt.Sprintf("%v: want a second or more", c.Interval))
	}
	// What git check-ref-format refuses, in short.
	if strings.ContainsAny(c.Ref, " ~^:?*[\\") || strings.Contains(c.Ref, "..") {
		report(at+"ref", fmt.Sprintf("%q is neither a branch nor a tag nor a commit", c.Ref))
	}
	if strings.HasPrefix(path.Clean(c.Path), "..") {
		report(at+"path", "leads out of the repository")
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
