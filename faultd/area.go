package faultd

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// Area is where a region lies in the machine's process.
type Area struct {
	// Region has the page size of the memory there: 4096, or that of its hugetlbfs.
	transport.Region
	// Addr is the address of the region's first page in the process.
	Addr uint64
	// FD is the file behind the region, readable and writable; shared memory
	// only. It stays the caller's.
	FD int
	// Offset of the region in the file, in bytes; shared memory only.
	Offset int64
}

// UFFDConfig describes memory behind a userfaultfd.
type UFFDConfig struct {
	// FD is the userfaultfd, of the machine's process, see [AdoptUserfaultfd]. The
	// memory owns it from a successful New on.
	FD    *Userfaultfd
	Areas []Area
	// PIDFD, if more than 0, is a pidfd of the process, so that its death is
	// noticed. It stays the caller's and must outlive the memory.
	PIDFD int
	// Events asks to be told of removed, unmapped and moved pages: without, a page that is
	// given back before it came reads as what the source had, and memory that is unmapped
	// ends the session, unless Unmaps is set. For a process
	// that waits for its events to be read in the thread that would serve it,
	// leave it off.
	Events bool
	// Unmaps asks to be told of unmapped and moved pages alone: memory may be unplugged
	// during the drain, and whoever gives pages back does not wait for us.
	Unmaps bool
	// Registered says that the process has done the handshake and registered the
	// areas by itself, for missing faults; shared memory is registered for minor faults
	// as well if it is not.
	Registered bool
	// Spin is how long a reader polls before it sleeps. It spares a thread
	// wake-up for a fault that follows soon, and fills a CPU for that long.
	Spin time.Duration
}

// unmaps says that unmapped and moved pages are told.
func (c *UFFDConfig) unmaps() bool { return c.Events || c.Unmaps }

// areas finds regions by address and by id.
type areas struct {
	list []Area // immutable
	gone *unmapped
}

func newAreas(list []Area) (areas, error) {
	if len(list) == 0 {
		return areas{}, errors.New("no areas")
	}
	for i, a := range list {
		size := uint64(a.PageSize)
		if size < 4096 || size&(size-1) != 0 || a.Addr%size != 0 || a.Pages == 0 || a.Pages > (1<<62)/size {
			return areas{}, fmt.Errorf("region %d (%q): %d pages of %d bytes at %#x are no memory", a.ID, a.Name, a.Pages, size, a.Addr)
		}
		for _, b := range list[:i] {
			if a.Addr < b.Addr+b.bytes() && b.Addr < a.Addr+a.bytes() {
				return areas{}, fmt.Errorf("regions %d (%q) and %d (%q) overlap in the process", a.ID, a.Name, b.ID, b.Name)
			}
		}
	}
	return areas{append([]Area(nil), list...), new(unmapped)}, nil
}

func (a *Area) bytes() uint64 { return a.Pages * uint64(a.PageSize) }

// at returns the area that addr lies in, or nil. Areas are few.
func (as *areas) at(addr uint64) *Area {
	for i := range as.list {
		if a := &as.list[i]; addr-a.Addr < a.bytes() {
			return a
		}
	}
	return nil
}

func (as *areas) byID(id uint32) *Area {
	for i := range as.list {
		if as.list[i].ID == id {
			return &as.list[i]
		}
	}
	return nil
}

// span returns the addresses of r; a range that is not in an area is the
// engine's mistake, which the region checks of the sink rule out.
func (as *areas) span(r transport.Range) (a *Area, addr, length uint64, err error) {
	a = as.byID(r.Region)
	if a == nil || r.First >= a.Pages || uint64(r.Count) > a.Pages-r.First {
		return nil, 0, 0, fmt.Errorf("pages %d+%d of region %d are not mapped in the machine", r.First, r.Count, r.Region)
	}
	size := uint64(a.PageSize)
	return a, a.Addr + r.First*size, uint64(r.Count) * size, nil
}

// register does the handshake and registers the areas. Both may have been done by an
// engine before us. Where the process has done so it is believed for missing faults of
// ordinary pages; others are registered again, which changes nothing that is there: a page
// of a shared file that is being written would be seen without minor faults.
func (c *UFFDConfig) register(mode uffd.Mode, features uffd.Feature) (uffd.Ioctls, error) {
	huge := slices.ContainsFunc(c.Areas, func(a Area) bool { return a.PageSize != 4096 })
	if c.Registered && mode == uffd.ModeMissing && !huge {
		return uffd.CanWake | uffd.CanCopy | uffd.CanZeroPage, nil
	}
	if c.Events {
		features |= uffd.FeatureEventRemove
	}
	if c.unmaps() {
		features |= uffd.FeatureEventUnmap | uffd.FeatureEventRemap
	}
	if !c.Registered {
		if _, err := c.FD.API(features); err != nil && !errors.Is(err, uffd.ErrHandshakeDone) {
			return 0, err
		}
	}
	can := ^uffd.Ioctls(0)
	for _, a := range c.Areas {
		got, err := c.FD.Register(a.Addr, a.bytes(), mode)
		if err != nil {
			return 0, fmt.Errorf("region %d (%q): %w", a.ID, a.Name, err)
		}
		// Of private memory only this tells the size of the kernel's pages. What is copied
		// ends at the first of them that is there already.
		switch ordinary := got.Has(uffd.CanZeroPage); {
		case mode != uffd.ModeMissing:
		case ordinary && a.PageSize != 4096:
			return 0, fmt.Errorf("region %d (%q): page size %d, but its memory has pages of 4096 bytes: describe it in those", a.ID, a.Name, a.PageSize)
		case !ordinary && a.PageSize == 4096:
			return 0, fmt.Errorf("region %d (%q): page size 4096, but its memory is on hugetlbfs: describe it in pages of that size", a.ID, a.Name)
		}
		can &= got
	}
	return can, nil
}

// release unregisters the areas, then wakes whoever waits in them. UFFDIO_UNREGISTER
// itself wakes before it clears the mapping's flags, and from Linux 6.7 on a
// fault under the per-VMA lock can slip in between and sleep for ever (seen with
// 6.18, about once in 50 drains under load). Clearing the flags waits for those
// faults to be queued, so a wake-up afterwards reaches them all.
func (as *areas) release(c *UFFDConfig) error {
	var err error
	fd := c.FD
	for i := range as.list {
		a := &as.list[i]
		for _, part := range as.gone.rest(addresses{a.Addr, a.Addr + a.bytes()}) {
			uerr := fd.Unregister(part.from, part.to-part.from)
			if uerr == nil {
				uerr = fd.Wake(part.from, part.to-part.from)
			}
			if uerr != nil && uerr != uffd.ErrGone {
				err = errors.Join(err, fmt.Errorf("region %d (%q): %w", a.ID, a.Name, uerr))
			}
		}
	}
	if c.unmaps() {
		err = errors.Join(err, as.settle(fd))
	}
	return err
}

// settleTime bounds the wait for threads that have begun to change the layout.
const settleTime = 2 * time.Second

// settle lets threads go on that reported a change of the layout (a balloon's
// MADV_REMOVE) after the readers had ended: such a thread waits until its event is read,
// registered or not. As long as there is one, or one that is about to report, every
// operation is refused as busy (mmap_changing in fs/userfaultfd.c, looked at first).
func (as *areas) settle(fd *uffd.FD) error {
	r, err := fd.NewReader(uffd.ReaderConfig{})
	if err != nil {
		return err
	}
	defer r.Close()
	var events [faultBatch]uffd.Event
	a := &as.list[0]
	for end := time.Now().Add(settleTime); ; time.Sleep(100 * time.Microsecond) {
		n, err := r.TryRead(events[:])
		for i := range events[:n] {
			if events[i].Kind == uffd.KindFork {
				err = errors.Join(err, closeChild(events[i].Child))
			}
		}
		if err != nil {
			return err
		}
		_, _, err = fd.ZeroRange(a.Addr, uint64(a.PageSize), uint64(a.PageSize), 0)
		if err != uffd.ErrBusy {
			return nil // it is not registered any more: some other error
		}
		if time.Now().After(end) {
			return errors.New("a thread of the machine is changing the layout of its memory and does not end")
		}
	}
}

// each does f for all pages of r at once, or where they lie in more than one mapping (an
// madvise or mbind for a part of a region splits it; no operation crosses from one into
// the next) for one after the other.
func (c *UFFDConfig) each(r transport.Range, f func(transport.Range) error) error {
	err := f(r)
	if err != uffd.ErrNoRange || r.Count <= 1 {
		return c.opError(err)
	}
	for i := range uint64(r.Count) {
		if err := c.opError(f(transport.Range{Region: r.Region, First: r.First + i, Count: 1})); err != nil {
			return err
		}
	}
	return nil
}

// opError translates the errors of userfaultfd operations.
func (c *UFFDConfig) opError(err error) error {
	switch {
	case err == nil:
		return nil
	case err == uffd.ErrNoRange && c.unmaps():
		return nil // unmapped meanwhile; its event is on the way, and nobody waits
	case err == uffd.ErrBusy:
		return ErrBusy
	case err == uffd.ErrGone:
		return ErrGone
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC):
		// Whoever faults waits until there is room, as for a page on its way.
		return fmt.Errorf("%w: %w: %w", ErrBusy, transport.ErrNoMemory, err)
	}
	return err
}

// uffdReader turns the events of a userfaultfd into those of regions.
type uffdReader struct {
	as   *areas
	r    *uffd.Reader
	buf  [faultBatch]uffd.Event
	evs  []Event // of buf
	left []Event // of evs, not given out yet
}

func newUFFDReader(c *UFFDConfig, as *areas) (*uffdReader, error) {
	r, err := c.FD.NewReader(uffd.ReaderConfig{Spin: c.Spin, PIDFD: c.PIDFD})
	if err != nil {
		return nil, err
	}
	return &uffdReader{as: as, r: r, evs: make([]Event, 0, faultBatch)}, nil
}

// Stop implements [FaultReader].
func (u *uffdReader) Stop() { u.r.Stop() }

// Close implements [FaultReader].
func (u *uffdReader) Close() error { return u.r.Close() }

// Soon implements [EagerReader].
func (u *uffdReader) Soon(longest time.Duration) { u.r.Soon(longest) }

// Read implements [FaultReader].
func (u *uffdReader) Read(buf []Event) (int, error) {
	if len(u.left) > 0 {
		n := copy(buf, u.left)
		u.left = u.left[n:]
		return n, nil
	}
	for {
		n, err := u.r.ReadEvents(u.buf[:min(len(buf), len(u.buf))])
		switch {
		case errors.Is(err, uffd.ErrStopped):
			return 0, ErrStopped
		case errors.Is(err, uffd.ErrGone):
			return 0, ErrGone
		case err != nil:
			return 0, err
		}
		evs := u.evs[:0]
		for i := range u.buf[:n] {
			if evs, err = u.translate(&u.buf[i], evs); err != nil {
				return 0, err
			}
		}
		if len(evs) > 0 {
			n := copy(buf, evs)
			u.evs, u.left = evs, evs[n:]
			return n, nil
		}
	}
}

// translate appends what an event is to the regions: nothing if it concerns none, more
// than one if their mappings lie side by side, since the kernel makes one of them then.
func (u *uffdReader) translate(in *uffd.Event, out []Event) ([]Event, error) {
	var kind EventKind
	switch in.Kind {
	case uffd.KindFault:
		a := u.as.at(in.Addr)
		if a == nil {
			return out, fmt.Errorf("fault at address %#x, which is in no region", in.Addr)
		}
		return append(out, Event{Kind: Fault, Region: a.ID, Page: (in.Addr - a.Addr) / uint64(a.PageSize), Count: 1}), nil
	case uffd.KindFork:
		return append(out, Event{Kind: Forked}), closeChild(in.Child)
	case uffd.KindRemove:
		kind = Remove
	case uffd.KindUnmap:
		kind = Unmap
	case uffd.KindRemap:
		kind = Moved
	default:
		return out, fmt.Errorf("userfaultfd event of unknown kind %v", in.Kind)
	}
	// A range may begin before an area, or reach over its end. Of a huge page of which
	// a part was given back the rest is still the machine's: it stays what it is.
	for i := range u.as.list {
		a := &u.as.list[i]
		lo, hi := max(in.Addr, a.Addr), min(in.Addr+in.Len, a.Addr+a.bytes())
		if lo >= hi {
			continue
		}
		if kind == Unmap {
			u.as.gone.add(addresses{lo, hi})
		}
		size := uint64(a.PageSize)
		first, last := (lo-a.Addr+size-1)/size, (hi-a.Addr)/size
		if first < last {
			out = append(out, Event{Kind: kind, Region: a.ID, Page: first, Count: last - first})
		}
	}
	return out, nil
}
