package relocate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// drain brings the rest of the memory. It survives any number of cuts; it ends
// when residency is full, the VMM dies, or this daemon stops (whose successor
// goes on).
func (in *incoming) drain(ctl *control) {
	text := "the guest runs here, its memory follows"
	if !in.rec.WasRun {
		text = "the guest is paused here, its memory follows"
	}
	in.conclude(PhaseDraining, text)
	if in.rec.WasRun && in.vm != nil {
		in.host.wg.Go(func() { in.announce() })
	}
	if !in.rec.Options.OnDemandOnly {
		in.memory.engine.Hold(false)
		in.memory.engine.SetPrecache(true)
	}
	follow := in.startFollower(ctl)
	defer follow.stop()
	for {
		select {
		case <-in.memory.engine.Drained():
			in.complete(follow)
			return
		case <-in.capped:
			in.newCap()
		case <-in.proc.Done():
			in.ended(follow)
			return
		case <-in.memory.engine.Failed():
			err := fmt.Errorf("the fault engine failed: %w", in.memory.engine.Err())
			if errors.Is(err, faultd.ErrGone) {
				<-in.proc.Done() // the engine has seen the same a moment sooner
				in.ended(follow)
				return
			}
			follow.stop()
			in.lose(follow.take(), err)
			return
		case <-in.host.ctx.Done():
			follow.stop()
			in.leave(follow.take())
			return
		}
	}
}

// leave lets go of a machine that is this host's, for the next daemon to take up: the VMM
// keeps its userfaultfd or object.
func (in *incoming) leave(ctl *control) {
	if ctl != nil {
		ctl.close()
	}
	in.memory.close()
	in.memory = nil
	in.mu.Lock()
	in.fill, in.limit, in.prefer = nil, nil, nil
	in.mu.Unlock()
}

// ended is what becomes of a machine whose VMM is no more.
func (in *incoming) ended(follow *follower) {
	if in.proc.Clean() {
		in.powerOff(follow)
		return
	}
	follow.stop()
	in.lose(follow.take(), in.died())
}

// poweredOff says of a machine what its VMM's exit status 0 does.
const poweredOff = "the guest has powered off, or its QEMU was told to quit, before all of its memory had come"

// powerOff ends the relocation of a machine that has ended in good order: nobody needs the
// rest of its memory.
func (in *incoming) powerOff(follow *follower) {
	final := in.Status()
	final.Drained = time.Now()
	in.mu.Lock()
	final.Phase = in.status.Phase
	in.status = final
	in.mu.Unlock()
	in.conclude(PhaseDone, poweredOff)
	in.discard()
	follow.ended = poweredOff
	follow.finish(in.Status())
}

func (in *incoming) died() error {
	return fmt.Errorf("QEMU (pid %d) has ended in mid-drain: %w", in.rec.PID, in.proc.Err())
}

// complete leaves the guest to itself and tells the source to let go.
func (in *incoming) complete(follow *follower) {
	in.settle()
	follow.finish(in.Status())
}

// settle leaves a machine to itself whose memory is all there. The journal says that first:
// whoever reads it after a crash must not look for the claims.
func (in *incoming) settle() {
	in.rec.Whole = true
	werr := in.host.journal.write(in.rec)
	if werr != nil {
		in.warn("journal not written", "err", werr)
	}
	final := in.Status()
	final.PagesRemaining = 0
	final.Drained = time.Now()
	if in.memory != nil {
		in.memory.close()
		in.memory = nil
	}
	in.mu.Lock()
	in.fill, in.limit, in.prefer = nil, nil, nil
	final.Phase = in.status.Phase
	in.status = final
	in.mu.Unlock()
	if werr == nil {
		in.host.journal.removeResidency(in.rec)
	}
	if err := in.host.cache.drop(in.rec.VM); err == nil {
		in.note("warm", "what was cached of the machine is dropped: it runs here")
	} else if !errors.Is(err, ErrNotCached) {
		in.warn("what was cached of the machine stays", "err", err)
	}
	if err := in.adopt(); err != nil && !errors.Is(err, errShutdown) {
		in.warn("the machine runs here but was not adopted; use `pagewarp vm add`", "qmp", in.rec.QMP, "err", err)
	}
	in.conclude(PhaseDone, "every page is here, the guest runs natively")
}

// adopt makes the machine one of this host's.
func (in *incoming) adopt() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(in.ctx), in.host.cfg.deadlines.load)
	defer cancel()
	var (
		desc qemu.Description
		err  = qemu.ErrDisconnected // also when it was out of reach when the drain was taken up
	)
	if in.vm != nil {
		desc, err = in.vm.Inspect(ctx)
	}
	if errors.Is(err, qemu.ErrDisconnected) {
		if in.vm != nil {
			in.mig.Close()
			in.vm.Close()
			in.vm = nil
		}
		if in.proc == nil {
			return fmt.Errorf("QEMU (pid %d): %w", in.rec.PID, qemu.ErrProcessGone)
		}
		if err := in.reconnect(ctx); err != nil {
			return err
		}
		desc, err = in.vm.Inspect(ctx)
	}
	if err != nil {
		return err
	}
	m := &machine{name: in.rec.VM, qmp: in.rec.QMP, vm: in.vm, last: machineOf(in.rec.VM, in.rec.QMP, desc),
		made: made{Objects: in.rec.objects(), Files: in.rec.Cleanup}, ram: ramFiles(desc)}
	if err := in.host.register(m); err != nil {
		return err
	}
	in.adopted = true
	return nil
}

// announce moves the network's idea of where the guest is.
func (in *incoming) announce() {
	ctx, cancel := context.WithTimeout(in.host.ctx, in.host.cfg.deadlines.dial)
	defer cancel()
	if err := in.vm.AnnounceSelf(ctx, qemu.DefaultAnnounce); err != nil && ctx.Err() == nil {
		in.warn("announce-self failed; switches learn the guest's place from its next packet", "err", err)
	}
}

// follower keeps the source informed, over as many control channels as it takes.
type follower struct {
	in     *incoming
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	ctl    *control // owned by the follower until done
	ended  string   // of a machine that is no more: why; set before finish
}

func (in *incoming) startFollower(ctl *control) *follower {
	f := &follower{in: in, ctl: ctl, done: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(in.host.ctx)
	go f.loop()
	return f
}

// stop ends the follower; the channel it had can then be taken.
func (f *follower) stop() {
	f.cancel()
	<-f.done
}

func (f *follower) take() *control {
	ctl := f.ctl
	f.ctl = nil
	return ctl
}

func (f *follower) loop() {
	defer close(f.done)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for fresh := true; ; {
		if f.ctl == nil {
			ctl, err := f.in.await(f.ctx)
			if err != nil {
				if f.ctx.Err() != nil {
					return
				}
				continue
			}
			f.ctl, fresh = ctl, true
			f.in.setError(nil)
			f.in.note("channel", "the source is back")
		}
		if fresh {
			fresh = false
			f.ctl.send(msgRunning, runningMsg{Run: f.in.rec.WasRun, Resumed: f.in.rec.ResumedAt})
		}
		select {
		case <-f.ctx.Done():
			return
		case conn := <-f.in.returns:
			// The source has dialled anew: the old channel is dead, even if
			// nobody has noticed.
			f.ctl.close()
			f.ctl = nil
			f.in.hand(conn)
		case <-f.ctl.ctx.Done():
			f.lost()
		case m := <-f.ctl.msgs:
			f.handle(m)
		case <-tick.C:
			if err := f.ctl.send(msgProgress, progressMsg{f.in.Status()}); err != nil {
				f.lost()
			}
		}
	}
}

// handle takes a message of the source's. REGIONS is repeated after a reconnect
// and needs nothing.
func (f *follower) handle(m tcp.Message) {
	var l limitMsg
	if m.Kind != msgLimit {
		return
	}
	err := decode(m, &l)
	if err == nil && l.Bandwidth < 0 {
		err = fmt.Errorf("bandwidth %d", l.Bandwidth)
	}
	if err == nil {
		err = f.in.setBandwidth(l.Bandwidth)
	}
	if err != nil {
		f.in.warn("the source's cap was not set", "err", err)
	}
}

func (f *follower) lost() {
	if f.ctx.Err() != nil {
		return
	}
	err := context.Cause(f.ctl.ctx)
	f.ctl.close()
	f.ctl = nil
	f.in.update(func(s *Status) { s.Connected = false; s.Reconnects++ })
	f.in.setError(fmt.Errorf("the source is out of reach; vCPUs that touch absent pages wait: %w", err))
	f.in.warn("the source is out of reach after the switch-over; vCPUs that touch absent pages wait", "err", err)
}

// finish tells the source that nothing more is needed of it and waits, for a while, for
// its RELEASED. Nothing depends on it: a source that asks later finds the
// journal's word.
func (f *follower) finish(final Status) {
	f.stop()
	ctl := f.take()
	ctx, cancel := context.WithTimeout(f.in.host.ctx, releaseWait)
	defer cancel()
	for {
		if ctl == nil {
			var err error
			if ctl, err = f.in.await(ctx); err != nil {
				f.in.warn("the source did not confirm its release; it will when it returns", "err", err)
				return
			}
		}
		if final.PagesTotal > 0 { // else they went with the daemon that counted them
			ctl.send(msgProgress, progressMsg{final})
		}
		ctl.send(msgDrained, drainedMsg{Ended: f.ended})
		for {
			m, err := ctl.next(ctx)
			if err != nil {
				break
			}
			if m.Kind == msgReleased {
				ctl.close()
				f.in.note("phase", "the source has let go")
				return
			}
		}
		ctl.close()
		ctl = nil
		if ctx.Err() != nil {
			f.in.warn("the source did not confirm its release; it will when it returns", "err", context.Cause(ctx))
			return
		}
	}
}
