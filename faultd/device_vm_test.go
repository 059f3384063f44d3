//go:build kmodvm

package faultd_test

import (
	"context"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/faultd/faultdtest"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// newDeviceMachine is a process that has mapped an object of the device; it
// does nothing else for its pages to be served.
func newDeviceMachine(t testing.TB, ctx context.Context, pages uint64, spin time.Duration) *machine {
	t.Helper()
	m, _, _ := newDeviceMachineAgain(t, ctx, pages, pageSize, spin)
	return m
}

// newDeviceMachineAgain returns as well what detaches from the object and
// attaches again.
func newDeviceMachineAgain(t testing.TB, ctx context.Context, pages, size uint64, spin time.Duration) (m *machine, detach, attach func()) {
	t.Helper()
	c, err := kmod.Open()
	must(t, err)
	path, err := c.Create(kmod.Config{Name: "faultd", Bytes: pages * size, PageSize: int(size), Mode: 0o600})
	must(t, err)
	t.Cleanup(func() {
		must(t, c.Destroy("faultd"))
		must(t, c.Close())
	})
	m = &machine{file: -1, pageSize: uint32(size)}
	m.proc, err = touch.Start(ctx)
	must(t, err)
	t.Cleanup(m.proc.Kill)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	m.reg, err = m.proc.MapShared(fd, int64(pages*size))
	must(t, err)
	must(t, unix.Close(fd))
	var d *faultd.Device
	detach = func() { must(t, d.Close()) }
	attach = func() {
		end, err := c.Attach("faultd", 256)
		must(t, err)
		reg := region(pages)
		reg.PageSize = uint32(size)
		d, err = faultd.NewDevice(faultd.DeviceConfig{Regions: []faultd.DeviceRegion{{Region: reg, Daemon: end}}, Spin: spin})
		must(t, err)
		m.mem = d.Memory()
	}
	attach()
	m.res, err = pagecache.New(pages)
	must(t, err)
	t.Cleanup(func() {
		detach()
		m.res.Close()
	})
	return m, detach, attach
}

func TestDeviceConformance(t *testing.T) {
	t.Run("sleeping", func(t *testing.T) { conform(t, 0) })
	t.Run("spinning", func(t *testing.T) { conform(t, time.Millisecond) })
}

func conform(t *testing.T, spin time.Duration) {
	faultdtest.Run(t, func(t *testing.T, ctx context.Context) faultdtest.Env {
		const pages = 64
		m := newDeviceMachine(t, ctx, pages, spin)
		return faultdtest.Env{
			Region: region(pages), Memory: m.mem, Write: m.reg.Write,
			Touch: func(page uint64, write bool) error {
				_, err := m.reg.Touch([]uint64{page}, write, 1)
				return err
			},
			Sum: func(page uint64) (uint32, error) {
				s, err := m.reg.Sums(page, 1)
				if err != nil {
					return 0, err
				}
				return s[0], nil
			},
		}
	})
}

// The engine drains a source into the device while the machine touches its
// pages at random.
func TestDeviceDrain(t *testing.T) {
	const pages = 1 << 10
	img := newImage(t, pages, 1)
	for name, how := range map[string]struct {
		precache bool
		spin     time.Duration
	}{
		"with precache":            {true, 0},
		"on demand only":           {false, 0},
		"on demand only, spinning": {false, time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 60*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newDeviceMachine(t, ctx, pages, how.spin)
			cfg := m.config(srv.open(pages))
			cfg.PrecacheOff = !how.precache
			e := start(t, cfg)
			if _, err := m.reg.Touch(shuffled(pages, 2), false, 4); err != nil {
				t.Fatalf("%v\n%+v", err, e.Stats())
			}
			s := drained(t, ctx, e)
			m.verify(t, img.sums)
			if !how.precache && s.PagesPrecache != 0 {
				t.Errorf("%d pages came by precache, which is off", s.PagesPrecache)
			}
			t.Logf("demand faults, µs: %+v", s.Stages[faultd.StageTotal].Summary())
		})
	}
}

// TestDeviceReserve: memory that is reserved is as absent as any other, pages come into it
// by precache and on demand, and what turns out to be zero is given back.
func TestDeviceReserve(t *testing.T) {
	const pages = 4096
	img := makeImage(t, pages, func(i uint64, p []byte) bool {
		if i/256%2 == 0 {
			touch.Fill(p, i, 43)
		} else {
			clear(p)
		}
		return true
	})
	for name, precache := range map[string]bool{"with precache": true, "on demand only": false} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 60*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newDeviceMachine(t, ctx, pages, 0)
			begun := make(chan struct{})
			cfg := m.config(heldOpen(begun, srv.open(pages)))
			cfg.PrecacheOff = !precache
			e := start(t, cfg)
			if n, err := e.Reserve(transport.Range{Region: 7, Count: pages}); err != nil || n != pages {
				t.Fatalf("%d pages reserved of %d: %v", n, pages, err)
			}
			if got := withMemory(t, m.mem.Place); got != pages {
				t.Errorf("%d pages have memory, all %d are reserved", got, pages)
			}
			if st := e.Stats(); st.PagesLeft != pages {
				t.Errorf("%d pages are absent of %d", st.PagesLeft, pages)
			}
			close(begun)
			if _, err := m.reg.Touch(shuffled(pages, 2), false, 4); err != nil {
				t.Fatalf("%v\n%+v", err, e.Stats())
			}
			drained(t, ctx, e)
			m.verify(t, img.sums)
		})
	}
	t.Run("zero", func(t *testing.T) {
		ctx := withDeadline(t, 60*time.Second)
		srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
		m := newDeviceMachine(t, ctx, pages, 0)
		begun := make(chan struct{})
		e := start(t, m.config(heldOpen(begun, srv.open(pages))))
		if n, err := e.Reserve(transport.Range{Region: 7, Count: pages}); err != nil || n != pages {
			t.Fatalf("%d pages reserved of %d: %v", n, pages, err)
		}
		close(begun)
		drained(t, ctx, e)
		if got := withMemory(t, m.mem.Place); got != pages/2 {
			t.Errorf("%d pages have memory, %d are not zero", got, pages/2)
		}
		m.verify(t, img.sums)
	})
}

// withMemory counts the pages of the device's region that have memory.
func withMemory(t *testing.T, p faultd.Placer) (n uint64) {
	t.Helper()
	for at := uint64(0); ; {
		first, count, ok, err := p.NextData(7, at)
		must(t, err)
		if !ok {
			return n
		}
		n += count
		at = first + count
	}
}

// An engine is gone with half of the memory brought and threads waiting; another
// attaches, and nothing is fetched twice or lost.
func TestDeviceTakeover(t *testing.T) {
	const pages, half, waiters = 1 << 10, 400, 8
	img := newImage(t, pages, 3)
	ctx := withDeadline(t, 60*time.Second)
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m, detach, attach := newDeviceMachineAgain(t, ctx, pages, pageSize, 0)
	cfg := m.config(srv.open(pages))
	cfg.PrecacheOff = true
	first, err := faultd.New(cfg)
	must(t, err)
	must(t, first.Start())
	if _, err := m.reg.TouchAll(0, half, false, 4); err != nil {
		t.Fatal(err)
	}
	first.Detach()
	brought := first.Stats().PagesDemand + first.Stats().PagesZero
	detach()

	done := make(chan error, 1)
	go func() { // pages there and pages missing, while nobody serves
		_, err := m.reg.TouchAll(half-waiters, 2*waiters, true, 2*waiters)
		done <- err
	}()
	attach()
	m.res.Recover()
	cfg = m.config(srv.open(pages))
	second := start(t, cfg)
	must(t, <-done)
	if err := second.Wait(ctx); err != nil {
		t.Fatalf("drain: %v; %+v", err, second.Stats())
	}
	s := second.Stats()
	if got := brought + s.PagesDemand + s.PagesPrecache + s.PagesZero; got != pages {
		t.Errorf("%d pages by the first engine and %d by the second, want %d together", brought, got-brought, pages)
	}
	m.verify(t, img.sums)
}

// The same with pages of 2 MiB: each comes as a whole, and once.
func TestDeviceHugeDrain(t *testing.T) {
	const pages, size, per = 12, 2 << 20, 512
	img := newImage(t, pages*per, 5)
	for name, precache := range map[string]bool{"with precache": true, "on demand only": false} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 60*time.Second)
			reg := region(pages)
			reg.PageSize = size
			srv := newServerOf(t, reg, img.fd, "127.0.0.1:0", tcp.Tuning{})
			m, _, _ := newDeviceMachineAgain(t, ctx, pages, size, 0)
			cfg := m.config(srv.open(pages))
			cfg.PrecacheOff = !precache
			e := start(t, cfg)
			if _, err := m.reg.Touch([]uint64{per + 7, 9 * per, 3*per - 1, 3 * per, per}, true, 4); err != nil {
				t.Fatalf("%v\n%+v", err, e.Stats())
			}
			if !precache {
				if _, err := m.reg.TouchAll(0, pages*per, false, 2); err != nil {
					t.Fatalf("%v\n%+v", err, e.Stats())
				}
			}
			s := drained(t, ctx, e)
			m.verify(t, img.sums)
			if got := s.PagesDemand + s.PagesPrecache + s.PagesZero; got != pages || !precache && s.PagesPrecache != 0 {
				t.Errorf("%d pages on demand, %d by precache, %d zero: want %d together", s.PagesDemand, s.PagesPrecache, s.PagesZero, pages)
			}
		})
	}
}
