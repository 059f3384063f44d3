package floor

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

const pageSize = 4096

// guest is a touch process with memory that is registered with a userfaultfd.
type guest struct {
	proc   *touch.Proc
	region *touch.Region
	u      *uffd.FD
}

// newGuest maps pages in a new touch process, of a shared file that is filled
// already, or of private memory, and registers them.
func newGuest(ctx context.Context, pages int, shared bool) (g *guest, err error) {
	g = &guest{}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.proc, err = touch.Start(ctx); err != nil {
		return g, err
	}
	size := int64(pages) * pageSize
	mode := uffd.ModeMissing
	if shared {
		mode |= uffd.ModeMinor
		if g.region, err = mapFilled(g.proc, size); err != nil {
			return g, err
		}
	} else if g.region, err = g.proc.MapPrivate(size); err != nil {
		return g, err
	}
	fd, err := g.proc.Userfaultfd()
	if err != nil {
		return g, err
	}
	if g.u, err = uffd.Open(fd); err != nil {
		unix.Close(fd)
		return g, err
	}
	want := uffd.Feature(0)
	if shared {
		want = uffd.FeatureMissingShmem | uffd.FeatureMinorShmem
	}
	if _, err = g.u.API(want); err != nil {
		return g, err
	}
	_, err = g.u.Register(g.region.Addr, g.region.Size, mode)
	return g, err
}

// mapFilled maps a file in p whose every page has been written.
func mapFilled(p *touch.Proc, size int64) (*touch.Region, error) {
	fd, err := sysmem.CreateMemfd("floor-guest", size, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b, err := sysmem.MapShared(fd, 0, size, true)
	if err != nil {
		return nil, err
	}
	defer sysmem.Unmap(b)
	for i := 0; i < len(b); i += pageSize {
		touch.Fill(b[i:i+pageSize], uint64(i/pageSize), 1)
	}
	return p.MapShared(fd, size)
}

func (g *guest) close() {
	if g.proc != nil {
		g.proc.Kill()
	}
	if g.u != nil {
		// Our descriptor; nothing depends on the outcome.
		_ = g.u.Close()
	}
}

// LocalFault measures count page faults of one thread, at random pages, each
// served by another process with one UFFDIO_CONTINUE. Two thread wake-ups and
// one ioctl: nothing that serves a fault from another process can be faster.
func LocalFault(ctx context.Context, cpus CPUs, count int) ([]time.Duration, error) {
	warm := count / 10
	var g *guest
	err := cpus.AtDestination(func() (err error) {
		g, err = newGuest(ctx, count+warm+1, true)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("local fault floor: %w", err)
	}
	defer g.close()
	fd, err := unix.FcntlInt(uintptr(g.u.Fd()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("local fault floor: %w", err)
	}
	last := uint64(count + warm)
	var server *child
	err = cpus.AtDestination(func() (err error) {
		server, err = start(ctx, task{Role: "fault-server", Last: g.region.PageAddr(last)}, os.NewFile(uintptr(fd), "uffd"))
		return err
	})
	if err != nil {
		return nil, err
	}
	pages := make([]uint64, last, last+1)
	for i, p := range rand.Perm(int(last)) {
		pages[i] = uint64(p)
	}
	ns, err := g.region.Touch(append(pages, last), false, 1)
	if err != nil {
		server.stop()
		return nil, fmt.Errorf("local fault floor: %w", err)
	}
	if _, err := server.wait(time.Nanosecond); err != nil {
		return nil, err
	}
	return durations(ns[warm:last]), nil
}

func durations(ns []uint32) []time.Duration {
	ds := make([]time.Duration, len(ns))
	for i, n := range ns {
		ds[i] = time.Duration(n)
	}
	return ds
}

// faultServer answers faults until the page that ends it.
func faultServer(t *task) ([]uint32, error) {
	u, err := uffd.Open(3)
	if err != nil {
		return nil, err
	}
	// struct uffd_msg of linux/userfaultfd.h: the event in byte 0, the address
	// of a page fault in bytes 16 to 23.
	var msg [32]byte
	for {
		if err := readFull(3, msg[:]); err != nil {
			return nil, fmt.Errorf("read userfaultfd: %w", err)
		}
		addr := binary.LittleEndian.Uint64(msg[16:]) &^ (pageSize - 1)
		if _, err := u.Continue(addr, pageSize, 0); err != nil && err != uffd.ErrExists {
			return nil, err
		}
		if addr == t.Last {
			return nil, nil
		}
	}
}

// InstallCosts are the costs of the ioctls that install a page, one at a time
// and per page of a batch of 512 (2 MiB).
type InstallCosts struct {
	Continue, ContinueBatch, Copy, CopyBatch []time.Duration
}

// Installs measures count single installs and as many batches as count/64 of
// each kind, in the memory of another process that waits for none of it.
func Installs(ctx context.Context, count int) (InstallCosts, error) {
	const batch = 512
	batches := max(count/64, 1)
	var c InstallCosts
	src, err := sysmem.MapAnonymous(batch * pageSize)
	if err != nil {
		return c, err
	}
	defer sysmem.Unmap(src)
	for i := 0; i < len(src); i += pageSize {
		touch.Fill(src[i:i+pageSize], uint64(i/pageSize), 2)
	}
	for _, shared := range []bool{true, false} {
		g, err := newGuest(ctx, count+batches*batch, shared)
		if err != nil {
			return c, fmt.Errorf("install floor: %w", err)
		}
		install := func(addr, length uint64) (err error) {
			if shared {
				_, err = g.u.Continue(addr, length, 0)
			} else {
				_, err = g.u.Copy(addr, addressOf(src), length, 0)
			}
			return err
		}
		one, many, err := installEach(g, count, batches, batch, install)
		g.close()
		if err != nil {
			return c, fmt.Errorf("install floor: %w", err)
		}
		if shared {
			c.Continue, c.ContinueBatch = one, many
		} else {
			c.Copy, c.CopyBatch = one, many
		}
	}
	return c, nil
}

func installEach(g *guest, count, batches, batch int, install func(addr, length uint64) error) (one, many []time.Duration, err error) {
	one, many = make([]time.Duration, count), make([]time.Duration, batches)
	for i := range one {
		t0 := time.Now()
		if err := install(g.region.PageAddr(uint64(i)), pageSize); err != nil {
			return nil, nil, err
		}
		one[i] = time.Since(t0)
	}
	for i := range many {
		t0 := time.Now()
		if err := install(g.region.PageAddr(uint64(count+i*batch)), uint64(batch)*pageSize); err != nil {
			return nil, nil, err
		}
		many[i] = time.Since(t0) / time.Duration(batch)
	}
	return one, many, nil
}
