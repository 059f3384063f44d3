//go:build kmodvm

package vmtests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sched"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/syspoll"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

// The benchmarks compare with userfaultfd on a memfd in the same run, and give
// ratios: under an emulator, absolute times mean little. rounds of each are
// taken in turn, and the medians compared; faultRounds for the faults, whose times differ most.
const (
	rounds      = 5
	faultRounds = 9
)

// memory is what is compared: fresh memory in another process, and who serves
// it by copying each page from local memory into an alias.
type memory struct {
	size  uint64 // bytes of a page
	reg   *touch.Region
	alias []byte
	// install makes pages visible that were written through the alias.
	install func(first, count uint64) error
	// newReader makes one of those that share the faults.
	newReader func() *reader
	done      func()
}

type reader struct {
	// read waits for faulting pages, 64 at most.
	read func(pages []uint64) (int, error)
	// posted are the times at which the kernel reported the pages of the last read;
	// nil where it does not say.
	posted []time.Duration
	stop   func()
	close  func() error
}

// deviceMemory is the device as the daemon sets it up by default.
func deviceMemory(b *testing.B, ctx context.Context, pages uint64) *memory {
	return deviceMemoryOf(b, ctx, pages, pageSize, kmod.DefaultSpin)
}

// asleepMemory is the device where all who wait sleep at once.
func asleepMemory(b *testing.B, ctx context.Context, pages uint64) *memory {
	return deviceMemoryOf(b, ctx, pages, pageSize, 0)
}

func deviceMemoryOf(b *testing.B, ctx context.Context, pages, size uint64, spin time.Duration) *memory {
	c, err := kmod.Open()
	must(b, err)
	path, err := c.Create(kmod.Config{Name: "bench", Bytes: pages * size, PageSize: int(size)})
	must(b, err)
	d, err := c.Attach("bench", 256)
	must(b, err)
	afd, err := d.Alias()
	must(b, err)
	p, err := touch.Start(ctx)
	must(b, err)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(b, err)
	m := &memory{size: size, install: d.Install}
	m.reg, err = p.MapShared(fd, int64(pages*size))
	must(b, err)
	m.alias, err = sysmem.MapShared(afd, 0, int64(pages*size), true)
	must(b, err)
	d.SetSpin(spin, spin)
	m.newReader = func() *reader {
		r, err := kmod.NewReader(kmod.ReaderConfig{}, d)
		must(b, err)
		buf := make([]kmod.Fault, 64)
		rd := &reader{posted: make([]time.Duration, 64), stop: r.Stop, close: r.Close}
		rd.read = func(pages []uint64) (int, error) {
			n, err := r.Read(buf[:len(pages)])
			for i, f := range buf[:n] {
				pages[i] = f.Page
				rd.posted[i] = f.Time
			}
			return n, err
		}
		return rd
	}
	m.done = func() {
		p.Kill()
		must(b, errors.Join(sysmem.Unmap(m.alias), unix.Close(fd), unix.Close(afd), d.Close(), c.Destroy("bench"), c.Close()))
	}
	return m
}

func uffdMemory(b *testing.B, ctx context.Context, pages uint64) *memory {
	return uffdMemoryOf(b, ctx, pages, pageSize)
}

// uffdMemoryOf is of hugetlbfs where pages are of 2 MiB.
func uffdMemoryOf(b *testing.B, ctx context.Context, pages, size uint64) *memory {
	huge, features := 0, uffd.FeatureMissingShmem|uffd.FeatureMinorShmem
	if size != pageSize {
		huge, features = int(size), uffd.FeatureMissingHugetlbfs|uffd.FeatureMinorHugetlbfs
	}
	file, err := sysmem.CreateMemfd("bench", int64(pages*size), huge)
	must(b, err)
	p, err := touch.Start(ctx)
	must(b, err)
	m := &memory{size: size}
	m.reg, err = p.MapShared(file, int64(pages*size))
	must(b, err)
	m.alias, err = sysmem.MapShared(file, 0, int64(pages*size), true)
	must(b, err)
	fd, err := p.Userfaultfd()
	must(b, err)
	u, err := uffd.Open(fd)
	must(b, err)
	_, err = u.API(features)
	must(b, err)
	_, err = u.Register(m.reg.Addr, pages*size, uffd.ModeMissing|uffd.ModeMinor)
	must(b, err)
	m.install = func(first, count uint64) error {
		_, _, err := u.ContinueRange(m.reg.Addr+first*size, count*size, size, 0)
		return err
	}
	m.newReader = func() *reader {
		r, err := u.NewReader(uffd.ReaderConfig{})
		must(b, err)
		buf := make([]uffd.Event, 64)
		return &reader{stop: r.Stop, close: r.Close, read: func(pages []uint64) (int, error) {
			n, err := r.ReadEvents(buf[:len(pages)])
			for i, ev := range buf[:n] {
				pages[i] = (ev.Addr - m.reg.Addr) / size
			}
			return n, err
		}}
	}
	m.done = func() {
		p.Kill()
		must(b, errors.Join(sysmem.Unmap(m.alias), u.Close(), unix.Close(file)))
	}
	return m
}

// stages are the parts of faults, as sums.
type stages struct {
	faults, batches        int
	wait, copying, install time.Duration
}

func monotonic() time.Duration {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail
	return time.Duration(ts.Nano())
}

// serve copies a page into each that is touched, until stop, on a thread like those of
// the daemon; s, if not nil, gets
// where the time went.
func (m *memory) serve(b *testing.B, s *stages) (stop func()) {
	r := m.newReader()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with its priority
		thread := sched.Raise()
		if err := thread.Refused(); err != nil {
			b.Error(err)
		}
		content := make([]byte, m.size)
		touch.Fill(content, 1, 1)
		var pages [64]uint64
		for {
			n, err := r.read(pages[:])
			if err != nil {
				return
			}
			for i, p := range pages[:n] {
				var begin, copied time.Duration
				if s != nil {
					begin = monotonic()
				}
				copy(m.alias[p*m.size:], content)
				if s != nil {
					copied = monotonic()
				}
				if err := m.install(p, 1); err != nil {
					b.Error(err)
					return
				}
				if s != nil {
					s.faults++
					s.copying += copied - begin
					s.install += monotonic() - copied
					if r.posted != nil {
						s.wait += begin - r.posted[i]
					}
				}
			}
			thread.Tick()
			if s != nil {
				s.batches++
			}
		}
	}()
	return func() { r.stop(); <-done; must(b, r.close()) }
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

var (
	makers     = []maker{deviceMemory, asleepMemory, uffdMemory}
	makerNames = []string{"device", "device-asleep", "uffd"}
)

type maker func(*testing.B, context.Context, uint64) *memory

// compare runs f on all kinds of memory, in turn, and reports the medians per
// page and their ratio.
func compare(b *testing.B, rounds int, pages uint64, f func(*memory) time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for range b.N {
		var took [3][]time.Duration
		for range rounds {
			for k, mk := range makers {
				m := mk(b, ctx, pages)
				took[k] = append(took[k], f(m))
				m.done()
			}
		}
		d, s, u := median(took[0]), median(took[1]), median(took[2])
		b.ReportMetric(float64(d.Nanoseconds())/float64(pages), "device-ns/page")
		b.ReportMetric(float64(s.Nanoseconds())/float64(pages), "asleep-ns/page")
		b.ReportMetric(float64(u.Nanoseconds())/float64(pages), "uffd-ns/page")
		b.ReportMetric(float64(d)/float64(u), "device/uffd")
		b.ReportMetric(float64(s)/float64(u), "asleep/uffd")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkFaults has threads fault on pages that are served from local memory. The
// memory behind them is allocated when they are.
func BenchmarkFaults(b *testing.B) { benchFaults(b, func(*memory) {}) }

// BenchmarkReservedFaults is BenchmarkFaults on memory as the daemon reserves it before a
// machine stops at its source: allocated, mapped in the alias, and not resident.
func BenchmarkReservedFaults(b *testing.B) {
	benchFaults(b, func(m *memory) { clear(m.alias) })
}

func benchFaults(b *testing.B, prepare func(*memory)) {
	const pages = 2048
	likeDaemon()
	for _, threads := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			compare(b, faultRounds, pages, func(m *memory) time.Duration {
				prepare(m)
				stop := m.serve(b, nil)
				defer stop()
				t0 := time.Now()
				_, err := m.reg.TouchAll(0, pages, false, threads)
				must(b, err)
				return time.Since(t0)
			})
		})
	}
}

// BenchmarkConsumers has two threads serve the faults of several, each fault by one of
// the two.
func BenchmarkConsumers(b *testing.B) {
	const pages = 2048
	likeDaemon()
	for _, threads := range []int{4, 8} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			compare(b, rounds, pages, func(m *memory) time.Duration {
				defer m.serve(b, nil)()
				defer m.serve(b, nil)()
				t0 := time.Now()
				_, err := m.reg.TouchAll(0, pages, false, threads)
				must(b, err)
				return time.Since(t0)
			})
		})
	}
}

// likeDaemon sets the process up as faultd.Tune does.
func likeDaemon() {
	runtime.GOMAXPROCS(runtime.NumCPU() + 2)
	syspoll.Allow(2)
}

// BenchmarkStages says where the time of a fault goes, in µs: from the kernel's report
// until the server turns to it (known for the device only), copying (into a page that
// is allocated then), installing; the rest is the faulting thread's: into the fault,
// to sleep, awake again, and out of it.
func BenchmarkStages(b *testing.B) {
	const pages = 1024
	likeDaemon()
	for _, threads := range []int{1, 4} {
		for k, mk := range makers {
			b.Run(fmt.Sprintf("threads=%d/%s", threads, makerNames[k]), func(b *testing.B) {
				reportStages(b, mk, pages, threads)
			})
		}
	}
}

// reportStages has threads touch each page of a memory.
func reportStages(b *testing.B, mk maker, pages uint64, threads int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	type row struct{ total, wait, copying, install, batch float64 }
	var rows []row
	for range rounds {
		m := mk(b, ctx, pages)
		var at []uint64
		for p := uint64(0); p < m.reg.Pages(); p += m.size / m.reg.PageSize {
			at = append(at, p)
		}
		var s stages
		stop := m.serve(b, &s)
		lat, err := m.reg.Touch(at, false, threads)
		must(b, err)
		stop()
		m.done()
		var total float64
		for _, ns := range lat {
			total += float64(ns)
		}
		per := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(s.faults) / 1000 }
		rows = append(rows, row{total / float64(len(lat)) / 1000, per(s.wait), per(s.copying), per(s.install), float64(s.faults) / float64(s.batches)})
	}
	slices.SortFunc(rows, func(x, y row) int { return cmp.Compare(x.total, y.total) })
	r := rows[len(rows)/2]
	b.ReportMetric(r.total, "total-µs")
	b.ReportMetric(r.wait, "wait-µs")
	b.ReportMetric(r.copying, "copy-µs")
	b.ReportMetric(r.install, "install-µs")
	b.ReportMetric(r.total-r.wait-r.copying-r.install, "rest-µs")
	b.ReportMetric(r.batch, "faults/batch")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkInstall makes pages visible that were written and that nobody waits
// for: bits for the device, UFFDIO_CONTINUE for userfaultfd.
func BenchmarkInstall(b *testing.B) {
	const pages = 8192
	for _, batch := range []uint64{1, 512} {
		b.Run(fmt.Sprintf("pages=%d", batch), func(b *testing.B) {
			compare(b, rounds, pages, func(m *memory) time.Duration {
				for p := range uint64(pages) {
					m.alias[p*pageSize] = 1
				}
				t0 := time.Now()
				for p := uint64(0); p < pages; p += batch {
					// Without must, whose Helper costs more than the device.
					if err := m.install(p, batch); err != nil {
						b.Fatal(err)
					}
				}
				return time.Since(t0)
			})
		})
	}
}

// BenchmarkFirstTouch touches resident pages for the first time, against a plain
// memfd.
func BenchmarkFirstTouch(b *testing.B) {
	const pages = 8192
	for _, write := range []bool{false, true} {
		b.Run(fmt.Sprintf("write=%v", write), func(b *testing.B) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			for range b.N {
				var took [2][]time.Duration
				for range rounds {
					for k := range took {
						m := deviceMemory(b, ctx, pages)
						reg := m.reg
						alias := m.alias
						var file int
						if k == 1 {
							var err error
							file, err = sysmem.CreateMemfd("plain", pages*pageSize, 0)
							must(b, err)
							p, err := touch.Start(ctx)
							must(b, err)
							defer p.Kill()
							reg, err = p.MapShared(file, pages*pageSize)
							must(b, err)
							alias, err = sysmem.MapShared(file, 0, pages*pageSize, true)
							must(b, err)
						}
						for p := range uint64(pages) {
							alias[p*pageSize] = 1
						}
						must(b, m.install(0, pages))
						lat, err := reg.TouchAll(0, pages, write, 1)
						must(b, err)
						var sum time.Duration
						for _, ns := range lat {
							sum += time.Duration(ns)
						}
						took[k] = append(took[k], sum)
						if k == 1 {
							must(b, errors.Join(sysmem.Unmap(alias), unix.Close(file)))
						}
						m.done()
					}
				}
				d, s := median(took[0]), median(took[1])
				b.ReportMetric(float64(d.Nanoseconds())/pages, "device-ns/page")
				b.ReportMetric(float64(s.Nanoseconds())/pages, "shmem-ns/page")
				b.ReportMetric(float64(d)/float64(s), "device/shmem")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}
