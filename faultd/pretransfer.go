package faultd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/sched"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// PreTransfer says how [Engine.PreTransfer] reaches the source.
type PreTransfer struct {
	// Channels is how many precache channels there are; Open waits for one of them,
	// of whatever index is given, and Back takes it again, with nothing outstanding.
	Channels int
	Open     func(ctx context.Context, index int) (transport.Fetcher, error)
	Back     func(index int, f transport.Fetcher)
	// Index tells the source the hashes of the candidates of r, pagehash.Size bytes
	// each. It is called by several goroutines.
	Index func(r transport.Range, hashes []byte) error
}

const (
	// preGrace is given to answers under way when a pre-transfer must end; then their
	// channel is closed.
	preGrace = 2 * time.Second
	// preLosses is how many lost channels end a pre-transfer.
	preLosses = 8
	// prePasses is the most passes over the memory. There is another one while the
	// last has brought over 1/preWorth of what is held, and after the second, less
	// than half of what the one before it did.
	prePasses = 4
	preWorth  = 64
	// preStep is how many pages the first pass copies before it looks, as later ones
	// do at their end, whether that was worth it: it asks for preProbe pages of each
	// preEvery once more.
	preStep  = 16384
	preSteps = 8 // in a pass, at most
	preProbe = 16
	preEvery = 64 * preProbe
	// preLeast is how many pages must have been compared to tell.
	preLeast = 128
)

// ErrRewritten ends a pre-transfer that does not pay: most of what it copied has been
// written since, and more will be until the switch-over.
var ErrRewritten = errors.New("most of what was copied has changed already")

// PreStats is how far a pre-transfer has come.
type PreStats struct {
	Pass  int    // from 1 on; 0: there is none
	Seen  uint64 // pages of this pass that were asked for, or known to be zero
	Pages uint64 // copied, in all passes
	Bytes uint64 // of answers, on the wire
}

// preStats counts for PreStats.
type preStats struct {
	pass               atomic.Int32
	seen, pages, bytes atomic.Uint64
}

func (s *preStats) stats() PreStats {
	return PreStats{int(s.pass.Load()), s.seen.Load(), s.pages.Load(), s.bytes.Load()}
}

// PreTransfer fetches memory of a machine that still runs elsewhere, and puts it
// behind absent pages as candidates (docs/PROTOCOL.md section 12). It comes after
// SetWarm and before the engine may open channels. It returns nil when all was
// looked at, else why it ended before; what was copied by then are candidates all
// the same. Errors that wrap transport.ErrNoMemory mean that the guest's memory has
// no room here. When ctx ends it returns within some seconds. At its return no fetch
// is outstanding.
func (e *Engine) PreTransfer(ctx context.Context, cfg PreTransfer) error {
	w := e.warm.Load()
	if w == nil {
		return errors.New("pre-transfer: the engine has no candidates")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &preTransfer{e: e, w: w, cfg: cfg, cancel: cancel}
	last := uint64(0)
	for pass := 1; pass <= prePasses; pass++ {
		if pass > 1 {
			if err := p.probe(ctx); err != nil {
				return err
			}
		}
		before := e.stats.early.pages.Load()
		if err := p.pass(ctx, pass); err != nil {
			return err
		}
		brought := e.stats.early.pages.Load() - before
		e.cfg.Log.Info("memory copied while the guest runs at the source", "pass", pass, "pages", brought, "candidates", w.Candidates())
		if brought*preWorth < w.Candidates() || pass > 1 && 2*brought > last {
			break
		}
		last = brought
	}
	return nil
}

// preTransfer is one call of Engine.PreTransfer.
type preTransfer struct {
	e      *Engine
	w      *Warm
	cfg    PreTransfer
	cancel context.CancelCauseFunc
	lost   atomic.Int32

	mu     sync.Mutex
	back   []transport.Range // asked for in vain; guarded by mu
	at     cursor            // what is next; guarded by mu
	end    cursor            // of a probe; immutable during it
	stop   uint64            // pages seen that end a step; immutable during it
	probes uint64            // made so far

	probing bool          // immutable while workers run
	same    atomic.Uint64 // pages that were found unchanged
}

// cursor is a place in the memory.
type cursor struct {
	region int    // index
	page   uint64 // in it
}

// before says that c comes before d.
func (c cursor) before(d cursor) bool {
	return c.region < d.region || c.region == d.region && c.page < d.page
}

// pass goes over all memory once. The first one looks now and then whether it pays.
func (p *preTransfer) pass(ctx context.Context, pass int) error {
	p.e.stats.early.seen.Store(0)
	p.e.stats.early.pass.Store(int32(pass))
	p.at, p.back = cursor{}, nil
	pages, steps := uint64(0), uint64(1)
	for i := range p.e.cfg.Regions {
		pages += p.e.cfg.Regions[i].Pages
	}
	if pass == 1 {
		steps = max(1, min(preSteps, pages/preStep))
	}
	for k := uint64(1); k <= steps; k++ {
		p.stop = pages / steps * k
		if k == steps {
			p.stop = math.MaxUint64
		}
		if err := p.run(ctx); err != nil {
			return err
		}
		if k == steps {
			break
		}
		if err := p.probe(ctx); err != nil {
			return err
		}
	}
	return nil
}

// probe asks for some of what was copied once more, and returns ErrRewritten if most
// of that has changed.
func (p *preTransfer) probe(ctx context.Context) error {
	was := p.at
	p.end, p.at, p.probing = was, cursor{page: p.probes * preProbe % preEvery}, true
	p.probes++
	same, pages := p.same.Load(), p.e.stats.early.pages.Load()
	err := p.run(ctx)
	p.at, p.probing = was, false
	if err != nil {
		return err
	}
	same, pages = p.same.Load()-same, p.e.stats.early.pages.Load()-pages
	if same+pages < preLeast || pages <= same {
		return nil
	}
	p.e.cfg.Log.Info("the pre-transfer does not pay: "+ErrRewritten.Error(), "compared", same+pages, "changed", pages)
	return ErrRewritten
}

// run fetches by all channels until next has no more.
func (p *preTransfer) run(ctx context.Context) error {
	errs := make(chan error, p.cfg.Channels)
	for i := range p.cfg.Channels {
		go func() { errs <- p.worker(ctx, i) }()
	}
	var all []error
	for range p.cfg.Channels {
		all = append(all, <-errs)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(all...)
}

// next is what is to be fetched next, at most so many bytes.
func (p *preTransfer) next(bytes uint64) (r transport.Range, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.back); n > 0 {
		r, p.back = p.back[n-1], p.back[:n-1]
		return r, true
	}
	if !p.probing && p.e.stats.early.seen.Load() >= p.stop {
		return r, false
	}
	for ; p.at.region < len(p.e.cfg.Regions); p.at = (cursor{region: p.at.region + 1}) {
		reg := &p.e.cfg.Regions[p.at.region]
		if p.at.page >= reg.Pages {
			continue
		}
		if p.probing && !p.at.before(p.end) {
			break
		}
		n := min(max(1, bytes/uint64(reg.PageSize)), reg.Pages-p.at.page)
		if p.probing {
			n = min(n, preProbe)
		}
		r = transport.Range{Region: reg.ID, First: p.at.page, Count: uint32(n)}
		if p.probing {
			p.at.page += preEvery
		} else {
			p.at.page += n
			p.e.stats.early.seen.Add(n)
		}
		return r, true
	}
	return r, false
}

// skip passes over pages that are known to be zero.
func (p *preTransfer) skip(r transport.Range) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.probing || p.at.region >= len(p.e.cfg.Regions) || p.e.cfg.Regions[p.at.region].ID != r.Region {
		return
	}
	if end := r.First + uint64(r.Count); r.First <= p.at.page && p.at.page < end {
		p.e.stats.early.seen.Add(end - p.at.page)
		p.at.page = end
	}
}

func (p *preTransfer) giveBack(r transport.Range) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.back = append(p.back, r)
}

// worker copies through one channel, over as many connections as it takes.
func (p *preTransfer) worker(ctx context.Context, index int) error {
	if n := p.e.cfg.BulkNice; n > 0 {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := sched.Lower(n); err != nil {
			p.e.cfg.Log.Info("the pre-transfer keeps its priority", "err", err)
		}
	}
	c, err := newPreChannel(p)
	if err != nil {
		p.cancel(err)
		return err
	}
	defer c.close()
	for {
		f, err := p.cfg.Open(ctx, index)
		if err != nil {
			p.cancel(err)
			return err
		}
		err = c.copy(ctx, f)
		if err == nil {
			p.cfg.Back(index, f)
			return nil
		}
		f.Close() // it has failed already
		c.abandon()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n := p.lost.Add(1); n >= preLosses {
			err = fmt.Errorf("page channels were lost %d times, the last time: %w", n, err)
			p.cancel(err)
			return err
		}
		p.e.cfg.Log.Info("a page channel was lost during the pre-transfer", "index", index, "err", err)
	}
}

// preChannel is what a worker needs for one channel; it belongs to it.
type preChannel struct {
	p       *preTransfer
	sink    *preSink
	window  *pagecache.Window
	longest uint64
	flights map[uint64]flight
	seq     uint64
	fetches [postBatch]transport.Fetch
}

func newPreChannel(p *preTransfer) (*preChannel, error) {
	longest := uint64(p.e.cfg.BatchPages) * 4096
	run := min(longest, leastRun)
	for _, r := range p.e.cfg.Regions {
		run = max(run, uint64(r.PageSize))
	}
	c := &preChannel{p: p, longest: max(longest, run), flights: make(map[uint64]flight)}
	c.window = pagecache.NewWindow(pagecache.WindowConfig{Run: run, MaxRun: longest, Cap: p.e.cfg.WindowBytes})
	var err error
	c.sink, err = newPreSink(p, c.longest)
	return c, err
}

func (c *preChannel) close() {
	if err := c.sink.close(); err != nil {
		c.p.e.cfg.Log.Warn("free staging buffer", "err", err)
	}
}

// copy fetches until there is nothing left, or ctx is done, and nothing under way.
func (c *preChannel) copy(ctx context.Context, f transport.Fetcher) error {
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(preGrace):
			f.Close()
		case <-ended:
		}
	})()
	var comp transport.Completion
	for {
		pause, more, err := c.post(ctx, f)
		if err != nil {
			return err
		}
		if len(c.flights) == 0 {
			if !more || ctx.Err() != nil {
				return nil
			}
			select {
			case <-time.After(max(pause, time.Millisecond)):
			case <-ctx.Done():
			}
			continue
		}
		c.sink.used = 0
		if err := f.Receive(c.sink, &comp); err != nil {
			return err
		}
		if err := c.answered(&comp); err != nil {
			return err
		}
	}
}

// post sends as many fetches as the window and the cap admit. With nothing under
// way afterwards, and more to do, pause says when to try again.
func (c *preChannel) post(ctx context.Context, f transport.Fetcher) (pause time.Duration, more bool, err error) {
	n, now := 0, time.Now()
	for more = true; n < postBatch && len(c.flights) < maxRuns && ctx.Err() == nil; n++ {
		if pause = c.p.e.pause(now); pause > 0 {
			break
		}
		room := c.window.Next()
		if room == 0 {
			break
		}
		var r transport.Range
		if r, more = c.p.next(min(room, c.longest)); !more {
			break
		}
		bytes := uint64(r.Count) * uint64(c.p.e.regions[r.Region].PageSize)
		c.window.OnSent(bytes, now)
		c.p.e.charge(int64(bytes), now)
		c.seq++
		c.flights[c.seq] = flight{id: c.seq, run: pagecache.Run(r), bytes: bytes}
		c.fetches[n] = transport.Fetch{ID: c.seq, Range: r}
	}
	if n > 0 {
		err = f.Fetch(c.fetches[:n])
	}
	return pause, more, err
}

func (c *preChannel) answered(comp *transport.Completion) error {
	fl, ok := c.flights[comp.ID]
	if !ok {
		return fmt.Errorf("answer to fetch %d of the pre-transfer, which is not under way", comp.ID)
	}
	if comp.Refused != nil {
		return comp.Refused // abandon gives the run back
	}
	delete(c.flights, comp.ID)
	now := time.Now()
	c.window.OnDelivered(fl.bytes, comp.Sent, now)
	// It was charged as if nothing would shrink; the cap is one of wire bytes.
	c.p.e.charge(int64(comp.WireBytes)-int64(fl.bytes), now)
	c.p.e.stats.early.bytes.Add(uint64(comp.WireBytes))
	return nil
}

// abandon gives back what was under way on a channel that has ended.
func (c *preChannel) abandon() {
	for id, fl := range c.flights {
		c.window.OnLost(fl.bytes)
		c.p.e.charge(-int64(fl.bytes), time.Now())
		c.p.giveBack(transport.Range(fl.run))
		delete(c.flights, id)
	}
}
