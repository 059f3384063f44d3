package faultd

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/internal/hist"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// busyPause is the wait before an operation on a changing layout is repeated.
const busyPause = 20 * time.Microsecond

// soonTime is how long at most a reader that has ended its faults by itself looks for the
// next one before it sleeps: the thread that it has woken goes on, and a guest whose memory is
// elsewhere soon meets another absent page. It is that of KVM's halt polling and of the
// character device (kmod.DefaultSpin).
const soonTime = 200 * time.Microsecond

// readFaults is a fault reader's thread.
func (e *Engine) readFaults(r FaultReader) {
	thread := e.faultThread("fault reader")
	w := &faultWorker{e: e, local: e.stats.local.Recorder()}
	defer e.stats.local.Retire(w.local)
	var buf [faultBatch]Event
	eager, _ := r.(EagerReader)
	for {
		n, err := r.Read(buf[:])
		switch {
		case errors.Is(err, ErrStopped):
			return
		case err != nil:
			e.fail(fmt.Errorf("read faults: %w", err))
			return
		}
		e.stats.reads.Add(1)
		fetched := w.handle(buf[:n], time.Now())
		// By RDMA all is over here, where a READ takes no longer than a thread's wake-up. A
		// fault that is under way by TCP leaves the CPU to those who bring it, and so does
		// one more fault where precache waits for CPUs.
		if eager != nil && fetched && e.demandBusy.Load() == 0 && !e.pace.on(e.pace.now()) {
			eager.Soon(soonTime)
		}
		thread.Tick()
	}
}

// faultWorker is one reader's state.
type faultWorker struct {
	e     *Engine
	local *hist.Recorder
	n     int                // slots in push
	push  [faultBatch]uint32 // to be queued at the batch's end
}

// handle serves a batch of events, and reports whether pages are fetched for it. Changes of
// the layout come first: a fault that follows one in the batch must see it.
func (w *faultWorker) handle(evs []Event, now time.Time) (fetched bool) {
	e := w.e
	for i := range evs {
		if evs[i].Kind != Fault {
			e.layout(&evs[i])
		}
	}
	for i := range evs {
		if evs[i].Kind == Fault {
			w.fault(&evs[i], now)
		}
	}
	fetched = w.n > 0
	w.enqueue()
	return fetched
}

// enqueue queues what was put aside, and sends it.
func (w *faultWorker) enqueue() {
	if w.n == 0 {
		return
	}
	// The queue is as long as there are slots, so there is room.
	for done := 0; done < w.n; {
		done += w.e.queue.Push(w.push[done:w.n])
	}
	w.n = 0
	w.e.flush()
}

// fault looks a fault up and serves it here, or puts a new fetch aside, or has it wait
// for room.
func (w *faultWorker) fault(ev *Event, now time.Time) {
	e := w.e
	e.stats.faults.Add(1)
	r := e.regions[ev.Region]
	if r == nil || ev.Page >= r.Pages {
		e.fail(fmt.Errorf("fault at page %d of region %d, which there is not: the fault source is set up for other regions", ev.Page, ev.Region))
		return
	}
	if !w.serve(r, ev, now) {
		e.stats.overflows.Add(1)
		e.waitForRoom(ev, now)
	}
}

// serve does what a fault needs, as far as this thread does it; false says that there are
// as many demand fetches as may be, and nothing was done.
func (w *faultWorker) serve(r *Region, ev *Event, now time.Time) bool {
	e := w.e
	st := r.Residency.State(ev.Page)
	switch st {
	case pagecache.Installing:
		e.stats.faultsInstalling.Add(1)
		e.record(ev, FaultInstalling, now)
		return true // the end of the claim wakes it
	case pagecache.Resident, pagecache.Zero:
		e.show(transport.Range{Region: r.ID, First: ev.Page, Count: 1}, st)
		if st == pagecache.Zero {
			e.record(ev, FaultZero, now)
		} else {
			e.record(ev, FaultResident, now)
		}
		w.local.Record(time.Since(now))
		return true
	}
	n, how := e.out.enter(r.ID, ev.Page, now)
	switch how {
	case lookupDup:
		e.stats.faultsDup.Add(1)
		e.record(ev, FaultJoined, now)
		return true
	case lookupFull:
		return false
	}
	s := &e.out.slots[n]
	if e.cfg.ReadAround > 1 {
		run := e.planner.Around(r.ID, ev.Page, e.cfg.ReadAround)
		s.rng.First, s.rng.Count = run.First, run.Count
	} else {
		run := e.planner.Ahead(r.ID, ev.Page)
		s.rng.First, s.rng.Count = run.First, run.Count
	}
	e.demandBusy.Add(1)
	e.planner.Fault(r.ID, ev.Page)
	w.push[w.n] = n
	w.n++
	e.record(ev, FaultFetched, now)
	return true
}

// crowd are faults for whose fetch there was no room. The reader goes on: what makes room
// may depend on an event that it has not read yet. There are no more of them than threads
// that fault, but for those that were woken in vain.
type crowd struct {
	mu     sync.Mutex
	faults []waitingFault // guarded by mu
	served bool           // guarded by mu; serveCrowd runs
}

type waitingFault struct {
	ev   Event
	read time.Time
}

func (e *Engine) waitForRoom(ev *Event, now time.Time) {
	e.crowd.mu.Lock()
	defer e.crowd.mu.Unlock()
	e.crowd.faults = append(e.crowd.faults, waitingFault{*ev, now})
	if !e.crowd.served {
		e.crowd.served = true
		e.goWork(e.serveCrowd)
	}
}

// serveCrowd serves the faults that wait, in the order of their reading, until none does.
func (e *Engine) serveCrowd() {
	w := &faultWorker{e: e, local: e.stats.local.Recorder()}
	defer e.stats.local.Retire(w.local)
	for {
		e.crowd.mu.Lock()
		todo := e.crowd.faults
		e.crowd.faults = nil
		e.crowd.served = len(todo) > 0
		e.crowd.mu.Unlock()
		if len(todo) == 0 {
			return
		}
		for i := range todo {
			f := &todo[i]
			for !w.serve(e.regions[f.ev.Region], &f.ev, f.read) {
				w.enqueue() // what was put aside must go out first
				if !e.out.waitRoom(e.ctx) {
					return
				}
			}
			if w.n == len(w.push) {
				w.enqueue()
			}
		}
		w.enqueue()
	}
}

// record tells the recorder, if there is one, of a fault.
func (e *Engine) record(ev *Event, class FaultClass, read time.Time) {
	if r := e.cfg.Record; r != nil {
		r.Fault(ev.Region, ev.Page, class, read)
	}
}

// show makes a page visible that was touched and needs no fetch. If the layout is changing, a
// reader must go on reading, so it is done elsewhere.
func (e *Engine) show(r transport.Range, st pagecache.State) {
	if st == pagecache.Zero {
		e.stats.zeroShown.Add(1)
	} else {
		e.stats.faultsResident.Add(1)
	}
	err := e.tryShow(r, st)
	if errors.Is(err, ErrBusy) {
		e.stats.busy.Add(1)
		e.goWork(func() { e.retry(func() error { return e.tryShow(r, st) }) })
		return
	}
	e.check(err)
}

func (e *Engine) tryShow(r transport.Range, st pagecache.State) error {
	e.showing.RLock()
	defer e.showing.RUnlock()
	switch {
	case e.released:
		return nil // the release wakes
	case st == pagecache.Zero:
		return e.cfg.Memory.Install.Zero(r)
	case e.cfg.Memory.Place != nil:
		return e.cfg.Memory.Install.Install(r, nil)
	}
	// Private memory that is resident does not fault, unless the machine has given it back:
	// its removal is about to be read, or nobody is told of such. A page that is there is
	// left alone, and who waits is woken.
	return e.cfg.Memory.Install.Zero(r)
}

// wake has who waits for a page of r fault again.
func (e *Engine) wake(r transport.Range) {
	e.showing.RLock()
	defer e.showing.RUnlock()
	if !e.released {
		e.check(e.cfg.Memory.Install.Wake(r))
	}
}

// retry repeats f while the layout is changing.
func (e *Engine) retry(f func() error) {
	err := f()
	for errors.Is(err, ErrBusy) {
		e.stats.busy.Add(1)
		if !e.sleep(busyPause) {
			return
		}
		err = f()
	}
	e.check(err)
}

// check makes an unexpected error of the memory the session's end.
func (e *Engine) check(err error) {
	if err != nil {
		e.fail(err)
	}
}

// goWork runs f beside the fault path. It is for rare events only.
func (e *Engine) goWork(f func()) {
	e.failMu.Lock() // orders Add before the Wait of Detach
	defer e.failMu.Unlock()
	if e.ctx.Err() == nil {
		e.workWG.Go(f)
	}
}

// layout takes a change of the memory's layout into account. The kernel lets the
// machine go on when an event has been read, a moment before it is taken into
// account here: a page that is installed within that moment shows what the
// source had, not zero, which a balloon permits (its guest may not rely on the
// content of a page that it gave away).
func (e *Engine) layout(ev *Event) {
	switch ev.Kind {
	case Remove:
		e.stats.removes.Add(1)
		e.eachRange(ev.Region, ev.Page, ev.Count, func(r transport.Range) error {
			e.remove(r)
			return nil
		})
		e.checkFull()
	case Unmap:
		// Nobody can wait for these pages any more; they count as done, so that
		// the drain ends.
		e.cfg.Log.Warn("memory was unmapped during the drain", "region", ev.Region, "page", ev.Page, "pages", ev.Count)
		e.eachRange(ev.Region, ev.Page, ev.Count, func(r transport.Range) error {
			e.remove(r)
			return nil
		})
		e.checkFull()
	case Moved:
		e.fail(fmt.Errorf("pages %d+%d of region %d were moved to another address during the drain, which the engine cannot follow", ev.Page, ev.Count, ev.Region))
	case Forked:
		e.cfg.Log.Warn("the machine's process forked during the drain; its child sees absent pages as zero")
	}
}

// remove makes pages Zero that the machine gave back. What is being installed
// is left to its installer, and tried again when that claim has ended.
func (e *Engine) remove(r transport.Range) {
	reg := e.regions[r.Region]
	if reg == nil || r.First >= reg.Pages {
		return
	}
	n := min(uint64(r.Count), reg.Pages-r.First)
	if w := e.warm.Load(); w != nil { // what was to be a candidate must not show
		e.emptyCandidates(reg, w.indexes[r.Region], r.First, r.First+n, func(n uint32) pagecache.Mask {
			return make(pagecache.Mask, pagecache.MaskWords(uint64(n)))
		}) // an error ends the session
	}
	if _, installing := reg.Residency.Remove(r.First, n); installing == 0 {
		return
	}
	e.removesMu.Lock()
	e.removes = append(e.removes, transport.Range{Region: r.Region, First: r.First, Count: uint32(n)})
	e.removing.Store(true)
	e.removesMu.Unlock()
	// A claim that ended before that was noted has not repeated it, and may have been the
	// last one. One that is seen here to be held still finds the note at its end.
	reg.Residency.Remove(r.First, n)
}

// afterClaims repeats the removals that met a claim.
func (e *Engine) afterClaims() {
	if !e.removing.Load() {
		return
	}
	e.removesMu.Lock()
	todo := e.removes
	e.removes = nil
	e.removing.Store(false)
	e.removesMu.Unlock()
	for _, r := range todo {
		e.remove(r)
	}
	e.checkFull() // these may have been the last pages
}
