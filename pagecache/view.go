package pagecache

// Policy proposes what to fetch: it is a [BlockPolicy] or a [PagePolicy]. Its
// methods are called by one planner, one at a time, and must not block.
type Policy interface {
	// Name is the policy's name in [Stats].
	Name() string
	// Fault says that the guest faulted on a page.
	Fault(v View, region int, page uint64)
}

// BlockPolicy proposes blocks, of which the planner hands out each once.
type BlockPolicy interface {
	Policy
	// Propose returns the span it would have fetched next, or false if it has
	// none now. Of the span the planner takes the leading blocks that are not
	// planned yet; if there is none it asks again, so a policy must make
	// progress with each call.
	Propose(v View) (Span, bool)
}

// PagePolicy proposes single pages. Its blocks are left to other policies, which
// find these pages there or in flight.
type PagePolicy interface {
	Policy
	// ProposePages returns the span it would have fetched next, or false if it has
	// none now. The planner takes the absent pages of it that are not in flight,
	// and asks again if there is none: a policy must make progress with each call.
	ProposePages(v View) (PageSpan, bool)
}

// Lister is a [Policy] that proposes pages it is told of by [Planner.Prefer].
type Lister interface {
	PagePolicy
	// List adds spans, in order of preference, before those that it has.
	List([]PageSpan)
}

// Beginner is a [Policy] that proposes everything in the end, and what it is told of by
// [Planner.Begin] before the rest.
type Beginner interface {
	BlockPolicy
	// Begin adds spans, in order of preference, to those that it has.
	Begin([]Span)
}

// Rewinder is a [Policy] that proposes every open block in the end. After
// Rewind, blocks it has proposed before may be open again. Without one among
// its policies, a planner does not look for lost pages.
type Rewinder interface {
	BlockPolicy
	Rewind()
}

// Span is a run of blocks of one region.
type Span struct {
	Region int    // position of the region, in the order they were added
	Block  uint64 // first block
	Count  uint64 // blocks, at least 1
}

// PageSpan is a run of pages of one region.
type PageSpan struct {
	Region int    // position of the region, in the order they were added
	First  uint64 // number of the first page
	Count  uint64 // pages, at least 1
}

// View is what a policy may know. It is valid during the call it was passed to.
type View struct {
	regions []*region
}

// Regions returns the number of regions.
func (v View) Regions() int { return len(v.regions) }

// Blocks returns the number of blocks of a region.
func (v View) Blocks(region int) uint64 { return v.regions[region].blocks }

// Pages returns the number of pages of a region.
func (v View) Pages(region int) uint64 { return v.regions[region].res.Pages() }

// Block returns the block that a page lies in.
func (v View) Block(region int, page uint64) uint64 { return page / v.regions[region].block }

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
		from = r.planned.nextClear(from, to)
		if from >= to {
			return 0, false
		}
		end := min(to*r.block, r.res.Pages())
		// Not NextAbsent: it would go on to the end of the run, which may be that
		// of the region.
		page := r.res.next(from*r.block, end, Absent, true)
		if page == end {
			r.planned.setRange(from, to)
			return 0, false
		}
		at := page / r.block
		r.planned.setRange(from, at)
		if !r.planned.has(at) {
			return at, true
		}
		from = at + 1
	}
}

// take plans the leading unplanned blocks of [block, block+count) and returns
// their end.
func (r *region) take(block, count uint64) (end uint64) {
	end = r.planned.nextSet(block, min(block+count, r.blocks))
	r.planned.setRange(block, end)
	return end
}

// nextWanted finds the first run of pages in [from, to) that are absent and not
// in flight.
func (r *region) nextWanted(from, to uint64) (first, count uint64, ok bool) {
	for from < to {
		first, count, ok := r.res.NextAbsent(from, to)
		if !ok {
			return 0, 0, false
		}
		end := first + count
		if first = r.flying.nextClear(first, end); first < end {
			return first, r.flying.nextSet(first, end) - first, true
		}
		from = end
	}
	return 0, 0, false
}

// bridgeShare is the part of a run, as a divisor, that may be pages which are there
// already.
const bridgeShare = 8

// bridge extends the run [first, first+count) of wanted pages over pages that are
// there to the next wanted ones, up to end, and returns its new length and how many
// pages of it are there. Among the pages of many faults what is absent is a few pages
// long each, and a fetch costs both sides as much as several pages do: pages that are
// sent in vain are cheaper, as long as they are few. The run ends with a wanted page.
func (r *region) bridge(first, count, end uint64) (uint64, uint64) {
	vain := uint64(0)
	for at := first + count; at < end; at = first + count {
		next, n, ok := r.nextWanted(at, end)
		if !ok || r.flying.nextSet(at, next) < next {
			break
		}
		if vain+next-at > max(1, (next-first)/bridgeShare) {
			break
		}
		vain += next - at
		count = next + n - first
	}
	return count, vain
}

// absentAround returns the longest run within [first, end) that has page in it and
// otherwise pages that are absent and not in flight.
func (r *region) absentAround(page, first, end uint64) (uint64, uint32) {
	wanted := func(p uint64) bool { return r.res.State(p) == Absent && !r.flying.hasShared(p) }
	lo, hi := page, page+1
	for lo > first && wanted(lo-1) {
		lo--
	}
	for hi < end && wanted(hi) {
		hi++
	}
	return lo, uint32(hi - lo)
}
