package faultd

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// faultNice is the nice value of threads on the fault path.
const faultNice = -10

// Tune sets GOMAXPROCS to the number of CPUs and blocking on top, the number of
// threads that sleep in system calls on the fault path (readers, blocking demand
// channels), and returns the new value. After such a call a goroutine needs a P
// again; with every P held by a worker that decodes, it would wait for a
// scheduler slice of 10 ms, which is where a latency tail comes from. With Ps in
// reserve it goes on at once, and the kernel decides who gets the CPU. It never
// lowers the value. Call it once in a process, with the sum over all engines.
func Tune(blocking int) int {
	n := max(runtime.NumCPU()+blocking, runtime.GOMAXPROCS(0))
	runtime.GOMAXPROCS(n)
	return n
}

// raisePriority has the kernel prefer the calling thread, which must be locked
// and end with its goroutine, over the workers. What is refused is logged.
func (e *Engine) raisePriority(what string) {
	if !e.cfg.Priority {
		return
	}
	if err := RaisePriority(); err != nil {
		e.cfg.Log.Info("thread keeps its priority", "thread", what, "err", err)
	}
}

// RaisePriority takes faultNice from the nice value of the calling thread, which
// must be locked and end with its goroutine: it is for those that a fault passes
// through, at either end. Real-time scheduling had shorter tails, but a fault
// path that is busy by mistake or malice then stops the whole host.
func RaisePriority() error {
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), faultNice); err != nil {
		return fmt.Errorf("raise a thread's priority to nice %d: %w (CAP_SYS_NICE allows it)", faultNice, err)
	}
	return nil
}

// BulkNice is what precache threads add to their nice value, at both ends. The
// scheduler then gives a thread on the fault path, or a vCPU, three times the
// share of a precache thread: on two busy cores this halved the 99th percentile
// of demand faults and left the drain's length as it was.
const BulkNice = 5

// LowerPriority has the kernel prefer every other thread over the calling one,
// which must be locked and end with its goroutine. nice is added to what it has.
func LowerPriority(nice int) error {
	have, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
	if err != nil {
		return fmt.Errorf("priority of a thread: %w", err)
	}
	have = 20 - have // getpriority(2): the raw system call returns 20 - nice
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), min(have+nice, 19)); err != nil {
		return fmt.Errorf("lower a thread's priority to nice %d: %w", have+nice, err)
	}
	return nil
}
