package pageserver

import (
	"errors"
	"fmt"
	"io"

	"github.com/pagewarp/pagewarp/internal/pagehash"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// maxAhead bounds the ahead count of an answer, which has 32 bits.
const maxAhead = 1<<32 - 1

// scratch is what one channel needs to make an answer; it is reused, so that an
// answer allocates nothing once it has grown to the channel's largest fetch.
type scratch struct {
	extents []transport.Extent
	incore  []byte // of mincore(2): bit 0 of byte i is set for a page in memory
	buf     []byte // off-heap, for byRead and for copies
	live    bool   // the machine writes: look at copies only

	warm    *comparer       // what the destination may have already; nil: nothing
	indexed *pagehash.Index // of the region at hand; nil: do not compare
	region  uint32          // its id

	once    bool // repeated pages are not sent
	repeats repeats
}

func (s *scratch) close() error {
	b := s.buf
	s.buf = nil
	return sysmem.Unmap(b)
}

// answer fills a in for f, a range inside r. a.Memory and a.Extents are valid
// until the next call with the same scratch. A page of memory that faults
// (file truncated) is a run-time panic, for the caller to recover.
func (r *region) answer(f transport.Fetch, s *scratch, a *transport.Answer) error {
	s.extents = s.extents[:0]
	*a = transport.Answer{Fetch: f}
	s.indexed, s.region = s.warm.index(f), f.Region
	from, length := int64(f.First)<<r.shift, int64(f.Count)<<r.shift
	var err error
	if r.how == byRead {
		err = r.read(from, length, s, a)
	} else {
		mem := r.mem[from : from+length]
		if a.Memory = mem; s.live {
			if err := s.grow(length); err != nil {
				return err
			}
			a.Memory = s.buf[:length]
		}
		err = r.scanMapped(f, s, mem, a.Memory)
	}
	if err != nil {
		return err
	}
	if n := len(s.extents); n == 1 && s.extents[0].Kind == transport.Data {
		s.extents = s.extents[:0]
	} else if s.extents[n-1].Kind == transport.Fill && s.extents[n-1].Word == 0 {
		a.Ahead, err = r.ahead(f.First + uint64(f.Count))
	}
	if len(s.extents) > 0 {
		a.Extents = s.extents
	}
	return err
}

// add appends pages to the extents, joining them with the last where it fits.
func (s *scratch) add(n uint32, kind transport.ExtentKind, word uint64) {
	if l := len(s.extents); l > 0 && s.extents[l-1].Kind == kind {
		last := &s.extents[l-1]
		if kind == transport.Moved && last.Word+uint64(last.Count) == word || kind != transport.Moved && last.Word == word {
			last.Count += n
			return
		}
	}
	s.extents = append(s.extents, transport.Extent{Count: n, Kind: kind, Word: word})
}

// addPage looks at page i from first on while it is about to be in cache anyway:
// what is one repeated word is not sent, nor what the destination has, nor what
// the answer holds already.
func (s *scratch) addPage(first uint64, i uint32) {
	mem := s.repeats.page(i)
	if word, same := sysmem.SameFill(mem); same {
		s.add(1, transport.Fill, word)
		return
	}
	if s.indexed != nil {
		if kind, word := s.warm.compare(s.indexed, s.region, first+uint64(i), mem, s.live); kind != transport.Data {
			s.add(1, kind, word)
			return
		}
	}
	if s.once {
		if word, found := s.repeats.find(i); found {
			s.add(1, transport.Repeat, word)
			return
		}
	}
	s.add(1, transport.Data, 0)
}

// scanMapped makes the extents of a range of a mapped file without touching its
// holes. What is sent is to, which is mem or, of a live image, takes copies.
func (r *region) scanMapped(f transport.Fetch, s *scratch, mem, to []byte) error {
	if r.how == byMincore {
		if err := s.mincore(mem); err != nil {
			return err
		}
	}
	perPage := int(r.PageSize) / sysmem.PageSize // base pages of one page
	n := int(f.Count)
	s.repeats.begin(to, n)
	for i := 0; i < n; {
		if r.how == byMincore && s.allIncore(i*perPage, perPage) {
			r.look(f.First, uint32(i), s, mem)
			i++
			continue
		}
		first := f.First + uint64(i)
		next, err := r.nextData(first)
		if err != nil {
			return err
		}
		if next == first {
			r.look(f.First, uint32(i), s, mem)
			i++
			continue
		}
		hole := int(min(next-first, uint64(n-i)))
		s.add(uint32(hole), transport.Fill, 0)
		i += hole
	}
	return nil
}

// look adds page i from first on to the extents, of a live image by the copy that it
// makes of what mem has there.
func (r *region) look(first uint64, i uint32, s *scratch, mem []byte) {
	if s.live {
		copy(s.repeats.page(i), mem[int(i)<<r.shift:])
	}
	s.addPage(first, i)
}

// mincore asks which base pages of mem are in memory. Pages in swap and holes
// alike are not.
func (s *scratch) mincore(mem []byte) error {
	n := (len(mem) + sysmem.PageSize - 1) / sysmem.PageSize
	if cap(s.incore) < n {
		s.incore = make([]byte, n)
	}
	s.incore = s.incore[:n]
	return mincore(mem, s.incore)
}

func (s *scratch) allIncore(from, n int) bool {
	for _, b := range s.incore[from : from+n] {
		if b&1 == 0 {
			return false
		}
	}
	return true
}

// nextData returns the first page from page on that is not a hole, r.Pages if
// there is none. SEEK_DATA passes over holes by the tree of the page cache, and
// answers at once where there is data; SEEK_HOLE, which walks all the data, is
// not needed.
func (r *region) nextData(page uint64) (uint64, error) {
	off, err := unix.Seek(r.fd, r.off+int64(page)<<r.shift, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return r.Pages, nil
	}
	if err != nil {
		return 0, fmt.Errorf("seek data in region %d (%q) from page %d: %w", r.ID, r.Name, page, err)
	}
	return min(uint64(off-r.off)>>r.shift, r.Pages), nil
}

// ahead counts the holes that follow the range that ends before page.
func (r *region) ahead(page uint64) (uint32, error) {
	if page >= r.Pages || r.how == byRead {
		return 0, nil
	}
	next, err := r.nextData(page)
	return uint32(min(next-page, maxAhead)), err
}

// grow makes the buffer at least length bytes long.
func (s *scratch) grow(length int64) error {
	if int64(len(s.buf)) >= length {
		return nil
	}
	b, err := sysmem.MapAnonymous(length)
	if err == nil {
		err = s.close()
	}
	if err == nil {
		s.buf = b
	}
	return err
}

// read fills a in by pread(2), which does not allocate what it finds missing.
func (r *region) read(from, length int64, s *scratch, a *transport.Answer) error {
	if err := s.grow(length); err != nil {
		return err
	}
	a.Memory = s.buf[:length]
	for done := int64(0); done < length; {
		n, err := unix.Pread(r.fd, a.Memory[done:], r.off+from+done)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("read region %d (%q) at %#x: %w", r.ID, r.Name, from+done, err)
		}
		done += int64(max(n, 0))
	}
	s.repeats.begin(a.Memory, int(a.Count))
	for i := range a.Count {
		s.addPage(a.First, i)
	}
	return nil
}
