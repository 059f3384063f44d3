package workset

import "math/rand/v2"

// Order fills a batch with the pages to touch next, by number.
type Order func(batch []int)

// AtRandom draws every page alike.
func AtRandom(pages int) Order {
	r := NewRandom(2)
	return func(batch []int) {
		for i := range batch {
			batch[i] = r.Below(pages)
		}
	}
}

// Sweep takes one page after the other, from the first to the last and again.
func Sweep(pages int) Order {
	next := 0
	return func(batch []int) {
		for i := range batch {
			batch[i] = next
			if next++; next == pages {
				next = 0
			}
		}
	}
}

// HotSet draws pages by Zipf's law with an exponent above 1; the popular ones lie
// scattered over all.
func HotSet(pages int, exponent float64) Order {
	zipf := rand.NewZipf(rand.New(rand.NewPCG(3, 0)), exponent, 1, uint64(pages-1))
	place := scatter(pages)
	return func(batch []int) {
		for i := range batch {
			batch[i] = place(zipf.Uint64())
		}
	}
}

// scatter maps the numbers from 0 to pages-1 to each other, neighbours far
// apart: the stride has no divisor in common with pages.
func scatter(pages int) func(uint64) int {
	n := uint64(pages)
	stride := uint64(float64(pages)*0.618) | 1
	for gcd(stride, n) != 1 {
		stride += 2
	}
	return func(i uint64) int { return int(i * stride % n) }
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
