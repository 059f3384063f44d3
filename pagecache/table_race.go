//go:build race

package pagecache

// heapWords is the longest table that comes from the Go heap: 4 MiB.
const heapWords = 512 << 10

// newTable takes the words of a residency from the Go heap, unless it is huge:
// the race detector does not see synchronisation through memory from mmap
// (runtime/race_amd64.s, racecallatomic), and would report what a claim guards.
func newTable(n uint64) (words []uint64, mem []byte, err error) {
	if n > heapWords {
		return mapTable(n)
	}
	return make([]uint64, n), nil, nil
}
