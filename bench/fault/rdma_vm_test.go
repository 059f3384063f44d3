//go:build rdmavm

package fault

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/transport/rdma"
)

// way names how pages land in a run.
type landWay struct {
	name string
	Options
}

// landWays are compared in alternation: the staging buffer with and without memory that
// was reserved, and in place.
var landWays = []landWay{
	{"staging, nothing reserved", Options{}},
	{"staging, reserved", Options{Reserve: true}},
	{"in place, at most 128 KiB", Options{Land: "all", LentBytes: rdma.LentBytes}},
}

// byTheRate has precache land as the link's rate says.
var byTheRate = landWay{"demand in place, precache by the link's rate", Options{Land: "all"}}

// engine starts an engine whose pages come by RDMA.
func (w landWay) engine(b *testing.B, ctx context.Context, im *Image) *Engine {
	b.Helper()
	o := w.Options
	o.Codec, o.RDMA = "none", softroce.Device
	e, err := NewEngine(ctx, im, o)
	if err != nil {
		b.Fatal(err)
	}
	return e
}

// figures collects quantities by name, and prints their medians and ranges.
type figures struct {
	names  []string
	values map[string][]float64
}

func (f *figures) add(name string, v float64) {
	if f.values == nil {
		f.values = make(map[string][]float64)
	}
	if f.values[name] == nil {
		f.names = append(f.names, name)
	}
	f.values[name] = append(f.values[name], v)
}

func (f *figures) print(title string) {
	fmt.Println(title)
	for _, name := range f.names {
		r := report.SpreadOf(f.values[name])
		fmt.Printf("  %s: %.2f (%.2f to %.2f)\n", name, r.Median, r.Min, r.Max)
	}
}

// BenchmarkRDMAFault times demand faults whose pages come by READ, beside the local
// fault and the engine's own fetch: the goal is 1.15 times their sum. It is one run,
// whatever b.N; `make bench-rdma` has it in its VM.
func BenchmarkRDMAFault(b *testing.B) {
	if err := softroce.Make(); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 100*time.Second)
	defer cancel()
	const rounds = 5
	o := RunOptions{Count: 700}
	o.fill()
	im, err := NewImage(ImageOptions{Pages: 1008})
	if err != nil {
		b.Fatal(err)
	}
	defer im.Close()
	all := make([]figures, len(landWays))
	for range rounds {
		ds, err := floor.LocalFault(ctx, o.CPUs, o.Count)
		if err != nil {
			b.Fatal(err)
		}
		local := report.Summarize(ds)
		for i, way := range landWays {
			e := way.engine(b, ctx, im)
			ds, err = o.idle(ctx, e, nil)
			var s Stats
			if err == nil {
				s, err = e.Stats()
			}
			e.Close()
			if err != nil {
				b.Fatal(err)
			}
			if s.Reads < uint64(o.Count) || way.Land != "" && s.InPlace < uint64(o.Count) {
				b.Fatalf("%d READs, %d pages in place, %d fetches by TCP", s.Reads, s.InPlace, s.TCPFetches)
			}
			fault, wire, f := report.Summarize(ds), s.Stages["wire"].P50, &all[i]
			f.add("fault, µs", fault.P50)
			f.add("  local fault", local.P50)
			f.add("  queue", s.Stages["queue"].P50)
			f.add("  fetch", wire)
			f.add("  copy", s.Stages["decode"].P50)
			f.add("  install", s.Stages["install"].P50)
			f.add("times (fetch + local fault)", fault.P50/(local.P50+wire))
		}
	}
	for i := range all {
		all[i].print(fmt.Sprintf("fault by READ, %s, medians of %d rounds:", landWays[i].name, rounds))
	}
}

// BenchmarkRDMAStream drains memory by READ through the whole engine; its floor is
// ib_read_bw's, which `make bench-rdma` prints in the same VM.
func BenchmarkRDMAStream(b *testing.B) {
	if err := softroce.Make(); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 100*time.Second)
	defer cancel()
	im, err := NewImage(ImageOptions{Pages: 6144})
	if err != nil {
		b.Fatal(err)
	}
	defer im.Close()
	var f figures
	for range 5 {
		for _, way := range append(landWays[:len(landWays):len(landWays)], byTheRate) {
			s := stream(b, way.engine(b, ctx, im))
			if s.Reads == 0 || way.LentBytes > 0 && s.InPlace == 0 {
				b.Fatalf("%d READs, %d pages in place, %d fetches by TCP", s.Reads, s.InPlace, s.TCPFetches)
			}
			f.add(way.name, float64(im.Pages*pageSize)/(1<<20)/s.Elapsed.Seconds())
		}
	}
	f.print("drain by READ, all of the engine, MiB/s:")
}

func stream(b *testing.B, e *Engine) Stats {
	b.Helper()
	defer e.Close()
	if err := e.Precache(); err != nil {
		b.Fatal(err)
	}
	s, err := e.Drain()
	if err == nil {
		err = e.Verify()
	}
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// busyWays are compared where precache claims what it reads: the most under way is what
// a fault on such a page waits for.
var busyWays = []landWay{
	{"staging, reserved", Options{Reserve: true}},
	{"demand alone in place", Options{Land: "demand"}},
	{"in place, at most 128 KiB", Options{Land: "all", LentBytes: rdma.LentBytes}},
	byTheRate,
}

// BenchmarkRDMABusy times faults while precache runs: those on pages whose precache
// READ is under way in place wait for it.
func BenchmarkRDMABusy(b *testing.B) {
	if err := softroce.Make(); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 150*time.Second)
	defer cancel()
	o := RunOptions{Every: 3 * time.Millisecond}
	o.fill()
	im, err := NewImage(ImageOptions{Pages: 12288})
	if err != nil {
		b.Fatal(err)
	}
	defer im.Close()
	var f figures
	for range 3 {
		for _, way := range busyWays {
			e := way.engine(b, ctx, im)
			var p Pass
			ds, err := o.busy(ctx, e, &p)
			e.Close()
			if err != nil {
				b.Fatal(err)
			}
			s := report.Summarize(ds)
			f.add(way.name+": p50, µs", s.P50)
			f.add(way.name+": p99, µs", s.P99)
			f.add(way.name+": stream, MiB/s", p.PrecacheBytesPerSec/(1<<20))
		}
	}
	f.print("faults under precache:")
}
