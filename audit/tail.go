package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
)

// TailOptions says what Tail shows.
type TailOptions struct {
	Filter Filter
	Last   int  // how many events to begin with
	Follow bool // go on as events are written, until the context ends
	Color  bool // the writer is a terminal
	// Poll is how often the file is looked at [100ms].
	Poll time.Duration
}

// Tail writes a log for people, one event a line: time, who, operation, where, decision, status, bytes. Times are
// UTC. It goes on over rotations.
func Tail(ctx context.Context, path string, w io.Writer, o TailOptions) error {
	if o.Poll <= 0 {
		o.Poll = 100 * time.Millisecond
	}
	path = behindLinks(path)
	last, err := tailLast(path, w, &o)
	if err != nil || !o.Follow {
		return err
	}
	f := &follower{path: path, next: last.seq + 1, hash: last.hash}
	defer f.close()
	pre := o.Filter.prefilter()
	tick := time.NewTicker(o.Poll)
	defer tick.Stop()
	for {
		line, _, err := f.read()
		if f.lost > 0 {
			fmt.Fprintf(w, "-- %d events are missing here --\n", f.lost)
		}
		f.lost = 0
		switch {
		case err == io.EOF:
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			continue
		case err != nil:
			return err
		case ctx.Err() != nil:
			return nil
		case !pre.match(line):
			continue
		}
		var ev Event
		if err := json.Unmarshal(line, &ev); err != nil || !o.Filter.match(&ev) {
			continue
		}
		if _, err := io.WriteString(w, ev.forPeople(o.Color)); err != nil {
			return err
		}
	}
}

// tailLast writes the last events, and returns where the log ends.
func tailLast(path string, w io.Writer, o *TailOptions) (end chainEnd, err error) {
	end.hash = noPrev
	logs, err := findLogs([]string{path})
	if err != nil {
		return end, err
	}
	if len(logs) != 1 {
		return end, fmt.Errorf("%s is not one log: name its file, such as audit.jsonl", path)
	}
	pre := o.Filter.prefilter()
	var shown [][]*Event // of each file, the newest file first
	count := 0
	files := logs[0].files
	for i := len(files) - 1; i >= 0 && (count < o.Last || end.seq == 0); i-- {
		var last []*Event
		var newest []byte
		readFile(files[i].path, func(line textLine, err error) bool {
			if err != nil {
				fmt.Fprintf(w, "-- events are missing here: %s --\n", printable(err.Error()))
				return false
			}
			if seq, _, ok := lineSeq(line.text); ok {
				if seq > end.seq {
					end.seq, newest = seq, append(newest[:0], line.text...)
				}
			}
			ev := new(Event)
			if o.Last == 0 || !pre.match(line.text) || json.Unmarshal(line.text, ev) != nil || !o.Filter.match(ev) {
				return true
			}
			if last = append(last, ev); len(last) >= 2*o.Last+64 {
				last = append(last[:0], last[len(last)-o.Last:]...)
			}
			return true
		})
		if newest != nil {
			end.hash = lineHash(newest)
		}
		last = last[max(0, len(last)-(o.Last-count)):]
		count += len(last)
		shown = append(shown, last)
	}
	for i := len(shown) - 1; i >= 0; i-- {
		for _, ev := range shown[i] {
			if _, err := io.WriteString(w, ev.forPeople(o.Color)); err != nil {
				return end, err
			}
		}
	}
	return end, nil
}

const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	faint  = "\x1b[2m"
	plainC = "\x1b[0m"
)

// forPeople is the event on a line (two where the shadow policy disagrees).
func (ev *Event) forPeople(color bool) string {
	paint := func(c, s string) string {
		if !color || s == "" {
			return s
		}
		return c + s + plainC
	}
	verdict, c := "allow", green
	some := slices.ContainsFunc(ev.Accesses, func(a Access) bool { return a.Allow })
	switch {
	case ev.Outcome == Refused, ev.refused() && !some: // by policy, or by anything else: nothing of it was done
		verdict, c = "DENY", red
	case ev.refused():
		verdict, c = "PART", yellow
	case !ev.Decision.Allow:
		verdict, c = "-", faint
	}
	status := "-"
	if ev.Status != 0 {
		status = fmt.Sprint(ev.Status)
	}
	parts := []string{
		paint(faint, ev.Time.UTC().Format("2006-01-02 15:04:05.000")),
		printable(ev.who()),
		printable(or(ev.Operation, "?")),
		printable(ev.where()),
		paint(c, verdict),
		paint(statusColor(ev.Status), status),
		bytesForPeople(ev.BytesIn + ev.BytesOut),
		paint(faint, fmt.Sprintf("%.1fms", ev.DurationMS)),
	}
	if ev.Outcome != Completed && ev.Outcome != Refused {
		parts = append(parts, paint(yellow, printable(string(ev.Outcome))))
	}
	if why := or(strings.Join(ev.Decision.Reasons, "; "), ev.Error); why != "" && (ev.Outcome != Completed || ev.refused()) {
		parts = append(parts, paint(c, printable(why)))
	}
	line := strings.Join(parts, "  ") + "\n"
	if s := shadowOf(ev); s.Differs {
		line += paint(yellow, "    shadow policy "+printable(s.would(ev))) + "\n"
	}
	return line
}

// would is what the shadow policy would have done otherwise.
func (s *shadow) would(ev *Event) string {
	switch why := strings.Join(s.Reasons, "; "); {
	case s.Error != "":
		return "fails: " + s.Error
	case !s.Allow && !ev.Decision.Allow:
		// A DeleteObjects, which both policies do in part.
		return strings.TrimSuffix("would do another part of it, or on other terms: "+why, ": ")
	case !s.Allow && why != "":
		return "would refuse: " + why
	case !s.Allow:
		return "would refuse"
	case !ev.Decision.Allow:
		return "would allow"
	case s.Role != "" && s.Role != ev.Decision.Role:
		return "would allow it on other terms, as " + s.Role
	}
	return "would allow it on other terms"
}

func statusColor(status int) string {
	switch {
	case status >= 500:
		return red
	case status >= 400:
		return yellow
	case status == 0:
		return faint
	}
	return green
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (ev *Event) who() string {
	id := &ev.Identity
	who := or(id.Attributes.User, id.Subject)
	if id.Session != "" && id.Session != who {
		who += " (" + id.Session + ")"
	}
	return or(strings.TrimSpace(who), "nobody")
}

func (ev *Event) where() string {
	where := ev.Bucket
	switch {
	case ev.Key != "":
		where += "/" + ev.Key
	case len(ev.Accesses) == 1 && ev.Accesses[0].Prefix != "":
		where += "/" + ev.Accesses[0].Prefix + "*"
	}
	for _, a := range ev.Accesses {
		if a.Key != "" && (a.Key != ev.Key || a.Bucket != ev.Bucket) && len(ev.Accesses) == 2 {
			where += " < " + a.Bucket + "/" + a.Key // a copy's source
		}
	}
	if n := len(ev.Accesses); n > 2 {
		where += fmt.Sprintf(" (%d accesses)", n)
	}
	return or(where, "-")
}

// printable keeps what a client wrote from commanding the terminal.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	var b bytes.Buffer
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\u%04x", r)
		}
	}
	return b.String()
}

func bytesForPeople(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f := float64(n)
	for _, unit := range []string{"KiB", "MiB", "GiB"} {
		if f /= 1024; f < 1024 {
			return fmt.Sprintf("%.1f %s", f, unit)
		}
	}
	return fmt.Sprintf("%.1f TiB", f/1024)
}
