package pagecache

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestResidencyConcurrent: claims, removals and zeroes over the same words at
// once. A page's claimants are counted, and its content is a plain variable, so
// that -race sees a second writer even when it comes just after the first.
func TestResidencyConcurrent(t *testing.T) {
	const pages = 200
	r := newResidency(t, pages)
	content := make([]int, pages)
	holders := make([]atomic.Int32, pages)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			won := make(Mask, MaskWords(pages))
			for i := range 30_000 {
				first := rnd.Uint64N(pages)
				count := 1 + rnd.Uint64N(min(64, pages-first))
				switch {
				case i%2000 == 0:
					r.Remove(first, 1)
				case i%2000 == 500:
					r.Zero(first, 1)
				case i%2000 == 1000:
					r.Materialise(first, count)
				case i%2000 == 1500:
					r.NextAbsent(first, first+count)
					r.Counts()
				default:
					if err := useClaim(r, first, count, won, holders, content, i%2000 == 1700); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	got, remaining := r.Counts(), r.Remaining()
	r.recount()
	if want := r.Counts(); got != want || remaining != want.Absent || want.Installing != 0 {
		t.Fatalf("counted %+v and %d remaining, the words say %+v", got, remaining, want)
	}
	if got.Resident == 0 || got.Zero == 0 {
		t.Fatalf("%+v: the test did not exercise every state", got)
	}
}

// useClaim claims a run, writes what it won, commits one page of it if it is to
// keep one, and releases the rest.
func useClaim(r *Residency, first, count uint64, won Mask, holders []atomic.Int32, content []int, keep bool) error {
	n := r.Claim(first, count, won)
	kept := Mask{0}
	var seen uint64
	for i := range count {
		if !won.Has(i) {
			continue
		}
		seen++
		if h := holders[first+i].Add(1); h != 1 {
			return fmt.Errorf("page %d has %d claimants", first+i, h)
		}
		content[first+i]++
		holders[first+i].Add(-1)
		if keep && seen == 1 {
			kept.Set(i)
			won.Clear(i)
		}
	}
	if seen != n {
		return fmt.Errorf("Claim says %d, its mask %d", n, seen)
	}
	return errors.Join(r.Commit(first, count, kept), r.Release(first, count, won))
}

// panics reports whether f panics.
func panics(f func()) (p bool) {
	defer func() { p = recover() != nil }()
	f()
	return false
}

// TestOutside: pages that the region does not have are never won, never
// counted; a build with invariants stops at the mistake.
func TestOutside(t *testing.T) {
	const pages = 40
	for _, run := range [][2]uint64{{pages, 1}, {0, pages + 1}, {39, ^uint64(0)}, {^uint64(0), 2}} {
		first, count := run[0], run[1]
		r := newResidency(t, pages)
		won := Mask{1}
		for name, f := range map[string]func() bool{
			"Zero":        func() bool { return r.Zero(first, count) == 0 },
			"Remove":      func() bool { n, _ := r.Remove(first, count); return n == 0 },
			"Materialise": func() bool { return r.Materialise(first, count) == 0 },
			"Claim":       func() bool { return count > 64 || r.Claim(first, count, won) == 0 && won[0] == 0 || invariants },
			"Commit":      func() bool { return r.Commit(first, count, nil) != nil },
			"Release": func() bool {
				var te *TransitionError
				err := r.Release(first, count, nil)
				return errors.As(err, &te) && te.State == Outside && te.Page >= pages
			},
		} {
			var ok bool
			stopped := panics(func() { ok = f() })
			if stopped != invariants && (name != "Claim" || count <= 64) {
				t.Errorf("%s(%d, %d): panic %v, in a build with invariants %v", name, first, count, stopped, invariants)
			}
			if !stopped && !ok {
				t.Errorf("%s(%d, %d) took pages outside the region", name, first, count)
			}
		}
		if c := r.Counts(); c != (Counts{Absent: pages}) {
			t.Errorf("counts %+v", c)
		}
		if s := r.State(pages); s != Outside {
			t.Errorf("state of page %d is %v", pages, s)
		}
		if _, _, ok := r.NextAbsent(pages, pages+5); ok {
			t.Error("NextAbsent found a page outside the region")
		}
		if !invariants && r.ClaimPage(pages) != Outside {
			t.Error("a page outside the region was claimed")
		}
	}
}

// TestNames: errors and states name what they mean.
func TestNames(t *testing.T) {
	err := error(&TransitionError{Op: "commit", Page: 77, State: Resident, Pages: 3})
	for _, s := range []string{"commit", "77", "resident", "3"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
	seen := map[string]bool{}
	for s := Absent; s <= Outside+1; s++ {
		if seen[s.String()] || s.String() == "" {
			t.Errorf("state %d is called %q", uint8(s), s)
		}
		seen[s.String()] = true
	}
}

// TestRunsStops: Runs ends when it is told to.
func TestRunsStops(t *testing.T) {
	r := newResidency(t, 100)
	r.Zero(10, 10)
	n := 0
	r.Runs(func(first, count uint64, s State) bool { n++; return n < 2 })
	if n != 2 {
		t.Fatalf("%d runs after a stop at 2", n)
	}
}
