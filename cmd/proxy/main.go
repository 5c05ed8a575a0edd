// Command proxy is Sluice: keyless S3 for workspaces. It is the only place that knows files, flags and signals.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/sluice-s3/sluice/audit"
)

// Exit statuses: 1 is something that failed, 2 is a command that was not understood.
const (
	exitFailed = 1
	exitMisuse = 2
)

// commands is the command line.
type commands struct {
	Serve       serveCommand       `cmd:"" help:"Run the proxy."`
	Check       checkCommand       `cmd:"" help:"Look for mistakes in a configuration."`
	Credentials credentialsCommand `cmd:"" help:"Exchange the workspace token for AWS credentials (credential_process)."`
	Explain     explainCommand     `cmd:"" help:"Why a request is, or was, allowed or refused."`
	Policy      policyCommands     `cmd:"" help:"Test policies."`
	Audit       auditCommands      `cmd:"" help:"Read and verify the audit log."`
	Healthcheck healthcheckCommand `cmd:"" help:"Ask a running proxy whether it is well, for containers."`
	Version     versionCommand     `cmd:"" help:"Print version, commit and Go version."`
}

// example is a command that shows one with its help.
type example interface{ Example() string }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run runs one command and returns its exit status.
func run(args []string, stdout, stderr io.Writer) int {
	exit := -1
	parser, err := newParser(stdout, stderr, func(code int) { exit = code })
	if err != nil {
		fmt.Fprintln(stderr, "proxy:", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	ctx, err := parser.Parse(args)
	if exit >= 0 { // --help
		return exit
	}
	if err != nil {
		command := "proxy"
		if at, ok := errors.AsType[*kong.ParseError](err); ok && at.Context != nil {
			command = strings.TrimSpace("proxy " + commandName(at.Context))
		}
		fmt.Fprintf(stderr, "%s: %s; see %[1]s --help\n", command, oneLine(err))
		return exitMisuse
	}
	if err := ctx.Run(); err != nil {
		var quiet *exitError
		if errors.As(err, &quiet) {
			return quiet.code
		}
		for _, problem := range problems(err) {
			fmt.Fprintf(stderr, "proxy %s: %s\n", commandName(ctx), problem)
		}
		if _, ok := errors.AsType[misuse](err); ok {
			return exitMisuse
		}
		return exitFailed
	}
	return 0
}

// problems is what an error says, one problem a line. Errors that were joined are one problem each, and what was said
// before them holds for each.
func problems(err error) (lines []string) {
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		var texts []string
		for _, one := range e.Unwrap() {
			texts = append(texts, one.Error())
			lines = append(lines, problems(one)...)
		}
		if strings.Join(texts, "\n") == err.Error() {
			return lines
		}
	case interface{ Unwrap() error }:
		inner := e.Unwrap()
		if inner == nil {
			break
		}
		if before, ok := strings.CutSuffix(err.Error(), inner.Error()); ok {
			for _, line := range problems(inner) {
				lines = append(lines, oneLine(errors.New(before+line)))
			}
			return lines
		}
	}
	return []string{oneLine(err)}
}

// misuse is of flags that say nothing, or nothing together: the command was not understood, and did nothing.
type misuse struct{ error }

func newParser(stdout, stderr io.Writer, exit func(int)) (*kong.Kong, error) {
	return kong.New(new(commands),
		kong.Name("proxy"),
		kong.Description("Sluice: S3 for workspaces that hold an OIDC token and no keys."),
		kong.Writers(stdout, stderr),
		kong.Exit(exit),
		kong.Help(helpWithExample),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Vars{"columns": strings.Join(audit.QueryColumns(), ", ")},
		kong.BindTo(stdout, (*io.Writer)(nil)),
	)
}

// commandName is the command without its arguments.
func commandName(ctx *kong.Context) string {
	var words []string
	for word := range strings.FieldsSeq(ctx.Command()) {
		if strings.HasPrefix(word, "<") || strings.HasPrefix(word, "[") {
			break
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// exitError ends a command that has said all there is to say.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func helpWithExample(options kong.HelpOptions, ctx *kong.Context) error {
	if err := kong.DefaultHelpPrinter(options, ctx); err != nil {
		return err
	}
	node := ctx.Selected()
	if node == nil || !node.Target.CanAddr() {
		fmt.Fprint(ctx.Stdout, "\nExample:\n  proxy serve --config sluice.yaml\n")
		return nil
	}
	if e, ok := node.Target.Addr().Interface().(example); ok {
		fmt.Fprintf(ctx.Stdout, "\nExample:\n  %s\n", strings.ReplaceAll(strings.TrimSpace(e.Example()), "\n", "\n  "))
	}
	return nil
}
