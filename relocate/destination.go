package relocate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport/rdma"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// progressEvery is how often the destination reports to the source.
const progressEvery = 200 * time.Millisecond

// incoming is a relocation at its destination.
type incoming struct {
	*transfer
	pool       *chanPool
	vm         *qemu.VM
	mig        *qemu.Inbound
	proc       *qemu.Process
	memory     *guestMemory
	adopted    bool                         // vm has gone over to Host.machines
	relay      sync.WaitGroup               // carries the device state to QEMU
	rdmaDev    atomic.Pointer[rdma.Device]  // nil: pages come by TCP
	landing    atomic.Pointer[rdma.Landing] // of its READs; nil: by the staging buffers
	reads      rdma.Stats                   // of all channels
	rdmaLost   atomic.Pointer[string]       // why a channel last fell back
	returns    chan *tcp.Conn               // control channels that the source dialled anew
	warm       *faultd.Warm                 // guarded by transfer.mu; nil without candidates
	indexBytes atomic.Uint64                // of candidates, on the wire
	early      earlyCopy                    // the pre-transfer
	rings      []pagecache.Run              // guarded by transfer.mu; to be expected once fetches begin
	capped     chan struct{}                // one token: the cap was changed in the drain
}

func newIncoming(h *Host, rec *record) *incoming {
	return &incoming{
		transfer: newTransfer(h, rec), pool: newChanPool(),
		returns: make(chan *tcp.Conn, 1), capped: make(chan struct{}, 1),
	}
}

// hand gives the incoming relocation a control channel that was dialled anew;
// an older one that it has not taken yet is closed.
func (in *incoming) hand(conn *tcp.Conn) {
	for {
		select {
		case in.returns <- conn:
			select {
			case <-in.done: // nobody will take it
				in.refuseReturns()
			default:
			}
			return
		case old := <-in.returns:
			old.Close()
		case <-in.done:
			conn.Close()
			return
		}
	}
}

// run takes a new session from its first control channel to its end.
func (in *incoming) run(conn *tcp.Conn) {
	defer in.finish()
	ctl, err := newControl(in.host.ctx, conn, in.optional)
	in.update(func(s *Status) { s.Connected = true })
	if err == nil {
		err = in.prepare(ctl)
	}
	if err == nil {
		err = in.preTransfer(ctl)
	}
	if err == nil {
		err = in.load(ctl)
	}
	var run bool
	if err == nil {
		run, ctl, err = in.awaitGo(ctl)
	}
	if err != nil {
		in.giveUp(ctl, err)
		return
	}
	switch err := in.start(run); {
	case errors.Is(err, errNotStarted), errors.Is(err, qemu.ErrResumeRefused):
		in.giveUp(ctl, err) // not one instruction has run
		return
	case errors.Is(err, errShutdown):
		in.leave(ctl)
		return
	case err != nil:
		in.lose(ctl, err)
		return
	}
	in.drain(ctl)
}

// finish ends what lives only as long as the relocation.
func (in *incoming) finish() {
	in.sleepAgain()
	in.pool.close()
	if in.memory != nil {
		in.memory.close()
	}
	in.closeRDMA()
	if in.mig != nil {
		in.mig.Close()
	}
	if in.vm != nil && !in.adopted {
		in.vm.Close()
	}
	in.relay.Wait()
	in.host.remember(in.transfer)
	in.cancel(nil)
	close(in.done)
	in.refuseReturns()
}

// refuseReturns closes a control channel that nobody takes any more.
func (in *incoming) refuseReturns() {
	select {
	case conn := <-in.returns:
		conn.Close()
	default:
	}
}

// prepare starts the VMM and catches its faults.
func (in *incoming) prepare(ctl *control) error {
	var o offer
	if err := ctl.expect(in.ctx, msgOffer, "OFFER", in.host.cfg.deadlines.dial, &o); err != nil {
		return err
	}
	if err := in.host.awaitLeft(ctl.ctx, o.VM); err != nil {
		return err
	}
	if err := in.accept(&o); err != nil {
		return err
	}
	if err := in.acceptRDMA(ctl.conn.LocalAddr()); err != nil {
		return err
	}
	limit := in.host.cfg.deadlines.prepare
	ctx, cancel := context.WithTimeoutCause(ctl.ctx, limit, fmt.Errorf("the VMM was not ready within %v", limit))
	defer cancel()
	if err := in.startVMM(ctx, &o); err != nil {
		return err
	}
	memory, err := catchFaults(in)
	if err != nil {
		return err
	}
	in.memory = memory
	in.mu.Lock()
	in.fill = memory.fill
	in.limit = in.limitOf(memory)
	in.prefer = memory.prefer()
	in.mu.Unlock()
	collect() // and what it leaves to do is done by READY
	in.warmUp(ctx, ctl, &o)
	if err := in.reserve(ctx, &o); err != nil {
		return err
	}
	in.landInPlace()
	in.mig, err = in.vm.PrepareDestination(ctx)
	return err
}

// load takes the device state in; from the source's REGIONS on, pages flow.
func (in *incoming) load(ctl *control) error {
	limit := in.host.cfg.deadlines.state
	ctx, cancel := context.WithTimeoutCause(ctl.ctx, limit, fmt.Errorf("the device state was not loaded within %v", limit))
	defer cancel()
	state, err := in.awaitState(ctx, limit)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { state.Close() })
	defer stop()
	if err := in.enter(PhaseReady, "the VMM is up and its faults are caught by "+in.faultSource()); err != nil {
		return err
	}
	if err := in.memory.engine.Err(); err != nil {
		return fmt.Errorf("the fault engine has failed: %w", err)
	}
	in.stayAwake()
	if err := in.sayReady(ctl); err != nil {
		return err
	}
	in.relay.Go(func() {
		// An error here is one of the control channel or of QEMU, and both
		// have somebody who waits for them. It ends with the state, or else
		// with the channel: finish waits for it.
		io.Copy(struct{ io.Writer }{state}, ctl.ch.StateReader())
		state.Close()
	})
	var r regionsMsg
	if err := in.expectRegions(ctx, ctl, limit, &r); err != nil {
		return err
	}
	in.rec.Stopped = r.Stopped
	in.update(func(s *Status) { s.Stopped = r.Stopped })
	in.memory.begin()
	in.expect()
	in.show(PhaseFrozen, "the source's guest has stopped; fetches begin")
	if err := in.mig.WaitLoaded(ctx); err != nil {
		return fmt.Errorf("%w%s", err, in.memory.failure())
	}
	// Not written down: the guest stands still, and a successor treats all that
	// comes before committed alike.
	in.setPhase(PhaseLoaded)
	if !in.rec.Options.OnDemandOnly {
		// Held: only what the hot list names. Not sooner: on a host with few CPUs
		// it takes them from the VMM, which loads its state.
		in.memory.engine.SetPrecache(true)
	}
	in.show(PhaseLoaded, "the device state is loaded")
	if err := in.alive(); err != nil {
		return err
	}
	return ctl.send(msgLoaded, struct{}{})
}

// awaitState has QEMU wait for its state, and returns the way to it: by a socket in the state
// directory, into which a QEMU that has become another user (-runas) does not reach; that is
// handed its end.
func (in *incoming) awaitState(ctx context.Context, idle time.Duration) (*qemu.StateStream, error) {
	if in.vm.UID != os.Geteuid() {
		state, end, err := qemu.NewStatePair(idle)
		if err != nil {
			return nil, err
		}
		if err := in.mig.IncomingFrom(ctx, end); err != nil {
			state.Close()
			return nil, err
		}
		return state, nil
	}
	dialer, err := qemu.NewStateDialer(in.host.cfg.StateDir, os.Getuid())
	if err != nil {
		return nil, err
	}
	defer dialer.Close()
	if err := in.mig.Incoming(ctx, dialer.URI()); err != nil {
		return nil, err
	}
	return dialer.Dial(ctx, in.rec.PID, idle)
}

// alive reports a VMM that has died on us while it could not have run the guest.
func (in *incoming) alive() error {
	if !in.proc.Ended() {
		return nil
	}
	<-in.proc.Done()
	return fmt.Errorf("QEMU (pid %d) has ended: %w", in.rec.PID, in.proc.Err())
}

// awaitGo waits for the source's decision. If the channel is cut now, GO may be
// on its way: the source may have committed, so it is given time to return and
// say. It may return on another channel, which is then the one to use.
func (in *incoming) awaitGo(ctl *control) (run bool, _ *control, err error) {
	limit := in.host.cfg.deadlines.inDoubt
	deadline, cancel := context.WithTimeoutCause(in.ctx, limit, fmt.Errorf("the source did not say GO within %v", limit))
	defer cancel()
	for {
		m, err := ctl.next(deadline)
		if err == nil {
			switch m.Kind {
			case msgGo:
				var g goMsg
				if err := decode(m, &g); err != nil {
					return false, ctl, err
				}
				return g.Run, ctl, nil
			case msgRegions: // repeated after a reconnect
				continue
			}
			return false, ctl, fmt.Errorf("peer sent message %d where GO was due", m.Kind)
		}
		if !isCut(err) || deadline.Err() != nil {
			return false, ctl, err
		}
		in.warn("control channel lost before GO; waiting for the source to return", "err", err)
		ctl.close()
		ctl, err = in.await(deadline)
		if err != nil {
			return false, nil, err
		}
	}
}

// await waits for the source's next control channel and answers its SYNC.
func (in *incoming) await(ctx context.Context) (*control, error) {
	for {
		select {
		case conn := <-in.returns:
			ctl, err := newControl(in.host.ctx, conn, in.optional)
			if err != nil {
				continue
			}
			err = in.synchronise(ctx, ctl)
			if err == nil {
				in.update(func(s *Status) { s.Connected = true })
				return ctl, nil
			}
			ctl.close()
			var no *abortError
			if errors.As(err, &no) {
				return nil, err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (in *incoming) synchronise(ctx context.Context, ctl *control) error {
	var theirs syncMsg
	if err := ctl.expect(ctx, msgSync, "SYNC", in.host.cfg.deadlines.dial, &theirs); err != nil {
		return err
	}
	if theirs.Phase == PhaseRolledBack {
		return &abortError{"the source has rolled back"}
	}
	return ctl.send(msgSync, syncMsg{Phase: in.phase(), Resumed: in.rec.ResumedAt})
}

// giveUp ends the VMM, which has never run the guest, and says so for good.
func (in *incoming) giveUp(ctl *control, cause error) {
	in.rec.Error = cause.Error()
	in.setError(fmt.Errorf("%w: %w", ErrRolledBack, cause))
	// Written before anything is undone: from here on the answer to the
	// source's SYNC is rolled-back, so nothing below may resume the guest.
	in.conclude(PhaseRolledBack, "given up: "+cause.Error())
	if ctl != nil {
		ctl.end(msgAbort, abortMsg{Reason: cause.Error()})
	}
	in.discard()
}

// discard ends the VMM that was started here and removes its files.
func (in *incoming) discard() {
	vm := in.vm
	if in.memory != nil {
		in.mu.Lock()
		in.fill, in.limit, in.prefer = nil, nil, nil
		in.mu.Unlock()
		if in.rec.Phase == PhaseRolledBack {
			in.memory.abandon()
		} else {
			// A guest that has run must not go on with pages missing: no way
			// to end it but by signal.
			in.memory.close()
			vm = nil
		}
		in.memory = nil
	}
	if in.rec.PID != 0 {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(in.ctx), rollbackTimeout)
		defer cancel()
		if err := endProcess(ctx, vm, in.rec.PID, in.rec.StartTime); err != nil {
			in.warn("the VMM that was started here could not be ended", "pid", in.rec.PID, "err", err)
		}
		if err := freeMemory(in.rec.Memory); err != nil {
			in.warn("memory was not freed", "err", err)
		}
	} else if err := freeObjects(in.rec.Memory); err != nil {
		// Without a VMM a file is not known to be ours; an object is.
		in.warn("memory was not freed", "err", err)
	}
	removeFiles(in.rec.Cleanup)
	in.host.journal.removeResidency(in.rec)
}

// lose says that the machine is dead.
func (in *incoming) lose(ctl *control, cause error) {
	in.rec.Error = cause.Error()
	in.setError(fmt.Errorf("%w: %w", ErrLost, cause))
	in.conclude(PhaseLost, "the machine is lost: "+cause.Error())
	if ctl != nil {
		ctl.end(msgFailed, abortMsg{Reason: cause.Error()})
	}
	in.discard()
}

// channel takes a page channel that the source dialled.
func (in *incoming) channel(conn *tcp.Conn) error {
	base, err := conn.Fetcher()
	if err != nil {
		return err
	}
	in.host.mu.Lock()
	regions := in.rec.Regions // none yet, if the source dials before its offer
	in.host.mu.Unlock()
	conn.SetRegions(regions)
	f, err := in.overRDMA(conn, base)
	if err != nil {
		in.log.Debug("page channel is to be dialled again", "kind", conn.Kind(), "index", conn.Index(), "err", err)
		return conn.Close()
	}
	if err := in.pool.put(conn.Kind(), conn.Index(), conn.Epoch(), f); err != nil {
		f.Close() // the session is over; RDMA holds more than the connection
		return err
	}
	return nil
}
