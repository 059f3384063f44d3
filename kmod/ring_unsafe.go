package kmod

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"
)

// Ring is the consumers' side of a fault ring whose producer is the kernel. Any
// number of goroutines may Read.
//
// The barriers B, C and D are those of driver/pagewarp.h.
type Ring struct {
	producer *rawProducer
	consumer *rawConsumer
	entries  []rawFault // a power of two of them
	pages    uint64     // of the object; faults of others are dropped
	bad      atomic.Uint64
}

// NewRing views memory as a ring: the producer's mapping of docs/UAPI.md, and
// the consumer page. Both must outlive it; pages bounds the faults it returns.
func NewRing(producer, consumer []byte, entries int, pages uint64) (*Ring, error) {
	if entries < MinRing || entries > MaxRing || entries&(entries-1) != 0 ||
		len(producer) < pageBytes+entries*int(unsafe.Sizeof(rawFault{})) || len(consumer) < pageBytes {
		return nil, fmt.Errorf("ring of %d entries in mappings of %d and %d bytes is none", entries, len(producer), len(consumer))
	}
	// SAFETY: the lengths were checked, mappings are page-aligned, and the caller
	// keeps them. The memory changes at any time: it is only read by atomics.
	p := unsafe.Pointer(unsafe.SliceData(producer))
	return &Ring{
		producer: (*rawProducer)(p),
		consumer: (*rawConsumer)(unsafe.Pointer(unsafe.SliceData(consumer))),
		entries:  unsafe.Slice((*rawFault)(unsafe.Add(p, pageBytes)), entries),
		pages:    pages,
	}, nil
}

// Read takes as many faults as there are, len(buf) at most, and returns how many
// it took. It never waits.
func (r *Ring) Read(buf []Fault) int {
	mask := uint32(len(r.entries) - 1)
	most := uint32(min(len(buf), len(r.entries)))
	for {
		cons := atomic.LoadUint32(&r.consumer.cons)
		n, out := uint32(0), 0
		for n < most {
			e := &r.entries[(cons+n)&mask]
			// B: seq, then the entry.
			if atomic.LoadUint32(&e.seq) != cons+n+1 {
				break
			}
			n++
			f := Fault{Page: atomic.LoadUint64(&e.page), Time: time.Duration(atomic.LoadUint64(&e.timeNS)),
				TID: atomic.LoadUint32(&e.tid), Flags: atomic.LoadUint32(&e.flags)}
			if f.Page < r.pages {
				buf[out] = f
				out++
			}
		}
		if n == 0 {
			return 0
		}
		// C: the copies, then cons. If another consumer was faster, what was
		// copied may be half of something newer: try again.
		if !atomic.CompareAndSwapUint32(&r.consumer.cons, cons, cons+n) {
			continue
		}
		if bad := int(n) - out; bad > 0 {
			r.bad.Add(uint64(bad))
		}
		if out > 0 {
			return out
		}
	}
}

// Pending tells that faults wait outside the full ring, so that an empty ring
// must be polled.
func (r *Ring) Pending() bool { return atomic.LoadUint32(&r.producer.flags)&ringPending != 0 }

// Overflows is how many faults found the ring full.
func (r *Ring) Overflows() uint64 { return atomic.LoadUint64(&r.producer.overflows) }

// Bad is how many entries were dropped because their page was not of the object:
// 0, unless the kernel is broken.
func (r *Ring) Bad() uint64 { return r.bad.Load() }

// setSpin tells the kernel how long threads, and poll, look before they sleep.
func (r *Ring) setSpin(thread, poll time.Duration) {
	us := func(d time.Duration) uint32 { return uint32(min(max(d, 0), maxSpin).Microseconds()) }
	atomic.StoreUint32(&r.consumer.spinUS, us(thread))
	atomic.StoreUint32(&r.consumer.pollUS, us(poll))
}
