package faultd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/ringq"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// Engine brings the memory of one machine over. Its methods are safe for
// concurrent use.
type Engine struct {
	cfg     Config             // immutable after New
	regions map[uint32]*Region // immutable after New
	planner *pagecache.Planner // immutable after New
	limiter *pagecache.Limiter // immutable after New

	// The fault queue and who may drain it: see doc.go.
	queue  *ringq.Queue[uint32]
	out    *outstanding
	sendMu sync.Mutex        // the sender's place: see flush
	batch  []uint32          // guarded by sendMu
	fbuf   []transport.Fetch // guarded by sendMu
	demand []*demandChannel  // immutable after New; see there
	pre    []*precacheChannel

	pace       pacer
	demandBusy atomic.Int32 // demand fetches under way: what closes the gate
	precacheOn atomic.Bool
	writing    atomic.Int32 // precache channels inside Memory.Write

	crowd crowd // of faults that wait for room in out

	removesMu sync.Mutex
	removes   []transport.Range // guarded by removesMu; to be repeated once claims have ended
	removing  atomic.Bool       // removes is not empty

	// showing is held for reading while a page is shown, from its Commit on;
	// taken for writing before the release, which must not come between.
	showing  sync.RWMutex
	released bool // guarded by showing

	ctx     context.Context
	cancel  context.CancelFunc
	started atomic.Bool
	readers []FaultReader  // immutable after Start
	readWG  sync.WaitGroup // fault readers
	workWG  sync.WaitGroup // all other goroutines
	begin   atomic.Int64   // Unix time of Start in ns

	full    chan struct{} // closed when no page remains
	isFull  sync.Once
	drained chan struct{} // closed when full and released
	failed  chan struct{} // closed with err set
	failMu  sync.Mutex
	err     error // guarded by failMu

	stopOnce sync.Once
	stopped  chan struct{} // closed when every goroutine has ended

	warm     atomic.Pointer[Warm]
	reserved atomic.Pointer[reservations]
	stats    engineStats
}

// New checks cfg and returns an engine that does nothing yet.
func New(cfg Config) (*Engine, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("fault daemon: %w", err)
	}
	e := &Engine{
		cfg: cfg, regions: make(map[uint32]*Region), planner: cfg.Planner,
		limiter: pagecache.NewLimiter(cfg.Bandwidth, max(cfg.Bandwidth/50, 1<<20)),
		queue:   ringq.New[uint32](cfg.Outstanding), out: newOutstanding(cfg.Outstanding, cfg.ReadAround),
		batch: make([]uint32, faultBatch), fbuf: make([]transport.Fetch, 0, faultBatch),
		full: make(chan struct{}), drained: make(chan struct{}), failed: make(chan struct{}), stopped: make(chan struct{}),
	}
	own := e.planner == nil
	if own {
		policies := cfg.Policies
		if policies == nil {
			policies = pagecache.DefaultPolicies()
		}
		e.planner = pagecache.NewPlanner(pagecache.Config{Policies: policies,
			MaxRunPages: cfg.BatchPages, MaxRunBytes: uint64(cfg.BatchPages) * 4096})
	}
	for i := range e.cfg.Regions {
		r := &e.cfg.Regions[i]
		if e.regions[r.ID] != nil {
			return nil, fmt.Errorf("fault daemon: two regions have the id %d", r.ID)
		}
		e.regions[r.ID] = r
		if own {
			if err := e.planner.AddRegion(r.ID, r.Residency, uint64(r.PageSize)); err != nil {
				return nil, fmt.Errorf("fault daemon: %w", err)
			}
		}
	}
	e.planner.Hold(cfg.Held)
	e.precacheOn.Store(!cfg.PrecacheOff)
	for i := range cfg.DemandChannels {
		e.demand = append(e.demand, &demandChannel{channel: channel{e: e, kind: transport.Demand, index: i}})
	}
	for i := range cfg.PrecacheChannels {
		e.pre = append(e.pre, newPrecacheChannel(e, i))
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if cfg.BulkNice > 0 {
		e.pace.init(cfg.DemandPace, e.flush)
	}
	return e, nil
}

// Start empties what is left in the absent pages, begins to read faults, has
// every waiting thread fault again (the faults that a former daemon has read
// are lost otherwise), and opens the channels. When it returns, faults are
// caught. It is called once; after an error the engine is stopped.
func (e *Engine) Start() error {
	if e.started.Swap(true) {
		return errors.New("fault daemon: started twice")
	}
	e.begin.Store(time.Now().UnixNano())
	if err := e.start(); err != nil {
		e.Detach()
		return fmt.Errorf("start fault daemon: %w", err)
	}
	return nil
}

func (e *Engine) start() error {
	if err := e.scrub(); err != nil {
		return err
	}
	for range e.cfg.Readers {
		r, err := e.cfg.Memory.Faults.NewReader()
		if err != nil {
			return err
		}
		e.readers = append(e.readers, r)
	}
	for _, r := range e.readers {
		e.readWG.Go(func() { e.readFaults(r) })
	}
	for _, r := range e.cfg.Regions {
		if err := e.wakeAll(r.Region); err != nil {
			return err
		}
	}
	for _, c := range e.demand {
		e.workWG.Go(c.run)
	}
	for _, c := range e.pre {
		e.workWG.Go(c.run)
	}
	e.workWG.Go(e.closeAtEnd)
	e.workWG.Go(e.finish)
	e.checkFull()
	return nil
}

// scrub discards what memory absent pages have: left by a daemon that died
// while it wrote them, or by the machine before its memory was registered.
// Otherwise a page that turns out to read as zero would show it.
func (e *Engine) scrub() error {
	place := e.cfg.Memory.Place
	if place == nil {
		return nil
	}
	for _, r := range e.cfg.Regions {
		for at := uint64(0); at < r.Pages; {
			first, count, ok, err := place.NextData(r.ID, at)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			end := first + count
			for from := first; from < end; {
				f, n, ok := r.Residency.NextAbsent(from, end)
				if !ok {
					break
				}
				if err := e.eachRange(r.ID, f, n, place.Discard); err != nil {
					return err
				}
				from = f + n
			}
			at = end
		}
	}
	return nil
}

// eachRange calls f for pages in ranges whose count fits.
func (e *Engine) eachRange(region uint32, first, count uint64, f func(transport.Range) error) error {
	for count > 0 {
		n := min(count, 1<<31)
		if err := f(transport.Range{Region: region, First: first, Count: uint32(n)}); err != nil {
			return err
		}
		first += n
		count -= n
	}
	return nil
}

func (e *Engine) wakeAll(r transport.Region) error {
	return e.eachRange(r.ID, 0, r.Pages, e.cfg.Memory.Install.Wake)
}

// finish releases the memory once every page is there.
func (e *Engine) finish() {
	select {
	case <-e.full:
	case <-e.ctx.Done():
		return
	}
	// What is being shown is shown first; what comes later is left to the
	// release, which wakes all. The readers run until then, as whoever shows a
	// page may depend on events being read.
	e.showing.Lock()
	e.released = true
	e.showing.Unlock()
	e.stopReaders()
	if err := e.cfg.Memory.Faults.Release(); err != nil {
		e.fail(fmt.Errorf("release the memory: %w", err))
		return
	}
	took := e.elapsed()
	e.stats.drain.Store(int64(took))
	e.cfg.Log.Info("memory is complete and released", "after", took)
	close(e.drained)
	e.cancel()
}

// closeAtEnd closes the channels once the engine's context is done. It is done
// here because a channel's Close waits for its Receive to return, in which
// whoever cancelled may be.
func (e *Engine) closeAtEnd() {
	<-e.ctx.Done()
	var closing sync.WaitGroup // each may take a moment to say so to its peer
	for _, c := range e.demand {
		closing.Go(c.close)
	}
	for _, c := range e.pre {
		closing.Go(c.close)
	}
	closing.Wait()
}

func (e *Engine) stopReaders() {
	for _, r := range e.readers {
		r.Stop()
	}
	e.readWG.Wait()
}

// checkFull notices the last page.
func (e *Engine) checkFull() {
	for i := range e.cfg.Regions {
		if e.cfg.Regions[i].Residency.Remaining() != 0 {
			return
		}
	}
	e.isFull.Do(func() { close(e.full) })
}

// Drained is closed when every page is resident or zero and the memory has been
// released: nothing of the engine is in its path any more.
func (e *Engine) Drained() <-chan struct{} { return e.drained }

// Failed is closed when the session cannot go on; Err says why. Threads that
// wait for a page go on waiting.
func (e *Engine) Failed() <-chan struct{} { return e.failed }

// Err returns why the session failed, nil while it has not.
func (e *Engine) Err() error {
	e.failMu.Lock()
	defer e.failMu.Unlock()
	return e.err
}

// ErrDetached is what Wait returns of an engine that was detached before its drain ended.
var ErrDetached = errors.New("the engine was detached before every page was there")

// Wait waits until the memory is drained (nil), the session failed (its error), the
// engine was detached (ErrDetached) or ctx is done (its cause).
func (e *Engine) Wait(ctx context.Context) error {
	select {
	case <-e.drained:
		return nil
	case <-e.failed:
		return e.Err()
	case <-e.stopped:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select { // the one that says more
	case <-e.drained:
		return nil
	case <-e.failed:
		return e.Err()
	default:
		return ErrDetached
	}
}

// fail ends the session; the first reason stays.
func (e *Engine) fail(err error) {
	e.failMu.Lock()
	first := e.err == nil
	if first {
		e.err = err
		close(e.failed)
	}
	e.failMu.Unlock()
	if first {
		e.cfg.Log.Error("session failed, faults wait from now on", "err", err)
		e.cancel()
	}
}

// SetBandwidth caps precache at so many bytes a second on the wire, 0 for
// no cap.
func (e *Engine) SetBandwidth(bytesPerSecond uint64) {
	e.limiter.SetRate(bytesPerSecond, time.Now())
	e.kickPrecache()
}

// SetPrecache switches precache on or off. Fetches under way are answered.
func (e *Engine) SetPrecache(on bool) {
	e.precacheOn.Store(on)
	e.kickPrecache()
}

// Prefer has pages precached before others, see [pagecache.Planner.Prefer]. An
// error means that the list is wrong and nothing of it was taken.
func (e *Engine) Prefer(runs []pagecache.Run) error {
	if err := e.planner.Prefer(runs); err != nil {
		return err
	}
	e.kickPrecache()
	return nil
}

// Begin has precache take pages before all else of its sweep, see
// [pagecache.Planner.Begin]. An error is as that of Prefer.
func (e *Engine) Begin(runs []pagecache.Run) error {
	if err := e.planner.Begin(runs); err != nil {
		return err
	}
	e.kickPrecache()
	return nil
}

// Hold with on true restricts precache to what Prefer has listed, until Hold
// with on false.
func (e *Engine) Hold(on bool) {
	e.planner.Hold(on)
	e.kickPrecache()
}

func (e *Engine) kickPrecache() {
	for _, c := range e.pre {
		select {
		case c.kick <- struct{}{}:
		default:
		}
	}
}

// Detach stops the engine and leaves the memory as it is: threads that wait for
// a page wait on, until another engine takes the memory and the residency over.
// It returns when nothing of the engine runs. Claims have been given back.
func (e *Engine) Detach() {
	e.stopOnce.Do(func() {
		e.cancel()
		e.stopReaders()
		e.workWG.Wait()
		e.pace.stopTimer() // nobody is left who would start it again
		for _, r := range e.readers {
			if err := r.Close(); err != nil {
				e.cfg.Log.Warn("close fault reader", "err", err)
			}
		}
		close(e.stopped)
	})
	<-e.stopped
}

// Close is Detach under the name that io.Closer wants.
func (e *Engine) Close() error {
	e.Detach()
	return nil
}

// elapsed is the time since Start, 0 before.
func (e *Engine) elapsed() time.Duration {
	if b := e.begin.Load(); b != 0 {
		return time.Since(time.Unix(0, b))
	}
	return 0
}

// sleep waits for d, or less if the engine stops, and then returns false.
func (e *Engine) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-e.ctx.Done():
		return false
	}
}
