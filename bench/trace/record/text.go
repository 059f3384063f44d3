package record

import (
	"fmt"
	"io"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Text writes what was recorded, and how far the simulation is off.
func (r *Recording) Text(w io.Writer) error {
	t := r.Trace
	if _, err := fmt.Fprintf(w, "%s: %s first touches in %.1f s on demand only\n\n", t.Load, humanize.Comma(int64(len(t.Touches))), t.Seconds); err != nil {
		return err
	}
	row := func(name string, drain, pages, stall, p50, p99 string) []string {
		return []string{name, drain, pages, stall, p50, p99}
	}
	var rows [][]string
	for i, x := range r.Real {
		run := i + 1
		if i < len(r.Runs) {
			run = r.Runs[i]
		}
		rows = append(rows, row(fmt.Sprintf("real, run %d", run), report.Number(x.DrainS), humanize.Comma(int64(x.PagesDemand)),
			report.Number(x.StallS), report.Number(x.FaultP50US), report.Number(x.FaultP99US)))
	}
	s := r.Simulated
	rows = append(rows,
		row("simulated", report.Number(s.DrainS), humanize.Comma(int64(s.DemandPages)), report.Number(s.StallS), report.Number(s.Latency.P50), report.Number(s.Latency.P99)),
		row("error, to the real median", percent(r.DrainError), percent(r.FaultError), percent(r.StallError), "", ""))
	if err := report.Table(w, []string{"", "drain s", "pages on demand", "stalled s", "fault p50 µs", "p99 µs"}, rows); err != nil {
		return err
	}
	for _, f := range r.Failures {
		if _, err := fmt.Fprintf(w, "  FAILED: %s\n", f); err != nil {
			return err
		}
	}
	return nil
}

// percent is an error in per cent, or "-" for none.
func percent(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%+.0f %%", 100**v)
}
