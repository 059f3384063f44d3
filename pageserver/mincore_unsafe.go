package pageserver

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mincore fills vec, one byte for each base page of mem.
func mincore(mem, vec []byte) error {
	// SAFETY: mem is page-aligned memory of a mapping and vec has a byte for each
	// of its pages (the caller sized it); both outlive the call, and the kernel
	// keeps neither.
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(mem))),
		uintptr(len(mem)), uintptr(unsafe.Pointer(unsafe.SliceData(vec))))
	if errno != 0 {
		return fmt.Errorf("mincore of %d bytes: %w", len(mem), errno)
	}
	return nil
}
