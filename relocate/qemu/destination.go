package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

const (
	loadWait   = 60 * time.Second // guest memory it touches comes over the network
	resumeWait = 10 * time.Second
)

// Inbound is the destination's side of one migration. Its methods are called in
// their order by one goroutine.
type Inbound struct {
	vm      *VM
	sub     *Subscription
	adopted bool // by AdoptInbound: what came before is not known
}

// PrepareDestination sets the capabilities of a QEMU that awaits a migration.
// Close the Inbound in the end.
func (v *VM) PrepareDestination(ctx context.Context) (*Inbound, error) {
	have, err := v.capabilities(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare destination: %w", v.died(err))
	}
	caps := map[string]bool{"x-ignore-shared": true, "events": true}
	for c := range caps {
		if _, ok := have[c]; !ok {
			return nil, fmt.Errorf("prepare destination: %w", detailed(ErrCapability, "QEMU %s has no %s", v.Version, c))
		}
	}
	// Leave the disks to the source until the guest resumes here, so that a
	// rollback finds them free.
	if _, ok := have["late-block-activate"]; ok {
		caps["late-block-activate"] = true
	}
	in := v.AdoptInbound()
	in.adopted = false // no guest runs before Incoming
	if err := v.setCapabilities(ctx, caps); err != nil {
		in.Close()
		return nil, fmt.Errorf("prepare destination: %w", v.died(err))
	}
	return in, nil
}

// AdoptInbound continues for a daemon that died after PrepareDestination, or on another
// connection.
func (v *VM) AdoptInbound() *Inbound {
	return &Inbound{vm: v, sub: v.Subscribe(EventMigration, EventResume, EventStop), adopted: true}
}

// Adopted reports whether QEMU may have done something that this Inbound has no event of.
func (in *Inbound) Adopted() bool { return in.adopted }

// Close ends the event subscription; QEMU stays as it is.
func (in *Inbound) Close() { in.sub.Close() }

// Incoming makes QEMU listen at a URI such as "unix:/run/x/state.sock". When it
// returns, DialState can connect. From the first byte of the stream on, QEMU may
// touch guest memory: faults must be served by then.
func (in *Inbound) Incoming(ctx context.Context, uri string) error {
	if err := in.vm.Execute(ctx, "migrate-incoming", map[string]string{"uri": uri}, nil); err != nil {
		return fmt.Errorf("await migration at %s: %w", uri, in.vm.died(err))
	}
	return nil
}

// IncomingFrom does so with a socket that QEMU is handed, which is closed here.
func (in *Inbound) IncomingFrom(ctx context.Context, end *os.File) error {
	if err := in.vm.executeOn(ctx, "migrate-incoming", end); err != nil {
		return fmt.Errorf("await migration from a socket: %w", in.vm.died(err))
	}
	return nil
}

// WaitLoaded waits until the device state is loaded and the machine is paused.
// ErrMigrationFailed has QEMU's reason and the end of its log.
func (in *Inbound) WaitLoaded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadWait)
	defer cancel()
	for {
		e, err := in.sub.Next(ctx)
		if errors.Is(err, ErrDisconnected) {
			// QEMU exits when it cannot load a state, its reason is in the log.
			return detailed(ErrMigrationFailed, "load device state: %w", in.vm.died(err))
		}
		if err != nil {
			return fmt.Errorf("load device state: %w", err)
		}
		if e.Name != EventMigration {
			continue
		}
		switch e.Status() {
		case "completed":
			return nil
		case "failed", "cancelled":
			return in.failure(ctx, e.Status())
		}
	}
}

func (in *Inbound) failure(ctx context.Context, status string) error {
	m, err := in.vm.Migration(ctx)
	if err == nil && m.ErrorDesc == "" && in.vm.own != nil {
		// QEMU before 9.1 says "failed" and then exits, with its reason on
		// standard error.
		if exit := in.vm.own.exitSoon(); exit != nil {
			err = exit
		}
	}
	if err != nil {
		if errors.Is(err, ErrDisconnected) {
			err = in.vm.died(err)
		} else {
			err = fmt.Errorf("%w%s", err, in.vm.log.suffix())
		}
		return detailed(ErrMigrationFailed, "load device state: its state is %q: %w", status, err)
	}
	return detailed(ErrMigrationFailed, "load device state: its state is %q: %s%s", status, m.ErrorDesc, in.vm.log.suffix())
}

// Resume lets the guest run here, and returns when it did by QEMU's clock. After
// ErrResumeRefused the guest has not run; after any other error it may have, and
// the source must not run again.
func (in *Inbound) Resume(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, resumeWait)
	defer cancel()
	if err := in.vm.Execute(ctx, "cont", nil, nil); err != nil {
		if refused := (*CommandError)(nil); errors.As(err, &refused) {
			return time.Time{}, detailed(ErrResumeRefused, "%w%s", refused, in.vm.log.suffix())
		}
		return time.Time{}, fmt.Errorf("resume: the guest may have run: %w", in.vm.died(err))
	}
	for {
		e, err := in.sub.Next(ctx)
		if err != nil {
			return time.Time{}, fmt.Errorf("resume: the guest may have run: %w", in.vm.died(err))
		}
		if e.Name == EventResume {
			return e.Time, nil
		}
	}
}

// Ran tells, after an error of Resume that leaves it open, whether the guest has run since
// the Inbound was made, or does now, and when it began to; zero if no event has said that. QEMU answers one command after the other, so that a Resume without an answer is
// over when this has one.
func (in *Inbound) Ran(ctx context.Context) (at time.Time, ran bool, err error) {
	s, err := in.vm.RunState(ctx)
	if err != nil {
		return time.Time{}, false, fmt.Errorf("ask whether the guest runs: %w", in.vm.died(err))
	}
	for {
		e, ok := in.sub.poll()
		switch {
		case ok && e.Name == EventResume:
			return e.Time, true, nil
		case ok:
			continue
		case s.Running:
			return time.Time{}, true, nil
		}
		return time.Time{}, false, nil
	}
}
