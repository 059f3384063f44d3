//go:build kmodvm

package vmtests

import (
	"os"
	"testing"

	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

// perHuge is how many pages of 4 KiB, in which the mappings are counted here, a page of
// an object of huge pages has.
const perHuge = hugeSize / pageSize

// kernelHasHuge tells whether the kernel was built with transparent huge pages.
func kernelHasHuge() bool {
	_, err := os.Stat("/sys/kernel/mm/transparent_hugepage")
	return err == nil
}

// newHugeObject makes an object of so many pages of 2 MiB, which goes with the test.
func newHugeObject(t testing.TB, pages uint64, change func(*kmod.Config)) *object {
	t.Helper()
	return newObject(t, pages*perHuge, func(c *kmod.Config) {
		c.PageSize = hugeSize
		if change != nil {
			change(c)
		}
	})
}

// A page of 2 MiB has one report, one bit and one wake-up, whichever of its parts is
// touched by how many, and is mapped by a huge page.
func TestHugeObject(t *testing.T) {
	const pages, threads = 4, 8
	o := newHugeObject(t, pages, nil)
	mem := o.mmap(pages*perHuge, true)
	if addressOf(mem)%hugeSize != 0 {
		t.Errorf("mapped at %#x, where no huge page can be", addressOf(mem))
	}
	d := o.attach(16)
	if d.Pages() != pages || d.PageSize() != hugeSize {
		t.Fatalf("%d pages of %d bytes, want %d of %d", d.Pages(), d.PageSize(), pages, hugeSize)
	}
	done := make(chan error, threads)
	for k := range uint64(threads) {
		go func() { _, err := peek(mem, perHuge+k*(perHuge-1)/(threads-1)); done <- err }()
	}
	if f := d.faults(o.ctx, 1)[0]; f.Page != 1 {
		t.Errorf("fault %+v, want one of page 1", f)
	}
	o.until("all threads wait", func() bool { st, err := o.c.Stat(o.name); must(t, err); return st.Faults >= threads })
	if !d.Waiting(1) || d.Waiting(0) || d.Waiting(2) {
		t.Error("it is not page 1 alone that is waited for")
	}
	d.fill(1, 1, 3)
	for range threads {
		must(t, o.await(done))
	}
	st, err := o.c.Stat(o.name)
	must(t, err)
	if st.Posted != 1 || st.Wakes != 1 || st.PageSize != hugeSize || st.Bytes != pages*hugeSize {
		t.Errorf("%+v, want one report and one wake-up of a page of 2 MiB", st)
	}
	for p := uint64(perHuge); p < 2*perHuge; p += 37 {
		o.check(mem, p, 3)
	}
	if n := smaps(t, mem, "ShmemPmdMapped:"); n != hugeSize || mapped(t, mem) != hugeSize {
		t.Errorf("%d bytes are mapped by huge pages of %d mapped, want %d", n, mapped(t, mem), hugeSize)
	}
	// The neighbours are missing still, on both sides.
	for _, at := range []uint64{perHuge - 1, 2 * perHuge} {
		done := peeking(mem, at)
		if f := d.faults(o.ctx, 1)[0]; f.Page != at/perHuge {
			t.Errorf("fault %+v, want one of page %d", f, at/perHuge)
		}
		d.fill(at/perHuge, 1, 4)
		must(t, o.await(done))
		o.check(mem, at, 4)
	}
	must(t, poke(mem, 2*perHuge+5, 9))
	o.check(mem, 2*perHuge+6, 4)
	if d.alias[2*hugeSize+5*pageSize] != 9 {
		t.Error("the alias does not have what was written")
	}
	if n := smaps(t, mem, "ShmemPmdMapped:"); n != 3*hugeSize {
		t.Errorf("%d bytes are mapped by huge pages after a write, want %d", n, 3*hugeSize)
	}
	must(t, d.Install(3, 1)) // reads as zero
	if b, err := peek(mem, 4*perHuge-1); err != nil || touch.Sum(b) != touch.Sum(make([]byte, pageSize)) {
		t.Errorf("a page that was not written does not read as zero (%v)", err)
	}
}

// Where the kernel has no huge page to give, the memory is of small ones, and all else
// is as it was. So it is for a mapping that does not begin at a page of the object.
func TestHugeObjectOfSmallPages(t *testing.T) {
	const knob = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
	const pages = 3
	must(t, os.WriteFile(knob, []byte("deny"), 0))
	t.Cleanup(func() { must(t, os.WriteFile(knob, []byte("never"), 0)) })
	o := newHugeObject(t, pages, nil)
	d := o.attach(16)
	mem := o.mmap(pages*perHuge, true)
	done := peeking(mem, perHuge-1)
	if f := d.faults(o.ctx, 1)[0]; f.Page != 0 {
		t.Errorf("fault %+v, want one of page 0", f)
	}
	d.fill(0, 1, 3)
	must(t, o.await(done))
	for p := uint64(0); p < perHuge; p += 51 {
		o.check(mem, p, 3)
	}
	if n := smaps(t, mem, "ShmemPmdMapped:"); n != 0 || shmemHuge(t) != 0 {
		t.Errorf("%d bytes are mapped by huge pages, %d KiB are in some, with none allowed", n, shmemHuge(t))
	}
	must(t, os.WriteFile(knob, []byte("never"), 0)) // for others, not for the device
	d.close()
	d = o.attach(16) // some kernels give huge pages by the alias's address, which they align now
	d.serve(3)
	o.check(mem, perHuge, 3) // fault-around ends where the resident pages do
	if d.Resident(2) || shmemHuge(t) != hugeSize>>10 {
		t.Errorf("resident beyond what was touched: %v; %d KiB in huge pages, want one page", d.Resident(2), shmemHuge(t))
	}
	fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	odd, err := unix.Mmap(fd, (perHuge+3)*pageSize, (perHuge+9)*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer func() { must(t, unix.Munmap(odd)) }()
	for _, at := range []uint64{0, perHuge - 4, perHuge - 3, perHuge + 8} {
		if b, err := peek(odd, at); err != nil || touchWord(b) != wordOf(perHuge+3+at, 3) {
			t.Errorf("page %d of a mapping from the middle holds something else (%v)", at, err)
		}
	}
}

// A machine's life: plain, reset, served, released, frozen, thawed, and again.
func TestHugeObjectIsServedAgain(t *testing.T) {
	const pages = 3
	o := newHugeObject(t, pages, func(c *kmod.Config) { c.Plain = true })
	mem := o.mmap(pages*perHuge, true)
	for round := range uint64(2) {
		for p := uint64(0); p < pages*perHuge; p += perHuge / 2 {
			must(t, poke(mem, p, 77))
		}
		must(t, o.c.Reset(o.name))
		d := o.attach(16)
		if d.alias[hugeSize] != 0 {
			t.Error("old content after a reset")
		}
		end := d.serve(round)
		for p := range uint64(pages) {
			o.check(mem, p*perHuge+300, round)
		}
		end()
		wantErr(t, "freeze", func() error { _, err := o.c.Freeze(o.name); return err }(), unix.EBUSY)
		must(t, d.Release())
		d.close()
		must(t, poke(mem, 5, 11))
		fd, err := o.c.Freeze(o.name)
		must(t, err)
		wantErr(t, "write to a frozen page", poke(mem, 5, 99), unix.EFAULT)
		b, err := peek(mem, 5)
		must(t, err)
		img := make([]byte, pageSize)
		_, err = unix.Pread(fd, img, 5*pageSize)
		must(t, err)
		if b[0] != 11 || touch.Sum(img) != touch.Sum(b) {
			t.Errorf("round %d: frozen memory begins with %d, its image with %d", round, b[0], img[0])
		}
		must(t, unix.Close(fd))
		o.check(mem, 2*perHuge, round)
		must(t, o.c.Thaw(o.name))
		must(t, poke(mem, 5, 12))
	}
}

func TestHugeObjectShrinks(t *testing.T) {
	o := newHugeObject(t, 4, nil)
	d := o.attach(16)
	mem := o.mmap(4*perHuge, true)
	d.fill(0, 3, 1)
	o.check(mem, 2*perHuge+1, 1)
	done := peeking(mem, 3*perHuge+1)
	d.faults(o.ctx, 1)
	for _, n := range []uint64{0, 3*hugeSize - pageSize, hugeSize / 2, 5 * hugeSize} {
		wantErr(t, "shrink", o.c.Shrink(o.name, n), unix.EINVAL)
	}
	must(t, o.c.Shrink(o.name, 2*hugeSize))
	wantErr(t, "who waited", o.await(done), unix.EFAULT)
	_, err := peek(mem, 2*perHuge+1)
	wantErr(t, "beyond the new end", err, unix.EFAULT)
	o.check(mem, 2*perHuge-1, 1)
	if st, err := o.c.Stat(o.name); st.Bytes != 2*hugeSize || err != nil || d.alias[2*hugeSize+pageSize] != 0 {
		t.Errorf("%d bytes after the shrink (%v), %d in the alias beyond", st.Bytes, err, d.alias[2*hugeSize+pageSize])
	}
}

// A process forks, moves and unmaps its mapping.
func TestHugeObjectForkMoveUnmap(t *testing.T) {
	const pages = 4
	o := newHugeObject(t, pages, nil)
	d := o.attach(16)
	d.serve(6)
	p, err := touch.Start(o.ctx)
	must(t, err)
	defer p.Close()
	fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	r, err := p.MapShared(fd, pages*hugeSize)
	must(t, err)
	must(t, unix.Close(fd))
	if _, err := r.Touch([]uint64{0, perHuge - 1}, false, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Fork(r.PageAddr(perHuge + 9)); err != nil {
		t.Fatal(err)
	}
	r, err = r.Remap()
	must(t, err)
	must(t, r.Unmap(2*perHuge+4, 2*perHuge-4)) // in the middle of a page
	if bad, err := r.Verify(0, 2*perHuge+4, 6); bad != 0 || err != nil {
		t.Errorf("%d bad pages (%v)", bad, err)
	}
	if !d.Resident(1) || !d.Resident(2) || d.Resident(3) {
		t.Error("the child's touch or one of half a page was not served, or an unmapped page was")
	}
}

// Huge pages go to the swap, in pieces, and come back without their daemon.
func TestHugeObjectIsSwapped(t *testing.T) {
	swapOn(t)
	const pages = 3
	o := newHugeObject(t, pages, nil)
	d := o.attach(16)
	d.fill(0, pages-1, 3)
	mem := o.mmap(pages*perHuge, true)
	for p := range uint64(pages - 1) {
		o.check(mem, p*perHuge, 3)
	}
	before, err := o.c.Stat(o.name)
	must(t, err)
	must(t, unix.Madvise(d.alias, unix.MADV_DONTNEED)) // pages that are mapped twice are left alone
	must(t, unix.Madvise(mem, unix.MADV_PAGEOUT))
	if n := swapped(t, mem); n < perHuge {
		t.Errorf("%d pages are in the swap of %d", n, (pages-1)*perHuge)
	}
	for p := uint64(0); p < (pages-1)*perHuge; p += 29 {
		o.check(mem, p, 3)
	}
	after, err := o.c.Stat(o.name)
	must(t, err)
	if after.Faults != before.Faults {
		t.Errorf("%d pages were reported as missing that were in the swap", after.Faults-before.Faults)
	}
	done := peeking(mem, pages*perHuge-1)
	if f := d.faults(o.ctx, 1)[0]; f.Page != pages-1 {
		t.Errorf("fault of page %d, want %d", f.Page, pages-1)
	}
	d.fill(pages-1, 1, 3)
	must(t, o.await(done))
}
