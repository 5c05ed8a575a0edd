package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// certificates are what the S3 listener shows.
type certificates struct {
	tls      *tls.Config                 // nil = plain HTTP
	manage   func(context.Context)       // begins what needs the listener to be open
	expiries func() map[string]time.Time // by name
	stop     func()
}

// open reads or prepares the certificates of a listener.
func (t *TLS) open(domains []string, listener net.Addr, log *slog.Logger) (*certificates, error) {
	none := &certificates{
		manage:   func(context.Context) {},
		expiries: func() map[string]time.Time { return nil },
		stop:     func() {},
	}
	switch {
	case t.ACME != nil:
		return t.ACME.open(domains, listener, pace{}, log)
	case t.Files != nil:
		pair := &keyPair{files: *t.Files, log: log}
		if err := pair.load(); err != nil {
			return nil, fmt.Errorf("files: %w", err)
		}
		none.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get, NextProtos: []string{"h2", "http/1.1"}}
		none.expiries = pair.expiries
	}
	return none, nil
}

// keyPair is a certificate in files, read again when they change.
type keyPair struct {
	files Files
	log   *slog.Logger

	mu      sync.Mutex // guards all below
	current *tls.Certificate
	looked  time.Time
	seen    [2]stamp // the files when they were last read, with success or without
}

// lookEvery is how often a handshake looks whether the files changed.
const lookEvery = time.Second

func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.Sub(k.looked) >= lookEvery {
		k.looked = now
		if now := k.modified(); !now[0].same(k.seen[0]) || !now[1].same(k.seen[1]) {
			if err := k.read(); err != nil {
				k.log.Error("certificate not reloaded; the one before stays in use", slog.Any("error", err))
			} else {
				k.log.Info("certificate reloaded", slog.String("file", k.files.Cert))
			}
		}
	}
	return k.current, nil
}

// expiries is also how a proxy that nobody calls finds out that its files changed.
func (k *keyPair) expiries() map[string]time.Time {
	pair, err := k.get(nil)
	if err != nil || pair.Leaf == nil {
		return nil
	}
	return map[string]time.Time{"files": pair.Leaf.NotAfter}
}

func (k *keyPair) load() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.read()
}

func (k *keyPair) read() error {
	k.seen = k.modified() // before reading, so that what is written meanwhile is read again; and told only once if bad
	pair, err := tls.LoadX509KeyPair(k.files.Cert, k.files.Key)
	if err != nil {
		return err
	}
	k.current = &pair
	return nil
}

// stamp tells one state of a file from the next. Which file it is counts as well: where a link is swapped, as
// Kubernetes does, the new one may be as old and as long as the one before.
type stamp struct{ info os.FileInfo } // nil = not there

func (s stamp) same(as stamp) bool {
	if s.info == nil || as.info == nil {
		return s.info == as.info
	}
	return os.SameFile(s.info, as.info) && s.info.ModTime().Equal(as.info.ModTime()) && s.info.Size() == as.info.Size()
}

func (k *keyPair) modified() (at [2]stamp) {
	for i, name := range []string{k.files.Cert, k.files.Key} {
		if info, err := os.Stat(name); err == nil {
			at[i] = stamp{info}
		}
	}
	return at
}
