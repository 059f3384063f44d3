package rdma

import (
	"testing"

	"github.com/pagewarp/pagewarp/transport"
	"pgregory.net/rapid"
)

// Faults all over a large guest, whose chunks are registered far more slowly than they are
// touched, leave no more MAPs under way than the source takes; every chunk that is wanted is
// asked for in the end, and once.
func TestMapsUnderWay(t *testing.T) {
	const chunks = 4 * maxAsking
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]transport.Kind{transport.Demand, transport.Precache}).Draw(t, "kind")
		reg := transport.Region{ID: 1, Pages: chunks * (minChunkBytes / pageBytes), PageSize: pageBytes}
		f := &Fetcher{ch: pageChannel{kind: kind}, table: newTable([]transport.Region{reg}), q: new(queue), slotSize: 1 << 20,
			sleeper: sleeper{wakeFD: -1}, sink: newLateSink(), stats: new(Stats), lending: newLending(0)}
		f.table.cut(minChunkBytes)
		unit := f.table.regions[1].unit
		var under []ask
		asked := make(map[uint64]bool)
		id := uint64(0)
		touch := func(c uint64) {
			id++
			fl := &flight{Fetch: transport.Fetch{ID: id, Range: transport.Range{Region: 1, First: c * unit, Count: 1}}, reg: f.table.regions[1]}
			f.flights.add(fl)
			f.route(fl)
		}
		sent := func() {
			for f.asks.len() > 0 {
				a := f.asks.pop()
				if asked[a.first/unit] {
					t.Fatalf("chunk %d is asked for twice", a.first/unit)
				}
				asked[a.first/unit] = true
				under = append(under, a)
			}
			if len(under) > maxAsking || maxAsking > maxAsked {
				t.Fatalf("%d MAPs are under way, want at most %d; the source takes %d", len(under), maxAsking, maxAsked)
			}
		}
		first, step := rapid.Uint64Range(0, chunks-1).Draw(t, "first"), 2*rapid.Uint64Range(0, chunks/2-1).Draw(t, "step")+1
		for i := range uint64(chunks) {
			touch((first + i*step) % chunks)
			sent()
		}
		for n := 0; len(under) > 0; n++ {
			a := under[0]
			under = under[1:]
			h := transport.Header{Aux: kindUnmapped, Region: a.region, First: a.first}
			if n%3 == 0 {
				h.Aux, h.Count = kindMapped, uint32(unit)
			}
			if err := f.side(h, nil); err != nil {
				t.Fatal(err)
			}
			if kind == transport.Demand { // they are touched again
				touch(uint64(n*7) % chunks)
			}
			sent()
		}
		if kind == transport.Precache && (len(asked) != chunks || len(f.waiting) != 0) {
			t.Fatalf("%d of %d chunks were asked for, %d fetches wait", len(asked), chunks, len(f.waiting))
		}
	})
}
