package faultd

import (
	"errors"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// maxInstallBytes bounds one call of the installer: the mapping's lock is held
// meanwhile, and faults of other threads wait for it.
const maxInstallBytes = 2 << 20

// sink is where one channel's pages land. It belongs to the goroutine that
// receives on the channel.
type sink struct {
	e      *Engine
	mask   pagecache.Mask
	stage  []byte   // private memory: staging buffer, off-heap
	used   int      // bytes of stage given out since the last reset
	more   [][]byte // what stage had no room for since the last reset, off-heap
	pre    bool     // of a precache channel
	stages bool     // pages are received into stage, unless they are reserved
	warm   *candidates
}

func newSink(e *Engine, kind transport.Kind, f transport.Fetcher) *sink {
	m, pre, inPlace := &e.cfg.Memory, kind == transport.Precache, false
	if p, ok := f.(transport.InPlace); ok {
		inPlace = p.InPlace()
	}
	return &sink{e: e, pre: pre, stages: m.Place == nil || pre && m.Write != nil && !inPlace}
}

func (s *sink) close() {
	s.reset()
	if err := sysmem.Unmap(s.stage); err != nil {
		s.e.cfg.Log.Warn("free staging buffer", "err", err)
	}
	s.stage = nil
}

// reset takes the staging buffer back, after an answer.
func (s *sink) reset() {
	s.used = 0
	for _, b := range s.more {
		if err := sysmem.Unmap(b); err != nil {
			s.e.cfg.Log.Warn("free staging buffer", "err", err)
		}
	}
	s.more = s.more[:0]
}

// maskFor returns a mask of n pages, to be overwritten.
func (s *sink) maskFor(n uint32) pagecache.Mask {
	w := int(pagecache.MaskWords(uint64(n)))
	if cap(s.mask) < w {
		s.mask = make(pagecache.Mask, w)
	}
	return s.mask[:w]
}

// region returns the region of r if r lies in it.
func (s *sink) region(r transport.Range) *Region {
	reg := s.e.regions[r.Region]
	if reg == nil || r.First >= reg.Pages || uint64(r.Count) > reg.Pages-r.First {
		return nil
	}
	return reg
}

// claim claims the pages of r, which lie in reg, as far as they are absent.
func (s *sink) claim(reg *Region, r transport.Range) (mask pagecache.Mask, won uint64) {
	mask = s.maskFor(r.Count)
	won = reg.Residency.Claim(r.First, uint64(r.Count), mask)
	if lost := uint64(r.Count) - won; lost > 0 {
		s.e.stats.duplicates.Add(lost)
	}
	return mask, won
}

// Reserve implements [transport.Sink].
func (s *sink) Reserve(r transport.Range, dst [][]byte) {
	reg := s.region(r)
	if reg == nil {
		clear(dst)
		return
	}
	mask, won := s.claim(reg, r)
	if won == 0 {
		clear(dst)
		return
	}
	if !s.staged(r) {
		s.e.cfg.Memory.Place.Place(r, dst)
	} else if err := s.staging(reg, dst); err != nil {
		s.e.fail(err)
		reg.Residency.Release(r.First, uint64(r.Count), mask)
		clear(dst)
		return
	}
	for i := range dst {
		if !mask.Has(uint64(i)) {
			dst[i] = nil
		}
	}
}

// staged reports whether the pages of r are received into the staging buffer.
func (s *sink) staged(r transport.Range) bool { return s.stages && !s.e.isReserved(r) }

// staging gives out a part of the staging buffer, which is made large at once. What was
// given out before is still in use: if the buffer is too short for what one answer has
// (fill words cost it no bytes), the rest has one of its own until the answer has ended.
func (s *sink) staging(reg *Region, dst [][]byte) error {
	size := int(reg.PageSize)
	need := len(dst) * size
	mem := s.stage[s.used:]
	switch {
	case need <= len(mem):
		s.used += need
	case s.used > 0:
		b, err := sysmem.MapAnonymous(int64(need))
		if err != nil {
			return err
		}
		s.more, mem = append(s.more, b), b
	default:
		b, err := sysmem.MapAnonymous(int64(max(need, 8<<20)))
		if err != nil {
			return err
		}
		if err := sysmem.Unmap(s.stage); err != nil {
			return err
		}
		s.stage, s.used, mem = b, need, b
	}
	for i := range dst {
		dst[i], mem = mem[:size:size], mem[size:]
	}
	return nil
}

// Takes implements [transport.TakeSink]: pages are written by a system call where the
// memory has one, which spares the page fault of a store to a fresh page of the alias.
// Writes to one file exclude each other, so a page in demand is stored while precache
// writes its long ones.
func (s *sink) Takes() bool {
	m := &s.e.cfg.Memory
	return m.Place != nil && m.Write != nil && (s.pre || s.e.writing.Load() == 0)
}

// Take implements [transport.TakeSink].
func (s *sink) Take(r transport.Range, src [][]byte) error {
	reg := s.region(r)
	if reg == nil {
		return nil
	}
	mask, won := s.claim(reg, r)
	if won == 0 {
		return nil
	}
	for i := range src {
		if !mask.Has(uint64(i)) {
			src[i] = nil
		}
	}
	return s.commit(reg, r, src, true)
}

// Commit implements [transport.Sink].
func (s *sink) Commit(r transport.Range, dst [][]byte) error {
	reg := s.region(r)
	if reg == nil {
		return nil
	}
	return s.commit(reg, r, dst, s.staged(r))
}

// commit installs the pages of r that dst has, whose content is there already or,
// if staged, is dst's.
func (s *sink) commit(reg *Region, r transport.Range, dst [][]byte, staged bool) error {
	if s.pre {
		defer s.e.pace.stop(s.e.pace.start())
	}
	limit := max(1, maxInstallBytes/int(reg.PageSize))
	for i := 0; i < len(dst); {
		if dst[i] == nil {
			i++
			continue
		}
		j := i + 1
		for j < len(dst) && dst[j] != nil && j-i < limit {
			j++
		}
		run := transport.Range{Region: r.Region, First: r.First + uint64(i), Count: uint32(j - i)}
		if err := s.install(reg, run, dst[i:j], staged); err != nil {
			s.giveUp(reg, r, dst[i:], i)
			s.e.afterClaims()
			s.e.wake(r)
			return err
		}
		i = j
	}
	s.e.afterClaims()
	s.e.checkFull()
	return nil
}

// install shows a run of pages and ends their claims, in the order that keeps a
// killed daemon's residency true and leaves no thread asleep: see doc.go. Pages
// that are not staged are in place.
func (s *sink) install(reg *Region, run transport.Range, src [][]byte, staged bool) error {
	err := s.tryInstall(reg, run, src, staged)
	if !errors.Is(err, errShowLater) {
		return err
	}
	// The claims have ended, so that nobody but us need know. Nothing is held here: the
	// end of the drain may wait for this page, and the reader of the layout's changes
	// for the end of the drain. A page in demand does not wait at all: it may be that
	// reader which is here.
	e := s.e
	again := func() { e.retry(func() error { return e.tryShow(run, pagecache.Resident) }) }
	e.stats.busy.Add(1)
	if s.pre {
		again()
	} else {
		e.goWork(again)
	}
	return nil
}

// errShowLater says that pages are resident, and that the layout is changing where they
// are to be shown.
var errShowLater = errors.New("resident, to be shown later")

func (s *sink) tryInstall(reg *Region, run transport.Range, src [][]byte, staged bool) error {
	e := s.e
	e.showing.RLock()
	defer e.showing.RUnlock()
	if e.cfg.Memory.Place != nil {
		if staged {
			if err := s.write(run, src); err != nil {
				return err
			}
		}
		s.count(run)
		if err := reg.Residency.Commit(run.First, uint64(run.Count), nil); err != nil {
			return err
		}
		err := e.cfg.Memory.Install.Install(run, nil)
		switch {
		case errors.Is(err, ErrBusy):
			return errShowLater
		case err != nil:
			e.fail(err)
		}
		return err
	}
	// The claims are held over the wait: so pages remain, and nobody waits for showing.
	if err := s.retry(func() error { return e.cfg.Memory.Install.Install(run, src) }); err != nil {
		return err
	}
	s.count(run)
	if err := reg.Residency.Commit(run.First, uint64(run.Count), nil); err != nil {
		return err
	}
	return e.cfg.Memory.Install.Wake(run)
}

// count counts a run that is about to be resident: whoever finds that no page is left
// finds all of them counted.
func (s *sink) count(run transport.Range) {
	if s.pre {
		s.e.stats.pagesPrecache.Add(uint64(run.Count))
	} else {
		s.e.stats.pagesDemand.Add(uint64(run.Count))
	}
}

// write puts staged pages behind a run. Without room for them the claims are
// given up by the caller, as after a store that found no memory, and whoever met
// them faults again.
func (s *sink) write(run transport.Range, src [][]byte) error {
	m := &s.e.cfg.Memory
	if s.pre {
		s.e.writing.Add(1)
		defer s.e.writing.Add(-1)
	}
	err := m.Write.Write(run, src)
	if err == nil {
		return nil
	}
	s.e.emptied(run)
	if derr := m.Place.Discard(run); derr != nil {
		err = errors.Join(err, derr)
	}
	if !errors.Is(err, transport.ErrNoMemory) {
		s.e.fail(err)
	}
	return err
}

// retry repeats f while the layout is changing: the readers take the events.
func (s *sink) retry(f func() error) error {
	err := f()
	for errors.Is(err, ErrBusy) {
		s.e.stats.busy.Add(1)
		if !s.e.sleep(busyPause) {
			return err
		}
		err = f()
	}
	if err != nil {
		s.e.fail(err)
	}
	return err
}

// giveUp gives the claims of dst back, which starts at page r.First+at.
func (s *sink) giveUp(reg *Region, r transport.Range, dst [][]byte, at int) {
	mask := s.maskFor(uint32(len(dst)))
	clear(mask)
	first := r.First + uint64(at)
	for i := range dst {
		if dst[i] != nil && reg.Residency.State(first+uint64(i)) == pagecache.Installing {
			mask.Set(uint64(i))
		}
	}
	if err := reg.Residency.Release(first, uint64(len(dst)), mask); err != nil {
		s.e.fail(err)
	}
}

// Abort implements [transport.Sink].
func (s *sink) Abort(r transport.Range, dst [][]byte) {
	reg := s.region(r)
	if reg == nil {
		return
	}
	s.e.stats.aborts.Add(1)
	if p := s.e.cfg.Memory.Place; p != nil && !s.staged(r) {
		// While the claims are still ours: nobody may find the damaged bytes. A page that
		// was committed before something else failed is the machine's by now.
		for i := range dst {
			if dst[i] == nil || reg.Residency.State(r.First+uint64(i)) != pagecache.Installing {
				continue
			}
			one := transport.Range{Region: r.Region, First: r.First + uint64(i), Count: 1}
			s.e.emptied(one)
			if err := p.Discard(one); err != nil {
				s.e.fail(err)
			}
		}
	}
	s.giveUp(reg, r, dst, 0)
	s.e.afterClaims()
	// Faults that met the claim were left to it.
	s.e.wake(r)
}

// Zero implements [transport.Sink]. Nothing is materialised: a fault that comes
// later shows a zero page, and one that is waiting is a demand fetch, whose end
// looks at the state.
func (s *sink) Zero(r transport.Range) error {
	reg := s.region(r)
	if reg == nil {
		return nil
	}
	n, err := s.e.zero(reg, r, s.maskFor)
	s.e.stats.pagesZero.Add(n)
	s.e.checkFull()
	return err
}
