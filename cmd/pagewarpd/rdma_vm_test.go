//go:build rdmavm

package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/pki"
	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
	"github.com/pagewarp/pagewarp/transport/rdma"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// These tests run in the VM of transport/rdma/rdmatest, which has soft-RoCE: real
// daemons (pagewarpd-rdma), a real QEMU, pages by READ. Both daemons
// are in the one namespace in which soft-RoCE of Linux 6.1 works, on one device.

// overRDMA is two such daemons and a machine.
func overRDMA(t *testing.T, withTLS bool) *matrix {
	t.Helper()
	if err := softroce.Make(); err != nil {
		t.Fatal(err)
	}
	before := verbsObjects(t)
	t.Cleanup(func() { // after the daemons' end
		if after := verbsObjects(t); !maps.Equal(before, after) {
			t.Errorf("verbs objects %v, before the test %v", after, before)
		}
	})
	root := vmtest.Dir(t)
	// The module is loaded, but these tests are of userfaultfd.
	rdmaConf := fmt.Sprintf("[rdma]\npolicy = \"auto\"\ndevice = %q\n[engine]\nfault_source = %q\n", softroce.Device, relocate.FaultUserfaultfd)
	if !withTLS { // which is slow in an emulator, where much goes by TCP
		return makeMatrix(t, root, place{conf: rdmaConf}, place{conf: rdmaConf})
	}
	dir := filepath.Join(root, "pki")
	if _, err := pki.Init(dir, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	at := func(name string) place {
		if _, err := pki.Issue(dir, name, []string{"127.0.0.1"}, false, time.Now()); err != nil {
			t.Fatal(err)
		}
		return place{conf: fmt.Sprintf("[tls]\nca = %q\ncert = %q\nkey = %q\npeers = [\"a\", \"b\"]\n%s",
			filepath.Join(dir, pki.CACert), filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"), rdmaConf)}
	}
	return makeMatrix(t, root, at("a"), at("b"))
}

// verbsObjects counts what the device's users hold.
func verbsObjects(t *testing.T) map[string]uint64 {
	t.Helper()
	n, err := softroce.Objects()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// reads are the READs at the destination so far.
func (m *matrix) reads() relocate.RDMAStatus {
	if r := m.b.status(relocate.RoleDestination).RDMA; r != nil {
		return *r
	}
	return relocate.RDMAStatus{}
}

// midDrain begins a relocation and waits until so many bytes have come by READ,
// slowly.
func (m *matrix) midDrain(lost string, bytes uint64) {
	m.t.Helper()
	m.relocate(relocate.Options{Bandwidth: 2 * slow, Transport: relocate.TransportRDMA, RDMALost: lost, PrecacheChannels: 1, Codec: "none"})
	vmtest.Wait(m.t, "pages by READ in the drain", func() bool {
		s := m.b.status(relocate.RoleDestination)
		return s.Phase == relocate.PhaseDraining && s.RDMA != nil && s.RDMA.ReadBytes > bytes
	})
	if s := m.b.status(relocate.RoleDestination); s.PagesRemaining == 0 {
		m.t.Fatal("the drain was over before the test began")
	}
}

// once checks that every page was installed once, by the counters of the engine.
func (m *matrix) once() {
	m.t.Helper()
	s := m.b.status(relocate.RoleDestination)
	if sum := s.PagesDemand + s.PagesPrecache + s.PagesZero; sum != s.PagesTotal || s.PagesRemaining != 0 {
		m.t.Errorf("%d pages on demand, %d by precache, %d zero: %d, but there are %d", s.PagesDemand, s.PagesPrecache, s.PagesZero, sum, s.PagesTotal)
	}
	m.t.Logf("%d pages on demand, %d by precache, %d zero; RDMA %+v", s.PagesDemand, s.PagesPrecache, s.PagesZero, *s.RDMA)
}

// A machine goes over by READ and comes back, paused, with precache by SEND and a warm
// start, by the operator's command.
func TestRDMAThereAndBack(t *testing.T) {
	m := overRDMA(t, true)
	twin := m.allowTwin(m.a)
	m.begin("", "")
	s := move(t, m.a, m.b, "--transport", "rdma", "--rdma-land", "alias")
	r := s.RDMA
	if r == nil || r.Device != softroce.Device || r.Port != 1 || r.ReadsCompleted == 0 || r.ReadsCompleted != r.ReadsPosted || r.ReadsRetried != 0 || r.Messages != 0 || r.Fallbacks != 0 || r.Registered == 0 || r.PagesInPlace == 0 {
		t.Errorf("READs: %+v", r)
	}
	m.arrived()
	m.once()
	pagewarp(t, m.b, "status", "web1").exits(0, "rdma      rxe0 port 1: ")

	kept := filepath.Join(m.b.dir, "vm.mem")
	twinOfSome(t, kept, twin)
	s = move(t, m.b, m.a, "--transport", "rdma", "--rdma-pin", "all", "--rdma-land", "staging", "--paused", "--keep-source", "--codec", "zstd", "--warm", twin)
	r = s.RDMA
	if r == nil || r.Messages == 0 || r.MessageBytes == 0 || r.SendBuildMS == 0 || r.Recalled != 0 || r.PagesInPlace != 0 || r.Fallbacks != 0 {
		t.Fatalf("SENDs on the way back: %+v", r)
	}
	// Half of the pages with data are random, the others shrink; a part of all was there.
	if n := (s.PagesPrecache - s.PagesSame) * 4096; r.MessageBytes > n*3/4 {
		t.Errorf("%d bytes by SEND for %d of memory: nothing was compressed", r.MessageBytes, n)
	}
	// Each answer of a precache channel came by SEND, but for those before it was up.
	if r.TCPFetches > r.Messages/4 {
		t.Errorf("%d fetches by TCP, %d answers by SEND", r.TCPFetches, r.Messages)
	}
	if s.PagesCandidate == 0 || s.PagesSame < s.PagesCandidate/2 {
		t.Errorf("%d of %d pages that were there were taken", s.PagesSame, s.PagesCandidate)
	}
	sameMemory(t, kept, filepath.Join(m.a.dir, "vm.mem"))
	pagewarp(t, m.a, "status", "web1").exits(0, "answers by SEND, ")
	t.Logf("downtime %.0f ms, %d pages by precache, %d of %d candidates; %d answers by SEND of %d bytes, made in %.0f ms; %d READs; faults %+v",
		s.DowntimeMS, s.PagesPrecache, s.PagesSame, s.PagesCandidate, r.Messages, r.MessageBytes, r.SendBuildMS, r.ReadsCompleted, s.FaultLatency)
}

// allowTwin has a node take candidates from a file, whose path it returns.
func (m *matrix) allowTwin(n *node) string {
	m.t.Helper()
	twin := filepath.Join(m.root, "twin", "ram.mem")
	conf, err := os.OpenFile(n.conf(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	fmt.Fprintf(conf, "\n[cache]\ndir = %q\nsize = \"1G\"\nallow = [%q]\n", filepath.Join(m.root, "cache"), filepath.Dir(twin))
	if err := conf.Close(); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Dir(twin), 0o700); err != nil {
		m.t.Fatal(err)
	}
	return twin
}

// twinOfSome writes a file with 6 MiB of a machine's memory, of those with the pattern,
// the rest being a hole: hashing all of it takes half a minute in an emulator.
func twinOfSome(t *testing.T, ram, twin string) {
	t.Helper()
	const from, to = 40 << 20, 46 << 20
	b := vmtest.MapRAM(t, ram)
	f, err := os.OpenFile(twin, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b[from:to], from); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
}

// linkDown pulls the cable of both ends; up puts it in again.
func linkDown(t *testing.T) (up func()) {
	t.Helper()
	link, err := netlink.LinkByName(softroce.Netdev)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	up = sync.OnceFunc(func() {
		if err := netlink.LinkSetUp(link); err != nil {
			t.Error(err)
		}
		vmtest.Wait(t, "the port to be active again", func() bool {
			ports, err := rdma.List()
			return err == nil && len(ports) == 1 && ports[0].Problem == ""
		})
	})
	t.Cleanup(up)
	return up
}

// Where the source may not write to its memory file, without which it cannot be registered,
// a relocation that asks for RDMA ends before anything has happened to the machine; one that
// leaves it to the hosts goes by TCP and says why.
func TestRDMANotExported(t *testing.T) {
	m := overRDMA(t, false)
	m.begin("", "")
	// root may open any file for writing but one of a file system that is read-only.
	if err := unix.Mount(m.vm.RAM, m.vm.RAM, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unmount := sync.OnceFunc(func() {
		if err := unix.Unmount(m.vm.RAM, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(unmount)
	if err := unix.Mount("", m.vm.RAM, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	const why = "read-only file system"
	m.relocate(relocate.Options{Transport: relocate.TransportRDMA})
	vmtest.Wait(t, "the refusal", func() bool { return m.a.status(relocate.RoleSource).Phase == relocate.PhaseRolledBack })
	if s := m.a.status(relocate.RoleSource); !strings.Contains(s.Error, why) || !strings.Contains(s.Error, m.vm.RAM) {
		t.Errorf("rolled back because of %q", s.Error)
	}
	if got, n := m.a.state(), len(m.vmms()); got != "running" || n != 0 {
		t.Fatalf("after the refusal the machine is %q at its source, %d QEMUs are at the destination", got, n)
	}
	m.relocate(relocate.Options{Transport: relocate.TransportAuto, Bandwidth: slow})
	vmtest.Wait(t, "the drain", func() bool { return m.b.status(relocate.RoleDestination).Phase == relocate.PhaseDraining })
	unmount() // the file is removed at the end
	pagewarp(t, m.a, "events").exits(0, "pages go by TCP, not by RDMA: export region")
	pagewarp(t, m.a, "events").exits(0, why)
	m.arrived()
	for _, s := range []relocate.Status{m.a.status(relocate.RoleSource), m.b.status(relocate.RoleDestination)} {
		if s.Options.Transport != relocate.TransportTCP || s.RDMA != nil {
			t.Errorf("the %s says that pages went by %q; RDMA %+v", s.Role, s.Options.Transport, s.RDMA)
		}
	}
}

// The link goes down in mid-drain: what is left comes by TCP, and the operator
// sees it.
func TestRDMALinkDown(t *testing.T) {
	m := overRDMA(t, false)
	m.begin("", "")
	m.midDrain(relocate.RDMALostTCP, 20<<20) // TCP takes its time for the rest in an emulator
	linkDown(t)
	vmtest.Wait(t, "RDMA to be given up", func() bool { r := m.reads(); return r.Fallbacks > 0 && r.ChannelsUp == 0 })
	pagewarp(t, m.b, "status", "web1").exits(0, "RDMA device rxe0: port error")
	pagewarp(t, m.b, "events").exits(0, "no more RDMA, pages come by TCP")
	n := m.reads().ReadsPosted
	m.arrived()
	m.once()
	if r := m.reads(); r.ReadsPosted != n || r.TCPFetches == 0 {
		t.Errorf("after the end of RDMA: %+v, %d READs before", r, n)
	}
}

// The same where the relocation is to wait: it does, until the link is up again.
func TestRDMALinkDownAndUp(t *testing.T) {
	m := overRDMA(t, false)
	m.begin("", "")
	m.midDrain(relocate.RDMALostWait, 1<<20)
	up := linkDown(t)
	vmtest.Wait(t, "RDMA to be lost", func() bool { r := m.reads(); return r.Fallbacks > 0 && r.ChannelsUp == 0 })
	pagewarp(t, m.b, "status", "web1").exits(0, "RDMA device rxe0: port error")
	pagewarp(t, m.b, "events").exits(0, "no more RDMA, its pages wait for it")
	before := m.b.status(relocate.RoleDestination)
	if before.PagesRemaining == 0 {
		t.Fatal("nothing is left to wait for")
	}
	up()
	vmtest.Wait(t, "more READs", func() bool { return m.reads().ReadsCompleted > before.RDMA.ReadsCompleted })
	m.arrived()
	m.once()
	// What is not registered yet may go by TCP, but not the rest.
	if r := m.reads(); r.TCPFetches-before.RDMA.TCPFetches > 20 {
		t.Errorf("%d fetches by TCP, of them %d before the link went down", r.TCPFetches, before.RDMA.TCPFetches)
	}
}

// The device is removed in mid-drain. The kernel takes it away when its last user has
// gone; whichever way pages come until then, all of them do.
func TestRDMADeviceRemoved(t *testing.T) {
	m := overRDMA(t, false)
	m.begin("", "")
	m.midDrain(relocate.RDMALostTCP, 1<<20)
	removed := make(chan error, 1)
	go func() { removed <- netlink.RdmaLinkDel(softroce.Device) }()
	m.arrived()
	m.once()
	select {
	case err := <-removed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the device is still held after the relocation")
	}
	if err := softroce.Make(); err != nil { // for what counts its objects
		t.Error(err)
	}
}

// The connections are cut in mid-drain, on which a READ does not depend: it goes
// on by RDMA when they are there again.
func TestRDMAConnectionsCut(t *testing.T) {
	m := overRDMA(t, true)
	m.proxy = vmtest.StartProxy(t, m.b.addr) // which its READs do not go through
	m.to = m.proxy.Addr()
	m.begin("", "")
	m.midDrain("", 1<<20)
	m.proxy.Cut()
	m.notice()
	m.proxy.Restore()
	n := m.reads().ReadsCompleted
	vmtest.Wait(t, "more READs", func() bool { return m.reads().ReadsCompleted > n })
	m.arrived()
	m.once()
}

// Either daemon is killed in mid-drain; its successor takes RDMA up again.
func TestRDMADaemonKilled(t *testing.T) {
	for _, role := range []relocate.Role{relocate.RoleSource, relocate.RoleDestination} {
		t.Run(string(role), func(t *testing.T) {
			m := overRDMA(t, false)
			m.begin("", "")
			m.midDrain("", 1<<20)
			n := map[relocate.Role]*node{relocate.RoleSource: m.a, relocate.RoleDestination: m.b}[role]
			before := m.reads().ReadsCompleted
			n.kill()
			if role == relocate.RoleDestination {
				before = 0 // they went with the daemon
			}
			n.start("")
			vmtest.Wait(t, "READs again", func() bool { return m.reads().ReadsCompleted > before })
			m.arrived()
			if role == relocate.RoleSource { // the other one's counters begin anew
				m.once()
			}
		})
	}
}

// TestMeasureSourceCPU is no test of TestInVM: `make bench-rdma` runs it and prints
// what it logs, the source daemon's own CPU time for each page that it gave away.
// What the device's driver does for it is not its time, on hardware nobody's.
func TestMeasureSourceCPU(t *testing.T) {
	if err := softroce.Make(); err != nil {
		t.Fatal(err)
	}
	for _, by := range []string{relocate.TransportRDMA, relocate.TransportTCP} {
		t.Run(by, func(t *testing.T) {
			p := place{conf: fmt.Sprintf("[rdma]\ndevice = %q\n[engine]\nfault_source = %q\n", softroce.Device, relocate.FaultUserfaultfd)}
			m := makeMatrix(t, vmtest.Dir(t), p, p)
			m.begin("", "")
			pid := m.a.cmd.Process.Pid
			before := cpuTime(t, pid)
			m.relocate(relocate.Options{Transport: by, Codec: "none", Bandwidth: 16 << 20})
			phase := func(want relocate.Phase) func() bool {
				return func() bool { s := m.b.status(relocate.RoleDestination); return s.Phase == want || s.Phase.Final() }
			}
			vmtest.Wait(t, "the drain", phase(relocate.PhaseDraining))
			drain := cpuTime(t, pid)
			vmtest.Wait(t, "its end", phase(relocate.PhaseDone))
			after := cpuTime(t, pid)
			s := m.b.status(relocate.RoleDestination)
			pages := s.PagesDemand + s.PagesPrecache
			if pages == 0 || s.Phase != relocate.PhaseDone {
				t.Fatalf("%+v", s)
			}
			t.Logf("by %s: %d pages with data; the source daemon's CPU time is %v in the drain, %.1f µs a page; %v with the set-up; RDMA %+v",
				by, pages, after-drain, float64((after-drain).Microseconds())/float64(pages), after-before, m.reads())
		})
	}
}

// cpuTime is what all threads of a process have used, in the kernel and outside.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from field 3 of proc(5)
	var sum time.Duration
	for _, field := range f[11:13] { // utime, stime, in ticks of 10 ms
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}
