package faultd_test

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd/faultdtest"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

func TestConformance(t *testing.T) {
	for name, private := range map[string]bool{"shared": false, "private": true} {
		t.Run(name, func(t *testing.T) {
			faultdtest.Run(t, func(t *testing.T, ctx context.Context) faultdtest.Env {
				const pages = 64
				m := newMachine(t, ctx, pages, private)
				return faultdtest.Env{
					Region: region(pages), Memory: m.mem, Write: m.reg.Write,
					Touch: func(page uint64, write bool) error {
						_, err := m.reg.Touch([]uint64{page}, write, 1)
						return err
					},
					Sum: func(page uint64) (uint32, error) {
						s, err := m.reg.Sums(page, 1)
						if err != nil {
							return 0, err
						}
						return s[0], nil
					},
				}
			})
		})
	}
}

// In steady state neither end allocates for a page or a fault: 100 000 pages
// cost fewer allocations than a hundredth of that, whatever they are for.
func TestNoAllocationPerPage(t *testing.T) {
	const pages = 100 << 10
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return i%10 != 0 })
	for name, demand := range map[string]bool{"precache": false, "demand": true} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 60*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{Codec: transport.ModeNone})
			m := newMachine(t, ctx, pages, false)
			cfg := m.config(srv.open(pages))
			cfg.PrecacheOff = true
			e := start(t, cfg)
			n := uint64(pages)
			if demand {
				n = 20000
			}
			// Warm up: the first faults grow what is reused afterwards.
			_, err := m.reg.TouchAll(0, 500, false, 8)
			must(t, err)
			defer debug.SetGCPercent(debug.SetGCPercent(-1))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if demand {
				_, err := m.reg.TouchAll(500, n, false, 8)
				must(t, err)
			} else {
				e.SetPrecache(true)
				drained(t, ctx, e)
			}
			runtime.ReadMemStats(&after)
			if got := after.Mallocs - before.Mallocs; got > n/100 {
				t.Errorf("%d allocations for %d pages", got, n)
			} else {
				t.Logf("%d allocations for %d pages", got, n)
			}
		})
	}
}
