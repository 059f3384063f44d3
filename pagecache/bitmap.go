package pagecache

import "math/bits"

// bitmap is a set of numbers, 64 to a word.
type bitmap []uint64

func newBitmap(n uint64) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) has(i uint64) bool { return b[i/64]>>(i%64)&1 != 0 }

// nextClear returns the first number in [from, to) that is not in the set, or to.
func (b bitmap) nextClear(from, to uint64) uint64 {
	for from < to {
		if free := ^b[from/64] >> (from % 64); free != 0 {
			return min(to, from+uint64(bits.TrailingZeros64(free)))
		}
		from = (from/64 + 1) * 64
	}
	return to
}

// nextSet returns the first number in [from, to) that is in the set, or to.
func (b bitmap) nextSet(from, to uint64) uint64 {
	for from < to {
		if set := b[from/64] >> (from % 64); set != 0 {
			return min(to, from+uint64(bits.TrailingZeros64(set)))
		}
		from = (from/64 + 1) * 64
	}
	return to
}

// setRange adds the numbers in [from, to).
func (b bitmap) setRange(from, to uint64) {
	for from < to {
		n := min(64-from%64, to-from)
		b[from/64] |= ^uint64(0) >> (64 - n) << (from % 64)
		from += n
	}
}
