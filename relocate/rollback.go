package relocate

import (
	"context"
	"errors"
	"fmt"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// rollback brings the machine back to life at the source. It must work with a
// dead network, so it tells the peer on the way and hardly waits for that. It waits for
// a QEMU that hangs: nobody else resumes the guest. If the daemon stops meanwhile, the
// journal is as it was, and the next one goes on.
func (o *outgoing) rollback(ctl *control, s *serving, cause error) {
	if ctl != nil {
		ctl.end(msgAbort, abortMsg{Reason: cause.Error()})
	}
	if s != nil {
		s.stop()
	}
	o.releaseImage()
	if err := thaw(o.rec.Memory); err != nil {
		o.warn("the memory stays frozen, the guest ends when it writes", "err", err)
	}
	if o.mig != nil {
		err := o.cancelAndResume(cause)
		o.mig.Close()
		switch {
		case errors.Is(err, errShutdown):
			o.warn("the next daemon rolls back: QEMU has not answered", "pid", o.rec.PID)
			return
		case errors.Is(err, qemu.ErrNotRestored):
			o.warn("the guest runs again, but not all of QEMU's migration settings are as they were", "err", err)
		case err != nil:
			cause = fmt.Errorf("%w; and the guest could not be resumed: %w; resume it by `cont` on a QMP monitor of pid %d", cause, err, o.rec.PID)
			o.setError(cause)
			o.warn("rollback failed", "err", err)
			o.conclude(PhaseLost, "the machine is stopped at the source: "+cause.Error())
			return
		}
	}
	o.rec.Error = cause.Error()
	o.setError(fmt.Errorf("%w: %w", ErrRolledBack, cause))
	o.conclude(PhaseRolledBack, "rolled back, the machine is as it was: "+cause.Error())
}

// cancelAndResume tries it for as long as QEMU lives and does not answer, or has lost its
// connection; errShutdown if the daemon stops before.
func (o *outgoing) cancelAndResume(cause error) error {
	for wait, said := redialMin, false; ; wait = min(2*wait, redialMax) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), o.host.cfg.deadlines.rollback)
		err := o.mig.CancelAndResume(ctx)
		if errors.Is(err, qemu.ErrDisconnected) && o.alive() {
			err = errors.Join(err, o.connectAnew(ctx))
		}
		cancel()
		hangs := errors.Is(err, qemu.ErrTimeout) || errors.Is(err, qemu.ErrDisconnected)
		if !hangs || !o.alive() {
			return err
		}
		if o.host.ctx.Err() != nil {
			return errShutdown
		}
		o.setError(fmt.Errorf("rolling back: %w; QEMU (pid %d) does not answer, and the guest may stand still until it does: %w", cause, o.rec.PID, err))
		if !said {
			said = true
			o.warn("the rollback waits for QEMU, which does not answer", "pid", o.rec.PID, "err", err)
		}
		sleep(o.host.ctx, wait)
	}
}

// connectAnew opens the monitor of a VMM that lives and has closed it.
func (o *outgoing) connectAnew(ctx context.Context) error {
	vm, err := qemu.Connect(ctx, o.rec.QMP)
	if err != nil {
		return err
	}
	if vm.PID != o.rec.PID {
		vm.Close()
		return fmt.Errorf("QMP socket %s belongs to pid %d now, not to %d", o.rec.QMP, vm.PID, o.rec.PID)
	}
	o.mig.Close()
	o.mig = vm.AdoptOutgoing(o.rec.Saved)
	o.mig.AbortWith(o.relay)
	if o.again != nil {
		o.again.Close()
	}
	o.again = vm // the host's own has ended, and the machine's list says so
	return nil
}
