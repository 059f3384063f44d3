package relocate

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// reach opens the monitor of the machine's VMM, and makes the machine one of the host's
// again.
func (o *outgoing) reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	vm, err := qemu.Connect(ctx, o.rec.QMP)
	if err != nil {
		return err
	}
	if vm.PID != o.rec.PID {
		vm.Close()
		return fmt.Errorf("QMP socket %s belongs to pid %d now, not to %d", o.rec.QMP, vm.PID, o.rec.PID)
	}
	desc, err := vm.Inspect(ctx)
	if err != nil {
		vm.Close()
		return err
	}
	o.vm, o.desc = vm, desc
	o.m = &machine{name: o.rec.VM, qmp: o.rec.QMP, vm: vm, last: machineOf(o.rec.VM, o.rec.QMP, desc), made: o.here, ram: ramFiles(desc), busy: o}
	if err := o.host.register(o.m); err != nil {
		o.warn("the machine was not adopted again", "err", err)
	}
	return nil
}

// alive reports whether the VMM has not ended.
func (o *outgoing) alive() bool { return qemu.Alive(o.rec.PID, o.rec.StartTime) }

// reachLater does so when the VMM answers again. It has failed if the VMM has ended, or ctx.
func (o *outgoing) reachLater(ctx context.Context) error {
	for wait := redialMin; ; wait = min(2*wait, redialMax) {
		err := o.reach(ctx)
		if err == nil || ctx.Err() != nil || !o.alive() {
			return err
		}
		o.log.Debug("the machine's monitor does not answer yet", "qmp", o.rec.QMP, "err", err)
		sleep(ctx, wait)
	}
}

// recoverLater rolls back once the VMM answers. To give it up would leave its guest
// stopped for good, with a journal that says otherwise.
func (h *Host) recoverLater(o *outgoing, err error) {
	h.mu.Lock()
	h.outgoing[o.rec.Token] = o
	h.mu.Unlock()
	o.setError(fmt.Errorf("QEMU (pid %d) does not answer; the machine is rolled back when it does: %w", o.rec.PID, err))
	o.warn("the machine cannot be rolled back yet, since its QEMU does not answer", "pid", o.rec.PID, "err", err)
	h.wg.Go(func() {
		err := o.reachLater(h.ctx)
		if h.ctx.Err() != nil && o.vm == nil {
			o.finish() // the journal stays: the next daemon goes on
			return
		}
		h.recoverRollback(o, err)
	})
}

// reached ends the exception that is made for a VMM that hung when the daemon started, once
// its relocation has ended.
func (h *Host) reached(o *outgoing) {
	h.mu.Lock()
	was, gone := o.unreached, savedMachine{}
	o.unreached = false
	if i := slices.IndexFunc(h.restoring, func(s savedMachine) bool { return s.Name == o.rec.VM }); was && i >= 0 {
		gone = h.restoring[i]
		h.restoring = slices.Delete(h.restoring, i, i+1)
	}
	known := h.machines[o.rec.VM] != nil
	err := h.saveMachinesLocked()
	h.mu.Unlock()
	if err != nil {
		h.log.Error("the list of machines was not written", "err", err)
	}
	if gone.Name != "" && !known && o.rec.Phase != PhaseDone {
		h.restore(h.ctx, gone) // it has ended: what it leaves is tidied up
	}
}

// hangsLocked reports whether a machine is one whose relocation is taken up when its QEMU
// answers. The caller holds h.mu.
func (h *Host) hangsLocked(name, qmp string) bool {
	for _, o := range h.outgoing {
		if o.unreached && (o.rec.VM == name || o.rec.QMP == qmp) {
			return true
		}
	}
	return false
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
