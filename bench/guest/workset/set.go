package workset

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

const stripes = 256

// Set is a working set. Its methods may be called concurrently.
type Set struct {
	mem   []byte                  // immutable after New
	pages []page                  // immutable after New; for the elements see page
	want  []uint32                // generation each page must have; guarded by its stripe
	locks [stripes]sync.Mutex     // one for pages n, n+stripes, ...
	noisy int                     // payload bytes that are incompressible; immutable after New
	onBad func(n int, why string) // immutable after New

	touching sync.RWMutex // held shared over a batch of touches, exclusively to sum them up
	touches  atomic.Uint64
	checks   atomic.Uint64
	rewrites atomic.Uint64
	bad      atomic.Uint64
	gens     atomic.Uint64
}

// New maps and fills a set of the given number of pages, with incompressible
// (0 to 1) as the share of each payload that no codec can shrink. onBad is
// called for every failed check, from the goroutine that made it, maybe with
// the page's lock held: it must not call the set.
func New(pages int, incompressible float64, onBad func(n int, why string)) (*Set, error) {
	mem, err := unix.Mmap(-1, 0, pages*PageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map a working set of %d pages of %d bytes: %w; give the guest more memory or take a smaller set", pages, PageBytes, err)
	}
	s := Over(mem, make([]uint32, pages), incompressible, 0, onBad)
	s.Fill()
	return s, nil
}

// Over makes a set of memory that is mapped already, and of a table with one
// entry a page for the generations that they must have; both stay the caller's,
// and must stay mapped. The pages are those of a set that was at work elsewhere,
// which had been touched so many times, or else the next call must be Fill. See
// New for the rest.
func Over(mem []byte, want []uint32, incompressible float64, touches uint64, onBad func(n int, why string)) *Set {
	s := &Set{
		mem:   mem,
		pages: pagesOf(mem),
		want:  want,
		noisy: int(incompressible*payloadBytes) &^ 7,
		onBad: onBad,
	}
	for _, g := range want {
		s.gens.Add(uint64(g))
	}
	s.touches.Store(touches)
	return s
}

// Fill writes all pages for the first time; no other method may be running.
func (s *Set) Fill() {
	for n := range s.pages {
		s.fill(n, 1)
	}
	s.gens.Store(uint64(len(s.pages)))
}

// Close unmaps the set of New; no method may be running or called afterwards.
func (s *Set) Close() error {
	mem := s.mem
	s.mem, s.pages = nil, nil
	return unix.Munmap(mem)
}

// Pages returns the number of pages.
func (s *Set) Pages() int { return len(s.pages) }

// Counters returns how many pages were checked, rewritten, touched and found
// bad so far, and the sum of the generations of all pages.
func (s *Set) Counters() (checks, rewrites, touches, bad, generations uint64) {
	return s.checks.Load(), s.rewrites.Load(), s.touches.Load(), s.bad.Load(), s.gens.Load()
}

// Read verifies page n and copies the start of its payload to dst. It returns
// the bytes copied and whether the page was good.
func (s *Set) Read(n int, dst []byte) (int, bool) {
	l := &s.locks[n%stripes]
	l.Lock()
	defer l.Unlock()
	ok := s.check(n)
	return copy(dst, s.pages[n].payload[:]), ok
}

// Rewrite verifies page n, then writes it anew with the next generation. It
// reports whether the page was good before.
func (s *Set) Rewrite(n int) bool {
	l := &s.locks[n%stripes]
	l.Lock()
	defer l.Unlock()
	ok := s.check(n)
	s.fill(n, s.want[n]+1)
	s.rewrites.Add(1)
	s.gens.Add(1)
	return ok
}

// Touch reads and writes count random pages, which it draws from r.
func (s *Set) Touch(r *Random, count int) {
	s.touching.RLock()
	defer s.touching.RUnlock()
	for range count {
		s.touch(r.Below(len(s.pages)))
	}
	s.touches.Add(uint64(count))
}

// TouchAll reads and writes the given pages, in their order.
func (s *Set) TouchAll(pages []int) {
	s.touching.RLock()
	defer s.touching.RUnlock()
	for _, n := range pages {
		s.touch(n)
	}
	s.touches.Add(uint64(len(pages)))
}

// touch touches page n. The caller holds touching.
func (s *Set) touch(n int) {
	p := &s.pages[n]
	if number := atomic.LoadUint64(&p.number); number != uint64(n) {
		s.report(n, fmt.Sprintf("touch: number is %d", number))
	}
	atomic.AddUint32(&p.touches, 1)
}

// Damage flips one bit of page n, as no program should: it is for tests of
// those who rely on the checks.
func (s *Set) Damage(n int) {
	l := &s.locks[n%stripes]
	l.Lock()
	defer l.Unlock()
	s.pages[n].payload[payloadBytes-1] ^= 1
}

// VerifyAll checks every page once. It returns how many were bad, and how many
// touches the pages lack against the count kept outside of them.
func (s *Set) VerifyAll() (bad uint64, touchesMissing int64) {
	for n := range s.pages {
		if _, ok := s.Read(n, nil); !ok {
			bad++
		}
	}
	s.touching.Lock()
	defer s.touching.Unlock()
	missing := int64(s.touches.Load())
	for n := range s.pages {
		missing -= int64(atomic.LoadUint32(&s.pages[n].touches))
	}
	return bad, missing
}

// check reports whether page n is what it must be. The caller holds its stripe.
func (s *Set) check(n int) bool {
	s.checks.Add(1)
	p := &s.pages[n]
	switch {
	case p.number != uint64(n):
		s.report(n, fmt.Sprintf("number is %d", p.number))
	case p.generation != s.want[n]:
		s.report(n, fmt.Sprintf("generation is %d, want %d", p.generation, s.want[n]))
	case p.seed != seedOf(n, p.generation):
		s.report(n, fmt.Sprintf("seed is %#x, want %#x", p.seed, seedOf(n, p.generation)))
	case p.sum != p.digest():
		s.report(n, fmt.Sprintf("checksum is %#x, the page's bytes give %#x", p.sum, p.digest()))
	default:
		return true
	}
	return false
}

func (s *Set) report(n int, why string) {
	s.bad.Add(1)
	if s.onBad != nil {
		s.onBad(n, why)
	}
}

// fill writes page n with the given generation. The caller holds its stripe.
func (s *Set) fill(n int, generation uint32) {
	p := &s.pages[n]
	if p.number != uint64(n) {
		atomic.StoreUint64(&p.number, uint64(n)) // Touch reads it without the stripe
	}
	p.generation = generation
	p.seed = seedOf(n, generation)
	r := Random{state: p.seed}
	i := 0
	for ; i < s.noisy; i += 8 {
		binary.LittleEndian.PutUint64(p.payload[i:], r.Next())
	}
	for ; i < payloadBytes; i += 8 {
		binary.LittleEndian.PutUint64(p.payload[i:], p.seed)
	}
	p.sum = p.digest()
	s.want[n] = generation
}

// digest is the checksum of everything in p but the touch counter and itself.
func (p *page) digest() uint64 {
	return xxhash.Sum64(p.payload[:]) ^ mix(p.number^mix(uint64(p.generation)^mix(p.seed)))
}

func seedOf(n int, generation uint32) uint64 {
	return mix(uint64(n)<<32 ^ uint64(generation))
}
