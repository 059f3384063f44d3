package pagehash

import (
	"fmt"
	"sync/atomic"
)

// chunkPages is the number of pages of a chunk, the unit in which an index takes
// memory (64 KiB).
const chunkPages = 4096

type chunk [chunkPages]struct{ low, high atomic.Uint64 }

// Index holds the hashes of one region's candidates: 16 bytes a page, taken
// where there are any. Its methods are safe for concurrent use; who reads a page
// that is being set may find neither its old nor its new hash, but one that no
// page has.
type Index struct {
	pages   uint64
	chunks  []atomic.Pointer[chunk]
	count   atomic.Uint64 // pages set, those dropped since included
	dropped atomic.Uint64
}

// MaxPages bounds the region of an index: a pointer for each 4096 pages is taken
// at once.
const MaxPages = 1 << 36

// NewIndex returns the index of a region of so many pages, without candidates.
func NewIndex(pages uint64) (*Index, error) {
	if pages == 0 || pages > MaxPages {
		return nil, fmt.Errorf("index of %d pages: a region has 1 to %d", pages, uint64(MaxPages))
	}
	return &Index{pages: pages, chunks: make([]atomic.Pointer[chunk], (pages+chunkPages-1)/chunkPages)}, nil
}

// Count returns how many candidates were set.
func (x *Index) Count() uint64 { return x.count.Load() }

// Dropped returns how many were dropped.
func (x *Index) Dropped() uint64 { return x.dropped.Load() }

func (x *Index) get(page uint64) Sum {
	if page >= x.pages {
		return Sum{}
	}
	c := x.chunks[page/chunkPages].Load()
	if c == nil {
		return Sum{}
	}
	e := &c[page%chunkPages]
	return Sum{e.low.Load(), e.high.Load()}
}

func (x *Index) put(page uint64, s Sum) {
	p := &x.chunks[page/chunkPages]
	c := p.Load()
	if c == nil {
		c = new(chunk)
		if !p.CompareAndSwap(nil, c) {
			c = p.Load()
		}
	}
	e := &c[page%chunkPages]
	e.low.Store(s.Low)
	e.high.Store(s.High)
}

// Get returns the hash of a page's candidate; ok is false if it has none.
func (x *Index) Get(page uint64) (s Sum, ok bool) {
	s = x.get(page)
	return s, s.real()
}

// Set notes the hash of a page's candidate, in the place of an earlier one. A page
// outside the region is ignored. Of one page Set, Clear and Drop must not run at the
// same time.
func (x *Index) Set(page uint64, s Sum) {
	if page < x.pages && s.real() {
		if !x.get(page).real() {
			x.count.Add(1)
		}
		x.put(page, s)
	}
}

// Clear says that a page has no candidate, as if none had been set.
func (x *Index) Clear(page uint64) {
	if x.get(page).real() {
		x.put(page, Sum{})
		x.count.Add(^uint64(0))
	}
}

// Drop says that a page has no candidate any more.
func (x *Index) Drop(page uint64) {
	if page < x.pages {
		x.put(page, gone)
		x.dropped.Add(1)
	}
}

// AnyDropped reports whether a page of the run was dropped. It costs nothing as
// long as none was.
func (x *Index) AnyDropped(first, count uint64) bool {
	if x.dropped.Load() == 0 {
		return false
	}
	for p := first; p < first+count; p++ {
		if x.get(p) == gone {
			return true
		}
	}
	return false
}

// Next returns the first run of candidates in [from, end), at most max long; ok
// is false if there is none.
func (x *Index) Next(from, end, max uint64) (first, count uint64, ok bool) {
	end = min(end, x.pages)
	for p := from; p < end; {
		if x.chunks[p/chunkPages].Load() == nil {
			p = (p/chunkPages + 1) * chunkPages
			continue
		}
		if !x.get(p).real() {
			p++
			continue
		}
		n := uint64(1)
		for n < max && p+n < end && x.get(p+n).real() {
			n++
		}
		return p, n, true
	}
	return 0, 0, false
}

// Append appends the hashes of a run, as they stand on the wire; pages without
// candidate are zero.
func (x *Index) Append(b []byte, first, count uint64) []byte {
	var e [Size]byte
	for p := first; p < first+count; p++ {
		s, ok := x.Get(p)
		if !ok {
			s = Sum{}
		}
		s.Put(e[:])
		b = append(b, e[:]...)
	}
	return b
}

// Take reads what Append has written into the run that begins at first. It is
// for bytes of a peer's: the error says what is wrong with them, and then nothing
// was taken.
func (x *Index) Take(first uint64, b []byte) error {
	n := uint64(len(b)) / Size
	if uint64(len(b)) != n*Size || first >= x.pages || n > x.pages-first {
		return fmt.Errorf("%d bytes of hashes for pages from %d on: the region has %d pages", len(b), first, x.pages)
	}
	for i := range n {
		if s := Parse(b[i*Size:]); s.real() {
			x.Set(first+i, s)
		} else {
			x.Clear(first + i)
		}
	}
	return nil
}
