package inject

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ptraceGetSigmask = 0x420a // PTRACE_GETSIGMASK
	ptraceSetSigmask = 0x420b // PTRACE_SETSIGMASK
)

// sigmask reads or writes the blocked signals of a stopped thread.
//
// SAFETY: the kernel reads or writes the 8 bytes of its sigset_t at mask, which
// is alive across the call.
func sigmask(req uintptr, tid int, mask *uint64) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, req, uintptr(tid), unsafe.Sizeof(*mask),
		uintptr(unsafe.Pointer(mask)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
