package faultd_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

func TestDrain(t *testing.T) {
	const pages = 8 << 10
	img := newImage(t, pages, 1)
	for _, tc := range []struct {
		name    string
		unix    bool
		private bool
		tune    tcp.Tuning
		pre     bool
	}{
		{name: "shared, TCP", pre: true},
		{name: "shared, TCP, blocking", pre: true, tune: tcp.Tuning{BlockingIO: true}},
		{name: "shared, unix, S2", pre: true, unix: true, tune: tcp.Tuning{Codec: transport.ModeS2}},
		{name: "shared, on demand only"},
		{name: "private, TCP, zstd", pre: true, private: true, tune: tcp.Tuning{Codec: transport.ModeZstd}},
		{name: "private, on demand only, unix", private: true, unix: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := withDeadline(t, 20*time.Second)
			addr := "127.0.0.1:0"
			if tc.unix {
				addr = "unix:" + filepath.Join(t.TempDir(), "s")
			}
			srv := newServer(t, img, addr, tc.tune)
			m := newMachine(t, ctx, pages, tc.private)
			cfg := m.config(srv.open(pages))
			cfg.PrecacheOff = !tc.pre
			cfg.BlockingDemand = tc.tune.BlockingIO
			cfg.DemandChannels, cfg.PrecacheChannels = 2, 2
			e := start(t, cfg)
			if _, err := m.reg.Touch(shuffled(pages, 2), false, 8); err != nil {
				t.Fatalf("%v\n%+v\n%+v", err, e.Stats(), m.res.Counts())
			}
			s := drained(t, ctx, e)
			m.verify(t, img.sums)
			if !tc.pre && s.PagesPrecache != 0 {
				t.Errorf("%d pages came by precache, which is off", s.PagesPrecache)
			}
			t.Logf("demand faults, µs: %+v", s.Stages[faultd.StageTotal].Summary())
		})
	}
}

// TestDemandPace: where CPUs are short every fault is served, by the timer if there is
// no precache, no faster than the pace and, with precache, in the drain's course.
func TestDemandPace(t *testing.T) {
	const pages, pace = 256, 2 * time.Millisecond
	img := newImage(t, pages, 1)
	for _, pre := range []bool{false, true} {
		ctx := withDeadline(t, 20*time.Second)
		srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
		m := newMachine(t, ctx, pages, false)
		cfg := m.config(srv.open(pages))
		cfg.PrecacheOff = !pre
		cfg.DemandPace, cfg.BulkNice = pace, 1
		e, err := faultd.New(cfg)
		must(t, err)
		t.Cleanup(func() { e.Close() })
		e.Starve()
		ctx2, stop := context.WithCancel(ctx)
		var starving sync.WaitGroup
		starving.Go(func() {
			for ctx2.Err() == nil {
				e.Starve()
				time.Sleep(time.Millisecond)
			}
		})
		begin := time.Now()
		must(t, e.Start())
		if _, err := m.reg.Touch(shuffled(pages, 2), false, 8); err != nil {
			t.Fatalf("%v\n%+v", err, e.Stats())
		}
		took := time.Since(begin)
		s := drained(t, ctx, e)
		stop()
		starving.Wait()
		m.verify(t, img.sums)
		least := time.Duration(s.DemandSends-min(s.DemandSends, 33)) * pace
		if took < least || !pre && s.DemandPaced == 0 {
			t.Errorf("precache %v: %d sends, %d of them held, in %v: want at least %v", pre, s.DemandSends, s.DemandPaced, took, least)
		}
	}
}
