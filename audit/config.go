package audit

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Config is `audit` in the configuration file.
type Config struct {
	// File is where the log is kept; it is what everything but Stdout reads.
	File *File `yaml:"file"`
	// Stdout also writes every line to standard output [false]. At least one of File and Stdout.
	Stdout bool `yaml:"stdout"`
	// Claims are the token claims to record beside issuer, subject, session and attributes [none]. An entry is
	// the name of a claim, or where it begins with a slash a JSON pointer into one (/kubernetes.io/namespace).
	Claims []string `yaml:"claims"`
	Redact Redact   `yaml:"redact"`
	// Ship are the far ends that events are sent to, from the file [none].
	Ship []Ship `yaml:"ship"`
	// SigningKeyFile holds the Ed25519 key that signs the chain's checkpoints: PEM (PKCS 8) or the seed in
	// base64 [none: no checkpoints].
	SigningKeyFile string `yaml:"signing_key_file"`
	// OnFailure is what happens to requests whose event cannot be recorded: refuse [refuse] them, or continue
	// and count what is lost.
	OnFailure string `yaml:"on_failure"`

	// InFlight is how many events may be open or waiting for the disk at once [4096].
	InFlight int `yaml:"-"`
	// Logger is told what an operator should know [discarded].
	Logger *slog.Logger `yaml:"-"`
	// StdoutWriter is written to where Stdout is set [os.Stdout].
	StdoutWriter io.Writer `yaml:"-"`
}

// File is the log's home.
type File struct {
	Path string `yaml:"path"`
	// MaxSize is how large a file may grow before it is rotated away [256MiB].
	MaxSize Size `yaml:"max_size"`
	// Keep is how many rotated files stay [30].
	Keep int `yaml:"keep"`
	// Compress rotated files with zstd [true].
	Compress *bool `yaml:"compress"`
	// Fsync is when the disk is waited for: off [off] survives the death of the process, interval loses at
	// most a second to power loss, always loses nothing that reached a backend.
	Fsync string `yaml:"fsync"`
}

// Redact says which object keys are private.
type Redact struct {
	// Keys are patterns of object keys to record as "sha256:" and their hash [none]. A pattern is held against
	// the key and against bucket/key; * stands for any run of characters, slashes included, ? for one.
	Keys []string `yaml:"keys"`
	// Drop are patterns of object keys of which not even the hash is recorded, but "[dropped]" [none].
	Drop []string `yaml:"drop"`
}

// Size is a number of bytes, written "256MiB".
type Size int64

// UnmarshalText reads a number with an optional unit: KB, MB, GB, TB (powers of ten), KiB, MiB, GiB, TiB.
func (s *Size) UnmarshalText(text []byte) error {
	t := strings.TrimSpace(string(text))
	digits := len(t) - len(strings.TrimLeft(t, "0123456789"))
	n, err := strconv.ParseInt(t[:digits], 10, 64)
	unit, ok := sizeUnits[strings.TrimSpace(t[digits:])]
	if err != nil || !ok || n > (1<<62)/unit {
		return fmt.Errorf("%q is not a size: write a number and a unit, such as 256MiB", t)
	}
	*s = Size(n * unit)
	return nil
}

var sizeUnits = map[string]int64{
	"": 1, "B": 1,
	"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

// Check reports every problem of the section, each with its path below it.
func (c *Config) Check(report func(path, problem string)) {
	if c.File == nil && !c.Stdout {
		report("", "nowhere to write events: set file.path, or stdout: true")
	}
	if c.File != nil {
		if c.File.Path == "" {
			report("file.path", "is missing: name the file, such as /var/log/sluice/audit.jsonl")
		}
		if info, err := os.Stat(c.File.Path); err == nil && info.IsDir() {
			report("file.path", "is a directory: name a file in it, such as "+filepath.Join(c.File.Path, "audit.jsonl"))
		}
		if c.File.MaxSize < 0 || c.File.MaxSize > 0 && c.File.MaxSize < minFileSize {
			report("file.max_size", fmt.Sprintf("%d bytes is too small: at least 4KiB", c.File.MaxSize))
		}
		if c.File.Keep < 0 {
			report("file.keep", "is negative: write how many rotated files stay, such as 30")
		}
		switch c.File.Fsync {
		case "", fsyncOff, fsyncInterval, fsyncAlways:
		default:
			report("file.fsync", fmt.Sprintf("%q is none of off, interval, always", c.File.Fsync))
		}
	}
	for i, claim := range c.Claims {
		if claim == "" {
			report(fmt.Sprintf("claims[%d]", i), "is empty: name a claim, such as email")
		}
	}
	for i, pattern := range c.Redact.Keys {
		if pattern == "" {
			report(fmt.Sprintf("redact.keys[%d]", i), "is empty: write a pattern, such as private/*")
		}
	}
	for i, pattern := range c.Redact.Drop {
		if pattern == "" {
			report(fmt.Sprintf("redact.drop[%d]", i), "is empty: write a pattern, such as private/*")
		}
	}
	names := map[string]bool{}
	for i := range c.Ship {
		at := fmt.Sprintf("ship[%d]", i)
		c.Ship[i].Check(func(path, problem string) { report(strings.TrimSuffix(at+"."+path, "."), problem) })
		name := c.Ship[i].NameOrKind()
		if names[name] {
			report(at+".name", fmt.Sprintf("%q is another far end's already: give each of a kind a name of its own", name))
		}
		names[name] = true
	}
	if len(c.Ship) > 0 && c.File == nil {
		report("ship", "needs file: events are sent from the file")
	}
	if c.SigningKeyFile != "" {
		if c.File == nil {
			report("signing_key_file", "needs file: checkpoints are kept beside it")
		}
		if _, err := readSigningKey(c.SigningKeyFile); err != nil {
			report("signing_key_file", err.Error())
		}
	}
	switch c.OnFailure {
	case "", onFailureRefuse, onFailureContinue:
	default:
		report("on_failure", fmt.Sprintf("%q is neither refuse nor continue", c.OnFailure))
	}
}

const (
	minFileSize = 4 << 10

	fsyncOff      = "off"
	fsyncInterval = "interval"
	fsyncAlways   = "always"

	onFailureRefuse   = "refuse"
	onFailureContinue = "continue"
)

// problems is what Check reports, as one error.
func (c *Config) problems() error {
	var problems []string
	c.Check(func(path, problem string) {
		problems = append(problems, strings.TrimSpace(path+" "+problem))
	})
	if len(problems) == 0 {
		return nil
	}
	return errors.New("audit: " + strings.Join(problems, "; "))
}

// withDefaults is where the defaults of the section are applied.
func (c Config) withDefaults() Config {
	if c.File != nil {
		f := *c.File
		if f.MaxSize == 0 {
			f.MaxSize = 256 << 20
		}
		if f.Keep == 0 {
			f.Keep = 30
		}
		if f.Compress == nil {
			yes := true
			f.Compress = &yes
		}
		if f.Fsync == "" {
			f.Fsync = fsyncOff
		}
		c.File = &f
	}
	if c.OnFailure == "" {
		c.OnFailure = onFailureRefuse
	}
	if c.InFlight <= 0 {
		c.InFlight = 4096
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
