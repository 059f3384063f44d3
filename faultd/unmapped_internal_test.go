package faultd

import (
	"testing"

	"pgregory.net/rapid"
)

// What is left of a range is what no unmapping has met, in as few parts as can be.
func TestUnmappedParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var u unmapped
		var gone [64]bool
		for range rapid.IntRange(0, 8).Draw(t, "unmappings") {
			from := rapid.Uint64Range(0, 62).Draw(t, "from")
			to := rapid.Uint64Range(from+1, 63).Draw(t, "to")
			u.add(addresses{from, to})
			for i := from; i < to; i++ {
				gone[i] = true
			}
		}
		first := rapid.Uint64Range(0, 62).Draw(t, "first")
		end := rapid.Uint64Range(first+1, 63).Draw(t, "end")
		var want []addresses
		for i := first; i < end; i++ {
			switch n := len(want); {
			case gone[i]:
			case n > 0 && want[n-1].to == i:
				want[n-1].to++
			default:
				want = append(want, addresses{i, i + 1})
			}
		}
		got := u.rest(addresses{first, end})
		if len(got) != len(want) {
			t.Fatalf("%v, want %v", got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("%v, want %v", got, want)
			}
		}
	})
}
