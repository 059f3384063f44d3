package faultd

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// ReserveGranule is the number of pages that are reserved together, aligned in their
// region: what the kernel maps of a file at one read fault (fault_around_bytes, 64 KiB).
const ReserveGranule = 16

// Reserver is memory that can be allocated before its content comes.
type Reserver interface {
	// Reserve puts zeroed memory behind the pages of r, which are absent and empty, and
	// maps it where Place points to. An error that wraps transport.ErrNoMemory says that
	// there is no room; part of r may have memory then.
	Reserve(r transport.Range) error
}

// ErrNoReserver says that a kind of memory cannot be reserved.
var ErrNoReserver = errors.New("this kind of guest memory is not reserved beforehand")

// reservations are those of each region.
type reservations map[uint32]*reservedSet

// reservedSet are the granules of a region that have memory behind them, a bit each.
type reservedSet struct {
	set     []uint64 // set before the first channel is opened
	emptied []uint64 // atomic; of those, where a page was emptied and left absent
}

// Reserve allocates memory behind those absent pages of r that make whole granules,
// while the machine still runs elsewhere, and returns how many they are. Precache then
// receives into place: the page is neither allocated nor copied, nor is the file locked,
// while the machine waits for it. A reserved page is as absent as any other; one that
// turns out to be zero is emptied.
//
// Reserve comes after Start and before the opener gives out its first channel; calls
// are not concurrent. After an error that wraps transport.ErrNoMemory what was reserved
// before stays so.
func (e *Engine) Reserve(r transport.Range) (pages uint64, err error) {
	m := &e.cfg.Memory
	if m.Reserve == nil || m.Place == nil {
		return 0, ErrNoReserver
	}
	reg := e.regions[r.Region]
	if reg == nil || r.First >= reg.Pages || uint64(r.Count) > reg.Pages-r.First {
		return 0, fmt.Errorf("reserve pages %d+%d of region %d: they are not there", r.First, r.Count, r.Region)
	}
	first := (r.First + ReserveGranule - 1) / ReserveGranule
	end := (r.First + uint64(r.Count)) / ReserveGranule
	if first >= end {
		return 0, nil
	}
	all := e.reserved.Load()
	if all == nil {
		all = &reservations{}
		e.reserved.Store(all)
	}
	x := (*all)[r.Region]
	if x == nil {
		words := (reg.Pages/ReserveGranule + 63) / 64
		x = &reservedSet{set: make([]uint64, words), emptied: make([]uint64, words)}
		(*all)[r.Region] = x
	}
	r.First, r.Count = first*ReserveGranule, uint32((end-first)*ReserveGranule)
	if err := m.Reserve.Reserve(r); err != nil {
		return 0, errors.Join(fmt.Errorf("reserve memory: %w", err), m.Place.Discard(r))
	}
	for g := first; g < end; g++ {
		x.set[g/64] |= 1 << (g % 64)
	}
	return uint64(r.Count), nil
}

// isReserved reports whether every page of r has memory behind it.
func (e *Engine) isReserved(r transport.Range) bool {
	all := e.reserved.Load()
	if all == nil {
		return false
	}
	x := (*all)[r.Region]
	if x == nil {
		return false
	}
	last := (r.First + uint64(r.Count) - 1) / ReserveGranule
	for g := r.First / ReserveGranule; g <= last; g++ {
		if g/64 >= uint64(len(x.set)) || x.set[g/64]>>(g%64)&1 == 0 {
			return false
		}
	}
	return true
}

// nextReserved returns the first run of reserved pages in [from, end), whole granules
// cut to it and no more than limit pages.
func nextReserved(set []uint64, from, end, limit uint64) (first, count uint64, ok bool) {
	g, most := from/ReserveGranule, uint64(len(set))*64
	for g < most && g*ReserveGranule < end {
		w := set[g/64] >> (g % 64)
		if w == 0 {
			g = (g/64 + 1) * 64
			continue
		}
		g += uint64(bits.TrailingZeros64(w))
		first = max(from, g*ReserveGranule)
		for g < most && set[g/64]>>(g%64)&1 != 0 && g*ReserveGranule < min(end, first+limit) {
			g++
		}
		last := min(end, first+limit, g*ReserveGranule)
		return first, last - first, first < last
	}
	return 0, 0, false
}

// emptyReserved empties the absent pages of [first, end) that were reserved, and returns
// how many there were.
func (e *Engine) emptyReserved(reg *Region, first, end uint64, maskFor func(uint32) pagecache.Mask) (n uint64, err error) {
	all := e.reserved.Load()
	if all == nil {
		return 0, nil
	}
	x := (*all)[reg.ID]
	if x == nil {
		return 0, nil
	}
	return e.emptyRuns(reg, first, end, func(from, end, limit uint64) (uint64, uint64, bool) {
		return nextReserved(x.set, from, end, limit)
	}, maskFor)
}

// zeroes is what Reserve writes at a time: as much as the kernel maps at one fault.
var zeroes [ReserveGranule * 4096]byte

// Reserve implements [Reserver].
func (s *Shared) Reserve(r transport.Range) error {
	a, _, length, err := s.as.span(r)
	if err != nil {
		return err
	}
	at := int64(r.First) * int64(a.PageSize)
	for i := range s.as.list {
		if s.as.list[i].ID == r.Region {
			return reserveFile(a.FD, a.Offset+at, s.alias[i][at:at+int64(length)])
		}
	}
	return nil
}

// Reserve implements [Reserver], for pages of 4 KiB.
func (d *Device) Reserve(r transport.Range) error {
	m, err := d.at(r)
	if err != nil {
		return err
	}
	at, length := int64(r.First)*int64(m.PageSize), int64(r.Count)*int64(m.PageSize)
	return reserveFile(m.fd, at, m.alias[at:at+length])
}

// reserveFile puts zeroes behind alias, the mapping of a file from offset on, in bytes.
// Writing zeroes and then mapping what is there costs less than populating the mapping,
// which takes a page fault for each page: 2.7 µs a page against 3.9 on the second machine
// of docs/SPECIFICATION.md. Linux before 5.14 cannot populate; there a store to the alias
// faults, and does not allocate.
func reserveFile(fd int, offset int64, alias []byte) error {
	for at := 0; at < len(alias); at += len(zeroes) {
		n := min(len(alias)-at, len(zeroes))
		if err := noMemory(sysmem.WriteAt(fd, zeroes[:n], offset+int64(at))); err != nil {
			return err
		}
	}
	if err := sysmem.Advise(alias, unix.MADV_POPULATE_READ); err != nil && !errors.Is(err, unix.EINVAL) {
		return noMemory(err)
	}
	return nil
}

// noMemory marks errors that say that there is no room.
func noMemory(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("%w: %w", transport.ErrNoMemory, err)
	}
	return err
}
