//go:build kmodvm

package vmtests

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

// swapOn makes a RAM disk a swap device for the test.
func swapOn(t *testing.T) {
	t.Helper()
	const disk = "/dev/ram0" // of the module brd, 16 MiB
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	size, err := f.Seek(0, 2)
	must(t, err)
	// union swap_header of include/linux/swap.h.
	head := make([]byte, pageSize)
	binary.LittleEndian.PutUint32(head[1024:], 1) // version
	binary.LittleEndian.PutUint32(head[1028:], uint32(size/pageSize-1))
	copy(head[pageSize-10:], "SWAPSPACE2")
	_, err = f.WriteAt(head, 0)
	must(t, err)
	path, err := unix.BytePtrFromString(disk)
	must(t, err)
	must(t, swap(unix.SYS_SWAPON, path))
	t.Cleanup(func() { must(t, swap(unix.SYS_SWAPOFF, path)) })
}

// swapped is how much of a mapping is in the swap, in pages.
func swapped(t *testing.T, mem []byte) int {
	t.Helper()
	return smaps(t, mem, "Swap:") / pageSize
}

// Resident pages go to the swap and come back without their daemon; missing ones
// stay missing. So do those of plain memory.
func TestSwap(t *testing.T) {
	swapOn(t)
	const pages = 1024
	o := newObject(t, pages, nil)
	d := o.attach(16)
	d.fill(0, pages-1, 3)
	mem := o.mmap(pages, true)
	for p := range uint64(pages - 1) {
		o.check(mem, p, 3)
	}
	out := func() {
		t.Helper()
		// Pages that are mapped twice are left alone.
		must(t, unix.Madvise(d.alias, unix.MADV_DONTNEED))
		must(t, unix.Madvise(mem, unix.MADV_PAGEOUT))
		if n := swapped(t, mem); n < pages/2 {
			t.Errorf("%d of %d pages are in the swap", n, pages)
		}
	}
	before, err := o.c.Stat(o.name)
	must(t, err)
	out()
	for p := range uint64(pages - 1) {
		o.check(mem, p, 3)
	}
	after, err := o.c.Stat(o.name)
	must(t, err)
	if after.Faults != before.Faults {
		t.Errorf("%d pages were reported as missing that were in the swap", after.Faults-before.Faults)
	}
	done := peeking(mem, pages-1)
	if f := d.faults(o.ctx, 1)[0]; f.Page != pages-1 {
		t.Errorf("fault of page %d", f.Page)
	}
	d.fill(pages-1, 1, 3)
	must(t, o.await(done))
	out()
	// The daemon's alias finds what is in the swap, and so does the page server.
	want := bytes.Clone(d.alias[5*pageSize : 6*pageSize])
	if touchWord(want) != wordOf(5, 3) {
		t.Error("the alias does not find a page that was in the swap")
	}
	must(t, d.Release())
	out()
	fd, err := o.c.Freeze(o.name)
	must(t, err)
	defer unix.Close(fd)
	got := make([]byte, pages*pageSize)
	_, err = unix.Pread(fd, got, 0)
	must(t, err)
	for p := range uint64(pages) {
		if touchWord(got[p*pageSize:(p+1)*pageSize]) != wordOf(p, 3) {
			t.Fatalf("page %d of the frozen memory is not what it was before it was in the swap", p)
		}
	}
	must(t, o.c.Thaw(o.name))
	if s := o.state(); s != kmod.Plain {
		t.Errorf("state %v", s)
	}
}

// The memory is accounted as shared memory.
func TestAccounting(t *testing.T) {
	shmem := func() int {
		text, err := os.ReadFile("/proc/meminfo")
		must(t, err)
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "Shmem:"); ok {
				return number(t, rest)
			}
		}
		t.Fatal("no Shmem in /proc/meminfo")
		return 0
	}
	const pages = 4096
	before := shmem()
	o := newObject(t, pages, nil)
	d := o.attach(16)
	d.fill(0, pages, 1)
	// Other users of shared memory come and go; the object is 16 MiB.
	if got := shmem() - before; got < 12<<10 {
		t.Errorf("Shmem grew by %d KiB with an object of %d", got, pages*4)
	}
	d.close()
	must(t, o.c.Destroy(o.name))
	o.until("the memory is freed", func() bool { return shmem()-before < 4<<10 })
}
