package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3wire"
	"github.com/sluice-s3/sluice/signer"
)

// backendDown is a backend that gave no answer.
type backendDown struct {
	name string
	err  error
}

func (e *backendDown) Error() string { return fmt.Sprintf("backend %q: %v", e.name, e.err) }
func (e *backendDown) Unwrap() error { return e.err }

// backendCut is a backend that broke its answer off.
type backendCut struct {
	name string
	err  error
}

func (e *backendCut) Error() string { return fmt.Sprintf("backend %q, mid-body: %v", e.name, e.err) }
func (e *backendCut) Unwrap() error { return e.err }

// backendRefusesUs is a backend that does not take the proxy's signature: its code tells why.
type backendRefusesUs struct{ name, code string }

func (e *backendRefusesUs) Error() string {
	return fmt.Sprintf("backend %q refuses the proxy's own credentials: %s", e.name, e.code)
}

// stopped is a request that the end of the process cut.
type stopped struct{ err error }

func (e *stopped) Error() string { return "the proxy stopped: " + e.err.Error() }
func (e *stopped) Unwrap() error { return e.err }

// unrecorded is a request that was not sent because it could not be journalled.
type unrecorded struct{ err error }

func (e *unrecorded) Error() string { return e.err.Error() }
func (e *unrecorded) Unwrap() error { return e.err }

// slowDown is a session over its limits.
type slowDown struct {
	message    string
	retryAfter time.Duration
}

func (e *slowDown) Error() string { return e.message }

// translate is the only table from Go errors to S3's. What it does not know is an InternalError that says nothing.
func translate(err error) (*s3wire.Error, audit.Outcome) {
	var (
		wire    *s3wire.Error
		who     *identity.Error
		sign    *signer.Error
		gone    *clientGone
		down    *backendDown
		unknown *backendRefusesUs
		broken  *backendCut
		ended   *stopped
		noEvent *unrecorded
		slow    *slowDown
		unsure  *policy.Undecided
	)
	switch {
	case errors.As(err, &ended):
		return &s3wire.Error{Code: "ServiceUnavailable", Message: "the proxy stopped before the request was done; retry"}, audit.Aborted
	case errors.As(err, &wire):
		if wire.HTTPStatus() >= 500 && wire.Code != "NotImplemented" {
			return wire, audit.Failed
		}
		return wire, audit.Refused
	case errors.As(err, &who):
		return identityError(who)
	case errors.As(err, &slow):
		return &s3wire.Error{Code: "SlowDown", Message: slow.message}, audit.Refused
	case errors.As(err, &unsure):
		return &s3wire.Error{Code: "AccessDenied", Message: fmt.Sprintf("policy failed on %s, and what it cannot decide is refused; the operator can find why by the request id", unsure.Action)}, audit.Refused
	case errors.As(err, &sign):
		return signerError(sign)
	case errors.As(err, &gone):
		return &s3wire.Error{Code: "RequestTimeout", Message: goneMessage(gone)}, audit.Aborted
	case errors.As(err, &broken):
		return &s3wire.Error{Code: "InternalError", Message: "the storage behind this proxy broke its answer off; retry"}, audit.Aborted
	case errors.As(err, &down):
		return &s3wire.Error{Code: "ServiceUnavailable", Message: fmt.Sprintf("the storage behind this proxy (backend %q) does not answer; retry soon", down.name)}, audit.Failed
	case errors.As(err, &unknown):
		return &s3wire.Error{Code: "InternalError", Message: fmt.Sprintf("the storage behind this proxy (backend %q) does not accept the proxy's own credentials, which is nothing that you can mend; its operator can find why by the request id", unknown.name)}, audit.Failed
	case errors.As(err, &noEvent):
		return &s3wire.Error{Code: "SlowDown", Message: "the request cannot be recorded at the moment, so it was not served; retry soon"}, audit.Failed
	case errors.Is(err, context.DeadlineExceeded):
		return &s3wire.Error{Code: "ServiceUnavailable", Message: "the proxy ran out of time on this request; retry"}, audit.Failed
	}
	return &s3wire.Error{Code: "InternalError", Message: "the proxy failed on this request; its operator can find it by the request id"}, audit.Failed
}

// malformed says what HTTP found wrong with a request, by its status, and where it can be told, with the target.
func malformed(target string, status int) error {
	switch status {
	case http.StatusExpectationFailed:
		return &s3wire.Error{Code: "InvalidRequest", Status: status, Message: `the header Expect can only be "100-continue"`}
	case http.StatusRequestHeaderFieldsTooLarge:
		return &s3wire.Error{Code: "RequestHeaderSectionTooLarge", Message: "the request line and header are longer than 64 KiB"}
	case http.StatusNotImplemented:
		return &s3wire.Error{Code: "NotImplemented", Message: `the header Transfer-Encoding can only be "chunked", once`}
	case http.StatusHTTPVersionNotSupported:
		return &s3wire.Error{Code: "InvalidRequest", Message: "the request line must end in HTTP/1.1 or HTTP/1.0"}
	}
	if target != "" {
		if err := s3wire.CheckTarget(target); err != nil {
			return err
		}
	}
	return &s3wire.Error{Code: "InvalidRequest", Message: "the request is not well-formed HTTP/1.1: check the request line, that Host and Content-Length come once, and that every header is one line"}
}

func goneMessage(e *clientGone) string {
	if errors.Is(e, errSilent) {
		return e.err.Error() + ": the client was slower than that with its request, or with reading the answer"
	}
	return "the connection ended before the request did"
}

// retryAfter is how long a client should wait before it tries again; 0 = it need not.
func retryAfter(err error, e *s3wire.Error) time.Duration {
	var slow *slowDown
	switch {
	case errors.As(err, &slow):
		return max(slow.retryAfter, time.Second)
	case e.Code == "SlowDown" || e.Code == "ServiceUnavailable":
		return time.Second
	}
	return 0
}

func identityError(e *identity.Error) (*s3wire.Error, audit.Outcome) {
	code := "AccessDenied"
	switch e.Kind {
	case identity.Malformed:
		code = "InvalidRequest"
	case identity.BadToken:
		code = "InvalidToken"
	case identity.Expired:
		code = "ExpiredToken"
	case identity.BadSignature:
		code = "SignatureDoesNotMatch"
	case identity.UnknownKey:
		code = "InvalidAccessKeyId"
	case identity.Skewed:
		code = "RequestTimeTooSkewed"
	case identity.Unavailable:
		return &s3wire.Error{Code: "ServiceUnavailable", Message: e.Message}, audit.Failed
	}
	return &s3wire.Error{Code: code, Message: e.Message}, audit.Refused
}

func signerError(e *signer.Error) (*s3wire.Error, audit.Outcome) {
	switch e.Kind {
	case signer.Expired:
		return &s3wire.Error{Code: "ExpiredToken", Message: e.Message}, audit.Refused
	case signer.RoleNotAllowed, signer.NoToken:
		return &s3wire.Error{Code: "AccessDenied", Message: e.Message}, audit.Refused
	case signer.Denied:
		return &s3wire.Error{Code: "AccessDenied", Message: e.Message}, audit.Failed
	}
	return &s3wire.Error{Code: "ServiceUnavailable", Message: e.Message}, audit.Failed
}

// cause is the error below the one that clients are told.
func cause(err error) error {
	if below := errors.Unwrap(err); below != nil {
		return below
	}
	return err
}

// hint is what the operator can do about err, "" where nothing is known.
func hint(err error) string {
	if e, ok := errors.AsType[*signer.Error](err); ok {
		return e.Hint
	}
	if _, ok := errors.AsType[*backendRefusesUs](err); ok {
		return "check this backend's credentials, region and clock: proxy check --online asks it"
	}
	return ""
}

// headerText is a message as a header can carry it: ASCII, one line, bounded.
func headerText(message string) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, message)
	return text[:min(len(text), 1024)]
}

func noBackend(bucket string) error {
	return &s3wire.Error{Code: "NoSuchBucket", Message: fmt.Sprintf("no backend of this proxy has bucket %q", bucket)}
}

// accessDenied names the refused access and policy's reasons.
func accessDenied(a audit.Access, reasons []string) error {
	where := a.Bucket
	if a.Key != "" {
		where += "/" + a.Key
	}
	if where == "" {
		where = "all buckets"
	}
	return &s3wire.Error{Code: "AccessDenied", Message: withReasons(fmt.Sprintf("policy does not allow %s on %s", a.Action, where), reasons)}
}

func withReasons(message string, reasons []string) string {
	if len(reasons) == 0 {
		return message
	}
	return message + ": " + strings.Join(reasons, "; ")
}
