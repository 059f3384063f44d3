package tcp

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// appendIovec appends p to iov; an empty p is left out.
func appendIovec(iov []unix.Iovec, p []byte) []unix.Iovec {
	if len(p) == 0 {
		return iov
	}
	v := unix.Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	return append(iov, v)
}

// msgIO runs recvmsg or sendmsg on fd. block says that the call may sleep, so
// that the scheduler must be told.
func msgIO(nr uintptr, fd uintptr, iov []unix.Iovec, flags int, block bool) (int, unix.Errno) {
	var m unix.Msghdr
	m.Iov = unsafe.SliceData(iov)
	m.SetIovlen(len(iov))
	var n uintptr
	var e unix.Errno
	// SAFETY: m and what iov points to stay alive and in place until the call
	// returns (the conversion is in the call's argument list, iov is held by the
	// caller), and the kernel does not keep either.
	if block {
		n, _, e = syscall.Syscall(nr, fd, uintptr(unsafe.Pointer(&m)), uintptr(flags))
	} else {
		n, _, e = syscall.RawSyscall(nr, fd, uintptr(unsafe.Pointer(&m)), uintptr(flags))
	}
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// tcpInfo reads what the kernel knows of a connection. On an error info stays as
// it is.
func tcpInfo(fd uintptr, info *unix.TCPInfo) {
	size := uint32(unix.SizeofTCPInfo)
	// SAFETY: info and size live across the call (the conversions are in its
	// argument list), size is that of info, and the kernel keeps neither.
	syscall.RawSyscall6(unix.SYS_GETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(&size)), 0)
}

// adjacent says whether b starts where a ends.
func adjacent(a, b []byte) bool {
	// SAFETY: addresses are compared, nothing is read through them.
	return uintptr(unsafe.Pointer(unsafe.SliceData(a)))+uintptr(len(a)) == uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}

// join returns the n bytes that start with a. The caller has seen by adjacent
// that slices of one reservation follow each other over that length.
func join(a []byte, n int) []byte {
	// SAFETY: the caller holds slices that cover these n bytes without a gap; all
	// of them live until the reservation ends.
	return unsafe.Slice(unsafe.SliceData(a), n)
}
