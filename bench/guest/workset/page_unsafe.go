package workset

import "unsafe"

// PageBytes is the size of a page of the set, in bytes.
const PageBytes = 4096

const (
	headerBytes  = 32
	payloadBytes = PageBytes - headerBytes
)

// page is the layout of one page. number is written under the
// page's stripe, atomically; touches is atomic and outside the checksum; the
// rest is guarded by the page's stripe.
type page struct {
	number     uint64
	generation uint32
	touches    uint32
	seed       uint64
	sum        uint64
	payload    [payloadBytes]byte
}

// The two arrays have a negative length, and do not compile, unless a page is
// exactly PageBytes long.
var (
	_ [PageBytes - unsafe.Sizeof(page{})]struct{}
	_ [unsafe.Sizeof(page{}) - PageBytes]struct{}
)

// pagesOf views mem, whose length is a multiple of PageBytes, as pages.
func pagesOf(mem []byte) []page {
	// SAFETY: mem comes from mmap, so it is page-aligned, lies outside the Go
	// heap, and stays mapped until Close; page holds no pointers.
	return unsafe.Slice((*page)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/PageBytes)
}
