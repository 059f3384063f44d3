package uffd_test

import "unsafe"

// address is the address of a mapping.
//
// SAFETY: b is mapped memory, which does not move.
func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
