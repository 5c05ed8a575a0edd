package http1

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// pieces is a connection that gives n bytes a read.
type pieces struct {
	nowhere
	text string
	n    int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.text == "" {
		return 0, io.EOF
	}
	n := copy(b, p.text[:min(p.n, len(p.text))])
	p.text = p.text[n:]
	return n, nil
}

// readAll reads requests, in pieces of n bytes, until there is none or a bad one, and tells all of them.
func readAll(text string, n int) (seen []string, same int) {
	c := &conn{server: &Server{}, rwc: &pieces{text: text, n: n}}
	c.in.init(c.rwc)
	c.request.init(c)
	c.response.init(c)
	for {
		status, err := c.request.read()
		if err != nil && status == 0 {
			return seen, same
		}
		r := &c.request.Request
		body, wrong := "", error(nil)
		if err == nil {
			var all []byte
			all, wrong = io.ReadAll(r.Body)
			body = string(all)
		}
		seen = append(seen, fmt.Sprintf("%d %v %s %q %q %v host=%q length=%d te=%v close=%t header=%q expect=%t body=%q %v",
			status, err, r.Method, r.RequestURI, r.URL, r.Proto, r.Host, r.ContentLength, r.TransferEncoding, r.Close, r.Header, c.request.expect, body, wrong))
		if c.request.heads.same {
			same++
		}
		if err != nil || wrong != nil {
			return seen, same
		}
	}
}

func (*pieces) SetReadDeadline(time.Time) error { return nil }
func (*pieces) Close() error                    { return nil }

// What a connection has seen before changes nothing of what it takes a request for, nor does in how many pieces it comes. That
// is tried with all pairs of requests, among them those whose heads end alike and begin in another way.
func TestNothingOfWhatCameBefore(t *testing.T) {
	rests := []string{
		"Host: h\r\n\r\n",
		"Host: h\r\nA: b\r\n\r\n",
		"Host: h\r\nContent-Length: 5\r\n\r\nhello",
		"Content-Length: 5\r\nHost: h\r\n\r\nhello",
		"Host: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"Host: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
		"Host: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"Host: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"Host: h\r\nHost: h\r\n\r\n",
		"\r\n",
		"Host: h\r\nConnection: close\r\n\r\n",
		"Host: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
		"Host: h\r\nA: b\r\n c\r\n\r\n",
		"Host: h\r\n" + strings.Repeat("A: b\r\n", 15) + "\r\n",
		"Host: h\r\n" + strings.Repeat("A: b\r\n", 16) + "\r\n",
		"Host: h\r\nA: " + strings.Repeat("a", rememberedBytes-40) + "\r\n\r\n",
		"Host: h\r\nA: " + strings.Repeat("a", rememberedBytes) + "\r\n\r\n",
	}
	starts := []string{"GET / HTTP/1.1\r\n", "PUT /b/k?x HTTP/1.1\r\n", "GET / HTTP/1.0\r\n", "HEAD /b/%2f HTTP/1.1\r\n",
		"GET / HTTP/1.1\nHost: evil\r\n", "GET / HTTP/1.1\r\r\n", "GET / HTTP/1.1\r\n\r\n", "\r\n", "GET / HTTP/1.1\r\nHost: h\r\n", "GET /\x00 HTTP/1.1\r\n"}
	var all []string
	for _, start := range starts {
		for _, rest := range rests {
			all = append(all, start+rest)
		}
	}
	fresh := func(text string) []string { seen, _ := readAll(text, len(text)); return seen }
	good := map[string]string{}
	for _, text := range all {
		if seen := fresh(text); len(seen) == 1 && strings.HasPrefix(seen[0], "0 <nil>") && strings.HasSuffix(seen[0], "<nil>") {
			good[text] = seen[0]
		}
	}
	told := 0
	try := func(n int, texts ...string) {
		t.Helper()
		var want []string
		for i, text := range texts {
			if i < len(texts)-1 {
				want = append(want, good[text])
			} else {
				want = append(want, fresh(text)...)
			}
		}
		got, same := readAll(strings.Join(texts, ""), n)
		told += same
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Fatalf("in pieces of %d: %q\ngot\n%s\nwant\n%s", n, texts, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	for before := range good {
		for _, text := range all {
			try(1<<20, before, before, before, text)
			try(len(before), before, before, before, text) // each alone, where the next is as long
		}
	}
	if told < 1000 {
		t.Errorf("%d heads were told at once", told)
	}
	for _, text := range all {
		for before := range good {
			if _, rest, _ := strings.Cut(before, "\r\n"); strings.HasSuffix(text, rest) && len(rest) < 300 {
				for n := range len(before) + 1 {
					try(n+1, before, before, before, text)
				}
				break
			}
		}
	}
}

// answersOf reads answers to a method, in pieces of n bytes, until there is none or a bad one, and tells all of them.
func answersOf(method, text string, n int) (seen []string, same int) {
	from := &pieces{text: text, n: n}
	l := &link{transport: &Transport{}, conn: from}
	l.in.init(from)
	for {
		e := &exchange{link: l, stop: func() bool { return true }}
		a, err := l.answer(e, &http.Request{Method: method})
		if err == io.EOF {
			return seen, same
		}
		if l.heads.same {
			same++
		}
		if err != nil {
			return append(seen, err.Error()), same
		}
		body, wrong := io.ReadAll(a.Body)
		seen = append(seen, fmt.Sprintf("%q %d old=%t chunked=%t close=%t %q body=%q %v", a.Status, a.ContentLength, a.old, a.chunked, a.close, a.Fields, body, wrong))
		if wrong != nil {
			return seen, same
		}
	}
}

// The same of answers, also where others come before the final one.
func TestNothingOfWhatWasAnsweredBefore(t *testing.T) {
	rests := []string{
		"Content-Length: 5\r\n\r\nhello",
		"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
		"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"Content-Length: 5\r\nConnection: close\r\n\r\nhello",
		"Etag: x\r\nContent-Length: 0\r\n\r\n",
		"Etag: x\r\n c\r\nContent-Length: 0\r\n\r\n",
		"Content-Length: 0\r\nEtag: x\r\n\r\n",
		strings.Repeat("Etag: x\r\n", 14) + "Content-Length: 0\r\n\r\n",
		strings.Repeat("Etag: x\r\n", 15) + "Content-Length: 0\r\n\r\n",
		strings.Repeat("Etag: x\r\n", 20) + "Content-Length: 0\r\n\r\n",
	}
	starts := []string{"HTTP/1.1 200 OK\r\n", "HTTP/1.1 204 No Content\r\n", "HTTP/1.1 304 Not Modified\r\n", "HTTP/1.0 200 OK\r\n", "HTTP/1.1 200 OK\nEtag: evil\r\n",
		"HTTP/1.1 103 Early Hints\r\n", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n", "HTTP/1.1 101 Switching Protocols\r\n", "HTTP/1.1 200 OK\r\r\n", "\r\n"}
	var all []string
	for _, start := range starts {
		for _, rest := range rests {
			all = append(all, start+rest)
		}
	}
	told := 0
	for _, method := range []string{"GET", "HEAD"} {
		fresh := func(text string) []string { seen, _ := answersOf(method, text, len(text)); return seen }
		for _, before := range all {
			good := fresh(before)
			if len(good) != 1 || !strings.HasSuffix(good[0], "<nil>") {
				continue
			}
			for _, text := range all {
				want := strings.Join(append([]string{good[0], good[0], good[0]}, fresh(text)...), "\n")
				for _, n := range []int{1 << 20, len(before), 7} {
					got, same := answersOf(method, before+before+before+text, n)
					if told += same; strings.Join(got, "\n") != want {
						t.Fatalf("%s, in pieces of %d: %q after %q\ngot\n%s\nwant\n%s", method, n, text, before, strings.Join(got, "\n"), want)
					}
				}
			}
		}
	}
	if told < 1000 {
		t.Errorf("%d heads were told at once", told)
	}
}
