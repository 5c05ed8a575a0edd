package world

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-s3/sluice/test/machine"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3api/middlewares"
)

// Backend is a real S3 server: versitygw over a directory, in a process of its own.
type Backend struct {
	Name string
	URL  string
	Dir  string // where its objects are: Dir/objects/<bucket>/<key>

	world   *World
	config  childConfig
	log     io.Writer
	mu      sync.Mutex // guards process
	process *child
}

type child struct {
	cmd      *exec.Cmd
	lifeline io.WriteCloser // the child lives while this is open
	done     chan struct{}
}

// childConfig is what a parent tells its child, on the first line of its standard input.
type childConfig struct {
	Address   string // of an earlier life; "" = any
	Dir       string
	Region    string
	Root      Key
	BaseKey   Key
	Sessions  sessionKey
	Cert, Key string // files
	Orphan    string // directory to remove should the parent die; "" = none
	Verbose   bool
}

// childReady is what the child answers, on the first line of its standard output.
type childReady struct{ Address, Error string }

// childVariable makes this program an S3 server.
const childVariable = "SLUICE_WORLD_S3_SERVER"

var mainCalled bool

// Main must be the first call of main and of TestMain: where this process is the child that Start made, it is the S3
// server and does not return.
func Main() {
	mainCalled = true
	if os.Getenv(childVariable) == "" {
		return
	}
	stdout := os.Stdout
	os.Stdout = os.Stderr // versitygw prints as it starts
	if err := serveS3(stdout); err != nil {
		json.NewEncoder(stdout).Encode(childReady{Error: err.Error()})
		os.Exit(1)
	}
	os.Exit(0)
}

func startBackend(ctx context.Context, w *World, name string, sessions sessionKey, log io.Writer) (*Backend, error) {
	b := &Backend{Name: name, Dir: filepath.Join(w.Dir, name), world: w, log: log}
	b.config = childConfig{Dir: b.Dir, Region: w.Region, Root: w.Root, BaseKey: w.BaseKey, Sessions: sessions, Verbose: log != nil}
	if w.removeDir {
		b.config.Orphan = w.Dir
	}
	scheme := "http"
	if w.tls {
		scheme, b.config.Cert, b.config.Key = "https", w.certificate.certFile, w.certificate.keyFile
	}
	if err := b.Start(ctx); err != nil {
		return nil, err
	}
	b.URL = scheme + "://" + b.config.Address
	return b, nil
}

// Start starts the server again after Stop or Kill, with its address and its objects.
func (b *Backend) Start(ctx context.Context) error {
	if !mainCalled {
		return errors.New("world: call world.Main() first thing in main and in TestMain")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.process != nil {
		return fmt.Errorf("S3 server %s runs already", b.Name)
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), childVariable+"="+b.Name)
	cmd.Dir = b.world.Dir // not where we are: coverage and profiles of tests would be written there twice
	cmd.Stderr = b.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is ours to act on
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start S3 server %s: %w", b.Name, err)
	}
	c := &child{cmd: cmd, lifeline: stdin, done: make(chan struct{})}

	config, err := json.Marshal(b.config)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	var ready childReady
	_, err = stdin.Write(append(config, '\n'))
	if err == nil {
		err = json.NewDecoder(stdout).Decode(&ready)
	}
	if err == nil && ready.Error != "" {
		err = errors.New(ready.Error)
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return fmt.Errorf("start S3 server %s: %w", b.Name, err)
	}
	go func() {
		cmd.Wait()
		close(c.done)
	}()
	b.config.Address, b.process = ready.Address, c
	return nil
}

// Stop ends the server; its objects stay until the world's Stop.
func (b *Backend) Stop() error {
	return b.end(func(c *child) error {
		_, err := io.WriteString(c.lifeline, "stop\n") // not orphaned
		return errors.Join(err, c.lifeline.Close())
	})
}

// Kill ends the server as a crash would: nothing is finished, connections are reset.
func (b *Backend) Kill() error {
	return b.end(func(c *child) error { return c.cmd.Process.Kill() })
}

func (b *Backend) end(how func(*child) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.process
	if c == nil {
		return nil
	}
	b.process = nil
	defer c.lifeline.Close()
	c.cmd.Process.Signal(syscall.SIGCONT) // a frozen one could not end
	err := how(c)
	select {
	case <-c.done:
	case <-time.After(10 * time.Second):
		c.cmd.Process.Kill()
		<-c.done
	}
	return err
}

// Freeze stops the server's process where it is, without closing a connection: a backend that hangs. Thaw lets it go on.
func (b *Backend) Freeze() error {
	pid, err := b.signal(syscall.SIGSTOP)
	if err != nil {
		return err
	}
	// The signal takes its time to reach every thread. Where there is no /proc to tell, one has to hope.
	for deadline := time.Now().Add(machine.Patience); running(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("S3 server %s does not stop", b.Name)
		}
	}
	return nil
}

// Thaw undoes Freeze.
func (b *Backend) Thaw() error {
	_, err := b.signal(syscall.SIGCONT)
	return err
}

func (b *Backend) signal(s os.Signal) (pid int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.process == nil {
		return 0, fmt.Errorf("S3 server %s does not run", b.Name)
	}
	process := b.process.cmd.Process
	return process.Pid, process.Signal(s)
}

// running tells whether any thread of a process is known not to be stopped.
func running(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if _, state, ok := bytes.Cut(stat, []byte(") ")); err == nil && ok && state[0] != 'T' {
			return true
		}
	}
	return false
}

// serveS3 is the child's life. It ends when its standard input does, which the system closes when the parent dies, however
// it dies: no S3 server is left behind, nor what a parent that was killed could not remove.
func serveS3(ready io.Writer) error {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	stdin := bufio.NewReader(os.Stdin)
	line, err := stdin.ReadBytes('\n')
	if err != nil {
		return err
	}
	var c childConfig
	if err := json.Unmarshal(line, &c); err != nil {
		return err
	}
	if !c.Verbose {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		os.Stdout, os.Stderr = null, null
	}

	objects, versions := filepath.Join(c.Dir, "objects"), filepath.Join(c.Dir, "versions")
	options := posix.PosixOpts{
		VersioningDir:       versions,
		CopyObjectThreshold: 5 << 30,
	}
	for _, dir := range []string{objects, versions} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	var attributes meta.MetadataStorer = meta.XattrMeta{}
	if err := (meta.XattrMeta{}).Test(objects); err != nil {
		options.SideCarDir = filepath.Join(c.Dir, "attributes")
		if err := os.MkdirAll(options.SideCarDir, 0o755); err != nil {
			return err
		}
		if attributes, err = meta.NewSideCar(options.SideCarDir); err != nil {
			return err
		}
	}
	store, err := posix.New(objects, attributes, options)
	if err != nil {
		return err
	}

	serverOptions := []s3api.Option{
		s3api.WithKeepAlive(),
		s3api.WithConcurrencyLimiter(100_000, 100_000),
		s3api.WithMpMaxParts(10_000),
	}
	if !c.Verbose {
		serverOptions = append(serverOptions, s3api.WithQuiet())
	}
	if c.Cert != "" {
		storage := argumentOf(s3api.WithTLS)
		if err := storage.SetCertificate(c.Cert, c.Key); err != nil {
			return err
		}
		serverOptions = append(serverOptions, s3api.WithTLS(storage))
	}

	go func() {
		farewell, _ := io.ReadAll(stdin)
		if len(farewell) == 0 && c.Orphan != "" {
			os.RemoveAll(c.Orphan)
		}
		os.Exit(0)
	}()
	return listenAndServe(c, store, serverOptions, func(address string) {
		json.NewEncoder(ready).Encode(childReady{Address: address})
	})
}

// listenAndServe serves on a free port. versitygw makes its own listener and does not tell where, so a port is found
// first, and another one where somebody else took it meanwhile.
func listenAndServe(c childConfig, store *posix.Posix, options []s3api.Option, ready func(address string)) error {
	iam := &iamService{sessions: c.Sessions, root: c.Root, base: c.BaseKey}
	for attempt := 0; ; attempt++ {
		address := c.Address
		if address == "" {
			var err error
			if address, err = machine.FreeAddress(); err != nil {
				return err
			}
		}
		listening := false
		server, err := s3api.New(store, middlewares.RootUserConfig{Access: c.Root.AccessKeyID, Secret: c.Root.SecretAccessKey},
			c.Region, iam, nil, nil, nil, nil, append(options, s3api.WithOnListen(func() {
				listening = true
				ready(address)
			}))...)
		if err != nil {
			return err
		}
		if err := server.ServeMultiPort([]string{address}); listening || c.Address != "" || attempt > 20 {
			return err
		}
	}
}

// argumentOf makes the argument of a versitygw option, whose type cannot be named from outside of its module.
func argumentOf[T any](func(*T) s3api.Option) *T { return new(T) }

// iamService is the S3 server's knowledge of keys and sessions.
type iamService struct {
	auth.IAMServiceSingle // refuses to manage accounts
	sessions              sessionKey
	root, base            Key
}

var (
	_ auth.IAMService         = (*iamService)(nil)
	_ auth.SigningKeyProvider = (*iamService)(nil)
	_ auth.PolicyEvaluator    = (*iamService)(nil)
	_ auth.FixedBucketOwner   = (*iamService)(nil)
)
