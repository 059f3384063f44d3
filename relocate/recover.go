package relocate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// recoverTimeout bounds what a start waits for one machine of an earlier daemon.
const recoverTimeout = 30 * time.Second

// recover takes up what an earlier daemon left. What cannot be taken up is said
// and left as it is: a journal is never thrown away with its machine in doubt.
func (h *Host) recover(ctx context.Context) {
	if err := qemu.RemoveStatePlaces(h.cfg.StateDir); err != nil {
		h.log.Warn("something of the last run stays in the state directory", "err", err)
	}
	// Read before a machine is registered, which writes the list anew.
	var machines []savedMachine
	if err := readJSON(h.machinesFile(), &machines); err != nil {
		h.log.Error("the list of machines cannot be read; adopt them again", "err", err)
	}
	h.mu.Lock()
	h.restoring = slices.Clone(machines)
	h.mu.Unlock()
	recs, err := h.journal.load(time.Now())
	if err != nil {
		h.log.Error("some journals cannot be read", "err", err)
		h.events.add(Event{Kind: "warning", Text: err.Error()})
	}
	slices.SortFunc(recs, func(a, b *record) int { return a.Ended.Compare(b.Ended) })
	for _, rec := range recs {
		switch {
		case rec.Phase.Final():
			h.recall(rec)
		case rec.Role == RoleSource:
			h.recoverSource(ctx, rec, madeHere(machines, rec.VM))
		default:
			h.recoverDestination(ctx, rec)
		}
	}
	h.restoreMachines(ctx, machines)
}

// recall remembers a relocation that has ended.
func (h *Host) recall(rec *record) {
	t := newTransfer(h, rec)
	t.cancel(nil)
	s := t.status
	s.Ended = rec.Ended
	s.Error = rec.Error
	h.mu.Lock()
	defer h.mu.Unlock()
	if rec.Role == RoleDestination {
		h.bury(rec)
	}
	h.endedLocked(s)
}

// recoverSource rolls back before the point of no return, and serves pages
// after it. here is what was made at this host for the machine.
func (h *Host) recoverSource(ctx context.Context, rec *record, here made) {
	o := &outgoing{transfer: newTransfer(h, rec), here: here, frozen: make(chan struct{})}
	err := o.reach(ctx)
	hangs := err != nil && o.alive()
	h.mu.Lock()
	o.unreached = hangs
	h.mu.Unlock()
	if rec.Phase != PhaseCommitted && rec.Phase != PhaseDraining {
		if hangs {
			h.recoverLater(o, err)
		} else {
			h.recoverRollback(o, err)
		}
		return
	}
	switch {
	case hangs:
		o.warn("the source's VMM does not answer; its image is served all the same", "err", err)
	case err != nil:
		o.warn("the source's VMM is gone; its image is served all the same", "err", err)
	}
	image, err := o.openImage()
	if err != nil {
		o.setError(fmt.Errorf("its guest waits for pages that cannot be served: %w", err))
		o.warn("the image of a machine that runs elsewhere cannot be served; its guest waits for the missing pages", "err", err)
	}
	o.committed = true
	h.mu.Lock()
	h.outgoing[rec.Token] = o
	if o.m != nil {
		o.m.busy = o
	}
	h.mu.Unlock()
	if image != nil {
		o.image = image
		o.resumeRDMA()
		o.serveAgain()
	}
	h.wg.Go(func() {
		s := newServing(o)
		defer o.finish()
		defer s.stop()
		if image == nil {
			s.wg.Go(func() { o.awaitImage(s.ctx) })
		}
		s.reconnect()
		o.drain(nil, s, nil)
	})
}

// serveAgain has the image served that was opened anew.
func (o *outgoing) serveAgain() {
	o.freezeObjects()
	close(o.frozen)
	o.show(o.rec.Phase, "taken up after a restart of the daemon: the image is served again")
}

// awaitImage tries to open the image until that succeeds, or ctx ends: whoever has moved
// its file can put it back. Meanwhile the destination is asked: perhaps it has everything,
// and the daemon was killed as it let go.
func (o *outgoing) awaitImage(ctx context.Context) {
	for {
		sleep(ctx, redialMax)
		if ctx.Err() != nil {
			return
		}
		image, err := o.openImage()
		if err == nil {
			o.image = image // read by those who wait for frozen, or for this goroutine
			o.setError(nil)
			o.serveAgain()
			return
		}
		o.setError(fmt.Errorf("its guest waits for pages that cannot be served: %w", err))
	}
}

// recoverDestination ends a VMM that was never told GO, and goes on with the
// drain of one that was.
func (h *Host) recoverDestination(ctx context.Context, rec *record) {
	in := newIncoming(h, rec)
	if rec.Phase == PhaseDraining && rec.Whole {
		h.recoverWhole(in)
		return
	}
	if rec.Phase == PhaseCommitted || rec.Phase == PhaseDraining {
		in.resumeRDMA() // before the source can dial a channel
	}
	h.mu.Lock()
	h.incoming[rec.Token] = in
	h.mu.Unlock()
	if rec.Phase != PhaseCommitted && rec.Phase != PhaseDraining {
		if rec.PID == 0 && rec.QMP != "" {
			in.findVMM()
		}
		in.giveUp(nil, errors.New("the daemon was restarted before GO"))
		in.finish()
		return
	}
	h.wg.Go(func() {
		defer in.finish()
		switch err := in.takeUp(ctx); {
		case errors.Is(err, qemu.ErrProcessGone), errors.Is(err, qemu.ErrExited):
			in.lose(nil, err)
		case errors.Is(err, errShutdown):
			in.leave(nil)
		case err != nil:
			// The VMM is alive and its journal stays: the next start tries again.
			in.setError(err)
			in.warn("the drain of a running machine could not be taken up; its vCPUs wait at absent pages until a restart of this daemon succeeds", "err", err)
		default:
			in.drain(nil)
		}
	})
}

// recoverWhole ends the relocation of a machine whose last page had come when the last daemon
// was killed. It is adopted before its name in the list of machines is.
func (h *Host) recoverWhole(in *incoming) {
	h.mu.Lock()
	h.incoming[in.rec.Token] = in
	h.mu.Unlock()
	var err error
	if in.proc, err = qemu.Adopt(in.rec.PID, in.rec.StartTime, in.rec.Log); err != nil {
		in.proc = nil
		in.warn("QEMU has ended, or cannot be watched", "pid", in.rec.PID, "err", err)
	}
	in.settle()
	h.wg.Go(func() {
		defer in.finish()
		in.startFollower(nil).finish(in.Status())
	})
}

// findVMM looks for a VMM that the last daemon may have started and not written down: it
// learns its pid when it has started, and may be killed before.
func (in *incoming) findVMM() {
	pids, err := processes()
	if err != nil {
		in.warn("a VMM that the last daemon may have started was not looked for", "err", err)
	}
	for _, pid := range pids {
		if start, ok := qemu.Spawned(pid, in.rec.QMP); ok {
			in.rec.PID, in.rec.StartTime = pid, start
			return
		}
	}
}

// takeUp puts this daemon in the place of one that died after GO.
func (in *incoming) takeUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recoverTimeout)
	defer cancel()
	var err error
	if in.proc, err = qemu.Adopt(in.rec.PID, in.rec.StartTime, in.rec.Log); err != nil {
		return fmt.Errorf("QEMU (pid %d): %w", in.rec.PID, err)
	}
	if in.memory, err = takeOverFaults(in); err != nil {
		return err
	}
	in.mu.Lock()
	in.fill, in.limit = in.memory.fill, in.limitOf(in.memory)
	in.mu.Unlock()
	in.memory.begin() // QEMU may wait for a page before it answers the monitor
	if in.rec.Resumed || !in.rec.WasRun {
		if err := in.reconnect(ctx); err != nil {
			in.warn("the machine's monitor is out of reach; its memory follows all the same", "qmp", in.rec.QMP, "err", err)
		}
		return nil
	}
	in.show(PhaseCommitted, "resuming the guest, if the last daemon has not")
	return in.resumeGuest(true)
}

// reconnect opens the monitor again, for as long as ctx and the VMM live: QEMU
// serves one client at a time, and may not have noticed yet that the last one
// has gone.
func (in *incoming) reconnect(ctx context.Context) error {
	for wait := redialMin; ; wait = min(2*wait, redialMax) {
		vm, err := qemu.ConnectProcess(ctx, in.rec.QMP, in.proc)
		if err == nil {
			in.vm, in.mig = vm, vm.AdoptInbound()
			return nil
		}
		if ctx.Err() != nil || in.proc.Ended() {
			return err
		}
		in.log.Debug("the monitor does not answer yet", "qmp", in.rec.QMP, "err", err)
		sleep(ctx, wait)
	}
}
