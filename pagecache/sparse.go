package pagecache

import (
	"math/bits"
	"sync/atomic"
)

// sparse is a set of numbers of which few are in it, wherever they are: its words
// are allocated by the chunk as they are needed, and stay. One goroutine at a time
// changes it; hasShared may be called meanwhile.
type sparse []atomic.Pointer[sparseChunk]

const chunkWords = 512 // of 64 numbers: a chunk is 4 KiB

type sparseChunk [chunkWords]uint64

func newSparse(n uint64) sparse { return make(sparse, n/(chunkWords*64)+1) }

// word returns 64 numbers from i on, which is a multiple of 64.
func (s sparse) word(i uint64) uint64 {
	if c := s[i/64/chunkWords].Load(); c != nil {
		return c[i/64%chunkWords]
	}
	return 0
}

func (s sparse) has(i uint64) bool { return s.word(i&^63)>>(i%64)&1 != 0 }

// hasShared is has while another goroutine changes the set.
func (s sparse) hasShared(i uint64) bool {
	c := s[i/64/chunkWords].Load()
	return c != nil && atomic.LoadUint64(&c[i/64%chunkWords])>>(i%64)&1 != 0
}

// nextClear returns the first number in [from, to) that is not in the set, or to.
func (s sparse) nextClear(from, to uint64) uint64 { return s.next(from, to, ^uint64(0)) }

// nextSet returns the first number in [from, to) that is in the set, or to.
func (s sparse) nextSet(from, to uint64) uint64 { return s.next(from, to, 0) }

// next returns the first number whose bit differs from that of flip, or to.
func (s sparse) next(from, to, flip uint64) uint64 {
	for from < to {
		if w := (s.word(from&^63) ^ flip) >> (from % 64); w != 0 {
			return min(to, from+uint64(bits.TrailingZeros64(w)))
		}
		from = (from/64 + 1) * 64
	}
	return to
}

// setRange adds the numbers in [from, to).
func (s sparse) setRange(from, to uint64) { s.change(from, to, true) }

// clearRange takes the numbers in [from, to) out.
func (s sparse) clearRange(from, to uint64) { s.change(from, to, false) }

func (s sparse) change(from, to uint64, in bool) {
	for from < to {
		n := min(64-from%64, to-from)
		p := &s[from/64/chunkWords]
		c := p.Load()
		if c == nil {
			c = new(sparseChunk)
			p.Store(c)
		}
		w, mask := &c[from/64%chunkWords], ^uint64(0)>>(64-n)<<(from%64)
		if in {
			atomic.StoreUint64(w, *w|mask)
		} else {
			atomic.StoreUint64(w, *w&^mask)
		}
		from += n
	}
}
