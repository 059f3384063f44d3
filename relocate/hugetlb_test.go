package relocate

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/hugetest"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/kmod"
	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// A machine whose memory is in huge pages: it goes there, and comes back paused.
func TestRelocateHugePages(t *testing.T) {
	root := vmtest.Dir(t)
	// The test itself holds on to the memory that has left.
	hugetest.Reserve(t, 3*vmtest.RAMBytes/hugePage)
	for _, name := range []string{"a", "b"} {
		mountHuge(t, filepath.Join(root, name, "huge"), 2*vmtest.RAMBytes)
	}
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	ram := func(h *testHost) string { return filepath.Join(h.dir, "huge", "vm.mem") }
	vm := vmtest.StartOn(t, a.dir, ram(a))
	want := vmtest.Pattern(5)
	vmtest.WritePattern(t, vm.RAM, want)
	a.adopt(t, "web1", vm.QMP)

	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	if s := a.last(t, RoleSource); s.PagesTotal < vmtest.RAMBytes/hugePage || s.PagesTotal >= vmtest.RAMBytes>>12 {
		t.Errorf("%d pages of a machine with %d MiB, most of it in pages of 2 MiB", s.PagesTotal, vmtest.RAMBytes>>20)
	}
	if got := runState(t, b, "web1"); got != "running" {
		t.Errorf("at the destination the machine is %q", got)
	}
	vmtest.CheckPattern(t, ram(b), want)

	if _, err := b.Relocate(t.Context(), "web1", a.addr, Options{Paused: true, KeepSource: true}); err != nil {
		t.Fatal(err)
	}
	b.await(t, "web1", PhaseDone)
	vmtest.Wait(t, "a to finish", func() bool { return runState(t, a, "web1") == "paused" })
	if !bytes.Equal(vmtest.MapRAM(t, ram(a)), vmtest.MapRAM(t, ram(b))) {
		t.Error("the two memory files differ after a paused relocation")
	}
	vmtest.CheckPattern(t, ram(a), want)
	killAll(t, a)
	killAll(t, b)
}

// A destination whose huge pages do not suffice refuses before the machine has stopped.
func TestNoHugePagesThere(t *testing.T) {
	root := vmtest.Dir(t)
	hugetest.Reserve(t, 2*vmtest.RAMBytes/hugePage)
	mountHuge(t, filepath.Join(root, "a", "huge"), vmtest.RAMBytes)
	mountHuge(t, filepath.Join(root, "b", "huge"), vmtest.RAMBytes/2)
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	vm := vmtest.StartOn(t, a.dir, filepath.Join(a.dir, "huge", "vm.mem"))
	want := vmtest.Pattern(6)
	vmtest.WritePattern(t, vm.RAM, want)
	a.adopt(t, "web1", vm.QMP)
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{}); err != nil {
		t.Fatal(err)
	}
	ev := a.await(t, "web1", PhaseRolledBack)
	if !strings.Contains(ev.Text, "memory") {
		t.Errorf("%q does not say what is missing", ev.Text)
	}
	if got := runState(t, a, "web1"); got != "running" {
		t.Errorf("the machine is %q at its source", got)
	}
	vmtest.CheckPattern(t, vm.RAM, want)
	killAll(t, b)
}

// A destination without hugetlbfs, and without the device, refuses before the machine
// has stopped, and says what to do.
func TestNoPagesOfThatSizeThere(t *testing.T) {
	root := vmtest.Dir(t)
	hugetest.Reserve(t, vmtest.RAMBytes/hugePage)
	mountHuge(t, filepath.Join(root, "a", "huge"), vmtest.RAMBytes)
	if err := os.MkdirAll(filepath.Join(root, "b", "huge"), 0o700); err != nil {
		t.Fatal(err)
	}
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	vm := vmtest.StartOn(t, a.dir, filepath.Join(a.dir, "huge", "vm.mem"))
	want := vmtest.Pattern(6)
	vmtest.WritePattern(t, vm.RAM, want)
	a.adopt(t, "web1", vm.QMP)
	for source, text := range map[string]string{FaultAuto: "mount hugetlbfs", FaultUserfaultfd: "--fault-source device", FaultDevice: kmod.ErrNoDevice.Error()} {
		if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{FaultSource: source}); err != nil {
			t.Fatal(err)
		}
		var s Status
		vmtest.Wait(t, "the refusal", func() bool {
			s = a.last(t, RoleSource)
			return s.Options.FaultSource == source && s.Phase == PhaseRolledBack
		})
		if !strings.Contains(s.Error, text) {
			t.Errorf("fault source %s: %q does not say %q", source, s.Error, text)
		}
		if !s.Stopped.IsZero() || runState(t, a, "web1") != "running" {
			t.Errorf("fault source %s: the machine was stopped", source)
		}
	}
	vmtest.CheckPattern(t, vm.RAM, want)
	if entries, err := os.ReadDir(filepath.Join(b.dir, "huge")); len(entries) != 0 || err != nil {
		t.Errorf("left at the destination: %v (%v)", entries, err)
	}
	killAll(t, b)
}

// mountHuge mounts a hugetlbfs that holds so many bytes.
func mountHuge(t *testing.T, dir string, bytes int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("hugetlbfs", dir, "hugetlbfs", 0, fmt.Sprintf("pagesize=%d,size=%d", hugePage, bytes)); err != nil {
		t.Fatalf("mount hugetlbfs: %v", err)
	}
	t.Cleanup(func() {
		os.Remove(filepath.Join(dir, "vm.mem"))
		unix.Unmount(dir, unix.MNT_DETACH)
	})
}

// A page of 2 MiB is a candidate like any other; the guest writes to some of them.
func TestPreTransferHugePages(t *testing.T) {
	root := vmtest.Dir(t)
	hugetest.Reserve(t, 2*vmtest.RAMBytes/hugePage)
	for _, name := range []string{"a", "b"} {
		mountHuge(t, filepath.Join(root, name, "huge"), 2*vmtest.RAMBytes)
	}
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	ram := func(h *testHost) string { return filepath.Join(h.dir, "huge", "vm.mem") }
	vm := vmtest.StartOn(t, a.dir, ram(a), vmtest.Writer(t)...)
	vmtest.Writes(t, vm.RAM)
	want := noise(3, vmtest.WriterOffset-noiseAt)
	vmtest.WritePattern(t, vm.RAM, want)
	a.adopt(t, "web1", vm.QMP)
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{PreTransfer: true, Paused: true, KeepSource: true}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	if !bytes.Equal(vmtest.MapRAM(t, ram(a)), vmtest.MapRAM(t, ram(b))) {
		t.Error("the two memory files differ after a paused relocation")
	}
	vmtest.CheckPattern(t, ram(b), want)
	s := a.last(t, RoleSource)
	if huge := uint64(len(want) / hugePage); s.PagesSame < huge || s.BytesPreTransfer < uint64(len(want)) || s.BytesWire > vmtest.WriterBytes+8<<20 {
		t.Errorf("%d pages of 2 MiB were confirmed, of %d that nobody writes; %d bytes before, %d after", s.PagesSame, huge, s.BytesPreTransfer, s.BytesWire)
	}
	killAll(t, b)
}
