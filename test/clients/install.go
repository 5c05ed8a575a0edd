package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// machine finds clients, and installs those that are not there where it may.
type machine struct {
	dir     string // what is installed for this run and the next
	install bool
	mu      sync.Mutex // one installation at a time: they share locks and the machine's two cores
	stale   bool       // apt-get update has run
}

func newMachine(install bool) (*machine, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	m := &machine{dir: filepath.Join(cache, "sluice-clients"), install: install}
	return m, os.MkdirAll(filepath.Join(m.dir, "bin"), 0o755)
}

var errNotInstalled = errors.New("not on this machine, and -install=false")

// versionOf is the first match of a number in what a program says.
func versionOf(ctx context.Context, argv ...string) (string, error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %.200s", argv[0], err, out)
	}
	if v := regexp.MustCompile(`\d+\.\d+(\.\d+)*`).FindString(string(out)); v != "" {
		return v, nil
	}
	return "", fmt.Errorf("%s tells no version: %.200s", argv[0], out)
}

// goTool installs a Go program of a pinned version.
func goTool(pkg, module, version string) func(context.Context, *machine) (*program, error) {
	return func(ctx context.Context, m *machine) (*program, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		bin := filepath.Join(m.dir, "bin", filepath.Base(module)+"@"+version)
		name := filepath.Join(bin, filepath.Base(pkg))
		if _, err := os.Stat(name); err == nil {
			return &program{Argv: []string{name}, Version: version}, nil
		}
		if !m.install {
			return nil, errNotInstalled
		}
		ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "go", "install", pkg+"@"+version)
		cmd.Dir = m.dir
		cmd.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			if m.buildInPlace(ctx, pkg, version, name) != nil {
				return nil, fmt.Errorf("go install %s@%s: %w: %s", pkg, version, err, lastLine(out))
			}
		}
		return &program{Argv: []string{name}, Version: version}, nil
	}
}

// buildInPlace builds a program where its module was unpacked. go install asks for the list of the module's versions as well,
// which not every module proxy has.
func (m *machine) buildInPlace(ctx context.Context, pkg, version, output string) error {
	for module := pkg; strings.Count(module, "/") >= 2; module = path.Dir(module) {
		cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module+"@"+version)
		cmd.Dir, cmd.Env = m.dir, append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
		out, err := cmd.Output()
		var got struct{ Dir string }
		if err != nil || json.Unmarshal(out, &got) != nil || got.Dir == "" {
			continue
		}
		below := "." + strings.TrimPrefix(pkg, module)
		build := exec.CommandContext(ctx, "go", "build", "-C", got.Dir, "-mod=readonly", "-o", output, below)
		build.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
		return build.Run()
	}
	return errors.New("no module has it")
}

// debian takes a program of Debian's own package, by its path: another of that name may come first in PATH.
func debian(pkg, path string, version ...string) func(context.Context, *machine) (*program, error) {
	return func(ctx context.Context, m *machine) (*program, error) {
		if err := m.apt(ctx, pkg, path); err != nil {
			return nil, err
		}
		v, err := versionOf(ctx, append([]string{path}, version...)...)
		return &program{Argv: []string{path}, Version: v + " (Debian)"}, err
	}
}

func (m *machine) apt(ctx context.Context, pkg, path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := os.Stat(path); err == nil {
		if err := exec.CommandContext(ctx, "dpkg", "-S", path).Run(); err == nil {
			return nil
		}
	}
	switch {
	case !m.install:
		return errNotInstalled
	case os.Getuid() != 0:
		return fmt.Errorf("only root can install %s, which is not here, from Debian's packages", pkg)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("no apt-get to install %s with", pkg)
	}
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	if !m.stale {
		m.stale = true
		exec.CommandContext(ctx, "apt-get", "update", "-q").Run() // the install tells
	}
	cmd := exec.CommandContext(ctx, "apt-get", "install", "-q", "-y", "--no-install-recommends", pkg)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get install %s: %w: %s", pkg, err, lastLine(out))
	}
	return nil
}

// pip takes a Python of its own with pinned packages, unless one on the machine has them already.
func pip(module string, packages ...string) func(context.Context, *machine) (python, version string, err error) {
	return func(ctx context.Context, m *machine) (string, string, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		tell := "import " + module + "; print(" + module + ".__version__)"
		venv := filepath.Join(m.dir, "python", "bin", "python3")
		for _, python := range []string{venv, "python3"} {
			// Debian's is a client of its own.
			path, err := exec.LookPath(python)
			if err != nil || path == "/usr/bin/python3" {
				continue
			}
			if v, err := versionOf(ctx, path, "-c", tell); err == nil {
				return path, v, nil
			}
		}
		if !m.install {
			return "", "", errNotInstalled
		}
		ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "python3", "-m", "venv", filepath.Join(m.dir, "python")).CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("python3 -m venv: %w: %s", err, lastLine(out))
		}
		args := append([]string{"-m", "pip", "install", "-q"}, packages...)
		if out, err := exec.CommandContext(ctx, venv, args...).CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("pip install %s: %w: %s", strings.Join(packages, " "), err, lastLine(out))
		}
		v, err := versionOf(ctx, venv, "-c", tell)
		return venv, v, err
	}
}

// npm installs pinned packages into a directory, and puts a script beside them.
func npm(script, text string, packages ...string) func(context.Context, *machine) (*program, error) {
	return func(ctx context.Context, m *machine) (*program, error) {
		node, err := exec.LookPath("node")
		if err != nil {
			return nil, errors.New("no node on this machine")
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		dir := filepath.Join(m.dir, "npm")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, script), []byte(text), 0o644); err != nil {
			return nil, err
		}
		wanted, stamp := strings.Join(packages, "\n"), filepath.Join(dir, "installed")
		if have, _ := os.ReadFile(stamp); string(have) != wanted {
			if !m.install {
				return nil, errNotInstalled
			}
			ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "npm", append([]string{"install", "--silent", "--no-audit", "--no-fund", "--prefix", dir}, packages...)...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				return nil, fmt.Errorf("npm install: %w: %s", err, lastLine(out))
			}
			if err := os.WriteFile(stamp, []byte(wanted), 0o644); err != nil {
				return nil, err
			}
		}
		_, version, _ := strings.Cut(packages[0][1:], "@")
		return &program{Argv: []string{node, filepath.Join(dir, script)}, Version: version}, nil
	}
}

// present takes a program that is on the machine or is not.
func present(name string, version ...string) func(context.Context, *machine) (*program, error) {
	return func(ctx context.Context, m *machine) (*program, error) {
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("no %s on this machine", name)
		}
		v, err := versionOf(ctx, append([]string{path}, version...)...)
		return &program{Argv: []string{path}, Version: v}, err
	}
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
