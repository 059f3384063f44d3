package faultd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// addressOf returns the address of b.
func addressOf(b []byte) uint64 {
	// SAFETY: the address goes to the kernel as the source of UFFDIO_COPY while b
	// is alive; b is memory of a mapping, which does not move.
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}

// closeChild closes the userfaultfd of a forked child, which is not served: the
// child then finds zeroes where pages were absent.
func closeChild(fd int32) error { return unix.Close(int(fd)) }

// joined returns the n bytes of pages that lie side by side in memory; the first of them
// is enough.
func joined(pages [][]byte, n int) []byte {
	// SAFETY: the caller's pages are consecutive parts of one mapping, a staging buffer or
	// an alias, that has n bytes from the first of them on.
	return unsafe.Slice(unsafe.SliceData(pages[0]), n)
}
