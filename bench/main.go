// Bench measures what the proxy costs beside what others cost who check nothing: nginx, HAProxy and a bare
// httputil.ReverseProxy. All stand before one backend on this machine and are driven in turn, round by round, so that
// whatever else the machine does falls on all alike; the medians of the rounds and their ratios are what to read.
//
//	go run ./bench                         # every workload that is quick
//	go run ./bench -work all -rounds 9     # the whole table
//	go run ./bench -only nginx,sluice -work get-1k
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "role" {
		if err := role(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	var only, work string
	flag.StringVar(&only, "only", "", "contenders, by name, separated by commas [all that are installed]")
	flag.StringVar(&work, "work", "quick", "workloads, by name, separated by commas; quick or all")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds")
	flag.DurationVar(&o.span, "span", time.Second, "how long a contender is driven in a round")
	flag.IntVar(&o.connections, "connections", 64, "connections")
	flag.StringVar(&o.binary, "proxy", "", "a built proxy [built from this module]")
	flag.StringVar(&o.before, "before", "", "another built proxy, of before a change: set beside it as sluice-before")
	flag.BoolVar(&o.keep, "keep", false, "keep the directory with configurations, logs and profiles")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	o.only, o.work = split(only), split(work)
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	only, work  []string
	rounds      int
	span        time.Duration
	connections int
	binary      string
	before      string
	keep        bool
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func run(o options) error {
	works, err := chosen(o.work)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sluice-bench-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Println("kept in", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	f := &field{dir: dir, options: o}
	defer f.stop()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-interrupted
		f.stop()
		os.Exit(1)
	}()
	if err := f.start(); err != nil {
		return err
	}
	for _, w := range works {
		if err := f.measure(w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

// work is one kind of traffic.
type work struct {
	name        string
	method      string
	size        int64
	tls         bool
	connections int // 0 = the option's
	least       int // requests a round, where the span would allow fewer
	most        int // requests a round; 0 = as many as the span allows
	quick       bool
	cold        bool // every request with a token never seen
	once        bool // one round, not warmed up, is enough
	keys        int  // of a DeleteObjects
}

var works = []work{
	{name: "get-1k", method: "GET", size: 1 << 10, quick: true},
	{name: "put-1k", method: "PUT", size: 1 << 10},
	{name: "get-1m", method: "GET", size: 1 << 20, quick: true},
	{name: "put-1m", method: "PUT", size: 1 << 20, quick: true},
	{name: "get-1g", method: "GET", size: 1 << 30, connections: 2, least: 2},
	{name: "put-1g", method: "PUT", size: 1 << 30, connections: 2, least: 2},
	{name: "tls-get-1k", method: "GET", size: 1 << 10, tls: true},
	{name: "tls-get-1m", method: "GET", size: 1 << 20, tls: true},
	{name: "tls-get-1g", method: "GET", size: 1 << 30, tls: true, connections: 2, least: 2},
	{name: "memory", method: "GET", size: 100 << 20, connections: 200, most: 200, once: true},
	{name: "cold-get-1k", method: "GET", size: 1 << 10, connections: 16, most: 2000, cold: true},
	{name: "warm-get-1k", method: "GET", size: 1 << 10, connections: 16, most: 2000}, // to compare the cold one with
	{name: "delete-1000", method: "POST", connections: 4, keys: 1000},
	{name: "tls-put-1g", method: "PUT", size: 1 << 30, tls: true, connections: 2, least: 2},
}

func chosen(names []string) ([]work, error) {
	var all []work
	for _, w := range works {
		if slices.Contains(names, w.name) || slices.Contains(names, "all") || w.quick && slices.Contains(names, "quick") {
			all = append(all, w)
		}
	}
	for _, name := range names {
		if name != "all" && name != "quick" && !slices.ContainsFunc(works, func(w work) bool { return w.name == name }) {
			return nil, fmt.Errorf("no workload is called %q", name)
		}
	}
	return all, nil
}

// result is one contender's round.
type result struct {
	perSecond float64       // requests, or bytes where bodies are large
	p50, p99  time.Duration // of a request
	cpu       float64       // µs of the contender a request, or s a GB
	peak      float64       // MB resident, at most
}

func (w work) large() bool { return w.size >= 1<<20 }

// measure drives every contender in turn, round by round, and prints the medians.
func (f *field) measure(w work) error {
	var able []*contender
	for _, c := range f.contenders {
		if !w.tls || c.secure != "" {
			able = append(able, c)
		}
	}
	results := make([][]result, len(able))
	first, last := 0, f.options.rounds
	if w.once {
		first = last
	}
	for round := first; round <= last; round++ {
		// Each round starts with another one, so that none always follows the same.
		for i := range able {
			i = (i + round) % len(able)
			r, err := f.drive(able[i], w)
			if err != nil {
				return fmt.Errorf("%s: %w", able[i].name, err)
			}
			if round > 0 { // the first warms up
				results[i] = append(results[i], r)
			}
		}
	}
	f.print(w, able, results)
	return nil
}

func median[T int64 | float64 | time.Duration](rs []result, of func(result) T) T {
	values := make([]T, len(rs))
	for i, r := range rs {
		values[i] = of(r)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func (f *field) print(w work, able []*contender, results [][]result) {
	speed, cost := "req/s", "CPU µs/req"
	if w.large() {
		speed, cost = "MB/s", "CPU s/GB"
	}
	connections := w.connections
	if connections == 0 {
		connections = f.options.connections
	}
	fmt.Printf("\n%s, %d connections, %d rounds\n", w.name, connections, f.options.rounds)
	fmt.Printf("%-16s %10s %8s %8s %10s %8s %10s %10s %8s\n", "", speed, "÷ nginx", "÷ bare", cost, "÷ nginx", "p50", "p99", "MB peak")
	rate := func(r result) float64 { return r.perSecond }
	cpu := func(r result) float64 { return r.cpu }
	// Ratios are taken within a round, where both met the same machine.
	ratio := func(i int, to string, of func(result) float64) string {
		j := slices.IndexFunc(able, func(c *contender) bool { return c.name == to })
		if j < 0 || j == i {
			return "·"
		}
		ratios := make([]float64, len(results[i]))
		for n := range ratios {
			ratios[n] = of(results[i][n]) / of(results[j][n])
		}
		slices.Sort(ratios)
		return fmt.Sprintf("%.2f", ratios[len(ratios)/2])
	}
	for i, c := range able {
		shown := median(results[i], rate)
		if w.large() {
			shown /= 1e6
		}
		fmt.Printf("%-16s %10.0f %8s %8s %10.2f %8s %10s %10s %8.0f\n", c.name, shown, ratio(i, "nginx", rate), ratio(i, "bare", rate),
			median(results[i], cpu), ratio(i, "nginx", cpu),
			median(results[i], func(r result) time.Duration { return r.p50 }).Round(10*time.Microsecond),
			median(results[i], func(r result) time.Duration { return r.p99 }).Round(10*time.Microsecond),
			median(results[i], func(r result) float64 { return r.peak }))
	}
	for i, c := range able {
		if c.name == "sluice" {
			if part := ratio(i, "sluice-nojournal", rate); part != "·" {
				fmt.Printf("with the journal %s of the throughput without, for %s of the CPU\n", part, ratio(i, "sluice-nojournal", cpu))
			}
		}
	}
}

// put writes a file below dir.
func put(dir, name string, content []byte) (string, error) {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, content, 0o600)
}
