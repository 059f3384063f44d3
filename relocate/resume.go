package relocate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu"
)

var errNotStarted = errors.New("the guest was not started")

// start gives the machine life here. The journal says so first: whoever reads
// it after a crash must assume that an instruction has run. errNotStarted and
// [qemu.ErrResumeRefused]: none has. errShutdown: the next daemon goes on. Any other
// error: the machine is dead.
func (in *incoming) start(run bool) error {
	in.rec.WasRun = run
	if err := in.alive(); err != nil {
		return fmt.Errorf("%w: %w", errNotStarted, err)
	}
	if err := in.memory.engine.Err(); err != nil { // the last moment at which that costs nothing
		return fmt.Errorf("%w: the fault engine has failed: %w", errNotStarted, err)
	}
	if err := in.enter(PhaseCommitted, "GO: the machine is ours"); err != nil {
		return fmt.Errorf("%w: %w", errNotStarted, err)
	}
	return in.resumeGuest(false)
}

// resumeGuest has the guest run, unless it is to stay paused. told says that an earlier
// daemon may have said so to QEMU before.
func (in *incoming) resumeGuest(told bool) error {
	if in.rec.WasRun {
		at, err := in.makeRun(told)
		if err != nil {
			return err
		}
		in.rec.ResumedAt = at
	}
	in.rec.Resumed = true
	in.update(func(s *Status) {
		s.Resumed = in.rec.ResumedAt
		if !s.Resumed.IsZero() && !s.Stopped.IsZero() {
			s.DowntimeMS = float64(s.Resumed.Sub(s.Stopped)) / float64(time.Millisecond)
		}
	})
	return nil
}

// makeRun returns when the guest resumed, by QEMU's clock if that is known. QEMU may take
// long to answer: its disks may be slow to open, or it waits itself for a page of a source
// that is out of reach. The guest is nobody else's any more, so that only QEMU's refusal or
// end, the fault engine's failure and this daemon's stop end the attempt.
func (in *incoming) makeRun(told bool) (time.Time, error) {
	asked := told
	for wait := redialMin; ; wait = min(2*wait, redialMax) {
		at, err := in.tryRun(&told)
		if err == nil {
			in.setError(nil)
			return at, nil
		}
		switch {
		case errors.Is(err, qemu.ErrResumeRefused) && !told:
			return time.Time{}, fmt.Errorf("resume the guest: %w", err)
		case in.proc.Ended():
			<-in.proc.Done()
			return time.Time{}, fmt.Errorf("resume the guest: %w: %w", in.proc.Err(), err)
		case in.memory.engine.Err() != nil:
			return time.Time{}, fmt.Errorf("resume the guest: the fault engine has failed: %w", in.memory.engine.Err())
		case in.host.ctx.Err() != nil:
			return time.Time{}, errShutdown
		}
		err = fmt.Errorf("QEMU (pid %d) has not said that the guest runs; it is asked until it does: %w", in.rec.PID, err)
		in.setError(err)
		if !asked {
			asked = true
			in.warn("the guest's start takes long", "err", err)
		}
		sleep(in.host.ctx, wait)
	}
}

// tryRun is one attempt. told becomes true if QEMU may have been told and its answer is not
// known, and false once it is: it has not run.
func (in *incoming) tryRun(told *bool) (time.Time, error) {
	if in.vm == nil {
		ctx, cancel := context.WithTimeout(in.host.ctx, recoverTimeout)
		defer cancel()
		if err := in.reconnect(ctx); err != nil {
			return time.Time{}, err
		}
	}
	// The daemon's stop does not cut it short: QEMU may resume the guest in no time.
	at, err := in.askRun(context.WithoutCancel(in.host.ctx), told)
	if errors.Is(err, qemu.ErrDisconnected) && !in.proc.Ended() {
		in.mig.Close()
		in.vm.Close()
		in.vm, in.mig = nil, nil
	}
	return at, err
}

func (in *incoming) askRun(ctx context.Context, told *bool) (time.Time, error) {
	if *told {
		at, ran, err := in.mig.Ran(ctx)
		switch {
		case err != nil:
			return time.Time{}, err
		case ran:
			return at, nil
		}
		*told = in.mig.Adopted() // else all of its events have been seen
	}
	at, err := in.mig.Resume(ctx)
	if err != nil && !errors.Is(err, qemu.ErrResumeRefused) {
		*told = true
	}
	return at, err
}
