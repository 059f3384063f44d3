//go:build kmodvm

package vmtests

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

func TestFaultIsServed(t *testing.T) {
	o := newObject(t, 64, nil)
	d := o.attach(16)
	mem := o.mmap(64, true)
	done := peeking(mem, 7)
	f := d.faults(o.ctx, 1)[0]
	if f.Page != 7 || f.Flags != 0 || f.TID == 0 || f.Time == 0 {
		t.Errorf("fault %+v", f)
	}
	if !d.Waiting(7) || d.Waiting(6) {
		t.Error("the waiter bits are wrong")
	}
	d.fill(7, 1, 3)
	must(t, o.await(done))
	o.check(mem, 7, 3)
	if d.Waiting(7) {
		t.Error("the waiter bit stays")
	}
	go func() { done2 <- poke(mem, 9, 1) }()
	if f := d.faults(o.ctx, 1)[0]; f.Page != 9 || f.Flags != kmod.FaultWrite {
		t.Errorf("fault of a write: %+v", f)
	}
	must(t, d.Install(9, 1))
	must(t, <-done2)
	if b := d.alias[9*pageSize]; b != 1 {
		t.Errorf("the alias has %d, want what was written, 1", b)
	}
}

var done2 = make(chan error, 1)

// Many threads on one page make one entry, and one wake-up lets all go on.
func TestOneEntryForManyThreads(t *testing.T) {
	o := newObject(t, 8, nil)
	d := o.attach(16)
	mem := o.mmap(8, true)
	done := make(chan error, 16)
	for range cap(done) {
		go func() { _, err := peek(mem, 3); done <- err }()
	}
	d.faults(o.ctx, 1)
	o.until("16 faults", func() bool {
		st, err := o.c.Stat(o.name)
		must(t, err)
		return st.Faults >= 16
	})
	d.fill(3, 1, 1)
	for range cap(done) {
		must(t, o.await(done))
	}
	if st, _ := o.c.Stat(o.name); st.Posted != 1 || st.Wakes != 1 {
		t.Errorf("%+v, want one entry and one wake", st)
	}
}

// The ring has room for 16 of 200 faults: all are delivered.
func TestOverflowLosesNothing(t *testing.T) {
	const n = 200
	o := newObject(t, n, nil)
	d := o.attach(16)
	mem := o.mmap(n, true)
	done := make(chan error, n)
	for p := range uint64(n) {
		go func() { _, err := peek(mem, p); done <- err }()
	}
	o.until("all faults", func() bool {
		st, err := o.c.Stat(o.name)
		must(t, err)
		return st.Posted == 16 && st.Overflows >= n-16
	})
	if !d.Ring().Pending() || d.Ring().Overflows() != n-16 {
		t.Errorf("pending %v, %d overflows, want %d", d.Ring().Pending(), d.Ring().Overflows(), n-16)
	}
	seen := map[uint64]bool{}
	for len(seen) < n {
		for _, f := range d.faults(o.ctx, 1) {
			seen[f.Page] = true
			d.fill(f.Page, 1, 5)
		}
	}
	for range n {
		must(t, o.await(done))
	}
	if d.Ring().Pending() {
		t.Error("still pending")
	}
	for p := range uint64(n) {
		o.check(mem, p, 5)
	}
}

// Neighbours that are resident are mapped along, others are not.
func TestFaultAround(t *testing.T) {
	o := newObject(t, 1024, nil)
	d := o.attach(16)
	d.fill(0, 6, 1)
	d.fill(7, 500, 1)
	copy(d.alias[6*pageSize:], "not yet") // in memory, not resident
	// The window is 16 pages, aligned by address.
	mem := o.mmapAligned()
	o.check(mem, 0, 1) // the first touch makes the page table
	o.check(mem, 3, 1)
	before := mapped(t, mem)
	if before < 4*pageSize || before > 6*pageSize {
		t.Errorf("%d bytes are mapped after a touch of page 3, want 4 to 6 pages of those before the gap", before)
	}
	o.check(mem, 9, 1)
	if got := mapped(t, mem); got < before+3*pageSize {
		t.Errorf("%d bytes are mapped after a touch of page 9, %d before: no neighbours", got, before)
	}
	done := peeking(mem, 6)
	if f := d.faults(o.ctx, 1)[0]; f.Page != 6 {
		t.Errorf("fault of page %d, want 6", f.Page)
	}
	d.fill(6, 1, 2)
	must(t, o.await(done))
	o.check(mem, 6, 2)
}

func TestReleasedIsPlainMemory(t *testing.T) {
	o := newObject(t, 16, nil)
	d := o.attach(16)
	mem := o.mmap(16, true)
	done := peeking(mem, 2)
	d.faults(o.ctx, 1)
	d.fill(1, 1, 1)
	must(t, d.Release())
	must(t, o.await(done))
	d.close()
	if s := o.state(); s != kmod.Plain {
		t.Errorf("state %v", s)
	}
	o.check(mem, 1, 1)
	must(t, poke(mem, 15, 7))
	if b, err := peek(mem, 15); err != nil || b[0] != 7 || b[1] != 0 {
		t.Errorf("page 15 begins with %v (%v)", b[:2], err)
	}
}

// The memory can be opened for reading while its user goes on writing.
func TestOpenMemory(t *testing.T) {
	o := newObject(t, 8, nil)
	d := o.attach(16)
	_, err := o.c.OpenMemory(o.name)
	wantErr(t, "open memory that is not complete", err, unix.EBUSY)
	d.fill(3, 1, 1)
	must(t, d.Release())
	fd, err := o.c.OpenMemory(o.name)
	must(t, err)
	defer unix.Close(fd)
	if s := o.state(); s != kmod.Plain {
		t.Errorf("state %v", s)
	}
	mem := o.mmap(8, true)
	must(t, poke(mem, 5, 77))
	got := make([]byte, 8*pageSize)
	_, err = unix.Pread(fd, got, 0)
	must(t, err)
	if got[5*pageSize] != 77 || touch.Sum(got[3*pageSize:4*pageSize]) != wordOf(3, 1) {
		t.Error("the memory that was opened is not what is mapped")
	}
	if _, err := unix.Pwrite(fd, []byte{1}, 0); err != unix.EBADF {
		t.Errorf("write to memory that is open for reading: %v", err)
	}
	_, err = o.c.OpenMemory("nobody")
	wantErr(t, "open the memory of no object", err, unix.ENOENT)
}

// A node is known for what it is by its device number, under any name.
func TestObjectOf(t *testing.T) {
	o := newObject(t, 8, nil)
	link := filepath.Join(t.TempDir(), "ram")
	must(t, os.Symlink(o.path, link))
	for path, want := range map[string]string{o.path: o.name, link: o.name, "/dev/null": "", "/proc/self/maps": "", kmod.ControlPath: ""} {
		if got, err := kmod.ObjectOf(path); got != want || err != nil {
			t.Errorf("%s is object %q (%v), want %q", path, got, err, want)
		}
	}
	if _, err := kmod.ObjectOf(o.path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a node that is not there: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	o := newObject(t, 16, func(c *kmod.Config) { c.Plain = true })
	mem := o.mmap(16, true)
	for p := range uint64(8) {
		must(t, poke(mem, p, byte(p+1)))
	}
	fd, err := o.c.Freeze(o.name)
	must(t, err)
	defer unix.Close(fd)
	if s := o.state(); s != kmod.Frozen {
		t.Errorf("state %v", s)
	}
	for p := range uint64(16) {
		wantErr(t, "write to a frozen page", poke(mem, p, 99), unix.EFAULT)
		b, err := peek(mem, p)
		must(t, err)
		var img [1]byte
		_, err = unix.Pread(fd, img[:], int64(p*pageSize))
		must(t, err)
		if want := byte((p + 1) * (1 - p/8)); b[0] != want || img[0] != want {
			t.Errorf("page %d: %d in the mapping, %d in the image, want %d", p, b[0], img[0], want)
		}
	}
	_, err = unix.Pwrite(fd, []byte{1}, 0)
	wantErr(t, "write to the image", err, unix.EBADF)
	_, err = unix.Mmap(fd, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	wantErr(t, "map the image for writing", err, unix.EACCES)
	wfd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	_, err = unix.Mmap(wfd, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	wantErr(t, "map frozen memory for writing", err, unix.EROFS)
	must(t, unix.Close(wfd))
	wantErr(t, "shrink frozen memory", o.c.Shrink(o.name, pageSize), unix.EROFS)
	must(t, o.c.Thaw(o.name))
	wantErr(t, "thaw twice", o.c.Thaw(o.name), unix.EINVAL)
	must(t, poke(mem, 3, 50))
	if b, _ := peek(mem, 3); b[0] != 50 {
		t.Errorf("after the thaw page 3 begins with %d", b[0])
	}
}

func TestOnlyPlainMemoryFreezes(t *testing.T) {
	o := newObject(t, 16, nil)
	_, err := o.c.Freeze(o.name)
	wantErr(t, "freeze", err, unix.EBUSY)
}

// Writers race with a freeze: what the image holds afterwards stays.
func TestFreezeUnderWriters(t *testing.T) {
	const pages = 64
	o := newObject(t, pages, func(c *kmod.Config) { c.Plain = true })
	mem := o.mmap(pages, true)
	for round := range 20 {
		done := make(chan error, 4)
		for k := range cap(done) {
			go func() {
				for i := uint64(0); ; i++ {
					if err := poke(mem, (i*7+uint64(k)*13)%pages, byte(i+uint64(round))); err != nil {
						done <- err
						return
					}
				}
			}()
		}
		fd, err := o.c.Freeze(o.name)
		must(t, err)
		before, after := make([]byte, pages*pageSize), make([]byte, pages*pageSize)
		_, err = unix.Pread(fd, before, 0)
		must(t, err)
		for range cap(done) {
			wantErr(t, "a writer", o.await(done), unix.EFAULT)
		}
		_, err = unix.Pread(fd, after, 0)
		must(t, err)
		must(t, unix.Close(fd))
		if string(before) != string(after) {
			t.Fatal("frozen memory has changed")
		}
		must(t, o.c.Thaw(o.name))
	}
}

func TestShrink(t *testing.T) {
	o := newObject(t, 32, nil)
	d := o.attach(16)
	mem := o.mmap(32, true)
	d.fill(0, 31, 1)
	o.check(mem, 10, 1)
	o.check(mem, 30, 1)
	done := peeking(mem, 31)
	d.faults(o.ctx, 1)
	for _, n := range []uint64{0, 100, 33 * pageSize} {
		wantErr(t, "shrink", o.c.Shrink(o.name, n), unix.EINVAL)
	}
	must(t, o.c.Shrink(o.name, 20*pageSize))
	wantErr(t, "who waited", o.await(done), unix.EFAULT)
	_, err := peek(mem, 30)
	wantErr(t, "beyond the new end", err, unix.EFAULT)
	wantErr(t, "write beyond the new end", poke(mem, 20, 1), unix.EFAULT)
	o.check(mem, 10, 1)
	if d.alias[30*pageSize] != 0 {
		t.Error("the alias has content beyond the new end")
	}
	if st, _ := o.c.Stat(o.name); st.Bytes != 20*pageSize {
		t.Errorf("%d bytes after the shrink", st.Bytes)
	}
	must(t, o.c.Shrink(o.name, 20*pageSize))
}

func TestAdvice(t *testing.T) {
	o := newObject(t, 8, nil)
	d := o.attach(16)
	d.fill(0, 8, 1)
	mem := o.mmap(8, true)
	o.check(mem, 0, 1)
	must(t, unix.Madvise(mem, unix.MADV_DONTNEED))
	o.check(mem, 0, 1)
	must(t, unix.Madvise(mem[:pageSize], unix.MADV_REMOVE))
	if b, err := peek(mem, 0); err != nil || touch.Sum(b) != touch.Sum(make([]byte, pageSize)) {
		t.Errorf("a removed page does not read as zero (%v)", err)
	}
	o.check(mem, 1, 1)
}

// A process forks, moves and unmaps its mapping.
func TestForkMoveUnmap(t *testing.T) {
	const pages = 32
	o := newObject(t, pages, nil)
	d := o.attach(16)
	d.serve(6)
	p, err := touch.Start(o.ctx)
	must(t, err)
	defer p.Close()
	fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	r, err := p.MapShared(fd, pages*pageSize)
	must(t, err)
	must(t, unix.Close(fd))
	if _, err := r.TouchAll(0, 4, false, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Fork(r.PageAddr(9)); err != nil {
		t.Fatal(err)
	}
	r, err = r.Remap()
	must(t, err)
	must(t, r.Unmap(30, 2))
	if bad, err := r.Verify(0, 30, 6); bad != 0 || err != nil {
		t.Errorf("%d bad pages (%v)", bad, err)
	}
	if !d.Resident(9) || d.Resident(31) {
		t.Error("the child's touch was not served, or an unmapped page was")
	}
}

// A thread that waits dies of a SIGKILL.
func TestWaitingProcessIsKilled(t *testing.T) {
	o := newObject(t, 8, nil)
	d := o.attach(16)
	p, err := touch.Start(o.ctx)
	must(t, err)
	fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	r, err := p.MapShared(fd, 8*pageSize)
	must(t, err)
	must(t, unix.Close(fd))
	done := make(chan error, 1)
	go func() { _, err := r.Touch([]uint64{1}, false, 1); done <- err }()
	d.faults(o.ctx, 1)
	p.Kill()
	wantErr(t, "the touch", o.await(done), touch.ErrDead)
	o.until("the mapping is gone", func() bool { return o.c.Destroy(o.name) == nil })
}

// Memory that a VMM has used is empty after a reset, also while threads touch it.
func TestReset(t *testing.T) {
	const pages = 64
	o := newObject(t, pages, func(c *kmod.Config) { c.Plain = true })
	mem := o.mmap(pages, true)
	for p := range uint64(pages) {
		must(t, poke(mem, p, 1))
	}
	for round := range uint64(10) {
		done := make(chan error, 3)
		for k := range uint64(cap(done)) {
			go func() { // ends when a page holds what the new daemon brought
				for i := k; ; i++ {
					b, err := peek(mem, i*5%pages)
					if err != nil || b[0] != 1 {
						done <- err
						return
					}
				}
			}()
		}
		must(t, o.c.Reset(o.name))
		if s := o.state(); s != kmod.New {
			t.Fatalf("state %v after a reset", s)
		}
		wantErr(t, "second reset", o.c.Reset(o.name), unix.EBUSY)
		d := o.attach(16)
		wantErr(t, "reset with a daemon", o.c.Reset(o.name), unix.EBUSY)
		for p := range uint64(pages) {
			if d.alias[p*pageSize] != 0 {
				t.Fatalf("round %d: page %d has its old content", round, p)
			}
		}
		o.until("all threads wait", func() bool { st, err := o.c.Stat(o.name); must(t, err); return st.Faults >= 3*(round+1) })
		end := d.serve(round + 7)
		for range cap(done) {
			must(t, o.await(done))
		}
		for p := range uint64(pages) {
			o.check(mem, p, round+7)
		}
		end()
		must(t, d.Release())
		d.close()
		for p := range uint64(pages) {
			must(t, poke(mem, p, 1))
		}
	}
	wantErr(t, "reset nothing", o.c.Reset("nothing"), unix.ENOENT)
}
