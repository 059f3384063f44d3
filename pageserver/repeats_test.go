package pageserver

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/pagewarp/pagewarp/transport"
)

// TestRepeats has pages that repeat others described as such, and nothing else:
// pages that agree wherever the hash looks are not the same.
func TestRepeats(t *testing.T) {
	pages := make([][]byte, 64)
	for i := range pages {
		pages[i] = randomPage(uint64(i))
	}
	pages[3] = pages[0]
	pages[4], pages[5] = pages[1], pages[1]
	pages[10] = nil
	pages[20] = pages[9] // of another fetch
	for i := 40; i < 48; i++ {
		pages[i] = slices.Clone(pages[39])
		pages[i][page-9-i%2]++ // where the hash does not look
	}
	im, err := Open([]Source{{Region: transport.Region{ID: 1, Name: "ram", Pages: 64, PageSize: page}, FD: memfdWith(t, pages)}})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Release()
	for _, once := range []bool{true, false} {
		t.Run(fmt.Sprint(once), func(t *testing.T) {
			c := newFakeChannel()
			stats := new(Stats)
			done := make(chan error, 1)
			go func() { done <- Serve(context.Background(), c, im, Options{Stats: stats, Repeats: once}) }()
			got := map[uint64][]transport.Extent{}
			for first := uint64(0); first < 64; first += 16 {
				c.fetches <- transport.Fetch{ID: first, Range: transport.Range{Region: 1, First: first, Count: 16}}
				a := <-c.answers
				got[a.First] = slices.Clone(a.extents)
			}
			close(c.fetches)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			again := func(n uint32, word uint64) transport.Extent {
				return transport.Extent{Count: n, Kind: transport.Repeat, Word: word}
			}
			want := map[uint64][]transport.Extent{
				0:  {{Count: 3}, again(1, 0), again(2, 1), {Count: 4}, {Count: 1, Kind: transport.Fill}, {Count: 5}},
				16: nil,
				// 39 is number 7; 40, 42, 44, 46 are one page and 41, 43, 45, 47 another.
				32: {{Count: 10}, again(1, 8), again(1, 9), again(1, 8), again(1, 9), again(1, 8), again(1, 9)},
				48: nil,
			}
			repeats := uint64(9)
			if !once {
				want[0] = []transport.Extent{{Count: 10}, {Count: 1, Kind: transport.Fill}, {Count: 5}}
				want[32], repeats = nil, 0
			}
			for first, es := range want {
				if !slices.Equal(got[first], es) {
					t.Errorf("extents from page %d on: %v, want %v", first, got[first], es)
				}
			}
			if n := stats.Repeat.Load(); n != repeats || stats.Data.Load()+n+1 != 64 {
				t.Errorf("%d pages repeated and %d data counted, want %d and %d", n, stats.Data.Load(), repeats, 63-repeats)
			}
		})
	}
}

// BenchmarkRepeats looks through answers of 32 different pages that are in no
// cache, with and without the look for repeats: bytes a second of the image.
func BenchmarkRepeats(b *testing.B) {
	const n = 16 << 10
	pages := make([][]byte, n)
	for i := range pages {
		pages[i] = randomPage(uint64(i))
	}
	im, err := Open([]Source{{Region: transport.Region{ID: 1, Name: "ram", Pages: n, PageSize: page}, FD: memfdWith(b, pages)}})
	if err != nil {
		b.Fatal(err)
	}
	defer im.Release()
	for _, once := range []bool{false, true} {
		b.Run(fmt.Sprintf("once=%v", once), func(b *testing.B) {
			s := scratch{once: once}
			var a transport.Answer
			b.SetBytes(32 * page)
			first := uint64(0)
			for b.Loop() {
				if err := im.byID[1].answer(transport.Fetch{Range: transport.Range{Region: 1, First: first, Count: 32}}, &s, &a); err != nil {
					b.Fatal(err)
				}
				first = (first + 32) % n
			}
		})
	}
}
