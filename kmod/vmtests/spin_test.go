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
	// On a busy machine few threads find a processor to look on: then more touches.
	const pages, few = 8192, 512
	o := newObject(t, pages, nil)
	mem := o.mmap(pages, true)
	d := o.attach(16)
	d.SetSpin(time.Hour) // counts as a millisecond
	r, err := kmod.NewReader(kmod.ReaderConfig{Spin: time.Second}, d.Daemon)
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var buf [16]kmod.Fault
		for {
			n, err := r.Read(buf[:])
			if err != nil {
				wantErr(t, "read", err, kmod.ErrStopped)
				return
			}
			for _, f := range buf[:n] {
				d.fillOnce(f.Page, 5)
			}
		}
	}()
	var st kmod.Stat
	touched := uint64(0)
	for st.Spun == 0 && touched < pages {
		for range few {
			o.check(mem, touched, 5)
			touched++
		}
		st, err = o.c.Stat(o.name)
		must(t, err)
	}
	r.Stop()
	<-done
	must(t, r.Close())
	if st.Spun == 0 || st.Spun+st.Wakes < touched/2 || st.Posted < touched {
		t.Errorf("%+v: nobody found a page before it slept, in %d touches", st, touched)
	}
	t.Logf("%d of %d touches found their page before they slept", st.Spun, touched)
}

// A fault that the daemon has dropped comes again by a wake, a redelivery and for
// the next daemon, also where the thread did not sleep yet.
func TestSpinLosesNothing(t *testing.T) {
	const pages = 300
	o := newObject(t, pages, nil)
	mem := o.mmap(pages, true)
	d := o.attach(16)
	d.SetSpin(time.Millisecond)
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
			d.SetSpin(time.Millisecond)
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
