package floor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The floors block in RawSyscall: the thread keeps its P, which a C program
// would not have to give back and fetch again either. That is sound only
// because these processes run nothing else on it and collect no garbage.

// readFull reads until b is full.
//
// SAFETY: b is alive across the call by the rule for conversions in the argument
// list of a system call (package unsafe, pattern 4), and has len(b) bytes.
func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return errno
		case n == 0:
			return errEnd
		default:
			b = b[n:]
		}
	}
	return nil
}

// writeFull writes all of b.
//
// SAFETY: as readFull.
func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		b = b[n:]
	}
	return nil
}

// addressOf is the address of a mapping, as the ioctls want it.
//
// SAFETY: b is a mapping, which never moves.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
