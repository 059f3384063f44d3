package touch

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// access reads the word at addr, or writes it back unchanged.
//
// SAFETY: addr is in a mapping of this process that the other side has asked
// for; a wrong one ends this process, which exists for the test alone.
//
//go:norace
//go:nocheckptr
func access(addr uint64, write bool) {
	if write {
		writeBack(addr)
		return
	}
	v := *(*uint64)(pointer(addr))
	runtime.KeepAlive(v) // or the compiler drops the load
}

// pointer makes a pointer of an address outside the Go heap.
//
// SAFETY: reading the bits of addr as a pointer is what a conversion from
// uintptr does; vet's rule against that is about heap pointers, which move.
func pointer(addr uint64) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&addr)) }

// bytesAt returns n bytes at addr.
//
// SAFETY: as access.
func bytesAt(addr, n uint64) []byte { return unsafe.Slice((*byte)(pointer(addr)), n) }

// addressOf is the address of a mapping.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// bulkSlices views b as count words of 8 bytes, then count of 4.
//
// SAFETY: b is a mapping of at least 12*count bytes, so aligned to a page; both
// slices end within it.
func bulkSlices(b []byte, count uint64) ([]uint64, []uint32) {
	base := unsafe.Pointer(unsafe.SliceData(b))
	return unsafe.Slice((*uint64)(base), count), unsafe.Slice((*uint32)(unsafe.Add(base, count*8)), count)
}

// rawFork forks this process; the child reads the byte at addr and exits with
// it as its status.
//
// SAFETY: the child has one thread, on a copy of this stack, and none of the
// scheduler's threads: it calls no function that may grow the stack, allocate or
// block in the runtime, so only RawSyscall, and a load.
//
//go:norace
//go:nocheckptr
func rawFork(addr uint64) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := (*byte)(pointer(addr))
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	if pid == 0 {
		for {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(*p), 0, 0)
		}
	}
	return int(pid), nil
}
