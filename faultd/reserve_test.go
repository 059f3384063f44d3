package faultd_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// heldOpen opens channels once begun is closed, as a daemon's does.
func heldOpen(begun <-chan struct{}, open faultd.Opener) faultd.Opener {
	return func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
		select {
		case <-begun:
			return open(ctx, kind, index)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// held returns the pages that a file has memory for.
func held(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	return uint64(st.Blocks) * 512 / pageSize
}

// TestReserve reserves some of the memory and drains into it, by precache and on demand,
// over a connection that is cut again and again. Pages that turn out to be zero are given
// back.
func TestReserve(t *testing.T) {
	for name, cut := range map[string]bool{"undisturbed": false, "cut": true} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 60*time.Second)
			img := newImage(t, 4096, 41)
			s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newMachine(t, ctx, img.pages, false)
			begun := make(chan struct{})
			cfg := m.config(heldOpen(begun, s.open(img.pages)))
			e := start(t, cfg)
			var sum uint64
			for _, r := range []struct{ first, count, want uint64 }{{0, 1000, 992}, {1003, 12, 0}, {1009, 31, 16}, {2000, 2096, 2096}} {
				n, err := e.Reserve(transport.Range{Region: 7, First: r.first, Count: uint32(r.count)})
				if err != nil || n != r.want {
					t.Errorf("reserved %d of %d pages from %d on, want %d: %v", n, r.count, r.first, r.want, err)
				}
				if sum += n; held(t, m.file) != sum {
					t.Errorf("the file holds %d pages, %d are reserved", held(t, m.file), sum)
				}
			}
			if st := e.Stats(); st.PagesLeft != img.pages {
				t.Errorf("%d pages are absent of %d", st.PagesLeft, img.pages)
			}
			close(begun)
			stop := make(chan struct{})
			var cutting sync.WaitGroup
			if cut {
				cutting.Go(func() {
					for {
						select {
						case <-time.After(5 * time.Millisecond):
							s.cut()
						case <-stop:
							return
						}
					}
				})
			}
			m.verify(t, img.sums)
			close(stop)
			cutting.Wait()
			drained(t, ctx, e)
			m.verify(t, img.sums)
		})
	}
}

// TestReservedZero: memory that was reserved for pages that turn out to be zero is given
// back.
func TestReservedZero(t *testing.T) {
	ctx := withDeadline(t, 60*time.Second)
	img := makeImage(t, 4096, func(i uint64, p []byte) bool {
		if i/256%2 == 0 {
			touch.Fill(p, i, 43)
		} else {
			clear(p)
		}
		return true
	})
	s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, img.pages, false)
	begun := make(chan struct{})
	e := start(t, m.config(heldOpen(begun, s.open(img.pages))))
	if n, err := e.Reserve(transport.Range{Region: 7, Count: 4096}); err != nil || n != 4096 {
		t.Fatalf("%d pages reserved: %v", n, err)
	}
	close(begun)
	st := drained(t, ctx, e)
	if got := held(t, m.file); got != 2048 || st.PagesZero != 2048 {
		t.Errorf("the file holds %d pages, %d are zero; want 2048 of each", got, st.PagesZero)
	}
	m.verify(t, img.sums)
}

// Errors name what cannot be reserved.
func TestReserveRefused(t *testing.T) {
	ctx := withDeadline(t, 30*time.Second)
	img := newImage(t, 64, 42)
	s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	for name, private := range map[string]bool{"private": true, "shared": false} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, ctx, img.pages, private)
			begun := make(chan struct{})
			defer close(begun)
			e := start(t, m.config(heldOpen(begun, s.open(img.pages))))
			_, err := e.Reserve(transport.Range{Region: 7, First: 32, Count: 33})
			if errors.Is(err, faultd.ErrNoReserver) != private || err == nil {
				t.Errorf("past the end: %v", err)
			}
			if _, err = e.Reserve(transport.Range{Region: 8, Count: 16}); err == nil {
				t.Error("a region that there is not is reserved")
			}
		})
	}
}

// TestReserveWithoutRoom: what there is no room for is given back whole, what was reserved
// before stays, and the drain waits for room as it does without a reserve.
func TestReserveWithoutRoom(t *testing.T) {
	ctx := withDeadline(t, 60*time.Second)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	img := makeImage(t, 2048, func(i uint64, p []byte) bool { touch.Fill(p, i, 44); return true })
	fd, err := unix.Open(filepath.Join(dir, "ram"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	must(t, err)
	must(t, unix.Ftruncate(fd, int64(img.pages)*pageSize))
	m := newMachineIn(t, ctx, img.pages, fd)
	s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	begun := make(chan struct{})
	e := start(t, m.config(heldOpen(begun, s.open(img.pages))))
	if n, err := e.Reserve(transport.Range{Region: 7, Count: 512}); err != nil || n != 512 {
		t.Fatalf("%d pages reserved: %v", n, err)
	}
	if n, err := e.Reserve(transport.Range{Region: 7, First: 512, Count: 1024}); n != 0 || !errors.Is(err, transport.ErrNoMemory) {
		t.Errorf("%d pages reserved where there is room for 512: %v", n, err)
	}
	if got := held(t, m.file); got != 512 {
		t.Errorf("the file holds %d pages, want 512", got)
	}
	close(begun)
	for e.Stats().Retries < 3 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	must(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"))
	drained(t, ctx, e)
	m.verify(t, img.sums)
}
