//go:build kmodvm

package vmtests

import (
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/kmod"
)

// A page that comes while the thread still looks for it costs no sleep: nobody has
// to be woken.
func TestSpinFindsThePage(t *testing.T) {
	// On a busy machine pages come late, and then nobody looks for them any more: a new
	// daemon is believed to be a fast one.
	const pages, few = 4096, 128
	o := newObject(t, pages, nil)
	mem := o.mmap(pages, true)
	var st kmod.Stat
	touched := uint64(0)
	for st.Spun == 0 && touched < pages {
		d := o.attach(16)
		d.SetSpin(time.Hour, time.Hour) // counts as a millisecond
		stop := d.serve(5)
		for range few {
			o.check(mem, touched, 5)
			touched++
		}
		stop()
		d.close()
		var err error
		st, err = o.c.Stat(o.name)
		must(t, err)
	}
	if st.Spun == 0 || st.Spun+st.Wakes < touched/2 || st.Posted < touched {
		t.Errorf("%+v: nobody found a page before it slept, in %d touches", st, touched)
	}
	t.Logf("%d of %d touches found their page before they slept", st.Spun, touched)
}

// Nobody looks for pages that have come late of late: the waiter bit is set by the
// time that the fault is reported, which is so only of a thread that goes to sleep.
func TestSpinStops(t *testing.T) {
	const pages = 32
	o := newObject(t, pages, nil)
	mem := o.mmap(pages, true)
	d := o.attach(16)
	d.SetSpin(200*time.Microsecond, 200*time.Microsecond)
	asleep := 0
	for p := range uint64(pages) {
		done := peeking(mem, p)
		d.faults(o.ctx, 1)
		if d.Waiting(p) {
			asleep++
		} else if p >= pages/2 {
			t.Errorf("page %d is looked for, though each of those before took a millisecond", p)
		}
		time.Sleep(time.Millisecond)
		d.fill(p, 1, 6)
		must(t, o.await(done))
	}
	t.Logf("%d of %d threads went to sleep at once", asleep, pages)
}

// A fault that the daemon has dropped comes again by a wake, a redelivery and for
// the next daemon, also where the thread did not sleep yet.
func TestSpinLosesNothing(t *testing.T) {
	const pages = 300
	o := newObject(t, pages, nil)
	mem := o.mmap(pages, true)
	d := o.attach(16)
	d.SetSpin(time.Millisecond, 0)
	for p := range uint64(pages) {
		done := peeking(mem, p)
		if f := d.faults(o.ctx, 1)[0]; f.Page != p {
			t.Fatalf("fault %+v, want page %d", f, p)
		}
		// From at once to after the spin has ended.
		time.Sleep(time.Duration(p%10) * 200 * time.Microsecond)
		switch p % 3 {
		case 0:
			must(t, d.Wake(p, 1))
		case 1:
			must(t, d.Redeliver())
		case 2:
			d.close()
			d = o.attach(16)
			d.SetSpin(time.Millisecond, 0)
		}
		if f := d.faults(o.ctx, 1)[0]; f.Page != p {
			t.Fatalf("fault %+v, want page %d again", f, p)
		}
		d.fill(p, 1, 6)
		must(t, o.await(done))
		// What came twice because both looked at once is of no more use.
		for d.Ring().Read(make([]kmod.Fault, 4)) > 0 {
		}
		o.check(mem, p, 6)
	}
	if st, err := o.c.Stat(o.name); err != nil || st.Posted < 2*pages {
		t.Errorf("%+v, %v", st, err)
	}
}
