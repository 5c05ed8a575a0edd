package main

import (
	"bytes"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A private CA is told what to do about, where it was not named and where another was.
func TestCredentialsOfAPrivateCA(t *testing.T) {
	proxy := httptest.NewTLSServer(http.NotFoundHandler())
	defer proxy.Close()
	dir := t.TempDir()
	token, ca := filepath.Join(dir, "token"), filepath.Join(dir, "ca.pem")
	for file, text := range map[string][]byte{
		token: []byte("token"),
		ca:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw}),
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"credentials", "--endpoint", proxy.URL, "--token-file", token}
	var out, errs bytes.Buffer
	if got := run(args, &out, &errs); got != exitFailed || !strings.Contains(errs.String(), "unknown authority; where that is a private CA, name the file with its certificate by --ca-file\n") {
		t.Errorf("without: status %d, %s", got, errs.String())
	}
	errs.Reset()
	if got := run(append(args, "--ca-file", ca), &out, &errs); got != exitFailed || !strings.Contains(errs.String(), "is it a Sluice endpoint?") {
		t.Errorf("with: status %d, %s", got, errs.String())
	}
}
