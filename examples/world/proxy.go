package world

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/test/machine"
)

// ProxyOptions are all optional.
type ProxyOptions struct {
	PolicyDir   string // [the module's policies/]
	Dir         string // for the audit log and the session keys [one of the world's own]
	Credentials string // assume_role, web_identity or static [assume_role]
	TLS         bool   // listen with the world's certificate, which names localhost and *.s3.localhost
	// Set changes single values of the configuration, by path: "limits.in_flight": 2, "issuers[0].leeway": "1s". nil
	// takes a value away.
	Set map[string]any
}

// ProxyConfig is a configuration file for `proxy serve` in this world, on loopback ports that are free. The first S3 server
// takes every bucket; each further one those that begin with its name and a dash.
func (w *World) ProxyConfig(o ProxyOptions) (string, error) {
	if o.Dir == "" {
		w.mu.Lock()
		w.configured++
		o.Dir = filepath.Join(w.Dir, fmt.Sprintf("proxy-%d", w.configured))
		w.mu.Unlock()
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return "", err
	}
	if o.PolicyDir == "" {
		module, err := ModuleDir()
		if err != nil {
			return "", err
		}
		o.PolicyDir = filepath.Join(module, "policies")
	}
	keyFile := filepath.Join(o.Dir, "session.keys")
	if err := writeSessionKey(keyFile); err != nil {
		return "", err
	}
	listen, err := machine.FreeAddress()
	if err != nil {
		return "", err
	}
	admin, err := machine.FreeAddress()
	if err != nil {
		return "", err
	}

	issuer := map[string]any{"issuer": w.Issuer.URL(), "audiences": []any{w.Audience}, "preset": "ona"}
	if strings.HasPrefix(w.Issuer.URL(), "https:") {
		issuer["ca_file"] = w.CAFile
	}
	var backends []any
	for i := len(w.Backends) - 1; i >= 0; i-- { // the first that matches takes a request, so the one for all comes last
		b := w.Backends[i]
		credentials, err := w.proxyCredentials(o.Credentials)
		if err != nil {
			return "", err
		}
		backend := map[string]any{
			"name": b.Name, "endpoint": b.URL, "region": w.Region, "path_style": true,
			"buckets": []any{b.Name + "-*"}, "credentials": credentials,
		}
		if i == 0 {
			backend["buckets"] = []any{"*"}
		}
		if w.tls {
			backend["ca_file"] = w.CAFile
		}
		backends = append(backends, backend)
	}
	config := map[string]any{
		"listen":           map[string]any{"address": listen},
		"admin":            map[string]any{"address": admin},
		"issuers":          []any{issuer},
		"sessions":         map[string]any{"key_file": keyFile},
		"policy":           map[string]any{"dir": o.PolicyDir},
		"backends":         backends,
		"audit":            map[string]any{"file": map[string]any{"path": filepath.Join(o.Dir, "audit.jsonl")}},
		"shutdown_timeout": "10s",
	}
	if o.TLS {
		config["listen"].(map[string]any)["tls"] = map[string]any{
			"files": map[string]any{"cert": w.certificate.certFile, "key": w.certificate.keyFile},
		}
	}
	for _, path := range slices.Sorted(maps.Keys(o.Set)) {
		if err := setPath(config, path, o.Set[path]); err != nil {
			return "", err
		}
	}
	text, err := yaml.Marshal(config)
	return string(text), err
}

// The environment variables of the proxy that hold Root, for credentials of kind static.
const (
	RootIDVariable     = "SLUICE_WORLD_ROOT_ID"
	RootSecretVariable = "SLUICE_WORLD_ROOT_SECRET"
)

func (w *World) proxyCredentials(kind string) (map[string]any, error) {
	switch kind {
	case "", "assume_role":
		return map[string]any{"assume_role": map[string]any{
			"role_arn":        RoleARN("sluice-default"),
			"allowed_roles":   []any{RoleARN("sluice-*")},
			"session_tags":    map[string]any{"project": "{{.Attributes.project}}"},
			"source_identity": "{{.Attributes.user}}",
			"sts_endpoint":    w.STS.URL,
		}}, nil
	case "web_identity":
		return map[string]any{"web_identity": map[string]any{
			"role_arn":     RoleARN("sluice-default"),
			"sts_endpoint": w.STS.URL,
		}}, nil
	case "static":
		return map[string]any{"static": map[string]any{
			"access_key_id_env":     RootIDVariable,
			"secret_access_key_env": RootSecretVariable,
		}}, nil
	}
	return nil, fmt.Errorf("world: no credentials of kind %q", kind)
}

func writeSessionKey(file string) error {
	if _, err := os.Stat(file); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key := make([]byte, 32)
	rand.Read(key)
	return os.WriteFile(file, []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600)
}

var pathStep = regexp.MustCompile(`^([^.\[\]]+)((?:\[\d+\])*)(?:\.|$)`)

// setPath sets tree's value at a path such as a.b[1].c. Maps on the way are made.
func setPath(tree map[string]any, path string, value any) error {
	m := pathStep.FindStringSubmatch(path)
	if m == nil {
		return fmt.Errorf("world: malformed path %q", path)
	}
	name, indices, rest := m[1], m[2], path[len(m[0]):]
	if indices == "" {
		if rest == "" && value == nil {
			delete(tree, name)
			return nil
		}
		if rest == "" {
			tree[name] = value
			return nil
		}
		below, ok := tree[name].(map[string]any)
		if !ok {
			below = map[string]any{}
			tree[name] = below
		}
		return setPath(below, rest, value)
	}
	list, _ := tree[name].([]any)
	i, err := strconv.Atoi(strings.Trim(indices, "[]"))
	if err != nil || i > len(list) {
		return fmt.Errorf("world: no %s%s in the configuration", name, indices)
	}
	if i == len(list) {
		list = append(list, map[string]any{})
		tree[name] = list
	}
	if rest == "" {
		list[i] = value
		return nil
	}
	below, ok := list[i].(map[string]any)
	if !ok {
		return fmt.Errorf("world: %s%s is not a section", name, indices)
	}
	return setPath(below, rest, value)
}

// Proxy is the real program, running.
type Proxy struct {
	URL        string // of the S3 listener
	AdminURL   string
	AuditFile  string
	ConfigFile string
	Program    string // the proxy's binary

	world *World
	cmd   *exec.Cmd
	log   lockedBuffer
	done  chan struct{}
	err   error // how it ended; read it after done
}

// StartProxy runs `proxy serve` with a configuration, most often ProxyConfig's, and waits until it is ready. It ends with
// Stop, with Kill or with ctx.
func (w *World) StartProxy(ctx context.Context, config string) (*Proxy, error) {
	program, err := ProxyProgram(ctx)
	if err != nil {
		return nil, err
	}
	var known struct {
		Listen struct {
			Address string
			TLS     map[string]any
		}
		Admin struct{ Address string }
		Audit struct{ File struct{ Path string } }
	}
	if err := yaml.Unmarshal([]byte(config), &known); err != nil {
		return nil, err
	}
	p := &Proxy{
		URL:       "http://" + known.Listen.Address,
		AdminURL:  "http://" + known.Admin.Address,
		AuditFile: known.Audit.File.Path,
		Program:   program,
		world:     w,
		done:      make(chan struct{}),
	}
	if known.Listen.TLS != nil {
		p.URL = "https://" + known.Listen.Address
	}
	file, err := os.CreateTemp(w.Dir, "proxy-*.yaml")
	if err != nil {
		return nil, err
	}
	p.ConfigFile = file.Name()
	_, err = file.WriteString(config)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}

	p.cmd = exec.CommandContext(ctx, program, "serve", "--config", p.ConfigFile)
	p.cmd.Env = w.ProxyEnv()
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.SysProcAttr = ownChild()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.started = append(w.started, p)
	w.mu.Unlock()
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := p.waitReady(ctx, 2*time.Minute); err != nil {
		p.Kill()
		return nil, fmt.Errorf("%w; it logged:\n%s", err, p.Log())
	}
	return p, nil
}

// ProxyEnv is the environment that the proxy runs with here: this one, without any of its AWS settings, and with BaseKey.
func (w *World) ProxyEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_") })
	return append(env,
		"AWS_ACCESS_KEY_ID="+w.BaseKey.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY="+w.BaseKey.SecretAccessKey,
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE="+os.DevNull,
		"AWS_SHARED_CREDENTIALS_FILE="+os.DevNull,
		RootIDVariable+"="+w.Root.AccessKeyID,
		RootSecretVariable+"="+w.Root.SecretAccessKey,
	)
}

func (p *Proxy) waitReady(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last := "no answer"
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.AdminURL+"/readyz", nil)
		if err != nil {
			return err
		}
		if response, err := p.world.http.Do(request); err == nil {
			body, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			last = fmt.Sprintf("/readyz says %s %s", response.Status, body)
		}
		select {
		case <-p.done:
			return fmt.Errorf("the proxy ended as it started (%v)", p.err)
		case <-ctx.Done():
			return fmt.Errorf("the proxy is not ready after %v: %s", patience, last)
		case <-time.After(pause):
		}
	}
}

// Stop tells the proxy to end by SIGTERM, and waits. It is an error if the exit status is not 0.
func (p *Proxy) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return p.Wait()
}

// Wait waits for the proxy to end.
func (p *Proxy) Wait() error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(time.Minute):
		p.Kill()
		return errors.New("the proxy did not end within a minute of being told to")
	}
}

// Done is closed when the proxy has ended.
func (p *Proxy) Done() <-chan struct{} { return p.done }

// Kill ends the proxy as a crash would.
func (p *Proxy) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Signal sends the proxy a signal: SIGHUP reloads it.
func (p *Proxy) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// PID is the proxy's process.
func (p *Proxy) PID() int { return p.cmd.Process.Pid }

// Log is what the proxy has printed.
func (p *Proxy) Log() string { return p.log.String() }

// Run runs another command of the proxy's program, in its environment.
func (p *Proxy) Run(ctx context.Context, arguments ...string) (output string, err error) {
	cmd := exec.CommandContext(ctx, p.Program, arguments...)
	cmd.Env = p.world.ProxyEnv()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Events are those in the audit file. A request's event is written after its answer: to see it for certain, wait for the
// number with WaitEvents, or Stop the proxy.
func (p *Proxy) Events() ([]audit.Event, error) {
	data, err := os.ReadFile(p.AuditFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if end := bytes.LastIndexByte(data, '\n'); end < len(data)-1 {
		data = data[:end+1] // a line that is being written
	}
	var events []audit.Event
	for line := range bytes.Lines(data) {
		var e audit.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", p.AuditFile, len(events)+1, err)
		}
		if e.Schema != audit.Schema {
			return nil, fmt.Errorf("%s: line %d: schema %q", p.AuditFile, len(events)+1, e.Schema)
		}
		events = append(events, e)
	}
	return events, nil
}

// WaitEvents waits until there are n events, and returns them all.
func (p *Proxy) WaitEvents(ctx context.Context, n int) ([]audit.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, machine.Patience)
	defer cancel()
	for {
		events, err := p.Events()
		if err != nil || len(events) >= n {
			return events, err
		}
		select {
		case <-ctx.Done():
			return events, fmt.Errorf("%d events, not %d", len(events), n)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ModuleDir is the directory of this module, from anywhere inside it.
func ModuleDir() (string, error) { return moduleDir() }

var moduleDir = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", commandError(err))
	}
	return strings.TrimSpace(string(out)), nil
})

const module = "github.com/sluice-s3/sluice"

// ProxyProgram builds cmd/proxy, with the race detector where this program has it, and returns the binary. It is
// kept in the user's cache directory, so that building it again costs a look only. Where SLUICE_PROXY_PROGRAM names a binary,
// that is taken as it is.
func ProxyProgram(ctx context.Context) (string, error) {
	if program := os.Getenv("SLUICE_PROXY_PROGRAM"); program != "" {
		return program, nil
	}
	built.Lock()
	defer built.Unlock()
	if _, err := os.Stat(built.program); err == nil {
		return built.program, nil
	}
	program, err := buildProxy(ctx)
	built.program = program
	return program, err
}

var built struct {
	sync.Mutex
	program string
}

func buildProxy(ctx context.Context) (string, error) {
	source, err := ModuleDir()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	// One binary for each checkout and for each content: a test that runs one must not see it change.
	checkout := sha256.Sum256([]byte(source + raceFlag))
	dir := filepath.Join(cache, "sluice-world", hex.EncodeToString(checkout[:8]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	latest := filepath.Join(dir, "proxy")
	cmd := exec.CommandContext(ctx, "go", "build", raceFlag, "-o", latest, module+"/cmd/proxy")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the proxy: %w\n%s", err, out)
	}
	return keep(dir, latest)
}

// keep gives the newest build a name of its own, and removes those that it came after, unless a test may yet run one.
func keep(dir, latest string) (string, error) {
	info, err := os.Stat(latest)
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, fmt.Sprintf("proxy-%x", info.ModTime().UnixNano()))
	if err := os.Link(latest, name); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	old, err := filepath.Glob(filepath.Join(dir, "proxy-*"))
	if err != nil {
		return "", err
	}
	for _, file := range old {
		if info, err := os.Stat(file); err == nil && file != name && time.Since(info.ModTime()) > 15*time.Minute {
			os.Remove(file)
		}
	}
	return name, nil
}

// commandError adds what a command printed to its exit status.
func commandError(err error) error {
	exit := new(exec.ExitError)
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}

// lockedBuffer is a buffer that one goroutine writes while others read it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
