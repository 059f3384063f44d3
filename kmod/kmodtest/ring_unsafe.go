package kmodtest

import (
	"sync/atomic"
	"unsafe"
)

// Ring is the memory of a fault ring and its producer, as the kernel is one:
// see driver/ring.c. It is for tests of the consumer; Put may be called by
// several goroutines.
type Ring struct {
	// Producer and Consumer are the two mappings of a daemon's end.
	Producer, Consumer []byte

	prod, cons *uint32
	entries    []entry
}

// entry is struct pagewarp_fault.
type entry struct {
	page, time uint64
	tid, flags uint32
	_          uint32
	seq        uint32
}

const pageBytes = 4096

// NewRing makes an empty ring of a power of two of entries, whose indices begin
// at start.
func NewRing(entries int, start uint32) *Ring {
	r := &Ring{Producer: make([]byte, pageBytes+entries*32), Consumer: make([]byte, pageBytes)}
	// SAFETY: both slices are larger than what is viewed; the allocator aligns
	// slices of this size to pages or at least to 16 bytes.
	r.prod = (*uint32)(unsafe.Pointer(unsafe.SliceData(r.Producer)))
	r.cons = (*uint32)(unsafe.Pointer(unsafe.SliceData(r.Consumer)))
	r.entries = unsafe.Slice((*entry)(unsafe.Pointer(&r.Producer[pageBytes])), entries)
	*r.prod, *r.cons = start, start
	for i := range uint32(entries) {
		at := start + i
		r.entries[at&uint32(entries-1)].seq = at + 1 - uint32(entries)
	}
	return r
}

// Put puts a fault into the ring; it is false if the ring is full.
func (r *Ring) Put(page uint64, flags uint32) bool {
	for {
		prod := atomic.LoadUint32(r.prod)
		if prod-atomic.LoadUint32(r.cons) >= uint32(len(r.entries)) {
			return false
		}
		if !atomic.CompareAndSwapUint32(r.prod, prod, prod+1) {
			continue
		}
		e := &r.entries[prod&uint32(len(r.entries)-1)]
		atomic.StoreUint64(&e.page, page)
		atomic.StoreUint32(&e.flags, flags)
		atomic.StoreUint32(&e.seq, prod+1)
		return true
	}
}

// SetPending sets the flag that faults wait outside the ring.
func (r *Ring) SetPending() {
	// SAFETY: the flags are the second word of the producer's page.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&r.Producer[4])), 1)
}
