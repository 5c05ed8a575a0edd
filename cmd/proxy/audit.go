package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/sluice-s3/sluice/audit"
)

type auditCommands struct {
	Verify auditVerifyCommand `cmd:"" help:"Check that no line was changed, removed, added or moved."`
	Tail   auditTailCommand   `cmd:"" help:"Follow the log: time, who, operation, where, decision, status, bytes."`
	Query  auditQueryCommand  `cmd:"" help:"Ask the log who did what, where and when."`
}

type auditVerifyCommand struct {
	Paths     []string `arg:"" name:"audit" help:"The log's file, its rotated and compressed files, or their directory."`
	PublicKey []string `placeholder:"FILE" sep:"none" help:"Ed25519 public key (PEM) that the checkpoints must be signed with. Where the key was changed, again for each that it has replaced, the newest first."`
	MinSeq    uint64   `placeholder:"N" help:"A line that must be there: what you noted last time."`
	FromStart bool     `help:"Demand the very first line too, also where old files were removed for their age."`
}

func (auditVerifyCommand) Example() string {
	return "proxy audit verify --public-key audit.pub /var/log/sluice/audit.jsonl"
}

func (cmd auditVerifyCommand) Run(out io.Writer) error {
	options := audit.VerifyOptions{MinSeq: cmd.MinSeq, FromStart: cmd.FromStart}
	for _, file := range cmd.PublicKey {
		key, err := audit.ReadPublicKey(file)
		if err != nil {
			return fmt.Errorf("--public-key: %w", err)
		}
		options.PublicKeys = append(options.PublicKeys, key)
	}
	report, err := audit.Verify(context.Background(), cmd.Paths, options)
	if err != nil {
		return err
	}
	report.Print(out)
	if !report.OK() {
		return &exitError{exitFailed}
	}
	return nil
}

// auditFilter is the flags by which events are chosen.
type auditFilter struct {
	Who           string   `placeholder:"NAME" help:"Subject, session, user or workspace; * stands for anything."`
	Bucket        string   `help:"Requests that named it or needed it."`
	KeyPrefix     string   `placeholder:"PREFIX" help:"Keys that begin so."`
	Operation     string   `placeholder:"NAME" help:"GetObject, PutObject, …"`
	Outcome       []string `placeholder:"OUTCOME" help:"completed, refused, failed, aborted, revoked, interrupted."`
	Refused       bool     `help:"Requests of which anything was refused."`
	ShadowDiffers bool     `help:"Requests that the shadow policy would have decided otherwise."`
	Since         string   `placeholder:"TIME" help:"A time (2026-11-23, 2026-11-23T08:00:00Z), or how long ago (90m, 24h, 7d)."`
	Until         string   `placeholder:"TIME" help:"The same; events before it."`
	ID            string   `name:"id" placeholder:"ID" help:"The request with this x-amz-request-id or x-sluice-request-id."`
}

var outcomes = []audit.Outcome{audit.Completed, audit.Refused, audit.Failed, audit.Aborted, audit.Revoked, audit.Interrupted}

func (f auditFilter) filter() (audit.Filter, error) {
	filter := audit.Filter{
		Who: f.Who, Bucket: f.Bucket, KeyPrefix: f.KeyPrefix, Operation: f.Operation,
		Refused: f.Refused, ShadowDiffers: f.ShadowDiffers, ID: f.ID,
	}
	for _, outcome := range f.Outcome {
		if !slices.Contains(outcomes, audit.Outcome(outcome)) {
			return filter, misuse{fmt.Errorf("--outcome: %q is none of %v", outcome, outcomes)}
		}
		filter.Outcomes = append(filter.Outcomes, audit.Outcome(outcome))
	}
	now := time.Now()
	var err error
	if f.Since != "" {
		if filter.Since, err = audit.ParseTime(f.Since, now); err != nil {
			return filter, misuse{fmt.Errorf("--since: %w", err)}
		}
	}
	if f.Until != "" {
		if filter.Until, err = audit.ParseTime(f.Until, now); err != nil {
			return filter, misuse{fmt.Errorf("--until: %w", err)}
		}
	}
	return filter, nil
}

type auditTailCommand struct {
	Path string `arg:"" name:"audit" help:"The log's file."`
	auditFilter
	Last   int  `short:"n" default:"10" help:"Begin with so many events."`
	Follow bool `default:"true" negatable:"" help:"Go on as events are written."`
	Color  bool `help:"Colours, also where the output is no terminal."`
}

func (auditTailCommand) Example() string {
	return "proxy audit tail --refused --who 'env-*' /var/log/sluice/audit.jsonl"
}

func (cmd auditTailCommand) Run(out io.Writer) error {
	filter, err := cmd.filter()
	if err != nil {
		return err
	}
	if cmd.Last < 0 {
		return misuse{fmt.Errorf("--last: %d events are below none", cmd.Last)}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = audit.Tail(ctx, cmd.Path, out, audit.TailOptions{
		Filter: filter, Last: cmd.Last, Follow: cmd.Follow, Color: cmd.Color || isTerminal(out),
	})
	if ctx.Err() != nil {
		return nil // asked to stop
	}
	return err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == ""
}

type auditQueryCommand struct {
	Paths []string `arg:"" name:"audit" help:"The log's file (its rotated files come with it), single files, or a directory."`
	auditFilter
	GroupBy []string `placeholder:"COLUMN" help:"Count by these columns rather than list: ${columns}."`
	Columns []string `placeholder:"COLUMN" help:"What to list."`
	Format  string   `enum:"table,csv,json" default:"table" help:"table, csv or json."`
	Limit   int      `placeholder:"N" help:"At most so many."`
}

func (auditQueryCommand) Example() string {
	return `proxy audit query --bucket artifacts --since 7d --group-by who,operation /var/log/sluice/audit.jsonl
proxy audit query --refused --format csv /var/log/sluice/ > refused.csv`
}

func (cmd auditQueryCommand) Run(out io.Writer) error {
	filter, err := cmd.filter()
	if err != nil {
		return err
	}
	question := audit.QueryOptions{
		Filter: filter, GroupBy: cmd.GroupBy, Columns: cmd.Columns, Format: cmd.Format, Limit: cmd.Limit,
	}
	if err := question.Check(); err != nil {
		return misuse{err}
	}
	return audit.Query(context.Background(), cmd.Paths, out, question)
}
