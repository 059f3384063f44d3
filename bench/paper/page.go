package paper

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Report is report.json: the experiments that were made.
type Report struct {
	Started time.Time `json:"started"`
	Quick   bool      `json:"quick"`
	// Interrupted: it is of what was finished by then.
	Interrupted bool            `json:"interrupted,omitempty"`
	Command     string          `json:"command"`
	Machine     report.Machine  `json:"machine"`
	Versions    report.Versions `json:"versions"`
	Commit      string          `json:"commit"`
	Parts       []Part          `json:"parts"`
}

// Measured reports whether there is a part with figures.
func (r *Report) Measured() bool {
	return slices.ContainsFunc(r.Parts, func(p Part) bool { return len(p.Says) > 0 })
}

// Damaged is an engine.ErrDamaged if pagewarp has damaged memory in this run.
func (r *Report) Damaged() error {
	for _, p := range r.Parts {
		if p.Made.Equal(r.Started) && p.Comparison != nil {
			if err := p.Comparison.Damaged(); err != nil {
				return fmt.Errorf("experiment %s: %w", p.Name, err)
			}
		}
	}
	return nil
}

// began reports whether there is a part of this run.
func (r *Report) began() bool {
	return slices.ContainsFunc(r.Parts, func(p Part) bool { return p.Made.Equal(r.Started) })
}

// Files of the report, in its folder; the plots are beside them.
const (
	PageFile     = "index.html"
	JSONFile     = "report.json"
	MarkdownFile = "RESULTS.md"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New(PageFile).Parse(pageText))

// By says when a part was made, and by what.
func (p Part) By() string {
	return fmt.Sprintf("begun %s UTC, %s", p.Made.Format("2006-01-02 15:04"), p.Command)
}

// Facts are the machine and the versions, in lines.
func (r *Report) Facts() []string {
	m, kind := r.Machine, "full run"
	if r.Quick {
		kind = "quick run: few repeats, so the ranges say little"
	}
	if r.Interrupted {
		kind += "; INTERRUPTED: it has what was finished by then"
	}
	return []string{
		fmt.Sprintf("%d × %s, %s of memory, Linux %s, load average %.1f when it began", m.Cores, m.CPU, humanize.IBytes(m.MemoryBytes), m.Kernel, m.LoadAvg),
		fmt.Sprintf("pagewarp %s, %s, QEMU %s", r.Versions.Pagewarp, r.Versions.Go, r.Versions.QEMU),
		fmt.Sprintf("%s, %s UTC", kind, r.Started.Format("2006-01-02 15:04")),
		r.Command,
	}
}

// put adds a part, in the place of one of the same name, in the order of Names.
func (r *Report) put(p Part) {
	i := slices.IndexFunc(r.Parts, func(q Part) bool { return q.Name == p.Name })
	if i >= 0 {
		r.Parts[i] = p
		return
	}
	r.Parts = append(r.Parts, p)
	names := Names()
	slices.SortStableFunc(r.Parts, func(a, b Part) int { return slices.Index(names, a.Name) - slices.Index(names, b.Name) })
}

// keep takes over the parts of the report in a folder, if there is one.
func (r *Report) keep(dir string) error {
	path := filepath.Join(dir, JSONFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var old Report
	if err == nil {
		err = json.Unmarshal(b, &old)
	}
	if err != nil {
		return fmt.Errorf("keep the experiments of %s: %w", path, err)
	}
	for _, p := range old.Parts {
		if Known(p.Name) {
			r.put(p)
		}
	}
	return nil
}

// Write writes the page, the plots, Markdown and JSON into a folder. A plot that
// cannot be drawn is a failure of its part.
func (r *Report) Write(dir string) error {
	for i := range r.Parts {
		p := &r.Parts[i]
		if p.paint == nil {
			continue
		}
		base := filepath.Join(dir, p.Name)
		if err := p.paint(base+".svg", base+".png"); err != nil {
			p.Figure = false
			p.Failures = append(p.Failures, oneLine(err.Error()))
		}
		p.paint = nil // drawn once
	}
	var html, markdown bytes.Buffer
	if err := page.Execute(&html, r); err != nil {
		return fmt.Errorf("make %s: %w", PageFile, err)
	}
	r.Markdown(&markdown)
	if err := report.WriteFile(filepath.Join(dir, PageFile), html.Bytes()); err != nil {
		return err
	}
	if err := report.WriteFile(filepath.Join(dir, MarkdownFile), markdown.Bytes()); err != nil {
		return err
	}
	return report.Write(filepath.Join(dir, JSONFile), r)
}

// Markdown writes the report; its plots are linked by their names.
func (r *Report) Markdown(w io.Writer) {
	fmt.Fprintf(w, "# The paper's experiments\n\n")
	bullets(w, r.Facts())
	for _, p := range r.Parts {
		fmt.Fprintf(w, "\n## %s\n\nClaim: %s\n\n", p.Title, p.Claim)
		for _, s := range p.Says {
			fmt.Fprintf(w, "%s\n", s)
		}
		if len(p.Rows) > 0 {
			fmt.Fprintln(w)
			report.MarkdownTable(w, p.Header, p.Rows)
		}
		if p.Figure {
			fmt.Fprintf(w, "\n![%s](%s.png)\n", p.Title, p.Name)
		}
		for _, f := range p.Failures {
			fmt.Fprintf(w, "\n**FAILED** %s\n", f)
		}
		fmt.Fprintln(w)
		bullets(w, append(p.Setup, p.By()))
	}
}

func bullets(w io.Writer, lines []string) {
	for _, l := range lines {
		if l != "" {
			fmt.Fprintf(w, "- %s\n", l)
		}
	}
}

// Text writes the tables and the findings for the terminal.
func (r *Report) Text(w io.Writer) error {
	for _, p := range r.Parts {
		fmt.Fprintf(w, "%s\n", p.Title)
		if len(p.Rows) > 0 {
			// Table changes the header that it is given.
			if err := report.Table(w, append([]string(nil), p.Header...), p.Rows); err != nil {
				return err
			}
		}
		for _, s := range p.Says {
			fmt.Fprintf(w, "  %s\n", s)
		}
		for _, f := range p.Failures {
			fmt.Fprintf(w, "  FAILED: %s\n", f)
		}
		fmt.Fprintln(w)
	}
	return nil
}
