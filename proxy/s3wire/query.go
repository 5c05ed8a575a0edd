package s3wire

import (
	"net/textproto"
	"slices"
	"strings"
	"unicode/utf8"
)

// paramID numbers the query parameters of S3 in alphabetical order, which is also the order they are sent in.
type paramID uint8

// param is one query parameter of a request.
type param struct {
	id    paramID
	value string
}

// paramSet is a set of query parameters.
type paramSet [2]uint64

func (s *paramSet) add(id paramID)             { s[id/64] |= 1 << (id % 64) }
func (s paramSet) has(id paramID) bool         { return s[id/64]&(1<<(id%64)) != 0 }
func (s paramSet) within(all paramSet) bool    { return s[0]&^all[0] == 0 && s[1]&^all[1] == 0 }
func (s paramSet) without(o paramSet) paramSet { return paramSet{s[0] &^ o[0], s[1] &^ o[1]} }

func (s paramSet) names() []string {
	var names []string
	for id := range paramNames {
		if s.has(paramID(id)) {
			names = append(names, paramNames[id].name)
		}
	}
	return names
}

// valueKind is what a parameter's value may be. Backends disagree about the odd ones (an empty versionId, acl=x),
// so those are refused instead of passed on.
type valueKind uint8

const (
	text    valueKind = iota // anything
	flag                     // nothing: its presence is what counts
	two                      // 2: the only version there is of list-type and select-type
	number                   // decimal digits
	nonzero                  // anything but nothing
	onlyURL                  // url, or nothing
)

type paramName struct {
	name string
	kind valueKind
}

// fixed is the value of a parameter that can have but one.
func (p paramName) fixed() (string, bool) {
	switch p.kind {
	case flag:
		return "", true
	case two:
		return "2", true
	}
	return "", false
}

// paramNames is every query parameter of the table, sorted.
var paramNames = []paramName{
	{"abac", flag}, {"accelerate", flag}, {"acl", flag}, {"analytics", flag}, {"annotation", flag}, {"annotation-prefix", text},
	{"annotationName", nonzero}, {"attributes", flag}, {"bucket-region", text}, {"continuation-token", text}, {"cors", flag}, {"delete", flag},
	{"delimiter", text}, {"encoding-type", onlyURL}, {"encryption", flag}, {"fetch-owner", text}, {"id", nonzero}, {"intelligent-tiering", flag},
	{"inventory", flag}, {"key-marker", text}, {"legal-hold", flag}, {"lifecycle", flag}, {"list-type", two}, {"location", flag}, {"logging", flag},
	{"marker", text}, {"max-annotation-results", number}, {"max-buckets", number}, {"max-directory-buckets", number}, {"max-keys", number},
	{"max-parts", number}, {"max-uploads", number}, {"metadataAnnotationTable", flag}, {"metadataConfiguration", flag},
	{"metadataInventoryTable", flag}, {"metadataJournalTable", flag}, {"metadataTable", flag}, {"metrics", flag}, {"notification", flag},
	{"object-lock", flag}, {"ownershipControls", flag}, {"part-number-marker", number}, {"partNumber", number}, {"policy", flag},
	{"policyStatus", flag}, {"prefix", text}, {"publicAccessBlock", flag}, {"renameObject", flag}, {"replication", flag}, {"requestPayment", flag},
	{"response-cache-control", text}, {"response-content-disposition", text}, {"response-content-encoding", text},
	{"response-content-language", text}, {"response-content-type", text}, {"response-expires", text}, {"restore", flag}, {"retention", flag},
	{"select", flag}, {"select-type", two}, {"session", flag}, {"start-after", text}, {"tagging", flag}, {"torrent", flag},
	{"upload-id-marker", text}, {"uploadId", nonzero}, {"uploads", flag}, {"version-id-marker", text}, {"versionId", nonzero}, {"versioning", flag},
	{"versions", flag}, {"website", flag}, {"withUpdatedAt", text},
}

var paramIDs = func() map[string]paramID {
	if len(paramNames) > len(paramSet{})*64 || !slices.IsSortedFunc(paramNames, func(a, b paramName) int { return strings.Compare(a.name, b.name) }) {
		panic("s3wire: the parameters' names are too many or not sorted")
	}
	ids := make(map[string]paramID, len(paramNames))
	for id, p := range paramNames {
		ids[p.name] = paramID(id)
	}
	return ids
}()

func mustParam(name string) paramID {
	id, ok := paramIDs[name]
	if !ok {
		panic("s3wire: no parameter " + name)
	}
	return id
}

var (
	paramVersionID = mustParam("versionId")
	paramPrefix    = mustParam("prefix")
	paramDelimiter = mustParam("delimiter")
)

// check says what is wrong with a value, "" = nothing.
func (k valueKind) check(v string) string {
	switch k {
	case flag:
		if v != "" {
			return "takes no value"
		}
	case two:
		if v != "2" {
			return "can only be 2"
		}
	case number:
		if v == "" || len(v) > 10 || strings.Trim(v, "0123456789") != "" {
			return "must be a number"
		}
	case nonzero:
		if v == "" {
			return "must not be empty"
		}
	case onlyURL:
		if v != "" && v != "url" {
			return "can only be url"
		}
	}
	return ""
}

// query is a request's query, taken apart.
type query struct {
	params  []param // as they came; each at most once
	present paramSet
	hoisted []hoisted // x-amz-* parameters, which S3 reads as headers
	id      string    // x-id: the SDKs' note of what they think it is, which decides nothing
	signed  uint8     // which of SigV4's own parameters there are
}

// hoisted is a header that came as a query parameter, as presigners send them.
type hoisted struct{ name, value string } // name in lower case

// maxHoisted is more than S3's 2 KB of metadata and an operation's own headers come to. Each is compared with those
// before it.
const maxHoisted = 100

// The query parameters of a presigned URL. Package identity verifies them; here they are only recognised, and
// never sent on.
var signature = []string{
	"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Security-Token", "X-Amz-Signature", "X-Amz-SignedHeaders",
}

// read takes raw apart. Each parser on the way to a backend reads ";", a bad escape or a repeated name in its own
// way, so none of those passes; "+" is a space, as S3 has it.
func (q *query) read(raw string) error {
	ids := false
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err := unescapeQuery(rawName)
		if err != nil {
			return err
		}
		value, err := unescapeQuery(rawValue)
		if err != nil {
			return err
		}

		if id, ok := paramIDs[name]; ok {
			if q.present.has(id) {
				return repeated("query parameter", name)
			}
			if wrong := paramNames[id].kind.check(value); wrong != "" {
				return errorf("InvalidArgument", "query parameter %s %s", name, wrong)
			}
			q.present.add(id)
			if q.params == nil {
				q.params = make([]param, 0, 5)
			}
			q.params = append(q.params, param{id, value})
			continue
		}
		switch {
		case name == "x-id":
			if ids {
				return repeated("query parameter", name)
			}
			ids, q.id = true, value
		case len(name) > 6 && strings.EqualFold(name[:6], "x-amz-"):
			if err := q.readAmz(name, value); err != nil {
				return err
			}
		case name == "AWSAccessKeyId" || name == "Signature" || name == "Expires":
			return errorf("InvalidRequest", "this URL is signed with Signature Version 2, which is not accepted: sign it with Version 4 (signature_version = s3v4; aws configure set default.s3.signature_version s3v4)")
		default:
			return errorf("InvalidArgument", "query parameter %s is not one of S3's: remove it", quote(name))
		}
	}
	return nil
}

func (q *query) readAmz(name, value string) error {
	for i, s := range signature {
		if !strings.EqualFold(name, s) {
			continue
		}
		if name != s {
			return errorf("InvalidArgument", "query parameter %s must be written %s", quote(name), s)
		}
		if q.signed&(1<<i) != 0 {
			return repeated("query parameter", s)
		}
		q.signed |= 1 << i
		return nil
	}
	name = strings.ToLower(name)
	for i := range q.hoisted {
		if h := &q.hoisted[i]; h.name == name {
			if id, ok := headerIDs[textproto.CanonicalMIMEHeaderKey(name)]; !ok || headerNames[id].class != list {
				return repeated("query parameter", name)
			}
			h.value += "," + value // as lines of a header are one list
			return nil
		}
	}
	if len(q.hoisted) == maxHoisted {
		return errorf("InvalidRequest", "the query has more than %d x-amz- parameters: send them as headers", maxHoisted)
	}
	q.hoisted = append(q.hoisted, hoisted{name, value})
	return nil
}

// unescapeQuery decodes one name or value, once.
func unescapeQuery(s string) (string, error) {
	if strings.IndexByte(s, ';') >= 0 {
		return "", errorf("InvalidArgument", "the query has a bare semicolon: write %%3B")
	}
	if strings.IndexByte(s, '+') >= 0 {
		s = strings.ReplaceAll(s, "+", "%20")
	}
	return unescape(s, "the query")
}

// unescape decodes the %-escapes of s once, and refuses what would not be read alike by all: a bad escape, invalid
// UTF-8 and NUL.
func unescape(s, where string) (string, error) {
	at := strings.IndexByte(s, '%')
	if at < 0 {
		return s, checkText(s, where)
	}
	out := make([]byte, at, len(s))
	copy(out, s)
	for i := at; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return "", errorf("InvalidArgument", "%s has a %% that two hexadecimal digits do not follow: write %%25 for a %%", where)
			}
			c = unhex(s[i+1])<<4 | unhex(s[i+2])
			i += 2
		}
		out = append(out, c)
	}
	decoded := string(out)
	return decoded, checkText(decoded, where)
}

func checkText(s, where string) error {
	ascii := true
	for i := 0; i < len(s); i++ {
		if s[i] == 0 {
			return errorf("InvalidArgument", "%s has a NUL", where)
		}
		ascii = ascii && s[i] < utf8.RuneSelf
	}
	if !ascii && !utf8.ValidString(s) {
		return errorf("InvalidArgument", "%s is not UTF-8", where)
	}
	return nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}
