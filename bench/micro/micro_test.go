package micro

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var tiny = Common{Repeat: 2, Slice: time.Microsecond}

// sane fails unless two passes gave positive figures in order.
func sane(t *testing.T, what any, spreads ...report.Spread) {
	t.Helper()
	for _, s := range spreads {
		if s.N != 2 || s.Min <= 0 || s.Median < s.Min || s.Max < s.Median {
			t.Errorf("%+v has %+v", what, s)
		}
	}
}

func lineCount(t *testing.T, text func(w *strings.Builder) error, want int) {
	t.Helper()
	var b strings.Builder
	if err := text(&b); err != nil || strings.Count(b.String(), "\n") != want {
		t.Errorf("%v; text has %d lines, want %d:\n%s", err, strings.Count(b.String(), "\n"), want, b.String())
	}
}

func TestMicroQueue(t *testing.T) {
	r, err := Queue(t.Context(), QueueOptions{Common: tiny, Items: 5000})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != len(Pushers)*len(Batches) || r.Items != 8192 {
		t.Fatalf("%d rows of %d items", len(r.Rows), r.Items)
	}
	sane(t, "atomic", r.Atomic)
	for _, q := range r.Rows {
		sane(t, q, q.Queue, q.Channel, q.ItemsPerSec, q.Speedup)
	}
	lineCount(t, func(b *strings.Builder) error { return r.Text(b) }, 2+1+14)
}

// TestMicroLoss: an item that is lost or comes twice is seen.
func TestMicroLoss(t *testing.T) {
	for _, sum := range []uint64{27, 29} {
		if _, err := through("queue", 2, 8, func(int, int) {}, func() uint64 { return sum }); err == nil {
			t.Errorf("items 0 to 7 that add up to %d pass", sum)
		}
	}
}

func TestMicroCodec(t *testing.T) {
	r, err := Codec(t.Context(), CodecOptions{Common: tiny, Data: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != len(BatchBytes)*len(Kinds)*3 || len(r.Floors) != len(BatchBytes) || len(r.Chooser) != len(BatchBytes)*3 {
		t.Fatalf("%d rows, %d floors, %d of the chooser", len(r.Rows), len(r.Floors), len(r.Chooser))
	}
	for _, f := range r.Floors {
		sane(t, f, f.Copy, f.CRC)
	}
	for _, c := range r.Chooser {
		sane(t, c, c.Choose, c.Raw, c.Share)
	}
	// What is noise stays; what is zero costs at most a fifth of the noise more.
	bounds := map[string][2]float64{"noise": {1, 1.02}, "0.5": {0.5, 0.6}, "0.9": {0.1, 0.2}, "text": {0.1, 0.9}}
	for _, c := range r.Rows {
		sane(t, c, c.Send, c.Receive)
		b := bounds[c.Data]
		if c.Codec == "none" {
			b = [2]float64{1, 1}
		}
		if c.Ratio < b[0] || c.Ratio > b[1] {
			t.Errorf("%s of %s in %d bytes: ratio %.3f, not from %v to %v", c.Codec, c.Data, c.Batch, c.Ratio, b[0], b[1])
		}
	}
	lineCount(t, func(b *strings.Builder) error { return r.Text(b) }, 3*(2+1)+4+48+12)
}

func TestMicroPlanner(t *testing.T) {
	regions := []Region{{"64 MiB", 64 << 20, 1}, {"1 GiB sparse", 1 << 30, 32}}
	r, err := Planner(t.Context(), PlannerOptions{Common: tiny, Regions: regions})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != len(regions)*len(PolicyLists) {
		t.Fatalf("%d rows", len(r.Rows))
	}
	for _, p := range r.Rows {
		sane(t, p, p.Decision, p.Scan)
		if p.Runs == 0 || p.HeapBytes == 0 || p.TableBytes < 4096 {
			t.Errorf("%+v", p)
		}
	}
	lineCount(t, func(b *strings.Builder) error { return r.Text(b) }, 2+6)
}

// TestMicroDrain: the loop that is timed completes a region, each page once, and
// leaves what was zero alone.
func TestMicroDrain(t *testing.T) {
	for _, list := range PolicyLists {
		d, err := newDrain(Region{"256 MiB", 256 << 20, 4}, list)
		if err != nil {
			t.Fatal(err)
		}
		for n := d.ask(); n > 0; n = d.ask() {
			if err := d.deliver(n); err != nil {
				t.Fatal(err)
			}
			if err := d.done(n); err != nil {
				t.Fatal(err)
			}
		}
		const pages = 256 << 20 / pageSize
		if c := d.res.Counts(); c.Resident != pages/4 || c.Zero != pages/4*3 {
			t.Errorf("%v: %+v", list, c)
		}
		var planned uint64
		for _, p := range d.p.Stats().Policies {
			planned += p.Pages
		}
		if planned != pages/4 {
			t.Errorf("%v: %d pages handed out, want %d", list, planned, pages/4)
		}
		if err := d.res.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMicroNoAllocation: what is timed takes no memory.
func TestMicroNoAllocation(t *testing.T) {
	check := func(what string, f func() error) {
		t.Helper()
		for range 2 { // encoders and slices are made
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
		if n := testing.AllocsPerRun(3, func() {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations a round", what, n)
		}
	}
	for _, kind := range Kinds {
		data := kind.pages(512 << 10)
		for _, c := range codecs {
			cc, err := newCodecCase(c, data, 64<<10)
			if err != nil {
				t.Fatal(err)
			}
			if c != transport.CodecNone && underRace {
				continue
			}
			check(c.String()+" sends "+kind.Name, cc.send)
			check(c.String()+" receives "+kind.Name, cc.receive)
		}
	}
	ch, noise := transport.NewChooser(transport.ModeZstd, transport.AllFeatures), Kinds[0].pages(64<<10)
	check("chooser", func() error { ch.Choose(noise); return nil })
	d, err := newDrain(Region{"64 GiB", 64 << 30, 1}, pagecache.PolicyNames)
	if err != nil {
		t.Fatal(err)
	}
	round := func() error {
		n := d.ask()
		if err := d.deliver(n); err != nil {
			return err
		}
		return d.done(n)
	}
	for range 200 {
		if err := round(); err != nil {
			t.Fatal(err)
		}
	}
	check("planner", round)
	if err := d.res.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestMicroInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, q := Queue(ctx, QueueOptions{Common: tiny})
	_, c := Codec(ctx, CodecOptions{Common: tiny})
	_, p := Planner(ctx, PlannerOptions{Common: tiny})
	for _, err := range []error{q, c, p} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
	}
}
