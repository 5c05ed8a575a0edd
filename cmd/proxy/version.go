package main

import (
	"fmt"
	"io"
	"runtime/debug"
)

// version and commit are set by the release build: -ldflags "-X main.version=… -X main.commit=…".
var version, commit string

type versionCommand struct{}

func (versionCommand) Example() string { return "proxy version" }

func (versionCommand) Run(out io.Writer) error {
	_, err := fmt.Fprintln(out, versionLine())
	return err
}

func versionLine() string {
	v, c, goVersion := buildInfo()
	return fmt.Sprintf("sluice %s, commit %s, %s", v, c, goVersion)
}

// buildInfo is what the release build said, or what Go knows.
func buildInfo() (v, c, goVersion string) {
	v, c, goVersion = version, commit, "unknown Go"
	if info, ok := debug.ReadBuildInfo(); ok {
		goVersion = info.GoVersion
		if v == "" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && c == "" {
				c = s.Value
			}
		}
	}
	if v == "" {
		v = "(devel)"
	}
	if c == "" {
		c = "unknown"
	}
	return v, c, goVersion
}
