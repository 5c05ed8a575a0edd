package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func (r *run) failed() bool {
	return len(r.trouble) > 0 || slices.ContainsFunc(r.results, (*result).failed)
}

func (r *run) print(w io.Writer) {
	good := 0
	for _, o := range r.results {
		if !o.failed() {
			good++
		}
	}
	fmt.Fprintf(w, "\n%d of %d as they should be; %d requests, each with its event\n", good, len(r.results), r.served)
	for _, a := range r.absent {
		fmt.Fprintf(w, "absent: %s: %s\n", a.client, a.reason)
	}
	for _, t := range r.trouble {
		fmt.Fprintln(w, "trouble:", t)
	}
}

// record is what is kept of a run of one client, so that a later run of some clients leaves the others' lines as they were.
type record struct {
	Client, Version string
	Absent          string `json:",omitempty"`
	Rows            []row  `json:",omitempty"`
}

type row struct {
	Way, Transport string
	Setup          []string // environment, files and flags, as users write them
	Passed, Failed []string `json:",omitempty"`
	Cannot         string   `json:",omitempty"`
}

func (o *result) row() row {
	w := row{Way: string(o.way), Transport: o.transport, Setup: slices.Concat(o.env, o.files), Cannot: o.cannot}
	if o.flags != "" {
		w.Setup = append(w.Setup, "flags: "+o.flags)
	}
	for _, s := range o.steps {
		if s.err == nil {
			w.Passed = append(w.Passed, s.name)
		} else {
			w.Failed = append(w.Failed, s.name)
		}
	}
	if o.works {
		w.Cannot, w.Passed = "", []string{"put"}
	}
	return w
}

// update writes the run's results between the marks in docs/clients.md, together with those of clients that did not run now.
func (r *run) update(file, records string) error {
	var known []record
	text, err := os.ReadFile(records)
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := map[string]*record{}
	for _, o := range r.results {
		if fresh[o.client] == nil {
			fresh[o.client] = &record{Client: o.client, Version: o.version}
		}
		fresh[o.client].Rows = append(fresh[o.client].Rows, o.row())
	}
	for _, a := range r.absent {
		if r.late() {
			continue // it may only have had no time
		}
		fresh[a.client] = &record{Client: a.client, Absent: a.reason}
	}
	var all []record
	for _, c := range clients {
		f := fresh[c.Name]
		if i := slices.IndexFunc(known, func(k record) bool { return k.Client == c.Name }); i >= 0 && f == nil {
			f = &known[i]
		} else if i >= 0 {
			for _, old := range known[i].Rows { // of ways that did not run now
				if f.Absent == "" && !slices.ContainsFunc(f.Rows, func(w row) bool { return w.Way == old.Way }) {
					f.Rows = append(f.Rows, old)
				}
			}
			slices.SortStableFunc(f.Rows, func(a, b row) int {
				return slices.Index(c.Ways, way(a.Way)) - slices.Index(c.Ways, way(b.Way))
			})
		}
		if f != nil {
			all = append(all, *f)
		}
	}
	text, err = json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	page, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	page, err = between(page, "matrix", matrix(all))
	if err == nil {
		page, err = between(page, "runs", details(all))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return cmp.Or(os.MkdirAll(filepath.Dir(records), 0o755), os.WriteFile(records, append(text, '\n'), 0o644), os.WriteFile(file, page, 0o644))
}

// between replaces what stands between a page's marks of a name.
func between(page []byte, name, text string) ([]byte, error) {
	begin, end := []byte("<!-- begin "+name+": written by test/clients -->\n"), []byte("<!-- end "+name+" -->\n")
	i, j := bytes.Index(page, begin), bytes.Index(page, end)
	if i < 0 || j < i {
		return nil, fmt.Errorf("no marks for %s", name)
	}
	return slices.Concat(page[:i+len(begin)], []byte("\n"+text+"\n"), page[j:]), nil
}

// matrix is one line a client, one column a way.
func matrix(all []record) string {
	ways := []way{bearer, webIdentity, container, process, exported, token}
	var b strings.Builder
	b.WriteString("| client | version |")
	for _, w := range ways {
		fmt.Fprintf(&b, " %s |", w)
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(ways)) + "\n")
	for _, c := range all {
		if c.Absent != "" {
			fmt.Fprintf(&b, "| %s | not run: %s |%s\n", c.Client, cell(c.Absent), strings.Repeat(" |", len(ways)))
			continue
		}
		fmt.Fprintf(&b, "| %s | %s |", c.Client, c.Version)
		for _, w := range ways {
			var good, bad []string
			for _, row := range c.Rows {
				switch {
				case row.Way != string(w):
				case row.Cannot != "" || len(row.Failed) > 0:
					bad = append(bad, row.Transport)
				default:
					good = append(good, row.Transport)
				}
			}
			switch {
			case len(good)+len(bad) == 0:
				b.WriteString(" – |")
			case len(bad) == 0:
				b.WriteString(" yes |")
			case len(good) == 0:
				b.WriteString(" no |")
			default:
				fmt.Fprintf(&b, " %s only |", strings.Join(good, ", "))
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// details is one table a client: what it was run with, and what passed.
func details(all []record) string {
	var b strings.Builder
	for _, c := range all {
		if c.Absent != "" {
			continue
		}
		fmt.Fprintf(&b, "### %s, %s\n\n| way | set | passed |\n|---|---|---|\n", c.Client, c.Version)
		for i := 0; i < len(c.Rows); i++ {
			row := c.Rows[i]
			outcome := row.Transport + ": " + row.outcome()
			// The same over both transports is one line, with TLS's settings.
			if i+1 < len(c.Rows) && c.Rows[i+1].Way == row.Way {
				i++
				next := c.Rows[i]
				if next.outcome() == row.outcome() {
					outcome = "http, https: " + row.outcome()
				} else {
					outcome += "<br>" + next.Transport + ": " + next.outcome()
				}
				row.Setup = next.Setup
			}
			var setup []string
			for _, s := range row.Setup {
				setup = append(setup, code(s))
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", row.Way, strings.Join(setup, "<br>"), outcome)
		}
		b.WriteString("\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func (w row) outcome() string {
	switch {
	case w.Cannot != "":
		return "**no**: " + cell(w.Cannot)
	case len(w.Failed) > 0:
		return fmt.Sprintf("%s; **failed: %s**", strings.Join(w.Passed, ", "), strings.Join(w.Failed, ", "))
	}
	return strings.Join(w.Passed, ", ")
}

// code is a setting in a table's cell.
func code(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, l := range lines {
		lines[i] = "`" + cell(l) + "`"
	}
	return strings.Join(lines, "<br>")
}

func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(s)
}
