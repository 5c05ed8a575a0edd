package identity

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// IssuerConfig is one entry of `issuers` in the configuration file: whose tokens are believed, and what for.
type IssuerConfig struct {
	// Issuer is the iss of its tokens, to the letter. Its discovery document is below it. It is https, except on
	// loopback or where JWKSFile is set.
	Issuer string `yaml:"issuer"`
	// Audiences are those a token may be for; it has to name at least one. There is no default: a token for
	// somebody else would do.
	Audiences []string `yaml:"audiences"`
	// Algorithms that its tokens may be signed with, asymmetric ones only [RS256, RS384, RS512, PS256, PS384, PS512, ES256,
	// ES384, ES512, EdDSA].
	Algorithms []string `yaml:"algorithms"`
	// JWKSFile has static keys, which are used instead of discovery and read again when the file changes [none].
	JWKSFile string `yaml:"jwks_file"`
	// CAFile has the CAs, in PEM, that the issuer's own certificate has to come from [the system's].
	CAFile string `yaml:"ca_file"`
	// Preset is the issuer's kind, which says by which claims it tells the attributes [generic].
	Preset string `yaml:"preset"`
	// Attributes are claims to use instead of the preset's, by attribute: workspace, project, repository, user, groups.
	// A claim within another is written with a dot between: creator_idp_claims.groups.
	Attributes map[string]string `yaml:"attributes"`
	// SessionClaim is what revocation and audit call the session; a token without it is refused
	// [the workspace attribute, and where there is none, sub].
	SessionClaim string `yaml:"session_claim"`
	// RequiredClaims must all be in a token, with just that value or one of that list. Of a claim that is a list
	// itself, one member has to match [none].
	RequiredClaims map[string]any `yaml:"required_claims"`
	// Leeway is by how much the clocks of the issuer and of this machine may differ, at most 5m [30s].
	Leeway *time.Duration `yaml:"leeway"`
}

const (
	defaultLeeway = 30 * time.Second
	maxLeeway     = 5 * time.Minute
)

var defaultAlgorithms = asymmetric

func (c *IssuerConfig) preset() string {
	if c.Preset == "" {
		return "generic"
	}
	return c.Preset
}

// CheckIssuers reports every problem of `issuers`, each with its path below it ("[1].audiences").
func CheckIssuers(issuers []IssuerConfig, report func(path, problem string)) {
	if len(issuers) == 0 {
		report("", "there is none, so no token can be accepted: configure the issuer of your workspaces' tokens")
	}
	seen := map[string]int{}
	for n := range issuers {
		issuers[n].Check(func(path, problem string) { report(fmt.Sprintf("[%d].%s", n, path), problem) })
		if first, ok := seen[issuers[n].Issuer]; ok && issuers[n].Issuer != "" {
			report(fmt.Sprintf("[%d].issuer", n), fmt.Sprintf("is the same as that of issuers[%d]: put all its audiences there", first))
			continue
		}
		seen[issuers[n].Issuer] = n
	}
}

// Check reports every problem of the section offline, each with its path below the section ("audiences", "required_claims.x").
func (c *IssuerConfig) Check(report func(path, problem string)) {
	c.checkURL(report)

	if len(c.Audiences) == 0 {
		report("audiences", "at least one is needed: the audience that your workspaces ask for, such as this proxy's URL")
	}
	for n, audience := range c.Audiences {
		switch {
		case audience == "":
			report(fmt.Sprintf("audiences[%d]", n), "is empty")
		case slices.Contains(c.Audiences[:n], audience):
			report(fmt.Sprintf("audiences[%d]", n), fmt.Sprintf("%q is there twice", audience))
		}
	}
	for n, algorithm := range c.Algorithms {
		path := fmt.Sprintf("algorithms[%d]", n)
		switch {
		case slices.Contains(asymmetric, jose.SignatureAlgorithm(algorithm)):
		case algorithm == "none" || strings.HasPrefix(algorithm, "HS"):
			report(path, fmt.Sprintf("%s is not safe here: whoever can read the public keys could sign; use one of %s", algorithm, joined(asymmetric)))
		default:
			report(path, fmt.Sprintf("%q is not known: use one of %s", algorithm, joined(asymmetric)))
		}
	}
	if c.JWKSFile != "" {
		if _, err := readKeyFile(c.JWKSFile); err != nil {
			report("jwks_file", err.Error())
		}
		if c.CAFile != "" {
			report("ca_file", "is of no use beside jwks_file, for then the issuer is not asked: remove one of them")
		}
	} else if _, err := loadRoots(c.CAFile); err != nil {
		report("ca_file", err.Error())
	}
	if _, ok := presets[c.preset()]; !ok {
		report("preset", fmt.Sprintf("%q is not known: use one of %s", c.Preset, joined(slices.Sorted(maps.Keys(presets)))))
	}
	for _, attribute := range slices.Sorted(maps.Keys(c.Attributes)) {
		switch {
		case !isAttribute(attribute):
			report("attributes."+attribute, fmt.Sprintf("is not an attribute: they are %s", joined(attributeNames)))
		case !isClaimPath(c.Attributes[attribute]):
			report("attributes."+attribute, "is not the name of a claim")
		}
	}
	if c.SessionClaim != "" && !isClaimPath(c.SessionClaim) {
		report("session_claim", "is not the name of a claim")
	}
	for _, claim := range slices.Sorted(maps.Keys(c.RequiredClaims)) {
		if !isClaimPath(claim) {
			report("required_claims."+claim, "is not the name of a claim")
		} else if _, err := requiredValues(c.RequiredClaims[claim]); err != nil {
			report("required_claims."+claim, err.Error())
		}
	}
	if c.Leeway != nil && (*c.Leeway < 0 || *c.Leeway > maxLeeway) {
		report("leeway", fmt.Sprintf("%v is not between 0s and %v", *c.Leeway, maxLeeway))
	}
}

func (c *IssuerConfig) checkURL(report func(path, problem string)) {
	if c.Issuer == "" {
		report("issuer", "is missing: write the iss of its tokens, such as https://token.actions.githubusercontent.com")
		return
	}
	if c.JWKSFile != "" {
		return // only a name then
	}
	u, err := url.Parse(c.Issuer)
	switch {
	case err != nil || u.Host == "":
		report("issuer", fmt.Sprintf("%q is not a URL; for an issuer that is none, name its keys with jwks_file", c.Issuer))
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		report("issuer", fmt.Sprintf("%q is not https: over plain HTTP, anybody on the way could pass off keys as the issuer's", c.Issuer))
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		report("issuer", fmt.Sprintf("%q has user information, a query or a fragment, which no issuer has", c.Issuer))
	case strings.Contains(u.Path, "/.well-known/"):
		report("issuer", fmt.Sprintf("%q is where its configuration is: write what comes before /.well-known/", c.Issuer))
	}
}

// isClaimPath refuses what lookup would never find.
func isClaimPath(path string) bool {
	return path != "" && path == strings.TrimSpace(path) && !strings.HasPrefix(path, ".") && !strings.HasSuffix(path, ".")
}

// requiredValues are the values a claim may have, as text.
func requiredValues(value any) ([]string, error) {
	list, ok := value.([]any)
	if !ok {
		if strings, ok := value.([]string); ok {
			for _, s := range strings {
				list = append(list, s)
			}
		} else {
			list = []any{value}
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("is an empty list, which no token can satisfy")
	}
	var values []string
	for _, member := range list {
		var s string
		switch v := member.(type) {
		case string:
			s = v
		case bool:
			s = strconv.FormatBool(v)
		case int:
			s = strconv.Itoa(v)
		case int64:
			s = strconv.FormatInt(v, 10)
		case uint64:
			s = strconv.FormatUint(v, 10)
		case float64:
			s = strconv.FormatFloat(v, 'f', -1, 64)
		default:
			return nil, fmt.Errorf("has to be a text, a number, true or false, or a list of these")
		}
		if s == "" {
			return nil, fmt.Errorf("is empty, which no token can satisfy")
		}
		values = append(values, s)
	}
	return values, nil
}

// RevocationConfig is `revocation`: what is remembered of sessions, subjects and tokens that were revoked.
type RevocationConfig struct {
	// Store is memory, or nats://host:4222 for a JetStream key-value bucket that replicas share; tls:// insists on TLS.
	// Several servers of a cluster have commas between them. Behind the last may be ?credentials=FILE (a NATS .creds
	// file), &ca=FILE (the CAs of its certificate) and &bucket=NAME [memory; the system's CAs; sluice_revocations].
	Store string `yaml:"store"`
	// File is what memory keeps over a restart; with nats:// it keeps what was last known there, for a start without
	// it [none: a restart forgets].
	File string `yaml:"file"`
}

// Check reports every problem of the section offline, each with its path below it.
func (c *RevocationConfig) Check(report func(path, problem string)) {
	switch scheme, rest, _ := strings.Cut(c.Store, "://"); {
	case c.Store == "" || c.Store == "memory":
	case scheme != "nats" && scheme != "tls":
		report("store", fmt.Sprintf("%q is neither memory nor nats://host:4222", c.Store))
	case rest == "":
		report("store", "names no host: write nats://host:4222, several with commas between")
	default:
		if _, _, err := new(natsStore).parse(c.Store); err != nil {
			report("store", err.Error())
		}
	}
	if c.File == "" {
		return
	}
	info, err := os.Stat(filepath.Dir(c.File))
	switch {
	case err != nil:
		report("file", fmt.Sprintf("its directory cannot be used: %v", err))
	case !info.IsDir():
		report("file", fmt.Sprintf("%s is not a directory", filepath.Dir(c.File)))
	default:
		if _, err := readRevocations(c.File); err != nil {
			report("file", err.Error())
		}
	}
}
