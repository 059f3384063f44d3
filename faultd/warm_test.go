package faultd_test

import (
	"context"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// warmMachine is a machine whose absent pages hold an older state of the image,
// which the source has been told of: most pages as they are, some changed since,
// some that became zero, some that were zero. damage is done to them after that.
// It returns the engine, precache off, and how many pages are as they were.
func warmMachine(t *testing.T, s *server, img *image, m *machine, damage func()) (e *faultd.Engine, good uint64) {
	t.Helper()
	e = candidatesFor(t, s, img, m, func(p uint64, now, was []byte) bool {
		word, fill := sysmem.SameFill(now)
		switch {
		case p%7 == 3: // was something else
			for i := range was {
				was[i] = byte(p) ^ 0x5a
			}
			was[0]++
		case fill && word == 0:
			return false // was zero, too
		default:
			copy(was, now)
			if !fill {
				good++
			}
		}
		return true
	}, damage)
	return e, good
}

// candidatesFor is the same, with what was in a page before said by was: it writes that,
// or returns false.
func candidatesFor(t *testing.T, s *server, img *image, m *machine, was func(p uint64, now, was []byte) bool, damage func()) *faultd.Engine {
	t.Helper()
	regions := []transport.Region{region(img.pages)}
	begun, open := make(chan struct{}), s.open(img.pages)
	cfg := m.config(func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
		select {
		case <-begun:
			return open(ctx, kind, index)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	cfg.PrecacheOff = true
	e := start(t, cfg)

	src, err := sysmem.MapShared(img.fd, 0, int64(img.pages)*pageSize, false)
	must(t, err)
	defer sysmem.Unmap(src)
	w, err := faultd.NewWarm(s.token, regions)
	must(t, err)
	theirs, err := pageserver.NewWarm(s.token, regions)
	must(t, err)
	h := w.Hasher()
	for p := range img.pages {
		r := transport.Range{Region: 7, First: p, Count: 1}
		dst := make([][]byte, 1)
		must(t, e.Place(r, dst))
		if was(p, src[p*pageSize:(p+1)*pageSize], dst[0]) {
			w.Index(7).Set(p, h.Sum(dst[0]))
		}
	}
	must(t, theirs.Take(transport.Range{Region: 7, Count: uint32(img.pages)}, w.Index(7).Append(nil, 0, img.pages)))
	s.warm.Store(theirs)
	must(t, e.SetWarm(w))
	if damage != nil {
		damage()
	}
	close(begun)
	return e
}

// TestWarmDrain has candidates under the absent pages of a machine that is
// drained, with faults all the while.
func TestWarmDrain(t *testing.T) {
	for name, onDemand := range map[string]bool{"precache": false, "demand": true} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 60*time.Second)
			img := newImage(t, 2048, 31)
			s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newMachine(t, ctx, img.pages, false)
			e, good := warmMachine(t, s, img, m, nil)
			if !onDemand {
				e.SetPrecache(true)
			}
			m.verify(t, img.sums)
			st := drained(t, ctx, e)
			if st.PagesSame != good || st.CandidatesBad != 0 {
				t.Errorf("%d pages were confirmed and %d of these bad, want %d and 0", st.PagesSame, st.CandidatesBad, good)
			}
			if most := 4096 * (img.pages - good) * 3 / 2; st.DemandBytes+st.PrecacheBytes > most {
				t.Errorf("%d bytes on the wire for %d pages, of which %d were there", st.DemandBytes+st.PrecacheBytes, img.pages, good)
			}
			m.verify(t, img.sums)
		})
	}
}

// TestWarmDamaged damages candidates after they were offered: none is shown.
func TestWarmDamaged(t *testing.T) {
	ctx := withDeadline(t, 60*time.Second)
	img := newImage(t, 1024, 32)
	s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, img.pages, false)
	mem, err := sysmem.MapShared(m.file, 0, int64(img.pages)*pageSize, true)
	must(t, err)
	defer sysmem.Unmap(mem)
	bad, zero := 0, touch.Sum(make([]byte, pageSize))
	e, _ := warmMachine(t, s, img, m, func() {
		for p := uint64(0); p < img.pages; p += 5 {
			if img.sums[p] == zero && p%7 != 3 {
				continue // has no candidate
			}
			if p%10 == 0 {
				must(t, sysmem.PunchHole(m.file, int64(p)*pageSize, pageSize)) // lost altogether
			} else {
				mem[p*pageSize+9] ^= 1
			}
			bad++
		}
	})
	e.SetPrecache(true)
	m.verify(t, img.sums)
	st := drained(t, ctx, e)
	if st.CandidatesBad == 0 || st.CandidatesBad > uint64(bad) {
		t.Errorf("%d damaged candidates were found out, of %d", st.CandidatesBad, bad)
	}
	m.verify(t, img.sums)
}

// TestWarmMoved has a machine whose kernel has moved half of its memory since: most of it
// comes from where it was, though the pages there are filled anew meanwhile, and nothing
// that is there no more is shown.
func TestWarmMoved(t *testing.T) {
	ctx := withDeadline(t, 60*time.Second)
	img := newImage(t, 4096, 35)
	s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, img.pages, false)
	src, err := sysmem.MapShared(img.fd, 0, int64(img.pages)*pageSize, false)
	must(t, err)
	defer sysmem.Unmap(src)
	e := candidatesFor(t, s, img, m, func(p uint64, _, was []byte) bool {
		if p%2 == 0 {
			return false // was not used
		}
		now := src[(p+img.pages/2)%img.pages*pageSize:][:pageSize]
		if word, fill := sysmem.SameFill(now); fill && word == 0 {
			return false
		}
		copy(was, now)
		return true
	}, nil)
	e.SetPrecache(true)
	m.verify(t, img.sums)
	st := drained(t, ctx, e)
	m.verify(t, img.sums)
	if st.PagesMoved == 0 || st.MovedGone == 0 || st.CandidatesBad != 0 {
		t.Errorf("%d pages came from where they were, %d were there no more, %d candidates bad; want some, some, 0", st.PagesMoved, st.MovedGone, st.CandidatesBad)
	}
}

// TestWarmTakenOver has another engine in the place of one that had candidates:
// it discards them, and every page is right.
func TestWarmTakenOver(t *testing.T) {
	ctx := withDeadline(t, 60*time.Second)
	img := newImage(t, 1024, 33)
	s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, img.pages, false)
	e, _ := warmMachine(t, s, img, m, nil)
	_, err := m.reg.Sums(100, 50)
	must(t, err)
	e.Detach()
	s.warm.Store(nil)
	e = start(t, m.config(s.open(img.pages)))
	m.verify(t, img.sums)
	if st := e.Stats(); st.PagesSame != 0 {
		t.Errorf("%d pages of a former engine's candidates were taken", st.PagesSame)
	}
	must(t, e.Wait(ctx))
	m.verify(t, img.sums)
}

// TestWarmRemoved has the machine give pages back that have candidates.
func TestWarmRemoved(t *testing.T) {
	ctx := withDeadline(t, 60*time.Second)
	img := newImage(t, 512, 34)
	s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachineEvents(t, ctx, img.pages, false, true)
	e, _ := warmMachine(t, s, img, m, nil)
	must(t, m.reg.Advise(128, 128, unix.MADV_DONTNEED))
	want := append([]uint32(nil), img.sums...)
	zero := touch.Sum(make([]byte, pageSize))
	for p := 128; p < 256; p++ {
		want[p] = zero
	}
	m.verify(t, want) // its faults are read after the removal
	e.SetPrecache(true)
	must(t, e.Wait(ctx))
	m.verify(t, want)
}

func TestWarmNeedsAPlace(t *testing.T) {
	ctx := withDeadline(t, 60*time.Second)
	img := newImage(t, 64, 35)
	s := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, img.pages, true)
	e := start(t, m.config(s.open(img.pages)))
	w, err := faultd.NewWarm(s.token, []transport.Region{region(img.pages)})
	must(t, err)
	if err := e.SetWarm(w); err != faultd.ErrNoPlacer {
		t.Errorf("candidates for private memory: %v", err)
	}
	must(t, e.Wait(ctx))
}
