// Package signer signs requests to one backend as a role: it obtains the role's credentials, keeps them fresh,
// and signs last of all.
package signer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

// As is as whom a request is signed.
type As struct {
	Principal     *Principal
	Role          string // policy's choice; "" = the configured default
	SessionPolicy string // IAM policy document; "" = none
}

// Options is what a Signer needs besides its configuration.
type Options struct {
	// Region is the backend's, and STS's. Default: us-east-1, which is what S3 services without regions expect.
	Region string
	// CAFile has the certificates that STS may show, beside the system's and those of AWS_CA_BUNDLE.
	CAFile string
	// MaxSessions bounds how many sessions are kept, 2 to 4 KiB each. Where more are in use, the one that was not used
	// for longest is let go. Default: 16384.
	MaxSessions int
	// OnRefresh hears of each call for credentials when it ends. role is "" for credentials that are no role's. err
	// is nil or an *Error. Default: none.
	OnRefresh func(role string, err error, took time.Duration)
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Signer signs for one backend. It is safe for concurrent use.
type Signer struct {
	id     uint64 // under which principals keep what this Signer derived from them
	region string
	now    func() time.Time
	fixed  *credentials // of static
	roles  *roles       // nil where the backend knows no roles
	cache  *cache       // nil with fixed
	sts    *stsSource   // nil unless roles
}

// String keeps credentials out of logs.
func (s *Signer) String() string { return "signer in " + s.region }

// GoString is String, for %#v.
func (s *Signer) GoString() string { return s.String() }

// roles is what policy may choose from, and how STS is told for whom.
type roles struct {
	def      string
	allowed  []string
	duration time.Duration
	who      *who
}

var signers atomic.Uint64

// New makes a Signer. It reads the files and variables that c names, and calls nobody: credentials are obtained when
// they are first needed. ctx ends its background refreshes; a Signer whose ctx has ended still signs what is in flight.
func New(ctx context.Context, c Config, o Options) (*Signer, error) {
	var problems []error
	c.Check(func(path, problem string) {
		problems = append(problems, errors.New(strings.TrimPrefix(path+": "+problem, ": ")))
	})
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	s := &Signer{id: signers.Add(1), region: o.Region, now: o.Now}
	if s.region == "" {
		s.region = "us-east-1"
	}
	if err := CheckRegion(s.region); err != nil {
		return nil, err
	}
	if s.now == nil {
		s.now = time.Now
	}
	if o.MaxSessions <= 0 {
		o.MaxSessions = 16384
	}

	var obtain obtainFunc
	switch {
	case c.Static != nil:
		fixed, err := c.Static.read("static")
		if err != nil {
			return nil, err
		}
		s.fixed = fixed
		return s, nil

	case c.DefaultChain != nil:
		chain := &chain{region: s.region}
		obtain = chain.obtain

	case c.AssumeRole != nil:
		a := *c.AssumeRole
		who, err := newWho(&a)
		if err != nil {
			return nil, err
		}
		s.roles = newRoles(a.RoleARN, a.AllowedRoles, a.Duration, who)
		s.sts = &stsSource{region: s.region, endpoint: a.STSEndpoint, externalID: a.ExternalID, chain: chain{region: s.region}}
		if a.Base != nil {
			if s.sts.base, err = a.Base.read("assume_role.base"); err != nil {
				return nil, err
			}
		}
		if s.sts.client, err = newHTTPClient(o.CAFile); err != nil {
			return nil, err
		}
		obtain = s.sts.assumeRole

	case c.WebIdentity != nil:
		w := *c.WebIdentity
		s.roles = newRoles(w.RoleARN, w.AllowedRoles, w.Duration, &who{token: true})
		s.sts = &stsSource{region: s.region, endpoint: w.STSEndpoint, web: true, chain: chain{region: s.region}}
		var err error
		if s.sts.client, err = newHTTPClient(o.CAFile); err != nil {
			return nil, err
		}
		obtain = s.sts.webIdentity
	}
	s.cache = newCache(ctx, o, s.now, obtain)
	return s, nil
}

// CheckRegion tells what is wrong with the name of a region. S3 services have others than AWS, so it is no list.
func CheckRegion(region string) error {
	if !regionName.MatchString(region) {
		return fmt.Errorf("%q is not the name of a region, such as eu-west-1", region)
	}
	return nil
}

var regionName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func newRoles(def string, allowed []string, d time.Duration, w *who) *roles {
	if d == 0 {
		d = defaultDuration
	}
	return &roles{def: def, allowed: allowed, duration: d, who: w}
}

// Role tells which role As would act as, or why it may not, without asking STS. "" where the backend knows no roles.
// Errors are *Error.
func (s *Signer) Role(as As) (string, error) {
	role, err := s.role(as)
	if err != nil {
		return "", err
	}
	return role, nil
}

func (s *Signer) role(as As) (string, *Error) {
	if s.roles == nil {
		// To leave a narrowing out would give more than policy meant to.
		switch {
		case as.Role != "":
			return "", &Error{Kind: RoleNotAllowed,
				Message: "policy asks for role " + as.Role + ", but this backend has fixed credentials and no roles",
				Hint:    "leave role undefined for this backend, or give it assume_role or web_identity"}
		case as.SessionPolicy != "":
			return "", &Error{Kind: RoleNotAllowed,
				Message: "policy narrows the session with session_policy, which this backend's fixed credentials cannot do",
				Hint:    "leave session_policy undefined for this backend, or give it assume_role or web_identity"}
		}
		return "", nil
	}
	if as.Role == "" || as.Role == s.roles.def {
		return s.roles.def, nil
	}
	if !roleAllowed(as.Role, s.roles.def, s.roles.allowed) {
		return "", &Error{Kind: RoleNotAllowed,
			Message: "policy asks for role " + as.Role + ", which this backend does not allow",
			Hint:    "add it to allowed_roles, or have policy name one that is there"}
	}
	return as.Role, nil
}

// Roles are the roles that configuration names in full: the default and those of allowed_roles that are no patterns.
func (s *Signer) Roles() []string {
	if s.roles == nil {
		return nil
	}
	all := []string{s.roles.def}
	for _, r := range s.roles.allowed {
		if r != s.roles.def && !strings.ContainsAny(r, "*?") {
			all = append(all, r)
		}
	}
	return all
}

// Sign signs req, whose URL, Host, ContentLength and headers are final: nothing that is sent may be changed after it.
// payloadHash is the value of x-amz-content-sha256, which Sign sets, as it does x-amz-date, x-amz-security-token and
// Authorization, whatever they were. It spells the URL the way S3 signs it, so req.URL MUST NOT be shared between
// requests. It waits for STS where no credentials are at hand, and no longer than ctx. Errors are *Error.
func (s *Signer) Sign(ctx context.Context, req *http.Request, payloadHash string, as As) error {
	c, now, err := s.credentials(ctx, as)
	if err != nil {
		return err
	}
	if err := sign(req, payloadHash, c, s.region, now); err != nil {
		return &Error{Kind: Denied, Err: err, Message: "the request cannot be signed: " + err.Error(), Hint: "this is a defect of Sluice: please report it"}
	}
	return nil
}

// credentials are those to sign with, and the time it was then.
func (s *Signer) credentials(ctx context.Context, as As) (*credentials, time.Time, *Error) {
	now := s.now()
	role, err := s.role(as)
	if err != nil {
		return nil, now, err
	}
	p := as.Principal
	if p == nil {
		return nil, now, &Error{Kind: Denied, Message: "there is no identity to sign for", Hint: "this is a defect of Sluice: please report it"}
	}
	if !now.Before(p.Expires) {
		return nil, now, errIdentityExpired
	}
	if s.fixed != nil {
		return s.fixed, now, nil
	}

	var o order
	if s.roles != nil {
		if o, err = s.order(p, role, as.SessionPolicy); err != nil {
			return nil, now, err
		}
	}
	o.expires = p.Expires
	c, err := s.cache.get(ctx, &o)
	if err != nil {
		return nil, now, err
	}
	if now = s.now(); !now.Before(p.Expires) { // it may have been a long wait
		return nil, now, errIdentityExpired
	}
	return c, now, nil
}

// order is what to ask for on a principal's behalf.
func (s *Signer) order(p *Principal, role, policy string) (order, *Error) {
	persona := p.persona(s.id, s.roles.who.persona)
	if persona.err != nil {
		return order{}, persona.err
	}
	o := order{key: key{persona.key, role, policy}, persona: persona, duration: s.roles.duration}
	if s.roles.who.token {
		o.token = p.Token
	}
	return o, nil
}

// Stats is what a Signer holds now and has done since New.
type Stats struct {
	Sessions  int    // kept
	Refreshes uint64 // calls for credentials that brought some
	Failures  uint64 // calls that did not
}

// Stats may be called at any time.
func (s *Signer) Stats() Stats {
	if s.cache == nil {
		return Stats{}
	}
	return s.cache.stats()
}

// Kind says what a caller does about an error.
type Kind uint8

const (
	RoleNotAllowed Kind = iota + 1 // policy named a role outside allowed_roles, or asked a backend without roles for one or for a narrowing
	Denied                         // STS refused (trust policy, duration, tags), or the identity has not what a tag needs
	Unavailable                    // STS or the credential source not reachable, throttling, or not accepting the proxy itself
	NoToken                        // web_identity, and the caller's session carries no token
	Expired                        // the identity has expired: the client needs a new token
)

// Error is why a request could not be signed. Neither it nor what it wraps holds a secret.
type Error struct {
	Kind    Kind
	Message string // for the developer whose request it was
	Hint    string // for the operator: what to mend; "" where there is nothing
	Err     error  // what happened, for logs
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }

var errIdentityExpired = &Error{Kind: Expired, Message: "the token has expired: get a new one and try again"}
