package ringq

import (
	"fmt"
	"sync/atomic"
)

// cacheLine is the size on which two cores contend: two 64-byte lines, because
// the adjacent-line prefetcher of x86 pulls them in pairs.
const cacheLine = 128

// slot holds one value. For ring position pos the slot is free while
// seq == pos, full while seq == pos+1, and free for the next lap at pos+size.
type slot[T any] struct {
	seq atomic.Uint64
	val T
}

// Queue is a first-in first-out queue of at most Cap values. All methods are
// safe for concurrent use and none blocks; a producer that is stopped between
// its claim and its publication delays the consumers behind its slot (they see
// an empty queue), but no other producer.
type Queue[T any] struct {
	slots []slot[T] // immutable after New
	mask  uint64    // immutable after New
	_     [cacheLine]byte
	tail  atomic.Uint64 // next position to push
	_     [cacheLine - 8]byte
	head  atomic.Uint64 // next position to pop
	_     [cacheLine - 8]byte
}

// New returns a queue of the given capacity, a power of two of at least 2.
// Anything else is a programmer's mistake and panics.
func New[T any](capacity int) *Queue[T] {
	if capacity < 2 || capacity&(capacity-1) != 0 {
		panic(fmt.Sprintf("ringq: capacity %d is not a power of two of at least 2", capacity))
	}
	q := &Queue[T]{slots: make([]slot[T], capacity), mask: uint64(capacity - 1)}
	for i := range q.slots {
		q.slots[i].seq.Store(uint64(i))
	}
	return q
}

// Cap returns the capacity.
func (q *Queue[T]) Cap() int { return len(q.slots) }

// Len returns the number of claimed positions, which under concurrency is a
// moment's view: values still being written count, values just taken may.
func (q *Queue[T]) Len() int {
	head := q.head.Load()
	tail := q.tail.Load()
	if tail < head { // head moved on between the two loads
		return 0
	}
	return int(min(tail-head, uint64(len(q.slots))))
}

// Push appends a prefix of vs, in order and contiguously, and returns its
// length: fewer than len(vs) only if the queue was full at that moment.
func (q *Queue[T]) Push(vs []T) int {
	for len(vs) > 0 {
		pos := q.tail.Load()
		n := q.run(pos, pos, len(vs))
		if n == 0 {
			if q.tail.Load() != pos {
				continue // another producer took the slot we looked at
			}
			return 0
		}
		// A free slot stays free until the producer that owns its position
		// fills it, and this exchange decides who owns the run.
		if !q.tail.CompareAndSwap(pos, pos+uint64(n)) {
			continue
		}
		for i := range n {
			s := &q.slots[(pos+uint64(i))&q.mask]
			s.val = vs[i]
			s.seq.Store(pos + uint64(i) + 1) // publish
		}
		return n
	}
	return 0
}

// Pop moves up to len(buf) values, in order and contiguous, into buf and
// returns their number; 0 means that the queue was empty at that moment.
func (q *Queue[T]) Pop(buf []T) int {
	var zero T
	for len(buf) > 0 {
		pos := q.head.Load()
		n := q.run(pos, pos+1, len(buf))
		if n == 0 {
			if q.head.Load() != pos {
				continue
			}
			return 0
		}
		if !q.head.CompareAndSwap(pos, pos+uint64(n)) {
			continue
		}
		for i := range n {
			s := &q.slots[(pos+uint64(i))&q.mask]
			buf[i] = s.val
			s.val = zero                                        // hold no garbage alive
			s.seq.Store(pos + uint64(i) + uint64(len(q.slots))) // free for the next lap
		}
		return n
	}
	return 0
}

// run counts the slots from pos on whose sequence numbers are want, want+1, …
func (q *Queue[T]) run(pos, want uint64, limit int) int {
	limit = min(limit, len(q.slots))
	for n := range limit {
		if q.slots[(pos+uint64(n))&q.mask].seq.Load() != want+uint64(n) {
			return n
		}
	}
	return limit
}
