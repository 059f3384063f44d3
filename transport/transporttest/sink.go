package transporttest

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/pagewarp/pagewarp/transport"
)

type pageState uint8

const (
	absent pageState = iota
	reserved
	resident
)

// Sink is the destination of an image of the same shape. It keeps the rules of
// [transport.Sink] and notes every breach of them. Its memory is outside the Go
// heap, each region in one piece. It is safe for concurrent use.
type Sink struct {
	im *Image // holds the memory

	mu       sync.Mutex
	states   map[uint32][]pageState // guarded by mu
	breaches []string               // guarded by mu
	aborted  int                    // pages given back; guarded by mu
	commits  int                    // calls; guarded by mu
	zeros    int                    // calls; guarded by mu

	lent      int         // pages; guarded by mu
	reclaimed map[at]bool // guarded by mu

	same    int // pages taken from the candidates; guarded by mu
	moved   int // pages copied from the candidates of others; guarded by mu
	refused int // candidates found damaged; guarded by mu

	// Candidate, if set before use, says whether what stands in a page is what
	// was offered to the source.
	Candidate func(region uint32, page uint64, mem []byte) bool

	// CommitErr, if set before use, is what Commit returns.
	CommitErr error
}

// NewSink makes an empty destination; it lives until the test ends.
func NewSink(t testing.TB, regions ...transport.Region) *Sink {
	s := &Sink{im: NewImage(t, regions...), states: map[uint32][]pageState{}}
	for _, r := range regions {
		s.states[r.ID] = make([]pageState, r.Pages)
		mem := s.im.mem[r.ID]
		mem[0] = litter // what nobody wrote must be told from zero
		for n := 1; n < len(mem); n *= 2 {
			copy(mem[n:], mem[:n])
		}
	}
	return s
}

var _ transport.WarmSink = (*Sink)(nil)

// Prime puts the content of an image into a page that is still absent, as a
// candidate.
func (s *Sink) Prime(im *Image, region uint32, page uint64) []byte {
	r := transport.Range{Region: region, First: page, Count: 1}
	mem := s.im.Memory(r)
	copy(mem, im.Memory(r))
	return mem
}

// Same implements [transport.WarmSink].
func (s *Sink) Same(r transport.Range, dst [][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[r.Region]
	for i := range dst {
		switch p := r.First + uint64(i); {
		case dst[i] == nil:
		case st[p] != reserved:
			s.breach("Same of page %d of region %d, which is not reserved", p, r.Region)
		case s.Candidate != nil && s.Candidate(r.Region, p, dst[i]):
			s.same++
			st[p] = resident
		default:
			s.refused++
			st[p] = absent
		}
		dst[i] = nil
	}
	return nil
}

// Moved implements [transport.WarmSink].
func (s *Sink) Moved(r transport.Range, from uint64, dst [][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[r.Region]
	for i := range dst {
		p := r.First + uint64(i)
		switch {
		case dst[i] == nil:
			continue
		case st[p] != reserved:
			s.breach("Moved of page %d of region %d, which is not reserved", p, r.Region)
		}
		copy(dst[i], s.im.Memory(transport.Range{Region: r.Region, First: from + uint64(i), Count: 1}))
		if s.Candidate != nil && s.Candidate(r.Region, from+uint64(i), dst[i]) {
			s.moved++
			continue
		}
		s.refused++
		st[p] = absent
		dst[i] = nil
	}
	return nil
}

// Absent returns the pages of a range that are neither resident nor reserved.
func (s *Sink) Absent(r transport.Range) (pages []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := r.First; p < r.First+uint64(r.Count); p++ {
		if s.states[r.Region][p] == absent {
			pages = append(pages, p)
		}
	}
	return pages
}

// Copied returns how many pages were copied from the candidates of others.
func (s *Sink) Copied() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

// Candidates returns how many pages were taken from the candidates, and how
// many were refused because they did not hold what was offered.
func (s *Sink) Candidates() (same, refused int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.same, s.refused
}

func (s *Sink) breach(format string, args ...any) {
	s.breaches = append(s.breaches, fmt.Sprintf(format, args...))
}

// Take makes pages resident with their present content, as if claimed before.
func (s *Sink) Take(r transport.Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[r.Region]
	for i := range uint64(r.Count) {
		st[r.First+i] = resident
	}
}

// Reserve implements [transport.Sink].
func (s *Sink) Reserve(r transport.Range, dst [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[r.Region]
	if len(dst) != int(r.Count) {
		s.breach("Reserve %+v with %d slots", r, len(dst))
	}
	reg, _ := s.im.Region(r.Region)
	mem, ps := s.im.Memory(r), int(reg.PageSize)
	for i := range dst {
		dst[i] = nil
		if p := r.First + uint64(i); st[p] == absent {
			st[p] = reserved
			dst[i] = mem[i*ps : (i+1)*ps : (i+1)*ps]
		}
	}
}

// Commit implements [transport.Sink].
func (s *Sink) Commit(r transport.Range, dst [][]byte) error {
	s.settle("Commit", r, dst, resident)
	return s.CommitErr
}

// Abort implements [transport.Sink].
func (s *Sink) Abort(r transport.Range, dst [][]byte) { s.settle("Abort", r, dst, absent) }

func (s *Sink) settle(what string, r transport.Range, dst [][]byte, to pageState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[r.Region]
	for i := range dst {
		p := r.First + uint64(i)
		switch {
		case dst[i] == nil:
		case st[p] != reserved:
			s.breach("%s of page %d of region %d, which is not reserved", what, p, r.Region)
		default:
			st[p] = to
			if to == absent {
				s.aborted++
			}
		}
	}
	if to == resident {
		s.commits++
	}
}

// Zero implements [transport.Sink].
func (s *Sink) Zero(r transport.Range) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zeros++
	st := s.states[r.Region]
	for i := range uint64(r.Count) {
		if p := r.First + i; p >= uint64(len(st)) {
			s.breach("Zero %+v reaches past the region", r)
			return nil
		} else if st[p] == absent {
			st[p] = resident
			clear(s.im.Memory(transport.Range{Region: r.Region, First: p, Count: 1}))
		}
	}
	return nil
}

// Counts returns the resident and the reserved pages.
func (s *Sink) Counts() (residents, reserves int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.states {
		for _, v := range st {
			switch v {
			case resident:
				residents++
			case reserved:
				reserves++
			}
		}
	}
	return residents, reserves
}

// Calls returns how often Commit and Zero were called and how many pages were
// given back.
func (s *Sink) Calls() (commits, zeros, aborted int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits, s.zeros, s.aborted
}

// Check reports breaches of the rules, pages left reserved, and resident pages
// of ranges that differ from the image.
func (s *Sink) Check(t testing.TB, im *Image, ranges ...transport.Range) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.breaches {
		t.Error(b)
	}
	for id, st := range s.states {
		for p, v := range st {
			if v == reserved {
				t.Errorf("page %d of region %d was left reserved", p, id)
			}
		}
	}
	for _, r := range ranges {
		for i := range uint64(r.Count) {
			one := transport.Range{Region: r.Region, First: r.First + i, Count: 1}
			if s.states[r.Region][one.First] != resident {
				t.Errorf("page %d of region %d is not resident", one.First, r.Region)
			} else if !bytes.Equal(s.im.Memory(one), im.Memory(one)) {
				t.Errorf("page %d of region %d differs from the image", one.First, r.Region)
			}
		}
	}
}
