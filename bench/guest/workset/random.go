package workset

import "math/bits"

// Random is the SplitMix64 generator (Steele, Lea, Flood: Fast Splittable
// Pseudorandom Number Generators, OOPSLA 2014). It never blocks on entropy,
// and a run can be repeated. Not for concurrent use.
type Random struct{ state uint64 }

// NewRandom returns a generator that starts from seed.
func NewRandom(seed uint64) *Random { return &Random{state: seed} }

// Next returns the next 64 bits.
func (r *Random) Next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	return mix(r.state)
}

// Below returns a number from 0 to n-1; n must be positive.
func (r *Random) Below(n int) int {
	hi, _ := bits.Mul64(r.Next(), uint64(n))
	return int(hi)
}

func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
