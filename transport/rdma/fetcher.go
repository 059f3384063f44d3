package rdma

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
)

// Limits of a Fetcher.
const (
	maxOutstanding = 4096     // unanswered fetches
	stageBytes     = 16 << 20 // of the staging buffer
	demandSlots    = 256      // READs of a demand channel at a time
	maxStagedPage  = 2 << 20  // longer pages go by FETCH
	// READs of a precache channel at a time, and the bytes of one unless a page is
	// longer. Fetches beyond these wait, and those that are adjacent become one
	// READ: soft-RoCE has the rate of ib_read_bw with 1 MiB only (SPECIFICATION),
	// and 8 of the shortest fetch (64 KiB) fill 400 Gbit/s for 10 µs.
	precacheSlots = 8
	readBytes     = 1 << 20
)

// DefaultSpin is how long Receive polls where nothing else is said: several READs
// of fast hardware (2 to 5 µs each), and less than a wake-up costs there.
const DefaultSpin = 20 * time.Microsecond

// ErrClosed is what calls return after this side closed the channel.
var ErrClosed = errors.New("RDMA channel is closed")

// FetchOptions are the choices of a destination.
type FetchOptions struct {
	// Spin is how long Receive polls the completion queue before it sleeps.
	Spin time.Duration
	// DeadAfter bounds the time of a READ. Default 5 s.
	DeadAfter time.Duration
	// Landing, if not nil, is the memory in place of the pages: what of it is registered,
	// and the sink lends ([transport.LendSink]), READs write to by themselves.
	Landing *Landing
	// LentBytes bounds what a precache channel has READs under way for in place, which
	// is what a fault on such a page waits for. 0: what the link carries in 50 µs, and
	// none, so that precache goes by the stage, where that is less than a READ is worth.
	LentBytes int
	// StageBytes bounds the staging buffer, which is registered and so pinned. It
	// holds at least 4 READs. Default 16 MiB, of which precache uses half.
	StageBytes int
	// MaxCount is the most pages of one fetch, as agreed on for the channel.
	MaxCount uint32
	// Stats, if not nil, is where this channel is counted together with others.
	Stats *Stats
	// Only ends the channel where RDMA ends, in the stead of going on by FETCH, and
	// has fetches wait until RDMA is set up. Memory that the source cannot register,
	// or has not yet, goes by FETCH all the same.
	Only bool
	// Down, if not nil, is told why RDMA on this channel is over; what was
	// outstanding goes by FETCH from then on. It must not wait.
	Down func(error)
}

// Fetcher is a page channel whose pages come by RDMA READ where that is possible,
// and by the channel beneath it otherwise. It implements [transport.Fetcher].
//
// It calls the sink that Receive was given from two goroutines, one call at a
// time, until Close or an error; so the sink must be the same at each Receive, and needs
// memory in which a page can be written in place (faultd's Shared).
type Fetcher struct {
	sleeper

	base transport.Fetcher
	ch   Channel
	dev  *Device
	opt  FetchOptions
	stop func() // of the device's watch

	stage    []byte
	slotSize int
	// The ops from here on have no slot of the stage: they are in place.
	stageSlots int
	stageMR    *region

	stats *Stats

	sink   *lateSink
	pump   sync.WaitGroup
	closed atomic.Bool

	recvMu sync.Mutex // held through Receive

	// pollMu is held while completions are taken and landed; what follows belongs to
	// its holder, and so does closing the queue pair.
	pollMu sync.Mutex
	dones  [maxPost]done
	dst    [][]byte
	blank  []bool

	mu      sync.Mutex
	q       *queue                     // guarded by mu; nil before ACCEPT and after the end of RDMA
	pending *queue                     // guarded by mu; waits for ACCEPT, or could not be connected
	joining *queue                     // guarded by mu; is being connected, and nobody else's than join's then
	met     bool                       // guarded by mu; there has been an ACCEPT
	over    bool                       // guarded by mu; RDMA has ended: what the source has still to say of it is late
	proof   proof                      // guarded by mu
	mine    endpoint                   // of pending
	table   *table                     // guarded by mu
	flights flights                    // guarded by mu; all that is outstanding
	idle    []*flight                  // guarded by mu; to be used again
	ops     []op                       // guarded by mu; by slot, those in place last
	free    []int                      // guarded by mu; slots of the stage
	vacant  []int                      // guarded by mu; slots in place
	under   int                        // guarded by mu; slots in use
	lent    int                        // guarded by mu; bytes
	lending lending                    // guarded by mu
	reads   fifo[part]                 // guarded by mu; READs that wait for a slot
	zeros   fifo[part]                 // guarded by mu; holes to be reported
	ready   fifo[*flight]              // guarded by mu; all parts have come
	answers fifo[transport.Completion] // guarded by mu; of the channel beneath
	byFetch fifo[transport.Fetch]      // guarded by mu; to be sent by FETCH
	waiting []*flight                  // guarded by mu; for a chunk
	asks    fifo[ask]                  // guarded by mu; MAPs to be sent
	pieces  []piece                    // guarded by mu
	wrs     [maxPost]read              // guarded by mu
	err     error                      // guarded by mu; the end of the channel
}

// flight is one outstanding fetch.
type flight struct {
	transport.Fetch
	next   *flight // of a chain of flights
	reg    *regionTable
	sent   time.Time
	wire   time.Duration // to the last READ
	copied time.Duration
	commit time.Duration
	parts  int // that have not come
	bytes  int
	data   uint32
	zero   uint32
	ahead  uint32
	below  bool // by FETCH
}

// part is a run of pages of a flight that is had in one way.
type part struct {
	fl    *flight
	first uint64
	count uint32
	rkey  uint32
	addr  uint64
	lkey  uint32 // of mem
	mem   []byte // its place, to be asked for; nil: it goes by the stage
}

// op is one READ under way.
type op struct {
	posted time.Time
	busy   bool
	placed bool   // its one part is lent
	probe  bool   // it has no part, see probe.go
	size   int    // bytes
	parts  []part // adjacent at the source, in order
}

// NewFetcher puts RDMA by dev on a page channel: base is its destination's end,
// regions its table; nobody must have read from it. It begins the set-up and does not wait for it: until ACCEPT has come all goes by FETCH. The
// Fetcher owns base if there is no error.
func NewFetcher(dev *Device, base transport.Fetcher, ch Channel, regions []transport.Region, o FetchOptions) (*Fetcher, error) {
	f, err := newFetcher(dev, base, ch, regions, o)
	if err != nil {
		return nil, fmt.Errorf("set up RDMA by %s: %w", dev, err)
	}
	return f, nil
}

func newFetcher(dev *Device, base transport.Fetcher, ch Channel, regions []transport.Region, o FetchOptions) (*Fetcher, error) {
	if o.DeadAfter <= 0 {
		o.DeadAfter = 5 * time.Second
	}
	if o.StageBytes <= 0 {
		o.StageBytes = stageBytes
	}
	f := &Fetcher{base: base, ch: ch, dev: dev, opt: o, table: newTable(regions), sleeper: sleeper{wakeFD: -1}, sink: newLateSink(), stats: o.Stats, lending: newLending(o.LentBytes)}
	if f.stats == nil {
		f.stats = new(Stats)
	}
	if err := dev.hold(); err != nil {
		return nil, err
	}
	f.slotSize = 4 << 10
	for _, r := range regions {
		if r.PageSize <= maxStagedPage {
			f.slotSize = max(f.slotSize, int(r.PageSize))
		}
	}
	if ch.Kind() == transport.Precache {
		f.slotSize = max(f.slotSize, readBytes)
	} else {
		f.slotSize = max(f.slotSize, 64<<10) // neighbours in one READ
	}
	if int(dev.caps.maxMessage) < f.slotSize {
		dev.drop()
		return nil, fmt.Errorf("its messages have at most %d bytes, %d are needed", dev.caps.maxMessage, f.slotSize)
	}
	slots, places := o.room(ch.Kind(), f.slotSize, dev.caps.depth)
	f.stageSlots, f.ops = slots, make([]op, slots+places)
	f.allFree()
	var err error
	if f.stage, err = sysmem.MapAnonymous(int64(slots * f.slotSize)); err != nil {
		dev.drop()
		return nil, err
	}
	if err = f.sleeper.open(); err == nil {
		f.stageMR, err = dev.register(f.stage, landing)
	}
	if err == nil {
		f.pending, err = dev.dev.queue(len(f.ops))
	}
	if err == nil {
		f.stop, err = dev.onFailure(f.breakDown)
	}
	if err == nil {
		ch.SetSide(f.side)
		f.mine = dev.endpoint(f.pending, dev.caps.reads)
		err = ch.SendSide(transport.Header{Aux: kindConnect}, f.mine.append(nil))
	}
	if err != nil {
		f.releaseAll()
		return nil, err
	}
	f.pump.Go(f.receiveBelow)
	return f, nil
}

// room is how many READs a channel may have under way by the stage, in slots of that many
// bytes, and in place: on a device whose queues have depth work requests.
func (o *FetchOptions) room(kind transport.Kind, slotSize, depth int) (slots, places int) {
	most := depth - 1
	if o.Landing != nil {
		most /= 2 // half of a short queue for each: what waits for a place has no other way
	}
	slots = demandSlots
	if kind == transport.Precache {
		slots = precacheSlots
	}
	slots = max(4, min(slots, o.StageBytes/slotSize, most))
	switch {
	case o.Landing == nil:
	case kind == transport.Precache:
		places = lentSlots
	default:
		places = slots
	}
	return slots, min(places, depth-1-slots)
}

// Up says whether pages come by RDMA at the moment.
func (f *Fetcher) Up() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.q != nil
}

// Stats is what counts this channel: that of its options, or one of its own.
func (f *Fetcher) Stats() *Stats { return f.stats }

// InPlace implements [transport.InPlace]: the sink is called from two goroutines,
// which a buffer of the sink's would not bear.
func (*Fetcher) InPlace() bool { return true }

// Done is closed when the channel beneath has ended.
func (f *Fetcher) Done() <-chan struct{} { return f.ch.Done() }

// Fetch implements [transport.Fetcher].
func (f *Fetcher) Fetch(fs []transport.Fetch) error {
	if err := f.FetchAndPoll(fs); err != nil {
		return err
	}
	f.wake() // to arm, or to poll
	return nil
}

// FetchAndPoll implements [transport.Poller].
func (f *Fetcher) FetchAndPoll(fs []transport.Fetch) error {
	now := time.Now()
	f.mu.Lock()
	if err := f.enter(fs, now); err != nil {
		f.mu.Unlock()
		return err
	}
	for i := range fs {
		f.route(f.flights.at(fs[i].ID))
	}
	f.post(now)
	unsent := f.unsent()
	f.mu.Unlock()
	if !unsent {
		return nil
	}
	return f.send()
}

// unsent says whether there is something for send. mu is held.
func (f *Fetcher) unsent() bool { return f.asks.len()+f.byFetch.len() > 0 }

// enter checks fs and notes them as outstanding, all or none. mu is held.
func (f *Fetcher) enter(fs []transport.Fetch, now time.Time) error {
	if f.closed.Load() {
		return ErrClosed
	}
	if f.err != nil {
		return f.err
	}
	for i := range fs {
		if err := f.check(&fs[i]); err != nil {
			for _, done := range fs[:i] {
				f.drop(f.flights.at(done.ID))
			}
			return fmt.Errorf("fetch %d pages at %d of region %d: %w", fs[i].Count, fs[i].First, fs[i].Region, err)
		}
		var fl *flight
		if n := len(f.idle); n > 0 {
			fl, f.idle = f.idle[n-1], f.idle[:n-1]
		} else {
			fl = new(flight)
		}
		*fl = flight{Fetch: fs[i], reg: f.table.regions[fs[i].Region], sent: now}
		f.flights.add(fl)
	}
	return nil
}

func (f *Fetcher) check(r *transport.Fetch) error {
	reg := f.table.regions[r.Region]
	switch {
	case reg == nil:
		return fmt.Errorf("%w: the region is not in the table that the channel was made with", transport.ErrNotSent)
	case r.Count == 0 || r.First >= reg.Pages || uint64(r.Count) > reg.Pages-r.First:
		return fmt.Errorf("%w: the region has %d pages", transport.ErrNotSent, reg.Pages)
	case f.opt.MaxCount != 0 && r.Count > f.opt.MaxCount:
		return fmt.Errorf("%w: max_count of this channel is %d", transport.ErrNotSent, f.opt.MaxCount)
	case r.Plain && f.ch.Features()&transport.FeatureWarm == 0:
		return fmt.Errorf("%w: plain, but the warm feature is not in force", transport.ErrNotSent)
	case f.flights.n >= maxOutstanding:
		return fmt.Errorf("%d fetches are outstanding, the limit", maxOutstanding)
	case f.flights.at(r.ID) != nil:
		return fmt.Errorf("id %d is outstanding already", r.ID)
	}
	return nil
}

// drop ends a flight. mu is held.
func (f *Fetcher) drop(fl *flight) {
	f.flights.remove(fl)
	f.idle = append(f.idle, fl)
}

// route decides how a flight's pages come: by READ, as the hole that they are, by
// FETCH, or, for precache, after their chunk has been mapped. mu is held.
func (f *Fetcher) route(fl *flight) {
	r := fl.reg
	if f.q == nil && f.opt.Only {
		f.waiting = append(f.waiting, fl)
		return
	}
	if f.q == nil || int(r.PageSize) > f.slotSize {
		f.below(fl)
		return
	}
	pieces, c, ok := r.split(fl.Range, f.pieces[:0])
	f.pieces = pieces
	if !ok {
		if f.table.ask(r, c) {
			f.asks.push(ask{fl.Region, c * r.unit})
		}
		if r.states[c] == refused || f.ch.Kind() == transport.Demand {
			f.below(fl) // a fault does not wait for a registration
		} else {
			f.waiting = append(f.waiting, fl)
		}
		return
	}
	if f.proof != proven && slices.ContainsFunc(pieces, func(p piece) bool { return !p.zero }) {
		if f.ch.Kind() == transport.Demand {
			f.below(fl)
		} else {
			f.waiting = append(f.waiting, fl)
		}
		return
	}
	most := uint32(f.slotSize / int(r.PageSize))
	for _, p := range pieces {
		if p.zero {
			fl.parts++
			f.zeros.push(part{fl: fl, first: p.first, count: p.count})
			continue
		}
		for p.count > 0 {
			n, lkey, mem := f.opt.Landing.at(fl.Region, p.first, min(p.count, most))
			if mem != nil && f.ch.Kind() == transport.Precache {
				n, mem = f.lending.cut(n, mem)
			}
			fl.parts++
			f.reads.push(part{fl: fl, first: p.first, count: n, rkey: p.rkey, addr: p.addr, lkey: lkey, mem: mem})
			p.first, p.count, p.addr = p.first+uint64(n), p.count-n, p.addr+uint64(n)*uint64(r.PageSize)
		}
	}
	if end := fl.First + uint64(fl.Count); !pieces[len(pieces)-1].zero && r.hole(end, 1) > 0 {
		fl.parts++
		f.zeros.push(part{fl: fl, first: end}) // what lies ahead is told, as by PAGES
	}
	if f.zeros.len() > 0 {
		f.wake()
	}
}

// below sends a flight by FETCH. mu is held.
func (f *Fetcher) below(fl *flight) {
	fl.below, fl.parts = true, 0
	f.byFetch.push(fl.Fetch)
}

// send sends what mu kept from being sent.
func (f *Fetcher) send() error {
	for {
		f.mu.Lock()
		var want *ask
		var fs []transport.Fetch
		if f.asks.len() > 0 {
			a := f.asks.pop()
			want = &a
		}
		for f.byFetch.len() > 0 && len(fs) < 64 {
			fs = append(fs, f.byFetch.pop())
		}
		f.mu.Unlock()
		if want == nil && len(fs) == 0 {
			return nil
		}
		if len(fs) > 0 {
			if err := f.base.Fetch(fs); err != nil {
				return err
			}
		}
		if want != nil {
			if err := f.ch.SendSide(transport.Header{Aux: kindMap, Region: want.region, First: want.first}, nil); err != nil {
				return err
			}
		}
	}
}

// Outstanding implements [transport.Fetcher].
func (f *Fetcher) Outstanding(buf []transport.Fetch) []transport.Fetch {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flights.each(func(fl *flight) { buf = append(buf, fl.Fetch) })
	return buf
}
