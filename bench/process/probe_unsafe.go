package process

import "unsafe"

const (
	headerBytes = 4096
	// binCount bins of a millisecond are ten minutes.
	binCount = 600_000
	// gapCount stalls are more than a process has in ten minutes of demand faults.
	gapCount = 1 << 20
)

// header is the start of a probe's file. Every field is atomic; the worker
// writes those of the second group, the harness those of the first.
type header struct {
	stop, run, verify uint32
	_                 uint32

	ready, stopped, verified, _ uint32
	start                       int64 // ns of the first bin
	last                        int64 // ns of the last operation
	touches                     uint64
	bad                         uint64
	missing                     int64
	gaps                        uint64 // noted; beyond gapCount they are only counted
	operations                  uint64
}

// Gap is a stall of the process: no operation ended between From and To, in ns
// since 1970.
type Gap struct{ From, To int64 }

var _ [headerBytes - unsafe.Sizeof(header{})]struct{}

// probeBytes is the size of a probe's file for so many pages.
func probeBytes(pages int) int64 {
	return headerBytes + binCount*4 + gapCount*int64(unsafe.Sizeof(Gap{})) + int64(pages)*4
}

// views are the parts of a mapped probe.
//
// SAFETY: b is a mapping of probeBytes(pages) bytes, aligned to a page; the parts
// follow each other, each at a multiple of its alignment, and hold no pointers.
func views(b []byte, pages int) (h *header, bins []uint32, gaps []Gap, want []uint32) {
	base := unsafe.Pointer(unsafe.SliceData(b))
	h = (*header)(base)
	at := uintptr(headerBytes)
	gaps = unsafe.Slice((*Gap)(unsafe.Add(base, at)), gapCount)
	at += gapCount * unsafe.Sizeof(Gap{})
	bins = unsafe.Slice((*uint32)(unsafe.Add(base, at)), binCount)
	at += binCount * 4
	return h, bins, gaps, unsafe.Slice((*uint32)(unsafe.Add(base, at)), pages)
}

// addressOf is the address of a mapping.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
