package pagecache

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
)

// Run is a run of pages of one region, in units of the region's page size. It
// has the fields of a fetch's range on the wire, so that the one converts to
// the other.
type Run struct {
	Region uint32 // region id
	Count  uint32 // pages
	First  uint64 // number of the first page
}

// ErrNotInFlight is wrapped when a run ends that the planner does not have in
// flight. It is the programmer's mistake: it ended twice, or was never handed
// out.
var ErrNotInFlight = errors.New("run is not in flight")

// The defaults of Config.
const (
	DefaultRunPages = 512
	DefaultRunBytes = 2 << 20
)

// Blocks, the unit in which the planner remembers what it has handed out, have
// at most so many pages and bytes (at least one page).
const (
	blockPages = 64
	blockBytes = 256 << 10
)

// Config configures a [Planner].
type Config struct {
	// Policies propose in this order: a later one is asked when the earlier
	// ones have nothing. With none, the planner hands out nothing: on demand
	// only. A policy serves one planner.
	Policies []Policy
	// MaxRunPages bounds a run in pages; 0 means DefaultRunPages.
	MaxRunPages uint32
	// MaxRunBytes bounds a run in bytes, but not below one page; 0 means
	// DefaultRunBytes.
	MaxRunBytes uint64
}

// Planner decides what precache fetches next. Its methods may be called
// concurrently; Fault, Around and Remaining take no lock.
//
// It keeps one bit for each block of 64 pages (256 KiB of 4 KiB pages): set
// when the block is planned. The runs in flight, and those that a dead channel
// left behind, are kept one by one; the caller's window bounds them.
type Planner struct {
	cfg   Config
	hints hintRing

	// index is replaced, never changed: region id to region.
	index atomic.Pointer[map[uint32]*region]

	mu       sync.Mutex
	regions  []*region   // guarded by mu
	inflight map[Run]int // guarded by mu; the policy that brings it, -1: returned
	flying   uint64      // guarded by mu; pages in flight
	pending  []piece     // guarded by mu; planned, not in flight: handed out before all else
	stats    Stats       // guarded by mu
	dry      bool        // guarded by mu; the last Next found nothing
	held     bool        // guarded by mu; see Hold
	rewinds  bool        // immutable; some policy implements Rewinder
	around   *Around     // immutable; nil: none among the policies
}

// region is one region as the planner sees it.
type region struct {
	id       uint32
	slot     int // position in Planner.regions
	res      *Residency
	runPages uint64
	block    uint64 // pages of a block
	blocks   uint64 // number of blocks
	planned  bitmap // guarded by Planner.mu; bit per block
	flying   sparse // changed under Planner.mu; bit per page: in flight
}

// piece is part of a region that was planned and waits to be handed out.
type piece struct {
	reg    *region
	first  uint64
	end    uint64
	policy int // index into Stats.Policies; -1: returned
}

// PolicyStats counts what one policy has had handed out. A page that is there does
// not fault, so nobody sees that it is used; what can be seen is a page that came
// too late, and that a walk went on beyond the pages that were brought for it.
type PolicyStats struct {
	Name  string
	Runs  uint64
	Pages uint64
	Late  uint64 // faults on a page that was in flight for this policy
	Used  uint64 // pages that a walk has passed without a fault; of Around only
}

// Stats counts what a planner has handed out.
type Stats struct {
	Policies   []PolicyStats
	AgainRuns  uint64 // handed out again after Return
	AgainPages uint64
	// BridgedPages are those of Pages that were there already, between others.
	BridgedPages uint64
	Rewinds      uint64 // checks at the end of a sweep that found pages left
}

// NewPlanner returns a planner without regions.
func NewPlanner(cfg Config) *Planner {
	if cfg.MaxRunPages == 0 {
		cfg.MaxRunPages = DefaultRunPages
	}
	if cfg.MaxRunBytes == 0 {
		cfg.MaxRunBytes = DefaultRunBytes
	}
	p := &Planner{cfg: cfg, inflight: make(map[Run]int)}
	p.index.Store(&map[uint32]*region{})
	for _, pol := range cfg.Policies {
		p.stats.Policies = append(p.stats.Policies, PolicyStats{Name: pol.Name()})
		if _, ok := pol.(Rewinder); ok {
			p.rewinds = true
		}
		if a, ok := pol.(*Around); ok {
			p.around = a
		}
	}
	return p
}

// AddRegion adds a region whose pages have pageSize bytes. The residency must
// stay open as long as the planner is used.
func (p *Planner) AddRegion(id uint32, res *Residency, pageSize uint64) error {
	if pageSize == 0 {
		return fmt.Errorf("add region %d to the planner: page size is 0", id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *p.index.Load()
	if _, ok := old[id]; ok {
		return fmt.Errorf("add region %d to the planner: it has one of that id", id)
	}
	if len(p.regions) == maxRegions {
		return fmt.Errorf("add region %d to the planner: it has %d, the most there can be", id, maxRegions)
	}
	r := &region{id: id, slot: len(p.regions), res: res}
	r.runPages = max(1, min(uint64(p.cfg.MaxRunPages), p.cfg.MaxRunBytes/pageSize))
	r.block = max(1, min(blockPages, r.runPages, blockBytes/pageSize))
	r.blocks = (res.Pages() + r.block - 1) / r.block
	r.planned = newBitmap(r.blocks)
	r.flying = newSparse(res.Pages())
	index := maps.Clone(old)
	index[id] = r
	p.regions = append(p.regions, r)
	p.index.Store(&index)
	p.dry = false
	return nil
}

// Fault hints that the guest has just faulted on a page. It never blocks and
// keeps only the last few hundred hints.
func (p *Planner) Fault(regionID uint32, page uint64) {
	if r := (*p.index.Load())[regionID]; r != nil && page < r.res.Pages() {
		p.hints.put(r.slot, page)
	}
}

// Around returns the run that a demand fault on a page should fetch: the page
// itself and up to n-1 absent neighbours. See [Residency.Around].
func (p *Planner) Around(regionID uint32, page uint64, n uint32) Run {
	run := Run{Region: regionID, First: page, Count: 1}
	if r := (*p.index.Load())[regionID]; r != nil && n > 1 {
		first, count := r.res.Around(page, uint64(n))
		run.First, run.Count = first, uint32(count)
	}
	return run
}

// Ahead returns the run that a demand fault on a page should fetch: the page and,
// where [Around] is among the policies and sees a walk, absent pages next to it in
// the walk's direction. It is told of each fault once.
func (p *Planner) Ahead(regionID uint32, page uint64) Run {
	run := Run{Region: regionID, First: page, Count: 1}
	r := (*p.index.Load())[regionID]
	if p.around == nil || r == nil || page >= r.res.Pages() {
		return run
	}
	stride, window := p.around.follow(r, page)
	// A fetch of large pages would hold the fault up.
	if window = min(window, r.block); window <= 1 {
		return run
	}
	first, end := page, min(page+window, r.res.Pages())
	if stride < 0 {
		first, end = page-min(page, window-1), page+1
	}
	run.First, run.Count = r.absentAround(page, first, end)
	if run.Count > 1 {
		p.around.took(uint64(run.Count - 1))
	}
	return run
}

// Remaining returns the number of pages of all regions that are neither
// resident nor zero: 0 says that the drain is over.
func (p *Planner) Remaining() uint64 {
	var n uint64
	for _, r := range *p.index.Load() {
		n += r.res.Remaining()
	}
	return n
}

// Next puts the next runs to fetch into buf and returns how many. Together they
// have at most maxPages pages; the last may be shortened to fit. Each run was
// absent when it was looked at, and is in flight from now until Done or Return.
//
// 0 says that there is nothing to fetch now, which may change with every Done,
// Return and Fault and with every claim that is released: ask again after each.
// Once nothing is in flight, Next looks for pages that were answered and yet
// are absent, so that a drain ends only when every page has come.
func (p *Planner) Next(buf []Run, maxPages uint64) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeHints()
	n, room := 0, maxPages
	for n < len(buf) && room > 0 {
		if len(p.pending) == 0 && !p.plan() {
			p.dry = n == 0
			return n
		}
		pc := &p.pending[0]
		first, count, ok := pc.reg.nextWanted(pc.first, pc.end)
		if !ok {
			p.popPending()
			continue
		}
		limit := min(room, pc.reg.runPages)
		count, vain := pc.reg.bridge(first, min(count, limit), min(pc.end, first+limit))
		pc.reg.flying.setRange(first, first+count)
		run := Run{Region: pc.reg.id, Count: uint32(count), First: first}
		p.stats.BridgedPages += vain
		buf[n] = run
		n++
		room -= count
		p.inflight[run] = pc.policy
		p.flying += count
		if pc.policy < 0 {
			p.stats.AgainRuns++
			p.stats.AgainPages += count
		} else {
			s := &p.stats.Policies[pc.policy]
			s.Runs++
			s.Pages += count
		}
		if pc.first = first + count; pc.first == pc.end {
			p.popPending()
		}
	}
	p.dry = false
	return n
}

// Done says that a run was answered and its pages were delivered, as far as
// they were still wanted. The error wraps [ErrNotInFlight].
func (p *Planner) Done(run Run) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.land("done", run)
}

// Return says that a run was not answered and will not be: its channel died. It
// is handed out again before anything else. The error wraps [ErrNotInFlight].
func (p *Planner) Return(run Run) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.land("return", run); err != nil {
		return err
	}
	reg := (*p.index.Load())[run.Region]
	p.pending = append(p.pending, piece{reg: reg, first: run.First, end: run.First + uint64(run.Count), policy: -1})
	return nil
}

// InFlight returns what has been handed out and has not ended.
func (p *Planner) InFlight() (runs int, pages uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.inflight), p.flying
}

// Idle reports whether nothing is in flight and the last Next found nothing to
// hand out. With the sweep among the policies that means that no page was
// absent; some may still be Installing.
func (p *Planner) Idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dry && len(p.inflight) == 0
}

// Stats returns a copy of the counters.
func (p *Planner) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Policies = append([]PolicyStats(nil), s.Policies...)
	for i, pol := range p.cfg.Policies {
		if a, ok := pol.(*Around); ok {
			a.addTo(&s.Policies[i])
		}
	}
	return s
}

func (p *Planner) land(op string, run Run) error {
	if _, ok := p.inflight[run]; !ok {
		return fmt.Errorf("%s %d pages from %d of region %d: %w", op, run.Count, run.First, run.Region, ErrNotInFlight)
	}
	delete(p.inflight, run)
	(*p.index.Load())[run.Region].flying.clearRange(run.First, run.First+uint64(run.Count))
	p.flying -= uint64(run.Count)
	p.dry = false
	return nil
}

// popPending drops the first piece. The slice keeps its memory: pieces are few.
func (p *Planner) popPending() {
	n := copy(p.pending, p.pending[1:])
	p.pending[n] = piece{}
	p.pending = p.pending[:n]
}

func (p *Planner) takeHints() {
	p.hints.drain(func(slot int, page uint64) {
		v, r := View{p.regions}, p.regions[slot]
		if r.flying.has(page) {
			p.late(r.id, page)
		}
		for _, pol := range p.cfg.Policies {
			pol.Fault(v, slot, page)
		}
	})
}

// late counts a fault on a page in flight. Runs in flight are few.
func (p *Planner) late(id uint32, page uint64) {
	for run, policy := range p.inflight {
		if run.Region == id && page-run.First < uint64(run.Count) && policy >= 0 {
			p.stats.Policies[policy].Late++
		}
	}
}

// plan asks the policies for the next span and makes a piece of it.
func (p *Planner) plan() bool {
	if p.ask() {
		return true
	}
	if !p.rewinds || p.held || len(p.inflight) != 0 {
		return false
	}
	left := false
	for _, r := range p.regions {
		if r.res.Counts().Absent != 0 {
			clear(r.planned)
			left = true
		}
	}
	if !left {
		return false
	}
	for _, pol := range p.cfg.Policies {
		if rw, ok := pol.(Rewinder); ok {
			rw.Rewind()
		}
	}
	if !p.ask() {
		return false
	}
	p.stats.Rewinds++
	return true
}

func (p *Planner) ask() bool {
	v := View{p.regions}
	for i, pol := range p.cfg.Policies {
		if _, lists := pol.(Lister); p.held && !lists {
			continue
		}
		var found bool
		switch pol := pol.(type) {
		case BlockPolicy:
			found = p.askBlocks(v, i, pol)
		case PagePolicy:
			found = p.askPages(v, i, pol)
		}
		if found {
			return true
		}
	}
	return false
}

func (p *Planner) askBlocks(v View, i int, pol BlockPolicy) bool {
	for {
		span, ok := pol.Propose(v)
		if !ok {
			return false
		}
		reg := p.regions[span.Region]
		if end := reg.take(span.Block, span.Count); end > span.Block {
			p.pending = append(p.pending, piece{
				reg:    reg,
				first:  span.Block * reg.block,
				end:    min(end*reg.block, reg.res.Pages()),
				policy: i,
			})
			return true
		}
	}
}

func (p *Planner) askPages(v View, i int, pol PagePolicy) bool {
	for {
		span, ok := pol.ProposePages(v)
		if !ok {
			return false
		}
		reg := p.regions[span.Region]
		end := span.First + span.Count
		if first, _, ok := reg.nextWanted(span.First, end); ok {
			p.pending = append(p.pending, piece{reg: reg, first: first, end: end, policy: i})
			return true
		}
	}
}
