//go:build kmodvm

package vmtests

import (
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

func TestInfo(t *testing.T) {
	c, err := kmod.Open()
	must(t, err)
	defer c.Close()
	info, err := c.Info()
	must(t, err)
	huge := hugeSize
	if !kernelHasHuge() {
		huge = 0
	}
	if info.PageSize != pageSize || info.MaxRing != kmod.MaxRing || info.MaxObjects != 1024 || info.MaxBytes != 1<<44 || info.Objects != 0 || info.HugePageSize != huge {
		t.Errorf("info %+v", info)
	}
}

func TestObjectsAreListedAndGo(t *testing.T) {
	a := newObject(t, 10, nil)
	b := *a
	b.name = "second-one.x"
	path, err := a.c.Create(kmod.Config{Name: b.name, Bytes: 1 << 40, Mode: 0o640, UID: 11, GID: 22, Deadline: time.Second})
	must(t, err)
	list, err := a.c.List()
	must(t, err)
	if len(list) != 2 || list[0].Name != a.name || list[1].Name != b.name || list[0].Bytes != 10*pageSize ||
		list[1].Deadline != time.Second || list[0].State != kmod.New || list[0].ID == list[1].ID {
		t.Errorf("list %+v", list)
	}
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	if st.Mode != unix.S_IFCHR|0o640 || st.Uid != 11 || st.Gid != 22 {
		t.Errorf("node has mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	must(t, err)
	defer unix.Close(fd)
	if n, err := unix.Seek(fd, 0, unix.SEEK_END); n != 1<<40 || err != nil {
		t.Errorf("the end is at %d (%v)", n, err)
	}
	if _, err := unix.Read(fd, make([]byte, 1)); err != unix.EINVAL {
		t.Errorf("read: %v, want EINVAL", err)
	}
	must(t, a.c.Destroy(b.name))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the node of a destroyed object: %v", err)
	}
	if _, err := sysmem.MapShared(fd, 0, pageSize, true); !errors.Is(err, unix.ENXIO) {
		t.Errorf("map a destroyed object: %v", err)
	}
	must(t, func() error { _, err := a.c.Create(kmod.Config{Name: b.name, Bytes: pageSize}); return err }())
	must(t, a.c.Destroy(b.name))
}

func TestBadCreate(t *testing.T) {
	o := newObject(t, 1, nil)
	odd, large := error(unix.EINVAL), error(unix.EFBIG)
	if !kernelHasHuge() {
		odd, large = unix.EOPNOTSUPP, unix.EOPNOTSUPP
	}
	for _, c := range []struct {
		cfg  kmod.Config
		want error
	}{
		{kmod.Config{Name: o.name, Bytes: pageSize}, unix.EEXIST},
		{kmod.Config{Name: "", Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: strings.Repeat("x", 64), Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: ".", Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: "..", Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: "a/b", Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: "a!b", Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: "a b", Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: "a\xe4", Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: "a\x00b", Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: "-a", Bytes: pageSize}, unix.EINVAL},
		{kmod.Config{Name: "zero", Bytes: 0}, unix.EINVAL},
		{kmod.Config{Name: "odd", Bytes: pageSize + 1}, unix.EINVAL},
		{kmod.Config{Name: "huge", Bytes: 1<<44 + pageSize}, unix.EFBIG},
		{kmod.Config{Name: "half-huge", Bytes: 3 * hugeSize / 2, PageSize: hugeSize}, odd},
		{kmod.Config{Name: "two-pages", Bytes: hugeSize, PageSize: 2 * pageSize}, unix.EINVAL},
		{kmod.Config{Name: "gigantic", Bytes: 1 << 30, PageSize: 1 << 30}, unix.EINVAL},
		{kmod.Config{Name: "one-bit", Bytes: hugeSize, PageSize: 1}, unix.EINVAL},
		{kmod.Config{Name: "too-huge", Bytes: 1<<44 + hugeSize, PageSize: hugeSize}, large},
		{kmod.Config{Name: "mode", Bytes: pageSize, Mode: 0o4755}, unix.EINVAL},
		{kmod.Config{Name: "owner", Bytes: pageSize, UID: -1}, unix.EINVAL},
		{kmod.Config{Name: "late", Bytes: pageSize, Deadline: 2 * time.Hour}, unix.EINVAL},
		{kmod.Config{Name: "soon", Bytes: pageSize, Deadline: time.Microsecond}, unix.EINVAL},
	} {
		_, err := o.c.Create(c.cfg)
		wantErr(t, "create "+c.cfg.Name, err, c.want)
	}
	wantErr(t, "destroy nothing", o.c.Destroy("nothing"), unix.ENOENT)
	_, err := o.c.Stat("nothing")
	wantErr(t, "stat nothing", err, unix.ENOENT)
	if list, err := o.c.List(); len(list) != 1 || err != nil {
		t.Errorf("%d objects are left (%v), want 1", len(list), err)
	}
}

func TestBadAttach(t *testing.T) {
	o := newObject(t, 4, nil)
	for _, n := range []int{0, 8, 15, 17, 100, 1 << 17, -1} {
		_, err := o.c.Attach(o.name, n)
		wantErr(t, "attach", err, unix.EINVAL)
	}
	_, err := o.c.Attach("nothing", 16)
	wantErr(t, "attach to nothing", err, unix.ENOENT)
	d := o.attach(16)
	_, err = o.c.Attach(o.name, 16)
	wantErr(t, "second attach", err, unix.EBUSY)

	wantErr(t, "wake beyond the end", d.Wake(4, 1), unix.ERANGE)
	wantErr(t, "wake over the end", d.Wake(3, 2), unix.ERANGE)
	wantErr(t, "install over the end", d.Install(0, 5), unix.ERANGE)
	for _, m := range []struct {
		off, len int64
		write    bool
		want     error
	}{
		{0, pageSize, true, unix.EPERM},            // producer
		{3 << 40, pageSize, true, unix.EPERM},      // waiters
		{1 << 40, 2 * pageSize, true, unix.EINVAL}, // consumer has one page
		{0, 1 << 20, false, unix.EINVAL},
		{5 << 40, pageSize, false, unix.EINVAL},
		{pageSize, pageSize, false, unix.EINVAL},
	} {
		b, err := sysmem.MapShared(d.FD(), m.off, m.len, m.write)
		wantErr(t, "map the end", err, m.want)
		_ = sysmem.Unmap(b)
	}
	// What is mapped for reading stays so.
	b, err := sysmem.MapShared(d.FD(), 0, pageSize, false)
	must(t, err)
	wantErr(t, "mprotect the producer page", unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE), unix.EACCES)
	must(t, sysmem.Unmap(b))
	wantErr(t, "resize the alias", unix.Ftruncate(d.fd, pageSize), unix.EPERM)

	for nr := range uintptr(256) {
		if nr > 0x08 && nr != 0x10 {
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.FD()), 0xBD00|nr, 1); errno == 0 && nr != 0x13 && nr != 0x14 {
				t.Errorf("ioctl %#x of the daemon's end succeeds", nr)
			}
		}
	}
}

func TestUnreadableArguments(t *testing.T) {
	o := newObject(t, 4, nil)
	fd, err := unix.Open(kmod.ControlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	for _, nr := range []uintptr{2<<30 | 64<<16 | 0xBD00, 3<<30 | 136<<16 | 0xBD01, 1<<30 | 80<<16 | 0xBD02, 3<<30 | 168<<16 | 0xBD03,
		3<<30 | 168<<16 | 0xBD04, 3<<30 | 104<<16 | 0xBD05, 3<<30 | 80<<16 | 0xBD06, 1<<30 | 80<<16 | 0xBD07, 1<<30 | 80<<16 | 0xBD08} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), nr, 1); errno != unix.EFAULT {
			t.Errorf("ioctl %#x with an unreadable argument: %v", nr, errno)
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), 0xBD00, 1); errno != unix.ENOTTY {
		t.Errorf("unknown ioctl: %v, want ENOTTY", errno)
	}
	if s := o.state(); s != kmod.New {
		t.Errorf("state %v", s)
	}
}

func TestOnlyForWhoMay(t *testing.T) {
	o := newObject(t, 1, nil)
	errs := make(chan error, 2)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 1000, 1000, 1000); errno != 0 {
			errs <- errno
			errs <- errno
			return
		}
		for _, path := range []string{kmod.ControlPath, o.path} {
			_, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
			errs <- err
		}
	}()
	for range 2 {
		wantErr(t, "open as another user", <-errs, unix.EACCES)
	}
}

func TestBadMappings(t *testing.T) {
	o := newObject(t, 4, nil)
	fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Mmap(fd, 0, pageSize, unix.PROT_READ, unix.MAP_PRIVATE)
	wantErr(t, "private mapping", err, unix.EINVAL)
	_, err = unix.Mmap(fd, 0, 5*pageSize, unix.PROT_READ, unix.MAP_SHARED)
	wantErr(t, "mapping beyond the end", err, unix.EINVAL)
	_, err = unix.Mmap(fd, 4*pageSize, pageSize, unix.PROT_READ, unix.MAP_SHARED)
	wantErr(t, "mapping from the end", err, unix.EINVAL)
	// Many mappings, so that a count gone wrong shows.
	for range 50 {
		b, err := unix.Mmap(fd, pageSize, 3*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		must(t, unix.Munmap(b))
	}
	d := o.attach(16)
	d.fill(0, 4, 1)
	mem := o.mmap(4, true)
	o.check(mem, 3, 1)
}

func TestModuleInUse(t *testing.T) {
	wantErr(t, "unload with nothing open", unix.DeleteModule("nothing", unix.O_NONBLOCK), unix.ENOENT)
	o := newObject(t, 4, nil)
	mem := o.mmap(4, true)
	unload := func(what string) {
		t.Helper()
		wantErr(t, "unload with "+what, unix.DeleteModule("pagewarp", unix.O_NONBLOCK), unix.EAGAIN)
	}
	unload("an object")
	d := o.attach(16)
	d.fill(0, 1, 1)
	must(t, o.c.Destroy(o.name))
	must(t, o.c.Close())
	unload("a mapping and a daemon's end")
	d.close()
	unload("a mapping")
	o.check(mem, 0, 1)
	// newObject's cleanup wants them.
	var err error
	o.c, err = kmod.Open()
	must(t, err)
}

// Nothing is left behind: the module unloads, and loads again.
func TestUnloadAndReload(t *testing.T) {
	fd, err := unix.Open("/lib/pagewarp.ko", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	for range 3 {
		must(t, unix.DeleteModule("pagewarp", unix.O_NONBLOCK))
		if _, err := kmod.Open(); !errors.Is(err, kmod.ErrNoDevice) {
			t.Errorf("open without the module: %v", err)
		}
		_, err = unix.Seek(fd, 0, unix.SEEK_SET)
		must(t, err)
		must(t, unix.FinitModule(fd, "", 0))
		t.Run("loaded", func(t *testing.T) { // whose end takes all away
			o := newObject(t, 8, nil)
			d := o.attach(16)
			d.fill(3, 1, 1)
			o.check(o.mmap(8, true), 3, 1)
		})
	}
}

// Arguments at random, and good ones with a bit or two turned, on both kinds of
// descriptor: whatever the answer, the device goes on.
func TestRandomArguments(t *testing.T) {
	o := newObject(t, 64, nil)
	d := o.attach(16)
	fd, err := unix.Open(kmod.ControlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	rng := rand.New(rand.NewPCG(1, 2))
	calls := []struct {
		fd   int
		nr   uint32
		size int
	}{
		{fd, 3<<30 | 136<<16 | 0xBD01, 136}, {fd, 1<<30 | 80<<16 | 0xBD02, 80}, {fd, 3<<30 | 168<<16 | 0xBD03, 168},
		{fd, 3<<30 | 168<<16 | 0xBD04, 168}, {fd, 3<<30 | 104<<16 | 0xBD05, 104}, {fd, 3<<30 | 80<<16 | 0xBD06, 80},
		{fd, 1<<30 | 80<<16 | 0xBD07, 80}, {d.FD(), 3<<30 | 32<<16 | 0xBD12, 32}, {d.FD(), 0xBD13, 0},
	}
	good := map[string]bool{o.name: true}
	for i := range 3000 {
		c := calls[rng.IntN(len(calls))]
		arg := make([]byte, 256)
		if i%3 == 0 {
			for j := range arg {
				arg[j] = byte(rng.Uint32())
			}
		} else if c.fd == fd && c.nr&0xff != 2 && c.nr&0xff != 5 { // not this object's end, nor a second daemon
			copy(arg, o.name)
			for range rng.IntN(3) {
				arg[64+rng.IntN(c.size-64)] ^= 1 << rng.IntN(8)
			}
		} else {
			for range rng.IntN(4) {
				arg[rng.IntN(32)] ^= 1 << rng.IntN(8)
			}
		}
		ioctlBytes(c.fd, c.nr, arg)
	}
	list, err := o.c.List()
	must(t, err)
	for _, s := range list {
		if !good[s.Name] {
			must(t, o.c.Destroy(s.Name))
		}
	}
	if _, err := o.c.Stat(o.name); err != nil {
		t.Error(err)
	}
	mem := o.mmap(1, true)
	d.fill(0, 1, 1)
	o.check(mem, 0, 1)
}
