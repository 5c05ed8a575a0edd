package proxy_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/proxy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3test"
	"github.com/sluice-s3/sluice/signer"
	"github.com/sluice-s3/sluice/test/machine"
)

var (
	stormSeed = flag.Uint64("storm.seed", 0, "of TestStorm; 0 = another each time")
	stormFor  = flag.Duration("storm.for", 2*time.Second, "how long TestStorm lasts")
)

const stormClients = 64

// TestStorm has many clients ask all kinds of things at once, with good and bad luck on either side, and holds every answer,
// every request to the backend and every event to what it is of. What a request has is used again for others: all that is said
// for one names it, by an id that nobody else has, and MUST name no other.
func TestStorm(t *testing.T) {
	seed := cmp.Or(*stormSeed, rand.Uint64())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("-args -storm.seed=%d", seed)
		}
	})
	s := newStorm(t)
	over := time.Now().Add(*stormFor)
	var clients, weather sync.WaitGroup
	for i := range stormClients {
		c := &stormClient{storm: s, random: rand.New(rand.NewPCG(seed, uint64(i)))}
		clients.Go(func() {
			for time.Now().Before(over) && !t.Failed() {
				c.connection(over)
			}
		})
	}
	calm := make(chan struct{})
	weather.Go(func() { s.revokeAndPardon(calm) })
	weather.Go(func() { s.changePolicy(calm) })
	weather.Go(func() { s.lookAtRetired(calm) })
	clients.Wait()
	close(calm)
	weather.Wait()
	s.judge()
	s.nothingIsLeft()
}

// A caller is one of the identities. Their names are of one length, and so their tokens and targets are: what only compares
// lengths takes one for the other.
type caller struct {
	name        string
	token       string
	credentials s3test.Credentials // that are its role's alone
}

// An ask is one request: what its client says, what its backend does, and what has come of it.
type ask struct {
	id     string
	of     *caller
	kind   string // the operation
	wrong  string // "" = nothing
	size   int    // of the object, either way
	form   string // in which it is uploaded
	fate   string // what the backend does with it
	leaves string // when its client goes away; "" = it does not
	extra  bool   // whether it has a header that others have not, and its answer too
	alike  bool   // whether its head is, but for the first line, what others of its connection are
	other  string // the key, or part of one, that is another caller's
	era    int64  // of the revocation, when it was sent
	after  *ask   // the one before it on its connection

	arrived atomic.Int32 // at the backend
	whole   atomic.Int32 // times that all of its body did

	sent      int64 // of its body, without Transfer-Encoding
	answered  bool  // to the end
	early     bool  // there was an answer, though perhaps not to its end
	status    int
	header    http.Header
	body      []byte
	unheard   bool // the connection ended before its turn
	disturbed bool
}

func (a *ask) key() string {
	if a.wrong == "another's key" {
		return a.other + "/" + a.id
	}
	return a.of.name + "/" + a.id
}

// content is an object's, or begins with what is an object's: every line of it is its own.
func (a *ask) content() []byte { return bytes.Repeat([]byte(a.id+"\n"), a.size/len(a.id)+1)[:a.size] }

func (a *ask) method() string {
	return map[string]string{"PutObject": "PUT", "GetObject": "GET", "HeadObject": "HEAD", "DeleteObject": "DELETE", "ListObjectsV2": "GET", "ListBuckets": "GET", "DeleteObjects": "POST"}[a.kind]
}

// target is spelled as Sluice spells it, too.
func (a *ask) target() string {
	switch {
	case a.wrong == "no operation":
		return "/storm/" + a.key() + "?acl&tagging"
	case a.kind == "ListBuckets":
		return "/"
	case a.kind == "DeleteObjects":
		return "/storm?delete="
	case a.kind == "ListObjectsV2":
		return "/storm?list-type=2&prefix=" + url.PathEscape(a.key())
	}
	return "/storm/" + a.key()
}

// optional is the header that only some asks have.
func (a *ask) optional() (name, value string) {
	switch a.kind {
	case "PutObject":
		return "X-Amz-Meta-Note", "note-" + a.id
	case "GetObject", "HeadObject":
		return "If-None-Match", `"not-` + a.id + `"`
	case "DeleteObject":
		return "If-Match", `"is-` + a.id + `"`
	}
	return "", ""
}

// wire is the ask as its client writes it.
func (a *ask) wire(random *rand.Rand) (head, body []byte) {
	var h bytes.Buffer
	token := a.of.token
	if a.wrong == "a bad token" {
		middle := len(token) - 40 // of the signature
		token = token[:middle] + string(rune('A'+(token[middle]-'A'+1)%26)) + token[middle+1:]
	}
	agent := "agent-" + a.id
	if a.alike {
		agent = "agent"
	}
	fmt.Fprintf(&h, "%s %s HTTP/1.1\r\nHost: storm.example\r\nAuthorization: Bearer %s\r\nUser-Agent: %s\r\n", a.method(), a.target(), token, agent)
	if name, value := a.optional(); a.extra && name != "" {
		fmt.Fprintf(&h, "%s: %s\r\n", name, value)
	}
	chunked := false
	switch a.kind {
	case "PutObject":
		fmt.Fprintf(&h, "Content-Type: text/%s\r\n", a.id)
		body = a.content()
		if strings.HasPrefix(a.form, "framed") {
			fmt.Fprintf(&h, "X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\nContent-Encoding: aws-chunked\r\n")
			body = frames(body, random)
		}
		if chunked = strings.HasSuffix(a.form, "chunked"); chunked || strings.HasPrefix(a.form, "framed") {
			fmt.Fprintf(&h, "X-Amz-Decoded-Content-Length: %d\r\n", a.size)
		}
		if a.form == "expecting" {
			fmt.Fprintf(&h, "Expect: 100-continue\r\n") // and it does not wait
		}
	case "DeleteObjects":
		text := fmt.Sprintf("<Delete><Object><Key>%s</Key></Object><Object><Key>%s/%s</Key></Object></Delete>", a.key(), a.other, a.id)
		fmt.Fprintf(&h, "Content-MD5: %s\r\n", md5Of(text))
		body = []byte(text)
	default:
		return append(h.Bytes(), "\r\n"...), nil
	}
	a.sent = int64(len(body))
	if chunked {
		h.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		return h.Bytes(), append(chunks(body, random), "0\r\n\r\n"...)
	}
	fmt.Fprintf(&h, "Content-Length: %d\r\n\r\n", len(body))
	return h.Bytes(), body
}

// chunks are HTTP's and S3's alike, but for the last.
func chunks(body []byte, random *rand.Rand) []byte {
	var b bytes.Buffer
	for len(body) > 0 {
		n := min(len(body), 8<<10+random.IntN(64<<10)) // S3 wants no smaller
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, body[:n])
		body = body[n:]
	}
	return b.Bytes()
}

func frames(body []byte, random *rand.Rand) []byte {
	sum := crc32.ChecksumIEEE(body)
	encoded := base64.StdEncoding.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	return append(chunks(body, random), "0\r\nx-amz-checksum-crc32:"+encoded+"\r\n\r\n"...)
}

// due is what is to come of an ask where nothing from outside comes between.
type due struct {
	status  int
	outcome audit.Outcome
	arrives bool   // at the backend
	says    string // in the body
	code    string
}

func (a *ask) due() due {
	ok := due{status: 200, outcome: audit.Completed, arrives: true}
	switch a.wrong {
	case "another's key":
		return due{403, audit.Refused, false, "project " + a.of.name + " works below " + a.of.name + "/", "AccessDenied"}
	case "a bad token":
		return due{400, audit.Refused, false, "", "InvalidToken"}
	case "no operation":
		return due{400, audit.Refused, false, "", "InvalidRequest"}
	}
	switch a.fate {
	case "is refused", "is refused early":
		return due{409, audit.Completed, true, "<Message>no " + a.id + "</Message>", "Conflict"}
	case "is reset":
		return due{503, audit.Failed, true, "", "ServiceUnavailable"}
	case "is cut short":
		return due{200, audit.Aborted, true, "", "InternalError"}
	case "is odd":
		return due{503, audit.Failed, true, "", "ServiceUnavailable"}
	}
	switch a.kind {
	case "DeleteObject":
		ok.status = 204
	case "ListObjectsV2":
		ok.says = "<Key>" + a.key() + "</Key>"
	case "ListBuckets":
		ok.says, ok.arrives = "<Name>seen-"+a.of.name+"</Name>", false // it arrives as nobody's in particular
	case "DeleteObjects":
		ok.says = "<Deleted><Key>" + a.key() + "</Key></Deleted>"
	}
	return ok
}

// storm is what they have in common.
type storm struct {
	t       *testing.T
	rig     *rig
	log     syncBuffer // the proxy's
	metrics *proxy.Telemetry
	callers []*caller
	eve     *caller // is revoked, and pardoned, again and again

	// era counts steps: at 0 of 4 eve is in good standing, at 2 she is revoked, and in between it is not known.
	era atomic.Int64

	mu       sync.Mutex // guards asks
	asks     map[string]*ask
	problems atomic.Int32
}

const stormPolicy = `package s3.authz
project := input.identity.attributes.project
own := concat("", [project, "/"])
role := concat("", ["arn:aws:iam::123456789012:role/", project])
filter_listing if input.action == "s3:ListBucket"
allow if startswith(input.key, own)
allow if { input.action == "s3:ListBucket"; startswith(input.prefix, own) }
allow if { input.action == "s3:ListBucket"; input.bucket == concat("-", ["seen", project]) }
allow if input.action == "s3:ListAllMyBuckets"
reasons contains sprintf("edition %d: project %%s works below %%s", [project, own]) if not allow
`

func newStorm(t *testing.T) *storm {
	s := &storm{t: t, asks: map[string]*ask{}}
	var err error
	s.metrics, err = proxy.NewTelemetry(nil, nil, nil)
	must(t, err)
	s.rig = newRig(t, rigOptions{policy: fmt.Sprintf(stormPolicy, 1), configure: func(c *proxy.Config) {
		c.Log = slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		c.Telemetry = s.metrics
		c.Limits = proxy.Limits{InFlight: 1 << 20, BytesPerSecond: 1 << 40} // that each request holds a lease
		c.Backends[0].Signer = s.signer()
	}})
	for _, name := range []string{"ada", "bob", "cyd", "eve"} {
		c := &caller{name: name, credentials: stormCredentials(name)}
		c.token = s.rig.token(map[string]any{"sub": "environment/" + name, "environment_id": "env-" + name, "project_id": name, "creator_email": name + "@acme.com", "jti": "token-" + name})
		s.callers = append(s.callers, c)
	}
	s.eve = s.callers[3]
	s.rig.backend.Accept(func(id string) (s3test.Credentials, bool) {
		for _, c := range s.callers {
			if c.credentials.AccessKeyID == id {
				return c.credentials, true
			}
		}
		return s3test.Credentials{}, false
	})
	s.rig.backend.HandleStream(s.serve)
	return s
}

func stormCredentials(name string) s3test.Credentials {
	return s3test.Credentials{AccessKeyID: "ASIA" + name, SecretAccessKey: "secret-of-" + name, SessionToken: "session-token-of-the-role-of-" + name}
}

// signer signs as a role for each project. Its STS gives no session but to whom the session's tag says too.
func (s *storm) signer() *signer.Signer {
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.FormValue("Tags.member.1.Value")
		if r.FormValue("RoleArn") != "arn:aws:iam::123456789012:role/"+name {
			s.problem("STS is asked for %s for %q", r.FormValue("RoleArn"), name)
		}
		c := stormCredentials(name)
		fmt.Fprintf(w, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`,
			c.AccessKeyID, c.SecretAccessKey, c.SessionToken, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}))
	s.t.Cleanup(sts.Close)
	id := filepath.Join(s.t.TempDir(), "id")
	must(s.t, os.WriteFile(id, []byte("base"), 0o600))
	made, err := signer.New(s.t.Context(), signer.Config{AssumeRole: &signer.AssumeRole{
		RoleARN: "arn:aws:iam::123456789012:role/nobody", AllowedRoles: []string{"arn:aws:iam::123456789012:role/*"}, STSEndpoint: sts.URL,
		SessionTags: map[string]string{"project": "{{.Attributes.project}}"}, Base: &signer.Static{AccessKeyIDFile: id, SecretAccessKeyFile: id},
	}}, signer.Options{})
	must(s.t, err)
	return made
}

// problem fails the test. The first few tell; a storm of them would tell no more.
func (s *storm) problem(format string, args ...any) {
	s.t.Helper()
	if s.problems.Add(1) <= 10 {
		s.t.Errorf(format, args...)
	} else {
		s.t.Fail()
	}
}

// logged is what the proxy logged that has text in it.
func (s *storm) logged(text string) (lines string) {
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, text) {
			lines += "\n" + strings.TrimSpace(line)
		}
	}
	return lines
}

var stormID = regexp.MustCompile(`q\d{8}q`)

// onlyOf holds a text to naming no ask but a.
func (s *storm) onlyOf(a *ask, what string, text []byte) {
	for rest := text; ; {
		at := stormID.FindIndex(rest)
		if at == nil {
			break
		}
		if found := string(rest[at[0]:at[1]]); found != a.id {
			s.problem("%s of %v names %s: %.2000s", what, a, found, text)
			return
		}
		rest = rest[at[1]:]
	}
}

func (a *ask) String() string {
	if a == nil {
		return "none"
	}
	return strings.Join(strings.Fields(fmt.Sprintln(a.id, a.of.name, a.kind, a.form, a.size, a.wrong, a.fate, a.leaves)), " ")
}

// compose makes up the next ask; alike = one of that caller, as others of its connection are; behind = sent before the ask
// before it is answered. A reset takes along what has not left yet of that answer, so none comes to what is behind: it is not
// cut short, not revoked, and no upload that nobody wants.
func (s *storm) compose(random *rand.Rand, alike *caller, behind bool) *ask {
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	a := &ask{of: s.callers[random.IntN(len(s.callers))], extra: random.IntN(2) == 0}
	if alike != nil {
		a.of, a.extra, a.alike = alike, false, true
	}
	if behind && a.of == s.eve {
		a.of = s.callers[0]
	}
	for a.other = a.of.name; a.other == a.of.name; {
		a.other = s.callers[random.IntN(len(s.callers))].name
	}
	a.kind = pick("PutObject", "PutObject", "PutObject", "GetObject", "GetObject", "GetObject", "HeadObject", "DeleteObject", "ListObjectsV2", "ListBuckets", "DeleteObjects")
	if a.alike {
		a.kind = pick("GetObject", "GetObject", "HeadObject", "DeleteObject") // whose events tell the key
	}
	// With the head, in its buffer; beyond it; beyond what goes out in one piece; and what the kernel moves.
	a.size = []int{0, 1, 10, 100, 1000, 5000, 17 << 10, 70 << 10, 300 << 10}[min(random.IntN(9), random.IntN(12))]
	if a.kind == "PutObject" && a.size > 0 {
		a.form = pick("plain", "plain", "expecting", "chunked", "framed", "framed chunked")
	}
	a.fate = "goes well"
	if random.IntN(3) == 0 {
		switch a.kind {
		case "PutObject":
			a.fate = pick("is slow", "is refused", "is refused early", "is reset")
		case "GetObject":
			a.fate = pick("is slow", "is slow", "is of no length", "is refused", "is reset", "is cut short", "is more than asked for")
			if netHTTP && a.fate == "is more than asked for" {
				a.fate = "goes well" // net/http is as good at it, and says so aloud
			}
		case "ListObjectsV2":
			a.fate = pick("is odd", "is slow", "is refused", "is reset")
		case "HeadObject", "DeleteObject":
			a.fate = pick("is slow", "is reset")
		case "DeleteObjects":
			a.fate = pick("is slow", "is refused", "is reset")
		}
	}
	if behind && a.kind == "PutObject" && a.fate != "is slow" || behind && a.fate == "is cut short" {
		a.fate = "goes well"
	}
	switch {
	case a.fate == "is more than asked for":
		a.size = min(a.size, 1000) // all of it comes at once
	case a.fate == "is cut short":
		a.size = max(a.size, 100)
	}
	if random.IntN(5) == 0 && a.kind != "ListBuckets" && a.kind != "DeleteObjects" {
		a.wrong = pick("another's key", "no operation", "a bad token")
		if a.alike && a.wrong == "a bad token" {
			a.wrong = ""
		}
	}
	if behind && a.kind == "PutObject" {
		a.wrong = ""
	}
	if random.IntN(8) == 0 {
		a.leaves = pick("in the head", "in the body", "before the answer", "in the answer", "in the answer")
		if a.leaves == "in the body" && (a.kind != "PutObject" || a.size < 10) {
			a.leaves = "in the head"
		}
	}
	if a.kind == "PutObject" && a.fate == "is refused early" && a.size > 16<<10 && !netHTTP {
		a.leaves = "when it is refused" // which the rest of its body waits for
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a.id = fmt.Sprintf("q%08dq", len(s.asks))
	s.asks[a.id] = a
	return a
}

func (s *storm) find(text []byte) *ask {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asks[string(stormID.Find(text))]
}

// stormClient is one that speaks on one connection after the other.
type stormClient struct {
	storm  *storm
	random *rand.Rand
	conn   *net.TCPConn
	in     *bufio.Reader
	last   *ask
	alike  *caller // the connection's asks are alike, and the next is his; nil = they are not
}

// connection is one, from its beginning to its end: some asks one after the other, some in one go.
func (c *stormClient) connection(over time.Time) {
	s := c.storm
	conn, err := net.Dial("tcp", s.rig.server.Listener.Addr().String())
	if err != nil {
		s.problem("%v", err)
		return
	}
	defer conn.Close()
	c.last, c.alike = nil, nil
	if c.random.IntN(3) == 0 {
		c.alike = s.callers[c.random.IntN(len(s.callers))]
	}
	c.conn, c.in = conn.(*net.TCPConn), bufio.NewReader(conn)
	conn.SetDeadline(time.Now().Add(machine.Patience))
	if c.random.IntN(4) == 0 {
		c.conn.SetReadBuffer(32 << 10)
	}
	for range 1 + c.random.IntN(12) {
		var batch []*ask
		for range []int{1, 1, 1, 2, 4}[c.random.IntN(5)] {
			if c.alike != nil && c.random.IntN(6) == 0 {
				c.alike = s.callers[c.random.IntN(len(s.callers))]
			}
			a := s.compose(c.random, c.alike, len(batch) > 0)
			if batch = append(batch, a); a.leaves != "" {
				break
			}
		}
		if !c.exchange(batch) || time.Now().After(over) {
			return
		}
	}
}

// exchange sends a batch and takes its answers. It tells whether the connection is good for another.
func (c *stormClient) exchange(batch []*ask) bool {
	s := c.storm
	var text []byte
	for _, a := range batch {
		a.era = s.era.Load()
		a.after, c.last = c.last, a
		head, body := a.wire(c.random)
		switch a.leaves {
		case "in the head":
			head, body = head[:c.random.IntN(len(head))], nil
		case "in the body", "when it is refused":
			body = body[:c.random.IntN(len(body)/2)]
		}
		text = append(append(text, head...), body...)
	}
	var writing sync.WaitGroup
	writing.Go(func() { c.conn.Write(text) }) // an error shows when the answers are read
	defer writing.Wait()
	for i, a := range batch {
		if a.leaves != "" {
			if a.leaves == "when it is refused" {
				c.read(a)
			} else if a.leaves == "in the answer" {
				if response, err := http.ReadResponse(c.in, &http.Request{Method: a.method()}); err == nil {
					io.CopyN(io.Discard, response.Body, int64(c.random.IntN(1+a.size)))
				}
			} else {
				writing.Wait()
			}
			if c.random.IntN(2) == 0 {
				c.conn.SetLinger(0)
			}
			c.conn.Close()
			return false
		}
		again := c.read(a)
		if a.era != s.era.Load() {
			a.disturbed = a.of == s.eve
		}
		if !again {
			for _, never := range batch[i+1:] {
				never.unheard = true
			}
			c.conn.Close()
			return false
		}
	}
	return true
}

// read takes the answer to a, and tells whether the connection goes on.
func (c *stormClient) read(a *ask) bool {
	if _, err := c.in.Peek(1); err != nil {
		return false
	}
	var response *http.Response
	for response == nil || response.StatusCode == http.StatusContinue {
		var err error
		if response, err = http.ReadResponse(c.in, &http.Request{Method: a.method()}); err != nil {
			return false
		}
	}
	a.early, a.status, a.header = true, response.StatusCode, response.Header
	from := io.Reader(response.Body)
	if c.random.IntN(8) == 0 {
		from = slowly{from}
	}
	var err error
	a.body, err = io.ReadAll(from)
	a.answered = err == nil
	return err == nil && !response.Close
}

// slowly reads like one who has other things to do.
type slowly struct{ from io.Reader }

func (s slowly) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return s.from.Read(p[:min(len(p), 20<<10)])
}

// serve is the backend.
func (s *storm) serve(w http.ResponseWriter, from io.Reader, r *s3test.Request) {
	s.rig.backend.Forget()
	if r.Path() == "/" {
		s.serveBuckets(w, r)
		return
	}
	var body []byte
	var err error
	if r.Method == "POST" {
		if body, err = io.ReadAll(from); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	a := s.find(append([]byte(r.Target), body...))
	if a == nil {
		s.problem("the backend gets %s", r)
		return
	}
	a.arrived.Add(1)
	s.onlyOf(a, "the request", r.Head)
	if r.Method != a.method() || r.Target != a.target() {
		s.problem("%v arrived as %s %s", a, r.Method, r.Target)
	}
	if r.Signature.AccessKeyID != a.of.credentials.AccessKeyID {
		s.problem("%v arrived in the name of %s", a, r.Signature.AccessKeyID)
	}
	for _, name := range []string{"X-Amz-Meta-Note", "If-None-Match", "If-Match", "Content-Type"} {
		want := []string(nil)
		if its, value := a.optional(); its == name && a.extra {
			want = []string{value}
		} else if name == "Content-Type" && a.kind == "PutObject" {
			want = []string{"text/" + a.id}
		} else if name == "Content-Type" && a.kind == "DeleteObjects" {
			want = []string{"application/xml"}
		}
		if got := r.Header.Values(name); !slices.Equal(got, want) {
			s.problem("%v arrived with %s %q, not %q", a, name, got, want)
		}
	}
	if a.fate == "is refused early" {
		http.NewResponseController(w).EnableFullDuplex() // or net/http would wait for the body all the same
		w.Header().Set("Connection", "close")
		a.refuse(w)
		http.NewResponseController(w).Flush()
		return
	}
	if a.fate == "is slow" {
		from = slowly{from}
	}
	if a.kind != "DeleteObjects" {
		if body, err = io.ReadAll(from); err != nil {
			panic(http.ErrAbortHandler) // there is nobody to answer
		}
	}
	a.whole.Add(1)
	if r.PayloadErr != nil {
		s.problem("%v arrived damaged: %v", a, r.PayloadErr)
	}
	switch a.kind {
	case "PutObject":
		if !bytes.Equal(r.Payload, a.content()) {
			s.problem("%v arrived with %d bytes: %.100q", a, len(r.Payload), r.Payload)
		}
	case "DeleteObjects":
		s.onlyOf(a, "the batch", r.Payload)
		if strings.Count(string(body), "<Key>") != 1 || !strings.Contains(string(body), "<Key>"+a.key()+"</Key>") {
			s.problem("%v arrived as %s", a, body)
		}
	default:
		if len(body) > 0 {
			s.problem("%v arrived with %q", a, body)
		}
	}
	a.answer(w)
}

// answer does to a what is its fate.
func (a *ask) answer(w http.ResponseWriter) {
	status, body := a.due().status, []byte(nil)
	switch a.kind {
	case "GetObject":
		body = a.content()
	case "ListObjectsV2":
		body = fmt.Appendf(nil, "<ListBucketResult><Contents><Key>%s</Key></Contents><Contents><Key>%s/%s</Key></Contents></ListBucketResult>", a.key(), a.other, a.id)
	case "DeleteObjects":
		body = fmt.Appendf(nil, "<DeleteResult><Deleted><Key>%s</Key></Deleted></DeleteResult>", a.key())
	}
	pieces, pause := [][]byte{body}, time.Millisecond
	switch a.fate {
	case "is reset":
		s3test.Reset(w)
		return
	case "is refused":
		a.refuse(w)
		return
	case "is more than asked for":
		a.overdo(w, body)
		return
	case "is cut short":
		pieces = [][]byte{body[:len(body)/2]}
	case "is slow":
		pieces = slices.Collect(slices.Chunk(body, len(body)/4+1))
	case "is odd":
		// The proxy does not want the body, which comes later than another ask on this connection would.
		status, pieces, pause = http.StatusNonAuthoritativeInfo, [][]byte{nil, body}, 20*time.Millisecond
	}
	a.describe(w.Header())
	if a.kind == "HeadObject" {
		w.Header().Set("Content-Length", fmt.Sprint(a.size))
	} else if a.fate != "is of no length" && a.fate != "is odd" && status != http.StatusNoContent {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	}
	w.WriteHeader(status)
	for i, piece := range pieces {
		if i > 0 {
			time.Sleep(pause)
		}
		w.Write(piece)
		if len(pieces) > 1 || a.fate != "goes well" {
			http.NewResponseController(w).Flush()
		}
	}
	if a.fate == "is cut short" {
		panic(http.ErrAbortHandler)
	}
}

// mayHangUp tells of an ask that may end its connection though the answer does not say so: where the rest of an upload that
// nobody wanted turns out to be long, and where a revocation came between.
func (a *ask) mayHangUp() bool {
	return a != nil && (a.of.name == "eve" || a.kind == "PutObject" && (a.status >= 300 || a.leaves != ""))
}

func (a *ask) describe(h http.Header) {
	h.Set("Etag", `"etag-`+a.id+`"`)
	h.Set("X-Amz-Request-Id", "backend-"+a.id)
	if a.extra {
		h.Set("X-Amz-Version-Id", "version-"+a.id)
	}
}

func (a *ask) refuse(w http.ResponseWriter) {
	a.describe(w.Header())
	w.WriteHeader(http.StatusConflict)
	fmt.Fprintf(w, "<Error><Code>Conflict</Code><Message>no %s</Message></Error>", a.id)
}

// overdo answers twice, in one piece: who takes the connection for the next ask has the wrong answer waiting there.
func (a *ask) overdo(w http.ResponseWriter, body []byte) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer c.Close()
	h := http.Header{}
	a.describe(h)
	h.Set("Content-Length", fmt.Sprint(len(body)))
	var text bytes.Buffer
	for range 2 {
		text.WriteString("HTTP/1.1 200 OK\r\n")
		h.Write(&text)
		text.WriteString("\r\n")
		text.Write(body)
	}
	c.Write(text.Bytes())
	io.Copy(io.Discard, c) // until the proxy hangs up
}

// serveBuckets answers in two pages, so that one call has two exchanges. Nobody is named but by the signature.
func (s *storm) serveBuckets(w http.ResponseWriter, r *s3test.Request) {
	name := strings.TrimPrefix(r.Signature.AccessKeyID, "ASIA")
	w.Header().Set("Content-Type", "application/xml")
	page, next := name, ""
	if r.Query() == "" {
		page, next = "nobody", "<ContinuationToken>more-for-"+name+"</ContinuationToken>"
	} else if r.Query() != "continuation-token=more-for-"+name {
		s.problem("%s asks for the page %s", name, r.Query())
	}
	fmt.Fprintf(w, "<ListAllMyBucketsResult><Buckets><Bucket><Name>seen-%s</Name></Bucket></Buckets>%s</ListAllMyBucketsResult>", page, next)
}

// revokeAndPardon does that to eve.
func (s *storm) revokeAndPardon(calm <-chan struct{}) {
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	id := ""
	for {
		select {
		case <-calm:
			if id == "" {
				return
			}
		case <-ticker.C:
		}
		s.era.Add(1)
		if id == "" {
			revoked, err := s.rig.auth.Revocations().Add(s.t.Context(), identity.Revocation{Issuer: s.rig.issuer.URL(), Session: "env-eve"})
			if err != nil {
				s.problem("%v", err)
				return
			}
			id = revoked.ID
		} else {
			if err := s.rig.auth.Revocations().Delete(s.t.Context(), id); err != nil {
				s.problem("%v", err)
				return
			}
			id = ""
		}
		s.era.Add(1)
	}
}

// lookAtRetired holds the calls that wait to be used again to being blank.
func (s *storm) lookAtRetired(calm <-chan struct{}) {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for over := false; !over; {
		select {
		case <-calm:
			over = true
		case <-ticker.C:
		}
		if left := proxy.Unblank(2); len(left) > 0 {
			s.problem("a call that is to be used again has %s", left[0])
		}
	}
}

// changePolicy has it say the same in other words.
func (s *storm) changePolicy(calm <-chan struct{}) {
	ticker := time.NewTicker(300 * time.Millisecond)
	defer ticker.Stop()
	dir := filepath.Join(filepath.Dir(s.rig.path), "policy")
	for edition := 2; ; edition++ {
		select {
		case <-calm:
			return
		case <-ticker.C:
		}
		next := filepath.Join(dir, "next")
		err := errors.Join(os.WriteFile(next, fmt.Appendf(nil, stormPolicy, edition), 0o644), os.Rename(next, filepath.Join(dir, "authz.rego")), s.rig.policy.Reload(s.t.Context()))
		if err != nil {
			s.problem("%v", err)
		}
	}
}

// judge holds each ask to what was due.
func (s *storm) judge() {
	r := s.rig
	must(s.t, r.server.Shutdown(s.t.Context())) // who left at once may not have been read yet
	machine.Until(s.t, "every event is written", func() bool { st := r.audit.Stats(); return st.Open == 0 && st.Queued == 0 })
	events := map[string][]audit.Event{}
	ids := map[string]bool{}
	for _, e := range r.read() {
		if ids[e.ID] {
			s.problem("two events of %s", e.ID)
		}
		ids[e.ID] = true
		a := s.find([]byte(e.UserAgent + e.Key))
		if a == nil {
			s.problem("an event of nobody: %+v", e)
			continue
		}
		events[a.id] = append(events[a.id], e)
	}
	count := map[string]int{}
	for _, a := range s.asks {
		its := events[a.id]
		if len(its) > 1 {
			s.problem("%v has %d events: %+v", a, len(its), its)
			continue
		}
		var event *audit.Event
		if len(its) == 1 {
			event = &its[0]
			s.judgeEvent(a, event)
		}
		if a.early {
			s.judgeAnswer(a, event)
		}
		count[s.judgeOne(a, event)]++
	}
	s.t.Logf("%d asks: %v", len(s.asks), count)
	if count["as due"] == 0 {
		s.problem("no ask had its due")
	}
}

// judgeEvent holds an event to its own ask, whatever became of that.
func (s *storm) judgeEvent(a *ask, e *audit.Event) {
	text, err := json.Marshal(e)
	must(s.t, err)
	s.onlyOf(a, "the event", text)
	want := map[string]any{"operation": a.kind, "bucket": "storm", "key": a.key(), "source_ip": "127.0.0.1", "host": "storm.example"}
	switch {
	case a.wrong == "no operation":
		delete(want, "operation")
	case a.kind == "ListBuckets":
		want["bucket"], want["key"] = "", ""
	case a.kind == "ListObjectsV2", a.kind == "DeleteObjects":
		want["key"] = ""
	}
	check(s.t, *e, want)
	who := audit.Identity{Subject: "environment/" + a.of.name, Session: "env-" + a.of.name, Attributes: audit.Attributes{Project: a.of.name, User: a.of.name + "@acme.com", Workspace: "env-" + a.of.name}}
	if a.wrong == "a bad token" || a.wrong == "no operation" {
		who = audit.Identity{}
	}
	if got := e.Identity; a.leaves != "" && got.Subject == "" {
		// It was gone before it was known.
	} else if got.Subject != who.Subject || got.Session != who.Session || got.Attributes.Project != who.Attributes.Project || got.Attributes.User != who.Attributes.User || got.Attributes.Workspace != who.Attributes.Workspace {
		s.problem("%v is told to be of %+v", a, got)
	}
	if role := e.Decision.Role; role != "" && role != "arn:aws:iam::123456789012:role/"+a.of.name {
		s.problem("%v is told to be by %s", a, role)
	}
	for _, access := range e.Accesses {
		if access.Key+access.Prefix != a.key() && access.Key != a.other+"/"+a.id && a.kind != "ListBuckets" {
			s.problem("%v is told to have needed %+v", a, access)
		}
	}
}

// judgeAnswer holds what there is of an answer to its own ask.
func (s *storm) judgeAnswer(a *ask, e *audit.Event) {
	var head bytes.Buffer
	a.header.Write(&head)
	if !bytes.HasPrefix(a.content(), a.body) {
		head.Write(a.body)
	}
	s.onlyOf(a, "the answer", head.Bytes())
	switch id := a.header.Get("X-Sluice-Request-Id"); {
	case e == nil:
		s.problem("%v was answered with %d and has no event", a, a.status)
	case id != e.ID || len(a.header.Values("X-Sluice-Request-Id")) != 1:
		s.problem("%v was answered as %q, and its event is %s", a, a.header.Values("X-Sluice-Request-Id"), e.ID)
	case a.status != e.Status:
		s.problem("%v was answered with %d, its event says %d", a, a.status, e.Status)
	case a.answered && e.BytesOut != int64(len(a.body)) && a.kind != "HeadObject":
		s.problem("%v was answered with %d bytes, its event says %d", a, len(a.body), e.BytesOut)
	}
	if e == nil {
		return
	}
	// What only the backend says is there where it was the backend that answered.
	passed := e.Backend.Status == a.status && a.kind != "ListBuckets" && (a.kind != "DeleteObjects" || a.status != 200)
	for name, value := range map[string]string{"Etag": `"etag-` + a.id + `"`, "X-Amz-Version-Id": "version-" + a.id} {
		if !passed || name == "X-Amz-Version-Id" && !a.extra {
			value = ""
		}
		if a.header.Get(name) != value {
			s.problem("%v was answered with %s %q, not %q", a, name, a.header.Get(name), value)
		}
	}
}

// judgeOne holds the whole to what was due, as far as one can know what that is. It tells which sort it was.
func (s *storm) judgeOne(a *ask, e *audit.Event) (sort string) {
	arrived := int(a.arrived.Load())
	if arrived > 0 && e == nil {
		s.problem("%v arrived, and has no event", a)
		return "wrong"
	}
	d := a.due()
	revoked := a.of == s.eve && a.wrong != "no operation" && a.wrong != "a bad token"
	unheard := a.unheard || e == nil && !a.early && a.after.mayHangUp()
	switch {
	case unheard || a.leaves == "in the head":
		if e != nil || arrived > 0 || a.early {
			s.problem("%v was never asked, and came to pass: arrived %d, %+v", a, arrived, e)
		}
		return "never asked"
	case a.wrong != "" && arrived > 0:
		s.problem("%v arrived", a)
	case a.leaves == "in the body" && a.whole.Load() > 0:
		s.problem("%v arrived whole", a)
	case a.leaves != "":
		return "left"
	case e == nil:
		s.problem("%v has no event; answered: %v; it came after %v", a, a.early, a.after)
	case revoked && a.disturbed:
		return "disturbed"
	case revoked && a.era%4 == 2:
		if arrived > 0 || e.Outcome != audit.Refused || a.early && a.status != 403 {
			s.problem("%v was sent by one who had been revoked: %d, arrived %d, %+v", a, a.status, arrived, e)
		}
		return "revoked"
	case revoked && a.era%4 != 0:
		return "disturbed"
	case netHTTP && e.Status == 503 && a.method() != "GET" && a.method() != "HEAD" && strings.Contains(s.logged(e.ID), "context canceled"):
		return "ended for another" // see Backend.exchange, which does not ask twice for what may have been done
	case e.Outcome != d.outcome || e.Error != d.code || e.Status != d.status:
		s.problem("%v: the event says %s %q %d, not %s %q %d:%s", a, e.Outcome, e.Error, e.Status, d.outcome, d.code, d.status, s.logged(e.ID))
	case d.arrives != (arrived > 0) || arrived > 1 && a.fate != "is reset":
		s.problem("%v arrived %d times:%s", a, arrived, s.logged(e.ID))
	case d.outcome == audit.Aborted:
		if a.answered || !bytes.HasPrefix(a.content(), a.body) {
			s.problem("%v was not cut, or is not its own: %.100q", a, a.body)
		}
		return "cut"
	case !a.answered:
		// An answer that does not wait for the upload may be lost with the connection, which goes the way of the upload.
		if a.sent == 0 || d.outcome == audit.Completed && a.fate != "is refused early" {
			s.problem("%v was not answered, %+v", a, e)
		}
		return "lost"
	case a.status != d.status:
		s.problem("%v was answered with %d, not %d: %s", a, a.status, d.status, a.body)
	case a.kind == "HeadObject" || d.status == 204:
		if len(a.body) > 0 {
			s.problem("%v was answered with %q", a, a.body)
		}
		if a.kind == "HeadObject" && d.status == 200 && a.header.Get("Content-Length") != fmt.Sprint(a.size) {
			s.problem("%v was answered with length %s", a, a.header.Get("Content-Length"))
		}
		return "as due"
	case !strings.Contains(string(a.body), d.says):
		s.problem("%v was answered without %q: %.200s", a, d.says, a.body)
	case d.outcome != audit.Completed && !strings.Contains(string(a.body), "<RequestId>"+e.ID+"</RequestId>"):
		s.problem("%v was answered without its id: %.300s", a, a.body)
	case a.kind == "GetObject" && d.status == 200 && d.outcome == audit.Completed && !bytes.Equal(a.body, a.content()):
		s.problem("%v was answered with %d bytes of %d: %.100q", a, len(a.body), a.size, a.body)
	case a.kind == "ListObjectsV2" && strings.Contains(string(a.body), "<Key>"+a.other):
		s.problem("%v was shown what is another's: %s", a, a.body)
	case a.kind == "ListBuckets" && strings.Count(string(a.body), "<Name>") != 1:
		s.problem("%v was shown %s", a, a.body)
	case d.outcome == audit.Completed && a.fate != "is refused early" && e.BytesIn != a.sent:
		s.problem("%v sent %d bytes, its event says %d", a, a.sent, e.BytesIn)
	case e.Backend.RequestID != "backend-"+a.id && d.outcome == audit.Completed && a.kind != "ListBuckets":
		s.problem("%v was answered by the backend as %q", a, e.Backend.RequestID)
	default:
		return "as due"
	}
	return "wrong"
}

// nothingIsLeft holds the proxy to have forgotten all of it.
func (s *storm) nothingIsLeft() {
	t, r := s.t, s.rig
	machine.Until(t, "no call is in progress", func() bool { return r.proxy.InProgress() == 0 })
	if lines := s.logged("level=ERROR"); lines != "" {
		s.problem("the proxy logged:%s", lines)
	}

	// One that allows one request at a time, in all and for each session, finds all places free.
	c := r.proxy.Config
	c.Previous, c.Limits = r.proxy, proxy.Limits{MaxInFlight: 1, InFlight: 1}
	next, err := proxy.New(c)
	must(t, err)
	r.backend.Handle(nil)
	for _, who := range s.callers {
		w := httptest.NewRecorder()
		request := httptest.NewRequest("GET", "/storm/"+who.name+"/k", nil)
		request.Header.Set("Authorization", "Bearer "+who.token)
		if next.ServeHTTP(w, request); w.Code != 200 {
			s.problem("when all is over %s finds no place: %d %s", who.name, w.Code, w.Body)
		}
	}
	machine.Until(t, "every event is written", func() bool { st := r.audit.Stats(); return st.Open == 0 && st.Queued == 0 })

	r.server.Close()
	c.Backends[0].Transport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	stacks := make([]byte, 8<<20)
	ours := regexp.MustCompile(`(?m)^(?:created by )?github\.com/sluice-s3/sluice/proxy(?:/http1)?\.`)
	machine.Until(t, "no goroutine is left", func() bool { return !ours.Match(stacks[:runtime.Stack(stacks, true)]) })
}
