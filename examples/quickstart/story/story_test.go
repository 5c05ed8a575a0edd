package main

import (
	"bytes"
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/examples/world"
)

func TestMain(m *testing.M) {
	world.Main()
	os.Exit(m.Run())
}

func TestDemo(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), &out, true)
	t.Logf("%s", &out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "All of it was right.") {
		t.Error("the story has no end")
	}
}

// What is printed to paste works when it is pasted, and Ctrl-C leaves nothing behind.
func TestPasting(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	out := &watched{changed: make(chan struct{}, 1)}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, out, false) }()
	if !out.wait(t, "Ctrl-C ends it all.") {
		t.Fatalf("not invited: %v\n%s", <-ended, out)
	}

	// The aws CLI keeps sessions in the home directory. pyenv, which many have it by, keeps itself there.
	homeless := append(os.Environ(), "HOME="+t.TempDir(), "PYENV_ROOT="+cmp.Or(os.Getenv("PYENV_ROOT"), filepath.Join(os.Getenv("HOME"), ".pyenv")))
	dir := ""
	for _, section := range strings.Split(out.String(), "\n  # ")[1:] {
		title, commands, _ := strings.Cut(section, "\n")
		commands, _, _ = strings.Cut(commands, "\n\n")
		if directory, ok := strings.CutPrefix(commands, "  cd "); ok {
			dir = strings.TrimSpace(directory)
			continue
		}
		tool := "curl"
		if strings.Contains(commands, "aws ") {
			tool = "aws"
		}
		if _, err := exec.LookPath(tool); err != nil {
			t.Logf("SKIPPED %q: this machine has no %s", title, tool)
			continue
		}
		shell := exec.CommandContext(t.Context(), "bash", "-ec", commands)
		shell.Dir, shell.Env = dir, homeless
		answer, err := shell.CombinedOutput()
		t.Logf("%s\n%s", commands, answer)
		if err != nil {
			t.Errorf("%s: %v\n%s\n%s", title, err, commands, answer)
		}
		want := map[string]string{
			"curl":      "hello\n",
			"aws":       " cli.txt",
			"older":     " cli.txt",
			"another":   "no rule lets ben@acme.com do s3:GetObject on artifacts/web/hello.txt",
			"what was":  "audit.jsonl: ok: ",
			"what a re": "no rule lets ben@acme.com do s3:GetObject on artifacts/web/hello.txt",
			"end":       "this session was revoked",
		}
		found := false
		for start, text := range want {
			found = found || strings.HasPrefix(title, start) && strings.Contains(string(answer), text)
		}
		if !found {
			t.Errorf("%s: not the answer that was wanted to\n%s\n%s", title, commands, answer)
		}
	}
	if !out.wait(t, "403 refused  no rule lets ben@acme.com") {
		t.Errorf("the requests are not shown:\n%s", out)
	}
	interrupt()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left behind", dir)
	}
	t.Logf("%s", out)
}

// watched is an output that can be waited on.
type watched struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.buf.Write(p)
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return n, err
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// wait waits for one of the texts.
func (w *watched) wait(t *testing.T, texts ...string) bool {
	t.Helper()
	patience := time.After(2 * time.Minute) // the proxy may have to be built
	for {
		for _, text := range texts {
			if strings.Contains(w.String(), text) {
				return true
			}
		}
		select {
		case <-w.changed:
		case <-patience:
			return false
		}
	}
}
