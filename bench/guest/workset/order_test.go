package workset

import "testing"

// Each order takes pages of the set, and as it says.
func TestOrders(t *testing.T) {
	for _, pages := range []int{1, 2, 96, 1000, 4096, 65537} {
		place, seen := scatter(pages), make([]bool, pages)
		for i := range uint64(pages) {
			n := place(i)
			if seen[n] {
				t.Fatalf("%d pages: two ranks lead to page %d", pages, n)
			}
			seen[n] = true
		}
		batch := make([]int, 3000)
		next, want := Sweep(pages), 0
		for range 3 {
			next(batch)
			for _, n := range batch {
				if n != want {
					t.Fatalf("sweep of %d pages: page %d, want %d", pages, n, want)
				}
				want = (want + 1) % pages
			}
		}
		HotSet(pages, 1.1)(batch)
		hot := 0
		for _, n := range batch {
			for rank := range uint64(min(pages, 10)) {
				if n == place(rank) {
					hot++
				}
			}
		}
		if share := float64(hot) / float64(len(batch)); share < 0.3 {
			t.Errorf("%d pages: the ten hottest get %.2f of the touches", pages, share)
		}
		AtRandom(pages)(batch)
		low := 0
		for _, n := range batch {
			if n < 0 || n >= pages {
				t.Fatalf("page %d of %d", n, pages)
			}
			if 2*n < pages {
				low++
			}
		}
		if share := float64(low) / float64(len(batch)); pages > 2 && (share < 0.45 || share > 0.55) {
			t.Errorf("%d pages: %.2f of the random touches are in the lower half", pages, share)
		}
	}
}
