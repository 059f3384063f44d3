package relocate

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/rdma"
)

// outgoing is a relocation at its source.
type outgoing struct {
	*transfer
	m    *machine // nil after a restart if the VMM is gone, or hangs
	vm   *qemu.VM // likewise
	desc qemu.Description
	here made // after a restart: what was made at this host for the machine; immutable

	again     *qemu.VM // a monitor that only the rollback has; nil without one
	unreached bool     // since the restart its VMM has lived and not answered; guarded by Host.mu

	image                    *pageserver.Image
	hot                      *hotWatch        // nil without a hot list
	rings                    *ringsFound      // nil without that policy
	ended                    string           // how the machine ended at the destination, if it has
	live                     chan struct{}    // closed when precache channels may be served before; nil: never
	frozen                   chan struct{}    // closed when the image may be served
	committed                bool             // guarded by transfer.mu
	frozenAt, loadedAt, goAt time.Time        // for DowntimeParts
	savedAt                  atomic.Int64     // likewise; Unix nanoseconds, set by the relay
	rdmaDev                  *rdma.Device     // nil: pages go by TCP
	export                   *rdma.Export     // likewise
	relay                    *relay           // nil until the device state was to come
	mig                      *qemu.Outgoing   // nil until QEMU was prepared: what a rollback undoes
	warm                     *pageserver.Warm // what the destination says that it has; nil without the feature
}

// Relocate starts to move a machine to the daemon at address to ("host:port" or
// "unix:/path"). It returns after the checks that need only this host; the rest
// is seen in Statuses and Subscribe.
func (h *Host) Relocate(ctx context.Context, name, to string, opts Options) (Status, error) {
	if err := checkOptions(&opts, h.cfg); err != nil {
		return Status{}, err
	}
	h.mu.Lock()
	m := h.machines[name]
	h.mu.Unlock()
	if m == nil {
		return Status{}, fmt.Errorf("relocate %s: %w", name, h.unknown(name))
	}
	desc, err := m.vm.Inspect(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("relocate %s: %w", name, m.gone(err))
	}
	if err := qemu.CheckRelocatable(desc); err != nil {
		return Status{}, fmt.Errorf("relocate %s: %w", name, err)
	}
	token, err := newToken()
	if err != nil {
		return Status{}, err
	}
	rec := &record{
		Token: token, VM: name, Role: RoleSource, Phase: PhaseConnecting, Peer: to, Options: opts,
		QMP: m.qmp, PID: desc.PID, StartTime: desc.Start, WasRun: desc.Running, Started: time.Now(),
	}
	for i, b := range desc.Backends {
		m := memoryRecord{ID: b.ID, Path: b.Path, Size: b.Size, Object: b.Object}
		if err := m.note(); err != nil {
			return Status{}, fmt.Errorf("relocate %s: %w", name, err)
		}
		rec.Memory = append(rec.Memory, m)
		rec.Regions = append(rec.Regions, transport.Region{
			ID: uint32(i), Name: b.ID, PageSize: uint32(b.PageSize), Pages: uint64(b.Size) / uint64(b.PageSize),
		})
	}
	o := &outgoing{transfer: newTransfer(h, rec), m: m, vm: m.vm, desc: desc, live: make(chan struct{}), frozen: make(chan struct{})}

	h.mu.Lock()
	switch {
	case h.ctx.Err() != nil:
		err = errShutdown
	case m.busy != nil:
		err = ErrBusy
	default:
		m.busy = o
		h.outgoing[token] = o
		h.wg.Go(o.run)
	}
	h.mu.Unlock()
	if err != nil {
		return Status{}, fmt.Errorf("relocate %s: %w", name, err)
	}
	return o.Status(), nil
}

func checkOptions(o *Options, cfg HostConfig) error {
	if o.Codec == "" {
		o.Codec = "auto"
	}
	if _, err := transport.ParseCodecMode(o.Codec); err != nil {
		return err
	}
	if err := checkRDMA(o); err != nil {
		return err
	}
	if err := CheckPolicies(policyNames(o.Precache)); err != nil {
		return err
	}
	if o.Bandwidth < 0 {
		return fmt.Errorf("bandwidth %d: it must not be negative (0 is no cap)", o.Bandwidth)
	}
	if o.PreTransferTimeoutMS < 0 || o.preTransferTimeout() > MaxPreTransferTimeout {
		return fmt.Errorf("pre-transfer timeout of %d ms: allowed are 1 ms to %v, 0 is %v", o.PreTransferTimeoutMS, MaxPreTransferTimeout, DefaultPreTransferTimeout)
	}
	setDefault(&o.DemandChannels, cfg.DemandChannels)
	setDefault(&o.PrecacheChannels, cfg.PrecacheChannels)
	if o.DemandChannels > maxPageChannels || o.PrecacheChannels > maxPageChannels {
		return fmt.Errorf("%d demand and %d precache channels: at most %d of each", o.DemandChannels, o.PrecacheChannels, maxPageChannels)
	}
	return nil
}

// abandon asks the relocation to roll back; it reports false when it is too late.
func (o *outgoing) abandon(cause error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.committed {
		return false
	}
	if o.ctx.Err() == nil {
		o.status.Error = "rolling back: " + cause.Error()
	}
	o.cancel(cause)
	return true
}

// commit is the point of no return: from here on the source never runs again.
// It fails if the relocation was abandoned first.
func (o *outgoing) commit() error {
	o.mu.Lock()
	if o.ctx.Err() != nil {
		o.mu.Unlock()
		return context.Cause(o.ctx)
	}
	o.committed = true
	o.mu.Unlock()
	if err := o.enter(PhaseCommitted, "committed: the machine belongs to the destination"); err != nil {
		o.mu.Lock()
		o.committed = false // GO has not been sent, so nothing has happened yet
		o.mu.Unlock()
		return err
	}
	return nil
}

func (o *outgoing) run() {
	defer o.finish()
	s := newServing(o)
	defer s.stop()
	ctl, err := o.switchOver(s)
	if err != nil && !o.isCommitted() {
		if cause := context.Cause(o.ctx); cause != nil {
			err = cause // whatever failed, failed because of it
		}
		o.rollback(ctl, s, err)
		return
	}
	o.drain(ctl, s, err)
}

// finish ends what lives only as long as the relocation.
func (o *outgoing) finish() {
	o.sleepAgain()
	o.closeRDMA()
	o.host.remember(o.transfer)
	o.host.mu.Lock()
	if o.m != nil && o.m.busy == o {
		o.m.busy = nil
	}
	hung := o.unreached && o.rec.Phase.Final()
	o.host.mu.Unlock()
	if hung {
		o.host.reached(o)
	}
	if o.mig != nil {
		o.mig.Close()
	}
	if o.again != nil {
		o.again.Close()
	}
	o.hot.wait()
	o.rings.wait()
	o.relay.wait()
	o.cancel(nil)
	close(o.done)
}

func (o *outgoing) isCommitted() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.committed
}

// switchOver takes the relocation from the first connection to draining. The
// control channel is returned even on error, if there is one.
func (o *outgoing) switchOver(s *serving) (*control, error) {
	if err := o.enter(PhaseConnecting, "connecting to "+o.rec.Peer); err != nil {
		return nil, err
	}
	image, err := o.openImage()
	if err != nil {
		return nil, err
	}
	o.image = image
	ctl, err := o.dialControl(o.ctx, firstEpoch)
	if err != nil {
		return nil, fmt.Errorf("reach the destination %s: %w%s", o.rec.Peer, err, reachRemedy(err))
	}
	if err := o.takeIndex(ctl); err != nil {
		return ctl, err
	}
	if err := o.offerRDMA(ctl.conn.LocalAddr()); err != nil {
		return ctl, err
	}
	allocated, err := allocated(o.rec.Memory)
	if err != nil {
		return ctl, err
	}
	data, err := dataRuns(o.rec.Memory, o.rec.Regions)
	if err != nil {
		o.warn("the destination reserves no memory", "err", err)
	}
	if err := ctl.send(msgOffer, offer{
		VM: o.rec.VM, Description: o.desc, Regions: o.rec.Regions, Allocated: allocated, Data: appendRuns(nil, data), Options: o.rec.Options,
	}); err != nil {
		return ctl, err
	}
	o.show(PhasePreparing, "the destination starts its VMM")
	policies := policyNames(o.rec.Options.Precache)
	if slices.Contains(policies, Rings) && !o.rec.Options.OnDemandOnly {
		o.rings = o.findRings(ctl.ctx)
	}
	if slices.Contains(policies, "hot") {
		o.hot = o.watchMemory(ctl)
	}
	collect() // while the destination is at work
	var ready readyMsg
	if err := ctl.expect(o.ctx, msgReady, "READY", o.host.cfg.deadlines.prepare, &ready); err != nil {
		return ctl, err
	}
	if ready.PreTransfer {
		if err := o.preTransfer(ctl, s); err != nil {
			return ctl, err
		}
	}
	if err := o.enter(PhaseReady, "the destination is ready"); err != nil {
		return ctl, err
	}
	o.hot.isReady()
	if err := o.tellRings(ctl, o.rings); err != nil {
		return ctl, err
	}
	if !ready.PreTransfer {
		if err := o.connectPages(ctl, s); err != nil {
			return ctl, err
		}
	}
	return ctl, o.handOver(ctl)
}

// connectPages opens the page channels.
func (o *outgoing) connectPages(ctl *control, s *serving) error {
	err := s.connect(ctl.ctx)
	if cause := context.Cause(ctl.ctx); err != nil && cause != nil {
		return cause // the dials were given up because of it
	}
	return err
}

// handOver freezes the guest and moves its device state. What stands between
// the guest's stop and GO is its downtime.
func (o *outgoing) handOver(ctl *control) error {
	limit := o.host.cfg.deadlines.state
	ctx, cancel := context.WithTimeoutCause(ctl.ctx, limit, fmt.Errorf("the switch-over took longer than %v", limit))
	defer cancel()
	relay, err := newRelay(o.host.cfg.StateDir, o.desc.UID, limit)
	if err != nil {
		return err
	}
	o.relay = relay
	defer relay.stop() // it may be in a write that only the control channel's end ends: finish waits
	if o.mig, err = o.vm.PrepareSource(ctx); err != nil {
		return err
	}
	o.mig.AbortWith(relay)
	o.rec.Saved = o.mig.Saved()
	o.rec.WasRun = o.rec.Saved.WasRunning
	if err := o.enter(PhaseState, "device state begins to flow, the guest runs on"); err != nil {
		return err
	}
	o.stayAwake()
	if err := relay.start(ctx, o.mig); err != nil {
		return err
	}
	relay.wg.Go(func() {
		if err := relay.run(ctx, o.rec.PID, limit, ctl, &o.savedAt); err != nil && ctx.Err() == nil && !relay.stopped() {
			ctl.cancel(err)
		}
	})
	stopped, err := o.mig.WaitPreSwitchover(ctx)
	if err != nil {
		return err
	}
	// The image is frozen. The journal need not be written here: every phase
	// before committed is recovered alike.
	o.image.SetState(pageserver.Frozen)
	close(o.frozen)
	o.frozenAt = time.Now()
	o.rec.Stopped = stopped
	o.update(func(s *Status) { s.Stopped = stopped })
	if err := ctl.send(msgRegions, regionsMsg{Regions: o.rec.Regions, Stopped: stopped}); err != nil {
		return err
	}
	if err := o.mig.ContinueSwitchover(ctx); err != nil {
		return err
	}
	o.hot.isFrozen()
	o.show(PhaseFrozen, "the guest has stopped, its image is frozen")
	if err := ctl.expect(ctx, msgLoaded, "LOADED", o.host.cfg.deadlines.load, nil); err != nil {
		return err
	}
	o.loadedAt = time.Now()
	if err := o.commit(); err != nil {
		return err
	}
	o.goAt = time.Now()
	if err := ctl.send(msgGo, goMsg{Run: o.rec.WasRun && !o.rec.Options.Paused}); err != nil {
		return err
	}
	o.hot.isGone()
	o.freezeObjects()
	return nil
}

// downtimeParts splits the time from stop to resume (both of the VMMs' clocks).
func (o *outgoing) downtimeParts(resumed time.Time) map[string]float64 {
	if o.goAt.IsZero() || resumed.IsZero() || o.rec.Stopped.IsZero() {
		return nil // after a restart of this daemon, or left paused
	}
	ms := func(from, to time.Time) float64 {
		return float64(to.Sub(from).Microseconds()) / 1000
	}
	saved := time.Unix(0, o.savedAt.Load())
	// Without their monotonic readings, since QEMU's times have none.
	frozen, loaded, sent := o.frozenAt.Round(0), o.loadedAt.Round(0), o.goAt.Round(0)
	return map[string]float64{
		"freeze": ms(o.rec.Stopped, frozen), "save": ms(frozen, saved), "load": ms(saved, loaded),
		"commit": ms(loaded, sent), "resume": ms(sent, resumed),
	}
}

func (o *outgoing) openImage() (*pageserver.Image, error) {
	var sources []pageserver.Source
	for i, m := range o.rec.Memory {
		f, err := m.frozen()
		if err != nil {
			return nil, fmt.Errorf("open the memory of %s: %w", o.rec.VM, err)
		}
		defer f.Close() // the image opens it anew
		sources = append(sources, pageserver.Source{Region: o.rec.Regions[i], FD: int(f.Fd())})
	}
	image, err := pageserver.Open(sources)
	if err != nil {
		return nil, fmt.Errorf("open the memory of %s, %s: %w", o.rec.VM, describe(o.rec.Memory), err)
	}
	return image, nil
}

// allocated sums the memory that the RAM files really take, in bytes.
func allocated(files []memoryRecord) (int64, error) {
	var sum int64
	for _, f := range files {
		n, err := f.allocated()
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
