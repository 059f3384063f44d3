//go:build kmodvm

package vmtests

import "unsafe"

func addressOf(b []byte) uintptr {
	// SAFETY: only the number is used; b is a mapping, which does not move.
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}
