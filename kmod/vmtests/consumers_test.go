//go:build kmodvm

package vmtests

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

// Several consumers share a ring: each has a fault of its own while the others work
// on theirs, and no fault is for two of them or for none.
func TestSeveralConsumers(t *testing.T) {
	const pages, consumers, threads = 256, 4, 8
	o := newObject(t, pages+consumers, nil)
	mem := o.mmap(pages+consumers, true)
	d := o.attach(16)
	var got [pages + consumers]atomic.Int32
	var together sync.WaitGroup // until each has its first one
	together.Add(consumers)
	var all sync.WaitGroup
	var readers []*kmod.Reader
	for range consumers {
		r, err := kmod.NewReader(kmod.ReaderConfig{}, d.Daemon)
		must(t, err)
		t.Cleanup(r.Stop) // if the test fails below
		readers = append(readers, r)
		all.Go(func() {
			var buf [1]kmod.Fault
			for first := true; ; first = false {
				if _, err := r.Read(buf[:]); err != nil {
					wantErr(t, "read", err, kmod.ErrStopped)
					return
				}
				if first {
					together.Done()
					together.Wait()
				}
				if f := buf[0]; f.Flags&kmod.FaultAgain == 0 {
					got[f.Page].Add(1)
				}
				d.fillOnce(buf[0].Page, 9)
			}
		})
	}
	var peeks []<-chan error
	for k := range uint64(consumers) {
		peeks = append(peeks, peeking(mem, pages+k))
	}
	for _, done := range peeks {
		must(t, o.await(done))
	}
	p, err := touch.Start(o.ctx)
	must(t, err)
	defer p.Kill()
	fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	reg, err := p.MapShared(fd, pages*pageSize)
	must(t, err)
	_, err = reg.TouchAll(0, pages, false, threads)
	must(t, err)
	for _, r := range readers {
		r.Stop()
	}
	all.Wait()
	t.Cleanup(func() {
		for _, r := range readers {
			must(t, r.Close())
		}
	})
	for page := range got {
		if n := got[page].Load(); n != 1 {
			t.Errorf("page %d was reported to %d consumers", page, n)
		}
		o.check(mem, uint64(page), 9)
	}
}
