//go:build kmodvm

package vmtests

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/hugetest"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

// BenchmarkHugeFaults has threads fault on pages of 2 MiB, of an object of the device
// and of a memfd on hugetlbfs with userfaultfd, and on the same memory in pages of 4 KiB
// of the device. It reports times per 2 MiB.
func BenchmarkHugeFaults(b *testing.B) {
	const pages = 16
	hugetest.Reserve(b, 2*pages) // those of a killed process go a moment later
	likeDaemon()
	for _, threads := range []int{1, 4} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			took := make([][]time.Duration, 3)
			for range rounds {
				for k, mk := range []func() *memory{
					func() *memory { return deviceMemoryOf(b, ctx, pages, hugeSize, kmod.DefaultSpin) },
					func() *memory { return uffdMemoryOf(b, ctx, pages, hugeSize) },
					func() *memory { return deviceMemory(b, ctx, pages*perHuge) },
				} {
					m := mk()
					var at []uint64
					for p := uint64(0); p < m.reg.Pages(); p += m.size / m.reg.PageSize {
						at = append(at, p)
					}
					stop := m.serve(b, nil)
					t0 := time.Now()
					_, err := m.reg.Touch(at, false, threads)
					must(b, err)
					took[k] = append(took[k], time.Since(t0))
					stop()
					m.done()
				}
			}
			d, u, s := median(took[0]), median(took[1]), median(took[2])
			b.ReportMetric(float64(d.Microseconds())/pages, "device-µs/2MiB")
			b.ReportMetric(float64(u.Microseconds())/pages, "uffd-µs/2MiB")
			b.ReportMetric(float64(s.Microseconds())/pages, "device-4K-µs/2MiB")
			b.ReportMetric(float64(d)/float64(u), "device/uffd")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkHugeStages is [BenchmarkStages] for pages of 2 MiB.
func BenchmarkHugeStages(b *testing.B) {
	const pages = 16
	hugetest.Reserve(b, 2*pages)
	likeDaemon()
	for _, threads := range []int{1, 4} {
		b.Run(fmt.Sprintf("threads=%d/device", threads), func(b *testing.B) {
			reportStages(b, func(b *testing.B, ctx context.Context, pages uint64) *memory {
				return deviceMemoryOf(b, ctx, pages, hugeSize, kmod.DefaultSpin)
			}, pages, threads)
		})
		b.Run(fmt.Sprintf("threads=%d/uffd", threads), func(b *testing.B) {
			reportStages(b, func(b *testing.B, ctx context.Context, pages uint64) *memory {
				return uffdMemoryOf(b, ctx, pages, hugeSize)
			}, pages, threads)
		})
	}
}

// BenchmarkHugeBring has a server bring pages of 2 MiB with nobody waiting: into a memfd
// on hugetlbfs, a file on tmpfs with huge=always, and the device's alias. It reports, per
// 2 MiB, the first store, for which the kernel takes memory and clears it, and the copy.
func BenchmarkHugeBring(b *testing.B) {
	const pages, rounds = 16, 11
	hugetest.Reserve(b, pages)
	dir := b.TempDir()
	must(b, unix.Mount("tmpfs", dir, "tmpfs", 0, "huge=always"))
	defer func() { must(b, unix.Unmount(dir, 0)) }()
	c, err := kmod.Open()
	must(b, err)
	defer c.Close()
	kinds := []struct {
		name string
		open func() (fd int, done func())
	}{
		{"hugetlbfs", func() (int, func()) {
			fd, err := sysmem.CreateMemfd("bench", pages*hugeSize, hugeSize)
			must(b, err)
			return fd, func() {}
		}},
		{"tmpfs", func() (int, func()) {
			path := filepath.Join(dir, "mem")
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
			must(b, err)
			must(b, errors.Join(unix.Ftruncate(fd, pages*hugeSize), unix.Unlink(path)))
			return fd, func() {}
		}},
		{"device", func() (int, func()) {
			_, err := c.Create(kmod.Config{Name: "bench", Bytes: pages * hugeSize, PageSize: hugeSize})
			must(b, err)
			d, err := c.Attach("bench", 16)
			must(b, err)
			fd, err := d.Alias()
			must(b, err)
			return fd, func() { must(b, errors.Join(d.Close(), c.Destroy("bench"))) }
		}},
	}
	content := make([]byte, hugeSize)
	touch.Fill(content, 1, 1)
	first, copying := make([][]time.Duration, len(kinds)), make([][]time.Duration, len(kinds))
	for range rounds {
		for k, kind := range kinds {
			fd, done := kind.open()
			mem, err := sysmem.MapShared(fd, 0, pages*hugeSize, true)
			must(b, err)
			t0 := time.Now()
			for p := range pages {
				mem[p*hugeSize] = 1
			}
			t1 := time.Now()
			for p := range pages {
				copy(mem[p*hugeSize:], content)
			}
			first[k], copying[k] = append(first[k], t1.Sub(t0)), append(copying[k], time.Since(t1))
			must(b, errors.Join(sysmem.Unmap(mem), unix.Close(fd)))
			done()
		}
	}
	for k, kind := range kinds {
		b.ReportMetric(float64(median(first[k]).Microseconds())/pages, kind.name+"-first-µs")
		b.ReportMetric(float64(median(copying[k]).Microseconds())/pages, kind.name+"-copy-µs")
	}
	b.ReportMetric(0, "ns/op")
}
