package pagecache

import "math/bits"

// Policy proposes what to fetch. Its methods are called by one planner, one at
// a time, and must not block.
type Policy interface {
	// Name is the policy's name in [Stats].
	Name() string
	// Fault says that the guest faulted in a block.
	Fault(v View, region int, block uint64)
	// Propose returns the span it would have fetched next, or false if it has
	// none now. Of the span the planner takes the leading blocks that are not
	// planned yet; if there is none it asks again, so a policy must make
	// progress with each call.
	Propose(v View) (Span, bool)
}

// Rewinder is a [Policy] that proposes every open block in the end. After
// Rewind, blocks it has proposed before may be open again. Without one among
// its policies, a planner does not look for lost pages.
type Rewinder interface {
	Policy
	Rewind()
}

// Span is a run of blocks of one region.
type Span struct {
	Region int    // position of the region, in the order they were added
	Block  uint64 // first block
	Count  uint64 // blocks, at least 1
}

// View is what a policy may know. It is valid during the call it was passed to.
type View struct {
	regions []*region
}

// Regions returns the number of regions.
func (v View) Regions() int { return len(v.regions) }

// Blocks returns the number of blocks of a region.
func (v View) Blocks(region int) uint64 { return v.regions[region].blocks }

// RunBlocks returns the number of blocks in the longest run of a region.
func (v View) RunBlocks(region int) uint64 {
	r := v.regions[region]
	return r.runPages / r.block
}

// Open reports whether a block is not planned and has an absent page.
func (v View) Open(region int, block uint64) bool {
	_, ok := v.NextOpen(region, block, block+1)
	return ok
}

// NextOpen returns the first open block in [from, to).
func (v View) NextOpen(region int, from, to uint64) (block uint64, ok bool) {
	return v.regions[region].nextOpen(from, to)
}

// nextOpen finds the first block in [from, to) that is not planned and has an
// absent page. Blocks on the way that have none are marked as planned, so that
// each is looked at once until the next rewind.
func (r *region) nextOpen(from, to uint64) (block uint64, ok bool) {
	to = min(to, r.blocks)
	for {
		from = r.nextUnplanned(from, to)
		if from >= to {
			return 0, false
		}
		end := min(to*r.block, r.res.Pages())
		page, _, found := r.res.NextAbsent(from*r.block, end)
		if !found {
			r.mark(from, to)
			return 0, false
		}
		at := page / r.block
		r.mark(from, at)
		if r.planned[at/64]>>(at%64)&1 == 0 {
			return at, true
		}
		from = at + 1
	}
}

// nextUnplanned returns the first block in [from, to) that is not planned, or to.
func (r *region) nextUnplanned(from, to uint64) uint64 {
	for from < to {
		if free := ^r.planned[from/64] >> (from % 64); free != 0 {
			return min(to, from+uint64(bits.TrailingZeros64(free)))
		}
		from = (from/64 + 1) * 64
	}
	return to
}

// mark sets the blocks in [from, to) as planned.
func (r *region) mark(from, to uint64) {
	for from < to {
		n := min(64-from%64, to-from)
		r.planned[from/64] |= ^uint64(0) >> (64 - n) << (from % 64)
		from += n
	}
}

// take plans the leading unplanned blocks of [block, block+count) and returns
// their end.
func (r *region) take(block, count uint64) (end uint64) {
	end = block
	for to := min(block+count, r.blocks); end < to && r.planned[end/64]>>(end%64)&1 == 0; end++ {
	}
	r.mark(block, end)
	return end
}
