package transporttest

import (
	"testing"

	"github.com/pagewarp/pagewarp/transport"
)

// litter is what memory holds that nobody may have written to.
const litter = 0xa5

// EachRegion calls f with the memory of each region, which a device may write to where
// the sink has lent it.
func (s *Sink) EachRegion(f func(r transport.Range, mem []byte)) {
	for _, r := range s.im.Regions {
		all := transport.Range{Region: r.ID, Count: uint32(r.Pages)}
		f(all, s.im.Memory(all))
	}
}

// Lend implements [transport.LendSink]. Pages that were reclaimed are not lent again.
func (s *Sink) Lend(r transport.Range) (n uint32, how transport.Lending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[r.Region]
	look := func(p uint64) transport.Lending {
		switch {
		case st[p] != absent:
			return transport.Unwanted
		case s.reclaimed[at{r.Region, p}]:
			return transport.Staged
		}
		return transport.Lent
	}
	for how = look(r.First); n < r.Count && look(r.First+uint64(n)) == how; n++ {
		if how == transport.Lent {
			st[r.First+uint64(n)] = reserved
			s.lent++
		}
	}
	return n, how
}

// Landed implements [transport.LendSink].
func (s *Sink) Landed(r transport.Range, zero bool) error {
	s.settle("Landed", r, s.pages(r), resident)
	if zero {
		mem := s.im.Memory(r)
		for _, b := range mem {
			if b != 0 {
				s.mu.Lock()
				s.breach("pages %d+%d of region %d landed as zero, which they are not", r.First, r.Count, r.Region)
				s.mu.Unlock()
				break
			}
		}
	}
	return s.CommitErr
}

// Reclaim implements [transport.LendSink].
func (s *Sink) Reclaim(r transport.Range) {
	s.settle("Reclaim", r, s.pages(r), absent)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reclaimed == nil {
		s.reclaimed = make(map[at]bool)
	}
	mem := s.im.Memory(r)
	for i := range mem {
		mem[i] = litter
	}
	for i := range uint64(r.Count) {
		s.reclaimed[at{r.Region, r.First + i}] = true
	}
}

// at is a page.
type at struct {
	region uint32
	page   uint64
}

// pages are the slots of r, none of them empty.
func (s *Sink) pages(r transport.Range) [][]byte {
	dst := make([][]byte, r.Count)
	for i := range dst {
		dst[i] = s.im.Memory(transport.Range{Region: r.Region, First: r.First + uint64(i), Count: 1})
	}
	return dst
}

// Lending returns how many pages were lent, and how many of them reclaimed.
func (s *Sink) Lending() (lent, reclaimed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lent, len(s.reclaimed)
}

// CheckUntouched reports absent pages whose memory somebody has written to.
func (s *Sink) CheckUntouched(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, st := range s.states {
		for p, v := range st {
			if v != absent {
				continue
			}
			for _, b := range s.im.Memory(transport.Range{Region: id, First: uint64(p), Count: 1}) {
				if b != litter {
					t.Errorf("absent page %d of region %d was written to", p, id)
					break
				}
			}
		}
	}
}

var _ transport.LendSink = (*Sink)(nil)
