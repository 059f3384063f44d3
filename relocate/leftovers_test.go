package relocate

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"golang.org/x/sys/unix"
)

// TestNothingStaysOfAMachineThatLeft: a host through which a machine has passed has
// neither its memory nor its sockets nor its log any more.
func TestNothingStaysOfAMachineThatLeft(t *testing.T) {
	r := newRig(t, nil)
	r.arrives(Options{})
	r.b.awaitIdle(t)
	if _, err := r.b.Relocate(t.Context(), "web1", r.a.addr, Options{}); err != nil {
		t.Fatal(err)
	}
	r.b.await(t, "web1", PhaseDone)
	r.a.await(t, "web1", PhaseDone)
	vmtest.Wait(t, "b to let go", func() bool {
		r.b.mu.Lock()
		defer r.b.mu.Unlock()
		return len(r.b.outgoing) == 0 && len(r.b.machines) == 0
	})
	vmtest.NoTrace(t, r.b.dir, "*.json")
	killAll(t, r.a)
}

// TestMachineKilledAfterItsArrival: what stays of a machine that was killed is said,
// and what was made for it here goes once it is forgotten, over a restart, too.
func TestMachineKilledAfterItsArrival(t *testing.T) {
	for _, restart := range []bool{false, true} {
		r := newRig(t, nil)
		r.arrives(Options{})
		r.b.awaitIdle(t)
		pid := r.b.Machines(t.Context())[0].PID
		b := r.b
		if restart {
			cfg := b.cfg
			b.stop(t)
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			b = startHost(t, filepath.Dir(b.dir), "b", func(c *HostConfig) { *c = cfg })
		} else if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		ram := filepath.Join(b.dir, "vm.mem")
		b.said(t, ram+" ")
		if !restart {
			vmtest.Wait(t, "the end to be seen", func() bool { return runState(t, b, "web1") == "gone" })
			if err := b.Forget("web1"); err != nil {
				t.Fatal(err)
			}
		}
		vmtest.Wait(t, "its files to be removed", func() bool {
			left, err := filepath.Glob(filepath.Join(b.cfg.StateDir, "vm-*"))
			return err == nil && len(left) == 0
		})
		vmtest.NoTrace(t, b.dir, "*.json", "vm.mem")
		// Of a machine that is alive nothing is removed.
		if restart {
			continue
		}
		other := vmtest.Start(t, vmtest.Dir(t))
		b.adopt(t, "web2", other.QMP)
		if err := b.Forget("web2"); err != nil {
			t.Fatal(err)
		}
		if !exists(other.QMP) || !exists(other.RAM) {
			t.Error("the socket or the memory of a machine that was forgotten is gone")
		}
	}
}

// TestJournalsAreBounded: a source does not keep the journal of each machine that it
// has ever sent away, and a restart remembers the newest.
func TestJournalsAreBounded(t *testing.T) {
	h := startHost(t, vmtest.Dir(t), "a", nil)
	const more = 10
	for range endedKept + more {
		token, err := newToken()
		if err != nil {
			t.Fatal(err)
		}
		tr := newTransfer(h.Host, &record{Token: token, VM: "web1", Role: RoleSource})
		if err := tr.enter(PhaseDone, "sent away"); err != nil {
			t.Fatal(err)
		}
		h.remember(tr)
		tr.cancel(nil)
	}
	want := sessions(h.Statuses())
	files, err := filepath.Glob(filepath.Join(h.cfg.StateDir, "source-*.json"))
	if err != nil || len(files) != endedKept || len(h.Statuses()) != endedKept {
		t.Errorf("%d journals of %d relocations shown, want %d: %v", len(files), len(h.Statuses()), endedKept, err)
	}
	cfg := h.cfg
	h.stop(t)
	again := startHost(t, filepath.Dir(h.dir), "a", func(c *HostConfig) { *c = cfg })
	if got := sessions(again.Statuses()); got != want {
		t.Errorf("after a restart it shows\n%s, want\n%s", got, want)
	}
}

func sessions(ss []Status) string {
	var out []string
	for _, s := range ss {
		out = append(out, s.Session)
	}
	return strings.Join(out, " ")
}

// TestHungMonitorsDoNotAddUp: a daemon that is started among machines whose QEMUs hang is
// ready after the patience for one of them, not for all: systemd ends it after 90 s.
func TestHungMonitorsDoNotAddUp(t *testing.T) {
	root := vmtest.Dir(t)
	h := startHost(t, root, "a", nil)
	var saved []savedMachine
	for i := range 12 {
		path := filepath.Join(root, fmt.Sprintf("hung%d.qmp", i))
		l, err := net.Listen("unix", path) // accepts, and says nothing
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		saved = append(saved, savedMachine{Name: fmt.Sprintf("hung%d", i), QMP: path})
	}
	vm := vmtest.Start(t, h.dir)
	saved = append(saved, savedMachine{Name: "web1", QMP: vm.QMP})
	if err := writeFileAtomic(h.machinesFile(), saved); err != nil {
		t.Fatal(err)
	}
	h.stop(t)
	started := make(chan *testHost, 1)
	go func() {
		again, err := NewHost(t.Context(), h.cfg)
		if err != nil {
			t.Error(err)
			again = nil
		}
		started <- &testHost{Host: again}
	}()
	// Were it killed now, the next one would still know all of them.
	for end := time.Now().Add(time.Second); time.Now().Before(end) && len(started) == 0; {
		var known []savedMachine
		if err := readJSON(h.machinesFile(), &known); err != nil || len(known) != len(saved) {
			t.Fatalf("in the middle of its start it knows %d machines of %d: %v", len(known), len(saved), err)
		}
	}
	select {
	case again := <-started:
		if again.Host == nil {
			return
		}
		defer again.Close()
		if got := runState(t, again, "web1"); got != "running" {
			t.Errorf("the machine beside those that hang is %q", got)
		}
		var known []savedMachine
		if err := readJSON(h.machinesFile(), &known); err != nil || len(known) != 1 || known[0].Name != "web1" {
			t.Errorf("afterwards it knows %+v, %v", known, err)
		}
	case <-time.After(15 * time.Second):
		t.Error("the start waits for one after the other")
		(<-started).Close()
	}
}

// TestOnlyStaleMemoryIsRemoved: a file at the destination that has the name of the machine's
// memory goes if it may be that of an earlier relocation, and stays if it cannot be.
func TestOnlyStaleMemoryIsRemoved(t *testing.T) {
	r := newRig(t, nil)
	path := filepath.Join(r.b.dir, "vm.mem")
	precious := []byte("accounts of the last ten years")
	if err := os.WriteFile(path, precious, 0o600); err != nil {
		t.Fatal(err)
	}
	r.relocate(r.b.addr, Options{})
	if s := r.awaitEnd(); s.Phase != PhaseRolledBack || !strings.Contains(s.Error, "it is something else") {
		t.Errorf("ended %s: %s", s.Phase, s.Error)
	}
	r.b.awaitIdle(t)
	if got, err := os.ReadFile(path); err != nil || string(got) != string(precious) {
		t.Errorf("the file that was there has %d bytes now, of its %d: %v", len(got), len(precious), err)
	}
	if err := os.Truncate(path, vmtest.RAMBytes); err != nil {
		t.Fatal(err)
	}
	r.relocate(r.b.addr, Options{})
	if s := r.awaitEnd(); s.Phase != PhaseDone {
		t.Fatalf("ended %s: %s", s.Phase, s.Error)
	}
	vmtest.Wait(t, "the machine at b", func() bool { return runState(t, r.b, "web1") == "running" })
	r.runsAt(r.b)
	r.b.said(t, "removing a stale RAM file that no process maps: "+path)
}

// TestListOfHungMachines: machines that hang cost the list, and every completion in a
// shell, a second together and not each.
func TestListOfHungMachines(t *testing.T) {
	root := vmtest.Dir(t)
	h := startHost(t, root, "a", nil)
	const hung = 8
	for i := range hung + 1 {
		dir := filepath.Join(root, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m := h.adopt(t, fmt.Sprintf("web%d", i), vmtest.Start(t, dir).QMP)
		if i == 0 {
			continue
		}
		if err := unix.Kill(m.PID, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Kill(m.PID, unix.SIGCONT) })
	}
	listed := make(chan []Machine, 1)
	go func() { listed <- h.Machines(t.Context()) }()
	select {
	case ms := <-listed:
		if len(ms) != hung+1 || ms[0].Name != "web0" || ms[0].Status != "running" {
			t.Errorf("%+v", ms)
		}
	case <-time.After(hung / 2 * time.Second):
		t.Error("the list waits for one after the other")
		<-listed
	}
}

// TestQEMUOfADaemonKilledInItsStart: between the start of a VMM and the next record of the
// journal a daemon does not know its pid; its successor finds it all the same.
func TestQEMUOfADaemonKilledInItsStart(t *testing.T) {
	root := vmtest.Dir(t)
	h := startHost(t, root, "b", nil)
	h.stop(t)
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(h.cfg.StateDir, "vm-"+sessionName(token)+".qmp")
	vm := vmtest.Start(t, h.dir, "-S", "-chardev", qemu.OwnChardev(socket), "-mon", "chardev=pagewarp-qmp,mode=control")
	bystander := exec.Command("tail", "-f", "/dev/null", socket) // an operator's, say
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { bystander.Process.Kill(); bystander.Wait() }()
	if err := h.journal.write(&record{
		Token: token, VM: "web1", Role: RoleDestination, Phase: PhasePreparing, QMP: socket, Started: time.Now(),
		Memory: []memoryRecord{{ID: "mem", Path: vm.RAM, Size: vmtest.RAMBytes}}, Cleanup: []string{socket},
	}); err != nil {
		t.Fatal(err)
	}
	cfg := h.cfg
	h = startHost(t, root, "b", func(c *HostConfig) { *c = cfg })
	if s := h.last(t, RoleDestination); s.Phase != PhaseRolledBack {
		t.Errorf("the relocation is %s", s.Phase)
	}
	select {
	case <-vm.Done:
	case <-time.After(10 * time.Second):
		t.Error("the VMM of the killed daemon lives on")
	}
	if err := unix.Kill(bystander.Process.Pid, 0); err != nil {
		t.Errorf("the program that named its socket: %v", err)
	}
	vmtest.NoTrace(t, h.dir, "*.json", "vm.qmp")
}

// TestBackBeforeItHasLeft: a machine that is sent back at once meets what is left of it at its
// source, whose QEMU takes its time to end. That is waited for.
func TestBackBeforeItHasLeft(t *testing.T) {
	r := newRig(t, nil)
	r.relocate(r.b.addr, Options{})
	r.a.await(t, "web1", PhaseDraining)
	if err := unix.Kill(r.vm.PID, unix.SIGSTOP); err != nil { // it will not answer `quit`
		t.Fatal(err)
	}
	r.b.await(t, "web1", PhaseDone)
	r.b.awaitIdle(t) // the source has been heard to let go
	if _, err := r.b.Relocate(t.Context(), "web1", r.a.addr, Options{}); err != nil {
		t.Fatal(err)
	}
	vmtest.Wait(t, "the way back", func() bool { return r.b.last(t, RoleSource).Phase.Final() })
	if s := r.b.last(t, RoleSource); s.Phase != PhaseDone {
		t.Fatalf("back it is %s: %s", s.Phase, s.Error)
	}
	vmtest.Wait(t, "the machine to be back", func() bool { return runState(t, r.a, "web1") == "running" })
	vmtest.CheckPattern(t, filepath.Join(r.a.dir, "vm.mem"), r.want)
	killAll(t, r.a)
}

// TestSocketsOfAKilledDaemon: the places that a daemon makes for a machine's device state go
// with the next start, if it was killed before it could remove them.
func TestSocketsOfAKilledDaemon(t *testing.T) {
	root := vmtest.Dir(t)
	h := startHost(t, root, "a", nil)
	cfg := h.cfg
	h.stop(t)
	if _, err := qemu.ListenState(cfg.StateDir, os.Geteuid()); err != nil { // never closed
		t.Fatal(err)
	}
	if _, err := qemu.NewStateDialer(cfg.StateDir, os.Geteuid()); err != nil {
		t.Fatal(err)
	}
	h = startHost(t, root, "a", func(c *HostConfig) { *c = cfg })
	vmtest.NoTrace(t, h.dir, "*.json")
}
