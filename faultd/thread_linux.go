package faultd

import (
	"runtime"

	"github.com/pagewarp/pagewarp/internal/sched"
	"github.com/pagewarp/pagewarp/internal/syspoll"
)

// Tune sets GOMAXPROCS to the number of CPUs and blocking on top, the number of
// threads that sleep in system calls (fault readers, channels), and returns the
// new value. After such a call a goroutine needs a P again; with every P held by
// a worker that decodes, it would wait for a scheduler slice of 10 ms, which is
// where a latency tail comes from. With Ps in reserve it goes on at once, and the
// kernel decides who gets the CPU; and as many threads as there are Ps in reserve
// sleep without a word to Go's scheduler (internal/syspoll), and the runtime's
// monitor thread wakes more rarely ([sched.QuietMonitor]). It never lowers
// GOMAXPROCS. Call it once in a process, with the sum over all engines.
func Tune(blocking int) int {
	n := max(runtime.NumCPU()+blocking, runtime.GOMAXPROCS(0))
	runtime.GOMAXPROCS(n)
	syspoll.Allow(min(blocking, n-runtime.NumCPU()))
	// Refused without CAP_SYS_NICE: then it takes the CPU time that it always did.
	sched.QuietMonitor(sched.Monitor)
	return n
}

// BulkNice is what precache threads add to their nice value, at both ends. The
// scheduler then gives a thread on the fault path, or a vCPU, three times the
// share of a precache thread: on two busy cores this halved the 99th percentile
// of demand faults and left the drain's length as it was.
const BulkNice = 5

// faultThread makes the calling goroutine's thread one that faults pass through,
// for as long as both live. What is refused is logged.
func (e *Engine) faultThread(what string) *sched.Fault {
	runtime.LockOSThread() // for good: no other goroutine may inherit its scheduling
	if !e.cfg.Priority {
		return nil
	}
	t := sched.Raise()
	if err := t.Refused(); err != nil {
		e.cfg.Log.Info("thread keeps a lower priority", "thread", what, "err", err)
	}
	return t
}
