package pagecache

import (
	"errors"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

type bed struct {
	t    *rapid.T
	p    *Planner
	res  map[uint32]*Residency
	out  map[uint32][]bool // handed out and not ended, by page
	runs []Run
}

func (b *bed) take(buf []Run, room uint64) int {
	n := b.p.Next(buf, room)
	for _, run := range buf[:n] {
		if run.Count == 0 || uint64(run.Count) > room {
			b.t.Fatalf("run %+v with room for %d pages", run, room)
		}
		room -= uint64(run.Count)
		res, vain := b.res[run.Region], 0
		for i := range uint64(run.Count) {
			page := run.First + i
			if s := res.State(page); s != Absent {
				if vain++; i == 0 || i == uint64(run.Count)-1 {
					b.t.Fatalf("run %+v starts or ends with page %d, which is %v", run, page, s)
				}
			}
			if b.out[run.Region][page] {
				b.t.Fatalf("run %+v has page %d, which is in flight", run, page)
			}
			b.out[run.Region][page] = true
		}
		if vain > max(1, int(run.Count)/bridgeShare) {
			b.t.Fatalf("run %+v has %d pages that are there", run, vain)
		}
		b.runs = append(b.runs, run)
	}
	return n
}

func (b *bed) end(i int) Run {
	run := b.runs[i]
	b.runs = append(b.runs[:i], b.runs[i+1:]...)
	for i := range uint64(run.Count) {
		b.out[run.Region][run.First+i] = false
	}
	return run
}

func pick(t *rapid.T, policies string) []Policy {
	var p []Policy
	for _, c := range policies {
		switch c {
		case 'b':
			p = append(p, NewBubbles(BubbleConfig{
				Pivots: rapid.IntRange(0, 4).Draw(t, "pivots"),
				Radius: rapid.Uint64Range(0, 5).Draw(t, "radius"),
				MaxAge: rapid.Uint64Range(0, 5).Draw(t, "age"),
			}))
		case 'h':
			p = append(p, NewHot(HotConfig{Gap: rapid.Uint64Range(0, 5).Draw(t, "gap")}))
		case 's':
			p = append(p, NewSweep(SweepConfig{FollowFaults: rapid.Bool().Draw(t, "follow")}))
		}
	}
	return p
}

// TestPlannerDrain: whatever is claimed, lost, returned or removed meanwhile,
// no page is in flight twice, every run was absent but for a few pages in between,
// and the drain ends.
func TestPlannerDrain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &bed{t: t, res: map[uint32]*Residency{}, out: map[uint32][]bool{}}
		b.p = NewPlanner(Config{
			Policies:    pick(t, rapid.SampledFrom([]string{"bs", "s", "sb", "hbs", "bhs"}).Draw(t, "policies")),
			MaxRunPages: rapid.Uint32Range(0, 700).Draw(t, "maxRun"),
		})
		var ids []uint32
		for range rapid.IntRange(1, 3).Draw(t, "regions") {
			id := rapid.Uint32().Filter(func(id uint32) bool { return b.res[id] == nil }).Draw(t, "id")
			pages := rapid.Uint64Range(1, 3000).Draw(t, "pages")
			res, err := Create(make([]byte, Size(pages)), pages, 0)
			if err != nil {
				t.Fatal(err)
			}
			size := rapid.SampledFrom([]uint64{4 << 10, 64 << 10, 2 << 20, 1 << 30}).Draw(t, "pageSize")
			if err := b.p.AddRegion(id, res, size); err != nil {
				t.Fatal(err)
			}
			b.res[id], b.out[id] = res, make([]bool, pages)
			ids = append(ids, id)
		}
		buf := make([]Run, rapid.IntRange(1, 8).Draw(t, "buf"))
		demand := map[Run]bool{} // single pages claimed by demand
		any := func(t *rapid.T) (uint32, *Residency, uint64) {
			id := rapid.SampledFrom(ids).Draw(t, "region")
			return id, b.res[id], rapid.Uint64Range(0, b.res[id].Pages()-1).Draw(t, "page")
		}
		// deliver ends a run as a channel would: claim, then commit.
		deliver := func(run Run) {
			won := make(Mask, MaskWords(uint64(run.Count)))
			b.res[run.Region].Claim(run.First, uint64(run.Count), won)
			if err := b.res[run.Region].Commit(run.First, uint64(run.Count), won); err != nil {
				t.Fatal(err)
			}
			if err := b.p.Done(run); err != nil {
				t.Fatal(err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"next": func(t *rapid.T) { b.take(buf, rapid.Uint64Range(0, 1500).Draw(t, "room")) },
			"deliver": func(t *rapid.T) {
				if len(b.runs) > 0 {
					deliver(b.end(rapid.IntRange(0, len(b.runs)-1).Draw(t, "run")))
				}
			},
			"lost": func(t *rapid.T) { // answered, but nothing was installed
				if len(b.runs) > 0 {
					if err := b.p.Done(b.end(rapid.IntRange(0, len(b.runs)-1).Draw(t, "run"))); err != nil {
						t.Fatal(err)
					}
				}
			},
			"return": func(t *rapid.T) {
				if len(b.runs) > 0 {
					run := b.end(rapid.IntRange(0, len(b.runs)-1).Draw(t, "run"))
					if err := b.p.Return(run); err != nil {
						t.Fatal(err)
					}
					if err := b.p.Return(run); !errors.Is(err, ErrNotInFlight) {
						t.Fatalf("returned twice: %v", err)
					}
				}
			},
			"prefer": func(t *rapid.T) {
				var runs []Run
				for range rapid.IntRange(0, 20).Draw(t, "listed") {
					id, res, page := any(t)
					runs = append(runs, Run{id, uint32(rapid.Uint64Range(1, min(100, res.Pages()-page)).Draw(t, "count")), page})
				}
				if err := rapid.SampledFrom([]func([]Run) error{b.p.Prefer, b.p.Begin}).Draw(t, "take")(runs); err != nil {
					t.Fatal(err)
				}
			},
			"hold": func(t *rapid.T) { b.p.Hold(rapid.Bool().Draw(t, "held")) },
			"fault": func(t *rapid.T) {
				id, res, page := any(t)
				b.p.Fault(id, page)
				if res.ClaimPage(page) == Absent {
					demand[Run{id, 1, page}] = true
				}
			},
			"demandDone": func(t *rapid.T) {
				for run := range demand {
					end := b.res[run.Region].Commit
					if rapid.Bool().Draw(t, "failed") {
						end = b.res[run.Region].Release
					}
					if err := end(run.First, 1, nil); err != nil {
						t.Fatal(err)
					}
				}
				clear(demand)
			},
			"zero":   func(t *rapid.T) { _, res, page := any(t); res.Zero(page, min(100, res.Pages()-page)) },
			"remove": func(t *rapid.T) { _, res, page := any(t); res.Remove(page, min(10, res.Pages()-page)) },
		})
		for run := range demand {
			if err := b.res[run.Region].Release(run.First, 1, nil); err != nil {
				t.Fatal(err)
			}
		}
		b.p.Hold(false)
		for steps := 0; ; steps++ {
			if steps > 20000 {
				t.Fatalf("not drained: %d pages remain", b.p.Remaining())
			}
			n := b.take(buf, 512)
			if n == 0 && len(b.runs) == 0 {
				break
			}
			for len(b.runs) > 0 {
				deliver(b.end(0))
			}
		}
		if r := b.p.Remaining(); r != 0 || !b.p.Idle() {
			t.Fatalf("the planner has nothing more, but %d pages remain (idle %v)", r, b.p.Idle())
		}
	})
}

// TestPlannerOnce: without losses, every absent page is handed out exactly once,
// and others only as far as they are counted as bridged.
func TestPlannerOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Uint64Range(1, 5000).Draw(t, "pages")
		res, err := Create(make([]byte, Size(pages)), pages, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 20).Draw(t, "holes") {
			first := rapid.Uint64Range(0, pages-1).Draw(t, "first")
			res.Zero(first, rapid.Uint64Range(0, min(300, pages-first)).Draw(t, "count"))
		}
		want := res.Remaining()
		p := NewPlanner(Config{Policies: pick(t, "bs")})
		if err := p.AddRegion(1, res, 4096); err != nil {
			t.Fatal(err)
		}
		var got uint64
		buf, won := make([]Run, 5), make(Mask, 16)
		for {
			p.Fault(1, rapid.Uint64Range(0, pages-1).Draw(t, "fault"))
			n := p.Next(buf, 600)
			for _, run := range buf[:n] {
				got += res.Claim(run.First, uint64(run.Count), won)
				if err := res.Commit(run.First, uint64(run.Count), won); err != nil {
					t.Fatal(err)
				}
				if err := p.Done(run); err != nil {
					t.Fatal(err)
				}
			}
			if n == 0 {
				break
			}
		}
		var counted uint64
		for _, s := range p.Stats().Policies {
			counted += s.Pages
		}
		if counted -= p.Stats().BridgedPages; got != want || counted != want || p.Stats().Rewinds != 0 {
			t.Fatalf("handed out %d, counted %+v, want %d", got, p.Stats(), want)
		}
	})
}

func plannerFor(t testing.TB, pages uint64, pageSize uint64, policies ...Policy) (*Planner, *Residency) {
	t.Helper()
	res := newResidency(t, pages)
	p := NewPlanner(Config{Policies: policies})
	if err := p.AddRegion(1, res, pageSize); err != nil {
		t.Fatal(err)
	}
	return p, res
}

// TestBubblesComeFirst: after a fault its neighbours are the next runs, growing
// outward both ways, and several faults take turns.
func TestBubblesComeFirst(t *testing.T) {
	p, _ := plannerFor(t, 1<<20, 4096, DefaultPolicies()...)
	buf := make([]Run, 5)
	next := func(n int) (firsts []uint64) {
		t.Helper()
		for i := range n {
			if p.Next(buf[:1], 64) != 1 || buf[0].Count != 64 {
				t.Fatalf("run %d is %+v", i, buf[0])
			}
			firsts = append(firsts, buf[0].First/64)
		}
		return firsts
	}
	expect := func(got []uint64, want ...uint64) {
		t.Helper()
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("blocks %v, want %v", got, want)
			}
		}
	}
	p.Fault(1, 1000*64+7)
	expect(next(5), 1000, 1001, 999, 1002, 998)
	p.Fault(1, 5000*64)
	expect(next(5), 5000, 1003, 5001, 997, 4999)
	p.Fault(1, 1000*64) // inside a bubble: it grows on, first
	expect(next(2), 1004, 5002)
	p.Fault(99, 0)    // no such region
	p.Fault(1, 1<<20) // no such page
	p.Fault(1, ^uint64(0))
	expect(next(1), 996)
}

// TestSweep: runs of 512 pages in order, aligned, wrapping from the last fault.
func TestSweep(t *testing.T) {
	p, res := plannerFor(t, 4096, 4096, NewSweep(SweepConfig{FollowFaults: true}))
	res.Zero(600, 20) // more than an eighth of what would be one run with it
	p.Fault(1, 3000)
	want := []Run{{1, 512, 2560}, {1, 512, 3072}, {1, 512, 3584}, {1, 512, 0}, {1, 88, 512}, {1, 404, 620},
		{1, 512, 1024}, {1, 512, 1536}, {1, 512, 2048}}
	buf := make([]Run, 20)
	n := p.Next(buf, 1<<20)
	if n != len(want) {
		t.Fatalf("%d runs: %v", n, buf[:n])
	}
	for i := range want {
		if buf[i] != want[i] {
			t.Fatalf("run %d is %+v, want %+v", i, buf[i], want[i])
		}
	}
}

// TestHugePages: a run is bounded in bytes, but holds a page.
func TestHugePages(t *testing.T) {
	for _, size := range []uint64{2 << 20, 1 << 30} {
		p, _ := plannerFor(t, 10, size, DefaultPolicies()...)
		p.Fault(1, 5)
		buf := make([]Run, 20)
		if n := p.Next(buf, 100); n != 10 || buf[0] != (Run{1, 1, 5}) || buf[1] != (Run{1, 1, 6}) || buf[2] != (Run{1, 1, 4}) {
			t.Fatalf("page size %d: %v", size, buf[:n])
		}
	}
}

// TestOnDemandOnly: without policies nothing is handed out.
func TestOnDemandOnly(t *testing.T) {
	p, _ := plannerFor(t, 1000, 4096)
	p.Fault(1, 5)
	if n := p.Next(make([]Run, 4), 1000); n != 0 || !p.Idle() || p.Remaining() != 1000 {
		t.Fatalf("Next = %d, idle %v, remaining %d", n, p.Idle(), p.Remaining())
	}
}

// TestBubblesOnly: without a sweep only what is near a fault is handed out.
func TestBubblesOnly(t *testing.T) {
	p, _ := plannerFor(t, 1<<20, 4096, NewBubbles(BubbleConfig{Radius: 3}))
	p.Fault(1, 1<<19)
	buf := make([]Run, 100)
	if n := p.Next(buf, 1<<20); n != 7 {
		t.Fatalf("%d runs, want 7", n)
	}
	if runs, pages := p.InFlight(); runs != 7 || pages != 7*64 {
		t.Fatalf("in flight: %d runs, %d pages", runs, pages)
	}
}

// TestReturnedFirst: what a dead channel left behind is handed out before
// anything else, without what has come meanwhile, and counted apart.
func TestReturnedFirst(t *testing.T) {
	p, res := plannerFor(t, 1<<20, 4096, DefaultPolicies()...)
	buf := make([]Run, 3)
	if n := p.Next(buf, 1<<20); n != 3 {
		t.Fatalf("%d runs", n)
	}
	first := buf[0]
	if err := p.Return(first); err != nil {
		t.Fatal(err)
	}
	res.Zero(first.First, 100)
	p.Fault(1, 1<<19)
	n := p.Next(buf, uint64(first.Count))
	if want := (Run{1, first.Count - 100, first.First + 100}); n != 3 || buf[0] != want {
		t.Fatalf("after the return: %+v, want %+v first", buf[:n], want)
	}
	if s := p.Stats(); s.AgainRuns != 1 || s.AgainPages != uint64(first.Count-100) {
		t.Fatalf("stats %+v", s)
	}
}

// TestIdle: a planner is idle when it has been asked and nothing is in flight.
func TestIdle(t *testing.T) {
	p, res := plannerFor(t, 100, 4096, DefaultPolicies()...)
	buf := make([]Run, 3)
	if p.Idle() {
		t.Error("idle before it was asked")
	}
	if n := p.Next(buf, 100); n != 1 || p.Idle() {
		t.Fatalf("%d runs, idle %v with one in flight", n, p.Idle())
	}
	if n := p.Next(buf[1:], 100); n != 0 || p.Idle() {
		t.Fatalf("%d runs, idle %v with one in flight", n, p.Idle())
	}
	if err := p.Done(buf[0]); err != nil {
		t.Fatal(err)
	}
	if p.Idle() {
		t.Error("idle, though the answer was lost and nobody looked")
	}
	if n := p.Next(buf, 100); n != 1 || p.Stats().Rewinds != 1 {
		t.Fatalf("%d runs for the lost pages, stats %+v", n, p.Stats())
	}
	res.Zero(0, 100)
	if err := p.Done(buf[0]); err != nil {
		t.Fatal(err)
	}
	if n := p.Next(buf, 100); n != 0 || !p.Idle() {
		t.Fatalf("%d runs, idle %v at the end", n, p.Idle())
	}
}

// TestHintsOverwriteOldest: a flood of hints keeps the last ones.
func TestHintsOverwriteOldest(t *testing.T) {
	var h hintRing
	for i := range uint64(1000) {
		h.put(3, i)
	}
	want := uint64(1000 - hintSlots)
	h.drain(func(region int, page uint64) {
		if region != 3 || page != want {
			t.Fatalf("hint %d of region %d, want %d of 3", page, region, want)
		}
		want++
	})
	if want != 1000 {
		t.Fatalf("drained up to %d", want)
	}
	h.drain(func(int, uint64) { t.Fatal("a hint came twice") })
}

func TestAddRegionErrors(t *testing.T) {
	p, res := plannerFor(t, 10, 4096)
	if p.AddRegion(1, res, 4096) == nil {
		t.Error("a second region of the same id was taken")
	}
	if p.AddRegion(2, res, 0) == nil {
		t.Error("a page size of 0 was taken")
	}
	if err := p.Done(Run{7, 1, 1}); !errors.Is(err, ErrNotInFlight) {
		t.Errorf("Done of a run never handed out: %v", err)
	}
}

// TestPlannerConcurrent: faults, claims by demand and several channels at once;
// every page is committed by exactly one claimant.
func TestPlannerConcurrent(t *testing.T) {
	const pages = 200_000
	p, res := plannerFor(t, pages, 4096, DefaultPolicies()...)
	owners := make([]uint8, pages) // written by the claimant only: -race checks that it is one
	var wg sync.WaitGroup
	for g := range 3 { // demand
		wg.Go(func() {
			x := uint64(g)*7919 + 1
			for p.Remaining() > 0 {
				x = x*6364136223846793005 + 1442695040888963407
				page := x >> 33 % pages
				p.Fault(1, page)
				if res.ClaimPage(page) != Absent {
					// Mostly done: let the channels run.
					continue
				}
				owners[page]++
				end := res.Commit
				if x>>20&7 == 0 {
					owners[page]--
					end = res.Release
				}
				if err := end(page, 1, nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 { // precache
		wg.Go(func() {
			buf := make([]Run, 4)
			won := make(Mask, MaskWords(DefaultRunPages))
			for turn := 0; p.Remaining() > 0; turn++ {
				n := p.Next(buf, 1024)
				for _, run := range buf[:n] {
					if turn%5 == 0 {
						if err := p.Return(run); err != nil {
							t.Error(err)
							return
						}
						continue
					}
					count := uint64(run.Count)
					res.Claim(run.First, count, won)
					for i := range count {
						if won.Has(i) {
							owners[run.First+i]++
						}
					}
					if err := errors.Join(res.Commit(run.First, count, won), p.Done(run)); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	for page, n := range owners {
		if n != 1 {
			t.Fatalf("page %d was written %d times", page, n)
		}
	}
	if c := res.Counts(); c != (Counts{Resident: pages}) {
		t.Fatalf("counts %+v", c)
	}
}
