//go:build kmodvm

package vmtests

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func addressOf(b []byte) uintptr {
	// SAFETY: only the number is used; b is a mapping, which does not move.
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}

func ioctlBytes(fd int, nr uint32, arg []byte) {
	// SAFETY: arg is longer than the structure of any call.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(nr), uintptr(unsafe.Pointer(unsafe.SliceData(arg))))
}
