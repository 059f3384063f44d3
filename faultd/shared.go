package faultd

import (
	"errors"
	"fmt"
	"io"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// Shared is memory in a shared file (memfd, tmpfs, hugetlbfs) that the
// machine's process has mapped and registered with a userfaultfd, and that we
// map a second time: the alias. It implements [FaultSource], [Installer],
// [Placer] and, on tmpfs, [Writer].
//
// Nothing here touches the registered mapping, which is in another process; the
// alias is not registered, so that a write to it cannot fault into ourselves.
type Shared struct {
	cfg   UFFDConfig
	as    areas
	huge  bool     // an area is of hugetlbfs, which takes no write(2)
	alias [][]byte // by the index in as.list
	can   uffd.Ioctls
}

// NewShared maps the files, does the handshake and registers the areas for
// missing and minor faults: from then on each touch of the memory is a fault.
// An area whose mapping has pages already keeps them visible until its engine
// starts and discards them. On an error the caller keeps cfg.FD.
func NewShared(cfg UFFDConfig) (*Shared, error) {
	as, err := newAreas(cfg.Areas)
	if err != nil {
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	s := &Shared{cfg: cfg, as: as, alias: make([][]byte, len(as.list))}
	if err := s.open(); err != nil {
		s.unmap()
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	return s, nil
}

func (s *Shared) open() error {
	features := uffd.FeatureMissingShmem | uffd.FeatureMinorShmem
	for i := range s.as.list {
		a := &s.as.list[i]
		fs, err := sysmem.FSOf(a.FD)
		if err != nil {
			return err
		}
		switch fs.Kind {
		case sysmem.FSHugetlbfs:
			features |= uffd.FeatureMissingHugetlbfs | uffd.FeatureMinorHugetlbfs
			s.huge = true
		case sysmem.FSOther:
			return fmt.Errorf("region %d (%q): its file is on a file system of type %#x; userfaultfd needs tmpfs, memfd or hugetlbfs",
				a.ID, a.Name, fs.Magic)
		}
		if int(a.PageSize) != fs.PageSize {
			return fmt.Errorf("region %d (%q): page size %d, but its file has pages of %d bytes", a.ID, a.Name, a.PageSize, fs.PageSize)
		}
		var st unix.Stat_t
		if err := unix.Fstat(a.FD, &st); err != nil {
			return fmt.Errorf("region %d (%q): stat its file: %w", a.ID, a.Name, err)
		}
		if a.Offset < 0 || st.Size-a.Offset < int64(a.bytes()) {
			return fmt.Errorf("region %d (%q): its file has %d bytes, %d are needed from offset %d", a.ID, a.Name, st.Size, a.bytes(), a.Offset)
		}
		if s.alias[i], err = sysmem.MapShared(a.FD, a.Offset, int64(a.bytes()), true); err != nil {
			return fmt.Errorf("region %d (%q): %w", a.ID, a.Name, err)
		}
	}
	var err error
	s.can, err = s.cfg.register(uffd.ModeMissing|uffd.ModeMinor, features)
	return err
}

// Memory returns what [Config] wants.
func (s *Shared) Memory() Memory {
	m := Memory{Faults: s, Install: s, Place: s, Read: s}
	if !s.huge {
		m.Write, m.Reserve = s, s
	}
	return m
}

func (s *Shared) unmap() error {
	var err error
	for i, b := range s.alias {
		err = errors.Join(err, sysmem.Unmap(b))
		s.alias[i] = nil
	}
	return err
}

// Close unmaps the alias and closes our descriptor of the userfaultfd. If it is
// the last one and the areas are still registered, threads that wait go on and
// find zeroes: detach the engine and keep another descriptor to hand it over.
func (s *Shared) Close() error { return errors.Join(s.unmap(), s.cfg.FD.Close()) }

// NewReader implements [FaultSource].
func (s *Shared) NewReader() (FaultReader, error) { return newUFFDReader(&s.cfg, &s.as) }

// Release implements [FaultSource]: it unregisters the areas and wakes all.
func (s *Shared) Release() error { return s.as.release(&s.cfg) }

// Install implements [Installer].
func (s *Shared) Install(r transport.Range, _ [][]byte) error { return s.cfg.each(r, s.install) }

func (s *Shared) install(r transport.Range) error {
	a, addr, length, err := s.as.span(r)
	if err != nil {
		return err
	}
	size := uint64(a.PageSize)
	if _, _, err = s.cfg.FD.ContinueRange(addr, length, size, 0); err != uffd.ErrNoPage {
		return err
	}
	// The file has no page here: the machine punched a hole into it since. One
	// page after the other, each as it is.
	for i := range uint64(r.Count) {
		_, _, err := s.cfg.FD.ContinueRange(addr+i*size, size, size, 0)
		if err == uffd.ErrNoPage {
			err = s.zero(transport.Range{Region: r.Region, First: r.First + i, Count: 1})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Zero implements [Installer].
func (s *Shared) Zero(r transport.Range) error { return s.cfg.each(r, s.zero) }

func (s *Shared) zero(r transport.Range) error {
	a, addr, length, err := s.as.span(r)
	if err != nil {
		return err
	}
	skipped := length
	if s.can.Has(uffd.CanZeroPage) {
		_, skipped, err = s.cfg.FD.ZeroRange(addr, length, uint64(a.PageSize), 0)
	} else if err = sysmem.Allocate(a.FD, a.Offset+int64(r.First)*int64(a.PageSize), int64(length)); err != nil {
		// hugetlbfs: allocate, which keeps what is there and, unlike a touch,
		// fails with an error where no huge page is left.
		return fmt.Errorf("zero pages %d+%d of region %d (%q): %w", r.First, r.Count, a.ID, a.Name, err)
	}
	if err != nil || skipped == 0 {
		return err
	}
	// In the file, but perhaps not mapped.
	if _, _, err = s.cfg.FD.ContinueRange(addr, length, uint64(a.PageSize), 0); err == uffd.ErrNoPage {
		// Not any more: the machine has punched a hole between the two. Who waits
		// faults again, and finds the page as it is then.
		err = s.cfg.FD.Wake(addr, length)
	}
	return err
}

// Wake implements [Installer].
func (s *Shared) Wake(r transport.Range) error {
	_, addr, length, err := s.as.span(r)
	if err != nil {
		return err
	}
	return s.cfg.opError(s.cfg.FD.Wake(addr, length))
}

// Place implements [Placer].
func (s *Shared) Place(r transport.Range, dst [][]byte) {
	for i := range s.as.list {
		a := &s.as.list[i]
		if a.ID != r.Region {
			continue
		}
		size := uint64(a.PageSize)
		mem := s.alias[i][r.First*size : (r.First+uint64(r.Count))*size]
		for j := range dst {
			dst[j], mem = mem[:size:size], mem[size:]
		}
	}
}

// Write implements [Writer].
func (s *Shared) Write(r transport.Range, src [][]byte) error {
	a, _, _, err := s.as.span(r)
	if err != nil {
		return err
	}
	return writePages(a.FD, a.Region, a.Offset+int64(r.First)*int64(a.PageSize), r, src)
}

// writePages writes src, the content of r, which lies side by side in memory, into a
// region's file at offset at.
func writePages(fd int, reg transport.Region, at int64, r transport.Range, src [][]byte) error {
	if len(src) != int(r.Count) {
		return fmt.Errorf("write %d pages of region %d: %d pages of content", r.Count, r.Region, len(src))
	}
	err := noMemory(sysmem.WriteAt(fd, joined(src, int(r.Count)*int(reg.PageSize)), at))
	if err != nil {
		return fmt.Errorf("write pages %d+%d of region %d (%q): %w", r.First, r.Count, reg.ID, reg.Name, err)
	}
	return nil
}

// ReadPage implements [PageReader].
func (s *Shared) ReadPage(region uint32, page uint64, dst []byte) error {
	a := s.as.byID(region)
	if a == nil || page >= a.Pages || len(dst) != int(a.PageSize) {
		return fmt.Errorf("read page %d of region %d into %d bytes: it is not there", page, region, len(dst))
	}
	for off := a.Offset + int64(page)*int64(a.PageSize); len(dst) > 0; {
		n, err := unix.Pread(a.FD, dst, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EFAULT): // dst is memory of a file, too
			return fmt.Errorf("read page %d of region %d: %w: %w", page, region, transport.ErrNoMemory, err)
		case err == nil && n == 0:
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("read page %d of region %d (%q): %w", page, region, a.Name, err)
		}
		dst, off = dst[n:], off+int64(n)
	}
	return nil
}

// Discard implements [Placer].
func (s *Shared) Discard(r transport.Range) error {
	a, _, length, err := s.as.span(r)
	if err != nil {
		return err
	}
	return sysmem.PunchHole(a.FD, a.Offset+int64(r.First)*int64(a.PageSize), int64(length))
}

// NextData implements [Placer].
func (s *Shared) NextData(region uint32, from uint64) (first, count uint64, ok bool, err error) {
	a := s.as.byID(region)
	if a == nil || from >= a.Pages {
		return 0, 0, false, nil
	}
	size := int64(a.PageSize)
	start, end, err := sysmem.NextData(a.FD, a.Offset+int64(from)*size)
	if errors.Is(err, io.EOF) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, err
	}
	first = uint64(max(start-a.Offset, 0) / size)
	last := min(uint64((end-a.Offset+size-1)/size), a.Pages)
	return first, last - min(first, last), first < last, nil
}
