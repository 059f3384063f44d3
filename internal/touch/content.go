package touch

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum is the checksum of a page that Sums returns.
func Sum(page []byte) uint32 { return crc32.Checksum(page, castagnoli) }

// Fill writes the content that page number n has for seed: the number, the
// seed, and words that depend on both, no two pages alike and not compressible.
// len(page) must be a multiple of 8 and at least 16.
func Fill(page []byte, n, seed uint64) {
	binary.LittleEndian.PutUint64(page, n)
	binary.LittleEndian.PutUint64(page[8:], seed)
	x := n*0x9E3779B97F4A7C15 ^ seed
	for i := 16; i+8 <= len(page); i += 8 {
		// splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
		x += 0x9E3779B97F4A7C15
		z := x
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		binary.LittleEndian.PutUint64(page[i:], z^z>>31)
	}
}
