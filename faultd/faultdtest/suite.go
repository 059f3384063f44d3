package faultdtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/transport"
)

// Env is memory under test and the process that uses it.
type Env struct {
	// Region has at least 64 pages, none of which exists yet.
	Region transport.Region
	Memory faultd.Memory
	// Touch reads the first word of a page in the process, or writes it back; it
	// returns when the access is done.
	Touch func(page uint64, write bool) error
	// Write fills a page in the process as [touch.Fill] does.
	Write func(page, seed uint64) error
	// Sum returns the [touch.Sum] of a page as the process reads it.
	Sum func(page uint64) (uint32, error)
}

// Factory makes memory and a process, which end with t or ctx.
type Factory func(t *testing.T, ctx context.Context) Env

// Run runs the suite. Each test gets memory of its own.
func Run(t *testing.T, make Factory) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"a fault is reported and served", faultIsServed},
		{"what is installed does not fault", installedDoesNotFault},
		{"a page is not installed over", installTwice},
		{"a zero page", zeroPage},
		{"zero keeps what exists", zeroKeeps},
		{"a wake-up without a page faults again", wakeFaultsAgain},
		{"discarded content is gone", discard},
		{"data is found", nextData},
		{"written content is shown", written},
		{"a reader is stopped", stopReader},
		{"each fault goes to one reader", twoReaders},
		{"release lets all go on", release},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(context.Background(), 20*time.Second, errors.New("the suite's deadline"))
			t.Cleanup(cancel)
			r := &rig{T: t, Env: make(t, ctx), ctx: ctx}
			c.run(r)
		})
	}
}

type rig struct {
	*testing.T
	Env
	ctx context.Context
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) pages(first uint64, count uint32) transport.Range {
	return transport.Range{Region: r.Region.ID, First: first, Count: count}
}

// events reads a reader in the background, until the test ends.
func (r *rig) events() <-chan faultd.Event {
	fr, err := r.Memory.Faults.NewReader()
	r.must(err)
	out, done := make(chan faultd.Event, 64), make(chan struct{})
	go func() {
		defer close(done)
		var buf [16]faultd.Event
		for {
			n, err := fr.Read(buf[:])
			if err != nil {
				if !errors.Is(err, faultd.ErrStopped) {
					r.Errorf("Read: %v", err)
				}
				return
			}
			for _, ev := range buf[:n] {
				out <- ev
			}
		}
	}()
	r.Cleanup(func() {
		fr.Stop()
		<-done
		r.must(fr.Close())
	})
	return out
}

// next returns the next event, which must be a fault of page.
func (r *rig) next(evs <-chan faultd.Event, page uint64) {
	r.Helper()
	select {
	case ev := <-evs:
		if ev.Kind != faultd.Fault || ev.Region != r.Region.ID || ev.Page != page || ev.Count != 1 {
			r.Fatalf("event %+v, want a fault of page %d of region %d", ev, page, r.Region.ID)
		}
	case <-r.ctx.Done():
		r.Fatalf("no fault of page %d: %v", page, context.Cause(r.ctx))
	}
}

// touching starts an access; its end is on the channel.
func (r *rig) touching(page uint64, write bool) <-chan error {
	c := make(chan error, 1)
	go func() { c <- r.Touch(page, write) }()
	return c
}

// install writes pages with the content of seed and shows them.
func (r *rig) install(first uint64, count uint32, seed uint64) {
	r.Helper()
	rng, dst := r.pages(first, count), make([][]byte, count)
	size := int(r.Region.PageSize)
	place := r.Memory.Place
	if place != nil {
		place.Place(rng, dst)
	} else {
		b, err := sysmem.MapAnonymous(int64(count) * int64(size))
		r.must(err)
		defer sysmem.Unmap(b)
		for i := range dst {
			dst[i] = b[i*size : (i+1)*size]
		}
	}
	for i, p := range dst {
		if len(p) != size {
			r.Fatalf("place of page %d has %d bytes", first+uint64(i), len(p))
		}
		touch.Fill(p, first+uint64(i), seed)
	}
	if place != nil {
		dst = nil
	}
	r.must(r.Memory.Install.Install(rng, dst))
	if place == nil {
		r.must(r.Memory.Install.Wake(rng))
	}
}

func (r *rig) check(page uint64, want uint32) {
	r.Helper()
	got, err := r.Sum(page)
	r.must(err)
	if got != want {
		r.Errorf("page %d has checksum %#x, want %#x", page, got, want)
	}
}

func (r *rig) sumOf(page, seed uint64) uint32 {
	b := make([]byte, r.Region.PageSize)
	touch.Fill(b, page, seed)
	return touch.Sum(b)
}

func (r *rig) zeroSum() uint32 { return touch.Sum(make([]byte, r.Region.PageSize)) }

func faultIsServed(r *rig) {
	evs := r.events()
	for i, page := range []uint64{0, 5, r.Region.Pages - 1} {
		done := r.touching(page, i == 1)
		r.next(evs, page)
		r.install(page, 1, 1)
		r.must(<-done)
		r.check(page, r.sumOf(page, 1))
	}
}

func installedDoesNotFault(r *rig) {
	evs := r.events()
	r.install(3, 40, 2)
	for p := uint64(3); p < 43; p++ {
		r.check(p, r.sumOf(p, 2))
	}
	select {
	case ev := <-evs:
		r.Errorf("an installed page faulted: %+v", ev)
	default:
	}
}

func installTwice(r *rig) {
	evs := r.events()
	r.install(7, 3, 3)
	r.must(r.Write(8, 99)) // the machine goes on with its page
	if r.Memory.Place != nil {
		r.must(r.Memory.Install.Install(r.pages(7, 3), nil))
	} else {
		r.install(7, 3, 4)
	}
	r.check(7, r.sumOf(7, 3))
	r.check(8, r.sumOf(8, 99))
	if len(evs) != 0 {
		r.Errorf("an installed page faulted: %+v", <-evs)
	}
}

func zeroPage(r *rig) {
	evs := r.events()
	for i, page := range []uint64{1, 9} {
		done := r.touching(page, i == 1)
		r.next(evs, page)
		r.must(r.Memory.Install.Zero(r.pages(page, 1)))
		r.must(<-done)
		r.check(page, r.zeroSum())
	}
}

func zeroKeeps(r *rig) {
	r.events()
	r.install(2, 1, 5)
	r.must(r.Write(2, 6))
	r.must(r.Memory.Install.Zero(r.pages(1, 3)))
	r.check(1, r.zeroSum())
	r.check(2, r.sumOf(2, 6))
	r.check(3, r.zeroSum())
}

func wakeFaultsAgain(r *rig) {
	evs := r.events()
	done := r.touching(4, false)
	r.next(evs, 4)
	for range 3 {
		r.must(r.Memory.Install.Wake(r.pages(0, 64)))
		r.next(evs, 4)
	}
	r.install(4, 1, 7)
	r.must(<-done)
}

func discard(r *rig) {
	place := r.Memory.Place
	if place == nil {
		return // nothing is written in place
	}
	r.events()
	dst := make([][]byte, 4)
	place.Place(r.pages(10, 4), dst)
	for _, p := range dst {
		touch.Fill(p, 1, 1)
	}
	r.must(place.Discard(r.pages(10, 4)))
	r.must(r.Memory.Install.Zero(r.pages(10, 4)))
	for p := uint64(10); p < 14; p++ {
		r.check(p, r.zeroSum())
	}
}

func nextData(r *rig) {
	place := r.Memory.Place
	if place == nil {
		return
	}
	if _, _, ok, err := place.NextData(r.Region.ID, 0); ok || err != nil {
		r.Fatalf("fresh memory has data (%v)", err)
	}
	dst := make([][]byte, 2)
	place.Place(r.pages(20, 2), dst)
	touch.Fill(dst[0], 1, 1)
	touch.Fill(dst[1], 1, 1)
	first, count, ok, err := place.NextData(r.Region.ID, 3)
	r.must(err)
	if !ok || first != 20 || count != 2 {
		r.Fatalf("data at %d+%d (%v), want 20+2", first, count, ok)
	}
	if _, _, ok, err := place.NextData(r.Region.ID, 22); ok || err != nil {
		r.Fatalf("data after the last (%v)", err)
	}
}

// written puts content behind pages by a call: it is not visible before it is
// installed, and a page outside is refused.
func written(r *rig) {
	w := r.Memory.Write
	if w == nil {
		return // pages are written in place
	}
	evs := r.events()
	const first, count = 30, 5
	size := int(r.Region.PageSize)
	stage, err := sysmem.MapAnonymous(count * int64(size))
	r.must(err)
	defer sysmem.Unmap(stage)
	src := make([][]byte, count)
	for i := range src {
		src[i] = stage[i*size : (i+1)*size]
		touch.Fill(src[i], first+uint64(i), 8)
	}
	done := r.touching(first+1, false)
	r.next(evs, first+1)
	r.must(w.Write(r.pages(first, count), src))
	select {
	case err := <-done:
		r.Fatalf("a page that was written and not installed was read (%v)", err)
	default:
	}
	r.must(r.Memory.Install.Install(r.pages(first, count), nil))
	r.must(<-done)
	for p := uint64(first); p < first+count; p++ {
		r.check(p, r.sumOf(p, 8))
	}
	if err := w.Write(r.pages(r.Region.Pages-1, count), src); err == nil {
		r.Error("pages past the region's end were written")
	}
	if err := w.Write(r.pages(first, count), src[:1]); err == nil {
		r.Error("five pages were written with the content of one")
	}
}

func stopReader(r *rig) {
	fr, err := r.Memory.Faults.NewReader()
	r.must(err)
	got := make(chan error, 1)
	go func() {
		_, err := fr.Read(make([]faultd.Event, 1))
		got <- err
	}()
	fr.Stop()
	select {
	case err := <-got:
		if !errors.Is(err, faultd.ErrStopped) {
			r.Errorf("Read after Stop: %v, want ErrStopped", err)
		}
	case <-r.ctx.Done():
		r.Fatal("Stop does not end Read")
	}
	if _, err := fr.Read(make([]faultd.Event, 1)); !errors.Is(err, faultd.ErrStopped) {
		r.Errorf("second Read after Stop: %v, want ErrStopped", err)
	}
	r.must(fr.Close())
}

func twoReaders(r *rig) {
	a, b := r.events(), r.events()
	const n = 32
	done := make(chan error, n)
	for p := range uint64(n) {
		go func() { done <- r.Touch(p, false) }()
	}
	seen := map[uint64]int{}
	for range n {
		var ev faultd.Event
		select {
		case ev = <-a:
		case ev = <-b:
		case <-r.ctx.Done():
			r.Fatalf("%d of %d faults were read: %v", len(seen), n, context.Cause(r.ctx))
		}
		if seen[ev.Page]++; seen[ev.Page] > 1 {
			r.Errorf("page %d was reported twice", ev.Page)
		}
		r.install(ev.Page, 1, 8)
	}
	for range n {
		r.must(<-done)
	}
}

func release(r *rig) {
	evs := r.events()
	done := r.touching(6, false)
	r.next(evs, 6)
	r.install(11, 1, 9)
	r.must(r.Memory.Faults.Release())
	r.must(<-done)
	r.check(6, r.zeroSum())
	r.check(7, r.zeroSum())
	r.check(11, r.sumOf(11, 9))
	if len(evs) != 0 {
		r.Errorf("released memory faulted: %+v", <-evs)
	}
}
