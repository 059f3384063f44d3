package pagehash

import (
	"math/bits"
	"sync"
)

const (
	// maxPlaces bounds the region whose pages a Places can name, in 32 bits.
	maxPlaces = 1<<32 - 1
	// leastSlots is what a Places has first, mostSlots (64 MiB) what it has at most: growing
	// takes up to a second then, in which whoever adds hears nothing else of its peer.
	leastSlots = 1 << 10
	mostSlots  = 1 << 24
	// mostProbes bounds how far a hash may stand from where it belongs: hashes come
	// from a peer, which may choose them so that all belong in one place.
	mostProbes = 32
)

// Places finds the pages of an [Index] by their hash: memory that a guest's kernel has
// moved (compaction, huge pages, its page cache) is a candidate somewhere else. It
// takes 4 bytes for each slot of a hash table that is at most half full. It may miss a
// page, of which nothing depends but speed: one whose twin was found first and is
// replaced, one that too many others stand in the way of, or one beyond 8 million (32 GiB
// in pages of 4 KiB). Its methods are safe for concurrent use.
type Places struct {
	x    *Index
	most int // slots; immutable after NewPlaces

	mu    sync.RWMutex
	slots []uint32 // guarded by mu; page + 1, 0 for none; a power of two of them
	used  int      // guarded by mu
}

// NewPlaces returns what finds the pages of x, none as yet; nil if its region is too
// large (16 TiB in pages of 4 KiB).
func NewPlaces(x *Index) *Places {
	if x.pages > maxPlaces {
		return nil
	}
	return &Places{x: x, most: mostSlots}
}

// Add has the candidates of a run found from here on, after they were set in the index.
func (p *Places) Add(first, count uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for page := first; page < first+count; page++ {
		sum, ok := p.x.Get(page)
		if !ok {
			continue
		}
		if 2*(p.used+1) > len(p.slots) {
			if len(p.slots) >= p.most {
				return
			}
			p.grow()
		}
		p.insert(page, sum)
	}
}

// grow makes room, and leaves out what the index has replaced since. mu is held.
func (p *Places) grow() {
	n := min(max(leastSlots, 1<<bits.Len64(2*p.x.Count())), p.most)
	p.slots, p.used = make([]uint32, n), 0
	for at := uint64(0); ; {
		first, count, ok := p.x.Next(at, p.x.pages, chunkPages)
		if !ok {
			return
		}
		for at = first; at < first+count; at++ {
			if 2*(p.used+1) > n {
				return
			}
			if sum, ok := p.x.Get(at); ok {
				p.insert(at, sum)
			}
		}
	}
}

// insert notes a page, unless one with its hash is there or there is no slot close to
// where it belongs. mu is held.
func (p *Places) insert(page uint64, sum Sum) {
	mask := uint64(len(p.slots) - 1)
	for i := range uint64(mostProbes) {
		s := &p.slots[(sum.Low+i)&mask]
		if *s == 0 {
			*s = uint32(page + 1)
			p.used++
			return
		}
		if old, ok := p.x.Get(uint64(*s - 1)); ok && old == sum {
			return
		}
	}
}

// Find returns a page whose candidate has that hash.
func (p *Places) Find(sum Sum) (page uint64, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if len(p.slots) == 0 || !sum.real() {
		return 0, false
	}
	mask := uint64(len(p.slots) - 1)
	for i := range uint64(mostProbes) {
		s := p.slots[(sum.Low+i)&mask]
		if s == 0 {
			return 0, false
		}
		if got, ok := p.x.Get(uint64(s - 1)); ok && got == sum {
			return uint64(s - 1), true
		}
	}
	return 0, false
}
