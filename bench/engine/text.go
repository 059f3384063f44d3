package engine

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Text writes the comparison for people: what the guest noticed, the faults,
// what it cost, and the settings.
func (r *Result) Text(w io.Writer) error {
	link := "no limit"
	if r.LinkBytesPerSec > 0 {
		link = humanize.SIWithDigits(float64(r.LinkBytesPerSec)*8, 1, "bit/s")
	}
	what := fmt.Sprintf("guest: %s, %d vCPU under %s", humanize.IBytes(r.RAMBytes), r.VCPUs, r.Accel)
	if r.Subject != "" {
		what = fmt.Sprintf("%s: %s", r.Subject, humanize.IBytes(r.RAMBytes))
	}
	fmt.Fprintf(w, "%s, load %s; link: %s; %d × each, in alternation\n\n", what, r.LoadText, link, r.Repeat)
	err := r.tables(w)
	for _, row := range r.Rows {
		if row.Error != "" {
			fmt.Fprintf(w, "  FAILED: %s, run %d: %s\n", row.Engine, row.Run, strings.ReplaceAll(row.Error, "\n", "\n    "))
		}
	}
	for _, u := range r.Unavailable {
		fmt.Fprintf(w, "  cannot run here: %s: %s\n", u.Engine, u.Reason)
	}
	fmt.Fprintln(w)
	for _, s := range r.Engines {
		r.settings(w, s.Engine)
	}
	return err
}

// settings writes what an engine ran with, and what it said of itself.
func (r *Result) settings(w io.Writer, engine string) {
	said := map[string]bool{}
	program := "QEMU " + r.Facts[engine].QEMU
	if v := r.Facts[engine].Version; v != "" {
		program = v
	}
	for _, row := range r.Rows {
		if row.Engine == engine && row.Accel != "" && row.Accel != r.Accel {
			program += ", under " + row.Accel
			break
		}
	}
	fmt.Fprintf(w, "  %s, %s:\n", engine, program)
	for _, row := range r.Rows {
		if row.Engine != engine {
			continue
		}
		lines := []string{row.Settings}
		if row.Fault != nil {
			lines = append(lines, r.faultName()+" latency: "+row.Fault.Source)
		}
		for _, n := range row.Notes {
			lines = append(lines, fmt.Sprintf("run %d: %s", row.Run, n))
		}
		for _, e := range row.ClientErrors {
			lines = append(lines, fmt.Sprintf("run %d, client: %s", row.Run, e))
		}
		for _, l := range lines {
			if l != "" && !said[l] {
				fmt.Fprintf(w, "    %s\n", l)
			}
			said[l] = true
		}
	}
}

// faultName says what the latencies are of.
func (r *Result) faultName() string {
	if r.Subject != "" {
		return "stall"
	}
	return "fault"
}

// cell is a spread in a table.
func cell(s report.Spread) string {
	if s.N == 0 {
		return "-"
	}
	return s.Text()
}

// Total is the total time in ms, and in how many relocations there is none.
func (s Summary) Total() string {
	if s.Incomplete > 0 {
		return fmt.Sprintf("%s, %d × not complete", cell(s.TotalMS), s.Incomplete)
	}
	return cell(s.TotalMS)
}

func (r *Result) tables(w io.Writer) error {
	blackout, faultsAre := "client blackout ms", r.faultName()
	if r.Subject != "" {
		blackout = "longest stall ms"
	}
	table := func(header []string, cells func(Summary) []string) error {
		var rows [][]string
		for _, s := range r.Engines {
			rows = append(rows, append([]string{s.Engine}, cells(s)...))
		}
		err := report.Table(w, append([]string{"engine"}, header...), rows)
		fmt.Fprintln(w)
		return err
	}
	return errors.Join(
		table([]string{"runs", "downtime ms", blackout, "worst gap ms", "back at 90 % ms", "lost s", "lost " + r.Unit, "total ms", "bad"},
			func(s Summary) []string {
				runs := fmt.Sprint(s.Good)
				if s.Failed > 0 {
					runs += fmt.Sprintf(", %d failed", s.Failed)
				}
				warm := cell(s.Warmup90MS)
				if s.NotWarm > 0 {
					warm += fmt.Sprintf(", %d × never", s.NotWarm)
				}
				return []string{runs, cell(s.DowntimeMS), cell(s.BlackoutMS), cell(s.WorstGapMS), warm, cell(s.LostSeconds), cell(s.Lost), s.Total(), fmt.Sprint(s.BadPages)}
			}),
		table([]string{faultsAre + " mean µs", "p50 µs", "p99 µs", "p99.9 µs", "max µs", faultsAre + "s"}, func(s Summary) []string {
			return []string{cell(s.FaultMeanUS), cell(s.FaultP50US), cell(s.FaultP99US), cell(s.FaultP999US), cell(s.FaultMaxUS), cell(s.Faults)}
		}),
		table([]string{"sent MB", "returned MB", "source CPU s", "destination CPU s", "source peak MiB", "destination peak MiB"}, func(s Summary) []string {
			return []string{cell(s.SentMB), cell(s.ReturnedMB), cell(s.SourceCPU), cell(s.DestCPU), cell(s.SourceMiB), cell(s.DestMiB)}
		}),
	)
}

// Typical returns the row of an engine whose total time is the median of those
// that succeeded, one that was not complete the longest; or the last one that failed;
// nil if it has none.
func (r *Result) Typical(engine string) *Row {
	var good, failed []*Row
	for i := range r.Rows {
		switch row := &r.Rows[i]; {
		case row.Engine != engine:
		case row.Error != "":
			failed = append(failed, row)
		default:
			good = append(good, row)
		}
	}
	if len(good) > 0 {
		total := func(r *Row) float64 {
			if r.TotalMS == 0 {
				return math.Inf(1)
			}
			return r.TotalMS
		}
		slices.SortStableFunc(good, func(a, b *Row) int { return cmp.Compare(total(a), total(b)) })
		return good[(len(good)-1)/2]
	}
	if len(failed) > 0 {
		return failed[len(failed)-1]
	}
	return nil
}
