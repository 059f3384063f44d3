package floor

import (
	"io"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Results are several passes.
type Results []Result

// Text writes the middle pass in full, and the spread of
// the medians and rates over all passes.
func (rs Results) Text(w io.Writer) error {
	if len(rs) == 0 {
		return nil
	}
	r := rs[len(rs)/2]
	err := report.Table(w, report.LatencyHeader("one pass"), [][]string{
		report.LatencyRow("local fault", r.LocalFault), report.LatencyRow("round trip", r.RoundTrip),
		report.LatencyRow("round trip, TLS", r.RoundTripTLS), report.LatencyRow("CONTINUE", r.Continue),
		report.LatencyRow("CONTINUE, per page of 2 MiB", r.ContinueBatch), report.LatencyRow("COPY", r.Copy),
		report.LatencyRow("COPY, per page of 2 MiB", r.CopyBatch),
	})
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return err
	}
	spread := func(f func(Result) float64) report.Spread {
		var vs []float64
		for _, r := range rs {
			vs = append(vs, f(r))
		}
		return report.SpreadOf(vs)
	}
	rate := func(s report.Spread) string {
		b := func(v float64) string { return humanize.Bytes(uint64(v)) + "/s" }
		return b(s.Median) + " (" + b(s.Min) + " to " + b(s.Max) + ")"
	}
	return report.Table(w, []string{"over all passes", "median (range)"}, [][]string{
		{"local fault, p50", spread(func(r Result) float64 { return r.LocalFault.P50 }).Text() + " µs"},
		{"round trip, p50", spread(func(r Result) float64 { return r.RoundTrip.P50 }).Text() + " µs"},
		{"round trip over TLS, p50", spread(func(r Result) float64 { return r.RoundTripTLS.P50 }).Text() + " µs"},
		{"stream", rate(spread(func(r Result) float64 { return r.Stream }))},
		{"stream over TLS", rate(spread(func(r Result) float64 { return r.StreamTLS }))},
	})
}
