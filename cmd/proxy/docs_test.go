package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/goccy/go-yaml"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/examples/world"
	"github.com/sluice-s3/sluice/policy"
)

// snippet is a fenced block of the documentation.
type snippet struct {
	file           string // from the module's root
	line           int
	language, text string
}

func (s snippet) String() string {
	first, _, _ := strings.Cut(strings.TrimSpace(s.text), "\n")
	return fmt.Sprintf("%s:%d: %.60s", s.file, s.line, first)
}

// treatments say what is done with each snippet: the first that fits is taken. One that fits nothing is a mistake, and so is
// a treatment that nothing is left of. What is not tried has its reason here.
var treatments = []struct {
	file, language, begins string // a glob over the file; what the snippet begins with, after white space
	do                     func(*testing.T, *docsWorld, snippet)
}{
	{"README.md", "", "workspace", untried("a picture")},
	{"README.md", "sh", "go run ./examples/quickstart", untried("the test suite itself, and the quickstart, whose own tests run it")},
	{"README.md", "yaml", "listen:", wholeConfiguration},
	{"README.md", "sh", "TOKEN=$(gitpod idp token", shell(map[string]string{"my-bucket/hello.txt": "artifacts/web/hello.txt"}, `^hello$`, "curl")},
	{"README.md", "sh", "# session credentials", either(`assumed-role/workspace/`, ` artifacts$`)},
	{"README.md", "rego", "package s3.authz", rego("")},

	{"docs/audit.md", "json", `{"schema"`, auditEvent},
	{"docs/audit.md", "sh", "proxy audit verify", shell(nil, `audit\.jsonl: ok: \d+ lines`)},
	{"docs/audit.md", "sh", "openssl genpkey", shell(map[string]string{"-out audit.key": "-out another.key", "-in audit.key -pubout -out audit.pub": "-in another.key -pubout -out another.pub"}, `audit\.jsonl: ok: .* [1-9]\d* checkpoints`, "openssl")},
	{"docs/audit.md", "sh", "proxy audit tail", shell(map[string]string{"audit tail": "audit tail --no-follow", "> refused.csv": "| tee refused.csv"}, `(?s)\(env-2\).*403.*ben@acme.com,GetObject,artifacts,web/hello.txt,refused`)},
	{"docs/audit.md", "sh", "jq", elsewhere("audit/docs_test.go", "jq .*?")},
	{"docs/audit.md", "sh", "zstd", elsewhere("audit/docs_test.go", "zstd .*?")},
	{"docs/audit.md", "sql", "SELECT", elsewhere("audit/docs_test.go", "```sql")},
	{"docs/audit.md", "sql", "CREATE TABLE", elsewhere("audit/docs_test.go", "```sql")},
	{"docs/audit.md", "yaml", "audit:", pieceOfConfiguration},

	{"docs/aws-setup.md", "yaml", "credentials:", credentialsOfBackend},
	{"docs/aws-setup.md", "json", "{", iamPolicy},
	{"docs/clients.md", "sh", "go run ./test/clients", goProgram},
	{"docs/configuration.md", "yaml", "listen:", wholeConfiguration},
	{"docs/identity.md", "json", `{"issuer"`, revocation},
	{"docs/operating.md", "yaml", "listen:", pieceOfConfiguration},
	{"docs/performance.md", "console", "go run ./bench", goProgram},
	{"docs/policy.md", "yaml", "policy:", pieceOfConfiguration},
	{"docs/policy.md", "rego", "deny contains", rego("allow if input.action == \"s3:GetObject\"\n")},
	{"docs/policy.md", "rego", "# one look-up", rego("")}, // and proxy check names the second of its rules
	{"docs/replicas.md", "", "publish:", elsewhere("proxy/identity/announce_test.go", "func TestNATSPermissions")},
	{"docs/replicas.md", "", "defaults", haproxy},
	{"docs/telemetry.md", "yaml", "telemetry:", pieceOfConfiguration},

	{"policies/README.md", "yaml", "policy:", pieceOfConfiguration},
	{"policies/README.md", "sh", "proxy policy test", shell(nil, `PASS: \d+/\d+`)},
	{"policies/README.md", "yaml", "# prefixes.yaml", inForce("web/hello.txt", true)},
	{"policies/README.md", "yaml", "# grants.yaml", inForce("shared/hello.txt", true)},

	{"examples/grafana/README.md", "yaml", "# prometheus.yml", promtool},
	{"examples/kubernetes/README.md", "console", "$ kubectl", kubectl},
	{"examples/minio/README.md", "sh", "mc alias", untried("MinIO, which is not to be had; written by its manual")},
	{"examples/policy-repo/README.md", "sh", "openssl genrsa", shell(nil, ``, "openssl")},
	{"examples/terraform/README.md", "sh", "terraform init", untried("an AWS account; .ci/run has terraform look at the files")},
	{"examples/versitygw/README.md", "sh", "mkdir", untried("versitygw's program; its server is every test's backend")},
}

// TestSnippets tries every snippet of the documentation.
func TestSnippets(t *testing.T) {
	all := snippets(t)
	w := &docsWorld{}
	t.Cleanup(w.stop)
	used := make([]bool, len(treatments))
	for _, s := range all {
		i := slices.IndexFunc(treatments, func(of struct {
			file, language, begins string
			do                     func(*testing.T, *docsWorld, snippet)
		}) bool {
			return of.file == s.file && of.language == s.language && strings.HasPrefix(strings.TrimSpace(s.text), of.begins)
		})
		if i < 0 {
			t.Errorf("%s: nothing here tries it: give it a treatment", s)
			continue
		}
		used[i] = true
		t.Run(s.String(), func(t *testing.T) { treatments[i].do(t, w, s) })
	}
	for i, was := range used {
		if !was {
			t.Errorf("there is no snippet of %s any more that begins with %q", treatments[i].file, treatments[i].begins)
		}
	}
}

const moduleRoot = "../.."

// documents are the pages that people read.
func documents(t *testing.T) []string {
	t.Helper()
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "policies/*.md", "examples/*/*.md"} {
		found, err := fs.Glob(os.DirFS(moduleRoot), pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no pages %s: %v", pattern, err)
		}
		pages = append(pages, found...)
	}
	return pages
}

var fence = regexp.MustCompile("^( *)```(.*)$")

func snippets(t *testing.T) []snippet {
	t.Helper()
	var all []snippet
	for _, page := range documents(t) {
		text, err := os.ReadFile(filepath.Join(moduleRoot, page))
		if err != nil {
			t.Fatal(err)
		}
		var open *snippet
		indent := ""
		number := 0
		for line := range strings.Lines(string(text)) {
			number++
			switch m := fence.FindStringSubmatch(strings.TrimRight(line, "\n")); {
			case m == nil && open != nil:
				open.text += strings.TrimPrefix(line, indent)
			case m == nil:
			case open == nil:
				open, indent = &snippet{file: page, line: number + 1, language: m[2]}, m[1]
			default:
				all, open = append(all, *open), nil
			}
		}
		if open != nil {
			t.Errorf("%s: does not end", open)
		}
	}
	if len(all) < 40 {
		t.Fatalf("found %d snippets: fewer than there are", len(all))
	}
	return all
}

func untried(needs string) func(*testing.T, *docsWorld, snippet) {
	return func(t *testing.T, _ *docsWorld, _ snippet) { t.Skipf("not tried here: %s", needs) }
}

// elsewhere says which test runs a snippet, and that it is still there.
func elsewhere(file, mark string) func(*testing.T, *docsWorld, snippet) {
	return func(t *testing.T, _ *docsWorld, _ snippet) {
		if text, err := os.ReadFile(filepath.Join(moduleRoot, file)); err != nil || !strings.Contains(string(text), mark) {
			t.Errorf("%s does not run it any more (%v)", file, err)
		}
	}
}

func wholeConfiguration(t *testing.T, _ *docsWorld, s snippet)   { loadExample(t, s.text, false) }
func pieceOfConfiguration(t *testing.T, _ *docsWorld, s snippet) { loadExample(t, s.text, true) }

// credentialsOfBackend loads a backend's credentials in a backend.
func credentialsOfBackend(t *testing.T, _ *docsWorld, s snippet) {
	var piece map[string]any
	if err := yaml.Unmarshal([]byte(s.text), &piece); err != nil || len(piece) != 1 || piece["credentials"] == nil {
		t.Fatalf("not credentials: %v", err)
	}
	loadExample(t, jsonOf(map[string]any{"backends": []any{map[string]any{
		"name": "b", "buckets": []any{"*"}, "region": "eu-west-1", "credentials": piece["credentials"],
	}}}), true)
}

func strictJSON(t *testing.T, text string, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Error(err)
	}
}

func auditEvent(t *testing.T, _ *docsWorld, s snippet) {
	var e audit.Event
	strictJSON(t, s.text, &e)
	if e.Schema != audit.Schema {
		t.Errorf("schema %q", e.Schema)
	}
}

// iamPolicy holds a policy of AWS to the language's own words.
func iamPolicy(t *testing.T, _ *docsWorld, s snippet) {
	var p struct {
		Version   string
		Statement []struct {
			Sid, Effect              string
			Principal                map[string]string
			Action                   any
			NotAction, Resource, And any
			Condition                map[string]map[string]any
		}
	}
	strictJSON(t, s.text, &p)
	if p.Version != "2012-10-17" || len(p.Statement) == 0 {
		t.Errorf("version %q, %d statements", p.Version, len(p.Statement))
	}
	action := regexp.MustCompile(`^"?(s3|sts):[A-Za-z*]+"?$`)
	for i, st := range p.Statement {
		actions, isList := st.Action.([]any)
		if !isList {
			actions = []any{st.Action}
		}
		for _, a := range actions {
			if name, _ := a.(string); !action.MatchString(name) {
				t.Errorf("statement %d: action %v", i, a)
			}
		}
		if st.Effect != "Allow" && st.Effect != "Deny" || (st.Principal == nil) == (st.Resource == nil) {
			t.Errorf("statement %d: %+v", i, st)
		}
	}
}

// rego loads a policy as the proxy would, with what the snippet leaves to the reader.
func rego(besides string) func(*testing.T, *docsWorld, snippet) {
	return func(t *testing.T, _ *docsWorld, s snippet) {
		text := s.text
		if !strings.HasPrefix(text, "package ") {
			text = "package s3.authz\n\n" + text
		}
		dir := t.TempDir()
		write(t, filepath.Join(dir, "authz.rego"), []byte(text+besides))
		write(t, filepath.Join(dir, "data.json"), []byte(`{"grants": [{"project": "web", "bucket": "artifacts"}]}`))
		engine, err := policy.Open(t.Context(), policy.Config{Dir: dir, Entrypoint: "s3/authz"}, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		costly := false
		for _, f := range engine.Lint() {
			if f.Kind == "schema" || f.Kind == "strict" {
				t.Errorf("%s", f)
			}
			costly = costly || f.Kind == "cost"
		}
		if meant := strings.Contains(s.text, "# every grant, for every request"); costly != meant {
			t.Errorf("proxy check calls it costly: %v; the page says %v", costly, meant)
		}
	}
}

// docsWorld is the quickstart's world with the real proxy in it, whose policy is the one that policies/README.md shows.
type docsWorld struct {
	once sync.Once
	*world.World
	proxy    *world.Proxy
	dir      string // where snippets run
	web, api string // tokens
	names    *strings.Replacer
}

func (w *docsWorld) stop() {
	if w.World != nil {
		w.World.Stop()
		os.RemoveAll(w.dir)
	}
}

// start starts it when it is first needed.
func (w *docsWorld) start(t *testing.T) *docsWorld {
	t.Helper()
	w.once.Do(func() { w.build(t) })
	if w.proxy == nil {
		t.Fatal("the docs' world is not there")
	}
	return w
}

func (w *docsWorld) build(t *testing.T) {
	var err error
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.dir, err = os.MkdirTemp("", "sluice-docs-")
	must(err)
	must(os.CopyFS(filepath.Join(w.dir, "policies"), os.DirFS(filepath.Join(moduleRoot, "policies"))))
	for _, s := range snippets(t) {
		if name, ok := strings.CutPrefix(strings.SplitN(s.text, "\n", 2)[0], "# "); ok && s.file == "policies/README.md" && s.language == "yaml" {
			must(os.WriteFile(filepath.Join(w.dir, "policies", name), []byte(s.text), 0o644))
		}
	}
	// The key of the page on the audit log, made by the page's own commands.
	makeKey := exec.Command("bash", "-ec", "openssl genpkey -algorithm ed25519 -out audit.key; openssl pkey -in audit.key -pubout -out audit.pub; openssl genpkey -algorithm ed25519 | openssl pkey -pubout -out audit-2025.pub") // one that was replaced
	makeKey.Dir = w.dir
	set := map[string]any{}
	if _, err := exec.LookPath("openssl"); err == nil {
		must(makeKey.Run())
		set["audit.signing_key_file"] = filepath.Join(w.dir, "audit.key")
	}
	// Not t's context, which ends with the first snippet that needs the world.
	w.World, err = world.Start(context.Background(), world.Options{Buckets: []string{"artifacts"}})
	must(err)
	for _, key := range []string{"web/hello.txt", "api/hello.txt", "shared/hello.txt"} {
		_, err := w.S3Client().PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("artifacts"), Key: aws.String(key), Body: strings.NewReader("hello\n")})
		must(err)
	}
	config, err := w.ProxyConfig(world.ProxyOptions{Dir: w.dir, PolicyDir: filepath.Join(w.dir, "policies"), Set: set})
	must(err)
	must(os.WriteFile(filepath.Join(w.dir, "sluice.yaml"), []byte(config), 0o600))
	// Something to read in the log: one that went well, and one that was refused. Then the log is closed once, with a
	// checkpoint, and goes on.
	w.web, w.api = w.Workspace("env-1", "web", "ada@acme.com"), w.Workspace("env-2", "api", "ben@acme.com")
	proxy, err := w.StartProxy(context.Background(), config)
	must(err)
	for token, want := range map[string]int{w.web: 200, w.api: 403} {
		if status, body := w.get(t, token, proxy.URL+"/artifacts/web/hello.txt"); status != want {
			t.Fatalf("%d %s", status, body)
		}
	}
	must(proxy.Stop())
	proxy, err = w.StartProxy(context.Background(), config)
	must(err)
	must(os.WriteFile(filepath.Join(w.dir, "token"), []byte(w.web), 0o600))

	bin := filepath.Join(w.dir, "bin")
	must(os.Mkdir(bin, 0o755))
	must(os.Symlink(proxy.Program, filepath.Join(bin, "proxy")))
	must(os.WriteFile(filepath.Join(bin, "gitpod"), []byte("#!/bin/sh\n[ \"$1 $2 $3\" = 'idp token --audience' ] && cat "+w.dir+"/token\n"), 0o755))
	w.names = strings.NewReplacer("https://s3.example.com", proxy.URL, "/var/log/sluice", w.dir, "/run/token", filepath.Join(w.dir, "token"))
	w.proxy = proxy
}

func (w *docsWorld) get(t *testing.T, token, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := w.HTTPClient().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(text)
}

// run runs a line of shell as a workspace has it: no keys, the real proxy on the path.
func (w *docsWorld) run(t *testing.T, text string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", text)
	c.Dir = w.dir
	c.Env = []string{
		"PATH=" + filepath.Join(w.dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + w.dir, "AWS_PAGER=",
		"PYENV_ROOT=" + os.Getenv("PYENV_ROOT"), "AWS_EC2_METADATA_DISABLED=true", "GORACE=" + os.Getenv("GORACE"), "TOKEN=" + w.web,
	}
	if home := os.Getenv("HOME"); os.Getenv("PYENV_ROOT") == "" { // pyenv, which many have aws by, keeps itself there
		c.Env = append(c.Env, "PYENV_ROOT="+filepath.Join(home, ".pyenv"))
	}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("%v:\n%s\n%s", err, text, out)
	}
	return string(out)
}

// shell runs a snippet, with the world's names for those of the page, and holds what it prints to a pattern.
func shell(changes map[string]string, want string, tools ...string) func(*testing.T, *docsWorld, snippet) {
	return func(t *testing.T, w *docsWorld, s snippet) {
		for _, tool := range tools {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("SKIPPED: this machine has no %s", tool)
			}
		}
		text := s.text
		for old, new := range changes {
			if !strings.Contains(text, old) {
				t.Fatalf("there is no %q any more", old)
			}
			text = strings.ReplaceAll(text, old, new)
		}
		w.start(t)
		if out := w.run(t, w.names.Replace(text)); !regexp.MustCompile("(?m)" + want).MatchString(out) {
			t.Errorf("%s\nprinted, and not %s:\n%s", text, want, out)
		}
	}
}

// either runs both halves of the README's "either of", each in a shell of its own.
func either(first, second string) func(*testing.T, *docsWorld, snippet) {
	return func(t *testing.T, w *docsWorld, s snippet) {
		one, two, ok := strings.Cut(s.text, "\n# or ")
		if !ok {
			t.Fatal("there are no two halves any more")
		}
		shell(nil, first, "aws")(t, w, snippet{s.file, s.line, s.language, one + "\naws sts get-caller-identity\naws s3 ls s3://artifacts/web/"})
		shell(nil, second, "aws")(t, w, snippet{s.file, s.line, s.language, "# or " + two})
	}
}

// inForce holds the policy that the page shows to what the page says of it.
func inForce(key string, web bool) func(*testing.T, *docsWorld, snippet) {
	return func(t *testing.T, w *docsWorld, s snippet) {
		w.start(t)
		if status, body := w.get(t, w.web, w.proxy.URL+"/artifacts/"+key); (status == 200) != web {
			t.Errorf("web: %d %s", status, body)
		}
		if status, _ := w.get(t, w.api, w.proxy.URL+"/artifacts/"+key); status != 403 {
			t.Errorf("api: %d", status)
		}
	}
}

func revocation(t *testing.T, w *docsWorld, s snippet) {
	w.start(t)
	text := strings.ReplaceAll(s.text, "https://app.gitpod.io", w.Issuer.URL())
	response, err := http.Post(w.proxy.AdminURL+"/revocations", "application/json", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if answer, _ := io.ReadAll(response.Body); response.StatusCode != 201 {
		t.Errorf("%d %s", response.StatusCode, answer)
	}
}

// goProgram holds `go run` of a program of ours to the flags that it has, and does not run it: it takes minutes.
func goProgram(t *testing.T, _ *docsWorld, s snippet) {
	for line := range strings.Lines(s.text) {
		words := strings.Fields(strings.SplitN(line, "#", 2)[0])
		if len(words) < 3 || words[0] != "go" || words[1] != "run" {
			t.Errorf("not go run: %s", line)
			continue
		}
		sources, err := filepath.Glob(filepath.Join(moduleRoot, words[2], "*.go"))
		if err != nil || len(sources) == 0 {
			t.Errorf("there is no program %s", words[2])
		}
		var code []byte
		for _, name := range sources {
			text, _ := os.ReadFile(name)
			code = append(code, text...)
		}
		for _, word := range words[3:] {
			if flag, ok := strings.CutPrefix(word, "-"); ok && !regexp.MustCompile(`flag\.\w+\([^"\n]*"`+regexp.QuoteMeta(flag)+`"`).Match(code) {
				t.Errorf("%s has no flag -%s", words[2], flag)
			}
		}
	}
}

// haproxy has HAProxy look at its configuration.
func haproxy(t *testing.T, _ *docsWorld, s snippet) {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("SKIPPED: this machine has no haproxy")
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	write(t, file, []byte(s.text))
	// The page leaves the frontend to the reader, without which HAProxy finds nothing wrong, and will not start.
	if out, err := exec.Command(program, "-c", "-f", file).CombinedOutput(); err != nil && !strings.Contains(string(out), "Configuration file has no error") {
		t.Errorf("%v\n%s", err, out)
	}
}

// promtool has Prometheus look at its configuration, and at the rules that it names.
func promtool(t *testing.T, _ *docsWorld, s snippet) {
	program, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIPPED: this machine has no promtool")
	}
	dir := t.TempDir()
	rules, err := os.ReadFile(filepath.Join(moduleRoot, filepath.Dir(s.file), "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "alerts.yaml"), rules)
	write(t, filepath.Join(dir, "prometheus.yml"), []byte(s.text))
	if out, err := exec.Command(program, "check", "config", filepath.Join(dir, "prometheus.yml")).CombinedOutput(); err != nil || !strings.Contains(string(out), "rules found") {
		t.Errorf("%v\n%s", err, out)
	}

	// The dashboard's queries are the same language, and nobody else reads them before Grafana does.
	text, err := os.ReadFile(filepath.Join(moduleRoot, filepath.Dir(s.file), "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var queries []any
	for _, m := range regexp.MustCompile(`"expr":\s*("(?:[^"\\]|\\.)*")`).FindAllSubmatch(text, -1) {
		var query string
		if err := json.Unmarshal(m[1], &query); err != nil {
			t.Fatal(err)
		}
		query = strings.NewReplacer("$__rate_interval", "5m", "$__interval", "1m", "$__range", "1h").Replace(query)
		query = regexp.MustCompile(`\$\w+|\$\{\w+\}`).ReplaceAllString(query, "x")
		queries = append(queries, map[string]any{"record": "panel", "labels": map[string]string{"n": fmt.Sprint(len(queries))}, "expr": query})
	}
	if len(queries) < 10 {
		t.Errorf("the dashboard has %d queries", len(queries))
	}
	write(t, filepath.Join(dir, "panels.json"), []byte(jsonOf(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": queries}}})))
	if out, err := exec.Command(program, "check", "rules", "--lint=none", filepath.Join(dir, "panels.json")).CombinedOutput(); err != nil {
		t.Errorf("the dashboard: %v\n%s", err, out)
	}
}

// kubectl holds what is made by hand to what the manifests ask for: there is no cluster here.
func kubectl(t *testing.T, _ *docsWorld, s snippet) {
	var manifests []byte
	names, _ := filepath.Glob(filepath.Join(moduleRoot, "examples/kubernetes/*.yaml"))
	for _, name := range names {
		text, _ := os.ReadFile(name)
		manifests = append(manifests, text...)
	}
	made := regexp.MustCompile(`create (?:secret (?:generic|tls)|configmap|namespace) (\S+)`).FindAllStringSubmatch(s.text, -1)
	if len(made) < 4 {
		t.Errorf("makes %d things", len(made))
	}
	for _, m := range made {
		if !regexp.MustCompile(`(?m)[nN]ame: "?` + regexp.QuoteMeta(m[1]) + `\b`).Match(manifests) {
			t.Errorf("no manifest asks for %s", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`--from-file=(\S+)`).FindAllStringSubmatch(s.text, -1) {
		if !bytes.Contains(manifests, []byte("/"+m[1])) && !bytes.Contains(manifests, []byte(m[1]+"}")) {
			t.Errorf("no manifest asks for a file %s", m[1])
		}
	}
}

// TestCommandsInTheDocs has the real command line look at every command of ours that is shown anywhere: in prose, in
// tables, in scripts, units, images and manifests. One that is shown in full is parsed in full.
func TestCommandsInTheDocs(t *testing.T) {
	shown := regexp.MustCompile(`(?:^|[\s"'(=/])proxy ((?:serve|check|explain|policy|audit|credentials|healthcheck|version)\b[^` + "`" + `\n<|]*)|` + "`" + `proxy ([a-z-]+[^` + "`" + `\n]*)`)
	lists := strings.NewReplacer(`", "`, " ", "[serve, ", "proxy serve ", ", --", " --", ", /", " /") // JSON's and YAML's way to write words
	found := 0
	for _, file := range copied(t) {
		text, err := os.ReadFile(filepath.Join(moduleRoot, file))
		if err != nil {
			t.Fatal(err)
		}
		number := 0
		for line := range strings.Lines(string(text)) {
			number++
			if strings.Contains(line, `"/proxy", "`) || strings.Contains(line, "args: [serve") {
				line = strings.TrimRight(lists.Replace(line), "]}\n ")
				line = regexp.MustCompile(`(healthcheck(?: --ready)?)".*`).ReplaceAllString(line, "$1")
			}
			for _, m := range shown.FindAllStringSubmatch(line, -1) {
				found++
				inProse := strings.Contains(line, "`proxy ") && !strings.HasPrefix(line, "| `proxy ")
				command := m[1] + m[2]
				if err := parseShown(command, inProse); err != nil {
					t.Errorf("%s:%d: proxy %s: %v", file, number, command, err)
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("found %d commands: fewer than there are", found)
	}
}

// copied are the files that show commands.
func copied(t *testing.T) []string {
	t.Helper()
	files := append(documents(t), "Dockerfile")
	err := fs.WalkDir(os.DirFS(moduleRoot), "examples", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) != ".go" && filepath.Ext(path) != ".md" {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// parseShown parses a command as it is shown. In prose, what it needs besides may be left out.
func parseShown(text string, inProse bool) error {
	words, err := shellWords(strings.NewReplacer(" …", " X", "…", "", "[DIR]", "DIR").Replace(text))
	if err != nil {
		return err
	}
	parser, err := newParser(io.Discard, io.Discard, func(int) {})
	if err != nil {
		return err
	}
	_, err = parser.Parse(words)
	var wrong *kong.ParseError
	if inProse && errors.As(err, &wrong) && (strings.HasPrefix(wrong.Error(), "missing flags") || strings.HasPrefix(wrong.Error(), "expected ")) {
		return nil
	}
	return err
}

// shellWords splits a line as a shell does, up to where the command ends.
func shellWords(line string) (words []string, err error) {
	word, in := "", false
	quote := rune(0)
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ' || r == '\t':
			if in {
				words, word, in = append(words, word), "", false
			}
		case strings.ContainsRune("|>;&)", r) || r == '#' && !in:
			if in {
				words = append(words, word)
			}
			return words, nil
		default:
			word, in = word+string(r), true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%c does not end", quote)
	}
	if in {
		words = append(words, word)
	}
	return words, nil
}
