package specweb

import (
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Label is what every report calls its results.
const Label = "SPECweb-style; no SPEC metric, and not to be compared with one"

// Result is a run as it is reported.
type Result struct {
	Label    string `json:"label"`
	Workload string `json:"workload"`
	// Mode is "closed loop" or "open loop"; RatePerSec is the latter's rate.
	Mode       string  `json:"mode"`
	RatePerSec float64 `json:"rate_per_s,omitempty"`
	Sessions   int     `json:"sessions"`
	Scale      float64 `json:"scale"`
	Seed       uint64  `json:"seed"`
	RampSec    float64 `json:"ramp_s"`
	// GoodSec and TolerableSec are the limits on a page's time, not scaled;
	// GoodRate and TolerableRate those on a download, in bytes/s.
	GoodSec       float64 `json:"good_s"`
	TolerableSec  float64 `json:"tolerable_s"`
	GoodRate      float64 `json:"good_bytes_per_s,omitempty"`
	TolerableRate float64 `json:"tolerable_bytes_per_s,omitempty"`
	// Complete is false for a run that was interrupted.
	Complete bool `json:"complete"`

	Summary
	BinMS float64 `json:"bin_ms"`
	Bins  []Bin   `json:"bins"`
}

// Result sums up the run from one time to another.
func (r *Run) Result(l *Log, from, to time.Time, complete bool) Result {
	w := r.work
	res := Result{
		Label: Label, Workload: w.Name, Mode: "closed loop", RatePerSec: r.cfg.Rate, Sessions: r.cfg.Sessions, Scale: r.cfg.Scale,
		Seed: r.cfg.Seed, RampSec: r.cfg.Ramp.Seconds(), GoodSec: w.Good.Seconds(), TolerableSec: w.Tolerable.Seconds(),
		GoodRate: w.GoodRate, TolerableRate: w.TolerableRate, Complete: complete,
		Summary: l.Summary(from, to), BinMS: ms(BinLength), Bins: l.Bins(from, to),
	}
	if r.cfg.Rate > 0 {
		res.Mode = "open loop"
	}
	return res
}

// title names the run in one line.
func (r Result) title() string {
	mode := r.Mode
	if r.RatePerSec > 0 {
		mode += fmt.Sprintf(" of %g pages/s", r.RatePerSec)
	}
	return fmt.Sprintf("SPECweb-style %s, %d sessions, scale %g, %s", r.Workload, r.Sessions, r.Scale, mode)
}

// Text writes the run for people.
func (r Result) Text(w io.Writer) error {
	fmt.Fprintf(w, "%s, %.1f s", r.title(), r.Seconds)
	if !r.Complete {
		fmt.Fprint(w, ", interrupted")
	}
	fmt.Fprintf(w, "\n(%s)\n\n", Label)
	fmt.Fprintf(w, "  %s pages/s, %s\n", report.Number(r.PerSecond), humanize.Bytes(uint64(float64(r.Bytes)/max(r.Seconds, 1e-9)))+"/s")
	fmt.Fprintf(w, "  good %.2f %% (wanted 95), good or tolerable %.2f %% (wanted 99), failed %s, of which %s without a right answer\n",
		100*r.GoodShare, 100*r.TolerableShare, humanize.Comma(int64(r.Failed)), humanize.Comma(int64(r.Errors)))
	if r.RatePerSec > 0 {
		fmt.Fprintf(w, "  due and not answered at the end: %s\n", humanize.Comma(int64(r.Unanswered)))
	}
	fmt.Fprintf(w, "  longest time without an answer %.0f ms\n\n", r.LongestGap.LengthMS)
	rows := make([][]string, 0, len(r.Pages)+1)
	row := func(name string, share float64, c Counts, t report.Latency) {
		rows = append(rows, []string{name, fmt.Sprintf("%.1f", 100*share), humanize.Comma(int64(c.Good)), humanize.Comma(int64(c.Tolerable)),
			humanize.Comma(int64(c.Failed)), report.Number(t.P50 / 1e3), report.Number(t.P90 / 1e3), report.Number(t.P99 / 1e3), report.Number(t.Max / 1e3)})
	}
	for _, p := range r.Pages {
		row(p.Page, p.Share, p.Counts, p.TimeUS)
	}
	row("all", 1, r.Counts, r.TimeUS)
	err := report.Table(w, []string{"page", "%", "good", "tolerable", "failed", "p50 ms", "p90 ms", "p99 ms", "max ms"}, rows)
	for _, e := range r.FirstErrors {
		fmt.Fprintf(w, "  error: %s\n", e)
	}
	if r.Dropped > 0 {
		fmt.Fprintf(w, "  %s pages were not noted for want of room\n", humanize.Comma(int64(r.Dropped)))
	}
	return err
}
