package kvmtest

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Compile-time assertions of the sizes in linux/kvm.h.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(memoryRegion{})-32]
	_ = [1]struct{}{}[unsafe.Sizeof(regs{})-144]
	_ = [1]struct{}{}[unsafe.Sizeof(segment{})-24]
	_ = [1]struct{}{}[unsafe.Sizeof(dtable{})-16]
	_ = [1]struct{}{}[unsafe.Sizeof(sregs{})-312]
)

// ioctl passes a plain number.
func ioctl(fd int, req, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// SAFETY (the five below): the kernel reads or fills one structure of the size
// that the request encodes, alive across the call.

func setMemory(fd int, m *memoryRegion) error {
	return ioctlPointer(fd, kvmSetMemory, unsafe.Pointer(m))
}
func setRegs(fd int, r *regs) error   { return ioctlPointer(fd, kvmSetRegs, unsafe.Pointer(r)) }
func getSregs(fd int, s *sregs) error { return ioctlPointer(fd, kvmGetSregs, unsafe.Pointer(s)) }
func setSregs(fd int, s *sregs) error { return ioctlPointer(fd, kvmSetSregs, unsafe.Pointer(s)) }
func setIdentityMap(fd int, gpa uint64) error {
	return ioctlPointer(fd, kvmSetIdentityMap, unsafe.Pointer(&gpa))
}

func ioctlPointer(fd int, req uintptr, p unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(p)); errno != 0 {
		return errno
	}
	return nil
}

// addressOf is the address of a mapping.
//
// SAFETY: b is mapped memory, which does not move.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
