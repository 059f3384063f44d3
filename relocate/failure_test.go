package relocate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"golang.org/x/sys/unix"
)

// slow makes the drain last, so that something can happen in it: 40 MiB of
// pattern at 4 MiB/s.
const slow = 4 << 20

// rig is two hosts, a proxy before the second, and a VM with a pattern on the
// first.
type rig struct {
	t     *testing.T
	root  string
	a, b  *testHost
	proxy *vmtest.Proxy
	vm    *vmtest.VM
	want  []byte
}

func newRig(t *testing.T, changeB func(*HostConfig)) *rig {
	t.Helper()
	r := &rig{t: t, root: vmtest.Dir(t)}
	r.a, r.b = startHost(t, r.root, "a", nil), startHost(t, r.root, "b", changeB)
	r.proxy = vmtest.StartProxy(t, r.b.addr)
	r.vm = vmtest.Start(t, r.a.dir)
	r.want = vmtest.Pattern(7)
	vmtest.WritePattern(t, r.vm.RAM, r.want)
	r.a.adopt(t, "web1", r.vm.QMP)
	t.Cleanup(func() { killAll(t, r.b) })
	return r
}

// runsAt asserts that the machine runs at exactly one host, with its memory.
func (r *rig) runsAt(h *testHost) {
	r.t.Helper()
	other := r.a
	if h == r.a {
		other = r.b
	}
	if got := runState(r.t, h, "web1"); got != "running" {
		r.t.Errorf("the machine is %q where it should run", got)
	}
	if got := runState(r.t, other, "web1"); got == "running" {
		r.t.Error("the machine runs at both hosts")
	}
	vmtest.CheckPattern(r.t, filepath.Join(h.dir, "vm.mem"), r.want)
}

// backAtSource asserts a rollback that left nothing behind at the destination.
func (r *rig) backAtSource(reason string) {
	r.t.Helper()
	s := r.a.last(r.t, RoleSource)
	if s.Phase != PhaseRolledBack || !strings.Contains(s.Error, reason) {
		r.t.Errorf("source ended %s (%s); want a rollback because of %q", s.Phase, s.Error, reason)
	}
	r.b.awaitIdle(r.t)
	r.runsAt(r.a)
	vmtest.NoTrace(r.t, r.b.dir, "*.json")
	vmtest.NoTrace(r.t, r.a.dir, "*.json", "vm.mem", "vm.qmp")
}

// awaitIdle waits until nothing arrives at the host any more and what had
// arrived has been tidied up.
func (h *testHost) awaitIdle(t *testing.T) {
	t.Helper()
	vmtest.Wait(t, "the destination to tidy up", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.incoming) == 0
	})
}

func (r *rig) relocate(to string, o Options) {
	r.t.Helper()
	if _, err := r.a.Relocate(r.t.Context(), "web1", to, o); err != nil {
		r.t.Fatal(err)
	}
}

// arrives relocates the machine to b, and waits until all of it is there.
func (r *rig) arrives(o Options) {
	r.t.Helper()
	r.relocate(r.b.addr, o)
	if s := r.awaitEnd(); s.Phase != PhaseDone {
		r.t.Fatalf("ended %s: %s", s.Phase, s.Error)
	}
	r.b.await(r.t, "web1", PhaseDone)
}

func (r *rig) awaitEnd() Status {
	r.t.Helper()
	vmtest.Wait(r.t, "the relocation's end", func() bool {
		r.a.mu.Lock()
		defer r.a.mu.Unlock()
		return len(r.a.outgoing) == 0
	})
	return r.a.last(r.t, RoleSource)
}

func TestRefusedByTheDestination(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		change       func(t *testing.T, cfg *HostConfig)
	}{
		{"no directory", "create it, or map the path", func(t *testing.T, cfg *HostConfig) {
			cfg.Template = func(string) qemu.Template {
				return qemu.Template{Rewrite: []qemu.Rewrite{{From: "/dev/shm", To: "/nonexistent"}}}
			}
		}},
		{"no memory", "out of memory for the guest", func(t *testing.T, cfg *HostConfig) {
			small := filepath.Join(filepath.Dir(cfg.StateDir), "small")
			if err := os.Mkdir(small, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
			cfg.Template = func(string) qemu.Template {
				return qemu.Template{Rewrite: []qemu.Rewrite{{From: filepath.Join(filepath.Dir(filepath.Dir(cfg.StateDir)), "a"), To: small}}}
			}
		}},
		{"QEMU too old", "too old", func(t *testing.T, cfg *HostConfig) {
			old := filepath.Join(filepath.Dir(cfg.StateDir), "qemu-system-old")
			script := "#!/bin/sh\necho 'QEMU emulator version 4.2.0'\n"
			if err := os.WriteFile(old, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(old) })
			withBinary(cfg, old)
		}},
		{"QEMU missing", "no-such-qemu", func(t *testing.T, cfg *HostConfig) {
			withBinary(cfg, "/usr/bin/no-such-qemu")
		}},
		{"socket in use", "of the command line is there already", func(t *testing.T, cfg *HostConfig) {
			l, err := net.Listen("unix", filepath.Join(filepath.Dir(cfg.StateDir), "vm.qmp"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}},
		{"on a disk", "neither on tmpfs nor on hugetlbfs", func(t *testing.T, cfg *HostConfig) {
			disk, err := os.MkdirTemp("/var/tmp", "pagewarp-test-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.Remove(disk); err != nil { // nothing was made there
					t.Error(err)
				}
			})
			cfg.Template = func(string) qemu.Template {
				return qemu.Template{Rewrite: []qemu.Rewrite{{From: filepath.Join(filepath.Dir(filepath.Dir(cfg.StateDir)), "a"), To: disk}}}
			}
		}},
		{"same RAM file", "is in use by process", func(t *testing.T, cfg *HostConfig) {
			cfg.Template = func(string) qemu.Template { return qemu.Template{} }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, func(cfg *HostConfig) { tt.change(t, cfg) })
			r.relocate(r.b.addr, Options{})
			r.awaitEnd()
			s := r.a.last(t, RoleSource)
			if s.Phase != PhaseRolledBack || !strings.Contains(s.Error, tt.reason) {
				t.Errorf("ended %s: %s; want a rollback because of %q", s.Phase, s.Error, tt.reason)
			}
			if got := runState(t, r.a, "web1"); got != "running" {
				t.Errorf("the machine is %q at its source", got)
			}
			t.Log(s.Error)
		})
	}
}

func withBinary(cfg *HostConfig, path string) {
	t := cfg.Template("")
	t.Binary = path
	cfg.Template = func(string) qemu.Template { return t }
}

func TestToItself(t *testing.T) {
	r := newRig(t, nil)
	r.relocate(r.a.addr, Options{})
	if s := r.awaitEnd(); !strings.Contains(s.Error, "is the host where web1 runs already") {
		t.Errorf("error: %s", s.Error)
	}
	if got := runState(t, r.a, "web1"); got != "running" {
		t.Errorf("the machine is %q", got)
	}
}

func TestNameTakenAtTheDestination(t *testing.T) {
	r := newRig(t, nil)
	other := vmtest.Start(t, vmtest.Dir(t))
	r.b.adopt(t, "web1", other.QMP)
	r.relocate(r.b.addr, Options{})
	if s := r.awaitEnd(); !strings.Contains(s.Error, "has a machine called web1 already") {
		t.Errorf("error: %s", s.Error)
	}
	if got := runState(t, r.a, "web1"); got != "running" {
		t.Errorf("the machine is %q at its source", got)
	}
}

func TestRefusedAtTheSource(t *testing.T) {
	r := newRig(t, nil)
	for _, tt := range []struct {
		name, vm, to, want string
		o                  Options
	}{
		{"unknown machine", "web2", r.b.addr, "unknown machine", Options{}},
		{"bad codec", "web1", r.b.addr, "codec", Options{Codec: "lzma"}},
		{"negative bandwidth", "web1", r.b.addr, "negative", Options{Bandwidth: -1}},
		{"too many channels", "web1", r.b.addr, "at most", Options{DemandChannels: 1000}},
	} {
		if _, err := r.a.Relocate(t.Context(), tt.vm, tt.to, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	if _, err := r.a.Adopt(t.Context(), "web3", filepath.Join(r.root, "nothing.qmp")); !errors.Is(err, qemu.ErrMonitorMissing) {
		t.Errorf("adopt with a missing socket: %v", err)
	}
	if _, err := r.a.Adopt(t.Context(), "../evil", r.vm.QMP); err == nil || !strings.Contains(err.Error(), "machine name") {
		t.Errorf("adopt with an odd name: %v", err)
	}
	if _, err := r.a.Adopt(t.Context(), "web1", r.vm.QMP); !errors.Is(err, ErrExists) {
		t.Errorf("adopt twice: %v", err)
	}
	if m := r.a.adopt(t, "plain", vmtest.StartPrivate(t, vmtest.Dir(t)).QMP); !strings.Contains(m.Problem, "guest memory is not a shared file") || !strings.Contains(m.Problem, "mem-path=FILE,share=on") {
		t.Errorf("on adopting a machine that cannot be relocated its problem is %q", m.Problem)
	}
	for _, m := range r.a.Machines(t.Context()) {
		if (m.Problem == "") != (m.Name == "web1") {
			t.Errorf("%s has the problem %q", m.Name, m.Problem)
		}
	}
	if _, err := r.a.Relocate(t.Context(), "plain", r.b.addr, Options{}); !errors.Is(err, qemu.ErrNoSharedFile) {
		t.Errorf("relocate without shared memory: %v", err)
	} else {
		t.Log(err)
	}
}

func TestUnreachableDestination(t *testing.T) {
	r := newRig(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	r.relocate(addr, Options{})
	r.awaitEnd()
	r.backAtSource("reach the destination " + addr)
	if s := r.a.last(t, RoleSource); strings.Count(s.Error, addr) > 2 || !strings.Contains(s.Error, "is pagewarpd running") {
		t.Errorf("the reason is %q", s.Error)
	}
}

// atPhase calls f when the relocation enters a phase at h.
func (r *rig) atPhase(h *testHost, p Phase, f func()) {
	r.t.Helper()
	h.await(r.t, "web1", p)
	f()
}

func TestCancelInEachPhase(t *testing.T) {
	for _, p := range []Phase{PhaseConnecting, PhasePreparing, PhaseReady, PhaseState, PhaseFrozen} {
		t.Run(string(p), func(t *testing.T) {
			r := newRig(t, nil)
			r.relocate(r.b.addr, Options{})
			var err error
			r.atPhase(r.a, p, func() { err = r.a.Cancel(t.Context(), "web1") })
			switch {
			case err == nil:
				r.backAtSource("cancelled by the operator")
			case errors.Is(err, ErrTooLate):
				// It was faster than the test; then it must have arrived whole.
				r.a.await(t, "web1", PhaseDone)
				r.b.await(t, "web1", PhaseDone)
				r.runsAt(r.b)
			default:
				t.Fatal(err)
			}
		})
	}
}

func TestNetworkCutBeforeTheSwitch(t *testing.T) {
	for _, p := range []Phase{PhasePreparing, PhaseReady} {
		t.Run(string(p), func(t *testing.T) {
			r := newRig(t, nil)
			r.relocate(r.proxy.Addr(), Options{})
			r.atPhase(r.b, p, r.proxy.Cut)
			s := r.awaitEnd()
			if s.Phase != PhaseRolledBack {
				t.Fatalf("ended %s: %s", s.Phase, s.Error)
			}
			r.backAtSource("")
		})
	}
}

func TestNetworkCutDuringTheDrain(t *testing.T) {
	r := newRig(t, nil)
	r.relocate(r.proxy.Addr(), Options{Bandwidth: slow})
	r.b.await(t, "web1", PhaseDraining)
	vmtest.Wait(t, "the source to know of channels", func() bool { return r.a.last(t, RoleSource).ChannelsUp > 0 })
	r.proxy.Cut()
	vmtest.Wait(t, "both sides to notice, and the source to dial in vain", func() bool {
		s := r.a.last(t, RoleSource)
		return !s.Connected && strings.Contains(s.Error, ": dial ") && !r.b.last(t, RoleDestination).Connected
	})
	if s := r.a.last(t, RoleSource); s.Reconnects != 1 || s.ChannelsUp != 0 {
		t.Errorf("the source counts %d cuts, %d channels up", s.Reconnects, s.ChannelsUp)
	}
	if s := r.b.last(t, RoleDestination); s.PagesRemaining == 0 || s.Phase != PhaseDraining || s.Error == "" {
		t.Errorf("the destination's status while cut off: %+v", s)
	}
	r.proxy.Restore()
	vmtest.Wait(t, "both sides to be back", func() bool {
		return r.a.last(t, RoleSource).Connected && r.b.last(t, RoleDestination).Connected
	})
	if err := r.b.SetBandwidth("web1", 0); err != nil {
		t.Error(err)
	}
	r.a.await(t, "web1", PhaseDone)
	r.b.await(t, "web1", PhaseDone)
	r.runsAt(r.b)
	if s := r.a.last(t, RoleSource); s.Reconnects != 1 {
		t.Errorf("%d cuts were counted: %+v", s.Reconnects, s)
	}
}

// restart closes a host as a signal would and starts another on its state.
func (r *rig) restart(h **testHost, name, addr string) {
	r.t.Helper()
	(*h).stop(r.t)
	*h = startHost(r.t, r.root, name, func(cfg *HostConfig) { cfg.Listen = []string{addr} })
}

func TestRestartDuringTheDrain(t *testing.T) {
	for _, who := range []string{"source", "destination"} {
		t.Run(who, func(t *testing.T) {
			r := newRig(t, nil)
			r.relocate(r.b.addr, Options{Bandwidth: slow})
			r.a.await(t, "web1", PhaseDraining)
			r.b.await(t, "web1", PhaseDraining)
			if who == "source" {
				r.restart(&r.a, "a", r.a.addr)
			} else {
				r.restart(&r.b, "b", r.b.addr)
			}
			vmtest.Wait(t, "both sides to meet again", func() bool {
				return r.a.last(t, RoleSource).Connected && r.b.last(t, RoleDestination).Connected
			})
			if err := r.b.SetBandwidth("web1", 0); err != nil {
				t.Error(err)
			}
			r.a.await(t, "web1", PhaseDone)
			r.b.await(t, "web1", PhaseDone)
			r.runsAt(r.b)
			<-r.vm.Done
		})
	}
}

func TestSourceQEMUKilledDuringTheDrain(t *testing.T) {
	r := newRig(t, nil)
	r.relocate(r.b.addr, Options{Bandwidth: slow})
	r.atPhase(r.a, PhaseDraining, func() { r.vm.Kill() })
	<-r.vm.Done
	if err := r.b.SetBandwidth("web1", 0); err != nil {
		t.Error(err)
	}
	r.a.await(t, "web1", PhaseDone)
	r.b.await(t, "web1", PhaseDone)
	r.runsAt(r.b)
	vmtest.NoTrace(t, r.a.dir, "*.json", "vm.qmp") // QEMU could not remove its socket
}

func TestDestinationQEMUKilledDuringTheDrain(t *testing.T) {
	r := newRig(t, nil)
	r.relocate(r.b.addr, Options{Bandwidth: slow})
	r.b.await(t, "web1", PhaseDraining)
	recs, err := r.b.journal.load(time.Now())
	if err != nil || len(recs) != 1 {
		t.Fatalf("journal of the destination: %v, %v", recs, err)
	}
	proc, err := qemu.Adopt(recs[0].PID, recs[0].StartTime, "")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := proc.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	r.a.await(t, "web1", PhaseLost)
	r.b.await(t, "web1", PhaseLost)
	s := r.a.last(t, RoleSource)
	if !strings.Contains(s.Error, "has ended in mid-drain") {
		t.Errorf("the source says: %s", s.Error)
	}
	if got := runState(t, r.a, "web1"); got == "running" {
		t.Error("the source runs a machine that has run elsewhere")
	}
	r.b.awaitIdle(t)
	vmtest.NoTrace(t, r.b.dir, "*.json")
}

func TestTwoAtATime(t *testing.T) {
	r := newRig(t, nil)
	r.relocate(r.b.addr, Options{Bandwidth: slow})
	if _, err := r.a.Relocate(t.Context(), "web1", r.b.addr, Options{}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second relocation of the same machine: %v", err)
	}
	if err := r.b.SetBandwidth("web9", 0); !errors.Is(err, ErrUnknownMachine) {
		t.Errorf("bandwidth of an unknown machine: %v", err)
	}
	if err := r.a.Forget("web1"); !errors.Is(err, ErrBusy) {
		t.Errorf("forgetting a machine on its way: %v", err)
	}
	r.b.await(t, "web1", PhaseDraining)
	r.a.await(t, "web1", PhaseDraining)
	if err := r.a.Cancel(t.Context(), "web1"); !errors.Is(err, ErrTooLate) {
		t.Errorf("cancel in the drain: %v", err)
	}
	// Lifted at the source this time: the destination is told.
	if err := r.a.SetBandwidth("web1", 0); err != nil {
		t.Error(err)
	}
	r.a.await(t, "web1", PhaseDone)
	r.b.await(t, "web1", PhaseDone)
	r.runsAt(r.b)
}

func TestDamagedJournalIsSaidAndKept(t *testing.T) {
	root := vmtest.Dir(t)
	h := startHost(t, root, "a", nil)
	h.stop(t)
	bad := filepath.Join(h.dir, "state", "source-01234567.json")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h = startHost(t, root, "a", nil)
	events, cancel := h.Subscribe(0)
	defer cancel()
	select {
	case ev := <-events:
		if ev.Kind != "warning" || !strings.Contains(ev.Text, bad) {
			t.Errorf("first event: %+v", ev)
		}
	case <-time.After(5 * time.Second):
		t.Error("nothing was said of a damaged journal")
	}
	if _, err := os.Stat(bad); err != nil {
		t.Error(fmt.Errorf("the damaged journal: %w", err))
	}
}
