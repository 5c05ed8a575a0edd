package s3wire

import (
	"net/http"
	"net/netip"
	"strings"
	"unicode"
)

// Addressing tells which host names are Sluice's own, and so where the bucket's name is looked for.
type Addressing struct {
	Domains []string // none: path style on any host
}

// target is a request's address, as sent and not yet decoded.
type target struct {
	host  string
	path  string // begins with "/"
	query string
}

// readTarget takes the request target from the request line itself where there is one: net/url has its own ideas
// about some of them ("//b/k").
func readTarget(r *http.Request) (target, error) {
	t := target{host: r.Host}
	if r.RequestURI != "" {
		var err error
		if t.path, t.query, err = splitTarget(r.RequestURI); err != nil {
			return t, err
		}
	} else {
		// Made by this process: `proxy explain`, a test.
		u := r.URL
		if u == nil || u.Opaque != "" || u.User != nil || u.Fragment != "" {
			return t, errorf("InvalidRequest", "the URL must have no user, no fragment, and a path")
		}
		if t.host == "" {
			t.host = u.Host
		}
		t.path, t.query = u.EscapedPath(), u.RawQuery
		if t.path == "" {
			t.path = "/"
		}
		if t.path[0] != '/' {
			return t, errorf("InvalidRequest", "the path must begin with a slash")
		}
	}
	if strings.IndexByte(t.path, '#') >= 0 || strings.IndexByte(t.query, '#') >= 0 {
		return t, errorf("InvalidRequest", "the request target has a fragment: write %%23 for a #")
	}
	return t, nil
}

func splitTarget(raw string) (path, query string, err error) {
	if raw[0] != '/' {
		return "", "", errorf("InvalidRequest", "the request line must begin with a path: \"*\", a whole URL and CONNECT are not answered here")
	}
	path, query, _ = strings.Cut(raw, "?")
	return path, query, nil
}

// CheckTarget tells what is wrong with a request target by itself, for an answer to a request that nothing else is
// known of. raw MUST NOT be empty.
func CheckTarget(raw string) error {
	path, rawQuery, err := splitTarget(raw)
	if err == nil {
		_, err = unescape(path, "the path")
	}
	if err == nil {
		var q query
		err = q.read(rawQuery)
	}
	return err
}

// address finds the bucket and the key that t names; both empty for the service itself. The bucket is told where it is the
// key that is wrong.
func (a Addressing) address(t target) (bucketName, key string, err error) {
	inHost, err := a.bucketInHost(t.host)
	if err != nil {
		return "", "", err
	}
	rawKey := t.path[1:]
	if inHost != "" {
		bucketName = inHost
	} else {
		var rawBucket string
		rawBucket, rawKey, _ = strings.Cut(rawKey, "/")
		if rawBucket == "" {
			if t.path != "/" {
				return "", "", errorf("InvalidRequest", "the path begins with two slashes: the first segment is the bucket")
			}
			return "", "", nil
		}
		if bucketName, err = unescape(rawBucket, "the bucket's name"); err != nil {
			return "", "", err
		}
	}
	if err := checkBucket(bucketName); err != nil {
		return "", "", err
	}
	key, err = unescape(rawKey, "the key")
	if err != nil {
		return bucketName, "", err
	}
	if len(key) > maxKey {
		return bucketName, "", errorf("KeyTooLongError", "a key has at most %d bytes; this one has %d", maxKey, len(key))
	}
	return bucketName, key, nil
}

// maxKey is S3's limit, in bytes of UTF-8.
const maxKey = 1024

// bucketInHost is the bucket that host names, or "" where the path does. The longest domain decides, so that
// one of the proxy's own names is never taken for a bucket below another.
func (a Addressing) bucketInHost(host string) (string, error) {
	if len(a.Domains) == 0 {
		return "", nil
	}
	name, ok := hostName(host)
	if !ok {
		return "", errorf("InvalidRequest", "the Host header is not a host name: %s", quote(host))
	}
	longest := ""
	for _, d := range a.Domains {
		d = strings.TrimSuffix(d, ".")
		if len(d) == 0 || len(d) <= len(longest) || len(name) < len(d) || !strings.EqualFold(name[len(name)-len(d):], d) {
			continue
		}
		if len(name) == len(d) || name[len(name)-len(d)-1] == '.' {
			longest = d
		}
	}
	switch {
	case longest == "" && isIP(name):
		return "", nil
	case longest == "":
		return "", &Error{Code: "InvalidRequest", Status: http.StatusMisdirectedRequest,
			Message: "this proxy does not answer for host " + quote(host) + ": use " + strings.Join(a.Domains, " or ") + ", or <bucket>.<that name>"}
	case len(name) == len(longest):
		return "", nil
	}
	// Host names have no case; a bucket that has one is reached by path.
	return strings.ToLower(name[:len(name)-len(longest)-1]), nil
}

// hostName is host less its port, the brackets of an IPv6 address, and the root's dot.
func hostName(host string) (string, bool) {
	name, port := host, ""
	if strings.HasPrefix(name, "[") {
		end := strings.IndexByte(name, ']')
		if end < 0 {
			return "", false
		}
		name, port = name[1:end], name[end+1:]
		if !isIP(name) || port != "" && port[0] != ':' {
			return "", false
		}
	} else if colon := strings.IndexByte(name, ':'); colon >= 0 {
		name, port = name[:colon], name[colon:]
	}
	if strings.Trim(port, ":0123456789") != "" || strings.Count(port, ":") > 1 {
		return "", false
	}
	name = strings.TrimSuffix(name, ".")
	if name == "" || name[0] == '.' || strings.Contains(name, "..") {
		return "", false
	}
	return name, true
}

func isIP(name string) bool {
	if c := name[len(name)-1]; !isHex(c) && c != ':' {
		return false // the parser makes an error, and errors are dear
	}
	_, err := netip.ParseAddr(name)
	return err == nil
}

// Suffixes of names that AWS keeps for things that stand for a bucket of another name, or are none. Policy would
// judge the alias, and the backend would open what it points to.
var notBuckets = []string{"-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"}

// checkBucket holds a bucket's name to S3's rules, as lenient as they were for the oldest buckets, and strict in all
// that another server could take for something else than a name.
func checkBucket(name string) error {
	ok := len(name) <= 255 && isAlphanumeric(name[0]) && name[len(name)-1] != '.'
	for i := 0; i < len(name) && ok; i++ {
		switch c := name[i]; {
		case isAlphanumeric(c), c == '-', c == '_':
		case c == '.':
			ok = name[i+1] != '.' // not the last: see above
		default:
			ok = false
		}
	}
	if !ok || isIP(name) {
		return errorf("InvalidBucketName", "%s is not a bucket's name: letters, digits, dots and dashes", quote(name))
	}
	for _, suffix := range notBuckets {
		if strings.HasSuffix(name, suffix) {
			return errorf("NotImplemented", "names that end in %s are access points, directory buckets or tables, which this proxy does not serve: name the bucket itself", suffix)
		}
	}
	return nil
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || 'A' <= c && c <= 'Z'
}

// isHostLabel tells whether bucket can stand before a domain: in lower case, and with no dot, which no wildcard
// certificate covers.
func isHostLabel(bucket string) bool {
	if len(bucket) < 3 || len(bucket) > 63 || bucket[len(bucket)-1] == '-' {
		return false
	}
	for i := 0; i < len(bucket); i++ {
		if c := bucket[i]; c == '.' || c == '_' || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}

// StrictKey refuses a key that backends of key mode "strict" do not keep as it is: some resolve "a/../b", some
// drop an empty segment, some cannot store a control character. A slash at the end, by which a folder is marked,
// is kept by all.
func StrictKey(key string) error {
	return strict("the key", strings.TrimSuffix(key, "/"))
}

// StrictKey refuses the operation where a key or a prefix of its own would fail StrictKey. MUST be called before
// it is sent to a backend of key mode "strict"; the keys in a DeleteObjects body are the caller's to check.
func (op *Operation) StrictKey() error {
	if op.Key != "" {
		if err := StrictKey(op.Key); err != nil {
			return err
		}
	}
	if op.Source != nil {
		if err := strict("the copy source's key", strings.TrimSuffix(op.Source.Key, "/")); err != nil {
			return err
		}
	}
	// A prefix may end in the middle of a segment: "a/." begins "a/.profile". But not go up: "a/..".
	if op.Bucket != "" && op.Prefix != "" {
		prefix := strings.TrimSuffix(op.Prefix, "/")
		if prefix == op.Prefix && strings.HasSuffix(prefix, ".") && !strings.HasSuffix(prefix, "..") {
			prefix += "_"
		}
		return strict("the prefix", prefix)
	}
	return nil
}

func strict(what, key string) error {
	for _, c := range key {
		if unicode.IsControl(c) {
			return errorf("InvalidArgument", "%s has a control character, which this backend does not keep", what)
		}
	}
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return errorf("InvalidArgument", "%s has a segment %q, which this backend does not keep as it is: no empty segments, \".\", \"..\" or leading slash", what, segment)
		}
	}
	return nil
}
