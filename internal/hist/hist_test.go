package hist

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEmpty(t *testing.T) {
	var h Histogram
	for _, s := range []Snapshot{{}, h.Snapshot()} {
		if s.Count() != 0 || s.Mean() != 0 || s.Max() != 0 || s.Quantile(.5) != 0 || s.Summary() != (Summary{}) {
			t.Errorf("an empty snapshot says %+v", s.Summary())
		}
		if c := s.Cumulative([]time.Duration{1}); c[0] != 0 {
			t.Errorf("an empty snapshot counts %v", c)
		}
	}
}

func TestQuantilesAgainstSorting(t *testing.T) {
	var h Histogram
	recs := []*Recorder{h.Recorder(), h.Recorder(), h.Recorder()}
	rng := rand.New(rand.NewPCG(1, 2))
	var all []time.Duration
	for i := range 20000 {
		d := time.Duration(math.Exp(rng.Float64()*14+7)) * time.Nanosecond // 1 µs to 1.2 s
		all = append(all, d)
		recs[i%3].Record(d)
	}
	slices.Sort(all)
	s := h.Snapshot()
	for _, q := range []float64{.01, .5, .9, .99, .999} {
		want := float64(all[int(q*float64(len(all)))-1])
		if got := float64(s.Quantile(q)); math.Abs(got-want) > .02*want {
			t.Errorf("quantile %v: %v, sorting says %v", q, time.Duration(got), time.Duration(want))
		}
	}
	if s.Count() != int64(len(all)) {
		t.Errorf("count %d, want %d", s.Count(), len(all))
	}
	if c := s.Cumulative([]time.Duration{0, all[9999], 1e12}); c[0] != 0 || c[2] != 20000 || math.Abs(float64(c[1])-10000) > 200 {
		t.Errorf("cumulative counts %v, want about 0, 10000, 20000", c)
	}
	if m := s.Merge(s); m.Count() != 40000 || m.Quantile(.5) != s.Quantile(.5) {
		t.Errorf("merging a snapshot with itself: count %d, median %v", m.Count(), m.Quantile(.5))
	}
	h.Reset()
	if h.Snapshot().Count() != 0 {
		t.Error("values survive Reset")
	}
}

func TestExtremesAreKept(t *testing.T) {
	var h Histogram
	r := h.Recorder()
	for _, d := range []time.Duration{-1, 0, 1, 1 << 62} {
		r.Record(d)
	}
	if n := h.Snapshot().Count(); n != 4 {
		t.Fatalf("%d of 4 extreme values were recorded", n)
	}
}

func TestConcurrentSnapshots(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for range 4 {
		r := h.Recorder()
		wg.Go(func() {
			for i := range 5000 {
				r.Record(time.Duration(i) * time.Microsecond)
			}
		})
	}
	for range 20 {
		h.Snapshot()
	}
	wg.Wait()
	if n := h.Snapshot().Count(); n != 20000 {
		t.Fatalf("count %d, want 20000", n)
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	var h Histogram
	r := h.Recorder()
	if n := testing.AllocsPerRun(1000, func() { r.Record(123 * time.Microsecond) }); n != 0 {
		t.Fatalf("%v allocations per value", n)
	}
}

func TestRetireKeepsValues(t *testing.T) {
	var h Histogram
	keep := h.Recorder()
	keep.Record(time.Millisecond)
	for range 100 {
		r := h.Recorder()
		r.Record(time.Second)
		h.Retire(r)
	}
	h.Retire(keep) // the first stays, as the place for the values
	if s := h.Snapshot(); s.Count() != 101 || len(h.recs) != 1 {
		t.Fatalf("%d values in %d recorders, want 101 in 1", s.Count(), len(h.recs))
	}
}
