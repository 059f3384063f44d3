package faultd

import (
	"context"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// slotState says where a demand fetch is.
type slotState uint8

const (
	slotFree   slotState = iota
	slotQueued           // in the fault queue
	slotPosted           // sent on a channel
	slotLater            // waits for a retry
)

// slot is one demand fetch, from the fault's reading to its page's wake-up.
// It belongs to whoever made the last step: the reader until it is queued, the
// sender until it is posted, then the receiver of its channel.
type slot struct {
	state slotState // guarded by outstanding.mu
	gen   uint32    // counts the uses; part of the fetch's id
	rng   transport.Range
	page  uint64         // the page that faulted
	read  time.Time      // when the fault was read
	ch    *demandChannel // guarded by outstanding.mu
	tries int
	dup   bool // guarded by outstanding.mu; another fault relies on this fetch
	// expected: no fault was read, see Engine.Expect. Immutable while in use.
	expected bool
}

// outstanding finds the demand fetch that covers a page. It is a hash table of
// fixed size, at most half full, with linear probing.
type outstanding struct {
	mu    sync.Mutex
	table []uint32 // guarded by mu; slot number + 1, 0 is empty
	mask  uint32
	free  []uint32 // guarded by mu; a stack
	slots []slot   // see slot
	group uint64   // pages of a read-around group, a power of two
	room  chan struct{}
	want  int // guarded by mu; who waits for room
}

func newOutstanding(n int, group uint32) *outstanding {
	o := &outstanding{
		table: make([]uint32, 2*n), mask: uint32(2*n - 1), free: make([]uint32, n),
		slots: make([]slot, n), group: uint64(group), room: make(chan struct{}, 1),
	}
	for i := range o.free {
		o.free[i] = uint32(n - 1 - i)
	}
	return o
}

func (o *outstanding) hash(region uint32, group uint64) uint32 {
	x := (group ^ uint64(region)<<48) * 0x9E3779B97F4A7C15 // Fibonacci hashing, Knuth vol. 3, 6.4
	return uint32(x>>32) & o.mask
}

// key is what the table finds a slot by.
func (o *outstanding) key(region uint32, page uint64) (uint32, uint64) { return region, page / o.group }

// find returns the table index of the key's entry, or of the empty one where it
// belongs. The caller holds mu.
func (o *outstanding) find(region uint32, group uint64) (at uint32, ok bool) {
	for at = o.hash(region, group); ; at = (at + 1) & o.mask {
		n := o.table[at]
		if n == 0 {
			return at, false
		}
		s := &o.slots[n-1]
		if s.rng.Region == region && s.page/o.group == group {
			return at, true
		}
	}
}

// lookup of a page ends in one of these.
type lookup uint8

const (
	lookupNew  lookup = iota // a slot was taken: fetch it
	lookupDup                // a fetch is under way, its end wakes the page
	lookupFull               // no slot is free
)

// enter finds or makes the fetch of a page.
func (o *outstanding) enter(region uint32, page uint64, now time.Time) (uint32, lookup) {
	region, group := o.key(region, page)
	o.mu.Lock()
	defer o.mu.Unlock()
	at, ok := o.find(region, group)
	if ok {
		n := o.table[at] - 1
		o.slots[n].dup = true
		return n, lookupDup
	}
	if len(o.free) == 0 {
		return 0, lookupFull
	}
	return o.take(at, transport.Range{Region: region, First: page, Count: 1}, now), lookupNew
}

// take makes a fetch, whose entry belongs at table index at; a slot is free. The
// caller holds mu.
func (o *outstanding) take(at uint32, rng transport.Range, now time.Time) uint32 {
	n := o.free[len(o.free)-1]
	o.free = o.free[:len(o.free)-1]
	o.table[at] = n + 1
	s := &o.slots[n]
	*s = slot{state: slotQueued, gen: s.gen + 1, rng: rng, page: rng.First, read: now}
	return n
}

// waitRoom waits until a slot may be free, or for a while: the page that is waited for may
// come by itself. False says that ctx is done.
func (o *outstanding) waitRoom(ctx context.Context) bool {
	o.mu.Lock()
	if len(o.free) > 0 {
		o.mu.Unlock()
		return true
	}
	o.want++
	o.mu.Unlock()
	t := time.NewTimer(time.Millisecond)
	defer t.Stop()
	select {
	case <-o.room:
	case <-t.C:
	case <-ctx.Done():
	}
	o.mu.Lock()
	o.want--
	o.mu.Unlock()
	return ctx.Err() == nil
}

// leave ends the fetch of slot n: from here on a fault on its page makes a new
// one. It returns whether a fault came to rely on it meanwhile.
func (o *outstanding) leave(n uint32) (dup bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &o.slots[n]
	at, ok := o.find(s.rng.Region, s.page/o.group)
	if !ok || o.table[at] != n+1 {
		return false // never so: a slot leaves once
	}
	// Close the gap: move later entries of the probe sequence back.
	for next := (at + 1) & o.mask; o.table[next] != 0; next = (next + 1) & o.mask {
		t := &o.slots[o.table[next]-1]
		home := o.hash(t.rng.Region, t.page/o.group)
		if (next-home)&o.mask >= (next-at)&o.mask {
			o.table[at] = o.table[next]
			at = next
		}
	}
	o.table[at] = 0
	s.state = slotFree
	o.free = append(o.free, n)
	if o.want > 0 {
		select {
		case o.room <- struct{}{}:
		default:
		}
	}
	return s.dup
}

// inUse returns the number of fetches under way.
func (o *outstanding) inUse() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.slots) - len(o.free)
}
