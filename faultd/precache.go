package faultd

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/pagewarp/pagewarp/internal/sched"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

const (
	maxRuns   = 1024                   // precache fetches in flight on one channel
	postBatch = 8                      // precache fetches in one write
	leastRun  = 64 << 10               // bytes of a precache fetch on a slow link
	dryPause  = 2 * time.Millisecond   // until an idle worker asks the planner again
	gatePause = 200 * time.Microsecond // until an idle worker looks at the gate again
)

// flight is one precache fetch under way.
type flight struct {
	id    uint64 // 0: none
	run   pagecache.Run
	bytes uint64
}

// precacheChannel is one precache channel with the worker that posts and
// receives on it. Its fields belong to the worker.
type precacheChannel struct {
	channel
	kick     chan struct{} // one token: look again
	window   *pagecache.Window
	flights  [maxRuns]flight
	inflight int
	seq      uint64
	lastPost time.Time
	timer    *time.Timer
	runs     [1]pagecache.Run
	fetches  [postBatch]transport.Fetch
}

func newPrecacheChannel(e *Engine, index int) *precacheChannel {
	longest := uint64(e.cfg.BatchPages) * 4096
	run := min(longest, leastRun)
	for _, r := range e.cfg.Regions {
		run = max(run, uint64(r.PageSize))
	}
	return &precacheChannel{
		channel: channel{e: e, kind: transport.Precache, index: index},
		kick:    make(chan struct{}, 1),
		window:  pagecache.NewWindow(pagecache.WindowConfig{Run: run, MaxRun: longest, Cap: e.cfg.WindowBytes}),
	}
}

func (c *precacheChannel) run() {
	if n := c.e.cfg.BulkNice; n > 0 {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := sched.Lower(n); err != nil {
			c.e.cfg.Log.Info("precache keeps its priority", "err", err)
		}
	}
	c.timer = time.NewTimer(time.Hour)
	defer c.timer.Stop()
	c.serveLoop(c.serve)
}

func (c *precacheChannel) serve(f transport.Fetcher) error {
	e := c.e
	sink := newSink(e, transport.Precache, f)
	defer sink.close()
	defer c.giveBack()
	rec := e.stats.recorders()
	defer e.stats.retire(rec)
	var comp transport.Completion
	for {
		pause, err := c.post(f)
		if err != nil {
			return err
		}
		if c.inflight == 0 {
			if err := c.idle(f, pause); err != nil {
				return err
			}
			continue
		}
		err = f.Receive(sink, &comp)
		sink.reset()
		if err != nil {
			return err
		}
		c.answers.Store(true)
		if err := c.answered(&comp, rec); err != nil {
			return err
		}
		if e.pace.held.Load() {
			e.flush()
		}
	}
}

// post sends as many fetches as the gate, the window and the cap admit. With
// nothing in flight afterwards, pause says when to try again; negative is
// not before a kick.
func (c *precacheChannel) post(f transport.Fetcher) (pause time.Duration, err error) {
	e := c.e
	n, pause := 0, time.Duration(0)
	now := time.Now()
	for n < postBatch && c.inflight < maxRuns {
		if !e.precacheOn.Load() {
			pause = -1
			break
		}
		if !c.gate(now) {
			pause = gatePause
			break
		}
		if d := e.pause(now); d > 0 {
			pause = d
			break
		}
		room := c.window.Next()
		if room == 0 {
			break
		}
		if e.planner.Next(c.runs[:], room/4096) == 0 {
			pause = dryPause
			break
		}
		fl := c.takeOff(c.runs[0], now)
		c.fetches[n] = transport.Fetch{ID: fl.id, Range: transport.Range(fl.run), Plain: e.plain(transport.Range(fl.run))}
		n++
	}
	if n == 0 {
		return pause, nil
	}
	c.lastPost = now
	e.stats.precacheFetches.Add(uint64(n))
	return 0, f.Fetch(c.fetches[:n])
}

// pause is how long the session's cap and the host's hold precache back.
func (e *Engine) pause(now time.Time) time.Duration {
	return max(e.limiter.Delay(now), e.cfg.Share.Delay(now))
}

// charge counts bytes of precache against the session's cap and its part of the
// host's.
func (e *Engine) charge(bytes int64, now time.Time) {
	e.limiter.Charge(bytes, now)
	e.cfg.Share.Charge(bytes, now)
}

// gate is open while no demand fetch is under way, and for one fetch when it
// has been shut for GateHold: faults without end slow precache down, they do
// not stop it, or the machine would never be whole.
func (c *precacheChannel) gate(now time.Time) bool {
	if c.e.demandBusy.Load() == 0 || c.e.pace.held.Load() || now.Sub(c.lastPost) >= c.e.cfg.GateHold {
		return true
	}
	c.e.stats.gated.Add(1)
	return false
}

func (c *precacheChannel) takeOff(run pagecache.Run, now time.Time) *flight {
	reg := c.e.regions[run.Region]
	bytes := uint64(run.Count) * uint64(reg.PageSize)
	c.window.OnSent(bytes, now)
	c.e.charge(int64(bytes), now)
	c.inflight++
	for {
		c.seq++
		if fl := &c.flights[c.seq%maxRuns]; fl.id == 0 {
			*fl = flight{id: c.seq, run: run, bytes: bytes}
			return fl
		}
	}
}

// errIdleEnd says that a channel ended while nothing was in flight on it.
var errIdleEnd = errors.New("channel ended while it was idle")

// idle waits for pause or a kick. A channel that says when it has ended
// (transport/tcp does) is noticed meanwhile; of another, the next fetch fails.
func (c *precacheChannel) idle(f transport.Fetcher, pause time.Duration) error {
	var tick <-chan time.Time
	var ended <-chan struct{}
	if d, ok := f.(interface{ Done() <-chan struct{} }); ok {
		ended = d.Done()
	}
	if pause >= 0 {
		c.timer.Reset(pause)
		tick = c.timer.C
	}
	select {
	case <-tick:
		return nil
	case <-c.kick:
		return nil
	case <-ended:
		return errIdleEnd
	case <-c.e.ctx.Done():
		return c.e.ctx.Err()
	}
}

// answered ends a precache fetch.
func (c *precacheChannel) answered(comp *transport.Completion, rec *recorders) error {
	e := c.e
	fl := &c.flights[comp.ID%maxRuns]
	if fl.id != comp.ID {
		return fmt.Errorf("answer to precache fetch %d, which is not under way", comp.ID)
	}
	run, bytes := fl.run, fl.bytes
	fl.id = 0
	c.inflight--
	if comp.Refused != nil {
		e.stats.refused.Add(1)
		c.window.OnLost(bytes)
		e.charge(-int64(bytes), time.Now())
		if e.fatalRefusal(comp) {
			return comp.Refused
		}
		if err := e.planner.Return(run); err != nil {
			return err
		}
		if !e.sleep(retryPause) {
			return e.ctx.Err()
		}
		return nil
	}
	e.stats.damage.Store(0)
	now := time.Now()
	c.window.OnDelivered(bytes, comp.Sent, now)
	// It was charged as if nothing would shrink; the cap is one of wire bytes.
	e.charge(int64(comp.WireBytes)-int64(bytes), now)
	e.stats.precacheWire.Add(uint64(comp.WireBytes))
	rec.preWire.Record(comp.Wire)
	rec.preDecode.Record(comp.Decode)
	rec.preInstall.Record(comp.Commit)
	return e.planner.Done(run)
}

// giveBack returns what was not answered to the planner.
func (c *precacheChannel) giveBack() {
	for i := range c.flights {
		fl := &c.flights[i]
		if fl.id == 0 {
			continue
		}
		fl.id = 0
		c.inflight--
		c.window.OnLost(fl.bytes)
		c.e.charge(-int64(fl.bytes), time.Now())
		c.e.stats.retries.Add(1)
		if err := c.e.planner.Return(fl.run); err != nil {
			c.e.cfg.Log.Error("return a precache run", "err", err)
		}
	}
}
