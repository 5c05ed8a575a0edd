package identity

import "time"

// SessionsConfig is `sessions`.
type SessionsConfig struct {
	KeyFile     string        `yaml:"key_file"`
	MaxDuration time.Duration `yaml:"max_duration"`
}

// Check reports every problem of the section, each with its path below it.
func (c *SessionsConfig) Check(report func(path, problem string)) {}
