package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// printer writes for people. It uses colours on a terminal only.
type printer struct {
	out      io.Writer
	terminal bool
}

func newPrinter(out io.Writer) *printer {
	p := &printer{out: out}
	if f, ok := out.(*os.File); ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *printer) style(code, s string) string {
	if !p.terminal {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p *printer) bold(s string) string { return p.style("1", s) }
func (p *printer) dim(s string) string  { return p.style("2", s) }

func (p *printer) title(s string) { fmt.Fprintf(p.out, "\n%s\n\n", p.bold(s)) }

func (p *printer) heading(s string) { fmt.Fprintf(p.out, "\n  %s\n", p.bold("# "+s)) }

func (p *printer) paste(lines ...string) {
	for _, line := range lines {
		fmt.Fprintf(p.out, "  %s\n", line)
	}
}

// text is a paragraph.
func (p *printer) text(format string, args ...any) {
	fmt.Fprintln(p.out)
	p.fill("", "", fmt.Sprintf(format, args...))
}

// result is what came back.
func (p *printer) result(s string) { p.fill("    ", "      ", s) }

const width = 116

// fill writes words up to the width. A word that is longer than that is not worth a line break.
func (p *printer) fill(first, further, s string) {
	line, empty := first, true
	for word := range strings.FieldsSeq(s) {
		if !empty && len(line)+len(word) >= width && len(further)+len(word) < width {
			fmt.Fprintln(p.out, line)
			line, empty = further, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	fmt.Fprintln(p.out, line)
}

// facts are pairs of a name and "value\tremark".
func (p *printer) facts(pairs ...string) {
	for i := 0; i+1 < len(pairs); i += 2 {
		value, remark, _ := strings.Cut(pairs[i+1], "\t")
		fmt.Fprintf(p.out, "  %-8s%-26s %s\n", pairs[i], value, p.dim(remark))
	}
}

func (p *printer) good(s string) { fmt.Fprintf(p.out, "\n%s %s\n", p.style("32", "✓"), s) }
func (p *printer) bad(s string)  { fmt.Fprintf(p.out, "\n%s %s\n", p.style("31", "✗"), s) }
