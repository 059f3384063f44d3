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
		rows = append(rows, row(fmt.Sprintf("real, run %d", i+1), report.Number(x.DrainS), humanize.Comma(int64(x.PagesDemand)),
			report.Number(x.StallS), report.Number(x.FaultP50US), report.Number(x.FaultP99US)))
	}
	s := r.Simulated
	rows = append(rows,
		row("simulated", report.Number(s.DrainS), humanize.Comma(int64(s.DemandPages)), report.Number(s.StallS), report.Number(s.Latency.P50), report.Number(s.Latency.P99)),
		row("error, to the real median", percent(r.DrainError), percent(r.FaultError), percent(r.StallError), "", ""))
	return report.Table(w, []string{"", "drain s", "pages on demand", "stalled s", "fault p50 µs", "p99 µs"}, rows)
}

func percent(v float64) string { return fmt.Sprintf("%+.0f %%", 100*v) }
