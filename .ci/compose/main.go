// Command compose loads a compose file with Compose's own code, and holds it to the configuration that it mounts: every path
// that the proxy is told of is there in its container, every host it calls is a service, and nothing is open that
// should not be. It is a module of its own, so that the proxy's does not have Compose in it.
//
//	go run . ../../examples/compose   # after its setup.sh
package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"
	"go.yaml.in/yaml/v4"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: compose DIR")
		os.Exit(2)
	}
	if err := check(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type problems []error

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

func check(dir string) error {
	options, err := cli.NewProjectOptions([]string{filepath.Join(dir, "compose.yaml")}, cli.WithName("example"), cli.WithResolvedPaths(true), cli.WithConsistency(true))
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	var p problems
	for name, s := range project.Services {
		p.service(name, s, project)
	}
	sluice, ok := project.Services["sluice"]
	if !ok {
		return errors.New("there is no service sluice")
	}
	p.hardened(sluice)
	if err := p.configuration(filepath.Join(dir, "sluice.yaml"), sluice, project); err != nil {
		return err
	}
	if len(p) == 0 {
		fmt.Printf("%s: %d services, %d secrets, %d volumes agree with the configuration\n", dir, len(project.Services), len(project.Secrets), len(project.Volumes))
	}
	return errors.Join(p...)
}

// service checks what holds for all of them.
func (p *problems) service(name string, s types.ServiceConfig, project *types.Project) {
	if named, err := reference.ParseNormalizedNamed(s.Image); err != nil {
		p.add("%s: image %q: %v", name, s.Image, err)
	} else if tagged, ok := named.(reference.Tagged); !ok || tagged.Tag() == "latest" {
		p.add("%s: image %q is of no exact version", name, s.Image)
	}
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind {
			if _, err := os.Stat(v.Source); err != nil {
				p.add("%s: %s: %v", name, v.Target, err)
			}
			if !v.ReadOnly {
				p.add("%s: %s is mounted to be written", name, v.Source)
			}
		}
	}
	for _, secret := range s.Secrets {
		if _, err := os.Stat(project.Secrets[secret.Source].File); err != nil {
			p.add("%s: secret %s: %v", name, secret.Source, err)
		}
	}
	for _, port := range s.Ports {
		if name != "sluice" {
			p.add("%s: port %s is published: a way around Sluice", name, port.Published)
		} else if port.HostIP != "127.0.0.1" {
			p.add("%s: port %s is published to everybody", name, port.Published)
		}
	}
	for other, on := range s.DependsOn {
		of, ok := project.Services[other]
		switch {
		case !ok:
			p.add("%s: depends on %s, which is not there", name, other)
		case on.Condition == types.ServiceConditionHealthy && of.HealthCheck == nil:
			p.add("%s: waits for %s to be healthy, which has no health check", name, other)
		case on.Condition == types.ServiceConditionCompletedSuccessfully && of.Restart != "" && of.Restart != "no" && of.Restart != "on-failure":
			p.add("%s: waits for %s to end, which is always restarted", name, other)
		}
	}
	// What a shell reads as a file of a secret must be given to it.
	for _, m := range regexp.MustCompile(`/run/secrets/(\w+)`).FindAllStringSubmatch(strings.Join(append(s.Command, values(s.Environment)...), "\n"), -1) {
		if !slices.ContainsFunc(s.Secrets, func(c types.ServiceSecretConfig) bool { return target(c) == "/run/secrets/"+m[1] }) {
			p.add("%s: reads secret %s, and is not given it", name, m[1])
		}
	}
}

func values(env types.MappingWithEquals) (all []string) {
	for _, v := range env {
		if v != nil {
			all = append(all, *v)
		}
	}
	return all
}

func target(s types.ServiceSecretConfig) string {
	switch {
	case s.Target == "":
		return "/run/secrets/" + s.Source
	case !path.IsAbs(s.Target):
		return "/run/secrets/" + s.Target
	}
	return s.Target
}

func (p *problems) hardened(s types.ServiceConfig) {
	if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || len(s.CapAdd) > 0 || s.Privileged || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
		p.add("sluice: not hardened: read_only, cap_drop: [ALL] and no-new-privileges are what docs/operating.md promises")
	}
	if s.HealthCheck == nil || s.Build == nil || s.Build.Dockerfile != "Dockerfile" {
		p.add("sluice: a health check and the repository's own Dockerfile are needed")
		return
	}
	if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
		p.add("sluice: %v", err)
	}
	if s.StopGracePeriod == nil || time.Duration(*s.StopGracePeriod) <= 30*time.Second+10*time.Second-time.Second {
		p.add("sluice: stop_grace_period must be more than shutdown_timeout (30s) and the time that the last events have")
	}
}

// configuration holds what the proxy is told to what its container has.
func (p *problems) configuration(file string, s types.ServiceConfig, project *types.Project) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return err
	}
	given := map[string]bool{} // by place: may it be written
	for _, v := range s.Volumes {
		given[v.Target] = !v.ReadOnly
	}
	for _, secret := range s.Secrets {
		given[target(secret)] = false
	}
	if !slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool {
		same, err := filepath.EvalSymlinks(v.Source)
		mine, _ := filepath.Abs(file)
		return err == nil && same == mine && v.Target == "/etc/sluice/sluice.yaml" // where the image's command looks
	}) {
		p.add("sluice: the configuration is not mounted where the image looks for it")
	}
	walk("", tree, func(at, value string) {
		switch u, err := url.Parse(value); {
		case strings.HasPrefix(value, "/"):
			written := strings.HasPrefix(at, "audit.file") || strings.HasPrefix(at, "revocation.file")
			for place, writable := range given {
				if value == place || strings.HasPrefix(value, place+"/") {
					if written && !writable {
						p.add("%s: %s is mounted read-only", at, value)
					}
					return
				}
			}
			p.add("%s: the container has no %s", at, value)
		case strings.HasSuffix(at, "_env"):
			if _, ok := s.Environment[value]; !ok {
				p.add("%s: the service sets no %s", at, value)
			}
		case strings.HasSuffix(at, ".endpoint") && err == nil && u.Host != "":
			if _, ok := project.Services[u.Hostname()]; !ok {
				p.add("%s: there is no service %s", at, u.Hostname())
			}
			if len(s.Networks) == 0 {
				p.add("sluice: on no network")
			}
		case at == "listen.address":
			if !slices.ContainsFunc(s.Ports, func(c types.ServicePortConfig) bool { return fmt.Sprintf(":%d", c.Target) == value }) {
				p.add("%s: %s is not published", at, value)
			}
		}
	})
	return nil
}

func walk(at string, value any, do func(at, value string)) {
	switch v := value.(type) {
	case map[string]any:
		for key, below := range v {
			walk(strings.TrimPrefix(at+"."+key, "."), below, do)
		}
	case []any:
		for _, below := range v {
			walk(at, below, do)
		}
	case string:
		do(at, v)
	}
}
