package signer

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"
)

// Config is `credentials` of a backend. Exactly one of its fields is set.
type Config struct {
	AssumeRole   *AssumeRole   `yaml:"assume_role"`
	WebIdentity  *WebIdentity  `yaml:"web_identity"`
	Static       *Static       `yaml:"static"`
	DefaultChain *DefaultChain `yaml:"default_chain"`
}

// AssumeRole has the proxy's own AWS credentials assume a role for each identity.
type AssumeRole struct {
	// RoleARN is the role where policy names none. Policy may always name it.
	RoleARN string `yaml:"role_arn"`
	// AllowedRoles are the other roles that policy may name, as ARNs in which `*` is any run of characters and `?` any
	// one, neither of them `/` or `:`. So "arn:aws:iam::123456789012:role/sluice-*" has all roles of that account whose
	// name begins so and which have no path. Default: none.
	AllowedRoles []string `yaml:"allowed_roles"`
	// ExternalID is what the roles' trust policies ask for as sts:ExternalId. Default: none.
	ExternalID string `yaml:"external_id"`
	// Duration is how long a session is good for, 15m to 12h and no longer than the role's own maximum. AWS allows no
	// more than 1h where the proxy's own credentials are a role's (role chaining). A session is asked for no longer
	// than its identity lives, and never used longer. Default: 1h.
	Duration time.Duration `yaml:"duration"`
	// SessionTags are put on the session, so that IAM policies can say aws:PrincipalTag. Values are templates
	// (text/template) over the identity: .Issuer, .Subject, .Session, .Claims and .Attributes. An identity that lacks
	// what a template asks for, or has it empty or with characters that AWS does not take in a tag, is refused.
	SessionTags map[string]string `yaml:"session_tags"`
	// SourceIdentity is a template too: who CloudTrail says is behind whatever the session does. Default: none.
	SourceIdentity string `yaml:"source_identity"`
	// STSEndpoint is where STS is. Default: AWS's in the backend's region.
	STSEndpoint string `yaml:"sts_endpoint"`
	// Base is a key pair with which to ask for roles. Default: as default_chain finds them.
	Base *Static `yaml:"base"`
}

// WebIdentity has AWS itself verify the workspace's own token: the proxy needs no credentials at all.
type WebIdentity struct {
	RoleARN      string        `yaml:"role_arn"`      // as in AssumeRole
	AllowedRoles []string      `yaml:"allowed_roles"` // as in AssumeRole
	Duration     time.Duration `yaml:"duration"`      // as in AssumeRole; default: 1h
	STSEndpoint  string        `yaml:"sts_endpoint"`  // as in AssumeRole
}

// Static is one fixed key pair, for S3 services without STS. Each value is named by an environment variable or by a
// file, never written in the configuration, and read once, by New.
type Static struct {
	AccessKeyIDEnv      string `yaml:"access_key_id_env"`
	AccessKeyIDFile     string `yaml:"access_key_id_file"`
	SecretAccessKeyEnv  string `yaml:"secret_access_key_env"`
	SecretAccessKeyFile string `yaml:"secret_access_key_file"`
	SessionTokenEnv     string `yaml:"session_token_env"`  // default: no session token
	SessionTokenFile    string `yaml:"session_token_file"` // the same
}

// DefaultChain takes credentials where every AWS SDK looks for them: environment, shared files, web identity, container
// and instance roles.
type DefaultChain struct{}

const (
	defaultDuration = time.Hour
	minDuration     = 15 * time.Minute // STS takes no less
	maxDuration     = 12 * time.Hour
)

// Check reports every problem of the section, each with its path below it. It looks at nothing but the section: New
// reads the variables and files that it names.
func (c *Config) Check(report func(path, problem string)) {
	var set []string
	if c.AssumeRole != nil {
		set = append(set, "assume_role")
		c.AssumeRole.check(under("assume_role", report))
	}
	if c.WebIdentity != nil {
		set = append(set, "web_identity")
		c.WebIdentity.check(under("web_identity", report))
	}
	if c.Static != nil {
		set = append(set, "static")
		c.Static.check(under("static", report))
	}
	if c.DefaultChain != nil {
		set = append(set, "default_chain")
	}
	switch len(set) {
	case 0:
		report("", "no credentials: set one of assume_role, web_identity, static or default_chain (default_chain: {})")
	case 1:
	default:
		report("", strings.Join(set, " and ")+" are set: keep one of them")
	}
}

func under(section string, report func(path, problem string)) func(path, problem string) {
	return func(path, problem string) { report(section+"."+path, problem) }
}

func (c *AssumeRole) check(report func(path, problem string)) {
	checkRoles(c.RoleARN, c.AllowedRoles, report)
	checkDuration(c.Duration, report)
	checkEndpoint(c.STSEndpoint, report)
	if c.ExternalID != "" && (len(c.ExternalID) > maxExternalID || !externalID.MatchString(c.ExternalID)) {
		report("external_id", "must be 2 to 1224 letters, digits or any of +=,.@:/-_")
	}
	if c.Base != nil {
		c.Base.check(under("base", report))
	}

	if len(c.SessionTags) > maxTags {
		report("session_tags", fmt.Sprintf("%d tags: AWS takes at most %d", len(c.SessionTags), maxTags))
	}
	seen := map[string]string{}
	for _, key := range sortedKeys(c.SessionTags) {
		at := "session_tags." + key
		if err := checkTagKey(key); err != nil {
			report(at, err.Error())
		}
		if other := seen[strings.ToLower(key)]; other != "" {
			report(at, fmt.Sprintf("AWS takes it for the same tag as %q: keep one of them", other))
		}
		seen[strings.ToLower(key)] = key
		checkTemplate(c.SessionTags[key], checkTagValue, func(problem string) { report(at, problem) })
	}
	if c.SourceIdentity != "" {
		checkTemplate(c.SourceIdentity, checkName, func(problem string) { report("source_identity", problem) })
	}
}

func (c *WebIdentity) check(report func(path, problem string)) {
	checkRoles(c.RoleARN, c.AllowedRoles, report)
	checkDuration(c.Duration, report)
	checkEndpoint(c.STSEndpoint, report)
}

func (c *Static) check(report func(path, problem string)) {
	for _, v := range c.values() {
		switch {
		case v.env != "" && v.file != "":
			report(v.name+"_env", v.name+"_file is set too: keep one of them")
		case v.env == "" && v.file == "" && !v.optional:
			report(v.name+"_env", "missing: name the environment variable that holds it, or a file with "+v.name+"_file")
		}
	}
}

// staticValue is one of Static's values and where it comes from.
type staticValue struct {
	name, env, file string
	optional        bool
}

func (c *Static) values() [3]staticValue {
	return [3]staticValue{
		{"access_key_id", c.AccessKeyIDEnv, c.AccessKeyIDFile, false},
		{"secret_access_key", c.SecretAccessKeyEnv, c.SecretAccessKeyFile, false},
		{"session_token", c.SessionTokenEnv, c.SessionTokenFile, true},
	}
}

// FieldError is what is wrong with one key of a Config, as New finds it.
type FieldError struct {
	Path string // below credentials
	Text string
}

func (e *FieldError) Error() string { return e.Path + ": " + e.Text }

// read takes the values from where they are named; path is where c is in the Config. Its error joins a *FieldError for
// everything that is wrong, and has no value.
func (c *Static) read(path string) (*credentials, error) {
	var got [3]string
	var problems []error
	report := func(name, text string) { problems = append(problems, &FieldError{path + "." + name, text}) }
	for i, v := range c.values() {
		switch {
		case v.env != "":
			if got[i] = strings.TrimSpace(os.Getenv(v.env)); got[i] == "" {
				report(v.name+"_env", "environment variable "+v.env+" is not set")
			}
		case v.file != "":
			b, err := os.ReadFile(v.file)
			if err != nil {
				report(v.name+"_file", err.Error())
			} else if got[i] = strings.TrimSpace(string(b)); got[i] == "" {
				report(v.name+"_file", v.file+" is empty")
			}
		}
		if !headerSafe(got[i]) {
			report(v.name, "has a space or a character that no credential has")
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return &credentials{accessKeyID: got[0], secret: got[1], token: got[2]}, nil
}

var (
	// A role of AWS, or of services that speak STS and leave region or account empty ("arn:minio:iam:::role/x").
	roleARN     = regexp.MustCompile(`^arn:[a-z0-9-]+:iam:[a-z0-9-]*:[A-Za-z0-9_$-]*:role/[A-Za-z0-9_+=,.@/-]+$`)
	rolePattern = regexp.MustCompile(`^arn:[a-z0-9*?-]+:iam:[a-z0-9*?-]*:[A-Za-z0-9_$*?-]*:role/[A-Za-z0-9_+=,.@/*?-]+$`)
	externalID  = regexp.MustCompile(`^[A-Za-z0-9_+=,.@:/-]{2,}$`)
)

const (
	maxRoleARN    = 2048
	maxExternalID = 1224
)

func isRole(arn string) bool { return len(arn) <= maxRoleARN && roleARN.MatchString(arn) }

func checkRoles(role string, allowed []string, report func(path, problem string)) {
	switch {
	case role == "":
		report("role_arn", "missing: the role to act as where policy names none")
	case !isRole(role):
		report("role_arn", fmt.Sprintf("%q is not a role: it should look like arn:aws:iam::123456789012:role/sluice", role))
	}
	for i, pattern := range allowed {
		if !rolePattern.MatchString(pattern) {
			report(fmt.Sprintf("allowed_roles[%d]", i),
				fmt.Sprintf("%q is not a role or a pattern of roles: it should look like arn:aws:iam::123456789012:role/sluice-*", pattern))
		}
	}
}

// roleAllowed tells whether policy may name role. Neither roles nor patterns have a colon but the five of an ARN, and
// path.Match's * stops at a slash, so a pattern matches part by part.
func roleAllowed(role, def string, allowed []string) bool {
	if role == def {
		return true
	}
	return isRole(role) && slices.ContainsFunc(allowed, func(pattern string) bool {
		ok, err := path.Match(pattern, role)
		return ok && err == nil
	})
}

func checkDuration(d time.Duration, report func(path, problem string)) {
	if d == 0 {
		return // the default
	}
	if d < minDuration || d > maxDuration || d%time.Second != 0 {
		report("duration", fmt.Sprintf("%s: must be whole seconds from 15m to 12h, and at most the role's own maximum session duration", d))
	}
}

func checkEndpoint(endpoint string, report func(path, problem string)) {
	if endpoint == "" {
		return
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Opaque != "":
		report("sts_endpoint", "must be a URL such as https://sts.eu-west-1.amazonaws.com")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		report("sts_endpoint", "must have no user, query or fragment")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		report("sts_endpoint", "must be https: secret keys come back from it (http is for loopback only)")
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkTemplate parses the template and tries it on an empty identity, which shows a field that no identity has. One
// without actions is also held to the rules for what comes out.
func checkTemplate(text string, checkValue func(string) error, report func(problem string)) {
	t, err := parseTemplate(text)
	if err != nil {
		report(err.Error())
		return
	}
	if !strings.Contains(text, "{{") {
		if err := checkValue(text); err != nil {
			report(err.Error())
		}
		return
	}
	var out strings.Builder
	empty := facts{Claims: map[string]any{}, Attributes: map[string]any{}}
	err = template.Must(t.Clone()).Option("missingkey=zero").Execute(&out, empty)
	if err != nil && strings.Contains(err.Error(), "in type "+factsType) {
		report("unknown field: a template has .Issuer, .Subject, .Session, .Claims and .Attributes")
	}
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
