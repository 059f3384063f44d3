package faultd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// DeviceRegion is a region whose memory is an object of the character device, with
// pages of the same size.
type DeviceRegion struct {
	transport.Region
	// Daemon is the daemon's end of the object, which the region fills from its
	// first page. The memory owns it from a successful NewDevice on.
	Daemon *kmod.Daemon
}

// DeviceConfig describes memory behind the character device.
type DeviceConfig struct {
	Regions []DeviceRegion
	// PIDFD, if more than 0, is a pidfd of the machine's process, so that its
	// death is noticed. It stays the caller's and must outlive the memory.
	PIDFD int
	// Spin is how long at most a reader looks at the rings before it sleeps, and a
	// thread of the machine for its page; where other threads want its CPU, for no longer
	// than a sleep costs. See [kmod.Daemon.SetSpin]. 0 is kmod.DefaultSpin, less than
	// 1 µs none.
	Spin time.Duration
}

// Device is memory of the pagewarp character device, which the machine's process
// has mapped, or will map, and needs to do nothing else for. It implements
// [FaultSource], [Installer], [Placer], [Writer] and [Reserver].
type Device struct {
	cfg  DeviceConfig
	list []deviceRegion // immutable
	ends []*kmod.Daemon // ends[i] serves list[i]
}

type deviceRegion struct {
	DeviceRegion
	fd    int    // the memory as a file
	alias []byte // its mapping
}

// NewDevice maps the objects' memory. On an error the caller keeps the daemons'
// ends.
func NewDevice(cfg DeviceConfig) (*Device, error) {
	d := &Device{cfg: cfg}
	spin := cmp.Or(cfg.Spin, kmod.DefaultSpin)
	for _, r := range cfg.Regions {
		m := deviceRegion{DeviceRegion: r, fd: -1}
		err := m.open()
		d.list = append(d.list, m)
		d.ends = append(d.ends, r.Daemon)
		// A reader of several looks at one after the other.
		r.Daemon.SetSpin(spin, spin/time.Duration(len(cfg.Regions)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("device memory: region %d (%q): %w", r.ID, r.Name, err), d.unmap())
		}
	}
	return d, nil
}

func (m *deviceRegion) open() (err error) {
	if int(m.PageSize) != m.Daemon.PageSize() || m.Pages == 0 || m.Pages > m.Daemon.Pages() {
		return fmt.Errorf("%d pages of %d bytes do not fit into an object of %d pages of %d", m.Pages, m.PageSize, m.Daemon.Pages(), m.Daemon.PageSize())
	}
	if m.fd, err = m.Daemon.Alias(); err != nil {
		m.fd = -1
		return err
	}
	m.alias, err = sysmem.MapShared(m.fd, 0, int64(m.Pages)*int64(m.PageSize), true)
	return err
}

func (d *Device) unmap() error {
	var err error
	for i := range d.list {
		m := &d.list[i]
		err = errors.Join(err, sysmem.Unmap(m.alias))
		m.alias = nil
		if m.fd >= 0 {
			err = errors.Join(err, unix.Close(m.fd))
			m.fd = -1
		}
	}
	return err
}

// Memory returns what [Config] wants. Huge pages have no Write: they are stored in place,
// as a store to a fresh one is one page fault for all of it. Nor are they reserved.
func (d *Device) Memory() Memory {
	m := Memory{Faults: d, Install: d, Place: d, Write: d, Reserve: d}
	for i := range d.list {
		if int(d.list[i].PageSize) > sysmem.PageSize {
			m.Write, m.Reserve = nil, nil
		}
	}
	return m
}

// Close unmaps the memory and closes the daemons' ends. Where the object has not
// been released, threads that wait go on waiting for the next daemon, which gets
// their faults anew.
func (d *Device) Close() error {
	err := d.unmap()
	for _, e := range d.ends {
		err = errors.Join(err, e.Close())
	}
	d.ends = nil
	return err
}

// NewReader implements [FaultSource].
func (d *Device) NewReader() (FaultReader, error) {
	r, err := kmod.NewReader(kmod.ReaderConfig{PIDFD: d.cfg.PIDFD}, d.ends...)
	if err != nil {
		return nil, err
	}
	return &deviceReader{d: d, r: r}, nil
}

// Release implements [FaultSource]: the objects are plain memory from now on.
func (d *Device) Release() error {
	var err error
	for _, e := range d.ends {
		if rerr := e.Release(); !errors.Is(rerr, kmod.ErrDestroyed) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// at returns the region of r, which the region checks of the sink have seen.
func (d *Device) at(r transport.Range) (*deviceRegion, error) {
	for i := range d.list {
		m := &d.list[i]
		if m.ID == r.Region && r.First < m.Pages && uint64(r.Count) <= m.Pages-r.First {
			return m, nil
		}
	}
	return nil, fmt.Errorf("pages %d+%d of region %d are not memory of the device", r.First, r.Count, r.Region)
}

// Install implements [Installer]: the content is in place.
func (d *Device) Install(r transport.Range, _ [][]byte) error {
	m, err := d.at(r)
	if err != nil {
		return err
	}
	return deviceError(m.Daemon.Install(r.First, uint64(r.Count)))
}

// Zero implements [Installer]: what was never written reads as zero.
func (d *Device) Zero(r transport.Range) error { return d.Install(r, nil) }

// Wake implements [Installer].
func (d *Device) Wake(r transport.Range) error {
	m, err := d.at(r)
	if err != nil {
		return err
	}
	return deviceError(m.Daemon.Wake(r.First, uint64(r.Count)))
}

// Place implements [Placer].
func (d *Device) Place(r transport.Range, dst [][]byte) {
	m, err := d.at(r)
	if err != nil {
		return // dst stays empty, as it does for a region that is not there
	}
	size := uint64(m.PageSize)
	mem := m.alias[r.First*size : (r.First+uint64(r.Count))*size]
	for i := range dst {
		dst[i], mem = mem[:size:size], mem[size:]
	}
}

// Write implements [Writer].
func (d *Device) Write(r transport.Range, src [][]byte) error {
	m, err := d.at(r)
	if err != nil {
		return err
	}
	return writePages(m.fd, m.Region, int64(r.First)*int64(m.PageSize), r, src)
}

// Discard implements [Placer].
func (d *Device) Discard(r transport.Range) error {
	m, err := d.at(r)
	if err != nil {
		return err
	}
	return sysmem.PunchHole(m.fd, int64(r.First)*int64(m.PageSize), int64(r.Count)*int64(m.PageSize))
}

// NextData implements [Placer].
func (d *Device) NextData(region uint32, from uint64) (first, count uint64, ok bool, err error) {
	m, err := d.at(transport.Range{Region: region, First: from})
	if err != nil {
		return 0, 0, false, nil // beyond the end
	}
	size := int64(m.PageSize)
	start, end, err := sysmem.NextData(m.fd, int64(from)*size)
	if errors.Is(err, io.EOF) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, err
	}
	first = uint64(start / size)
	last := min(uint64((end+size-1)/size), m.Pages)
	return first, last - min(first, last), first < last, nil
}

// deviceError translates the errors of the device's operations.
func deviceError(err error) error {
	if errors.Is(err, kmod.ErrDestroyed) {
		return ErrGone
	}
	return err
}

// deviceReader turns the faults of objects into those of regions.
type deviceReader struct {
	d   *Device
	r   *kmod.Reader
	buf [faultBatch]kmod.Fault
}

// Stop implements [FaultReader].
func (u *deviceReader) Stop() { u.r.Stop() }

// Close implements [FaultReader].
func (u *deviceReader) Close() error { return u.r.Close() }

// Read implements [FaultReader].
func (u *deviceReader) Read(buf []Event) (int, error) {
	for {
		n, err := u.r.Read(u.buf[:min(len(buf), len(u.buf))])
		switch {
		case errors.Is(err, kmod.ErrStopped):
			return 0, ErrStopped
		case errors.Is(err, kmod.ErrGone), errors.Is(err, kmod.ErrDestroyed):
			return 0, ErrGone
		case err != nil:
			return 0, err
		}
		out := 0
		for _, f := range u.buf[:n] {
			m := &u.d.list[f.Source]
			if f.Page >= m.Pages {
				// A touch of the object beyond the region: nobody has that page.
				if err := m.Daemon.Install(f.Page, 1); err != nil {
					return 0, deviceError(err)
				}
				continue
			}
			buf[out] = Event{Kind: Fault, Region: m.ID, Page: f.Page, Count: 1}
			out++
		}
		if out > 0 {
			return out, nil
		}
	}
}
