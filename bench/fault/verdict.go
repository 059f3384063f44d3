package fault

import (
	"fmt"
	"io"

	"github.com/pagewarp/pagewarp/bench/report"
)

// ratios applies f to each pass.
func ratios(ps []Pass, f func(Pass) float64) report.Spread {
	var vs []float64
	for _, p := range ps {
		vs = append(vs, f(p))
	}
	return report.SpreadOf(vs)
}

// Verdicts compares the ratios with what is promised. The promises are for
// plain connections, over loopback, one touching thread and one demand channel; otherwise the ratios are for
// information.
func (r *Result) Verdicts() []report.Verdict {
	info := r.TLS || r.Threads > 1 || r.Channels > 1 || r.Link > 0
	var vs []report.Verdict
	for _, m := range []struct {
		name     string
		passes   []Pass
		p50, p99 float64
	}{
		{"link idle", r.Idle, IdleP50, IdleP99},
		{"precache at full rate", r.Precache, PrecacheP50, PrecacheP99},
	} {
		vs = append(vs,
			report.Verdict{Name: "demand fault p50, " + m.name, Unit: "x floor", Promised: m.p50, Info: info,
				Value: ratios(m.passes, func(p Pass) float64 { return p.Fault.P50 / p.Floor() })},
			report.Verdict{Name: "demand fault p99, " + m.name, Unit: "x floor", Promised: m.p99, Info: info,
				Value: ratios(m.passes, func(p Pass) float64 { return p.Fault.P99 / p.Floor() })},
			report.Verdict{Name: "  the same against the floors' p99", Unit: "x", Info: true,
				Value: ratios(m.passes, func(p Pass) float64 { return p.Fault.P99 / (p.LocalFault.P99 + p.RoundTrip.P99) })},
		)
	}
	// Pass by pass, since the machine drifts.
	var under, rate []float64
	for i := range min(len(r.Idle), len(r.Precache)) {
		under = append(under, r.Precache[i].Fault.P99/r.Idle[i].Fault.P99)
		rate = append(rate, r.Precache[i].PrecacheBytesPerSec/1e6)
	}
	vs = append(vs,
		report.Verdict{Name: "demand fault p99, precache to idle link", Unit: "x", Promised: PrecacheToIdle, Info: r.TLS || r.Threads > 1 || r.Channels > 1, Value: report.SpreadOf(under)},
		report.Verdict{Name: "memory by precache meanwhile", Unit: "MB/s", Info: true, Value: report.SpreadOf(rate)})
	return report.Measured(vs)
}

// Text writes the passes with their stages, then the verdicts.
func (r *Result) Text(w io.Writer) error {
	for _, m := range []struct {
		name   string
		passes []Pass
	}{{"link idle", r.Idle}, {"precache at full rate", r.Precache}} {
		if len(m.passes) == 0 {
			continue
		}
		p := m.passes[len(m.passes)/2]
		rows := [][]string{
			report.LatencyRow("local fault floor", p.LocalFault), report.LatencyRow("round-trip floor", p.RoundTrip),
			report.LatencyRow("demand fault", p.Fault),
		}
		if _, err := fmt.Fprintf(w, "\n%s (pass %d of %d; stages as the engine counts them, from the fault's reading on)\n",
			m.name, len(m.passes)/2+1, len(m.passes)); err != nil {
			return err
		}
		if err := report.Table(w, report.LatencyHeader(""), append(rows, report.Stages(p.Stages)...)); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return report.Verdicts(w, r.Verdicts())
}
