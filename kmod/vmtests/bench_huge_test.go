//go:build kmodvm

package vmtests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/hugetest"
	"github.com/pagewarp/pagewarp/kmod"
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
