package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-s3/sluice/examples/world"
)

// set adds environment variables, in the order in which a person would write them.
func (s *session) set(pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		v := pairs[i] + "=" + pairs[i+1]
		s.env = append(s.env, v)
		s.result.env = append(s.result.env, s.shown(v))
	}
}

// flag adds arguments that stand before the command's own.
func (s *session) flag(args ...string) {
	s.flags = append(s.flags, args...)
	s.result.flags = strings.Join(append(strings.Fields(s.result.flags), s.shown(strings.Join(args, " "))), " ")
}

// write makes a file that the client reads, and returns its path.
func (s *session) write(name, text string) (string, error) {
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	s.result.files = append(s.result.files, name+":\n"+s.shown(text))
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// shown is a setting as a user would write it, who has other names than this run.
func (s *session) shown(text string) string {
	return strings.NewReplacer(append(s.secrets,
		s.rig.token, "$TOKEN",
		s.file, "/run/token",
		s.CAFile, "/etc/ca.pem",
		s.dir+"/", "",
		s.dir, ".",
		s.proxy.URL, s.proxy.transport()+"://s3.example.com",
		s.proxy.host(), "s3.example.com",
		s.proxy.Program, "proxy",
	)...).Replace(text)
}

// prepare makes the settings of the session, those of the way in first.
func (s *session) prepare() error {
	if s.proxy.secure() && s.CA != "" {
		s.set(s.CA, s.CAFile)
	}
	if s.Prepare == nil {
		return s.aws()
	}
	return s.Prepare(s)
}

// aws is how everything that is built on an AWS SDK comes in.
func (s *session) aws() error {
	s.set("AWS_DEFAULT_REGION", s.Region, "AWS_REGION", s.Region, "AWS_ENDPOINT_URL_S3", s.proxy.URL)
	return s.credentials()
}

// credentials is the part of it that has nothing to do with S3.
func (s *session) credentials() error {
	switch s.way {
	case webIdentity:
		s.set("AWS_WEB_IDENTITY_TOKEN_FILE", s.file, "AWS_ROLE_ARN", world.RoleARN("workspace"), "AWS_ENDPOINT_URL_STS", s.proxy.URL)
	case container:
		s.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", s.proxy.URL+"/-/credentials")
		if s.TokenInEnv {
			s.set("AWS_CONTAINER_AUTHORIZATION_TOKEN", s.rig.token)
		} else {
			s.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", s.file)
		}
	case process:
		name, err := s.write("config", "[default]\ncredential_process = "+s.helper()+"\n")
		if err != nil {
			return err
		}
		s.set("AWS_CONFIG_FILE", name)
	case exported:
		key, err := s.exported()
		if err != nil {
			return err
		}
		s.set("AWS_ACCESS_KEY_ID", key.AccessKeyID, "AWS_SECRET_ACCESS_KEY", key.SecretAccessKey, "AWS_SESSION_TOKEN", key.SessionToken)
	case token:
		s.set("AWS_ACCESS_KEY_ID", "any", "AWS_SECRET_ACCESS_KEY", "any", "AWS_SESSION_TOKEN", s.rig.token)
	case bearer:
		s.set("AWS_BEARER_TOKEN_S3", s.rig.token)
	}
	return nil
}

// helper is the command line that answers what credential_process expects.
func (s *session) helper() string {
	line := fmt.Sprintf("%s credentials --endpoint %s --token-file %s", s.proxy.Program, s.proxy.URL, s.file)
	if s.proxy.secure() {
		line += " --ca-file " + s.CAFile
	}
	return line
}

// key is what `proxy credentials` prints.
type key struct {
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
}

func (s *session) exported() (k key, err error) {
	args := strings.Fields(s.helper())
	out, err := s.command(args[0], args[1:]...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &k)
		s.secrets = []string{k.AccessKeyID, "$ID", k.SecretAccessKey, "$SECRET", url.QueryEscape(k.SecretAccessKey), "$SECRET", k.SessionToken, "$SESSION"}
	}
	return k, err
}
