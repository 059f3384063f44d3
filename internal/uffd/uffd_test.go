package uffd_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

const page = 4096

// patience bounds every wait for something that comes within microseconds.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	touch.Main()
	goleak.VerifyTestMain(m)
}

// rig is a touch process with a userfaultfd of its own, read by us.
type rig struct {
	t     *testing.T
	p     *touch.Proc
	u     *uffd.FD
	r     *uffd.Reader
	fd    int    // the shared file
	alias []byte // our mapping of it
}

func newRig(t *testing.T, features uffd.Feature, cfg uffd.ReaderConfig) *rig {
	t.Helper()
	g := &rig{t: t, fd: -1}
	var err error
	g.p, err = touch.Start(t.Context())
	g.check(err)
	t.Cleanup(g.p.Kill)
	fd, err := g.p.Userfaultfd()
	g.check(err)
	g.u, err = uffd.Open(fd)
	g.check(err)
	t.Cleanup(func() { g.u.Close() })
	_, err = g.u.API(features)
	g.check(err)
	g.r, err = g.u.NewReader(cfg)
	g.check(err)
	t.Cleanup(func() { g.r.Close() })
	return g
}

func (g *rig) check(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// shared maps pages of a new file in the process and here.
func (g *rig) shared(pages uint64) *touch.Region {
	g.t.Helper()
	var err error
	size := int64(pages * page)
	g.fd, err = sysmem.CreateMemfd("uffd-test", size, 0)
	g.check(err)
	g.t.Cleanup(func() { unix.Close(g.fd) })
	g.alias, err = sysmem.MapShared(g.fd, 0, size, true)
	g.check(err)
	g.t.Cleanup(func() { sysmem.Unmap(g.alias) })
	r, err := g.p.MapShared(g.fd, size)
	g.check(err)
	return r
}

func (g *rig) register(r *touch.Region, mode uffd.Mode, want uffd.Ioctls) {
	g.t.Helper()
	can, err := g.u.Register(r.Addr, r.Size, mode)
	g.check(err)
	if !can.Has(want) {
		g.t.Fatalf("range ioctls %#x lack some of %#x", can, want)
	}
}

// next returns the next event, or fails.
func (g *rig) next() uffd.Event {
	g.t.Helper()
	var ev [1]uffd.Event
	n, err := g.r.Wait(ev[:], patience)
	if err != nil || n != 1 {
		g.t.Fatalf("no event: %d, %v", n, err)
	}
	return ev[0]
}

// fill writes the content of pages [first, first+n) through the alias.
func (g *rig) fill(first, n, seed uint64) {
	for i := first; i < first+n; i++ {
		touch.Fill(g.alias[i*page:][:page], i, seed)
	}
}

// async runs f in the background, as it may wait for a fault.
func async(f func() error) <-chan error {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	return ch
}

func (g *rig) await(ch <-chan error) {
	g.t.Helper()
	select {
	case err := <-ch:
		g.check(err)
	case <-time.After(patience):
		g.t.Fatal("the touch process is still waiting")
	}
}

// touched touches one page in the background.
func touched(r *touch.Region, n uint64, write bool) <-chan error {
	return async(func() error { _, err := r.Touch([]uint64{n}, write, 1); return err })
}

func TestProbe(t *testing.T) {
	s, err := uffd.Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("features: %s", s.Features)
	if !s.Features.Has(uffd.FeatureMissingShmem | uffd.FeatureMinorShmem) {
		t.Errorf("this kernel lacks missing or minor faults of shared memory, has %s", s.Features)
	}
	if got := (uffd.FeatureThreadID | 1<<40).String(); got != "thread-id,bit40" {
		t.Errorf("features print as %q", got)
	}
}

func TestHandshake(t *testing.T) {
	u, err := uffd.Create(uffd.CloseOnExec | uffd.NonBlock)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.API(1 << 50); err == nil || errors.Is(err, uffd.ErrHandshakeDone) || !strings.Contains(err.Error(), "bit50") {
		t.Errorf("handshake for a feature that does not exist: %v", err)
	}
	if _, err := u.API(uffd.FeatureThreadID); err != nil {
		t.Fatal(err)
	}
	if _, err := u.API(uffd.FeatureThreadID); !errors.Is(err, uffd.ErrHandshakeDone) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("second handshake: %v, want ErrHandshakeDone", err)
	}
}

func TestCreateByDevice(t *testing.T) {
	u, err := uffd.CreateByDevice(uffd.CloseOnExec | uffd.NonBlock)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if f, err := u.API(0); err != nil || f == 0 {
		t.Errorf("handshake: %s, %v", f, err)
	}
}

func TestOpenRefusesOthers(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := uffd.Open(fd); err == nil || !strings.Contains(err.Error(), "eventfd") {
		t.Errorf("adopted an eventfd: %v", err)
	}
	if _, err := uffd.Open(-1); err == nil {
		t.Error("adopted descriptor -1")
	}
}

func TestSharedContinue(t *testing.T) {
	const pages, seed = 512, 99
	g := newRig(t, uffd.FeatureThreadID, uffd.ReaderConfig{})
	r := g.shared(pages)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, uffd.CanContinue|uffd.CanZeroPage|uffd.CanWake|uffd.CanCopy)

	// A page that is nowhere is a missing fault.
	done := touched(r, 7, true)
	ev := g.next()
	if ev.Kind != uffd.KindFault || ev.Addr != r.PageAddr(7) || ev.Flags != uffd.FaultWrite || ev.Thread == 0 {
		t.Fatalf("event %+v, want a missing write fault of page 7 with its thread", ev)
	}
	if n, err := g.u.Continue(r.PageAddr(7), page, 0); n != 0 || !errors.Is(err, uffd.ErrNoPage) {
		t.Errorf("Continue of a hole: %d, %v; want ErrNoPage", n, err)
	}
	g.fill(7, 1, seed)
	if n, err := g.u.Continue(r.PageAddr(7), page, 0); n != page || err != nil {
		t.Fatalf("Continue: %d, %v", n, err)
	}
	g.await(done)

	// One that is in the file is a minor fault.
	g.fill(0, 7, seed)
	g.fill(8, 300-8, seed)
	done = touched(r, 8, false)
	if ev = g.next(); ev.Kind != uffd.KindFault || ev.Flags != uffd.FaultMinor || ev.Addr != r.PageAddr(8) {
		t.Fatalf("event %+v, want a minor fault of page 8", ev)
	}
	// The plain batch stops at page 7, and says so.
	if n, err := g.u.Continue(r.Addr, 300*page, uffd.DontWake); n != 7*page || !errors.Is(err, uffd.ErrExists) {
		t.Errorf("Continue up to a mapped page: %d pages, %v; want 7, ErrExists", n/page, err)
	}
	ins, skip, err := g.u.ContinueRange(r.Addr, 300*page, page, 0)
	if err != nil || ins != 292*page || skip != 8*page {
		t.Errorf("ContinueRange: %d installed, %d skipped, %v; want 292 and 8", ins/page, skip/page, err)
	}
	g.await(done)

	// Holes become zero pages; a page in the file is not one.
	done = touched(r, 400, false)
	g.next()
	g.fill(450, 1, seed)
	ins, skip, err = g.u.ZeroRange(r.PageAddr(300), 212*page, page, 0)
	if err != nil || ins != 211*page || skip != page {
		t.Errorf("ZeroRange: %d installed, %d skipped, %v; want 211 and 1", ins/page, skip/page, err)
	}
	g.await(done)
	if n, err := g.u.Continue(r.PageAddr(450), page, 0); n != page || err != nil {
		t.Errorf("Continue of the page that was no hole: %d, %v", n, err)
	}
	if bad, err := r.Verify(0, 300, seed); err != nil || bad != 0 {
		t.Errorf("%d bad pages, %v", bad, err)
	}
	zero := touch.Sum(make([]byte, page))
	sums, err := r.Sums(300, 212)
	g.check(err)
	for i, s := range sums {
		if (s == zero) == (i == 150) {
			t.Errorf("page %d has checksum %#x", 300+i, s)
		}
	}
}

// TestContinueWakesSkipped: a page gets mapped without a wake while someone
// waits on it; only the wake of ContinueRange for skipped pages lets him go on.
func TestContinueWakesSkipped(t *testing.T) {
	g := newRig(t, 0, uffd.ReaderConfig{})
	r := g.shared(8)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, uffd.CanContinue)
	done := touched(r, 4, false)
	g.next()
	g.fill(0, 8, 1)
	if _, err := g.u.Continue(r.PageAddr(2), 4*page, uffd.DontWake); err != nil {
		t.Fatal(err)
	}
	ins, skip, err := g.u.ContinueRange(r.Addr, 8*page, page, 0)
	if err != nil || ins != 4*page || skip != 4*page {
		t.Fatalf("ContinueRange: %d, %d, %v; want 4 pages each", ins/page, skip/page, err)
	}
	g.await(done)
}

func TestPrivateCopy(t *testing.T) {
	const pages, seed = 64, 5
	g := newRig(t, 0, uffd.ReaderConfig{})
	r, err := g.p.MapPrivate(pages * page)
	g.check(err)
	g.register(r, uffd.ModeMissing, uffd.CanCopy|uffd.CanZeroPage)
	staging, err := sysmem.MapAnonymous(pages * page)
	g.check(err)
	defer sysmem.Unmap(staging)
	for i := range uint64(pages) {
		touch.Fill(staging[i*page:][:page], i, seed)
	}
	src := address(staging)

	done := touched(r, 9, false)
	if ev := g.next(); ev.Addr != r.PageAddr(9) || ev.Flags != 0 {
		t.Fatalf("event %+v, want a read fault of page 9", ev)
	}
	if n, err := g.u.Copy(r.PageAddr(9), src+9*page, page, 0); n != page || err != nil {
		t.Fatalf("Copy: %d, %v", n, err)
	}
	g.await(done)
	if n, err := g.u.Copy(r.Addr, src, 32*page, 0); n != 9*page || !errors.Is(err, unix.EEXIST) {
		t.Errorf("Copy up to an existing page: %d pages, %v; want 9, EEXIST", n/page, err)
	}
	ins, skip, err := g.u.CopyRange(r.Addr, src, 32*page, page, 0)
	if err != nil || ins != 22*page || skip != 10*page {
		t.Errorf("CopyRange: %d, %d pages, %v; want 22 and 10", ins/page, skip/page, err)
	}
	ins, skip, err = g.u.ZeroRange(r.PageAddr(30), 34*page, page, 0)
	if err != nil || ins != 32*page || skip != 2*page {
		t.Errorf("ZeroRange: %d, %d pages, %v; want 32 and 2", ins/page, skip/page, err)
	}
	if bad, err := r.Verify(0, 32, seed); err != nil || bad != 0 {
		t.Errorf("%d bad pages, %v", bad, err)
	}
	sums, err := r.Sums(32, 32)
	g.check(err)
	for i, s := range sums {
		if s != touch.Sum(make([]byte, page)) {
			t.Errorf("page %d is not zero", 32+i)
		}
	}
	if _, err := g.u.Copy(r.Addr+r.Size, src, page, 0); !errors.Is(err, uffd.ErrNoRange) {
		t.Errorf("Copy beyond the range: %v, want ErrNoRange", err)
	}
	if _, err := g.u.Copy(r.Addr+1, src, page, 0); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "copy to") {
		t.Errorf("unaligned Copy: %v, want EINVAL with the address", err)
	}
}

func TestUnregisterWakes(t *testing.T) {
	g := newRig(t, 0, uffd.ReaderConfig{})
	r := g.shared(4)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, 0)
	done := touched(r, 1, true)
	g.next()
	g.check(g.u.Unregister(r.Addr, r.Size))
	g.await(done)
}

func TestWriteProtect(t *testing.T) {
	g := newRig(t, uffd.FeaturePagefaultFlagWP|uffd.FeatureWPHugetlbfsShmem, uffd.ReaderConfig{})
	r := g.shared(4)
	g.fill(0, 4, 1)
	_, err := r.TouchAll(0, 4, true, 1)
	g.check(err)
	g.register(r, uffd.ModeWP, uffd.CanWriteProtect)
	g.check(g.u.WriteProtect(r.Addr, r.Size, true))
	_, err = r.TouchAll(0, 4, false, 1)
	g.check(err)
	done := touched(r, 2, true)
	if ev := g.next(); ev.Flags != uffd.FaultWP|uffd.FaultWrite || ev.Addr != r.PageAddr(2) {
		t.Fatalf("event %+v, want a write-protect fault of page 2", ev)
	}
	g.check(g.u.WriteProtect(r.PageAddr(2), page, false))
	g.await(done)
}

func TestReaderStop(t *testing.T) {
	for _, spin := range []time.Duration{0, time.Millisecond} {
		g := newRig(t, 0, uffd.ReaderConfig{Spin: spin})
		ended := async(func() error {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var ev [uffd.Batch]uffd.Event
			_, err := g.r.ReadEvents(ev[:])
			if !errors.Is(err, uffd.ErrStopped) {
				return errors.Join(errors.New("want ErrStopped"), err)
			}
			return nil
		})
		g.r.Stop()
		g.await(ended)
		if _, err := g.r.Wait(make([]uffd.Event, 1), 0); !errors.Is(err, uffd.ErrStopped) {
			t.Errorf("read after Stop: %v", err)
		}
	}
}

func TestReaderTimeout(t *testing.T) {
	g := newRig(t, 0, uffd.ReaderConfig{})
	if n, err := g.r.Wait(make([]uffd.Event, 1), time.Millisecond); n != 0 || !errors.Is(err, uffd.ErrTimeout) {
		t.Errorf("Wait: %d, %v; want ErrTimeout", n, err)
	}
	if n, err := g.r.TryRead(make([]uffd.Event, 1)); n != 0 || err != nil {
		t.Errorf("TryRead: %d, %v; want nothing", n, err)
	}
	if _, err := g.r.ReadEvents(nil); err == nil {
		t.Error("read into no buffer succeeded")
	}
}

func TestReadBatchAllocatesNothing(t *testing.T) {
	const pages = 64
	g := newRig(t, 0, uffd.ReaderConfig{})
	r := g.shared(pages)
	g.register(r, uffd.ModeMissing|uffd.ModeMinor, uffd.CanContinue)
	g.fill(0, pages, 3)
	done := async(func() error { _, err := r.TouchAll(0, pages, false, 16); return err })
	var ev [uffd.Batch]uffd.Event
	served, goal, most := 0, 0, 0
	allocs := testing.AllocsPerRun(1, func() {
		// The warm-up run of AllocsPerRun serves the first half of the pages.
		for goal += pages / 2; served < goal; {
			n, err := g.r.Wait(ev[:], patience)
			if err != nil {
				panic(err)
			}
			for _, e := range ev[:n] {
				if _, _, err := g.u.ContinueRange(e.Addr, page, page, 0); err != nil {
					panic(err)
				}
			}
			served += n
			most = max(most, n)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for %d faults", allocs, pages/2)
	}
	// A thread that was interrupted in its fault reports it twice, so that the
	// count may be full before the pages are.
	_, _, err := g.u.ContinueRange(r.Addr, r.Size, page, 0)
	g.check(err)
	g.await(done)
	t.Logf("%d faults served, at most %d a read", served, most)
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := g.u.ContinueRange(r.Addr, r.Size, page, 0); err != nil {
			panic(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a range of existing pages", n)
	}
}
