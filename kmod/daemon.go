package kmod

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"golang.org/x/sys/unix"
)

// Daemon is the daemon's end of an object. Its methods may be called
// concurrently, but for Close, after which none may be.
type Daemon struct {
	fd    int
	id    uint32
	pages uint64
	size  int // bytes of a page
	ring  *Ring

	producer, consumer      []byte
	residentMem, waitersMem []byte
	resident, waiters       []uint64
}

// NewDaemon takes over a daemon's end: fd, which it owns from then on unless it
// returns an error. Its ring must have no other consumer process.
func NewDaemon(fd int) (*Daemon, error) {
	var l rawLayout
	if err := ioctl(fd, ioLayout, &l); err != nil {
		return nil, fmt.Errorf("ask for the layout of the daemon's end: %w", notDestroyed(err))
	}
	// A module that was built before there were others has pages of this size.
	d := &Daemon{fd: fd, id: l.id, pages: l.pages, size: cmp.Or(int(l.pageSize), pageBytes)}
	if err := d.mapAll(&l); err != nil {
		return nil, errors.Join(err, d.unmap())
	}
	return d, nil
}

func (d *Daemon) mapAll(l *rawLayout) error {
	const most = 1 << 40 // bytes of any of the mappings; the kernel's are smaller
	if max(l.producerLen, l.consumerLen, l.residentLen, l.waitersLen) > most ||
		l.residentLen < (l.pages+63)/64*8 || l.waitersLen < (l.pages+63)/64*8 {
		return fmt.Errorf("layout %+v of the daemon's end makes no sense", *l)
	}
	for _, m := range []struct {
		dst      *[]byte
		off, len uint64
		write    bool
	}{
		{&d.producer, l.producerOff, l.producerLen, false},
		{&d.consumer, l.consumerOff, l.consumerLen, true},
		{&d.residentMem, l.residentOff, l.residentLen, true},
		{&d.waitersMem, l.waitersOff, l.waitersLen, false},
	} {
		var err error
		if *m.dst, err = sysmem.MapShared(d.fd, int64(m.off), int64(m.len), m.write); err != nil {
			return fmt.Errorf("map the daemon's end: %w", err)
		}
	}
	d.resident, d.waiters = words(d.residentMem), words(d.waitersMem)
	var err error
	d.ring, err = NewRing(d.producer, d.consumer, int(l.ringEntries), d.pages)
	return err
}

func (d *Daemon) unmap() error {
	err := errors.Join(sysmem.Unmap(d.producer), sysmem.Unmap(d.consumer), sysmem.Unmap(d.residentMem), sysmem.Unmap(d.waitersMem))
	d.producer, d.consumer, d.residentMem, d.waitersMem = nil, nil, nil, nil
	return err
}

// Close detaches from the object, unless another process has the descriptor. A second
// call does nothing.
func (d *Daemon) Close() error { return errors.Join(d.unmap(), closeOnce(&d.fd)) }

// FD is the descriptor, which stays the Daemon's: for poll, or to pass it on.
func (d *Daemon) FD() int { return d.fd }

// Pages is the number of pages when it was attached.
func (d *Daemon) Pages() uint64 { return d.pages }

// PageSize is the size of a page, in bytes: the page with number n begins at byte
// n*PageSize of the memory.
func (d *Daemon) PageSize() int { return d.size }

// Ring is the fault ring.
func (d *Daemon) Ring() *Ring { return d.ring }

// Alias opens the memory as a file, read and write, with a file position of its
// own. The caller closes it.
func (d *Daemon) Alias() (fd int, err error) {
	var r rawAlias
	if err := ioctl(d.fd, ioAlias, &r); err != nil {
		return -1, fmt.Errorf("open the memory of object %d: %w", d.id, notDestroyed(err))
	}
	return int(r.fd), nil
}

const (
	// maxSpin is PAGEWARP_MAX_SPIN_US of driver/pagewarp_uapi.h.
	maxSpin = time.Millisecond
	// DefaultSpin is that of KVM's halt polling (halt_poll_ns of arch/x86/kvm/x86.c),
	// which is the same bargain: a CPU with nothing else to do, for a wake-up spared.
	DefaultSpin = 200 * time.Microsecond
)

// SetSpin says how long at most a thread that touches a missing page looks for it before
// it goes to sleep, and how long a [Reader] looks at the ring; what is more than a
// millisecond counts as one. 0, not at all, is what a new end begins with. Either looks
// only if pages, or faults, have come within that time of late, on average; where other
// threads want its CPU, within the time that a sleep costs, and for no longer
// (docs/UAPI.md, "The ring"). It spares changes of threads and a system call, and keeps a
// CPU from resting meanwhile.
func (d *Daemon) SetSpin(thread, reader time.Duration) { d.ring.setSpin(thread, reader) }

func (d *Daemon) check(first, count uint64) error {
	if first >= d.pages || count > d.pages-first {
		return fmt.Errorf("pages %d+%d of object %d, which has %d: %w", first, count, d.id, d.pages, unix.ERANGE)
	}
	return nil
}

// Install makes pages [first, first+count) resident, whose content was written
// through the alias or is to read as zero, and wakes those who wait for them. It
// makes no system call unless somebody does.
func (d *Daemon) Install(first, count uint64) error {
	if err := d.check(first, count); err != nil {
		return err
	}
	lo, hi := uint64(1), uint64(0) // the pages with a waiter
	for page, end := first, first+count; page < end; {
		n := min(64-page%64, end-page)
		mask := ^uint64(0) >> (64 - n) << (page % 64)
		// A: the resident bits, then the waiter bits. Go's atomics are sequentially
		// consistent; the other side is pw_announce in driver/fault.c.
		atomic.OrUint64(&d.resident[page/64], mask)
		if w := atomic.LoadUint64(&d.waiters[page/64]) & mask; w != 0 {
			base := page - page%64
			if lo > hi {
				lo = base + uint64(bits.TrailingZeros64(w))
			}
			hi = base + 63 - uint64(bits.LeadingZeros64(w))
		}
		page += n
	}
	if lo > hi {
		return nil
	}
	return d.Wake(lo, hi-lo+1)
}

// Resident tells whether a page has been installed.
func (d *Daemon) Resident(page uint64) bool {
	return page < d.pages && atomic.LoadUint64(&d.resident[page/64])>>(page%64)&1 != 0
}

// Waiting tells whether a thread waits, or has waited since the last wake-up.
func (d *Daemon) Waiting(page uint64) bool {
	return page < d.pages && atomic.LoadUint64(&d.waiters[page/64])>>(page%64)&1 != 0
}

// shortWake is a range, in pages, whose waiters are found in next to no time.
const shortWake = 512

// Wake has the threads that wait for pages [first, first+count) look again; where
// the page is not resident they report a new fault.
func (d *Daemon) Wake(first, count uint64) error {
	if err := d.check(first, count); err != nil || count == 0 {
		return err
	}
	call := ioctl[rawWake]
	if count <= shortWake {
		call = ioctlShort[rawWake]
	}
	if err := call(d.fd, ioWake, &rawWake{first: first, count: count}); err != nil {
		return fmt.Errorf("wake pages %d+%d of object %d: %w", first, count, d.id, notDestroyed(err))
	}
	return nil
}

// Redeliver has every outstanding fault reported anew.
func (d *Daemon) Redeliver() error {
	if err := ioctl[byte](d.fd, ioRedeliver, nil); err != nil {
		return fmt.Errorf("redeliver the faults of object %d: %w", d.id, notDestroyed(err))
	}
	return nil
}

// Release makes the object plain memory and lets all who wait go on: pages that
// were not installed read as whatever was written through the alias, or zero.
func (d *Daemon) Release() error {
	if err := ioctl[byte](d.fd, ioRelease, nil); err != nil {
		return fmt.Errorf("release object %d: %w", d.id, notDestroyed(err))
	}
	return nil
}

func notDestroyed(err error) error {
	if err == unix.ENODEV {
		return ErrDestroyed
	}
	return err
}
