package touch

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

// Main is the touch process, if this process was started as one, and then never
// returns; else it returns at once.
func Main() {
	if os.Getenv(envMark) == "" {
		return
	}
	c, err := PacketConn(3)
	if err != nil {
		fmt.Fprintln(os.Stderr, "touch process:", err)
		os.Exit(2)
	}
	var out sync.Mutex // one writer at a time
	for {
		var r request
		fd, err := ReceivePacket(c, &r)
		if err != nil {
			os.Exit(0) // the other side has gone
		}
		// Each in its own goroutine, as any may stay in a fault.
		go func() {
			rep, ret, err := serve(&r, fd)
			rep.ID = r.ID
			if err != nil {
				rep.Err = err.Error()
			}
			if fd >= 0 {
				unix.Close(fd)
			}
			out.Lock()
			defer out.Unlock()
			answerTo(c, rep, ret)
		}()
	}
}

// answerTo sends rep, and ends the process if nobody is there to take it.
func answerTo(c *net.UnixConn, rep reply, fd int) {
	if err := SendPacket(c, rep, fd); err != nil {
		os.Exit(0)
	}
	if fd >= 0 {
		unix.Close(fd)
	}
}

// serve does one request; the descriptor it returns, or -1, goes with the reply.
func serve(r *request, fd int) (rep reply, ret int, err error) {
	ret = -1
	switch r.Op {
	case "hello":
	case "userfaultfd":
		var u *uffd.FD
		if u, err = uffd.Create(uffd.CloseOnExec | uffd.NonBlock); err == nil {
			ret = u.Fd()
		}
	case "map":
		var b []byte
		if fd >= 0 {
			b, err = sysmem.MapShared(fd, 0, int64(r.Len), true)
		} else {
			b, err = sysmem.MapAnonymous(int64(r.Len))
		}
		if err == nil {
			rep.Addr = addressOf(b)
			// Huge pages would appear where the test counts small ones; a kernel
			// without them refuses the advice, which is as good.
			if fd < 0 {
				_ = sysmem.Advise(b, unix.MADV_NOHUGEPAGE)
			}
		}
	case "write":
		Fill(bytesAt(r.Addr, r.Page), r.First, r.Seed)
	case "advise":
		err = errnoOf(unix.SYS_MADVISE, uintptr(r.Addr), uintptr(r.Len), uintptr(r.Flags))
	case "unmap":
		err = errnoOf(unix.SYS_MUNMAP, uintptr(r.Addr), uintptr(r.Len), 0)
	case "remap":
		rep.Addr, err = moveMapping(r.Addr, r.Len)
	case "fork":
		rep.Count, err = forkAndRead(r.Addr)
	case "touch", "random", "sums":
		var b []byte
		if b, err = sysmem.MapShared(fd, 0, max(int64(r.Count)*12, 1), true); err == nil {
			pages, lat := bulkSlices(b, r.Count)
			rep.Count = bulk(r, pages, lat)
			err = sysmem.Unmap(b)
		}
	default:
		err = fmt.Errorf("operation %q is unknown", r.Op)
	}
	return rep, ret, err
}

func bulk(r *request, pages []uint64, lat []uint32) uint64 {
	switch r.Op {
	case "sums":
		for i := range lat {
			lat[i] = Sum(bytesAt(r.Addr+(r.First+uint64(i))*r.Page, r.Page))
		}
		return r.Count
	case "random":
		var total atomic.Uint64
		inThreads(r.Threads, func(k int) {
			rng := r.Seed + uint64(k)*0x9E3779B97F4A7C15 + 1
			for end := time.Now().Add(time.Duration(r.Nanos)); time.Now().Before(end); {
				// xorshift64 (Marsaglia 2003).
				rng ^= rng << 13
				rng ^= rng >> 7
				rng ^= rng << 17
				ns := touchOne(r.Addr+(r.First+rng%r.To)*r.Page, r.Write)
				if i := total.Add(1) - 1; i < uint64(len(lat)) {
					lat[i] = ns
				}
			}
		})
		return total.Load()
	}
	inThreads(r.Threads, func(k int) {
		for i := k; i < len(pages); i += r.Threads {
			lat[i] = touchOne(r.Addr+pages[i]*r.Page, r.Write)
		}
	})
	return r.Count
}

// inThreads runs f(0) … f(n-1), each in a thread of its own.
func inThreads(n int, f func(k int)) {
	var wg sync.WaitGroup
	for k := range n {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			f(k)
		})
	}
	wg.Wait()
}

// touchOne touches the word at addr and returns the time it took, in ns, at
// most 4.29 s.
func touchOne(addr uint64, write bool) uint32 {
	t0 := time.Now()
	access(addr, write)
	return uint32(min(time.Since(t0), time.Duration(1<<32-1)))
}

func errnoOf(nr, a, b, c uintptr) error {
	if _, _, errno := unix.Syscall(nr, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// moveMapping moves a mapping to wherever there is room: to another place that
// a reservation of the same size has found free.
func moveMapping(addr, length uint64) (uint64, error) {
	room, err := sysmem.MapAnonymous(int64(length))
	if err != nil {
		return 0, err
	}
	to := addressOf(room)
	_, _, errno := unix.Syscall6(unix.SYS_MREMAP, uintptr(addr), uintptr(length), uintptr(length),
		unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, uintptr(to), 0)
	if errno != 0 {
		return 0, errno
	}
	return to, nil
}

// forkAndRead forks a child that reads a byte and exits with it.
func forkAndRead(addr uint64) (uint64, error) {
	pid, err := rawFork(addr)
	if err != nil {
		return 0, err
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if !ws.Exited() {
			return 0, fmt.Errorf("forked child ended with status %#x", int(ws))
		}
		return uint64(ws.ExitStatus()), nil
	}
}
