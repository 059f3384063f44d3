package faultd_test

import (
	"context"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// A balloon takes pages away, some there already, some not yet: both read as
// zero, whatever the source has, and are not fetched.
func TestRemovedPagesReadAsZero(t *testing.T) {
	const pages = 1024
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	zero := touch.Sum(make([]byte, pageSize))
	for name, private := range map[string]bool{"private": true, "shared": false} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 30*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newMachineEvents(t, ctx, pages, private, true)
			cfg := m.config(srv.open(pages))
			cfg.PrecacheOff = true
			e := start(t, cfg)
			advice := unix.MADV_REMOVE
			if private {
				advice = unix.MADV_DONTNEED
			}
			want := append([]uint32(nil), img.sums...)
			_, err := m.reg.TouchAll(100, 50, true, 4) // these are there
			must(t, err)
			must(t, m.reg.Advise(120, 60, advice))
			for p := 120; p < 180; p++ {
				want[p] = zero
			}
			// The event is read before madvise returns, and taken into account
			// before anything that is read after it.
			m.verify(t, want[:200])
			s := e.Stats()
			if s.Removes != 1 || s.FaultsZero < 60 {
				t.Errorf("%d removals, %d zero pages shown; want 1 and 60", s.Removes, s.FaultsZero)
			}
			e.SetPrecache(true)
			must(t, e.Wait(ctx))
			m.verify(t, want)
		})
	}
}

// Memory that is unmapped during the drain is done with: the drain ends.
func TestUnmapDuringDrain(t *testing.T) {
	const pages = 512
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	ctx := withDeadline(t, 30*time.Second)
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachineEvents(t, ctx, pages, true, true)
	cfg := m.config(srv.open(pages))
	cfg.PrecacheOff = true
	e := start(t, cfg)
	_, err := m.reg.TouchAll(0, 20, false, 4)
	must(t, err)
	must(t, m.reg.Unmap(256, 256))
	for e.Stats().PagesLeft > 256 { // until the event has been read
		must(t, ctx.Err())
		time.Sleep(time.Millisecond)
	}
	e.SetPrecache(true)
	must(t, e.Wait(ctx))
	m.verify(t, img.sums[:256])
}

// TestRemoveDuringRelease: memory is given back after the readers have ended and before
// it is unregistered. The thread that does so is not left asleep.
func TestRemoveDuringRelease(t *testing.T) {
	for name, private := range map[string]bool{"shared": false, "private": true} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 30*time.Second)
			m := newMachineEvents(t, ctx, 64, private, true)
			advice := unix.MADV_REMOVE
			if private {
				advice = unix.MADV_DONTNEED
			}
			done := make(chan error, 1)
			go func() { done <- m.reg.Advise(8, 16, advice) }()
			fds := []unix.PollFd{{Fd: int32(m.uffd), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, 10_000); n != 1 || err != nil {
				t.Fatalf("no event to be read: %d, %v", n, err)
			}
			must(t, m.mem.Faults.Release())
			select {
			case err := <-done:
				must(t, err)
			case <-ctx.Done():
				t.Fatal("who gave memory back sleeps on")
			}
		})
	}
}

// A region that is unmapped whole, as memory that is unplugged is, leaves nothing to be
// released: the drain has ended well.
func TestUnmapOfWholeRegion(t *testing.T) {
	const pages = 128
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	for name, private := range map[string]bool{"shared": false, "private": true} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 30*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newMachineEvents(t, ctx, pages, private, true)
			cfg := m.config(srv.open(pages))
			cfg.PrecacheOff = true
			e := start(t, cfg)
			_, err := m.reg.TouchAll(0, 20, false, 4)
			must(t, err)
			must(t, m.reg.Unmap(0, pages))
			must(t, e.Wait(ctx))
		})
	}
}

// Memory is unplugged during the drain, whose owner is told of that alone: the drain goes
// on, and memory that is given back is nobody's business.
func TestUnplugDuringDrain(t *testing.T) {
	const pages = 512
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	for name, private := range map[string]bool{"shared": false, "private": true} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 30*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newMachineOf(t, ctx, pages, private, -1, faultd.UFFDConfig{Unmaps: true})
			cfg := m.config(srv.open(pages))
			cfg.PrecacheOff = true
			e := start(t, cfg)
			_, err := m.reg.TouchAll(0, 20, false, 4)
			must(t, err)
			must(t, m.reg.Advise(250, 2, unix.MADV_DONTNEED))
			must(t, m.reg.Unmap(256, 256))
			e.SetPrecache(true)
			must(t, e.Wait(ctx))
			if s := e.Stats(); s.Removes != 0 {
				t.Errorf("%d removals were told", s.Removes)
			}
			m.verify(t, img.sums[:256])
		})
	}
}

// One mapping may hold two regions; memory that is given back across their border is of
// both.
func TestRemovalAcrossRegions(t *testing.T) {
	ctx := withDeadline(t, 30*time.Second)
	proc, err := touch.Start(ctx)
	must(t, err)
	defer proc.Kill()
	fd, err := proc.Userfaultfd()
	must(t, err)
	u, err := faultd.AdoptUserfaultfd(fd)
	must(t, err)
	reg, err := proc.MapPrivate(64 * pageSize)
	must(t, err)
	a, b := region(32), region(32)
	b.ID = 8
	m, err := faultd.NewPrivate(faultd.UFFDConfig{FD: u, Events: true,
		Areas: []faultd.Area{{Region: a, Addr: reg.Addr}, {Region: b, Addr: reg.Addr + 32*pageSize}}})
	must(t, err)
	defer m.Close()
	r, err := m.NewReader()
	must(t, err)
	defer r.Close()
	defer context.AfterFunc(ctx, r.Stop)()
	done := make(chan error, 1)
	go func() { done <- reg.Advise(24, 16, unix.MADV_DONTNEED) }()
	removed := make(map[uint32]uint64)
	for removed[7]+removed[8] < 16 {
		var evs [4]faultd.Event
		n, err := r.Read(evs[:])
		must(t, err)
		for _, ev := range evs[:n] {
			removed[ev.Region] += ev.Count
		}
	}
	if removed[7] != 8 || removed[8] != 8 {
		t.Errorf("pages removed, by region: %v", removed)
	}
	must(t, <-done)
}
