package pagecache

import "sync/atomic"

const (
	hintSlots  = 256
	pageBits   = 48
	maxRegions = 1<<(64-pageBits) - 2
)

// hintRing keeps the last hints of the fault path. A writer never waits: it
// overwrites the oldest hint, and a hint that is lost costs a little precision.
type hintRing struct {
	head atomic.Uint64 // hints ever put
	_    [56]byte      // the writers' line, apart from the slots
	slot [hintSlots]atomic.Uint64
	tail uint64 // hints ever looked at; guarded by the planner's mu
}

// put stores region<<48 | page, plus a bit that makes 0 an empty slot.
func (h *hintRing) put(region int, page uint64) {
	i := h.head.Add(1) - 1
	h.slot[i%hintSlots].Store(uint64(region+1)<<pageBits | page)
}

// drain calls f for the hints since the last drain, oldest first. A slot whose
// writer is between its two steps is left for later, or for good.
func (h *hintRing) drain(f func(region int, page uint64)) {
	head := h.head.Load()
	if head-h.tail > hintSlots {
		h.tail = head - hintSlots
	}
	for ; h.tail != head; h.tail++ {
		if v := h.slot[h.tail%hintSlots].Swap(0); v != 0 {
			f(int(v>>pageBits)-1, v&(1<<pageBits-1))
		}
	}
}
