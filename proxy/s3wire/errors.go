package s3wire

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error is an S3 error as clients see it.
type Error struct {
	Code    string // S3's: "InvalidRequest"
	Message string // for the developer who sent the request: what was wrong and what to do
	Status  int    // 0 = what S3 answers for Code
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// errorf makes an error of one of S3's codes. What it formats reaches the caller: never a credential, and nothing of
// a backend's.
func errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// HTTPStatus is the status S3 answers for the error's code; 500 for a code the table does not know.
func (e *Error) HTTPStatus() int {
	if e.Status != 0 {
		return e.Status
	}
	if status, ok := statusOf[e.Code]; ok {
		return status
	}
	return http.StatusInternalServerError
}

// statusOf is S3's published list of error codes, as far as a proxy can come to answer them itself, with those of
// STS that the credential exchange answers. SDKs retry, refresh credentials or give up by these codes, so a code
// must never be answered with another status than S3's.
var statusOf = map[string]int{
	// Who asks.
	"AccessDenied":                      http.StatusForbidden,
	"AuthorizationHeaderMalformed":      http.StatusBadRequest,
	"AuthorizationQueryParametersError": http.StatusBadRequest,
	"ExpiredToken":                      http.StatusBadRequest,
	"ExpiredTokenException":             http.StatusBadRequest,
	"IDPCommunicationError":             http.StatusBadRequest,
	"IDPRejectedClaim":                  http.StatusForbidden,
	"InvalidAccessKeyId":                http.StatusForbidden,
	"InvalidIdentityToken":              http.StatusBadRequest,
	"InvalidToken":                      http.StatusBadRequest,
	"MissingAuthenticationToken":        http.StatusForbidden,
	"MissingSecurityHeader":             http.StatusBadRequest,
	"RequestTimeTooSkewed":              http.StatusForbidden,
	"SignatureDoesNotMatch":             http.StatusForbidden,
	"TokenRefreshRequired":              http.StatusBadRequest,
	"XAmzContentSHA256Mismatch":         http.StatusBadRequest,

	// What is asked.
	"InvalidAction":                http.StatusBadRequest,
	"InvalidArgument":              http.StatusBadRequest,
	"InvalidBucketName":            http.StatusBadRequest,
	"InvalidHostHeader":            http.StatusBadRequest,
	"InvalidParameterValue":        http.StatusBadRequest,
	"InvalidPart":                  http.StatusBadRequest,
	"InvalidPartNumber":            http.StatusRequestedRangeNotSatisfiable,
	"InvalidPartOrder":             http.StatusBadRequest,
	"InvalidRange":                 http.StatusRequestedRangeNotSatisfiable,
	"InvalidRequest":               http.StatusBadRequest,
	"InvalidTag":                   http.StatusBadRequest,
	"InvalidURI":                   http.StatusBadRequest,
	"KeyTooLongError":              http.StatusBadRequest,
	"MalformedXML":                 http.StatusBadRequest,
	"MetadataTooLarge":             http.StatusBadRequest,
	"MethodNotAllowed":             http.StatusMethodNotAllowed,
	"MissingAction":                http.StatusBadRequest,
	"MissingParameter":             http.StatusBadRequest,
	"NotImplemented":               http.StatusNotImplemented,
	"RequestHeaderSectionTooLarge": http.StatusBadRequest,
	"UnexpectedContent":            http.StatusBadRequest,
	"UserKeyMustBeSpecified":       http.StatusBadRequest,
	"ValidationError":              http.StatusBadRequest,

	// The body.
	"BadDigest":                http.StatusBadRequest,
	"EntityTooLarge":           http.StatusBadRequest,
	"EntityTooSmall":           http.StatusBadRequest,
	"IncompleteBody":           http.StatusBadRequest,
	"InvalidChunkSizeError":    http.StatusBadRequest,
	"InvalidDigest":            http.StatusBadRequest,
	"MalformedTrailerError":    http.StatusBadRequest,
	"MaxMessageLengthExceeded": http.StatusBadRequest,
	"MissingContentLength":     http.StatusLengthRequired,
	"MissingRequestBodyError":  http.StatusBadRequest,
	"RequestTimeout":           http.StatusBadRequest,

	// What there is.
	"BucketAlreadyExists":                  http.StatusConflict,
	"BucketAlreadyOwnedByYou":              http.StatusConflict,
	"BucketNotEmpty":                       http.StatusConflict,
	"ConditionalRequestConflict":           http.StatusConflict,
	"IllegalLocationConstraintException":   http.StatusBadRequest,
	"InvalidBucketState":                   http.StatusConflict,
	"InvalidLocationConstraint":            http.StatusBadRequest,
	"InvalidObjectState":                   http.StatusForbidden,
	"NoSuchBucket":                         http.StatusNotFound,
	"NoSuchBucketPolicy":                   http.StatusNotFound,
	"NoSuchCORSConfiguration":              http.StatusNotFound,
	"NoSuchKey":                            http.StatusNotFound,
	"NoSuchLifecycleConfiguration":         http.StatusNotFound,
	"NoSuchTagSet":                         http.StatusNotFound,
	"NoSuchUpload":                         http.StatusNotFound,
	"NoSuchVersion":                        http.StatusNotFound,
	"NotModified":                          http.StatusNotModified,
	"ObjectLockConfigurationNotFoundError": http.StatusNotFound,
	"OperationAborted":                     http.StatusConflict,
	"PermanentRedirect":                    http.StatusMovedPermanently,
	"PreconditionFailed":                   http.StatusPreconditionFailed,
	"TemporaryRedirect":                    http.StatusTemporaryRedirect,

	// Sluice, or what it stands on.
	"InternalError":      http.StatusInternalServerError,
	"InternalFailure":    http.StatusInternalServerError,
	"ServiceUnavailable": http.StatusServiceUnavailable,
	"SlowDown":           http.StatusServiceUnavailable,
	"Throttling":         http.StatusBadRequest,
}

// WriteError answers a request with S3's XML. A HEAD, 204 and 304 have no body. Headers that w already has stay.
//
// Whether the connection can be used again is for the caller to say: it knows whether a body is still unread.
func WriteError(w http.ResponseWriter, r *http.Request, e *Error, resource, requestID string) {
	h := w.Header()
	setDefault(h, "X-Amz-Request-Id", requestID)
	setDefault(h, "X-Amz-Id-2", requestID)
	status := e.HTTPStatus()
	if status == http.StatusNoContent || status == http.StatusNotModified {
		w.WriteHeader(status)
		return
	}
	h.Set("Content-Type", "application/xml")
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return
	}

	b := make([]byte, 0, 512)
	b = append(b, xmlHeader+"<Error>"...)
	b = appendElement(b, "Code", e.Code)
	b = appendElement(b, "Message", e.Message)
	b = appendElement(b, "Resource", resource)
	b = appendElement(b, "RequestId", requestID)
	b = appendElement(b, "HostId", h.Get("X-Amz-Id-2"))
	b = append(b, "</Error>"...)
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b) // a caller who has gone away is no concern of the answer's
}

func setDefault(h http.Header, name, value string) {
	if _, ok := h[name]; !ok {
		h[name] = []string{value}
	}
}

const xmlHeader = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"

// appendElement writes <name>text</name> so that any XML parser reads it: what XML 1.0 cannot carry, control
// characters and broken UTF-8, is shown as U+FFFD. It is for people's eyes; see appendExact for keys.
func appendElement(b []byte, name, text string) []byte {
	return appendExact(b, name, strings.Map(func(c rune) rune {
		if c < ' ' && c != '\t' && c != '\n' && c != '\r' || c == 0xFFFE || c == 0xFFFF {
			return utf8.RuneError
		}
		return c // which it already is for broken UTF-8
	}, text))
}

// appendExact writes <name>text</name> so that S3 reads back just the bytes of text, which MUST be valid UTF-8.
// Control characters go as character references, as S3's documentation asks for: XML 1.0 has no other way for CR,
// which a parser would turn into LF, and S3 reads the rest of them too.
func appendExact(b []byte, name, text string) []byte {
	b = append(b, '<')
	b = append(b, name...)
	b = append(b, '>')
	done := 0
	for i := range len(text) {
		c := text[i]
		if c >= ' ' && c != '&' && c != '<' && c != '>' && c != 0x7F { // quotes end attributes, not text: people who use curl read them
			continue
		}
		b = append(b, text[done:i]...)
		done = i + 1
		switch c {
		case '&':
			b = append(b, "&amp;"...)
		case '<':
			b = append(b, "&lt;"...)
		case '>':
			b = append(b, "&gt;"...)
		default:
			b = append(b, "&#"...)
			b = strconv.AppendInt(b, int64(c), 10)
			b = append(b, ';')
		}
	}
	b = append(b, text[done:]...)
	b = append(b, '<', '/')
	b = append(b, name...)
	return append(b, '>')
}
