package paper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/downtime"
	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/report"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// made is a comparison with known figures: pagewarp takes 1000 ms, the n-th
// engine after it n times 500 ms more, precopy-plain never completes.
func made(_ context.Context, o engine.Options) (*engine.Result, error) {
	r := &engine.Result{Load: o.Load, LoadText: o.Load.String(), Unit: "things <b>", RAMBytes: o.RAM, VCPUs: 1, LinkBytesPerSec: o.Link, Repeat: o.Repeat, Facts: map[string]engine.Facts{}}
	for i, e := range o.Engines {
		name := e.Name()
		warm, total := 250.0, 1000+500*float64(i)
		row := engine.Row{Engine: name, Run: 1, Settings: "settings of " + name, StoppedMS: 400, DowntimeMS: 10 + float64(i), Warmup90MS: &warm, TotalMS: total, LostSeconds: 0.5 + float64(i)}
		for j := range 60 {
			row.Series = append(row.Series, report.Point{T: float64(j-30) / 10, V: 100})
		}
		s := engine.Summary{Engine: name, Good: 1, DowntimeMS: report.SpreadOf([]float64{row.DowntimeMS}), TotalMS: report.SpreadOf([]float64{total}),
			Warmup90MS: report.SpreadOf([]float64{warm}), LostSeconds: report.SpreadOf([]float64{row.LostSeconds})}
		switch name {
		case "qemu-precopy-plain":
			row.Error = "given up\nafter 15s"
			s = engine.Summary{Engine: name, Failed: 1}
		case "qemu-postcopy":
			row.TotalMS, s.TotalMS = 500, report.SpreadOf([]float64{500})
		case engine.OnDemand:
			row.TotalMS, row.Warmup90MS, row.Notes = 0, nil, []string{"7 of 9 pages were still at the source"}
			s.TotalMS, s.Warmup90MS, s.NotWarm = report.Spread{}, report.Spread{}, 1
		}
		r.Rows, r.Engines = append(r.Rows, row), append(r.Engines, s)
	}
	return r, nil
}

func still(_ context.Context, o downtime.Options) ([]downtime.Result, error) {
	if o.Sizes[0] == 64<<30 {
		return nil, errors.New("boot: cannot allocate memory")
	}
	ms := []float64{10, 12, 14}
	if o.Sizes[0] == 16<<30 {
		ms = []float64{18, 18, 20}
	}
	return []downtime.Result{{RAMBytes: o.Sizes[0], Accel: "tcg", DowntimeMS: report.SpreadOf(ms), TotalMS: report.SpreadOf(ms), DaemonMiB: report.SpreadOf(ms)}}, nil
}

func part(t *testing.T, r *Report, name string) Part {
	t.Helper()
	i := slices.IndexFunc(r.Parts, func(p Part) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("no part %s in %d", name, len(r.Parts))
	}
	return r.Parts[i]
}

func TestReport(t *testing.T) {
	o := Options{LogDir: t.TempDir(), Out: t.TempDir(), Command: "pagewarp bench paper"}
	r, err := run(t.Context(), o, lab{made, still})
	if err != nil || !r.Measured() {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		Web:      {"410 ms after the command, within one second in 1 of 1"},
		Precache: {"250 ms with precache, not while watched in 1 without", "0.50 with precache, 1.50 without"},
		Memory:   {"qemu-precopy took 1.50 times", "qemu-precopy-plain did not complete", "qemu-postcopy was faster: pagewarp took 2.00 times"},
		Downtime: {"largest median is 1.50 times the smallest, from 1.0 GiB to 16 GiB of"},
	} {
		p := part(t, r, name)
		for _, w := range want {
			if says := strings.Join(p.Says, "\n"); !strings.Contains(says, w) {
				t.Errorf("%s: no %q in\n%s", name, w, says)
			}
		}
		f, err := os.Open(filepath.Join(o.Out, name+".png"))
		if err != nil || !p.Figure {
			t.Fatalf("%s: figure %v, %v", name, p.Figure, err)
		}
		defer f.Close()
		if m, err := png.Decode(f); err != nil || m.Bounds().Dx() < 500 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p := part(t, r, Memory); len(p.Failures) != 1 || p.Failures[0] != "qemu-precopy-plain, run 1: given up after 15s" || len(p.Rows) != 6 {
		t.Errorf("memory: %q, %d rows", p.Failures, len(p.Rows))
	}
	if p := part(t, r, Downtime); len(p.Rows) != 4 || p.Rows[3][2] != "failed" || !strings.Contains(p.Failures[0], "64 GiB: boot: cannot allocate") {
		t.Errorf("downtime: %q %q", p.Rows, p.Failures)
	}
	if p := part(t, r, Precache); p.Rows[1][7] != "-" || !strings.Contains(strings.Join(p.Setup, "\n"), "7 of 9 pages") {
		t.Errorf("precache: %q %q", p.Rows, p.Setup)
	}
	files := map[string]string{}
	for _, name := range []string{PageFile, MarkdownFile, JSONFile} {
		b, err := os.ReadFile(filepath.Join(o.Out, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(b)
	}
	for _, want := range []string{`<img src="memory.svg"`, "<td>64 GiB</td>", "FAILED: qemu-precopy-plain", "pagewarp bench paper"} {
		if !strings.Contains(files[PageFile], want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, want := range []string{"![Downtime against the size of memory](downtime.png)", "| 16 GiB | tcg | 3 | 18.0 (18.0 to 20.0) |", "**FAILED** 64 GiB"} {
		if !strings.Contains(files[MarkdownFile], want) {
			t.Errorf("the Markdown lacks %q\n%s", want, files[MarkdownFile])
		}
	}
	var back Report
	if err := json.Unmarshal([]byte(files[JSONFile]), &back); err != nil || len(back.Parts) != 4 || back.Parts[0].Comparison == nil {
		t.Errorf("JSON: %v, %d parts", err, len(back.Parts))
	}
	var text bytes.Buffer
	if err := r.Text(&text); err != nil || !strings.Contains(text.String(), "at the destination ms") || r.Parts[0].Header[0] != "engine" {
		t.Errorf("text: %v\n%s\n%q", err, text.String(), r.Parts[0].Header)
	}
}

// What is said counts the relocations that failed, and of times says of which
// relocations they are.
func TestSaysWhatFailed(t *testing.T) {
	one := func(name string, failed int) engine.Summary {
		return engine.Summary{Engine: name, Good: 1, Failed: failed, DowntimeMS: report.SpreadOf([]float64{10}), TotalMS: report.SpreadOf([]float64{1000})}
	}
	row := func(name, failure string) engine.Row {
		return engine.Row{Engine: name, Run: 1, StoppedMS: 400, DowntimeMS: 10, TotalMS: 1000, Error: failure}
	}
	c := &engine.Result{Repeat: 3, Facts: map[string]engine.Facts{}, Engines: []engine.Summary{one(engine.Pagewarp, 1), one("qemu-precopy", 2)},
		Rows: []engine.Row{row(engine.Pagewarp, ""), row(engine.Pagewarp, "lost"), row("qemu-precopy", ""), row("qemu-precopy", "given up"), row("qemu-precopy", "given up")}}
	if says := webPart(c).Says; !strings.Contains(says[0], "within one second in 1 of 2 relocations") {
		t.Errorf("one of two relocations failed: %q", says)
	}
	if says := memoryPart(c, time.Minute).Says; len(says) != 1 || !strings.Contains(says[0], "as long as pagewarp, in the 1 of its 3 relocations that were complete") {
		t.Errorf("two of three relocations were given up: %q", says)
	}
}

// Damage is an error of the run in which it was done.
func TestDamaged(t *testing.T) {
	now := time.Now()
	c := &engine.Result{Engines: []engine.Summary{{Engine: engine.Pagewarp, Good: 1, BadPages: 1}}}
	r := &Report{Started: now, Parts: []Part{{Name: Memory, Made: now, Comparison: c}}}
	if err := r.Damaged(); !errors.Is(err, engine.ErrDamaged) || !strings.Contains(err.Error(), "experiment memory") {
		t.Errorf("%v", err)
	}
	r.Parts[0].Made = now.Add(-time.Hour)
	if err := r.Damaged(); err != nil {
		t.Errorf("of an earlier run: %v", err)
	}
}

// The page is made of texts that are data, not of HTML.
func TestPageEscapes(t *testing.T) {
	dir := t.TempDir()
	r := Report{Parts: []Part{failed(Web, errors.New("<script>alert(1)</script>"))}}
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, PageFile))
	if err != nil || bytes.Contains(b, []byte("<script>")) || !bytes.Contains(b, []byte("&lt;script&gt;")) {
		t.Errorf("%v\n%s", err, b)
	}
	if r.Measured() {
		t.Error("a report of nothing but a failure was measured")
	}
}

// An experiment that fails is a part that says so; the others are made.
func TestFailedExperiment(t *testing.T) {
	o := Options{LogDir: t.TempDir(), Out: t.TempDir(), Quick: true}
	r, err := run(t.Context(), o, lab{
		func(context.Context, engine.Options) (*engine.Result, error) { return nil, errors.New("no guest") }, still})
	if err != nil || len(r.Parts) != 4 {
		t.Fatalf("%v, %d parts", err, len(r.Parts))
	}
	if p := part(t, r, Memory); len(p.Failures) != 1 || p.Failures[0] != "not measured: no guest" || p.Figure {
		t.Errorf("%+v", p)
	}
	if p := part(t, r, Downtime); len(p.Rows) != 4 || len(p.Failures) != 1 {
		t.Errorf("%+v", p)
	}
}

// An interrupted run keeps what was finished, on disk as well.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := errors.New("interrupted by the test")
	o := Options{LogDir: t.TempDir(), Out: t.TempDir()}
	r, err := run(ctx, o, lab{made, func(ctx context.Context, d downtime.Options) ([]downtime.Result, error) {
		if d.Sizes[0] == 4<<30 {
			cancel(stop)
			return nil, context.Cause(ctx)
		}
		return still(ctx, d)
	}})
	if !errors.Is(err, stop) || len(r.Parts) != 4 {
		t.Fatalf("%v, %d parts", err, len(r.Parts))
	}
	if p := part(t, r, Downtime); len(p.Rows) != 1 || len(p.Failures) != 0 {
		t.Errorf("%+v", p)
	}
	if b, err := os.ReadFile(filepath.Join(o.Out, MarkdownFile)); err != nil || !strings.Contains(string(b), "INTERRUPTED") {
		t.Errorf("%v\n%s", err, b)
	}
	if b, err := os.ReadFile(filepath.Join(o.Out, JSONFile)); err != nil || !strings.Contains(string(b), `"interrupted": true`) {
		t.Errorf("%v\n%s", err, b)
	}
}

// Interrupted within the first relocation of the second experiment, the first one
// is there, and the second is none that failed.
func TestInterruptedBetween(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := errors.New("interrupted by the test")
	o := Options{LogDir: t.TempDir(), Out: t.TempDir()}
	r, err := run(ctx, o, lab{func(ctx context.Context, e engine.Options) (*engine.Result, error) {
		if e.Load.Kind == "churn" {
			cancel(stop)
			return &engine.Result{}, context.Cause(ctx)
		}
		return made(ctx, e)
	}, still})
	if !errors.Is(err, stop) || len(r.Parts) != 2 || !r.Interrupted {
		t.Fatalf("%v, %d parts", err, len(r.Parts))
	}
	if b, err := os.ReadFile(filepath.Join(o.Out, JSONFile)); err != nil || !strings.Contains(string(b), `"interrupted": true`) {
		t.Errorf("%v\n%s", err, b)
	}
}

func TestOnly(t *testing.T) {
	o := Options{LogDir: t.TempDir(), Out: t.TempDir(), Only: []string{Precache}}
	r, err := run(t.Context(), o, lab{made, still})
	if err != nil || len(r.Parts) != 1 || r.Parts[0].Name != Precache {
		t.Fatalf("%v, %+v", err, r.Parts)
	}
	o.Only = []string{"memroy"}
	if _, err := run(t.Context(), o, lab{made, still}); err == nil || !strings.Contains(err.Error(), "did you mean memory?") {
		t.Errorf("an unknown experiment: %v", err)
	}
}

// A comparison that was interrupted keeps the relocations that were made.
func TestInterruptedComparison(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := errors.New("interrupted by the test")
	o := Options{LogDir: t.TempDir(), Out: t.TempDir(), Only: []string{Memory}, Quick: true}
	r, err := run(ctx, o, lab{func(ctx context.Context, e engine.Options) (*engine.Result, error) {
		c, _ := made(ctx, e)
		c.Facts["pagewarp"], c.Facts["qemu-precopy"] = engine.Facts{}, engine.Facts{}
		c.Rows, c.Engines = c.Rows[:1], c.Engines[:1]
		cancel(stop)
		return c, context.Cause(ctx)
	}, still})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if p := part(t, r, Memory); len(p.Rows) != 1 || len(p.Failures) != 1 || !strings.Contains(p.Failures[0], "1 of 2 relocations") {
		t.Errorf("%q %q", p.Rows, p.Failures)
	}
}

// A comparison is written after each relocation, and one whose time is over keeps
// them; the next experiment is made all the same, in its own time.
func TestTimeIsOver(t *testing.T) {
	o := Options{LogDir: t.TempDir(), Out: t.TempDir(), Only: []string{Memory, Downtime}, Within: 500 * time.Millisecond}
	r, err := run(t.Context(), o, lab{func(ctx context.Context, e engine.Options) (*engine.Result, error) {
		c, _ := made(ctx, e)
		c.Facts["pagewarp"], c.Facts["qemu-precopy"], c.Repeat = engine.Facts{}, engine.Facts{}, 1
		c.Rows, c.Engines = c.Rows[:1], c.Engines[:1]
		e.Progress(c)
		var onDisk Report
		b, err := os.ReadFile(filepath.Join(o.Out, JSONFile))
		if err = errors.Join(err, json.Unmarshal(b, &onDisk)); err != nil || len(onDisk.Parts) != 1 || len(onDisk.Parts[0].Rows) != 1 {
			t.Errorf("after the first relocation: %v, %+v", err, onDisk.Parts)
		}
		<-ctx.Done()
		return c, context.Cause(ctx)
	}, func(ctx context.Context, d downtime.Options) ([]downtime.Result, error) {
		if d.Sizes[0] == 1<<30 {
			return still(ctx, d)
		}
		<-ctx.Done()
		if d.Sizes[0] == 4<<30 {
			rs, _ := still(ctx, d)
			return rs, context.Cause(ctx)
		}
		return nil, context.Cause(ctx)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if p := part(t, r, Memory); len(p.Rows) != 1 || len(p.Failures) != 1 || !strings.Contains(p.Failures[0], "1 of 2 relocations were not made") {
		t.Errorf("%q %q", p.Rows, p.Failures)
	}
	p := part(t, r, Downtime)
	want := []string{"4.0 GiB: cut short after 3 relocations", "16 GiB: not measured: the time", "64 GiB: not measured: the time"}
	if len(p.Rows) != 4 || len(p.Failures) != len(want) {
		t.Fatalf("%q %q", p.Rows, p.Failures)
	}
	for i, w := range want {
		if !strings.HasPrefix(p.Failures[i], w) {
			t.Errorf("%q, want %q", p.Failures[i], w)
		}
	}
}

func TestKeep(t *testing.T) {
	o := Options{LogDir: t.TempDir(), Out: t.TempDir(), Only: []string{Downtime}, Keep: true, Command: "first"}
	if r, err := run(t.Context(), o, lab{made, still}); err != nil || len(r.Parts) != 1 {
		t.Fatalf("with nothing to keep: %v", err)
	}
	o.Only, o.Command = []string{Web, Precache}, "second"
	r, err := run(t.Context(), o, lab{made, still})
	if err != nil || len(r.Parts) != 3 || r.Parts[0].Name != Web || r.Parts[2].Name != Downtime {
		t.Fatalf("%v, %+v", err, r.Parts)
	}
	if d := r.Parts[2]; len(d.Rows) != 4 || !d.Figure || d.Command != "first" || r.Parts[0].Command != "second" || d.Made.After(r.Parts[0].Made) {
		t.Errorf("kept: %+v", d)
	}
	if err := os.WriteFile(filepath.Join(o.Out, JSONFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t.Context(), o, lab{made, still}); err == nil || !strings.Contains(err.Error(), JSONFile) {
		t.Errorf("a report that cannot be read was overwritten: %v", err)
	}
}
