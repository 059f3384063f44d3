//go:build kmodvm

package vmtests

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

// daemonMain is a process that attaches to an object, serves its even pages, and
// is killed; if this process was started as one it does not return.
func daemonMain() {
	name := os.Getenv("KMOD_TEST_DAEMON")
	if name == "" {
		return
	}
	die := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	c, err := kmod.Open()
	die(err)
	d, err := c.Attach(name, 16)
	die(err)
	r, err := kmod.NewReader(kmod.ReaderConfig{}, d)
	die(err)
	fmt.Println("attached")
	var buf [16]kmod.Fault
	for {
		n, err := r.Read(buf[:])
		die(err)
		for _, f := range buf[:n] {
			fmt.Println("fault", f.Page)
			if f.Page%2 == 0 {
				die(d.Install(f.Page, 1))
			}
		}
	}
}

// A daemon is killed with faults outstanding; the next gets them all.
func TestDaemonIsKilledAndAnotherTakesOver(t *testing.T) {
	t.Run("4K", func(t *testing.T) { testTakeover(t, newObject(t, 64, nil), 64, 1) })
	t.Run("2M", func(t *testing.T) { testTakeover(t, newHugeObject(t, 4, nil), 4, perHuge) })
}

// testTakeover is for an object whose pages are of per times 4 KiB.
func testTakeover(t *testing.T, o *object, pages, per uint64) {
	mem := o.mmap(pages*per, true)
	cmd := exec.CommandContext(o.ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), "KMOD_TEST_DAEMON="+o.name)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	next := func() string {
		if !lines.Scan() {
			t.Fatal("the daemon process has ended")
		}
		return lines.Text()
	}
	if s := next(); s != "attached" {
		t.Fatal(s)
	}
	if s := o.state(); s != kmod.Served {
		t.Errorf("state %v", s)
	}
	done := make(chan error, pages)
	for p := range pages {
		go func() { _, err := peek(mem, p*per+p%per); done <- err }()
	}
	for range pages {
		next()
	}
	for range pages / 2 { // the even ones were served
		must(t, o.await(done))
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if s := o.state(); s != kmod.Orphaned {
		t.Errorf("state %v", s)
	}
	extra := peeking(mem, 2*per-1) // waits as well
	d := o.attach(16)
	if s := o.state(); s != kmod.Served {
		t.Errorf("state %v", s)
	}
	seen := map[uint64]bool{}
	for uint64(len(seen)) < pages/2 {
		for _, f := range d.faults(o.ctx, 1) {
			// A thread that looks again while its page is served may report it anew.
			if (f.Flags&kmod.FaultAgain == 0 && !d.Resident(f.Page)) || f.Page%2 == 0 {
				t.Errorf("fault %+v, want one of an odd page, delivered again", f)
			}
			seen[f.Page] = true
			d.fill(f.Page, 1, 2)
		}
	}
	for range pages / 2 {
		must(t, o.await(done))
	}
	must(t, o.await(extra))
	o.check(mem, (pages/2+1)*per, 2)
}

func TestFaultsBeforeTheFirstAttach(t *testing.T) {
	o := newObject(t, 8, func(c *kmod.Config) { c.Deadline = time.Millisecond })
	mem := o.mmap(8, true)
	done := peeking(mem, 2)
	o.until("a fault", func() bool { st, err := o.c.Stat(o.name); must(t, err); return st.Faults > 0 })
	d := o.attach(16)
	d.faults(o.ctx, 1)
	d.fill(2, 1, 1)
	must(t, o.await(done))
}

func TestDeadline(t *testing.T) {
	deadline := func(c *kmod.Config) { c.Deadline = 100 * time.Millisecond }
	t.Run("4K", func(t *testing.T) { testDeadline(t, newObject(t, 8, deadline), 1) })
	t.Run("2M", func(t *testing.T) { testDeadline(t, newHugeObject(t, 4, deadline), perHuge) })
}

// testDeadline is for an object of at least four pages of per times 4 KiB.
func testDeadline(t *testing.T, o *object, per uint64) {
	mem := o.mmap(4*per, true)
	d := o.attach(16)
	d.fill(0, 1, 1)
	done := peeking(mem, 2*per+per/2)
	d.faults(o.ctx, 1)
	d.close()
	wantErr(t, "who waited", o.await(done), unix.EFAULT)
	_, err := peek(mem, 3*per)
	wantErr(t, "who came later", err, unix.EFAULT)
	before, err := o.c.Stat(o.name)
	must(t, err)
	if before.Killed < 2 || before.State != kmod.Orphaned {
		t.Errorf("stat %+v", before)
	}
	if got := takeNoWait(t, mem, 2*per); got != -int(unix.EFAULT) {
		t.Errorf("taking a missing page without waiting: %d, want -EFAULT, %d", got, -int(unix.EFAULT))
	}
	wantErr(t, "mlock", unix.Mlock(mem), unix.ENOMEM) // as of memory that cannot be had
	must(t, unix.Munlock(mem))
	f, err := os.Open("/proc/self/mem")
	must(t, err)
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 8), int64(addressOf(mem))+int64(2*per*pageSize)); !errors.Is(err, unix.EIO) {
		t.Errorf("reading a missing page in /proc/self/mem: %v, want %v", err, unix.EIO)
	}
	o.check(mem, per-1, 1)
	if st, err := o.c.Stat(o.name); st.Killed < before.Killed+3 || err != nil {
		t.Errorf("%d touches ended in SIGBUS, %d before the last three (%v)", st.Killed, before.Killed, err)
	}
	// A new daemon ends the deadline.
	d = o.attach(16)
	d.serve(4)
	o.check(mem, 2*per, 4)
	o.check(mem, 4*per-1, 4)
}

func TestDestroyWithMappers(t *testing.T) {
	o := newObject(t, 8, nil)
	mem := o.mmap(8, true)
	d := o.attach(16)
	d.fill(0, 2, 1)
	o.check(mem, 0, 1)
	done := peeking(mem, 5)
	d.faults(o.ctx, 1)
	r, err := kmod.NewReader(kmod.ReaderConfig{}, d.Daemon)
	must(t, err)
	defer r.Close()
	ended := make(chan error, 1)
	go func() { _, err := r.Read(make([]kmod.Fault, 1)); ended <- err }()
	must(t, o.c.Destroy(o.name))
	wantErr(t, "who waited", o.await(done), unix.EFAULT)
	wantErr(t, "the daemon", o.await(ended), kmod.ErrDestroyed)
	wantErr(t, "wake", d.Wake(0, 1), kmod.ErrDestroyed)
	o.check(mem, 0, 1)
	o.check(mem, 1, 1)
	_, err = peek(mem, 6)
	wantErr(t, "a missing page", err, unix.EFAULT)
}

// An end is handed to another user of the descriptor.
func TestEndIsPassedOn(t *testing.T) {
	o := newObject(t, 8, nil)
	mem := o.mmap(8, true)
	d := o.attach(16)
	fd, err := unix.FcntlInt(uintptr(d.FD()), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	d.close()
	if s := o.state(); s != kmod.Served {
		t.Errorf("state %v", s)
	}
	e, err := kmod.NewDaemon(fd)
	must(t, err)
	done := peeking(mem, 4)
	dd := &daemon{Daemon: e, t: t}
	dd.faults(o.ctx, 1)
	must(t, e.Install(4, 1))
	must(t, o.await(done))
	must(t, e.Close())
	if s := o.state(); s != kmod.Orphaned {
		t.Errorf("state %v", s)
	}
}

// A daemon whose every shared word is garbage harms itself; the next one finds
// every fault that is outstanding.
func TestHostileConsumer(t *testing.T) {
	t.Run("4K", func(t *testing.T) { testHostileConsumer(t, newObject(t, 256, nil), 1, 5) })
	t.Run("2M", func(t *testing.T) { testHostileConsumer(t, newHugeObject(t, 8, nil), perHuge, 1) })
}

// testHostileConsumer touches eight pages a round of an object whose pages are of per
// times 4 KiB.
func testHostileConsumer(t *testing.T, o *object, per, rounds uint64) {
	const threads = 8
	pages := rounds * threads
	mem := o.mmap(pages*per, true)
	for round := range rounds {
		d := o.attach(16)
		consumer, err := unix.Mmap(d.FD(), 1<<40, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		var stop atomic.Bool
		var wg sync.WaitGroup
		t.Cleanup(func() { stop.Store(true); wg.Wait() }) // if the test fails below
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(round, 1))
			for !stop.Load() {
				for i := range 64 {
					consumer[i] = byte(rng.Uint32())
				}
				_ = d.Wake(0, pages)
				_ = d.Redeliver()
			}
		})
		done := make(chan error, threads)
		first := round * threads
		for k := range uint64(threads) {
			go func() { _, err := peek(mem, (first+k)*per); done <- err }()
		}
		o.until("faults", func() bool {
			st, err := o.c.Stat(o.name)
			must(t, err)
			return st.Faults >= (round+1)*threads && st.Overflows > 100*(round+1)
		})
		stop.Store(true)
		wg.Wait()
		must(t, unix.Munmap(consumer))
		d.close()
		d = o.attach(16)
		end := d.serve(round)
		for range threads {
			must(t, o.await(done))
		}
		end()
		d.close()
		o.check(mem, first*per, round)
	}
}

// Threads touch random pages while pages arrive, and the daemon dies and comes
// back again and again.
func TestStress(t *testing.T) {
	const pages, threads, rounds = 4096, 8, 8
	o := newObject(t, pages, nil)
	mem := o.mmap(pages, true)
	var stop atomic.Bool
	var touches atomic.Uint64
	var wg sync.WaitGroup
	for k := range uint64(threads) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(k, 1))
			for !stop.Load() {
				p := rng.Uint64N(pages)
				got, err := peek(mem, p)
				if err != nil {
					t.Errorf("page %d: %v", p, err)
					return
				}
				if w := touchWord(got); w != wordOf(p, 77) {
					t.Errorf("page %d holds %#x, want %#x", p, w, wordOf(p, 77))
					return
				}
				touches.Add(1)
			}
		})
	}
	for round := range uint64(rounds) {
		d := o.attach(64)
		end := d.serve(77)
		first, per := round*pages/rounds, uint64(pages/rounds)
		for p := first; p < first+per; p += 16 {
			var todo []uint64
			for q := p; q < p+16; q++ {
				if !d.Resident(q) {
					todo = append(todo, q)
				}
			}
			for _, q := range todo {
				d.fillOnce(q, 77)
			}
		}
		n := touches.Load()
		o.until("threads go on", func() bool { return touches.Load() >= n+20 })
		end()
		d.close()
	}
	stop.Store(true)
	wg.Wait()
	for p := uint64(0); p < pages; p += 7 {
		o.check(mem, p, 77)
	}
	st, err := o.c.Stat(o.name)
	must(t, err)
	t.Logf("%d touches, %+v", touches.Load(), st)
	if st.Faults == 0 || st.Killed != 0 {
		t.Errorf("stat %+v", st)
	}
}

// Objects come and go under threads that touch, attach and map them.
func TestDestroyUnderLoad(t *testing.T) {
	for round := range 30 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			o := newObject(t, 64, nil)
			mem := o.mmap(64, true)
			d := o.attach(16)
			d.serve(1)
			var wg sync.WaitGroup
			for k := range uint64(4) {
				wg.Go(func() {
					for p := range uint64(64) {
						if _, err := peek(mem, (p*5+k*11)%64); err != nil && err != unix.EFAULT {
							t.Error(err)
						}
					}
				})
			}
			for i := 0; i < round*4 && !d.Resident(uint64(i)%64); i++ {
				_, _ = o.c.Stat(o.name)
			}
			must(t, o.c.Destroy(o.name))
			wg.Wait()
		})
	}
}
