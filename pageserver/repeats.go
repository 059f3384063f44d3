package pageserver

import (
	"encoding/binary"
	"math/bits"
)

// repeatProbes bounds the comparisons for one page: a guest that makes pages
// which differ only where the hash does not look costs its own precache no more.
const repeatProbes = 4

// repeats finds the pages of one answer that hold what an earlier one does. It is
// reused, and allocates nothing once it has grown to the longest fetch.
type repeats struct {
	mem   []byte   // of the answer
	slots []uint32 // 1 + number of a data page, by hash; 0: free; a power of two
	pages []uint32 // where each data page begins, in units of page size
	size  int      // of a page, bytes
}

// begin starts an answer of n pages whose memory is mem.
func (r *repeats) begin(mem []byte, n int) {
	want := 2 << bits.Len(uint(n))
	if cap(r.slots) < want {
		r.slots = make([]uint32, want)
	}
	r.slots = r.slots[:want]
	clear(r.slots)
	r.mem, r.pages, r.size = mem, r.pages[:0], len(mem)/n
}

func (r *repeats) page(i uint32) []byte { return r.mem[int(i)*r.size:][:r.size] }

// find returns the number, among the data pages, of an earlier one that holds what
// page i does. Otherwise the page is data from now on.
func (r *repeats) find(i uint32) (word uint64, found bool) {
	p := r.page(i)
	at := pageHash(p)
	for range repeatProbes {
		slot := &r.slots[at%uint64(len(r.slots))]
		if *slot == 0 {
			*slot = uint32(len(r.pages)) + 1
			break
		}
		if n := *slot - 1; string(r.page(r.pages[n])) == string(p) {
			return uint64(n), true
		}
		at++
	}
	r.pages = append(r.pages, i)
	return 0, false
}

// pageHash looks at words of a page's first, middle and last cache line, which
// sysmem.SameFill has brought: looking at eight lines cost 0.35 µs a page. A page
// that differs elsewhere only is told apart by the comparison. The multiplier is that
// of splitmix64.
func pageHash(p []byte) (h uint64) {
	mid, end := len(p)/2, len(p)
	for _, at := range [...]int{0, 16, 48, mid, mid + 24, mid + 56, end - 8, end - 32} {
		h = (h ^ binary.LittleEndian.Uint64(p[at:])) * 0xbf58476d1ce4e5b9
		h ^= h >> 31
	}
	return h
}
