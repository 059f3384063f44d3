package faultd

import (
	"errors"
	"fmt"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/transport"
)

// Private is anonymous memory of the machine's process, registered with a
// userfaultfd: what Firecracker and CRIU have. Pages go in by UFFDIO_COPY from
// a staging buffer of the engine's. It implements [FaultSource] and [Installer].
type Private struct {
	cfg  UFFDConfig
	as   areas
	can  uffd.Ioctls
	zero []byte // one page of zeroes, off-heap
}

// NewPrivate registers the areas for missing faults, unless the process has
// done so. On an error the caller keeps cfg.FD.
func NewPrivate(cfg UFFDConfig) (*Private, error) {
	as, err := newAreas(cfg.Areas)
	if err != nil {
		return nil, fmt.Errorf("private memory: %w", err)
	}
	p := &Private{cfg: cfg, as: as}
	var size uint32
	for _, a := range as.list {
		size = max(size, a.PageSize)
	}
	if p.zero, err = sysmem.MapAnonymous(int64(size)); err != nil {
		return nil, fmt.Errorf("private memory: %w", err)
	}
	if p.can, err = cfg.register(uffd.ModeMissing, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("private memory: %w", err), sysmem.Unmap(p.zero))
	}
	return p, nil
}

// Memory returns what [Config] wants.
func (p *Private) Memory() Memory { return Memory{Faults: p, Install: p} }

// Close closes our descriptor of the userfaultfd; see [Shared.Close].
func (p *Private) Close() error {
	zero := p.zero
	p.zero = nil
	return errors.Join(sysmem.Unmap(zero), p.cfg.FD.Close())
}

// NewReader implements [FaultSource].
func (p *Private) NewReader() (FaultReader, error) { return newUFFDReader(&p.cfg, &p.as) }

// Release implements [FaultSource].
func (p *Private) Release() error { return p.as.release(&p.cfg) }

// Install implements [Installer]. Nobody is woken: the engine does so when it
// has ended the claim, see doc.go.
func (p *Private) Install(r transport.Range, src [][]byte) error {
	a, addr, _, err := p.as.span(r)
	if err != nil {
		return err
	}
	if len(src) != int(r.Count) {
		return fmt.Errorf("install %d pages of region %d: %d pages of content", r.Count, r.Region, len(src))
	}
	return p.cfg.each(r, func(part transport.Range) error {
		off := (part.First - r.First) * uint64(a.PageSize)
		_, _, err := p.cfg.FD.CopyRange(addr+off, addressOf(src[0])+off, uint64(part.Count)*uint64(a.PageSize), uint64(a.PageSize), uffd.DontWake)
		return err
	})
}

// Zero implements [Installer].
func (p *Private) Zero(r transport.Range) error { return p.cfg.each(r, p.zeroPages) }

func (p *Private) zeroPages(r transport.Range) error {
	a, addr, length, err := p.as.span(r)
	if err != nil {
		return err
	}
	if p.can.Has(uffd.CanZeroPage) && a.PageSize == 4096 {
		_, _, err = p.cfg.FD.ZeroRange(addr, length, uint64(a.PageSize), 0)
		return err
	}
	// hugetlbfs has no zero page: copy one.
	for i := range uint64(r.Count) {
		if _, _, err := p.cfg.FD.CopyRange(addr+i*uint64(a.PageSize), addressOf(p.zero), uint64(a.PageSize), uint64(a.PageSize), 0); err != nil {
			return err
		}
	}
	return nil
}

// Wake implements [Installer].
func (p *Private) Wake(r transport.Range) error {
	_, addr, length, err := p.as.span(r)
	if err != nil {
		return err
	}
	return p.cfg.opError(p.cfg.FD.Wake(addr, length))
}
