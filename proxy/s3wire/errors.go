package s3wire

import "net/http"

// Error is an S3 error as clients see it.
type Error struct {
	Code    string // S3's: "InvalidRequest"
	Message string // for the developer who sent the request: what was wrong and what to do
	Status  int    // 0 = what S3 answers for Code
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// HTTPStatus is the status S3 answers for the error's code; 500 for a code the table does not know.
func (e *Error) HTTPStatus() int { panic("not written") }

// WriteError answers a request with S3's XML. A HEAD, 204 and 304 have no body. Headers that w already has stay.
func WriteError(w http.ResponseWriter, r *http.Request, e *Error, resource, requestID string) {
	panic("not written")
}
