// Package sched sets how the kernel schedules the threads that serve faults and
// those that bring the rest in bulk. All of it is for goroutines that are locked
// to a thread and end with it (no runtime.UnlockOSThread), so that no other
// goroutine inherits what was set.
package sched

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// faultNice is the nice value of a fault thread that is not real-time.
	faultNice = -10
	// faultSlice is its slice, the shortest that there is: since Linux 6.12 a
	// waking thread whose slice is shorter than the running one's need not wait for
	// the end of that (PREEMPT_SHORT, kernel/sched/features.h).
	faultSlice = 100 * time.Microsecond
	// faultPriority is the real-time priority, the lowest that there is.
	faultPriority = 1

	// A fault thread is real-time while it uses less than this share of a CPU, in
	// percent, and becomes so again below half of it.
	shareLimit = 50
	// The share is that of at least this long, looked at every lookEvery ticks.
	shareWindow = 20 * time.Millisecond
	lookEvery   = 32
)

// Fault is a thread that faults pass through.
//
// It sleeps nearly always and then must run at once: a fair scheduler lets it
// wait for a thread that works through bulk, because it is owed time, whatever
// the nice values (milliseconds at the 99th percentile, see docs/ARCHITECTURE.md).
// So it is real-time, SCHED_RR, but only while it is what was assumed: one that
// is kept busy, by a storm of faults or by a hostile peer, competes fairly, or it
// would take the CPU from the rest of the host.
type Fault struct {
	realtime bool
	ticks    int
	since    time.Time
	cpu      time.Duration
	refused  error
}

// Raise makes the calling thread a fault thread. It never fails for good: what
// the kernel refuses (CAP_SYS_NICE is needed) is in Refused.
func Raise() *Fault {
	usualSlack()
	f := &Fault{since: time.Now(), cpu: ThreadCPU()}
	if err := f.set(true); err != nil {
		if f.set(false) != nil {
			f.refused = fmt.Errorf("raise a thread's priority: %w (CAP_SYS_NICE allows it)", err)
			return f
		}
		f.refused = fmt.Errorf("real-time priority: %w; nice %d in its place (CAP_SYS_NICE, RLIMIT_RTPRIO or the control group forbids it)", err, faultNice)
	}
	return f
}

// Refused says what the kernel did not permit, nil for nothing.
func (f *Fault) Refused() error { return f.refused }

// Realtime reports how the thread is scheduled at present.
func (f *Fault) Realtime() bool { return f.realtime }

// Tick is called once for each batch that the thread has worked on. It looks at
// the share of the CPU that it takes. On nil it does nothing.
func (f *Fault) Tick() {
	if f == nil {
		return
	}
	if f.ticks++; f.ticks%lookEvery != 0 || f.refused != nil {
		return
	}
	elapsed := time.Since(f.since)
	if elapsed < shareWindow {
		return
	}
	cpu := ThreadCPU()
	f.judge(int((cpu - f.cpu) * 100 / elapsed))
	f.since, f.cpu = f.since.Add(elapsed), cpu
}

// judge changes the scheduling by the share of a CPU, in percent.
func (f *Fault) judge(share int) {
	switch {
	case f.realtime && share > shareLimit:
		f.refused = f.set(false)
	case !f.realtime && share < shareLimit/2:
		f.refused = f.set(true)
	}
}

func (f *Fault) set(realtime bool) error {
	// Reset on fork: a thread that the runtime clones from this one is ordinary.
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	if realtime {
		attr.Policy, attr.Priority = unix.SCHED_RR, faultPriority
	} else {
		attr.Policy, attr.Nice, attr.Runtime = unix.SCHED_NORMAL, faultNice, uint64(faultSlice)
	}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return err
	}
	f.realtime = realtime
	if !realtime {
		usualSlack() // what the kernel gives back is what the thread was born with
	}
	return nil
}

// ThreadCPU is the CPU time of the calling thread; 0 if the kernel does not
// tell, which then never looks busy.
func ThreadCPU() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Lower has the kernel prefer every other thread over the calling one: nice is
// added to what it has.
func Lower(nice int) error {
	usualSlack()
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
