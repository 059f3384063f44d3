package pagehash

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"pgregory.net/rapid"
)

// TestSumIsAsSpecified builds the hash of PROTOCOL section 12 by hand.
func TestSumIsAsSpecified(t *testing.T) {
	token := [32]byte{1, 2, 3}
	page := bytes.Repeat([]byte("page"), 1024)
	key := sha256.Sum256(append([]byte("pagewarp warm start\n"), token[:]...))
	all := append(append(append([]byte(nil), key[:]...), make([]byte, 32)...), page...)
	want := sha256.Sum256(all)
	h := NewHasher(SessionKey(token))
	for range 2 { // a hasher is used again
		var got [Size]byte
		h.Sum(page).Put(got[:])
		if !bytes.Equal(got[:], want[:Size]) {
			t.Fatalf("hash %x, want %x", got, want[:Size])
		}
	}
	page[0]++
	if other := h.Sum(page); other == Parse(want[:]) {
		t.Error("another page has the same hash")
	}
	if n := testing.AllocsPerRun(100, func() { h.Sum(page) }); n != 0 {
		t.Errorf("%v allocations a page", n)
	}
}

// TestIndexAgainstMap compares an index with a map, over every operation.
func TestIndexAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Uint64Range(1, 3*chunkPages).Draw(t, "pages")
		x, err := NewIndex(pages)
		if err != nil {
			t.Fatal(err)
		}
		model, lost := map[uint64]Sum{}, map[uint64]bool{}
		page := rapid.Uint64Range(0, pages-1)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			p := page.Draw(t, "page")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				s := Sum{rapid.Uint64Range(2, 1<<63).Draw(t, "low"), 5}
				x.Set(p, s)
				model[p] = s
				delete(lost, p)
			case 1:
				x.Drop(p)
				delete(model, p)
				lost[p] = true
			default:
				n := min(pages-p, 10)
				b := x.Append(nil, p, n)
				y, err := NewIndex(pages)
				if err != nil {
					t.Fatal(err)
				}
				if err := y.Take(p, b); err != nil {
					t.Fatal(err)
				}
				for q := p; q < p+n; q++ {
					if a, ok := y.Get(q); ok != (model[q] != Sum{}) || a != model[q] && ok {
						t.Fatalf("page %d comes over the wire as %v, %v; want %v", q, a, ok, model[q])
					}
				}
			}
		}
		seen := uint64(0)
		for from := uint64(0); ; {
			first, n, ok := x.Next(from, pages, 7)
			if !ok {
				break
			}
			for q := first; q < first+n; q++ {
				if _, ok := model[q]; !ok {
					t.Fatalf("page %d is said to have a candidate", q)
				}
				seen++
			}
			from = first + n
		}
		if seen != uint64(len(model)) {
			t.Fatalf("%d candidates found, want %d", seen, len(model))
		}
		for q := range pages {
			if s, ok := x.Get(q); ok != (model[q] != Sum{}) || ok && s != model[q] {
				t.Fatalf("page %d: %v, %v; want %v", q, s, ok, model[q])
			}
			if x.AnyDropped(q, 1) != lost[q] {
				t.Fatalf("page %d: dropped is %v, want %v", q, !lost[q], lost[q])
			}
		}
	})
}

func TestIndexIsSparse(t *testing.T) {
	x, err := NewIndex(1 << 28) // 1 TiB of 4 KiB pages
	if err != nil {
		t.Fatal(err)
	}
	x.Set(1<<27, Sum{7, 7})
	if first, n, ok := x.Next(0, 1<<28, 100); !ok || first != 1<<27 || n != 1 {
		t.Errorf("%d, %d, %v", first, n, ok)
	}
	for _, pages := range []uint64{0, MaxPages + 1} {
		if _, err := NewIndex(pages); err == nil {
			t.Errorf("an index of %d pages was made", pages)
		}
	}
}

// FuzzTake feeds bytes of a peer's; whatever they are, only real hashes inside
// the region are taken.
func FuzzTake(f *testing.F) {
	f.Add(uint64(0), uint64(10), make([]byte, 160))
	f.Add(uint64(9), uint64(10), bytes.Repeat([]byte{7}, 32))
	f.Add(uint64(1<<63), uint64(10), []byte{1})
	f.Fuzz(func(t *testing.T, first, pages uint64, b []byte) {
		pages = pages%100000 + 1
		x, err := NewIndex(pages)
		if err != nil {
			t.Fatal(err)
		}
		err = x.Take(first, b)
		n := uint64(len(b)) / Size
		if fits := len(b)%Size == 0 && first < pages && n <= pages-first; fits != (err == nil) {
			t.Fatalf("%d bytes at %d of %d pages: %v", len(b), first, pages, err)
		}
		if err != nil && x.Count() != 0 {
			t.Fatal("hashes were taken from what was refused")
		}
		for i := range n {
			if err != nil {
				break
			}
			s, ok := x.Get(first + i)
			if want := Parse(b[i*Size:]); ok != want.real() || ok && s != want {
				t.Fatalf("page %d: %v, %v; want %v", first+i, s, ok, want)
			}
		}
	})
}

// BenchmarkSum is the price of a page of 4 KiB.
func BenchmarkSum(b *testing.B) {
	page := make([]byte, 4096)
	h := NewHasher(Key{1})
	b.SetBytes(4096)
	for b.Loop() {
		h.Sum(page)
	}
}

func TestIndexClear(t *testing.T) {
	x, err := NewIndex(10)
	if err != nil {
		t.Fatal(err)
	}
	h := NewHasher(Key{1})
	a, b := h.Sum([]byte("a")), h.Sum([]byte("b"))
	x.Set(3, a)
	x.Set(3, b) // of another time
	x.Set(4, a)
	if got, ok := x.Get(3); !ok || got != b || x.Count() != 2 {
		t.Errorf("%v, %v and %d candidates", got, ok, x.Count())
	}
	x.Clear(4)
	x.Clear(4)
	x.Clear(1 << 40)
	if _, ok := x.Get(4); ok || x.Count() != 1 || x.Dropped() != 0 || x.AnyDropped(0, 10) {
		t.Errorf("page 4 is there: %v; %d candidates, %d dropped", ok, x.Count(), x.Dropped())
	}
	// On the wire sixteen zero bytes end a candidate.
	y, err := NewIndex(10)
	if err != nil {
		t.Fatal(err)
	}
	y.Set(4, a)
	if err := y.Take(3, x.Append(nil, 3, 2)); err != nil {
		t.Fatal(err)
	}
	got, ok := y.Get(3)
	if _, four := y.Get(4); !ok || got != b || four || y.Count() != 1 {
		t.Errorf("page 3 has %v, %v; page 4: %v; %d candidates", got, ok, four, y.Count())
	}
}

// TestPlacesAgainstMap sets, replaces and clears candidates and finds them by hash, as a
// map would.
func TestPlacesAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Uint64Range(1, 3*chunkPages).Draw(t, "pages")
		x, err := NewIndex(pages)
		if err != nil {
			t.Fatal(err)
		}
		p := NewPlaces(x)
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			first := rapid.Uint64Range(0, pages-1).Draw(t, "first")
			count := rapid.Uint64Range(1, min(pages-first, 2*chunkPages)).Draw(t, "count")
			seed := rapid.Uint64Range(1, 5).Draw(t, "seed")
			for page := first; page < first+count; page++ {
				switch page * seed % 11 {
				case 0:
					x.Clear(page)
				case 1:
					x.Drop(page)
				case 2:
					x.Set(page, Sum{7 * seed, 9}) // as many others
				default:
					x.Set(page, Sum{page * seed * 0x9e3779b97f4a7c15, seed})
				}
			}
			p.Add(first, count)
		}
		have := make(map[Sum]bool)
		for page := range pages {
			if sum, ok := x.Get(page); ok {
				have[sum] = true
			}
		}
		missed := 0
		for sum := range have {
			page, ok := p.Find(sum)
			if got, real := x.Get(page); ok && (!real || got != sum) {
				t.Fatalf("page of %v: %d, whose hash is %v, %v", sum, page, got, real)
			}
			if !ok && sum.High != 9 { // those of which there are many
				missed++
			}
		}
		if missed > len(have)/50 {
			t.Fatalf("%d of %d are not found", missed, len(have))
		}
		for i := range uint64(100) {
			if sum := (Sum{i * 0x9e3779b97f4a7c15, 1000}); !have[sum] {
				if page, ok := p.Find(sum); ok {
					t.Fatalf("page %d has %v, which nobody set", page, sum)
				}
			}
		}
	})
}

// TestPlacesOfHostileHashes has all hashes belong in one place: that costs pages that are
// not found, and no time.
func TestPlacesOfHostileHashes(t *testing.T) {
	const pages = 1 << 16
	x, err := NewIndex(pages)
	if err != nil {
		t.Fatal(err)
	}
	p := NewPlaces(x)
	for page := range uint64(pages) {
		x.Set(page, Sum{5, page + 1})
	}
	p.Add(0, pages)
	found := 0
	for page := range uint64(pages) {
		if at, ok := p.Find(Sum{5, page + 1}); ok {
			found++
			if at != page {
				t.Fatalf("page %d was found at %d", page, at)
			}
		}
	}
	if found != mostProbes {
		t.Errorf("%d pages were found, of a place for %d", found, mostProbes)
	}
}

func TestPlacesOfALargeRegion(t *testing.T) {
	x, err := NewIndex(1 << 32)
	if err != nil {
		t.Fatal(err)
	}
	if NewPlaces(x) != nil {
		t.Error("pages beyond 32 bits can be named")
	}
}

// TestPlacesAreBounded has more candidates than the table may have slots for.
func TestPlacesAreBounded(t *testing.T) {
	const pages = 100_000
	x, err := NewIndex(pages)
	if err != nil {
		t.Fatal(err)
	}
	p := NewPlaces(x)
	p.most = 4096
	sum := func(page uint64) Sum { return Sum{(page + 1) * 0x9e3779b97f4a7c15, page} }
	for first := uint64(0); first < pages; first += 1000 {
		for page := first; page < first+1000; page++ {
			x.Set(page, sum(page))
		}
		p.Add(first, 1000)
	}
	found := 0
	for page := range uint64(pages) {
		if at, ok := p.Find(sum(page)); ok {
			found++
			if at != page {
				t.Fatalf("page %d was found at %d", page, at)
			}
		}
	}
	if len(p.slots) != 4096 || found < 2000 || found > 2048 {
		t.Errorf("%d pages were found, in %d slots", found, len(p.slots))
	}
}
