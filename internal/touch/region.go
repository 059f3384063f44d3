package touch

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
)

// Region is memory mapped in a touch process. Page numbers count from its
// start, in units of PageSize.
type Region struct {
	p *Proc
	// Addr is the address in the process, in bytes. Immutable, as the rest; a
	// Remap gives a new Region.
	Addr uint64
	// Size is the length in bytes.
	Size uint64
	// PageSize is that of the memory, in bytes.
	PageSize uint64
}

// Pages is the number of pages.
func (r *Region) Pages() uint64 { return r.Size / r.PageSize }

// PageAddr is the address of a page in the process.
func (r *Region) PageAddr(page uint64) uint64 { return r.Addr + page*r.PageSize }

// Touch reads (or with write, writes back unchanged) the first word of each of
// the pages, in their order, dealt out to threads in turn. It returns the time
// of each touch in ns, in the order of pages.
func (r *Region) Touch(pages []uint64, write bool, threads int) ([]uint32, error) {
	for _, n := range pages {
		if n >= r.Pages() {
			return nil, fmt.Errorf("touch page %d of a region of %d pages", n, r.Pages())
		}
	}
	return r.bulk(request{Op: "touch", Count: uint64(len(pages)), Write: write, Threads: threads}, pages)
}

// TouchAll is Touch of all pages from first, count of them, in their order.
func (r *Region) TouchAll(first, count uint64, write bool, threads int) ([]uint32, error) {
	pages := make([]uint64, count)
	for i := range pages {
		pages[i] = first + uint64(i)
	}
	return r.Touch(pages, write, threads)
}

// TouchRandom touches pages of [first, first+count) at random for a time, by
// threads. It returns the number of touches and the times in ns of the first
// limit of them.
func (r *Region) TouchRandom(first, count uint64, write bool, threads int, d time.Duration, seed uint64, limit int) (uint64, []uint32, error) {
	if first+count > r.Pages() || count == 0 {
		return 0, nil, fmt.Errorf("touch pages %d+%d of a region of %d pages", first, count, r.Pages())
	}
	var total uint64
	lat, err := r.bulkCount(request{Op: "random", First: first, To: count, Count: uint64(limit), Write: write,
		Threads: threads, Nanos: int64(d), Seed: seed}, nil, &total)
	return total, lat, err
}

// Sums returns the CRC32C of each of the pages of [first, first+count), read in
// the process.
func (r *Region) Sums(first, count uint64) ([]uint32, error) {
	if first+count > r.Pages() {
		return nil, fmt.Errorf("sum pages %d+%d of a region of %d pages", first, count, r.Pages())
	}
	return r.bulk(request{Op: "sums", First: first, Count: count}, nil)
}

// Verify compares pages [first, first+count) with what Fill makes of seed and
// returns how many differ.
func (r *Region) Verify(first, count, seed uint64) (bad uint64, err error) {
	sums, err := r.Sums(first, count)
	if err != nil {
		return 0, err
	}
	page := make([]byte, r.PageSize)
	for i, got := range sums {
		Fill(page, first+uint64(i), seed)
		if Sum(page) != got {
			bad++
		}
	}
	return bad, nil
}

// Write fills a page in the process, as Fill does.
func (r *Region) Write(page, seed uint64) error {
	_, _, err := r.p.call(request{Op: "write", Addr: r.PageAddr(page), First: page, Page: r.PageSize, Seed: seed}, -1)
	return err
}

// Advise calls madvise(2) on pages [first, first+count). MADV_DONTNEED and
// MADV_REMOVE raise an event, and it returns after that has been read.
func (r *Region) Advise(first, count uint64, advice int) error {
	_, _, err := r.p.call(request{Op: "advise", Addr: r.PageAddr(first), Len: count * r.PageSize, Flags: advice}, -1)
	return err
}

// Unmap unmaps pages [first, first+count).
func (r *Region) Unmap(first, count uint64) error {
	_, _, err := r.p.call(request{Op: "unmap", Addr: r.PageAddr(first), Len: count * r.PageSize}, -1)
	return err
}

// Remap moves the whole region to another address and returns it as the new
// region; the old one is gone.
func (r *Region) Remap() (*Region, error) {
	rep, _, err := r.p.call(request{Op: "remap", Addr: r.Addr, Len: r.Size}, -1)
	return &Region{p: r.p, Addr: rep.Addr, Size: r.Size, PageSize: r.PageSize}, err
}

func (r *Region) bulk(req request, pages []uint64) ([]uint32, error) {
	return r.bulkCount(req, pages, nil)
}

// bulkCount runs a request whose arguments and results are arrays: req.Count
// words of 8 bytes of pages, then req.Count words of 4 bytes of results, in a
// memfd shared for the purpose.
func (r *Region) bulkCount(req request, pages []uint64, total *uint64) ([]uint32, error) {
	req.Addr, req.Len, req.Page = r.Addr, r.Size, r.PageSize
	if req.Op != "sums" && (req.Threads < 1 || req.Threads > MaxThreads) {
		return nil, fmt.Errorf("touch by %d threads: between 1 and %d are possible", req.Threads, MaxThreads)
	}
	size := max(int64(req.Count)*12, 1)
	fd, err := sysmem.CreateMemfd("touch-data", size, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b, err := sysmem.MapShared(fd, 0, size, true)
	if err != nil {
		return nil, err
	}
	defer sysmem.Unmap(b)
	in, out := bulkSlices(b, req.Count)
	copy(in, pages)
	rep, _, err := r.p.call(req, fd)
	if err != nil {
		return nil, err
	}
	n := req.Count
	if total != nil {
		*total = rep.Count
		n = min(n, rep.Count)
	}
	return append([]uint32(nil), out[:n]...), nil
}
