package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
)

const bucket = "artifacts"

// rig is a world with two proxies before it: one speaks plain HTTP, the other TLS.
type rig struct {
	*world.World
	proxies []proxy
	token   string // the workspace's
	file    string // that holds it, without a newline: botocore refuses one
	samples map[int]string
}

type proxy struct{ *world.Proxy }

func (p proxy) secure() bool { return strings.HasPrefix(p.URL, "https:") }

func (p proxy) transport() string { scheme, _, _ := strings.Cut(p.URL, ":"); return scheme }

func (p proxy) host() string { _, host, _ := strings.Cut(p.URL, "://"); return host }

// Sizes of the objects that every client puts.
const (
	small = 17
	big   = 5<<20 + 1
)

func newRig(ctx context.Context) (_ *rig, err error) {
	os.Unsetenv("AWS_CA_BUNDLE") // it breaks SDK clients that are given an HTTP client
	w, err := world.Start(ctx, world.Options{Buckets: []string{bucket}})
	if err != nil {
		return nil, err
	}
	r := &rig{World: w, samples: map[int]string{}}
	defer func() {
		if err != nil {
			w.Stop()
		}
	}()
	module, err := world.ModuleDir()
	if err != nil {
		return nil, err
	}
	for _, secure := range []bool{false, true} {
		config, err := w.ProxyConfig(world.ProxyOptions{TLS: secure, PolicyDir: filepath.Join(module, "test", "clients", "policy")})
		if err != nil {
			return nil, err
		}
		p, err := w.StartProxy(ctx, config)
		if err != nil {
			return nil, err
		}
		r.proxies = append(r.proxies, proxy{p})
	}
	now := time.Now()
	r.token = w.Token(map[string]any{
		"sub": "environment/env-1", "environment_id": "env-1", "project_id": "web", "organization_id": "acme",
		"creator_email": "dev@acme.com", "iat": now.Unix(), "exp": now.Add(2 * time.Hour).Unix(),
	})
	r.file = filepath.Join(w.Dir, "token")
	if err := os.WriteFile(r.file, []byte(r.token), 0o600); err != nil {
		return nil, err
	}
	for _, size := range []int{0, small, big, 12<<20 + 1, 17<<20 + 1} {
		content := make([]byte, size)
		rand.Read(content)
		name := filepath.Join(w.Dir, fmt.Sprintf("sample-%d", size))
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return nil, err
		}
		r.samples[size] = name
	}
	return r, nil
}

// audit ends the proxies, and reads what they recorded: every request has one event, and none may have failed.
func (r *run) audit(rig *rig) error {
	for _, p := range rig.proxies {
		if err := p.Stop(); err != nil {
			return fmt.Errorf("stop the proxy: %w; it logged:\n%s", err, p.Log())
		}
		events, err := p.Events()
		if err != nil {
			return err
		}
		if out, err := p.Run(context.Background(), "audit", "verify", p.AuditFile); err != nil {
			r.trouble = append(r.trouble, "audit verify: "+out)
		}
		r.served += len(events)
		for _, e := range events {
			if r.verbose && e.Status >= 400 {
				fmt.Printf("%s %s %s/%s: %d %s %v\n", e.Outcome, e.Operation, e.Bucket, e.Key, e.Status, e.Error, e.Decision.Reasons)
			}
			if e.Outcome != audit.Completed && e.Outcome != audit.Refused {
				r.trouble = append(r.trouble, fmt.Sprintf("%s %s/%s: %s, status %d, %s (%s)", e.Operation, e.Bucket, e.Key, e.Outcome, e.Status, e.Error, e.UserAgent))
			}
		}
		for _, secret := range []string{rig.token} {
			data, err := os.ReadFile(p.AuditFile)
			if err != nil {
				return err
			}
			if strings.Contains(string(data)+p.Log(), secret) {
				r.trouble = append(r.trouble, "the token is in the audit log or in the program's")
			}
		}
	}
	return nil
}
