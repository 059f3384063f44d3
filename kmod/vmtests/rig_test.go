//go:build kmodvm

package vmtests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/kmod"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const pageSize = 4096

// patience is how long what a test waits for may take.
var patience = 30 * time.Second

func TestMain(m *testing.M) {
	touch.Main()
	daemonMain()
	lockerMain()
	goleak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// object is one on which a test works.
type object struct {
	t    testing.TB
	c    *kmod.Control
	name string
	path string
	ctx  context.Context
}

// newObject makes an object that goes with the test.
func newObject(t testing.TB, pages uint64, change func(*kmod.Config)) *object {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errors.New("the test's deadline"))
	t.Cleanup(cancel)
	c, err := kmod.Open()
	must(t, err)
	o := &object{t: t, c: c, ctx: ctx}
	t.Cleanup(func() { must(t, o.c.Close()) }) // also where no object was made: it holds the module
	name := strings.NewReplacer("/", ".", " ", "_", "#", "-").Replace(t.Name())
	if len(name) > 50 {
		name = name[len(name)-50:]
		name = strings.TrimLeft(name, "._-")
	}
	cfg := kmod.Config{Name: name, Bytes: pages * pageSize, Mode: 0o600}
	if change != nil {
		change(&cfg)
	}
	o.name = name
	o.path, err = c.Create(cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := o.c.Destroy(name); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
	})
	return o
}

// mmap maps the node into this process. Touch it by system calls only: see pokes.
func (o *object) mmap(pages uint64, write bool) []byte {
	o.t.Helper()
	mode := unix.O_RDONLY
	if write {
		mode = unix.O_RDWR
	}
	fd, err := unix.Open(o.path, mode|unix.O_CLOEXEC, 0)
	must(o.t, err)
	defer unix.Close(fd)
	b, err := sysmem.MapShared(fd, 0, int64(pages*pageSize), write)
	must(o.t, err)
	o.t.Cleanup(func() { must(o.t, sysmem.Unmap(b)) })
	return b
}

// daemon is an end with its alias.
type daemon struct {
	*kmod.Daemon
	t     testing.TB
	fd    int
	alias []byte
	// claims has the pages that somebody writes: a page is written once.
	claims sync.Map
}

func (o *object) attach(entries int) *daemon {
	o.t.Helper()
	d, err := o.c.Attach(o.name, entries)
	must(o.t, err)
	dd := &daemon{Daemon: d, t: o.t}
	dd.fd, err = d.Alias()
	must(o.t, err)
	dd.alias, err = sysmem.MapShared(dd.fd, 0, int64(d.Pages())*int64(d.PageSize()), true)
	must(o.t, err)
	o.t.Cleanup(dd.close)
	return dd
}

// close detaches; it may be called twice.
func (d *daemon) close() {
	if d.Daemon == nil {
		return
	}
	must(d.t, errors.Join(sysmem.Unmap(d.alias), unix.Close(d.fd), d.Daemon.Close()))
	d.Daemon = nil
}

// fill writes pages of the object and makes them resident: each 4 KiB of them holds
// what touch.Fill makes of its own number.
func (d *daemon) fill(first, count, seed uint64) {
	d.t.Helper()
	per := uint64(d.PageSize() / pageSize)
	for p := first * per; p < (first+count)*per; p++ {
		touch.Fill(d.alias[p*pageSize:(p+1)*pageSize], p, seed)
	}
	// Under a destroy the object may be gone before its daemon has heard of it.
	if err := d.Install(first, count); err != nil && !errors.Is(err, kmod.ErrDestroyed) {
		d.t.Error(err)
	}
}

// faults reads n faults.
func (d *daemon) faults(ctx context.Context, n int) []kmod.Fault {
	d.t.Helper()
	r, err := kmod.NewReader(kmod.ReaderConfig{}, d.Daemon)
	must(d.t, err)
	stop := context.AfterFunc(ctx, r.Stop)
	defer func() { stop(); must(d.t, r.Close()) }()
	var all []kmod.Fault
	var buf [8]kmod.Fault
	for len(all) < n {
		k, err := r.Read(buf[:min(len(buf), n-len(all))])
		if err != nil {
			d.t.Fatalf("after %d of %d faults: %v: %v", len(all), n, err, context.Cause(ctx))
		}
		all = append(all, buf[:k]...)
	}
	return all
}

// serve installs every page that is touched until the test ends or stop is
// called.
func (d *daemon) serve(seed uint64) (stop func()) {
	r, err := kmod.NewReader(kmod.ReaderConfig{}, d.Daemon)
	must(d.t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var buf [16]kmod.Fault
		for {
			n, err := r.Read(buf[:])
			if err != nil {
				if !errors.Is(err, kmod.ErrStopped) && !errors.Is(err, kmod.ErrDestroyed) {
					d.t.Error(err)
				}
				return
			}
			for _, f := range buf[:n] {
				if d.Resident(f.Page) {
					if err := d.Wake(f.Page, 1); err != nil && !errors.Is(err, kmod.ErrDestroyed) {
						d.t.Error(err)
					}
					continue
				}
				d.fillOnce(f.Page, seed)
			}
		}
	}()
	var once bool
	stop = func() {
		if once {
			return
		}
		once = true
		r.Stop()
		<-done
		must(d.t, r.Close())
	}
	d.t.Cleanup(stop)
	return stop
}

// peek reads a page of a mapping by a system call, so that the goroutine that
// waits holds no P, and a SIGBUS is an EFAULT.
func peek(mem []byte, page uint64) ([]byte, error) {
	fd, err := unix.MemfdCreate("peek", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, mem[page*pageSize:(page+1)*pageSize]); err != nil {
		return nil, err
	}
	out := make([]byte, pageSize)
	_, err = unix.Pread(fd, out, 0)
	return out, err
}

// poke writes one byte into a page of a mapping by a system call.
func poke(mem []byte, page uint64, value byte) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if _, err := unix.Write(p[1], []byte{value}); err != nil {
		return err
	}
	_, err := unix.Read(p[0], mem[page*pageSize:page*pageSize+1])
	return err
}

// peeking peeks in the background.
func peeking(mem []byte, page uint64) <-chan error {
	c := make(chan error, 1)
	go func() {
		_, err := peek(mem, page)
		c <- err
	}()
	return c
}

func (o *object) await(c <-chan error) error {
	o.t.Helper()
	select {
	case err := <-c:
		return err
	case <-o.ctx.Done():
		o.t.Fatal(context.Cause(o.ctx))
		return nil
	}
}

// until waits for a condition that another thread or the kernel brings about.
func (o *object) until(what string, ok func() bool) {
	o.t.Helper()
	for !ok() {
		if o.ctx.Err() != nil {
			o.t.Fatalf("%s: %v", what, context.Cause(o.ctx))
		}
		time.Sleep(time.Millisecond)
	}
}

func (o *object) state() kmod.State {
	o.t.Helper()
	st, err := o.c.Stat(o.name)
	must(o.t, err)
	return st.State
}

func (o *object) check(mem []byte, page, seed uint64) {
	o.t.Helper()
	got, err := peek(mem, page)
	must(o.t, err)
	want := make([]byte, pageSize)
	touch.Fill(want, page, seed)
	if touch.Sum(got) != touch.Sum(want) {
		o.t.Errorf("page %d holds something else than it should", page)
	}
}

// mapped is how much of a mapping is in the page tables, in bytes.
func mapped(t testing.TB, mem []byte) int {
	t.Helper()
	return smaps(t, mem, "Rss:")
}

// smaps is a field of a mapping in /proc/self/smaps, in bytes.
func smaps(t testing.TB, mem []byte, field string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	must(t, err)
	want := fmt.Sprintf("%x-", addressOf(mem))
	found := false
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, want) {
			found = true
		}
		if rest, ok := strings.CutPrefix(line, field); ok && found {
			return number(t, rest) << 10
		}
	}
	t.Fatalf("no %s of a mapping at %s", field, want)
	return 0
}

// number reads "123 kB".
func number(t testing.TB, text string) (kb int) {
	t.Helper()
	_, err := fmt.Sscanf(text, "%d kB", &kb)
	must(t, err)
	return kb
}

// fillOnce writes a page unless another goroutine of the test does.
func (d *daemon) fillOnce(page, seed uint64) {
	if _, taken := d.claims.LoadOrStore(page, true); !taken {
		d.fill(page, 1, seed)
	}
}

func touchWord(page []byte) uint32 { return touch.Sum(page) }

func wordOf(page, seed uint64) uint32 {
	want := make([]byte, pageSize)
	touch.Fill(want, page, seed)
	return touch.Sum(want)
}
