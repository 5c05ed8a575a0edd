package signer

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// Test obtains credentials as Sign would, but now and not from what is kept, and asks STS whose they are. Its *Error says
// which of network, the proxy's own credentials, trust relationship, external ID, duration, tags and session policy was
// wrong, and in Hint how to mend it.
//
// as.Principal may be nil for assume_role and default_chain: a made-up identity then stands in, whose every tag is
// "sluice-check". Fixed credentials are not tried, since it takes a request to the backend to do so.
func (s *Signer) Test(ctx context.Context, as As) error {
	if e := s.test(ctx, as); e != nil {
		return e
	}
	return nil
}

const standIn = "sluice-check"

func (s *Signer) test(ctx context.Context, as As) *Error {
	role, e := s.role(as)
	if e != nil || s.fixed != nil {
		return e
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	now := s.now()
	if s.roles == nil {
		_, e := s.cache.obtain(ctx, &order{}, now)
		return e
	}

	var o order
	if as.Principal != nil {
		if !now.Before(as.Principal.Expires) {
			return errIdentityExpired
		}
		if o, e = s.order(as.Principal, role, as.SessionPolicy); e != nil {
			return e
		}
		o.expires = as.Principal.Expires
	} else {
		if s.sts.web {
			return &Error{Kind: NoToken, Message: "web_identity can only be tried with a workspace's token",
				Hint: "run the check with --token-file"}
		}
		made := &persona{name: standIn}
		for _, t := range s.roles.who.tags {
			made.tags = append(made.tags, tag{t.key, standIn})
		}
		if s.roles.who.source != nil {
			made.source = standIn
		}
		o = order{key: key{role: role, policy: as.SessionPolicy}, persona: made, duration: s.roles.duration, expires: now.Add(s.roles.duration)}
	}

	creds, e := s.cache.obtain(ctx, &o, now)
	if e != nil {
		return s.diagnose(ctx, &o, e)
	}
	return s.sts.whose(ctx, creds)
}

// diagnose finds out more of a refusal. AWS says which permission was missing, others may not: then asking for less
// tells. It also finds who the proxy is to AWS, which is what a trust policy has to name.
func (s *Signer) diagnose(ctx context.Context, o *order, e *Error) *Error {
	if e.Kind != Denied || s.sts.web || !strings.HasPrefix(e.Err.Error(), "AccessDenied") {
		return e
	}
	found := *e
	less := func(change func(p *persona)) bool {
		try, p := *o, *o.persona
		p.tags = slices.Clone(p.tags)
		change(&p)
		try.persona = &p
		_, e := s.cache.obtain(ctx, &try, s.now())
		return e == nil
	}
	told := e.Err.Error()
	if !strings.Contains(told, "sts:") || strings.Contains(told, "sts:AssumeRole") {
		role := "role " + o.role
		switch {
		case len(o.persona.tags) > 0 && less(func(p *persona) { p.tags = nil }):
			found = *s.sts.denied(&Error{Err: e.Err}, role, "sts:TagSession")
		case o.persona.source != "" && less(func(p *persona) { p.source = "" }):
			found = *s.sts.denied(&Error{Err: e.Err}, role, "sts:SetSourceIdentity")
		}
	}
	if api, e := s.sts.service(ctx); e == nil {
		if out, err := api.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}); err == nil && aws.ToString(out.Arn) != "" {
			found.Hint += "; the proxy is " + printable(*out.Arn, 256)
		}
	}
	return &found
}

// whose asks STS who creds are, signed with them: that they work. An STS that only gives out sessions is believed.
func (s *stsSource) whose(ctx context.Context, creds *credentials) *Error {
	api, e := s.service(ctx)
	if e != nil {
		return e
	}
	_, err := api.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}, func(o *sts.Options) { o.Credentials = creds })
	if err == nil {
		return nil
	}
	status, code, _ := apiError(err)
	switch code {
	case "InvalidAction", "UnknownOperationException", "NotImplemented", "UnsupportedOperation", "MethodNotAllowed", "InvalidParameterValue":
		return nil
	}
	if status == http.StatusNotImplemented || status == http.StatusNotFound || status == http.StatusMethodNotAllowed {
		return nil
	}
	return &Error{Kind: Unavailable, Err: told(err, creds.secret, creds.token),
		Message: "a session was given, but STS does not accept it",
		Hint:    "compare this machine's clock with STS's, and check region and sts_endpoint: " + told(err, creds.secret, creds.token).Error()}
}
