package faultd_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// A region may lie in several mappings side by side: advice for a part of it splits its
// mapping. No operation of userfaultfd crosses from one into the next.
func TestRegionInSeveralMappings(t *testing.T) {
	const pages = 1024
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	for name, private := range map[string]bool{"private": true, "shared": false} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 30*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newMachine(t, ctx, pages, private)
			for at := uint64(13); at < pages; at += 26 {
				must(t, m.reg.Advise(at, 13, unix.MADV_DONTFORK))
			}
			cfg := m.config(srv.open(pages))
			cfg.ReadAround = 32
			e := start(t, cfg)
			m.verify(t, img.sums)
			if err := e.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			m.verify(t, img.sums)
		})
	}
}

// A page that reads as zero is touched while the machine gives its memory back: whichever
// comes first, the memory's owner hears of no error.
func TestZeroPageIsGivenBack(t *testing.T) {
	ctx := withDeadline(t, 30*time.Second)
	m := newMachine(t, ctx, 64, false)
	alias, err := sysmem.MapShared(m.file, 0, 64*pageSize, true)
	must(t, err)
	defer sysmem.Unmap(alias)
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	wg.Go(func() {
		for !stop.Load() {
			alias[8*pageSize] = 1
			if err := sysmem.PunchHole(m.file, 8*pageSize, pageSize); err != nil {
				t.Error(err)
				return
			}
		}
	})
	one := transport.Range{Region: 7, First: 8, Count: 1}
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		must(t, m.mem.Install.Zero(one))
		must(t, m.mem.Install.Install(one, nil))
	}
}
