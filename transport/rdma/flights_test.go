package rdma

import (
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"pgregory.net/rapid"
)

// flights holds what a map would.
func TestFlights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x flights
		model := make(map[uint64]*flight)
		id := rapid.OneOf(rapid.Uint64Range(0, 9), rapid.Map(rapid.Uint64Range(0, 9), func(n uint64) uint64 { return n<<16 | n%3 }), rapid.Uint64())
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			id := id.Draw(t, "id")
			if got := x.at(id); got != model[id] {
				t.Fatalf("flight %d is %p, want %p", id, got, model[id])
			}
			if fl := model[id]; fl != nil {
				x.remove(fl)
				delete(model, id)
			} else {
				model[id] = &flight{Fetch: transport.Fetch{ID: id}}
				x.add(model[id])
			}
			seen := 0
			x.each(func(fl *flight) {
				if seen++; model[fl.ID] != fl {
					t.Fatalf("flight %d is not there", fl.ID)
				}
			})
			if seen != len(model) || x.n != len(model) {
				t.Fatalf("%d flights, %d counted, want %d", seen, x.n, len(model))
			}
		}
	})
}

// A fetch allocates nothing once there has been one before it, nor does its end.
func TestFetchAllocatesNothing(t *testing.T) {
	f := &Fetcher{ch: pageChannel{kind: transport.Demand}, table: newTable([]transport.Region{{ID: 1, Pages: 64, PageSize: 4096}})}
	id, now := uint64(0), time.Now()
	var fs [1]transport.Fetch
	var c transport.Completion
	if n := testing.AllocsPerRun(100, func() {
		id++
		fs[0] = transport.Fetch{ID: id, Range: transport.Range{Region: 1, First: id % 64, Count: 1}}
		if err := f.enter(fs[:], now); err != nil {
			t.Fatal(err)
		}
		f.flights.at(id).parts = 1
		f.came(f.flights.at(id))
		if !f.popReady(&c) || c.ID != id {
			t.Fatal("the fetch is not answered")
		}
	}); n != 0 {
		t.Errorf("%v allocations for a fetch", n)
	}
}
