package process

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

// envTask in the environment turns a start of our binary into a worker.
const envTask = "PAGEWARP_PROCESS_TASK"

// ThreadName is the name of a worker's thread that does the work; it begins as
// those of QEMU's virtual CPUs do, so that meters tell its time from the
// engine's.
const ThreadName = "CPU 0/process"

// task is what a worker is told at its start.
type task struct {
	Probe string // file
	// Memory is a file to map shared; empty is private memory.
	Memory string
	Load   workloads.Load
	// Socket, if not empty, makes the worker one that goes on with another's
	// work: it hands its userfaultfd and its address over there.
	Socket string
	// Block makes the userfaultfd one that blocks.
	Block bool
}

func (t *task) pages() int { return t.Load.WorkingSetMiB << 20 / pageBytes }

// handover is what comes with a worker's userfaultfd.
type handover struct{ Addr, Len uint64 }

// Main is a worker, if this process was started as one, and then never returns;
// else it returns at once.
func Main() {
	s := os.Getenv(envTask)
	if s == "" {
		return
	}
	var t task
	err := json.Unmarshal([]byte(s), &t)
	if err == nil {
		err = t.work()
	}
	fmt.Fprintln(os.Stderr, "worker of the benchmark:", err)
	os.Exit(1)
}

// work works until the process is ended.
func (t *task) work() error {
	runtime.LockOSThread()
	if err := os.WriteFile("/proc/thread-self/comm", []byte(ThreadName), 0); err != nil {
		return err
	}
	p, err := openProbe(t.Probe, t.pages())
	if err != nil {
		return err
	}
	mem, err := t.memory()
	if err != nil {
		return err
	}
	if t.Socket != "" {
		if err := t.handOver(mem); err != nil {
			return err
		}
		for atomic.LoadUint32(&p.h.run) == 0 {
			time.Sleep(pollEvery)
		}
	}
	var reports int
	set := workset.Over(mem, p.want, t.Load.Half, p.h.touches, func(n int, why string) {
		if reports++; reports <= 20 {
			fmt.Fprintf(os.Stderr, "page %d: %s\n", n, why)
		}
	})
	if t.Socket == "" {
		set.Fill()
	}
	next, do, err := t.pattern(set)
	if err != nil {
		return err
	}
	atomic.StoreUint32(&p.h.ready, 1)
	stopped := t.loop(p, set, next, do)
	if stopped {
		atomic.StoreUint32(&p.h.stopped, 1)
		for { // the memory is the image; the harness ends us
			time.Sleep(time.Hour)
		}
	}
	bad, missing := set.VerifyAll()
	_, _, _, seen, _ := set.Counters()
	p.h.bad, p.h.missing = max(bad, seen), missing
	atomic.StoreUint32(&p.h.verified, 1)
	for {
		time.Sleep(time.Hour)
	}
}

// loop does one operation after the other until the harness wants it to stop,
// which it reports, or to verify.
func (t *task) loop(p *Probe, set *workset.Set, next workset.Order, do func([]int)) (stopped bool) {
	batch := make([]int, 256)
	last := atomic.LoadInt64(&p.h.last) // the first stall is the switch-over
	touches := p.h.touches
	operations := p.h.operations
	for {
		next(batch)
		for i := range batch {
			do(batch[i : i+1])
			now := time.Now().UnixNano()
			p.note(now, last)
			last = now
			operations++
			atomic.StoreUint64(&p.h.operations, operations)
			if t.Load.Kind != guestapi.LoadChurn {
				touches++
				atomic.StoreUint64(&p.h.touches, touches)
			}
			if atomic.LoadUint32(&p.h.stop) == 1 && t.Socket == "" {
				return true
			}
			if atomic.LoadUint32(&p.h.verify) == 1 {
				return false
			}
		}
	}
}

// Kinds are the loads that a worker knows.
func Kinds() []string {
	return []string{guestapi.LoadRandom, guestapi.LoadZipf, guestapi.LoadSweep, guestapi.LoadChurn}
}

// pattern is the load: the order of pages, and what is done with one.
func (t *task) pattern(set *workset.Set) (workset.Order, func([]int), error) {
	pages := set.Pages()
	switch t.Load.Kind {
	case guestapi.LoadRandom:
		return workset.AtRandom(pages), set.TouchAll, nil
	case guestapi.LoadZipf:
		return workset.HotSet(pages, t.Load.Exponent), set.TouchAll, nil
	case guestapi.LoadSweep:
		return workset.Sweep(pages), set.TouchAll, nil
	case guestapi.LoadChurn:
		return workset.AtRandom(pages), func(ns []int) { set.Rewrite(ns[0]) }, nil
	}
	return nil, nil, fmt.Errorf("a process has no load %q", t.Load.Kind)
}

// memory maps the memory.
func (t *task) memory() ([]byte, error) {
	size := int64(t.pages()) * pageBytes
	if t.Memory == "" {
		return sysmem.MapAnonymous(size)
	}
	f, err := os.OpenFile(t.Memory, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return sysmem.MapShared(int(f.Fd()), 0, size, true)
}

// handOver gives the userfaultfd of this process away. As the memory comes page
// by page, huge pages have no place in it.
func (t *task) handOver(mem []byte) error {
	if t.Memory == "" {
		// A kernel without huge pages refuses the advice, which is as good.
		_ = sysmem.Advise(mem, unix.MADV_NOHUGEPAGE)
	}
	flags := uffd.CloseOnExec | uffd.NonBlock
	if t.Block {
		flags = uffd.CloseOnExec
	}
	u, err := uffd.Create(flags)
	if err != nil {
		return err
	}
	defer u.Close()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: t.Socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer c.Close()
	return touch.SendPacket(c, handover{addressOf(mem), uint64(len(mem))}, u.Fd())
}
