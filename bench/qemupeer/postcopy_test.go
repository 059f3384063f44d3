package qemupeer

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// QEMU's own postcopy between two hosts, of a machine that runs its firmware.
func TestPostcopy(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := rig.New("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	c := rig.VMConfig{Name: "fw", RAM: 64 << 20, Accel: "tcg", PrivateMemory: true}
	src, err := rig.StartVM(ctx, r.Host("a"), c)
	if err != nil {
		t.Fatal(err)
	}
	c.Incoming = "defer"
	dst, err := rig.StartVM(ctx, r.Host("b"), c)
	if err != nil {
		t.Fatal(err)
	}
	p, err := open(ctx, src, dst, netip.AddrPortFrom(r.Host("b").Addr, migratePort))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.prepare(ctx); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(p.settings, "postcopy-ram") {
		t.Errorf("settings %q", p.settings)
	}
	m, err := p.migrate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !m.started.Before(m.stopped) || !m.stopped.Before(m.resumed) || !m.resumed.Before(m.completed) || m.bytesWire == 0 {
		t.Errorf("times out of order: %+v", m)
	}
	var s qemu.RunState
	if s, err = p.dst.RunState(ctx); err != nil || !s.Running {
		t.Errorf("the destination is %+v (%v), want it running", s, err)
	}
	if s, err = p.src.RunState(ctx); err != nil || s.Running {
		t.Errorf("the source is %+v (%v), want it stopped", s, err)
	}
}
