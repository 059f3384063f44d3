package faultd_test

import (
	"path/filepath"
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
