package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

var base64url = base64.RawURLEncoding.Strict()

// issuer is an IssuerConfig at work.
type issuer struct {
	name       string
	audiences  []string
	algorithms []jose.SignatureAlgorithm
	leeway     time.Duration
	required   []requirement
	attributes attributeClaims
	session    string // claim; "" = the workspace attribute, else sub
	keys       *keySet

	algorithmNames []string // as go-oidc wants them
}

// requirement is one entry of required_claims.
type requirement struct {
	claim  string
	values []string // any of them
}

// openIssuers checks the configuration and starts to fetch keys.
func (a *Authenticator) openIssuers(ctx context.Context, c Config) error {
	var problems []error
	CheckIssuers(c.Issuers, func(path, problem string) {
		problems = append(problems, fmt.Errorf("issuers%s: %s", path, problem))
	})
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	timing := defaultKeyTiming
	if c.timing != nil {
		timing = *c.timing
	}
	for n := range c.Issuers {
		config := &c.Issuers[n]
		is := newIssuer(config)
		var err error
		if is.keys, err = newKeySet(is.name, config, a.now, timing); err != nil {
			return fmt.Errorf("issuers[%d]: %w", n, err)
		}
		if c.Previous != nil {
			if old := c.Previous.issuers[is.name]; old != nil && old.keys.file == is.keys.file {
				is.keys.inherit(old.keys)
			}
		}
		a.issuers[is.name] = is
	}
	for _, is := range a.issuers {
		is.keys.follow(ctx)
	}
	return nil
}

// newIssuer applies the defaults of a checked configuration.
func newIssuer(c *IssuerConfig) *issuer {
	is := &issuer{
		name:       c.Issuer,
		audiences:  c.Audiences,
		leeway:     defaultLeeway,
		attributes: presets[c.preset()].with(c.Attributes),
		session:    c.SessionClaim,
	}
	if c.Leeway != nil {
		is.leeway = *c.Leeway
	}
	for _, name := range c.Algorithms {
		is.algorithms = append(is.algorithms, jose.SignatureAlgorithm(name))
	}
	if len(is.algorithms) == 0 {
		is.algorithms = defaultAlgorithms
	}
	for _, algorithm := range is.algorithms {
		is.algorithmNames = append(is.algorithmNames, string(algorithm))
	}
	for _, claim := range slices.Sorted(maps.Keys(c.RequiredClaims)) {
		values, _ := requiredValues(c.RequiredClaims[claim]) // checked
		is.required = append(is.required, requirement{claim, values})
	}
	return is
}

func (is *issuer) requires(claim string) bool {
	return slices.ContainsFunc(is.required, func(r requirement) bool { return r.claim == claim })
}

// checkRequired holds the claims against required_claims. A claim that is a list holds if one of its members does.
func (is *issuer) checkRequired(claims map[string]any) error {
	for _, r := range is.required {
		claim := lookup(claims, r.claim)
		if claim == nil {
			return badToken("the token has no claim %s, which this proxy requires", r.claim)
		}
		members, ok := claim.([]any)
		if !ok {
			members = []any{claim}
		}
		if !slices.ContainsFunc(members, func(member any) bool {
			s := text(member)
			return s != "" && slices.Contains(r.values, s)
		}) {
			return badToken("the token's claim %s is not %s", r.claim, strings.ReplaceAll(joined(r.values), ", ", " or "))
		}
	}
	return nil
}

// unknownIssuer names what is wrong without telling a stranger which issuers there are.
func (a *Authenticator) unknownIssuer(name string) error {
	for known := range a.issuers {
		if strings.TrimSuffix(known, "/") == strings.TrimSuffix(name, "/") {
			return badToken("issuer %.200q is not configured: the configured one is %q, and a trailing slash counts", name, known)
		}
	}
	return badToken("issuer %.200q is not configured at this proxy: the token is for another service, or the operator has to add its issuer", name)
}

// lookup finds a claim by its name or, where none has it, by a path of names, and numbers into lists, with dots between
// them. Of the ways to read a dot, the one that takes it for a part of the first name comes first, for there are claims
// named "kubernetes.io" and "https://acme.example/groups". nil is no such claim.
func lookup(claims any, path string) any {
	switch inner := claims.(type) {
	case map[string]any:
		if value, ok := inner[path]; ok {
			return value
		}
		for end := strings.LastIndexByte(path, '.'); end > 0; end = strings.LastIndexByte(path[:end], '.') {
			if value := lookup(inner[path[:end]], path[end+1:]); value != nil {
				return value
			}
		}
	case []any:
		first, rest, more := strings.Cut(path, ".")
		if n, err := strconv.Atoi(first); err == nil && n >= 0 && n < len(inner) {
			if !more {
				return inner[n]
			}
			return lookup(inner[n], rest)
		}
	}
	return nil
}

// text is a claim's scalar value as a string, "" for any other.
func text(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		if v {
			return "true"
		}
		return "false"
	}
	return ""
}

// texts is a claim that lists strings, or is one.
func texts(value any) []string {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	out := []string{}
	for _, member := range list {
		if s := text(member); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// Status is for /readyz, for metrics and for people.
type Status struct {
	Issuers     []IssuerStatus   `json:"issuers"`
	Revocations RevocationStatus `json:"revocations"`
}

// IssuerStatus is what is known of an issuer's keys.
type IssuerStatus struct {
	Issuer  string    `json:"issuer"`
	Ready   bool      `json:"ready"` // there are keys, so tokens can be verified
	Keys    int       `json:"keys"`
	Fetched time.Time `json:"fetched,omitzero"` // when they were last confirmed
	Error   string    `json:"error,omitempty"`  // of the last fetch
}

// Status says how the keys and the revocations are now.
func (a *Authenticator) Status() Status {
	status := Status{Revocations: a.revocations.Status()}
	for _, name := range slices.Sorted(maps.Keys(a.issuers)) {
		status.Issuers = append(status.Issuers, a.issuers[name].keys.status())
	}
	return status
}

// Ready tells whether tokens of at least one issuer can be verified, and whether it is known what is revoked. One
// issuer that is down is no reason to turn the others' users away.
func (s Status) Ready() bool {
	return s.Revocations.Ready && slices.ContainsFunc(s.Issuers, func(i IssuerStatus) bool { return i.Ready })
}

// KeyFetch is how fetching an issuer's keys went.
type KeyFetch struct {
	Issuer string
	Keys   int
	Err    error
}

// FetchKeys fetches the keys of all issuers now, and waits: for the doctor.
func (a *Authenticator) FetchKeys(ctx context.Context) []KeyFetch {
	names := slices.Sorted(maps.Keys(a.issuers))
	fetches := make([]KeyFetch, len(names))
	var wg sync.WaitGroup
	for n, name := range names {
		wg.Go(func() {
			keys := a.issuers[name].keys
			err := keys.refresh(ctx)
			fetches[n] = KeyFetch{name, len(keys.current.Load().list), err}
			if err == nil && fetches[n].Keys == 0 {
				fetches[n].Err = errors.New("it publishes no key that can verify a token")
			}
		})
	}
	wg.Wait()
	return fetches
}
