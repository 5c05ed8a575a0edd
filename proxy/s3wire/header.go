package s3wire

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// headerID numbers the headers that mean something to S3, or to whom it takes to reach it.
type headerID uint8

// header is one header of a request that goes on to the backend.
type header struct {
	id    headerID
	name  string // canonical; of user metadata too
	value string
}

// headerSet is a set of headers.
type headerSet [4]uint64

func (s *headerSet) add(id headerID)     { s[id/64] |= 1 << (id % 64) }
func (s headerSet) has(id headerID) bool { return s[id/64]&(1<<(id%64)) != 0 }

// class is what becomes of a header.
type class uint8

const (
	plain      class = iota // the operation's, if its entry has it
	list                    // the same, and several lines of it are one list
	secret                  // the same, and neither policy nor audit sees it
	boolean                 // the same; "false" is as good as absent
	framing                 // says how the body comes: see parsePayload
	credential              // package identity's: neither read nor kept here
	hop                     // between the client and here
	drop                    // of no meaning to S3
	forbidden               // would change what the request does in ways that S3 does not have
)

type headerName struct {
	lower string
	class class
	name  string // canonical
}

func names(c class, lowers string) []headerName {
	var all []headerName
	for _, lower := range strings.Fields(lowers) {
		all = append(all, headerName{lower, c, textproto.CanonicalMIMEHeaderKey(lower)})
	}
	return all
}

// headerNames is every header known by name. The headers of the table come first, sorted: that is the order they
// are sent in.
var headerNames = func() []headerName {
	table := slices.Concat(
		names(plain, "access-control-request-headers access-control-request-method cache-control content-disposition content-encoding "+
			"content-language content-md5 content-type expires if-match if-modified-since if-none-match if-range if-unmodified-since origin range "+
			"x-amz-acl x-amz-bucket-namespace x-amz-checksum-algorithm x-amz-checksum-mode x-amz-checksum-type x-amz-client-token "+
			checksumValues+copyIf+copyOwner+renameIf+
			"x-amz-confirm-remove-self-bucket-access x-amz-copy-source x-amz-copy-source-range "+
			"x-amz-copy-source-server-side-encryption-customer-algorithm x-amz-create-session-mode x-amz-expected-bucket-owner "+
			"x-amz-grant-full-control x-amz-grant-read x-amz-grant-read-acp x-amz-grant-write x-amz-grant-write-acp "+
			"x-amz-if-match-initiated-time x-amz-if-match-last-modified-time x-amz-if-match-size x-amz-max-parts x-amz-metadata-directive "+
			"x-amz-mp-object-size x-amz-object-annotation-directive x-amz-object-if-match x-amz-object-ownership x-amz-part-number-marker "+
			objectLock+"x-amz-rename-source x-amz-request-payer x-amz-sdk-checksum-algorithm "+serviceKey+
			"x-amz-server-side-encryption-customer-algorithm x-amz-skip-destination-validation x-amz-storage-class x-amz-tagging "+
			"x-amz-tagging-directive x-amz-transition-default-minimum-object-size x-amz-website-redirect-location x-amz-write-offset-bytes"),
		names(list, "x-amz-object-attributes x-amz-optional-object-attributes"),
		names(secret, "x-amz-bucket-object-lock-token x-amz-copy-source-server-side-encryption-customer-key "+
			"x-amz-copy-source-server-side-encryption-customer-key-md5 x-amz-mfa x-amz-server-side-encryption-customer-key "+
			"x-amz-server-side-encryption-customer-key-md5"),
		names(boolean, "x-amz-bucket-object-lock-enabled x-amz-bypass-governance-retention"),
	)
	slices.SortFunc(table, func(a, b headerName) int { return strings.Compare(a.lower, b.lower) })
	return slices.Concat(table,
		names(framing, "x-amz-content-sha256 x-amz-decoded-content-length x-amz-trailer"),
		names(credential, "authorization date x-amz-date x-amz-security-token"),
		names(hop, "connection keep-alive proxy-authorization proxy-connection te trailer transfer-encoding upgrade"),
		names(forbidden, "content-range x-amz-request-route x-amz-request-token x-amz-s3session-token"),
		// CloudFront adds x-amz-cf-id to what it sends its origins. An older SDK for Java asks by x-amz-te for a
		// digest after the body, and looks whether it was given one.
		names(drop, "accept accept-encoding accept-language amz-sdk-invocation-id amz-sdk-request amz-sdk-retry content-length cookie expect host "+
			"user-agent x-amz-cf-id x-amz-te x-amz-user-agent x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto"),
	)
}()

var headerIDs = func() map[string]headerID {
	ids := make(map[string]headerID, len(headerNames))
	for id, h := range headerNames {
		if _, twice := ids[h.name]; twice {
			panic("s3wire: header twice: " + h.lower)
		}
		ids[h.name] = headerID(id)
	}
	return ids
}()

const metaPrefix = "X-Amz-Meta-"

// userMetadata stands for all of x-amz-meta-*, which sorts after the named headers.
const userMetadata = headerID(255)

func mustHeader(lower string) headerID {
	id, ok := headerIDs[textproto.CanonicalMIMEHeaderKey(lower)]
	if !ok || int(id) >= len(headerSet{})*64 {
		panic("s3wire: no header " + lower)
	}
	return id
}

var (
	headerContentEncoding     = mustHeader("content-encoding")
	headerCopySource          = mustHeader("x-amz-copy-source")
	headerRenameSource        = mustHeader("x-amz-rename-source")
	headerAnnotationDirective = mustHeader("x-amz-object-annotation-directive")
	headerBypass              = mustHeader("x-amz-bypass-governance-retention")
	headerRequestRoute        = mustHeader("x-amz-request-route")
	headerRequestToken        = mustHeader("x-amz-request-token")
	headerRequestMethod       = mustHeader("access-control-request-method")
	headerOrigin              = mustHeader("origin")
)

// headers reads what of r's headers goes on, and how the body is framed.
type headers struct {
	entry *entry
	seen  headerSet
	kept  []header
	frame frame
}

// read takes each of r's headers for what the entry says of it. What it does not know is dropped where it cannot
// matter to S3, and refused where it could.
func (h *headers) read(r http.Header, q *query) error {
	if err := checkConnection(r["Connection"]); err != nil {
		return err
	}
	for name, values := range r {
		if len(values) == 0 {
			continue
		}
		if err := h.take(name, values); err != nil {
			return err
		}
	}
	for _, hoisted := range q.hoisted {
		if strings.TrimSpace(hoisted.value) != hoisted.value {
			return errorf("InvalidArgument", "query parameter %s begins or ends with white space", quote(hoisted.name))
		}
		if err := h.take(textproto.CanonicalMIMEHeaderKey(hoisted.name), []string{hoisted.value}); err != nil {
			return err
		}
	}
	// In the table's order: a map has none, and what is sent should not change from one request to the next.
	if len(h.kept) > 1 {
		slices.SortFunc(h.kept, func(a, b header) int {
			if a.id != b.id {
				return int(a.id) - int(b.id)
			}
			return strings.Compare(a.name, b.name)
		})
		for i := 1; i < len(h.kept); i++ {
			if h.kept[i].id == userMetadata && h.kept[i].name == h.kept[i-1].name {
				return repeated("header", h.kept[i].name)
			}
		}
	}
	return nil
}

func (h *headers) take(name string, values []string) error {
	id, ok := headerIDs[name]
	if !ok {
		return h.takeOther(name, values)
	}
	known := &headerNames[id]
	switch known.class {
	case drop, credential, hop:
		return nil
	case forbidden:
		return errorf("NotImplemented", "header %s asks for what this proxy does not do: remove it", known.lower)
	case framing:
		return h.frame.take(known.lower, values)
	}
	if id == headerContentEncoding {
		return h.frame.takeEncoding(values)
	}
	if !h.entry.headerSet.has(id) {
		return h.unwanted(known)
	}
	if h.seen.has(id) {
		return repeated("header", known.lower)
	}
	h.seen.add(id)
	value := values[0]
	if len(values) > 1 {
		if known.class != list {
			return repeated("header", known.lower)
		}
		value = strings.Join(values, ",")
	}
	if err := checkValue(known.lower, value); err != nil {
		return err
	}
	if known.class == boolean {
		switch {
		case strings.EqualFold(value, "false"):
			return nil
		case strings.EqualFold(value, "true"):
			value = "true"
		default:
			return errorf("InvalidArgument", "header %s must be true or false", known.lower)
		}
	}
	h.keep(header{id, known.name, value})
	return nil
}

func (h *headers) keep(f header) {
	if h.kept == nil {
		h.kept = make([]header, 0, 6)
	}
	h.kept = append(h.kept, f)
}

// takeOther is for the names that are not in the table: user metadata, and what every client and every proxy on
// the way adds.
func (h *headers) takeOther(name string, values []string) error {
	if canonical := textproto.CanonicalMIMEHeaderKey(name); canonical != name {
		// net/http never leaves one so, but a caller that fills the map itself may.
		if _, ok := headerIDs[canonical]; ok || strings.HasPrefix(canonical, metaPrefix) {
			return h.take(canonical, values)
		}
	}
	if strings.HasPrefix(name, metaPrefix) {
		if !h.entry.meta {
			return h.unwanted(&headerName{lower: strings.ToLower(name)})
		}
		if len(name) == len(metaPrefix) {
			return errorf("InvalidRequest", "header x-amz-meta- has no name")
		}
		if len(values) > 1 {
			return repeated("header", strings.ToLower(name))
		}
		if err := checkValue(strings.ToLower(name), values[0]); err != nil {
			return err
		}
		h.keep(header{userMetadata, name, values[0]})
		return nil
	}
	if likeAmz(name) {
		return h.unwanted(&headerName{lower: strings.ToLower(name)})
	}
	return nil
}

// unwanted refuses or drops a header that the operation does not have.
func (h *headers) unwanted(known *headerName) error {
	switch {
	case likeAmz(known.lower):
		return errorf("InvalidRequest", "header %s is not one of %s's: remove it", quote(known.lower), h.entry.name)
	case strings.HasPrefix(known.lower, "if-") && h.entry.method != "GET" && h.entry.method != "HEAD" && h.entry.name != preflight:
		// Who says "only if" must not be told that it was done without looking.
		return errorf("NotImplemented", "%s cannot be conditional on %s", h.entry.name, known.lower)
	}
	return nil
}

// likeAmz tells whether some server on the way could take name for one of Amazon's: CGI-like ones turn dashes
// into underscores, and so cannot tell x_amz_acl from x-amz-acl.
func likeAmz(name string) bool {
	const prefix = "x-amz-"
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := name[i]
		if c == '_' {
			c = '-'
		}
		if c|0x20 != prefix[i]|0x20 {
			return false
		}
	}
	return true
}

// checkConnection refuses to let a client name, as belonging to the connection, a header that says what the
// request is: servers differ in whether they then still see it.
func checkConnection(values []string) error {
	for _, value := range values {
		for name := range strings.SplitSeq(value, ",") {
			name = strings.TrimSpace(name)
			id, ok := headerIDs[textproto.CanonicalMIMEHeaderKey(name)]
			if likeAmz(name) || ok && headerNames[id].class != hop && headerNames[id].class != drop {
				return errorf("InvalidRequest", "header Connection names %s, which is not the connection's", quote(name))
			}
		}
	}
	return nil
}

// checkValue refuses what could end a header's line, which net/http refuses in headers but not in the query; and white space
// at a value's ends, which HTTP/2 lets through: a backend takes it away, and reads a value that policy was not shown.
func checkValue(name, value string) error {
	if strings.Trim(value, " \t") != value {
		return errorf("InvalidArgument", "header %s begins or ends with white space", quote(name))
	}
	for i := 0; i < len(value); i++ {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return errorf("InvalidArgument", "header %s has a control character", quote(name))
		}
	}
	return nil
}
