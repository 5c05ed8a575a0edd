package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"

	"github.com/sluice-s3/sluice/audit"
	"github.com/sluice-s3/sluice/policy"
)

// openPolicy opens the policy of a configuration. Errors name the key; git's and OPA's do so by themselves.
func openPolicy(ctx context.Context, c policy.Config, heard func(policy.Status)) (*policy.Engine, error) {
	engine, err := policy.Open(ctx, c, heard)
	if err != nil && c.Dir != "" {
		err = fmt.Errorf("policy.dir: %w", err)
	}
	return engine, err
}

type policyCommands struct {
	Test   policyTestCommand   `cmd:"" help:"Run the policies' Rego tests."`
	Replay policyReplayCommand `cmd:"" help:"Decide recorded requests by a candidate policy, and print what would change; exit status 1 where anything would."`
}

type policyTestCommand struct {
	Dirs    []string `arg:"" optional:"" name:"dir" default:"." help:"Directories of policies and their tests."`
	Verbose bool     `short:"v" help:"Name every test."`
}

func (policyTestCommand) Example() string { return "proxy policy test ./policies" }

func (cmd policyTestCommand) Run(out io.Writer) error {
	ok, err := policy.Test(context.Background(), cmd.Dirs, out, cmd.Verbose)
	if err != nil {
		return err
	}
	if !ok {
		return &exitError{exitFailed}
	}
	return nil
}

type policyReplayCommand struct {
	Config string   `required:"" placeholder:"FILE" help:"Configuration file, whose policy is the one in force."`
	Policy string   `required:"" placeholder:"DIR" help:"The candidate: a directory of policies."`
	Audit  []string `arg:"" name:"audit" help:"Audit logs: files (rotated ones come with them) or directories."`
	JSON   bool     `name:"json" help:"For programs."`
}

func (policyReplayCommand) Example() string {
	return "proxy policy replay --config sluice.yaml --policy ./candidate /var/log/sluice/audit.jsonl"
}

// Run exits with 1 where the candidate would decide anything otherwise.
func (cmd policyReplayCommand) Run(out io.Writer) error {
	c, err := loadConfig(cmd.Config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	candidate, err := policy.Open(ctx, policy.Config{Dir: cmd.Policy, Entrypoint: c.Policy.Entrypoint}, nil)
	if err != nil {
		return fmt.Errorf("--policy: %w", err)
	}
	inForce := c.Policy
	inForce.Shadow = nil
	current, err := openPolicy(ctx, inForce, nil)
	if err != nil {
		return fmt.Errorf("the policy in force: %w", err)
	}
	report, err := policy.Replay(ctx, candidate, current, recorded(audit.Read(cmd.Audit...)))
	if err != nil {
		return err
	}
	if cmd.JSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		err = report.WriteText(out)
	}
	if err == nil && report.Changes() {
		err = &exitError{exitFailed}
	}
	return err
}

// recorded are the audit log's events as policy knows them.
func recorded(events iter.Seq2[*audit.Event, error]) iter.Seq2[*policy.Event, error] {
	return func(yield func(*policy.Event, error) bool) {
		for e, err := range events {
			var r *policy.Event
			if err == nil {
				r, err = recordedEvent(e)
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

func recordedEvent(e *audit.Event) (*policy.Event, error) {
	identity, err := json.Marshal(&e.Identity)
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", e.ID, err)
	}
	r := &policy.Event{
		ID: e.ID, Time: e.Time, Identity: identity, SourceIP: e.SourceIP, UserAgent: e.UserAgent, Host: e.Host,
		Operation: e.Operation, BytesIn: e.BytesIn, Refused: e.Outcome == audit.Refused,
		Decision: policy.RecordedDecision{Allow: e.Decision.Allow, Role: e.Decision.Role, Revision: e.Decision.PolicyRevision},
		Backend:  e.Backend.Name,
		Accesses: make([]policy.RecordedAccess, len(e.Accesses)),
	}
	for i, a := range e.Accesses {
		r.Accesses[i] = policy.RecordedAccess(a)
	}
	return r, nil
}
