package pagecache

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// model is the residency as a plain slice, the rules spelled out page by page.
type model []State

func (m model) counts() (c Counts) {
	for _, s := range m {
		switch s {
		case Absent:
			c.Absent++
		case Installing:
			c.Installing++
		case Resident:
			c.Resident++
		case Zero:
			c.Zero++
		}
	}
	return c
}

func newResidency(t testing.TB, pages uint64) *Residency {
	t.Helper()
	r, err := New(pages)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func check(t *rapid.T, r *Residency, m model) {
	c := m.counts()
	if got := r.Counts(); got != c {
		t.Fatalf("Counts = %+v, want %+v", got, c)
	}
	if got := r.Remaining(); got != c.Absent+c.Installing {
		t.Fatalf("Remaining = %d, want %d", got, c.Absent+c.Installing)
	}
	var next uint64
	last := Outside
	r.Runs(func(first, count uint64, s State) bool {
		if first != next || count == 0 || s == last {
			t.Fatalf("run %d+%d of %v after page %d (%v)", first, count, s, next, last)
		}
		for i := range count {
			if m[first+i] != s || r.State(first+i) != s {
				t.Fatalf("page %d: run says %v, State %v, want %v", first+i, s, r.State(first+i), m[first+i])
			}
		}
		next, last = first+count, s
		return true
	})
	if next != uint64(len(m)) {
		t.Fatalf("runs end at %d of %d", next, len(m))
	}
}

// TestResidencyModel runs every operation against the model.
func TestResidencyModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Uint64Range(1, 300).Draw(t, "pages")
		mem := make([]byte, Size(pages))
		r, err := Create(mem, pages, 7)
		if err != nil {
			t.Fatal(err)
		}
		m := make(model, pages)
		run := func(t *rapid.T) (first, count uint64) {
			first = rapid.Uint64Range(0, pages-1).Draw(t, "first")
			return first, rapid.Uint64Range(0, pages-first).Draw(t, "count")
		}
		// each applies f to the model and returns how many pages it changed.
		each := func(first, count uint64, f func(State) State) (n uint64) {
			for i := first; i < first+count; i++ {
				if s := f(m[i]); s != m[i] {
					m[i] = s
					n++
				}
			}
			return n
		}
		endClaim := func(t *rapid.T, to State, op func(uint64, uint64, Mask) error) {
			first, count := run(t)
			var mask Mask
			if rapid.Bool().Draw(t, "masked") {
				mask = make(Mask, MaskWords(count))
				for i := range count {
					if rapid.Bool().Draw(t, "bit") {
						mask.Set(i)
					}
				}
			}
			var bad []uint64
			for i := range count {
				if mask == nil || mask.Has(i) {
					if m[first+i] == Installing {
						m[first+i] = to
					} else {
						bad = append(bad, first+i)
					}
				}
			}
			if invariants && bad != nil {
				defer func() {
					if recover() == nil {
						t.Fatal("an illegal transition did not panic")
					}
				}()
			}
			err := op(first, count, mask)
			var te *TransitionError
			switch {
			case bad == nil && err != nil:
				t.Fatal(err)
			case bad != nil && !errors.As(err, &te):
				t.Fatalf("illegal end of claim on page %d: error is %v", bad[0], err)
			case bad != nil && (te.Page != bad[0] || te.State != m[bad[0]] || te.Pages != uint64(len(bad))):
				t.Fatalf("error %+v, want page %d, %v, %d pages", te, bad[0], m[bad[0]], len(bad))
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { check(t, r, m) },
			"claim": func(t *rapid.T) {
				first, count := run(t)
				won := make(Mask, MaskWords(count)+1)
				for i := range won {
					won[i] = ^uint64(0) // must be overwritten
				}
				n := r.Claim(first, count, won)
				var want uint64
				for i := range count {
					free := m[first+i] == Absent
					if free {
						want++
						m[first+i] = Installing
					}
					if won.Has(i) != free {
						t.Fatalf("page %d won %v, want %v", first+i, won.Has(i), free)
					}
				}
				if n != want {
					t.Fatalf("won %d, want %d", n, want)
				}
			},
			"claimPage": func(t *rapid.T) {
				p := rapid.Uint64Range(0, pages-1).Draw(t, "page")
				if got := r.ClaimPage(p); got != m[p] {
					t.Fatalf("page %d found %v, want %v", p, got, m[p])
				}
				if m[p] == Absent {
					m[p] = Installing
				}
			},
			"commit":  func(t *rapid.T) { endClaim(t, Resident, r.Commit) },
			"release": func(t *rapid.T) { endClaim(t, Absent, r.Release) },
			"zero": func(t *rapid.T) {
				first, count := run(t)
				want := each(first, count, func(s State) State {
					if s == Absent {
						return Zero
					}
					return s
				})
				if got := r.Zero(first, count); got != want {
					t.Fatalf("Zero changed %d, want %d", got, want)
				}
			},
			"remove": func(t *rapid.T) {
				first, count := run(t)
				var busy uint64
				want := each(first, count, func(s State) State {
					if s == Installing {
						busy++
						return s
					}
					return Zero
				})
				if got, inst := r.Remove(first, count); got != want || inst != busy {
					t.Fatalf("Remove = %d, %d, want %d, %d", got, inst, want, busy)
				}
			},
			"materialise": func(t *rapid.T) {
				first, count := run(t)
				want := each(first, count, func(s State) State {
					if s == Zero {
						return Resident
					}
					return s
				})
				if got := r.Materialise(first, count); got != want {
					t.Fatalf("Materialise changed %d, want %d", got, want)
				}
			},
			"nextAbsent": func(t *rapid.T) {
				first, count := run(t)
				to := first + count
				lo := first
				for lo < to && m[lo] != Absent {
					lo++
				}
				hi := lo
				for hi < to && m[hi] == Absent {
					hi++
				}
				f, c, ok := r.NextAbsent(first, to)
				if ok != (lo < to) || ok && (f != lo || c != hi-lo) {
					t.Fatalf("NextAbsent(%d,%d) = %d, %d, %v, want %d, %d", first, to, f, c, ok, lo, hi-lo)
				}
			},
			"around": func(t *rapid.T) {
				p := rapid.Uint64Range(0, pages-1).Draw(t, "page")
				n := rapid.Uint64Range(0, 70).Draw(t, "n")
				f, c := r.Around(p, n)
				if f > p || f+c <= p || c > max(1, n) || f+c > pages {
					t.Fatalf("Around(%d,%d) = %d+%d", p, n, f, c)
				}
				group := func(q uint64) bool { return n > 1 && q/n == p/n && q < pages && m[q] == Absent }
				for q := f; q < f+c; q++ {
					if q != p && !group(q) {
						t.Fatalf("Around(%d,%d) = %d+%d has page %d, %v", p, n, f, c, q, m[q])
					}
				}
				if f > 0 && group(f-1) || group(f+c) {
					t.Fatalf("Around(%d,%d) = %d+%d misses a neighbour", p, n, f, c)
				}
			},
			"restart": func(t *rapid.T) {
				again, err := Attach(mem, pages, 7)
				if err != nil {
					t.Fatal(err)
				}
				r = again
				check(t, r, m)
				want := each(0, pages, func(s State) State {
					if s == Installing {
						return Absent
					}
					return s
				})
				if got := r.Recover(); got != want {
					t.Fatalf("Recover = %d, want %d", got, want)
				}
			},
		})
	})
}
