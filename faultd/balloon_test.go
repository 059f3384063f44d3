package faultd_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// Memory is given back all the time, down to the last page of the drain, while threads
// touch it: the drain ends, nobody waits for ever, and what was not given back is right.
func TestBalloonUntilTheEnd(t *testing.T) {
	const pages, rounds = 1024, 6
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	zero := touch.Sum(make([]byte, pageSize))
	for name, private := range map[string]bool{"private": true, "shared": false} {
		t.Run(name, func(t *testing.T) {
			for round := range uint64(rounds) {
				ctx := withDeadline(t, 20*time.Second)
				srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
				m := newMachineEvents(t, ctx, pages, private, true)
				cfg := m.config(srv.open(pages))
				cfg.PrecacheChannels, cfg.DemandChannels, cfg.Readers = 3, 2, 1+int(round%2)
				cfg.BatchPages = 16
				e := start(t, cfg)
				advice := unix.MADV_REMOVE
				if private {
					advice = unix.MADV_DONTNEED
				}
				var wg sync.WaitGroup
				given := make([]bool, pages)
				wg.Go(func() { // the upper half is given back, piece by piece
					rng := rand.New(rand.NewPCG(round, 5))
					for range 60 {
						first, n := pages/2+rng.Uint64N(pages/2-16), 1+rng.Uint64N(16)
						if err := m.reg.Advise(first, n, advice); err != nil {
							t.Error(err)
							return
						}
						for p := first; p < first+n; p++ {
							given[p] = true
						}
					}
				})
				wg.Go(func() {
					for range 3 {
						if _, err := m.reg.Touch(shuffled(pages, round), false, 3); err != nil {
							t.Error(err)
							return
						}
					}
				})
				if err := e.Wait(ctx); err != nil {
					t.Fatalf("round %d: %v; %+v", round, err, e.Stats())
				}
				wg.Wait()
				got, err := m.reg.Sums(0, pages)
				must(t, err)
				for p := range uint64(pages) {
					if got[p] != img.sums[p] && (!given[p] || got[p] != zero) {
						t.Fatalf("round %d: page %d (given back: %v) has checksum %#x, the source has %#x", round, p, given[p], got[p], img.sums[p])
					}
				}
				must(t, e.Close())
			}
		})
	}
}

// Private memory whose process gives pages back, as every allocator does, is served without
// events as well: what was there reads as zero afterwards.
func TestPrivateMemoryGivenBackUntold(t *testing.T) {
	const pages = 256
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	ctx := withDeadline(t, 10*time.Second)
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, pages, true)
	cfg := m.config(srv.open(pages))
	cfg.PrecacheOff = true
	e := start(t, cfg)
	_, err := m.reg.TouchAll(0, 64, true, 4)
	must(t, err)
	must(t, m.reg.Advise(16, 16, unix.MADV_DONTNEED))
	want := append([]uint32(nil), img.sums...)
	for p := 16; p < 32; p++ {
		want[p] = touch.Sum(make([]byte, pageSize))
	}
	m.verify(t, want)
	if s := e.Stats(); s.FaultsResident < 16 || s.FaultsResident > 64 {
		t.Errorf("%d faults on resident pages, of 16 pages that were given back", s.FaultsResident)
	}
	drained(t, ctx, e)
}
