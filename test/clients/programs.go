package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Programs that choose their keys themselves have stories of their own. What they leave behind the proxy is looked at there.

func init() {
	clients = append(clients,
		restic("restic", goTool("github.com/restic/restic/cmd/restic", "restic", "v0.19.1"), false),
		restic("restic (Debian)", debian("restic", "/usr/bin/restic", "version"), true),
		s3fs(), litestream(), terraform(),
	)
}

const oddName = "a b+c/ü%2F.txt"

// tree makes a directory of samples, the one with an odd name and the empty one among them.
func (s *session) tree(dir string) error {
	for name, size := range map[string]int{"small": small, "empty": 0, "big": big, "parts": 12<<20 + 1, oddName: small} {
		text, err := os.ReadFile(s.samples[size])
		if err != nil {
			return err
		}
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, text, 0o644)); err != nil {
			return err
		}
	}
	return nil
}

func restic(name string, find func(context.Context, *machine) (*program, error), old bool) *client {
	return &client{
		Name: name, Find: find, TokenInEnv: old, CA: "SSL_CERT_FILE", Ways: []way{webIdentity, container, process, token},
		Cannot: func(s *session) string {
			if s.way == webIdentity {
				return "it sends the token to AWS, and can be told no other STS for it"
			}
			return ""
		},
		Prepare: func(s *session) error {
			s.set("RESTIC_REPOSITORY", "s3:"+s.proxy.URL+"/"+bucket+"/"+s.prefix+"repo", "RESTIC_PASSWORD", "x", "AWS_DEFAULT_REGION", s.Region)
			if s.way != process {
				return s.credentials()
			}
			file, err := s.write("credentials", "[default]\ncredential_process = "+s.helper()+"\n")
			s.set("AWS_SHARED_CREDENTIALS_FILE", file)
			return err
		},
		Whole: func(s *session, step func(string, func() error)) {
			do := func(args ...string) error { _, err := s.do(args...); return err }
			from, to := filepath.Join(s.dir, "from"), filepath.Join(s.dir, "to")
			defer os.RemoveAll(to)
			data := func() (int, error) { keys, err := s.keys(s.prefix + "repo/data/"); return len(keys), err }
			step("put", func() error {
				if err := errors.Join(s.tree(from), do("init")); err != nil {
					return err
				}
				if err := do("backup", from); err != nil {
					return err
				}
				n, err := data()
				if err == nil && n == 0 {
					err = errors.New("there are no data behind the proxy")
				}
				return err
			})
			if s.result.failed() || s.result.cannot != "" {
				return
			}
			step("list", func() error {
				out, err := s.do("snapshots")
				if err == nil && !strings.Contains(out, "1 snapshots") {
					err = fmt.Errorf("lists %q", out)
				}
				return err
			})
			step("get", func() error {
				if err := do("restore", "latest", "--target", to); err != nil {
					return err
				}
				for name, size := range map[string]int{"small": small, "empty": 0, "big": big, "parts": 12<<20 + 1, oddName: small} {
					if err := sameFile(filepath.Join(to, from, name), s.samples[size]); err != nil {
						return fmt.Errorf("%s: %w", name, err)
					}
				}
				return nil
			})
			step("check of all data", func() error { return do("check", "--read-data") })
			step("delete", func() error {
				had, err := data()
				if err != nil {
					return err
				}
				out, err := s.do("snapshots", "--compact", "-q")
				if err != nil {
					return err
				}
				id := ""
				for _, word := range strings.Fields(out) {
					if len(word) == 8 && strings.Trim(word, "0123456789abcdef") == "" {
						id = word
						break
					}
				}
				if err := do("forget", "--prune", id); err != nil {
					return err
				}
				have, err := data()
				if err == nil && have >= had {
					err = fmt.Errorf("%d objects of data behind the proxy, and before %d", have, had)
				}
				return err
			})
		},
	}
}

func s3fs() *client {
	return &client{
		Name: "s3fs", CA: "CURL_CA_BUNDLE", Ways: []way{exported, token},
		Find: func(ctx context.Context, m *machine) (*program, error) {
			fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
			if err != nil {
				return nil, fmt.Errorf("no FUSE here: %w", err)
			}
			fuse.Close()
			return debian("s3fs", "/usr/bin/s3fs", "--version")(ctx, m)
		},
		Prepare: func(s *session) error {
			k := key{"any", "anything", s.rig.token}
			if s.way == exported {
				var err error
				if k, err = s.exported(); err != nil {
					return err
				}
			}
			s.set("AWSACCESSKEYID", k.AccessKeyID, "AWSSECRETACCESSKEY", k.SecretAccessKey, "AWSSESSIONTOKEN", k.SessionToken)
			s.flag("-o", "url="+s.proxy.URL, "-o", "use_path_request_style", "-o", "endpoint="+s.Region, "-o", "use_session_token",
				"-o", "multipart_size=5")
			return nil
		},
		Whole: func(s *session, step func(string, func() error)) {
			mount := filepath.Join(s.dir, "mount")
			ended := make(chan error, 1)
			var complaint bytes.Buffer
			var cmd *exec.Cmd
			step("mount", func() error {
				// What it mounts must be there.
				if _, err := s.S3Client().PutObject(s.ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String(s.prefix), Body: strings.NewReader("")}); err != nil {
					return err
				}
				if err := os.MkdirAll(mount, 0o755); err != nil {
					return err
				}
				args := slices.Concat([]string{"-f", bucket + ":/" + strings.TrimSuffix(s.prefix, "/"), mount}, s.flags)
				cmd = exec.Command(s.Argv[0], args...)
				cmd.Env, cmd.Stderr, cmd.Stdout = s.environment(), &complaint, &complaint
				if err := cmd.Start(); err != nil {
					return err
				}
				go func() { ended <- cmd.Wait() }()
				for range 200 { // it mounts first and asks the endpoint then, and ends if it does not like the answer
					if mounted(mount) && s.works(mount) {
						return nil
					}
					select {
					case err := <-ended:
						cmd = nil
						exec.Command("fusermount", "-u", "-z", mount).Run()
						return fmt.Errorf("it ended (%v): %s", err, tail(complaint.String()))
					case <-time.After(100 * time.Millisecond):
					}
				}
				return fmt.Errorf("nothing is mounted after 20 s: %.600s", complaint.String())
			})
			if cmd == nil {
				return
			}
			defer func() {
				exec.Command("fusermount", "-u", "-z", mount).Run()
				select {
				case <-ended:
				case <-time.After(10 * time.Second):
					cmd.Process.Kill()
				}
			}()
			if s.result.failed() {
				return
			}
			// By programs of their own: a file system that hangs must not take this program with it.
			do := func(args ...string) error { _, err := s.command(args[0], args[1:]...); return err }
			put := func(name string, size int) func() error {
				return func() error {
					file := filepath.Join(mount, name)
					if err := errors.Join(do("mkdir", "-p", filepath.Dir(file)), do("cp", s.samples[size], file)); err != nil {
						return err
					}
					if err := s.same(s.prefix+name, size); err != nil {
						return err
					}
					return do("cmp", s.samples[size], file)
				}
			}
			step("put, get", put("small", small))
			step("empty", put("empty", 0))
			step("5 MiB + 1", put("big", big))
			step("odd name", put(oddName, small))
			step("multipart", func() error {
				if err := put("parts", 17<<20+1)(); err != nil {
					return err
				}
				return s.inParts(s.prefix + "parts")
			})
			step("copy (mv)", func() error {
				if err := do("mv", filepath.Join(mount, "small"), filepath.Join(mount, "moved")); err != nil {
					return err
				}
				return errors.Join(s.same(s.prefix+"moved", small), s.gone(s.prefix+"small"))
			})
			step("list", func() error {
				out, err := s.command("ls", mount)
				if err == nil && strings.Join(strings.Fields(out), " ") != "a b+c big empty moved parts" {
					err = fmt.Errorf("lists %q", out)
				}
				return err
			})
			step("delete", func() error {
				if err := do("rm", filepath.Join(mount, oddName)); err != nil {
					return err
				}
				return s.gone(s.prefix + oddName)
			})
		},
	}
}

// works tells whether a mounted file system answers.
func (s *session) works(mount string) bool { _, err := s.command("ls", mount); return err == nil }

func tail(s string) string { return s[max(0, len(s)-1500):] }

func mounted(dir string) bool {
	mounts, err := os.ReadFile("/proc/mounts")
	return err == nil && bytes.Contains(mounts, []byte(" "+dir+" fuse"))
}

func litestream() *client {
	return &client{
		Name: "litestream", Find: goTool("github.com/benbjohnson/litestream/cmd/litestream", "litestream", "v0.5.18"), CA: "SSL_CERT_FILE",
		Ways: []way{webIdentity, container, process, token},
		Prepare: func(s *session) error {
			if s.way != token {
				return s.aws()
			}
			// It takes AWS_ACCESS_KEY_ID from the environment and leaves AWS_SESSION_TOKEN there.
			file, err := s.write("credentials", "[default]\naws_access_key_id = any\naws_secret_access_key = any\naws_session_token = "+s.rig.token+"\n")
			s.set("AWS_REGION", s.Region, "AWS_ENDPOINT_URL_S3", s.proxy.URL, "AWS_SHARED_CREDENTIALS_FILE", file)
			return err
		},
		Whole: func(s *session, step func(string, func() error)) {
			python := func(text string, args ...string) (string, error) {
				return s.command("python3", append([]string{"-c", text}, args...)...)
			}
			db, back := filepath.Join(s.dir, "live.db"), filepath.Join(s.dir, "back.db")
			replica := "s3://" + bucket + "/" + s.prefix + "db?endpoint=" + s.proxy.URL + "&region=" + s.Region + "&forcePathStyle=true"
			s.result.flags = "replica URL: " + s.shown(replica)
			const dump = `import sqlite3, sys; print("\n".join(sqlite3.connect(sys.argv[1]).iterdump()))`
			step("put", func() error {
				if _, err := python(`
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("pragma journal_mode=wal")
db.execute("create table t (a blob)")
for i in range(300):
    db.execute("insert into t values (?)", (os.urandom(20000),))
db.commit()`, db); err != nil {
					return err
				}
				if _, err := s.do("replicate", "-once", db, replica); err != nil {
					return err
				}
				keys, err := s.keys(s.prefix + "db/")
				if err == nil && len(keys) == 0 {
					err = errors.New("nothing is behind the proxy")
				}
				return err
			})
			if s.result.failed() {
				return
			}
			step("list", func() error {
				out, err := s.do("ltx", replica)
				if err == nil && len(strings.Split(strings.TrimSpace(out), "\n")) < 2 {
					err = fmt.Errorf("lists %q", out)
				}
				return err
			})
			step("get", func() error {
				if _, err := s.do("restore", "-o", back, replica); err != nil {
					return err
				}
				want, err := python(dump, db)
				if err != nil {
					return err
				}
				got, err := python(dump, back)
				if err == nil && got != want {
					err = errors.New("the database that was restored is another")
				}
				return err
			})
		},
	}
}

func terraform() *client {
	return &client{
		Name: "terraform (S3 backend)", Find: present("terraform", "version"), CA: "SSL_CERT_FILE",
		Ways: []way{webIdentity, container, process, token},
		Prepare: func(s *session) error {
			if err := os.RemoveAll(filepath.Join(s.dir, ".terraform")); err != nil {
				return err
			}
			// Keys with a "//", or that begin or end in a slash, are all that it refuses.
			if _, err := s.write("main.tf", fmt.Sprintf(`terraform {
  backend "s3" {
    bucket         = %q
    key            = %q
    region         = %q
    use_path_style = true
    use_lockfile   = true
  }
}
variable "text" { default = "one" }
resource "terraform_data" "it" { input = var.text }
output "text" { value = terraform_data.it.output }
`, bucket, s.prefix+oddName, s.Region)); err != nil {
				return err
			}
			s.set("AWS_ENDPOINT_URL_S3", s.proxy.URL)
			if s.way != webIdentity {
				s.set("AWS_ENDPOINT_URL_STS", s.proxy.URL) // it asks who it is
			}
			s.env = append(s.env, "CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1", "TF_INPUT=0")
			return s.credentials()
		},
		Whole: func(s *session, step func(string, func() error)) {
			do := func(args ...string) error { _, err := s.do(args...); return err }
			holds := func(text string) error {
				got, err := s.S3Client().GetObject(s.ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: aws.String(s.prefix + oddName)})
				if err != nil {
					return err
				}
				defer got.Body.Close()
				var b bytes.Buffer
				if _, err := b.ReadFrom(got.Body); err != nil {
					return err
				}
				pulled, err := s.do("state", "pull")
				if err != nil {
					return err
				}
				if strings.TrimSpace(pulled) != strings.TrimSpace(b.String()) || !strings.Contains(pulled, `"`+text+`"`) {
					return fmt.Errorf("behind the proxy is %s, and terraform has %s", &b, pulled)
				}
				return nil
			}
			step("init (who am I, list)", func() error { return do("init", "-no-color") })
			if s.result.failed() {
				return
			}
			step("put, get, odd name, lock", func() error {
				if err := do("apply", "-auto-approve", "-no-color"); err != nil {
					return err
				}
				return holds("one")
			})
			step("change", func() error {
				if err := do("apply", "-auto-approve", "-no-color", "-var", "text=two"); err != nil {
					return err
				}
				return holds("two")
			})
			step("delete", func() error { // the lock's object, each time
				keys, err := s.keys(s.prefix)
				if err == nil && !slices.Equal(keys, []string{s.prefix + oddName}) {
					err = fmt.Errorf("there are %q", keys)
				}
				return err
			})
		},
	}
}
