package relocate

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
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

// What a device does with memory of other pages than its own, and what takes its place.
func TestPagesTheDeviceHasNot(t *testing.T) {
	const small, huge, giant = 4096, 2 << 20, 1 << 30
	this, old := kmod.Info{PageSize: small, HugePageSize: huge}, kmod.Info{PageSize: small}
	for _, c := range []struct {
		name   string
		size   uint32
		object string // of the source's device
		info   kmod.Info
		asked  bool
		want   []string // in the error; none: it is planned
	}{
		{"4 KiB", small, "", old, false, nil},
		{"2 MiB of an object", huge, "obj", this, false, nil},
		{"hugetlbfs, asked for", huge, "", this, true, nil},
		{"hugetlbfs, by itself", huge, "", this, false, []string{"stays", "--fault-source device"}},
		{"2 MiB of an object, a kernel without", huge, "obj", old, false, []string{"backend mem", "2097152", "CONFIG_TRANSPARENT_HUGEPAGE"}},
		{"hugetlbfs, a kernel without", huge, "", old, true, []string{"backend mem", "2097152", "CONFIG_TRANSPARENT_HUGEPAGE"}},
		{"1 GiB", giant, "", this, true, []string{"1073741824", "2097152", "--fault-source userfaultfd"}},
		{"1 GiB, a kernel without", giant, "", old, true, []string{"1073741824", "--fault-source userfaultfd"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := &incoming{transfer: &transfer{session: "s1", rec: &record{}}}
			o := pagesOffer(c.size, "/mnt/mem", c.object)
			_, err := in.planObjects(o, qemu.Template{}, c.info, c.asked)
			says(t, err, c.want)
			if err == nil && (len(in.rec.Memory) != 1 || in.rec.Memory[0].PageSize != int(c.size)) {
				t.Errorf("planned %+v", in.rec.Memory)
			}
		})
	}
}

// pagesOffer is of a machine with 1 GiB in pages of size bytes.
func pagesOffer(size uint32, path, object string) *offer {
	return &offer{VM: "web1", Regions: []transport.Region{{Name: "mem", PageSize: size, Pages: 1 << 30 / uint64(size)}},
		Description: qemu.Description{Argv: []string{"qemu-system-x86_64", "-object", "memory-backend-file,id=mem,size=1G,share=on,mem-path=" + path},
			Backends: []qemu.Backend{{ID: "mem", Path: path, Size: 1 << 30, Object: object}}}}
}

// Memory in pages of 2 MiB that has nowhere to go but files of small pages.
func TestPagesThatNoFileHas(t *testing.T) {
	dir, huge := vmtest.Dir(t), filepath.Join(t.TempDir(), "huge")
	mountHuge(t, huge, hugePage)
	for _, c := range []struct {
		name         string
		size         uint32
		path, object string
		want         []string
	}{
		{"an object's, without a device", hugePage, kmod.NodeDir + "obj", "obj", []string{"backend mem", "2097152", "modprobe pagewarp", "hugetlbfs", "`rewrite`"}},
		{"hugetlbfs, to small pages", hugePage, filepath.Join(dir, "vm.mem"), "", []string{"backend mem", "2097152", dir, "4096", "mount hugetlbfs", "`rewrite`", "modprobe pagewarp"}},
		{"small pages, to hugetlbfs", 4096, filepath.Join(huge, "vm.mem"), "", []string{"backend mem", huge, "2097152", "/dev/shm", "`rewrite`"}},
		{"hugetlbfs, to pages of another size", 1 << 30, filepath.Join(huge, "vm.mem"), "", []string{"1073741824", "pagesize=1073741824"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := &incoming{transfer: &transfer{session: "s1", rec: &record{}}}
			says(t, in.inFiles(pagesOffer(c.size, c.path, c.object), &qemu.Template{}, kmod.ErrNoDevice), c.want)
			if len(in.rec.Memory) != 0 {
				t.Errorf("planned %+v", in.rec.Memory)
			}
		})
	}
}

// says asserts that an error has all of some texts, or is none.
func says(t *testing.T, err error, want []string) {
	t.Helper()
	if (err == nil) != (want == nil) {
		t.Fatalf("error %v, want one with %q", err, want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not name %q", err, w)
		}
	}
}

func TestAddressInUse(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", nil)
	if _, err := NewHost(t.Context(), HostConfig{StateDir: t.TempDir(), Listen: []string{h.addr}}); err == nil || !strings.Contains(err.Error(), "choose another `listen`") || !strings.Contains(err.Error(), h.addr) {
		t.Errorf("an address that is taken: %v", err)
	}
}
