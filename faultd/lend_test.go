package faultd_test

import (
	"bytes"
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// placer is a channel that brings pages into place by itself, as a device does, where
// the sink lends them; it reads an image's file.
type placer struct {
	img  *image
	to   map[uint64][]byte            // the memory that it knows of, by page
	read func(r transport.Range) bool // before a lent run is read; false has the READ fail half-way

	lent, reclaimed, staged *atomic.Int64

	fetches chan transport.Fetch
	end     chan struct{}
	close   sync.Once
}

// InPlace implements [transport.InPlace].
func (*placer) InPlace() bool { return true }

// Fetch implements [transport.Fetcher].
func (p *placer) Fetch(fs []transport.Fetch) error {
	for _, f := range fs {
		select {
		case p.fetches <- f:
		case <-p.end:
			return io.EOF
		}
	}
	return nil
}

func (p *placer) page(n uint64, b []byte) error {
	_, err := unix.Pread(p.img.fd, b, int64(n*pageSize))
	return err
}

// Receive implements [transport.Fetcher].
func (p *placer) Receive(sink transport.Sink, c *transport.Completion) error {
	var f transport.Fetch
	select {
	case f = <-p.fetches:
	case <-p.end:
		return io.EOF
	}
	*c = transport.Completion{Fetch: f, Sent: time.Now(), WireBytes: int(f.Count) * pageSize}
	l := sink.(transport.LendSink)
	for r := f.Range; r.Count > 0; {
		run := transport.Range{Region: r.Region, First: r.First, Count: 1}
		n, how := uint32(1), transport.Staged
		if p.to[r.First] != nil {
			for run.Count < r.Count && p.to[r.First+uint64(run.Count)] != nil {
				run.Count++
			}
			n, how = l.Lend(run)
		}
		run.Count = n
		r.First, r.Count = r.First+uint64(n), r.Count-n
		switch how {
		case transport.Lent:
			p.lent.Add(int64(n))
			if err := p.bring(l, run); err != nil {
				return err
			}
		case transport.Staged:
			p.staged.Add(int64(n))
			if err := p.copy(sink, run); err != nil {
				return err
			}
		}
	}
	return nil
}

// bring reads lent pages into place.
func (p *placer) bring(l transport.LendSink, run transport.Range) error {
	ok := p.read == nil || p.read(run)
	for i := range uint64(run.Count) {
		b := p.to[run.First+i]
		if !ok && i == uint64(run.Count)/2 {
			b = b[:pageSize/2]
		}
		if err := p.page(run.First+i, b); err != nil {
			return err
		}
		if len(b) < pageSize {
			p.reclaimed.Add(int64(run.Count))
			l.Reclaim(run)
			return io.ErrUnexpectedEOF
		}
	}
	for i := range uint64(run.Count) {
		one := transport.Range{Region: run.Region, First: run.First + i, Count: 1}
		zero := bytes.Count(p.to[one.First], []byte{0}) == pageSize
		if err := l.Landed(one, zero); err != nil {
			return err
		}
	}
	return nil
}

// copy brings pages by a buffer.
func (p *placer) copy(sink transport.Sink, run transport.Range) error {
	dst := make([][]byte, run.Count)
	sink.Reserve(run, dst)
	for i, b := range dst {
		if b != nil {
			if err := p.page(run.First+uint64(i), b); err != nil {
				return err
			}
		}
	}
	return sink.Commit(run, dst)
}

// Outstanding implements [transport.Fetcher].
func (p *placer) Outstanding(buf []transport.Fetch) []transport.Fetch { return buf }

// Close implements [transport.Fetcher].
func (p *placer) Close() error {
	p.close.Do(func() { close(p.end) })
	return nil
}

// lending is an engine whose reserved pages are brought into place.
type lending struct {
	*machine
	e                       *faultd.Engine
	begun                   chan struct{}
	to                      map[uint64][]byte
	read                    func(r transport.Range) bool
	lent, reclaimed, staged atomic.Int64
}

func newLending(t *testing.T, ctx context.Context, img *image, events bool, set func(*faultd.Config), reserve ...transport.Range) *lending {
	t.Helper()
	l := &lending{machine: newMachineEvents(t, ctx, img.pages, false, events), begun: make(chan struct{}), to: make(map[uint64][]byte)}
	cfg := l.config(heldOpen(l.begun, func(context.Context, transport.Kind, int) (transport.Fetcher, error) {
		return &placer{img: img, to: l.to, read: l.read, lent: &l.lent, reclaimed: &l.reclaimed, staged: &l.staged,
			fetches: make(chan transport.Fetch, 4096), end: make(chan struct{})}, nil
	}))
	if set != nil {
		set(&cfg)
	}
	l.e = start(t, cfg)
	for _, r := range reserve {
		if _, err := l.e.Reserve(r); err != nil {
			t.Fatal(err)
		}
	}
	l.e.EachReserved(func(r transport.Range, mem []byte) {
		if len(mem) != int(r.Count)*pageSize {
			t.Fatalf("%d bytes for %+v", len(mem), r)
		}
		for i := range uint64(r.Count) {
			l.to[r.First+i] = mem[i*pageSize : (i+1)*pageSize]
		}
	})
	return l
}

// TestLend drains a machine that touches its memory, half of it brought into place by
// READs of which many fail half-way: all is there, once, bit for bit, and the file holds
// no more than that.
func TestLend(t *testing.T) {
	for name, every := range map[string]int64{"undisturbed": 0, "READs fail": 7} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 60*time.Second)
			const pages = 4096
			img := newImage(t, pages, 51)
			var n atomic.Int64
			l := newLending(t, ctx, img, false, func(c *faultd.Config) { c.DemandChannels, c.PrecacheChannels = 2, 2 },
				transport.Range{Region: 7, Count: 1000}, transport.Range{Region: 7, First: 1024, Count: 64}, transport.Range{Region: 7, First: 2000, Count: 1000})
			if len(l.to) != 992+64+1000-8 {
				t.Errorf("%d pages are named as reserved", len(l.to))
			}
			l.read = func(transport.Range) bool { return every == 0 || n.Add(1)%every != 0 || l.reclaimed.Load() > 600 }
			close(l.begun)
			if _, err := l.reg.Touch(shuffled(pages, 3)[:pages/4], false, 4); err != nil {
				t.Fatal(err)
			}
			s := drained(t, ctx, l.e)
			l.verify(t, img.sums)
			lent, reclaimed, staged := l.lent.Load(), l.reclaimed.Load(), l.staged.Load()
			if lent < 1000 || staged < 1000 || (reclaimed > 0) != (every > 0) || s.Aborts == 0 && every > 0 {
				t.Errorf("%d pages lent, %d taken back in %d aborts, %d staged", lent, reclaimed, s.Aborts, staged)
			}
			if every == 0 && lent != int64(len(l.to)) {
				t.Errorf("%d pages were lent, of %d", lent, len(l.to))
			}
			t.Logf("%d pages lent, %d taken back, %d staged; %d zero", lent, reclaimed, staged, s.PagesZero)
		})
	}
}

// TestLendReclaimed: a page whose READ has failed is absent and has no memory, its
// neighbours are what they were, and it is not lent again; who waits for it gets it.
func TestLendReclaimed(t *testing.T) {
	ctx := withDeadline(t, 30*time.Second)
	img := makeImage(t, 64, func(i uint64, p []byte) bool { p[0], p[pageSize-1] = byte(i)+1, 1; return true })
	l := newLending(t, ctx, img, false, func(c *faultd.Config) { c.PrecacheOff = true }, transport.Range{Region: 7, Count: 64})
	var failed atomic.Bool
	seen := make(chan uint64, 1)
	l.read = func(r transport.Range) bool {
		if failed.Swap(true) {
			return true
		}
		if st := l.res.State(r.First); st.String() != "installing" {
			t.Errorf("a page that is being read is %v", st)
		}
		seen <- held(t, l.file)
		return false
	}
	close(l.begun)
	if _, err := l.reg.Touch([]uint64{20}, false, 1); err != nil {
		t.Fatal(err)
	}
	if before := <-seen; before != 64 {
		t.Errorf("the file held %d pages at the READ, want 64", before)
	}
	if l.lent.Load() != 1 || l.reclaimed.Load() != 1 || l.staged.Load() != 1 {
		t.Errorf("lent %d pages, took back %d, staged %d; want one of each", l.lent.Load(), l.reclaimed.Load(), l.staged.Load())
	}
	// A page of another granule is lent as before.
	if _, err := l.reg.Touch([]uint64{40}, false, 1); err != nil {
		t.Fatal(err)
	}
	if l.lent.Load() != 2 || l.staged.Load() != 1 {
		t.Errorf("lent %d pages, staged %d after the second fault", l.lent.Load(), l.staged.Load())
	}
	l.e.SetPrecache(true)
	drained(t, ctx, l.e)
	l.verify(t, img.sums)
	if got := held(t, l.file); got != 64 {
		t.Errorf("the file holds %d pages, want 64", got)
	}
}
