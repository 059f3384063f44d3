package rdma

import "time"

// That two queue pairs are connected says nothing of the way between them: a firewall may
// let no packet of RoCE's through (UDP port 4791), or a switch none so long. A READ finds it
// out by its retries, half a second and more, or by dead_after. So no fault depends on a READ
// before one of a page, which nobody waits for, has come: a fetch on demand goes by FETCH
// until then, precache waits as for a chunk.

// proof says how far that is.
type proof uint8

const (
	unproven proof = iota
	probing
	proven
)

// prove reads a page into the stage, once it is known where one can be read. mu is held.
func (f *Fetcher) prove() {
	if f.proof != unproven || f.q == nil {
		return
	}
	w, size, ok := f.table.any(f.slotSize)
	if !ok {
		return
	}
	f.proof = probing
	slot := f.free[len(f.free)-1] // nothing is under way
	f.free = f.free[:len(f.free)-1]
	now := time.Now()
	f.begun(now)
	o := &f.ops[slot]
	o.posted, o.busy, o.probe, o.size = now, true, true, size
	f.wrs[0] = read{id: uint64(slot), local: addressOf(f.stage) + uint64(slot*f.slotSize), remote: w.addr, length: uint32(size), lkey: f.stageMR.lkey, rkey: w.rkey}
	n, err := f.q.post(f.wrs[:1])
	f.stats.Posted.Add(uint64(n))
	if err != nil {
		f.breakDown(err)
	}
}

// proved has all go by READ from here on. mu is held.
func (f *Fetcher) proved() {
	f.proof = proven
	f.again()
	if f.unsent() {
		f.wake()
	}
}

// any is a window of pages of at most that size in bytes, and their size.
func (t *table) any(most int) (w window, size int, ok bool) {
	for _, r := range t.regions {
		if int(r.PageSize) > most {
			continue
		}
		for _, ws := range r.windows {
			if len(ws) > 0 {
				return ws[0], int(r.PageSize), true
			}
		}
	}
	return window{}, 0, false
}
