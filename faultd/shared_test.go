package faultd_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// A region may lie in several mappings side by side: advice for a part of it splits its
// mapping. No operation of userfaultfd crosses from one into the next.
func TestRegionInSeveralMappings(t *testing.T) {
	const pages = 1024
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	for name, private := range map[string]bool{"private": true, "shared": false} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 30*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newMachine(t, ctx, pages, private)
			for at := uint64(13); at < pages; at += 26 {
				must(t, m.reg.Advise(at, 13, unix.MADV_DONTFORK))
			}
			cfg := m.config(srv.open(pages))
			cfg.ReadAround = 32
			e := start(t, cfg)
			m.verify(t, img.sums)
			if err := e.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			m.verify(t, img.sums)
		})
	}
}

// A page that reads as zero is touched while the machine gives its memory back: whichever
// comes first, the memory's owner hears of no error.
func TestZeroPageIsGivenBack(t *testing.T) {
	ctx := withDeadline(t, 30*time.Second)
	m := newMachine(t, ctx, 64, false)
	alias, err := sysmem.MapShared(m.file, 0, 64*pageSize, true)
	must(t, err)
	defer sysmem.Unmap(alias)
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	wg.Go(func() {
		for !stop.Load() {
			alias[8*pageSize] = 1
			if err := sysmem.PunchHole(m.file, 8*pageSize, pageSize); err != nil {
				t.Error(err)
				return
			}
		}
	})
	one := transport.Range{Region: 7, First: 8, Count: 1}
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		must(t, m.mem.Install.Zero(one))
		must(t, m.mem.Install.Install(one, nil))
	}
}

// A process that has registered its shared memory by itself, and for missing faults alone,
// must not see a page that is still being written: it is in the file before it is whole.
func TestRegisteredForMissingFaultsAlone(t *testing.T) {
	ctx := withDeadline(t, 30*time.Second)
	proc, err := touch.Start(ctx)
	must(t, err)
	defer proc.Kill()
	fd, err := proc.Userfaultfd()
	must(t, err)
	u, err := faultd.AdoptUserfaultfd(fd)
	must(t, err)
	file, err := sysmem.CreateMemfd("destination", 16*pageSize, 0)
	must(t, err)
	defer unix.Close(file)
	reg, err := proc.MapShared(file, 16*pageSize)
	must(t, err)
	_, err = u.API(0)
	must(t, err)
	_, err = u.Register(reg.Addr, 16*pageSize, uffd.ModeMissing)
	must(t, err)
	s, err := faultd.NewShared(faultd.UFFDConfig{FD: u, Registered: true, Areas: []faultd.Area{{Region: region(16), Addr: reg.Addr, FD: file}}})
	must(t, err)
	defer s.Close()
	var dst [1][]byte
	one := transport.Range{Region: 7, First: 3, Count: 1}
	s.Place(one, dst[:])
	touch.Fill(dst[0][:pageSize/2], 3, 1) // half of it
	seen := make(chan []uint32, 1)
	go func() {
		sums, err := reg.Sums(3, 1)
		if err != nil {
			t.Error(err)
		}
		seen <- sums
	}()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for n := 0; n == 0; {
		select {
		case <-seen:
			t.Fatal("the machine has a page of which a half was written")
		default:
		}
		must(t, ctx.Err())
		n, err = unix.Poll(fds, 10)
		must(t, err)
	}
	page := make([]byte, pageSize)
	touch.Fill(page, 3, 1)
	copy(dst[0], page)
	must(t, s.Install(one, nil))
	if sums := <-seen; len(sums) != 1 || sums[0] != touch.Sum(page) {
		t.Errorf("the machine reads %x, want %x", sums, touch.Sum(page))
	}
	must(t, s.Release())
}

// No memory at all is a mistake, not a panic at the end.
func TestMemoryWithoutAreas(t *testing.T) {
	if _, err := faultd.NewShared(faultd.UFFDConfig{Events: true, Registered: true}); err == nil {
		t.Error("shared memory without areas is taken")
	}
	if _, err := faultd.NewPrivate(faultd.UFFDConfig{Events: true, Registered: true}); err == nil {
		t.Error("private memory without areas is taken")
	}
}

// What is looked for behind absent pages is found, though the machine gives memory back
// meanwhile: a daemon that takes over empties it, and must not end early.
func TestDataIsFoundWhileMemoryIsGivenBack(t *testing.T) {
	ctx := withDeadline(t, 30*time.Second)
	m := newMachine(t, ctx, 64, false)
	alias, err := sysmem.MapShared(m.file, 0, 64*pageSize, true)
	must(t, err)
	defer sysmem.Unmap(alias)
	alias[40*pageSize] = 1 // always there
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	wg.Go(func() {
		for !stop.Load() {
			alias[8*pageSize] = 1
			if err := sysmem.PunchHole(m.file, 8*pageSize, pageSize); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		first, count, ok, err := m.mem.Place.NextData(7, 0)
		must(t, err)
		if !ok || count == 0 || first != 8 && first != 40 {
			t.Fatalf("pages %d+%d, %v: page 40 has data, and page 8 now and then", first, count, ok)
		}
	}
}
