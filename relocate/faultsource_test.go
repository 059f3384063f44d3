package relocate

import (
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/kmod"
)

// What asks for the device where there is none is refused, and the machine runs on;
// "auto" takes userfaultfd. With a device, both are tested in the VM of kmodtest.
func TestFaultSourceWithoutDevice(t *testing.T) {
	if _, err := deviceInfo(); err == nil {
		t.Fatal("this host has the pagewarp module loaded; unload it (modprobe -r pagewarp): the test is about a host without")
	}
	root := vmtest.Dir(t)
	a := startHost(t, root, "a", nil)
	b := startHost(t, root, "b", func(c *HostConfig) { c.FaultSource = FaultDevice })
	vm := vmtest.Start(t, a.dir)
	a.adopt(t, "web1", vm.QMP)

	if _, _, err := b.FaultSource(); err == nil || !strings.Contains(err.Error(), kmod.ErrNoDevice.Error()) {
		t.Errorf("a host that must use the device, and has none: %v", err)
	}
	if source, reason, err := a.FaultSource(); source != FaultUserfaultfd || reason == "" || err != nil {
		t.Errorf("a host that may use the device, and has none: %q, %q, %v", source, reason, err)
	}
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseRolledBack)
	if s := a.last(t, RoleSource); !strings.Contains(s.Error, kmod.ErrNoDevice.Error()) {
		t.Errorf("rolled back because of %q", s.Error)
	}
	if got := runState(t, a, "web1"); got != "running" {
		t.Errorf("at the source the machine is %q", got)
	}
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{FaultSource: FaultAuto}); err != nil {
		t.Fatal(err)
	}
	vmtest.Wait(t, "both ends to be done", func() bool {
		return a.last(t, RoleSource).Phase == PhaseDone && b.last(t, RoleDestination).Phase == PhaseDone
	})
	for _, s := range []Status{a.last(t, RoleSource), b.last(t, RoleDestination)} {
		if s.FaultSource != FaultUserfaultfd {
			t.Errorf("the %s says that faults were caught by %q", s.Role, s.FaultSource)
		}
	}
	for _, h := range []*testHost{a, b} {
		killAll(t, h)
	}
}

func TestFaultSourceUnknown(t *testing.T) {
	if _, err := NewHost(t.Context(), HostConfig{StateDir: t.TempDir(), FaultSource: "magic"}); err == nil || !strings.Contains(err.Error(), "userfaultfd") {
		t.Errorf("a fault source that nobody knows: %v", err)
	}
}

func TestAddressInUse(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", nil)
	if _, err := NewHost(t.Context(), HostConfig{StateDir: t.TempDir(), Listen: []string{h.addr}}); err == nil || !strings.Contains(err.Error(), "choose another `listen`") || !strings.Contains(err.Error(), h.addr) {
		t.Errorf("an address that is taken: %v", err)
	}
}
