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
