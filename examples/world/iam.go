package world

import (
	"crypto/hmac"
	"crypto/sha256"
	"net/http"
	"time"

	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/s3err"
)

// DeriveSigningKey finds the key that a request must be signed with. This is where session tokens are checked.
func (s *iamService) DeriveSigningKey(access, token, date, region, service string) ([]byte, auth.Account, error) {
	var secret string
	account := auth.Account{Access: access, Role: auth.RoleUser}
	switch {
	case access == s.base.AccessKeyID:
		if token != "" {
			return nil, account, auth.ErrInvalidSessionToken
		}
		secret = s.base.SecretAccessKey
		account.Arn = "arn:aws:iam::" + Account + ":user/sluice"
	case len(access) > 4 && access[:4] == "ASIA":
		session, err := s.sessions.open(token)
		if err != nil || session.AccessKeyID != access {
			return nil, account, auth.ErrInvalidSessionToken
		}
		if !time.Now().Before(session.Expires) {
			return nil, account, s3err.APIError{Code: "ExpiredToken", Description: "The provided token has expired.", HTTPStatusCode: http.StatusBadRequest}
		}
		secret = s.sessions.secret(access)
		account.SessionToken, account.IsSession = token, true
		account.Arn, account.RoleArn = session.ARN, session.RoleARN
	default:
		return nil, account, auth.ErrNoSuchUser
	}
	key := []byte("AWS4" + secret)
	for _, step := range []string{date, region, service, "aws4_request"} {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(step))
		key = h.Sum(nil)
	}
	return key, account, nil
}

// EvaluatePolicy says what the role's policy and the session's policy say: what AWS itself would enforce.
func (s *iamService) EvaluatePolicy(access, token string, actions []auth.Action, resources []string, conditions map[string][]string) (auth.PolicyEvaluation, error) {
	var e auth.PolicyEvaluation
	verdicts := func(v func(action auth.Action, resource string) verdict) [][]verdict {
		rows := make([][]verdict, len(resources))
		for i, resource := range resources {
			for _, action := range actions {
				rows[i] = append(rows[i], v(action, resource))
			}
		}
		return rows
	}
	if access == s.base.AccessKeyID {
		setVerdicts(&e.Decisions, verdicts(func(auth.Action, string) verdict { return silent }))
		return e, nil
	}
	session, err := s.sessions.open(token)
	if err != nil {
		return e, err
	}
	e.PrincipalArn = session.ARN
	decide := func(document string) ([][]verdict, error) {
		if document == "" {
			return verdicts(func(auth.Action, string) verdict { return allowed }), nil
		}
		policy, err := parseIAMPolicy(document)
		if err != nil {
			return nil, err
		}
		return verdicts(func(action auth.Action, resource string) verdict {
			return policy.decide(string(action), resource, conditions)
		}), nil
	}
	byRole, err := decide(session.RolePolicy)
	if err != nil {
		return e, err
	}
	setVerdicts(&e.Decisions, byRole)
	if session.Policy != "" {
		bySession, err := decide(session.Policy)
		if err != nil {
			return e, err
		}
		e.HasSessionPolicy = true
		setVerdicts(&e.SessionDecisions, bySession)
	}
	return e, nil
}

// setVerdicts writes verdicts as versitygw's own, whose type cannot be named from outside of its module.
func setVerdicts[D ~int](to *[][]D, verdicts [][]verdict) {
	*to = make([][]D, len(verdicts))
	for i, row := range verdicts {
		for _, v := range row {
			(*to)[i] = append((*to)[i], D(v))
		}
	}
}

// BucketOwner is the account, as on AWS, whichever session made the bucket.
func (s *iamService) BucketOwner() auth.Account {
	return auth.Account{Access: s.root.AccessKeyID, Role: auth.RoleAdmin, Arn: "arn:aws:iam::" + Account + ":root"}
}

// GetUserAccount tells whether a key exists, for grants.
func (s *iamService) GetUserAccount(access string) (auth.Account, error) {
	switch access {
	case s.root.AccessKeyID:
		return s.BucketOwner(), nil
	case s.base.AccessKeyID:
		return auth.Account{Access: access, Role: auth.RoleUser}, nil
	}
	return auth.Account{}, auth.ErrNoSuchUser
}

// ResolveAccounts are those of the keys that do not exist.
func (s *iamService) ResolveAccounts(keys []string) (missing []string, err error) {
	for _, key := range keys {
		if _, err := s.GetUserAccount(key); err != nil {
			missing = append(missing, key)
		}
	}
	return missing, nil
}

// ResolvePrincipals takes every principal of a bucket policy for known.
func (s *iamService) ResolvePrincipals([]string) (unknown []string, err error) { return nil, nil }
