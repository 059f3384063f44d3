package pagecache

import (
	"math/rand/v2"
	"testing"
)

// walker faults where a page is absent, as a guest would, and installs what the
// planner says.
type walker struct {
	t      *testing.T
	p      *Planner
	res    *Residency
	faults int
}

func newWalker(t *testing.T, pages uint64) *walker {
	w := &walker{t: t}
	w.p, w.res = plannerFor(t, pages, 4096, NewAround(AroundConfig{}))
	return w
}

func (w *walker) install(r Run) {
	mask := make(Mask, MaskWords(uint64(r.Count)))
	w.res.Claim(r.First, uint64(r.Count), mask)
	must(w.t, w.res.Commit(r.First, uint64(r.Count), mask))
}

// touch returns the run that the fault brought, with no pages if there was none.
func (w *walker) touch(page uint64) Run {
	if w.res.State(page) != Absent {
		return Run{}
	}
	w.faults++
	run := w.p.Ahead(1, page)
	if page < run.First || page-run.First >= uint64(run.Count) {
		w.t.Fatalf("the fault on page %d would fetch %+v", page, run)
	}
	w.install(run)
	// What is proposed to precache arrives before the next touch.
	var buf [4]Run
	for n := w.p.Next(buf[:], 64); n > 0; n = w.p.Next(buf[:], 64) {
		for _, r := range buf[:n] {
			w.install(r)
			must(w.t, w.p.Done(r))
		}
	}
	return run
}

// TestAroundWalks: a walk soon faults on few of its pages, whatever its stride
// and direction, and though another walk and single touches elsewhere go on
// meanwhile.
func TestAroundWalks(t *testing.T) {
	for name, stride := range map[string]int64{"up": 1, "down": -1, "by 3": 3, "by -7": -7, "by 100": 100} {
		t.Run(name, func(t *testing.T) {
			w := newWalker(t, 1<<18)
			rnd := rand.New(rand.NewPCG(1, 2))
			before, touches := 0, 0
			at := uint64(1 << 17)
			for range 1000 {
				faults := w.faults
				w.touch(at)
				before += w.faults - faults
				at += uint64(stride)
				touches++
				if touches%4 == 0 {
					w.touch(uint64(touches) * 2) // another walk, by 8
					w.touch(rnd.Uint64N(1 << 18))
				}
			}
			if before > 100 {
				t.Errorf("%d faults in a walk over 1000 pages", before)
			}
			s := w.p.Stats().Policies[0]
			if s.Pages < 800 || stride*stride == 1 && s.Used < 800 {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

// TestAroundRandom: faults without a pattern bring nothing.
func TestAroundRandom(t *testing.T) {
	w := newWalker(t, 1<<18)
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		w.touch(rnd.Uint64N(1 << 18))
	}
	if s := w.p.Stats().Policies[0]; s.Pages > 20 {
		t.Errorf("%d faults brought %d pages unasked", w.faults, s.Pages)
	}
}

// TestAroundStops: a window shrinks once its walk has ended, and never reaches
// over a page that is there, or the region's ends.
func TestAroundStops(t *testing.T) {
	w := newWalker(t, 1000)
	w.res.Zero(100, 1)
	var longest uint32
	for page := uint64(0); page < 1000; page++ {
		run := w.touch(page)
		longest = max(longest, run.Count)
		if run.First <= 100 && run.First+uint64(run.Count) > 100 || run.First+uint64(run.Count) > 1000 {
			t.Fatalf("the fault on page %d fetches %+v", page, run)
		}
	}
	if longest != 32 {
		t.Errorf("the longest window had %d pages, want 32", longest)
	}
	w = newWalker(t, 1<<18)
	for page := uint64(0); page < 300; page++ {
		w.touch(page)
	}
	brought := w.p.Stats().Policies[0].Pages
	for i := range uint64(40) { // near, and without a pattern
		w.touch(400 + i*i%97*3)
	}
	if n := w.p.Stats().Policies[0].Pages - brought; n > 64 {
		t.Errorf("%d pages were brought after the walk's end", n)
	}
}
