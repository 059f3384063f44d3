package kmod

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The layouts of driver/main.c's static_asserts: an array of negative length
// does not compile.
var (
	_ [64 - unsafe.Sizeof(rawInfo{})]byte
	_ [unsafe.Sizeof(rawInfo{}) - 64]byte
	_ [136 - unsafe.Sizeof(rawCreate{})]byte
	_ [unsafe.Sizeof(rawCreate{}) - 136]byte
	_ [40 - unsafe.Offsetof(rawInfo{}.hugePageSize)]byte
	_ [unsafe.Offsetof(rawInfo{}.hugePageSize) - 40]byte
	_ [64 - unsafe.Offsetof(rawCreate{}.bytes)]byte
	_ [104 - unsafe.Offsetof(rawCreate{}.pageSize)]byte
	_ [unsafe.Offsetof(rawCreate{}.pageSize) - 104]byte
	_ [unsafe.Offsetof(rawCreate{}.deadlineMS) - 92]byte
	_ [92 - unsafe.Offsetof(rawCreate{}.deadlineMS)]byte
	_ [80 - unsafe.Sizeof(rawName{})]byte
	_ [unsafe.Sizeof(rawName{}) - 80]byte
	_ [80 - unsafe.Sizeof(rawShrink{})]byte
	_ [unsafe.Sizeof(rawShrink{}) - 80]byte
	_ [80 - unsafe.Sizeof(rawFreeze{})]byte
	_ [unsafe.Sizeof(rawFreeze{}) - 80]byte
	_ [168 - unsafe.Sizeof(rawStat{})]byte
	_ [unsafe.Sizeof(rawStat{}) - 168]byte
	_ [88 - unsafe.Offsetof(rawStat{}.faults)]byte
	_ [unsafe.Offsetof(rawStat{}.faults) - 88]byte
	_ [144 - unsafe.Offsetof(rawStat{}.pageSize)]byte
	_ [unsafe.Offsetof(rawStat{}.pageSize) - 144]byte
	_ [104 - unsafe.Sizeof(rawAttach{})]byte
	_ [unsafe.Sizeof(rawAttach{}) - 104]byte
	_ [72 - unsafe.Offsetof(rawAttach{}.fd)]byte
	_ [112 - unsafe.Sizeof(rawLayout{})]byte
	_ [unsafe.Sizeof(rawLayout{}) - 112]byte
	_ [unsafe.Offsetof(rawLayout{}.waitersOff) - 64]byte
	_ [80 - unsafe.Offsetof(rawLayout{}.pageSize)]byte
	_ [unsafe.Offsetof(rawLayout{}.pageSize) - 80]byte
	_ [16 - unsafe.Sizeof(rawAlias{})]byte
	_ [unsafe.Sizeof(rawAlias{}) - 16]byte
	_ [32 - unsafe.Sizeof(rawWake{})]byte
	_ [unsafe.Sizeof(rawWake{}) - 32]byte
	_ [32 - unsafe.Sizeof(rawFault{})]byte
	_ [unsafe.Sizeof(rawFault{}) - 32]byte
	_ [unsafe.Offsetof(rawFault{}.seq) - 28]byte
	_ [64 - unsafe.Sizeof(rawProducer{})]byte
	_ [unsafe.Sizeof(rawProducer{}) - 64]byte
	_ [64 - unsafe.Sizeof(rawConsumer{})]byte
	_ [unsafe.Sizeof(rawConsumer{}) - 64]byte
)

// ioctl calls with a structure of the size that nr names, or none.
func ioctl[T any](fd int, nr uintptr, arg *T) error {
	for {
		// SAFETY: arg is nil or points to a T, whose size is in nr (asserted above
		// together with abi.go); the kernel keeps no reference to it.
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), nr, uintptr(unsafe.Pointer(arg)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// ioctlShort is ioctl for a call that never sleeps: telling Go's scheduler of it costs
// more than the call.
func ioctlShort[T any](fd int, nr uintptr, arg *T) error {
	for {
		// SAFETY: as in ioctl.
		_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), nr, uintptr(unsafe.Pointer(arg)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// words views a mapping as 64-bit words.
func words(b []byte) []uint64 {
	// SAFETY: b is a mapping, page-aligned and of whole pages; it outlives the
	// view (Daemon.Close drops both).
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}
