package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
)

// Table writes rows under a header, in columns as wide as their widest cell;
// the first column is aligned to the left, the others to the right.
func Table(w io.Writer, header []string, rows [][]string) error {
	width := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	line := func(row []string) {
		for i, cell := range row {
			fill := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			switch {
			case i > 0:
				b.WriteString("  " + fill + cell)
			default:
				b.WriteString("  " + cell + fill)
			}
		}
		s := strings.TrimRight(b.String(), " ")
		b.Reset()
		b.WriteString(s + "\n")
	}
	line(header)
	for i := range width {
		header[i] = strings.Repeat("─", width[i])
	}
	line(header)
	for _, row := range rows {
		line(row)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// MarkdownTable writes a table as Markdown.
func MarkdownTable(w io.Writer, header []string, rows [][]string) {
	line := func(cells []string) {
		escaped := make([]string, len(cells))
		for i, c := range cells {
			escaped[i] = strings.ReplaceAll(c, "|", `\|`)
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(escaped, " | "))
	}
	line(header)
	fmt.Fprintln(w, strings.Repeat("|---", len(header))+"|")
	for _, row := range rows {
		line(row)
	}
}

// Number formats v with about three significant digits.
func Number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100:
		return humanize.Comma(int64(v + 0.5))
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// Text writes the median and the range.
func (s Spread) Text() string {
	if s.N <= 1 {
		return Number(s.Median)
	}
	return fmt.Sprintf("%s (%s to %s)", Number(s.Median), Number(s.Min), Number(s.Max))
}

// LatencyRow is one row of a latency table with [LatencyHeader].
func LatencyRow(name string, l Latency) []string {
	return []string{name, Number(l.P50), Number(l.P99), Number(l.P999), Number(l.Max), Number(l.Mean), humanize.Comma(l.Count)}
}

// LatencyHeader heads a table of [LatencyRow]; times are in microseconds.
func LatencyHeader(first string) []string {
	return []string{first, "p50 µs", "p99 µs", "p99.9 µs", "max µs", "mean µs", "count"}
}

// Verdicts writes the promised figures beside the measured ones.
func Verdicts(w io.Writer, vs []Verdict) error {
	rows := make([][]string, 0, len(vs))
	for _, v := range vs {
		bound, said := "at most ", "met"
		if v.AtLeast {
			bound = "at least "
		}
		promise := bound + Number(v.Promised) + " " + v.Unit
		switch {
		case v.Info:
			promise, said = "-", ""
		case v.Value.N == 0:
			said = "not measured"
		case !v.Met():
			said = "MISSED"
		}
		rows = append(rows, []string{v.Name, v.Value.Text() + " " + v.Unit, promise, said})
	}
	return Table(w, []string{"figure", "median (range)", "promised", "verdict"}, rows)
}

// StageOrder is the order in which a fault passes its stages.
var StageOrder = []string{"queue", "wire", "decode", "install"}

// Stages returns the rows of the stages in their order; stages of other names
// follow, so that none is lost.
func Stages(stages map[string]Latency) [][]string {
	var rows [][]string
	seen := map[string]bool{}
	for _, name := range StageOrder {
		if l, ok := stages[name]; ok {
			rows = append(rows, LatencyRow("  "+name, l))
			seen[name] = true
		}
	}
	for _, name := range sortedKeys(stages) {
		if !seen[name] {
			rows = append(rows, LatencyRow("  "+name, stages[name]))
		}
	}
	return rows
}

// Text writes the summary that a person reads.
func (r *Report) Text(w io.Writer) error {
	p := &printer{w: w}
	p.line("%s: %s of memory, %s, on %d × %s, Linux %s",
		r.VM, humanize.IBytes(uint64(r.RAMBytes)), r.Accel, r.Machine.Cores, r.Machine.CPU, r.Machine.Kernel)
	p.line("")
	p.field("downtime", "%s ms (source stop to destination resume, by QMP events)", Number(r.DowntimeMS))
	p.field("client's longest gap", "%s ms", Number(r.ClientBlackoutMS))
	if r.Warmup90MS != nil {
		p.field("back at 90 %", "%s ms after the switch-over", Number(*r.Warmup90MS))
	} else {
		p.field("back at 90 %", "not within the %.1f s observed", r.Load.ObservedAfter)
	}
	p.field("throughput", "%s requests/s before, %s after", Number(r.Load.BeforePerSec), Number(r.Load.AfterPerSec))
	p.field("total", "%s ms until the source was released", Number(r.TotalMS))
	p.field("pages", "%s: %s on demand, %s by precache, %s zero", humanize.Comma(int64(r.PagesTotal)),
		humanize.Comma(int64(r.PagesDemand)), humanize.Comma(int64(r.PagesPrecache)), humanize.Comma(int64(r.PagesZero)))
	p.field("bytes", "%s of guest memory in %s on the wire", humanize.IBytes(r.BytesGuest), humanize.IBytes(r.BytesWire))
	p.field("integrity", "%s", r.Integrity.text())
	p.line("")
	rows := append([][]string{LatencyRow("demand fault", r.FaultLatency)}, Stages(r.Stages)...)
	if p.err == nil {
		p.err = Table(w, LatencyHeader(""), rows)
	}
	p.line("")
	p.field("floors", "local fault %s µs, round trip %s µs, stream %s/s",
		Number(r.Floors.LocalFaultUS), Number(r.Floors.RTTUS), humanize.IBytes(uint64(r.Floors.StreamBytesPerSec)))
	return p.err
}

func (i Integrity) text() string {
	verdict := "every page arrived"
	if !i.OK() {
		verdict = "FAILED"
		if i.PagesChecked == 0 {
			verdict = "NOT CHECKED"
		}
	}
	return fmt.Sprintf("%s: %s pages compared, %s differ; the guest checked %s, %s bad; %s bad answers at the client",
		verdict, humanize.Comma(int64(i.PagesChecked)), humanize.Comma(int64(i.Mismatches)),
		humanize.Comma(int64(i.GuestChecks)), humanize.Comma(int64(i.GuestErrors)), humanize.Comma(int64(i.ClientErrors)))
}

// PeersTable writes the comparison of systems, run by run.
func PeersTable(w io.Writer, peers []Peer) error {
	rows := make([][]string, 0, len(peers))
	for _, p := range peers {
		slow := Number(p.SlowMS)
		if p.StillSlow {
			slow = "over " + slow
		}
		rows = append(rows, []string{p.System, fmt.Sprint(p.Run), Number(p.TotalMS), Number(p.DowntimeMS), slow,
			Number(p.WorstGapMS), humanize.IBytes(p.BytesWire), fmt.Sprint(p.GuestErrors)})
	}
	return Table(w, []string{"system", "run", "total ms", "downtime ms", "slow ms", "worst gap ms", "wire", "bad pages"}, rows)
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) field(name, format string, args ...any) {
	p.line("  %-22s"+format, append([]any{name}, args...)...)
}
