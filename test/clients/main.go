// Clients puts unmodified S3 clients through the proxy: SDKs and tools as their users have them, in every way that each can
// come in, over plain HTTP and over TLS with a private CA, and compares with what the S3 server behind it holds.
//
//	go run ./test/clients            # everything; installs what it can
//	go run ./test/clients -update    # and writes what it found into docs/clients.md
//	go run ./test/clients -only 'rclone|mc' -install=false
//
// A client that is absent is listed with the reason and fails nothing. One that is said not to work in some way is tried all
// the same: when it begins to work, the run says so and fails, and the table is put right.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-s3/sluice/examples/world"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "as" {
		if err := goClient(context.Background(), os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	world.Main()
	only := flag.String("only", "", "clients whose names match this `regexp`")
	ways := flag.String("ways", "", "ways in whose names match this `regexp`")
	install := flag.Bool("install", true, "install what is not there: Go tools and npm packages into the user's cache directory, Debian packages as root")
	update := flag.Bool("update", false, "write the result into docs/clients.md")
	limit := flag.Duration("limit", 0, "begin and install nothing after this time, and say what; 0 = no limit")
	parallel := flag.Int("parallel", 2, "how many clients run at a time")
	verbose := flag.Bool("v", false, "print each command and its output")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := run{verbose: *verbose, started: time.Now(), limit: *limit}
	if err := r.all(ctx, *only, *ways, *install, *parallel); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	r.print(os.Stdout)
	if *update {
		dir, err := world.ModuleDir()
		if err == nil {
			err = r.update(filepath.Join(dir, "docs", "clients.md"), filepath.Join(dir, "test", "clients", "results.json"))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if r.failed() {
		os.Exit(1)
	}
}

// run is one run over all clients.
type run struct {
	verbose bool
	started time.Time
	limit   time.Duration

	mu      sync.Mutex // guards all below
	results []*result
	absent  []absence
	trouble []string // what the proxies' audit logs say went wrong
	served  int      // events
}

// absence is a client that did not run.
type absence struct{ client, reason string }

func (r *run) all(ctx context.Context, only, ways string, install bool, parallel int) error {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	wantedWays, err := regexp.Compile(ways)
	if err != nil {
		return err
	}
	m, err := newMachine(install)
	if err != nil {
		return err
	}
	rig, err := newRig(ctx)
	if err != nil {
		return err
	}
	defer rig.Stop()

	slots := make(chan struct{}, parallel)
	var all sync.WaitGroup
	for _, c := range clients {
		if !wanted.MatchString(c.Name) {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if r.late() {
				r.miss(c.Name, fmt.Sprintf("not begun within %v", r.limit))
				return
			}
			program, err := r.find(ctx, c, m)
			if err != nil {
				r.miss(c.Name, err.Error())
				return
			}
			for _, w := range c.Ways {
				if !wantedWays.MatchString(string(w)) {
					continue
				}
				for _, p := range rig.proxies {
					if r.late() {
						fmt.Printf("%-28s %-18s %-5s not begun within %v\n", c.Name, w, p.transport(), r.limit)
						continue
					}
					s := rig.session(r, c, program, w, p)
					s.story(ctx)
					s.close()
					r.mu.Lock()
					r.results = append(r.results, s.result)
					r.mu.Unlock()
					fmt.Printf("%-28s %-18s %-5s %s\n", c.Name, w, p.transport(), s.result.line())
				}
			}
		})
	}
	all.Wait()
	return r.audit(rig)
}

// late tells whether nothing more may begin.
func (r *run) late() bool { return r.limit > 0 && time.Since(r.started) > r.limit }

// find installs for no longer than anything may begin.
func (r *run) find(ctx context.Context, c *client, m *machine) (*program, error) {
	if r.limit > 0 {
		within, cancel := context.WithDeadline(ctx, r.started.Add(r.limit))
		defer cancel()
		ctx = within
	}
	return c.Find(ctx, m)
}

func (r *run) miss(client, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.absent = append(r.absent, absence{client, reason})
	fmt.Printf("%-28s absent: %s\n", client, reason)
}
