package pagecache

import "slices"

// BubbleConfig configures [Bubbles]. Zero fields take the defaults.
type BubbleConfig struct {
	Pivots int    // bubbles that grow at a time; default 8
	Radius uint64 // blocks that a bubble grows to either side; default 64 (16 MiB of 4 KiB pages)
	MaxAge uint64 // a bubble is dropped after so many faults elsewhere; default 64
}

// Bubbles fetches around recent faults: each fault outside a growing bubble is
// the pivot of a new one, which grows outward both ways, one block at a time.
// The bubbles take turns, the newest first. A fault inside a bubble keeps it
// young; the oldest gives way. After Hines and Gopalan, VEE 2009 (multi-pivot
// bubbling); the limits of radius and age are ours, since a sweep comes after.
type Bubbles struct {
	cfg    BubbleConfig
	pivots []pivot // youngest first
	turn   int
	clock  uint64 // faults seen
}

// pivot is a bubble that covers the blocks [lo, hi).
type pivot struct {
	region int
	centre uint64
	lo, hi uint64
	down   bool   // whose turn it is
	born   uint64 // clock of its last fault
}

// NewBubbles returns a policy without bubbles.
func NewBubbles(cfg BubbleConfig) *Bubbles {
	if cfg.Pivots <= 0 {
		cfg.Pivots = 8
	}
	if cfg.Radius == 0 {
		cfg.Radius = 64
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = 64
	}
	return &Bubbles{cfg: cfg, pivots: make([]pivot, 0, cfg.Pivots)}
}

// Name returns "bubbles".
func (b *Bubbles) Name() string { return "bubbles" }

// Fault starts a bubble, or keeps the one it fell into young.
func (b *Bubbles) Fault(v View, region int, page uint64) {
	block := v.Block(region, page)
	b.clock++
	b.turn = 0
	p := pivot{region: region, centre: block, lo: block, hi: block}
	for i, old := range b.pivots {
		if old.region == region && old.lo <= block && block < old.hi {
			p = old
			b.pivots = slices.Delete(b.pivots, i, i+1)
			break
		}
	}
	p.born = b.clock
	if n := len(b.pivots); n == b.cfg.Pivots || n > 0 && b.clock-b.pivots[n-1].born > b.cfg.MaxAge {
		b.pivots = b.pivots[:n-1]
	}
	b.pivots = slices.Insert(b.pivots, 0, p)
}

// Propose returns the next block of the bubble whose turn it is.
func (b *Bubbles) Propose(v View) (Span, bool) {
	for len(b.pivots) > 0 {
		if b.turn >= len(b.pivots) {
			b.turn = 0
		}
		p := &b.pivots[b.turn]
		if block, ok := b.grow(v, p); ok {
			b.turn++
			return Span{Region: p.region, Block: block, Count: 1}, true
		}
		b.pivots = slices.Delete(b.pivots, b.turn, b.turn+1)
	}
	return Span{}, false
}

// grow extends a bubble until it has met an open block, or can grow no more.
func (b *Bubbles) grow(v View, p *pivot) (block uint64, ok bool) {
	for {
		floor := p.centre - min(p.centre, b.cfg.Radius)
		ceil := min(p.centre+b.cfg.Radius+1, v.Blocks(p.region))
		up, down := p.hi < ceil, p.lo > floor
		switch {
		case !up && !down:
			return 0, false
		case up && (!down || !p.down):
			block = p.hi
			p.hi++
			p.down = block != p.centre
		default:
			p.lo--
			block = p.lo
			p.down = false
		}
		if v.Open(p.region, block) {
			return block, true
		}
	}
}
