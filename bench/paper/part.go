package paper

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/downtime"
	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/report"
)

// Part is one experiment.
type Part struct {
	// Name is one of Names, and the base of the plot's file names.
	Name string `json:"name"`
	// Title heads it, Claim is what the paper claims.
	Title string `json:"title"`
	Claim string `json:"claim"`
	// Setup is what was measured with which settings.
	Setup []string `json:"setup,omitempty"`
	// Says is what came out, in sentences; Failures is what failed.
	Says     []string   `json:"says,omitempty"`
	Failures []string   `json:"failures,omitempty"`
	Header   []string   `json:"header,omitempty"`
	Rows     [][]string `json:"rows,omitempty"`
	// Figure says that there is a plot, Name.svg and Name.png.
	Figure bool `json:"figure"`
	// Made is when its run began, Command what made it.
	Made    time.Time `json:"made"`
	Command string    `json:"command"`
	// Comparison is the whole of it; Web and Precache have the same.
	Comparison *engine.Result `json:"comparison,omitempty"`
	Sizes      []Size         `json:"sizes,omitempty"`

	paint func(svgPath, pngPath string) error
}

// Size is the downtime of a guest with one size of memory.
type Size struct {
	RAMBytes uint64           `json:"ram_bytes"`
	Result   *downtime.Result `json:"result,omitempty"`
	Error    string           `json:"error,omitempty"`
}

// about are the titles and the claims.
var about = map[string][2]string{
	Web:      {"A web server under heavy load", "It relocates within one second: the guest runs at the destination, and its clients are served."},
	Precache: {"With and without precache", "Precache shortens the time in which the service is slower than before."},
	Memory:   {"A memory-intensive guest, against QEMU's own ways", "The total time is bounded, where precopy needs many passes or never converges."},
	Downtime: {"Downtime against the size of memory", "The time in which the guest stands still does not grow with its memory."},
}

func newPart(name string) Part { return Part{Name: name, Title: about[name][0], Claim: about[name][1]} }

func failed(name string, err error) Part {
	p := newPart(name)
	p.Failures = []string{"not measured: " + oneLine(err.Error())}
	return p
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// arrived is the spread of the time from the command until the guest ran at the
// destination, in ms.
func arrived(c *engine.Result, name string) report.Spread {
	var vs []float64
	for _, row := range c.Rows {
		if row.Engine == name && row.Error == "" {
			vs = append(vs, row.StoppedMS+row.DowntimeMS)
		}
	}
	return report.SpreadOf(vs)
}

func cell(s report.Spread) string {
	if s.N == 0 {
		return "-"
	}
	return s.Text()
}

func linkText(c *engine.Result) string {
	if c.LinkBytesPerSec == 0 {
		return "no limit"
	}
	return humanize.SIWithDigits(float64(c.LinkBytesPerSec)*8, 1, "bit/s")
}

// comparison makes the part of a comparison, with the table of some engines.
func comparison(name string, c *engine.Result, engines ...string) Part {
	p := newPart(name)
	p.Setup = append(p.Setup, fmt.Sprintf("guest of %s, %d vCPU under %s, load %s, link %s, %d × each in alternation",
		humanize.IBytes(c.RAMBytes), c.VCPUs, c.Accel, c.LoadText, linkText(c), c.Repeat))
	p.Header = []string{"engine", "runs", "at the destination ms", "downtime ms", "client blackout ms", "back at 90 % ms", "lost s", "total ms", "sent MB", "bad pages"}
	for _, name := range engines {
		i := slices.IndexFunc(c.Engines, func(s engine.Summary) bool { return s.Engine == name })
		if i < 0 {
			continue
		}
		s := c.Engines[i]
		runs, warm := fmt.Sprint(s.Good), cell(s.Warmup90MS)
		if s.Failed > 0 {
			runs += fmt.Sprintf(", %d failed", s.Failed)
		}
		if s.NotWarm > 0 {
			warm = strings.TrimPrefix(warm+fmt.Sprintf(", %d × not seen", s.NotWarm), "-, ")
		}
		row := []string{name, runs, cell(arrived(c, name)), cell(s.DowntimeMS), cell(s.BlackoutMS), warm, cell(s.LostSeconds), s.Total(), cell(s.SentMB), fmt.Sprint(s.BadPages)}
		p.Rows = append(p.Rows, row)
		if t := c.Typical(name); t != nil && t.Settings != "" {
			p.Setup = append(p.Setup, fmt.Sprintf("%s, QEMU %s: %s", name, c.Facts[name].QEMU, t.Settings))
		}
		for _, r := range c.Rows {
			if r.Engine != name {
				continue
			}
			if r.Error != "" {
				p.Failures = append(p.Failures, fmt.Sprintf("%s, run %d: %s", name, r.Run, oneLine(r.Error)))
			}
			for _, n := range r.Notes {
				p.Setup = append(p.Setup, fmt.Sprintf("%s, run %d: %s", name, r.Run, n))
			}
		}
	}
	if missing := c.Repeat*len(c.Facts) - len(c.Rows); missing > 0 {
		p.Failures = append(p.Failures, fmt.Sprintf("not complete: %d of %d relocations were not made", missing, c.Repeat*len(c.Facts)))
	}
	for _, u := range c.Unavailable {
		if slices.Contains(engines, u.Engine) {
			p.Failures = append(p.Failures, fmt.Sprintf("%s cannot run here: %s", u.Engine, oneLine(u.Reason)))
		}
	}
	return p
}

func summary(c *engine.Result, name string) engine.Summary {
	for _, s := range c.Engines {
		if s.Engine == name {
			return s
		}
	}
	return engine.Summary{Engine: name}
}

// binSeconds is the width of the columns of a timeline.
const binSeconds = 0.2

// timeline draws the throughput of engines' typical runs on one axis.
func timeline(p *Part, c *engine.Result, engines ...string) {
	chart := report.Chart{Title: fmt.Sprintf("%s, guest of %s", c.LoadText, humanize.IBytes(c.RAMBytes)), X: "Seconds from the command"}
	panel := report.Panel{Y: c.Unit + "\nper second"}
	for i, name := range engines {
		t := c.Typical(name)
		if t == nil || len(t.Series) < 2 {
			continue
		}
		panel.Lines = append(panel.Lines, report.Line{Name: name, Points: engine.Columns(t.Series, binSeconds), Steps: true})
		if i == 0 && t.Error == "" {
			panel.Marks = append(panel.Marks, report.Mark{X: t.StoppedMS / 1e3, Text: fmt.Sprintf("switch-over, down for %s ms", report.Number(t.DowntimeMS))})
			if t.TotalMS > 0 && len(engines) == 1 {
				panel.Lines[0].Name = fmt.Sprintf("%s: complete after %s s", name, report.Number(t.TotalMS/1e3))
			}
		}
	}
	if len(panel.Lines) == 0 {
		return
	}
	chart.Panels = []report.Panel{panel}
	p.Figure = true
	p.paint = func(svg, png string) error { return report.WriteChart(&chart, svg, png) }
}

func webPart(c *engine.Result) Part {
	p := comparison(Web, c, engine.Pagewarp)
	p.Comparison = c
	if s := summary(c, engine.Pagewarp); s.Good > 0 {
		// One that failed was not at the destination within a second, either.
		in, at := 0, arrived(c, engine.Pagewarp)
		for _, row := range c.Rows {
			if row.Engine == engine.Pagewarp && row.Error == "" && row.StoppedMS+row.DowntimeMS <= 1000 {
				in++
			}
		}
		p.Says = append(p.Says,
			fmt.Sprintf("The guest ran at the destination %s ms after the command, within one second in %d of %d relocations.", at.Text(), in, s.Good+s.Failed),
			fmt.Sprintf("It stood still for %s ms; the clients' longest time without a right answer was %s ms.", s.DowntimeMS.Text(), cell(s.BlackoutMS)),
			fmt.Sprintf("All memory was there, and nothing was needed of the source any more, after %s ms.", s.Total()))
	}
	timeline(&p, c, engine.Pagewarp)
	return p
}

func precachePart(c *engine.Result) Part {
	p := comparison(Precache, c, engine.Pagewarp, engine.OnDemand)
	p.Comparison = c
	with, without := summary(c, engine.Pagewarp), summary(c, engine.OnDemand)
	if with.Good > 0 && without.Good > 0 {
		p.Says = append(p.Says,
			fmt.Sprintf("Back at 90 %% of the throughput before: %s with precache, %s without.", warm(with), warm(without)),
			fmt.Sprintf("Work lost, in seconds of the throughput before: %s with precache, %s without.", with.LostSeconds.Text(), without.LostSeconds.Text()))
		if with.LostSeconds.Median > without.LostSeconds.Median {
			p.Says = append(p.Says, "In this run precache cost more work than it saved: its stream takes CPU and link from the guest.")
		}
	}
	timeline(&p, c, engine.Pagewarp, engine.OnDemand)
	return p
}

func warm(s engine.Summary) string {
	text := ""
	if s.Warmup90MS.N > 0 {
		text = s.Warmup90MS.Text() + " ms"
	}
	if s.NotWarm > 0 {
		text = strings.TrimPrefix(text+fmt.Sprintf(", not while watched in %d", s.NotWarm), ", ")
	}
	return text
}

func memoryPart(c *engine.Result, limit time.Duration) Part {
	var names []string
	for _, s := range c.Engines {
		names = append(names, s.Engine)
	}
	for _, u := range c.Unavailable {
		names = append(names, u.Engine)
	}
	p := comparison(Memory, c, names...)
	p.Comparison = c
	p.Setup = append(p.Setup, fmt.Sprintf("a relocation that is not complete after %v is given up", limit))
	ours := summary(c, engine.Pagewarp)
	var bars []report.Bar
	for _, s := range c.Engines {
		if s.TotalMS.N == 0 {
			// Its guest may not have lived, though the engine was done before.
			at, how := limit.Seconds(), ending(c, s.Engine, limit)
			if r := c.Typical(s.Engine); r != nil && r.TotalMS > 0 {
				at = r.TotalMS / 1e3
			}
			bars = append(bars, report.Bar{Name: s.Engine, Value: report.SpreadOf([]float64{at}), Pale: true, Text: how})
			p.Says = append(p.Says, fmt.Sprintf("%s did not complete: %s.", s.Engine, how))
			continue
		}
		v := report.Spread{Median: s.TotalMS.Median / 1e3, Min: s.TotalMS.Min / 1e3, Max: s.TotalMS.Max / 1e3, N: s.TotalMS.N}
		text := fmt.Sprintf("%s s, down %s ms", report.Number(v.Median), report.Number(s.DowntimeMS.Median))
		if all := s.Good + s.Failed; s.TotalMS.N < all {
			text += fmt.Sprintf(", %d of %d", s.TotalMS.N, all)
		}
		bars = append(bars, report.Bar{Name: s.Engine, Value: v, Text: text})
		if s.Engine == engine.Pagewarp || ours.TotalMS.N == 0 {
			continue
		}
		if ratio := s.TotalMS.Median / ours.TotalMS.Median; ratio >= 1 {
			p.Says = append(p.Says, fmt.Sprintf("%s took %.2f times as long as pagewarp%s.", s.Engine, ratio, completed(s)))
		} else {
			p.Says = append(p.Says, fmt.Sprintf("%s was faster: pagewarp took %.2f times as long%s.", s.Engine, 1/ratio, completed(s)))
		}
	}
	if len(bars) > 0 {
		p.Figure = true
		p.paint = func(svg, png string) error {
			return report.WriteBars(fmt.Sprintf("Time until complete: %s, guest of %s, link %s", c.LoadText, humanize.IBytes(c.RAMBytes), linkText(c)), "Seconds", bars, svg, png)
		}
	}
	return p
}

// completed says in how many of its relocations an engine took the time that is
// told; nothing if in all.
func completed(s engine.Summary) string {
	all := s.Good + s.Failed
	if s.TotalMS.N == all {
		return ""
	}
	return fmt.Sprintf(", in the %d of its %d relocations that were complete", s.TotalMS.N, all)
}

// ending says in few words how the runs of an engine ended that never completed.
func ending(c *engine.Result, name string, limit time.Duration) string {
	for _, r := range c.Rows {
		if r.Engine == name && r.Error != "" && !strings.Contains(r.Error, "given up") {
			if strings.Contains(r.Error, "did not answer") {
				return "the guest did not survive"
			}
			return "failed"
		}
	}
	return fmt.Sprintf("given up after %v", limit)
}

func downtimePart(sizes []Size) Part {
	p := newPart(Downtime)
	p.Sizes = sizes
	p.Setup = []string{"an idle guest that goes to and fro between two hosts; mutual TLS, no limit of the link; the times of QEMU's own STOP and RESUME events"}
	p.Header = []string{"memory", "accelerator", "relocations", "downtime ms", "total ms", "daemon's memory MiB"}
	var names []string
	var medians []float64
	var mid []report.Point
	var ranges []report.Spread
	var ticks []float64
	for _, s := range sizes {
		name := humanize.IBytes(s.RAMBytes)
		if s.Result != nil && s.Error != "" {
			p.Failures = append(p.Failures, fmt.Sprintf("%s: %s after %d relocations", name, s.Error, s.Result.DowntimeMS.N))
		}
		if s.Result == nil {
			p.Rows = append(p.Rows, []string{name, "-", "failed", "-", "-", "-"})
			p.Failures = append(p.Failures, name+": "+oneLine(s.Error))
			continue
		}
		d := s.Result.DowntimeMS
		p.Rows = append(p.Rows, []string{name, s.Result.Accel, fmt.Sprint(d.N), cell(d), cell(s.Result.TotalMS), cell(s.Result.DaemonMiB)})
		names, medians = append(names, name), append(medians, d.Median)
		gib := float64(s.RAMBytes) / (1 << 30)
		mid, ranges, ticks = append(mid, report.Point{T: gib, V: d.Median}), append(ranges, d), append(ticks, gib)
	}
	if m := report.SpreadOf(medians); m.N > 1 && m.Min > 0 {
		p.Says = append(p.Says, fmt.Sprintf("The largest median is %.2f times the smallest, from %s to %s of memory.",
			m.Max/m.Min, names[0], names[len(names)-1]))
		p.Figure = true
		p.paint = func(svg, png string) error {
			return report.WriteChart(&report.Chart{Title: "Downtime against the size of memory", X: "Memory of the guest (GiB)", Panels: []report.Panel{{
				Y: "Downtime\n(ms)", LogX: true, TicksX: ticks,
				Lines: []report.Line{{Name: "median and range", Points: mid, Dots: true, Ranges: ranges}},
			}}}, svg, png)
		}
	}
	return p
}
