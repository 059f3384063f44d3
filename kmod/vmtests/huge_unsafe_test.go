//go:build kmodvm

package vmtests

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

const hugeSize = 2 << 20

// shmemHuge is the amount of shared memory in huge pages, in KiB.
func shmemHuge(t *testing.T) (kb int) {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "ShmemHugePages:") {
			_, err := fmt.Sscanf(line, "ShmemHugePages: %d kB", &kb)
			must(t, err)
		}
	}
	return kb
}

// allowHuge has the kernel make huge pages of all shared memory, until the test ends: also
// of objects of small pages on Linux 6.6 and later, which have none otherwise.
func allowHuge(t *testing.T) { setHuge(t, "force") }

func setHuge(t *testing.T, value string) {
	t.Helper()
	const knob = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
	must(t, os.WriteFile(knob, []byte(value), 0))
	t.Cleanup(func() { must(t, os.WriteFile(knob, []byte("never"), 0)) })
}

// hugeAreSafe tells whether khugepaged takes page tables away under the process's lock, so
// that objects of small pages may have huge pages: before Linux 6.6.
func hugeAreSafe(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	must(t, err)
	return major < 6 || major == 6 && minor < 6
}

// Objects of small pages get huge pages where the system makes some, by a store or by
// khugepaged, on kernels where that hides nothing; on others they get none.
func TestSmallPagesStaySmall(t *testing.T) {
	const pages = 2 * hugeSize / pageSize
	const khugepaged = "/sys/kernel/mm/transparent_hugepage/khugepaged/"
	set := func(name, value string) {
		before, err := os.ReadFile(khugepaged + name)
		must(t, err)
		must(t, os.WriteFile(khugepaged+name, []byte(value), 0))
		t.Cleanup(func() { must(t, os.WriteFile(khugepaged+name, before, 0)) })
	}
	scans := func() (n int) {
		text, err := os.ReadFile(khugepaged + "full_scans")
		must(t, err)
		_, err = fmt.Sscan(string(text), &n)
		must(t, err)
		return n
	}
	want := hugeAreSafe(t)
	o := newObject(t, pages, nil)
	d := o.attach(16)
	d.fill(0, pages/2, 1) // before anybody makes huge pages
	mem := o.mmapHuge()
	for p := uint64(0); p < pages/2; p += 37 {
		o.check(mem, p, 1)
	}
	if kb := shmemHuge(t); kb != 0 {
		t.Fatalf("%d KiB are in huge pages, with none allowed", kb)
	}
	setHuge(t, "always")
	set("scan_sleep_millisecs", "0")
	set("pages_to_scan", "100000")
	if want {
		o.until("khugepaged joins small pages", func() bool { return shmemHuge(t) > 0 })
	} else {
		begin := scans()
		o.until("khugepaged has looked at all memory", func() bool { return scans() >= begin+3 })
	}
	d.fill(pages/2, 1, 1)
	if kb := shmemHuge(t); kb >= 2*hugeSize>>10 != want || kb > 0 != want {
		t.Errorf("%d KiB are in huge pages; that both halves are is to be %v", shmemHuge(t), want)
	}
	o.check(mem, 5, 1)
	o.check(mem, pages/2, 1)
}

// Where the kernel backs the object with huge pages, a page that is missing is
// not mapped along with its resident neighbours.
func TestHugePagesHideNothingMissing(t *testing.T) {
	allowHuge(t)
	const pages = 2 * hugeSize / pageSize
	o := newObject(t, pages, nil)
	d := o.attach(16) // the alias of a shmem file is aligned by the kernel
	d.fill(0, 4, 1)
	d.fill(600, 4, 1)
	if shmemHuge(t) == 0 {
		t.Fatal("the kernel made no huge page, so that there is nothing to test")
	}
	mem := o.mmapHuge()
	o.check(mem, 1, 1)
	o.check(mem, 2, 1)
	must(t, poke(mem, 601, 9))
	for _, page := range []uint64{4, 100, 511, 605, 1023} {
		done := peeking(mem, page)
		if f := d.faults(o.ctx, 1)[0]; f.Page != page {
			t.Errorf("fault of page %d, want %d", f.Page, page)
		}
		d.fill(page, 1, 2)
		must(t, o.await(done))
		o.check(mem, page, 2)
	}
	o.check(mem, 3, 1)
	// Plain memory may be mapped by huge pages, and holds the same.
	must(t, d.Release())
	must(t, unix.Madvise(mem, unix.MADV_DONTNEED))
	o.check(mem, 100, 2)
	o.check(mem, 0, 1)
}

// The same with a daemon that serves whatever is asked for: a kernel that maps a huge
// page as a whole, upon a touch of one of its pages, has to ask for all of them.
func TestHugePagesAreServed(t *testing.T) {
	allowHuge(t)
	o := newObject(t, 2*hugeSize/pageSize, nil)
	d := o.attach(1024)
	d.fill(0, 4, 1)
	d.fill(600, 4, 1)
	if shmemHuge(t) == 0 {
		t.Fatal("the kernel made no huge page, so that there is nothing to test")
	}
	d.serve(2)
	mem := o.mmapHuge()
	for _, page := range []uint64{1, 4, 100, 511, 601, 605, 1023, 0, 700} {
		seed := uint64(2)
		if page < 4 || page >= 600 && page < 604 {
			seed = 1
		}
		o.check(mem, page, seed)
	}
}

// A huge page of which all pages are resident is mapped as one, without waiting for
// the object to become plain; its neighbour, in which one page is missing, is not.
func TestHugePagesAreMappedWhole(t *testing.T) {
	allowHuge(t)
	const pages = 2 * hugeSize / pageSize
	o := newObject(t, pages, nil)
	d := o.attach(16)
	d.fill(0, pages-1, 1)
	if shmemHuge(t) == 0 {
		t.Fatal("the kernel made no huge page, so that there is nothing to test")
	}
	mem := o.mmapHuge()
	for _, write := range []bool{false, true} {
		must(t, unix.Madvise(mem, unix.MADV_DONTNEED))
		if write {
			must(t, poke(mem, 7, 1))
			must(t, poke(mem, 700, 1))
		} else {
			o.check(mem, 7, 1)
			o.check(mem, 700, 1)
		}
		if huge := smaps(t, mem, "ShmemPmdMapped:"); huge != hugeSize {
			t.Errorf("after a touch (write: %v) of each half %d bytes are mapped by huge pages, want %d", write, huge, hugeSize)
		}
		if all := mapped(t, mem); all >= 2*hugeSize {
			t.Errorf("all of it is mapped (%d bytes), also what is missing", all)
		}
	}
	if s := o.state(); s != kmod.Served {
		t.Errorf("state %v", s)
	}
	o.check(mem, 511, 1)
	done := peeking(mem, pages-1)
	if f := d.faults(o.ctx, 1)[0]; f.Page != pages-1 {
		t.Errorf("fault %+v, want the page that is missing", f)
	}
	d.fill(pages-1, 1, 2)
	must(t, o.await(done))
	o.check(mem, pages-1, 2)
}

// A shrink into the middle of a huge page that cannot be split, since somebody holds on
// to a part of it: what is beyond the new end is not mapped along with the rest.
func TestShrinkWithinAHugePage(t *testing.T) {
	allowHuge(t)
	o := newObject(t, 2*hugeSize/pageSize, func(c *kmod.Config) { c.Plain = true })
	mem := o.mmapHuge()
	must(t, poke(mem, 3, 7))
	var pipe [2]int
	must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	defer func() { must(t, errors.Join(unix.Close(pipe[0]), unix.Close(pipe[1]))) }()
	part := unix.Iovec{Base: &mem[10*pageSize]}
	part.SetLen(pageSize)
	_, err := unix.Vmsplice(pipe[1], []unix.Iovec{part}, 0)
	must(t, err)
	must(t, o.c.Shrink(o.name, 100*pageSize))
	if shmemHuge(t) == 0 {
		t.Fatal("there is no huge page any more, so that there is nothing to test")
	}
	if b, err := peek(mem, 3); err != nil || b[0] != 7 {
		t.Errorf("a page before the new end begins with %v (%v), want 7", b[:1], err)
	}
	for _, at := range []uint64{100, 511, 512} {
		_, err := peek(mem, at)
		wantErr(t, "beyond the new end", err, unix.EFAULT)
		wantErr(t, "beyond the new end", poke(mem, at, 1), unix.EFAULT)
	}
	must(t, poke(mem, 99, 8))
}

// mmapAligned maps the first 4 MiB of the object at addresses that agree with
// their offsets modulo 2 MiB: no page table ends where a test does not expect it.
func (o *object) mmapAligned() []byte {
	t := o.t
	t.Helper()
	room, err := unix.Mmap(-1, 0, 3*hugeSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(room)) })
	skip := (hugeSize - addressOf(room)%hugeSize) % hugeSize
	mem := room[skip : skip+2*hugeSize]
	fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	// SAFETY: the address is within room, which is ours and unused.
	_, err = unix.MmapPtr(fd, 0, unsafe.Pointer(unsafe.SliceData(mem)), 2*hugeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED)
	must(t, err)
	must(t, unix.Close(fd))
	return mem
}

// mmapHuge is mmapAligned with huge pages advised, as QEMU does.
func (o *object) mmapHuge() []byte {
	o.t.Helper()
	mem := o.mmapAligned()
	must(o.t, unix.Madvise(mem, unix.MADV_HUGEPAGE))
	return mem
}
