package trace

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
)

const (
	requestBytes = 32 // of a fetch, and of an answer's header
	eventsCheck  = 1 << 14
)

// simulation is the state of one; it runs on one goroutine.
type simulation struct {
	clock
	o       Options
	trace   *Trace
	link    *link
	planner *pagecache.Planner
	limiter *pagecache.Limiter
	regions map[uint32]*memory
	demand  []*demandFlow
	workers []*worker
	waiting map[pageKey]*fetch // demand fetches under way, by aligned group
	busy    int                // their number: what closes the gate
	next    int                // touch
	running int                // vCPUs that have not come to the trace's end
	res     Result
	meter   progress
	on      bool  // there are policies
	err     error // a mistake of this package's
}

// memory is one region.
type memory struct {
	id       uint32
	res      *pagecache.Residency
	pageSize uint64
	zero     []uint64 // bit per page: reads as zero at the source
}

type pageKey struct {
	region uint32
	group  uint64
}

// fetch is a demand fetch under way.
type fetch struct {
	run     pagecache.Run
	page    uint64
	waiters []waiter
}

type waiter struct {
	cpu  *vcpu
	page uint64
}

// demandFlow is one demand channel.
type demandFlow struct {
	flow   *flow
	posted int
	freeAt time.Duration // the source's thread
}

// Simulate replays a trace.
func Simulate(ctx context.Context, t *Trace, o Options) (*Result, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("simulate: the trace is of no use: %w", err)
	}
	if err := o.fill(t); err != nil {
		return nil, fmt.Errorf("simulate: %w", err)
	}
	s := &simulation{o: o, trace: t, regions: map[uint32]*memory{}, waiting: map[pageKey]*fetch{},
		limiter: pagecache.NewLimiter(uint64(o.Cap), max(uint64(o.Cap)/50, 1<<20))}
	s.link = &link{clock: &s.clock, rate: o.Bandwidth / 8, half: o.RTT / 2, loss: o.Loss, fair: o.Fair,
		rng: rand.New(rand.NewPCG(o.Seed, 0x6c696e6b))}
	defer s.close()
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("simulate: %w", err)
	}
	began := time.Now()
	for n := 0; s.err == nil && s.now < o.Limit && !s.over() && s.step(); n++ {
		if n%eventsCheck == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	if s.err != nil {
		return nil, fmt.Errorf("simulate: %w", s.err)
	}
	s.finish()
	s.res.TookMS = float64(time.Since(began)) / 1e6
	return &s.res, nil
}

func (s *simulation) prepare() error {
	var list []pagecache.Policy
	if s.o.Make != nil {
		list = s.o.Make(s.trace)
	} else {
		var err error
		if list, err = MakePolicies(s.o.Policies, s.trace); err != nil {
			return err
		}
	}
	s.on = len(list) > 0
	s.planner = pagecache.NewPlanner(pagecache.Config{Policies: list,
		MaxRunPages: s.o.RunPages, MaxRunBytes: uint64(s.o.RunPages) * pageSize})
	longest := uint64(s.o.RunPages) * pageSize
	run := min(longest, leastRun)
	for _, r := range s.trace.Regions {
		res, err := pagecache.New(r.Pages)
		if err != nil {
			return err
		}
		m := &memory{id: r.ID, res: res, pageSize: r.PageSize, zero: make([]uint64, (r.Pages+63)/64)}
		s.regions[r.ID] = m
		for _, z := range r.Zero {
			for p := z[0]; p < z[0]+z[1]; p++ {
				m.zero[p/64] |= 1 << (p % 64)
			}
		}
		if err := s.planner.AddRegion(r.ID, res, r.PageSize); err != nil {
			return err
		}
		run = max(run, r.PageSize)
		s.res.Pages += r.Pages
	}
	if err := s.planner.Prefer(s.trace.Hot); err != nil {
		return err
	}
	for range s.o.Demand {
		s.demand = append(s.demand, &demandFlow{flow: s.link.newFlow()})
	}
	for range s.o.Precache {
		w := &worker{s: s, flow: s.link.newFlow(),
			window: pagecache.NewWindow(pagecache.WindowConfig{Run: run, MaxRun: longest, Cap: s.o.WindowBytes})}
		s.workers = append(s.workers, w)
		s.after(0, w.post)
	}
	s.meter.start(s.o.VCPUs)
	s.running = s.o.VCPUs
	for range s.o.VCPUs {
		c := &vcpu{s: s}
		s.after(0, c.compute)
	}
	s.after(0, s.sample)
	return nil
}

func (s *simulation) close() {
	for _, m := range s.regions {
		m.res.Close()
	}
}

// over says that the guest has touched all and every page is there. Without
// precache the end of the trace is the end.
func (s *simulation) over() bool {
	if s.running > 0 {
		return false
	}
	if s.res.GuestS == 0 {
		s.res.GuestS = s.now.Seconds()
	}
	return s.res.Drained || !s.on
}

// arrive makes pages of an answer resident; it returns how many were wanted.
func (s *simulation) arrive(m *memory, first, count uint64) (n uint64) {
	for p := first; p < first+count; p++ {
		if m.isZero(p) {
			n += m.res.Zero(p, 1)
			continue
		}
		if m.res.ClaimPage(p) == pagecache.Absent {
			if m.res.Commit(p, 1, nil) == nil {
				n++
			}
		}
	}
	s.wake(m, first, count)
	if s.res.DrainS == 0 && s.planner.Remaining() == 0 {
		s.res.DrainS = s.now.Seconds()
		s.res.Drained = true
	}
	return n
}

func (m *memory) isZero(p uint64) bool { return m.zero[p/64]>>(p%64)&1 != 0 }

// wireBytes is the size of an answer.
func (s *simulation) wireBytes(m *memory, first, count uint64, ratio float64) int {
	n := uint64(0)
	for p := first; p < first+count; p++ {
		if !m.isZero(p) {
			n++
		}
	}
	return requestBytes + int(float64(n*m.pageSize)*ratio)
}
