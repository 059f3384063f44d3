//go:build kmodvm

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/hugetest"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/kmod"
	"github.com/pagewarp/pagewarp/relocate"
	"golang.org/x/sys/unix"
)

// These tests run in the VM of kmod/kmodtest, which has the module loaded: real
// daemons, a real QEMU, memory on the character device.

// objects lists the objects that there are.
func objects(t *testing.T) map[string]kmod.Stat {
	t.Helper()
	c, err := kmod.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]kmod.Stat)
	for _, s := range list {
		found[s.Name] = s
	}
	return found
}

// theObject is the only one that there is, but for those to ignore.
func theObject(t *testing.T, ignore ...string) (node string) {
	t.Helper()
	all := objects(t)
	for _, name := range ignore {
		delete(all, name)
	}
	if len(all) != 1 {
		t.Fatalf("objects %+v, want one", all)
	}
	for name, s := range all {
		if s.Bytes != vmtest.RAMBytes {
			t.Errorf("object %s has %d bytes", name, s.Bytes)
		}
		node = kmod.NodeDir + name
	}
	return node
}

// noObjects waits until all objects are gone.
func noObjects(t *testing.T) {
	t.Helper()
	vmtest.Wait(t, "all objects to be freed", func() bool { return len(objects(t)) == 0 })
}

// sweep destroys what objects a failed test leaves, so that the next one finds none.
func sweep(t *testing.T) {
	t.Cleanup(func() {
		c, err := kmod.Open()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for name := range objects(t) {
			if err := c.Destroy(name); !t.Failed() {
				t.Errorf("object %s was left (destroying it: %v)", name, err)
			}
		}
	})
}

// A machine with its memory in a file moves to a device, from there to another
// object, paused, and from that to a file again, by the operator's command and two
// daemons in two network namespaces with mutual TLS.
func TestDeviceThereAndBack(t *testing.T) {
	sweep(t)
	r, pkiDir := pair(t)
	m := onRig(t, r, pkiDir, 0)
	m.begin("", "")

	s := move(t, m.a, m.b) // "auto", the default of both
	t.Logf("to the device: downtime %.0f ms %v, %d pages on demand, faults %+v", s.DowntimeMS, s.DowntimeParts, s.PagesDemand, s.FaultLatency)
	if s.FaultSource != relocate.FaultDevice || s.PagesTotal != vmtest.RAMBytes>>12 || s.PagesRemaining != 0 {
		t.Errorf("final status: %+v", s)
	}
	if d := m.b.status(relocate.RoleDestination); d.PagesReserved == 0 {
		t.Errorf("the destination has reserved no memory: %+v", d)
	}
	first := theObject(t)
	vmtest.CheckPattern(t, first, m.want)
	if got := objects(t)[filepath.Base(first)]; got.State != kmod.Plain || got.Faults == 0 {
		t.Errorf("after the drain: %+v", got)
	}
	<-m.vm.Done
	if files, _ := filepath.Glob(filepath.Join(m.root, "*", "vm.mem")); len(files) > 0 {
		t.Errorf("RAM files are left: %q", files)
	}

	s = move(t, m.b, m.a, "--paused", "--keep-source", "--fault-source", "device")
	if s.FaultSource != relocate.FaultDevice {
		t.Errorf("final status: %+v", s)
	}
	second := theObject(t, filepath.Base(first))
	if got := objects(t)[filepath.Base(first)]; got.State != kmod.Frozen {
		t.Errorf("the source's object, which was to be kept: %+v", got)
	}
	sameMemory(t, first, second)
	vmtest.CheckPattern(t, second, m.want)
	m.killIncomingOf(first)
	os.Remove(filepath.Join(m.b.dir, "vm.qmp")) // what a killed QEMU leaves
	if c := pagewarp(t, m.a, "device", "destroy", filepath.Base(first)); c.wait() != 0 {
		t.Error(c.text())
	}

	s = move(t, m.a, m.b, "--fault-source", "userfaultfd")
	if s.FaultSource != relocate.FaultUserfaultfd {
		t.Errorf("final status: %+v", s)
	}
	vmtest.CheckPattern(t, "/dev/shm/"+filepath.Base(second), m.want)
	noObjects(t)
	if s := m.b.status(relocate.RoleDestination); s.FaultSource != relocate.FaultUserfaultfd {
		t.Errorf("the destination's status: %+v", s)
	}
	m.killIncoming()
	if err := unix.Unlink("/dev/shm/" + filepath.Base(second)); err != nil {
		t.Error(err)
	}
}

// killIncomingOf ends the QEMU that has a path on its command line.
func (m *matrix) killIncomingOf(path string) {
	m.t.Helper()
	for pid, line := range m.vmms() {
		if strings.Contains(line, path) {
			unix.Kill(pid, unix.SIGKILL)
			vmtest.Wait(m.t, "the QEMU to end", func() bool { _, alive := m.vmms()[pid]; return !alive })
		}
	}
}

// A daemon that is killed in mid-drain attaches to the object again when it is
// started; when the machine ends, its object is freed, and that is said.
func TestDeviceDaemonKilled(t *testing.T) {
	for _, phase := range []relocate.Phase{relocate.PhaseCommitted, relocate.PhaseDraining} {
		t.Run(string(phase), func(t *testing.T) {
			sweep(t)
			m := makeMatrix(t, vmtest.Dir(t), place{}, place{})
			m.begin("", fmt.Sprintf("destination:%s:kill", phase))
			m.relocate(relocate.Options{Bandwidth: slow, FaultSource: relocate.FaultDevice})
			m.b.awaitDeath()
			node := theObject(t)
			if got := objects(t)[filepath.Base(node)]; got.State != kmod.Orphaned {
				t.Errorf("the daemon is dead: %+v", got)
			}
			m.b.start("")
			m.lift()
			vmtest.Wait(t, "both sides to be done", func() bool {
				return m.a.status(relocate.RoleSource).Phase == relocate.PhaseDone && m.b.status(relocate.RoleDestination).Phase == relocate.PhaseDone
			})
			vmtest.Wait(t, "the machine to run", func() bool { return m.b.state() == "running" })
			if s := m.b.status(relocate.RoleDestination); s.FaultSource != relocate.FaultDevice {
				t.Errorf("status after the restart: %+v", s)
			}
			t.Run("memory", func(t *testing.T) { // whose mapping goes with it
				vmtest.CheckPattern(t, node, m.want)
			})
			m.killIncoming()
			noObjects(t)
			if c := pagewarp(t, m.b, "events"); c.wait() != 0 || !strings.Contains(c.text(), "was freed") {
				t.Errorf("the daemon does not say that the memory is free: %s", c.text())
			}
		})
	}
}

// A relocation that fails before GO leaves no object, whoever failed, and a source
// whose memory is on the device runs on there. At "committed" the source has frozen
// its memory when it learns that the destination has given up.
func TestDeviceRolledBack(t *testing.T) {
	for _, at := range []string{"destination:preparing", "destination:loaded", "source:frozen", "source:committed"} {
		t.Run(at, func(t *testing.T) {
			sweep(t)
			root := vmtest.Dir(t)
			m := makeMatrixOn(t, root, createObject(t, "src"), place{}, place{})
			crash := map[bool]string{true: at + ":kill"}
			onSource := strings.HasPrefix(at, "source")
			m.begin(crash[onSource], crash[!onSource])
			m.relocate(relocate.Options{})
			dead := m.b
			if onSource {
				dead = m.a
			}
			dead.awaitDeath()
			if at == "source:committed" {
				vmtest.Wait(t, "the destination to give up", func() bool {
					return m.b.status(relocate.RoleDestination).Phase == relocate.PhaseRolledBack
				})
			}
			dead.start("")
			m.stayed()
			if node := theObject(t); node != m.vm.RAM {
				t.Errorf("left is %s", node)
			}
			if got := objects(t)["src"]; got.State != kmod.Plain {
				t.Errorf("the source's memory: %+v", got)
			}
		})
	}
}

// A machine on hugetlbfs whose operator asks for the device moves to an object of pages
// of 2 MiB, from that to another, and from there to hugetlbfs, where a rewrite says so.
// Where none does, a destination that is not to use its device refuses.
func TestDeviceHugePages(t *testing.T) {
	const hugePage = 2 << 20
	sweep(t)
	root := vmtest.Dir(t)
	huge := filepath.Join(root, "huge")
	hugetest.Reserve(t, 2*vmtest.RAMBytes/hugePage) // the test itself holds on to the memory that has left
	if err := errors.Join(os.Mkdir(huge, 0o700), unix.Mount("hugetlbfs", huge, "hugetlbfs", 0, "pagesize=2M")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		files, _ := filepath.Glob(filepath.Join(huge, "*"))
		for _, f := range files {
			os.Remove(f)
		}
		if err := unix.Unmount(huge, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	m := makeMatrixOn(t, root, filepath.Join(huge, "vm.mem"), place{},
		place{tmpl: fmt.Sprintf("[[templates.\"*\".rewrite]]\nfrom = %q\nto = %q\n", strings.TrimSuffix(kmod.NodeDir, "/"), huge)})
	m.begin("", "")
	onObject := func(n *node, s relocate.Status, ignore ...string) (node string) {
		t.Helper()
		node = theObject(t, ignore...)
		t.Logf("to %s: downtime %.0f ms, %d pages on demand, faults %+v", node, s.DowntimeMS, s.PagesDemand, s.FaultLatency)
		if got := objects(t)[filepath.Base(node)]; got.PageSize != hugePage || got.State != kmod.Plain || got.Faults == 0 {
			t.Errorf("%+v, want a plain object of pages of %d bytes", got, hugePage)
		}
		// The regions beside the RAM have none.
		if s.FaultSource != relocate.FaultDevice || s.PagesTotal != vmtest.RAMBytes/hugePage || s.PagesRemaining != 0 {
			t.Errorf("final status: %+v", s)
		}
		if got := n.state(); got != "running" {
			t.Errorf("the machine is %q", got)
		}
		t.Run("memory", func(t *testing.T) { // whose mapping goes with it
			vmtest.CheckPattern(t, node, m.want)
		})
		return node
	}
	first := onObject(m.b, move(t, m.a, m.b, "--fault-source", "device"))
	<-m.vm.Done
	os.Remove(filepath.Join(m.a.dir, "vm.qmp"))
	c := pagewarp(t, m.b, "relocate", "web1", "--to", m.a.addr, "--fault-source", "userfaultfd")
	vmtest.Wait(t, "the command to end", c.ended)
	if code := c.wait(); code == 0 || !strings.Contains(c.text(), "in pages of 2097152 bytes") || !strings.Contains(c.text(), "--fault-source device") {
		t.Errorf("to a host that is not to use its device: exit code %d, %s", code, c.text())
	}
	if s := m.b.status(relocate.RoleSource); s.Phase != relocate.PhaseRolledBack || !s.Stopped.IsZero() || m.b.state() != "running" {
		t.Errorf("after the refusal: %+v", s)
	}
	second := onObject(m.a, move(t, m.b, m.a), filepath.Base(first)) // "auto", the default
	if first == second {
		t.Errorf("both objects are %s", first)
	}
	os.Remove(filepath.Join(m.b.dir, "vm.qmp"))
	s := move(t, m.a, m.b, "--fault-source", "userfaultfd")
	if s.FaultSource != relocate.FaultUserfaultfd || s.PagesTotal != vmtest.RAMBytes/hugePage || s.PagesRemaining != 0 {
		t.Errorf("back on hugetlbfs: %+v", s)
	}
	file := filepath.Join(huge, filepath.Base(second))
	t.Run("file", func(t *testing.T) { vmtest.CheckPattern(t, file, m.want) })
	m.killIncoming()
	noObjects(t)
}

// createObject makes memory for a machine to start on, which goes with the test.
func createObject(t *testing.T, name string) (node string) {
	t.Helper()
	c := exec.Command(program(t, "pagewarp"), "device", "create", name, "--size", fmt.Sprintf("%dM", vmtest.RAMBytes>>20))
	if out, err := c.CombinedOutput(); err != nil || string(out) != kmod.NodeDir+name+"\n" {
		t.Fatalf("pagewarp device create: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(program(t, "pagewarp"), "device", "destroy", name).CombinedOutput(); err != nil {
			t.Errorf("pagewarp device destroy: %v: %s", err, out)
		}
	})
	return kmod.NodeDir + name
}
