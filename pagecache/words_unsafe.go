package pagecache

import (
	"fmt"
	"unsafe"
)

// asWords views mem as 64-bit words. The view lives as long as mem does.
func asWords(mem []byte) ([]uint64, error) {
	if len(mem) == 0 {
		return nil, nil
	}
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if uintptr(p)%8 != 0 {
		return nil, fmt.Errorf("residency memory at %p is not aligned to 8 bytes: pass memory from mmap", p)
	}
	// SAFETY: p is aligned (checked above), the length rounds down so that the
	// view stays within mem, and uint64 has no invalid bit patterns.
	return unsafe.Slice((*uint64)(p), len(mem)/8), nil
}
