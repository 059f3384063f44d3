package sysmem

import "encoding/binary"

// SameFill reports whether page is one 8-byte word repeated, and that word
// (little-endian; 0 for a page of zeroes). The length must be a multiple of 8
// bytes and not 0, else it is false. A page that is not so is told by its first
// bytes, mostly; a full comparison runs at the speed of memory.
func SameFill(page []byte) (word uint64, same bool) {
	n := len(page)
	if n < 8 || n%8 != 0 {
		return 0, false
	}
	word = binary.LittleEndian.Uint64(page)
	// Most pages differ within their first words, or at their ends: looked at
	// before the call that compares all of it.
	if binary.LittleEndian.Uint64(page[n-8:]) != word || binary.LittleEndian.Uint64(page[n/16*8:]) != word {
		return 0, false
	}
	// Equal to itself moved by one word means that each word equals the next.
	if string(page[8:]) != string(page[:n-8]) {
		return 0, false
	}
	return word, true
}
