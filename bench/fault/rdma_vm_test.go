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
)

// BenchmarkRDMAFault times demand faults whose pages come by READ, beside the local
// fault and the engine's own fetch: the goal is 1.15 times their sum. It is one run,
// whatever b.N; `make bench-rdma` has it in its VM.
func BenchmarkRDMAFault(b *testing.B) {
	if err := softroce.Make(); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 100*time.Second)
	defer cancel()
	const rounds = 3
	o := RunOptions{Count: 700}
	o.fill()
	im, err := NewImage(ImageOptions{Pages: 1000})
	if err != nil {
		b.Fatal(err)
	}
	defer im.Close()
	var ratio []float64
	for range rounds {
		ds, err := floor.LocalFault(ctx, o.CPUs, o.Count)
		if err != nil {
			b.Fatal(err)
		}
		local := report.Summarize(ds)
		e, err := NewEngine(ctx, im, Options{Codec: "none", RDMA: softroce.Device})
		if err != nil {
			b.Fatal(err)
		}
		ds, err = o.idle(ctx, e, nil)
		var s Stats
		if err == nil {
			s, err = e.Stats()
		}
		e.Close()
		if err != nil {
			b.Fatal(err)
		}
		if s.Reads < uint64(o.Count) {
			b.Fatalf("%d READs, %d fetches by TCP", s.Reads, s.TCPFetches)
		}
		fault, wire := report.Summarize(ds), s.Stages["wire"]
		ratio = append(ratio, fault.P50/(local.P50+wire.P50))
		fmt.Printf("fault by READ, p50: %.0f µs; local fault %.0f, fetch %.0f: %.2f times their sum; queue %.1f, copy %.1f, install %.1f\n",
			fault.P50, local.P50, wire.P50, ratio[len(ratio)-1], s.Stages["queue"].P50, s.Stages["decode"].P50, s.Stages["install"].P50)
	}
	r := report.SpreadOf(ratio)
	fmt.Printf("fault by READ: %.2f times (fetch + local fault), %.2f to %.2f\n", r.Median, r.Min, r.Max)
}

// BenchmarkRDMAStream drains memory by READ through the whole engine; its floor is
// ib_read_bw's, which `make bench-rdma` prints in the same VM.
func BenchmarkRDMAStream(b *testing.B) {
	if err := softroce.Make(); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 60*time.Second)
	defer cancel()
	im, err := NewImage(ImageOptions{Pages: 8192})
	if err != nil {
		b.Fatal(err)
	}
	defer im.Close()
	var rate []float64
	for range 5 {
		s, err := stream(ctx, im)
		if err != nil {
			b.Fatal(err)
		}
		if s.Reads == 0 {
			b.Fatalf("no READs, %d fetches by TCP", s.TCPFetches)
		}
		rate = append(rate, float64(im.Pages*pageSize)/(1<<20)/s.Elapsed.Seconds())
	}
	r := report.SpreadOf(rate)
	fmt.Printf("drain by READ, all of the engine: %.1f MiB/s (%.1f to %.1f)\n", r.Median, r.Min, r.Max)
}

func stream(ctx context.Context, im *Image) (Stats, error) {
	e, err := NewEngine(ctx, im, Options{Codec: "none", Precache: 1, RDMA: softroce.Device})
	if err != nil {
		return Stats{}, err
	}
	defer e.Close()
	if err := e.Precache(); err != nil {
		return Stats{}, err
	}
	s, err := e.Drain()
	if err == nil {
		err = e.Verify()
	}
	return s, err
}
