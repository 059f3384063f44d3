package faultd

import (
	"errors"
	"fmt"

	"github.com/pagewarp/pagewarp/internal/pagehash"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
)

// preSink is where the pages of a pre-transfer land: in memory of its own first,
// where they are hashed, then behind absent pages. It belongs to one worker.
// Errors that are not the channel's end the pre-transfer, not the channel.
type preSink struct {
	p      *preTransfer
	hasher *pagehash.Hasher
	stage  []byte // off-heap, as long as the longest answer
	used   int    // bytes of stage given out for the answer at hand
	wire   []byte // hashes on their way to the source
}

func newPreSink(p *preTransfer, longest uint64) (*preSink, error) {
	stage, err := sysmem.MapAnonymous(int64(longest))
	return &preSink{p: p, hasher: p.w.Hasher(), stage: stage}, err
}

func (s *preSink) close() error {
	b := s.stage
	s.stage = nil
	return sysmem.Unmap(b)
}

// Reserve implements [transport.Sink].
func (s *preSink) Reserve(r transport.Range, dst [][]byte) {
	size := int(s.p.e.regions[r.Region].PageSize)
	for i := range dst {
		if s.used+size > len(s.stage) {
			dst[i] = nil // longer than what was asked for: the channel refuses it
			continue
		}
		dst[i] = s.stage[s.used : s.used+size : s.used+size]
		s.used += size
	}
}

// Abort implements [transport.Sink].
func (s *preSink) Abort(transport.Range, [][]byte) {}

// Same implements [transport.WarmSink]: candidates that are still what the source
// has stay. Nothing becomes resident by that; the page may be written any moment.
func (s *preSink) Same(_ transport.Range, dst [][]byte) error {
	clear(dst)
	s.p.same.Add(uint64(len(dst)))
	return nil
}

// Moved implements [transport.WarmSink]: a machine that runs writes its pages, so that
// nothing is said of where they have moved to.
func (s *preSink) Moved(r transport.Range, from uint64, _ [][]byte) error {
	return fmt.Errorf("%w: pages %d+%d of region %d are said to have moved from %d during a pre-transfer", transport.ErrMalformed, r.First, r.Count, r.Region, from)
}

// Commit implements [transport.Sink].
func (s *preSink) Commit(r transport.Range, dst [][]byte) error {
	changed := false
	for i := 0; i < len(dst); {
		n := 0
		for i+n < len(dst) && dst[i+n] != nil && !isFill(dst[i+n]) {
			n++
		}
		switch {
		case n > 0:
			s.place(transport.Range{Region: r.Region, First: r.First + uint64(i), Count: uint32(n)}, dst[i:i+n])
		case dst[i] != nil: // one word: cheaper to send than to confirm
			n = 1
			s.displace(transport.Range{Region: r.Region, First: r.First + uint64(i), Count: 1})
		default:
			i++
			continue
		}
		changed = true
		i += n
	}
	if changed {
		s.tell(r)
	}
	return nil
}

func isFill(page []byte) bool {
	_, fill := sysmem.SameFill(page)
	return fill
}

// place makes candidates of src.
func (s *preSink) place(r transport.Range, src [][]byte) {
	x := s.p.w.Index(r.Region)
	for i := range src {
		x.Clear(r.First + uint64(i)) // while it is neither the old page nor the new one
	}
	if err := s.p.e.PlaceCopies(r, src); err != nil {
		s.p.cancel(errors.Join(err, s.p.e.Displace(r)))
		return
	}
	for i := range src {
		x.Set(r.First+uint64(i), s.hasher.Sum(src[i]))
	}
	s.p.e.stats.early.pages.Add(uint64(len(src)))
}

// displace ends a run of candidates.
func (s *preSink) displace(r transport.Range) {
	x := s.p.w.Index(r.Region)
	if _, _, any := x.Next(r.First, r.First+uint64(r.Count), 1); !any {
		return
	}
	for page := r.First; page < r.First+uint64(r.Count); page++ {
		x.Clear(page)
	}
	if err := s.p.e.Displace(r); err != nil {
		s.p.cancel(err)
	}
}

// tell sends the hashes of r as they are now.
func (s *preSink) tell(r transport.Range) {
	s.wire = s.p.w.Index(r.Region).Append(s.wire[:0], r.First, uint64(r.Count))
	if err := s.p.cfg.Index(r, s.wire); err != nil {
		s.p.cancel(err)
	}
}

// Zero implements [transport.Sink].
func (s *preSink) Zero(r transport.Range) error {
	x, end := s.p.w.Index(r.Region), r.First+uint64(r.Count)
	for from := r.First; from < end; {
		first, count, ok := x.Next(from, end, maxZeroTold)
		if !ok {
			break
		}
		gone := transport.Range{Region: r.Region, First: first, Count: uint32(count)}
		s.displace(gone)
		s.tell(gone)
		from = first + count
	}
	s.p.skip(r)
	return nil
}

// maxZeroTold bounds the pages whose candidates are ended at a time.
const maxZeroTold = 1024

var _ transport.WarmSink = (*preSink)(nil)
