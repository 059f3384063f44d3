package pagecache

import "fmt"

// State is what is known of one page.
type State uint8

// The states of a page. The first four are stored, two bits each; Outside is
// only an answer.
const (
	Absent     State = 0 // not here; may be claimed
	Installing State = 1 // claimed: its claimant, and nobody else, writes it
	Resident   State = 2 // its content is complete
	Zero       State = 3 // reads as zero; nothing was written
	Outside    State = 4 // no page of the region
)

// String returns the state's name as it stands in errors and logs.
func (s State) String() string {
	switch s {
	case Absent:
		return "absent"
	case Installing:
		return "installing"
	case Resident:
		return "resident"
	case Zero:
		return "zero"
	case Outside:
		return "outside the region"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// TransitionError reports pages that were not in the state an operation needs.
// It is the programmer's mistake: a claim was ended twice, or by someone who
// did not hold it. The pages that were in the right state have made the
// transition; the others are unchanged.
type TransitionError struct {
	Op    string // "commit" or "release"
	Page  uint64 // first page in a wrong state
	State State  // the state it was in
	Pages uint64 // number of pages in a wrong state
}

// Error names the page and the state it was in.
func (e *TransitionError) Error() string {
	return fmt.Sprintf("%s page %d: it is %s, not installing (%d such pages): only its claimant may end a claim, once",
		e.Op, e.Page, e.State, e.Pages)
}

// Counts is the number of pages in each state.
type Counts struct {
	Absent, Installing, Resident, Zero uint64
}

// A word holds 32 pages; page i has bits 2i (low) and 2i+1 (high). A lane mask
// selects pages by their low bits.
const (
	pagesPerWord = 32
	lanes        = 0x5555_5555_5555_5555
)

// laneMask selects n pages from page off of a word; 1 <= n <= 32-off.
func laneMask(off, n uint64) uint64 {
	return lanes >> (2 * (pagesPerWord - n)) << (2 * off)
}

func absentLanes(w uint64) uint64     { return ^(w | w>>1) & lanes }
func installingLanes(w uint64) uint64 { return w & ^(w >> 1) & lanes }
func residentLanes(w uint64) uint64   { return ^w & (w >> 1) & lanes }
func zeroLanes(w uint64) uint64       { return w & (w >> 1) & lanes }

// gather packs the low bits of 32 lanes into 32 adjacent bits.
func gather(x uint64) uint64 {
	x &= lanes
	x = (x | x>>1) & 0x3333_3333_3333_3333
	x = (x | x>>2) & 0x0f0f_0f0f_0f0f_0f0f
	x = (x | x>>4) & 0x00ff_00ff_00ff_00ff
	x = (x | x>>8) & 0x0000_ffff_0000_ffff
	return (x | x>>16) & 0xffff_ffff
}

// scatter is the inverse of gather.
func scatter(x uint64) uint64 {
	x &= 0xffff_ffff
	x = (x | x<<16) & 0x0000_ffff_0000_ffff
	x = (x | x<<8) & 0x00ff_00ff_00ff_00ff
	x = (x | x<<4) & 0x0f0f_0f0f_0f0f_0f0f
	x = (x | x<<2) & 0x3333_3333_3333_3333
	return (x | x<<1) & lanes
}

// Mask selects pages of a run: bit i of the mask (bit i%64 of word i/64) is
// page first+i. It is a plain slice so that callers keep it on the stack or
// beside their buffers.
type Mask []uint64

// MaskWords returns the length of a Mask for a run of count pages.
func MaskWords(count uint64) uint64 { return (count + 63) / 64 }

// Has reports whether page i of the run is selected.
func (m Mask) Has(i uint64) bool { return m[i/64]>>(i%64)&1 != 0 }

// Set selects page i of the run.
func (m Mask) Set(i uint64) { m[i/64] |= 1 << (i % 64) }

// Clear unselects page i of the run.
func (m Mask) Clear(i uint64) { m[i/64] &^= 1 << (i % 64) }

// or adds up to 32 bits from position at.
func (m Mask) or(at, bits uint64) {
	if bits == 0 {
		return
	}
	m[at/64] |= bits << (at % 64)
	if spill := bits >> (64 - at%64); at%64 > 32 && spill != 0 {
		m[at/64+1] |= spill
	}
}

// bits returns n <= 32 bits from position at.
func (m Mask) bits(at, n uint64) uint64 {
	v := m[at/64] >> (at % 64)
	if at%64+n > 64 {
		v |= m[at/64+1] << (64 - at%64)
	}
	return v & (1<<n - 1)
}
