package http1

import (
	"math/rand/v2"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// FuzzPlain holds the quick look at a value to the table: it may only ever be the stricter of the two.
func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "a", "plain value", "tab\there", "12345678", "1234567\x7f", "\x1f2345678", "1234567\xff", "\x00\x01\x02\x03\x04\x05\x06\x07", "~~~~~~~~ ", "        "} {
		f.Add(s)
	}
	for i := range 45 {
		f.Add(strings.Repeat("a", i) + "\x1f" + strings.Repeat("b", 44-i))
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
		"Content-Length: 1", "X-Amz-Date: 20261125T000000Z", "Connection: close", "Expect: 100-continue", "B: " + strings.Repeat("y", rememberedBytes), "C: \t", "no colon", "D : 1", " E: 1", "F: \x00", ": 1"}
	starts := []string{"GET / HTTP/1.1", "GET /a HTTP/1.1", "Host: h", "HTTP/1.1 200 OK", "HTTP/1.1 200"}
	random := rand.New(rand.NewPCG(1, 2))
	var knows heads
	buffer := make([]byte, 1<<20)
	type given struct {
		got, want Field
	}
	var all []given
	var before, earlier []string
	told := 0
	for range 6000 {
		lines := []string{starts[random.IntN(len(starts))]}
		switch random.IntN(8) {
		case 0: // nearly what came before
			lines = append(lines, before...)
			if len(before) > 0 {
				i := 1 + random.IntN(len(before))
				lines[i] = vocabulary[random.IntN(10)]
				lines = lines[:len(lines)-random.IntN(2)]
			}
		case 1: // all good, and no two of one name
			for i := range random.IntN(rememberedLines) {
				lines = append(lines, "A"+strconv.Itoa(i)+": "+strconv.Itoa(random.IntN(2)))
			}
		case 2:
			for range random.IntN(2 * rememberedLines) {
				// Most are good, and what comes early in the list comes often.
				lines = append(lines, vocabulary[min(random.IntN(len(vocabulary)), random.IntN(len(vocabulary)))])
			}
		case 3: // what came before that
			lines = append(lines, earlier...)
		default: // just that
			lines = append(lines, before...)
		}
		if !slices.Equal(before, lines[1:]) {
			before, earlier = slices.Clone(lines[1:]), before
		}
		text := strings.Join(lines, "\r\n") + "\r\n\r\n"
		in := reader{buf: buffer, w: copy(buffer, text+"what follows")}
		head, same, err := in.head(knows.whole)
		if err != nil || string(head) != text || in.r != len(text) {
			t.Fatalf("%q is read as %q, %v", text, head, err)
		}
		start := knows.begin(head, same)
		all = append(all, given{Field{start, ""}, Field{lines[0], ""}})
		says := said{framing: framing{length: -1}}
		whole := true
		fields, again := knows.again()
		for i, line := range lines[1:] {
			want, wrong := parseField(line)
			var got Field
			if again {
				if i >= len(fields) {
					t.Fatalf("%q: of that it is told that it came again: %q", lines, fields)
				}
				got, err = fields[i], nil
			} else if !knows.more() {
				t.Fatalf("%q: it ends early", lines)
			} else {
				got, err = knows.next()
			}
			if (err == nil) != (wrong == nil) {
				t.Fatalf("%q in %q: %v, not %v", line, lines, err, wrong)
			}
			if whole = err == nil; !whole {
				break // and the head with it
			}
			all = append(all, given{got, want})
			says.take(want)
		}
		if whole && (knows.said != says || !again && knows.more()) {
			t.Fatalf("%q says %+v, not %+v", lines, knows.said, says)
		}
		sum := 0
		for i := range knows.lines {
			sum += len(knows.lines[i])
		}
		if sum != knows.size || sum > rememberedBytes || len(knows.whole) > rememberedBytes {
			t.Fatalf("%d bytes are remembered, %d counted, %d in one piece, %d may be", sum, knows.size, len(knows.whole), rememberedBytes)
		}
		if again {
			told++
		}
		for i := range buffer[:len(head)+20] {
			buffer[i] = '#'
		}
	}
	if told < 300 {
		t.Errorf("%d heads were told at once", told)
	}
	for _, g := range all {
		if g.got != g.want {
			t.Fatalf("%q, not %q", g.got, g.want)
		}
	}
}

// What a connection remembers of a long head does not stay when a short one has come in its place.
func TestHeadsForget(t *testing.T) {
	var h heads
	read := func(lines int) {
		text := "GET / HTTP/1.1\r\n"
		for i := range lines {
			text += "A" + strconv.Itoa(i) + ": 1\r\n"
		}
		head := []byte(text + "\r\n")
		in := reader{buf: head, w: len(head)}
		head, same, err := in.head(h.whole)
		if err != nil {
			t.Fatal(err)
		}
		h.begin(head, same)
		for _, again := h.again(); !again && h.more(); {
			if _, err := h.next(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, lines := range []int{4, 8, 12, 15, 2} {
		read(lines - 1)
		for range 5 {
			read(lines)
		}
		if !h.same {
			t.Errorf("%d lines: not told at once", lines)
		}
		for i, line := range h.lines {
			if (line != "") != (i <= lines) || (h.fields[i].Name != "") != (i > 0 && i <= lines) {
				t.Errorf("%d lines: %q is remembered as line %d, with %q", lines, line, i, h.fields[i])
			}
		}
	}
}

// A name is one where the table says so, be it usual or not.
func TestIsName(t *testing.T) {
	found := 0
	for _, name := range names {
		if usual[slot(name)] == name {
			found++
		}
	}
	if found < len(names)*9/10 {
		t.Errorf("%d of %d names are found at once", found, len(names))
	}
	for name, want := range map[string]bool{"": false, "a": true, "Etag": true, "etag": true, "Et g": false, "X-Amz-Date:": false, "x_y": true, "Dat\xe9": false, "Dat\r": false} {
		if isName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

// Where the rest of a head is still to come, what the buffer has of the head before is not taken for it.
func TestHeadThatIsNotAllThere(t *testing.T) {
	first, rest := "GET / HTTP/1.1\r\n", "Host: h\r\nA: 1\r\n\r\n"
	for n := range first + rest {
		buffer := []byte(first + rest)
		in := reader{buf: buffer, w: n, conn: nowhere{}}
		if head, _, err := in.head(rest); err == nil {
			t.Errorf("of %d bytes: %q", n, head)
		}
	}
}

// What a request's header held is let go with the next, and what is more than there is room for is held, too.
func TestValuesAreLetGo(t *testing.T) {
	c := &conn{server: &Server{}, rwc: nowhere{}}
	c.in.init(c.rwc)
	c.request.init(c)
	for _, fields := range []int{3, 50, 40, 2, 14, 14, 14, 14, 14, 14, 14, 50, 14, 2} {
		text := "GET / HTTP/1.1\r\nHost: h\r\n"
		for i := range fields {
			text += "A" + strconv.Itoa(i) + ": " + strconv.Itoa(i) + "\r\n"
		}
		c.in.r, c.in.w = 0, copy(c.in.buf, text+"\r\n")
		if _, err := c.request.read(); err != nil {
			t.Fatal(err)
		}
		for i := range max(fields, len(c.request.values)) {
			want := ""
			if i < fields {
				want = strconv.Itoa(i)
			}
			if got := c.request.header.Get("A" + want); i < fields && got != want {
				t.Errorf("%d fields: %q is %q", fields, "A"+want, got)
			}
			if i < len(c.request.values) && c.request.values[i] != want {
				t.Errorf("%d fields: value %d is %q, not %q", fields, i, c.request.values[i], want)
			}
		}
	}
}

// FuzzTarget holds the quick way to read a target to net/url's.
func FuzzTarget(f *testing.F) {
	for _, target := range []string{"/", "/b/k", "//b/k", "/b/k?", "/b/k??", "/b/k?a=b?", "/?", "?", "/a:b@c;d=e,f&g$h+i", "/b%2f", "/b/\xc3\xbc", "/b/'k'", "/b#k", "*", "b:k", "http://h/b?c", "/a b"} {
		f.Add(target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		if target == "" || !all(target, isURI) {
			return
		}
		want, wrong := url.ParseRequestURI(target)
		got, err := new(request).parseTarget(http.MethodGet, target)
		if (err == nil) != (wrong == nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %#v (%v), not %#v (%v)", target, got, err, want, wrong)
		}
	})
}

// FuzzSentTarget holds the quick way to write a target to net/url's.
func FuzzSentTarget(f *testing.F) {
	for _, u := range []url.URL{{}, {Path: "/"}, {Path: "/b/k", RawPath: "/b/k", RawQuery: "a=b"}, {Path: "//b", RawPath: "//b", ForceQuery: true}, {Path: "b", RawPath: "b"},
		{Path: "/b k", RawPath: "/b%20k"}, {Path: "/b k", RawPath: "/b k"}, {Path: "/b?", RawPath: "/b?"}, {Path: "*", RawPath: "*"}, {Path: "/b", RawPath: "/c"}, {Path: "/b/c", RawPath: "/b%2Fc"},
		{Path: "/b", RawPath: "/b", RawQuery: "a b"}, {Path: "/b'", RawPath: "/b'"}, {Opaque: "//h/b", Scheme: "http", Path: "/b", RawPath: "/b"}} {
		f.Add(u.Scheme, u.Opaque, u.Path, u.RawPath, u.RawQuery, u.ForceQuery)
	}
	f.Fuzz(func(t *testing.T, scheme, opaque, path, rawPath, query string, force bool) {
		for _, rawPath := range []string{rawPath, path} {
			u := &url.URL{Scheme: scheme, Opaque: opaque, Path: path, RawPath: rawPath, RawQuery: query, ForceQuery: force}
			got, ok := appendTarget([]byte("GET "), u)
			want := u.RequestURI()
			if string(got) != "GET "+want || ok != (want != "" && all(want, isURI)) {
				t.Errorf("%#v: %q (%v), not %q", u, got, ok, want)
			}
		}
	})
}
