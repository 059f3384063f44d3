package uffd_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

const allEvents = uffd.FeatureEventFork | uffd.FeatureEventRemap | uffd.FeatureEventRemove | uffd.FeatureEventUnmap

func TestRemoveMakesBusy(t *testing.T) {
	g := newRig(t, allEvents, uffd.ReaderConfig{})
	r := g.shared(16)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, uffd.CanContinue)
	g.fill(0, 16, 1)
	if _, _, err := g.u.ContinueRange(r.Addr, 8*page, page, 0); err != nil {
		t.Fatal(err)
	}
	removed := async(func() error { return r.Advise(2, 3, unix.MADV_REMOVE) })
	// The event is pending from the moment the descriptor is readable.
	fds := []unix.PollFd{{Fd: int32(g.u.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, int(patience.Milliseconds())); n != 1 || err != nil {
		t.Fatalf("no event: %d, %v", n, err)
	}
	if n, err := g.u.Continue(r.PageAddr(8), page, 0); n != 0 || !errors.Is(err, uffd.ErrBusy) || !uffd.Retryable(err) {
		t.Errorf("Continue while a remove is pending: %d, %v; want ErrBusy", n, err)
	}
	if n, err := g.u.ZeroPage(r.PageAddr(8), page, 0); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("ZeroPage while a remove is pending: %d, %v; want EAGAIN", n, err)
	}
	ev := g.next()
	if ev.Kind != uffd.KindRemove || ev.Addr != r.PageAddr(2) || ev.Len != 3*page {
		t.Fatalf("event %+v, want a remove of pages 2 to 4", ev)
	}
	g.await(removed)
	if n, err := g.u.Continue(r.PageAddr(8), page, 0); n != page || err != nil {
		t.Errorf("Continue after the event: %d, %v", n, err)
	}
	// The pages are gone from the file, so that a touch is a missing fault again.
	done := touched(r, 3, false)
	if ev = g.next(); ev.Kind != uffd.KindFault || ev.Flags != 0 {
		t.Fatalf("event %+v, want a missing fault", ev)
	}
	if n, err := g.u.ZeroPage(r.PageAddr(3), page, 0); n != page || err != nil {
		t.Fatalf("ZeroPage: %d, %v", n, err)
	}
	g.await(done)
}

func TestUnmapEvent(t *testing.T) {
	g := newRig(t, allEvents, uffd.ReaderConfig{})
	r := g.shared(8)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, 0)
	done := async(func() error { return r.Unmap(4, 4) })
	if ev := g.next(); ev.Kind != uffd.KindUnmap || ev.Addr != r.PageAddr(4) || ev.Len != 4*page {
		t.Fatalf("event %+v, want an unmap of pages 4 to 7", ev)
	}
	g.await(done)
	g.fill(0, 8, 1)
	if n, err := g.u.Continue(r.PageAddr(4), page, 0); n != 0 || !errors.Is(err, uffd.ErrNoRange) {
		t.Errorf("Continue of an unmapped page: %d, %v; want ErrNoRange", n, err)
	}
}

func TestRemapEvent(t *testing.T) {
	g := newRig(t, allEvents, uffd.ReaderConfig{})
	r := g.shared(8)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, 0)
	var moved *touch.Region
	done := async(func() (err error) { moved, err = r.Remap(); return err })
	ev := g.next()
	if ev.Kind != uffd.KindRemap || ev.Addr != r.Addr || ev.Len != r.Size || ev.To == r.Addr {
		t.Fatalf("event %+v, want a remap of the region", ev)
	}
	// The old place gets unmapped as well, which the kernel reports or not.
	for finished := false; !finished; {
		select {
		case err := <-done:
			g.check(err)
			finished = true
		default:
			var buf [1]uffd.Event
			if n, err := g.r.Wait(buf[:], patience/1000); n == 1 && buf[0].Kind != uffd.KindUnmap {
				t.Fatalf("event %+v after the remap", buf[0])
			} else if err != nil && !errors.Is(err, uffd.ErrTimeout) {
				t.Fatal(err)
			}
		}
	}
	if moved.Addr != ev.To {
		t.Fatalf("moved to %#x, the event said %#x", moved.Addr, ev.To)
	}
	// The registration went along.
	g.fill(0, 8, 6)
	touch1 := touched(moved, 1, false)
	if ev = g.next(); ev.Addr != moved.PageAddr(1) || ev.Flags != uffd.FaultMinor {
		t.Fatalf("event %+v, want a minor fault at the new address", ev)
	}
	if _, _, err := g.u.ContinueRange(moved.Addr, moved.Size, page, 0); err != nil {
		t.Fatal(err)
	}
	g.await(touch1)
}

func TestForkEvent(t *testing.T) {
	g := newRig(t, allEvents, uffd.ReaderConfig{})
	r := g.shared(4)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, 0)
	var got byte
	done := async(func() (err error) { got, err = g.p.Fork(r.PageAddr(2)); return err })
	ev := g.next()
	if ev.Kind != uffd.KindFork || ev.Child <= 0 {
		t.Fatalf("event %+v, want a fork with a descriptor", ev)
	}
	child, err := uffd.Open(int(ev.Child))
	g.check(err)
	defer child.Close()
	cr, err := child.NewReader(uffd.ReaderConfig{})
	g.check(err)
	defer cr.Close()
	var buf [1]uffd.Event
	if n, err := cr.Wait(buf[:], patience); n != 1 || err != nil || buf[0].Addr != r.PageAddr(2) {
		t.Fatalf("fault of the forked child: %+v, %v", buf[0], err)
	}
	g.alias[2*page] = 77
	if n, err := child.Continue(r.PageAddr(2), page, 0); n != page || err != nil {
		t.Fatalf("Continue in the child: %d, %v", n, err)
	}
	g.await(done)
	if got != 77 {
		t.Errorf("the child read %d, want 77", got)
	}
}

func TestProcessDeath(t *testing.T) {
	g := newRig(t, 0, uffd.ReaderConfig{})
	pidfd, err := unix.PidfdOpen(g.p.Pid(), 0)
	g.check(err)
	defer unix.Close(pidfd)
	rd, err := g.u.NewReader(uffd.ReaderConfig{PIDFD: pidfd})
	g.check(err)
	defer rd.Close()
	r := g.shared(4)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, 0)
	g.fill(0, 4, 1)
	ended := async(func() error {
		var ev [4]uffd.Event
		if n, err := rd.Wait(ev[:], patience); !errors.Is(err, uffd.ErrGone) {
			return errors.Join(errors.New("want ErrGone"), err, errors.New(ev[:n+1][0].Kind.String()))
		}
		return nil
	})
	g.p.Kill()
	g.await(ended)
	if n, err := g.u.Continue(r.Addr, page, 0); n != 0 || !errors.Is(err, uffd.ErrGone) {
		t.Errorf("Continue in a dead process: %d, %v; want ErrGone", n, err)
	}
}

func TestPoison(t *testing.T) {
	g := newRig(t, uffd.FeaturePoison, uffd.ReaderConfig{})
	r := g.shared(4)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, uffd.CanPoison)
	done := touched(r, 1, false)
	g.next()
	if n, err := g.u.Poison(r.PageAddr(1), page, 0); n != page || err != nil {
		t.Fatalf("Poison: %d, %v", n, err)
	}
	if err := <-done; !errors.Is(err, touch.ErrDead) {
		t.Errorf("touch of a poisoned page: %v, want the process dead by SIGBUS", err)
	}
}
