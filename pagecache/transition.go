package pagecache

import (
	"math/bits"
	"sync/atomic"
)

func popcount(w uint64) uint64 { return uint64(bits.OnesCount64(w)) }

// within reports whether a run lies in the region. One that does not is the
// programmer's mistake: callers check what a peer or the kernel said.
func (r *Residency) within(op string, first, count uint64) bool {
	if first < r.pages && count <= r.pages-first {
		return true
	}
	violated("%s of %d pages from %d: the region has %d", op, count, first, r.pages)
	return false
}

// span is the part of a run that lies in one word.
func span(page, end uint64) (word, n, mask uint64) {
	off := page % pagesPerWord
	n = min(pagesPerWord-off, end-page)
	return page / pagesPerWord, n, laneMask(off, n)
}

// ClaimPage claims one page and returns the state it was found in: Absent says
// that the caller now holds the claim. It is the demand fault's question, and
// the other states are its other answers: wait for the installer, map the page,
// install a zero page.
func (r *Residency) ClaimPage(page uint64) State {
	if page >= r.pages {
		violated("claim of page %d: the region has %d", page, r.pages)
		return Outside
	}
	w, shift := &r.words[page/pagesPerWord], 2*(page%pagesPerWord)
	for {
		old := atomic.LoadUint64(w)
		if s := State(old >> shift & 3); s != Absent {
			return s
		}
		if atomic.CompareAndSwapUint64(w, old, old|1<<shift) {
			r.installing.Add(1)
			return Absent
		}
	}
}

// Claim claims the absent pages of a run and returns how many it won. won[i]
// says whether page first+i is among them; it must have [MaskWords] of count
// words and is overwritten. Of a run that leaves the region nothing is won.
func (r *Residency) Claim(first, count uint64, won Mask) (n uint64) {
	if !r.within("claim", first, count) {
		clear(won)
		return 0
	}
	clear(won[:MaskWords(count)])
	end := first + count
	for page := first; page < end; {
		i, k, m := span(page, end)
		for {
			old := atomic.LoadUint64(&r.words[i])
			free := absentLanes(old) & m
			if free == 0 {
				break
			}
			if atomic.CompareAndSwapUint64(&r.words[i], old, old|free) {
				won.or(page-first, gather(free)>>(page%pagesPerWord))
				n += popcount(free)
				break
			}
		}
		page += k
	}
	if n != 0 {
		r.installing.Add(int64(n))
	}
	return n
}

// Commit says that the content of the selected pages of a run is complete:
// Installing to Resident. A nil mask selects them all. The error is a
// [*TransitionError].
func (r *Residency) Commit(first, count uint64, mask Mask) error {
	n, err := r.end("commit", first, count, mask, true)
	if n != 0 {
		r.installing.Add(-int64(n))
		r.resident.Add(int64(n))
		r.remaining.Add(-int64(n))
	}
	if err != nil {
		violated("%v", err)
	}
	return err
}

// Release gives claims up: Installing to Absent. A nil mask selects all pages
// of the run. The error is a [*TransitionError]. A planner finds the pages
// again by itself, when next asked.
func (r *Residency) Release(first, count uint64, mask Mask) error {
	n, err := r.end("release", first, count, mask, false)
	if n != 0 {
		r.installing.Add(-int64(n))
	}
	if err != nil {
		violated("%v", err)
	}
	return err
}

// end takes the selected pages out of Installing.
func (r *Residency) end(op string, first, count uint64, mask Mask, commit bool) (n uint64, err error) {
	if first >= r.pages || count > r.pages-first {
		return 0, &TransitionError{Op: op, Page: max(first, r.pages), State: Outside, Pages: count}
	}
	var bad TransitionError
	end := first + count
	for page := first; page < end; {
		i, k, m := span(page, end)
		if mask != nil {
			m &= scatter(mask.bits(page-first, k)) << (2 * (page % pagesPerWord))
		}
		for m != 0 {
			old := atomic.LoadUint64(&r.words[i])
			ok := installingLanes(old) & m
			flip := ok
			if commit {
				flip |= ok << 1
			}
			if !atomic.CompareAndSwapUint64(&r.words[i], old, old^flip) {
				continue
			}
			n += popcount(ok)
			if rest := m &^ ok; rest != 0 {
				if bad.Pages == 0 {
					at := uint64(bits.TrailingZeros64(rest))
					bad = TransitionError{Op: op, Page: i*pagesPerWord + at/2, State: State(old >> at & 3)}
				}
				bad.Pages += popcount(rest)
			}
			break
		}
		page += k
	}
	if bad.Pages == 0 {
		return n, nil
	}
	e := bad // a copy, so that only a failure allocates
	return n, &e
}

// Zero says that the pages of a run read as zero: Absent to Zero. Pages in any
// other state are left alone. It returns how many it changed. Like Remove and
// Materialise it changes nothing if the run leaves the region.
func (r *Residency) Zero(first, count uint64) (changed uint64) {
	if !r.within("zero", first, count) {
		return 0
	}
	end := first + count
	for page := first; page < end; {
		i, k, m := span(page, end)
		for {
			old := atomic.LoadUint64(&r.words[i])
			free := absentLanes(old) & m
			if free == 0 {
				break
			}
			if atomic.CompareAndSwapUint64(&r.words[i], old, old|free|free<<1) {
				changed += popcount(free)
				break
			}
		}
		page += k
	}
	if changed != 0 {
		r.zero.Add(int64(changed))
		r.remaining.Add(-int64(changed))
	}
	return changed
}

// Remove says that the guest gave the pages of a run back: Absent and Resident
// to Zero. It returns how many it changed, and how many it had to leave because
// they are Installing: once those claims have ended, call Remove again.
func (r *Residency) Remove(first, count uint64) (changed, installing uint64) {
	if !r.within("remove", first, count) {
		return 0, 0
	}
	var wasAbsent uint64
	end := first + count
	for page := first; page < end; {
		i, k, m := span(page, end)
		for {
			old := atomic.LoadUint64(&r.words[i])
			free, res := absentLanes(old)&m, residentLanes(old)&m
			set := free | res
			if set == 0 || atomic.CompareAndSwapUint64(&r.words[i], old, old|set|set<<1) {
				wasAbsent += popcount(free)
				changed += popcount(set)
				installing += popcount(installingLanes(old) & m)
				break
			}
		}
		page += k
	}
	if changed != 0 {
		r.zero.Add(int64(changed))
		r.resident.Add(-int64(changed - wasAbsent))
		r.remaining.Add(-int64(wasAbsent))
	}
	return changed, installing
}

// Materialise says that zero pages have been installed for the Zero pages of a
// run: Zero to Resident. Pages in any other state are left alone. It returns
// how many it changed.
func (r *Residency) Materialise(first, count uint64) (changed uint64) {
	if !r.within("materialise", first, count) {
		return 0
	}
	end := first + count
	for page := first; page < end; {
		i, k, m := span(page, end)
		for {
			old := atomic.LoadUint64(&r.words[i])
			set := zeroLanes(old) & m
			if set == 0 {
				break
			}
			if atomic.CompareAndSwapUint64(&r.words[i], old, old^set) {
				changed += popcount(set)
				break
			}
		}
		page += k
	}
	if changed != 0 {
		r.resident.Add(int64(changed))
		r.zero.Add(-int64(changed))
	}
	return changed
}
