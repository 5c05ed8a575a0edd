package main

import (
	"errors"
	"fmt"
	"io"
)

type checkCommand struct {
	Config string `required:"" placeholder:"FILE" help:"Configuration file."`
}

func (checkCommand) Example() string { return "proxy check --config sluice.yaml" }

// Run prints every problem of the file, each with its path.
func (cmd checkCommand) Run(out io.Writer) error {
	_, err := loadConfig(cmd.Config)
	var bad *ConfigError
	if errors.As(err, &bad) {
		for _, p := range bad.Problems {
			fmt.Fprintln(out, p)
		}
		return &exitError{exitFailed}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: ok\n", cmd.Config)
	return nil
}
