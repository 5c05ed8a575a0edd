package world

import (
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/sluice-s3/sluice/proxy/s3test"
)

// STS is a security token service with AWS's query API of 2011-06-15. It verifies callers as AWS does, holds them to
// AWS's limits, and mints sessions that the world's S3 servers check.
type STS struct {
	URL string

	world    *World
	sessions sessionKey
	roles    []Role
	server   *http.Server
	verifier *oidc.IDTokenVerifier
	stop     context.CancelFunc

	mu    sync.Mutex // guards all below
	calls []Call
	fault STSFault
	life  time.Duration
}

// Role is an IAM role: who may assume it, and what it may do.
type Role struct {
	ARN         string
	ExternalID  string        // that AssumeRole must give [none]
	Audience    string        // of the tokens that AssumeRoleWithWebIdentity takes [the world's]
	MaxDuration time.Duration // [an hour]
	NoTags      bool          // the trust policy does not allow sts:TagSession
	Policy      string        // what the role may do, as an IAM policy document ["" = everything]
}

// Call is one call of the STS, as it was asked.
type Call struct {
	Action          string // AssumeRole, AssumeRoleWithWebIdentity, GetCallerIdentity
	Caller          string // access key that signed it; "" for web identity
	RoleARN         string
	RoleSessionName string
	SourceIdentity  string
	ExternalID      string
	Policy          string
	Tags            map[string]string
	TransitiveTags  []string
	Duration        time.Duration // 0 = not given
	WebIdentity     string        // the token
	AccessKeyID     string        // of the session it made; "" where it was refused
	Error           string        // the code it was refused with
}

// STSFault is how the STS misbehaves. The zero value is health.
type STSFault struct {
	Down     bool            // cuts connections without an answer
	Throttle bool            // 400 Throttling
	Deny     bool            // 403 AccessDenied, as a trust policy would
	Broken   bool            // 500 without a body
	Hold     <-chan struct{} // answers only when this is closed
}

// Fail makes the STS misbehave until the next call; Fail(STSFault{}) heals it.
func (s *STS) Fail(f STSFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// SetLifetime makes sessions that end sooner than they were asked for, and say so: the STS's own minimum is a quarter of
// an hour, which is too long for a test of what happens after. 0 undoes it.
func (s *STS) SetLifetime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = d
}

// Calls are those so far, the refused ones too, in order.
func (s *STS) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Forget empties Calls.
func (s *STS) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = nil
}

func startSTS(w *World, sessions sessionKey, roles []Role) (*STS, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &STS{world: w, sessions: sessions, roles: roles, URL: "http://" + listener.Addr().String()}
	ctx, cancel := context.WithCancel(oidc.ClientContext(context.Background(), w.http))
	keys := oidc.NewRemoteKeySet(ctx, w.Issuer.KeysURL())
	s.verifier = oidc.NewVerifier(w.Issuer.URL(), keys, &oidc.Config{
		SkipClientIDCheck:    true, // the role's trust names the audience
		SupportedSigningAlgs: []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"},
	})
	s.stop = cancel
	s.server = &http.Server{Handler: s, ErrorLog: log.New(io.Discard, "", 0)}
	if !w.tls {
		go s.server.Serve(listener)
		return s, nil
	}
	s.URL = "https://" + listener.Addr().String()
	go s.server.ServeTLS(listener, w.certificate.certFile, w.certificate.keyFile)
	return s, nil
}

func (s *STS) close() error {
	s.stop()
	return s.server.Close()
}

// stsError is one that AWS's clients understand.
type stsError struct {
	status        int
	code, message string
}

func (e *stsError) Error() string { return e.code + ": " + e.message }

func (s *STS) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if fault.Hold != nil {
		select {
		case <-fault.Hold:
		case <-r.Context().Done():
		}
	}
	if fault.Down {
		panic(http.ErrAbortHandler)
	}
	var call Call
	answer, err := any(nil), error(nil)
	switch {
	case fault.Broken:
		err = &stsError{status: 500}
	case fault.Throttle:
		err = &stsError{400, "Throttling", "Rate exceeded"}
	default:
		answer, err = s.serve(r, body, &call, fault.Deny)
	}
	id := rand.Text()
	rw.Header().Set("x-amzn-RequestId", id)
	rw.Header().Set("Content-Type", "text/xml")
	if err != nil {
		refusal := new(stsError)
		if !errors.As(err, &refusal) {
			refusal = &stsError{500, "InternalFailure", err.Error()}
		}
		call.Error = refusal.code
		s.record(call)
		rw.WriteHeader(refusal.status)
		if refusal.code != "" {
			kind := "Sender"
			if refusal.status >= 500 {
				kind = "Receiver"
			}
			xml.NewEncoder(rw).Encode(errorResponse{Type: kind, Code: refusal.code, Message: refusal.message, RequestID: id})
		}
		return
	}
	s.record(call)
	io.WriteString(rw, xml.Header)
	xml.NewEncoder(rw).Encode(answer)
}

func (s *STS) record(c Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, c)
}

type errorResponse struct {
	XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

type credentialsXML struct {
	AccessKeyID     string `xml:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      string
}

type assumedRoleUser struct {
	AssumedRoleID string `xml:"AssumedRoleId"`
	ARN           string `xml:"Arn"`
}

type assumeRoleResult struct {
	AssumedRoleUser             assumedRoleUser
	Credentials                 credentialsXML
	SourceIdentity              string `xml:",omitempty"`
	SubjectFromWebIdentityToken string `xml:",omitempty"`
	Audience                    string `xml:",omitempty"`
	Provider                    string `xml:",omitempty"`
	PackedPolicySize            int
}

type assumeRoleResponse struct {
	XMLName   xml.Name         `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleResponse"`
	Result    assumeRoleResult `xml:"AssumeRoleResult"`
	RequestID string           `xml:"ResponseMetadata>RequestId"`
}

type webIdentityResponse struct {
	XMLName   xml.Name         `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleWithWebIdentityResponse"`
	Result    assumeRoleResult `xml:"AssumeRoleWithWebIdentityResult"`
	RequestID string           `xml:"ResponseMetadata>RequestId"`
}

type callerIdentityResponse struct {
	XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse"`
	ARN       string   `xml:"GetCallerIdentityResult>Arn"`
	UserID    string   `xml:"GetCallerIdentityResult>UserId"`
	Account   string   `xml:"GetCallerIdentityResult>Account"`
	RequestID string   `xml:"ResponseMetadata>RequestId"`
}

func (s *STS) serve(r *http.Request, body []byte, call *Call, deny bool) (answer any, err error) {
	if r.Method != http.MethodPost || r.URL.Path != "/" {
		return nil, &stsError{404, "UnknownOperationException", "send POST /"}
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, &stsError{400, "MalformedQueryString", err.Error()}
	}
	for name, values := range form {
		if len(values) > 1 {
			return nil, &stsError{400, "MalformedQueryString", name + " is repeated"}
		}
	}
	if form.Get("Version") != "2011-06-15" {
		return nil, &stsError{400, "NoSuchVersion", "the version is 2011-06-15"}
	}
	if err := call.parse(form); err != nil {
		return nil, err
	}
	switch call.Action {
	case "AssumeRole", "GetCallerIdentity":
		caller, err := s.caller(r, body)
		if err != nil {
			return nil, err
		}
		call.Caller = caller.AccessKeyID
		if call.Action == "GetCallerIdentity" {
			return s.callerIdentity(caller), nil
		}
		if caller.AccessKeyID != s.world.BaseKey.AccessKeyID {
			return nil, s.refuse(call, "arn of "+caller.AccessKeyID)
		}
	case "AssumeRoleWithWebIdentity":
		if r.Header.Get("Authorization") != "" {
			return nil, &stsError{400, "InvalidAction", "AssumeRoleWithWebIdentity takes no signature"}
		}
	default:
		return nil, &stsError{400, "InvalidAction", "no action " + strconv.Quote(call.Action) + " here"}
	}
	if deny {
		return nil, s.refuse(call, "the caller")
	}
	return s.assume(r.Context(), call)
}

// caller verifies the signature of a call.
func (s *STS) caller(r *http.Request, body []byte) (*s3test.Signature, error) {
	request := &s3test.Request{Method: r.Method, Target: r.RequestURI, Body: body}
	request.Header = append(request.Header, s3test.Field{Name: "Host", Value: r.Host})
	for name, values := range r.Header {
		for _, value := range values {
			request.Header = append(request.Header, s3test.Field{Name: name, Value: value})
		}
	}
	if r.ContentLength >= 0 && !request.Header.Has("Content-Length") {
		request.Header = append(request.Header, s3test.Field{Name: "Content-Length", Value: strconv.FormatInt(r.ContentLength, 10)})
	}
	lookup := func(id string) (s3test.Credentials, bool) {
		switch {
		case id == s.world.BaseKey.AccessKeyID:
			return s3test.Credentials{AccessKeyID: id, SecretAccessKey: s.world.BaseKey.SecretAccessKey}, true
		case strings.HasPrefix(id, "ASIA"):
			token := r.Header.Get("X-Amz-Security-Token")
			session, err := s.sessions.open(token)
			if err != nil || session.AccessKeyID != id || !time.Now().Before(session.Expires) {
				return s3test.Credentials{}, false
			}
			return s3test.Credentials{AccessKeyID: id, SecretAccessKey: s.sessions.secret(id), SessionToken: token}, true
		}
		return s3test.Credentials{}, false
	}
	signature, err := s3test.CheckSignature(request, lookup, time.Now())
	if err != nil {
		if signature != nil {
			if _, known := lookup(signature.AccessKeyID); !known {
				return nil, &stsError{403, "InvalidClientTokenId", "The security token included in the request is invalid."}
			}
		}
		return nil, &stsError{403, "SignatureDoesNotMatch", err.Error()}
	}
	if signature.Service != "sts" {
		return nil, &stsError{403, "SignatureDoesNotMatch", "Credential should be scoped to correct service: 'sts'."}
	}
	return signature, nil
}

func (s *STS) callerIdentity(caller *s3test.Signature) *callerIdentityResponse {
	answer := &callerIdentityResponse{Account: Account, UserID: "AIDASLUICE", ARN: "arn:aws:iam::" + Account + ":user/sluice", RequestID: rand.Text()}
	if session, err := s.sessions.open(caller.SessionToken); err == nil {
		answer.ARN, answer.UserID = session.ARN, "AROASLUICE:"+session.ARN[strings.LastIndex(session.ARN, "/")+1:]
	}
	return answer
}

func (s *STS) refuse(call *Call, who string) error {
	return &stsError{403, "AccessDenied", fmt.Sprintf("User: %s is not authorized to perform: sts:%s on resource: %s", who, call.Action, call.RoleARN)}
}

// AWS's own patterns, from its API reference.
var (
	roleARN     = regexp.MustCompile(`^arn:aws:iam::(\d{12}):role/((?:[\w+=,.@-]+/)*[\w+=,.@-]{1,64})$`)
	sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	externalID  = regexp.MustCompile(`^[\w+=,.@:/-]{2,}$`)
	tagText     = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`)
	policyText  = regexp.MustCompile(`^[\x09\x0A\x0D\x20-\x{00FF}]+$`)
	tagField    = regexp.MustCompile(`^Tags\.member\.(\d+)\.(Key|Value)$`)
	transitive  = regexp.MustCompile(`^TransitiveTagKeys\.member\.(\d+)$`)
)

func invalid(format string, args ...any) error {
	return &stsError{400, "ValidationError", fmt.Sprintf(format, args...)}
}

// parse reads a call, and holds it to the limits that AWS's API reference states.
func (c *Call) parse(form url.Values) error {
	keys, values := map[string]string{}, map[string]string{}
	for name := range form {
		value := form.Get(name)
		switch name {
		case "Version":
		case "Action":
			c.Action = value
		case "RoleArn":
			c.RoleARN = value
		case "RoleSessionName":
			c.RoleSessionName = value
		case "SourceIdentity":
			c.SourceIdentity = value
		case "ExternalId":
			c.ExternalID = value
		case "Policy":
			c.Policy = value
		case "WebIdentityToken":
			c.WebIdentity = value
		case "DurationSeconds":
			seconds, err := strconv.Atoi(value)
			if err != nil || seconds < 900 || seconds > 43200 {
				return invalid("durationSeconds %q is not 900 to 43200", value)
			}
			c.Duration = time.Duration(seconds) * time.Second
		default:
			if m := tagField.FindStringSubmatch(name); m != nil {
				if m[2] == "Key" {
					keys[m[1]] = value
				} else {
					values[m[1]] = value
				}
			} else if transitive.MatchString(name) {
				c.TransitiveTags = append(c.TransitiveTags, value)
			} else {
				return invalid("parameter %q is not known here", name)
			}
		}
	}
	if c.Action != "AssumeRole" && c.Action != "AssumeRoleWithWebIdentity" {
		return nil
	}
	switch {
	case !roleARN.MatchString(c.RoleARN):
		return invalid("%s is invalid", c.RoleARN)
	case !sessionName.MatchString(c.RoleSessionName):
		return invalid("roleSessionName %q does not satisfy the pattern", c.RoleSessionName)
	case c.SourceIdentity != "" && !sessionName.MatchString(c.SourceIdentity):
		return invalid("sourceIdentity %q does not satisfy the pattern", c.SourceIdentity)
	case c.ExternalID != "" && (len(c.ExternalID) > 1224 || !externalID.MatchString(c.ExternalID)):
		return invalid("externalId does not satisfy the pattern")
	case len(keys) > 50 || len(keys) != len(values):
		return invalid("%d tag keys, %d tag values", len(keys), len(values))
	case len(c.Policy) > 2048:
		return invalid("policy is longer than 2048 characters")
	case c.Policy != "" && !policyText.MatchString(c.Policy):
		return invalid("policy does not satisfy the pattern")
	}
	if c.Policy != "" {
		if _, err := parseIAMPolicy(c.Policy); err != nil {
			return &stsError{400, "MalformedPolicyDocument", err.Error()}
		}
	}
	for n, key := range keys {
		value, ok := values[n]
		switch {
		case !ok:
			return invalid("tag %q has no value", key)
		case key == "" || len([]rune(key)) > 128 || !tagText.MatchString(key) || strings.HasPrefix(strings.ToLower(key), "aws:"):
			return invalid("tag key %q does not satisfy the pattern", key)
		case len([]rune(value)) > 256 || !tagText.MatchString(value):
			return invalid("the value of tag %q does not satisfy the pattern", key)
		}
		for other := range c.Tags {
			if strings.EqualFold(other, key) {
				return &stsError{400, "InvalidParameterValue", "Duplicate tag keys found. Please note that Tag keys are case insensitive."}
			}
		}
		if c.Tags == nil {
			c.Tags = map[string]string{}
		}
		c.Tags[key] = value
	}
	slices.Sort(c.TransitiveTags)
	for _, key := range c.TransitiveTags {
		if _, ok := c.Tags[key]; !ok {
			return invalid("transitive tag %q is not among the tags", key)
		}
	}
	return nil
}

func (s *STS) assume(ctx context.Context, call *Call) (any, error) {
	role := Role{ARN: call.RoleARN}
	if s.roles != nil {
		i := slices.IndexFunc(s.roles, func(r Role) bool { return r.ARN == call.RoleARN })
		if i < 0 {
			return nil, s.refuse(call, "the caller")
		}
		role = s.roles[i]
	}
	if role.MaxDuration == 0 {
		role.MaxDuration = time.Hour
	}
	duration := call.Duration
	if duration == 0 {
		duration = min(time.Hour, role.MaxDuration)
	}
	m := roleARN.FindStringSubmatch(call.RoleARN)
	switch {
	case m[1] != Account:
		return nil, s.refuse(call, "the caller")
	case role.ExternalID != "" && role.ExternalID != call.ExternalID:
		return nil, s.refuse(call, "the caller")
	case role.NoTags && len(call.Tags) > 0:
		return nil, &stsError{403, "AccessDenied", "the caller is not authorized to perform: sts:TagSession on resource: " + call.RoleARN}
	case duration > role.MaxDuration:
		return nil, invalid("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	result := assumeRoleResult{SourceIdentity: call.SourceIdentity}
	if call.Action == "AssumeRoleWithWebIdentity" {
		if err := s.webIdentity(ctx, call, role, &result); err != nil {
			return nil, err
		}
	}

	name := m[2][strings.LastIndex(m[2], "/")+1:]
	now := time.Now()
	s.mu.Lock()
	if s.life != 0 {
		duration = s.life
	}
	s.mu.Unlock()
	session := &session{
		AccessKeyID: newSessionKeyID(),
		RoleARN:     call.RoleARN,
		ARN:         "arn:aws:sts::" + Account + ":assumed-role/" + name + "/" + call.RoleSessionName,
		Expires:     now.Add(duration).UTC().Truncate(time.Second),
		RolePolicy:  role.Policy,
		Policy:      call.Policy,
	}
	token, err := s.sessions.seal(session)
	if err != nil {
		return nil, err
	}
	call.AccessKeyID = session.AccessKeyID
	result.AssumedRoleUser = assumedRoleUser{AssumedRoleID: "AROASLUICE:" + call.RoleSessionName, ARN: session.ARN}
	result.Credentials = credentialsXML{
		AccessKeyID:     session.AccessKeyID,
		SecretAccessKey: s.sessions.secret(session.AccessKeyID),
		SessionToken:    token,
		Expiration:      session.Expires.Format(time.RFC3339),
	}
	result.PackedPolicySize = len(call.Policy) * 100 / 2048
	if call.Action == "AssumeRoleWithWebIdentity" {
		return &webIdentityResponse{Result: result, RequestID: rand.Text()}, nil
	}
	return &assumeRoleResponse{Result: result, RequestID: rand.Text()}, nil
}

func (s *STS) webIdentity(ctx context.Context, call *Call, role Role, result *assumeRoleResult) error {
	switch {
	case call.WebIdentity == "":
		return invalid("webIdentityToken is missing")
	case call.ExternalID != "" || call.SourceIdentity != "" || len(call.Tags) > 0:
		return invalid("external id, source identity and tags are not AssumeRoleWithWebIdentity's")
	}
	token, err := s.verifier.Verify(ctx, call.WebIdentity)
	expired := new(oidc.TokenExpiredError)
	switch {
	case errors.As(err, &expired):
		return &stsError{400, "ExpiredTokenException", "Token expired"}
	case err != nil:
		return &stsError{400, "InvalidIdentityToken", err.Error()}
	}
	audience := role.Audience
	if audience == "" {
		audience = s.world.Audience
	}
	if !slices.Contains(token.Audience, audience) {
		return &stsError{400, "InvalidIdentityToken", "Incorrect token audience"}
	}
	result.SubjectFromWebIdentityToken, result.Audience, result.Provider = token.Subject, audience, token.Issuer
	return nil
}
