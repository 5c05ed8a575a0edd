package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"
)

// config is the TLS of the S3 listener; nil = plain HTTP.
func (t *TLS) config(ctx context.Context, domains []string, log *slog.Logger) (*tls.Config, error) {
	if t.Files == nil {
		return nil, nil
	}
	pair := &keyPair{files: *t.Files, log: log}
	if err := pair.load(); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get, NextProtos: []string{"h2", "http/1.1"}}, nil
}

// keyPair is a certificate in files, read again when they change.
type keyPair struct {
	files Files
	log   *slog.Logger

	mu      sync.Mutex // guards all below
	current *tls.Certificate
	looked  time.Time
	seen    [2]time.Time // modification times of the files as loaded
}

// lookEvery is how often a handshake looks whether the files changed.
const lookEvery = time.Second

func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.Sub(k.looked) >= lookEvery {
		k.looked = now
		if k.modified() != k.seen {
			if err := k.read(); err != nil {
				k.log.Error("certificate not reloaded; the one before stays in use", slog.Any("error", err))
			} else {
				k.log.Info("certificate reloaded", slog.String("file", k.files.Cert))
			}
		}
	}
	return k.current, nil
}

func (k *keyPair) load() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.read()
}

func (k *keyPair) read() error {
	seen := k.modified()
	pair, err := tls.LoadX509KeyPair(k.files.Cert, k.files.Key)
	if err != nil {
		return err
	}
	k.current, k.seen = &pair, seen
	return nil
}

func (k *keyPair) modified() (at [2]time.Time) {
	for i, name := range []string{k.files.Cert, k.files.Key} {
		if info, err := os.Stat(name); err == nil {
			at[i] = info.ModTime()
		}
	}
	return at
}
