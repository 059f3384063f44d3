//go:build kmodvm

package vmtests

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sched"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

// What looks where other threads want the same CPU. Of the VM's CPUs these tests use two.
const (
	consumerCPU = 0
	threadCPU   = 1
	crowdPages  = 4096
	// A new daemon comes after so many touches: on a busy machine pages come late, then
	// nobody looks, and a new one is believed to be fast.
	crowdBatch = 128
)

// pin binds the calling thread, which ends with its goroutine, to a CPU.
func pin(t testing.TB, cpu int) {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.Error(err)
	}
}

// procOn starts a touch process all of whose threads are bound to a CPU.
func (o *object) procOn(cpu int) *touch.Proc {
	o.t.Helper()
	var p *touch.Proc
	done := make(chan error)
	go func() {
		pin(o.t, cpu)
		var err error
		p, err = touch.Start(o.ctx)
		done <- err
	}()
	must(o.t, <-done)
	o.t.Cleanup(p.Kill)
	return p
}

// crowd has another thread want a CPU all the time until the test ends: one that touches
// a page that is there. It returns once that runs.
func (o *object) crowd(cpu int) {
	o.t.Helper()
	p := o.procOn(cpu)
	reg, err := p.MapPrivate(pageSize)
	must(o.t, err)
	done := make(chan error, 1)
	go func() {
		_, _, err := reg.TouchRandom(0, 1, true, 1, 2*patience, 1, 1)
		done <- err
	}()
	o.t.Cleanup(func() { p.Kill(); wantErr(o.t, "the thread that wants the CPU", <-done, touch.ErrDead) })
	// clock_getcpuclockid(3): the CPU time of a process.
	clock := int32(^p.Pid()<<3 | 2)
	o.until("another thread runs", func() bool {
		var ts unix.Timespec
		must(o.t, unix.ClockGettime(clock, &ts))
		return ts.Nano() > int64(100*time.Millisecond)
	})
}

// serveOn serves count faults, on a CPU, by a thread with the daemon's priority, and
// returns how often that thread went to sleep.
func (d *daemon) serveOn(cpu int, seed uint64, stop <-chan struct{}) <-chan int64 {
	r, err := kmod.NewReader(kmod.ReaderConfig{}, d.Daemon)
	must(d.t, err)
	go func() { <-stop; r.Stop() }()
	slept := make(chan int64, 1)
	go func() {
		pin(d.t, cpu)
		if err := sched.Raise().Refused(); err != nil {
			d.t.Error(err)
		}
		var before, after unix.Rusage
		err := unix.Getrusage(unix.RUSAGE_THREAD, &before)
		var buf [16]kmod.Fault
		for err == nil {
			var n int
			if n, err = r.Read(buf[:]); err != nil {
				break
			}
			for _, f := range buf[:n] {
				d.fillOnce(f.Page, seed)
			}
		}
		if !errors.Is(err, kmod.ErrStopped) {
			d.t.Error(err)
		}
		err = unix.Getrusage(unix.RUSAGE_THREAD, &after)
		if err = errors.Join(err, r.Close()); err != nil {
			d.t.Error(err)
		}
		slept <- after.Nvcsw - before.Nvcsw
	}()
	return slept
}

// inBatches has a thread on one CPU touch pages that a consumer on another brings, with a
// new daemon for each batch, until ok, which gets how often the consumer slept, says so.
func (o *object) inBatches(consumer int, ok func(st kmod.Stat, slept int64) bool) (touched uint64, last kmod.Stat, slept int64) {
	o.t.Helper()
	p := o.procOn(threadCPU)
	fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(o.t, err)
	defer unix.Close(fd)
	reg, err := p.MapShared(fd, crowdPages*pageSize)
	must(o.t, err)
	for touched < crowdPages {
		d := o.attach(16)
		d.SetSpin(time.Hour, time.Hour) // counts as a millisecond
		stop := make(chan struct{})
		end := d.serveOn(consumer, 5, stop)
		_, err := reg.TouchAll(touched, crowdBatch, false, 1)
		must(o.t, err)
		bad, err := reg.Verify(touched, crowdBatch, 5)
		must(o.t, err)
		if bad != 0 {
			o.t.Errorf("%d of the pages from %d on hold something else than they should", bad, touched)
		}
		close(stop)
		slept = <-end
		d.close()
		touched += crowdBatch
		last, err = o.c.Stat(o.name)
		must(o.t, err)
		if ok(last, slept) {
			break
		}
	}
	return touched, last, slept
}

// A thread looks for its page though another wants its CPU, while pages come sooner than
// it could be woken.
func TestSpinInACrowd(t *testing.T) {
	o := newObject(t, crowdPages, nil)
	o.crowd(threadCPU)
	touched, st, _ := o.inBatches(consumerCPU, func(st kmod.Stat, _ int64) bool { return st.Spun >= crowdBatch/4 })
	if st.Spun < crowdBatch/4 {
		t.Errorf("%+v: threads found %d pages before they slept, in %d touches", st, st.Spun, touched)
	}
	t.Logf("%d of %d touches found their page before they slept", st.Spun, touched)
}

// It does not where its page could only come by the CPU that it keeps busy.
func TestNoSpinOnTheConsumersCPU(t *testing.T) {
	o := newObject(t, crowdPages, nil)
	o.crowd(threadCPU)
	touched, st, _ := o.inBatches(threadCPU, func(st kmod.Stat, _ int64) bool { return st.Faults >= 2*crowdBatch })
	if st.Spun != 0 || st.Wakes < touched {
		t.Errorf("%+v: %d touches, none of which should have found a page before it slept", st, touched)
	}
}

// The consumer looks for faults though another thread wants its CPU, while they come
// sooner than it could be woken.
func TestPollInACrowd(t *testing.T) {
	o := newObject(t, crowdPages, nil)
	o.crowd(consumerCPU)
	touched, st, slept := o.inBatches(consumerCPU, func(_ kmod.Stat, slept int64) bool { return slept < crowdBatch/2 })
	if slept >= crowdBatch/2 {
		t.Errorf("%+v: the consumer slept %d times for the last %d of %d faults", st, slept, crowdBatch, touched)
	}
	t.Logf("the consumer slept %d times for the last %d of %d faults", slept, crowdBatch, touched)
}

// In a crowd nobody looks for pages that take longer than a sleep costs, though alone they
// would be looked for: it goes to sleep at once, as TestSpinStops.
func TestSpinStopsInACrowd(t *testing.T) {
	const pages = 64
	o := newObject(t, pages, nil)
	o.crowd(threadCPU)
	mem := o.mmap(pages, true)
	d := o.attach(16)
	d.SetSpin(time.Hour, time.Hour)
	asleep := 0
	for p := range uint64(pages) {
		done := make(chan error, 1)
		go func() {
			pin(t, threadCPU)
			_, err := peek(mem, p)
			done <- err
		}()
		d.faults(o.ctx, 1)
		if d.Waiting(p) && p >= pages/2 {
			asleep++
		}
		time.Sleep(900 * time.Microsecond)
		d.fill(p, 1, 6)
		must(t, o.await(done))
	}
	// A wake-up that has taken long, on a busy machine, has them look for as long.
	if asleep < pages/4 {
		t.Errorf("%d of the last %d threads went to sleep at once, though each of the pages took most of a millisecond", asleep, pages/2)
	}
	t.Logf("%d of the last %d threads went to sleep at once", asleep, pages/2)
}
