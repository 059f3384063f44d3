package recency

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/inject"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
)

func TestMain(m *testing.M) {
	touch.Main()
	goleak.VerifyTestMain(m)
}

const page = 4096

// shared gives a process with a shared mapping of so many pages, all of which it
// has written, and its page n holds what touch.Fill(n, 1) puts there.
func shared(t testing.TB, pages int64) (*touch.Proc, *touch.Region) {
	t.Helper()
	p, err := touch.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	fd, err := sysmem.CreateMemfd("recency", pages*page, page)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mem, err := sysmem.MapShared(fd, 0, pages*page, true)
	if err != nil {
		t.Fatal(err)
	}
	for i := range pages {
		touch.Fill(mem[i*page:(i+1)*page], uint64(i), 1)
	}
	if err := sysmem.Unmap(mem); err != nil {
		t.Fatal(err)
	}
	r, err := p.MapShared(fd, pages*page)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.TouchAll(0, r.Pages(), true, 1); err != nil {
		t.Fatal(err)
	}
	return p, r
}

func watch(t testing.TB, p *touch.Proc, r *touch.Region, scan bool) *Watch {
	t.Helper()
	w, err := start(t.Context(), p.Pid(), []Area{{r.Addr, r.Size}}, scan)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// sample returns the pages that were touched.
func sample(t testing.TB, w *Watch) []uint64 {
	t.Helper()
	pages := []uint64{}
	err := w.Sample(func(area int, off, n uint64) {
		if area != 0 || off%page != 0 || n%page != 0 || n == 0 {
			t.Errorf("area %d, bytes %d+%d", area, off, n)
		}
		for ; n > 0; off, n = off+page, n-page {
			pages = append(pages, off/page)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

func touched(t testing.TB, r *touch.Region, write bool, pages ...uint64) {
	t.Helper()
	if _, err := r.Touch(pages, write, 1); err != nil {
		t.Fatal(err)
	}
}

func TestPagemapScanIsExact(t *testing.T) {
	p, r := shared(t, 4096)
	w := watch(t, p, r, true)
	if w.Method() != PagemapScan {
		t.Fatalf("method %q: this test needs Linux 6.7 or later with userfaultfd write protection", w.Method())
	}
	steps := []struct {
		write bool
		touch []uint64
		want  []uint64
	}{
		{false, []uint64{7, 100, 101, 4095}, []uint64{7, 100, 101, 4095}}, // no neighbours
		{false, []uint64{7, 100}, []uint64{}},                             // read again: known
		{true, []uint64{100, 3000}, []uint64{100, 3000}},                  // written again, and new
		{true, []uint64{100}, []uint64{100}},
		{false, nil, []uint64{}},
	}
	for i, s := range steps {
		touched(t, r, s.write, s.touch...)
		if got := sample(t, w); !slices.Equal(got, s.want) {
			t.Errorf("step %d: touched %v, sample says %v, want %v", i, s.touch, got, s.want)
		}
	}
	if bad, err := r.Verify(0, 7, 1); err != nil || bad != 0 {
		t.Errorf("%d of the pages are damaged, %v", bad, err)
	}
}

func TestPagemapFindsEveryTouch(t *testing.T) {
	p, r := shared(t, 4096)
	w := watch(t, p, r, false)
	if w.Method() != Pagemap {
		t.Fatalf("method %q", w.Method())
	}
	for _, want := range [][]uint64{{7, 1000, 4095}, {7}, {}} {
		touched(t, r, false, want...)
		got := sample(t, w)
		for _, n := range want {
			if !slices.Contains(got, n) {
				t.Errorf("page %d was touched, sample says %v", n, got)
			}
		}
		// Fault-around maps 64 KiB by default; not more may be reported.
		if len(got) > 16*len(want) {
			t.Errorf("%d pages for %d touched: %v", len(got), len(want), got)
		}
	}
	for _, n := range []uint64{3, 2000} { // a write maps its page alone
		touched(t, r, true, n)
		if got := sample(t, w); !slices.Equal(got, []uint64{n}) {
			t.Errorf("wrote page %d, sample says %v", n, got)
		}
	}
}

// TestLate: where the entries could not be dropped in time, writes are seen.
func TestLate(t *testing.T) {
	p, r := shared(t, 64<<20/page*2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // after the first of two pieces
	w, err := Start(ctx, p.Pid(), []Area{{r.Addr, r.Size}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	last := r.Pages() - 1
	touched(t, r, false, 3, last)
	touched(t, r, true, last-2)
	if got, want := sample(t, w), []uint64{3, last - 2}; !slices.Equal(got, want) {
		t.Errorf("sample says %v, want %v", got, want)
	}
	if _, err := start(ctx, p.Pid(), []Area{{r.Addr, r.Size}}, false); !errors.Is(err, context.Canceled) {
		t.Errorf("a watch by pagemap alone, which cannot do with less: %v", err)
	}
}

// TestNothingIsLeft: after the end of a watch the memory is registered with
// nobody, and a new watch can begin.
func TestNothingIsLeft(t *testing.T) {
	p, r := shared(t, 64)
	for range 3 {
		w, err := Start(t.Context(), p.Pid(), []Area{{r.Addr, r.Size}})
		if err != nil {
			t.Fatal(err)
		}
		touched(t, r, true, 5)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if fds, err := inject.FindUserfaultfds(p.Pid()); err != nil || len(fds) != 0 {
			t.Fatalf("descriptors left in the process: %v, %v", fds, err)
		}
		if bad, err := r.Verify(6, 58, 1); err != nil || bad != 0 {
			t.Errorf("%d pages are damaged, %v", bad, err)
		}
	}
}

func TestRefused(t *testing.T) {
	p, r := shared(t, 64)
	if _, err := Start(t.Context(), p.Pid(), []Area{{r.Addr + r.Size + 1<<40, page}}); err == nil {
		t.Error("memory that is not mapped can be watched")
	}
	p.Kill()
	if _, err := Start(t.Context(), p.Pid(), []Area{{r.Addr, r.Size}}); err == nil {
		t.Error("a process that is gone can be watched")
	}
}

// BenchmarkWatch is what a watch costs: start (the stop of a thread and the drop
// of the entries of 1 GiB), a sample of 1 GiB of which so much was touched, and
// what a touch of a page costs the process because of it.
func BenchmarkWatch(b *testing.B) {
	const pages = 1 << 18
	for _, scan := range []bool{true, false} {
		p, r := shared(b, pages)
		for _, hot := range []uint64{2048, 32768} {
			name := Pagemap
			if scan {
				name = PagemapScan
			}
			list := make([]uint64, hot)
			for i := range list {
				list[i] = uint64(i) * (pages / hot)
			}
			b.Run(fmt.Sprintf("%s/%d", name, hot), func(b *testing.B) {
				var begin, touch, sampled time.Duration
				for b.Loop() {
					t0 := time.Now()
					w := watch(b, p, r, scan)
					t1 := time.Now()
					lat, err := r.Touch(list, true, 1)
					if err != nil {
						b.Fatal(err)
					}
					for _, ns := range lat {
						touch += time.Duration(ns)
					}
					t2 := time.Now()
					sample(b, w)
					sampled += time.Since(t2)
					begin += t1.Sub(t0)
					w.Close()
					// As they were: all mapped.
					if _, err := r.TouchAll(0, r.Pages(), true, 1); err != nil {
						b.Fatal(err)
					}
				}
				n := float64(b.N)
				b.ReportMetric(float64(begin.Microseconds())/n, "start-µs/op")
				b.ReportMetric(float64(sampled.Microseconds())/n, "sample-µs/op")
				b.ReportMetric(float64(touch.Nanoseconds())/n/float64(hot), "touch-ns/page")
			})
		}
	}
}
