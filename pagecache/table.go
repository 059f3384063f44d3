//go:build !race

package pagecache

// newTable takes the words of a residency; mem is the mapping to undo.
func newTable(n uint64) (words []uint64, mem []byte, err error) { return mapTable(n) }
