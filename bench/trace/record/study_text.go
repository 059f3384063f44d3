package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/trace"
)

// condition is a link and a round trip.
type condition struct{ bits, rttMS float64 }

func (c condition) String() string {
	return fmt.Sprintf("%s ms, %s", report.Number(c.rttMS), humanize.SIWithDigits(c.bits, 1, "bit/s"))
}

// conditions are those of a study's results, in their order.
func (s *Study) conditions() (cs []condition) {
	for _, t := range s.Traces {
		for _, r := range t.Results {
			if c := (condition{r.BitsPerSec, r.RTTMS}); !slices.Contains(cs, c) {
				cs = append(cs, c)
			}
		}
	}
	return cs
}

// find returns a plan's result under a condition, nil if there is none.
func (t *StudyTrace) find(c condition, plan string) *trace.Result {
	for _, r := range t.Results {
		if r.BitsPerSec == c.bits && r.RTTMS == c.rttMS && r.Policies == plan {
			return r
		}
	}
	return nil
}

// table is one of a study's.
type table struct {
	title  string
	header []string
	rows   [][]string
}

func (s *Study) tables() []table {
	ts := []table{s.checked(), s.grid("Plain sweep: faults / seconds stood still / seconds until all was there", Plain, func(r, _ *trace.Result) string {
		return fmt.Sprintf("%s / %s / %s", humanize.Comma(int64(r.Faults)), report.Number(r.StallS), report.Number(r.DrainS))
	})}
	for _, p := range plans[1:] {
		ts = append(ts, s.grid(p.name+", in % of the plain sweep: faults / seconds stood still / seconds until all was there", p.name, func(r, base *trace.Result) string {
			return percentOf(float64(r.Faults), float64(base.Faults)) + " / " + percentOf(r.StallS, base.StallS) + " / " + percentOf(r.DrainS, base.DrainS)
		}))
	}
	return ts
}

func percentOf(v, base float64) string {
	if base == 0 {
		return "-"
	}
	return report.Number(100 * v / base)
}

// checked tells how far the simulation is off.
func (s *Study) checked() table {
	t := table{title: "The simulation against a real relocation with precache: real, simulated, error",
		header: []string{"workload", "load", "touches", "listed pages", "drain s", "pages on demand", "stood still s"}}
	for _, x := range s.Traces {
		real, sim := x.Trace.Real, x.Simulated
		three := func(a, b string, e *float64) string { return a + ", " + b + ", " + percent(e) }
		t.rows = append(t.rows, []string{x.Name, x.Recording.Load, humanize.Comma(int64(x.Touches)), humanize.Comma(int64(x.HotPages)),
			three(report.Number(real.DrainS), report.Number(sim.DrainS), x.DrainError),
			three(humanize.Comma(int64(real.PagesDemand)), humanize.Comma(int64(sim.DemandPages)), x.FaultError),
			three(report.Number(real.StallS), report.Number(sim.StallS), x.StallError)})
	}
	return t
}

// grid has a row for each condition and a column for each workload.
func (s *Study) grid(title, plan string, cell func(r, base *trace.Result) string) table {
	t := table{title: title, header: []string{"round trip, link"}}
	for _, x := range s.Traces {
		t.header = append(t.header, x.Name)
	}
	for _, c := range s.conditions() {
		row := []string{c.String()}
		for _, x := range s.Traces {
			text := "-"
			if r, base := x.find(c, plan), x.find(c, Plain); r != nil && base != nil {
				text = cell(r, base)
			}
			row = append(row, text)
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// Text writes the tables for the terminal.
func (s *Study) Text(w io.Writer) error {
	for _, t := range s.tables() {
		fmt.Fprintf(w, "%s\n\n", t.title)
		if err := report.Table(w, t.header, t.rows); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	for _, name := range WorkloadNames() {
		if f, ok := s.Failures[name]; ok {
			fmt.Fprintf(w, "  FAILED: %s: %s\n", name, f)
		}
	}
	for _, x := range s.Traces {
		for _, f := range x.Recording.Failures {
			fmt.Fprintf(w, "  FAILED: %s, %s\n", x.Name, f)
		}
	}
	return nil
}

// MarkdownFile is what Write makes beside the plots.
const MarkdownFile = "traces.md"

// Write writes the tables as Markdown and the plots into a folder, and returns the
// files.
func (s *Study) Write(dir string) (files []string, err error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Traces of real guests, simulated\n\nMade %s UTC.\n", s.Started.Format("2006-01-02 15:04"))
	for _, t := range s.tables() {
		fmt.Fprintf(&b, "\n## %s\n\n", t.title)
		report.MarkdownTable(&b, t.header, t.rows)
	}
	files = []string{filepath.Join(dir, MarkdownFile)}
	if err := report.WriteFile(files[0], b.Bytes()); err != nil {
		return nil, err
	}
	for _, c := range s.drawn() {
		base := filepath.Join(dir, fmt.Sprintf("faults-%vms", c.rttMS))
		if err := s.plot(c, base); err != nil {
			return nil, fmt.Errorf("draw %s: %w", base, err)
		}
		files = append(files, base+".png")
	}
	return files, nil
}

// drawn are the conditions of the plots: the second link, or the only one, at the
// shortest round trip and at 10 ms.
func (s *Study) drawn() (cs []condition) {
	all := s.conditions()
	if len(all) == 0 {
		return nil
	}
	var links []float64
	for _, c := range all {
		if !slices.Contains(links, c.bits) {
			links = append(links, c.bits)
		}
	}
	link := links[min(1, len(links)-1)]
	for _, c := range all {
		if c.bits == link && (len(cs) == 0 || c.rttMS == float64(10*time.Millisecond)/1e6) {
			cs = append(cs, c)
		}
	}
	return cs
}

// plot draws the guest's standstill by workload and plan, in % of the plain
// sweep's.
func (s *Study) plot(c condition, base string) error {
	var bars []report.Bar
	for _, x := range s.Traces {
		plain := x.find(c, Plain)
		if plain == nil || plain.StallS == 0 {
			continue
		}
		for _, p := range plans[1:] {
			r := x.find(c, p.name)
			if r == nil {
				continue
			}
			v := 100 * r.StallS / plain.StallS
			bars = append(bars, report.Bar{Name: x.Name + ": " + p.short, Value: report.SpreadOf([]float64{v}), Pale: p.name == Default,
				Text: fmt.Sprintf("%s s of %s s, %s %% of the faults", report.Number(r.StallS), report.Number(plain.StallS), percentOf(float64(r.Faults), float64(plain.Faults)))})
		}
	}
	if len(bars) == 0 {
		return errors.New("no guest of the study ever stood still")
	}
	return report.WriteBars("Simulated standstill of real guests, "+c.String(), "% of a plain sweep's", bars, base+".svg", base+".png")
}
