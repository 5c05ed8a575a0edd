package main

import (
	"fmt"
	"io"
)

func (r *run) failed() bool {
	for _, o := range r.results {
		if o.failed() {
			return true
		}
	}
	return len(r.trouble) > 0
}

func (r *run) print(w io.Writer) {
	good, bad := 0, 0
	for _, o := range r.results {
		if o.failed() {
			bad++
		} else {
			good++
		}
	}
	fmt.Fprintf(w, "\n%d of %d as they should be; %d requests, each with its event\n", good, good+bad, r.served)
	for _, a := range r.absent {
		fmt.Fprintf(w, "absent: %s: %s\n", a.client, a.reason)
	}
	for _, t := range r.trouble {
		fmt.Fprintln(w, "trouble:", t)
	}
}

func (r *run) update(file string) error { return nil }
