package faultd

import (
	"testing"

	"github.com/pagewarp/pagewarp/transport"
	"pgregory.net/rapid"
)

// nextReserved finds what a look at each page finds.
func TestNextReserved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom([]uint64{0, ^uint64(0)}), rapid.Uint64()), 0, 3).Draw(t, "set")
		pages := uint64(len(set)) * 64 * ReserveGranule
		from := rapid.Uint64Range(0, pages+40).Draw(t, "from")
		end := rapid.Uint64Range(from, pages+40).Draw(t, "end")
		limit := rapid.Uint64Range(1, 200).Draw(t, "limit")
		is := func(p uint64) bool {
			g := p / ReserveGranule
			return g < uint64(len(set))*64 && set[g/64]>>(g%64)&1 != 0
		}
		first := from
		for first < end && !is(first) {
			first++
		}
		count := uint64(0)
		for first+count < end && count < limit && is(first+count) {
			count++
		}
		gotFirst, gotCount, ok := nextReserved(set, from, end, limit)
		if ok != (count > 0) || ok && (gotFirst != first || gotCount != count) {
			t.Fatalf("%d+%d %v, want %d+%d", gotFirst, gotCount, ok, first, count)
		}
		if count > 0 && gotCount > 0 {
			e := &Engine{}
			e.reserved.Store(&reservations{3: {set: set}})
			if !e.isReserved(transport.Range{Region: 3, First: first, Count: uint32(count)}) ||
				e.isReserved(transport.Range{Region: 2, First: first, Count: uint32(count)}) ||
				e.isReserved(transport.Range{Region: 3, First: first, Count: uint32(count) + 1}) != is(first+count) {
				t.Fatalf("%d+%d: not what was found", first, count)
			}
		}
	})
}
