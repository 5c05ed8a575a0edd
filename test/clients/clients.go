package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

var clients = []*client{
	awsCLI("aws CLI v1", func(ctx context.Context, m *machine) (*program, error) {
		python, _, err := pip("awscli", "awscli==1.45.11", "boto3==1.43.11")(ctx, m)
		if err != nil {
			return nil, err
		}
		argv := []string{python, "-m", "awscli"}
		v, err := versionOf(ctx, append(argv, "--version")...)
		return &program{Argv: argv, Version: v}, err
	}, false),
	awsCLI("aws CLI v2 (Debian)", debian("awscli", "/usr/bin/aws", "--version"), true),
	boto3("boto3", func(ctx context.Context, m *machine) (*program, error) {
		python, v, err := pip("boto3", "awscli==1.45.11", "boto3==1.43.11")(ctx, m)
		return &program{Argv: []string{python}, Version: v}, err
	}, false),
	boto3("boto3 (Debian)", func(ctx context.Context, m *machine) (*program, error) {
		if err := m.apt(ctx, "python3-boto3", "/usr/lib/python3/dist-packages/boto3/__init__.py"); err != nil {
			return nil, err
		}
		v, err := versionOf(ctx, "/usr/bin/python3", "-c", "import boto3; print(boto3.__version__)")
		return &program{Argv: []string{"/usr/bin/python3"}, Version: v + " (Debian)"}, err
	}, true),
	javascript(),
	goLibrary("aws-sdk-go-v2", "github.com/aws/aws-sdk-go-v2/service/s3"),
	goLibrary("minio-go", "github.com/minio/minio-go/v7"),
	rclone("rclone", goTool("github.com/rclone/rclone", "rclone", "v1.76.0"), false),
	rclone("rclone (Debian)", debian("rclone", "/usr/bin/rclone", "version"), true),
	mc(),
	curl(),
	s3cmd(),
}

// script makes the verbs of a library, which a process drives that reads them as lines of JSON.
func script(c *client) *client {
	run := func(verb string) func(*session, string, string) error {
		return func(s *session, a, b string) error { return s.ask(nil, verb, a, b) }
	}
	c.Put, c.Get, c.Copy = run("put"), run("get"), run("copy")
	c.Delete = func(s *session, key string) error { return s.ask(nil, "delete", key, "") }
	c.List = func(s *session, prefix string) (keys []string, err error) {
		err = s.ask(&keys, "list", prefix, "")
		return keys, err
	}
	c.Presign = func(s *session, key string) (link string, err error) {
		err = s.ask(&link, "presign", key, "")
		return link, err
	}
	c.Who = func(s *session) (arn string, err error) {
		err = s.ask(&arn, "who", "", "")
		return arn, err
	}
	return c
}

//go:embed boto.py
var botoScript string

// botocore says why it does not work in some way. An old one is botocore before 1.31 or so.
func botocore(old bool) func(*session) string {
	return func(s *session) string {
		switch {
		case old && s.way == webIdentity:
			return "it knows no AWS_ENDPOINT_URL_STS, and sends the token to AWS"
		case s.way == container && s.proxy.secure():
			return "botocore's container fetcher takes no private CA, neither by AWS_CA_BUNDLE nor by the system's store: use credential_process, or a publicly trusted certificate"
		}
		return ""
	}
}

func boto3(name string, find func(context.Context, *machine) (*program, error), old bool) *client {
	c := script(&client{
		Name: name,
		Find: func(ctx context.Context, m *machine) (*program, error) {
			p, err := find(ctx, m)
			if err != nil {
				return nil, err
			}
			file := filepath.Join(m.dir, "boto.py")
			p.Argv = append(p.Argv, file)
			return p, os.WriteFile(file, []byte(botoScript), 0o644)
		},
		Ways: []way{bearer, webIdentity, container, process, token}, CA: "AWS_CA_BUNDLE", Multipart: 12<<20 + 1, TokenInEnv: old,
		Cannot: botocore(old),
	})
	if !old {
		c.Prepare = func(s *session) error {
			if s.way == bearer { // where nothing is signed, no header would say how a trailing checksum is framed
				s.set("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
			}
			return s.aws()
		}
	} else {
		c.Ways = c.Ways[1:]
		c.Prepare = func(s *session) error {
			s.set("AWS_DEFAULT_REGION", s.Region, "BOTO_ENDPOINT", s.proxy.URL)
			return s.credentials()
		}
	}
	return c
}

func awsCLI(name string, find func(context.Context, *machine) (*program, error), old bool) *client {
	s3uri := func(key string) string { return "s3://" + bucket + "/" + key }
	c := &client{
		Name: name, Find: find, CA: "AWS_CA_BUNDLE", Multipart: 12<<20 + 1, TokenInEnv: old,
		Ways:   []way{webIdentity, container, process, token},
		Cannot: botocore(old),
		Prepare: func(s *session) error {
			// The CLI presigns by SigV2 for endpoints that are not AWS's, unless it is told.
			config := "[default]\ns3 =\n    signature_version = s3v4\n"
			if s.way == process {
				config += "credential_process = " + s.helper() + "\n"
			}
			file, err := s.write("config", config)
			if err != nil {
				return err
			}
			s.set("AWS_CONFIG_FILE", file)
			if old {
				s.set("AWS_DEFAULT_REGION", s.Region)
				s.flag("--endpoint-url", s.proxy.URL)
			} else {
				s.set("AWS_DEFAULT_REGION", s.Region, "AWS_REGION", s.Region, "AWS_ENDPOINT_URL_S3", s.proxy.URL)
			}
			if s.way == process {
				return nil
			}
			return s.credentials()
		},
		Put: func(s *session, file, key string) error { _, err := s.do("s3", "cp", file, s3uri(key)); return err },
		Get: func(s *session, key, file string) error { _, err := s.do("s3", "cp", s3uri(key), file); return err },
		Copy: func(s *session, from, to string) error {
			_, err := s.do("s3", "cp", s3uri(from), s3uri(to))
			return err
		},
		List: func(s *session, prefix string) (keys []string, err error) {
			out, err := s.do("s3api", "list-objects-v2", "--bucket", bucket, "--prefix", prefix, "--query", "Contents[].Key", "--output", "json")
			if err == nil {
				err = json.Unmarshal([]byte(out), &keys)
			}
			return keys, err
		},
		Delete: func(s *session, key string) error { _, err := s.do("s3", "rm", s3uri(key)); return err },
		Presign: func(s *session, key string) (string, error) {
			out, err := s.do("s3", "presign", s3uri(key), "--expires-in", "600")
			return strings.TrimSpace(out), err
		},
		Who: func(s *session) (string, error) {
			return s.do("sts", "get-caller-identity", "--endpoint-url", s.proxy.URL, "--query", "Arn", "--output", "text")
		},
	}
	return c
}

//go:embed client.mjs
var javascriptScript string

func javascript() *client {
	return script(&client{
		Name: "@aws-sdk/client-s3 (npm)",
		Find: npm("client.mjs", javascriptScript, "@aws-sdk/client-s3@3.1169.0", "@aws-sdk/lib-storage@3.1169.0",
			"@aws-sdk/s3-request-presigner@3.1163.0", "@aws-sdk/client-sts@3.1169.0"),
		Ways: []way{bearer, webIdentity, container, process, token}, CA: "NODE_EXTRA_CA_CERTS", Multipart: 12<<20 + 1,
	})
}

func goLibrary(name, module string) *client {
	c := script(&client{
		Name: name,
		Find: func(context.Context, *machine) (*program, error) {
			self, err := os.Executable()
			return &program{Argv: []string{self, "as", name}, Version: linked(module)}, err
		},
		Ways: []way{bearer, webIdentity, container, process, token}, CA: "SSL_CERT_FILE", Multipart: 12<<20 + 1,
	})
	if name == "minio-go" {
		c.Who = nil
		c.Prepare = minioCredentials
	}
	return c
}

// minioCredentials is how programs on minio-go come in: it runs a credential_process of the shared credentials file, not of the
// configuration's.
func minioCredentials(s *session) error {
	s.set("AWS_DEFAULT_REGION", s.Region, "AWS_REGION", s.Region, "AWS_ENDPOINT_URL_S3", s.proxy.URL)
	if s.way != process {
		return s.credentials()
	}
	file, err := s.write("credentials", "[default]\ncredential_process = "+s.helper()+"\n")
	s.set("AWS_SHARED_CREDENTIALS_FILE", file)
	return err
}

func rclone(name string, find func(context.Context, *machine) (*program, error), old bool) *client {
	remote := func(key string) string { return "sluice:" + bucket + "/" + key }
	do := func(s *session, args ...string) error { _, err := s.do(args...); return err }
	return &client{
		Name: name, Find: find, CA: "SSL_CERT_FILE", Multipart: 12<<20 + 1, TokenInEnv: old,
		Ways: []way{bearer, webIdentity, container, process, token},
		Prepare: func(s *session) error {
			s.set("RCLONE_CONFIG_SLUICE_TYPE", "s3", "RCLONE_CONFIG_SLUICE_PROVIDER", "Other", "RCLONE_CONFIG_SLUICE_ENDPOINT", s.proxy.URL,
				"RCLONE_CONFIG_SLUICE_REGION", s.Region, "RCLONE_CONFIG_SLUICE_NO_CHECK_BUCKET", "true")
			s.set("RCLONE_S3_UPLOAD_CUTOFF", "5Mi", "RCLONE_LOW_LEVEL_RETRIES", "2", "RCLONE_RETRIES", "1")
			if s.way == bearer { // no key: rclone sends the request unsigned
				s.set("RCLONE_HEADER", "Authorization: Bearer "+s.rig.token)
				return nil
			}
			s.set("RCLONE_CONFIG_SLUICE_ENV_AUTH", "true")
			if old && s.way == process {
				s.set("AWS_SDK_LOAD_CONFIG", "1")
			}
			return s.credentials()
		},
		Put:  func(s *session, file, key string) error { return do(s, "copyto", file, remote(key)) },
		Get:  func(s *session, key, file string) error { return do(s, "copyto", remote(key), file) },
		Copy: func(s *session, from, to string) error { return do(s, "copyto", remote(from), remote(to)) },
		List: func(s *session, prefix string) (keys []string, err error) {
			out, err := s.do("lsf", "-R", "--files-only", remote(prefix))
			for name := range strings.Lines(out) {
				keys = append(keys, prefix+strings.TrimRight(name, "\n"))
			}
			return keys, err
		},
		Delete: func(s *session, key string) error { return do(s, "deletefile", remote(key)) },
		Presign: func(s *session, key string) (string, error) {
			out, err := s.do("link", "--expire", "10m", remote(key))
			return strings.TrimSpace(out), err
		},
	}
}

func mc() *client {
	remote := func(key string) string { return "sluice/" + bucket + "/" + key }
	do := func(s *session, args ...string) error { _, err := s.do(args...); return err }
	return &client{
		Name: "mc", Find: goTool("github.com/minio/mc", "mc", "v0.0.0-20250313080218-cf909e1063a9"), CA: "SSL_CERT_FILE", Multipart: 17<<20 + 1,
		Ways: []way{bearer, webIdentity, exported, token},
		Prepare: func(s *session) error {
			user := ""
			switch s.way {
			case bearer:
				s.flag("-H", "Authorization: Bearer "+s.rig.token)
			case webIdentity:
				s.set("MC_STS_ENDPOINT_sluice", s.proxy.URL, "MC_WEB_IDENTITY_TOKEN_FILE_sluice", s.file, "MC_ROLE_ARN_sluice", "arn:aws:iam::123456789012:role/workspace")
				user = "any:anything@"
			case exported:
				k, err := s.exported()
				if err != nil {
					return err
				}
				user = url.UserPassword(k.AccessKeyID, k.SecretAccessKey).String() + ":" + k.SessionToken + "@"
			case token:
				user = "any:anything:" + s.rig.token + "@"
			}
			s.set("MC_HOST_sluice", s.proxy.transport()+"://"+user+s.proxy.host())
			s.flag("--json")
			return nil
		},
		Put:  func(s *session, file, key string) error { return do(s, "cp", file, remote(key)) },
		Get:  func(s *session, key, file string) error { return do(s, "cp", remote(key), file) },
		Copy: func(s *session, from, to string) error { return do(s, "cp", remote(from), remote(to)) },
		List: func(s *session, prefix string) (keys []string, err error) {
			out, err := s.do("ls", "--recursive", remote(prefix))
			for line := range strings.Lines(out) {
				var o struct{ Key string }
				if err := json.Unmarshal([]byte(line), &o); err != nil {
					return nil, err
				}
				keys = append(keys, prefix+o.Key)
			}
			return keys, err
		},
		Delete: func(s *session, key string) error { return do(s, "rm", remote(key)) },
		Presign: func(s *session, key string) (string, error) {
			out, err := s.do("share", "download", "--expire", "10m", remote(key))
			var link struct{ Share string }
			if err == nil {
				err = json.Unmarshal([]byte(out), &link)
			}
			return link.Share, err
		},
	}
}

func curl() *client {
	object := func(s *session, key string) string {
		return s.proxy.URL + "/" + bucket + "/" + strings.NewReplacer("%2F", "/", "+", "%2B").Replace(url.PathEscape(key))
	}
	do := func(s *session, args ...string) error { _, err := s.do(args...); return err }
	return &client{
		Name: "curl", Find: present("curl", "--version"), CA: "CURL_CA_BUNDLE",
		Ways: []way{bearer, exported, token},
		Prepare: func(s *session) error {
			s.flag("-sS", "--fail-with-body")
			if s.way == bearer {
				s.flag("-H", "Authorization: Bearer "+s.rig.token)
				return nil
			}
			k := key{"any", "any", s.rig.token}
			if s.way == exported {
				var err error
				if k, err = s.exported(); err != nil {
					return err
				}
			}
			s.flag("--aws-sigv4", "aws:amz:us-east-1:s3", "--user", k.AccessKeyID+":"+k.SecretAccessKey,
				"-H", "X-Amz-Security-Token: "+k.SessionToken, "-H", "X-Amz-Content-Sha256: UNSIGNED-PAYLOAD")
			return nil
		},
		Put: func(s *session, file, key string) error { return do(s, "-T", file, object(s, key)) },
		Get: func(s *session, key, file string) error { return do(s, "-o", file, object(s, key)) },
		Copy: func(s *session, from, to string) error {
			return do(s, "-X", "PUT", "-H", "X-Amz-Copy-Source: /"+bucket+"/"+strings.NewReplacer("%2F", "/", "+", "%2B").Replace(url.PathEscape(from)), object(s, to))
		},
		Delete: func(s *session, key string) error { return do(s, "-X", "DELETE", object(s, key)) },
	}
}

func s3cmd() *client {
	s3uri := func(key string) string { return "s3://" + bucket + "/" + key }
	do := func(s *session, args ...string) error { _, err := s.do(args...); return err }
	return &client{
		Name: "s3cmd", Find: debian("s3cmd", "/usr/bin/s3cmd", "--version"), Multipart: 12<<20 + 1,
		Ways: []way{webIdentity, exported, token},
		Cannot: func(s *session) string {
			if s.way == webIdentity {
				return "it sends the token to AWS, and can be told no other STS"
			}
			return ""
		},
		Prepare: func(s *session) error {
			config := fmt.Sprintf("[default]\nhost_base = %s\nhost_bucket = %[1]s\nuse_https = %v\nbucket_location = %s\nmultipart_chunk_size_mb = 5\n",
				s.proxy.host(), map[bool]string{true: "True", false: "False"}[s.proxy.secure()], s.Region)
			if s.proxy.secure() {
				config += "ca_certs_file = " + s.CAFile + "\n"
			}
			file, err := s.write("s3cfg", config)
			if err != nil {
				return err
			}
			s.flag("-c", file)
			return s.credentials()
		},
		Put:  func(s *session, file, key string) error { return do(s, "put", file, s3uri(key)) },
		Get:  func(s *session, key, file string) error { return do(s, "get", "--force", s3uri(key), file) },
		Copy: func(s *session, from, to string) error { return do(s, "cp", s3uri(from), s3uri(to)) },
		List: func(s *session, prefix string) (keys []string, err error) {
			out, err := s.do("ls", "--recursive", s3uri(prefix))
			for line := range strings.Lines(out) {
				if _, key, ok := strings.Cut(line, "s3://"+bucket+"/"); ok {
					keys = append(keys, strings.TrimRight(key, "\n"))
				}
			}
			return keys, err
		},
		Delete: func(s *session, key string) error { return do(s, "del", s3uri(key)) },
		// Its signurl knows Signature Version 2 only, which is refused.
	}
}
