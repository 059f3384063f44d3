//go:build kmodvm

package vmtests

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Holes in the middle of pages of 2 MiB: in resident memory they read as zero, in a
// missing page they change nothing, and what is around them stays.
func TestHugeObjectHoles(t *testing.T) {
	const pages = 4
	o := newHugeObject(t, pages, nil)
	d := o.attach(16)
	d.fill(0, 3, 3)
	mem := o.mmap(pages*perHuge, true)
	for p := range uint64(3) {
		o.check(mem, p*perHuge, 3) // each is mapped as one
	}
	hole := func(at uint64) bool { return at >= perHuge/2 && at < perHuge+perHuge/4 }
	must(t, unix.Madvise(mem[perHuge/2*pageSize:(perHuge+perHuge/4)*pageSize], unix.MADV_REMOVE))
	// As the daemon does: a page in the middle of one, and of one that is missing.
	for _, at := range []uint64{2*perHuge + 100, 3*perHuge + 100} {
		must(t, unix.Fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(at*pageSize), pageSize))
	}
	zero := touchWord(make([]byte, pageSize))
	for at := uint64(0); at < 3*perHuge; at += 25 {
		if !hole(at) && at != 2*perHuge+100 {
			o.check(mem, at, 3)
		} else if b, err := peek(mem, at); err != nil || touchWord(b) != zero {
			t.Errorf("page %d, in a hole, does not read as zero (%v)", at, err)
		}
	}
	must(t, poke(mem, perHuge/2+1, 5)) // the hole takes memory again
	if d.alias[(perHuge/2+1)*pageSize] != 5 {
		t.Error("the alias does not have what was written into a hole")
	}
	done := peeking(mem, 3*perHuge+100)
	if f := d.faults(o.ctx, 1)[0]; f.Page != 3 {
		t.Errorf("fault %+v, want page 3", f)
	}
	d.fill(3, 1, 4)
	must(t, o.await(done))
	o.check(mem, 3*perHuge+100, 4)
}

// touchAll has threads touch all of an object, one part of each page each time, until
// stop; errors other than those of memory that is gone are the test's.
func touchAll(t *testing.T, mem []byte, pages, seed uint64, gone bool) (touches *atomic.Uint64, stop func()) {
	touches = new(atomic.Uint64)
	var ended atomic.Bool
	var wg sync.WaitGroup
	for k := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(k, seed))
			for !ended.Load() {
				at := rng.Uint64N(pages * perHuge)
				switch b, err := peek(mem, at); {
				case err == nil && touchWord(b) != wordOf(at, seed):
					t.Errorf("page %d holds something else", at)
					return
				case err != nil && !(gone && err == unix.EFAULT):
					t.Errorf("page %d: %v", at, err)
					return
				}
				touches.Add(1)
			}
		})
	}
	stop = func() { ended.Store(true); wg.Wait() }
	t.Cleanup(stop)
	return touches, stop
}

// Objects shrink and go while threads wait for their pages, and pages come: nobody is
// left asleep, nothing is mapped beyond the end, and the memory is free afterwards.
func TestHugeObjectGoesUnderLoad(t *testing.T) {
	const pages = 4
	before := shmemHuge(t)
	for round := range uint64(12) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			o := newHugeObject(t, pages, nil)
			mem := o.mmap(pages*perHuge, true)
			d := o.attach(16)
			end := d.serve(round)
			touches, stop := touchAll(t, mem, pages, round, true)
			some := func() {
				n := touches.Load()
				o.until("threads go on", func() bool { return touches.Load() >= n+4 })
			}
			if round%3 > 0 {
				some()
			}
			if round%2 == 0 {
				must(t, o.c.Shrink(o.name, hugeSize))
				_, err := peek(mem, perHuge)
				wantErr(t, "beyond the new end", err, unix.EFAULT)
				some()
				o.check(mem, perHuge-1, round)
			}
			must(t, o.c.Destroy(o.name))
			some()
			stop()
			end()
		})
	}
	o := newHugeObject(t, 1, nil) // for its deadline
	o.until("the memory is freed", func() bool { return shmemHuge(t) <= before })
}

// Huge pages are split and go to the swap while threads touch them and the daemon
// writes more of them.
func TestHugeObjectUnderPressure(t *testing.T) {
	swapOn(t)
	const pages = 4
	o := newHugeObject(t, pages, nil)
	mem := o.mmap(pages*perHuge, true)
	d := o.attach(16)
	d.serve(8)
	touches, stop := touchAll(t, mem, pages, 8, false)
	out := 0
	for range 12 {
		n := touches.Load()
		o.until("threads go on", func() bool { return touches.Load() >= n+8 })
		// Pages that are mapped twice are left alone.
		must(t, unix.Madvise(d.alias, unix.MADV_DONTNEED))
		must(t, unix.Madvise(mem, unix.MADV_PAGEOUT))
		out = max(out, swapped(t, mem))
	}
	stop()
	if out < perHuge/2 {
		t.Errorf("at most %d pages of %d were in the swap", out, pages*perHuge)
	}
	for at := uint64(0); at < pages*perHuge; at += 31 {
		o.check(mem, at, 8)
	}
	if st, err := o.c.Stat(o.name); err != nil || st.Killed != 0 {
		t.Errorf("%+v (%v)", st, err)
	}
}
