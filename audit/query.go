package audit

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// QueryOptions is a question that Query answers.
type QueryOptions struct {
	Filter Filter
	// GroupBy counts events, and sums their bytes, by these columns rather than listing them.
	GroupBy []string
	// Columns are what a table or CSV lists [time, who, operation, bucket, key, outcome, status, reasons].
	Columns []string
	// Format is table [table], csv or json. As JSON events are written as they are in the log; a cell of CSV that
	// a spreadsheet would run as a formula begins with an apostrophe.
	Format string
	Limit  int // at most so many events, or groups; 0 = all
}

// columns are what events can be listed and grouped by.
var columns = map[string]func(*Event) string{
	"time":      func(ev *Event) string { return string(appendTime(nil, ev.Time)) },
	"day":       func(ev *Event) string { return ev.Time.UTC().Format(time.DateOnly) },
	"hour":      func(ev *Event) string { return ev.Time.UTC().Format("2006-01-02T15:00Z") },
	"id":        func(ev *Event) string { return ev.ID },
	"who":       func(ev *Event) string { return or(or(ev.Identity.Attributes.User, ev.Identity.Subject), "nobody") },
	"issuer":    func(ev *Event) string { return ev.Identity.Issuer },
	"subject":   func(ev *Event) string { return ev.Identity.Subject },
	"session":   func(ev *Event) string { return ev.Identity.Session },
	"user":      func(ev *Event) string { return ev.Identity.Attributes.User },
	"workspace": func(ev *Event) string { return ev.Identity.Attributes.Workspace },
	"project":   func(ev *Event) string { return ev.Identity.Attributes.Project },
	"method":    func(ev *Event) string { return ev.Identity.Method },
	"source_ip": func(ev *Event) string { return ev.SourceIP },
	"operation": func(ev *Event) string { return ev.Operation },
	"bucket":    func(ev *Event) string { return ev.Bucket },
	"key":       func(ev *Event) string { return ev.Key },
	"decision": func(ev *Event) string {
		if ev.Decision.Allow {
			return "allow"
		}
		return "deny"
	},
	"reasons":   func(ev *Event) string { return or(strings.Join(ev.Decision.Reasons, "; "), ev.Error) },
	"role":      func(ev *Event) string { return ev.Decision.Role },
	"revision":  func(ev *Event) string { return ev.Decision.PolicyRevision },
	"backend":   func(ev *Event) string { return ev.Backend.Name },
	"outcome":   func(ev *Event) string { return string(ev.Outcome) },
	"status":    func(ev *Event) string { return strconv.Itoa(ev.Status) },
	"error":     func(ev *Event) string { return ev.Error },
	"bytes_in":  func(ev *Event) string { return strconv.FormatInt(ev.BytesIn, 10) },
	"bytes_out": func(ev *Event) string { return strconv.FormatInt(ev.BytesOut, 10) },
	"trace_id":  func(ev *Event) string { return ev.TraceID },
}

// QueryColumns are the names for GroupBy and Columns.
func QueryColumns() []string {
	names := make([]string, 0, len(columns))
	for name := range columns {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Check tells what is wrong with the question itself.
func (o *QueryOptions) Check() error {
	for _, name := range slices.Concat(o.Columns, o.GroupBy) {
		if columns[name] == nil {
			return fmt.Errorf("no column %q: there are %s", name, strings.Join(QueryColumns(), ", "))
		}
	}
	switch o.Format {
	case "", "table", "csv", "json":
	default:
		return fmt.Errorf("no format %q: there are table, csv and json", o.Format)
	}
	if o.Limit < 0 {
		return fmt.Errorf("a limit of %d is below none", o.Limit)
	}
	return nil
}

// Query answers a question from the files of logs, compressed ones included (see Read for paths).
func Query(ctx context.Context, paths []string, w io.Writer, o QueryOptions) error {
	if err := o.Check(); err != nil {
		return err
	}
	if len(o.Columns) == 0 {
		o.Columns = []string{"time", "who", "operation", "bucket", "key", "outcome", "status", "reasons"}
	}
	out := bufio.NewWriter(w)
	var err error
	switch {
	case len(o.GroupBy) > 0:
		err = queryGroups(ctx, paths, out, &o)
	case o.Format == "json":
		n := 0
		err = o.each(ctx, paths, func(line []byte, _ *Event) bool {
			out.Write(line)
			out.WriteByte('\n')
			n++
			return n != o.Limit
		})
	default:
		rows := o.rows(out)
		rows.write(o.Columns)
		n := 0
		err = o.each(ctx, paths, func(_ []byte, ev *Event) bool {
			row := make([]string, len(o.Columns))
			for i, name := range o.Columns {
				row[i] = columns[name](ev)
			}
			rows.write(row)
			n++
			return n != o.Limit
		})
		rows.flush()
	}
	if _, some := err.(unreadError); err != nil && !some {
		return err
	}
	return errors.Join(out.Flush(), err)
}

// unreadError tells of files that could not be read, or not to their end: the answer is of the others.
type unreadError struct{ error }

func (e unreadError) Unwrap() error { return e.error }

// each calls yield for the events that the filter chooses, until it returns false.
func (o *QueryOptions) each(ctx context.Context, paths []string, yield func(line []byte, ev *Event) bool) error {
	pre := o.Filter.prefilter()
	n := 0
	var unread []error
	for line, err := range readLines(paths, o.Filter.Since) {
		if err != nil {
			if line.file == "" {
				return err
			}
			unread = append(unread, err)
			continue
		}
		if n++; n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if !pre.match(line.text) {
			continue
		}
		var ev Event
		if err := json.Unmarshal(line.text, &ev); err != nil {
			return fmt.Errorf("%s:%d: not an audit event: %w", line.file, line.number, err)
		}
		if ev.Schema != Schema {
			return fmt.Errorf("%s:%d: not an audit event: its schema is %q and not %q", line.file, line.number, ev.Schema, Schema)
		}
		if o.Filter.match(&ev) && !yield(line.text, &ev) {
			break
		}
	}
	if unread != nil {
		return unreadError{errors.Join(unread...)}
	}
	return nil
}

type group struct {
	key    []string
	events uint64
	bytes  int64
}

func queryGroups(ctx context.Context, paths []string, out *bufio.Writer, o *QueryOptions) error {
	groups := map[string]*group{}
	err := o.each(ctx, paths, func(_ []byte, ev *Event) bool {
		key := make([]string, len(o.GroupBy))
		for i, name := range o.GroupBy {
			key[i] = columns[name](ev)
		}
		name := strings.Join(key, "\x00")
		g := groups[name]
		if g == nil {
			g = &group{key: key}
			groups[name] = g
		}
		g.events++
		g.bytes += ev.BytesIn + ev.BytesOut
		return true
	})
	if _, some := err.(unreadError); err != nil && !some {
		return err
	}
	var sorted []*group
	for _, g := range groups {
		sorted = append(sorted, g)
	}
	slices.SortFunc(sorted, func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.events, a.events), slices.Compare(a.key, b.key))
	})
	if o.Limit > 0 && len(sorted) > o.Limit {
		sorted = sorted[:o.Limit]
	}
	if o.Format == "json" {
		e := json.NewEncoder(out)
		e.SetEscapeHTML(false)
		for _, g := range sorted {
			object := map[string]any{"events": g.events, "bytes": g.bytes}
			for i, name := range o.GroupBy {
				object[name] = g.key[i]
			}
			if err := e.Encode(object); err != nil {
				return err
			}
		}
		return err
	}
	rows := o.rows(out)
	rows.write(append(slices.Clone(o.GroupBy), "events", "bytes"))
	for _, g := range sorted {
		rows.write(append(g.key, strconv.FormatUint(g.events, 10), strconv.FormatInt(g.bytes, 10)))
	}
	rows.flush()
	return err
}

// rows writes a table or CSV. Its errors come up when out is flushed.
type rows struct {
	write func([]string)
	flush func()
}

func (o *QueryOptions) rows(out *bufio.Writer) rows {
	if o.Format == "csv" {
		c := csv.NewWriter(out)
		return rows{func(row []string) {
			for i, cell := range row {
				if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
					row[i] = "'" + cell
				}
			}
			c.Write(row)
		}, c.Flush}
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	n := 0
	return rows{func(row []string) {
		if n++; n%1000 == 0 {
			t.Flush() // or it would hold the whole table to align it
		}
		for i, cell := range row {
			if i > 0 {
				io.WriteString(t, "\t")
			}
			io.WriteString(t, printable(or(cell, "-")))
		}
		io.WriteString(t, "\n")
	}, func() { t.Flush() }}
}
