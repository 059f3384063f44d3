package trace

import (
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
)

// vcpu is one of the guest's: it takes the next touch of the trace, computes,
// touches, and stands still while the page is missing.
type vcpu struct {
	s      *simulation
	stuck  time.Duration // since when; valid while stalled
	absent bool          // the page was not there
	touch  Touch
}

// compute takes the next touch.
func (c *vcpu) compute() {
	s := c.s
	// Touches of pages that are there cost nothing but the computing before
	// them: no event for each.
	think := time.Duration(0)
	for {
		if s.next == len(s.trace.Touches) {
			s.after(think, func() {
				s.running--
				s.meter.ends(s.now)
			})
			return
		}
		c.touch = s.trace.Touches[s.next]
		s.next++
		think += c.touch.Think
		if s.regions[c.touch.Region].res.State(c.touch.Page) != pagecache.Resident || think > time.Millisecond {
			break
		}
		s.res.Touches++
	}
	s.after(think, c.look)
}

// look touches the page.
func (c *vcpu) look() {
	s := c.s
	m := s.regions[c.touch.Region]
	s.res.Touches++
	switch m.res.State(c.touch.Page) {
	case pagecache.Resident:
		c.compute()
		return
	case pagecache.Zero:
		// A zero page is made on the first touch.
		m.res.Materialise(c.touch.Page, 1)
		s.res.ZeroFaults++
		c.stuck, c.absent = s.now, false
		s.meter.stalls(s.now)
		s.after(s.o.LocalFault, c.resume)
		return
	}
	c.stuck, c.absent = s.now, true
	s.meter.stalls(s.now)
	s.res.Faults++
	// Half of a local fault's time passes until it is read, half from its end
	// until the vCPU runs.
	s.after(s.o.LocalFault/2, func() { s.fault(c, m) })
}

// resume goes on after a fault.
func (c *vcpu) resume() {
	s := c.s
	d := s.now - c.stuck
	s.meter.resumes(s.now, d, c.absent)
	c.compute()
}

// fault is what a fault reader does with one.
func (s *simulation) fault(c *vcpu, m *memory) {
	page := c.touch.Page
	switch m.res.State(page) {
	case pagecache.Resident, pagecache.Zero: // it came meanwhile
		s.served(waiter{c, page}, m)
		return
	}
	key := pageKey{m.id, page / uint64(s.o.ReadAround)}
	if f := s.waiting[key]; f != nil {
		s.res.Joined++
		f.waiters = append(f.waiters, waiter{c, page})
		return
	}
	f := &fetch{page: page, waiters: []waiter{{c, page}}}
	if s.o.ReadAround > 1 {
		f.run = s.planner.Around(m.id, page, s.o.ReadAround)
	} else {
		f.run = s.planner.Ahead(m.id, page)
	}
	s.waiting[key] = f
	s.busy++
	s.planner.Fault(m.id, page)
	s.res.DemandFetches++
	d := s.demand[0]
	for _, x := range s.demand {
		if x.posted < d.posted {
			d = x
		}
	}
	d.posted++
	s.after(s.o.RTT/2, func() {
		d.freeAt = max(d.freeAt, s.now) + s.o.ServeDemand
		s.at(d.freeAt, func() {
			n := s.wireBytes(m, f.run.First, uint64(f.run.Count), 1) // demand is not compressed
			s.res.DemandBytes += uint64(n)
			s.link.send(d.flow, n, func() { s.answered(d, key, f, m) })
		})
	})
}

// answered ends a demand fetch.
func (s *simulation) answered(d *demandFlow, key pageKey, f *fetch, m *memory) {
	d.posted--
	n := s.arrive(m, f.run.First, uint64(f.run.Count))
	s.res.DemandPages += n
	s.res.Duplicates += uint64(f.run.Count) - n
	delete(s.waiting, key)
	s.busy--
	for _, w := range f.waiters {
		if st := m.res.State(w.page); st == pagecache.Absent {
			s.fault(w.cpu, m) // a neighbour that was not part of the range
			continue
		}
		s.served(w, m)
	}
}

// wake serves those who wait for pages that precache has brought.
func (s *simulation) wake(m *memory, first, count uint64) {
	if len(s.waiting) == 0 {
		return
	}
	group := uint64(s.o.ReadAround)
	for g := first / group; g <= (first+count-1)/group; g++ {
		f := s.waiting[pageKey{m.id, g}]
		if f == nil {
			continue
		}
		left := f.waiters[:0]
		for _, w := range f.waiters {
			if w.page >= first && w.page < first+count && m.res.State(w.page) != pagecache.Absent {
				s.served(w, m)
			} else {
				left = append(left, w)
			}
		}
		f.waiters = left
	}
}

func (s *simulation) served(w waiter, m *memory) {
	if m.res.State(w.page) == pagecache.Zero {
		m.res.Materialise(w.page, 1)
	}
	s.after(s.o.LocalFault/2, w.cpu.resume)
}
