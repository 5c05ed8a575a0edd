// Command quickstart shows Sluice at work on a machine that has nothing but Go: an OIDC issuer, an STS, a real S3 server and
// the proxy in front of it, all on loopback.
//
//	go run ./examples/quickstart          # prints what to paste, and runs until Ctrl-C
//	go run ./examples/quickstart -demo    # tells the whole story by itself
//
// This file only builds the proxy and the story, which takes its time when it is the first time, and says so meanwhile:
// `go run` would be silent. The story is in examples/quickstart/story.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const module = "github.com/sluice-s3/sluice"

func main() {
	dir, err := build()
	if err == nil {
		story := filepath.Join(dir, "story")
		env := append(os.Environ(), "SLUICE_PROXY_PROGRAM="+filepath.Join(dir, "proxy"))
		err = syscall.Exec(story, append([]string{"quickstart"}, os.Args[1:]...), env)
	}
	fmt.Fprintln(os.Stderr, "quickstart:", err)
	os.Exit(1)
}

// build builds both programs, and returns the directory that they are in. It is kept: the next time costs a look only.
func build() (dir string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir = filepath.Join(cache, "sluice-quickstart")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-v", "-o", dir+string(filepath.Separator), module+"/cmd/proxy", module+"/examples/quickstart/story")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}

	began := time.Now()
	info, err := os.Stdout.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	var complaints []string
	compiled := 0
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		line := lines.Text()
		if strings.ContainsAny(line, " :") { // not the name of a package
			complaints = append(complaints, line)
			if strings.HasPrefix(line, "go: downloading ") && terminal {
				fmt.Printf("\r\x1b[K  %s", strings.TrimPrefix(line, "go: "))
			}
			continue
		}
		if compiled++; terminal {
			fmt.Printf("\r\x1b[K  compiling, the first time takes a minute or two: %3ds %4d %s", int(time.Since(began).Seconds()), compiled, shorten(line))
		} else if compiled == 1 {
			fmt.Println("  compiling: the first time takes a minute or two")
		}
	}
	if terminal {
		fmt.Print("\r\x1b[K")
	}
	if err := cmd.Wait(); err != nil {
		return "", errors.Join(fmt.Errorf("go build: %w", err), errors.New(strings.Join(complaints, "\n")))
	}
	return dir, nil
}

// shorten leaves of a package's name what fits into the rest of a line.
func shorten(name string) string {
	if len(name) > 48 {
		return "…" + name[len(name)-47:]
	}
	return name
}
