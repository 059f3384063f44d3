package pagecache

import (
	"slices"
	"testing"
)

// TestHotComesFirst: the newest list comes first and in its order, neighbours
// are fetched together, what is there or in flight is left out, and the sweep
// brings the rest without a page twice.
func TestHotComesFirst(t *testing.T) {
	p, res := plannerFor(t, 1<<16, 4096, NewHot(HotConfig{}), NewSweep(SweepConfig{}))
	res.Zero(501, 2)
	must(t, p.Prefer([]Run{{1, 1, 9000}, {1, 3, 500}, {1, 2, 70}}))
	must(t, p.Prefer([]Run{{1, 1, 28}, {1, 1, 45}, {1, 1, 63}, {1, 1, 62}, {1, 100, 30000}, {1, 1, 9000}}))
	buf := make([]Run, 10)
	n := p.Next(buf, 1<<20)
	want := []Run{{1, 18, 28}, {1, 1, 63}, {1, 1, 62}, {1, 100, 30000}, {1, 1, 9000}, {1, 1, 500}, {1, 2, 70},
		{1, 28, 0}, {1, 16, 46}, {1, 6, 64}} // the first block, around what is in flight
	if !slices.Equal(buf[:n], want) {
		t.Fatalf("handed out\n%v, want\n%v", buf[:n], want)
	}
	if s := p.Stats().Policies; s[0].Name != "hot" || s[0].Runs != 7 || s[0].Pages != 124 {
		t.Errorf("counted %+v", s)
	}
	p.Fault(1, 63)
	p.Fault(1, 50000)
	p.Next(buf, 1)
	if s := p.Stats().Policies; s[0].Late != 1 || s[1].Late != 0 {
		t.Errorf("one fault met a page in flight for the list; counted %+v", s)
	}
}

// TestHold: only what was listed is handed out until the hold ends, and nothing
// that is lost meanwhile is looked for.
func TestHold(t *testing.T) {
	p, _ := plannerFor(t, 1000, 4096, NewHot(HotConfig{}), NewBubbles(BubbleConfig{}), NewSweep(SweepConfig{}))
	p.Hold(true)
	p.Fault(1, 700)
	must(t, p.Prefer([]Run{{1, 2, 10}}))
	buf := make([]Run, 8)
	if n := p.Next(buf, 1000); n != 1 || buf[0] != (Run{1, 2, 10}) {
		t.Fatalf("handed out %v", buf[:n])
	}
	must(t, p.Done(buf[0]))
	if n := p.Next(buf, 1000); n != 0 {
		t.Fatalf("handed out %v", buf[:n])
	}
	p.Hold(false)
	if n := p.Next(buf, 1); n != 1 || buf[0].First/64 != 10 {
		t.Fatalf("handed out %v, not the bubble", buf[:n])
	}
}

// TestPreferRefuses: a list that is wrong in one place is refused as a whole.
func TestPreferRefuses(t *testing.T) {
	for name, bad := range map[string]Run{
		"no region": {2, 1, 0}, "no page": {1, 1, 1000}, "past the end": {1, 2, 999}, "empty": {1, 0, 5},
		"overflow": {1, 2, ^uint64(0)},
	} {
		p, _ := plannerFor(t, 1000, 4096, NewHot(HotConfig{}))
		if err := p.Prefer([]Run{{1, 1, 3}, bad}); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if n := p.Next(make([]Run, 4), 1000); n != 0 {
			t.Errorf("%s: part of it was taken", name)
		}
	}
	p, _ := plannerFor(t, 1000, 4096, NewHot(HotConfig{}))
	if err := p.Prefer(slices.Repeat([]Run{{1, 1, 3}}, MaxListed+1)); err == nil {
		t.Error("a list without end was accepted")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestBegin: the sweep takes the blocks that it was told of first, in their order and
// wherever faults are, then everything else, and no page twice.
func TestBegin(t *testing.T) {
	p, res := plannerFor(t, 1<<16, 4096, NewBubbles(BubbleConfig{}), NewSweep(SweepConfig{FollowFaults: true}))
	must(t, p.Begin([]Run{{1, 1, 30005}, {1, 600, 1000}}))
	must(t, p.Begin([]Run{{1, 64, 200}}))
	p.Fault(1, 50000)
	seen := make(map[uint64]bool)
	var order []uint64
	buf := make([]Run, 1)
	for p.Next(buf, 1<<20) == 1 {
		for i := range uint64(buf[0].Count) {
			if page := buf[0].First + i; seen[page] {
				t.Fatalf("page %d is handed out twice", page)
			} else {
				seen[page] = true
				order = append(order, page)
			}
		}
		res.Zero(buf[0].First, uint64(buf[0].Count))
		must(t, p.Done(buf[0]))
	}
	if len(seen) != 1<<16 {
		t.Fatalf("%d pages were handed out", len(seen))
	}
	place := func(page uint64) int { return slices.Index(order, page) }
	// The bubble around the fault is asked first, but the sweep does not go there.
	if !(place(30005) < place(1000) && place(1599) < place(200) && place(263) < place(5000)) {
		t.Errorf("pages 30005, 1000, 1599, 200, 263, 5000 came at %d, %d, %d, %d, %d, %d", place(30005), place(1000), place(1599), place(200), place(263), place(5000))
	}
	if err := p.Begin([]Run{{1, 1, 1 << 16}}); err == nil {
		t.Error("a list with a page past the end was taken")
	}
}
