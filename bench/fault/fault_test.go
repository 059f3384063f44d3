package fault

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/internal/hugetest"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
)

func TestMain(m *testing.M) {
	touch.Main()
	floor.Main()
	Main()
	goleak.VerifyTestMain(m)
}

// A small measurement: all parts are real, only the numbers are few.
func TestRun(t *testing.T) {
	for _, withTLS := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r, err := Run(ctx, RunOptions{Count: 200, Repeat: 1, PrecacheMiB: 192, Every: 200 * time.Microsecond, TLS: withTLS})
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range map[string]Pass{"idle": r.Idle[0], "precache": r.Precache[0]} {
			// No fault through the engine is faster than the round trip in it.
			if p.Fault.P50 < p.RoundTrip.P50/4 || p.Fault.Count < 100 || p.Floor() <= 0 {
				t.Errorf("TLS %v, %s: %+v", withTLS, name, p)
			}
			for _, stage := range []string{"queue", "wire", "decode", "install", "serve"} {
				if p.Stages[stage].Count == 0 {
					t.Errorf("TLS %v, %s: stage %s has no samples", withTLS, name, stage)
				}
			}
		}
		var b strings.Builder
		if err := r.Text(&b); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), "demand fault p50, link idle") {
			t.Errorf("summary:\n%s", b.String())
		}
	}
}

// Every combination is measured, each pass anew, and all pages are compared by
// the engine's own end.
func TestSweep(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := Sweep(ctx, SweepOptions{Threads: []int{1, 8}, Channels: []int{1, 3}, Count: 200, Repeat: 2})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Cells) != 4 || r.Cells[1].Threads != 8 || r.Cells[2].Channels != 3 {
		t.Fatalf("cells %+v", r.Cells)
	}
	for _, c := range r.Cells {
		if c.PerSecond.N != 2 || c.PerSecond.Min <= 0 || c.P50.Min < r.RoundTrip.Min/4 || c.P99.Median < c.P50.Median || c.Daemon.Min <= 0 || c.Server.Min <= 0 || c.Tables.Min <= 0 {
			t.Errorf("cell %+v", c)
		}
		// A fault takes its thread's time, so that more of them a second than
		// threads allow were not all waited for.
		if limit := 1e6 * float64(c.Threads) / r.RoundTrip.Min * 8; c.PerSecond.Max > limit {
			t.Errorf("%d threads: %.0f faults/s, at most %.0f can be", c.Threads, c.PerSecond.Max, limit)
		}
	}
	var b strings.Builder
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"faults/s", "page tables MiB", "most faults/s"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// A page that never comes ends the pass, and the benchmark says what it waited for.
func TestPassHasALimit(t *testing.T) {
	o := RunOptions{Count: 50, limit: time.Second}
	o.fill()
	im, err := NewImage(ImageOptions{Pages: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	// Without precache, and without a touch, nothing is ever complete.
	_, err = o.pass(t.Context(), &way{}, im, func(_ context.Context, e *Engine, _ *Pass) ([]time.Duration, error) {
		_, err := e.Drain()
		return nil, err
	})
	if err == nil || !strings.Contains(err.Error(), "the pass was not done within 1s") {
		t.Errorf("error %v", err)
	}
	// What is to come over a slow link has its time.
	ctx, cancel := Bounded(t.Context(), 64<<20, 125_000)
	defer cancel()
	if end, ok := ctx.Deadline(); !ok || time.Until(end) < 20*time.Minute {
		t.Errorf("64 MiB over 1 Mbit/s have until %v", end)
	}
}

// More faults than there is memory for are refused, before any is taken.
func TestTooManyFaults(t *testing.T) {
	free, err := sysmem.Available()
	if err != nil {
		t.Fatal(err)
	}
	count := int(free / pageSize) // for one end, without the warm-up
	if r, err := Run(t.Context(), RunOptions{Count: count, Repeat: 1}); err == nil || r != nil || !strings.Contains(err.Error(), "lower the count of faults (--count)") {
		t.Errorf("%d faults: %+v, %v", count, r, err)
	}
	if r, err := Sweep(t.Context(), SweepOptions{Count: min(count, 10_000_000), Regions: make([]uint64, 1+count/10_000_000)}); err == nil || r != nil || !strings.Contains(err.Error(), "lower the count") {
		t.Errorf("a table of %d faults: %+v, %v", count, r, err)
	}
	if err := roomFor(1 << 20); err != nil {
		t.Error(err)
	}
}

// A small machine moves less by default, and is not told to take fewer faults.
func TestPrecacheByDefault(t *testing.T) {
	for _, c := range []struct {
		link uint64
		free int64
		want int
	}{{0, 64 << 30, 1024}, {0, 2 << 30, 512}, {0, 100 << 20, 64}, {125_000_000, 64 << 30, 238}, {125_000_000, 512 << 20, 128}, {1000, 64 << 30, 64}} {
		if got := precacheMiB(c.link, c.free); got != c.want {
			t.Errorf("link %d, %d MiB free: %d MiB, want %d", c.link, c.free>>20, got, c.want)
		}
	}
}

// The result says what it was measured with, also where that is the default.
func TestResultStatesItsSettings(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := Run(ctx, RunOptions{Count: 100, Repeat: 1, PrecacheMiB: 96, Every: 200 * time.Microsecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.Streams != 2 || r.PrecacheMiB != 96 || r.EveryUS != 200 {
		t.Errorf("%d streams, %d MiB, a fault each %g µs; want 2, 96, 200", r.Streams, r.PrecacheMiB, r.EveryUS)
	}
}

// TestInterrupted: what was finished by then is kept.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	step := func(at string) func(string) {
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		return func(s string) {
			if strings.HasPrefix(s, at) {
				cancel()
			}
		}
	}
	defer func() { cancel() }()
	run := func(at string) (*Result, error) {
		o := RunOptions{Count: 100, Repeat: 2, PrecacheMiB: 32, Step: step(at)}
		return Run(ctx, o)
	}
	if r, err := run("pass 1 of 2: link"); err == nil || r != nil {
		t.Errorf("interrupted in the first pass: %+v, %v", r, err)
	}
	if r, err := run("pass 1 of 2: precache"); err == nil || r == nil || len(r.Idle) != 1 || len(r.Precache) != 0 || len(r.Verdicts()) != 3 {
		t.Errorf("interrupted in the first pass's second part: %+v, %v", r, err)
	}
	o := SweepOptions{Threads: []int{1, 2}, Count: 100, Repeat: 2, Step: step("pass 1 of 2: 440 KiB, 2")}
	r, err := Sweep(ctx, o)
	if err == nil || r == nil || len(r.Cells) != 1 || r.Cells[0].P50.N != 1 {
		t.Errorf("a table interrupted in its second combination: %+v, %v", r, err)
	}
}

// A tebibyte of holes costs neither daemon more than the pages that are touched.
func TestSweepTebibyte(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := Sweep(ctx, SweepOptions{Regions: []uint64{1 << 40}, Count: 300, Repeat: 1})
	if err != nil {
		t.Fatal(err)
	}
	// A touched page takes a page of the page tables and one of the residency.
	if c := r.Cells[0]; c.RegionBytes != 1<<40 || c.Daemon.Max > 64 || c.Server.Max > 64 || c.Tables.Max > 64 {
		t.Errorf("%+v", c)
	}
}

func TestSweepHuge(t *testing.T) {
	hugetest.Reserve(t, 20)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := Sweep(ctx, SweepOptions{PageSize: HugePageSize, Threads: []int{2}, Count: 16, Repeat: 1})
	if err != nil {
		t.Fatal(err)
	}
	if c := r.Cells[0]; c.RegionBytes != 17*HugePageSize || c.P50.N != 1 {
		t.Errorf("%+v", c)
	}
	if _, err := Sweep(ctx, SweepOptions{PageSize: HugePageSize, Count: 10_000_000}); err == nil || !strings.Contains(err.Error(), "sysctl vm.nr_hugepages=11000000") {
		t.Errorf("more huge pages than there can be: %v", err)
	}
}

func TestSweepRefuses(t *testing.T) {
	for want, o := range map[string]SweepOptions{
		"65 threads":          {Threads: []int{1, 65}},
		"0 demand channels":   {Channels: []int{0}},
		"pages of 8192 bytes": {PageSize: 8192},
		"at most 1 TiB":       {Regions: []uint64{2 << 40}},
		"whole pages":         {Regions: []uint64{1<<30 + 1}},
		"that are touched":    {Regions: []uint64{1 << 20}},
		"-1 faults":           {Count: -1},
	} {
		if _, err := Sweep(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
}
