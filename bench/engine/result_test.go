package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/workloads"
)

func sample(t *testing.T) *Result {
	t.Helper()
	l, err := workloads.Parse("random")
	if err != nil {
		t.Fatal(err)
	}
	es, err := ParseEngines([]string{"pagewarp", "qemu-precopy"}, Env{})
	if err != nil {
		t.Fatal(err)
	}
	r := newResult(Options{Load: l, RAM: 1 << 30, Repeat: 2, Engines: es, Link: 125_000_000})
	r.Accel = "tcg"
	r.Facts["pagewarp"], r.Facts["qemu-precopy"] = Facts{QEMU: "7.2.22"}, Facts{QEMU: "7.2.22"}
	r.Unavailable = append(r.Unavailable, Unavailable{"qemu-postcopy@root", "there is no QEMU"})
	warm := 250.0
	var series []report.Point
	for i := range 80 {
		series = append(series, report.Point{T: float64(i-30) / 10, V: 1000})
	}
	r.Rows = []Row{
		{Engine: "pagewarp", Run: 1, TotalMS: 900, DowntimeMS: 10, Warmup90MS: &warm, Series: series, Settings: "defaults",
			Fault: &Fault{Latency: report.Latency{Mean: 200, P50: 150, P99: 900, P999: 1200, Max: 2000, Count: 321}, Source: "its own"}},
		{Engine: "qemu-precopy", Run: 1, Error: "given up after 3m0s", Settings: "auto-converge", Series: series},
		{Engine: "pagewarp", Run: 2, TotalMS: 1100, DowntimeMS: 14, BadPages: 0, Series: series, Settings: "defaults"},
		{Engine: "qemu-precopy", Run: 2, TotalMS: 5000, DowntimeMS: 300, BadPages: 2, Warmup90MS: &warm, Series: series, Settings: "auto-converge"},
	}
	r.sumUp()
	return r
}

func TestSummaries(t *testing.T) {
	r := sample(t)
	if len(r.Engines) != 2 || r.Engines[0].Engine != "pagewarp" || r.Engines[1].Engine != "qemu-precopy" {
		t.Fatalf("summaries %+v", r.Engines)
	}
	p, q := r.Engines[0], r.Engines[1]
	if p.Good != 2 || p.Failed != 0 || p.NotWarm != 1 || p.DowntimeMS != (report.Spread{Median: 12, Min: 10, Max: 14, N: 2}) {
		t.Errorf("pagewarp: %+v", p)
	}
	if p.Warmup90MS.N != 1 || p.FaultP99US.N != 1 || p.BlackoutMS.N != 0 {
		t.Errorf("figures that rows lack were counted: %+v", p)
	}
	if q.Good != 1 || q.Failed != 1 || q.BadPages != 2 || q.TotalMS.N != 1 || q.TotalMS.Median != 5000 {
		t.Errorf("the failed run was counted: %+v", q)
	}
	if typical := r.Typical("pagewarp"); typical == nil || typical.Run != 1 {
		t.Errorf("typical run of pagewarp: %+v", typical)
	}
	if typical := r.Typical("qemu-precopy"); typical == nil || typical.Error != "" {
		t.Errorf("typical run of a peer that failed once: %+v", typical)
	}
	if r.Typical("none") != nil {
		t.Error("an engine that is not there has a typical run")
	}
}

// A relocation on demand that was not complete has no total time, which is longer
// than any, and is told; no faults are a number of faults.
func TestSummaryOfIncomplete(t *testing.T) {
	fault := func(n int64) *Fault { return &Fault{Latency: report.Latency{Count: n}} }
	r := &Result{Rows: []Row{
		{Engine: "x", Run: 1, TotalMS: 5000, Fault: fault(10)},
		{Engine: "x", Run: 2, TotalMS: 0, Fault: fault(0)},
		{Engine: "x", Run: 3, TotalMS: 4000, Fault: fault(20)},
	}}
	r.sumUp()
	s := r.Engines[0]
	if s.Incomplete != 1 || s.TotalMS.N != 2 || !strings.HasSuffix(s.Total(), ", 1 × not complete") {
		t.Errorf("one of three was not complete: %+v, %q", s, s.Total())
	}
	if s.Faults != (report.Spread{Median: 10, Min: 0, Max: 20, N: 3}) {
		t.Errorf("faults %+v, want those of all three", s.Faults)
	}
	if row := r.Typical("x"); row.Run != 1 {
		t.Errorf("typical is run %d of 5000 ms, never, and 4000 ms: want 1", row.Run)
	}
	var b bytes.Buffer
	if err := r.Text(&b); err != nil || !strings.Contains(b.String(), "1 × not complete") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

// Damage by pagewarp is an error, by a peer a figure.
func TestDamaged(t *testing.T) {
	r := sample(t)
	if err := r.Damaged(); err != nil || r.Engines[1].BadPages != 2 {
		t.Errorf("two bad pages of a peer: %v", err)
	}
	for _, name := range []string{"pagewarp", "pagewarp-on-demand@root", "pagewarp-pre-transfer"} {
		r.Engines[0] = Summary{Engine: name, BadPages: 3}
		if err := r.Damaged(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name+": 3 bad") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Engines with QEMUs of their own may run under different accelerators, which no table
// may hide.
func TestAccelerators(t *testing.T) {
	r := sample(t)
	for i := range r.Rows {
		r.Rows[i].Accel = "kvm"
	}
	r.sumUp()
	var b bytes.Buffer
	if err := r.Text(&b); err != nil || r.Accel != "kvm" || !strings.Contains(b.String(), "under kvm, load") || strings.Contains(b.String(), ", under kvm:") {
		t.Errorf("%v, %q\n%s", err, r.Accel, b.String())
	}
	r.Rows[1].Accel, r.Rows[3].Accel = "tcg", "tcg"
	r.sumUp()
	b.Reset()
	if err := r.Text(&b); err != nil || r.Accel != "kvm and tcg" {
		t.Errorf("%v, %q", err, r.Accel)
	}
	for _, want := range []string{"under kvm and tcg, load", "pagewarp, QEMU 7.2.22, under kvm:", "qemu-precopy, QEMU 7.2.22, under tcg:"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := sample(t).Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"1 Gbit/s", "12.0 (10.0 to 14.0)", "1, 1 failed", "FAILED: qemu-precopy, run 1: given up after 3m0s", ", 1 × never",
		"cannot run here: qemu-postcopy@root: there is no QEMU", "fault latency: its own", "lost touches", "2 × each",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Count(b.String(), "    defaults\n") != 1 {
		t.Errorf("the settings are not there once:\n%s", b.String())
	}
}

func TestJSON(t *testing.T) {
	b, err := json.Marshal(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	var r Result
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != 4 || r.Rows[0].Fault.P99 != 900 || r.Rows[2].Warmup90MS != nil || r.Engines[0].DowntimeMS.Median != 12 {
		t.Errorf("%s", b)
	}
}

func TestPlot(t *testing.T) {
	dir := t.TempDir()
	svg, pngPath := filepath.Join(dir, "p.svg"), filepath.Join(dir, "p.png")
	r := sample(t)
	if err := r.WritePlot(svg, pngPath); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(svg)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pagewarp: down 10.0 ms", "qemu-precopy: down 300 ms", "touches per second"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the SVG lacks %q", want)
		}
	}
	f, err := os.Open(pngPath)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := png.Decode(f); err != nil {
		t.Errorf("the PNG: %v", err)
	}
	for i := range r.Rows {
		r.Rows[i].Series = nil
	}
	if err := r.WritePlot(svg, pngPath); err == nil {
		t.Error("nothing was drawn without an error")
	}
}

// The columns keep the area of what they average.
func TestColumns(t *testing.T) {
	series := []report.Point{{T: -0.3, V: 10}, {T: -0.2, V: 20}, {T: 0.05, V: 0}, {T: 0.25, V: 40}, {T: 0.4, V: 40}}
	cs := Columns(series, 0.2)
	var got float64
	for _, c := range cs {
		got += c.V * 0.2
	}
	// The first column is held half of its width only, and the last value for
	// one column.
	first := cs[0]
	if first.T != -0.4 || math.Abs(first.V-10) > 1e-9 {
		t.Errorf("the first column is %+v", first)
	}
	want := 10*0.1 + 20*0.25 + 0*0.2 + 40*0.15 + 40*0.2 + 10*0.1
	if math.Abs(got-want) > 1e-9 {
		t.Errorf("area %g, want %g: %+v", got, want, cs)
	}
}

func TestAddSeries(t *testing.T) {
	var r Row
	r.addSeries([]bin{{-5 * time.Second, -4 * time.Second, 9}, {-tenth, 0, 5}, {0, 0, 0}, {0, 2 * tenth, 5}})
	if len(r.Series) != 2 || r.Series[0].V != 50 || r.Series[1].V != 25 {
		t.Errorf("series %+v", r.Series)
	}
}

func TestParseStat(t *testing.T) {
	name, ticks, start, err := parseStat("42 (CPU 0/TCG) S 1 42 42 0 -1 4194560 100 0 0 0 150 25 0 0 20 0 5 0 98765 1000 200 1844")
	if err != nil || name != "CPU 0/TCG" || ticks != 175 || start != "98765" {
		t.Errorf("%q, %d ticks, start %s, %v", name, ticks, start, err)
	}
	if name, _, _, err := parseStat("42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 5 0 9 1000"); err != nil || name != "a) b" {
		t.Errorf("a name with a parenthesis: %q, %v", name, err)
	}
	for _, bad := range []string{"", "42", "42 (x) S 1 2", "42 )x( S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 5 0 9 1000", "42 (x) S 1 42 42 0 -1 4194560 100 0 0 0 a b 0 0 20 0 5 0 9 1000"} {
		if _, _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestRunOptions(t *testing.T) {
	good := func() Options {
		es, err := ParseEngines([]string{"pagewarp"}, Env{})
		if err != nil {
			t.Fatal(err)
		}
		l, err := ParseLoad("idle:ws=32")
		if err != nil {
			t.Fatal(err)
		}
		return Options{Engines: es, Load: l, LogDir: t.TempDir()}
	}
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"no engine":    {func(o *Options) { o.Engines = nil }, "must be given"},
		"no load":      {func(o *Options) { o.Load.Kind = "" }, "must be given"},
		"small memory": {func(o *Options) { o.RAM = 96 << 20 }, "--ram at least 128M"},
		"large load":   {func(o *Options) { o.RAM, o.Load.WorkingSetMiB = 1<<40, 1<<19 }, "this machine has"},
		"too long":     {func(o *Options) { o.After = 4 * time.Hour }, "the guest's own count of its work goes back for 3h0m0s only"},
		"too short":    {func(o *Options) { o.Before = time.Second }, "for 4s at least"},
	} {
		o := good()
		c.change(&o)
		if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
