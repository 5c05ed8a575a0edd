package policy

import (
	"errors"
	"fmt"
	"strings"
)

func (c *Config) entrypoint() string {
	if c.Entrypoint == "" {
		return "s3/authz"
	}
	return c.Entrypoint
}

// Check reports every problem of the section, each with its path below it.
func (c *Config) Check(report func(path, problem string)) {
	c.check("", report)
}

func (c *Config) check(at string, report func(path, problem string)) {
	sources := 0
	for _, given := range []bool{c.Dir != "", c.Git != nil, c.OPA != nil} {
		if given {
			sources++
		}
	}
	switch {
	case sources == 0:
		report(strings.TrimSuffix(at, "."), "no source: give one of `dir`, `git` and `opa`")
	case sources > 1:
		report(strings.TrimSuffix(at, "."), "more than one source: give one of `dir`, `git` and `opa`")
	}
	if _, err := entrypointRef(c.entrypoint()); err != nil {
		report(at+"entrypoint", err.Error())
	}
	if c.Git != nil {
		c.Git.check(at+"git.", report)
	}
	if c.OPA != nil {
		checkOPA(c.OPA, at+"opa.", report)
	}
	if c.Shadow != nil {
		if c.Shadow.Shadow != nil {
			report(at+"shadow.shadow", "a shadow has no shadow: remove it")
		} else {
			c.Shadow.check(at+"shadow.", report)
			if dir := keeps(c.OPA); c.Shadow.OPA != nil && dir != "" && dir == keeps(c.Shadow.OPA) {
				// At the next start one would be taken for the other.
				report(at+"shadow.opa.persistence_directory", "the policy's own ("+dir+"): give the shadow another")
			}
		}
	}
}

// problems is all that Check reports, as an error.
func (c *Config) problems() error {
	var errs []error
	c.Check(func(path, problem string) {
		if path == "" {
			errs = append(errs, errors.New("policy: "+problem))
		} else {
			errs = append(errs, fmt.Errorf("policy.%s: %s", path, problem))
		}
	})
	return errors.Join(errs...)
}
