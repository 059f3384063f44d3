//go:build kmodvm

package vmtests

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// swap is swapon(2) without flags, or swapoff(2).
func swap(call uintptr, path *byte) error {
	// SAFETY: path ends with a zero, and the kernel keeps no reference to it.
	if _, _, errno := unix.Syscall(call, uintptr(unsafe.Pointer(path)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
