package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"github.com/sluice-s3/sluice/test/machine"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writePair writes a new certificate for name, and its key.
func writePair(t *testing.T, files Files, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, files.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}

func TestTLSFilesReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	writePair(t, files, "first.test")

	var told lockedLog
	logger := newLogger(Log{Level: "info", Format: "text"}, &told, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	certs, err := (&TLS{Files: &files}).open(nil, listener.Addr(), logger)
	if err != nil {
		t.Fatal(err)
	}
	server := newS3Server(http.NotFoundHandler(), nil, certs.tls, Limits{HeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second}, log.New(io.Discard, "", 0))
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })

	shown := func(max uint16) (string, error) {
		c, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: max})
		if err != nil {
			return "", err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
	}
	wait := func(want string) {
		t.Helper()
		deadline := time.Now().Add(machine.Patience)
		var got string
		for time.Now().Before(deadline) {
			if got, err = shown(tls.VersionTLS13); got == want {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("shown %q, %v; want %q", got, err, want)
	}
	wait("first.test")
	if _, err := shown(tls.VersionTLS11); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	if _, err := shown(tls.VersionTLS12); err != nil {
		t.Errorf("TLS 1.2: %v", err)
	}
	writePair(t, files, "second.test")
	wait("second.test")

	write(t, files.Cert, []byte("not a certificate"))
	deadline := time.Now().Add(machine.Patience)
	for !strings.Contains(told.String(), "not reloaded") && time.Now().Before(deadline) {
		wait("second.test") // the handshakes are what finds it
		time.Sleep(50 * time.Millisecond)
	}
	wait("second.test")
	if n := strings.Count(told.String(), "certificate not reloaded"); n != 1 {
		t.Errorf("the broken file was told %d times:\n%s", n, told.String())
	}
	writePair(t, files, "third.test")
	wait("third.test")
	if at := certs.expiries()["files"]; time.Until(at) <= 0 || time.Until(at) > time.Hour {
		t.Errorf("expires %v", at)
	}
}

// TestTLSFilesSwappedByKubernetes: a mounted Secret changes by a link to its directory that is renamed over. Both files may be
// as old and as long as those before.
func TestTLSFilesSwappedByKubernetes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	then := time.Now().Add(-time.Hour)
	publish := func(version, name string) {
		t.Helper()
		real := filepath.Join(dir, version)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(os.Mkdir(real, 0o755))
		files := Files{Cert: filepath.Join(real, "tls.crt"), Key: filepath.Join(real, "tls.key")}
		writePair(t, files, name)
		for _, file := range []string{files.Cert, files.Key} {
			text, err := os.ReadFile(file)
			must(err)
			must(os.WriteFile(file, append(text, bytes.Repeat([]byte("\n"), 1000-len(text))...), 0o600))
			must(os.Chtimes(file, then, then))
		}
		must(os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		must(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	publish("..2026_1", "first.test")
	files := Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	for _, file := range []string{files.Cert, files.Key} {
		if err := os.Symlink(filepath.Join("..data", filepath.Base(file)), file); err != nil {
			t.Fatal(err)
		}
	}
	pair := &keyPair{files: files, log: testLog(t)}
	if err := pair.load(); err != nil {
		t.Fatal(err)
	}
	shown := func() string {
		t.Helper()
		pair.mu.Lock()
		pair.looked = time.Time{} // a second has passed
		pair.mu.Unlock()
		c, err := pair.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.Subject.CommonName
	}
	if got := shown(); got != "first.test" {
		t.Errorf("shown %s", got)
	}
	publish("..2026_2", "second.test")
	if got := shown(); got != "second.test" {
		t.Errorf("after the swap %s is shown", got)
	}
	if err := os.RemoveAll(filepath.Join(dir, "..2026_1")); err != nil {
		t.Fatal(err)
	}
	if got := shown(); got != "second.test" {
		t.Errorf("with the old one gone %s is shown", got)
	}
}

func TestTLSFilesMustBeGoodAtTheStart(t *testing.T) {
	dir := t.TempDir()
	files := Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	writePair(t, files, "first.test")
	write(t, files.Key, []byte("x"))
	if _, err := (&TLS{Files: &files}).open(nil, &net.TCPAddr{}, testLog(t)); err == nil || !strings.HasPrefix(err.Error(), "files: ") {
		t.Errorf("opened, %v", err)
	}
}
