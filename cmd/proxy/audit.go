package main

import (
	"context"
	"fmt"
	"io"

	"github.com/sluice-s3/sluice/audit"
)

type auditCommands struct {
	Verify auditVerifyCommand `cmd:"" help:"Check that no line was changed, removed, added or moved."`
}

type auditVerifyCommand struct {
	Paths     []string `arg:"" name:"audit" help:"The log's file, its rotated and compressed files, or their directory."`
	PublicKey string   `placeholder:"FILE" help:"Ed25519 public key (PEM) that the checkpoints must be signed with."`
	MinSeq    uint64   `placeholder:"N" help:"A line that must be there: what you noted last time."`
	FromStart bool     `help:"Demand the very first line too, also where old files were removed for their age."`
}

func (auditVerifyCommand) Example() string {
	return "proxy audit verify --public-key audit.pub /var/log/sluice/audit.jsonl"
}

func (cmd auditVerifyCommand) Run(out io.Writer) error {
	options := audit.VerifyOptions{MinSeq: cmd.MinSeq, FromStart: cmd.FromStart}
	if cmd.PublicKey != "" {
		key, err := audit.ReadPublicKey(cmd.PublicKey)
		if err != nil {
			return fmt.Errorf("--public-key: %w", err)
		}
		options.PublicKey = key
	}
	report, err := audit.Verify(context.Background(), cmd.Paths, options)
	if err != nil {
		return err
	}
	for _, log := range report.Logs {
		for _, problem := range log.Problems {
			fmt.Fprintln(out, problem)
		}
		for _, note := range log.Notes {
			fmt.Fprintf(out, "%s: note: %s\n", log.Path, note)
		}
		if len(log.Problems) == 0 {
			fmt.Fprintf(out, "%s: ok: %d lines in %d files, %d to %d, %d checkpoints, last hash %s\n",
				log.Path, log.Lines, log.Files, log.First, log.Last, log.Checkpoints, log.LastHash)
		}
	}
	if !report.OK() {
		return &exitError{exitFailed}
	}
	return nil
}
