package main

import (
	"context"
	"io"

	"github.com/sluice-s3/sluice/policy"
)

type policyCommands struct {
	Test policyTestCommand `cmd:"" help:"Run the policies' Rego tests."`
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
