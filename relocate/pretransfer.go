package relocate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// Bounds of a pre-transfer's time.
const (
	DefaultPreTransferTimeout = 10 * time.Minute
	MaxPreTransferTimeout     = 24 * time.Hour
)

// preTransferTimeout is what bounds the copying, whatever a peer asks for.
func (o *Options) preTransferTimeout() time.Duration {
	if o.PreTransferTimeoutMS <= 0 {
		return DefaultPreTransferTimeout
	}
	// Compared in milliseconds: a peer's number may not fit into a Duration.
	if o.PreTransferTimeoutMS > int64(MaxPreTransferTimeout/time.Millisecond) {
		return MaxPreTransferTimeout + 1
	}
	return time.Duration(o.PreTransferTimeoutMS) * time.Millisecond
}

// errEarlyTime ends a pre-transfer, and nothing else.
var errEarlyTime = errors.New("its time is over")

// earlyCopy is the destination's half of a pre-transfer (docs/PROTOCOL.md section
// 12).
type earlyCopy struct {
	mu      sync.Mutex
	agreed  bool          // READY has announced it; guarded by mu
	began   time.Time     // guarded by mu
	took    time.Duration // guarded by mu; 0: not over yet
	index   uint64        // bytes of INDEX on the wire; guarded by mu
	handles []earlyHandle // guarded by mu
}

// earlyHandle remembers what belongs to a channel that is lent to the engine.
type earlyHandle struct{ pooled }

func (c *earlyCopy) begin(channels int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.agreed, c.began, c.handles = true, time.Now(), make([]earlyHandle, channels)
}

func (c *earlyCopy) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = time.Since(c.began)
}

func (c *earlyCopy) isAgreed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.agreed
}

// fill adds the counters to a status.
func (c *earlyCopy) fill(s *Status, st faultd.PreStats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.agreed {
		return
	}
	s.PagesPreTransfer, s.BytesPreTransfer = st.Pages, st.Bytes+c.index
	s.PreTransferPass, s.PreTransferSeen = st.Pass, st.Seen
	took := c.took
	if took == 0 {
		took = time.Since(c.began)
	}
	s.PreTransferMS = float64(took) / float64(time.Millisecond)
}

// whyNoPreTransfer is why this host does not copy before the switch-over.
func (in *incoming) whyNoPreTransfer() string {
	switch {
	case in.rdmaDev.Load() != nil:
		return "pages travel by RDMA"
	case !in.isWarm():
		return "this memory takes no candidates"
	}
	return ""
}

// preTransfer copies memory while the guest runs at the source, if that was asked
// for. Its errors end the relocation; what only ends the copying is said.
func (in *incoming) preTransfer(ctl *control) error {
	if !in.rec.Options.PreTransfer {
		return nil
	}
	if why := in.whyNoPreTransfer(); why != "" {
		in.warn("no pre-transfer: " + why)
		return nil
	}
	limit := min(in.rec.Options.preTransferTimeout(), MaxPreTransferTimeout)
	channels := min(max(1, in.rec.Options.PrecacheChannels), maxPageChannels)
	in.early.begin(channels)
	if err := in.enter(PhasePreTransfer, "memory is copied while the guest runs at the source"); err != nil {
		return err
	}
	if err := ctl.send(msgReady, readyMsg{PreTransfer: true}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctl.ctx, limit, errEarlyTime)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- in.memory.engine.PreTransfer(ctx, faultd.PreTransfer{
			Channels: channels, Open: in.lendChannel, Back: in.takeChannelBack,
			Index: func(r transport.Range, hashes []byte) error {
				in.early.mu.Lock()
				in.early.index += uint64(len(hashes) + transport.HeaderSize)
				in.early.mu.Unlock()
				return ctl.sendIndex(r, hashes)
			},
		})
	}()
	err := in.whileCopying(ctl, done, cancel)
	in.early.end()
	return in.judge(ctl, err)
}

// whileCopying keeps the source informed until the copying has ended, with its error.
func (in *incoming) whileCopying(ctl *control, done <-chan error, cancel context.CancelFunc) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	end := func(err error) error {
		cancel()
		<-done
		return err
	}
	for {
		select {
		case err := <-done:
			return err
		case <-in.proc.Done():
			return end(in.alive())
		case m := <-ctl.msgs:
			if err := in.takeLimit(m); err != nil {
				return end(err)
			}
		case <-tick.C:
			if err := ctl.send(msgProgress, progressMsg{in.Status()}); err != nil {
				return end(err)
			}
		}
	}
}

// takeLimit takes the only message that the source may send now.
func (in *incoming) takeLimit(m tcp.Message) error {
	var l limitMsg
	if m.Kind != msgLimit {
		return fmt.Errorf("peer sent message %d during the pre-transfer", m.Kind)
	}
	if err := decode(m, &l); err != nil {
		return err
	}
	if l.Bandwidth < 0 {
		return fmt.Errorf("peer sent a cap of %d bytes per second", l.Bandwidth)
	}
	return in.setBandwidth(l.Bandwidth)
}

// expectRegions waits for REGIONS. A change of the cap that the source sent while
// PREPARED was on its way comes first, and holds.
func (in *incoming) expectRegions(ctx context.Context, ctl *control, limit time.Duration, r *regionsMsg) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no REGIONS from the peer within %v", limit))
	defer cancel()
	for {
		m, err := ctl.next(ctx)
		switch {
		case err != nil:
			return err
		case m.Kind == msgRegions:
			return decode(m, r)
		case m.Kind != msgLimit || !in.early.isAgreed():
			return fmt.Errorf("peer sent message %d where REGIONS (%d) was due", m.Kind, msgRegions)
		}
		if err := in.takeLimit(m); err != nil {
			return err
		}
	}
}

// judge decides what the end of the copying means.
func (in *incoming) judge(ctl *control, err error) error {
	s := in.Status()
	have := fmt.Sprintf("%d pages copied in %.1f s, %d candidates", s.PagesPreTransfer, s.PreTransferMS/1000, s.PagesCandidate)
	switch {
	case ctl.ctx.Err() != nil:
		return context.Cause(ctl.ctx)
	case in.proc.Ended():
		return in.alive()
	case errors.Is(err, transport.ErrNoMemory):
		return fmt.Errorf("out of memory for the guest: %w; free some at the destination or choose another host", err)
	case err == nil:
		in.note("pretransfer", have)
	case errors.Is(err, faultd.ErrRewritten):
		in.note("pretransfer", have+"; ended early, since "+faultd.ErrRewritten.Error())
	case errors.Is(err, errEarlyTime):
		in.note("pretransfer", have+"; its time of "+min(in.rec.Options.preTransferTimeout(), MaxPreTransferTimeout).String()+" was over")
	default:
		in.warn("the pre-transfer ended early, with "+have, "err", err)
	}
	return nil
}

// lendChannel lends a precache channel to the copying.
func (in *incoming) lendChannel(ctx context.Context, index int) (transport.Fetcher, error) {
	limit := in.host.cfg.deadlines.dial
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the source did not open precache channel %d within %v", index, limit))
	defer cancel()
	got, err := in.pool.take(ctx, transport.Precache, index)
	if err != nil {
		return nil, err
	}
	in.early.mu.Lock()
	in.early.handles[index].pooled = got
	in.early.mu.Unlock()
	return got.fetcher, nil
}

// takeChannelBack leaves it to whoever fetches next.
func (in *incoming) takeChannelBack(index int, f transport.Fetcher) {
	in.early.mu.Lock()
	epoch := in.early.handles[index].epoch
	in.early.mu.Unlock()
	if err := in.pool.put(transport.Precache, index, epoch, f); err != nil {
		f.Close() // the session is over
	}
}

// sayReady asks for the device state.
func (in *incoming) sayReady(ctl *control) error {
	if in.early.isAgreed() {
		return ctl.send(msgPrepared, struct{}{})
	}
	return ctl.send(msgReady, readyMsg{})
}

// preTransfer is the source's half: it answers out of the running machine's memory
// until the destination has enough.
func (o *outgoing) preTransfer(ctl *control, s *serving) error {
	if !o.rec.Options.PreTransfer {
		return errors.New("the destination announced a pre-transfer that nobody asked for")
	}
	if err := o.enter(PhasePreTransfer, "memory is copied, the guest runs on"); err != nil {
		return err
	}
	o.image.SetState(pageserver.Live)
	defer o.image.SetState(pageserver.Shut)
	close(o.live)
	if err := o.connectPages(ctl, s); err != nil {
		return err
	}
	o.setLimit(func(bytesPerSecond int64) error {
		return ctl.send(msgLimit, limitMsg{bytesPerSecond})
	})
	defer o.setLimit(nil)
	limit := o.rec.Options.preTransferTimeout() + o.host.cfg.deadlines.prepare
	ctx, cancel := context.WithTimeoutCause(o.ctx, limit, fmt.Errorf("no PREPARED from the peer within %v", limit))
	defer cancel()
	for {
		m, err := ctl.next(ctx)
		if err != nil {
			return err
		}
		switch m.Kind {
		case msgPrepared:
			return nil
		case msgProgress:
			var p progressMsg
			if err := decode(m, &p); err != nil {
				return err
			}
			o.update(func(s *Status) { s.copyCounters(&p.Status) })
		default:
			return fmt.Errorf("peer sent message %d during the pre-transfer", m.Kind)
		}
	}
}
