package relocate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

var (
	errDrained  = errors.New("drained") // not a failure: the loop's end
	errReturned = errors.New("the destination was never told to run the machine and has given it up")
)

// drain follows the destination until every page is there. The machine belongs
// to the destination, so the only ways out are DRAINED, the machine's loss, the
// destination's word that it never ran it, and this daemon's stop (whose
// successor goes on).
func (o *outgoing) drain(ctl *control, s *serving, lost error) {
	life, stop := context.WithCancel(o.host.ctx) // not o.ctx: nobody can cancel any more
	defer stop()
	wait := redialMin
	for {
		var err error
		cut := false // an attempt to dial that fails is none
		switch {
		case lost != nil:
			err, lost, cut = lost, nil, true
		case ctl == nil:
			ctl, err = o.resume(life)
		}
		if err == nil {
			wait = redialMin
			o.update(func(st *Status) { st.Connected = true })
			o.setError(nil)
			cut = true
			err = o.follow(life, ctl)
		}
		o.setLimit(nil)
		switch {
		case errors.Is(err, errDrained):
			o.release(ctl, s)
			return
		case errors.Is(err, errReturned):
			o.takeBack(ctl, s)
			return
		case errors.Is(err, ErrLost):
			o.lose(ctl, s, err)
			return
		}
		if ctl != nil {
			ctl.close()
			ctl = nil
		}
		if life.Err() != nil {
			return // the journal says draining; the next daemon serves on
		}
		o.update(func(st *Status) {
			st.Connected, st.ChannelsUp = false, 0 // what is up there is not known
			if cut {
				st.Reconnects++
			}
		})
		if wait == redialMin {
			o.warn("control channel lost after the switch-over; dialling again", "err", err)
		}
		o.setError(fmt.Errorf("the destination is out of reach, its guest waits for pages that it has not got: %w", err))
		sleep(life, wait)
		wait = min(2*wait, redialMax)
	}
}

// resume dials the control channel again and brings both sides to one view.
func (o *outgoing) resume(ctx context.Context) (*control, error) {
	ctl, err := o.dialControl(ctx, uint64(time.Now().UnixNano()))
	if err != nil {
		return nil, err
	}
	if err := o.synchronise(ctx, ctl); err != nil {
		if errors.Is(err, errDrained) || errors.Is(err, errReturned) || errors.Is(err, ErrLost) {
			return ctl, err
		}
		ctl.close()
		return nil, err
	}
	return ctl, nil
}

func (o *outgoing) synchronise(ctx context.Context, ctl *control) error {
	if err := ctl.send(msgSync, syncMsg{Phase: o.rec.Phase}); err != nil {
		return err
	}
	var theirs syncMsg
	if err := ctl.expect(ctx, msgSync, "SYNC", o.host.cfg.deadlines.dial, &theirs); err != nil {
		return err
	}
	switch theirs.Phase {
	case PhaseRolledBack:
		if o.rec.Phase == PhaseDraining {
			return errors.New("the destination says that it never ran the machine, and had said that it runs: one of its daemons has the other's state; the source stays stopped, look there which is true")
		}
		return errReturned
	case PhaseLost:
		return fmt.Errorf("%w: %s", ErrLost, theirs.Reason)
	case PhaseDone:
		return errDrained
	}
	if err := ctl.send(msgRegions, regionsMsg{Regions: o.rec.Regions, Stopped: o.rec.Stopped}); err != nil {
		return err
	}
	if theirs.Phase == PhaseLoaded { // GO was lost on the way
		return ctl.send(msgGo, goMsg{Run: o.rec.WasRun && !o.rec.Options.Paused})
	}
	return nil
}

// follow reads the control channel until it breaks or the drain has ended.
func (o *outgoing) follow(ctx context.Context, ctl *control) error {
	o.setLimit(func(bytesPerSecond int64) error {
		return ctl.send(msgLimit, limitMsg{bytesPerSecond})
	})
	for {
		m, err := ctl.next(ctx)
		if err != nil {
			return err
		}
		if err := o.handle(m); err != nil {
			return err
		}
	}
}

func (o *outgoing) setLimit(f func(int64) error) {
	o.mu.Lock()
	o.limit = f
	o.mu.Unlock()
}

func (o *outgoing) handle(m tcp.Message) error {
	switch m.Kind {
	case msgRunning:
		var r runningMsg
		if err := decode(m, &r); err != nil {
			return err
		}
		o.rec.ResumedAt = r.Resumed
		o.update(func(s *Status) {
			s.Resumed = r.Resumed
			if !r.Resumed.IsZero() && !s.Stopped.IsZero() {
				s.DowntimeMS = float64(r.Resumed.Sub(s.Stopped)) / float64(time.Millisecond)
				s.DowntimeParts = o.downtimeParts(r.Resumed)
			}
		})
		text := "the guest runs at the destination, its memory follows"
		if !r.Run {
			text = "the guest is paused at the destination, its memory follows"
		}
		o.conclude(PhaseDraining, text) // a journal that says committed does as well
	case msgProgress:
		var p progressMsg
		if err := decode(m, &p); err != nil {
			return err
		}
		o.update(func(s *Status) {
			s.copyCounters(&p.Status)
			o.fillRDMA(s)
		})
	case msgDrained:
		var d drainedMsg
		if err := decode(m, &d); err != nil {
			return err
		}
		o.ended = d.Ended
		return errDrained
	case msgFailed:
		var f abortMsg
		if err := decode(m, &f); err != nil {
			return err
		}
		return fmt.Errorf("%w: %s", ErrLost, f.Reason)
	default:
		return fmt.Errorf("peer sent message %d during the drain", m.Kind)
	}
	return nil
}

// copyCounters takes over what only the destination knows.
func (s *Status) copyCounters(d *Status) {
	s.PagesTotal, s.PagesRemaining = d.PagesTotal, d.PagesRemaining
	s.PagesDemand, s.PagesPrecache, s.PagesZero = d.PagesDemand, d.PagesPrecache, d.PagesZero
	s.BytesGuest, s.BytesWire = d.BytesGuest, d.BytesWire
	s.RateBytes, s.ETASec = d.RateBytes, d.ETASec
	s.ChannelsUp, s.ChannelsTotal, s.ChannelReopens = d.ChannelsUp, d.ChannelsTotal, d.ChannelReopens
	s.PagesSame, s.PagesMoved, s.PagesCandidate, s.BytesSaved = d.PagesSame, d.PagesMoved, d.PagesCandidate, d.BytesSaved
	s.WarmProblem = d.WarmProblem
	s.PagesPreTransfer, s.BytesPreTransfer, s.PreTransferMS = d.PagesPreTransfer, d.BytesPreTransfer, d.PreTransferMS
	s.PreTransferPass, s.PreTransferSeen = d.PreTransferPass, d.PreTransferSeen
	s.FaultLatency, s.Stages = d.FaultLatency, d.Stages
	s.FaultSource = d.FaultSource
	s.RDMA = s.RDMA.with(d.RDMA)
	s.Policies, s.HotPages = d.Policies, d.HotPages
	s.Drained = d.Drained
	s.Options.Bandwidth, s.Options.OnDemandOnly = d.Options.Bandwidth, d.Options.OnDemandOnly
}

// release lets go of the source's half: page channels, image, VMM, RAM file.
func (o *outgoing) release(ctl *control, s *serving) {
	s.stop()
	if ctl != nil {
		ctl.end(msgReleased, struct{}{}) // the destination does not depend on it
	}
	o.releaseImage()
	if err := o.endVMM(); err != nil {
		o.warn("the source's VMM or memory was not freed", "err", err)
	}
	o.update(func(st *Status) {
		st.Connected = false
		if o.ended == "" {
			st.PagesRemaining = 0
		}
		if st.Drained.IsZero() {
			st.Drained = time.Now()
		}
	})
	o.conclude(PhaseDone, o.doneText())
}

// releaseImage lets go of the image, if there is one: see awaitImage. Nobody serves any more.
func (o *outgoing) releaseImage() {
	if o.image != nil {
		o.image.Release() // it is mapped for reading alone: nothing can be lost
	}
}

func (o *outgoing) doneText() string {
	text := "relocated to " + o.rec.Peer + "; the source is released"
	if o.rec.Options.KeepSource {
		text = fmt.Sprintf("relocated to %s; kept as asked: QEMU pid %d, stopped, and its memory %s", o.rec.Peer, o.rec.PID, describe(o.rec.Memory))
	}
	if o.ended != "" {
		text += "; " + o.ended
	}
	return text
}

// endVMM ends the stopped QEMU and removes its RAM files, unless the operator
// wanted to keep them.
func (o *outgoing) endVMM() error {
	files := o.here.Files
	if o.m != nil {
		o.host.mu.Lock()
		if o.host.machines[o.m.name] == o.m {
			delete(o.host.machines, o.m.name)
		}
		files = o.m.made.Files
		err := o.host.saveMachinesLocked()
		o.host.mu.Unlock()
		if err != nil { // the next start finds no VMM of that name
			o.warn("the list of machines was not written", "err", err)
		}
	}
	if o.rec.Options.KeepSource {
		if o.vm != nil {
			o.vm.Close()
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), rollbackTimeout)
	defer cancel()
	if err := endProcess(ctx, o.vm, o.rec.PID, o.rec.StartTime); err != nil {
		return err
	}
	removeFiles(files)
	return o.keepMemory()
}

// takeBack runs the machine at the source again: the destination has proved
// that it never did.
func (o *outgoing) takeBack(ctl *control, s *serving) {
	if o.vm == nil && o.alive() {
		o.warn("the machine is this host's again, but its QEMU does not answer; it runs when it does", "pid", o.rec.PID)
		o.reachLater(o.host.ctx) // what it says is seen in what there is afterwards
		if o.vm == nil && o.host.ctx.Err() != nil {
			ctl.close()
			return // the journal says committed; the next daemon asks the destination again
		}
	}
	o.mu.Lock()
	o.committed = false
	o.mu.Unlock()
	if o.vm == nil {
		o.lose(ctl, s, fmt.Errorf("%w: the destination gave it up and the source's VMM is gone too", ErrLost))
		return
	}
	if o.mig == nil { // after a restart of this daemon
		o.mig = o.vm.AdoptOutgoing(o.rec.Saved)
	}
	o.rollback(ctl, s, errReturned)
}

// lose ends a relocation whose machine is dead. The image stays on disk: it is
// all that is left of the guest.
func (o *outgoing) lose(ctl *control, s *serving, err error) {
	if ctl != nil {
		ctl.close()
	}
	s.stop()
	o.releaseImage()
	o.rec.Error = err.Error()
	o.setError(err)
	text := fmt.Sprintf("%v; the source never runs it again, but its memory is still in %s and its stopped QEMU is pid %d", err, describe(o.rec.Memory), o.rec.PID)
	o.conclude(PhaseLost, text)
}

// dial opens one channel of the session.
func (o *outgoing) dial(ctx context.Context, kind transport.Kind, index int, epoch uint64) (*tcp.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.host.cfg.deadlines.dial)
	defer cancel()
	mode, err := transport.ParseCodecMode(o.rec.Options.Codec)
	if err != nil {
		return nil, err
	}
	opts := tcp.Options{
		Hello: transport.Hello{
			Kind: kind, Role: transport.Source, Index: uint16(index), Epoch: epoch,
			Token: tokenBytes(o.rec.Token), Features: transport.AllFeatures,
		},
		Tuning: o.host.tuning(),
	}
	opts.Codec = mode
	if o.export != nil && kind != transport.Control {
		opts.Hello.Features |= transport.FeatureRDMA | transport.FeatureSend
	}
	if o.host.cfg.ClientTLS != nil {
		opts.TLS = o.host.cfg.ClientTLS()
	}
	conn, err := tcp.Dial(ctx, o.rec.Peer, opts)
	if err != nil && opts.TLS == nil && errors.Is(err, io.ErrUnexpectedEOF) {
		// What a daemon with certificates does to a HELLO in clear text.
		err = fmt.Errorf("%w; if the peer has certificates, this daemon needs them too: set [tls]", err)
	}
	if err != nil {
		return nil, err
	}
	conn.SetRegions(o.rec.Regions)
	return conn, nil
}

// reachRemedy is what helps where a first connection was not to be had.
func reachRemedy(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "; write an address, or a name that this host knows"
	case errors.Is(err, unix.ECONNREFUSED):
		return "; nobody listens there: is pagewarpd running, and is that address in its `listen`?"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return "; is the host up, and is its port open to this one?"
	case errors.Is(err, os.ErrDeadlineExceeded): // the kernel of the host answered
		return "; is it pagewarpd that listens there, and does it hang?"
	}
	return ""
}

// dialControl opens the control channel; epoch is firstEpoch only for the first.
func (o *outgoing) dialControl(ctx context.Context, epoch uint64) (*control, error) {
	conn, err := o.dial(ctx, transport.Control, 0, epoch)
	if err != nil {
		return nil, err
	}
	ctl, err := newControl(ctx, conn, nil)
	if err != nil {
		return nil, err
	}
	o.update(func(s *Status) { s.Connected = true })
	return ctl, nil
}
