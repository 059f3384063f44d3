package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// CancelAndResume rolls back from wherever the migration is: not started, active,
// pre-switchover, device, completed, failed. When it returns nil, the migration
// is over, the guest runs if it ran before, and capabilities and parameters are
// as they were. A guest that was paused before stays so. It must not be called
// once Resume may have reached the destination, and the destination's QEMU should
// be dead, or sure never to be resumed.
//
// ErrNotRestored: the guest is as before, some settings are not. ErrRunState: the
// guest cannot run for a reason of its own.
func (o *Outgoing) CancelAndResume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rollbackWait)
	defer cancel()
	if err := o.cancel(ctx); err != nil {
		return fmt.Errorf("roll back: %w", o.vm.died(err))
	}
	if o.saved.WasRunning {
		if err := o.run(ctx); err != nil {
			return fmt.Errorf("roll back: %w", o.vm.died(err))
		}
	}
	if err := o.restore(ctx); err != nil {
		return fmt.Errorf("roll back: the machine is as before, but: %w", o.vm.died(err))
	}
	return nil
}

// Restore puts capabilities and parameters back without touching the guest.
func (o *Outgoing) Restore(ctx context.Context) error { return o.restore(ctx) }

// cancel ends the migration and waits until it has ended.
func (o *Outgoing) cancel(ctx context.Context) error {
	if o.continued {
		o.abort() // the main loop may be locked until the stream moves, or ends
	}
	m, err := o.probe(ctx)
	if err != nil {
		return err
	}
	if !over(m.Status) {
		if err := o.vm.Execute(ctx, "migrate_cancel", nil, nil); err != nil {
			return err
		}
	}
	o.abort() // whoever reads it must not take what comes for a whole state
	for {
		if m, err = o.vm.Migration(ctx); err != nil {
			return err
		}
		if over(m.Status) {
			return nil
		}
		if err := o.nudge(ctx); err != nil {
			return fmt.Errorf("the migration stays %q: %w", m.Status, err)
		}
	}
}

// probe asks for the migration's state; if QEMU is stuck in writing the stream, it
// is freed first.
func (o *Outgoing) probe(ctx context.Context) (Migration, error) {
	short, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	m, err := o.vm.Migration(short)
	if !errors.Is(err, ErrTimeout) {
		return m, err
	}
	o.abort()
	return o.vm.Migration(ctx)
}

func (o *Outgoing) abort() {
	if o.stream != nil {
		o.stream.Close() // its error does not matter: nobody wants the data
	}
}

// over reports whether a migration of that status has ended, or never began.
func over(status string) bool {
	switch status {
	case "", "none", "completed", "failed", "cancelled":
		return true
	}
	return false
}

// run makes the guest run, and waits for QEMU to say so.
func (o *Outgoing) run(ctx context.Context) error {
	for {
		s, err := o.vm.RunState(ctx)
		if err != nil {
			return err
		}
		if s.Running {
			return nil
		}
		switch s.Status {
		case "shutdown", "internal-error", "io-error", "guest-panicked", "watchdog":
			return detailed(ErrRunState, "the guest is %q, which is not the migration's doing; look at it, then use cont or system_reset", s.Status)
		}
		err = o.vm.Execute(ctx, "cont", nil, nil)
		refused := (*CommandError)(nil)
		switch {
		case err == nil:
			continue // ask again: only "running" counts
		case !errors.As(err, &refused):
			return err
		}
		// "Migration is not finalized yet": QEMU's migration thread is about to
		// resume the guest itself.
		if nerr := o.nudge(ctx); nerr != nil {
			return detailed(ErrRunState, "the guest is %q: %w: %w", s.Status, refused, nerr)
		}
	}
}

// nudge waits for the next event, or a few milliseconds: QEMU sends none for some
// of the steps of a cancellation. The error is the context's or the connection's.
func (o *Outgoing) nudge(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	if _, err := o.next(short); err != nil && !errors.Is(err, ErrTimeout) {
		return err
	}
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	return nil
}

// restore puts capabilities and parameters back.
func (o *Outgoing) restore(ctx context.Context) error {
	err := o.vm.setCapabilities(ctx, o.saved.Capabilities)
	if len(o.saved.Parameters) > 0 {
		err = errors.Join(err, o.vm.Execute(ctx, "migrate-set-parameters", o.saved.Parameters, nil))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotRestored, err)
	}
	return nil
}
