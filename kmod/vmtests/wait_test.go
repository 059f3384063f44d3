//go:build kmodvm

package vmtests

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

// These are the touches that are not a thread's own: of KVM, mlock, ptrace. Each test
// is for objects of both page sizes; per is how many times 4 KiB a page has.
func bothSizes(t *testing.T, pages uint64, test func(t *testing.T, o *object, per uint64)) {
	t.Run("4K", func(t *testing.T) { test(t, newObject(t, pages, nil), 1) })
	t.Run("2M", func(t *testing.T) { test(t, newHugeObject(t, pages, nil), perHuge) })
}

// takeNoWait has the kernel take one page of 4 KiB for writing as KVM does when it may
// not sleep: 1, 0 if the page is missing, or an error.
func takeNoWait(t *testing.T, mem []byte, page uint64) int {
	t.Helper()
	const params = "/sys/module/pagewarp_gup/parameters/"
	must(t, os.WriteFile(params+"address", fmt.Appendf(nil, "%#x", uint64(addressOf(mem))+page*pageSize), 0))
	text, err := os.ReadFile(params + "result")
	must(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(t, err)
	return n
}

// A fault that may not sleep, as KVM's asynchronous ones, is reported and returns
// at once, whether there is a daemon or not; the page is there when it is taken again.
func TestNoWait(t *testing.T) {
	bothSizes(t, 4, func(t *testing.T, o *object, per uint64) {
		d := o.attach(16)
		mem := o.mmap(4*per, true)
		at := func(page uint64) uint64 { return page*per + per/3 }
		for range 3 {
			if got := takeNoWait(t, mem, at(3)); got != 0 {
				t.Errorf("taking a missing page: %d, want 0 pages", got)
			}
		}
		if per > 1 && takeNoWait(t, mem, 4*per-1) != 0 {
			t.Error("another part of a missing page was taken")
		}
		f := d.faults(o.ctx, 1)[0]
		if f.Page != 3 || f.Flags != kmod.FaultNoWait|kmod.FaultWrite {
			t.Errorf("fault %+v", f)
		}
		if st, _ := o.c.Stat(o.name); st.Posted != 1 {
			t.Errorf("%d entries for one page", st.Posted)
		}
		d.fill(3, 1, 1)
		if got := takeNoWait(t, mem, at(3)); got != 1 {
			t.Errorf("taking a resident page: %d, want 1 page", got)
		}
		o.check(mem, at(3), 1)

		d.close() // and nobody is there
		for range 2 {
			if got := takeNoWait(t, mem, at(1)); got != 0 {
				t.Errorf("taking a missing page without a daemon: %d, want 0 pages", got)
			}
		}
		if got := takeNoWait(t, mem, at(3)); got != 1 {
			t.Errorf("taking a resident page without a daemon: %d, want 1 page", got)
		}
		d = o.attach(16)
		if f := d.faults(o.ctx, 1)[0]; f.Page != 1 || f.Flags != kmod.FaultAgain {
			t.Errorf("fault %+v, want the page that was asked for while there was no daemon", f)
		}
		d.fill(1, 1, 2)
		if got := takeNoWait(t, mem, at(1)); got != 1 {
			t.Errorf("taking it: %d, want 1 page", got)
		}
		o.check(mem, 2*per-1, 2)
	})
}

// lockerMain is a process that maps an object and locks all of its memory; if this
// process was started as one it does not return. It is told to unlock by a line.
func lockerMain() {
	path, size, ok := strings.Cut(os.Getenv("KMOD_TEST_LOCKER"), ",")
	if !ok {
		return
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err == nil {
		err = lockAll(path, n)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func lockAll(path string, size int64) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if _, err := sysmem.MapShared(fd, 0, size, true); err != nil {
		return err
	}
	fmt.Println("mapped")
	if err := unix.Mlockall(unix.MCL_CURRENT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	fmt.Println("locked")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if err := unix.Munlockall(); err != nil {
		return fmt.Errorf("munlockall: %w", err)
	}
	fmt.Println("unlocked")
	return nil
}

// locker is a process of lockerMain's.
type locker struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.Writer
	lines *bufio.Scanner
}

func (o *object) locker(t *testing.T, size uint64) *locker {
	t.Helper()
	cmd := exec.CommandContext(o.ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("KMOD_TEST_LOCKER=%s,%d", o.path, size))
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	l := &locker{t: t, cmd: cmd, in: in, lines: bufio.NewScanner(out)}
	l.says("mapped")
	return l
}

func (l *locker) says(want string) {
	l.t.Helper()
	if !l.lines.Scan() || l.lines.Text() != want {
		l.t.Fatalf("the process that locks its memory says %q (%v), want %q", l.lines.Text(), l.lines.Err(), want)
	}
}

// mlock and mlockall wait until all pages are there, also while there is no daemon, when
// who waits can be killed; what is there is locked, and unlocked, without one.
func TestMlock(t *testing.T) {
	bothSizes(t, 4, func(t *testing.T, o *object, per uint64) {
		size := int(per * pageSize)
		mem := o.mmap(4*per, true)
		lock := func(b []byte) <-chan error {
			done := make(chan error, 1)
			go func() { done <- unix.Mlock(b) }()
			return done
		}
		part := o.mmap(4*per, true) // which falls into pieces by that
		d := o.attach(16)
		done := lock(part[size+size/2 : size+size/2+pageSize/2]) // of page 1
		if f := d.faults(o.ctx, 1)[0]; f.Page != 1 {
			t.Errorf("fault %+v, want page 1", f)
		}
		d.close()
		select {
		case err := <-done:
			t.Fatalf("mlock of a missing page has ended: %v", err)
		default:
		}
		d = o.attach(16)
		if f := d.faults(o.ctx, 1)[0]; f.Page != 1 || f.Flags != kmod.FaultAgain {
			t.Errorf("fault %+v, want page 1 again", f)
		}
		d.fill(1, 1, 4)
		must(t, o.await(done))
		must(t, unix.Munlock(part))
		must(t, unix.Madvise(part, unix.MADV_DONTNEED)) // of what is mapped twice a half is locked
		done = lock(mem)                                // all of it, one page after the other
		for range 3 {
			d.fill(d.faults(o.ctx, 1)[0].Page, 1, 4)
		}
		must(t, o.await(done))
		for p := range uint64(4) {
			if !d.Resident(p) {
				t.Errorf("page %d is not resident after mlock", p)
			}
		}
		d.close()
		for range 2 { // the second time without a daemon
			if n, all := smaps(t, mem, "Locked:"), mapped(t, mem); n != 4*size || all != 4*size {
				t.Errorf("%d bytes are locked of %d mapped, want %d", n, all, 4*size)
			}
			wantErr(t, "send locked pages to the swap", unix.Madvise(mem, unix.MADV_PAGEOUT), unix.EINVAL)
			must(t, unix.Munlock(mem))
			if n := smaps(t, mem, "Locked:"); n != 0 {
				t.Errorf("%d bytes are locked after munlock", n)
			}
			must(t, o.await(lock(mem)))
		}
		if n := smaps(t, mem, "ShmemPmdMapped:"); per > 1 && n != 4*size {
			t.Errorf("%d bytes are mapped by huge pages, want %d", n, 4*size)
		}
		must(t, unix.Munlock(mem))
		o.check(mem, 4*per-1, 4)
	})
}

func TestMlockall(t *testing.T) {
	bothSizes(t, 4, func(t *testing.T, o *object, per uint64) {
		waits := func() { // until a thread more does
			t.Helper()
			before, err := o.c.Stat(o.name)
			must(t, err)
			o.until("a process waits", func() bool { st, err := o.c.Stat(o.name); must(t, err); return st.Faults > before.Faults })
		}
		d := o.attach(16)
		d.fill(0, 3, 1)
		d.close()
		l := o.locker(t, 4*per*pageSize)
		waits() // for the last page
		must(t, l.cmd.Process.Kill())
		if err := l.cmd.Wait(); err == nil {
			t.Error("a process that was killed while it locked its memory has ended by itself")
		}
		l = o.locker(t, 4*per*pageSize)
		waits()
		d = o.attach(16)
		if f := d.faults(o.ctx, 1)[0]; f.Page != 3 {
			t.Errorf("fault %+v, want page 3", f)
		}
		d.fill(3, 1, 1)
		l.says("locked")
		d.close()
		_, err := fmt.Fprintln(l.in, "unlock")
		must(t, err)
		l.says("unlocked")
		must(t, l.cmd.Wait())
		l = o.locker(t, 4*per*pageSize) // all is resident, and nobody serves
		l.says("locked")
		_, err = fmt.Fprintln(l.in, "unlock")
		must(t, err)
		l.says("unlocked")
		must(t, l.cmd.Wait())
	})
}

// /proc/PID/mem and ptrace wait for a page, which comes once there is a daemon, and
// cross from one page into the next.
func TestPtraceWaits(t *testing.T) {
	bothSizes(t, 4, func(t *testing.T, o *object, per uint64) {
		d := o.attach(16)
		d.fill(0, 1, 9)
		p, err := touch.Start(o.ctx)
		must(t, err)
		defer p.Close()
		fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		must(t, err)
		r, err := p.MapShared(fd, int64(4*per*pageSize))
		must(t, err)
		must(t, unix.Close(fd))
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", p.Pid()), os.O_RDWR, 0)
		must(t, err)
		defer f.Close()

		got := make([]byte, 2*pageSize)
		done := make(chan error, 1)
		go func() { _, err := f.ReadAt(got, int64(r.PageAddr(per-1))); done <- err }()
		if f := d.faults(o.ctx, 1)[0]; f.Page != 1 || f.Flags&kmod.FaultWrite != 0 {
			t.Errorf("fault %+v, want one of page 1, which is read", f)
		}
		d.close()
		d = o.attach(16)
		d.fill(1, 1, 9)
		must(t, o.await(done))
		for k := range uint64(2) {
			if touch.Sum(got[k*pageSize:(k+1)*pageSize]) != wordOf(per-1+k, 9) {
				t.Errorf("/proc/PID/mem has read something else of page %d", k)
			}
		}
		for d.Ring().Read(make([]kmod.Fault, 4)) > 0 { // page 1, for the new daemon
		}
		go func() { _, err := f.WriteAt([]byte{77}, int64(r.PageAddr(2*per))); done <- err }()
		if f := d.faults(o.ctx, 1)[0]; f.Page != 2 || f.Flags&kmod.FaultWrite == 0 {
			t.Errorf("fault %+v, want one of page 2, which is written", f)
		}
		d.fill(2, 1, 9)
		must(t, o.await(done))
		if b := d.alias[2*per*pageSize]; b != 77 {
			t.Errorf("the alias has %d of a page that was written by /proc/PID/mem, want 77", b)
		}

		word := make([]byte, 8)
		go func() { done <- peekData(p.Pid(), uintptr(r.PageAddr(4*per-1)), word) }()
		if f := d.faults(o.ctx, 1)[0]; f.Page != 3 {
			t.Errorf("fault %+v, want one of page 3", f)
		}
		d.fill(3, 1, 9)
		must(t, o.await(done))
		want := make([]byte, pageSize)
		touch.Fill(want, 4*per-1, 9)
		if string(word) != string(want[:8]) {
			t.Errorf("ptrace has read %x, want %x", word, want[:8])
		}
	})
}

// peekData reads a word of a process as a debugger does.
func peekData(pid int, addr uintptr, word []byte) error {
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceAttach(pid); err != nil {
		return fmt.Errorf("ptrace attach: %w", err)
	}
	var st unix.WaitStatus
	if _, err := unix.Wait4(pid, &st, unix.WALL, nil); err != nil || !st.Stopped() {
		return fmt.Errorf("wait for a traced process: %#x: %w", st, err)
	}
	_, err := unix.PtracePeekData(pid, addr, word)
	return errors.Join(err, unix.PtraceDetach(pid))
}
