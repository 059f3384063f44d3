package uffd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// SAFETY (all of this file): each pointer is to a structure whose layout
// abi_unsafe.go asserts, alive across the call by the rule for conversions in
// the argument list of a system call (package unsafe, pattern 4); the kernel
// keeps none of them.

func (u *FD) ioctlAPI(arg *rawAPI) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u.fd), reqAPI, uintptr(unsafe.Pointer(arg)))
	return errno
}

func (u *FD) ioctlRegister(arg *rawRegister) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u.fd), reqRegister, uintptr(unsafe.Pointer(arg)))
	return errno
}

func (u *FD) ioctlRange(req uintptr, arg *rawRange) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u.fd), req, uintptr(unsafe.Pointer(arg)))
	return errno
}

func (u *FD) ioctlProtect(arg *rawProtect) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u.fd), reqWriteProtect, uintptr(unsafe.Pointer(arg)))
	return errno
}

func (u *FD) ioctlCopy(arg *rawCopy) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u.fd), reqCopy, uintptr(unsafe.Pointer(arg)))
	return errno
}

// ioctlFill is on the path of every fault and takes microseconds: a raw call,
// see internal/syspoll. (It can sleep for the lock of the process's address
// space, which is held for as long as one of its own calls needs it.)
func (u *FD) ioctlFill(req uintptr, arg *rawFill) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(u.fd), req, uintptr(unsafe.Pointer(arg)))
	return errno
}

// readMsgs reads without ever blocking the thread: fd is non-blocking, and
// RawSyscall spares the scheduler hand-off, which costs more than the call.
func readMsgs(fd int, msgs *[Batch]rawMsg, n int) (int, unix.Errno) {
	r, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(msgs)),
		uintptr(n)*sizeMsg)
	if errno != 0 {
		return 0, errno
	}
	return int(r) / sizeMsg, 0
}
