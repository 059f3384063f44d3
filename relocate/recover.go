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
	o := &outgoing{transfer: newTransfer(h, rec), frozen: make(chan struct{})}
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	vm, err := qemu.Connect(ctx, rec.QMP)
	switch {
	case err == nil && vm.PID != rec.PID:
		vm.Close()
		err = fmt.Errorf("QMP socket %s belongs to pid %d now, not to %d", rec.QMP, vm.PID, rec.PID)
	case err == nil:
		o.vm = vm
		if desc, ierr := vm.Inspect(ctx); ierr == nil {
			o.desc = desc
			o.m = &machine{name: rec.VM, qmp: rec.QMP, vm: vm, last: machineOf(rec.VM, rec.QMP, desc), made: here, ram: ramFiles(desc)}
			if rerr := h.register(o.m); rerr != nil {
				o.warn("the machine was not adopted again", "err", rerr)
			}
		}
	}
	if rec.Phase != PhaseCommitted && rec.Phase != PhaseDraining {
		h.recoverRollback(o, err)
		return
	}
	if err != nil {
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

// recoverRollback makes the machine run at the source again.
func (h *Host) recoverRollback(o *outgoing, connectErr error) {
	defer o.finish()
	cause := errors.New("the daemon was restarted before the switch-over")
	if connectErr != nil {
		cause = fmt.Errorf("%w; its VMM is not there: %w", cause, connectErr)
	} else if o.rec.Saved.Capabilities != nil {
		o.mig = o.vm.AdoptOutgoing(o.rec.Saved)
	}
	o.rollback(nil, nil, cause)
}

// recoverDestination ends a VMM that was never told GO, and goes on with the
// drain of one that was.
func (h *Host) recoverDestination(ctx context.Context, rec *record) {
	in := newIncoming(h, rec)
	if rec.Phase == PhaseCommitted || rec.Phase == PhaseDraining {
		in.resumeRDMA() // before the source can dial a channel
	}
	h.mu.Lock()
	h.incoming[rec.Token] = in
	h.mu.Unlock()
	if rec.Phase != PhaseCommitted && rec.Phase != PhaseDraining {
		in.giveUp(nil, errors.New("the daemon was restarted before GO"))
		in.finish()
		return
	}
	h.wg.Go(func() {
		defer in.finish()
		switch err := in.takeUp(ctx); {
		case errors.Is(err, qemu.ErrProcessGone):
			in.lose(nil, err)
		case err != nil:
			// The VMM is alive and its journal stays: the next start tries again.
			in.setError(err)
			in.warn("the drain of a running machine could not be taken up; its vCPUs wait at absent pages until a restart of this daemon succeeds", "err", err)
		default:
			in.drain(nil)
		}
	})
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
	if err := in.reconnect(ctx); err != nil {
		if in.rec.Resumed || !in.rec.WasRun {
			in.warn("the machine's monitor is out of reach; its memory follows all the same", "qmp", in.rec.QMP, "err", err)
			return nil
		}
		return fmt.Errorf("the guest was not resumed: %w", err)
	}
	if in.rec.Resumed || !in.rec.WasRun {
		return nil
	}
	state, err := in.vm.RunState(ctx)
	if err != nil {
		return err
	}
	if state.Running { // killed between `cont` and the next record
		in.rec.Resumed = true
		return nil
	}
	in.show(PhaseCommitted, "resuming the guest: the daemon was killed before it could")
	return in.resumeGuest()
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
