package relocate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
)

// TestManyAtOnce moves machines in both directions at a time, some of them with a
// pre-transfer or on demand alone, and cancels one. Each arrives whole, the cancelled one
// stays, and nothing is left where the others came from.
func TestManyAtOnce(t *testing.T) {
	root := vmtest.Dir(t)
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	t.Cleanup(func() { killAll(t, a); killAll(t, b) })
	type move struct {
		name     string
		from, to *testHost
		o        Options
		want     []byte
	}
	moves := []*move{
		{name: "a1", from: a, to: b}, {name: "b1", from: b, to: a},
		{name: "a2", from: a, to: b, o: Options{PreTransfer: true}}, {name: "b2", from: b, to: a, o: Options{Codec: "zstd", DemandChannels: 2, PrecacheChannels: 4}},
		{name: "a3", from: a, to: b, o: Options{PreTransfer: true, Bandwidth: slow, Codec: "none"}}, // the one that is cancelled
	}
	dir := func(h *testHost, name string) string { return filepath.Join(h.dir, name) }
	for i, m := range moves {
		for _, h := range []*testHost{a, b} {
			if err := os.MkdirAll(dir(h, m.name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		vm := vmtest.Start(t, dir(m.from, m.name))
		m.want = vmtest.Pattern(uint64(20 + i))
		vmtest.WritePattern(t, vm.RAM, m.want)
		m.from.adopt(t, m.name, vm.QMP)
	}
	for _, m := range moves {
		if _, err := m.from.Relocate(t.Context(), m.name, m.to.addr, m.o); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Relocate(t.Context(), "a3", b.addr, Options{}); !errors.Is(err, ErrBusy) {
		t.Errorf("relocated twice at a time: %v", err)
	}
	a.await(t, "a3", PhasePreTransfer)
	if err := a.Cancel(t.Context(), "a3"); err != nil {
		t.Errorf("cancel one of many: %v", err)
	}
	for _, m := range moves {
		h, other := m.to, m.from
		if m.name == "a3" {
			h, other = m.from, m.to
		} else {
			m.from.await(t, m.name, PhaseDone)
			m.to.await(t, m.name, PhaseDone)
		}
		vmtest.Wait(t, m.name+" to run", func() bool { return runState(t, h, m.name) == "running" })
		if got := runState(t, other, m.name); got != "not adopted" {
			t.Errorf("%s is %q at the other host", m.name, got)
		}
		vmtest.CheckPattern(t, filepath.Join(dir(h, m.name), "vm.mem"), m.want)
		vmtest.Wait(t, "nothing of "+m.name+" to be left at the other host", func() bool {
			left, err := filepath.Glob(filepath.Join(dir(other, m.name), "*"))
			return err == nil && len(left) == 0
		})
	}
	// What was started at a host for a machine that arrived is there; nothing else is.
	for _, h := range []*testHost{a, b} {
		h.awaitIdle(t)
		var here []string
		for _, m := range moves {
			if m.to == h && m.name != "a3" {
				here = append(here, m.name)
			}
		}
		logs, err := filepath.Glob(filepath.Join(h.cfg.StateDir, "vm-*.log"))
		if err != nil || len(logs) != len(here) {
			t.Errorf("%d logs at %s for %q: %v", len(logs), h.dir, here, err)
		}
		residency, err := filepath.Glob(filepath.Join(h.cfg.StateDir, "*.residency"))
		if err != nil || len(residency) != 0 {
			t.Errorf("left at %s: %q, %v", h.dir, residency, err)
		}
	}
	if t.Failed() {
		t.Log(fmt.Sprint(a.Statuses(), b.Statuses()))
	}
}
