package pagecache

import (
	"fmt"
	"testing"
)

// benchRegion is of 1 GiB.
const benchRegion = 1 << 18

func benchResidency(b *testing.B) *Residency {
	b.Helper()
	r, err := New(benchRegion)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// One page claimed and committed, as a fault does it; a full region is replaced
// outside the clock.
func BenchmarkClaimPage(b *testing.B) {
	one := Mask{1}
	eachRun(b, 1, func(r *Residency, page uint64) bool {
		return r.ClaimPage(page) == Absent && r.Commit(page, 1, one) == nil
	})
}

// Runs claimed and committed, as precache does it.
func BenchmarkClaim(b *testing.B) {
	for _, n := range []uint64{16, 64, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			won := make(Mask, MaskWords(n))
			eachRun(b, n, func(r *Residency, first uint64) bool {
				return r.Claim(first, n, won) == n && r.Commit(first, n, won) == nil
			})
		})
	}
}

// eachRun calls f with the start of one run of n absent pages after the other.
func eachRun(b *testing.B, n uint64, f func(r *Residency, first uint64) bool) {
	b.Helper()
	r := benchResidency(b)
	defer func() { r.Close() }()
	b.ReportAllocs()
	for first := uint64(0); b.Loop(); first += n {
		if first == benchRegion {
			b.StopTimer()
			r.Close()
			r, first = benchResidency(b), 0
			b.StartTimer()
		}
		if !f(r, first) {
			b.Fatalf("pages %d+%d were not all absent", first, n)
		}
	}
}

// A decision of the planner with its end, over absent memory, without and with
// faults that it hears of.
func BenchmarkPlannerNext(b *testing.B) {
	for _, bc := range []struct {
		name   string
		faults bool
		make   func() []Policy
	}{
		{"sweep", false, func() []Policy { return []Policy{NewSweep(SweepConfig{})} }},
		{"bubbles", true, func() []Policy { return []Policy{NewBubbles(BubbleConfig{}), NewSweep(SweepConfig{})} }},
	} {
		b.Run(bc.name, func(b *testing.B) {
			var r *Residency
			var p *Planner
			fresh := func() {
				r = benchResidency(b)
				p = NewPlanner(Config{Policies: bc.make()})
				if err := p.AddRegion(1, r, 4096); err != nil {
					b.Fatal(err)
				}
			}
			fresh()
			defer func() { r.Close() }()
			buf, won := make([]Run, 1), make(Mask, MaskWords(DefaultRunPages))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if bc.faults && i%16 == 0 {
					p.Fault(1, uint64(i)*7919%benchRegion)
				}
				if p.Next(buf, DefaultRunPages) == 0 {
					b.StopTimer()
					r.Close()
					fresh()
					b.StartTimer()
					continue
				}
				r.Claim(buf[0].First, uint64(buf[0].Count), won)
				if err := r.Commit(buf[0].First, uint64(buf[0].Count), won); err != nil {
					b.Fatal(err)
				}
				if err := p.Done(buf[0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
