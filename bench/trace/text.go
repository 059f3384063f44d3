package trace

import (
	"fmt"
	"io"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Comparison is some simulations of one trace.
type Comparison struct {
	Load    string    `json:"load"`
	Origin  string    `json:"origin"`
	Results []*Result `json:"results"`
}

// name tells a simulation from the others of the comparison.
func (c *Comparison) name(r *Result) string {
	text := r.Policies
	for _, x := range c.Results {
		if x != r && x.Policies == r.Policies {
			return fmt.Sprintf("%s, %s ms, %s bit/s, loss %g, %d vCPU", text, report.Number(r.RTTMS), humanize.SIWithDigits(r.BitsPerSec, 1, ""), r.Loss, r.VCPUs)
		}
	}
	return text
}

// Text writes a table with a row for each simulation.
func (c *Comparison) Text(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "%s (%s)\n\n", c.Load, c.Origin); err != nil {
		return err
	}
	rows := make([][]string, len(c.Results))
	for i, r := range c.Results {
		drain, guest, warm := "never", "never", report.Number(r.Warmup90S)
		if r.NotWarm {
			warm = "never"
		}
		if r.Drained {
			drain = report.Number(r.DrainS)
		}
		if r.GuestS > 0 {
			guest = report.Number(r.GuestS)
		}
		rows[i] = []string{c.name(r), drain, guest, report.Number(r.AloneS), warm, report.Number(r.StallS),
			humanize.Comma(int64(r.Faults)), report.Number(r.Latency.P50), report.Number(r.Latency.P99),
			humanize.Comma(int64(r.Duplicates)), humanize.IBytes(r.DemandBytes + r.PrecacheBytes)}
	}
	return report.Table(w, []string{"policies", "drain s", "guest s", "alone s", "warm s", "stalled s", "faults", "p50 µs", "p99 µs", "duplicates", "wire"}, rows)
}

// WritePlot draws the guest's speed and the memory that is there, over time, of
// each simulation.
func (c *Comparison) WritePlot(svgPath, pngPath string) error {
	speed := report.Panel{Y: "Speed of the guest\n(%)", Top: 100}
	share := report.Panel{Y: "Memory resident\n(%)", Top: 100}
	for _, r := range c.Results {
		speed.Lines = append(speed.Lines, report.Line{Name: c.name(r), Points: percent(r.Speed), Steps: true})
		share.Lines = append(share.Lines, report.Line{Points: percent(r.Resident)})
	}
	return report.WriteChart(&report.Chart{Title: c.Load + ", simulated", X: "Seconds from the switch-over", Panels: []report.Panel{speed, share}}, svgPath, pngPath)
}

// maxPoints is how many points of a line can be told apart.
const maxPoints = 400

// percent averages neighbouring points until there are few.
func percent(ps []report.Point) []report.Point {
	join := (len(ps) + maxPoints - 1) / maxPoints
	var out []report.Point
	for i := 0; i < len(ps); i += join {
		part, sum := ps[i:min(i+join, len(ps))], 0.0
		for _, p := range part {
			sum += p.V
		}
		out = append(out, report.Point{T: ps[i].T, V: 100 * sum / float64(len(part))})
	}
	return out
}
