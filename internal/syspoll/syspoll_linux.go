// Package syspoll lets a thread of the fault path sleep until a descriptor is
// ready without telling Go's scheduler of every sleep.
//
// An ordinary blocking system call announces itself: Go's monitor thread then
// looks after the processor (P) that the thread holds, takes it away, hands it
// to another thread, and is itself put to sleep and woken. Around a wait of a
// hundred microseconds that is several futex calls and naps on the CPU that the
// fault needs. A raw call announces nothing and keeps the P, which is right for
// a short wait and wrong for a long one: a stopped world or a garbage collection
// would wait for it. So the first [Quiet] of a wait is raw, and in it the
// runtime's preemption signal ends the call (ppoll always returns EINTR after a
// signal, signal(7)), upon which the rest of the wait is announced.
package syspoll

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Quiet is the longest unannounced wait. After 10 ms on one processor Go's
// monitor asks a thread to yield anyway (forcePreemptNS of runtime/proc.go).
const Quiet = 10 * time.Millisecond

// places counts the threads that may still begin a quiet wait.
var places atomic.Int32

// Allow sets how many threads may wait quietly at a time: as many processors as
// the process can spare (GOMAXPROCS less the number of CPUs). Until it is called
// none may, and every wait is announced. It is for the start of a process.
func Allow(n int) { places.Store(int32(n)) }

// enter takes a place.
func enter() bool {
	if places.Add(-1) >= 0 {
		return true
	}
	places.Add(1)
	return false
}

func leave() { places.Add(1) }

// Wait waits until one of fds is ready, for timeout at most (negative: for
// ever). It returns as ppoll(2) does; EINTR is possible at any time. It is for
// goroutines that are locked to a thread.
func Wait(fds []unix.PollFd, timeout time.Duration) (int, unix.Errno) {
	if !enter() {
		return announced(fds, timeout)
	}
	defer leave()
	if timeout >= 0 && timeout <= Quiet {
		return quiet(fds, timeout)
	}
	if n, errno := quiet(fds, Quiet); n > 0 || errno != 0 && errno != unix.EINTR {
		return n, errno
	}
	if timeout >= 0 {
		timeout -= Quiet
	}
	return announced(fds, timeout)
}

func announced(fds []unix.PollFd, timeout time.Duration) (int, unix.Errno) {
	var ts unix.Timespec
	var rest *unix.Timespec
	if timeout >= 0 {
		ts = unix.NsecToTimespec(int64(timeout))
		rest = &ts
	}
	// SAFETY: fds and ts live across the call by the rule for conversions in the
	// argument list of a system call (package unsafe, pattern 4); the kernel keeps
	// neither. The same below.
	n, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))),
		uintptr(len(fds)), uintptr(unsafe.Pointer(rest)), 0, 0, 0)
	return int(n), errno
}

// Readable is the quiet part of a wait for one descriptor: it returns once fd
// can be read, was hung up, or Quiet or less has passed. What follows must be a
// call that blocks by itself, and is announced.
func Readable(fd int) {
	if !enter() {
		return
	}
	defer leave()
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	quiet(fds[:], Quiet)
}

func quiet(fds []unix.PollFd, timeout time.Duration) (int, unix.Errno) {
	ts := unix.NsecToTimespec(int64(timeout))
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))),
		uintptr(len(fds)), uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	return int(n), errno
}
