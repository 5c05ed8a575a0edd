package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// way is how a client comes in: section "How clients come in" of the README.
type way string

const (
	bearer      way = "bearer"
	webIdentity way = "web identity"
	container   way = "container"
	process     way = "credential_process"
	exported    way = "exported session" // what `proxy credentials` prints, by hand: for clients that run no credential_process
	token       way = "token"            // the OIDC token as session token
)

// client is a program or a library as its users have it. Most are a command for each verb; a verb that it has not is nil.
type client struct {
	Name       string
	Find       func(context.Context, *machine) (*program, error) // an error = it is absent, and why
	Ways       []way
	CA         string                // environment variable that names a private CA
	TokenInEnv bool                  // of the container way: it knows no AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE
	Multipart  int                   // size of an object that it uploads in parts
	Cannot     func(*session) string // why it does not work, "" = it should
	Prepare    func(*session) error  // environment, files and flags

	Put     func(s *session, file, key string) error
	Get     func(s *session, key, file string) error
	Copy    func(s *session, from, to string) error
	List    func(s *session, prefix string) (keys []string, err error)
	Delete  func(s *session, key string) error
	Presign func(s *session, key string) (url string, err error)
	Who     func(s *session) (string, error)

	// Whole is the story of a program that chooses its keys itself, instead of the verbs.
	Whole func(s *session, step func(name string, do func() error))
}

// program is a client that was found.
type program struct {
	Argv    []string // how it starts
	Version string
	Dir     string // that it runs in; "" = anywhere
}

// result is what became of one client, one way, over one transport.
type result struct {
	client    string
	version   string
	way       way
	transport string
	env       []string // as users set it
	files     []string // "name: text"
	flags     string
	steps     []step
	cannot    string // why it is said not to work
	works     bool   // although it is said not to
}

type step struct {
	name string
	err  error
}

func (r *result) failed() bool {
	return r.works || slices.ContainsFunc(r.steps, func(s step) bool { return s.err != nil })
}

func (r *result) line() string {
	if r.works {
		return "WORKS, although it is said not to: " + r.cannot
	}
	if r.cannot != "" {
		return "does not work, as known: " + r.cannot
	}
	var passed, failed []string
	for _, s := range r.steps {
		if s.err == nil {
			passed = append(passed, s.name)
		} else {
			failed = append(failed, fmt.Sprintf("\n    FAILED %s: %v", s.name, s.err))
		}
	}
	return strings.Join(passed, ", ") + strings.Join(failed, "")
}

// session is one client, one way, over one transport.
type session struct {
	*rig
	*client
	*program
	run    *run
	way    way
	proxy  proxy
	dir    string // its home and its files
	prefix string // of its keys
	env    []string
	flags  []string
	result *result
	ctx    context.Context

	secrets []string // issued to it, and what stands for them in the report

	driver          *driver
	driverComplaint string
}

func (g *rig) session(r *run, c *client, p *program, w way, at proxy) *session {
	name := strings.NewReplacer(" ", "-", "_", "-", "@", "", "(", "", ")", "").Replace(strings.ToLower(c.Name + "/" + string(w) + "-" + at.transport()))
	return &session{
		rig: g, client: c, program: p, run: r, way: w, proxy: at,
		dir:    filepath.Join(g.Dir, "clients", name),
		prefix: "web/" + name + "/",
		result: &result{client: c.Name, version: p.Version, way: w, transport: at.transport()},
	}
}

// story takes the client through everything that it can do.
func (s *session) story(ctx context.Context) {
	s.ctx = ctx
	step := func(name string, do func() error) {
		err := do()
		if err != nil && ctx.Err() != nil {
			err = ctx.Err()
		}
		s.result.steps = append(s.result.steps, step{name, err})
	}
	if err := cmp.Or(os.MkdirAll(filepath.Join(s.dir, "home"), 0o755), s.prepare()); err != nil {
		step("prepare", func() error { return err })
		return
	}
	if s.Cannot != nil {
		s.result.cannot = s.Cannot(s)
	}
	if s.result.cannot != "" {
		tried, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		s.ctx = tried
		if s.Whole != nil {
			var first error
			s.Whole(s, func(_ string, do func() error) { first = cmp.Or(first, do()) })
			s.result.works = first == nil
			return
		}
		key := s.prefix + "small"
		s.result.works = s.Put(s, s.samples[small], key) == nil && s.same(key, small) == nil
		return
	}
	if s.Whole != nil {
		s.Whole(s, step)
		return
	}
	put := func(name string, size int) func() error {
		return func() error {
			if err := s.Put(s, s.samples[size], s.prefix+name); err != nil {
				return err
			}
			if err := s.same(s.prefix+name, size); err != nil {
				return err
			}
			back := filepath.Join(s.dir, "back")
			defer os.Remove(back)
			if err := s.Get(s, s.prefix+name, back); err != nil {
				return fmt.Errorf("read back: %w", err)
			}
			return sameFile(back, s.samples[size])
		}
	}
	const odd = oddName
	step("put", func() error {
		if err := s.Put(s, s.samples[small], s.prefix+"small"); err != nil {
			return err
		}
		return s.same(s.prefix+"small", small)
	})
	if s.result.failed() {
		return // all would fail alike, and take their time
	}
	step("get", func() error {
		if err := s.plain(s.prefix + "small"); err != nil {
			return err
		}
		back := filepath.Join(s.dir, "back")
		defer os.Remove(back)
		if err := s.Get(s, s.prefix+"small", back); err != nil {
			return err
		}
		return sameFile(back, s.samples[small])
	})
	step("empty", put("empty", 0))
	step("5 MiB + 1", put("big", big))
	step("odd name", put(odd, small))
	if s.Multipart > 0 {
		step("multipart", func() error {
			if err := put("parts", s.Multipart)(); err != nil {
				return err
			}
			return s.inParts(s.prefix + "parts")
		})
	}
	if s.Copy != nil {
		step("copy", func() error {
			if err := s.Copy(s, s.prefix+odd, s.prefix+"copy of "+odd); err != nil {
				return err
			}
			return s.same(s.prefix+"copy of "+odd, small)
		})
	}
	if s.List != nil {
		step("list", func() error {
			keys, err := s.List(s, s.prefix)
			if err != nil {
				return err
			}
			have, err := s.keys(s.prefix)
			if err != nil {
				return err
			}
			slices.Sort(keys)
			if !slices.Equal(keys, have) {
				return fmt.Errorf("lists %q, and there are %q", keys, have)
			}
			return nil
		})
	}
	// A presigned URL would carry the OIDC token itself: with it, signing must come to nothing.
	if s.Presign != nil && s.way != bearer {
		if s.way == token {
			step("presign refused", func() error {
				link, err := s.Presign(s, s.prefix+odd)
				if err != nil {
					return err
				}
				if err := s.follow(link); err == nil {
					return errors.New("a presigned URL with the OIDC token in it was served")
				}
				return nil
			})
		} else {
			step("presign", func() error {
				link, err := s.Presign(s, s.prefix+odd)
				if err != nil {
					return err
				}
				return s.follow(link)
			})
		}
	}
	if s.Who != nil && s.way != bearer {
		step("who am I", func() error {
			answer, err := s.Who(s)
			if err == nil && !strings.Contains(answer, ":assumed-role/") {
				err = fmt.Errorf("answered %q", answer)
			}
			return err
		})
	}
	step("forbidden", func() error {
		err := s.Put(s, s.samples[small], "api/"+filepath.Base(s.prefix))
		if err == nil {
			return errors.New("another project's prefix was written to")
		}
		return s.gone("api/" + filepath.Base(s.prefix))
	})
	if s.Delete != nil {
		step("delete", func() error {
			for _, key := range []string{"small", odd} {
				if err := s.Delete(s, s.prefix+key); err != nil {
					return err
				}
				if err := s.gone(s.prefix + key); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// follow reads a presigned URL of a small sample.
func (s *session) follow(link string) error {
	u, err := url.Parse(link)
	if err != nil || u.Host != s.proxy.host() {
		return fmt.Errorf("presigned %q", link)
	}
	answer, err := s.HTTPClient().Get(link)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	want, err := os.ReadFile(s.samples[small])
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
		return fmt.Errorf("%s answers %s: %.300s", u.Path, answer.Status, got)
	}
	return nil
}

// same compares what is behind the proxy with a sample.
func (s *session) same(key string, size int) error {
	got, err := s.S3Client().GetObject(s.ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: &key})
	if err != nil {
		have, _ := s.keys(s.prefix)
		return fmt.Errorf("behind the proxy: %w; there are %q", err, have)
	}
	defer got.Body.Close()
	body, err := io.ReadAll(got.Body)
	if err != nil {
		return err
	}
	want, err := os.ReadFile(s.samples[size])
	if err == nil && !bytes.Equal(body, want) {
		err = fmt.Errorf("behind the proxy are %d bytes that differ from the %d that were sent", len(body), len(want))
	}
	return err
}

// plain holds that the framing in which an object came is not answered as an encoding of it.
func (s *session) plain(key string) error {
	request, err := http.NewRequestWithContext(s.ctx, http.MethodHead, s.proxy.URL+"/"+bucket+"/"+key, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	answer, err := s.HTTPClient().Do(request)
	if err != nil {
		return err
	}
	answer.Body.Close()
	if e := answer.Header.Get("Content-Encoding"); e != "" || answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("HEAD answers %s, Content-Encoding %q", answer.Status, e)
	}
	return err
}

// inParts tells by the ETag that an object was uploaded in parts.
func (s *session) inParts(key string) error {
	head, err := s.S3Client().HeadObject(s.ctx, &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: &key})
	if err == nil && !strings.Contains(aws.ToString(head.ETag), "-") {
		err = fmt.Errorf("it was uploaded in one part: ETag %s", aws.ToString(head.ETag))
	}
	return err
}

// gone holds that there is no such object behind the proxy.
func (s *session) gone(key string) error {
	have, err := s.keys(key)
	if err == nil && slices.Contains(have, key) {
		err = fmt.Errorf("%s is there", key)
	}
	return err
}

// keys are those behind the proxy.
func (s *session) keys(prefix string) (keys []string, err error) {
	pages := s3.NewListObjectsV2Paginator(s.S3Client(), &s3.ListObjectsV2Input{Bucket: aws.String(bucket), Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(s.ctx)
		if err != nil {
			return nil, err
		}
		for _, o := range page.Contents {
			keys = append(keys, *o.Key)
		}
	}
	return keys, nil
}

func sameFile(got, want string) error {
	a, err := os.ReadFile(got)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(want)
	if err == nil && !bytes.Equal(a, b) {
		err = fmt.Errorf("%d bytes were read back that differ from the %d that were sent", len(a), len(b))
	}
	return err
}

// do runs the client, and returns what it printed on its standard output.
func (s *session) do(args ...string) (string, error) {
	argv := slices.Concat(s.Argv, s.flags, args)
	return s.command(argv[0], argv[1:]...)
}

// ask has a library do one thing. Its process is started with the first.
func (s *session) ask(out any, verb, a, b string) error {
	if s.driver == nil {
		d, err := s.drive()
		if err != nil {
			return err
		}
		s.driver = d
	}
	text, err := s.driver.ask(s.ctx, verb, a, b)
	if s.run.verbose {
		fmt.Printf("+ %s %q %q\n%s(%v)\n", verb, a, b, text, err)
	}
	if err != nil {
		s.close()
		return fmt.Errorf("%s: %w: %s", verb, err, s.driverComplaint)
	}
	var answer struct {
		Out   json.RawMessage
		Error string
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("%s: %.300s", verb, text)
	}
	if answer.Error != "" {
		return fmt.Errorf("%s: %.600s", verb, answer.Error)
	}
	if out != nil {
		return json.Unmarshal(answer.Out, out)
	}
	return nil
}

// driver is a process that drives a library.
type driver struct {
	cmd       *exec.Cmd
	in        io.WriteCloser
	lines     chan []byte
	complaint bytes.Buffer // read it after Wait
}

func (s *session) drive() (*driver, error) {
	d := &driver{cmd: exec.Command(s.Argv[0], s.Argv[1:]...), lines: make(chan []byte, 1)}
	d.cmd.Dir, d.cmd.Env, d.cmd.Stderr, d.cmd.WaitDelay = s.dir, s.environment(), &d.complaint, 2*time.Second
	var err error
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(d.lines)
		for in := bufio.NewReader(out); ; {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			d.lines <- line
		}
	}()
	return d, d.cmd.Start()
}

func (d *driver) ask(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := json.NewEncoder(d.in).Encode(append(args, "", "")[:3]); err != nil {
		return nil, err
	}
	select {
	case line, ok := <-d.lines:
		if !ok {
			return nil, errors.New("it ended")
		}
		return line, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// close ends the process that drives a library.
func (s *session) close() {
	if d := s.driver; d != nil {
		s.driver = nil
		d.in.Close()
		ended := time.AfterFunc(5*time.Second, func() { d.cmd.Process.Kill() })
		for range d.lines {
		}
		d.cmd.Wait()
		ended.Stop()
		s.driverComplaint = fmt.Sprintf("%.600s", strings.TrimSpace(d.complaint.String()))
	}
}

// environment is what clients run with: nothing of this machine's settings, and nothing that leaves it. Some ask AWS where
// they know no other.
func (s *session) environment() []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(s.dir, "home"), "TMPDIR=" + s.dir, "LANG=C.UTF-8",
		"AWS_EC2_METADATA_DISABLED=true",
		"HTTP_PROXY=http://127.0.0.1:9", "HTTPS_PROXY=http://127.0.0.1:9", "NO_PROXY=127.0.0.1,localhost",
		"http_proxy=http://127.0.0.1:9", "https_proxy=http://127.0.0.1:9", "no_proxy=127.0.0.1,localhost",
	}, s.env...)
}

func (s *session) command(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = cmp.Or(s.program.Dir, s.dir)
	cmd.WaitDelay = 2 * time.Second
	cmd.Env = s.environment()
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if s.run.verbose {
		fmt.Printf("+ %s %q\n%s%s(%v)\n", name, args, out.Bytes(), complaint.Bytes(), err)
	}
	if err != nil {
		text := strings.TrimSpace(complaint.String() + out.String())
		if len(text) > 600 {
			text = text[:300] + " … " + text[len(text)-300:]
		}
		return out.String(), fmt.Errorf("%s %q: %w: %s", filepath.Base(name), args, err, text)
	}
	return out.String(), nil
}
