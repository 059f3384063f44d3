package transporttest

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/transport"
)

// Image is a frozen memory image in memory outside the Go heap.
type Image struct {
	Regions []transport.Region
	mem     map[uint32][]byte

	// Same, if set before use, has pages answered as candidates, unless the
	// fetch is plain.
	Same func(region uint32, page uint64) bool
	// From, if set before use, says where the candidate of another page is that has what
	// a page has, unless the fetch is plain.
	From func(region uint32, page uint64) (from uint64, ok bool)
	// Once, if set before use, has pages answered as repeats of earlier ones.
	Once bool
}

// NewImage makes a zero image; it lives until the test ends.
func NewImage(t testing.TB, regions ...transport.Region) *Image {
	im := &Image{Regions: regions, mem: map[uint32][]byte{}}
	for _, r := range regions {
		im.mem[r.ID] = Memory(t, int(r.Pages)*int(r.PageSize))
	}
	return im
}

func Memory(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatalf("map %d bytes: %v", n, err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// Region returns the region with this id.
func (im *Image) Region(id uint32) (transport.Region, bool) {
	for _, r := range im.Regions {
		if r.ID == id {
			return r, true
		}
	}
	return transport.Region{}, false
}

// Memory returns the bytes of r, which must lie within its region.
func (im *Image) Memory(r transport.Range) []byte {
	reg, _ := im.Region(r.Region)
	ps := uint64(reg.PageSize)
	return im.mem[r.Region][r.First*ps : (r.First+uint64(r.Count))*ps]
}

// Content is a kind of page content.
type Content int

// The kinds of content.
const (
	Zero     Content = iota
	Word             // one 8-byte word repeated
	Repeated         // compresses very well, but is not a fill
	Text             // compresses by about half
	Random           // does not compress
	contents
)

// Put writes one page of the given content.
func (im *Image) Put(region uint32, page uint64, c Content, seed uint64) {
	p := im.Memory(transport.Range{Region: region, First: page, Count: 1})
	rnd := rand.New(rand.NewPCG(seed, page))
	switch c {
	case Zero:
		clear(p)
	case Word:
		w := rnd.Uint64() | 1
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], w)
		}
	case Repeated:
		for i := range p {
			p[i] = byte(i%61 + int(seed))
		}
	case Text:
		words := []string{"page ", "fault ", "image ", "source ", "destination ", "fetch ", "precache\n", "window, ", "claim. "}
		for i := 0; i < len(p); {
			i += copy(p[i:], words[rnd.IntN(len(words))])
		}
	default:
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], rnd.Uint64())
		}
	}
}

// Mix fills a region with runs of all kinds of content.
func (im *Image) Mix(region uint32, seed uint64) {
	reg, _ := im.Region(region)
	rnd := rand.New(rand.NewPCG(seed, uint64(region)))
	for p := uint64(0); p < reg.Pages; {
		c := Content(rnd.IntN(int(contents)))
		for n := rnd.IntN(40) + 1; n > 0 && p < reg.Pages; n-- {
			im.Put(region, p, c, seed)
			p++
		}
	}
}

// Extents describes the pages of f: what a page server's scan would find.
func (im *Image) Extents(f transport.Fetch) []transport.Extent {
	r := f.Range
	reg, _ := im.Region(r.Region)
	ps := int(reg.PageSize)
	mem := im.Memory(r)
	var es []transport.Extent
	numbers := map[string]uint64{} // of the data pages, by content
	for i := range int(r.Count) {
		e := transport.Extent{Count: 1}
		if w, ok := fillWord(mem[i*ps : (i+1)*ps]); ok {
			e.Kind, e.Word = transport.Fill, w
		} else if im.Same != nil && !f.Plain && im.Same(r.Region, r.First+uint64(i)) {
			e.Kind = transport.Same
		} else if from, ok := im.from(f, uint64(i)); ok {
			e.Kind, e.Word = transport.Moved, from
		} else if im.Once {
			p := string(mem[i*ps : (i+1)*ps])
			if n, found := numbers[p]; found {
				e.Kind, e.Word = transport.Repeat, n
			} else {
				numbers[p] = uint64(len(numbers))
			}
		}
		if n := len(es); n > 0 && es[n-1].Kind == e.Kind && (e.Kind == transport.Moved && es[n-1].Word+uint64(es[n-1].Count) == e.Word || e.Kind != transport.Moved && es[n-1].Word == e.Word) {
			es[n-1].Count++
		} else {
			es = append(es, e)
		}
	}
	return es
}

// from is From of page i of a fetch.
func (im *Image) from(f transport.Fetch, i uint64) (uint64, bool) {
	if im.From == nil || f.Plain {
		return 0, false
	}
	return im.From(f.Region, f.First+i)
}

func fillWord(p []byte) (uint64, bool) {
	w := binary.LittleEndian.Uint64(p)
	for i := 8; i < len(p); i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != w {
			return 0, false
		}
	}
	return w, true
}

// ahead counts the zero pages after r.
func (im *Image) ahead(r transport.Range) (n uint32) {
	reg, _ := im.Region(r.Region)
	for p := r.First + uint64(r.Count); p < reg.Pages; p++ {
		if w, ok := fillWord(im.Memory(transport.Range{Region: r.Region, First: p, Count: 1})); !ok || w != 0 {
			break
		}
		n++
	}
	return n
}

// Answer answers one fetch: with elision and ahead if elide is set, raw
// otherwise; out of range is refused.
func (im *Image) Answer(r transport.Responder, f transport.Fetch, elide bool) error {
	reg, ok := im.Region(f.Region)
	if !ok || f.First >= reg.Pages || uint64(f.Count) > reg.Pages-f.First {
		return r.Refuse(f.ID, transport.CodeRange, fmt.Sprintf("%d pages at %d of region %d are outside the image", f.Count, f.First, f.Region))
	}
	a := transport.Answer{Fetch: f, Memory: im.Memory(f.Range)}
	if elide {
		a.Extents, a.Ahead = im.Extents(f), im.ahead(f.Range)
	}
	return r.Answer(&a)
}

// Serve answers fetches until the channel ends; an orderly end is no error.
func (im *Image) Serve(r transport.Responder, elide bool) error {
	buf := make([]transport.Fetch, 32)
	for {
		n, err := r.Next(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, f := range buf[:n] {
			if err := im.Answer(r, f, elide); err != nil {
				return err
			}
		}
	}
}
