package pagecache

import "testing"

// TestBridge: runs go on over a few pages that are there, not over ones in flight,
// and end with a wanted page.
func TestBridge(t *testing.T) {
	next := func(p *Planner) Run {
		t.Helper()
		buf := make([]Run, 1)
		if p.Next(buf, 64) != 1 {
			t.Fatal("nothing to hand out")
		}
		return buf[0]
	}
	p, res := plannerFor(t, 64, 4096, NewSweep(SweepConfig{}))
	for _, page := range []uint64{2, 10, 11, 63} { // 2 of 3; a second one of 11; not the last
		res.ClaimPage(page)
	}
	for _, want := range []Run{{1, 10, 0}, {1, 51, 12}} {
		if got := next(p); got != want {
			t.Fatalf("run %+v, want %+v", got, want)
		}
	}
	if s := p.Stats(); s.BridgedPages != 1 {
		t.Fatalf("%d pages were bridged, want 1", s.BridgedPages)
	}

	p, res = plannerFor(t, 64, 4096, NewSweep(SweepConfig{}))
	p.mu.Lock()
	p.regions[0].flying.setRange(20, 21)
	p.mu.Unlock()
	res.ClaimPage(21)
	if got, want := next(p), (Run{1, 20, 0}); got != want {
		t.Fatalf("run %+v, want %+v: page 20 is in flight", got, want)
	}
}
