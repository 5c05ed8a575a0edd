package policytest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// Repository is a git repository, made and served by git itself.
type Repository struct {
	t    testing.TB
	Dir  string
	root string // what is served
}

// NewRepository is empty. The test is skipped where there is no git.
func NewRepository(t testing.TB) *Repository {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("SKIPPED: no git on this machine")
	}
	root := t.TempDir()
	r := &Repository{t: t, Dir: filepath.Join(root, "repo"), root: root}
	r.Git("init", "--quiet", "--initial-branch=main", r.Dir)
	return r
}

// Git runs git in the repository.
func (r *Repository) Git(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Env = append(gitEnv(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@acme.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@acme.com")
	if info, err := os.Stat(r.Dir); err == nil && info.IsDir() {
		cmd.Dir = r.Dir
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func gitEnv() []string {
	return append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
}

// Commit commits files and returns the commit.
func (r *Repository) Commit(files map[string]string) string {
	r.t.Helper()
	for name, content := range files {
		file := filepath.Join(r.Dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	r.Git("add", ".")
	r.Git("commit", "--quiet", "--allow-empty", "-m", "change")
	return r.Git("rev-parse", "HEAD")
}

// Serve serves the repository over TLS, to those that have the token.
func (r *Repository) Serve(token func() string) (url, ca string, down *atomic.Bool) {
	r.t.Helper()
	down = new(atomic.Bool)
	handler := &cgi.Handler{
		Path: filepath.Join(r.Git("--exec-path"), "git-http-backend"),
		Env:  append(gitEnv(), "GIT_PROJECT_ROOT="+r.root, "GIT_HTTP_EXPORT_ALL=1"),
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, password, _ := req.BasicAuth()
		switch {
		case down.Load():
			http.Error(w, "down", http.StatusServiceUnavailable)
		case password != token():
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who?", http.StatusUnauthorized)
		default:
			handler.ServeHTTP(w, req)
		}
	}))
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = discard
	server.StartTLS()
	r.t.Cleanup(server.Close)
	return server.URL + "/repo/.git", caFile(r.t, server), down
}

// SSH is a server of the repository, with two host keys, as most have.
type SSH struct {
	URL  string
	RSA  string // lines of a known_hosts file
	Ed   string
	Down atomic.Bool // accepts connections, and then says nothing
}

// ServeSSH serves the repository to the holder of a key.
func (r *Repository) ServeSSH(authorized ssh.PublicKey) *SSH {
	r.t.Helper()
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != "git" || string(key.Marshal()) != string(authorized.Marshal()) {
			return nil, os.ErrPermission
		}
		return nil, nil
	}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	address := listener.Addr().String()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		r.t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	known := func(key any) string {
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			r.t.Fatal(err)
		}
		config.AddHostKey(signer)
		return knownhosts.Line([]string{address}, signer.PublicKey()) + "\n"
	}
	s := &SSH{URL: "ssh://git@" + address + "/repo/.git", RSA: known(rsaKey), Ed: known(edKey)}
	var serving sync.WaitGroup
	serving.Go(func() {
		var open []net.Conn
		for {
			conn, err := listener.Accept()
			if err != nil {
				break
			}
			open = append(open, conn)
			if !s.Down.Load() {
				serving.Go(func() { r.session(conn, config) })
			}
		}
		for _, conn := range open {
			conn.Close()
		}
	})
	r.t.Cleanup(func() {
		listener.Close()
		serving.Wait()
	})
	return s
}

func (r *Repository) session(conn net.Conn, config *ssh.ServerConfig) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		go func() {
			defer channel.Close()
			for request := range requests {
				var command struct{ Line string }
				dir, ok := "", false
				if request.Type == "exec" && ssh.Unmarshal(request.Payload, &command) == nil {
					dir, ok = strings.CutPrefix(command.Line, "git-upload-pack ")
				}
				if request.WantReply {
					request.Reply(ok, nil)
				}
				if !ok {
					continue
				}
				cmd := exec.Command("git-upload-pack", filepath.Join(r.root, strings.Trim(dir, "'")))
				cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = gitEnv(), channel, channel, channel.Stderr()
				status := struct{ Status uint32 }{}
				if cmd.Run() != nil {
					status.Status = 1
				}
				channel.SendRequest("exit-status", false, ssh.Marshal(status))
				return
			}
		}()
	}
}

// SSHKey makes a key pair. passphrase may be empty.
func SSHKey(t testing.TB, passphrase string) (file string, private ed25519.PrivateKey, public ssh.PublicKey) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "id_ed25519")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if public, err = ssh.NewPublicKey(private.Public()); err != nil {
		t.Fatal(err)
	}
	return file, private, public
}
