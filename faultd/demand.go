package faultd

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/sched"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// retryPause is the wait before a refused fetch is sent again.
const retryPause = 50 * time.Millisecond

// reopenPause is the least time between two connections of a channel.
const reopenPause = 50 * time.Millisecond

// maxUnsent is how many connections of a channel that never had an answer may end since
// they cannot carry a fetch. The first may be older than what is known of the session.
const maxUnsent = 3

// channel is what demand and precache channels share.
type channel struct {
	e     *Engine
	kind  transport.Kind
	index int

	mu      sync.Mutex
	fetcher transport.Fetcher // guarded by mu; nil while down

	up      atomic.Bool
	answers atomic.Bool // something was answered, ever
	opens   atomic.Uint64
	lastErr atomic.Pointer[string]
}

// serveLoop opens the channel and serves it, over and over.
func (c *channel) serveLoop(serve func(transport.Fetcher) error) {
	e, unsent := c.e, 0
	for e.ctx.Err() == nil {
		f, err := e.cfg.Open(e.ctx, c.kind, c.index)
		if err != nil {
			if e.ctx.Err() == nil {
				e.fail(fmt.Errorf("open %v channel %d: %w", c.kind, c.index, err))
			}
			return
		}
		c.mu.Lock()
		c.fetcher = f
		c.mu.Unlock()
		if e.ctx.Err() != nil {
			c.close()
		}
		c.opens.Add(1)
		c.up.Store(true)
		e.cfg.Log.Debug("channel is up", "kind", c.kind, "index", c.index)
		since := time.Now()
		err = serve(f)
		c.up.Store(false)
		f.Close()
		c.mu.Lock()
		c.fetcher = nil
		c.mu.Unlock()
		if e.ctx.Err() != nil {
			return
		}
		if errors.Is(err, transport.ErrNotSent) && !c.answers.Load() {
			if unsent++; unsent == maxUnsent {
				e.fail(fmt.Errorf("%v channel %d: %w; see Config and the limits that the channel was opened with", c.kind, c.index, err))
				return
			}
		}
		text := err.Error()
		c.lastErr.Store(&text)
		e.cfg.Log.Warn("channel is down", "kind", c.kind, "index", c.index, "err", err)
		e.damaged(err)
		// A channel that dies as soon as it is there must not become a busy loop.
		if rest := reopenPause - time.Since(since); rest > 0 && !e.sleep(rest) {
			return
		}
	}
}

// close ends the channel's present connection.
func (c *channel) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fetcher != nil {
		c.fetcher.Close()
	}
}

// damaged counts channels that ended because the peer broke the protocol, and
// gives up on a peer that does nothing else.
func (e *Engine) damaged(err error) {
	if !errors.Is(err, transport.ErrMalformed) && !errors.Is(err, transport.ErrDecode) {
		return
	}
	if n := e.stats.damage.Add(1); int(n) >= e.cfg.MaxDamage {
		e.fail(fmt.Errorf("the page server broke the protocol on %d connections in a row: %w", n, err))
	}
}

// demandChannel is one demand channel with the thread that receives on it.
type demandChannel struct {
	channel
	posted atomic.Int32      // slots that are on this channel
	ready  bool              // guarded by Engine.sendMu; may be posted to
	failed error             // guarded by Engine.sendMu; why its last fetch could not be sent
	f      transport.Fetcher // guarded by Engine.sendMu
	thread *sched.Fault      // of run; nil if it has none of its own

	again   atomic.Bool          // somebody has posted and not looked
	looking sync.Mutex           // held by a thread in look
	comp    transport.Completion // guarded by looking
	rec     *recorders           // guarded by looking
}

func (c *demandChannel) run() {
	if c.e.cfg.BlockingDemand {
		c.thread = c.e.faultThread("demand receiver")
	}
	c.rec = c.e.stats.recorders() // nobody looks yet
	c.serveLoop(c.serve)
	c.looking.Lock() // for good
	c.e.stats.retire(c.rec)
}

// serve receives until the channel fails, then gives its fetches back.
func (c *demandChannel) serve(f transport.Fetcher) error {
	e := c.e
	e.sendMu.Lock()
	c.f, c.ready, c.failed = f, true, nil
	e.sendMu.Unlock()
	// Not here: what has gathered may be more than the socket takes before an answer is
	// received, and the source waits for that in turn.
	e.goWork(e.flush)

	sink := newSink(e, transport.Demand, f)
	defer sink.close()
	rec := e.stats.recorders()
	defer e.stats.retire(rec)
	var comp transport.Completion
	for {
		err := f.Receive(sink, &comp)
		sink.reset()
		if err != nil {
			if serr := c.giveBack(); errors.Is(serr, transport.ErrNotSent) {
				err = serr // what Receive saw is our own closing
			}
			return err
		}
		c.answers.Store(true)
		if comp.Refused != nil {
			c.refused(&comp)
			continue
		}
		e.stats.damage.Store(0)
		c.answered(&comp, rec)
		c.thread.Tick()
	}
}

// giveBack queues again what was posted on a channel that died. The error is that of
// the fetch it died of, if it was one.
func (c *demandChannel) giveBack() error {
	e := c.e
	e.sendMu.Lock()
	e.out.mu.Lock()
	c.ready = false
	err := c.failed
	var again []uint32
	for i := range e.out.slots {
		if s := &e.out.slots[i]; s.state == slotPosted && s.ch == c {
			s.state, s.ch = slotQueued, nil
			again = append(again, uint32(i))
		}
	}
	c.posted.Store(0)
	e.out.mu.Unlock()
	e.sendMu.Unlock()
	e.stats.retries.Add(uint64(len(again)))
	e.requeue(again)
	return err
}

func (e *Engine) requeue(slots []uint32) {
	for len(slots) > 0 {
		slots = slots[e.queue.Push(slots):]
	}
	e.flush()
}

// flush sends what is in the fault queue, unless another thread is at it: that
// one looks again after it has let the sender's place go. So a fault is sent by
// the thread that read it, with no other to be woken, and under load in batches.
// Whoever takes sendMu for another purpose must flush after letting it go.
func (e *Engine) flush() {
	for e.queue.Len() > 0 && e.sendMu.TryLock() {
		if d := e.pace.wait(); d > 0 {
			e.pace.hold(d)
			e.sendMu.Unlock()
			return
		}
		if e.pace.held.Swap(false) {
			e.stats.paced.Add(1)
		}
		c, f := e.send()
		e.sendMu.Unlock()
		if c == nil {
			return // no channel is up; the next one that comes flushes
		}
		if p, ok := f.(transport.Poller); ok {
			c.look(p)
		}
	}
}

// send posts what is queued, up to a batch, and returns the channel and where that
// sends to; nil if there is no channel. The caller holds sendMu.
func (e *Engine) send() (*demandChannel, transport.Fetcher) {
	var c *demandChannel
	for _, d := range e.demand {
		if d.ready && (c == nil || d.posted.Load() < c.posted.Load()) {
			c = d
		}
	}
	if c == nil {
		return nil, nil
	}
	n := e.queue.Pop(e.batch)
	if n == 0 {
		return c, nil
	}
	e.fbuf = e.fbuf[:0]
	e.out.mu.Lock()
	for _, i := range e.batch[:n] {
		s := &e.out.slots[i]
		s.state, s.ch = slotPosted, c
		e.fbuf = append(e.fbuf, transport.Fetch{ID: uint64(s.gen)<<16 | uint64(i), Range: s.rng, Plain: e.plain(s.rng)})
	}
	e.out.mu.Unlock()
	c.posted.Add(int32(n))
	e.stats.sends.Add(1)
	e.stats.demandFetches.Add(uint64(n))
	var err error
	if p, ok := c.f.(transport.Poller); ok {
		err = p.FetchAndPoll(e.fbuf)
	} else {
		err = c.f.Fetch(e.fbuf)
	}
	if err != nil {
		// Its receiver sees the end of the channel too, and gives back.
		c.ready, c.failed = false, err
		c.f.Close()
	}
	return c, c.f
}

// look takes the answers that are there, or about to be, to what this thread has
// posted: its faults are over before the receiver would be awake. Another thread that
// is at it looks again.
func (c *demandChannel) look(p transport.Poller) {
	c.again.Store(true)
	for c.again.Load() && c.looking.TryLock() {
		c.again.Store(false)
		for p.Poll(&c.comp) {
			c.e.stats.damage.Store(0)
			c.answered(&c.comp, c.rec)
		}
		c.looking.Unlock()
	}
}

// mine returns the slot of a completion, or nil for one that is not under way.
func (c *demandChannel) mine(comp *transport.Completion) (uint32, *slot) {
	e := c.e
	i := uint32(comp.ID & 0xffff)
	if int(i) >= len(e.out.slots) {
		return 0, nil
	}
	e.out.mu.Lock()
	defer e.out.mu.Unlock()
	s := &e.out.slots[i]
	if s.state != slotPosted || s.ch != c || uint64(s.gen)<<16|uint64(i) != comp.ID {
		return 0, nil
	}
	s.ch = nil
	s.state = slotLater // ours alone from here on
	c.posted.Add(-1)
	return i, s
}

// answered ends a demand fetch. The sink has installed what was claimed by it;
// what is left to do is to show zero pages and pages that others have brought.
func (c *demandChannel) answered(comp *transport.Completion, rec *recorders) {
	e := c.e
	i, s := c.mine(comp)
	if s == nil {
		return
	}
	e.stats.demandWire.Add(uint64(comp.WireBytes))
	if e.cfg.Share.Capped() {
		e.cfg.Share.Demand(int64(comp.WireBytes), time.Now())
	}
	reg := e.regions[s.rng.Region]
	page := transport.Range{Region: s.rng.Region, First: s.page, Count: 1}
	switch reg.Residency.State(s.page) {
	case pagecache.Zero:
		e.show(page, pagecache.Zero)
	case pagecache.Absent:
		// Its claim was given up by an installer that failed.
		e.later(i, s)
		return
	}
	if s.expected {
		e.end(i, s)
		return
	}
	now := time.Now()
	rec.queue.Record(comp.Sent.Sub(s.read))
	rec.wire.Record(comp.Wire)
	rec.decode.Record(comp.Decode)
	rec.install.Record(now.Sub(comp.Sent) - comp.Wire - comp.Decode)
	rec.total.Record(now.Sub(s.read))
	if e.cfg.Record != nil {
		e.cfg.Record.Served(s.rng.Region, s.page, now)
	}
	e.end(i, s)
}

// end frees a slot, then wakes the neighbours that relied on it without being
// part of its range, or that it found zero.
func (e *Engine) end(i uint32, s *slot) {
	rng, page, expected := s.rng, s.page, s.expected
	dup := e.out.leave(i)
	e.demandBusy.Add(-1)
	if expected && dup {
		e.stats.expectedLate.Add(1)
	}
	if !dup || e.out.group == 1 {
		return
	}
	pages := e.regions[rng.Region].Pages
	first := page / e.out.group * e.out.group
	count := uint32(min(e.out.group, pages-first))
	e.wake(transport.Range{Region: rng.Region, First: first, Count: count})
}

// refused decides what a REFUSE means.
func (c *demandChannel) refused(comp *transport.Completion) {
	e := c.e
	e.stats.refused.Add(1)
	i, s := c.mine(comp)
	if s == nil {
		return
	}
	if e.fatalRefusal(comp) {
		return
	}
	e.later(i, s)
}

// fatalRefusal fails the session if the source will never answer.
func (e *Engine) fatalRefusal(comp *transport.Completion) bool {
	var remote *transport.RemoteError
	if errors.As(comp.Refused, &remote) {
		switch remote.Code {
		case transport.CodeRange, transport.CodeMalformed, transport.CodeDone, transport.CodeToken, transport.CodeIdentity:
			e.fail(fmt.Errorf("fetch of pages %d+%d of region %d: %w", comp.First, comp.Count, comp.Region, comp.Refused))
			return true
		}
	}
	return false
}

// later queues a fetch again after a pause.
func (e *Engine) later(i uint32, s *slot) {
	e.stats.retries.Add(1)
	s.tries++
	if s.tries%100 == 1 {
		e.cfg.Log.Warn("demand fetch must be repeated", "region", s.rng.Region, "page", s.page, "tries", s.tries)
	}
	e.goWork(func() {
		if !e.sleep(retryPause) {
			return
		}
		e.out.mu.Lock()
		s.state = slotQueued
		e.out.mu.Unlock()
		e.requeue([]uint32{i})
	})
}
