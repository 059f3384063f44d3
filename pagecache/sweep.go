package pagecache

// SweepConfig configures a [Sweep].
type SweepConfig struct {
	// FollowFaults has the sweep go on from the last fault, so that it serves
	// as read-ahead for a guest that walks its memory.
	FollowFaults bool
}

// Sweep takes everything, in order: region by region, in runs as long as they
// may be and aligned to that length, wrapping at the end. It keeps no record of
// what it proposed: the planner knows.
type Sweep struct {
	cfg    SweepConfig
	region int
	block  uint64
	first  []Span // what Begin named, as far as it has not been proposed
}

// NewSweep returns a sweep that starts with the first page of the first region.
func NewSweep(cfg SweepConfig) *Sweep { return &Sweep{cfg: cfg} }

// Name returns "sweep".
func (s *Sweep) Name() string { return "sweep" }

// Begin has the blocks of the spans come first, in that order.
func (s *Sweep) Begin(spans []Span) { s.first = append(s.first, spans...) }

// Fault moves the sweep to the fault, if so configured.
func (s *Sweep) Fault(v View, region int, page uint64) {
	if s.cfg.FollowFaults {
		block := v.Block(region, page)
		s.region, s.block = region, block-block%v.RunBlocks(region)
	}
}

// Rewind lets the sweep begin again; it wraps, so nothing has to change.
func (s *Sweep) Rewind() {}

// Propose returns the blocks from the next open one to the end of its run.
func (s *Sweep) Propose(v View) (Span, bool) {
	n := v.Regions()
	if n == 0 {
		return Span{}, false
	}
	for len(s.first) > 0 {
		f := &s.first[0]
		end := f.Block + f.Count
		block, ok := v.NextOpen(f.Region, f.Block, end)
		if !ok {
			s.first = s.first[1:]
			continue
		}
		run := v.RunBlocks(f.Region)
		count := min(run-block%run, end-block)
		f.Block, f.Count = block+count, end-block-count
		return Span{Region: f.Region, Block: block, Count: count}, true
	}
	// The region it stands in comes twice: from the cursor on, then whole.
	from := s.block
	for i := range n + 1 {
		at := (s.region + i) % n
		if block, ok := v.NextOpen(at, from, v.Blocks(at)); ok {
			run := v.RunBlocks(at)
			count := run - block%run
			s.region, s.block = at, block+count
			return Span{Region: at, Block: block, Count: count}, true
		}
		from = 0
	}
	return Span{}, false
}
