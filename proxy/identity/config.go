package identity

import "time"

// IssuerConfig is one entry of `issuers` in the configuration file.
type IssuerConfig struct {
	Issuer         string            `yaml:"issuer"`
	Audiences      []string          `yaml:"audiences"`
	Algorithms     []string          `yaml:"algorithms"`
	JWKSFile       string            `yaml:"jwks_file"`
	CAFile         string            `yaml:"ca_file"`
	Preset         string            `yaml:"preset"`
	Attributes     map[string]string `yaml:"attributes"`
	SessionClaim   string            `yaml:"session_claim"`
	RequiredClaims map[string]any    `yaml:"required_claims"`
	Leeway         *time.Duration    `yaml:"leeway"`
}

// RevocationConfig is `revocation`.
type RevocationConfig struct {
	Store string `yaml:"store"`
	File  string `yaml:"file"`
}

// Check reports every problem of the section offline, each with its path below the section ("audiences", "required_claims.x").
func (c *IssuerConfig) Check(report func(path, problem string))     {}
func (c *RevocationConfig) Check(report func(path, problem string)) {}
