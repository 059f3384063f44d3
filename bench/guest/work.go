package main

import (
	"math/rand/v2"
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

// touch touches random pages for ever, as fast as it goes.
func touch(set *workset.Set) {
	lowerPriority()
	r := workset.NewRandom(2)
	for {
		set.Touch(r, touchBatch)
	}
}

// sweep touches one page after the other, from the first to the last and again.
func sweep(set *workset.Set) {
	lowerPriority()
	batch := make([]int, touchBatch)
	for next := 0; ; {
		for i := range batch {
			batch[i] = next
			if next++; next == set.Pages() {
				next = 0
			}
		}
		set.TouchAll(batch)
	}
}

// hotSet touches pages whose popularity follows Zipf's law; the popular ones
// lie scattered over the set.
func hotSet(set *workset.Set, exponent float64) {
	lowerPriority()
	ranks := newRanks(set.Pages(), exponent)
	batch := make([]int, touchBatch)
	for {
		for i := range batch {
			batch[i] = ranks.draw()
		}
		set.TouchAll(batch)
	}
}

// ranks draws pages by Zipf's law.
type ranks struct {
	zipf   *rand.Zipf
	pages  uint64
	stride uint64 // has no divisor in common with pages: rank to page is one to one
}

func newRanks(pages int, exponent float64) *ranks {
	r := &ranks{pages: uint64(pages), stride: uint64(float64(pages)*0.618) | 1}
	for gcd(r.stride, r.pages) != 1 {
		r.stride += 2
	}
	r.zipf = rand.NewZipf(rand.New(rand.NewPCG(3, 0)), exponent, 1, uint64(pages-1))
	return r
}

func (r *ranks) draw() int { return int(r.zipf.Uint64() * r.stride % r.pages) }

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
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
