package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// field is the backend and all who stand before it.
type field struct {
	dir        string
	options    options
	payload    string // a file of payloadSize bytes
	cert, key  string
	backend    string // its address
	contenders []*contender

	mu       sync.Mutex // guards started
	started  []*exec.Cmd
	stopOnce sync.Once
}

// contender is one way to the backend.
type contender struct {
	name    string
	address string
	secure  string // under TLS; "" = none
	token   string
	fresh   func() string // a token never seen; nil = it takes none
	process *exec.Cmd
	also    *exec.Cmd // a second process, for TLS; nil = none
}

func (f *field) start() error {
	if err := f.build(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if f.payload, err = put(f.dir, "payload", make([]byte, payloadSize)); err != nil {
		return err
	}
	if err := f.certificate(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	f.backend = free()
	process, err := f.run("backend", nil, self, "role", "backend", f.backend, f.payload)
	if err != nil {
		return err
	}
	if err := waitFor(ctx, f.backend); err != nil {
		return err
	}
	if f.wanted("direct") {
		f.contenders = append(f.contenders, &contender{name: "direct", address: f.backend, process: process})
	}
	for _, add := range []struct {
		name  string
		start func(*contender) error
	}{
		{"nginx", f.nginx},
		{"haproxy", f.haproxy},
		{"bare", func(c *contender) error {
			c.process, err = f.run("bare", nil, self, "role", "bare", c.address, c.secure, f.backend, f.cert, f.key)
			return err
		}},
		{"sluice", func(c *contender) error { return f.sluice(c, f.options.binary, audited) }},
		{"sluice-before", func(c *contender) error { return f.sluice(c, f.options.before, audited) }},
		{"sluice-nojournal", func(c *contender) error { return f.sluice(c, f.options.binary, unjournalled) }},
		{"sluice-nethttp", func(c *contender) error { return f.sluice(c, f.options.binary, audited, "SLUICE_HTTP1=off") }},
	} {
		if !f.wanted(add.name) {
			continue
		}
		c := &contender{name: add.name, address: free(), secure: free()}
		if err := add.start(c); errors.Is(err, exec.ErrNotFound) {
			fmt.Printf("%s is not installed: left out\n", add.name)
			continue
		} else if err != nil {
			return fmt.Errorf("start %s: %w", add.name, err)
		}
		for _, address := range []string{c.address, c.secure} {
			if err := waitFor(ctx, address); err != nil {
				log, _ := os.ReadFile(filepath.Join(f.dir, add.name+".log"))
				return fmt.Errorf("%w\n%s", err, log)
			}
		}
		f.contenders = append(f.contenders, c)
	}
	return nil
}

// build makes the proxy where none is given.
func (f *field) build() error {
	if f.options.binary != "" || !f.wanted("sluice") && !f.wanted("sluice-nojournal") && !f.wanted("sluice-nethttp") {
		return nil
	}
	f.options.binary = filepath.Join(f.dir, "proxy")
	build := exec.Command("go", "build", "-o", f.options.binary, "github.com/sluice-s3/sluice/cmd/proxy")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the proxy: %w\n%s", err, out)
	}
	return nil
}

// wanted leaves out what is only of interest where it is asked for.
func (f *field) wanted(name string) bool {
	if name == "sluice-before" {
		return f.options.before != ""
	}
	if f.options.only == nil {
		return !strings.HasPrefix(name, "sluice-")
	}
	return slices.Contains(f.options.only, name)
}

// run starts a process that ends with this one's run.
func (f *field) run(name string, env []string, command string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(f.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(command, args...)
	cmd.Stderr = log // what is printed goes nowhere: an audit log, where it is the events
	cmd.Env = append(os.Environ(), env...)
	endWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = append(f.started, cmd)
	return cmd, nil
}

func (f *field) stop() {
	f.stopOnce.Do(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, cmd := range f.started {
			_ = cmd.Process.Signal(os.Interrupt) // nginx and the proxy end their own
		}
		for _, cmd := range f.started {
			timer := time.AfterFunc(3*time.Second, func() { _ = cmd.Process.Kill() })
			_ = cmd.Wait()
			timer.Stop()
		}
	})
}

// free is a loopback address nobody listens on.
func free() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// certificate is for localhost, for all who terminate TLS.
func (f *field) certificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	if f.cert, err = put(f.dir, "tls.crt", cert); err != nil {
		return err
	}
	if f.key, err = put(f.dir, "tls.key", secret); err != nil {
		return err
	}
	_, err = put(f.dir, "both.pem", slices.Concat(cert, secret))
	return err
}

// nginx passes on with connections kept open, and holds no body back: what it would write to disk would count
// against it.
func (f *field) nginx(c *contender) error {
	binary, err := exec.LookPath("nginx")
	if err != nil {
		return exec.ErrNotFound
	}
	config, err := put(f.dir, "nginx.conf", fmt.Appendf(nil, `daemon off;
worker_processes auto;
pid %[1]s/nginx.pid;
error_log stderr error;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path %[1]s/nginx-body; proxy_temp_path %[1]s/nginx-proxy;
  fastcgi_temp_path %[1]s/nginx-f; uwsgi_temp_path %[1]s/nginx-u; scgi_temp_path %[1]s/nginx-s;
  upstream backend { server %[2]s; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen %[3]s;
    listen %[4]s ssl;
    ssl_certificate %[5]s; ssl_certificate_key %[6]s;
    client_max_body_size 0;
    location / {
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
    }
  }
}
`, f.dir, f.backend, c.address, c.secure, f.cert, f.key))
	if err != nil {
		return err
	}
	c.process, err = f.run("nginx", nil, binary, "-c", config, "-p", f.dir)
	return err
}

func (f *field) haproxy(c *contender) error {
	binary, err := exec.LookPath("haproxy")
	if err != nil {
		return exec.ErrNotFound
	}
	config, err := put(f.dir, "haproxy.cfg", fmt.Appendf(nil, `defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option splice-auto
  http-reuse always
frontend front
  bind %s
  bind %s ssl crt %s/both.pem
  default_backend back
backend back
  server one %s
`, c.address, c.secure, f.dir, f.backend))
	if err != nil {
		return err
	}
	c.process, err = f.run("haproxy", nil, binary, "-db", "-f", config)
	return err
}

// How the proxy records its events: with file and journal, or, to see what those cost, on standard output alone.
func audited(log string) string      { return fmt.Sprintf("{file: {path: %q}}", log) }
func unjournalled(log string) string { return "{stdout: true}" }

// sluice is the proxy with every check on: bearer tokens, all starter policies with 5,000 grants, SigV4, and the
// audit log. It is two processes, one for each of plain and TLS, for a proxy has one listener.
func (f *field) sluice(c *contender, binary string, audit func(log string) string, env ...string) error {
	policies, err := f.policies()
	if err != nil {
		return err
	}
	jwks, sign, err := issuer()
	if err != nil {
		return err
	}
	dir := filepath.Join(f.dir, c.name)
	jwksFile, err := put(dir, "jwks.json", jwks)
	if err != nil {
		return err
	}
	now := time.Now()
	issued := 0
	c.fresh = func() string {
		issued++
		return sign(map[string]any{
			"iss": "https://issuer.example.com", "aud": "https://s3.example.com", "sub": fmt.Sprintf("environment/env-%d", issued), "jti": strconv.Itoa(issued),
			"environment_id": fmt.Sprintf("env-%d", issued), "project_id": "web", "creator_email": "dev@acme.com", "organization_id": "acme",
			"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		})
	}
	c.token = c.fresh()
	start := func(kind, address, tls string) (*exec.Cmd, error) {
		name := c.name + kind
		config, err := put(dir, name+".yaml", fmt.Appendf(nil, `listen:
  address: %q
%s
admin: {address: %q}
issuers:
  - {issuer: "https://issuer.example.com", audiences: ["https://s3.example.com"], preset: ona, jwks_file: %q}
policy: {dir: %q}
backends:
  - name: main
    buckets: ["*"]
    endpoint: %q
    region: us-east-1
    path_style: true
    credentials: {static: {access_key_id_env: BENCH_ID, secret_access_key_env: BENCH_SECRET}}
audit: %s
log: {level: warn}
`, address, tls, free(), jwksFile, policies, "http://"+f.backend, audit(filepath.Join(dir, name+".jsonl"))))
		if err != nil {
			return nil, err
		}
		return f.run(name, append([]string{"BENCH_ID=AKIDEXAMPLE", "BENCH_SECRET=wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}, env...), binary, "serve", "--config", config)
	}
	if c.process, err = start("", c.address, ""); err != nil {
		return err
	}
	secure, err := start("-tls", c.secure, fmt.Sprintf("  tls: {files: {cert: %q, key: %q}}", f.cert, f.key))
	c.also = secure
	return err
}

// policies are the starter policies, with data for 5,000 projects.
func (f *field) policies() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/sluice-s3/sluice").Output()
	if err != nil {
		return "", fmt.Errorf("find the starter policies: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "policies", "*"))
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("no starter policies in %s", out)
	}
	dir := filepath.Join(f.dir, "policies")
	for _, file := range files {
		name := filepath.Base(file)
		if info, err := os.Stat(file); err != nil || info.IsDir() || strings.HasSuffix(name, "_test.rego") || name == "grants.yaml" || name == "prefixes.yaml" {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if _, err := put(dir, name, content); err != nil {
			return "", err
		}
	}
	var grants bytes.Buffer
	grants.WriteString("grants:\n  web: {artifacts: {web: write}}\n")
	for i := range 5000 {
		fmt.Fprintf(&grants, "  project-%d: {artifacts: {shared-%d: write}}\n", i, i)
	}
	_, err = put(dir, "grants.yaml", grants.Bytes())
	return dir, errors.Join(err, second(put(dir, "prefixes.yaml", []byte("prefixes: {buckets: {artifacts: project}}\n"))))
}

func second(_ string, err error) error { return err }

// issuer is a key set, and what signs tokens by it.
func issuer() (jwks []byte, sign func(claims any) string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	encode := base64.RawURLEncoding.EncodeToString
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, nil, err
	}
	jwks, err = json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1", "x": encode(point[1:33]), "y": encode(point[33:]),
	}}})
	sign = func(claims any) string {
		body, err := json.Marshal(claims)
		if err != nil {
			panic(err)
		}
		signed := encode([]byte(`{"alg":"ES256","kid":"k1","typ":"JWT"}`)) + "." + encode(body)
		sum := sha256.Sum256([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			panic(err)
		}
		return signed + "." + encode(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	}
	return jwks, sign, err
}

// cpu is the processor time that a contender has used, its children's included.
func (c *contender) cpu() (time.Duration, error) {
	var all time.Duration
	for _, p := range []*exec.Cmd{c.process, c.also} {
		if p == nil {
			continue
		}
		for _, pid := range family(p.Process.Pid) {
			used, err := cpuOf(pid)
			if err != nil {
				return 0, err
			}
			all += used
		}
	}
	return all, nil
}

// forgetPeak has the kernel count the most memory in use from here on.
func (c *contender) forgetPeak() {
	for _, pid := range family(c.process.Process.Pid) {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
}

// peak is the most memory that the contender had in use, in MB.
func (c *contender) peak() float64 {
	total := 0.0
	for _, pid := range family(c.process.Process.Pid) {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if _, rest, ok := strings.Cut(string(status), "VmHWM:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			total += kb * 1024 / 1e6
		}
	}
	return total
}

// family is a process and its children.
func family(pid int) []int {
	all := []int{pid}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, child := range strings.Fields(string(children)) {
		if n, err := strconv.Atoi(child); err == nil {
			all = append(all, family(n)...)
		}
	}
	return all
}

// cpuOf reads /proc: see proc(5).
func cpuOf(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int64
	for _, i := range []int{11, 12} { // utime, stime
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
