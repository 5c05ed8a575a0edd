package proxy

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/sluice-s3/sluice/proxy/http1"
)

// What a backend says beside the objects it keeps, it may have made of the request: backends that debug, and those whose
// errors are their own, answer with all they were sent. So all but the content of objects is looked through on its way.
// What is encoded on purpose gets by: a backend that wants to give away what it was shown needs no help of ours.

// aboutUs are the codes by which a backend refuses the proxy's own signature or credentials. A client can do nothing
// about them, might take them for its own (ExpiredToken has SDKs ask for new credentials), and must not read what S3
// says with them: the access key, and in the canonical request the session token.
var aboutUs = map[string]bool{
	"SignatureDoesNotMatch": true, "InvalidAccessKeyId": true, "ExpiredToken": true, "InvalidToken": true, "TokenRefreshRequired": true,
	"RequestTimeTooSkewed": true, "AuthorizationHeaderMalformed": true, "InvalidSecurity": true, "MissingSecurityHeader": true,
	"AuthorizationQueryParametersError": true, "NotSignedUp": true,
}

// RefusesProxy tells whether a backend that answers with this code refuses the proxy, and not what a client asks for.
func RefusesProxy(code string) bool { return aboutUs[code] }

// passable is what of a backend's fields the client may see.
func (c *call) passable(fields http1.Fields) http1.Fields {
	secrets := c.secrets()
	fields = endToEnd(fields)
	kept := fields[:0]
	for _, f := range fields {
		if !containsAny(f.Value, secrets) {
			kept = append(kept, f)
		}
	}
	clear(fields[len(kept):])
	return kept
}

// secrets are what the request to the backend was signed with, each by a piece of it that is its own and that no quoting
// of XML, JSON or a URL changes. Authorization ends with the signature.
func (c *call) secrets() (telltale [2]string) {
	for i, name := range [...]string{"Authorization", "X-Amz-Security-Token"} {
		if values := c.room.out.Header[name]; len(values) > 0 {
			telltale[i] = telling(values[0])
		}
	}
	return telltale
}

// longestSecret is how much of a secret is looked for at most, and tellingRun how much is enough to be nothing else.
const (
	longestSecret = 64
	tellingRun    = 24
)

// telling is the last run of letters and digits that is long enough, or else the longest, or all of a secret that has
// nothing long. It is looked for at every request, and so no further than it has to be; from behind, for tokens begin alike.
func telling(secret string) string {
	longest := ""
	for to := len(secret); to > 0; {
		from := to
		for from > 0 && to-from < tellingRun && isAlphanumeric(secret[from-1]) {
			from--
		}
		if to-from == tellingRun {
			return secret[from:to]
		}
		if to-from > len(longest) {
			longest = secret[from:to]
		}
		to = from - 1
	}
	if len(longest) < 16 {
		longest = secret
	}
	return longest[:min(len(longest), longestSecret)]
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func containsAny(text string, secrets [2]string) bool {
	for _, secret := range secrets {
		if secret != "" && len(text) >= len(secret) && strings.Contains(text, secret) {
			return true
		}
	}
	return false
}

// maxError is how much of a backend's error is looked at before any of it is passed on. It is many times what S3's have.
const maxError = 64 << 10

// readError looks into a backend's error, for the event and for what is not the client's to know. The whole body still goes
// on.
func (c *call) readError(fields http1.Fields, body io.Reader) (io.Reader, error) {
	if coding := fields.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, &backendDown{c.backendName(), fmt.Errorf("its error has Content-Encoding %q, which it was not asked for", coding)}
	}
	read, _ := io.ReadAll(io.LimitReader(body, maxError)) // body says again what went wrong
	text := string(read)
	if _, rest, ok := strings.Cut(text, "<Code>"); ok {
		if code, _, ok := strings.Cut(rest, "</Code>"); ok && len(code) <= 64 {
			c.event.Error = code
		}
	}
	if aboutUs[c.event.Error] || containsAny(text, c.secrets()) {
		return nil, &backendRefusesUs{c.backendName(), c.event.Error}
	}
	whole := io.MultiReader(strings.NewReader(text), body)
	if len(text) < maxError {
		return whole, nil
	}
	return &screen{call: c, from: whole, told: true}, nil
}

// screen reads a backend's words as they come, and fails before it gives out what the client must not know. It holds
// nothing back but what may be the beginning of that.
type screen struct {
	call *call
	from io.Reader
	told bool   // what kind of document it is
	head []byte // of the document, until that is told
	held []byte // back
	err  error  // of from, to be told when held is given out
}

// maxHead is where an error's code is by then.
const maxHead = 4 << 10

// errorDocument is how one begins, up to its code.
var errorDocument = regexp.MustCompile(`^(?:<\?xml[^>]*\?>)?\s*<Error(?:\s[^>]*)?>(?:[^<]|<[^C]|<C[^o])*<Code>([^<]{1,64})</Code>`)

// Read MUST be given room for more than longestSecret.
func (s *screen) Read(p []byte) (int, error) {
	if len(p) <= longestSecret {
		return 0, io.ErrShortBuffer
	}
	for s.err == nil {
		n := copy(p, s.held)
		m, err := s.from.Read(p[n:])
		s.err = err
		if err := s.document(p[n : n+m]); err != nil {
			s.err, s.held = err, nil
			break
		}
		text := p[:n+m]
		keep := 0
		for _, secret := range s.call.secrets() {
			if secret == "" {
				continue
			}
			if bytes.Contains(text, []byte(secret)) {
				s.err, s.held = &backendRefusesUs{s.call.backendName(), s.call.event.Error}, nil
				return 0, s.err
			}
			keep = max(keep, begun(text, secret))
		}
		if s.err == io.EOF {
			keep = 0 // it comes to nothing
		}
		s.held = append(s.held[:0], text[len(text)-keep:]...)
		if given := len(text) - keep; given > 0 {
			return given, nil
		}
	}
	return 0, s.err
}

// begun is how many bytes at the end of text may be the beginning of secret.
func begun(text []byte, secret string) int {
	for n := min(len(secret)-1, len(text)); n > 0; n-- {
		if string(text[len(text)-n:]) == secret[:n] {
			return n
		}
	}
	return 0
}

// document finds out whether what has been answered with 200 is an error, which S3 does where it had to answer before it
// knew: CopyObject, UploadPartCopy and CompleteMultipartUpload.
func (s *screen) document(more []byte) error {
	if s.told {
		return nil
	}
	if len(s.head) == 0 {
		more = bytes.TrimLeft(more, " \r\n\t")
	}
	s.head = append(s.head, more[:min(len(more), maxHead-len(s.head))]...)
	if found := errorDocument.FindSubmatch(s.head); found != nil {
		s.told = true
		s.call.event.Error = string(found[1])
		if aboutUs[s.call.event.Error] {
			return &backendRefusesUs{s.call.backendName(), s.call.event.Error}
		}
	}
	s.told = s.told || len(s.head) == maxHead
	return nil
}
