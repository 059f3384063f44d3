package rdma

import (
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// lentSlots is how many READs in place a precache channel has under way, at most.
const lentSlots = 64

// post posts waiting READs while there are slots. mu is held.
func (f *Fetcher) post(now time.Time) {
	for f.q != nil {
		n := 0
		for n < maxPost && f.nextRead(&f.wrs[n], now) {
			n++
		}
		if n == 0 {
			return
		}
		posted, err := f.q.post(f.wrs[:n])
		f.stats.Posted.Add(uint64(posted))
		if err != nil {
			f.breakDown(err) // Receive ends RDMA; what was posted and what was not goes by FETCH
			return
		}
	}
}

// nextRead makes the next READ of what waits, if there is a slot for it. mu is held.
func (f *Fetcher) nextRead(wr *read, now time.Time) bool {
	for f.reads.len() > 0 {
		p := f.reads.peek()
		lender := f.sink.lender()
		if p.mem == nil || lender == nil {
			return f.staged(wr, now, p.count)
		}
		if len(f.vacant) == 0 || f.lent > 0 && f.ch.Kind() == transport.Precache && f.lent+len(p.mem) > f.lending.bound {
			return false
		}
		n, how := lender.Lend(transport.Range{Region: p.fl.Region, First: p.first, Count: p.count})
		switch how {
		case transport.Lent:
			f.placed(wr, now, f.head(n))
			return true
		case transport.Staged:
			return f.staged(wr, now, n)
		}
		f.came(f.head(n).fl)
	}
	return false
}

// head takes the first n pages of the first part that waits. mu is held.
func (f *Fetcher) head(n uint32) part {
	p := f.reads.peek()
	if n >= p.count {
		return f.reads.pop()
	}
	size := uint64(n) * uint64(p.fl.reg.PageSize)
	head := *p
	head.count = n
	p.fl.parts++
	p.first, p.count, p.addr = p.first+uint64(n), p.count-n, p.addr+size
	if p.mem != nil {
		head.mem, p.mem = p.mem[:size], p.mem[size:]
	}
	return head
}

// placed makes the READ of a part that was lent. mu is held.
func (f *Fetcher) placed(wr *read, now time.Time, p part) {
	slot := f.vacant[len(f.vacant)-1]
	f.vacant = f.vacant[:len(f.vacant)-1]
	f.begun(now)
	f.lent += len(p.mem)
	o := &f.ops[slot]
	o.parts, o.size, o.posted, o.busy, o.placed = append(o.parts[:0], p), len(p.mem), now, true, true
	*wr = read{id: uint64(slot), local: addressOf(p.mem), remote: p.addr, length: uint32(len(p.mem)), lkey: p.lkey, rkey: p.rkey}
}

// staged makes the READ of the first n pages that wait, and of parts that are adjacent
// to them at the source and go by the stage as well. mu is held.
func (f *Fetcher) staged(wr *read, now time.Time, n uint32) bool {
	if len(f.free) == 0 {
		return false
	}
	slot := f.free[len(f.free)-1]
	f.free = f.free[:len(f.free)-1]
	f.begun(now)
	o := &f.ops[slot]
	o.parts, o.posted, o.busy = o.parts[:0], now, true
	p := f.head(n)
	ps := int(p.fl.reg.PageSize)
	size := int(p.count) * ps
	for o.parts = append(o.parts, p); f.reads.len() > 0; {
		next := f.reads.peek()
		bytes := int(next.count) * ps
		if next.fl.Region != p.fl.Region || next.rkey != p.rkey || next.addr != p.addr+uint64(size) || size+bytes > f.slotSize || next.mem != nil && f.sink.lender() != nil {
			break
		}
		o.parts = append(o.parts, f.reads.pop())
		size += bytes
	}
	o.size = size
	*wr = read{id: uint64(slot), local: addressOf(f.stage) + uint64(slot*f.slotSize), remote: p.addr, length: uint32(size), lkey: f.stageMR.lkey, rkey: p.rkey}
	return true
}

// begun counts a READ that is under way from now on. mu is held.
func (f *Fetcher) begun(now time.Time) {
	if f.under++; f.under == 1 {
		f.lending.begin(now)
	}
}

// freed takes the slot of an op back that has ended. mu is held.
func (f *Fetcher) freed(slot int, now time.Time) {
	o := &f.ops[slot]
	if !o.probe { // which is no measure of what the link carries
		f.lending.end(o.size, now)
	}
	if o.placed {
		f.vacant = append(f.vacant, slot)
		f.lent -= o.size
	} else {
		f.free = append(f.free, slot)
	}
	f.under--
	clear(o.parts)
	o.parts, o.busy, o.placed, o.probe = o.parts[:0], false, false, false
}

// allFree has all slots free. mu is held, or nobody else has the Fetcher.
func (f *Fetcher) allFree() {
	f.free, f.vacant, f.under, f.lent = f.free[:0], f.vacant[:0], 0, 0
	for i := range f.ops {
		f.ops[i] = op{}
		if i < f.stageSlots {
			f.free = append(f.free, i)
		} else {
			f.vacant = append(f.vacant, i)
		}
	}
}

// takeDown ends RDMA on this channel and reports whether there was any. When it returns
// nothing is written to this side's memory any more, and what was lent has been given
// back, emptied. pollMu is held: nobody lands what is given up here.
func (f *Fetcher) takeDown() bool {
	f.mu.Lock()
	q, pending, joining := f.q, f.pending, f.joining
	f.q, f.pending, f.joining, f.over = nil, nil, nil, true // join closes what it has
	if q == nil && pending == nil && joining == nil {
		f.mu.Unlock()
		return false
	}
	if q != nil {
		f.stats.Up.Add(-1)
	}
	var lent []transport.Range
	retried := uint64(0)
	for i := range f.ops {
		o := &f.ops[i]
		if !o.busy {
			continue
		}
		retried++
		if o.placed {
			p := &o.parts[0]
			lent = append(lent, transport.Range{Region: p.fl.Region, First: p.first, Count: p.count})
		}
	}
	f.allFree()
	f.mu.Unlock()
	for _, q := range []*queue{q, pending} {
		if q != nil {
			q.close() // from here on nothing is written
		}
	}
	f.stats.Retried.Add(retried)
	for _, r := range lent {
		if r.Count > 0 {
			f.sink.reclaim(r)
		}
	}
	return true
}
