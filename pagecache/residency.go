package pagecache

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Residency is the state of every page of one region. All methods but Recover
// and Close may be called concurrently; none waits for another.
type Residency struct {
	pages uint64   // immutable
	words []uint64 // immutable slice; elements atomic
	own   []byte   // mapping to undo in Close; nil if the caller owns the memory

	// Changed after the words have been, once a call, so that remaining never
	// runs ahead of the truth. The others may be off while calls are under way.
	remaining  atomic.Int64
	installing atomic.Int64
	resident   atomic.Int64
	zero       atomic.Int64
}

// New returns a residency with every page absent, in memory of its own: two
// bits a page (64 MiB for 1 TiB of 4 KiB pages), outside the Go heap, and taken
// from the system only where it is written. Close gives it back.
func New(pages uint64) (*Residency, error) {
	if pages == 0 || pages > MaxPages {
		return nil, fmt.Errorf("residency of %d pages: a region has 1 to %d", pages, uint64(MaxPages))
	}
	words, mem, err := newTable(wordsFor(pages))
	if err != nil {
		return nil, fmt.Errorf("take memory for a residency of %d pages: %w", pages, err)
	}
	r := &Residency{pages: pages, words: words, own: mem}
	r.remaining.Store(int64(pages))
	return r, nil
}

// mapTable maps a table of n words.
func mapTable(n uint64) (words []uint64, mem []byte, err error) {
	mem, err = unix.Mmap(-1, 0, int(n*8), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, fmt.Errorf("map %d bytes: %w", n*8, err)
	}
	words, err = asWords(mem) // cannot fail: mappings are aligned to pages
	return words, mem, err
}

// Create starts a residency, every page absent, in memory of the caller's: at
// least [Size] bytes, aligned to 8, all zero, typically a shared mapping of a
// new file on tmpfs, so that it survives the daemon. The tag is kept in the
// header and checked by [Attach]; it should tell one region and session from
// another. Memory that is in use already is refused. Only one process at a time
// may use the memory, and it must stay mapped for as long as the residency is
// used.
func Create(mem []byte, pages, tag uint64) (*Residency, error) {
	if err := checkMemory(mem, pages); err != nil {
		return nil, err
	}
	for i, b := range mem[:headerSize] {
		if b != 0 {
			return nil, fmt.Errorf("create residency: byte %d of its memory is %#02x, not 0: attach to it, or take a new file", i, b)
		}
	}
	words, err := asWords(mem[headerSize:Size(pages)])
	if err != nil {
		return nil, err
	}
	putHeader(mem, pages, tag)
	r := &Residency{pages: pages, words: words}
	r.remaining.Store(int64(pages))
	return r, nil
}

// Attach takes up the residency that [Create] started in mem. It changes
// nothing: pages of the former daemon's claims are still Installing until
// [Residency.Recover]. If mem does not hold a whole residency of so many pages
// and this tag, the error wraps [ErrDamaged] and names what is wrong.
func Attach(mem []byte, pages, tag uint64) (*Residency, error) {
	if err := checkMemory(mem, pages); err != nil {
		return nil, err
	}
	if err := checkHeader(mem, pages, tag); err != nil {
		return nil, err
	}
	words, err := asWords(mem[headerSize:Size(pages)])
	if err != nil {
		return nil, err
	}
	if rest := pages % pagesPerWord; rest != 0 {
		if w := words[len(words)-1]; w>>(2*rest) != 0 {
			return nil, fmt.Errorf("%w: last word is %#016x, but only %d of its pages exist", ErrDamaged, w, rest)
		}
	}
	r := &Residency{pages: pages, words: words}
	r.recount()
	return r, nil
}

// Recover takes every claim back, Installing to Absent, and returns how many
// there were. It is for a daemon that attached to the residency of one that
// died; nobody may hold a claim or call another method meanwhile.
func (r *Residency) Recover() uint64 {
	var n uint64
	for i := range r.words {
		w := atomic.LoadUint64(&r.words[i])
		if c := installingLanes(w); c != 0 {
			n += popcount(c)
			atomic.StoreUint64(&r.words[i], w^c)
		}
	}
	r.recount()
	return n
}

// Close returns the memory that New took; for memory of the caller's it does
// nothing. Nobody may use the residency afterwards.
func (r *Residency) Close() error {
	mem := r.own
	if mem == nil {
		return nil
	}
	r.own, r.words = nil, nil
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("unmap residency of %d pages: %w", r.pages, err)
	}
	return nil
}

// Pages returns the number of pages of the region.
func (r *Residency) Pages() uint64 { return r.pages }

// Remaining returns the number of pages that are neither Resident nor Zero. It
// never rises (but for none at Recover), and 0 says that the region is complete.
func (r *Residency) Remaining() uint64 { return uint64(r.remaining.Load()) }

// Counts returns the number of pages in each state. While other calls are under
// way it may lag behind them; at rest it is exact.
func (r *Residency) Counts() Counts {
	rem, inst := r.remaining.Load(), r.installing.Load()
	return Counts{
		Absent:     uint64(max(0, rem-inst)),
		Installing: uint64(max(0, inst)),
		Resident:   uint64(max(0, r.resident.Load())),
		Zero:       uint64(max(0, r.zero.Load())),
	}
}

func (r *Residency) recount() {
	var c Counts
	for i := range r.words {
		w := atomic.LoadUint64(&r.words[i])
		if w == 0 {
			continue
		}
		c.Installing += popcount(installingLanes(w))
		c.Resident += popcount(residentLanes(w))
		c.Zero += popcount(zeroLanes(w))
	}
	r.installing.Store(int64(c.Installing))
	r.resident.Store(int64(c.Resident))
	r.zero.Store(int64(c.Zero))
	r.remaining.Store(int64(r.pages - c.Resident - c.Zero))
}
