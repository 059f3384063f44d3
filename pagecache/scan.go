package pagecache

import (
	"math/bits"
	"sync/atomic"
)

// State returns the state of one page, Outside if the region has no such page.
func (r *Residency) State(page uint64) State {
	if page >= r.pages {
		return Outside
	}
	return State(atomic.LoadUint64(&r.words[page/pagesPerWord]) >> (2 * (page % pagesPerWord)) & 3)
}

// lanesOf returns the lane mask of the pages of w that are in state s.
func lanesOf(w uint64, s State) uint64 {
	// Equal bit pairs become 00, and those are the absent lanes of the result.
	return absentLanes(w ^ uint64(s)*lanes)
}

// next returns the first page from page on, before end, whose state is s (or is
// not s), or end.
func (r *Residency) next(page, end uint64, s State, is bool) uint64 {
	for page < end {
		i, k, m := span(page, end)
		l := lanesOf(atomic.LoadUint64(&r.words[i]), s)
		if !is {
			l = ^l
		}
		if l &= m; l != 0 {
			return i*pagesPerWord + uint64(bits.TrailingZeros64(l))/2
		}
		page += k
	}
	return end
}

// NextAbsent returns the first run of absent pages in [from, to). While others
// claim pages the answer is a hint: only Claim decides.
func (r *Residency) NextAbsent(from, to uint64) (first, count uint64, ok bool) {
	to = min(to, r.pages)
	if from >= to {
		return 0, 0, false
	}
	first = r.next(from, to, Absent, true)
	if first == to {
		return 0, 0, false
	}
	// The page may be gone by now; a run has at least the one that was seen.
	return first, r.next(first+1, to, Absent, false) - first, true
}

// Runs calls yield for each maximal run of pages of one state, in order, until
// it returns false. While others change pages, each run was true when its pages
// were read.
func (r *Residency) Runs(yield func(first, count uint64, s State) bool) {
	for page := uint64(0); page < r.pages; {
		s := r.State(page)
		end := r.next(page+1, r.pages, s, false)
		if !yield(page, end-page, s) {
			return
		}
		page = end
	}
}

// Around returns the run of at most n pages that a demand fault on page should
// fetch: the page itself, whatever its state, and the absent neighbours that
// adjoin it inside the n-aligned group it lies in. With n of 0 or 1 it is the
// page alone.
func (r *Residency) Around(page, n uint64) (first, count uint64) {
	if n <= 1 || page >= r.pages {
		return page, 1
	}
	lo := page - page%n
	hi := r.pages
	if r.pages-lo > n {
		hi = lo + n
	}
	first = page
	for first > lo && r.State(first-1) == Absent {
		first--
	}
	return first, r.next(page+1, hi, Absent, false) - first
}
