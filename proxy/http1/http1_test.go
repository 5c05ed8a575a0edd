package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/proxy/http1"
	"github.com/sluice-s3/sluice/test/machine"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve starts a Server and returns its address.
func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &http1.Server{Handler: h, HeaderTimeout: machine.Patience, IdleTimeout: machine.Patience}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// both runs a test against net/http's server and this one: they must agree.
func both(t *testing.T, h http.HandlerFunc, test func(t *testing.T, address string)) {
	t.Run("net/http", func(t *testing.T) {
		s := httptest.NewServer(h)
		defer s.Close()
		test(t, s.Listener.Addr().String())
	})
	t.Run("http1", func(t *testing.T) { test(t, serve(t, h)) })
}

// transports are net/http's and this package's.
func transports(t *testing.T, test func(t *testing.T, rt http.RoundTripper)) {
	t.Run("net/http", func(t *testing.T) {
		rt := &http.Transport{DisableCompression: true, ExpectContinueTimeout: machine.Patience}
		defer rt.CloseIdleConnections()
		test(t, rt)
	})
	t.Run("http1", func(t *testing.T) {
		rt := &http1.Transport{ContinueTimeout: machine.Patience}
		defer rt.CloseIdleConnections()
		test(t, rt)
	})
}

func raw(t *testing.T, address, text string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(machine.Patience))
	_, err = io.WriteString(c, text)
	must(t, err)
	return c, bufio.NewReader(c)
}

// backend answers each connection's requests with what answers say, byte for byte; "" closes.
func backend(t *testing.T, answers ...string) (url string, heads chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	heads = make(chan string, 100)
	next := make(chan string, len(answers))
	for _, a := range answers {
		next <- a
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					var head strings.Builder
					for {
						line, err := in.ReadString('\n')
						if err != nil {
							return
						}
						head.WriteString(line)
						if line == "\r\n" {
							break
						}
					}
					heads <- head.String()
					answer := <-next
					if answer == "" {
						return
					}
					io.WriteString(c, answer)
					if strings.HasSuffix(answer, "$") {
						return
					}
				}
			}()
		}
	}()
	return "http://" + l.Addr().String(), heads
}

func get(rt http.RoundTripper, method, url string) (*http.Response, string, error) {
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		return nil, "", err
	}
	response, err := rt.RoundTrip(r)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

// What both transports read in the same way.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		method, answer string
		status         int
		length         int64
		body           string
		fails          bool
	}{
		"length":       {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, 5, "hello", false},
		"chunked":      {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n", 200, -1, "hello!", false},
		"trailer":      {"GET", "HTTP/1.1 200 OK\r\nTrailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\n\r\n", 200, -1, "hello", false},
		"until close":  {"GET", "HTTP/1.1 200 OK\r\n\r\nhello$", 200, -1, "hello$", false},
		"old":          {"GET", "HTTP/1.0 200 OK\r\n\r\nhello$", 200, -1, "hello$", false},
		"head":         {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", 200, 500, "", false},
		"no content":   {"DELETE", "HTTP/1.1 204 No Content\r\n\r\n", 204, 0, "", false},
		"not modified": {"GET", "HTTP/1.1 304 Not Modified\r\nEtag: x\r\n\r\n", 304, 0, "", false},
		"1xx":          {"GET", "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, 2, "ok", false},
		"no reason":    {"GET", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", 200, 2, "ok", false},

		"cut":              {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello$", 200, 50, "hello$", true},
		"cut chunk":        {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello$", 200, -1, "hello$", true},
		"no last chunk":    {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello$\r\n$", 200, -1, "hello$", true},
		"bad chunk":        {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n", 200, -1, "", true},
		"unterminated":     {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", 200, -1, "hello", true},
		"two lengths":      {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 0, 0, "", true},
		"signed length":    {"GET", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", 0, 0, "", true},
		"another encoding": {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", 0, 0, "", true},
		"no status":        {"GET", "HTTP/1.1 OK\r\n\r\n", 0, 0, "", true},
		"another protocol": {"GET", "ICY 200 OK\r\n\r\n", 0, 0, "", true},
		"nothing":          {"GET", "$", 0, 0, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			transports(t, func(t *testing.T, rt http.RoundTripper) {
				url, _ := backend(t, c.answer, c.answer)
				response, body, err := get(rt, c.method, url+"/x")
				if (err != nil) != c.fails {
					t.Fatalf("error %v", err)
				}
				if c.status == 0 {
					if response != nil && err == nil {
						t.Errorf("took it for %v %q", response, body)
					}
					return
				}
				if c.fails && response == nil {
					t.Fatal(err)
				}
				if response.StatusCode != c.status || response.ContentLength != c.length || body != c.body {
					t.Errorf("%d, %d bytes, %q; want %d, %d, %q", response.StatusCode, response.ContentLength, body, c.status, c.length, c.body)
				}
			})
		})
	}
}

// What only this transport refuses: another reader of the same bytes might find other messages in them.
func TestAmbiguousAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"length and chunks": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"same length twice": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"bad name":          "HTTP/1.1 200 OK\r\nA B: c\r\nContent-Length: 0\r\n\r\n",
		"folded":            "HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
		"lone LF":           "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"lone CR":           "HTTP/1.1 200 OK\r\nX-A: b\rContent-Length: 5\r\nContent-Length: 0\r\n\r\n",
		"chunk with LF":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"old and chunked":   "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"switching":         "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
		"long":              "HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", 70<<10) + "\r\n\r\n",
		"NUL":               "HTTP/1.1 200 OK\r\nX-A: \x00\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := backend(t, answer)
			if response, body, err := get(&http1.Transport{}, "GET", url); err == nil {
				t.Errorf("took it for %v %q", response, body)
			}
		})
	}
}

// A connection is used again after an exchange that was passed exactly, and only then.
func TestReuse(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		read   int64
		reused bool
	}{
		"whole":          {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 100, true},
		"empty":          {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0, true},
		"chunked":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 100, true},
		"not read":       {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 2, false},
		"close":          {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", 100, false},
		"close or stay":  {"HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", 100, false},
		"more than said": {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 100, false},
	} {
		t.Run(name, func(t *testing.T) {
			rt := &http1.Transport{}
			from := make(chan string, 2)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						in := bufio.NewReader(conn)
						for {
							if _, err := http.ReadRequest(in); err != nil {
								conn.Close()
								return
							}
							from <- conn.RemoteAddr().String()
							io.WriteString(conn, c.answer)
						}
					}()
				}
			}()
			for range 2 {
				r, _ := http.NewRequest("GET", "http://"+l.Addr().String()+"/", nil)
				response, err := rt.RoundTrip(r)
				must(t, err)
				io.CopyN(io.Discard, response.Body, c.read)
				response.Body.Close()
			}
			first, second := <-from, <-from
			if reused := first == second; reused != c.reused {
				t.Errorf("reused is %t", reused)
			}
		})
	}
}

// A room that has an exchange in it is not taken for another, and a blank one is.
func TestRoom(t *testing.T) {
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Path", r.URL.Path)
		io.WriteString(w, strings.Repeat(r.URL.Path, 1000))
	})
	transport := &http1.Transport{}
	defer transport.CloseIdleConnections()
	var room http1.Room
	ask := func(path string) *http1.Answer {
		t.Helper()
		r, err := http.NewRequest("GET", "http://"+address+path, nil)
		must(t, err)
		answer, err := transport.Exchange(t.Context(), r, &room)
		must(t, err)
		return answer
	}
	check := func(answer *http1.Answer, path string) {
		t.Helper()
		body, err := io.ReadAll(answer.Body)
		must(t, err)
		answer.Body.Close()
		if got := answer.Fields.Get("X-Path"); got != path || string(body) != strings.Repeat(path, 1000) {
			t.Errorf("%s: answered %q with %.10q…", path, got, body)
		}
	}
	first, second := ask("/1"), ask("/2") // the second while the first is open
	check(second, "/2")
	check(first, "/1")
	check(ask("/3"), "/3") // the room is not blank: /1 might be looked at yet
	if got := first.Fields.Get("X-Path"); got != "/1" {
		t.Errorf("/1 became %q", got)
	}
	room = http1.Room{}
	check(ask("/4"), "/4")
	check(ask("/5"), "/5")
}

// Bytes that come while nobody asked must not answer the next request.
func TestUnaskedBytes(t *testing.T) {
	url, _ := backend(t, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb")
	rt := &http1.Transport{}
	late, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer late.Close()
	sent := make(chan struct{}) // before the second request, or the bytes would answer it
	go func() {
		conn, err := late.Accept()
		if err != nil {
			return
		}
		in := bufio.NewReader(conn)
		http.ReadRequest(in)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")
		io.WriteString(conn, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
		conn.Close()
		close(sent)
		if conn, err = late.Accept(); err != nil {
			return
		}
		in = bufio.NewReader(conn)
		http.ReadRequest(in)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb")
	}()
	_, body, err := get(rt, "GET", "http://"+late.Addr().String())
	if err != nil || body != "a" {
		t.Fatal(body, err)
	}
	<-sent
	if response, body, err := get(rt, "GET", "http://"+late.Addr().String()); err != nil || body != "b" {
		t.Errorf("%v %q %v", response, body, err)
	}
	_ = url
}

// A GET is tried again where an idle connection turns out dead; what may have been done is not.
func TestRetry(t *testing.T) {
	for _, method := range []string{"GET", "HEAD", "POST", "DELETE", "PUT"} {
		ok := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		url, heads := backend(t, ok, "", ok)
		rt := &http1.Transport{}
		_, _, err := get(rt, "GET", url)
		must(t, err)
		_, body, err := get(rt, method, url)
		if method == "GET" && body != "ok" {
			t.Errorf("of the second try: %q, %v", body, err)
		}
		if again := method == "GET" || method == "HEAD"; (err == nil) != again || len(heads) != 2 && !again || len(heads) != 3 && again {
			t.Errorf("%s: %v after %d requests", method, err, len(heads))
		}
	}
}

func TestUpload(t *testing.T) {
	for _, size := range []int{1, 100, 16 << 10, 16<<10 + 1, 1 << 20, 5<<20 + 3} {
		transports(t, func(t *testing.T, rt http.RoundTripper) {
			both(t, func(w http.ResponseWriter, r *http.Request) {
				n, err := io.Copy(io.Discard, r.Body)
				fmt.Fprint(w, n, r.ContentLength, err)
			}, func(t *testing.T, address string) {
				for range 3 {
					r, _ := http.NewRequest("PUT", "http://"+address+"/x", bytes.NewReader(make([]byte, size)))
					response, err := rt.RoundTrip(r)
					must(t, err)
					body, err := io.ReadAll(response.Body)
					must(t, err)
					response.Body.Close()
					if want := fmt.Sprint(size, size, nil); string(body) != want {
						t.Errorf("%s, want %s", body, want)
					}
				}
			})
		})
	}
}

// An answer in the middle of an upload is the answer, and the client's body need never end.
func TestEarlyAnswer(t *testing.T) {
	transports(t, func(t *testing.T, rt http.RoundTripper) {
		both(t, func(w http.ResponseWriter, r *http.Request) {
			io.CopyN(io.Discard, r.Body, 10)
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(403)
			io.WriteString(w, "never")
		}, func(t *testing.T, address string) {
			from, to := io.Pipe()
			defer to.Close()
			go to.Write(make([]byte, 100))
			r, _ := http.NewRequest("PUT", "http://"+address+"/x", from)
			r.ContentLength = 1 << 30
			response, err := rt.RoundTrip(r)
			must(t, err)
			body, err := io.ReadAll(response.Body)
			if response.StatusCode != 403 || string(body) != "never" || err != nil {
				t.Errorf("%s %q %v", response.Status, body, err)
			}
			response.Body.Close()
		})
	})
}

func TestExpectContinue(t *testing.T) {
	transports(t, func(t *testing.T, rt http.RoundTripper) {
		both(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/no" {
				w.WriteHeader(412)
				return
			}
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n)
		}, func(t *testing.T, address string) {
			for path, want := range map[string]string{"/no": "412 ", "/yes": "200 100000"} {
				body := bytes.NewReader(make([]byte, 100000))
				r, _ := http.NewRequest("PUT", "http://"+address+path, body)
				r.Header.Set("Expect", "100-continue")
				response, err := rt.RoundTrip(r)
				must(t, err)
				text, _ := io.ReadAll(response.Body)
				response.Body.Close()
				if got := fmt.Sprint(response.StatusCode, " ", string(text)); got != want {
					t.Errorf("%s: %s, want %s", path, got, want)
				}
				if path == "/no" && body.Len() != 100000 {
					t.Error("the body was sent all the same")
				}
			}
		})
	})
}

func TestBodyThatFails(t *testing.T) {
	transports(t, func(t *testing.T, rt http.RoundTripper) {
		for _, size := range []int64{100, 1 << 20} {
			whole := make(chan bool, 1)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, err := io.Copy(io.Discard, r.Body)
				whole <- err == nil
			}))
			bad := errors.New("bad signature")
			r, _ := http.NewRequest("PUT", s.URL, io.MultiReader(io.LimitReader(zeros{}, size-1), failing{bad}))
			r.ContentLength = size
			response, err := rt.RoundTrip(r)
			if !errors.Is(err, bad) {
				t.Errorf("%v %v", response, err)
			}
			select {
			case ok := <-whole:
				if ok {
					t.Error("the backend took it for a whole body")
				}
			case <-time.After(100 * time.Millisecond): // it never came to be
			}
			s.Close()
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestCancel(t *testing.T) {
	transports(t, func(t *testing.T, rt http.RoundTripper) {
		arrived, gone := make(chan struct{}, 3), make(chan struct{}, 3)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/body" {
				w.Header().Set("Content-Length", "100")
				http.NewResponseController(w).Flush()
			}
			arrived <- struct{}{}
			<-r.Context().Done()
			gone <- struct{}{}
		}))
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		r, _ := http.NewRequestWithContext(ctx, "GET", s.URL+"/head", nil)
		go func() { <-arrived; cancel() }()
		if _, err := rt.RoundTrip(r); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		<-gone
		ctx, cancel = context.WithCancel(t.Context())
		r, _ = http.NewRequestWithContext(ctx, "GET", s.URL+"/body", nil)
		response, err := rt.RoundTrip(r)
		must(t, err)
		time.AfterFunc(10*time.Millisecond, cancel) // while the body is read, or before
		if _, err := io.ReadAll(response.Body); err == nil {
			t.Error("read to the end")
		}
		<-gone
		ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		r, _ = http.NewRequestWithContext(ctx, "GET", s.URL+"/late", nil)
		if _, err := rt.RoundTrip(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// Copy moves bodies intact, spliced or not, and tells of every byte.
func TestCopy(t *testing.T) {
	data := make([]byte, 9<<20+5)
	rand.Read(data)
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if r.Method == "PUT" && (err != nil || !bytes.Equal(body, data)) {
			t.Errorf("%d bytes arrived: %v", len(body), err)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data)
	}))
	defer source.Close()
	rt := &http1.Transport{}
	var counted int
	both(t, func(w http.ResponseWriter, r *http.Request) {
		out, _ := http.NewRequestWithContext(r.Context(), r.Method, source.URL, nil)
		if r.ContentLength > 0 {
			out.Body, out.ContentLength = io.NopCloser(toWriter{r.Body}), r.ContentLength
		}
		answer, err := rt.RoundTrip(out)
		if err != nil {
			t.Error(err)
			return
		}
		defer answer.Body.Close()
		w.Header().Set("Content-Length", fmt.Sprint(answer.ContentLength))
		counted = 0
		n, err := http1.Copy(w, answer.Body, func(n int) error { counted += n; return nil })
		if err != nil || n != int64(len(data)) || counted != len(data) {
			t.Errorf("%d bytes, %d counted: %v", n, counted, err)
		}
	}, func(t *testing.T, address string) {
		for range 3 {
			for _, method := range []string{"GET", "PUT"} {
				var body io.Reader
				if method == "PUT" {
					body = bytes.NewReader(data)
				}
				r, _ := http.NewRequest(method, "http://"+address, body)
				response, err := http.DefaultClient.Do(r)
				must(t, err)
				got, err := io.ReadAll(response.Body)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %d bytes: %v", method, len(got), err)
				}
				response.Body.Close()
			}
		}
	})
}

// toWriter is a body that writes itself, as the proxy's do.
type toWriter struct{ io.Reader }

func (w toWriter) WriteTo(to io.Writer) (int64, error) {
	return http1.Copy(to, w.Reader, func(int) error { return nil })
}
