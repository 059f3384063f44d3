package faultd

import (
	"sync/atomic"

	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// EachReserved calls f for the stretches of reserved pages, in order, with their memory:
// for a device that is to write pages into place. It comes after the last Reserve. The
// memory stays until the engine's [Memory] is closed.
func (e *Engine) EachReserved(f func(r transport.Range, mem []byte)) {
	all := e.reserved.Load()
	if all == nil {
		return
	}
	var first [1][]byte
	for i := range e.cfg.Regions {
		reg := &e.cfg.Regions[i]
		x := (*all)[reg.ID]
		if x == nil {
			continue
		}
		for at := uint64(0); ; {
			from, count, ok := nextReserved(x.set, at, reg.Pages, 1<<31-ReserveGranule)
			if !ok {
				break
			}
			r := transport.Range{Region: reg.ID, First: from, Count: uint32(count)}
			e.cfg.Memory.Place.Place(transport.Range{Region: reg.ID, First: from, Count: 1}, first[:])
			f(r, joined(first[:], int(count)*int(reg.PageSize)))
			at = from + count
		}
	}
}

// emptied marks pages that were reserved and whose memory is being given back while they
// are claimed, to be absent again: what a device has registered there is not the file's
// any more. Their granules are not lent again.
func (e *Engine) emptied(r transport.Range) {
	all := e.reserved.Load()
	if all == nil {
		return
	}
	x := (*all)[r.Region]
	if x == nil {
		return
	}
	for g := r.First / ReserveGranule; g <= (r.First+uint64(r.Count)-1)/ReserveGranule; g++ {
		if g/64 < uint64(len(x.emptied)) {
			atomic.OrUint64(&x.emptied[g/64], 1<<(g%64))
		}
	}
}

// lendable reports whether a page has the memory that Reserve gave it, if it is absent.
func (x *reservedSet) lendable(page uint64) bool {
	w, bit := page/ReserveGranule/64, uint64(1)<<(page/ReserveGranule%64)
	return x != nil && w < uint64(len(x.set)) && x.set[w]&bit != 0 && atomic.LoadUint64(&x.emptied[w])&bit == 0
}

// Lend implements [transport.LendSink].
func (s *sink) Lend(r transport.Range) (n uint32, how transport.Lending) {
	reg, all := s.region(r), s.e.reserved.Load()
	if reg == nil || all == nil {
		return r.Count, transport.Staged
	}
	x := (*all)[r.Region]
	for ; n < r.Count; n++ {
		now := s.lend(reg, x, r.First+uint64(n), n > 0 && how != transport.Lent)
		if n == 0 {
			how = now
		} else if now != how {
			break
		}
	}
	return n, how
}

// lend claims a page, unless it may only look, and says how it is to come.
func (s *sink) lend(reg *Region, x *reservedSet, page uint64, look bool) transport.Lending {
	if !x.lendable(page) {
		return transport.Staged
	}
	if look {
		if reg.Residency.State(page) == pagecache.Absent {
			return transport.Lent
		}
		return transport.Unwanted
	}
	if reg.Residency.ClaimPage(page) != pagecache.Absent {
		return transport.Unwanted
	}
	if !x.lendable(page) { // another claim on it was given up between the two
		one := transport.Range{Region: reg.ID, First: page, Count: 1}
		if err := reg.Residency.Release(page, 1, nil); err != nil {
			s.e.fail(err)
		}
		s.e.afterClaims()
		s.e.wake(one)
		return transport.Staged
	}
	return transport.Lent
}

// Landed implements [transport.LendSink].
func (s *sink) Landed(r transport.Range, zero bool) error {
	reg := s.region(r)
	if reg == nil {
		return nil
	}
	if zero {
		n, err := s.e.emptyClaimed(reg, r)
		s.e.stats.pagesZero.Add(n)
		if err != nil {
			s.e.fail(err)
			s.giveBack(reg, r)
			return err
		}
		s.e.afterClaims()
		s.e.checkFull()
		return nil
	}
	if s.pre {
		defer s.e.pace.stop(s.e.pace.start())
	}
	for rest := r; rest.Count > 0; {
		run := rest
		run.Count = min(rest.Count, uint32(max(1, maxInstallBytes/int(reg.PageSize))))
		if err := s.install(reg, run, nil, false); err != nil {
			s.giveBack(reg, rest)
			return err
		}
		rest.First, rest.Count = rest.First+uint64(run.Count), rest.Count-run.Count
	}
	s.e.afterClaims()
	s.e.checkFull()
	return nil
}

// Reclaim implements [transport.LendSink].
func (s *sink) Reclaim(r transport.Range) {
	reg := s.region(r)
	if reg == nil {
		return
	}
	s.e.stats.aborts.Add(1)
	s.giveBack(reg, r)
}

// giveBack empties those pages of r that are claimed, all of them by this sink, and gives
// the claims up.
func (s *sink) giveBack(reg *Region, r transport.Range) {
	mask := s.maskFor(r.Count)
	clear(mask)
	for i := range uint64(r.Count) {
		if reg.Residency.State(r.First+i) != pagecache.Installing {
			continue // its commit came before the error
		}
		mask.Set(i)
		// While the claim is ours: nobody may find half a page.
		one := transport.Range{Region: r.Region, First: r.First + i, Count: 1}
		s.e.emptied(one)
		if err := s.e.cfg.Memory.Place.Discard(one); err != nil {
			s.e.fail(err)
		}
	}
	if err := reg.Residency.Release(r.First, uint64(r.Count), mask); err != nil {
		s.e.fail(err)
	}
	s.e.afterClaims()
	s.e.wake(r) // faults that met the claims were left to them
}

var _ transport.LendSink = (*sink)(nil)
