package rdma

import (
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"pgregory.net/rapid"
)

// at finds what a look at each page finds.
func TestLandingAt(t *testing.T) {
	const pages, ps = 200, 4096
	mem := make([]byte, pages*ps)
	rapid.Check(t, func(t *rapid.T) {
		l := &Landing{plots: make(map[uint32][]*plot)}
		kind := make([]*plot, pages+1)
		for p := uint64(0); p < pages; {
			n := min(rapid.Uint64Range(1, 40).Draw(t, "pages"), pages-p)
			if rapid.Bool().Draw(t, "reserved") {
				x := &plot{Stretch: Stretch{Range: transport.Range{Region: 2, First: p, Count: uint32(n)}, Memory: mem[p*ps : (p+n)*ps]}}
				if rapid.Bool().Draw(t, "registered") {
					x.mr.Store(&region{lkey: uint32(p) + 1})
				}
				l.plots[2] = append(l.plots[2], x)
				for i := range n {
					kind[p+i] = x
				}
			}
			p += n
		}
		first := rapid.Uint64Range(0, pages-1).Draw(t, "first")
		count := rapid.Uint32Range(1, uint32(pages-first)).Draw(t, "count")
		n, lkey, got := l.at(2, first, count)
		want := uint32(1)
		for want < count && kind[first+uint64(want)] == kind[first] {
			want++
		}
		if n != want {
			t.Fatalf("%d pages from %d on, want %d of %d", n, first, want, count)
		}
		x := kind[first]
		if registered := x != nil && x.mr.Load() != nil; registered != (got != nil) {
			t.Fatalf("memory %v of page %d", got != nil, first)
		} else if registered && (lkey != uint32(x.First)+1 || len(got) != int(n)*ps || &got[0] != &mem[first*ps]) {
			t.Fatalf("key %d and %d bytes for %d pages from %d on", lkey, len(got), n, first)
		}
		if n, _, got := l.at(3, first, count); n != count || got != nil {
			t.Fatal("a region that has nothing is cut")
		}
	})
}

// NewLanding refuses what would have READs write elsewhere.
func TestLandingRefuses(t *testing.T) {
	mem := make([]byte, 64*4096)
	for name, s := range map[string][]Stretch{
		"odd memory": {{transport.Range{Region: 1, Count: 64}, mem[1:]}},
		"overlap":    {{transport.Range{Region: 1, First: 32, Count: 64}, mem}, {transport.Range{Region: 1, Count: 64}, mem}},
	} {
		if _, err := NewLanding(&Device{}, s, LandingOptions{}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := NewLanding(&Device{closed: true}, nil, LandingOptions{}); err == nil {
		t.Error("a device that is closed is taken")
	}
}

// lender is a sink that lends by a page's number.
type lender struct {
	transport.LendSink
	how    func(page uint64) transport.Lending
	claims map[uint64]bool
}

func (l *lender) Lend(r transport.Range) (n uint32, how transport.Lending) {
	for how = l.how(r.First); n < r.Count && l.how(r.First+uint64(n)) == how; n++ {
		if how == transport.Lent {
			l.claims[r.First+uint64(n)] = true
		}
	}
	return n, how
}

// pageChannel is a channel of a kind, and nothing else.
type pageChannel struct {
	Channel
	kind     transport.Kind
	features transport.Features
}

func (c pageChannel) Kind() transport.Kind { return c.kind }

func (c pageChannel) Features() transport.Features { return c.features }

// READs are made of what waits, each page in one of them, in the way that the sink wants
// it; pages are claimed for READs that have a slot alone, and precache has no more under
// way in place than its bound.
func TestNextRead(t *testing.T) {
	const pages, ps, bound = 300, 4096, 64 << 10
	mem := make([]byte, pages*ps)
	rapid.Check(t, func(t *rapid.T) {
		ways := rapid.SliceOfN(rapid.Uint8Range(0, 2), pages, pages).Draw(t, "ways")
		sink := &lender{claims: make(map[uint64]bool), how: func(p uint64) transport.Lending { return transport.Lending(ways[p] % 3) }}
		kind := rapid.SampledFrom([]transport.Kind{transport.Demand, transport.Precache}).Draw(t, "kind")
		f := &Fetcher{ch: pageChannel{kind: kind}, table: newTable([]transport.Region{{ID: 1, Pages: pages, PageSize: ps}}), sink: newLateSink(),
			slotSize: 64 << 10, stageSlots: 3, ops: make([]op, 3+5), stageMR: &region{lkey: 9}, lending: newLending(bound)}
		f.sink.bind(sink)
		f.allFree()
		for p, id := uint64(0), uint64(1); p < pages; id++ {
			n := min(rapid.Uint64Range(1, 16).Draw(t, "count"), pages-p)
			fl := &flight{Fetch: transport.Fetch{ID: id, Range: transport.Range{Region: 1, First: p, Count: uint32(n)}}, reg: f.table.regions[1], parts: 1}
			f.flights.add(fl)
			x := part{fl: fl, first: p, count: uint32(n), rkey: 4, addr: p * ps}
			if rapid.Bool().Draw(t, "registered") {
				x.lkey, x.mem = 5, mem[p*ps:(p+n)*ps]
			} else {
				for i := range n {
					ways[p+i] = 3 // by the stage, whatever the sink says
				}
			}
			f.reads.push(x)
			p += n
		}
		seen := make([]int, pages)
		for f.reads.len() > 0 || f.under > 0 {
			n := 0
			for wr := (read{}); f.nextRead(&wr, time.Time{}); n++ {
				o := &f.ops[wr.id]
				size := uint64(0)
				for _, p := range o.parts {
					for i := range uint64(p.count) {
						seen[p.first+i]++
						if want := ways[p.first+i] == 0; want != o.placed {
							t.Fatalf("page %d in place: %v", p.first+i, o.placed)
						}
					}
					if p.first*ps != wr.remote+size {
						t.Fatalf("page %d is not where the READ has it", p.first)
					}
					size += uint64(p.count) * ps
				}
				if size != uint64(wr.length) || o.placed != (wr.lkey == 5) || o.placed != (int(wr.id) >= f.stageSlots) {
					t.Fatalf("READ %+v of %d bytes", wr, size)
				}
			}
			lent := 0
			for i := range f.ops {
				if o := &f.ops[i]; o.busy && o.placed {
					lent += int(o.parts[0].count)
				}
			}
			if lent*ps != f.lent || lent != len(sink.claims) || kind == transport.Precache && f.lent > bound {
				t.Fatalf("%d pages under way in place, %d claimed, %d bytes counted", lent, len(sink.claims), f.lent)
			}
			if n == 0 && f.under == 0 && f.reads.len() > 0 {
				t.Fatal("nothing is under way, and what waits is not read")
			}
			for i := range f.ops {
				if o := &f.ops[i]; o.busy {
					for _, p := range o.parts {
						for k := range uint64(p.count) {
							delete(sink.claims, p.first+k)
						}
						f.came(p.fl)
					}
					f.freed(i, time.Time{})
				}
			}
		}
		for p, n := range seen {
			if want := 1; ways[p] == uint8(transport.Unwanted) && n != 0 || ways[p] != uint8(transport.Unwanted) && n != want {
				t.Fatalf("page %d was read %d times", p, n)
			}
		}
		if f.ready.len() != f.flights.n {
			t.Fatalf("%d of %d fetches are answered", f.ready.len(), f.flights.n)
		}
	})
}

// Where pages may land in place a READ of one finds a slot in the end, and there are never
// more READs under way than the device's queue takes, however short it is.
func TestRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		depth := rapid.IntRange(16, 1024).Draw(t, "depth")
		slotSize := rapid.SampledFrom([]int{64 << 10, 1 << 20, 2 << 20}).Draw(t, "slot")
		kind := rapid.SampledFrom([]transport.Kind{transport.Demand, transport.Precache}).Draw(t, "kind")
		o := &FetchOptions{StageBytes: rapid.IntRange(0, 64<<20).Draw(t, "stage")}
		if rapid.Bool().Draw(t, "in place") {
			o.Landing = new(Landing)
		}
		slots, places := o.room(kind, slotSize, depth)
		if slots < 4 || slots+places > depth-1 || (places > 0) != (o.Landing != nil) {
			t.Fatalf("%d READs by the stage and %d in place, of a queue of %d", slots, places, depth)
		}
	})
}
