package rdma

import (
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
)

// boxBytes is the memory in which pages are decoded that their sink takes from there.
// What finds no room in it is decoded in its place.
const boxBytes = 4 << 20

// box is the sink of answers by SEND. Where the sink behind it takes pages out of the
// Fetcher's memory ([transport.TakeSink]), they are decoded into that of the box, and
// are claimed only when they are there; else they are the sink's from the beginning.
// It serves one answer at a time.
type box struct {
	s        *lateSink
	pageSize map[uint32]int // by region
	mem      []byte
	used     int
	runs     []boxed
	dst      [][]byte
}

// boxed is a run of pages that is in the box, by its pages' numbers.
type boxed struct {
	first uint64
	count uint32
}

// reset begins another answer.
func (b *box) reset() { b.used, b.runs = 0, b.runs[:0] }

func (b *box) free() {
	sysmem.Unmap(b.mem)
	b.mem = nil
}

func (b *box) has(r transport.Range) bool {
	for _, x := range b.runs {
		if r.First >= x.first && r.First < x.first+uint64(x.count) {
			return true
		}
	}
	return false
}

// Reserve implements [transport.Sink].
func (b *box) Reserve(r transport.Range, dst [][]byte) {
	size := b.pageSize[r.Region]
	if b.mem == nil {
		b.mem, _ = sysmem.MapAnonymous(boxBytes) // without it pages go to their place
	}
	<-b.s.bound
	if !b.s.takes() || size == 0 || int(r.Count) > (len(b.mem)-b.used)/size {
		b.s.Reserve(r, dst)
		return
	}
	for i := range dst {
		dst[i] = b.mem[b.used : b.used+size : b.used+size]
		b.used += size
	}
	b.runs = append(b.runs, boxed{r.First, r.Count})
}

// Commit implements [transport.Sink].
func (b *box) Commit(r transport.Range, dst [][]byte) error {
	if !b.has(r) {
		return b.s.Commit(r, dst)
	}
	for i := 0; i < len(dst); {
		if dst[i] == nil { // Same has seen to it
			i++
			continue
		}
		j := i + 1
		for j < len(dst) && dst[j] != nil {
			j++
		}
		if err := b.s.take(transport.Range{Region: r.Region, First: r.First + uint64(i), Count: uint32(j - i)}, dst[i:j]); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// Abort implements [transport.Sink].
func (b *box) Abort(r transport.Range, dst [][]byte) {
	if !b.has(r) {
		b.s.Abort(r, dst)
	}
}

// Zero implements [transport.Sink].
func (b *box) Zero(r transport.Range) error { return b.s.Zero(r) }

// Same implements [transport.WarmSink]: candidates are the sink's, so that it has to
// claim them now.
func (b *box) Same(r transport.Range, dst [][]byte) error {
	if !b.has(r) {
		return b.s.Same(r, dst)
	}
	d := b.own(r)
	defer clear(d)
	clear(dst)
	if err := b.s.Same(r, d); err != nil {
		b.s.Abort(r, d) // what it left
		return err
	}
	return nil
}

// own reserves the pages of r as the sink does.
func (b *box) own(r transport.Range) [][]byte {
	if cap(b.dst) < int(r.Count) {
		b.dst = make([][]byte, r.Count)
	}
	d := b.dst[:r.Count]
	b.s.Reserve(r, d)
	return d
}

// Moved implements [transport.WarmSink], likewise; what the sink could verify it gets
// committed at once.
func (b *box) Moved(r transport.Range, from uint64, dst [][]byte) error {
	if !b.has(r) {
		return b.s.Moved(r, from, dst)
	}
	d := b.own(r)
	defer clear(d)
	clear(dst)
	if err := b.s.Moved(r, from, d); err != nil {
		b.s.Abort(r, d)
		return err
	}
	return b.s.Commit(r, d)
}

var _ transport.WarmSink = (*box)(nil)
