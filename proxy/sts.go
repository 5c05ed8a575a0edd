package proxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-s3/sluice/proxy/identity"
)

// The exchange of a workspace's token for session credentials, as AWS SDKs know it: STS's query API, and the
// endpoint of container credentials. Here is what they look like; doors.go serves them.
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html

const (
	stsVersion   = "2011-06-15"
	stsNamespace = "https://sts.amazonaws.com/doc/2011-06-15/"
)

// stsRequest is an understood request to STS.
type stsRequest struct {
	Action string // "AssumeRoleWithWebIdentity" or "GetCallerIdentity"

	// Of AssumeRoleWithWebIdentity:
	Token string
	Issue identity.IssueRequest
}

// stsError is an error as STS's clients see it.
type stsError struct {
	Code    string
	Message string // for the developer: what was wrong and what to do
}

func (e *stsError) Error() string { return e.Code + ": " + e.Message }

// Status is what is answered for the code: STS's own, but for IDPCommunicationError, where STS says 400 and its clients
// know that it passes. All of them retry 503, and so does what is no SDK.
func (e *stsError) Status() int {
	switch e.Code {
	case "AccessDenied", "MissingAuthenticationToken", "InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken":
		return http.StatusForbidden
	case "MethodNotAllowed":
		return http.StatusMethodNotAllowed
	case "Throttling", "ServiceUnavailable", "IDPCommunicationError":
		return http.StatusServiceUnavailable
	case "InternalFailure":
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// parseSTS reads a form that was posted to STS. What it does not understand it refuses: a parameter that were left out
// of account might be one that narrows what the session may do. Its errors are *stsError; beside one the request, where
// it is not nil, has the Action alone.
func parseSTS(body []byte) (*stsRequest, error) {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, &stsError{"ValidationError", "the body is not a well-formed form"}
	}
	action := form.Get("Action")
	if action == "" {
		return nil, &stsError{"MissingAction", "the form has no Action: this endpoint knows AssumeRoleWithWebIdentity and GetCallerIdentity"}
	}
	for name, values := range form {
		if len(values) > 1 {
			return nil, &stsError{"ValidationError", fmt.Sprintf("the parameter %.60q is repeated", name)}
		}
	}
	known := []string{"Action", "Version"}
	switch action {
	case "GetCallerIdentity":
	case "AssumeRoleWithWebIdentity":
		known = append(known, "RoleArn", "RoleSessionName", "WebIdentityToken", "DurationSeconds")
	default:
		return nil, &stsError{"InvalidAction", fmt.Sprintf("the action %.60q is not known here: only AssumeRoleWithWebIdentity and GetCallerIdentity are", action)}
	}
	request := &stsRequest{Action: action}
	if version := form.Get("Version"); version != stsVersion {
		return request, &stsError{"InvalidAction", fmt.Sprintf("could not find the action %s for version %.20q: set Version=%s", action, version, stsVersion)}
	}
	for name := range form {
		if slices.Contains(known, name) {
			continue
		}
		message := fmt.Sprintf("the parameter %.60q is not one of %s's", name, action)
		switch {
		case action != "AssumeRoleWithWebIdentity":
		case name == "Policy" || strings.HasPrefix(name, "PolicyArns"):
			message = fmt.Sprintf("%.60q cannot be honoured: this proxy's own policy decides about each request, and the session would have more rights than you ask for; leave it out", name)
		case name == "ProviderId":
			message = "ProviderId is for OAuth 2.0 access tokens; with an OIDC token leave it out"
		}
		return request, &stsError{"ValidationError", message}
	}
	if action == "AssumeRoleWithWebIdentity" {
		err = request.readAssumeRole(form)
	}
	return request, err
}

var (
	// roleARN is any ARN: the role is for policy to judge, and need not be AWS's. The last part is what names it.
	roleARN         = regexp.MustCompile(`^arn:[A-Za-z0-9-]+:[A-Za-z0-9-]+:[A-Za-z0-9-]*:([0-9]{12}|[A-Za-z-][A-Za-z0-9-]*)?:([!-~]*[:/])?([!-.0-9;-~]+)$`)
	accountID       = regexp.MustCompile(`^[0-9]{12}$`)
	roleSessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
)

func (request *stsRequest) readAssumeRole(form url.Values) error {
	// SDKs send a token file as it is, and a shell's redirection ends it with a newline.
	request.Token = strings.TrimSpace(form.Get("WebIdentityToken"))
	form.Set("WebIdentityToken", request.Token)
	for _, name := range []string{"RoleArn", "RoleSessionName", "WebIdentityToken"} {
		if form.Get(name) == "" {
			return &stsError{"MissingParameter", fmt.Sprintf("the parameter %s is missing", name)}
		}
	}
	request.Issue.RoleARN = form.Get("RoleArn")
	if len(request.Issue.RoleARN) > 2048 || !roleARN.MatchString(request.Issue.RoleARN) {
		return &stsError{"ValidationError", "RoleArn must be an ARN such as arn:aws:iam::123456789012:role/dev (AWS_ROLE_ARN)"}
	}
	request.Issue.SessionName = form.Get("RoleSessionName")
	if !roleSessionName.MatchString(request.Issue.SessionName) {
		return &stsError{"ValidationError", "RoleSessionName must be 2 to 64 letters, digits or any of _+=,.@- (AWS_ROLE_SESSION_NAME)"}
	}
	if !form.Has("DurationSeconds") {
		return nil
	}
	seconds, err := strconv.ParseUint(form.Get("DurationSeconds"), 10, 32)
	if err != nil || seconds < 900 || seconds > 43200 {
		return &stsError{"ValidationError", "DurationSeconds must be between 900 and 43200"}
	}
	request.Issue.Duration = time.Duration(seconds) * time.Second
	return nil
}

// stsErrorOf says an error in STS's words; what it does not know is an InternalFailure that says nothing. exchange
// tells whether the credential was the token of an exchange, rather than the request's own signature.
func stsErrorOf(err error, exchange bool) *stsError {
	if e, ok := errors.AsType[*stsError](err); ok {
		return e
	}
	if _, ok := errors.AsType[*clientGone](err); ok {
		return &stsError{"RequestTimeout", "the form did not come whole, or not in time"}
	}
	if e, ok := errors.AsType[*slowDown](err); ok {
		return &stsError{"ServiceUnavailable", e.message}
	}
	if _, ok := errors.AsType[*unrecorded](err); ok {
		return &stsError{"ServiceUnavailable", "the request cannot be recorded at the moment, so it was not served; retry soon"}
	}
	e, ok := errors.AsType[*identity.Error](err)
	if !ok {
		return &stsError{"InternalFailure", "the proxy failed on this request; its operator can find it by the request id"}
	}
	// The SDKs fetch a new token or retry by some of these codes, so what went wrong must go by its name.
	codes := map[identity.Kind][2]string{ // of an exchange, of a signed request
		identity.Missing:      {"InvalidIdentityToken", "MissingAuthenticationToken"},
		identity.Malformed:    {"InvalidIdentityToken", "IncompleteSignature"},
		identity.BadToken:     {"InvalidIdentityToken", "InvalidClientTokenId"},
		identity.Expired:      {"ExpiredTokenException", "ExpiredToken"},
		identity.BadSignature: {"InvalidIdentityToken", "SignatureDoesNotMatch"},
		identity.UnknownKey:   {"InvalidIdentityToken", "InvalidClientTokenId"},
		identity.Skewed:       {"InvalidIdentityToken", "RequestExpired"},
		identity.Revoked:      {"AccessDenied", "AccessDenied"},
		identity.Unavailable:  {"IDPCommunicationError", "ServiceUnavailable"},
	}
	code, known := codes[e.Kind]
	switch {
	case !known:
		return &stsError{"AccessDenied", e.Message}
	case exchange:
		return &stsError{code[0], e.Message}
	}
	return &stsError{code[1], e.Message}
}

// writeSTSError answers with an error as STS writes it.
func writeSTSError(w http.ResponseWriter, e *stsError, requestID string) {
	type body struct {
		Type    string
		Code    string
		Message string
	}
	fault := "Sender"
	if e.Status() >= 500 {
		fault = "Receiver"
		w.Header().Set("Retry-After", "1")
	}
	writeSTS(w, e.Status(), requestID, struct {
		XMLName   xml.Name `xml:"ErrorResponse"`
		Namespace string   `xml:"xmlns,attr"`
		Error     body
		RequestID string `xml:"RequestId"`
	}{Namespace: stsNamespace, Error: body{fault, e.Code, e.Message}, RequestID: requestID})
}

type stsMetadata struct {
	RequestID string `xml:"RequestId"`
}

// writeAssumeRoleWithWebIdentity answers an exchange with its session credentials.
func writeAssumeRoleWithWebIdentity(w http.ResponseWriter, request *stsRequest, session *identity.Session, requestID string) {
	type credentials struct {
		AccessKeyID     string `xml:"AccessKeyId"`
		SecretAccessKey string
		SessionToken    string
		Expiration      string
	}
	type assumedRoleUser struct {
		AssumedRoleID string `xml:"AssumedRoleId"`
		ARN           string `xml:"Arn"`
	}
	type result struct {
		Credentials                 credentials
		SubjectFromWebIdentityToken string
		AssumedRoleUser             assumedRoleUser
		Provider                    string
		Audience                    string
	}
	caller := callerOf(session.Identity)
	audience := ""
	if len(session.Identity.Audience) > 0 {
		audience = session.Identity.Audience[0]
	}
	writeSTS(w, http.StatusOK, requestID, struct {
		XMLName   xml.Name    `xml:"AssumeRoleWithWebIdentityResponse"`
		Namespace string      `xml:"xmlns,attr"`
		Result    result      `xml:"AssumeRoleWithWebIdentityResult"`
		Metadata  stsMetadata `xml:"ResponseMetadata"`
	}{
		Namespace: stsNamespace,
		Result: result{
			Credentials:                 credentials{session.AccessKeyID, session.SecretAccessKey, session.SessionToken, stsTime(session.Expiration)},
			SubjectFromWebIdentityToken: session.Identity.Subject,
			AssumedRoleUser:             assumedRoleUser{caller.userID, caller.arn},
			Provider:                    session.Identity.Issuer,
			Audience:                    audience,
		},
		Metadata: stsMetadata{requestID},
	})
}

// writeGetCallerIdentity answers who a caller is, in terms of the role that the session was asked for as.
func writeGetCallerIdentity(w http.ResponseWriter, id *identity.Identity, requestID string) {
	type result struct {
		ARN     string `xml:"Arn"`
		UserID  string `xml:"UserId"`
		Account string
	}
	caller := callerOf(id)
	writeSTS(w, http.StatusOK, requestID, struct {
		XMLName   xml.Name    `xml:"GetCallerIdentityResponse"`
		Namespace string      `xml:"xmlns,attr"`
		Result    result      `xml:"GetCallerIdentityResult"`
		Metadata  stsMetadata `xml:"ResponseMetadata"`
	}{Namespace: stsNamespace, Result: result{caller.arn, caller.userID, caller.account}, Metadata: stsMetadata{requestID}})
}

// caller is an identity in AWS's words.
type caller struct{ account, arn, userID string }

var notSessionName = regexp.MustCompile(`[^\w+=,.@-]+`)

// callerOf names an identity as an assumed role's session. Clients show these names and take the account id out of
// them; nothing is granted by them.
func callerOf(id *identity.Identity) caller {
	partition, account, role := "aws", "000000000000", "sluice" // of a bearer, who asked for none
	if parts := roleARN.FindStringSubmatch(id.RequestedRole); parts != nil {
		partition = strings.Split(id.RequestedRole, ":")[1]
		role = parts[3]
		if accountID.MatchString(parts[1]) {
			account = parts[1]
		}
	}
	name := id.SessionName()
	if name == "" {
		name = notSessionName.ReplaceAllString(id.Session, "-")
		name = name[:min(len(name), 64)]
	}
	// AWS's unique id of a role, which tools take for opaque.
	sum := sha256.Sum256([]byte(partition + ":" + account + ":" + role))
	return caller{
		account: account,
		arn:     fmt.Sprintf("arn:%s:sts::%s:assumed-role/%s/%s", partition, account, role, name),
		userID:  "SLCR" + base32.StdEncoding.EncodeToString(sum[:])[:17] + ":" + name,
	}
}

// writeContainerCredentials answers the SDKs' container credentials provider.
func writeContainerCredentials(w http.ResponseWriter, session *identity.Session) {
	writeCredentialsJSON(w, http.StatusOK, map[string]string{
		"AccessKeyId":     session.AccessKeyID,
		"SecretAccessKey": session.SecretAccessKey,
		"Token":           session.SessionToken,
		"Expiration":      stsTime(session.Expiration),
	})
}

// writeContainerError answers the same provider with an error. Some SDKs read the names in lower case, others not; all
// of them retry by the status.
func writeContainerError(w http.ResponseWriter, e *stsError) {
	writeCredentialsJSON(w, e.Status(), map[string]string{"code": e.Code, "message": e.Message, "Code": e.Code, "Message": e.Message})
}

// stsTime is how STS writes a time; Go's and Java's parsers take no other.
func stsTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

func writeSTS(w http.ResponseWriter, status int, requestID string, body any) {
	var b bytes.Buffer
	b.WriteString(xml.Header)
	if err := xml.NewEncoder(&b).Encode(body); err != nil {
		panic(err) // structs of strings
	}
	w.Header().Set("X-Amzn-Requestid", requestID)
	writeCredentials(w, status, "text/xml", []byte(plainQuotes.Replace(b.String())))
}

// plainQuotes undoes what encoding/xml does to quotes for the sake of attributes, of which there is but the namespace:
// people read these messages. An ampersand that was there before is &amp; by now.
var plainQuotes = strings.NewReplacer("&#34;", `"`, "&#39;", "'")

func writeCredentialsJSON(w http.ResponseWriter, status int, body map[string]string) {
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings
	}
	writeCredentials(w, status, "application/json", b)
}

// writeCredentials answers with what no cache may keep.
func writeCredentials(w http.ResponseWriter, status int, kind string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(body)
}
