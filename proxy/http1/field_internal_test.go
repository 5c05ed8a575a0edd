package http1

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// FuzzPlain holds the quick look at a value to the table: it may only ever be the stricter of the two.
func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "a", "plain value", "tab\there", "12345678", "1234567\x7f", "\x1f2345678", "1234567\xff", "\x00\x01\x02\x03\x04\x05\x06\x07", "~~~~~~~~ ", "        "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if plain(s) && !all(s, isValue) {
			t.Errorf("%q is taken for plain", s)
		}
		ascii := true
		for i := range len(s) {
			ascii = ascii && s[i] >= ' ' && s[i] <= '~'
		}
		if ascii != plain(s) {
			t.Errorf("plain(%q) = %v", s, !ascii)
		}
	})
}

// A connection that remembers lines reads every head as one that knows nothing, whatever came before, and what it gave out
// stays as it was when the buffer is filled anew and others come in its place.
func TestHeadsRememberNothingButLines(t *testing.T) {
	vocabulary := []string{"Host: h", "host: h", "Host:  h ", "A: 1", "A: 2", "A: 22", "A:", "Authorization: Bearer " + strings.Repeat("x", 900),
		"Content-Length: 1", "X-Amz-Date: 20261125T000000Z", "B: " + strings.Repeat("y", rememberedBytes), "C: \t", "no colon", "D : 1", " E: 1", "F: \x00", ": 1"}
	starts := []string{"GET / HTTP/1.1", "GET /a HTTP/1.1", "Host: h", "HTTP/1.1 200 OK", "HTTP/1.1 200"}
	random := rand.New(rand.NewPCG(1, 2))
	var knows heads
	buffer := make([]byte, 1<<20)
	type given struct {
		got, want Field
	}
	var all []given
	for range 3000 {
		lines := []string{starts[random.IntN(len(starts))]}
		for range random.IntN(2 * rememberedLines) {
			// Most are good, and what comes early in the list comes often.
			lines = append(lines, vocabulary[min(random.IntN(len(vocabulary)), random.IntN(len(vocabulary)))])
		}
		head := buffer[:copy(buffer, strings.Join(lines, "\r\n")+"\r\n\r\nwhat follows")]
		head = head[:len(head)-len("what follows")]
		start := knows.begin(head)
		all = append(all, given{Field{start, ""}, Field{lines[0], ""}})
		for _, line := range lines[1:] {
			if !knows.more() {
				t.Fatalf("%q: it ends early", lines)
			}
			want, wrong := parseField(line)
			got, err := knows.next()
			if (err == nil) != (wrong == nil) {
				t.Fatalf("%q in %q: %v, not %v", line, lines, err, wrong)
			}
			if err != nil {
				break // and the head with it
			}
			all = append(all, given{got, want})
		}
		sum := 0
		for i := range knows.last {
			sum += len(knows.last[i].line)
		}
		if sum != knows.size || sum > rememberedBytes {
			t.Fatalf("%d bytes are remembered, %d counted, %d may be", sum, knows.size, rememberedBytes)
		}
		for i := range buffer[:len(head)+20] {
			buffer[i] = '#'
		}
	}
	for _, g := range all {
		if g.got != g.want {
			t.Fatalf("%q, not %q", g.got, g.want)
		}
	}
}
