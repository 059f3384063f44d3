package faultd

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/pagewarp/pagewarp/internal/pagehash"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// Warm is what stands already in the memory of absent pages: candidates, written
// through the placer before the first fetch, and what they hashed to. A candidate
// becomes resident in place, once the source has said that it has the same.
//
// With candidates, an absent page may have memory behind it, which is nowhere
// else so. Three things follow from that: a page that turns out to be zero is
// emptied first, a fetch that failed takes the page's candidate along (its memory
// is discarded), and an engine that takes the memory over discards them all.
type Warm struct {
	key     pagehash.Key
	indexes map[uint32]*pagehash.Index // immutable
}

// NewWarm returns the candidates, none as yet, of a session's regions.
func NewWarm(token [32]byte, regions []transport.Region) (*Warm, error) {
	w := &Warm{key: pagehash.SessionKey(token), indexes: make(map[uint32]*pagehash.Index, len(regions))}
	for _, r := range regions {
		x, err := pagehash.NewIndex(r.Pages)
		if err != nil {
			return nil, fmt.Errorf("region %d (%q): %w", r.ID, r.Name, err)
		}
		w.indexes[r.ID] = x
	}
	return w, nil
}

// Hasher returns a hasher of the session's, for one goroutine.
func (w *Warm) Hasher() *pagehash.Hasher { return pagehash.NewHasher(w.key) }

// Index returns the hashes of a region's candidates, to be filled in; nil if
// there is no such region.
func (w *Warm) Index(region uint32) *pagehash.Index { return w.indexes[region] }

// Candidates returns how many pages have one.
func (w *Warm) Candidates() (n uint64) {
	for _, x := range w.indexes {
		n += x.Count()
	}
	return n
}

// ErrNoPlacer says that memory has no place to write candidates to.
var ErrNoPlacer = errors.New("this kind of guest memory takes no candidates")

// SetWarm gives the engine its candidates, with an index of each region. From the call on, and until then by
// the caller alone, memory of absent pages may be written; it comes after Start
// and before the opener gives out its first channel. The channels must have
// transport.FeatureWarm in force.
func (e *Engine) SetWarm(w *Warm) error {
	if e.cfg.Memory.Place == nil {
		return ErrNoPlacer
	}
	e.warm.Store(w)
	return nil
}

// Place is the memory of a range of absent pages, for a candidate.
func (e *Engine) Place(r transport.Range, dst [][]byte) error {
	if e.cfg.Memory.Place == nil {
		return ErrNoPlacer
	}
	reg := e.regions[r.Region]
	if reg == nil || r.First >= reg.Pages || uint64(r.Count) > reg.Pages-r.First || len(dst) != int(r.Count) {
		return fmt.Errorf("place candidates at %d+%d of region %d: it is not there", r.First, r.Count, r.Region)
	}
	e.cfg.Memory.Place.Place(r, dst)
	return nil
}

// PlaceCopies puts src, contiguous in memory, behind the absent pages of r, as
// candidates. An error that wraps transport.ErrNoMemory says that there is no room;
// the pages may then be written in part, for Displace to empty.
func (e *Engine) PlaceCopies(r transport.Range, src [][]byte) (err error) {
	if w := e.cfg.Memory.Write; w != nil {
		if reg := e.regions[r.Region]; reg == nil || r.First >= reg.Pages || uint64(r.Count) > reg.Pages-r.First {
			return fmt.Errorf("place candidates at %d+%d of region %d: it is not there", r.First, r.Count, r.Region)
		}
		return w.Write(r, src)
	}
	dst := make([][]byte, len(src))
	if err := e.Place(r, dst); err != nil {
		return err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if _, fault := p.(interface{ Addr() uintptr }); !fault {
				panic(p)
			}
			err = fmt.Errorf("place candidates at %d+%d of region %d: %w", r.First, r.Count, r.Region, transport.ErrNoMemory)
		}
	}()
	for i := range src {
		copy(dst[i], src[i])
	}
	return nil
}

// Displace empties absent pages in which a candidate was begun. An error is fatal to the
// session: what stands there is no candidate, and would be shown where the source has zeroes.
func (e *Engine) Displace(r transport.Range) error {
	if e.cfg.Memory.Place == nil {
		return ErrNoPlacer
	}
	if err := e.cfg.Memory.Place.Discard(r); err != nil {
		err = fmt.Errorf("empty pages %d+%d of region %d: %w", r.First, r.Count, r.Region, err)
		e.fail(err)
		return err
	}
	return nil
}

// plain reports whether a fetch must bring bytes: of one of its pages the
// candidate was confirmed and found to be something else.
func (e *Engine) plain(r transport.Range) bool {
	w := e.warm.Load()
	if w == nil {
		return false
	}
	x := w.indexes[r.Region]
	return x != nil && x.AnyDropped(r.First, uint64(r.Count))
}

// candidates is a sink's way to verify them.
type candidates struct {
	w      *Warm
	hasher *pagehash.Hasher
	mem    [1][]byte
}

// Same implements [transport.WarmSink]. The pages are looked at where they are
// to be shown, whatever buffer the channel receives into.
func (s *sink) Same(r transport.Range, dst [][]byte) error {
	reg := s.region(r)
	if reg == nil {
		return nil
	}
	if err := s.needCandidates(r); err != nil {
		return err
	}
	limit := max(1, maxInstallBytes/int(reg.PageSize))
	for i := 0; i < len(dst); {
		n := 0
		for i+n < len(dst) && n < limit && dst[i+n] != nil && s.verify(reg.ID, r.First+uint64(i+n)) {
			n++
		}
		if n > 0 {
			run := transport.Range{Region: r.Region, First: r.First + uint64(i), Count: uint32(n)}
			s.e.stats.pagesSame.Add(uint64(n))
			s.e.stats.bytesSame.Add(uint64(n) * uint64(reg.PageSize))
			if err := s.install(reg, run, nil, false); err != nil {
				return err
			}
			clear(dst[i : i+n])
			i += n
			continue
		}
		if dst[i] != nil {
			s.e.stats.candidatesBad.Add(1)
			s.refuse(reg, r.First+uint64(i), dst[i:i+1])
		}
		i++
	}
	s.e.afterClaims()
	s.e.checkFull()
	return nil
}

// needCandidates finds the candidates that r is said to be as.
func (s *sink) needCandidates(r transport.Range) error {
	if w := s.e.warm.Load(); w != nil && (s.warm == nil || s.warm.w != w) {
		s.warm = &candidates{w: w, hasher: w.Hasher()}
	}
	if s.warm == nil {
		return fmt.Errorf("%w: pages %d+%d of region %d are said to be as candidates, but there are none", transport.ErrMalformed, r.First, r.Count, r.Region)
	}
	return nil
}

// Moved implements [transport.WarmSink]. What stands at the other page may be anything
// by now, resident and written by the machine included: it is copied first, and the copy
// is what is verified.
func (s *sink) Moved(r transport.Range, from uint64, dst [][]byte) error {
	reg := s.region(r)
	if reg == nil {
		return nil
	}
	if err := s.needCandidates(r); err != nil {
		return err
	}
	for i := range dst {
		if dst[i] == nil {
			continue
		}
		ok, err := s.fetchMoved(reg, from+uint64(i), dst[i])
		if err != nil {
			return err
		}
		if ok {
			s.e.stats.pagesMoved.Add(1)
			s.e.stats.bytesSame.Add(uint64(reg.PageSize))
		} else {
			s.e.stats.movedGone.Add(1)
			s.refuse(reg, r.First+uint64(i), dst[i:i+1])
		}
	}
	return nil
}

// fetchMoved copies what was a page's candidate to mem, and says whether it still was.
func (s *sink) fetchMoved(reg *Region, page uint64, mem []byte) (ok bool, err error) {
	want, ok := s.warm.w.indexes[reg.ID].Get(page)
	if !ok || s.e.cfg.Memory.Read == nil {
		return false, nil
	}
	if err := s.e.cfg.Memory.Read.ReadPage(reg.ID, page, mem); err != nil {
		return false, err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if _, fault := p.(interface{ Addr() uintptr }); !fault {
				panic(p)
			}
			ok, err = false, nil
		}
	}()
	return s.warm.hasher.Sum(mem) == want, nil
}

// refuse gives back a page whose candidate, or that of another which it has moved from,
// is not what was offered.
func (s *sink) refuse(reg *Region, page uint64, dst [][]byte) {
	e, one := s.e, transport.Range{Region: reg.ID, First: page, Count: 1}
	s.warm.w.indexes[reg.ID].Drop(page)
	if err := e.cfg.Memory.Place.Discard(one); err != nil {
		e.fail(err)
	}
	s.giveUp(reg, one, dst, 0)
	dst[0] = nil
	e.wake(one)
}

// verify hashes a candidate in place. Its memory may have gone meanwhile: the
// kernel's answer to that is a SIGBUS, which is a mismatch.
func (s *sink) verify(region uint32, page uint64) (ok bool) {
	c := s.warm
	want, ok := c.w.indexes[region].Get(page)
	if !ok {
		return false
	}
	s.e.cfg.Memory.Place.Place(transport.Range{Region: region, First: page, Count: 1}, c.mem[:])
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if _, fault := p.(interface{ Addr() uintptr }); !fault {
				panic(p)
			}
			ok = false
		}
	}()
	return c.hasher.Sum(c.mem[0]) == want
}

// zero says that absent pages of r read as zero, and returns how many became
// so. Where candidates stand their memory is emptied first, under a claim, or a
// fault would find them.
func (e *Engine) zero(reg *Region, r transport.Range, maskFor func(uint32) pagecache.Mask) (n uint64, err error) {
	first, end := r.First, r.First+uint64(r.Count)
	if w := e.warm.Load(); w != nil {
		if n, err = e.emptyCandidates(reg, w.indexes[r.Region], first, end, maskFor); err != nil {
			return n, err
		}
	}
	done, err := e.emptyReserved(reg, first, end, maskFor)
	n += done
	return n + reg.Residency.Zero(first, end-first), err
}

// emptyCandidates empties the absent pages of [first, end) that have memory
// behind them, and returns how many there were.
func (e *Engine) emptyCandidates(reg *Region, x *pagehash.Index, first, end uint64, maskFor func(uint32) pagecache.Mask) (n uint64, err error) {
	if x == nil {
		return 0, nil
	}
	return e.emptyRuns(reg, first, end, x.Next, maskFor)
}

// emptyRuns empties the absent pages of the runs of [first, end) that next finds, none of
// them longer than limit pages, and returns how many pages there were.
func (e *Engine) emptyRuns(reg *Region, first, end uint64, next func(from, end, limit uint64) (first, count uint64, ok bool),
	maskFor func(uint32) pagecache.Mask) (n uint64, err error) {
	limit := uint64(max(1, maxInstallBytes/int(reg.PageSize)))
	for first < end {
		at, count, ok := next(first, end, limit)
		if !ok {
			break
		}
		done, err := e.empty(reg, at, count, maskFor(uint32(count)))
		n += done
		if err != nil {
			e.fail(err)
			return n, err
		}
		first = at + count
	}
	return n, nil
}

// empty makes absent pages that have memory behind them read as zero. They are
// resident afterwards, without memory: who waits for one faults again and is
// shown a zero page.
func (e *Engine) empty(reg *Region, first, count uint64, mask pagecache.Mask) (n uint64, err error) {
	if reg.Residency.Claim(first, count, mask) == 0 {
		return 0, nil
	}
	for i := uint64(0); i < count; i++ {
		if !mask.Has(i) {
			continue
		}
		run := uint64(1)
		for i+run < count && mask.Has(i+run) {
			run++
		}
		done, err := e.emptyClaimed(reg, transport.Range{Region: reg.ID, First: first + i, Count: uint32(run)})
		n += done
		if err != nil {
			return n, err
		}
		i += run
	}
	e.afterClaims()
	return n, nil
}

// emptyClaimed does that for pages whose claims are the caller's.
func (e *Engine) emptyClaimed(reg *Region, r transport.Range) (n uint64, err error) {
	if err := e.cfg.Memory.Place.Discard(r); err != nil {
		return 0, err
	}
	if err := reg.Residency.Commit(r.First, uint64(r.Count), nil); err != nil {
		return 0, err
	}
	e.wake(r)
	return uint64(r.Count), nil
}

var _ transport.WarmSink = (*sink)(nil)
