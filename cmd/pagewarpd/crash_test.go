package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
)

// The crash matrix: the real daemon, as two processes, is killed by SIGKILL at
// the very moment at which it has entered a phase; or it is held there while a
// QEMU is killed or the network cut. Whatever happens, the machine must not run
// at both hosts, must run at one of them unless its only QEMU was killed, with
// every byte of its memory, and nothing may be left behind. (tag crashtest:
// relocate/crash_on.go.)

var before = []relocate.Phase{relocate.PhaseReady, relocate.PhaseState, relocate.PhaseFrozen}

func TestSourceDaemonKilledBeforeTheSwitch(t *testing.T) {
	for _, p := range append([]relocate.Phase{relocate.PhaseConnecting, relocate.PhasePreparing}, before...) {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			m := newMatrix(t, "source:"+string(p)+":kill", "")
			m.relocate(relocate.Options{})
			m.a.awaitDeath()
			m.a.start("")
			m.stayed()
		})
	}
}

func TestDestinationDaemonKilledBeforeTheSwitch(t *testing.T) {
	for _, p := range []relocate.Phase{relocate.PhasePreparing, relocate.PhaseReady, relocate.PhaseFrozen, relocate.PhaseLoaded} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			m := newMatrix(t, "", "destination:"+string(p)+":kill")
			m.relocate(relocate.Options{})
			m.b.awaitDeath()
			// The source needs nobody for its rollback.
			vmtest.Wait(t, "the source to run again", func() bool { return m.a.state() == "running" })
			m.b.start("")
			m.stayed()
		})
	}
}

func TestDaemonKilledAfterTheSwitch(t *testing.T) {
	for _, role := range []relocate.Role{relocate.RoleSource, relocate.RoleDestination} {
		for _, p := range []relocate.Phase{relocate.PhaseCommitted, relocate.PhaseDraining} {
			t.Run(fmt.Sprintf("%s %s", role, p), func(t *testing.T) {
				t.Parallel()
				crash := map[relocate.Role]string{role: string(role) + ":" + string(p) + ":kill"}
				m := newMatrix(t, crash[relocate.RoleSource], crash[relocate.RoleDestination])
				m.relocate(relocate.Options{Bandwidth: slow})
				n := m.a
				if role == relocate.RoleDestination {
					n = m.b
				}
				n.awaitDeath()
				n.start("")
				m.arrived()
			})
		}
	}
}

func TestNetworkCutInEachPhase(t *testing.T) {
	cut := func(m *matrix) { m.proxy.Cut() }
	for _, p := range append(before, relocate.PhaseLoaded) {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			role := relocate.RoleSource
			if p == relocate.PhaseLoaded {
				role = relocate.RoleDestination
			}
			m := hold(t, role, p, cut)
			m.proxy.Restore()
			if p != relocate.PhaseFrozen {
				m.stayed()
				return
			}
			// The destination loads on while the source is held: LOADED may
			// have come before the cut, and then the source may commit.
			vmtest.Wait(t, "the source to decide", func() bool {
				now := m.a.status(relocate.RoleSource).Phase
				return now.Final() || now == relocate.PhaseDraining
			})
			if m.a.status(relocate.RoleSource).Phase == relocate.PhaseRolledBack {
				m.stayed()
			} else {
				m.arrived()
			}
		})
	}
	for _, p := range []relocate.Phase{relocate.PhaseCommitted, relocate.PhaseDraining} {
		for _, role := range []relocate.Role{relocate.RoleSource, relocate.RoleDestination} {
			t.Run(fmt.Sprintf("%s %s", role, p), func(t *testing.T) {
				t.Parallel()
				m := hold(t, role, p, cut)
				vmtest.Wait(t, "the source to notice", func() bool { return !m.a.status(relocate.RoleSource).Connected })
				m.proxy.Restore()
				m.arrived()
			})
		}
	}
}

// In doubt: the source has committed, GO is lost, and the destination gives up
// before the network is back. Its word, and nothing else, brings the machine
// back to life at the source.
func TestGoIsLostForGood(t *testing.T) {
	t.Parallel()
	m := hold(t, relocate.RoleSource, relocate.PhaseCommitted, func(m *matrix) { m.proxy.Cut() })
	vmtest.Wait(t, "the destination to give up", func() bool {
		return m.b.status(relocate.RoleDestination).Phase == relocate.PhaseRolledBack
	})
	if got := m.a.state(); got == "running" {
		t.Error("the source runs the machine before it knows that the destination does not")
	}
	m.proxy.Restore()
	m.stayed()
}

func TestDestinationQEMUKilled(t *testing.T) {
	for _, p := range []relocate.Phase{relocate.PhaseReady, relocate.PhaseFrozen, relocate.PhaseLoaded} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			hold(t, relocate.RoleDestination, p, (*matrix).killIncoming).stayed()
		})
	}
	for _, p := range []relocate.Phase{relocate.PhaseCommitted, relocate.PhaseDraining} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			m := hold(t, relocate.RoleDestination, p, (*matrix).killIncoming)
			vmtest.Wait(t, "both sides to say that the machine is lost", func() bool {
				return m.a.status(relocate.RoleSource).Phase == relocate.PhaseLost &&
					m.b.status(relocate.RoleDestination).Phase == relocate.PhaseLost
			})
			if got := m.a.state(); got == "running" {
				t.Error("the source runs a machine that may have run elsewhere")
			}
		})
	}
}

func TestSourceQEMUKilled(t *testing.T) {
	for _, p := range append([]relocate.Phase{relocate.PhaseConnecting, relocate.PhasePreparing}, before...) {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			m := hold(t, relocate.RoleSource, p, func(m *matrix) { m.vm.Kill() })
			vmtest.Wait(t, "the source to go on", func() bool {
				p := m.a.status(relocate.RoleSource).Phase
				return p.Final() || p == relocate.PhaseDraining
			})
			s := m.a.status(relocate.RoleSource)
			if s.Phase == relocate.PhaseDraining || s.Phase == relocate.PhaseDone {
				m.arrived() // it had sent its device state: the machine is saved
				return
			}
			if !strings.Contains(s.Error, "QEMU") {
				t.Errorf("the source says: %s", s.Error)
			}
			vmtest.Wait(t, "the destination's QEMU to end", func() bool { return len(m.vmms()) == 0 })
		})
	}
	for _, p := range []relocate.Phase{relocate.PhaseCommitted, relocate.PhaseDraining} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			hold(t, relocate.RoleSource, p, func(m *matrix) { m.vm.Kill() }).arrived()
		})
	}
}

func TestPeerStalls(t *testing.T) {
	t.Parallel()
	m := hold(t, relocate.RoleSource, relocate.PhaseDraining, func(m *matrix) {
		// The source daemon stops dead, its connections stay open.
		m.a.cmd.Process.Signal(syscall.SIGSTOP)
		vmtest.Wait(t, "the destination to notice", func() bool { return !m.b.status(relocate.RoleDestination).Connected })
		m.a.cmd.Process.Signal(syscall.SIGCONT)
	})
	m.arrived()
}
