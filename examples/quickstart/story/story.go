// Command story is what `go run ./examples/quickstart` runs once it is built: it starts a workspace's world with the real
// proxy in front of it, and prints what to paste, or tells the whole story by itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
)

func main() {
	world.Main()
	demo := flag.Bool("demo", false, "tell the whole story and exit; the status is 0 only if all of it was right")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *demo); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

const (
	bucket = "artifacts"
	role   = "arn:aws:iam::" + world.Account + ":role/workspace"
)

// workspace is somebody with a token and nothing else.
type workspace struct {
	name, project, user string
	token               string
	tokenFile           string
	envFile             string // sets what the AWS CLI and SDKs need
}

// quickstart is everything that runs.
type quickstart struct {
	*printer
	world     *world.World
	proxy     *world.Proxy
	web, data workspace
}

func run(ctx context.Context, out io.Writer, demo bool) error {
	os.Unsetenv("AWS_CA_BUNDLE") // the SDK refuses it beside an HTTP client of one's own, and all is plain HTTP here
	q := &quickstart{printer: newPrinter(out)}
	q.title("Sluice: S3 for workspaces that hold an OIDC token and no keys")

	_, err := world.ProxyProgram(ctx)
	if ctx.Err() != nil {
		return nil // Ctrl-C
	}
	if err != nil {
		return err
	}
	// Not ctx: Ctrl-C must let the proxy finish, rather than take the S3 server away from under it.
	if q.world, err = world.Start(context.Background(), world.Options{Buckets: []string{bucket}}); err != nil {
		return err
	}
	defer q.world.Stop()
	policies, err := q.policies()
	if err != nil {
		return err
	}
	config, err := q.world.ProxyConfig(world.ProxyOptions{PolicyDir: policies, Dir: q.world.Dir})
	if err != nil {
		return err
	}
	if q.proxy, err = q.world.StartProxy(context.Background(), config); err != nil {
		return err
	}
	if q.web, err = q.workspace("env-1", "web", "ada@acme.com"); err != nil {
		return err
	}
	if q.data, err = q.workspace("env-2", "data", "ben@acme.com"); err != nil {
		return err
	}
	q.facts(
		"issuer", q.world.Issuer.URL()+"\tmakes the workspaces' tokens",
		"STS", q.world.STS.URL+"\tlets the proxy, and only the proxy, assume roles",
		"S3", q.world.Backends[0].URL+"\tversitygw, with the bucket "+bucket,
		"proxy", q.proxy.URL+"\tin front of it; health and metrics at "+q.proxy.AdminURL,
	)
	if demo {
		return q.demo(ctx)
	}
	if err := q.invite(ctx); err != nil {
		return err
	}
	return q.proxy.Stop()
}

// policies are the starter policies with their data filled in: in the bucket, each project has the folder of its name,
// and AWS itself is told to hold each session to the bucket.
func (q *quickstart) policies() (string, error) {
	module, err := world.ModuleDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(q.world.Dir, "policies")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(module, "policies"))); err != nil {
		return "", err
	}
	for file, data := range map[string]string{
		"prefixes.yaml": "prefixes: {buckets: {" + bucket + ": project}}\n",
		"roles.yaml":    "roles: {" + q.world.Backends[0].Name + ": {narrow: true}}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(data), 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// workspace makes a workspace's token, and the files that its clients read.
func (q *quickstart) workspace(name, project, user string) (workspace, error) {
	w := workspace{name: name, project: project, user: user, token: q.world.Workspace(name, project, user)}
	w.tokenFile = filepath.Join(q.world.Dir, project+".token")
	w.envFile = filepath.Join(q.world.Dir, project+".env")
	var env strings.Builder
	for _, v := range w.env(q.proxy.URL) {
		fmt.Fprintf(&env, "export %s\n", v)
	}
	env.WriteString("unset AWS_PROFILE AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_CA_BUNDLE\n")
	return w, errors.Join(
		os.WriteFile(w.tokenFile, []byte(w.token), 0o600),
		os.WriteFile(w.envFile, []byte(env.String()), 0o600),
	)
}

// env is all that an unmodified AWS SDK or CLI needs to know.
func (w *workspace) env(proxy string) []string {
	return []string{
		"AWS_WEB_IDENTITY_TOKEN_FILE=" + w.tokenFile,
		"AWS_ROLE_ARN=" + role,
		// The aws CLI keeps sessions in ~/.aws/cli/cache by role and session name: without a name of its own it would
		// use the session of another workspace, or of yesterday's quickstart.
		"AWS_ROLE_SESSION_NAME=" + w.name + "-" + filepath.Base(filepath.Dir(w.tokenFile)),
		"AWS_ENDPOINT_URL_STS=" + proxy,
		"AWS_ENDPOINT_URL_S3=" + proxy,
		"AWS_REGION=us-east-1",
		"AWS_DEFAULT_REGION=us-east-1", // what the aws CLI's version 1 and boto3 read
	}
}

// invite prints what to paste, and then what the proxy writes down about it, until ctx ends.
func (q *quickstart) invite(ctx context.Context) error {
	dir := q.world.Dir
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "hello.txt"), []byte("hello\n"), 0o644),
		os.Symlink(q.proxy.Program, filepath.Join(dir, "proxy")),
	); err != nil {
		return err
	}
	object := q.proxy.URL + "/" + bucket + "/web/hello.txt"
	bearer := func(w workspace, rest string) string {
		return fmt.Sprintf(`curl -sS -H "Authorization: Bearer $(cat %s)" %s`, filepath.Base(w.tokenFile), rest)
	}
	q.text("Two workspaces hold a token for an hour: %s of project %s, and %s of project %s. Policy gives each project the folder of its name. Paste into another terminal, with bash or zsh:",
		q.web.name, q.web.project, q.data.name, q.data.project)
	q.heading("their tokens and files are here")
	q.paste("cd " + dir)
	q.heading("curl: the token is all there is")
	q.paste(
		bearer(q.web, "-T hello.txt "+object),
		bearer(q.web, object),
	)
	q.heading("aws, or anything made with an AWS SDK: by environment variables alone")
	q.paste(
		"cat "+filepath.Base(q.web.envFile),
		fmt.Sprintf(`( . ./%s; aws s3 cp hello.txt s3://%s/web/cli.txt; aws s3 ls s3://%s/web/ )`, filepath.Base(q.web.envFile), bucket, bucket),
	)
	q.heading("older clients: the token as session token, beside any key")
	q.paste(
		`AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any AWS_SESSION_TOKEN=$(cat `+filepath.Base(q.web.tokenFile)+`) \`,
		fmt.Sprintf(`  aws --region us-east-1 --endpoint-url %s s3 ls s3://%s/web/`, q.proxy.URL, bucket),
	)
	q.heading("another project's workspace may not read it, and is told why")
	q.paste(bearer(q.data, object+"; echo"))
	q.heading("what was written down: one line for each request, bound to the one before")
	q.paste(
		"tail -n 1 "+filepath.Base(q.proxy.AuditFile),
		"./proxy audit verify "+filepath.Base(q.proxy.AuditFile),
	)
	q.heading("what a request would be answered, without sending it: change a file of policies/ and ask again")
	q.paste("./proxy explain --config " + filepath.Base(q.proxy.ConfigFile) + " --token-file " + filepath.Base(q.data.tokenFile) + " GET " + object)
	q.heading("end a workspace's access, its sessions too")
	q.paste(
		fmt.Sprintf(`curl -sS %s/revocations -d '{"session": "%s"}'`, q.proxy.AdminURL, q.web.name),
		bearer(q.web, object+"; echo"),
	)
	q.text("Requests show up here as they are written down. Ctrl-C ends it all.")
	fmt.Fprintln(q.out)
	return q.follow(ctx)
}

// follow prints events as they come.
func (q *quickstart) follow(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for seen := 0; ; {
		events, err := q.proxy.Events()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for ; seen < len(events); seen++ {
			q.event(events[seen])
		}
		select {
		case <-tick.C:
		case <-q.proxy.Done():
			return fmt.Errorf("the proxy ended:\n%s", q.proxy.Log())
		case <-ctx.Done():
			q.text("Stopping.")
			return nil
		}
	}
}

func (q *quickstart) event(e audit.Event) {
	who := e.Identity.Session
	if who == "" {
		who = "nobody"
	}
	where := "/" + strings.Trim(e.Bucket+"/"+e.Key, "/")
	why := e.Error
	if len(e.Decision.Reasons) > 0 {
		why = strings.Join(e.Decision.Reasons, "; ")
	}
	fmt.Fprintf(q.out, "  %s  %-6s  %-25s  %-26s  %d %s  %s\n", e.Time.Local().Format(time.TimeOnly), who, e.Operation, where, e.Status, e.Outcome, q.dim(why))
}
