package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"time"
)

// Bounds of the source's waits whose context has no nearer deadline.
const (
	preSwitchWait = 60 * time.Second // 16 MiB of video RAM and ROMs, on a busy host
	completeWait  = 30 * time.Second // device state, a few hundred KiB
	rollbackWait  = 20 * time.Second
)

// wantedCapabilities of the source: those that pagewarp needs, and off whatever
// would change the stream: more channels, a return path, post-copy of QEMU's own.
var wantedCapabilities = map[string]bool{
	"x-ignore-shared": true, "pause-before-switchover": true, "events": true,

	"postcopy-ram": false, "postcopy-preempt": false, "postcopy-blocktime": false,
	"return-path": false, "switchover-ack": false, "multifd": false,
	"zero-copy-send": false, "compress": false, "xbzrle": false, "x-colo": false,
	"release-ram": false, "block": false, "auto-converge": false,
	"background-snapshot": false, "rdma-pin-all": false, "mapped-ram": false,
	"dirty-limit": false, "late-block-activate": false,
}

// wantedParameters: the small RAM blocks and the device state go at full speed.
// TLS is the control channel's business, not that of a local socket.
var wantedParameters = map[string]any{
	"max-bandwidth":  int64(100) << 30, // bytes per second
	"downtime-limit": int64(2000),      // ms
	"tls-creds":      "",
}

// Saved is what a source's QEMU had before PrepareSource. It is JSON-serialisable
// so that a restarted daemon can still roll back.
type Saved struct {
	Capabilities map[string]bool `json:"capabilities"`
	Parameters   map[string]any  `json:"parameters"`
	// WasRunning: the guest ran, so a rollback makes it run again.
	WasRunning bool `json:"was_running"`
}

// Outgoing is the source's side of one migration. Its methods are called in
// their order by one goroutine, but CancelAndResume may be called at any point
// once no other method is under way.
type Outgoing struct {
	vm    *VM
	sub   *Subscription
	saved Saved

	stopped   time.Time // of the STOP event
	stream    io.Closer // see AbortWith
	continued bool      // ContinueSwitchover was called
}

// PrepareSource sets capabilities and parameters, remembering what they were, and
// starts to listen for events. Close the Outgoing in the end; on an error what
// was set is put back.
func (v *VM) PrepareSource(ctx context.Context) (*Outgoing, error) {
	o := &Outgoing{vm: v}
	have, err := v.capabilities(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare source: %w", v.died(err))
	}
	for _, c := range neededCapabilities {
		if _, ok := have[c]; !ok {
			return nil, fmt.Errorf("prepare source: %w", detailed(ErrCapability, "QEMU %s has no %s", v.Version, c))
		}
	}
	var params map[string]any
	if err := v.Execute(ctx, "query-migrate-parameters", nil, &params); err != nil {
		return nil, fmt.Errorf("prepare source: %w", v.died(err))
	}
	st, err := v.RunState(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare source: %w", v.died(err))
	}
	o.saved = Saved{WasRunning: st.Running, Capabilities: map[string]bool{}, Parameters: map[string]any{}}
	caps, set := map[string]bool{}, map[string]any{}
	for name, on := range wantedCapabilities {
		if was, ok := have[name]; ok && was != on {
			o.saved.Capabilities[name], caps[name] = was, on
		}
	}
	for name, value := range wantedParameters {
		if was, ok := params[name]; ok {
			if f, isFloat := was.(float64); isFloat {
				was = int64(f) // as QEMU wants it back: an integer
			}
			o.saved.Parameters[name], set[name] = was, value
		}
	}
	o.sub = v.Subscribe(EventMigration, EventStop, EventResume, EventShutdown, EventPanicked)
	err = v.setCapabilities(ctx, caps)
	if err == nil {
		err = v.Execute(ctx, "migrate-set-parameters", set, nil)
	}
	if err != nil {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), CommandTimeout)
		defer cancel()
		o.restore(back) // best effort: the first error is the one to report
		o.Close()
		if refused := (*CommandError)(nil); errors.As(err, &refused) {
			err = detailed(ErrMigrating, "QEMU refuses to change its settings: %w", refused)
		}
		return nil, fmt.Errorf("prepare source: %w", v.died(err))
	}
	return o, nil
}

// AdoptOutgoing continues for a daemon that died after PrepareSource.
func (v *VM) AdoptOutgoing(saved Saved) *Outgoing {
	return &Outgoing{vm: v, saved: saved,
		sub: v.Subscribe(EventMigration, EventStop, EventResume, EventShutdown, EventPanicked)}
}

// Saved is what CancelAndResume will restore.
func (o *Outgoing) Saved() Saved {
	return Saved{Capabilities: maps.Clone(o.saved.Capabilities), Parameters: maps.Clone(o.saved.Parameters), WasRunning: o.saved.WasRunning}
}

// AbortWith names the source's end of the state stream. QEMU saves device state
// with its main loop locked: while the stream stalls it answers no command, not
// even migrate_cancel. CancelAndResume then closes the stream, which makes the
// migration fail and the main loop go on.
func (o *Outgoing) AbortWith(stream io.Closer) { o.stream = stream }

// Close ends the event subscription; QEMU stays as it is.
func (o *Outgoing) Close() { o.sub.Close() }

// StartMigrate begins the migration to a URI such as "unix:/run/x/state.sock",
// where a StateListener must be waiting.
func (o *Outgoing) StartMigrate(ctx context.Context, uri string) error {
	if err := o.vm.Execute(ctx, "migrate", map[string]string{"uri": uri}, nil); err != nil {
		return fmt.Errorf("start migration to %s: %w", uri, o.vm.died(err))
	}
	return nil
}

// StartMigrateTo begins the migration into a socket that QEMU is handed, and closes it here:
// for a QEMU that reaches no path of the daemon's, since it is another user's.
func (o *Outgoing) StartMigrateTo(ctx context.Context, end *os.File) error {
	if err := o.vm.executeOn(ctx, "migrate", end); err != nil {
		return fmt.Errorf("start migration to a socket: %w", o.vm.died(err))
	}
	return nil
}

// WaitPreSwitchover waits until the guest has stopped and its memory is frozen.
// It returns when the guest stopped, by QEMU's clock; zero if it was not running.
func (o *Outgoing) WaitPreSwitchover(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, preSwitchWait)
	defer cancel()
	if err := o.wait(ctx, "pre-switchover"); err != nil {
		return time.Time{}, fmt.Errorf("wait for pre-switchover: %w", err)
	}
	return o.stopped, nil
}

// ContinueSwitchover lets QEMU send the device state.
func (o *Outgoing) ContinueSwitchover(ctx context.Context) error {
	o.continued = true
	if err := o.vm.Execute(ctx, "migrate-continue", map[string]string{"state": "pre-switchover"}, nil); err != nil {
		return fmt.Errorf("continue switch-over: %w", o.vm.died(err))
	}
	return nil
}

// WaitSourceCompleted waits until QEMU has written all of the device state. That
// says nothing of the destination.
func (o *Outgoing) WaitSourceCompleted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, completeWait)
	defer cancel()
	if err := o.wait(ctx, "completed"); err != nil {
		return fmt.Errorf("wait for the source's device state: %w", err)
	}
	return nil
}

// Stopped is the time of the last STOP event seen.
func (o *Outgoing) Stopped() time.Time { return o.stopped }

// next takes one event, noting STOP.
func (o *Outgoing) next(ctx context.Context) (Event, error) {
	e, err := o.sub.Next(ctx)
	if err == nil && e.Name == EventStop {
		o.stopped = e.Time
	}
	return e, err
}

// wait consumes events up to a MIGRATION event of that status.
func (o *Outgoing) wait(ctx context.Context, want string) error {
	for {
		e, err := o.next(ctx)
		if errors.Is(err, ErrTimeout) {
			return fmt.Errorf("%w%s", err, o.where())
		}
		if err != nil {
			return o.vm.died(err)
		}
		switch e.Name {
		case EventShutdown, EventPanicked:
			return detailed(ErrMigrationFailed, "the guest ended itself meanwhile (%s)", e.Name)
		case EventMigration:
			switch e.Status() {
			case want:
				return nil
			case "failed", "cancelled", "completed":
				return o.failure(ctx, e.Status())
			}
		}
	}
}

// failure words a migration that ended otherwise.
func (o *Outgoing) failure(ctx context.Context, status string) error {
	m, err := o.vm.Migration(ctx)
	if err != nil {
		return detailed(ErrMigrationFailed, "its state is %q: %w", status, o.vm.died(err))
	}
	if m.ErrorDesc == "" {
		m.ErrorDesc = "QEMU gives no reason; was the stream closed?"
	}
	return detailed(ErrMigrationFailed, "its state is %q: %s%s", status, m.ErrorDesc, o.vm.log.suffix())
}

// where says how far a migration is that did not arrive in time.
func (o *Outgoing) where() string {
	ctx, cancel := context.WithTimeout(context.Background(), 250*time.Millisecond)
	defer cancel()
	m, err := o.vm.Migration(ctx)
	if err != nil {
		return "; QEMU does not say how far it is, its state stream may be stuck"
	}
	return fmt.Sprintf("; QEMU's migration is %q", m.Status)
}
