package main

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
)

// niceness of the memory workers, so that the web server comes first.
const niceness = 5

const (
	churnBatch = 16
	touchBatch = 1024
)

// lowerPriority ties the caller to its thread for good and lowers the thread's
// priority; for a thread, not a process, as Linux's setpriority(2) has it.
func lowerPriority() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), niceness)
}

// churn verifies and rewrites one random page after the other: rate pages a
// second, or for rate 0 as many as it can with pauses as long as the work.
func churn(set *workset.Set, rate int) {
	lowerPriority()
	r := workset.NewRandom(1)
	next := time.Now()
	for {
		begin := time.Now()
		for range churnBatch {
			set.Rewrite(r.Below(set.Pages()))
		}
		if rate == 0 {
			time.Sleep(time.Since(begin))
			continue
		}
		// A schedule, not a pause, keeps the rate; a backlog after a stop of
		// the VM is dropped, or it would come as a burst.
		next = next.Add(churnBatch * time.Second / time.Duration(rate))
		if wait := time.Until(next); wait > 0 {
			time.Sleep(wait)
		} else if wait < -time.Second {
			next = time.Now()
		}
	}
}

// touch touches pages in the given order for ever, as fast as it goes.
func touch(set *workset.Set, next workset.Order) {
	lowerPriority()
	batch := make([]int, touchBatch)
	for {
		next(batch)
		set.TouchAll(batch)
	}
}

// idleTick is how often an idle guest counts that it runs.
const idleTick = 10 * time.Millisecond

// idle does nothing but count its ticks; those that were missed are not made
// up for.
func idle(count *atomic.Uint64) {
	for range time.Tick(idleTick) {
		count.Add(1)
	}
}
