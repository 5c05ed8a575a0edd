package proxy

import (
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/proxy/identity"
	"github.com/sluice-s3/sluice/proxy/s3wire"
)

// ownDoor is what answers a request that is for Sluice itself: everything below /-/, and the STS query API, which
// AWS SDKs send to the S3 endpoint. They exchange and end credentials; none reaches a bucket. A virtual-hosted
// request is never one of them: there "/-/x" is a key.
func (p *Proxy) ownDoor(r *http.Request) func(*call) {
	path := r.URL.EscapedPath()
	own := strings.HasPrefix(path, "/-/") || path == "/-"
	sts := path == "/" && (r.Method == http.MethodPost && isForm(r) || r.URL.Query().Has("Action"))
	if !own && !sts {
		return nil
	}
	if r.RequestURI != "" && r.RequestURI[0] != '/' {
		return nil // the parser refuses whole URLs, here as everywhere
	}
	if bucket, err := p.addressing.HostBucket(r.Host); err != nil || bucket != "" {
		return nil // the parser refuses the first, and the second is a bucket's
	}
	switch {
	case !own:
		return (*call).sts
	case path == "/-/credentials":
		return (*call).containerCredentials
	case path == "/-/logout":
		return (*call).logout
	}
	return func(c *call) {
		c.refuse(&s3wire.Error{Code: "InvalidRequest", Status: http.StatusNotFound, Message: "no bucket is called \"-\": below /-/ there are only /-/credentials and /-/logout"})
	}
}

func isForm(r *http.Request) bool {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return kind == "application/x-www-form-urlencoded"
}

// maxForm bounds the bodies of Sluice's own doors: a token is at most 16 KiB. They are read before anybody has shown who
// he is, so maxFormTime bounds all of the reading too: a byte now and then would keep one of the places that every
// request needs (limits.max_in_flight) for as long as one likes. And of these places they take up one of formShare at most,
// or else as many clients as there are places, coming again and again, would keep out all who have credentials.
const (
	maxForm     = 64 << 10
	maxFormTime = 10 * time.Second
	formShare   = 4
)

// sts answers AssumeRoleWithWebIdentity and GetCallerIdentity.
func (c *call) sts() {
	c.event.Operation = "STS" // until the form tells the action
	if c.in.Method != http.MethodPost || c.in.URL.RawQuery != "" {
		c.refuseSTS(&stsError{"ValidationError", "POST the parameters as the form in the body, and no query: URLs are kept in logs, and this one would have a token in it"}, true)
		return
	}
	body, err := c.readForm()
	if err != nil {
		c.refuseSTS(err, false)
		return
	}
	request, err := parseSTS(body)
	if request != nil {
		c.event.Operation = request.Action // of a form that is refused, too
	}
	if err != nil {
		c.refuseSTS(err, false)
		return
	}
	if request.Action == "GetCallerIdentity" {
		proof, err := c.proxy.Auth.AuthenticateSTS(c.in, body)
		if err != nil {
			c.refuseSTS(err, false)
			return
		}
		c.setIdentity(proof.Identity)
		if err := c.journal(); err != nil {
			c.refuse(err)
			return
		}
		c.event.Outcome = audit.Completed
		writeGetCallerIdentity(c.out, proof.Identity, c.event.ID)
		return
	}
	if c.in.Header.Get("Authorization") != "" || c.in.Header.Get("X-Amz-Security-Token") != "" {
		c.refuseSTS(&stsError{"ValidationError", "two kinds of credential: AssumeRoleWithWebIdentity takes the token in the form alone, unsigned"}, true)
		return
	}
	session, err := c.exchange(request.Token, request.Issue)
	if err != nil {
		c.refuseSTS(err, true)
		return
	}
	c.event.Outcome = audit.Completed
	writeAssumeRoleWithWebIdentity(c.out, request, session, c.event.ID)
}

// exchange gives session credentials for a token, verified as at every other door. What they may be used for is
// asked of policy at each use.
func (c *call) exchange(token string, request identity.IssueRequest) (*identity.Session, error) {
	_, end := c.span("authenticate")
	session, err := c.proxy.Auth.Issue(c.ctx, token, request)
	end(err)
	if err != nil {
		return nil, err
	}
	c.setIdentity(session.Identity)
	return session, c.journal()
}

func (c *call) readForm() ([]byte, error) {
	reading := c.proxy.forms.Add(1)
	defer c.proxy.forms.Add(-1)
	if most := int64(c.proxy.Limits.MaxInFlight); most > 0 && reading > max(most/formShare, 1) {
		return nil, &slowDown{message: "too many others are sending their tokens at the moment; retry soon", retryAfter: time.Second}
	}
	late := time.AfterFunc(min(maxFormTime, c.proxy.Limits.IdleTimeout), func() { c.cut(cutIdle) })
	defer late.Stop()
	body, err := io.ReadAll(io.LimitReader(&clientBody{c, c.in.Body}, maxForm+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxForm {
		return nil, &stsError{"ValidationError", "the form is longer than 64 KiB"}
	}
	return body, nil
}

// refuseSTS answers with an error in STS's words.
func (c *call) refuseSTS(err error, exchange bool) {
	writeSTSError(c.out, c.refused(err, stsErrorOf(err, exchange)), c.event.ID)
}

// refused records a refusal at one of Sluice's own doors, and is what to answer: e, unless that cannot be recorded.
func (c *call) refused(err error, e *stsError) *stsError {
	c.blame(err)
	c.event.Error = e.Code
	c.event.Outcome = audit.Refused
	if e.Status() >= 500 {
		c.event.Outcome = audit.Failed
		c.proxy.Log.Warn("exchange failed", slog.String("id", c.event.ID), slog.String("code", e.Code), slog.Any("error", cause(err)))
	}
	if _, gone := errors.AsType[*clientGone](err); gone || c.in.Context().Err() != nil {
		c.event.Outcome = audit.Aborted
	}
	if c.event.Outcome == audit.Refused {
		c.event.Decision.Reasons = []string{e.Message}
	}
	if err := c.journal(); err != nil {
		return stsErrorOf(err, true)
	}
	return e
}

// containerCredentials answers the SDKs' container credentials provider. It sends the token file's content as
// Authorization, as it stands; some users put "Bearer " before it.
func (c *call) containerCredentials() {
	c.event.Operation = "GetContainerCredentials"
	refuse := func(err error) {
		writeContainerError(c.out, c.refused(err, stsErrorOf(err, true)))
	}
	if c.in.Method != http.MethodGet {
		c.out.Header().Set("Allow", "GET")
		refuse(&stsError{"MethodNotAllowed", "send GET"})
		return
	}
	values := c.in.Header.Values("Authorization")
	if len(values) == 0 {
		refuse(&stsError{"AccessDenied", "no credentials: send the workspace's OIDC token as Authorization (AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE)"})
		return
	}
	if len(values) != 1 || c.in.Header.Get("X-Amz-Security-Token") != "" || c.in.URL.RawQuery != "" {
		refuse(&stsError{"InvalidIdentityToken", "send the workspace's OIDC token as the one Authorization header (AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE), and no query"})
		return
	}
	token := strings.TrimSpace(values[0])
	if scheme, rest, found := strings.Cut(token, " "); found && strings.EqualFold(scheme, "Bearer") {
		token = strings.TrimSpace(rest)
	}
	session, err := c.exchange(token, identity.IssueRequest{})
	if err != nil {
		refuse(err)
		return
	}
	c.event.Outcome = audit.Completed
	writeContainerCredentials(c.out, session)
}

// logout takes an OIDC back-channel logout token: the issuer says that a session or a subject has ended.
// https://openid.net/specs/openid-connect-backchannel-1_0.html
func (c *call) logout() {
	c.event.Operation = "BackChannelLogout"
	refuse := func(status int, err error) {
		e, outcome := translate(err)
		c.event.Error, c.event.Outcome = e.Code, outcome
		if outcome == audit.Refused {
			c.event.Decision.Reasons = []string{e.Message}
		}
		if err := c.journal(); err != nil {
			e, _ = translate(err)
			status = e.HTTPStatus()
		}
		writeCredentialsJSON(c.out, status, map[string]string{"error": "invalid_request", "error_description": e.Message})
	}
	if c.in.Method != http.MethodPost {
		c.out.Header().Set("Allow", "POST")
		refuse(http.StatusMethodNotAllowed, &s3wire.Error{Code: "MethodNotAllowed", Message: "POST a form with logout_token"})
		return
	}
	if !isForm(c.in) {
		refuse(http.StatusBadRequest, &s3wire.Error{Code: "InvalidRequest", Message: "POST a form with logout_token"})
		return
	}
	body, err := c.readForm()
	if _, busy := errors.AsType[*slowDown](err); busy {
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	if err != nil {
		refuse(http.StatusBadRequest, &s3wire.Error{Code: "InvalidRequest", Message: "the form cannot be read, or is longer than 64 KiB"})
		return
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || len(form["logout_token"]) != 1 {
		refuse(http.StatusBadRequest, &s3wire.Error{Code: "InvalidRequest", Message: "the form needs one logout_token"})
		return
	}
	if err := c.journal(); err != nil {
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	if err := c.proxy.Auth.Logout(c.ctx, form.Get("logout_token")); err != nil {
		status := http.StatusBadRequest
		if errors.Is(err, identity.ErrNotShared) {
			err = &identity.Error{Kind: identity.Unavailable, Message: "the logout is in force here, and could not be kept yet: send it again", Err: err}
		}
		if e, _ := translate(err); e.HTTPStatus() >= 500 {
			status = e.HTTPStatus()
		}
		refuse(status, err)
		return
	}
	c.event.Outcome = audit.Completed
	c.out.Header().Set("Cache-Control", "no-store")
	c.out.WriteHeader(http.StatusOK)
}
