//go:build kmodvm

package vmtests

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/pagewarp/pagewarp/kmod"
)

// One call brings in no more faults than the ring has entries, however fast a consumer
// makes room: the rest is for the next call.
func TestFlushIsBounded(t *testing.T) {
	const pages, entries, times = 256, 16, 64
	o := newObject(t, pages, nil)
	mem := o.mmap(pages, true)
	d := o.attach(entries)
	var peeks []<-chan error
	for p := range uint64(pages) {
		peeks = append(peeks, peeking(mem, p))
	}
	o.until("faults that found the ring full", func() bool { return d.Ring().Overflows() == pages-entries })
	var stop atomic.Bool
	reads, done := make(chan bool), make(chan bool)
	go func() {
		defer close(done)
		pin(t, consumerCPU) // not where the calls are made
		var buf [entries]kmod.Fault
		d.Ring().Read(buf[:])
		close(reads)
		for !stop.Load() {
			d.Ring().Read(buf[:])
		}
	}()
	<-reads
	most := make(chan uint64)
	go func() {
		pin(t, threadCPU)
		var before, n uint64
		for range times {
			err := d.Redeliver()
			st, serr := o.c.Stat(o.name)
			if err = errors.Join(err, serr); err != nil {
				t.Error(err)
				break
			}
			n, before = max(n, st.Redelivered-before), st.Redelivered
		}
		most <- n
	}()
	n := <-most
	stop.Store(true)
	<-done
	// Twice as many: the last of the threads may bring in others as it reports its own.
	if n == 0 || n > 2*entries {
		t.Errorf("one call brought in %d faults, into a ring of %d", n, entries)
	}
	// Nothing is lost by that.
	must(t, d.Redeliver())
	left := make(map[uint64]bool, pages)
	for p := range uint64(pages) {
		left[p] = true
	}
	for len(left) > 0 {
		for _, f := range d.faults(o.ctx, 1) {
			delete(left, f.Page)
		}
	}
	d.fill(0, pages, 3)
	for _, c := range peeks {
		must(t, o.await(c))
	}
}
