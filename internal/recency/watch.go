package recency

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/inject"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

// Area is one mapping of the process, [Addr, Addr+Len) in bytes.
type Area struct{ Addr, Len uint64 }

// Method is how a watch finds out.
type Method string

// The methods, best first.
const (
	PagemapScan Method = "pagemap-scan"
	Pagemap     Method = "pagemap"
)

// Watch watches the memory of one process. It is not safe for concurrent use.
type Watch struct {
	pid     int
	areas   []Area
	method  Method
	fd      *uffd.FD // nil with Pagemap
	pagemap *os.File
	buf     []byte // off-heap: the kernel writes it
}

const bufBytes = 192 << 10 // 8192 results of PAGEMAP_SCAN, or the entries of 96 MiB

// Limits of what is done to the process.
const (
	// dropMost is how much memory has its entries dropped: for more of it they are
	// left, and a watch sees writes only. 4 GiB take some 0.1 s, in pieces.
	dropMost = 4 << 30
	// dropPiece is dropped in one stop of a thread, 1 to 2 ms.
	dropPiece = 64 << 20
)

// Start begins to watch. The areas must be aligned to the page size of their
// memory, shared, and may not overlap. When ctx is done it makes do with what has
// been dropped by then; [Pagemap] cannot, and fails. It fails as well where the
// process cannot be traced.
func Start(ctx context.Context, pid int, areas []Area) (*Watch, error) {
	return start(ctx, pid, areas, true)
}

// start with scan false uses the method of older kernels.
func start(ctx context.Context, pid int, areas []Area, scan bool) (_ *Watch, err error) {
	w := &Watch{pid: pid, areas: areas, method: Pagemap}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("watch the memory of process %d: %w", pid, err), w.Close())
		}
	}()
	if w.pagemap, err = os.Open("/proc/" + strconv.Itoa(pid) + "/pagemap"); err != nil {
		return nil, err
	}
	if w.buf, err = sysmem.MapAnonymous(bufBytes); err != nil {
		return nil, err
	}
	if scan && w.register() == nil {
		w.method = PagemapScan
	}
	done, err := w.drop(ctx)
	if err == nil || w.method == Pagemap {
		return w, err
	}
	// Entries that stay are armed, and only writes to their pages will be seen.
	for _, a := range w.areas {
		skip := min(done, a.Len)
		done -= skip
		if rest := (Area{a.Addr + skip, a.Len - skip}); rest.Len > 0 {
			if err := w.scan(rest, func(uint64, uint64) {}); err != nil {
				return nil, err
			}
		}
	}
	return w, nil
}

// register takes a userfaultfd of the process and registers the areas.
func (w *Watch) register() error {
	taken, err := inject.Userfaultfd(w.pid, inject.Options{})
	if err != nil {
		return err
	}
	if _, err = taken.FD.API(uffd.FeatureWPAsync | uffd.FeatureWPHugetlbfsShmem); err == nil {
		for _, a := range w.areas {
			if _, err = taken.FD.Register(a.Addr, a.Len, uffd.ModeWP); err != nil {
				break
			}
		}
	}
	if err == nil {
		// A kernel may have the one and not the other.
		err = w.scan(Area{w.areas[0].Addr, uint64(os.Getpagesize())}, func(uint64, uint64) {})
	}
	if err != nil {
		return errors.Join(err, taken.FD.Close())
	}
	w.fd = taken.FD
	return nil
}

// drop takes the entries of all areas away, piece by piece, and lets the process
// go on between two pieces for as long as one took. It returns how many bytes it
// came to.
func (w *Watch) drop(ctx context.Context) (done uint64, err error) {
	var total uint64
	for _, a := range w.areas {
		total += a.Len
	}
	if total > dropMost {
		return 0, fmt.Errorf("%d bytes of memory are more than may be dropped (%d)", total, uint64(dropMost))
	}
	for _, a := range w.areas {
		for at := uint64(0); at < a.Len; at += dropPiece {
			began := time.Now()
			n := min(dropPiece, a.Len-at)
			if _, err := inject.Syscall(w.pid, 0, unix.SYS_MADVISE, a.Addr+at, n, unix.MADV_DONTNEED); err != nil {
				return done, fmt.Errorf("madvise %#x+%#x: %w (EINVAL: the memory is locked)", a.Addr+at, n, err)
			}
			done += n
			select {
			case <-time.After(time.Since(began)):
			case <-ctx.Done():
				return done, context.Cause(ctx)
			}
		}
	}
	return done, nil
}

// Method says how the watch finds out.
func (w *Watch) Method() Method { return w.method }

// Sample calls yield for what was touched since the sample before, or Start: runs
// of bytes [offset, offset+length) of an area, in rising order.
func (w *Watch) Sample(yield func(area int, offset, length uint64)) error {
	for i, a := range w.areas {
		emit := func(start, end uint64) { yield(i, start-a.Addr, end-start) }
		var err error
		if w.fd != nil {
			err = w.scan(a, emit)
		} else {
			err = w.read(a, emit)
		}
		if err != nil {
			return fmt.Errorf("sample the memory of process %d: %w", w.pid, err)
		}
	}
	if w.fd == nil {
		_, err := w.drop(context.Background())
		return err
	}
	return nil
}

// read finds the entries that are there in /proc/PID/pagemap.
func (w *Watch) read(a Area, emit func(start, end uint64)) error {
	const present = 1 << 63
	size := uint64(os.Getpagesize())
	var start, end uint64 // of the run so far
	for at := a.Addr; at < a.Addr+a.Len; {
		n := min((a.Addr+a.Len-at)/size*8, uint64(len(w.buf)))
		got, err := w.pagemap.ReadAt(w.buf[:n], int64(at/size*8))
		if got < 8 {
			return fmt.Errorf("read pagemap at %#x: %w", at, err)
		}
		for _, e := range words(w.buf[:got]) {
			if e&present != 0 {
				if at != end {
					if end > start {
						emit(start, end)
					}
					start = at
				}
				end = at + size
			}
			at += size
		}
	}
	if end > start {
		emit(start, end)
	}
	return nil
}

// Close ends the watch; the process's memory is as it was.
func (w *Watch) Close() error {
	var err error
	if w.fd != nil {
		err = w.fd.Close()
		w.fd = nil
	}
	if w.pagemap != nil {
		err = errors.Join(err, w.pagemap.Close())
		w.pagemap = nil
	}
	err = errors.Join(err, sysmem.Unmap(w.buf))
	w.buf = nil
	return err
}
